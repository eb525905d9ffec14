"""Baselines learn what counting words gives; what is chosen is chosen on validation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sftkit.evidence.baselines import (
    STRENGTHS,
    constant_baseline,
    linear_baseline,
    tfidf_baseline,
)
from sftkit.evidence.thresholds import apply_threshold, choose_threshold, precision_recall
from sftkit.label_records import CurvePoint, Threshold

WORDS = {0: "the parcel is late", 1: "the refund is owed"}


def texts_of(targets):
    return [f"{WORDS[int(target)]} today {number % 5}" for number, target in enumerate(targets)]


def split_of(targets):
    return texts_of(targets), np.asarray(targets)


# --- Baselines ---------------------------------------------------------------------------------


def test_the_constant_baseline_answers_with_the_training_shares_or_mean():
    shares = constant_baseline([0, 0, 0, 2], task="classify", classes=3, validation=1, test=2)
    assert (shares.name, shares.strength) == ("majority", None)
    assert shares.test.tolist() == [[0.75, 0.0, 0.25]] * 2
    assert shares.validation.tolist() == [[0.75, 0.0, 0.25]]
    mean = constant_baseline([1.0, 2.0, 6.0], task="regress", classes=0, validation=0, test=2)
    assert (mean.name, mean.test.tolist(), mean.validation.tolist()) == ("mean", [3.0, 3.0], [])


def test_word_counts_tell_classes_apart():
    made = tfidf_baseline(
        split_of([0, 1] * 20), split_of([0, 1] * 5), texts_of([1, 0, 1]), task="classify", classes=3
    )
    assert made.name == "tf-idf"
    assert made.test.argmax(axis=1).tolist() == [1, 0, 1]
    assert made.test[:, 2].tolist() == [0.0, 0.0, 0.0]  # no training row is of it
    assert made.test.sum(axis=1) == pytest.approx([1.0] * 3)
    assert made.validation.shape == (10, 3)


def test_word_counts_predict_numbers():
    train = (texts_of([0, 1] * 20), np.array([2.0, 8.0] * 20))
    validation = (texts_of([0, 1] * 5), np.array([2.0, 8.0] * 5))
    made = tfidf_baseline(train, validation, texts_of([1, 0]), task="regress")
    assert made.test == pytest.approx([8.0, 2.0], abs=0.1)


def test_the_strength_is_the_one_with_the_best_validation_fit():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 30))
    targets = (features[:, 0] + random.normal(size=60) > 0).astype(int)
    parts = [features[:30], features[30:45], features[45:]]
    made = linear_baseline(parts, (targets[:30], targets[30:45]), task="classify", classes=2)
    assert set(made.fit) == set(STRENGTHS)
    assert made.strength == min(made.fit, key=made.fit.__getitem__)
    # Validation that repeats training wants the weakest regularisation, so validation rules.
    same = [parts[0], parts[0], parts[2]]
    eager = linear_baseline(same, (targets[:30], targets[:30]), task="classify", classes=2)
    assert eager.strength == max(STRENGTHS)
    assert made.strength != eager.strength


def test_test_rows_do_not_change_what_was_learned():
    train, validation = split_of([0, 1] * 20), split_of([0, 1] * 5)
    options: dict[str, Any] = {"task": "classify", "classes": 2}
    first = tfidf_baseline(train, validation, texts_of([0]), **options)
    second = tfidf_baseline(train, validation, ["refund refund"] * 50, **options)
    assert first.validation.tolist() == second.validation.tolist()


def test_balanced_weights_find_more_of_the_rare_class():
    random = np.random.default_rng(0)
    targets = (np.arange(400) % 20 == 0).astype(int)
    features = random.normal(size=(400, 2)) + targets[:, None]
    parts = [features[:200], features[200:300], features[300:]]
    held = (targets[:200], targets[200:300])
    found = {}
    options: dict[str, Any] = {"task": "classify", "classes": 2}
    for weights in ("none", "balanced"):
        made = linear_baseline(parts, held, **options | {"class_weights": weights})
        found[weights] = int((made.test.argmax(axis=1) & targets[300:]).sum())
    assert found["none"] < found["balanced"] <= 5


def test_impossible_baselines_are_refused():
    with pytest.raises(ValueError, match="chosen on validation rows, and there are none"):
        linear_baseline(
            [np.ones((2, 1))] * 3, (np.array([0, 1]), np.array([])), task="classify", classes=2
        )
    with pytest.raises(ValueError, match="All training rows are of one class"):
        linear_baseline(
            [np.ones((2, 1))] * 3, (np.array([1, 1]), np.array([1, 0])), task="classify", classes=2
        )


# --- Thresholds --------------------------------------------------------------------------------

TARGETS = [0, 0, 1, 0, 1, 1]
SCORES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.45])


def test_the_threshold_with_the_largest_f1_lies_between_two_scores():
    chosen = choose_threshold(TARGETS, SCORES)
    middle = (0.1 + 0.2) / 2
    assert chosen == Threshold(value=middle, aim="largest F1", reached=6 / 7, items=6)
    assert apply_threshold(SCORES, chosen).tolist() == [0, 0, 1, 1, 1, 1]
    assert apply_threshold(np.stack([1 - SCORES, SCORES], axis=1), 0.42).tolist() == [0] * 5 + [1]


def test_a_wanted_recall_is_reached_with_the_best_precision():
    some, all_ = (choose_threshold(TARGETS, SCORES, aim="recall", recall=r) for r in (0.6, 0.9))
    assert [some.value, some.reached] == pytest.approx([0.35, 1.0])
    assert [all_.value, all_.reached] == pytest.approx([0.15, 0.75])
    assert all_.aim == "best precision at recall 0.9 or more"


@pytest.mark.parametrize(
    ("costs", "predicted", "cost"),
    [
        ((10.0, 1.0), [0, 0, 1, 1, 1, 1], 1 / 6),
        ((1.0, 10.0), [0, 0, 0, 0, 1, 1], 1 / 6),
        ((1.0, 0.0), [0, 0, 1, 1, 1, 1], 0.0),
    ],
)
def test_costs_decide_between_misses_and_false_alarms(costs, predicted, cost):
    chosen = choose_threshold(TARGETS, SCORES, aim="cost", costs=costs)
    assert apply_threshold(SCORES, chosen).tolist() == predicted
    assert chosen.reached == pytest.approx(cost)


def test_false_alarms_that_cost_too_much_call_nothing_positive():
    targets, scores = [1, 0, 1], [0.2, 0.9, 0.1]
    chosen = choose_threshold(targets, scores, aim="cost", costs=(1, 100))
    assert apply_threshold(scores, chosen).tolist() == [0, 0, 0]


def test_equal_scores_are_never_divided():
    targets, scores = [0, 1, 1, 0], [0.5, 0.5, 0.5, 0.5]
    chosen = choose_threshold(targets, scores)
    assert [chosen.value, chosen.reached] == pytest.approx([0.5, 2 / 3])
    neighbours = [0.5, np.nextafter(0.5, 1)]
    close = choose_threshold([0, 1], neighbours)
    assert apply_threshold(neighbours, close).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("targets", "scores", "options", "message"),
    [
        ([1, 1], [0.2, 0.3], {}, "items of both classes"),
        ([0, 1, 1], [0.2, 0.3], {}, r"as many scores \(2\) as targets \(3\)"),
        ([0, 1], [0.2, 0.3], {"aim": "recall", "recall": 0}, r"recall must be in \(0, 1\]"),
        ([0, 1], [0.2, 0.3], {"aim": "cost", "costs": (0, 0)}, "costs above 0"),
    ],
)
def test_a_threshold_that_cannot_be_chosen_is_refused(targets, scores, options, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold(targets, scores, **options)


def test_the_curve_goes_from_the_surest_item_to_all_items():
    curve = precision_recall(TARGETS, SCORES)
    assert curve[0] == CurvePoint(threshold=0.45, precision=1.0, recall=1 / 3)
    assert curve[-1] == CurvePoint(threshold=0.05, precision=0.5, recall=1.0)
    assert len(curve) == 6
    many = np.random.default_rng(0).random(5000)
    assert len(precision_recall((many > 0.5).astype(int), many)) == 101
    assert precision_recall([0, 0], [0.1, 0.2]) == ()
