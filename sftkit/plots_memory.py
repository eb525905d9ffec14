"""The figure of memory: what a plan's peak is made of, stacked, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sftkit.errors import SettingsError
from sftkit.memory import MemoryEstimate, in_gigabytes
from sftkit.panels import BASE, HARM, INK, MUTED, TUNED, finish, new_figure, plain_label, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Grey is what comes with the base model, blue what is trained, light blue what a step needs;
# hatching and white gaps tell neighbours apart without colour.
_PARTS: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "program": (("overhead",), "#c6cad0", ""),
    "weights": (("weights",), BASE, ""),
    "adapter, gradients, optimizer": (("adapter", "gradients", "optimizer"), TUNED, ""),
    "activations": (("activations",), "#56b4e9", ""),
    "logits": (("logits",), "#b9dff5", ""),
    "allocator, loading": (("allocator", "loading"), "white", "////"),
}
_ROOM = 0.06
"""Smallest share of the axis in which a part's size is written."""


def plot_memory(
    estimates: Mapping[str, MemoryEstimate], *, measured: Mapping[str, float] | None = None
) -> Figure:
    """Draw predicted peaks as stacked bars with their intervals, one bar per plan.

    Args:
        estimates: Predictions by the name of the plan, in the order to draw them.
        measured: Measured peaks in bytes, by the same names; drawn as diamonds.

    Raises:
        SettingsError: There is nothing to draw, or a measurement of no plan.
    """
    found = dict(measured or {})
    if not estimates or set(found) - set(estimates):
        raise SettingsError(
            f"plot_memory draws one bar per estimate, got {len(estimates)} estimates and measured "
            f"peaks of {sorted(set(found) - set(estimates))} beside them."
        )
    largest = max(*(e.high for e in estimates.values()), *found.values(), 1)
    words = []
    with styled():
        figure = new_figure(height=1.9 + 0.62 * len(estimates))
        axes = figure.subplots()
        for place, (name, one) in enumerate(estimates.items()):
            _draw_stack(axes, place, one, largest)
            line = f"{name}: predicted {in_gigabytes(one.total)}"
            if name in found:
                axes.plot([found[name] / 1e9], [place], "D", color=HARM, markersize=8, zorder=5)
                line += f", measured {in_gigabytes(found[name])}"
            parts = ", ".join(
                f"{part} {in_gigabytes(_size(one, names))}"
                for part, (names, _, _) in _PARTS.items()
            )
            interval = f"{in_gigabytes(one.low)} to {in_gigabytes(one.high)}"
            words.append(f"{line} (interval {interval}; {parts}).")
            text = f"{one.total / 1e9:.2f}"
            text += f", measured {found[name] / 1e9:.2f}" if name in found else ""
            right = max(one.high, found.get(name, 0)) / 1e9
            axes.text(right + 0.02 * largest / 1e9, place, text, va="center", color=INK)
        axes.set_yticks(range(len(estimates)), [plain_label(n, width=22) for n in estimates])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(estimates) - 0.45, -0.55)
        axes.set_xlim(0, (1.32 if found else 1.12) * largest / 1e9)
        axes.grid(axis="x")
        mark = "; orange diamond: measured" if found else ""
        axes.set_xlabel(f"Peak memory, GB (black line: interval of the prediction{mark})")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=MUTED,
        )
        title = _say_largest(estimates, found)
        return finish(figure, title, f"{title}. {' '.join(words)}")


def _draw_stack(axes: Axes, place: int, one: MemoryEstimate, largest: float) -> None:
    start = 0.0
    for part, (names, color, hatch) in _PARTS.items():
        size = _size(one, names) / 1e9
        axes.barh(
            [place],
            [size],
            left=start,
            height=0.62,
            color=color,
            hatch=hatch,
            edgecolor=MUTED if hatch else "white",
            linewidth=0.8,
            label=part if place == 0 else None,
        )
        if size * 1e9 >= _ROOM * largest:
            dark = color in (BASE, TUNED)
            axes.text(
                start + size / 2,
                place,
                f"{size:.2f}",
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if dark else INK,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.2},
            )
        start += size
    axes.plot([one.low / 1e9, one.high / 1e9], [place + 0.38] * 2, color=INK, linewidth=1.4)
    axes.plot([one.low / 1e9, one.high / 1e9], [place + 0.38] * 2, "|", color=INK, markersize=6)


def _size(one: MemoryEstimate, names: tuple[str, ...]) -> int:
    return sum(one.components[name] for name in names)


def _say_largest(estimates: Mapping[str, MemoryEstimate], found: Mapping[str, float]) -> str:
    """Say the finding: how far predictions were off, or where most of the memory goes."""
    if found:
        off = [abs(estimates[name].total / found[name] - 1) for name in found]
        inside = sum(estimates[n].low <= found[n] <= estimates[n].high for n in found)
        return (
            f"Predicted peaks were {100 * sum(off) / len(off):.0f} % off on average; "
            f"{inside} of {len(off)} measured peaks lie in their interval"
        )
    name, one = max(estimates.items(), key=lambda pair: pair[1].total)
    part = max(_PARTS, key=lambda part: _size(one, _PARTS[part][0]))
    share = _size(one, _PARTS[part][0]) / one.total
    what = f"{name} needs most, {in_gigabytes(one.total)}" if len(estimates) > 1 else (
        f"{name} needs {in_gigabytes(one.total)}"
    )  # fmt: skip
    return f"{what}; its largest part is {part} ({100 * share:.0f} %)"
