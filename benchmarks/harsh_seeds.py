"""Whether forgetting is seen when it is there, and not claimed when it is not, over many seeds.

The demo's invented facts are trained for a few steps without replay, at a harsh and at a gentle
rate, each with 20 seeds of adapter and order; the verdicts of a small exam are counted. The base
model is loaded and measured once: each fresh adapter is taken off it again.

    python benchmarks/harsh_seeds.py --save harsh-2-cores
    python benchmarks/harsh_seeds.py --deltas tests/forgetting_deltas.json   # one run, item by item
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

PACKAGES = ("torch", "transformers", "peft", "numpy")
RATES = {"harsh": 5e-3, "gentle": 2e-5}
ASKED = 19  # of 20 harsh seeds to be flagged
DELTAS_RATE = 1e-3
DELTAS_STEPS = 40


class Bench:
    """The base model with its exam, measured once; adapters come and go."""

    def __init__(self, overrides: Sequence[str]) -> None:
        from sftkit import catalog, model
        from sftkit.evidence.forgetting import make_forgetting_test, score_forgetting
        from sftkit.prepare import prepare_data
        from sftkit.run import find_recipe

        self.recipe = find_recipe("demo", overrides=overrides)
        settings = self.recipe.evaluate
        source = catalog.fetch_model(self.recipe.model)
        tokenizer = model.load_tokenizer(self.recipe.model, source=source)
        probes = {
            name: catalog.probe_items(name, settings.items_per_probe) for name in settings.probes
        }
        passages = catalog.passages(settings.drift_source, settings.drift_passages)
        self.examples = prepare_data(self.recipe, tokenizer, probes).train
        self.exam = make_forgetting_test(probes, passages, tokenizer, settings)
        choice = model.pick_dtype(self.recipe.model)
        self.dtype = choice.name
        self.base = model.load_model(self.recipe.model, dtype=choice.dtype, source=source)
        self.before = score_forgetting(self.base, self.exam)

    def tune(self, rate: float, seed: int) -> Any:
        """Train a fresh adapter, measure it, take it off; give the scores."""
        from sftkit.adapter import attach_adapter, take_apart
        from sftkit.evidence.forgetting import score_forgetting
        from sftkit.objectives import chat_loss
        from sftkit.train import train

        tuned = attach_adapter(self.base, self.recipe.adapter, seed=seed)
        settings = dataclasses.replace(self.recipe.train, learning_rate=rate, seed=seed)
        try:
            train(tuned, self.examples, settings, objective=chat_loss)
            return score_forgetting(tuned, self.exam)
        finally:
            take_apart(self.base)


def count_verdicts(seeds: int, steps: int) -> dict[str, Any]:
    """Train at each rate with each seed, and count what the verdicts say."""
    from sftkit.evidence.forgetting import compare_forgetting
    from sftkit.evidence.verdicts import judge_ability, judge_drift

    small = {"items_per_probe": 10, "drift_passages": 30, "passage_tokens": 64}
    bench = Bench(
        [*_shape(steps, 256), *(f"evaluate.{name}={count}" for name, count in small.items())]
    )
    settings = bench.recipe.evaluate
    report: dict[str, Any] = {"dtype": bench.dtype, "steps": steps, "rates": RATES, "exam": small}
    for name, rate in RATES.items():
        runs = []
        for seed in range(seeds):
            start = time.perf_counter()
            forgot = compare_forgetting(bench.exam, bench.before, bench.tune(rate, seed), settings)
            drift, ability = judge_drift(forgot, settings), judge_ability(forgot, settings)
            assert forgot.drift is not None
            assert forgot.overall is not None
            runs.append(
                {
                    "seed": seed,
                    "drift": drift.state,
                    "ability": ability.state,
                    "drift_delta": round(forgot.drift.delta, 4),
                    "drift_ci95": [round(end, 4) for end in forgot.drift.ci95],
                    "ability_delta": round(forgot.overall.delta, 4),
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )
            print(name, json.dumps(runs[-1]), flush=True)
        lost = sum("lost" in (run["drift"], run["ability"]) for run in runs)
        report[name] = {
            "seeds": seeds,
            "flagged_lost": lost,
            "runs": runs,
            "drift": Counter(run["drift"] for run in runs),
            "ability": Counter(run["ability"] for run in runs),
        }
        print(f"{name}: {lost} of {seeds} seeds are flagged as lost")
    return report


def write_deltas(path: Path) -> None:
    """Train once, and keep what every question and every passage did."""
    shape = _shape(DELTAS_STEPS, 320)
    bench = Bench([*shape, "evaluate.items_per_probe=100", "evaluate.drift_passages=100"])
    load = note_load()
    after = bench.tune(DELTAS_RATE, 0)
    questions = [
        {
            "probe": name,
            "right": [int(score.picked == item.answer) for score in (first, second)],
            "logprob": round(second.per_token(item.answer) - first.per_token(item.answer), 5),
        }
        for name, item, first, second in zip(
            bench.exam.names, bench.exam.items, bench.before.choices, after.choices, strict=True
        )
    ]
    passages = [
        {"tokens": first.tokens, "loss": round(second.mean - first.mean, 5)}
        for first, second in zip(bench.before.passages, after.passages, strict=True)
    ]
    written = {
        "made_by": "python benchmarks/harsh_seeds.py --deltas",
        "run": f"recipe demo without replay, {DELTAS_STEPS} steps at learning rate "
        f"{DELTAS_RATE:g}, seed 0, {bench.dtype}; tuned minus base, per question and passage",
        **describe(PACKAGES, load),
        "questions": questions,
        "passages": passages,
    }
    head, tail = json.dumps(written, indent=1).split('"questions"')[0], []
    for name, rows in (("questions", questions), ("passages", passages)):
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        tail.append(f'"{name}": [\n  {lines}\n ]')
    path.write_text(head + ",\n ".join(tail) + "\n}\n", encoding="utf-8")
    print(f"{len(questions)} questions and {len(passages)} passages in {path}")


def _shape(steps: int, tokens: int) -> list[str]:
    tokens_per_batch = f"train.max_tokens_per_batch={tokens}"
    return ["data.replay=null", f"train.max_steps={steps}", tokens_per_batch]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--save", metavar="NAME")
    parser.add_argument("--deltas", type=Path, metavar="PATH")
    options = parser.parse_args()
    if options.deltas:
        write_deltas(options.deltas)
        return
    load = note_load()
    report = count_verdicts(options.seeds, options.steps)
    report.update(describe(PACKAGES, load))
    if options.save:
        save(report, options.save)
    if report["harsh"]["flagged_lost"] < ASKED * options.seeds / 20:
        raise SystemExit(f"fewer than {ASKED} of 20 harsh seeds were flagged")


if __name__ == "__main__":
    main()
