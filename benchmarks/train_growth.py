"""Whether training costs grow with the work alone: the same steps out of 1,000 and 100,000 rows.

Rows of one length are repeated, so every step has the same shapes whatever the count of rows; what
differs is what a run holds and looks through. Every count runs in fresh processes, taking turns.

    python benchmarks/train_growth.py
    python benchmarks/train_growth.py --rounds 3 --steps 10 --save growth-2-cores
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circumstances import describe, note_load, save  # type: ignore[import-not-found]

PACKAGES = ("torch", "transformers", "peft", "datasets")
ALLOWED_GROWTH = 0.10
ALLOWED_START_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One count of rows, once. The first step warms up and counts to the start only.

    Attributes:
        rows: Rows that were there to train on.
        start_s: From the start of the process to the start of step 1: imports, tokenizer, base
            model, adapter, plan. Making and encoding the rows is left out.
        start_cpu_s: CPU time of the same.
        plan_s: The part of it that looks at every row: checks, lengths, plan of the batches.
        tokens_per_s: From the end of step 1 to the end of the last step.
        peak_bytes: Most memory the process held, imports and encoding included.
    """

    rows: int
    start_s: float
    start_cpu_s: float
    plan_s: float
    tokens_per_s: float
    peak_bytes: int


def run_rows(rows: int, steps: int) -> Measured:
    """Train a few steps out of so many rows, in this process."""
    import psutil

    born = psutil.Process().create_time()
    from sftkit import adapter, model, objectives, train
    from sftkit.catalog import dataset_rows, fetch_model
    from sftkit.chat import encode_rows
    from sftkit.encoding import encode_dataset
    from sftkit.progress import peak_memory_bytes
    from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

    source = fetch_model(ModelSettings())
    tokenizer = model.load_tokenizer(ModelSettings(), source=source)
    base = model.load_model(ModelSettings(device="cpu"), source=source)
    tuned = adapter.attach_adapter(base, AdapterSettings(r=8, lora_alpha=16))
    before_rows = time.time(), time.process_time()

    found = [row for row in dataset_rows("cwe") if row["aspect"] == "description"]
    lengths = [len(e.input_ids) for e in encode_rows(found, tokenizer, max_tokens=512).examples]
    common = collections.Counter(lengths).most_common(1)[0][0]
    alike = [row for row, length in zip(found, lengths, strict=True) if length == common]
    repeated = (alike[place % len(alike)] for place in range(rows))
    examples = encode_dataset(repeated, tokenizer, max_tokens=512)
    after_rows = time.time(), time.process_time()

    ends: list[float] = []
    settings = TrainSettings(max_tokens_per_batch=8 * common, max_steps=steps)
    begun: list[tuple[float, float]] = []
    embedding = base.get_input_embeddings()
    embedding.register_forward_pre_hook(
        lambda module, _: (
            begun.append((time.time(), time.process_time())) if module.training else None
        )
    )
    record = train.train(
        tuned,
        examples,
        settings,
        objective=objectives.chat_loss,
        on_step=lambda step, total: ends.append(step.seconds),
    )
    tokens = record.steps[-1].tokens - record.steps[0].tokens
    return Measured(
        rows=rows,
        start_s=begun[0][0] - born - (after_rows[0] - before_rows[0]),
        start_cpu_s=begun[0][1] - (after_rows[1] - before_rows[1]),
        plan_s=begun[0][0] - after_rows[0],
        tokens_per_s=tokens / (ends[-1] - ends[0]),
        peak_bytes=peak_memory_bytes(),
    )


def run_apart(rows: int, steps: int) -> Measured:
    """Run one count of rows in a fresh process."""
    command = [sys.executable, __file__, "--count", str(rows), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{rows} rows failed:\n{done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def summarise(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """Give medians per count of rows, and ratios to the smallest count, paired within rounds."""
    by_rows: dict[int, list[Measured]] = {}
    for run in runs:
        by_rows.setdefault(run.rows, []).append(run)
    first = by_rows[min(by_rows)]
    fields = ("start_s", "start_cpu_s", "plan_s", "tokens_per_s", "peak_bytes")
    return [
        {
            "rows": rows,
            **{name: statistics.median(getattr(run, name) for run in mine) for name in fields},
            **{
                f"{name}_ratio": statistics.median(
                    getattr(one, name) / getattr(two, name)
                    for one, two in zip(mine, first, strict=True)
                )
                for name in ("tokens_per_s", "peak_bytes")
            },
        }
        for rows, mine in sorted(by_rows.items())
    ]


def as_table(counts: Sequence[dict[str, Any]]) -> str:
    """Lay the summary out as Markdown."""
    lines = [
        "| rows | tokens/s | ratio | peak memory | ratio | to step 1 | CPU | of it every row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c['rows']:,} | {c['tokens_per_s']:.0f} | {c['tokens_per_s_ratio']:.2f}× "
        f"| {c['peak_bytes'] / 1e9:.2f} GB | {c['peak_bytes_ratio']:.2f}× "
        f"| {c['start_s']:.1f} s | {c['start_cpu_s']:.1f} s | {c['plan_s']:.1f} s |"
        for c in counts
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark, or one count of rows for the parent process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", default="1000,10000,100000", help="counts, comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(dataclasses.asdict(run_rows(options.count, options.steps))))
        return 0
    load_before = note_load()
    wanted = [int(count) for count in options.rows.split(",")]
    runs = [run_apart(rows, options.steps) for _ in range(options.rounds) for rows in wanted]
    counts = summarise(runs)
    print(as_table(counts))
    if options.save:
        report = {**describe(PACKAGES, load_before), "steps": options.steps, "counts": counts}
        save({**report, "runs": [dataclasses.asdict(run) for run in runs]}, options.save)
    last = counts[-1]
    flat = last["tokens_per_s_ratio"] >= 1 - ALLOWED_GROWTH
    flat = flat and last["peak_bytes_ratio"] <= 1 + ALLOWED_GROWTH
    return 0 if flat and counts[0]["start_s"] <= ALLOWED_START_S else 1


if __name__ == "__main__":
    sys.exit(main())
