"""Figures of runs on several processes: rows dealt, losses overlaid, speed, memory per GPU."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sftkit.errors import SettingsError
from sftkit.memory import MemoryEstimate
from sftkit.panels import BASE, INK, MUTED, SIZE, TUNED, finish, new_figure, styled
from sftkit.records import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHT = "#56b4e9"
# Grey is what comes with the base model, blue what is trained, light blue what a step needs.
_PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "program": (("overhead",), "#d5d8dd"),
    "weights": (("weights", "loading"), BASE),
    "adapter, gradients, optimizer": (("adapter", "gradients", "optimizer"), TUNED),
    "activations, logits": (("activations", "logits", "allocator"), _LIGHT),
}


def plot_dealt(
    lengths: Sequence[int], supervised: Sequence[int], hands: Sequence[Sequence[int]]
) -> Figure:
    """Draw one step's rows as blocks, each in the bar of the process it is dealt to.

    Args:
        lengths: Tokens of every row of the step, shape (B,).
        supervised: Supervised tokens of every row, shape (B,).
        hands: Places of the rows that each process gets, such as from `batching.deal`.
    """
    tokens = [sum(lengths[place] for place in hand) for hand in hands]
    learned = [sum(supervised[place] for place in hand) for hand in hands]
    with styled():
        figure = new_figure(height=1.6 + 0.75 * len(hands))
        axes = figure.subplots()
        for process, hand in enumerate(hands):
            start = 0
            for place in hand:
                answer = supervised[place]
                axes.barh(
                    [process], [lengths[place]], left=start, height=0.7, color="#d5d8dd",
                    edgecolor="white", linewidth=1.5,
                )  # fmt: skip
                axes.barh(
                    [process], [answer], left=start + lengths[place] - answer, height=0.7,
                    color=TUNED, edgecolor="white", linewidth=1.5,
                )  # fmt: skip
                start += lengths[place]
            axes.text(
                start + 0.01 * max(tokens), process, f"{len(hand)} rows\n{start} tokens\n"
                f"{learned[process]} supervised", va="center", color=INK, fontsize=9,
            )  # fmt: skip
        axes.set_yticks(range(len(hands)), [f"Process {number}" for number in range(len(hands))])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(hands) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * max(tokens))
        axes.set_xlabel("Tokens, a block per row (blue: supervised; grey: read, not learned from)")
        title = (
            f"{len(lengths)} rows dealt to {len(hands)} processes: {_listed(tokens)} tokens, "
            f"of them {_listed(learned)} supervised"
        )
        return finish(figure, title, f"{title}.")


def plot_same_losses(runs: Mapping[str, Sequence[Step]]) -> Figure:
    """Draw two runs' losses over each other, and below how far each step's differ.

    Args:
        runs: Two runs' steps by name; the first is drawn wide and grey.

    Raises:
        SettingsError: These are not two runs of the same number of steps.
    """
    lengths = [len(steps) for steps in runs.values()]
    if len(lengths) != 2 or len(set(lengths)) != 1 or not lengths[0]:
        raise SettingsError(f"Two runs of equally many steps can be compared, got {lengths} steps.")
    (first, one), (second, other) = runs.items()
    apart = [abs(a.loss - b.loss) for a, b in zip(one, other, strict=True)]
    numbers = [step.step for step in one]
    with styled():
        figure = new_figure(height=SIZE[1] + 0.3)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        above.plot(numbers, [s.loss for s in one], color=BASE, linewidth=7, alpha=0.55)
        above.plot(numbers, [s.loss for s in other], "o-", color=TUNED, linewidth=1.8)
        # Losses fall, so that the upper right corner is free.
        above.text(
            0.99, 0.92, f"grey, wide: {first}", color=MUTED, transform=above.transAxes, ha="right"
        )
        above.text(0.99, 0.8, f"blue: {second}", color=TUNED, transform=above.transAxes, ha="right")
        above.set_ylim(0, 1.12 * max(step.loss for step in [*one, *other]))
        above.set_ylabel("Loss,\nnats per token")
        below.bar(numbers, [value * 1e6 for value in apart], color=INK, width=0.5)
        below.set_ylim(0, max(1.0, 1.15e6 * max(apart)))
        if not max(apart):
            below.text(
                0.5,
                0.5,
                "no difference at any step",
                transform=below.transAxes,
                ha="center",
                va="center",
                color=MUTED,
            )
        below.set_ylabel("Difference,\nmillionths")
        below.set_xlabel("Optimizer step")
        below.locator_params(axis="x", integer=True)
        for axes in (above, below):
            axes.grid(axis="y")
        same = "are equal bit for bit" if not max(apart) else f"differ by {max(apart):.1e} at most"
        title = f"{second} and {first}: the losses of {len(one)} steps {same}"
        told = ", ".join(f"{s.step}: {s.loss:.4f}" for s in other)
        return finish(figure, title, f"{title}. Loss of {second} by step {told}.")


def plot_scaling(runs: Mapping[tuple[int, int], Sequence[Step]]) -> Figure:
    """Draw how many times as fast each run is as one process on one core: its steps, their median.

    Args:
        runs: Steps by (processes, threads of each), as for `speed_gains`.

    Raises:
        SettingsError: There is nothing to compare with.
    """
    gains = speed_gains(runs)
    middle = {name: statistics.median(each) for name, each in gains.items()}
    most = max(gain for each in gains.values() for gain in each)
    with styled():
        figure = new_figure(height=1.7 + 0.75 * len(runs))
        axes = figure.subplots()
        for row, (name, each) in enumerate(gains.items()):
            axes.barh([row], [middle[name]], height=0.6, color=BASE if name[0] == 1 else TUNED)
            axes.plot(each, [row] * len(each), "o", color=INK, markersize=3.5, alpha=0.55)
            axes.text(max(each) + 0.02 * most, row, f"× {middle[name]:.2f}", va="center", color=INK)
        axes.axvline(1, color=INK, linewidth=1, zorder=0)
        axes.set_yticks(range(len(runs)), [_in_words(*name) for name in runs])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, 1.15 * most)
        axes.set_xlabel("Times as fast as 1 process on 1 core (dots: steps; bar: their median)")
        axes.grid(axis="x")
        title = "; ".join(
            f"{_in_words(*name)}: {gain:.2f} times as fast as one core"
            for name, gain in middle.items()
            if name != (1, 1)
        )
        told = "; ".join(
            f"{_in_words(*name)} {', '.join(f'{gain:.2f}' for gain in each)}"
            for name, each in gains.items()
        )
        return finish(figure, title, f"{title}. By step: {told}.")


def speed_gains(
    runs: Mapping[tuple[int, int], Sequence[Step]],
) -> dict[tuple[int, int], list[float]]:
    """Compare the time of every step with that of the same rows in one process on one core.

    The first step of a run is left out: it also sets things up.

    Args:
        runs: Steps by (processes, threads of each), all of one recipe; (1, 1) among them.

    Returns:
        How many times as fast each step was, by run.

    Raises:
        SettingsError: There is nothing to compare with.
    """
    if (1, 1) not in runs or len({len(steps) for steps in runs.values()} | {0, 1}) != 3:
        raise SettingsError(
            "Speeds are compared with those of 1 process on 1 core, step by step from the second "
            "on. Give runs[1, 1], and as many steps, two or more, of each; got "
            f"{ {name: len(steps) for name, steps in runs.items()} }."
        )
    seconds = {
        name: [after.seconds - before.seconds for before, after in pairwise(steps)]
        for name, steps in runs.items()
    }
    return {
        name: [alone / own for alone, own in zip(seconds[1, 1], each, strict=True)]
        for name, each in seconds.items()
    }


def plot_split(groups: Mapping[str, Mapping[str, MemoryEstimate]]) -> Figure:
    """Draw the memory of one GPU by what its processes split.

    Args:
        groups: Estimates by the name of the strategy, by what is trained; in the order to draw.
    """
    rows = [(group, name, one) for group, of in groups.items() for name, one in of.items()]
    most = max(one.total for _, _, one in rows) / 1e9
    with styled():
        figure = new_figure(height=1.7 + 0.36 * (len(rows) + len(groups)))
        axes = figure.subplots()
        places, place, words = [], -1.0, []
        for number, (group, name, one) in enumerate(rows):
            begins = not number or rows[number - 1][0] != group
            place += 2.0 if begins else 1.0  # room for the name of the group
            places.append(place)
            words.append(f"{group}, {name}: {_draw_parts(axes, place, one, named=not number)}.")
            axes.text(one.total / 1e9 + 0.01 * most, place, f"{one.total / 1e9:.1f}", va="center")
            if begins:
                axes.text(0.3, place - 0.85, group, va="center", color=INK, weight="bold")
        axes.set_yticks(places, [name for _, name, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(place + 0.6, -0.5)
        axes.set_xlim(0, 1.1 * most)
        axes.set_xlabel("Memory of each GPU at its peak, GB (formulas and division, not measured)")
        axes.grid(axis="x")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False,
            fontsize=9, labelcolor=MUTED,
        )  # fmt: skip
        title = "; ".join(_least(group, of) for group, of in groups.items())
        return finish(figure, title, f"{title}. {' '.join(words)}")


def _draw_parts(axes: Axes, place: float, one: MemoryEstimate, *, named: bool) -> str:
    start, words = 0.0, []
    for part, (names, colour) in _PARTS.items():
        size = sum(one.components[name] for name in names) / 1e9
        axes.barh(
            [place], [size], left=start, height=0.72, color=colour, edgecolor="white",
            linewidth=0.8, label=part if named else None,
        )  # fmt: skip
        start += size
        words.append(f"{part} {size:.1f} GB")
    return ", ".join(words)


def _least(group: str, of: Mapping[str, MemoryEstimate]) -> str:
    first, last = next(iter(of.values())), min(of.values(), key=lambda one: one.total)
    which = next(name for name, one in of.items() if one is last)
    return f"{group}: {first.total / 1e9:.0f} GB alone, {last.total / 1e9:.0f} GB with {which}"


def _in_words(processes: int, threads: int) -> str:
    first = f"{processes} processes" if processes > 1 else "1 process"
    cores = f"{threads} cores" if threads > 1 else "1 core"
    return f"{first}, {cores}{' each' if processes > 1 else ''}"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
