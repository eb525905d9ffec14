"""A dry run in words."""

from __future__ import annotations

from sftkit.dryrun import DryRun
from sftkit.memory import COMPONENTS, in_gigabytes

_NAMES = {"cpu": "the CPU", "cuda": "a CUDA GPU", "mps": "an Apple GPU"}


def dry_run_text(found: DryRun) -> str:
    """Write a dry run for reading."""
    lines = [f"{found.name}: would fine-tune {found.model}. Nothing was trained.", ""]
    if (data := found.data) is None:
        lines.append(found.data_note)
    else:
        refused = f", {data.refused} refused" if data.refused else ""
        lines.append(
            f"{data.rows} examples{refused}, {data.tokens} tokens per epoch, the longest "
            f"{data.longest}; {data.steps} steps, {data.run_tokens} tokens in all."
        )
    lines += ["", *_memory_lines(found)]
    if found.probe is not None:
        lines += [
            "",
            f"{found.probe.steps} real steps were timed: training takes about "
            f"{found.probe.minutes:.1f} minutes here, evaluation not counted. Their peak was "
            f"{in_gigabytes(found.probe.peak_bytes)}.",
        ]
    return "\n".join(lines)


def _memory_lines(found: DryRun) -> list[str]:
    estimates = found.estimates
    if not estimates:
        return [found.memory_note]
    several = found.processes > 1
    head = "".join(f"{_NAMES[one.device]:>14}" for one in estimates)
    lines = [f"{'Peak memory of training':<24}{head}"]
    for name, what in COMPONENTS.items():
        cells = "".join(f"{in_gigabytes(one.components[name]):>14}" for one in estimates)
        lines.append(f"  {name:<22}{cells}   {what}")
    total = "".join(f"{in_gigabytes(one.total):>14}" for one in estimates)
    lines.append(f"  {'total':<22}{total}")
    lines += [
        f"That is one of {found.processes} processes on this machine. On {_NAMES[one.device]} they "
        f"take {in_gigabytes(found.processes * one.total)} together "
        f"({in_gigabytes(found.processes * one.low)} to "
        f"{in_gigabytes(found.processes * one.high)})."
        for one in estimates
        if several and one.device != "cuda"
    ]
    lines += [
        f"{_NAMES[one.device]}, {one.dtype}: {in_gigabytes(one.low)} to "
        f"{in_gigabytes(one.high)} ({one.interval_source})"
        + "".join(f"; assumed: {text}" for text in one.assumed)
        for one in estimates
    ]
    lines.append("")
    each = f" for each of {found.processes} processes" if several else ""
    for one, fits in zip(estimates, found.fits, strict=True):
        lines.append(
            f"With {in_gigabytes(fits.budget)} on {_NAMES[one.device]}{each} this plan "
            f"{'fits' if fits.fits else 'does not fit'}. Largest "
            f"batch at this length: {fits.max_tokens_per_batch} tokens; longest row: "
            f"{fits.max_tokens} tokens."
        )
    for one, rungs in zip(estimates, found.ladders, strict=True):
        lines += ["", f"What would free memory on {_NAMES[one.device]}, most first:"]
        lines += [
            f"  {in_gigabytes(rung.freed):>9}  --set {rung.setting:<36} {rung.cost}"
            for rung in rungs
        ]
        if not rungs:
            lines.append("  nothing: the peak is that of loading the model")
    return lines
