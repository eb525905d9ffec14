"""The figure of quantized loading: what each way of holding a model takes, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sftkit.errors import SettingsError
from sftkit.holdings import Holding, agreement_of, cost_of
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
    from matplotlib.figure import Figure


def plot_holdings(holdings: Mapping[str, Holding], *, reference: str) -> Figure:
    """Draw weights, change of loss on general text, and agreement, one row per way of holding.

    Args:
        holdings: Results by a name to show, in the order to draw them.
        reference: Name of the one that the others are compared with.

    Raises:
        SettingsError: The reference is not among them, or there is nothing else.
    """
    if reference not in holdings or len(holdings) < 2:
        given = ", ".join(holdings) or "nothing"
        raise SettingsError(f"plot_holdings compares others with {reference!r}, got {given}.")
    exact = holdings[reference]
    costs = {name: cost_of(one, exact) for name, one in holdings.items() if name != reference}
    places = range(len(holdings))
    words = []
    with styled():
        figure = new_figure(height=1.7 + 0.55 * len(holdings))
        left, middle, right = figure.subplots(1, 3, sharey=True)
        right.axvline(100, color=MUTED, linewidth=0.8)
        middle.axvline(0, color=INK, linewidth=0.8)
        for place, (name, one) in zip(places, holdings.items(), strict=True):
            colour = BASE if name == reference else TUNED
            size = one.weight_bytes / 1e6
            left.barh(place, size, color=colour, height=0.6)
            left.text(size, place, f" {size:.0f}", va="center", color=INK)
            if name == reference:
                continue
            cost, (tokens, answers) = costs[name], agreement_of(one, exact)
            low, high = cost.ci95
            worse = HARM if low > 0 else TUNED
            middle.plot([low, high], [place, place], color=worse, linewidth=2)
            middle.plot(cost.delta, place, "o", color=worse)
            middle.annotate(
                signed(cost.delta, 3), (cost.delta, place), xytext=(0, 7),
                textcoords="offset points", ha="center", color=INK,
            )  # fmt: skip
            right.plot([100 * tokens, 100], [place, place], color=TUNED, linewidth=2)
            right.plot(100 * tokens, place, "o", color=TUNED)
            right.annotate(
                f"{100 * tokens:.1f}", (100 * tokens, place), xytext=(0, 7),
                textcoords="offset points", ha="center", color=INK,
            )  # fmt: skip
            words.append(
                f"{name}: weights {size:.0f} MB, loss {signed(cost.delta, 3)} (95 % interval "
                f"{interval(cost.ci95, 1, 3)}), {100 * tokens:.1f} % of next tokens and "
                f"{100 * answers:.0f} % of answers as {reference}."
            )
        left.set_yticks(list(places), [plain_label(name) for name in holdings])
        left.set_ylim(len(holdings) - 0.4, -0.75)
        left.set_xlim(0, 1.25 * exact.weight_bytes / 1e6)
        for axes, label in (
            (left, "weights, MB"),
            (middle, f"loss against {reference},\nnats per token"),
            (right, f"same next token\nas {reference}, %"),
        ):
            axes.set_xlabel(label)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.2)
        smallest = min(holdings, key=lambda name: holdings[name].weight_bytes)
        title = (
            f"{smallest} takes {holdings[smallest].weight_bytes / 1e6:.0f} of "
            f"{exact.weight_bytes / 1e6:.0f} MB"
        )
        if smallest in costs:
            title += f", for {signed(costs[smallest].delta, 2)} nats per token"
        return finish(figure, title, f"{title}. {' '.join(words)}")


def plot_levels(values: Sequence[float], levels: Sequence[float]) -> Figure:
    """Draw weights, each divided by the largest of its block, and the levels they are rounded to.

    Args:
        values: Scaled weights, between -1 and 1.
        levels: Every value that can be stored.
    """
    near = sum(abs(level) < 0.5 for level in levels)
    share = sum(abs(value) < 0.5 for value in values) / len(values)
    with styled():
        figure = new_figure(height=3.2)
        axes = figure.subplots()
        axes.hist(values, bins=81, range=(-1, 1), color=BASE)
        axes.vlines(levels, 0, axes.get_ylim()[1], color=TUNED, linewidth=1.2)
        axes.set_xlim(-1.04, 1.04)
        axes.set_yticks([])
        axes.set_xlabel("weight, divided by the largest of its block (blue: the levels)")
        title = (
            f"{near} of {len(levels)} levels lie between \N{MINUS SIGN}0.5 and 0.5, as "
            f"{100 * share:.0f} % of the weights do"
        )
        said = ", ".join(f"{level:.2f}" for level in levels)
        return finish(figure, title, f"{title}. Levels: {said}.")
