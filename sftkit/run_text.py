"""A run's outcome for a terminal: what was found, what it cost, where the report is."""

from __future__ import annotations

from pathlib import Path

from sftkit.records import RunRecord


def run_text(record: RunRecord, folder: Path) -> str:
    """Write the verdicts of a run and its cost.

    Args:
        record: The run.
        folder: Where its report lies.
    """
    verdicts, cost, labels = record.verdicts, record.cost, record.learned.labels
    lines = [f"\n{verdicts.summary}\n"]
    for name in ("knowledge", "style", "ability", "drift"):
        said = "labels" if name == "knowledge" and labels is not None else name
        lines.append(f"{said}: {getattr(verdicts, name).sentence}")
    for system in labels.systems if labels is not None else ():
        numbers = (f"{m.name} {_number(m.value)}" for m in system.measures)
        lines.append(f"{system.name}: {', '.join(numbers)}")
    report = f"Open {folder / 'report.html'}\n"
    if not record.training.steps:
        return "\n".join([*lines, "", *record.training.events, f"\n{cost.total_s:.0f} s. {report}"])
    unit = "images" if labels is not None and labels.task == "image" else "tokens"
    lines.append(
        f"\n{cost.total_s:.0f} s, of these {cost.train_s:.0f} s training ({cost.cpu_s:.0f} "
        f"CPU-seconds beside a matrix product of {cost.matmul_gflops:.0f} GFLOP/s), "
        f"{cost.tokens_per_s:.0f} {unit}/s, peak {cost.peak_bytes / 1e9:.2f} GB. "
        "One training seed."
    )
    return "\n".join([*lines, report])


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
