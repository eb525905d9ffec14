"""Labels are measured as scikit-learn measures them; groups are resampled; words, never NaN."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from sftkit.errors import RecordError
from sftkit.evidence.label_metrics import (
    Scored,
    draw_classes,
    draw_metrics,
    evaluate_metric,
    metrics_of,
)
from sftkit.evidence.labels import evaluate_labels, group_counts, judge_labels
from sftkit.evidence.statistics import paired_interval
from sftkit.label_records import Gain, LabelReport, Measure, Mistake, decimals_of
from sftkit.records import from_json, to_json

CLASSES = ("cat", "dog", "owl")


def made_scores(targets, classes, *, skill, seed=0):
    """Make probabilities that favour the right class by `skill`, rounded so that scores tie."""
    raw = np.random.default_rng(seed).normal(size=(len(targets), classes))
    raw[np.arange(len(targets)), targets] += skill
    shares = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    return np.round(shares, 1)


def made_items(classes=3, items=60, skill=1.0, seed=0):
    targets = np.random.default_rng(seed).integers(classes, size=items)
    scores = made_scores(targets, classes, skill=skill, seed=seed + 1)
    return Scored(
        targets=targets,
        scores=scores,
        predicted=scores.argmax(axis=1),
        classes=CLASSES[:classes],
    )


def made_numbers(items=60):
    random = np.random.default_rng(0)
    targets = random.integers(10, size=items).astype(float)
    said = np.round(targets + random.normal(size=items))
    return Scored(targets=targets, scores=said, predicted=said)


def repeated(items, times):
    """Take every item as often as it was drawn."""
    chosen = np.repeat(np.arange(len(times)), times)
    return dataclasses.replace(
        items,
        targets=items.targets[chosen],
        scores=items.scores[chosen],
        predicted=items.predicted[chosen],
    )


CASES = [
    *((task, made_items(classes), name)
      for task, classes in (("classify", 2), ("classify", 3)) for name in metrics_of("classify")),
    *(("regress", made_numbers(), name) for name in metrics_of("regress")),
]  # fmt: skip


@pytest.mark.parametrize(("task", "items", "name"), CASES)
def test_a_draw_gives_what_scikit_learn_gives_for_the_repeated_items(task, items, name):
    row = metrics_of(task)[name]
    times = np.random.default_rng(7).multinomial(60, np.full(60, 1 / 60), size=4)
    expected = [row.point(repeated(items, draw)) for draw in times]
    assert draw_metrics(items, times.astype(float))[name] == pytest.approx(expected, abs=1e-12)
    once = draw_metrics(items, np.ones((1, 60)))
    assert once[name] == pytest.approx([row.point(items)], abs=1e-12)
    assert [*once] == [*metrics_of(task)]


def test_a_draw_without_a_class_ranks_the_others_and_has_no_macro_f1():
    items = made_items(3)
    times = np.where(items.targets == 2, 0, 1)[None, :].astype(float)
    left = repeated(items, times[0].astype(int))
    for name in ("auroc", "auprc"):
        expected = metrics_of("classify")[name].point(left)
        assert draw_metrics(items, times)[name] == pytest.approx([expected]), name
    assert np.isnan(draw_metrics(items, times)["macro_f1"]).all()
    # A class that no test item is of is missing from no draw.
    assert not np.isnan(draw_metrics(left, np.ones((1, len(left.targets))))["macro_f1"]).any()


def test_a_model_that_never_finds_the_rare_class_does_worse_for_certain():
    targets = [0] * 57 + [1] * 3
    report = ten(
        targets, [SURE[0]] * 60, baselines={"tf-idf": [SURE[t] for t in targets]}, resamples=4000
    )
    gain = report.gain("macro_f1", "tf-idf")
    assert gain.delta == pytest.approx((2 * 57 / 117 - 2) / 2)
    assert gain.ci95 is not None
    assert gain.ci95[1] < -0.49
    assert judge_labels(report).state == "no"


def test_a_draw_of_one_class_defines_no_ranking():
    items = made_items(2)
    times = np.where(items.targets == 1, 1.0, 0.0)[None, :]
    for name in ("auroc", "auprc"):
        assert np.isnan(draw_metrics(items, times)[name]).all(), name


def test_the_table_of_classes_is_scikit_learns():
    items = made_items(3)
    made = draw_classes(items, np.ones((1, 60)))
    expected = metrics.precision_recall_fscore_support(items.targets, items.predicted)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert made[name][0] == pytest.approx(values)


def test_the_interval_of_accuracy_is_near_the_one_of_paired_differences():
    items = made_items(2)
    groups = [f"question-{number % 12:02d}" for number in range(60)]
    report = evaluate_labels(
        items.targets, items.scores, task="classify", classes=CLASSES[:2], groups=groups,
        baselines={"other": items.scores[:, ::-1]}, resamples=400,
    )  # fmt: skip
    right = (items.predicted == items.targets).astype(float)
    other = (items.scores[:, ::-1].argmax(axis=1) == items.targets).astype(float)
    alone = paired_interval(right, groups=groups, resamples=400)
    gain = paired_interval(right - other, groups=groups, resamples=400)
    assert report.tuned.measure("accuracy").value == pytest.approx(alone.delta)
    # Labels take percentiles of their draws; paired differences are widened for few groups.
    assert report.tuned.measure("accuracy").ci95 == pytest.approx(alone.ci95, abs=0.03)
    assert report.gain("accuracy", "other").delta == pytest.approx(gain.delta)
    assert report.gain("accuracy", "other").ci95 == pytest.approx(gain.ci95, abs=0.05)


def test_draws_are_the_same_however_many_are_held_at_once():
    groups = ["a", "a", "b", "c"]
    one = np.concatenate([*group_counts(groups, resamples=9, seed=3, chunk=1)])
    all_at_once = np.concatenate([*group_counts(groups, resamples=9, seed=3)])
    assert one.tolist() == all_at_once.tolist()
    assert (one[:, 0] == one[:, 1]).all()  # a group is drawn whole
    assert (one[:, 0] + one[:, 2] + one[:, 3] == 3).all()


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "auroc"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(name):
    # Items of one group share their luck, so resampling items would be far too sure.
    random = np.random.default_rng(1)
    covered = 0
    truth = metrics_of("classify")[name].point(_grouped(np.random.default_rng(9), groups=4000)[0])
    for trial in range(100):
        items, groups = _grouped(random, groups=50)
        report = evaluate_labels(
            items.targets, items.scores, task="classify", classes=items.classes, groups=groups,
            resamples=300, seed=trial,
        )  # fmt: skip
        low, high = report.tuned.measure(name).ci95 or (0.0, 0.0)
        covered += low <= truth <= high
    assert 88 <= covered <= 99


def _grouped(random, *, groups):
    luck = np.repeat(random.normal(size=groups), 5)
    targets = random.integers(2, size=5 * groups)
    margin = (2 * targets - 1) * (0.5 + luck) + random.normal(size=5 * groups)
    score = 1 / (1 + np.exp(-margin))
    items = Scored(
        targets=targets,
        scores=np.stack([1 - score, score], axis=1),
        predicted=(score >= 0.5).astype(int),
        classes=("no", "yes"),
    )
    return items, [str(number // 5) for number in range(5 * groups)]


def ten(targets, scores, **options):
    """Evaluate with a group for every item."""
    options = {"task": "classify", "classes": ("no", "yes"), "resamples": 400, **options}
    groups = [str(number) for number in range(len(targets))]
    return evaluate_labels(targets, np.asarray(scores), groups=groups, **options)


SURE = {0: (0.9, 0.1), 1: (0.2, 0.8)}


def test_a_whole_report_by_hand():
    targets = [0] * 6 + [1] * 4
    said = [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    texts = [f"text {number}" for number in range(10)]
    report = ten(targets, [SURE[c] for c in said], texts=texts, rows=range(100, 110))
    values = {measure.name: measure.value for measure in report.tuned.measures}
    f1 = (5 / 6 + 3 / 4) / 2
    assert (values["accuracy"], values["macro_f1"]) == pytest.approx((0.8, f1))
    assert values["mcc"] == pytest.approx((3 * 5 - 1 * 1) / math.sqrt(4 * 4 * 6 * 6))
    # 24 pairs: 3 × 5 in order, 3 × 1 + 1 × 5 tied, 1 × 1 reversed.
    assert values["auroc"] == pytest.approx((15 + 8 / 2) / 24)
    assert values["auprc"] == pytest.approx(3 / 4 * 3 / 4 + 1 / 4 * 4 / 10)
    assert report.confusion == ((5, 1), (1, 3))
    assert [(row.name, row.support, row.predicted) for row in report.per_class] == [
        ("no", 6, 6),
        ("yes", 4, 4),
    ]
    assert report.mistakes == (
        Mistake(row=109, group="9", text="text 9", target="yes", predicted="no", confidence=0.9),
        Mistake(row=105, group="5", text="text 5", target="no", predicted="yes", confidence=0.8),
    )
    assert [(p.threshold, p.precision, p.recall) for p in report.curve] == [
        (0.8, 0.75, 0.75),
        (0.1, 0.4, 1.0),
    ]
    assert (report.items, report.groups, report.notes, report.gains) == (10, 10, (), ())


def test_a_threshold_moves_the_decision_and_not_the_ranking():
    scores = [(0.9, 0.1), (0.7, 0.3)] * 6
    usual, moved = (ten([0, 1] * 6, scores, threshold=t) for t in (None, 0.3))
    assert usual.confusion == ((6, 0), (6, 0))
    assert moved.confusion == ((6, 0), (0, 6))
    assert moved.threshold == 0.3
    assert usual.tuned.measure("auroc") == moved.tuned.measure("auroc")


def test_a_report_comes_back_whole_from_json():
    report = ten(
        [0, 1] * 8, [SURE[n % 2] for n in range(16)],
        baselines={"majority": np.full((16, 2), 0.5)}, threshold=0.4,
    )  # fmt: skip
    assert from_json(LabelReport, to_json(report)) == report
    with pytest.raises(RecordError, match="task must be one of"):
        from_json(LabelReport, to_json(report).replace('"classify"', '"rank"'))


# --- Where a number would mean nothing, words stand --------------------------------------------


def no_nan(value: Any) -> bool:
    """Say that a record holds no number that is not finite."""
    return "NaN" not in to_json(value)  # to_json raises on one as well


def test_a_class_missing_from_the_test_is_said_and_left_out():
    targets = [0, 1] * 10
    scores = [(0.8, 0.1, 0.1), (0.1, 0.2, 0.7)] * 10
    report = ten(targets, scores, classes=CLASSES)
    assert report.notes == ("No test item is of 'owl': nothing is known of it.",)
    macro = report.tuned.measure("macro_f1")
    assert (macro.value, macro.note) == (0.5, "over the classes in the test, without 'owl'")
    assert report.tuned.measure("auroc").note == macro.note
    owl, dog = report.per_class[2], report.per_class[1]
    assert owl.recall == Measure(name="recall", value=None, ci95=None, note="not in the test")
    assert owl.precision.value == 0.0
    assert dog.precision.note == "never predicted"
    assert no_nan(report)


def test_constant_predictions_are_said_and_have_a_correlation_of_zero():
    report = ten([0] * 7 + [1] * 5, [(0.6, 0.4)] * 12)
    assert report.notes == (
        "The tuned model predicts 'no' for every item: it learned no difference.",
    )
    mcc = report.tuned.measure("mcc")
    assert (mcc.value, mcc.ci95) == (0.0, (0.0, 0.0))
    assert mcc.note == "every item was predicted as 'no', so it is 0 by convention"
    assert report.tuned.measure("auroc").value == 0.5
    assert report.tuned.measure("auprc").value == pytest.approx(5 / 12)
    assert no_nan(report)


def test_a_test_of_one_class_has_no_ranking():
    report = ten([1] * 12, [SURE[1]] * 11 + [SURE[0]], baselines={"tf-idf": [SURE[1]] * 12})
    reason = "all 12 test items are 'yes'"
    assert report.tuned.measure("auroc") == Measure(
        name="auroc", value=None, ci95=None, note=reason
    )
    assert report.gain("auprc", "tf-idf") == Gain(
        metric="auprc", over="tf-idf", before=None, after=None, delta=None, ci95=None, note=reason
    )
    verdict = judge_labels(report, metric="auroc")
    assert verdict.state == "unmeasured"
    assert verdict.sentence == f"The AUROC on 12 test items in 12 groups is not defined: {reason}."
    assert no_nan(report)


def test_too_few_groups_give_values_and_no_interval():
    report = ten([0, 1] * 4, [SURE[n % 2] for n in range(8)], baselines={"tf-idf": [SURE[0]] * 8})
    why = "an interval needs 10 groups and there are 8"
    assert report.tuned.measure("accuracy") == Measure(
        name="accuracy", value=1.0, ci95=None, note=why
    )
    verdict = judge_labels(report, metric="accuracy")
    assert (verdict.state, verdict.sentence) == (
        "undecided",
        "Not measurable whether it beats the TF-IDF baseline: accuracy on 8 test items in "
        f"8 groups is 1.000 against 0.500, but {why}.",
    )
    assert report.notes[0].startswith("The test has 8 groups; below 10 no interval is given")


def test_a_class_too_rare_to_be_drawn_often_gets_no_interval():
    report = ten([0] * 19 + [1], [SURE[0]] * 19 + [SURE[1]])
    auroc = report.tuned.measure("auroc")
    assert (auroc.value, auroc.ci95) == (1.0, None)
    assert "of the draws lack what it is computed from" in auroc.note


def test_a_constant_regression_is_said():
    targets = [1.0, 2.0, 4.0] * 4
    options: dict[str, Any] = {"task": "regress", "classes": ()}
    report = ten(targets, [2.0] * 12, baselines={"mean": [7 / 3] * 12}, **options)
    assert report.tuned.measure("spearman").note == "all predictions are the same"
    assert report.notes == ("The tuned model predicts '2' for every item: it learned no "
                            "difference.",)  # fmt: skip
    same = ten([3.0] * 12, np.arange(12.0), **options)
    assert same.tuned.measure("r2").note == "all true numbers are the same"
    assert no_nan(report)
    assert no_nan(same)


def test_a_regression_by_hand():
    targets = np.arange(12.0)
    said = targets + np.where(np.arange(12) % 2, 1.0, -1.0)
    report = ten(
        targets, said, task="regress", classes=(), baselines={"mean": np.full(12, 5.5)}, mistakes=1
    )
    values = {measure.name: measure.value for measure in report.tuned.measures}
    assert (values["rmse"], values["mae"]) == pytest.approx((1.0, 1.0))
    assert values["r2"] == pytest.approx(1 - 12 / 143)
    gain = report.gain("mae", "mean")
    assert (gain.before, gain.after, gain.lower_is_better) == (3.0, 1.0, True)
    assert gain.is_shown
    assert not gain.is_reversed
    assert judge_labels(report).state == "yes"
    assert report.gain("spearman", "mean").note == "mean: all predictions are the same"
    assert report.points == tuple(zip(targets, said, strict=True))
    assert report.mistakes == (
        Mistake(row=0, group="0", text="", target="0", predicted="-1", confidence=1.0),
    )


# --- Verdicts ----------------------------------------------------------------------------------


def skewed_report(scale=1.0):
    """Answer skewed numbers with their median, beside their mean."""
    targets = scale * np.array([1.0] * 30 + [2.0] * 20 + [20.0] * 10)
    return ten(
        targets, np.full(60, np.median(targets)), task="regress", classes=(),
        baselines={"mean": np.full(60, targets.mean())},
    )  # fmt: skip


def test_the_median_of_skewed_numbers_does_not_beat_their_mean():
    report = skewed_report()
    assert report.gain("mae", "mean").is_shown
    verdict = judge_labels(report)
    assert verdict.state == "undecided"
    assert "root mean squared error on 60 test items in 60 groups is 7.57 against 6.95" in (
        verdict.sentence
    )


def test_a_verdict_on_small_numbers_shows_their_digits():
    sentence = judge_labels(skewed_report(1e-4)).sentence
    assert "is 0.000757 against 0.000695 (+0.000062, 95 % interval" in sentence
    assert decimals_of("rmse", 1234.5, 2.0) == 0
    assert (decimals_of("rmse", 0.0), decimals_of("mae"), decimals_of("r2", 1e-5)) == (3, 3, 3)


def judged(tuned_right, other_right):
    """Judge a model that is right on the first items against one that is right on others."""
    targets = [0, 1] * 20
    scores = [
        [SURE[t if number < right else 1 - t] for number, t in enumerate(targets)]
        for right in (tuned_right, other_right)
    ]
    report = ten(targets, scores[0], baselines={"tf-idf": scores[1], "base": scores[1]})
    return judge_labels(report, metric="accuracy")


def test_a_gain_is_claimed_only_when_its_interval_excludes_zero():
    better, same, worse = judged(36, 20), judged(21, 20), judged(20, 36)
    assert [verdict.state for verdict in (better, same, worse)] == ["yes", "undecided", "no"]
    assert better.sentence.startswith(
        "Beats the TF-IDF baseline: accuracy on 40 test items in 40 groups is 0.900 against 0.500 "
        "(+0.400, 95 % interval +0."
    )
    assert same.sentence.startswith("It cannot be shown to beat the TF-IDF baseline: accuracy on")
    assert worse.sentence.startswith("Does worse than the TF-IDF baseline: accuracy on")


def test_without_a_baseline_nothing_is_claimed():
    verdict = judge_labels(ten([0, 1] * 6, [SURE[n % 2] for n in range(12)]))
    assert verdict.state == "unmeasured"


def test_names_that_are_not_there_are_answered_with_those_that_are():
    report = ten([0, 1] * 6, [SURE[0]] * 12, baselines={"base": [SURE[0]] * 12})
    with pytest.raises(KeyError, match="there are: accuracy over base, macro_f1 over base"):
        report.gain("accuracy", "tf-idf")
    with pytest.raises(KeyError, match="No metric rmse; there are accuracy"):
        report.tuned.measure("rmse")


@pytest.mark.parametrize(
    ("targets", "scores", "options", "message"),
    [
        ([], np.zeros((0, 2)), {}, "at least one item"),
        ([0, 1], [[0.5, 0.5]], {}, r"finite scores of shape \(2, 2\)"),
        ([0, 1], [[0.5, np.nan], [1, 0]], {}, "finite scores"),
        ([0, 2], [[0.5, 0.5], [1, 0]], {}, "class numbers from 0 to 1"),
        ([0.0, 1.0], [[0.5, 0.5], [1, 0]], {}, "class numbers from 0 to 1"),
        ([0, 1], [[1, 0, 0], [1, 0, 0]], {"classes": CLASSES, "threshold": 0.5}, "two classes"),
        ([0, 1], [[0.5, 0.5], [1, 0]], {"texts": ["one"]}, "2 items but 1 texts"),
        ([0.0, np.inf], [1.0, 2.0], {"task": "regress", "classes": ()}, "finite targets"),
    ],
)
def test_what_does_not_belong_together_is_refused(targets, scores, options, message):
    with pytest.raises(ValueError, match=message):
        ten(targets, scores, **options)


# --- evaluate's metrics --------------------------------------------------------------------


def test_metrics_compose_with_the_evaluate_library():
    import evaluate

    items = made_items(3)
    names = [*metrics_of("classify")]
    together = evaluate.combine([evaluate_metric(name) for name in names])
    found = together.compute(
        predictions=items.predicted, references=items.targets, prediction_scores=items.scores
    )
    assert found == {name: metrics_of("classify")[name].point(items) for name in names}
    assert isinstance(evaluate_metric("mcc"), evaluate.Metric)


def test_a_metric_of_the_evaluate_library_takes_batches_and_numbers():
    metric = evaluate_metric("mae")
    metric.add_batch(predictions=[1.0, 2.0], references=[1.5, 2.0])
    metric.add_batch(predictions=[5.0], references=[3.0])
    assert metric.compute() == {"mae": pytest.approx(2.5 / 3)}
    with pytest.raises(KeyError, match="No metric 'f2'; there are accuracy"):
        evaluate_metric("f2")


def test_the_evaluate_metrics_work_offline_in_a_new_process_and_write_nothing(tmp_path):
    code = (
        "import evaluate\n"
        "from sftkit.evidence.label_metrics import evaluate_metric\n"
        "both = evaluate.combine([evaluate_metric(n) for n in ('accuracy', 'auroc')])\n"
        "print(both.compute(predictions=[0, 1], references=[0, 0],"
        " prediction_scores=[[1, 0], [0, 1]]))"
    )
    home = tmp_path / "home"
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **offline},
    )  # fmt: skip
    assert done.stdout == "{'accuracy': 0.5, 'auroc': None}\n", done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
