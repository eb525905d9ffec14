"""The figure of a comparison: every measure that was taken twice, run beside run.

It takes a comparison and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.errors import RecordError
from sftkit.panels import INK, MUTED, TUNED, finish, interval, new_figure, signed, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftkit.compare import Comparison, Outcome, Point

_MOST = 6  # panels; a run on labels has more measures than a slide holds
_NARROWEST = 1e-6  # where nothing moved at all, an axis of its own would show rounding


def plot_compared(comparison: Comparison) -> Figure:
    """Draw each measure with its interval, one panel a measure, one line a run, the first in grey.

    Args:
        comparison: The runs.

    Raises:
        RecordError: No measure was taken in two of them.
    """
    drawn = [one for one in comparison.outcomes if sum(p is not None for p in one.points) > 1]
    if not drawn:
        raise RecordError("These runs have no measure in common, so there is nothing to draw.")
    drawn = drawn[:_MOST]
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    title = compared_in_words(comparison)
    told = []
    with styled():
        figure = new_figure(height=1.0 + rows * (0.95 + 0.3 * len(comparison.letters)))
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat[len(drawn) :]:
            axes.set_axis_off()
        for axes, outcome in zip(panels.flat, drawn, strict=False):
            told.append(_draw(axes, outcome, comparison.letters))
    return finish(figure, title, f"{title}. {' '.join(told)}")


def compared_in_words(comparison: Comparison) -> str:
    """Say which steps from the first run are shown, for better and for worse."""
    first = comparison.letters[0]
    parts = []
    for letter in comparison.letters[1:]:
        shown = [step for step in comparison.steps if step.run == letter]
        words = [f"{step.name} {step.state}" for step in shown if step.state != "undecided"]
        said = ", ".join(words) or ("no difference shown" if shown else "not compared")
        parts.append(f"{letter} against {first}: {said}")
    return "; ".join(parts)


def point_in_words(point: Point | None, unit: str, *, is_change: bool) -> str:
    """Write one measure of one run with its interval."""
    if point is None:
        return "not measured"
    digits = {"points": 1, "nats per token": 3}.get(unit, 3)
    value = signed(point.value, digits) if is_change else f"{point.value:.{digits}f}"
    if point.ci95 is None:
        return f"{value} {unit}".rstrip()
    low, high = point.ci95
    ends = (
        interval(point.ci95, 1, digits) if is_change else f"{low:.{digits}f} to {high:.{digits}f}"
    )
    return f"{value} {unit}".rstrip() + f" [{ends}]"


def _draw(axes: Axes, outcome: Outcome, letters: tuple[str, ...]) -> str:
    """Draw one measure; give it in words."""
    words = []
    for place, (letter, point) in enumerate(zip(letters, outcome.points, strict=True)):
        said = point_in_words(point, outcome.unit, is_change=outcome.is_change)
        words.append(f"{letter} {said}")
        if point is None:
            continue
        color = TUNED if place else MUTED
        axes.plot(point.ci95 or [point.value] * 2, [place, place], color=color, linewidth=2.2)
        axes.plot([point.value], [place], "o", color=color, markersize=7)
    if outcome.is_change:
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.set_yticks(range(len(letters)), letters)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(letters) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.margins(x=0.08)
    if axes.get_xlim()[1] - axes.get_xlim()[0] < _NARROWEST:
        axes.set_xlim(-1.0, 1.0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(outcome.name, loc="left", fontsize=10)
    unit = f"change, {outcome.unit}" if outcome.is_change else "value"
    axes.set_xlabel(f"{unit} (lines: 95 %)")
    return f"{outcome.name}: {'; '.join(words)}."
