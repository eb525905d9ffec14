"""Figures of learning: what a test can see, gains over other baselines, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.errors import RecordError
from sftkit.evidence_records import AnswerMeasure, Change
from sftkit.panels import (
    BASE,
    HARM,
    INK,
    MUTED,
    SIZE,
    TUNED,
    finish,
    in_points,
    interval,
    moved,
    new_figure,
    plain_label,
    signed,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftkit.evidence.seeds import SeedChange
    from sftkit.learning_curve import LearningCurve, Measure


def plot_detectable(smallest: Mapping[float, Mapping[int, float | None]], *, items: int) -> Figure:
    """Draw the smallest gain that a test can see, by its number of questions.

    Args:
        smallest: By share of questions that flip in any case: by questions, the gain in 0..1, or
            None where no gain can be seen.
        items: Questions of the test in hand, which is marked.
    """
    with styled():
        figure = new_figure(height=3.9)
        axes = figure.subplots()
        told, shades = [], ((INK, "-"), (MUTED, "--"), (BASE, ":"))
        for (share, gains), (colour, line) in zip(smallest.items(), shades, strict=False):
            seen = {n: 100 * gain for n, gain in gains.items() if gain is not None}
            name = f"{share:.0%} of the questions flip anyway"
            axes.plot(
                list(seen), list(seen.values()), "o", linestyle=line, color=colour, markersize=4,
                linewidth=1.8, label=name,
            )  # fmt: skip
            told.append(
                f"{share:.0%} flip anyway: "
                + ", ".join(f"{n} questions {gain:.1f}" for n, gain in seen.items())
            )
        axes.legend(frameon=False, loc="center right", labelcolor=MUTED)
        axes.axvline(items, color=HARM, linewidth=1.4, zorder=0)
        axes.annotate(
            f"{items} questions", (items, 1), xycoords=("data", "axes fraction"), xytext=(5, -2),
            textcoords="offset points", color=HARM, va="top",
        )  # fmt: skip
        counts = sorted({n for gains in smallest.values() for n in gains})
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{n:,}" for n in counts])
        axes.minorticks_off()
        axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_xlabel("Questions, the same for both models (log scale)")
        axes.set_ylabel("Smallest gain seen 4 times in 5, points")
        here = [100 * g for gains in smallest.values() if (g := gains.get(items)) is not None]
        title = f"With {items} questions no gain can be seen"
        if here:
            title = (
                f"With {items} questions a gain under {min(here):.0f} to {max(here):.0f} points "
                "cannot be seen"
            )
        return finish(figure, title, f"{title}. {'; '.join(told)}.")


def plot_rivals(measures: Sequence[AnswerMeasure], *, base: str = "base") -> Figure:
    """Draw what the tuned model gains over the base model, and over the base asked in other ways.

    Args:
        measures: What is drawn, a panel each; shares only, and at least one.
        base: What to call the base model.

    Raises:
        RecordError: There is none, or one is no share.
    """
    if not measures or any(measure.unit != "share" for measure in measures):
        raise RecordError("plot_rivals draws measures that are shares, and at least one of them.")
    with styled():
        rivals = [base, *measures[0].baselines]
        figure = new_figure(height=1.7 + 0.55 * len(rivals))
        panels = figure.subplots(1, len(measures), sharex=True, sharey=True, squeeze=False)[0]
        told = []
        for axes, measure in zip(panels, measures, strict=True):
            changes = {base: measure.change, **measure.baselines}
            _draw_gains(axes, measure, list(changes.values()))
            told += [f"{measure.name} against {n}: {in_points(c)}" for n, c in changes.items()]
        panels[0].set_yticks(
            range(len(rivals)), [plain_label(f"over {n}", width=26) for n in rivals]
        )
        panels[0].set_ylim(len(rivals) - 0.4, -0.6)
        ends = [100 * end for m in measures for c in (m.change, *m.baselines.values())
                for end in c.ci95]  # fmt: skip
        low, high = min([*ends, -10.0]), max([*ends, 10.0])
        panels[0].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        first = measures[0]
        beside = {base: first.change, **first.baselines}
        best = max(beside, key=lambda name: beside[name].before)
        gain = in_points(beside[best])
        title = f"{first.name}: {gain} over the strongest rival, {best}".capitalize()
        return finish(figure, title, f"{title}. {'; '.join(told)}.")


def _draw_gains(axes: Axes, measure: AnswerMeasure, changes: Sequence[Change]) -> None:
    for place, change in enumerate(changes):
        low, high = (100 * end for end in change.ci95)
        worse, better = (high < 0, low > 0)
        if measure.better == "lower":
            worse, better = better, worse
        colour = TUNED if better else HARM if worse else MUTED
        butt: Any = {"solid_capstyle": "butt"}
        axes.plot([low, high], [place] * 2, color=colour, linewidth=2.2, **butt)
        axes.plot([low, high], [place] * 2, "|", color=colour, markersize=9, markeredgewidth=1.6)
        axes.plot(100 * change.delta, place, "o", color=colour, markersize=7)
        axes.annotate(
            signed(100 * change.delta, 0), (100 * change.delta, place), xytext=(0, 7),
            textcoords="offset points", ha="center", color=colour, fontsize=9,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    after = 100 * changes[0].after
    axes.set_title(f"{measure.name}: tuned {after:.0f} %", loc="left", fontsize=10, color=INK)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="y", length=0)
    less = ", less is better" if measure.better == "lower" else ""
    axes.set_xlabel(f"Gain in points{less}\n(lines: 95 %)")


def plot_learning_curve(curve: LearningCurve) -> Figure:
    """Draw right answers and loss by the rows that were learned from, every seed a point.

    Args:
        curve: From `learning_curve.measure_curve`; with control rows their loss is drawn, too.

    Raises:
        RecordError: The curve has fewer than two sizes.
    """
    sizes = curve.sizes
    if len(sizes) < 2:
        raise RecordError(f"A learning curve needs two sizes or more, this one has {len(sizes)}.")
    with styled():
        figure = new_figure(height=SIZE[1] + 0.3)
        right, loss = figure.subplots(1, 2)
        seeds = len(curve.seeds)
        told = [_draw_points(right, curve, "exact", TUNED)]
        heads = [(f"points: {seeds} seed{'s' if seeds > 1 else ''}; black: 95 % interval", MUTED)]
        names: dict[Measure, tuple[str, str]] = {"loss": ("trained facts, asked anew", TUNED)}
        if curve.test.control:
            names["control loss"] = ("facts never trained", MUTED)
        for measure, (name, colour) in names.items():
            told.append(_draw_points(loss, curve, measure, colour))
            before = curve.change(measure, after=sizes[0]).before
            heads.append((f"{name} (base, dashed: {before:.2f})", colour))
        for place, (words, colour) in enumerate(heads):
            (right if place == 0 else loss).annotate(
                words, (0, 1), xycoords="axes fraction", xytext=(0, 4 + 13 * (place == 2)),
                textcoords="offset points", color=colour, fontsize=9,
            )  # fmt: skip
        right.set_ylim(-4, 104)
        right.set_ylabel("Right word for word, % of unseen phrasings")
        loss.set_ylim(bottom=0)
        loss.set_ylabel("Loss of the right answers, nats per token")
        for axes in (right, loss):
            rows = [curve.rows(size) for size in sizes]
            axes.set_xscale("log", base=2)
            axes.set_xticks(rows, [f"{count:,}" for count in rows])
            axes.minorticks_off()
            axes.set_xlim(rows[0] / 1.35, rows[-1] * 1.35)
            axes.grid(axis="y")
            axes.set_xlabel("Rows learned from (log scale)")
        title = _curve_finding(curve)
        return finish(figure, title, f"{title}. {' '.join(told)}")


def _draw_points(axes: Axes, curve: LearningCurve, measure: Measure, colour: str) -> str:
    """Draw one measure: the base's line, every seed, the mean and its interval."""
    factor, digits = (100.0, 0) if measure == "exact" else (1.0, 2)
    levels = {curve.rows(size): curve.level(measure, size) for size in curve.sizes}
    before = factor * curve.change(measure, after=curve.sizes[0]).before
    line = BASE if measure == "exact" else colour
    axes.axhline(before, color=line, linewidth=1.2, linestyle="--")
    for rows, level in levels.items():
        ends = [factor * end for end in level.ci95]
        each = [factor * value for value in level.by_seed]
        axes.plot([rows] * 2, ends, color=INK, linewidth=1.3, zorder=2)
        axes.plot([rows] * len(each), each, "o", color=colour, alpha=0.45, markersize=5, zorder=3)
    means = [factor * level.after for level in levels.values()]
    axes.plot(list(levels), means, color=colour, linewidth=2, zorder=3)
    if measure == "exact":
        axes.annotate(
            f"base {before:.0f} %", (max(levels), before), xytext=(0, 4), ha="right",
            textcoords="offset points", color=MUTED, fontsize=9,
        )  # fmt: skip
    points = "; ".join(
        f"{rows} rows {factor * level.after:.{digits}f} ({_of_each(level, factor, digits)}; 95 % "
        f"interval {interval(level.ci95, factor, digits)})"
        for rows, level in levels.items()
    )
    what = "Right, %" if measure == "exact" else f"{measure}, nats per token".capitalize()
    return f"{what}: base {before:.{digits}f}; {points}."


def _of_each(level: SeedChange, factor: float, digits: int) -> str:
    return f"by seed {', '.join(f'{factor * value:.{digits}f}' for value in level.by_seed)}"


def _curve_finding(curve: LearningCurve) -> str:
    sizes = curve.sizes
    whole = curve.change("exact", before=sizes[0], after=sizes[-1])
    last = curve.change("exact", before=sizes[-2], after=sizes[-1])
    parts = []
    for change, start in ((whole, sizes[0]), (last, sizes[-2])):
        points = tuple(100 * end for end in change.ci95)
        words = moved(100 * change.delta, (points[0], points[1]), 0)
        parts.append(
            f"{curve.rows(start)} rows it {words} points [{interval(change.ci95, 100, 0)}]"
        )
    end = curve.rows(sizes[-1])
    seeds = len(curve.seeds)
    many = f"{seeds} seed{'s' if seeds > 1 else ''}"
    first = f"Right answers at {end} rows: {100 * whole.after:.0f} % ({many}); since {parts[0]}"
    return first if len(sizes) == 2 else f"{first}, since {parts[1]}"
