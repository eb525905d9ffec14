"""Multiple-choice scoring: sftkit beside lm-evaluation-harness, on the same local task.

The same questions are put to the same weights by both. First every option's log-likelihood is
compared; then the legs take turns: the harness as it comes (one row a batch), the harness with the
batch size that was fastest here, and sftkit.

    pip install -c constraints.txt 'sftkit-notebooks[harness]'
    python benchmarks/probe_speed.py --items 40
    python benchmarks/probe_speed.py --items 200 --rounds 5 --save probes-2-cores
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

from sftkit.records import ChoiceItem
from sftkit.settings import EvaluateSettings

PACKAGES = ("torch", "transformers", "lm-eval")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
LARGEST_GAP = 1e-4
"""Log-likelihoods may differ by this much, in nats, in float32: from the harness with its option
softmax_dtype=float64. As it comes it takes the log-softmax over the whole vocabulary in float32,
whose rounding adds up over an option; how far that is off is printed beside."""
AGREEMENT = "sftkit and the harness with log-softmax in float64"
GOALS = {"harness": 3.0, "harness-best": 2.0}
"""How many times as fast as a leg sftkit has to be."""
LEGS = {
    "harness": "lm-evaluation-harness, defaults: one row a batch",
    "harness-best": "lm-evaluation-harness with the fastest of the batch sizes tried",
    "sftkit": "encode_choices and score_choices",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all legs have in common.

    Attributes:
        model: Catalog name of the model, or a folder.
        dtype: Type of weights and compute, for both.
        probes: Catalog names of the probes: those every recipe asks unless it says otherwise.
        items: Questions of each.
        rounds: Turns of each leg.
    """

    model: str = "smollm2-135m"
    dtype: str = "float32"
    probes: tuple[str, ...] = EvaluateSettings.probes
    items: int = 200
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One turn of one leg.

    Attributes:
        seconds: From questions as text to scores, by probe.
        logprobs: Log-likelihood of every option of every question, nats, by probe.
    """

    seconds: Mapping[str, float]
    logprobs: Mapping[str, list[tuple[float, ...]]]

    @property
    def total_s(self) -> float:
        """Seconds of all probes."""
        return sum(self.seconds.values())


def write_task(name: str, items: Sequence[ChoiceItem], folder: Path) -> None:
    """Write a probe as a task of the harness: a YAML beside its questions as JSON Lines."""
    import yaml

    rows = folder / f"{name}.jsonl"
    rows.write_text(
        "".join(json.dumps(dataclasses.asdict(item)) + "\n" for item in items), encoding="utf-8"
    )
    task = {
        "task": task_of(name),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def task_of(probe: str) -> str:
    """Name a probe's task in the harness, so that it is none of its own."""
    return f"sftkit_{probe}"


def score_with_harness(harness: Any, tasks: Any, probes: Sequence[str], batch_size: int) -> Scored:
    """Let the harness score all probes; its own scoring call is what is timed."""
    import lm_eval

    harness.batch_size_per_gpu = batch_size
    seconds: dict[str, float] = {}
    logprobs: dict[str, list[tuple[float, ...]]] = {}
    scoring = type(harness).loglikelihood
    for probe in probes:

        def timed(requests: Any, probe: str = probe, **options: Any) -> Any:
            start = time.perf_counter()
            scores = scoring(harness, requests, disable_tqdm=True, **options)
            seconds[probe] = time.perf_counter() - start
            return scores

        harness.loglikelihood = timed
        found = lm_eval.simple_evaluate(
            harness, tasks=[task_of(probe)], task_manager=tasks, bootstrap_iters=0
        )
        samples = sorted(found["samples"][task_of(probe)], key=lambda sample: sample["doc_id"])
        logprobs[probe] = [
            tuple(float(value) for value, _ in sample["filtered_resps"]) for sample in samples
        ]
    return Scored(seconds=seconds, logprobs=logprobs)


def score_with_sftkit(
    model: Any, tokenizer: Any, probes: Mapping[str, Sequence[ChoiceItem]]
) -> Scored:
    """Score all probes as a run does."""
    from sftkit.evidence.choice import encode_choices, score_choices

    seconds, logprobs = {}, {}
    for name, items in probes.items():
        start = time.perf_counter()
        scores = score_choices(model, encode_choices(items, tokenizer))
        seconds[name] = time.perf_counter() - start
        logprobs[name] = [score.logprobs for score in scores]
    return Scored(seconds=seconds, logprobs=logprobs)


def largest_gap(one: Scored, other: Scored) -> float:
    """Give the largest difference of any option's log-likelihood, in nats."""
    return max(
        abs(a - b)
        for name, rows in one.logprobs.items()
        for ours, theirs in zip(rows, other.logprobs[name], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def measure(job: Job) -> dict[str, Any]:
    """Compare the scores, choose the harness's best batch size, and let the legs take turns."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sftkit import catalog
    from sftkit.model import load_model, load_tokenizer
    from sftkit.settings import ModelSettings

    settings = ModelSettings(name=job.model, dtype=job.dtype, device="cpu")  # type: ignore[arg-type]
    source = catalog.fetch_model(settings)
    tokenizer = load_tokenizer(settings, source=source)
    model = load_model(settings, dtype=getattr(torch, job.dtype), source=source)
    probes = {name: catalog.probe_items(name, job.items) for name in job.probes}
    harness = HFLM(pretrained=source.path, device="cpu", dtype=job.dtype, batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        for name, items in probes.items():
            write_task(name, items, Path(folder))
        tasks = TaskManager(include_path=folder, include_defaults=False)
        tried = {size: score_with_harness(harness, tasks, job.probes, size) for size in BATCH_SIZES}
        best = min(tried, key=lambda size: tried[size].total_s)
        ours = score_with_sftkit(model, tokenizer, probes)
        harness.softmax_dtype = torch.float64
        exact = score_with_harness(harness, tasks, job.probes, best)
        harness.softmax_dtype = None
        rounds = [
            {
                "harness": score_with_harness(harness, tasks, job.probes, 1),
                "harness-best": score_with_harness(harness, tasks, job.probes, best),
                "sftkit": score_with_sftkit(model, tokenizer, probes),
            }
            for _ in range(job.rounds)
        ]
    return {
        "threads": torch.get_num_threads(),
        "questions": {name: len(items) for name, items in probes.items()},
        "largest_gap_nats": {
            AGREEMENT: largest_gap(ours, exact),
            "sftkit and the harness as it comes": largest_gap(ours, tried[best]),
            "the harness as it comes and with log-softmax in float64": largest_gap(
                tried[best], exact
            ),
        },
        "tried_s": {size: dict(scored.seconds) for size, scored in tried.items()},
        "best_batch_size": best,
        "seconds": [{leg: dict(scored.seconds) for leg, scored in turn.items()} for turn in rounds],
        "ratios": {
            leg: {
                name: statistics.median(
                    turn[leg].seconds[name] / turn["sftkit"].seconds[name] for turn in rounds
                )
                for name in probes
            }
            | {
                "all": statistics.median(
                    turn[leg].total_s / turn["sftkit"].total_s for turn in rounds
                )
            }
            for leg in GOALS
        },
    }


def tell(report: Mapping[str, Any], job: Job) -> bool:
    """Print what was found; say whether scores agree and the goals are reached."""
    gaps = report["largest_gap_nats"]
    agree = gaps[AGREEMENT] <= LARGEST_GAP or job.dtype != "float32"
    print(f"largest difference of a log-likelihood ({job.dtype}, allowed {LARGEST_GAP:g} nats):")
    for name, gap in gaps.items():
        print(f"  {name}: {gap:.1e}")
    for size, seconds in report["tried_s"].items():
        print(f"harness, {size:2} rows a batch: {sum(seconds.values()):7.2f} s")
    reached = True
    for leg, goal in GOALS.items():
        ratios = report["ratios"][leg]
        parts = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        reached = reached and ratios["all"] >= goal
        print(f"sftkit is faster than {LEGS[leg]} by a factor of: {parts} (goal {goal:g})")
    return agree and reached


def main() -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default=Job.model)
    parser.add_argument("--dtype", default=Job.dtype, choices=("float32", "bfloat16"))
    parser.add_argument("--probes", nargs="+", default=list(Job.probes))
    parser.add_argument("--items", type=int, default=Job.items)
    parser.add_argument("--rounds", type=int, default=Job.rounds)
    parser.add_argument("--save", metavar="NAME")
    given = parser.parse_args()
    job = Job(
        model=given.model,
        dtype=given.dtype,
        probes=tuple(given.probes),
        items=given.items,
        rounds=given.rounds,
    )
    # The task is local: nothing is looked up, and nothing is kept between runs.
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        load = note_load()
        report = measure(job)
    done = tell(report, job)
    if given.save:
        save(
            {**describe(PACKAGES, load), "job": dataclasses.asdict(job), "legs": LEGS, **report},
            given.save,
        )
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
