"""Figures of calibration and fairness: findings in the titles, nothing clipped or overlapping."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_plots import drawn_texts, on_axis, title_of  # type: ignore[import-not-found]

from sftkit.errors import RecordError
from sftkit.evidence.calibration import Answered, measure_calibration
from sftkit.evidence.shares import wilson_interval
from sftkit.evidence_records import BehaviourResult, Calibration, FairnessGap
from sftkit.panels import alt_text
from sftkit.plots_checks import (
    plot_behaviour,
    plot_fairness,
    plot_mitigation,
    plot_reliability,
    plot_selective,
)


def made_calibration(items=600, *, times=3.0, validation=True) -> Calibration:
    def answered(seed, prefix):
        random = np.random.default_rng(seed)
        logits = random.normal(scale=1.5, size=(items, 3))
        true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = (true.cumsum(axis=1) < random.random((items, 1))).sum(axis=1).clip(0, 2)
        said = np.exp(times * logits)
        return Answered(
            probabilities=said / said.sum(axis=1, keepdims=True),
            targets=targets,
            groups=tuple(f"{prefix}{n}" for n in range(items)),
        )

    held = answered(1, "v") if validation else None
    return measure_calibration(answered(0, "t"), validation=held, resamples=400)


def gap(**changes) -> FairnessGap:
    plain = FairnessGap(
        name="probability of granted", attribute="gender", groups=("male", "female"),
        value=0.021, ci95=(-0.01, 0.05), items=200, p_value=0.4,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


GAPS = {
    "none": [gap(), gap(attribute="name", groups=("white-sounding", "Black-sounding"))],
    "found": [
        gap(name="predicted class changes", value=0.01, ci95=(0.002, 0.04), p_value=None),
        gap(value=-0.083, ci95=(-0.12, -0.05), p_value=0.0006),
        gap(attribute="wino", name="stereotype likelier", groups=("anti-stereotype", "stereotype"),
            value=0.2, ci95=(0.12, 0.29), p_value=0.002, base=0.14),
        gap(attribute="wino", name="margin, tuned minus base", groups=("base", "tuned"),
            value=0.0123, ci95=(-0.001, 0.021), p_value=0.06, unit="nats per token"),
    ],
    "many": [gap(name=f"probability of class $number_{{ {n}", p_value=n / 40) for n in range(30)],
}  # fmt: skip


def behaved(name: str, failures: int, cases: int, allowed: float = 0.1) -> BehaviourResult:
    return BehaviourResult(
        name=name, capability="robustness", kind="invariance", cases=cases, failures=failures,
        ci95=wilson_interval(failures, cases), allowed=allowed,
    )  # fmt: skip


BEHAVED = [
    behaved("Typos change no topic", 0, 50),
    behaved("A sentence beside the point changes no topic at all, whatever it says", 40, 50),
    behaved("Few $cases_{", 1, 12),
]
BEFORE = [
    gap(value=-0.3, ci95=(-0.4, -0.2), p_value=0.001),
    gap(name="accuracy", value=-0.1, ci95=(-0.2, -0.02), p_value=0.01),
    gap(name="only before"),
]
AFTER = [gap(value=-0.02, ci95=(-0.05, 0.01)), gap(name="accuracy", value=0.01)]
FIGURES: dict[str, Callable[[], Figure]] = {
    "two": lambda: plot_reliability(made_calibration()),
    "one": lambda: plot_reliability(made_calibration(60, validation=False)),
    "behaviour": lambda: plot_behaviour(BEHAVED),
    "mitigation": lambda: plot_mitigation(BEFORE, AFTER, remedy="reweighed"),
    "selective": lambda: plot_selective(made_calibration()),
    **{name: functools.partial(plot_fairness, gaps) for name, gaps in GAPS.items()},
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_figure_or_lies_over_another(name):
    figure = FIGURES[name]()
    boxes = [(t.get_text(), t.get_window_extent()) for t in drawn_texts(figure)
             if on_axis(t, figure)]  # fmt: skip
    whole = figure.bbox
    for text, box in boxes:
        assert box.x0 >= whole.x0 - 1, text
        assert box.x1 <= whole.x1 + 1, text
        assert box.y0 >= whole.y0 - 1, text
        assert box.y1 <= whole.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_titles_state_the_finding_and_alt_texts_hold_every_number():
    calibration = made_calibration()
    figure = plot_reliability(calibration)
    assert title_of(figure).startswith("Confidence is")
    assert f"points above accuracy: ECE {calibration.ece:.3f}" in title_of(figure)
    assert f"{calibration.bins[0].confidence:.2f}: " in alt_text(figure)
    fine = plot_reliability(made_calibration(60, times=1.0, validation=False))
    assert title_of(fine).startswith("No fault in confidence shown")
    found = plot_fairness(GAPS["found"])
    assert title_of(found).startswith("2 of 3 gaps are more than chance; the surest: gender, prob")
    assert "wino, stereotype likelier: +20.0 points [+12.0 to +29.0], p 0.002" in alt_text(found)
    assert "30 tested" in title_of(plot_fairness([gap()] * 30))
    assert "14 further gaps are not drawn" in alt_text(plot_fairness(GAPS["many"]))


def test_the_selective_figure_says_what_half_the_answers_are_worth():
    calibration = made_calibration()
    (half,) = (accuracy for coverage, accuracy in calibration.selective if coverage == 0.5)
    title = title_of(plot_selective(calibration))
    assert title.startswith(f"Answering only the most confident 50%: {half:.1%} right")


def test_behaviour_and_a_remedy_are_told_with_every_number():
    figure = plot_behaviour(BEHAVED)
    assert title_of(figure) == "1 of 3 behaviour tests pass, 1 fail, 1 undecided"
    assert "Few $cases_{: Undecided, too few cases to tell: 1 of 12 cases" in alt_text(figure)
    figure = plot_mitigation(BEFORE, AFTER, remedy="reweighed")
    assert title_of(figure) == "Gaps shown to be more than chance: 2 of 2; reweighed: 0"
    assert alt_text(figure).endswith(
        "probability of granted: −30.0 points [−40.0 to −20.0], then −2.0 points [−5.0 to +1.0]; "
        "accuracy: −10.0 points [−20.0 to −2.0], then +1.0 points [−1.0 to +5.0]."
    )


def test_nothing_to_draw_is_said():
    with pytest.raises(RecordError, match="no behaviour tests"):
        plot_behaviour([])
    with pytest.raises(RecordError, match="both before and after"):
        plot_mitigation(BEFORE, [gap(name="other")], remedy="reweighed")
    with pytest.raises(RecordError, match="no gaps to draw"):
        plot_fairness([])
    with pytest.raises(RecordError, match="no pairs of coverage"):
        plot_selective(dataclasses.replace(made_calibration(60), selective=()))
