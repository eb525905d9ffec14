"""Broken runs, made on purpose: each differs from one healthy run in a single thing.

Where sftkit refuses a fault, its refusal is kept, and the fault is then made by the plain code that
many scripts have, so that it can be seen what the refusal is for.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftkit.clinic import HEALTHY, PATIENTS, SWAPPED, Chart
from sftkit.clinic_bench import ADAPTER, Bench, ClinicSettings, fingerprint_of, told, train_plainly
from sftkit.clinic_labels import run_labels
from sftkit.clinic_views import Case, Ward
from sftkit.records import IGNORE, Encoded, TrainRecord
from sftkit.settings import DataSettings, ModelSettings

__all__ = ["ClinicSettings", "admit"]

Note = Callable[[str], None]


def run_healthy(bench: Bench, folder: Path) -> Chart:
    """Train as one should; its adapter is saved, for faults of use."""
    from sftkit.adapter_files import save_adapter

    examples = bench.encode(bench.train)
    with bench.trained(examples, bench.encode(bench.fresh)) as (model, record):
        save_adapter(model, folder, base_fingerprint=bench.source.fingerprint)
        return bench.examine(HEALTHY, model, record, examples)


def run_wrong_template(bench: Bench) -> Chart:
    """Train on rows that were written with headlines; ask with the model's own template."""
    from sftkit.evidence.mutants import with_other_template

    other = with_other_template(bench.tokenizer)
    examples = bench.encode(bench.train, other)
    with bench.trained(examples, bench.encode(bench.fresh, other)) as (model, record):
        return bench.examine("wrong template", model, record, examples, tokenizer=other)


def run_all_masked(bench: Bench) -> Chart:
    """Mask every label. `train` refuses, so a plain loop goes on where it would stop."""
    from sftkit.adapter import attach_adapter, take_apart
    from sftkit.objectives import chat_loss
    from sftkit.train import train

    examples = [example.silenced() for example in bench.encode(bench.train)]
    examples = [dataclasses.replace(example, end_of_turn=False) for example in examples]
    model = attach_adapter(bench.base, ADAPTER, seed=bench.settings.seed)
    try:
        refusal = told(lambda: train(model, examples, bench.plan(), objective=chat_loss))
        few = bench.plan(max_tokens_per_batch=bench.settings.tokens_per_step // 2)
        record = train_plainly(model, examples, bench.encode(bench.fresh), few)
        return bench.examine("all masked", model, record, examples, refusal=refusal)
    finally:
        take_apart(bench.base)


def run_pad_is_eos(bench: Bench) -> Chart:
    """Mask the labels of padding by its id, which is also the id that ends every answer."""
    from sftkit.chat import end_tokens

    ends = end_tokens(bench.tokenizer)

    def masked(example: Encoded) -> Encoded:
        labels = tuple(IGNORE if label in ends else label for label in example.labels)
        return dataclasses.replace(example, labels=labels, end_of_turn=False)

    examples = [masked(example) for example in bench.encode(bench.train)]
    heldout = [masked(example) for example in bench.encode(bench.fresh)]
    with bench.trained(examples, heldout) as (model, record):
        return bench.examine("pad is eos", model, record, examples)


def run_leaked_test(bench: Bench, folder: Path) -> Chart:
    """Join the tested rows to the training rows; the audit of a run would refuse them."""
    from sftkit.prepare import audited_splits

    rows = [*bench.train, *({**row, "split": "train"} for row in bench.test)]
    path = folder / "shop.jsonl"
    kept = ("messages", "group", "split")
    written = [*rows, *bench.fresh, *bench.test]
    lines = [json.dumps({name: row[name] for name in kept}) for row in written]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    where = DataSettings(source=str(path), split_by="split")
    refusal = told(lambda: audited_splits(where, bench.tokenizer)).replace(f"{folder}/", "")
    examples = bench.encode(rows)
    with bench.trained(examples, bench.encode(bench.fresh)) as (model, record):
        return bench.examine("leaked test", model, record, examples, rows=rows, refusal=refusal)


def run_huge_rate(bench: Bench) -> Chart:
    """Train at a rate far beyond the cliff."""
    examples, heldout = bench.encode(bench.train), bench.encode(bench.fresh)
    rate = bench.settings.huge_rate
    with bench.trained(examples, heldout, learning_rate=rate) as (model, record):
        return bench.examine("huge rate", model, record, examples)


def run_tiny_data(bench: Bench) -> Chart:
    """Teach two rows, each about another fact, as many steps as all others."""
    first = {row["group"]: row for row in reversed(bench.train)}
    rows = list(first.values())[:2]
    examples, heldout = bench.encode(rows), bench.encode(bench.fresh)
    with bench.trained(examples, heldout) as (model, record):
        return bench.examine("tiny data", model, record, examples, rows=rows)


def run_wrong_base(bench: Bench, folder: Path) -> Chart:
    """Teach half of the facts on top of a merged model that knows the others; use the first base.

    Its fingerprint tells the two bases apart, so `load_adapter` refuses; without one it cannot.
    """
    from sftkit.adapter import take_apart
    from sftkit.adapter_files import load_adapter, merge_adapter, save_adapter

    groups = list(dict.fromkeys(row["group"] for row in bench.train))
    half = set(groups[: len(groups) // 2])
    rows = [row for row in bench.train if row["group"] not in half]
    earlier = bench.encode([row for row in bench.train if row["group"] in half])
    examples, heldout = bench.encode(rows), bench.encode(bench.fresh)
    with bench.trained(earlier, heldout) as (model, _):
        merged = merge_adapter(copy.deepcopy(model))
    made_for = fingerprint_of(merged)
    with bench.trained(examples, heldout, base=merged) as (model, record):
        save_adapter(model, folder, base_fingerprint=made_for)
    del merged, model
    known = bench.source.fingerprint
    refusal = told(lambda: load_adapter(bench.base, folder, base_fingerprint=known))
    model = load_adapter(bench.base, folder)
    try:
        return bench.examine(
            "wrong base", model, record, examples, rows=rows,
            refusal=refusal.replace(f"{folder.parent}/", ""),
        )  # fmt: skip
    finally:
        take_apart(bench.base)


def use_unattached(bench: Bench, healthy: Chart, saved: Path, folder: Path) -> Chart:
    """Load the healthy adapter under names the model does not have: peft warns, and goes on.

    A model wrapped by torch.compile saves such names.
    """
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    from sftkit.adapter import take_apart
    from sftkit.adapter_files import CONFIG, WEIGHTS, load_adapter

    folder.mkdir()
    (folder / CONFIG).write_bytes((saved / CONFIG).read_bytes())
    tensors = load_file(saved / WEIGHTS)
    renamed = {name.replace(".model.", "._orig_mod.", 1): part for name, part in tensors.items()}
    save_file(renamed, folder / WEIGHTS)
    refusal = told(lambda: load_adapter(bench.base, folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(bench.base, str(folder)).eval()
        return _as_used(
            bench, healthy, "adapter not attached", model,
            refusal=refusal.replace(f"{folder.parent}/", ""),
        )  # fmt: skip
    finally:
        take_apart(bench.base)


def use_merged_in_4_bits(bench: Bench, healthy: Chart, saved: Path) -> Chart:
    """Merge the healthy adapter into a base of 4 bits, by peft, after sftkit refused to."""
    from sftkit.adapter import adapter_off
    from sftkit.adapter_files import load_adapter, merge_adapter
    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.model import load_model

    few_bits = ModelSettings(name=bench.settings.model, quantization="nf4")
    model = load_adapter(load_model(few_bits, source=bench.source), saved)
    with adapter_off(model):
        start = mean_loss(score_examples(model, bench.encode(bench.fresh)))
    refusal = told(lambda: merge_adapter(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of rounding errors
        merged = model.merge_and_unload().eval()
    return _as_used(bench, healthy, "merged into 4-bit", merged, refusal=refusal, start=start)


def _as_used(bench: Bench, healthy: Chart, fault: str, model: Any, **more: Any) -> Chart:
    """Examine the healthy run's adapter where it is used badly; its training is as it was."""
    record = TrainRecord(
        steps=healthy.steps,
        heldout_start=healthy.log[0],
        kept_step=len(healthy.steps),
        tokens=0,
        supervised_tokens=0,
        seconds=0.0,
        trainable_parameters=0,
        total_parameters=0,
    )
    return bench.examine(fault, model, record, bench.encode(bench.train), **more)


def beds(order: int) -> tuple[str, ...]:
    """Put the faults of the table in an order that follows from a seed."""
    names = list(PATIENTS)
    random.Random(order).shuffle(names)  # noqa: S311  (an order, not a secret)
    return tuple(names)


def admit(settings: ClinicSettings | None = None, *, note: Note = print) -> Ward:
    """Make every broken run and examine it; their order follows from a seed.

    Args:
        settings: Sizes and rates; None takes the usual ones.
        note: Told how far it is, and nothing that gives a patient away.
    """
    settings = settings or ClinicSettings()
    bench = Bench.of(settings)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        saved = work / "adapter"
        healthy = run_healthy(bench, saved)
        note("the healthy run was trained and examined")
        runs: list[Callable[[], Chart]] = [
            lambda: run_wrong_template(bench),
            lambda: run_all_masked(bench),
            lambda: run_pad_is_eos(bench),
            lambda: run_leaked_test(bench, work),
            lambda: run_huge_rate(bench),
            lambda: run_tiny_data(bench),
            lambda: run_wrong_base(bench, work / "second"),
            lambda: use_unattached(bench, healthy, saved, work / "renamed"),
            lambda: use_merged_in_4_bits(bench, healthy, saved),
        ]
        charts: dict[str, Chart] = {}
        for number, run in enumerate(runs, start=1):
            chart = run()
            charts[chart.fault] = chart
            note(f"{number} of {len(PATIENTS)} patients admitted")
    sound, charts[SWAPPED] = run_labels(settings)
    note(f"{len(charts)} of {len(PATIENTS)} patients admitted")
    return Ward(
        healthy=healthy,
        cases=tuple(
            Case(number=n, chart=charts[name], healthy=sound if name == SWAPPED else healthy)
            for n, name in enumerate(beds(settings.order), start=1)
        ),
    )
