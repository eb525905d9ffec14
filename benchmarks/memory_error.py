"""How far off is the predicted memory? Measures training here, each time in its own process.

    python benchmarks/memory_error.py                 # calibration and held-out configurations
    python benchmarks/memory_error.py --advice        # whether the ladder's first advice is right
    python benchmarks/memory_error.py --only NAME     # one configuration, printed

The constants of `sftkit/memory_formulas.py` that stand for this kind of machine were fitted to the
configurations of CALIBRATION alone (`--fit` prints them); the error is reported on HELD_OUT.
A measurement is the peak of the resident set (VmHWM) of a process of its own that does as a run
does: reads, audits and encodes the data of a recipe, loads a model, attaches an adapter, trains a
few steps (on real text of the named length), and measures the loss of general passages. Processes
are forked once the data are there, before any weight is read (see PARENT_BYTES).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

CHAT, ENCODER = "smollm2-135m", "minilm-l6"
STEPS = 3
PARENT_BYTES = 119_000_000
"""What fresh processes took more than forked ones: 0.113, 0.114, 0.118 and 0.132 GB in four
configurations. File pages that the parent has read count for a child when it reads them too."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One configuration: which model, how held, and what one step holds.

    Attributes:
        name: Short, unique.
        base: Catalog name.
        length: Tokens of the longest row.
        rows: Rows in one optimizer step.
        share: Share of a chat row's tokens that is supervised.
        varied: Whether rows are between half and all of `length` long, as real ones.
        model: Fields of ModelSettings.
        adapter: Fields of AdapterSettings.
        train: Fields of TrainSettings.
    """

    name: str
    base: str = CHAT
    length: int
    rows: int
    share: float = 0.3
    varied: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


def _job(name: str, length: int, rows: int, /, **fields: Any) -> Job:
    """Make a configuration; `bf16` is the default type, because auto takes it here."""
    model = {"dtype": "bfloat16", **fields.pop("model", {})}
    return Job(name=name, length=length, rows=rows, model=model, **fields)


F32 = {"dtype": "float32"}
INT8, NF4, NF4_PLAIN, FP4 = (
    {"quantization": "int8"},
    {"quantization": "nf4"},
    {"quantization": "nf4", "double_quantization": False},
    {"quantization": "fp4"},
)
SDPA = {"attention": "sdpa"}
QV = {"target_modules": ["q_proj", "v_proj"]}
AGAIN = {"activation_checkpointing": True}
OFF = {"speed": "off"}

CALIBRATION = (
    _job("bf16-128x2", 128, 2),
    _job("bf16-256x4", 256, 4),
    _job("bf16-512x1", 512, 1),
    _job("bf16-128x4-qv", 128, 4, adapter=QV),
    _job("bf16-128x6-again", 128, 6, train=AGAIN),
    _job("fp32-64x4", 64, 4, model=F32),
    _job("fp32-128x4", 128, 4, model=F32),
    _job("int8-128x4", 128, 4, model=INT8),
    _job("bf16-128x4-full", 128, 4, model=F32, adapter={"kind": "full"}),
    _job("mini-fp32-128x8", 128, 8, base=ENCODER, model=F32),
    _job("mini-fp32-256x8", 256, 8, base=ENCODER, model=F32),
    _job("mini-int8-128x8", 128, 8, base=ENCODER, model=INT8),
    _job("bf16-128x4", 128, 4),
    _job("bf16-256x2", 256, 2),
    _job("bf16-128x8-micro2", 128, 8, train={"micro_batches": 2}),
    _job("bf16-128x5-varied", 128, 5, varied=True),
    _job("bf16-256x4-varied-micro2", 256, 4, varied=True, train={"micro_batches": 2}),
    _job("bf16-128x4-r64", 128, 4, adapter={"r": 64, "lora_alpha": 128}),
    _job("bf16-128x4-last10", 128, 4, adapter={"layers": [20, 29]}),
    _job("bf16-128x3-dora", 128, 3, adapter={"kind": "dora"}),
    _job("bf16-128x4-ia3", 128, 4, adapter={"kind": "ia3"}),
    _job("bf16-128x4-prompt", 128, 4, adapter={"kind": "prompt"}),
    _job("fp32-128x4-freeze4", 128, 4, model=F32, adapter={"kind": "freeze", "last_blocks": 4}),
    _job("bf16-128x4-8bit", 128, 4, train={"optimizer": "adamw-8bit"}),
    _job("bf16-256x4-again", 256, 4, train=AGAIN),
    _job("bf16-256x2-sdpa", 256, 2, model=SDPA),
    _job("bf16-128x4-all-learned", 128, 4, share=1.0),
    _job("fp32-256x2", 256, 2, model=F32),
    _job("fp32-128x4-qv", 128, 4, model=F32, adapter=QV),
    _job("int8-256x2", 256, 2, model=INT8),
    _job("nf4-128x4", 128, 4, model=NF4),
    _job("nf4-128x5-varied", 128, 5, model=NF4, varied=True),
    _job("nf4-plain-128x4", 128, 4, model=NF4_PLAIN),
    _job("nf4-128x4-again", 128, 4, model=NF4, train=AGAIN),
    _job("mini-fp32-384x4", 384, 4, base=ENCODER, model=F32),
    _job("mini-fp32-128x16-micro2", 128, 16, base=ENCODER, model=F32, train={"micro_batches": 2}),
    _job("mini-fp32-128x16-again", 128, 16, base=ENCODER, model=F32, train=AGAIN),
    _job("mini-bf16-256x8", 256, 8, base=ENCODER),
    _job("mini-nf4-256x8", 256, 8, base=ENCODER, model={**NF4, **F32}),
    _job("mini-full-128x8", 128, 8, base=ENCODER, model=F32, adapter={"kind": "full"}),
)

HELD_OUT = (
    _job("bf16-96x4", 96, 4),
    _job("bf16-320x2", 320, 2),
    _job("bf16-128x6-varied", 128, 6, varied=True),
    _job("bf16-128x8-micro4", 128, 8, train={"micro_batches": 4}),
    _job("bf16-192x4-micro2", 192, 4, train={"micro_batches": 2}),
    _job("bf16-96x4-dora", 96, 4, adapter={"kind": "dora"}),
    _job("bf16-96x4-ia3", 96, 4, adapter={"kind": "ia3"}),
    _job("bf16-192x2-prompt", 192, 2, adapter={"kind": "prompt", "virtual_tokens": 8}),
    _job("bf16-192x4-again", 192, 4, train=AGAIN),
    _job("bf16-192x3-sdpa", 192, 3, model=SDPA),
    _job("bf16-96x5-most-learned", 96, 5, share=0.8),
    _job("fp32-96x3", 96, 3, model=F32),
    _job("fp32-96x4-attention", 96, 4, model=F32, adapter={"target_modules": "attention"}),
    _job("fp32-64x4-freeze2", 64, 4, model=F32, adapter={"kind": "freeze"}),
    _job("int8-192x2", 192, 2, model=INT8),
    _job("int8-96x3", 96, 3, model=INT8),
    _job("nf4-192x2", 192, 2, model=NF4),
    _job("nf4-96x5-varied", 96, 5, model=NF4, varied=True),
    _job("fp4-128x3", 128, 3, model=FP4),
    _job("mini-fp32-192x6", 192, 6, base=ENCODER, model=F32),
    _job("mini-fp32-256x6-sdpa", 256, 6, base=ENCODER, model={**F32, **SDPA}),
    _job("mini-fp32-96x16-micro2", 96, 16, base=ENCODER, model=F32, train={"micro_batches": 2}),
    _job("mini-bf16-192x8", 192, 8, base=ENCODER),
    _job("mini-int8-192x8", 192, 8, base=ENCODER, model=INT8),
    _job("bf16-96x4@off", 96, 4, train=OFF),
    _job("fp32-192x2@off", 192, 2, model=F32, train=OFF),
    _job("bf16-128x6-varied@off", 128, 6, varied=True, train=OFF),
    _job("nf4-192x2@off", 192, 2, model=NF4, train=OFF),
    _job("int8-192x2@off", 192, 2, model=INT8, train=OFF),
    _job("bf16-192x4-again@off", 192, 4, train={**AGAIN, **OFF}),
    _job("bf16-192x4-micro2@off", 192, 4, train={"micro_batches": 2, **OFF}),
    _job("bf16-96x4-ia3@off", 96, 4, adapter={"kind": "ia3"}, train=OFF),
    _job("mini-fp32-192x6@off", 192, 6, base=ENCODER, model=F32, train=OFF),
    _job("mini-bf16-192x8@off", 192, 8, base=ENCODER, train=OFF),
)


# ---- one measurement, in a process of its own ----


@dataclass(frozen=True)
class Prepared:
    """What a run has before it loads a model: libraries, tokenizer, data."""

    tokenizer: Any
    passages: Sequence[Any]
    targets: Any


def prepare(base: str) -> Prepared:
    """Do what a run does before it loads a model: read, audit and encode a recipe's data."""
    import accelerate  # noqa: F401  # as the training loop does
    import peft  # noqa: F401

    from sftkit import catalog, model, train  # noqa: F401
    from sftkit.evidence.perplexity import encode_passages
    from sftkit.heads import load_with_head  # noqa: F401
    from sftkit.prepare import prepare_data
    from sftkit.prepare_labels import prepare_labels
    from sftkit.run import find_recipe
    from sftkit.settings import DataSettings, ModelSettings, Recipe

    settings = ModelSettings(name=base)
    tokenizer = model.load_tokenizer(settings)
    if base == ENCODER:
        data = DataSettings(source="privacy-qa", task="classify", limit=2000)
        recipe = Recipe(name="labels", model=settings, data=data)
        return Prepared(tokenizer, (), prepare_labels(recipe, tokenizer=tokenizer).targets)
    prepare_data(find_recipe("demo"), tokenizer, {})
    passages = encode_passages(catalog.passages("boolq", 4), tokenizer, max_tokens=128)
    return Prepared(tokenizer, passages, None)


def measure_here(job: Job, prepared: Prepared) -> dict[str, Any]:
    """Load, attach, train and score in this process; give its peaks after each part in bytes."""
    from sftkit import adapter, model, objectives, train
    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.heads import load_with_head
    from sftkit.labelled import collate_texts

    started = time.perf_counter()
    settings, ours, training = settings_of(job)
    rows = rows_of(job, prepared.tokenizer)
    peaks = {"data": peak_bytes()}
    options: dict[str, Any] = {"objective": objectives.chat_loss}
    if job.base == ENCODER:
        base = load_with_head(settings, "classify", prepared.targets, tokenizer=prepared.tokenizer)
        options["objective"] = objectives.make_objective("classify", objectives.ObjectiveSettings())
        options["collate"] = collate_texts
    else:
        base = model.load_model(settings)
    peaks["loading"] = peak_bytes()
    task_type = "SEQ_CLS" if job.base == ENCODER else "CAUSAL_LM"
    tuned = adapter.attach_adapter(base, ours, task_type=task_type)
    if prepared.passages:
        options["measure"] = lambda: {
            "heldout_loss": mean_loss(score_examples(tuned, prepared.passages))
        }
    record = train.train(tuned, rows, training, **options)
    return {
        "peak_bytes": peak_bytes(),
        "parts": peaks,
        "steps": len(record.steps),
        "trainable": record.trainable_parameters,
        "train_s": record.seconds,
        "seconds": time.perf_counter() - started,
    }


def measure_in_turn(jobs: Sequence[Job]) -> None:
    """Measure configurations of one base, each in a process forked from this one; print results.

    The fork is made when the data are prepared and no weight was read, so that its peak is that
    of a fresh process, without the seconds that imports and data take.
    """
    prepared = prepare(jobs[0].base)
    for job in jobs:
        sys.stdout.flush()
        if not (child := os.fork()):
            code = 1
            try:
                print(json.dumps([job.name, measure_here(job, prepared)]), flush=True)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.waitpid(child, 0)


def settings_of(job: Job) -> tuple[Any, Any, Any]:
    """Give the settings of model, adapter and training that a configuration stands for."""
    from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

    lists: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in job.adapter.items()
    }
    return (
        ModelSettings(**{"name": job.base, "device": "cpu", **job.model}),
        AdapterSettings(**lists),
        TrainSettings(
            **{
                "max_tokens_per_batch": job.rows * job.length,
                "max_steps": STEPS,
                "heldout_evaluations": 1,
                **job.train,
            }
        ),
    )


def lengths_of(job: Job) -> list[int]:
    """Give the length of every row: STEPS full batches, or as many varied rows as fill them."""
    if not job.varied:
        return [job.length] * (job.rows * STEPS)
    shares = (1.0, 0.5, 0.85, 0.6, 0.95, 0.75, 0.55, 0.7)
    return [round(job.length * shares[n % 8]) for n in range(job.rows * STEPS * 2)]


def _token_rows(job: Job, tokenizer: Any) -> list[tuple[int, ...]]:
    """Cut real text (general passages) into rows of the wanted lengths."""
    from sftkit import catalog

    ids: list[int] = []
    for passage in catalog.passages("boolq"):
        ids += tokenizer(passage, add_special_tokens=False)["input_ids"]
        if len(ids) > sum(lengths_of(job)):
            break
    rows, start = [], 0
    for length in lengths_of(job):
        rows.append(tuple(ids[start : start + length]))
        start += length
    return rows


def rows_of(job: Job, tokenizer: Any) -> list[Any]:
    """Make training rows: texts with a class each, or conversations learned from at their end."""
    from sftkit.labelled import LabelledText
    from sftkit.records import IGNORE, Encoded

    texts = _token_rows(job, tokenizer)
    if job.base == ENCODER:
        return [LabelledText(input_ids=ids, target=n % 2, row=n) for n, ids in enumerate(texts)]
    rows = []
    for number, ids in enumerate(texts):
        given = len(ids) - max(1, round(len(ids) * job.share))
        labels = (*[IGNORE] * given, *ids[given:])
        rows.append(Encoded(input_ids=ids, labels=labels, row=number, group="", end_of_turn=False))
    return rows


def peak_bytes() -> int:
    """Read the peak of this process's resident set, since its program was started."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit("This benchmark reads VmHWM from /proc and needs Linux.")
    return int(found[1]) * 1024


def measure_apart(jobs: Sequence[Job]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure configurations of one base outside of this process, which stays small.

    Returns:
        Name and measurement, as they come. A configuration that failed is left out, and its error
        is printed.
    """
    command = [
        sys.executable,
        __file__,
        "--jobs",
        json.dumps([dataclasses.asdict(j) for j in jobs]),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        for line in running.stdout or ():
            name, measured = json.loads(line)
            yield name, measured


# ---- prediction against measurement ----


def predict(job: Job) -> Any:
    """Predict the peak of a configuration, from configuration and settings alone."""
    return plan_of(job).estimate()


def plan_of(job: Job) -> Any:
    """Give the plan that a configuration stands for, with the length of every row."""
    from sftkit import catalog
    from sftkit.memory_ladder import Plan

    model, adapter, train = settings_of(job)
    rows = [(length, max(1, round(length * job.share))) for length in lengths_of(job)]
    return Plan(
        config=catalog.model_config(model),
        model=model,
        adapter=adapter,
        train=train,
        max_tokens=job.length,
        supervised_share=job.share,
        task="chat" if job.base == CHAT else "classify",
        device="cpu",
        dtype=model.dtype,
        examples=tuple(rows),
    )


def compare(job: Job, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Set a prediction beside its measurement; bytes, and the error as a share."""
    found, peak = predict(job), measured["peak_bytes"]
    return {
        "name": job.name,
        "predicted_bytes": found.total,
        "measured_bytes": peak,
        "error": round(found.total / peak - 1, 4),
        "low_bytes": found.low,
        "high_bytes": found.high,
        "inside": found.low <= peak <= found.high,
        "trainable_as_predicted": found.trainable == measured["trainable"],
        "job": {
            name: value
            for name, value in dataclasses.asdict(job).items()
            if name != "name" and value not in ({}, False)
        },
        "components": dict(found.components),
        "measured": dict(measured),
    }


# ---- is the ladder's advice right? ----

ADVISED = (
    "bf16-96x4",
    "bf16-320x2",
    "bf16-96x5-most-learned",
    "bf16-192x4-again",
    "fp32-96x3",
    "fp32-64x4-freeze2",
    "int8-96x3",
    "nf4-192x2",
    "nf4-96x5-varied",
    "mini-fp32-192x6",
)
"""Held-out configurations whose first advice is tried."""
TRIED = 2
"""Changes tried per configuration: the first two, noticed or not. The advice is right if its first
change frees more than the second; where none is advised, if neither frees a noticeable share."""


def changed_job(job: Job, setting: str) -> Job:
    """Give the configuration that a change of the ladder leads to."""
    from sftkit.recipe import parse_yaml

    path, _, text = setting.partition("=")
    part, _, name = path.partition(".")
    value = parse_yaml(f"value: {text}", where=setting)["value"]
    label = f"{job.name} {setting}"
    if setting.startswith("train.max_tokens_per_batch="):
        return dataclasses.replace(job, name=label, rows=value // job.length)
    if setting.startswith("data.max_tokens="):
        rows = job.rows * job.length // value
        return dataclasses.replace(job, name=label, length=value, rows=rows)
    fields: dict[str, Any] = {part: {**getattr(job, part), name: value}}
    return dataclasses.replace(job, name=label, **fields)


def try_advice(jobs: Sequence[Job], keep: Path | None) -> list[dict[str, Any]]:
    """Measure configurations, and the first changes of each one's ladder, one by one."""
    from sftkit.memory_ladder import NOTICED, ladder

    rungs = {job.name: ladder(plan_of(job))[:TRIED] for job in jobs}
    changed = {
        (job.name, rung.setting): changed_job(job, rung.setting)
        for job in jobs
        for rung in rungs[job.name]
    }
    peaks = {
        name: one["peak_bytes"]
        for name, one in measure_all([*jobs, *changed.values()], keep).items()
    }
    results = []
    for job in jobs:
        tried = [
            {
                "setting": rung.setting,
                "predicted_freed_bytes": rung.freed,
                "measured_freed_bytes": peaks[job.name]
                - peaks[changed[job.name, rung.setting].name],
            }
            for rung in rungs[job.name]
        ]
        most = max(one["measured_freed_bytes"] for one in tried)
        advised = [rung.setting for rung in ladder(plan_of(job), noticed=NOTICED)[:1]]
        right = (
            tried[0]["measured_freed_bytes"] == most > 0
            if advised
            else most < NOTICED * peaks[job.name]
        )
        results.append(
            {
                "name": job.name,
                "measured_bytes": peaks[job.name],
                "advised": advised,
                "tried": tried,
                "right": right,
            }
        )
    return results


# ---- the constants, and the report ----


def fit(jobs: Sequence[Job], measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fit the machine's constants by least squares on relative errors, none below zero.

    Those of the plain path (program, lost_16, lost_32, later) stay as they are: they were fitted
    to 52 configurations with `speed: off`, before there were faster parts.

    Returns:
        The other constants of `MACHINES`, and spread: the largest error of all,
        which one new configuration in as many would exceed if it were like these.
    """
    import numpy as np
    from scipy import optimize

    from sftkit.memory_formulas import MACHINES

    names = ("lost_faster", "again")
    peaks = np.array([one["peak_bytes"] for one in measured], float)
    loads = np.array([one["parts"]["loading"] for one in measured], float)
    plans = [plan_of(job) for job in jobs]
    bare = dict.fromkeys((*names, "loading", "loading_most"), 0.0)
    known = np.array([total_with(plan, bare) for plan in plans])
    slopes = np.array([[total_with(plan, {**bare, name: 1.0}) for name in names] for plan in plans])
    slopes -= known[:, None]
    trains = peaks > 1.02 * loads  # where training, not loading, made the peak
    scaled = slopes[trains] / peaks[trains, None]
    found, _ = optimize.nnls(scaled, (peaks - known)[trains] / peaks[trains])
    constants = dict(zip(names, found.tolist(), strict=True))
    quantized = [place for place, job in enumerate(jobs) if "quantization" in job.model]
    sizes = np.array(
        [plans[n].estimate().parameters * (4 if jobs[n].model == {**NF4, **F32} else 2)
         for n in quantized]
    )  # fmt: skip
    over = loads[quantized] - MACHINES["cpu"].program
    constants["loading"] = float(sizes @ over / (sizes @ sizes))
    constants["loading_most"] = float((over / sizes).max())
    errors = np.array([total_with(plan, constants) for plan in plans]) / peaks - 1
    return {**constants, "spread": float(abs(errors).max())}


def total_with(plan: Any, constants: Mapping[str, float]) -> float:
    """Predict a plan's peak with other constants of the machine."""
    from sftkit import memory_formulas

    own = memory_formulas.MACHINES["cpu"]
    try:
        changed: dict[str, Any] = dict(constants)
        memory_formulas.MACHINES["cpu"] = dataclasses.replace(own, **changed)
        return float(plan.estimate().total)
    finally:
        memory_formulas.MACHINES["cpu"] = own


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduce comparisons to what is published: errors as shares, and coverage of the interval."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "configurations": len(rows),
        "mean_absolute_error": round(sum(errors) / len(errors), 4),
        "median_absolute_error": errors[len(errors) // 2],
        "largest_absolute_error": errors[-1],
        "inside_interval": sum(row["inside"] for row in rows),
        "trainable_as_predicted": sum(row["trainable_as_predicted"] for row in rows),
    }


def main() -> None:
    """Measure what is asked for, keeping every measurement as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    parser.add_argument("--only", help="names of configurations, separated by commas")
    parser.add_argument("--advice", action="store_true", help="only try the ladder's advice")
    parser.add_argument("--fit", action="store_true", help="only print the fitted constants")
    parser.add_argument(
        "--keep", type=Path, help="file of measurements; those in it are not taken anew"
    )
    chosen = parser.parse_args()
    if chosen.jobs:
        measure_in_turn([Job(**one) for one in json.loads(chosen.jobs)])
        return
    load = note_load()
    names = chosen.only.split(",") if chosen.only else None

    def look(jobs: Sequence[Job]) -> list[dict[str, Any]]:
        wanted = [job for job in jobs if names is None or job.name in names]
        measured = measure_all(wanted, chosen.keep)
        return [_told(compare(job, measured[job.name])) for job in wanted]

    if chosen.fit:
        measured = measure_all(CALIBRATION, chosen.keep)
        found = fit(CALIBRATION, [measured[job.name] for job in CALIBRATION])
        print(json.dumps(found, indent=1))
        return
    held_out = () if chosen.advice else look(HELD_OUT)
    calibration = () if chosen.advice else look(CALIBRATION)
    advice = []
    if names is None or chosen.advice:
        advice = try_advice([job for job in HELD_OUT if job.name in ADVISED], chosen.keep)
    for one in advice:
        print(json.dumps(one))
    if names is None and not chosen.advice:
        report = {
            **describe(PACKAGES, load),
            "held_out": summarise(held_out),
            "calibration": summarise(calibration),
            "advice_right": sum(one["right"] for one in advice),
            "advice_tried": len(advice),
            "advice": advice,
            "held_out_rows": held_out,
            "calibration_rows": calibration,
        }
        save(report, f"memory-{os.cpu_count()}-cores")
        print(json.dumps({name: report[name] for name in ("held_out", "calibration")}, indent=1))


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{row['name']:28} {row['measured_bytes'] / 1e6:6.0f} MB, predicted "
        f"{row['predicted_bytes'] / 1e6:6.0f} ({row['error']:+.1%})",
        flush=True,
    )
    return row


def _whole(measured: dict[str, Any]) -> dict[str, Any]:
    """Add to a forked process's peaks the pages of libraries that only its parent has touched."""
    peak, parts = measured["peak_bytes"] + PARENT_BYTES, measured["parts"]
    whole = {name: size + PARENT_BYTES for name, size in parts.items()}
    return {**measured, "peak_bytes": peak, "parts": whole}


def measure_all(jobs: Sequence[Job], keep: Path | None) -> dict[str, dict[str, Any]]:
    """Measure configurations, or take their measurements from a file that is added to.

    Raises:
        SystemExit: Some could not be measured.
    """
    found = {}
    lines = keep.read_text(encoding="utf-8").splitlines() if keep and keep.is_file() else []
    kept = [json.loads(line) for line in lines]
    for job in jobs:
        for one in kept:
            if {**one["job"], "name": ""} == {**_plain(job), "name": ""}:
                found[job.name] = one["measured"]
    for base in (ENCODER, CHAT):
        left = [job for job in jobs if job.name not in found and job.base == base]
        named = {job.name: job for job in left}
        for name, measured in measure_apart(left) if left else ():
            found[name] = measured
            print(f"{name:36} {measured['peak_bytes'] / 1e6:6.0f} MB", flush=True)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    record = {"job": _plain(named[name]), "measured": measured}
                    file.write(json.dumps(record) + "\n")
    if lost := [job.name for job in jobs if job.name not in found]:
        raise SystemExit(f"not measured: {', '.join(lost)}")
    return {name: _whole(measured) for name, measured in found.items()}


def _plain(job: Job) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dataclasses.asdict(job))))


if __name__ == "__main__":
    main()
