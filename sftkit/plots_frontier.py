"""The learn-forget figure: gain against drift and against lost ability, with the Pareto set.

It takes a record and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.errors import RecordError
from sftkit.frontier_records import Forgetting, Frontier, in_words, standings
from sftkit.panels import (
    BAND,
    BASE,
    HARM,
    INK,
    MUTED,
    TUNED,
    finish,
    interval,
    new_figure,
    plain_label,
    signed,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PANELS: dict[Forgetting, str] = {
    "drift": "Drift: rise of the loss on general text, nats per token",
    "ability": "Ability: accuracy lost on the probes, points",
}
_PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


def plot_frontier(measured: Frontier) -> Figure:
    """Draw gain against both measures of forgetting; lines are 95 % intervals.

    Points of the Pareto set are blue and joined; of the others those are orange that another beats
    in both beyond chance, and grey those of which that is undecided. A ring marks the chosen one.

    Raises:
        RecordError: The frontier has no points.
    """
    if not measured.points:
        raise RecordError("The frontier has no points to draw; see frontier.frontier.")
    title = frontier_in_words(measured)
    words = []
    with styled():
        figure = new_figure(height=7.6)
        panels = figure.subplots(2, 1)
        labels = []
        for axes, (forgetting, name) in zip(panels, PANELS.items(), strict=True):
            drawn, told = _draw(axes, measured, forgetting)
            labels.append((axes, drawn))
            words.append(told)
            axes.set_xlabel(name)
            axes.set_ylabel("Gain: held-out answers,\nnats per token")
        panels[0].set_title(
            "blue, joined: Pareto set · orange: beaten in both beyond chance · grey: undecided · "
            "ring: chosen",
            loc="left", fontsize=8.5, color=MUTED,
        )  # fmt: skip
        finish(figure, title, f"{title}. {' '.join(words)}")
        figure.draw_without_rendering()  # labels need to know where things are
        for axes, drawn in labels:
            _place(axes, drawn)
        return figure


def frontier_in_words(measured: Frontier) -> str:
    """Say which points are in the Pareto set, and what the chosen one gains and forgets."""
    front = measured.pareto("drift")
    many = f"{len(front)} of {len(measured.points)} points"
    name = measured.chosen or front[-1]
    gain, drift = (measured.change(axis, after=name) for axis in ("gain", "drift"))
    fell = measured.change("ability", after=name)
    verb = "chosen" if measured.chosen else "largest gain"
    return (
        f"Is more gain worth more forgetting? {verb}: {plain_label(name, width=30)}, gain "
        f"{signed(gain.delta, 2)} for {signed(drift.delta, 2)} drift and "
        f"{signed(100 * fell.delta, 1)} points [{interval(fell.ci95, 100, 1)}]; no other beats "
        f"{many}"
    )


def _draw(
    axes: Axes, measured: Frontier, forgetting: Forgetting
) -> tuple[list[tuple[Annotation, float, float]], str]:
    """Draw the points of one panel; give their labels, yet to be placed, and the same in words."""
    factor = 100.0 if forgetting == "ability" else 1.0
    stands = {one.name: one for one in standings(measured, forgetting)}
    colors = {"front": TUNED, "dominated": HARM, "undecided": MUTED}
    margin = measured.ability_margin if forgetting == "ability" else measured.drift_margin
    axes.axvspan(-factor * margin, factor * margin, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.axhline(0, color=INK, linewidth=1, zorder=1)
    where: dict[str, tuple[float, float]] = {}
    told = []
    for point in measured.points:
        gain = measured.change("gain", after=point.name)
        loss = measured.change(forgetting, after=point.name)
        x, y = factor * loss.delta, gain.delta
        where[point.name] = (x, y)
        color = colors[stands[point.name].state]
        line: Any = {"color": color, "linewidth": 1.1, "alpha": 0.75, "zorder": 2}
        axes.plot([factor * end for end in loss.ci95], [y, y], **line)
        axes.plot([x, x], gain.ci95, **line)
        axes.plot([x], [y], "o", color=color, markersize=6, zorder=4)
        if point.name == measured.chosen:
            axes.plot([x], [y], "o", color=INK, markersize=13, fillstyle="none", zorder=3)
        told.append(
            f"{point.name} ({stands[point.name].state}): gain {in_words('gain', gain)}, "
            f"{in_words(forgetting, loss)}"
        )
    front = [where[name] for name in measured.pareto(forgetting)]
    axes.plot(*zip(*front, strict=True), color=TUNED, linewidth=1.8, alpha=0.5, zorder=2)
    axes.plot([0], [0], "s", color=BASE, markersize=8, zorder=3)
    axes.grid(True)
    axes.margins(x=0.06, y=0.12)
    texts = {name: (*spot, colors[stands[name].state]) for name, spot in where.items()}
    if (0.0, 0.0) not in where.values():
        texts["base"] = (0.0, 0.0, MUTED)
    labels = []
    for name, (x, y, color) in texts.items():
        label = axes.annotate(
            plain_label(name, width=24), (x, y), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=8.5, color=color, zorder=5,
        )  # fmt: skip
        label.set_in_layout(False)
        labels.append((label, x, y))
    return labels, f"Against {forgetting}: {'; '.join(told)}."


def _place(axes: Axes, labels: list[tuple[Annotation, float, float]]) -> None:
    """Move each label to where it covers least: no other label, no point, few lines."""
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72
    dots = [axes.transData.transform((x, y)) for _, x, y in labels]
    marks = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    lines = [line.get_window_extent() for line in axes.lines if line.get_marker() == "None"]
    taken: list[Bbox] = []
    order = sorted(range(len(labels)), key=lambda place: -_crowd(dots, place))
    for place in order:
        label = labels[place][0]
        own = label.get_window_extent()
        wide, high = own.width, own.height
        best: tuple[float, float, float, Bbox] | None = None
        for reach in (9, 18, 30, 44, 60, 80):
            for right, up in _PLACES:
                x = right * (reach + wide / 2 / scale if right else 0)
                y = up * (reach if right else reach + high / 2 / scale)
                centre = dots[place] + scale * _vector(x, y)
                box = Bbox.from_bounds(centre[0] - wide / 2, centre[1] - high / 2, wide, high)
                cost = reach + _cost(box, axes.bbox, taken, marks, lines)
                if best is None or cost < best[0]:
                    best = (cost, x, y, box)
        assert best is not None  # noqa: S101  (there are places to try)
        _, x, y, _ = best
        label.set_position((x, y))
        _lead(axes, labels[place], (x, y), (wide / 2 / scale, high / 2 / scale))
        taken.append(best[3])


def _lead(
    axes: Axes,
    label: tuple[Annotation, float, float],
    centre: tuple[float, float],
    half: tuple[float, float],
) -> None:
    """Draw a thin line from a point to a label that stands apart from it; lengths in points."""
    (x, y), (wide, high) = centre, half
    end = (min(max(0.0, x - wide), x + wide), min(max(0.0, y - high), y + high))
    if max(map(abs, end)) < 14:
        return
    line = axes.annotate(
        "", label[1:], xytext=end, textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": label[0].get_color(), "linewidth": 0.6,
                    "shrinkA": 0, "shrinkB": 4},
    )  # fmt: skip
    line.set_in_layout(False)


def _vector(x: float, y: float) -> Any:
    import numpy as np

    return np.array([x, y])


def _crowd(dots: list[Any], place: int) -> float:
    """Say how many points are near one, which then has to be labelled early."""
    return sum(float(abs(dots[place] - other).max()) < 60 for other in dots)


def _cost(
    box: Bbox, inside: Bbox, taken: list[Bbox], marks: list[Bbox], lines: list[Bbox]
) -> float:
    room = box.padded(3)
    outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
    return (
        5000.0 * outside
        + 2000.0 * sum(room.overlaps(other) for other in taken)
        + 400.0 * sum(room.overlaps(mark) for mark in marks)
        + 12.0 * sum(room.overlaps(line) for line in lines if min(line.width, line.height) < 2)
    )
