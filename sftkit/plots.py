"""The kit's figures: each function takes a record and returns a Figure of what is in it.

Figures are `matplotlib.figure.Figure` objects without pyplot, so nothing is shown or kept behind
the caller's back; a notebook shows a figure that a cell returns. `alt_text(figure)` says the same
in words, from the same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sftkit.metrics import step_speeds
from sftkit.panels import (
    BASE,
    INK,
    MUTED,
    SIZE,
    TUNED,
    alt_text,
    draw_ability,
    draw_column,
    draw_drift,
    draw_head,
    draw_loss,
    draw_shares,
    finish,
    in_nats,
    in_points,
    interval,
    moved,
    new_figure,
    probe_rows,
    share_rows,
    smooth,
    styled,
    to_png,
)
from sftkit.records import Forgot, Learned, Preflight, RunRecord, Step, TrainRecord
from sftkit.settings import EvaluateSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "SIZE",
    "alt_text",
    "margins",
    "plot_forgot",
    "plot_learned",
    "plot_overview",
    "plot_supervised_share",
    "plot_training",
    "save_figure",
    "to_png",
]


def plot_training(
    training: TrainRecord, *, total_steps: int | None = None, unit: str = "nats per token"
) -> Figure:
    """Draw training over its steps: losses above; learning rate, speed and memory below.

    Args:
        training: What training did, so far or in the end.
        total_steps: Planned steps, so that a live curve does not rescale; None for a finished run.
        unit: What the loss is counted in.
    """
    with styled():
        steps = training.steps
        numbers = [s.step for s in steps]
        held = [(0, training.heldout_start)] + [(s.step, s.heldout_loss) for s in steps]
        held_points = [(step, loss) for step, loss in held if loss is not None]
        planned = max(len(steps), total_steps or 0, 1)
        small = _small_panels(steps)
        figure = new_figure(height=SIZE[1] + 0.5)
        grid = figure.add_gridspec(2, len(small), height_ratios=[2.7, 1])
        loss_axes = figure.add_subplot(grid[0, :])
        _draw_losses(loss_axes, numbers, [s.loss for s in steps], held_points)
        loss_axes.set_ylabel(f"Loss, {unit}")
        loss_axes.set_xlabel("Optimizer step")
        # Room on the right for the label of the last held-out point.
        loss_axes.set_xlim(-0.02 * planned, planned * 1.1)
        for place, (name, values, form) in enumerate(small):
            axes = figure.add_subplot(grid[1, place])
            axes.set_title(name, loc="left", fontsize=9.5, color=MUTED)
            _draw_small(axes, numbers, values, form)
            axes.set_xlim(-0.02 * planned, planned * 1.02)
            axes.set_xticks([0, planned])
        title = _training_finding(training, held_points, unit)
        alt = (
            f"{title} Training loss per optimizer step with a smoothed line, {len(held_points)} "
            f"held-out measurements; below: {'; '.join(name for name, _, _ in small)}."
        )
        return finish(figure, title, alt)


def _draw_losses(
    axes: Axes,
    numbers: Sequence[int],
    losses: Sequence[float],
    held: Sequence[tuple[int, float]],
) -> None:
    axes.plot(numbers, losses, ".", color=TUNED, alpha=0.28, markersize=5)
    axes.plot(numbers, smooth(losses), color=TUNED, linewidth=2)
    if held:  # an empty line that is not clipped leaves the panel no room
        axes.plot(
            *zip(*held, strict=True),
            "D-",
            color=INK,
            linewidth=1.2,
            markersize=6,
            markerfacecolor="white",
            markeredgewidth=1.6,
            clip_on=False,
        )
    _label_training(axes, held, losses)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.locator_params(axis="x", integer=True)


def _small_panels(steps: Sequence[Step]) -> list[tuple[str, list[float], str]]:
    """List what is drawn small: title with the number that counts, values, format of the axis."""
    rates = [s.learning_rate for s in steps]
    speeds = step_speeds(steps)
    gigabytes = [s.memory_bytes / 1e9 for s in steps]
    panels = [(f"Learning rate, peak {max(rates, default=0):.2g}", rates, ".2g")]
    if any(speeds):
        panels.append((f"Tokens/s, median {statistics.median(speeds):,.0f}", speeds, ",.0f"))
    if any(gigabytes):
        panels.append((f"Memory, at most {max(gigabytes):.1f} GB", gigabytes, ".1f"))
    return panels


def _draw_small(axes: Axes, numbers: Sequence[int], values: Sequence[float], form: str) -> None:
    """Draw one small panel from zero, so that what looks flat is flat."""
    axes.fill_between(numbers, values, color=BASE, alpha=0.25, linewidth=0)
    axes.plot(numbers, values, "." if len(values) == 1 else "-", color=BASE, linewidth=1.2)
    top = max(values, default=0.0)
    axes.set_ylim(0, top * 1.15 or 1)
    axes.set_yticks([0, top] if top else [], ["0", format(top, form)] if top else [])


def plot_learned(learned: Learned) -> Figure:
    """Draw what was learned: shares of right answers and held-out loss, base against tuned."""
    with styled():
        figure = new_figure()
        rows = share_rows(learned)
        share_axes, loss_axes = figure.subplots(
            2, 1, gridspec_kw={"height_ratios": [max(len(rows), 1), 1]}
        )
        share_words = draw_shares(share_axes, rows)
        loss_words = draw_loss(loss_axes, learned.heldout_loss)
        title = _learned_finding(learned)
        return finish(figure, title, f"{title} {share_words} {loss_words}")


def plot_forgot(
    forgot: Forgot,
    *,
    ability_margin: float = EvaluateSettings.ability_margin,
    drift_margin: float = EvaluateSettings.drift_margin,
) -> Figure:
    """Draw what was forgotten: change of each probe's accuracy, and of loss on general text.

    Args:
        forgot: The measured changes.
        ability_margin: Loss of accuracy, as a share of 1, that counts as kept; the shaded band.
        drift_margin: Change of loss, nats per token, that counts as unmoved; the shaded band.
    """
    with styled():
        rows = probe_rows(forgot, every=True)
        figure = new_figure(height=SIZE[1] + 0.45 * max(len(rows) - 4, 0))
        ability_axes, drift_axes = figure.subplots(
            2, 1, gridspec_kw={"height_ratios": [max(len(rows), 1) + 0.6, 1.6]}
        )
        ability_words = draw_ability(ability_axes, rows, ability_margin)
        drift_words = draw_drift(drift_axes, forgot, drift_margin)
        title = _forgot_finding(forgot)
        return finish(figure, title, f"{title} {ability_words} {drift_words}")


def plot_overview(record: RunRecord) -> Figure:
    """Draw the one picture for a slide: what was learned on the left, what was forgotten right."""
    ability_margin, drift_margin = margins(record)
    verdicts = record.verdicts
    with styled():
        figure = new_figure()
        left, right = cast(Any, figure.subfigures(1, 2, wspace=0.06))
        draw_column(left, "What was learned")
        draw_column(right, "What was forgotten")
        knowledge, style = left.subplots(2, 1, gridspec_kw={"height_ratios": [1.5, 1]})
        ability, moved = right.subplots(2, 1, gridspec_kw={"height_ratios": [1.5, 1]})
        words = (
            draw_shares(knowledge, share_rows(record.learned)[:2], compact=True),
            draw_loss(style, record.learned.heldout_loss, compact=True),
            draw_ability(
                ability, probe_rows(record.forgot, every=False), ability_margin, compact=True
            ),
            draw_drift(moved, record.forgot, drift_margin, compact=True),
        )
        learned, forgot = record.learned, record.forgot
        known = learned.exact or learned.recognition
        fell = forgot.drift is not None and forgot.drift.delta < 0
        draw_head(knowledge, "Knowledge", verdicts.knowledge, in_points(known))
        draw_head(style, "Style", verdicts.style, in_nats(learned.heldout_loss))
        draw_head(ability, "Ability", verdicts.ability, in_points(forgot.overall))
        draw_head(moved, "Drift", verdicts.drift, in_nats(forgot.drift), fell=fell)
        return finish(figure, verdicts.summary, " ".join([verdicts.summary, *words]))


def plot_supervised_share(preflight: Preflight) -> Figure:
    """Draw how many of the training tokens are learned from, and how many are context."""
    with styled():
        figure = new_figure(height=1.9)
        axes = figure.subplots()
        supervised = preflight.supervised_tokens
        context = preflight.tokens - supervised
        total = max(preflight.tokens, 1)
        share = 100 * supervised / total
        axes.barh([0], [supervised], color=TUNED)
        axes.barh([0], [context], left=[supervised], color=BASE, alpha=0.55)
        axes.set_xlim(0, total)
        axes.set_ylim(-0.4, 0.9)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Tokens of one epoch")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.text(0, 0.5, f"learned from: {supervised:,}", color=TUNED, va="bottom", weight="bold")
        axes.text(total, 0.5, f"context: {context:,}", color=MUTED, va="bottom", ha="right")
        title = (
            f"{share:.0f} % of {preflight.tokens:,} tokens in {preflight.rows:,} examples are "
            "learned from."
        )
        return finish(figure, title, title)


def margins(record: RunRecord) -> tuple[float, float]:
    """Read the ability and drift margins that the run's recipe set."""
    section = record.recipe.get("evaluate")
    section = section if isinstance(section, Mapping) else {}
    return (
        section.get("ability_margin", EvaluateSettings.ability_margin),
        section.get("drift_margin", EvaluateSettings.drift_margin),
    )


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return where."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_png(figure))
    return path


def _training_finding(training: TrainRecord, held: Sequence[tuple[int, float]], unit: str) -> str:
    steps = training.steps
    name, values = "Held-out loss", [loss for _, loss in held]
    if len(values) < 2:
        # Single batches differ more than a few steps teach, so the line speaks, not its points.
        name, values = "Smoothed training loss", smooth([step.loss for step in steps])
    if len(values) < 2:
        plural = "" if len(steps) == 1 else "s"
        return f"{len(steps)} optimizer step{plural} so far: no curve yet."
    start, end = f"{values[0]:.2f}", f"{values[-1]:.2f}"
    count = f"{len(steps)} step{'s' if len(steps) != 1 else ''}"
    if start == end:
        return f"{name} stayed at {end} {unit} in {count}."
    verb = "fell" if values[-1] < values[0] else "rose"
    return f"{name} {verb} from {start} to {end} {unit} in {count}."


def _learned_finding(learned: Learned) -> str:
    parts = []
    if learned.exact is not None:
        change = learned.exact
        after, before = (round(share * change.items) for share in (change.after, change.before))
        parts.append(
            f"{after} of {change.items} unseen phrasings answered exactly ({before} before)"
        )
    if learned.recognition is not None:
        change = learned.recognition
        parts.append(
            f"right answer ranked first for {100 * change.after:.0f} % of {change.items} questions "
            f"({100 * change.before:.0f} % before)"
        )
    if learned.heldout_loss is not None:
        change = learned.heldout_loss
        parts.append(
            f"held-out loss {moved(change.delta, change.ci95, 2)} nats per token "
            f"[{interval(change.ci95, 1, 2)}]"
        )
    return _sentence(parts, "Nothing learned was measured.")


def _forgot_finding(forgot: Forgot) -> str:
    parts = []
    if forgot.drift is not None:
        drift = forgot.drift
        parts.append(
            f"loss on general text {moved(drift.delta, drift.ci95, 2)} nats per token "
            f"[{interval(drift.ci95, 1, 2)}]"
        )
    if forgot.overall is not None:
        overall = forgot.overall
        points = (100 * overall.ci95[0], 100 * overall.ci95[1])
        parts.append(
            f"accuracy {moved(100 * overall.delta, points, 1)}"
            f" points [{interval(overall.ci95, 100, 1)}] on {overall.items} questions"
        )
    return _sentence(parts, "Nothing forgotten was measured.")


def _sentence(parts: Sequence[str], otherwise: str) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else otherwise


def _label_training(axes: Axes, held: Sequence[tuple[int, float]], losses: Sequence[float]) -> None:
    above, below = (6, 7), (6, -12)
    # Two lines may end close together: the label of the upper one stands above, the other below.
    train_on_top = bool(held and losses) and smooth(losses)[-1] > held[-1][1]
    if held:
        (first, start), (last, end) = held[0], held[-1]
        bold: Any = {"textcoords": "offset points", "weight": "bold"}
        axes.annotate(f"held-out {start:.2f}", (first, start), xytext=above, **bold)
        if last != first:
            place = below if train_on_top else above
            axes.annotate(f"{end:.2f}", (last, end), xytext=place, **bold)
    if losses:
        end = smooth(losses)[-1]
        # Where there is room it stands beside the line's end: below, it may meet the axis.
        has_room = not held or abs(held[-1][1] - end) > 0.05 * max(*losses, held[-1][1])
        axes.annotate(
            "train",
            (len(losses), end),
            xytext=(6, -3) if has_room else above if train_on_top else below,
            textcoords="offset points",
            color=TUNED,
        )
