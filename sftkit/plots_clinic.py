"""Figures of the clinic: one patient's loss beside the healthy run's, and all signs of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.clinic import FAMILIES, Chart, diagnose, find_signs
from sftkit.clinic_views import Case, Ward
from sftkit.panels import (
    BAND,
    BASE,
    GRID,
    HARM,
    INK,
    MUTED,
    TUNED,
    finish,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _HEADS = 0.33, 2.25  # inches of one row, and of everything above and below the rows


def plot_case(case: Case) -> Figure:
    """Draw a patient's training loss and the loss of fresh rows in its log, over healthy ones."""
    with styled():
        figure = new_figure(height=2.7)
        axes = figure.subplots()
        _draw_curve(axes, case.healthy, BASE, "healthy run", wide=True)
        _draw_curve(axes, case.chart, TUNED, f"patient {case.number}")
        longest = max(len(case.chart.steps), len(case.healthy.steps))
        axes.set_xlim(-0.3, longest * 1.04)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) - 0.02 * axes.get_ylim()[1])
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("Optimizer step")
        axes.set_ylabel("Loss, nats")
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ends = " ".join(
            f"{name}: training loss from {chart.steps[0].loss:.2f} to {chart.steps[-1].loss:.2f}, "
            f"loss of fresh rows in its log from {chart.log[0]:.2f} to {chart.log[1]:.2f}."
            for name, chart in (("Healthy", case.healthy), ("Patient", case.chart))
        )
        return finish(figure, f"Patient {case.number}: what did its loss do?", ends)


def plot_signs(ward: Ward) -> Figure:
    """Draw which sign is seen in which patient; a filled cell is the sign it is told by."""
    families = [(name, sign) for name, signs in FAMILIES.items() for sign in signs]
    columns = {sign: place for place, (_, sign) in enumerate(families)}
    by_curve = ward.found_by("training curve")
    title = (
        "Which sign gives which patient away? The training curve alone: "
        f"{len(by_curve)} of {len(ward.cases)}"
    )
    told = []
    with styled():
        figure = new_figure(height=_HEADS + _ROW * (len(ward.cases) + 1))
        axes = figure.subplots()
        _draw_columns(axes, len(ward.cases))
        rows: list[tuple[str, tuple[str, ...], str]] = [("healthy run", (), "healthy")]
        rows += [
            (f"{case.number} · {case.chart.fault}", found, diagnose(case.chart, case.healthy))
            for case in ward.cases
            for found in [find_signs(case.chart, case.healthy)]
        ]
        for place, (name, found, named) in enumerate(rows):
            axes.plot([-0.5, len(columns) - 0.5], [place] * 2, color=GRID, linewidth=0.8, zorder=1)
            for sign in found:
                axes.plot([columns[sign]], [place], "s", markersize=12, color=HARM, zorder=3)
            is_right = named in name
            words = "" if is_right else f"by rule: {named}"
            axes.text(len(columns) - 0.4, place, words, va="center", fontsize=8.5, color=MUTED)
            told.append(f"{name}: {', '.join(found) or 'none'}")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(INK if row[1] else TUNED)
        return finish(figure, title, f"{title}. Signs: {'; '.join(told)}.")


def _draw_curve(axes: Axes, chart: Chart, colour: str, name: str, *, wide: bool = False) -> None:
    """Draw one run; the wide one still shows where another lies on it."""
    numbers = [step.step for step in chart.steps]
    axes.plot(
        numbers,
        [step.loss for step in chart.steps],
        color=colour,
        linewidth=5 if wide else 2,
        label=name,
    )
    held = [(0, chart.log[0])]
    held += [
        (step.step, step.heldout_loss) for step in chart.steps if step.heldout_loss is not None
    ]
    axes.plot(
        [step for step, _ in held], [loss for _, loss in held], "D", color=colour,
        markersize=11 if wide else 6, markeredgecolor="white", zorder=3,
        label=f"{name}, fresh rows",
    )  # fmt: skip


def _draw_columns(axes: Axes, patients: int) -> None:
    start = 0
    names: list[str] = []
    for number, (family, signs) in enumerate(FAMILIES.items()):
        end = start + len(signs)
        if number % 2 == 0:
            axes.axvspan(start - 0.5, end - 0.5, color=BAND, linewidth=0, zorder=0)
        axes.text(
            (start + end - 1) / 2, patients + 0.75, family.replace(" ", "\n"), ha="center",
            va="top", fontsize=8.5, color=MUTED, linespacing=1.05,
        )  # fmt: skip
        names += signs
        start = end
    axes.set_xticks(range(len(names)), names, rotation=38, ha="left", fontsize=9)
    axes.tick_params(axis="x", length=0, top=False, labeltop=True, labelbottom=False)
    axes.tick_params(axis="y", length=0)
    for tick in axes.get_xticklabels():
        tick.set_rotation_mode("anchor")
    axes.set_xlim(-0.5, len(names) + 1.2)
    axes.set_ylim(patients + 2.0, -0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
