"""Figures of behaviour, calibration and fairness: failures, confidence and coverage, and gaps.

Each function takes records and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftkit.errors import RecordError
from sftkit.evidence.shares import wilson_interval
from sftkit.evidence_records import BehaviourResult, Calibration, FairnessGap, ReliabilityBin
from sftkit.panels import (
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

LEVEL = 0.05
"""A gap counts as shown where its corrected p-value is below this."""
_MOST_GAPS = 16


def plot_behaviour(results: Sequence[BehaviourResult]) -> Figure:
    """Draw the share of failed cases of each test with its interval, and what is allowed.

    Raises:
        RecordError: There are no tests.
    """
    if not results:
        raise RecordError("There are no behaviour tests to draw; see evaluate.behaviour.")
    colors = {"pass": TUNED, "fail": HARM, "undecided": MUTED}
    title = behaviour_in_words(results)
    words = [f"{test.name}: {test.sentence}" for test in results]
    with styled():
        figure = new_figure(height=1.5 + 0.42 * len(results))
        axes = figure.subplots()
        for place, test in enumerate(results):
            color, ends = colors[test.state], [100 * end for end in test.ci95]
            axes.plot(ends, [place] * 2, color=color, linewidth=2.2, solid_capstyle="butt")
            share = 100 * test.failures / max(test.cases, 1)
            axes.plot([share], [place], "o", color=color, markersize=7)
            allowed = [100 * test.allowed] * 2
            axes.plot(allowed, [place - 0.34, place + 0.34], color=INK, linewidth=1.8)
            axes.text(
                1.02, place, f"{test.failures} of {test.cases}: {test.state}", va="center",
                transform=axes.get_yaxis_transform(), fontsize=9, color=color,
            )  # fmt: skip
        names = [f"{plain_label(test.name, width=44)}\n{test.kind}" for test in results]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(-1.5, max(30.0, *(100 * test.ci95[1] + 3 for test in results)))
        axes.grid(axis="x")
        axes.set_xlabel("Failed cases, % (lines: 95 %; upright black: what is allowed)")
        return finish(figure, title, f"{title}. {' '.join(words)}")


def behaviour_in_words(results: Sequence[BehaviourResult]) -> str:
    """Count the tests that pass, fail and are undecided."""
    count = {s: sum(test.state == s for test in results) for s in ("fail", "undecided")}
    passed = len(results) - sum(count.values())
    head = f"{passed} of {len(results)} behaviour tests pass"
    return f"{head}, {count['fail']} fail, {count['undecided']} undecided"


def plot_mitigation(
    before: Sequence[FairnessGap], after: Sequence[FairnessGap], *, remedy: str
) -> Figure:
    """Draw gaps before and after a remedy, of those that both have.

    Raises:
        RecordError: They have none in common.
    """
    later = {(gap.attribute, gap.name): gap for gap in after}
    pairs = [(g, later[g.attribute, g.name]) for g in before if (g.attribute, g.name) in later]
    if not pairs:
        raise RecordError("No gap was measured both before and after, so there is none to draw.")
    still = sum(is_shown(gap) for _, gap in pairs)
    title = (
        f"Gaps shown to be more than chance: {sum(is_shown(gap) for gap, _ in pairs)} of "
        f"{len(pairs)}; {remedy}: {still}"
    )
    words, edges = [], [0.0]
    with styled():
        figure = new_figure(height=1.6 + 0.72 * len(pairs))
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for place, pair in enumerate(pairs):
            for gap, shift, color in zip(pair, (-0.17, 0.17), (HARM, TUNED), strict=True):
                factor = _scale(gap.unit)[0]
                ends = [factor * end for end in gap.ci95]
                axes.plot(ends, [place + shift] * 2, color=color, linewidth=2.2)
                axes.plot([factor * gap.value], [place + shift], "o", color=color, markersize=6.5)
                axes.text(
                    1.02, place + shift, gap_in_words(gap), va="center", fontsize=8.5, color=color,
                    transform=axes.get_yaxis_transform(),
                )  # fmt: skip
                edges += ends
            words.append(f"{pair[0].name}: {gap_in_words(pair[0])}, then {gap_in_words(pair[1])}")
        names = [f"{plain_label(gap.name, width=40)}\n{_direction(gap)}" for gap, _ in pairs]
        axes.set_yticks(range(len(pairs)), names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlim(min(edges) - 3, max(edges) + 3)
        axes.grid(axis="x")
        unit = pairs[0][0].unit
        axes.set_xlabel(
            f"Gap, {_scale(unit)[2] or unit} (lines: 95 %; orange: as trained, blue: {remedy})"
        )
        return finish(figure, title, f"{title}. {'; '.join(words)}.")


def plot_reliability(calibration: Calibration) -> Figure:
    """Draw accuracy against confidence per bin, as answered and with the temperature."""
    panels = [("As answered", calibration.bins, calibration.ece, calibration.ci95)]
    if calibration.ece_after is not None and calibration.ci95_after is not None:
        name = f"With temperature {calibration.temperature:.2f}"
        panels.append((name, calibration.bins_after, calibration.ece_after, calibration.ci95_after))
    low = min(bin.low_end for _, bins, _, _ in panels for bin in map(_Point, bins))
    title = _calibration_in_words(calibration)
    words = []
    with styled():
        figure = new_figure(height=4.6)
        for axes, (name, bins, ece, ci95) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
        ):
            words.append(_draw_bins(axes, bins, low))
            axes.set_title(
                f"{name}:\nECE {ece:.3f} [{ci95[0]:.3f} to {ci95[1]:.3f}]",
                loc="left", fontsize=10.5, color=INK,
            )  # fmt: skip
        figure.axes[0].set_ylabel("Share of answers that are right")
        return finish(figure, title, f"{title}. {' '.join(words)}")


def plot_selective(calibration: Calibration) -> Figure:
    """Draw the accuracy when only the most confident share of the items is answered.

    Raises:
        RecordError: The record has no such curve.
    """
    if not calibration.selective:
        raise RecordError("The record has no pairs of coverage and accuracy to draw.")
    coverage, accuracy = zip(*calibration.selective, strict=True)
    half = min(calibration.selective, key=lambda pair: abs(pair[0] - 0.5))
    whole = accuracy[-1]
    title = (
        f"Answering only the most confident {half[0]:.0%}: {half[1]:.1%} right, "
        f"{whole:.1%} when all is answered"
    )
    with styled():
        figure = new_figure(height=3.8)
        axes = figure.subplots()
        axes.axhline(100 * whole, color=BASE, linewidth=1.4)
        axes.plot(
            [100 * x for x in coverage], [100 * y for y in accuracy],
            "o-", color=TUNED, linewidth=2, markersize=4,
        )  # fmt: skip
        axes.annotate(
            f"all answered: {whole:.1%}", (100, 100 * whole), xytext=(0, -5),
            textcoords="offset points", ha="right", va="top", color=MUTED,
        )  # fmt: skip
        axes.set_xlim(0, 103)
        low, high = min(100 * value for value in accuracy), max(100 * value for value in accuracy)
        room = max(2.0, 0.15 * (high - low))
        axes.set_ylim(low - 2 * room, min(high + room, 101))
        axes.grid(True)
        axes.set_xlabel("Answered, % of items, most confident first")
        axes.set_ylabel("Right among them, %")
        points = "; ".join(f"{x:.0%}: {y:.1%}" for x, y in calibration.selective)
        return finish(figure, title, f"{title}. Right by share answered: {points}.")


def plot_fairness(gaps: Sequence[FairnessGap]) -> Figure:
    """Draw each gap with its interval and the zero line, one panel per unit.

    Raises:
        RecordError: There are no gaps.
    """
    if not gaps:
        raise RecordError("There are no gaps to draw; evaluate.fairness names what is measured.")
    shown = sorted(gaps, key=lambda gap: 2.0 if gap.p_value is None else gap.p_value)[:_MOST_GAPS]
    kept = [gap for gap in gaps if any(gap is one for one in shown)]
    units = list(dict.fromkeys(gap.unit for gap in kept))
    sizes = [sum(gap.unit == unit for gap in kept) for unit in units]
    title = _gaps_in_words(gaps)
    words = []
    with styled():
        figure = new_figure(height=1.5 + 0.5 * sum(sizes) + 0.6 * len(units))
        panels = figure.subplots(
            len(units), 1, height_ratios=[size + 0.6 for size in sizes], squeeze=False
        )
        for axes, unit in zip(panels[:, 0], units, strict=True):
            words.append(_draw_gaps(axes, [gap for gap in kept if gap.unit == unit], unit))
        left_out = len(gaps) - len(kept)
        more = f" {left_out} further gaps are not drawn." if left_out else ""
        return finish(figure, title, f"{title}. {' '.join(words)}{more}")


def is_shown(gap: FairnessGap) -> bool:
    """Say whether a gap is more than chance, corrected for the number of gaps looked at."""
    return gap.p_value is not None and gap.p_value < LEVEL


def gap_in_words(gap: FairnessGap) -> str:
    """Write a gap with its interval, shares in points."""
    factor, digits, unit = _scale(gap.unit)
    tail = f" {unit}" if unit else ""
    return f"{signed(factor * gap.value, digits)}{tail} [{interval(gap.ci95, factor, digits)}]"


class _Point:
    """Where one bin is drawn, with Wilson's interval of its accuracy."""

    def __init__(self, bin: ReliabilityBin) -> None:
        right = round(bin.accuracy * bin.items)
        self.x, self.y = bin.confidence, bin.accuracy
        self.ends = wilson_interval(right, bin.items)
        self.low_end = min(bin.confidence, self.ends[0])


def _draw_bins(axes: Axes, bins: Sequence[ReliabilityBin], low: float) -> str:
    """Draw the bins against the diagonal, on which confidence is right."""
    start = max(0.0, low - 0.04)
    axes.plot([start, 1], [start, 1], color=BASE, linewidth=1.4)
    for point in map(_Point, bins):
        color = HARM if point.ends[1] < point.x else TUNED
        axes.plot([point.x] * 2, point.ends, color=color, linewidth=1.6)
        axes.plot([point.x], [point.y], "o", color=color, markersize=6)
    axes.annotate(
        "grey line: confidence is right", (1, 0), xycoords="axes fraction", xytext=(-6, 6),
        textcoords="offset points", color=MUTED, fontsize=8.5, ha="right",
    )  # fmt: skip
    counts = sorted({bin.items for bin in bins})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set_xlim(start, 1.02)
    axes.set_ylim(start, 1.02)
    axes.grid(True)
    axes.set_xlabel(f"Confidence ({len(bins)} points of {each} items; lines: 95 %)")
    cells = "; ".join(f"{b.confidence:.2f}: {b.accuracy:.2f} of {b.items}" for b in bins)
    return f"Accuracy by confidence: {cells}."


def _draw_gaps(axes: Axes, gaps: Sequence[FairnessGap], unit: str) -> str:
    """Draw gaps of one unit, one to a row."""
    factor, _, spoken = _scale(unit)
    axes.axvline(0, color=INK, linewidth=1)
    words, labels, edges = [], [], [0.0]
    for place, gap in enumerate(gaps):
        color = HARM if is_shown(gap) else MUTED
        ends = [factor * end for end in gap.ci95]
        axes.plot(ends, [place] * 2, color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(ends, [place] * 2, "|", color=color, markersize=9, markeredgewidth=1.6)
        axes.plot([factor * gap.value], [place], "o", color=color, markersize=7)
        if gap.base is not None:
            axes.plot([factor * gap.base], [place], "D", color=BASE, markersize=5.5, zorder=4)
        tested = "no test" if gap.p_value is None else f"p {gap.p_value:.3f}"
        number = f"{gap_in_words(gap)}\n{tested}"
        axes.text(1.02, place, number, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=8, color=color)  # fmt: skip
        labels.append(
            f"{plain_label(f'{gap.attribute}: {gap.name}', width=44)}\n"
            f"{plain_label(' / '.join(gap.groups), width=30)}, n = {gap.items:,}"
        )
        edges += [*ends, factor * gap.value, factor * (gap.base or 0.0)]
        beside = "" if gap.base is None else f", base {signed(factor * gap.base, 2)}"
        words.append(f"{gap.attribute}, {gap.name}: {gap_in_words(gap)}, {tested}{beside}")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")
    room = 0.06 * (max(edges) - min(edges) or 1.0)
    axes.set_xlim(min(edges) - room, max(edges) + room)
    axes.locator_params(axis="x", nbins=6)
    base = "; grey diamond: base" if any(gap.base is not None for gap in gaps) else ""
    axes.set_xlabel(f"Gap in {spoken or unit} (lines: 95 %{base})")
    return f"{'; '.join(words)}."


def _direction(gap: FairnessGap) -> str:
    """Say what is taken from what; nothing is where changes are counted, which are not tested."""
    if gap.p_value is None:
        return "either way"
    first, second = gap.groups[0], gap.groups[-1]
    if len(gap.groups) > 2:
        return "largest minus smallest"
    return f"{plain_label(second, width=20)} minus {plain_label(first, width=20)}"


def _scale(unit: str) -> tuple[float, int, str]:
    """Give factor, decimals and unit in words."""
    known = {"share": (100.0, 1, "points"), "nats per token": (1.0, 3, "nats per token")}
    return known.get(unit, (1.0, 3, ""))


def _calibration_in_words(calibration: Calibration) -> str:
    surplus = sum(b.items * (b.confidence - b.accuracy) for b in calibration.bins)
    points = 100 * surplus / calibration.items
    way = "above" if points > 0 else "below"
    head = f"Confidence is {abs(points):.1f} points {way} accuracy: ECE {calibration.ece:.3f}"
    if calibration.p_value is not None and calibration.p_value >= LEVEL:
        head = f"No fault in confidence shown: ECE {calibration.ece:.3f}"
    if calibration.ece_if_calibrated is not None:
        head += f" ({calibration.ece_if_calibrated:.3f} by chance alone)"
    if calibration.ece_after is not None:
        head += f", {calibration.ece_after:.3f} with temperature {calibration.temperature:.2f}"
    return head


def _gaps_in_words(gaps: Sequence[FairnessGap]) -> str:
    found = [gap for gap in gaps if is_shown(gap)]
    tested = sum(gap.p_value is not None for gap in gaps)
    if not found:
        return f"No gap between groups of people is shown ({tested} tested)"
    first = min(found, key=lambda gap: gap.p_value or 0.0)
    return (
        f"{len(found)} of {tested} gaps are more than chance; the surest: {first.attribute}, "
        f"{first.name}, {gap_in_words(first)}"
    )
