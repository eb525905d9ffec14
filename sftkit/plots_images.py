"""Figures of images, and of what adapting to new ones costs on the old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.errors import RecordError
from sftkit.label_records import Measure
from sftkit.panels import (
    HARM,
    INK,
    MUTED,
    TUNED,
    finish,
    new_figure,
    plain_label,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 10


def plot_images(
    images: Sequence[Any], captions: Sequence[str], *, title: str, wrong: Sequence[int] = ()
) -> Figure:
    """Draw images in rows of ten, each with its caption.

    Args:
        images: PIL images, or pixels of shape (C, H, W) or (H, W), scaled in any way.
        captions: One for each image.
        title: What is to be seen.
        wrong: Places of images whose caption is a mistake, drawn in orange.

    Raises:
        RecordError: There is no image, or not one caption for each.
    """
    import numpy as np

    if not images or len(images) != len(captions):
        raise RecordError(f"{len(images)} images need as many captions, got {len(captions)}.")
    across = min(_ACROSS, len(images))
    down = -(-len(images) // across)
    with styled():
        figure = new_figure(height=0.7 + 0.85 * down)
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            pixels = np.asarray(image, dtype=float)
            if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
                pixels = pixels.transpose(1, 2, 0)
            spread = pixels.max() - pixels.min()
            axes = grid[divmod(place, across)]
            axes.imshow((pixels - pixels.min()) / (spread or 1), cmap="gray", vmin=0, vmax=1)
            is_wrong = place in wrong
            color, weight = (HARM, "bold") if is_wrong else (INK, "normal")
            axes.set_title(plain_label(caption), fontsize=8.5, color=color, weight=weight, pad=3)
        words = ", ".join(captions)
        return finish(figure, title, f"{title} {len(images)} images with the captions {words}.")


def plot_replay(kept: Mapping[float, tuple[Measure, Measure]], *, names: tuple[str, str]) -> Figure:
    """Draw what two tests say for each share of replayed examples.

    Args:
        kept: By share, from 0 to 1: the same measure on what was adapted to, and on what was known
            before; both in 0..1.
        names: What the two tests are called, such as ("new digits", "old digits").

    Raises:
        RecordError: Nothing was measured, or a measure is not defined.
    """
    if not kept or any(one.value is None for pair in kept.values() for one in pair):
        raise RecordError("plot_replay needs one or more shares, and a value for each measure.")
    shares = sorted(kept)
    with styled():
        figure = new_figure(height=3.9)
        axes = figure.subplots()
        ends = []
        for which, (name, color) in enumerate(zip(names, (TUNED, HARM), strict=True)):
            measures = [kept[share][which] for share in shares]
            values = [100 * (one.value or 0.0) for one in measures]
            axes.plot(range(len(shares)), values, "o-", color=color, linewidth=2, markersize=7)
            for place, one in enumerate(measures):
                if one.ci95 is not None:
                    low, high = (100 * edge for edge in one.ci95)
                    axes.plot([place, place], [low, high], color=color, linewidth=1.4)
            ends.append((values[-1], name, color))
            below = values[0] < 50 or which
            axes.annotate(
                f"{values[0]:.1f} %", (0, values[0]), xytext=(9, -4 if below else 4),
                textcoords="offset points", va="top" if below and values[0] > 20 else "bottom",
                color=color, fontsize=9,
            )  # fmt: skip
        # The names stand at the right end, one above the other however close the lines are.
        ends.sort(key=lambda end: end[0])
        for turn, (value, name, color) in enumerate(ends):
            axes.annotate(
                f"{name}: {value:.1f} %", (len(shares) - 1, value),
                xytext=(10, -11 if turn == 0 else 5), textcoords="offset points",
                va="center", color=color, weight="bold", fontsize=9.5,
            )  # fmt: skip
        axes.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
        axes.set_xlim(-0.25, len(shares) - 0.25)
        axes.set_ylim(0, 104)
        axes.grid(axis="y")
        axes.set_ylabel("Right, % (lines: 95 % interval)")
        axes.set_xlabel("Share of replayed examples in training")
        axes.tick_params(axis="x", labelcolor=MUTED)
        first, last = ((kept[share][1].value or 0.0) for share in (shares[0], shares[-1]))
        title = f"Replay keeps the {names[1]}: {first:.1%} right without, {last:.1%} with the most"
        each = "; ".join(
            f"{share:.0%} replayed: {names[0]} {kept[share][0].value:.1%}, "
            f"{names[1]} {kept[share][1].value:.1%}"
            for share in shares
        )
        return finish(figure, title, f"{title}. {each}.")
