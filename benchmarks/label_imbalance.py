"""Do class weights or focal loss find a rare class? The question of `privacy`, made 20 to 1.

    python benchmarks/label_imbalance.py                          # validation questions
    python benchmarks/label_imbalance.py --part test --save NAME

Of the relevant pairs of privacy-qa only so many are kept that there are twenty irrelevant ones for
each, in training and in what is measured. For every seed (of the pairs that are kept, the fresh
head and the order) one model is trained per loss, the same in all else. Items of all seeds are
measured together and whole questions are resampled, so seeds share a question's luck.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from circumstances import describe, note_load, save  # type: ignore[import-not-found]

from sftkit import (
    AdapterSettings,
    attach_adapter,
    fetch_model,
    load_tokenizer,
    read_dataset,
    split_dataset,
)
from sftkit.evidence.label_scores import score_labels, true_values
from sftkit.evidence.labels import evaluate_labels, judge_labels
from sftkit.heads import load_with_head
from sftkit.labelled import collate_texts, encode_labelled, fit_targets, weigh_examples
from sftkit.objectives import make_objective
from sftkit.prepare_labels import cut_pairs
from sftkit.settings import DataSettings, ModelSettings, ObjectiveSettings, TrainSettings
from sftkit.train import train

RATIO = 20
LOSSES = {
    "plain": ObjectiveSettings(),
    "class weights": ObjectiveSettings(class_weights="balanced"),
    "focal": ObjectiveSettings(loss="focal", focal_gamma=2.0),
}
DATA = DataSettings(
    source="privacy-qa", task="classify", validation_fraction=0.1, test_fraction=0.2
)
MODEL = ModelSettings(name="minilm-l6", dropout=0.0)
ADAPTER = AdapterSettings(r=16, lora_alpha=32, layers=(3, 5))


def make_rare(rows: Any, seed: int, count: int | None = None) -> list[dict[str, Any]]:
    """Keep one relevant pair for every twenty others; `count` rows in all, None takes the most."""
    mixed = [rows[int(place)] for place in np.random.default_rng(seed).permutation(len(rows))]
    common = [row for row in mixed if row["label"] == "irrelevant"]
    common = common[: None if count is None else count * RATIO // (RATIO + 1)]
    rare = [row for row in mixed if row["label"] == "relevant"][: len(common) // RATIO]
    return [*common, *rare]


def main() -> None:
    """Train every loss with every seed, and print gains with their intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--rows", type=int, default=1050, help="training pairs")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", metavar="NAME", help="keep the result as results/NAME.json")
    options = parser.parse_args()
    load, started = note_load(), time.perf_counter()
    source = fetch_model(MODEL)
    tokenizer = load_tokenizer(MODEL, source=source)
    splits = split_dataset(read_dataset("privacy-qa"), DATA)
    targets = fit_targets(splits.train, "classify")
    said: dict[str, list[Any]] = {name: [] for name in LOSSES}
    true, groups = [], []
    for seed in range(options.seeds):
        trained, measured = (
            encode_labelled(
                cut_pairs(make_rare(part, seed, count), at="\nPolicy: "),
                tokenizer, targets, max_tokens=128,
            ).examples
            for part, count in ((splits.train, options.rows), (getattr(splits, options.part), None))
        )  # fmt: skip
        true.append(true_values(measured, targets))
        groups += [example.group for example in measured]
        settings = TrainSettings(
            learning_rate=5e-4, epochs=options.passes, max_tokens_per_batch=1024,
            weight_decay=0.01, seed=seed,
        )  # fmt: skip
        for name, loss in LOSSES.items():
            base = load_with_head(
                MODEL, "classify", targets, tokenizer=tokenizer, source=source, seed=seed
            )
            model = attach_adapter(base, ADAPTER, seed=seed, task_type="SEQ_CLS")
            record = train(
                model,
                weigh_examples(trained, targets, loss),
                settings,
                objective=make_objective("classify", loss),
                collate=collate_texts,
            )
            said[name].append(score_labels(model, measured, targets))
            print(f"seed {seed}, {name}: {len(record.steps)} steps, {record.seconds:.0f} s")
    reports = {
        name: evaluate_labels(
            np.concatenate(true),
            np.concatenate(said[name]),
            task="classify",
            groups=groups,
            classes=targets.labels,
            baselines={"plain": np.concatenate(said["plain"])},
        )
        for name in LOSSES
        if name != "plain"
    }
    rows = []
    for name, report in reports.items():
        row = report.per_class[1]
        print(f"{name}: {judge_labels(report).sentence}")
        print(f"  recall {row.recall.value}, precision {row.precision.value} of {row.support}")
        gains = {
            gain.metric: {"plain": gain.before, name: gain.after, "ci95": gain.ci95}
            for gain in report.gains
        }
        rows.append({"loss": name, "items": report.items, "rare": row.support, "gains": gains})
    if options.save:
        where = describe(("torch", "transformers", "peft", "numpy"), load)
        asked = {key: value for key, value in vars(options).items() if key != "save"}
        seconds = round(time.perf_counter() - started)
        save({**where, "asked": asked, "seconds": seconds, "results": rows}, options.save)


if __name__ == "__main__":
    main()
