"""Figures: findings in the titles, nothing clipped, no text over other text, no mathtext."""

from __future__ import annotations

import dataclasses
import itertools
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from sample_record import (  # type: ignore[import-not-found]
    FORGOT,
    HOSTILE,
    LEARNED,
    extreme_record,
    hostile_record,
    recognition_record,
    sample_record,
    still_record,
    unmeasured_record,
)

from sftkit import plots
from sftkit.evidence_records import Drift
from sftkit.panels import smooth
from sftkit.records import Forgot, Learned, RunRecord, TrainRecord

RECORDS: dict[str, Callable[[], RunRecord]] = {
    "learned": sample_record,
    "recognised": recognition_record,
    "unmeasured": unmeasured_record,
    "still": still_record,
    "extreme": extreme_record,
    "mathtext": lambda: hostile_record("$a_{$"),
    "long": lambda: hostile_record("a name that goes on and on_" * 9),
    "unprintable": lambda: hostile_record(HOSTILE[11]),
}
FIGURES: dict[str, Callable[[RunRecord], Figure]] = {
    "training": lambda run: plots.plot_training(run.training),
    "learned": lambda run: plots.plot_learned(run.learned),
    "forgot": lambda run: plots.plot_forgot(run.forgot),
    "overview": plots.plot_overview,
    "supervised": lambda run: plots.plot_supervised_share(run.preflight),
}


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def drawn_texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    texts = (text for text in figure.findobj(Text) if isinstance(text, Text))
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


def on_axis(text: Text, figure: Figure) -> bool:
    """Say whether a tick label lies within its axis; matplotlib keeps spare ones outside."""
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in axis.get_major_ticks():
                if text in (tick.label1, tick.label2):
                    inside = min(low, high) <= tick.get_loc() <= max(low, high)
                    return inside and text.get_visible()
    return True


CASES = [
    (name, record)
    for name, record in itertools.product(FIGURES, RECORDS)
    # The other figures draw no text from data.
    if name in ("forgot", "overview") or record not in ("mathtext", "long", "unprintable")
]


@pytest.mark.parametrize(("name", "record"), CASES)
def test_no_text_leaves_the_figure_or_lies_over_another(name, record):
    figure = FIGURES[name](RECORDS[record]())
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in drawn_texts(figure)
        if on_axis(text, figure)
    ]
    outside = [
        words
        for words, box in boxes
        if box.x0 < -0.5
        or box.y0 < -0.5
        or box.x1 > figure.bbox.width + 0.5
        or box.y1 > figure.bbox.height + 0.5
    ]
    assert outside == []
    crossing = [
        (one, other)
        for (one, box), (other, another) in itertools.combinations(boxes, 2)
        if min(box.x1, another.x1) - max(box.x0, another.x0) > 1
        and min(box.y1, another.y1) - max(box.y0, another.y0) > 1
    ]
    assert crossing == []


def test_titles_state_the_finding():
    run = sample_record()
    assert {name: title_of(draw(run)) for name, draw in FIGURES.items()} == {
        "training": "Held-out loss fell from 3.39 to 0.60 nats per token in 113 steps.",
        "learned": "63 of 72 unseen phrasings answered exactly (0 before); held-out loss fell by "
        "2.97 nats per token [−3.21 to −2.74].",
        "forgot": "Loss on general text rose by 0.58 nats per token [+0.55 to +0.61]; accuracy "
        "fell by 3.0 points [−5.8 to −0.2] on 600 questions.",
        "overview": run.verdicts.summary,
        "supervised": "31 % of 20,412 tokens in 384 examples are learned from.",
    }


def test_titles_follow_the_numbers_when_they_turn():
    worse = dataclasses.replace(LEARNED.heldout_loss, after=3.5, delta=0.11, ci95=(0.02, 0.2))
    unclear = dataclasses.replace(LEARNED.heldout_loss, after=3.4, delta=0.01, ci95=(-0.1, 0.12))
    assert title_of(plots.plot_learned(Learned(heldout_loss=worse))) == (
        "Held-out loss rose by 0.11 nats per token [+0.02 to +0.20]."
    )
    assert title_of(plots.plot_learned(Learned(heldout_loss=unclear))) == (
        "Held-out loss changed by +0.01 nats per token [−0.10 to +0.12]."
    )
    zero = Drift(before=3.2, after=3.2, delta=0.0, ci95=(0.0, 0.0), passages=100, tokens=9000)
    assert title_of(plots.plot_forgot(Forgot(drift=zero))) == (
        "Loss on general text changed by 0.00 nats per token [0.00 to 0.00]."
    )


def test_harm_is_orange_only_where_it_reaches_past_the_margin():
    def dot(drift: Drift) -> str:
        figure = plots.plot_forgot(Forgot(drift=drift))
        lines = [line for axes in figure.axes for line in axes.lines]
        return next(str(line.get_color()) for line in lines if line.get_marker() == "o")

    assert FORGOT.drift is not None
    within = dataclasses.replace(FORGOT.drift, delta=0.04, ci95=(0.03, 0.05))
    better = dataclasses.replace(FORGOT.drift, delta=-0.2, ci95=(-0.3, -0.1))
    colors = (dot(FORGOT.drift), dot(within), dot(better))
    assert colors == ("#c04a00", "#59606a", "#0072b2")


def test_alt_text_tells_the_same_numbers():
    assert plots.alt_text(plots.plot_forgot(FORGOT)).startswith(
        "Loss on general text rose by 0.58 nats per token [+0.55 to +0.61]; accuracy fell by 3.0 "
        "points [−5.8 to −0.2] on 600 questions. piqa: accuracy changed by −2.0 points (95 % "
        "interval −5.5 to +1.5, 200 questions)."
    )
    assert "88" not in plots.alt_text(plots.plot_learned(Learned()))


def test_text_from_data_is_never_mathtext(tmp_path):
    run = hostile_record("$a_{$")
    figure = plots.plot_overview(run)
    assert title_of(figure) == "$a_{$"
    assert not any(text.get_parse_math() for text in drawn_texts(figure))
    assert plots.save_figure(figure, tmp_path / "plots" / "x.png").read_bytes()[1:4] == b"PNG"


def test_a_run_without_steps_has_a_figure_too():
    nothing = TrainRecord(
        steps=(), heldout_start=3.2, kept_step=0, tokens=0, supervised_tokens=0, seconds=0.0,
        trainable_parameters=1, total_parameters=2,
    )  # fmt: skip
    figure = plots.plot_training(nothing, total_steps=40)
    assert title_of(figure) == "0 optimizer steps so far: no curve yet."
    assert figure.axes[0].get_xlim()[1] >= 40


def test_training_shows_rate_speed_and_memory_below_its_losses_where_they_are_known():
    training = sample_record().training
    alt = plots.alt_text(plots.plot_training(training))
    assert alt.endswith(
        "below: Learning rate, peak 0.002; Tokens/s, median 254; Memory, at most 2.1 GB."
    )
    older = [dataclasses.replace(step, memory_bytes=0) for step in training.steps]
    figure = plots.plot_training(dataclasses.replace(training, steps=tuple(older)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "", "Learning rate, peak 0.002", "Tokens/s, median 254",
    ]  # fmt: skip


def test_a_run_without_held_out_losses_leaves_its_curve_the_room():
    training = sample_record().training
    steps = tuple(dataclasses.replace(step, heldout_loss=None) for step in training.steps)
    figure = plots.plot_training(dataclasses.replace(training, steps=steps, heldout_start=None))
    plots.to_png(figure)  # lays it out
    assert figure.axes[0].get_position().height > 0.4


def test_smoothing_is_the_mean_of_what_is_near_and_quick_in_a_long_run():
    values = [float(number % 7) for number in range(100)]
    assert smooth(values)[50] == pytest.approx(sum(values[45:56]) / 11)
    assert smooth(values)[0] == pytest.approx(sum(values[:6]) / 6)
    assert len(smooth([1.0] * 100_000)) == 100_000  # took minutes when each mean was summed anew


def test_a_figure_shows_itself_in_a_notebook_with_its_alt_text():
    figure: Any = plots.plot_supervised_share(sample_record().preflight)
    png, metadata = figure._repr_png_()
    assert metadata == {"alt": plots.alt_text(figure), "width": 800, "height": 190}
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (1200, 285)


def test_margins_come_from_the_recipe():
    run = sample_record(recipe={"evaluate": {"drift_margin": 0.3, "ability_margin": 0.02}})
    assert plots.margins(run) == (0.02, 0.3)
    assert plots.margins(sample_record(recipe={})) == (0.05, 0.1)


def test_matplotlib_settings_are_left_alone_and_pyplot_stays_unloaded():
    code = (
        "import sys; import sftkit.plots as p; assert 'matplotlib' not in sys.modules\n"
        "from sftkit.records import Learned\n"
        "import matplotlib; before = repr(matplotlib.rcParams.copy())\n"
        "p.to_png(p.plot_learned(Learned()))\n"
        "assert repr(matplotlib.rcParams.copy()) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
