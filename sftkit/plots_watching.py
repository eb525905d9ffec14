"""Figures of trainings side by side: one batch, learning rates, fit, and a run gone on with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sftkit.evidence_records import Change
from sftkit.panels import (
    BAND,
    BASE,
    HARM,
    INK,
    MUTED,
    SIZE,
    TUNED,
    finish,
    interval,
    new_figure,
    signed,
    smooth,
    styled,
)
from sftkit.records import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftkit.sweep import ShortRun

FITTED = 0.1
"""Nats per token below which one batch counts as fitted."""


def plot_one_batch(runs: Mapping[str, Sequence[Step]]) -> Figure:
    """Draw how well each training fits one batch, and how large its gradients are.

    Args:
        runs: Steps by name; the first is the one that is meant to be healthy.
    """
    with styled():
        figure = new_figure()
        loss, norm = figure.subplots(1, 2)
        colours = dict(zip(runs, (TUNED, HARM, BASE, INK), strict=False))
        ends: list[float] = []
        for name, steps in runs.items():
            numbers = [step.step for step in steps]
            loss.plot(numbers, [s.loss for s in steps], color=colours[name], linewidth=2)
            norm.plot(numbers, [s.grad_norm for s in steps], color=colours[name], linewidth=2)
            ends.append(steps[-1].loss)
        longest = max(len(steps) for steps in runs.values())
        top = max(step.loss for steps in runs.values() for step in steps)
        labels = _apart([(steps[-1].loss, name) for name, steps in runs.items()], 0.07 * top)
        for name, place in labels.items():
            _label(loss, name, len(runs[name]), place, colours[name])
        for axes in (loss, norm):
            axes.set_xlim(0, longest * (1.5 if axes is loss else 1.03))
            axes.locator_params(axis="x", integer=True)
            axes.set_xticks([step for step in axes.get_xticks() if step <= longest])
            axes.set_xlabel("Optimizer step")
            axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
            axes.grid(axis="y")
        loss.set_ylabel("Loss of the batch, nats per token")
        norm.set_ylabel("Norm of the gradient")
        fitted = [name for name, end in zip(runs, ends, strict=True) if end < FITTED]
        others = [f"{name} at {runs[name][-1].loss:.2f}" for name in runs if name not in fitted]
        title = (
            f"Fitted below {FITTED:g} nats per token: {' and '.join(fitted) or 'none'}"
            f"{'; ended ' + ', '.join(others) if others else ''}"
        )
        told = "; ".join(
            f"{name}: loss {steps[0].loss:.2f} to {steps[-1].loss:.2f}, gradient "
            f"{min(s.grad_norm for s in steps):.2g} to {max(s.grad_norm for s in steps):.2g}"
            for name, steps in runs.items()
        )
        return finish(figure, title, f"{title}. {told}.")


def plot_rate_sweep(runs: Mapping[float, ShortRun]) -> Figure:
    """Draw the held-out loss after a few steps by learning rate, and where it ends above the base.

    Args:
        runs: From `sweep.sweep_rates`.
    """
    with styled():
        figure = new_figure()
        axes = figure.subplots()
        rates = sorted(runs)
        changes = {rate: run.heldout for rate, run in runs.items() if run.heldout is not None}
        if not changes:
            raise ValueError("No training of the sweep reached its end, so there is no loss.")
        before = next(iter(changes.values())).before
        best = min(changes, key=lambda rate: changes[rate].after)
        harmed = [r for r in rates if r not in changes or changes[r].ci95[0] > 0]
        axes.axhline(before, color=BASE, linewidth=1.4)
        for rate, change in changes.items():
            low, high = (before + edge for edge in change.ci95)
            colour = HARM if rate in harmed else TUNED if change.ci95[1] < 0 else MUTED
            axes.plot([rate, rate], [low, high], color=INK, linewidth=1.4, zorder=2)
            size = 11 if rate == best else 7
            axes.plot(rate, change.after, "o", color=colour, markersize=size, zorder=3)
            below = -8 if change.after < before else 0  # clear of the line of the base
            axes.annotate(
                f"{change.after:.2f}", (rate, change.after), xytext=(9, below), fontsize=9,
                textcoords="offset points", va="center", color=colour,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlim(rates[0] / 2, rates[-1] * 3)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        top = axes.get_ylim()[1]
        if harmed:
            axes.axvspan(harmed[0] / math.sqrt(2), rates[-1] * 3, color=BAND, zorder=0)
            axes.text(harmed[0] / 1.3, top * 0.97, "worse than\nno training", color=HARM, va="top")
        for rate in rates:
            if rate not in changes:
                axes.text(rate, top * 0.5, "stopped", color=HARM, ha="center", rotation=90)
        axes.annotate(
            f"before training: {before:.2f}", (rates[0] / 2, before), xytext=(4, 4),
            textcoords="offset points", color=MUTED,
        )  # fmt: skip
        axes.set_xlabel("Learning rate, peak (log scale)")
        axes.set_ylabel("Held-out loss, nats per token\n(line: 95 % interval of the change)")
        axes.grid(axis="y")
        steps = max(len(run.steps) for run in runs.values())
        title = f"After {steps} steps the lowest held-out loss is at a rate of {best:g}"
        if harmed:
            title += f"; from {harmed[0]:g} on, training does harm"
        told = ", ".join(
            f"{r:g}: {changes[r].after:.2f}" if r in changes else f"{r:g}: stopped" for r in rates
        )
        return finish(figure, title, f"{title}. Before {before:.2f}; by rate {told}.")


def plot_fits(runs: Mapping[str, ShortRun]) -> Figure:
    """Draw training and held-out loss of several trainings, each in a panel of its own.

    Args:
        runs: From `sweep.try_settings`, with several held-out evaluations each.
    """
    with styled():
        columns = min(len(runs), 3)
        figure = new_figure(height=2.9 * math.ceil(len(runs) / columns) + 0.9)
        rows = math.ceil(len(runs) / columns)
        panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        told = []
        for (name, run), axes in zip(runs.items(), panels, strict=False):
            told.append(_draw_fit(axes, name, run))
            axes.set_xlabel("Optimizer step")
        for axes in panels[len(runs) :]:
            axes.set_axis_off()
        for words, colour, height in (("training", TUNED, 0.14), ("held-out", INK, 0.05)):
            panels[0].text(
                0.97, height, words, color=colour, transform=panels[0].transAxes, ha="right"
            )
        first = next(iter(runs.values()))
        highest = max(
            [s.loss for run in runs.values() for s in run.steps if math.isfinite(s.loss)]
            + [loss for run in runs.values() for _, loss in _held(run)]
        )
        figure.axes[0].set_ylim(0, min(highest, 2.5 * _held(first)[0][1]) * 1.1)
        for first_of_row in range(0, len(runs), columns):
            figure.axes[first_of_row].set_ylabel("Loss, nats per token")
        title = _fit_finding(runs)
        return finish(figure, title, f"{title}. {' '.join(told)}")


def plot_compared(changes: Mapping[str, Change], *, against: str) -> Figure:
    """Draw how the held-out loss differs from that of one run, with intervals.

    Args:
        changes: Differences by name, such as from `sweep.compare_runs`.
        against: Name of the run that all are compared with.
    """
    with styled():
        figure = new_figure(height=0.5 * len(changes) + 1.7)
        axes = figure.subplots()
        names = list(changes)
        for row, name in enumerate(names):
            change = changes[name]
            colour = TUNED if change.ci95[1] < 0 else HARM if change.ci95[0] > 0 else MUTED
            axes.plot(change.ci95, [row, row], color=colour, linewidth=2.2)
            axes.plot(change.delta, row, "o", color=colour, markersize=8)
            axes.text(
                1.02, row, f"{signed(change.delta, 2)} [{interval(change.ci95, 1, 2)}]",
                transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=9,
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.set_xlabel(f"Held-out loss against {against}, nats per token (95 % interval)")
        better = [name for name in names if changes[name].ci95[1] < 0]
        one = changes[names[0]]
        title = (
            f"Lower held-out loss than {against}, beyond chance: "
            f"{', '.join(better) or 'none of these'} ({one.items} answers, {one.groups} groups)"
        )
        told = "; ".join(
            f"{n}: {signed(c.delta, 2)}, {interval(c.ci95, 1, 2)}" for n, c in changes.items()
        )
        return finish(figure, title, f"{title}. {told}.")


def plot_resumed(whole: Sequence[Step], killed: Sequence[Step], resumed: Sequence[Step]) -> Figure:
    """Draw a run that was never disturbed over one that was killed and gone on with.

    Args:
        whole: Steps of the undisturbed run.
        killed: Steps that the killed run had done.
        resumed: All steps of the run that went on from its checkpoint.
    """
    with styled():
        figure = new_figure(height=SIZE[1] - 0.3)
        axes = figure.subplots()
        axes.plot(*_curve(whole), color=BASE, linewidth=6, alpha=0.5)
        axes.plot(*_curve(resumed), color=TUNED, linewidth=1.8)
        axes.plot(*_curve(killed), "o", color=HARM, markersize=5)
        axes.axvline(
            killed[-1].step + 0.5, ymax=0.7, color=HARM, linewidth=1, linestyle=(0, (4, 3))
        )
        top = max(step.loss for step in [*whole, *resumed])
        axes.text(
            killed[-1].step + 0.7, 0.03 * top, f"killed after step {killed[-1].step}", color=HARM
        )
        for words, colour, height in (
            ("grey, wide: never disturbed", MUTED, 0.9),
            ("blue: went on from its checkpoint", TUNED, 0.82),
            ("orange: before the kill", HARM, 0.74),
        ):
            axes.text(0.99, height, words, color=colour, transform=axes.transAxes, ha="right")
        axes.set_ylim(0, top * 1.08)
        axes.set_xlabel("Optimizer step")
        axes.set_ylabel("Loss, nats per token")
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y")
        furthest = largest_difference(whole, resumed)
        same = "bit for bit" if furthest == 0 else f"to within {furthest:.1e} nats per token"
        title = (
            f"Killed after step {killed[-1].step} of {len(whole)} and gone on with: all "
            f"{len(resumed)} losses equal those of the undisturbed run {same}"
        )
        return finish(figure, title, title + ".")


def largest_difference(one: Sequence[Step], other: Sequence[Step]) -> float:
    """Give the largest difference of two runs' losses, step by step.

    Raises:
        ValueError: They have not done the same number of steps.
    """
    return max(abs(a.loss - b.loss) for a, b in zip(one, other, strict=True))


def _draw_fit(axes: Axes, name: str, run: ShortRun) -> str:
    held = _held(run)
    axes.plot(*_curve(run.steps), ".", color=TUNED, alpha=0.25, markersize=4)
    numbers, losses = _curve(run.steps)
    axes.plot(numbers, smooth(losses), color=TUNED, linewidth=1.8)
    axes.plot(
        *zip(*held, strict=True), "D-", color=INK, linewidth=1.2, markersize=4, clip_on=False,
        markerfacecolor="white",
    )  # fmt: skip
    kept = run.record.kept_step if run.record else 0
    at_kept = dict(held).get(kept, held[0][1])
    axes.plot(kept, at_kept, "o", markersize=13, markerfacecolor="none", color=HARM, clip_on=False)
    trained = losses[kept - 1] if kept else losses[0]
    axes.set_title(
        f"{name}, kept step {kept}\ntraining {trained:.2f}, held-out {at_kept:.2f}",
        loc="left", fontsize=9, color=INK,
    )  # fmt: skip
    axes.grid(axis="y")
    axes.locator_params(axis="x", integer=True)
    return f"{name}: training {trained:.2f}, held-out {at_kept:.2f} at step {kept}."


def _fit_finding(runs: Mapping[str, ShortRun]) -> str:
    ended = {name: run.heldout.after for name, run in runs.items() if run.heldout is not None}
    if not ended:
        return "No training reached its end"
    best, worst = min(ended, key=lambda n: ended[n]), max(ended, key=lambda n: ended[n])
    return (
        f"Held-out loss of what was kept: lowest with {best} ({ended[best]:.2f}), highest with "
        f"{worst} ({ended[worst]:.2f})"
    )


def _held(run: ShortRun) -> list[tuple[int, float]]:
    weight = sum(one.tokens for one in run.start)
    start = sum(one.nats for one in run.start) / weight
    measured = [(s.step, s.heldout_loss) for s in run.steps if s.heldout_loss is not None]
    return [(0, start), *measured]


def _curve(steps: Sequence[Step]) -> tuple[list[int], list[float]]:
    return [step.step for step in steps], [step.loss for step in steps]


def _apart(ends: Sequence[tuple[float, str]], gap: float) -> dict[str, float]:
    """Place labels at the ends of lines, at least a gap apart."""
    places: dict[str, float] = {}
    above = -math.inf
    for height, name in sorted(ends):
        above = places[name] = max(height, above + gap)
    return places


def _label(axes: Axes, words: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        words, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9,
        color=colour, annotation_clip=False,
    )  # fmt: skip
