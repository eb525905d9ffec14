"""Figures of images and of replay: what they show, and what their words say."""

from __future__ import annotations

import numpy as np
import pytest

from sftkit.errors import RecordError
from sftkit.label_records import Measure
from sftkit.panels import alt_text, to_png
from sftkit.plots_images import plot_images, plot_replay


def measure(value: float | None, ci95: tuple[float, float] | None = None) -> Measure:
    return Measure(name="accuracy", value=value, ci95=ci95)


def test_images_stand_in_rows_of_ten_and_mistakes_are_orange():
    images = [np.full((1, 4, 4), place / 12.0) for place in range(12)]
    figure = plot_images(images, [str(n) for n in range(12)], title="Twelve.", wrong=[3])
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 12
    assert [axes.get_title() for axes in drawn] == [str(n) for n in range(12)]
    colors = {axes.title.get_color() for place, axes in enumerate(drawn) if place != 3}
    assert len(colors) == 1
    assert drawn[3].title.get_color() not in colors
    assert "12 images with the captions 0, 1, 2" in alt_text(figure)
    assert to_png(figure)[:4] == b"\x89PNG"


def test_an_image_of_one_colour_and_a_colour_image_can_be_drawn():
    flat, colour = np.ones((8, 8)), np.random.default_rng(0).normal(size=(3, 8, 8))
    assert to_png(plot_images([flat, colour], ["$x$", "<b>"], title="Two."))[:4] == b"\x89PNG"


def test_images_without_captions_are_refused():
    with pytest.raises(RecordError, match="1 images need as many captions, got 0"):
        plot_images([np.ones((2, 2))], [], title="None.")
    with pytest.raises(RecordError, match="0 images"):
        plot_images([], [], title="None.")


def test_replay_is_said_with_every_number():
    kept = {
        0.25: (measure(0.98, (0.97, 0.99)), measure(0.95, (0.92, 0.97))),
        0.0: (measure(0.99), measure(0.1)),
    }
    figure = plot_replay(kept, names=("new images", "old images"))
    words = alt_text(figure)
    assert words.startswith("Replay keeps the old images: 10.0% right without, 95.0%")
    assert "0% replayed: new images 99.0%, old images 10.0%" in words
    assert "25% replayed: new images 98.0%, old images 95.0%" in words


def test_replay_without_a_value_is_refused():
    for kept in ({}, {0.0: (measure(None), measure(0.5))}):
        with pytest.raises(RecordError, match="one or more shares"):
            plot_replay(kept, names=("new", "old"))
