"""Figures of labels: findings in the titles, nothing clipped, no text over other text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_plots import drawn_texts, on_axis, title_of  # type: ignore[import-not-found]

from sftkit import plots_labels
from sftkit.errors import RecordError
from sftkit.evidence.labels import evaluate_labels
from sftkit.label_records import LabelReport, Measure
from sftkit.panels import alt_text


def made_report(names, *, items=600, skill=1.5, groups=60) -> LabelReport:
    """Measure made-up scores; the tuned model is better than tf-idf, which is better than base."""
    random = np.random.default_rng(0)
    count = len(names)
    shares = np.arange(count, 0, -1) / np.arange(count, 0, -1).sum()
    targets = random.choice(count, size=items, p=shares)

    def scores(favour):
        raw = random.normal(size=(items, count))
        raw[np.arange(items), targets] += favour
        return np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)

    return evaluate_labels(
        targets, scores(skill), task="classify", classes=names, resamples=200,
        groups=[str(number % groups) for number in range(items)],
        baselines={
            "majority": np.tile(shares, (items, 1)),
            "tf-idf": scores(0.7 * skill),
            "base": scores(0.0),
        },
    )  # fmt: skip


def number_report() -> LabelReport:
    random = np.random.default_rng(0)
    true = random.gamma(3, 2, size=300)
    return evaluate_labels(
        true, 0.8 * true + 1 + random.normal(size=300), task="regress", resamples=200,
        groups=[str(number // 3) for number in range(300)],
        baselines={"mean": np.full(300, true.mean()), "tf-idf": 0.99 * true},
    )  # fmt: skip


REPORTS: dict[str, Callable[[], LabelReport]] = {
    "two": lambda: made_report(("irrelevant", "relevant")),
    "few": lambda: made_report(("no", "yes"), items=40, groups=6),
    "five": lambda: made_report(("delivery", "refund", "a $name_{ that goes on and on", "x", "y")),
    "many": lambda: made_report(tuple(f"Diseases of the organ {n}" for n in range(30)), items=2000),
    "numbers": number_report,
}
DRAW: dict[str, Callable[[LabelReport], Figure]] = {
    "baselines": plots_labels.plot_against_baselines,
    "classes": plots_labels.plot_classes,
    "confusion": plots_labels.plot_confusion,
    "thresholds": plots_labels.plot_thresholds,
    "predicted": lambda report: plots_labels.plot_predicted(report, unit="days"),
}
CASES = [
    *itertools.product(("two", "few"), ("baselines", "classes", "confusion", "thresholds")),
    *itertools.product(("five", "many"), ("baselines", "classes", "confusion")),
    *itertools.product(("numbers",), ("baselines", "predicted")),
]


@pytest.mark.parametrize(("report", "name"), CASES)
def test_no_text_leaves_the_figure_or_lies_over_another(report, name):
    figure = DRAW[name](REPORTS[report]())
    boxes = [(t.get_text(), t.get_window_extent()) for t in drawn_texts(figure)
             if on_axis(t, figure)]  # fmt: skip
    whole = figure.bbox
    for words, box in boxes:
        assert box.x0 > -0.5, words
        assert box.y0 > -0.5, words
        assert box.x1 < whole.width + 0.5, words
        assert box.y1 < whole.height + 0.5, words
    for (one, box), (other, another) in itertools.combinations(boxes, 2):
        across = min(box.x1, another.x1) - max(box.x0, another.x0)
        upward = min(box.y1, another.y1) - max(box.y0, another.y0)
        assert min(across, upward) <= 1, (one, other)


def test_titles_state_the_finding():
    report = REPORTS["two"]()
    titles = {name: title_of(DRAW[name](report)) for name in [*DRAW][:4]}
    assert titles == {
        "baselines": "Macro-F1 0.851 against 0.753 for tf-idf: better (+0.098, 95 % interval "
        "+0.057 to +0.138)",
        "classes": "F1 is lowest for relevant (0.81), highest for irrelevant (0.89)",
        "confusion": "516 of 600 right; most often irrelevant is taken for relevant (48 times)",
        "thresholds": "At threshold 0.50, recall of relevant is 0.84, precision 0.79",
    }
    gain = report.gain("macro_f1", "tf-idf")
    assert gain.delta == pytest.approx(0.098, abs=5e-4)


def test_titles_follow_the_numbers_when_they_turn():
    worse = made_report(("no", "yes"), skill=-1.0)
    assert ": worse (" in title_of(plots_labels.plot_against_baselines(worse))
    same = title_of(plots_labels.plot_against_baselines(made_report(("no", "yes"), skill=0.0)))
    assert ": no difference shown (" in same
    few = title_of(plots_labels.plot_against_baselines(REPORTS["few"]()))
    assert few.endswith("for tf-idf: too little to give an interval")


def test_a_gain_is_blue_a_loss_orange_and_the_rest_grey():
    def dot(report):
        figure = plots_labels.plot_against_baselines(report)
        lines = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
        return lines[1].get_color()  # macro-F1

    colors = [dot(made_report(("no", "yes"), skill=skill)) for skill in (2.0, -1.0, 0.0)]
    assert colors == ["#0072b2", "#c04a00", "#59606a"]
    assert dot(number_report()) == "#c04a00"  # a larger error is a loss


def test_alt_text_tells_the_same_numbers():
    report = REPORTS["two"]()
    confusion = alt_text(plots_labels.plot_confusion(report))
    assert confusion.endswith("irrelevant: 332, 48; relevant: 36, 184.")
    assert report.confusion == ((332, 48), (36, 184))
    baselines = alt_text(plots_labels.plot_against_baselines(report))
    assert "macro-F1: tuned 0.85, majority 0.39, tf-idf 0.75, base" in baselines
    assert baselines.endswith("600 test items in 60 groups.")
    many = alt_text(plots_labels.plot_classes(REPORTS["many"]()))
    assert many.endswith("6 rarer classes are not drawn.")


def test_a_figure_says_what_it_cannot_draw():
    classes, numbers = REPORTS["five"](), number_report()
    with pytest.raises(RecordError, match="no curve of thresholds"):
        plots_labels.plot_thresholds(classes)
    with pytest.raises(RecordError, match="it is of classes"):
        plots_labels.plot_predicted(classes)
    with pytest.raises(RecordError, match="it is of numbers"):
        plots_labels.plot_confusion(numbers)
    alone = evaluate_labels([0.0, 1.0], np.array([0.1, 0.9]), task="regress", groups=["a", "b"])
    with pytest.raises(RecordError, match="no baseline"):
        plots_labels.plot_against_baselines(alone)


def test_errors_of_small_and_large_numbers_keep_three_digits():
    small = Measure(name="mae", value=0.000123, ci95=(0.0000412, 0.000234))
    assert plots_labels.in_interval(small) == "0.000123 [0.000041 to 0.000234]"
    large = Measure(name="rmse", value=12345.6, ci95=(12000.4, 13000.0))
    assert plots_labels.in_interval(large) == "12346 [12000 to 13000]"
    share = Measure(name="r2", value=0.000123, ci95=None)
    assert plots_labels.in_interval(share) == "0.000"


def test_figures_of_small_numbers_show_their_digits():
    true = np.arange(1.0, 41.0) * 1e-5
    report = evaluate_labels(
        true, true + 1e-6, task="regress", groups=[str(n) for n in range(40)], resamples=100,
        baselines={"mean": np.full(40, true.mean())},
    )  # fmt: skip
    figure = plots_labels.plot_against_baselines(report)
    title = title_of(figure)
    assert title.startswith("RMSE 0.000001 against 0.000115 for mean: better (−0.000114, 95 %")
    assert "RMSE: tuned 0.00000100, mean 0.000115." in alt_text(figure)
    predicted = title_of(plots_labels.plot_predicted(report))
    assert predicted.startswith("Predictions are off by 0.00000100 on average")


@pytest.mark.parametrize("name", ["classes", "confusion", "thresholds"])
def test_direction_marks_in_class_names_turn_no_words_round(name):
    report = made_report(("no\u202etfel", "yes\u2066\u200fx"), items=60, groups=20)
    figure = DRAW[name](report)
    words = [alt_text(figure), *(text.get_text() for text in drawn_texts(figure))]
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", " ".join(words))
    assert "yes□□x" in alt_text(figure)
