"""Figures of adapters: what rank and alpha do, and methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sftkit.panels import BASE, HARM, INK, MUTED, TUNED, finish, new_figure, signed, smooth, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftkit.methods import Trial


def plot_rank_and_alpha(
    by_rank: Mapping[int, Sequence[float]],
    by_alpha: Mapping[float, Sequence[float]],
    *,
    true_rank: int,
) -> Figure:
    """Draw how the error falls, for several ranks, and for several values of alpha.

    Args:
        by_rank: Error per step, as a share of the error at the start, by r.
        by_alpha: The same by lora_alpha.
        true_rank: Rank of the change that was to be learned.
    """
    with styled():
        figure = new_figure()
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_curves(left, {float(r): errors for r, errors in by_rank.items()}, "r")
        _draw_curves(right, by_alpha, "alpha")
        left.set_title(f"Rank: the change to learn has rank {true_rank}", loc="left", fontsize=10)
        right.set_title(f"Alpha, at rank {true_rank}", loc="left", fontsize=10)
        left.set_ylabel("Error left, share of the start")
        left.set_ylim(0, 1.12)
        enough = [r for r, errors in by_rank.items() if errors[-1] < 0.05]
        fastest = min(by_alpha, key=lambda alpha: sum(by_alpha[alpha]))
        title = (
            f"Rank sets how much can be learned (enough here: {min(enough, default='none')}); "
            f"alpha sets how fast (fastest here: {fastest:g})"
        )
        ends = ", ".join(f"r={r}: {errors[-1]:.2f}" for r, errors in by_rank.items())
        alphas = ", ".join(f"alpha={a:g}: {errors[-1]:.2f}" for a, errors in by_alpha.items())
        return finish(figure, title, f"{title}. Error left at the end, {ends}; {alphas}.")


def plot_methods(results: Mapping[str, Trial]) -> Figure:
    """Draw what each method gained on held-out answers, beside how many parameters it trained.

    Args:
        results: From `methods.try_methods`.
    """
    with styled():
        figure = new_figure(height=0.42 * len(results) + 1.6)
        gain, size = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [3, 2]})
        names = sorted(results, key=lambda name: -results[name].heldout.delta)
        for row, name in enumerate(names):
            trial = results[name]
            low, high = trial.heldout.ci95
            colour = TUNED if high < 0 else (HARM if low > 0 else MUTED)
            gain.plot([low, high], [row, row], color=INK, linewidth=1.4)
            gain.plot(trial.heldout.delta, row, "o", color=colour, markersize=8)
            size.barh(row, 100 * trial.share, height=0.55, color=BASE)
            shown = f"{_percent(trial.share)}  ({trial.trainable:,})"
            size.annotate(
                shown, (100 * trial.share, row), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8.5, color=MUTED,
            )  # fmt: skip
        gain.axvline(0, color=MUTED, linewidth=1)
        gain.set_yticks(range(len(names)), names)
        gain.set_xlabel("Change of held-out loss, nats per token (95 % interval)")
        size.set_xscale("log")
        shares = [100 * trial.share for trial in results.values()]
        size.set_xlim(min(shares) / 3, max(shares) * 100)
        size.set_xticks([])  # the bars are labelled
        size.minorticks_off()
        size.set_xlabel("Trained parameters, % of all (log scale)")
        size.tick_params(axis="y", length=0)
        gain.grid(axis="x")
        best, least = names[-1], min(results, key=lambda name: results[name].share)
        gained = f"{signed(results[best].heldout.delta, 2)} nats per token"
        title = (
            f"{best} lowered the loss most ({gained}); {least} trained least "
            f"({_percent(results[least].share)} of all parameters)"
        )
        told = "; ".join(
            f"{name} {results[name].heldout.delta:+.2f} with {results[name].trainable:,}"
            for name in names
        )
        return finish(figure, title, f"{title}. Change of loss and trained parameters: {told}.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _draw_curves(axes: Axes, curves: Mapping[float, Sequence[float]], name: str) -> None:
    shades = dict(zip(curves, (BASE, "#5aa9d6", TUNED, INK, HARM), strict=False))
    above = -1.0
    for value in sorted(curves, key=lambda value: (curves[value][-1], sum(curves[value]))):
        errors = smooth(curves[value])
        axes.plot(range(len(errors)), errors, color=shades[value], linewidth=2)
        above = max(errors[-1], above + 0.06, 0.02)  # labels apart
        axes.annotate(
            f"{name}={value:g}", (len(errors) - 1, above), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9, color=shades[value],
            annotation_clip=False,
        )  # fmt: skip
    longest = max(len(errors) for errors in curves.values())
    axes.set_xlim(0, longest * 1.28)
    axes.set_xticks([step for step in axes.get_xticks() if 0 <= step <= longest])
    axes.set_xlabel("Optimizer step")
    axes.grid(axis="y")
