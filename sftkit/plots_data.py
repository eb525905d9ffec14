"""Figures of data: lengths against the limit, balance of labels, repeats, and what a leak does.

Each function takes the facts that were gathered and returns a Figure; it draws nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.dataset.facts import AuditFacts, Histogram, say_labels, say_lengths, say_repeats
from sftkit.errors import DataError
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

    from sftkit.evidence.leak import LeakEffect
    from sftkit.evidence_records import Change

_LABELS_SHOWN = 20


def plot_lengths(facts: AuditFacts) -> Figure:
    """Draw how long the rows are, and the limit of training where it is known.

    Raises:
        DataError: The audit measured no lengths.
    """
    lengths = facts.lengths
    if lengths is None:
        raise DataError("The audit measured no lengths; audit conversations or texts, not images.")
    with styled():
        figure = new_figure(height=3.8)
        axes = figure.subplots()
        _draw_bars(axes, lengths, facts.limit)
        median = f"median {lengths.median:,.0f}, longest {lengths.largest:,.0f}"
        axes.set_xlabel(f"Length of a row in {lengths.unit} ({median})")
        axes.set_ylabel(f"Rows (of {facts.rows:,})")
        if facts.limit is not None:
            axes.axvline(facts.limit, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            right = facts.limit > 0.7 * axes.get_xlim()[1]
            axes.annotate(
                f"limit {facts.limit:,}",
                (facts.limit, 0.97),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if right else 5, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="top",
                color=INK,
            )
        title = say_lengths(facts)
        limit = f" The limit is {facts.limit:,} tokens." if facts.limit is not None else ""
        return finish(figure, title, f"{title}. {facts.rows:,} rows, {median}.{limit}")


def plot_scores(facts: AuditFacts) -> Figure:
    """Draw how the scores of a regression are distributed.

    Raises:
        DataError: The audit saw no scores.
    """
    scores = facts.scores
    if scores is None:
        raise DataError("The audit saw no scores; audit a table with a text and a score.")
    with styled():
        figure = new_figure(height=3.8)
        axes = figure.subplots()
        _draw_bars(axes, scores, None)
        axes.set_xlabel("Score")
        axes.set_ylabel(f"Rows (of {facts.rows:,})")
        title = f"Scores: half are {scores.median:.3g} or less, the highest is {scores.largest:.3g}"
        return finish(figure, title, f"{title}. Histogram over {sum(scores.counts):,} rows.")


def plot_labels(facts: AuditFacts) -> Figure:
    """Draw how many rows each class has, the most frequent first.

    Raises:
        DataError: The audit saw no labels.
    """
    shown = list(facts.labels.items())[:_LABELS_SHOWN]
    if not shown:
        raise DataError("The audit saw no labels; audit a table with a text or image and a label.")
    with styled():
        figure = new_figure(height=max(1.6 + 0.3 * len(shown), 2.4))
        axes = figure.subplots()
        counts = [count for _, count in shown]
        places = range(len(shown))
        axes.barh(places, counts, height=0.7, color=TUNED)
        total = sum(facts.labels.values())
        for place, count in zip(places, counts, strict=True):
            axes.text(
                count + 0.012 * counts[0], place, f"{count:,} ({count / total:.1%})", va="center"
            )
        axes.set_yticks(places, [plain_label(name) for name, _ in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * counts[0])
        more = facts.label_kinds - len(shown)
        axes.set_xlabel("Rows" + (f" (and {more:,} more classes)" if more > 0 else ""))
        title = say_labels(facts)
        words = ", ".join(f"{name} {count:,}" for name, count in shown)
        return finish(figure, title, f"{title}. Rows per class: {words}.")


def plot_repeats(facts: AuditFacts) -> Figure:
    """Draw how many rows are new, nearly the same as an earlier one, and copies."""
    near = facts.near_repeats or 0
    once = facts.rows - facts.exact_repeats - near
    parts = [("different", once, TUNED)]
    parts += [("nearly the same\nas an earlier row", near, BASE)] if facts.near_repeats else []
    parts += [("exact copies", facts.exact_repeats, HARM)]
    with styled():
        figure = new_figure(height=2.4)
        axes = figure.subplots()
        for place, (_, count, color) in enumerate(parts):
            axes.barh([place], [count], height=0.62, color=color)
            # The edge keeps a bar of height zero visible.
            axes.plot([count, count], [place - 0.31, place + 0.31], color=color, linewidth=2)
            share = f"{count:,} ({count / max(facts.rows, 1):.1%})"
            axes.text(count + 0.012 * max(facts.rows, 1), place, share, va="center")
        axes.set_yticks(range(len(parts)), [name for name, _, _ in parts])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * max(facts.rows, 1))
        axes.spines["bottom"].set_bounds(0, facts.rows)
        axes.set_xticks([0, facts.rows / 2, facts.rows], ["0", "half", f"{facts.rows:,}"])
        axes.set_xlabel(f"Rows (of {facts.rows:,})")
        title = say_repeats(facts)
        words = ", ".join(f"{' '.join(name.split())} {count:,}" for name, count, _ in parts)
        return finish(figure, title, f"{title}. Rows: {words}.")


def plot_leak(effect: LeakEffect) -> Figure:
    """Draw what a leak did to the loss of each tested answer, leaked and not."""
    kinds = [(f"leaked\n({effect.on_leaked.items} questions)", effect.on_leaked, True, HARM)]
    kinds += [(f"not leaked\n({effect.on_clean.items} questions)", effect.on_clean, False, TUNED)]
    words = []
    with styled():
        figure = new_figure(height=3.6)
        axes = figure.subplots()
        for place, (name, change, is_leaked, color) in enumerate(kinds):
            deltas = [
                d
                for d, leaked in zip(effect.deltas, effect.leaked, strict=True)
                if leaked == is_leaked
            ]
            heights = [place + 0.16 + 0.05 * (number % 4) for number in range(len(deltas))]
            axes.scatter(sorted(deltas), heights, s=26, color=color, alpha=0.55, linewidths=0)
            axes.plot(change.ci95, [place - 0.14] * 2, color=INK, linewidth=2.2, zorder=3)
            axes.plot([change.delta], [place - 0.14], "D", color=color, markersize=8, zorder=4)
            axes.annotate(
                f"mean {signed(change.delta, 2)}",
                (change.delta, place - 0.14),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                color=color,
                weight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
            words.append(
                f"{' '.join(name.split())}: mean change {signed(change.delta, 2)}, 95 % interval "
                f"{interval(change.ci95, 1, 2)}."
            )
        axes.axvline(0, color=INK, linewidth=1)
        axes.margins(x=0.05)
        axes.set_yticks(range(len(kinds)), [name for name, _, _, _ in kinds])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(kinds) - 0.45, -0.55)
        axes.set_xlabel(
            "Change of the answer's loss by the leak, nats per token; below 0 looks better\n"
            "dot: one question, black line: 95 % interval of the mean"
        )
        return finish(figure, _say_leak(effect), f"{_say_leak(effect)}. {' '.join(words)}")


def _say_leak(effect: LeakEffect) -> str:
    leaked = f"The leak moved the loss of leaked questions by {_say_change(effect.on_leaked)}"
    if effect.on_leaked.ci95[1] < 0:
        leaked = f"Questions that leaked look {-effect.on_leaked.delta:.2f} nats better"
    return f"{leaked}; the others moved by {_say_change(effect.on_clean)}"


def _say_change(change: Change) -> str:
    low, high = change.ci95
    unsure = ", not to be told from 0" if low <= 0 <= high else ""
    return f"{signed(change.delta, 2)} nats{unsure}"


def _draw_bars(axes: Axes, values: Histogram, limit: int | None) -> None:
    for start, stop, count in zip(values.edges, values.edges[1:], values.counts, strict=False):
        color = HARM if limit is not None and start > limit else TUNED
        width = stop - start
        axes.bar(start, count, width=0.94 * width, align="edge", color=color)
        if count:  # a single row among thousands stays visible
            ends = [start, start + 0.94 * width]
            axes.plot(ends, [count, count], color=color, linewidth=1.5, solid_capstyle="butt")
    axes.set_ylim(bottom=0)
    axes.set_xlim(values.edges[0], max(values.edges[-1], 1.04 * (limit or values.edges[-1])))
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=MUTED)
