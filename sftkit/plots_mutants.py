"""The figure of a mutant matrix: which check kills which planted fault.

It takes a record and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.errors import RecordError
from sftkit.evidence_records import MutantMatrix, MutantRow
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
    plain_label,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _HEADS = 0.33, 1.9  # inches of one row, and of everything above and below the rows


def plot_mutants(matrix: MutantMatrix) -> Figure:
    """Draw one row per model and one column per check; a filled cell is a model refused.

    Raises:
        RecordError: The matrix has no rows.
    """
    if not matrix.rows:
        raise RecordError("The matrix has no rows to draw; see mutant_runs.try_chat_mutants.")
    title = matrix_in_words(matrix)
    with styled():
        figure = new_figure(height=_HEADS + _ROW * (len(matrix.rows) + 1))
        axes = figure.subplots()
        _draw_columns(axes, matrix)
        for place, row in enumerate(matrix.rows):
            _draw_row(axes, place + (row.origin != "sound"), row, matrix)
        killers = "; ".join(
            f"{row.name}: {', '.join(row.killed_by()) or 'no check'}" for row in matrix.rows
        )
        return finish(figure, title, f"{title}. Refused by: {killers}.")


def matrix_in_words(matrix: MutantMatrix) -> str:
    """Say how many faults are noticed by all checks and by accuracy alone."""
    total = len(matrix.mutants)
    sound = [row for row in matrix.rows if row.origin == "sound"]
    alarms = len(matrix.false_alarms)
    spared = (
        f"{alarms} false alarm{'s' * (alarms > 1)}"
        if alarms
        else "the sound model passes"
        if len(sound) == 1
        else f"{len(sound)} sound models pass"
    )
    return (
        f"{matrix.model}: the suite kills {len(matrix.killed())} of {total} planted faults, "
        f"accuracy alone {len(matrix.killed_by_accuracy())}; {spared}"
    )


def _draw_columns(axes: Axes, matrix: MutantMatrix) -> None:
    """Name the checks, with those of accuracy on a band of their own."""
    checks, last = matrix.checks, len(matrix.rows) + 0.5
    axes.axvspan(-0.5, len(matrix.alone) - 0.5, color=BAND, linewidth=0, zorder=0)
    axes.set_xticks(range(len(checks)), checks, rotation=38, ha="left", fontsize=9)
    axes.tick_params(axis="x", length=0, top=False, labeltop=True, labelbottom=False)
    for tick, name in zip(axes.get_xticklabels(), checks, strict=True):
        tick.set_rotation_mode("anchor")
        tick.set_color(INK if name in matrix.alone else MUTED)
        tick.set_fontweight("bold" if name in matrix.alone else "normal")
    names = [row.name for row in matrix.rows]
    rows = [place + (row.origin != "sound") for place, row in enumerate(matrix.rows)]
    axes.set_yticks(rows, [plain_label(name, width=34) for name in names], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    for tick, row in zip(axes.get_yticklabels(), matrix.rows, strict=True):
        tick.set_color(TUNED if row.origin == "sound" else INK)
    axes.set_xlim(-0.5, len(checks) + 0.9)
    axes.set_ylim(last, -0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    note = "filled: refused · ring: spared · dot: nothing to judge by · shaded: accuracy alone"
    axes.annotate(
        note, (0, 0), xytext=(0, -4), xycoords="axes fraction", textcoords="offset points",
        va="top", fontsize=8.5, color=MUTED,
    )  # fmt: skip


def _draw_row(axes: Axes, place: int, row: MutantRow, matrix: MutantMatrix) -> None:
    """Draw one model's cells, and count its killers at the end."""
    axes.plot([-0.5, len(row.cells) - 0.5], [place] * 2, color=GRID, linewidth=0.8, zorder=1)
    for column, cell in enumerate(row.cells):
        if cell.state == "unasked":
            axes.plot([column], [place], ".", color=BASE, markersize=3)
            continue
        killed = cell.state == "killed"
        axes.plot(
            [column], [place], "s" if killed else "o", markersize=13 if killed else 8,
            color=HARM if killed else BASE, markerfacecolor=HARM if killed else "white",
            markeredgewidth=1.2, zorder=3,
        )  # fmt: skip
    killers = row.killed_by()
    alone = set(killers) & set(matrix.alone)
    words = "passes" if not killers else f"{len(killers)} refuse"
    missed = bool(killers) and not alone
    axes.text(
        len(row.cells) - 0.3, place, words, va="center", fontsize=9,
        color=HARM if missed else MUTED, weight="bold" if missed else "normal",
    )  # fmt: skip
