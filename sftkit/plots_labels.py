"""Figures of predicted labels: against baselines, by class, mixed up, by threshold, and numbers.

Each function takes a `LabelReport` and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.errors import RecordError
from sftkit.label_records import ClassRow, Gain, LabelReport, Measure, decimals_of
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
    from numpy.typing import NDArray

TITLES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "mcc": "Matthews corr.", "auroc": "AUROC",
    "auprc": "AUPRC", "rmse": "RMSE", "mae": "mean abs. error", "spearman": "Spearman corr.",
    "r2": "R²", "precision": "precision", "recall": "recall", "f1": "F1",
}  # fmt: skip
_CLASSES_SHOWN, _CELLS_WRITTEN, _MOST_BARS = 24, 10, 5


def plot_against_baselines(report: LabelReport, *, metric: str = "", over: str = "") -> Figure:
    """Draw one metric of every system, and the gain in each metric over one other system.

    Args:
        report: What was measured.
        metric: Name of the metric on the left; empty takes macro_f1, or rmse for numbers.
        over: The other system on the right; empty takes tf-idf if it was measured, or the last.

    Raises:
        RecordError: Nothing was measured beside the tuned model.
    """
    others = [system.name for system in report.systems[1:]]
    if not others:
        raise RecordError("The report has no baseline to draw the model against.")
    metric = metric or ("rmse" if report.task == "regress" else "macro_f1")
    over = over or ("tf-idf" if "tf-idf" in others else others[-1])
    # What is drawn side by side shares one axis: errors have a unit, correlations have none.
    unit = ("rmse", "mae") if metric in ("rmse", "mae") else None
    gains = [g for g in report.gains if g.over == over and (unit is None or g.metric in unit)]
    with styled():
        figure = new_figure(height=max(3.4, 1.6 + 0.42 * max(len(others) + 1, len(gains))))
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        words = [_draw_systems(left, report, metric), _draw_gains(right, gains)]
        title = _gain_in_words(report.gain(metric, over))
        size = f"{report.items:,} test items in {report.groups:,} groups."
        return finish(figure, title, f"{title}. {' '.join(words)} {size}")


def plot_classes(report: LabelReport) -> Figure:
    """Draw precision, recall and F1 of each class with their intervals.

    Raises:
        RecordError: The report is of numbers, not of classes.
    """
    rows = _classes(report)
    names = ("precision", "recall", "f1") if len(rows) <= _MOST_BARS else ("f1",)
    shades = {"precision": "#a9cbe3", "recall": "#56a0cf", "f1": TUNED}
    with styled():
        figure = new_figure(height=max(2.6, 1.5 + 0.29 * len(rows) * len(names)))
        axes = figure.subplots()
        thick = 0.8 / len(names)
        for place, row in enumerate(rows):
            for turn, name in enumerate(names):
                at = place + (turn - (len(names) - 1) / 2) * thick
                words = f"{TITLES[name]} " if len(names) > 1 else ""
                _draw_bar(
                    axes, at, getattr(row, name), color=shades[name], thick=0.86 * thick,
                    words=words,
                )  # fmt: skip
        wide, gap = (18, "\n") if len(names) > 1 else (36, ", ")
        labels = [f"{plain_label(row.name, width=wide)}{gap}n = {row.support:,}" for row in rows]
        _rows(axes, labels)
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.spines["bottom"].set_bounds(0, 1)
        what = "Share" if len(names) > 1 else "F1"
        axes.set_xlabel(f"{what} (black line: 95 % interval)")
        words = "; ".join(
            f"{row.name} (n = {row.support}): "
            + ", ".join(f"{TITLES[n]} {_value(getattr(row, n))}" for n in names)
            for row in rows
        )
        title = _classes_in_words(report.per_class)
        return finish(figure, title, f"{title}. {words}.{_left_out(report)}")


def plot_confusion(report: LabelReport) -> Figure:
    """Draw how many items of each class were predicted as each class.

    Raises:
        RecordError: The report is of numbers, not of classes.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    rows = _classes(report)
    chosen = [report.per_class.index(row) for row in rows]
    counts = np.array(report.confusion)[np.ix_(chosen, chosen)]
    support = np.array([max(row.support, 1) for row in rows])
    shares = counts / support[:, None]
    right = np.eye(len(rows), dtype=bool)
    with styled():
        figure = new_figure(height=min(2.4 + 0.42 * len(rows), 7.5))
        axes = figure.subplots()
        # Wrong cells in the tones of their own largest, which among many classes is small.
        most = max(float(shares[~right].max(initial=0)), 0.3)
        for color, mask, top in ((TUNED, ~right, 1.0), (HARM, right, most)):
            tones = LinearSegmentedColormap.from_list("tones", ["#ffffff", color])
            drawn = np.ma.masked_array(shares, mask=mask)
            axes.imshow(drawn, cmap=tones, vmin=0, vmax=top, aspect="auto")
        if len(rows) <= _CELLS_WRITTEN:
            _write_cells(axes, counts, np.where(right, shares, shares / most))
        small = 7.5 if len(rows) > _CELLS_WRITTEN else 9.5
        names = [plain_label(row.name, width=26) for row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=small)
        turned = len(names) * max(map(len, names)) > 90
        axes.set_xticks(range(len(rows)), names, fontsize=small, rotation=90 if turned else 0)
        axes.tick_params(length=0)
        axes.set_xlabel("Predicted class")
        axes.set_ylabel("True class")
        for spine in axes.spines.values():
            spine.set_visible(False)
        title = _confusion_in_words(report)
        note = "Each row is one true class; blue is right, orange is wrong."
        cells = "; ".join(
            f"{row.name}: {', '.join(str(int(c)) for c in line)}"
            for row, line in zip(rows, counts, strict=True)
        )
        return finish(figure, title, f"{title}. {note} {cells}.{_left_out(report)}")


def plot_thresholds(report: LabelReport) -> Figure:
    """Draw precision against recall, and both against the threshold; two classes only.

    Raises:
        RecordError: The report has no curve: not two classes, or no positive test item.
    """
    if not report.curve:
        raise RecordError("The report has no curve of thresholds; it needs two classes.")
    positive = report.per_class[1]
    base_rate = positive.support / report.items
    used = 0.5 if report.threshold is None else report.threshold
    recall = [point.recall for point in report.curve]
    precision = [point.precision for point in report.curve]
    with styled():
        figure = new_figure(height=3.8)
        left, right = figure.subplots(1, 2)
        left.plot(recall, precision, color=TUNED, linewidth=2)
        left.axhline(base_rate, color=BASE, linewidth=1.4)
        left.annotate(
            f"always {plain_label(positive.name)}: {base_rate:.2f}", (1, base_rate),
            xytext=(0, -4), textcoords="offset points", ha="right", va="top", color=MUTED,
        )  # fmt: skip
        left.set_xlabel("Recall")
        left.set_ylabel("Precision")
        thresholds = [point.threshold for point in report.curve]
        for values, color, name in ((precision, TUNED, "precision"), (recall, INK, "recall")):
            right.plot(thresholds, values, color=color, linewidth=2)
            right.annotate(  # at the highest threshold, where the dashed line seldom stands
                name, (thresholds[0], values[0]), xytext=(-8, 5), textcoords="offset points",
                ha="right", color=color, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        right.axvline(used, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        right.set_xlabel("Threshold on the score (dashed: the one in use)")
        if positive.precision.value is not None and positive.recall.value is not None:
            left.plot([positive.recall.value], [positive.precision.value], "o", color=INK)
            low = positive.precision.value < base_rate + 0.15  # no room above the line below it
            left.annotate(
                f"threshold {used:.2f}", (positive.recall.value, positive.precision.value),
                xytext=(4, 22) if low else (-8, -6), textcoords="offset points",
                ha="center" if low else "right", va="bottom" if low else "top", color=INK,
            )  # fmt: skip
        for axes in (left, right):
            axes.set_ylim(0, 1.08)
            axes.grid(True)
        left.set_xlim(0, 1.03)
        found, hit = _value(positive.recall), _value(positive.precision)
        title = f"At threshold {used:.2f}, recall of {positive.name} is {found}, precision {hit}"
        return finish(
            figure, title, f"{title}. {positive.support} of {report.items} test items are positive."
        )


def plot_predicted(report: LabelReport, *, unit: str = "") -> Figure:
    """Draw predicted against true numbers.

    Args:
        report: What was measured.
        unit: What the numbers count, for the axes.

    Raises:
        RecordError: The report is of classes, not of numbers.
    """
    if not report.points:
        raise RecordError("The report has no numbers to draw; it is of classes.")
    tail = f" ({unit})" if unit else ""
    true, said = zip(*report.points, strict=True)
    low, high = min(*true, *said), max(*true, *said)
    with styled():
        figure = new_figure(height=4.2)
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=BASE, linewidth=1.4)
        axes.plot(true, said, "o", color=TUNED, markersize=4.5, alpha=0.45, markeredgewidth=0)
        axes.annotate(
            "right", (high, high), xytext=(-4, 0), textcoords="offset points", ha="right",
            color=MUTED,
        )  # fmt: skip
        axes.set_xlabel(f"True{tail}")
        axes.set_ylabel(f"Predicted{tail}")
        axes.grid(True)
        mae, r2 = report.tuned.measure("mae"), report.tuned.measure("r2")
        title = f"Predictions are off by {_value(mae)} on average; R² {_value(r2)}"
        shown = f"{len(report.points)} of {report.items} test items are drawn"
        return finish(figure, title, f"{title}. {shown}.")


def in_interval(measure: Measure | None) -> str:
    """Write a metric with its interval, or why there is none."""
    if measure is None or measure.value is None:
        return f"not defined: {measure.note}" if measure is not None else "–"
    low_high = (measure.value, *(measure.ci95 or ()))
    digits = decimals_of(measure.name, *low_high)
    value, *span = (signed(one, digits).removeprefix("+") for one in low_high)
    return f"{value} [{' to '.join(span)}]" if span else value


def _draw_systems(axes: Axes, report: LabelReport, metric: str) -> str:
    """Draw one metric of the tuned model and of everything beside it."""
    rows = [(system.name, system.measure(metric)) for system in report.systems]
    for place, (name, measure) in enumerate(rows):
        color = TUNED if name == "tuned" else BASE
        _draw_bar(axes, place, measure, color=color, thick=0.62)
    _rows(axes, [plain_label(name) for name, _ in rows])
    edges = [edge for _, m in rows for edge in (m.value or 0, *(m.ci95 or ()))]
    low, high = min(0, *edges), max(0, *edges)
    axes.set_xlim(low, high + 0.28 * (high - low or 1))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{TITLES[metric]} (black line: 95 % interval)")
    values = ", ".join(f"{name} {_value(measure)}" for name, measure in rows)
    return f"{TITLES[metric]}: {values}."


def _draw_gains(axes: Axes, gains: list[Gain]) -> str:
    """Draw the gain in each metric with its interval, and the zero line."""
    axes.axvline(0, color=INK, linewidth=1)
    words = []
    for place, gain in enumerate(gains):
        if gain.delta is None:
            axes.annotate("not defined", (0, place), xytext=(6, 0), textcoords="offset points",
                          va="center", color=MUTED)  # fmt: skip
            words.append(f"{TITLES[gain.metric]} not defined ({gain.note})")
            continue
        color = TUNED if gain.is_shown else HARM if gain.is_reversed else MUTED
        digits = decimals_of(gain.metric, gain.delta, *(gain.ci95 or ()))
        span = f" [{interval(gain.ci95, 1, digits)}]" if gain.ci95 else " (no interval)"
        if gain.ci95:
            axes.plot(gain.ci95, [place] * 2, color=color, linewidth=2.2, solid_capstyle="butt")
            axes.plot(gain.ci95, [place] * 2, "|", color=color, markersize=9, markeredgewidth=1.6)
        axes.plot([gain.delta], [place], "o", color=color, markersize=8)
        number = f"{signed(gain.delta, digits)}{span}"
        axes.text(1.03, place, number, transform=axes.get_yaxis_transform(), va="center",
                  fontsize=8.5, color=color)  # fmt: skip
        words.append(f"{TITLES[gain.metric]} {number}")
    _rows(axes, [TITLES[gain.metric] for gain in gains])
    edges = [e for g in gains for e in ((g.delta or 0), *(g.ci95 or ()))]
    low, high = min(0, *edges), max(0, *edges)
    room = 0.08 * (high - low or 1)
    axes.set_xlim(low - room, high + room)
    axes.locator_params(axis="x", nbins=4)
    better = "← better" if gains[0].lower_is_better else "better →"
    axes.set_xlabel(f"Tuned minus {plain_label(gains[0].over)} ({better})")
    return f"Tuned minus {gains[0].over}: {'; '.join(words)}."


def _draw_bar(
    axes: Axes, at: float, measure: Measure, *, color: str, thick: float, words: str = ""
) -> None:
    if measure.value is None:
        axes.annotate(f"{words}not defined", (0, at), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=8.5, color=MUTED)  # fmt: skip
        return
    axes.barh([at], [measure.value], height=thick, color=color)
    end = max(measure.value, 0)
    if measure.ci95:
        axes.plot(measure.ci95, [at, at], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot(measure.ci95, [at, at], "|", color=INK, markersize=6)
        end = max(end, measure.ci95[1])
    axes.annotate(f"{words}{_value(measure)}", (end, at), xytext=(6, 0),
                  textcoords="offset points", va="center", fontsize=8.5, color=INK)  # fmt: skip


def _write_cells(axes: Axes, counts: NDArray[Any], tones: NDArray[Any]) -> None:
    """Write count and share of the true class into each cell, white where its tone is dark."""
    for line, row in enumerate(counts):
        for column, count in enumerate(row):
            color = "white" if tones[line, column] > 0.6 else INK
            words = f"{count:,}\n{count / max(row.sum(), 1):.0%}"
            place: Any = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(column, line, words, color=color, **place)


def _rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")


def _classes(report: LabelReport) -> list[ClassRow]:
    """Take the classes to draw: all, or the most frequent ones."""
    if not report.per_class:
        raise RecordError("The report has no classes to draw; it is of numbers.")
    kept = sorted(report.per_class, key=lambda row: -row.support)[:_CLASSES_SHOWN]
    return [row for row in report.per_class if row in kept]


def _left_out(report: LabelReport) -> str:
    more = len(report.per_class) - _CLASSES_SHOWN
    return f" {more} rarer classes are not drawn." if more > 0 else ""


def _value(measure: Measure) -> str:
    """Write a metric in short: with a true minus and no plus."""
    if measure.value is None:
        return "not defined"
    digits = 2 if abs(measure.value) < 100 else 0
    if measure.name in ("rmse", "mae"):
        digits = decimals_of(measure.name, measure.value)
    return signed(measure.value, digits).removeprefix("+")


def _gain_in_words(gain: Gain) -> str:
    if gain.delta is None or gain.before is None or gain.after is None:
        return f"{TITLES[gain.metric]} is not defined: {gain.note}"
    digits = decimals_of(gain.metric, gain.after, gain.before)
    numbers = f"{gain.after:.{digits}f} against {gain.before:.{digits}f}"
    head = f"{TITLES[gain.metric][:1].upper()}{TITLES[gain.metric][1:]} {numbers} for {gain.over}"
    if gain.ci95 is None:
        return f"{head}: too little to give an interval"
    digits = decimals_of(gain.metric, gain.delta, *gain.ci95)
    span = f"{signed(gain.delta, digits)}, 95 % interval {interval(gain.ci95, 1, digits)}"
    state = "better" if gain.is_shown else "worse" if gain.is_reversed else "no difference shown"
    return f"{head}: {state} ({span})"


def _classes_in_words(rows: tuple[ClassRow, ...]) -> str:
    known = [(row.f1.value, row) for row in rows if row.support and row.f1.value is not None]
    if not known:
        return "No class occurs in the test"
    worst, best = min(known, key=lambda k: k[0]), max(known, key=lambda k: k[0])
    if len(known) == 1:
        return f"F1 of {best[1].name} is {best[0]:.2f}"
    return f"F1 is lowest for {worst[1].name} ({worst[0]:.2f}), highest for {best[1].name} " \
        f"({best[0]:.2f})"  # fmt: skip


def _confusion_in_words(report: LabelReport) -> str:
    right = sum(report.confusion[c][c] for c in range(len(report.classes)))
    head = f"{right:,} of {report.items:,} right"
    wrong = [
        (count, report.classes[true], report.classes[said])
        for true, line in enumerate(report.confusion)
        for said, count in enumerate(line)
        if true != said
    ]
    most = max(wrong, default=(0, "", ""))
    if not most[0]:
        return f"{head}; no item was mistaken"
    return f"{head}; most often {most[1]} is taken for {most[2]} ({most[0]:,} times)"
