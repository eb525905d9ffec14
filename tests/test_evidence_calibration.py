"""Confidence against accuracy: by hand, by simulation, and repaired by a temperature."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from sftkit.errors import DataError
from sftkit.evidence.calibration import (
    Answered,
    bins_for,
    calibrate_choices,
    calibration_error,
    confidence_of,
    equal_mass_edges,
    equal_width_edges,
    fit_temperature,
    if_calibrated,
    measure_calibration,
    option_probabilities,
    reliability_bins,
    scale,
    selective_accuracy,
)
from sftkit.evidence.choice import ChoiceScore
from sftkit.evidence_records import ReliabilityBin
from sftkit.records import ChoiceItem

# Eight answers. Confidence, right:   0.55 no, 0.60 yes, 0.60 no, 0.70 yes,
#                                     0.80 yes, 0.90 yes, 0.95 no, 1.00 yes.
CONFIDENCE = np.array([0.55, 0.60, 0.60, 0.70, 0.80, 0.90, 0.95, 1.00])
RIGHT = np.array([0, 1, 0, 1, 1, 1, 0, 1], dtype=float)


def made(items=600, *, times=1.0, seed=0, classes=4, prefix="g", shift=0.0):
    """Draw classes from their own probabilities, so that the model is calibrated at times=1."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=(items, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (true.cumsum(axis=1) < random.random((items, 1))).sum(axis=1).clip(0, classes - 1)
    said = np.exp(times * logits + shift * random.normal(size=logits.shape))
    return Answered(
        probabilities=said / said.sum(axis=1, keepdims=True),
        targets=targets,
        groups=tuple(f"{prefix}{number}" for number in range(items)),
    )


def test_ece_of_equal_width_bins_is_the_one_computed_by_hand():
    # Two bins of width 0.5: all eight lie in the upper one.
    # Mean confidence 6.10 / 8 = 0.7625, accuracy 5 / 8 = 0.625; ECE = 0.1375.
    assert calibration_error(CONFIDENCE, RIGHT, equal_width_edges(2)) == pytest.approx(0.1375)
    # Five bins of width 0.2: (0.4, 0.6] holds 0.55, 0.60, 0.60: surplus 1 - 1.75 = -0.75.
    # (0.6, 0.8] holds 0.70, 0.80: 2 - 1.50 = +0.50. (0.8, 1] holds 0.90, 0.95, 1.00: 2 - 2.85.
    # ECE = (0.75 + 0.50 + 0.85) / 8 = 0.2625.
    assert calibration_error(CONFIDENCE, RIGHT, equal_width_edges(5)) == pytest.approx(0.2625)


def test_ece_of_equally_filled_bins_is_the_one_computed_by_hand():
    # Four bins of two: the first ends at 0.60, which the third item has too, so it holds three.
    edges = equal_mass_edges(CONFIDENCE, 4)
    assert edges.tolist() == [0.60, 0.70, 0.90, 1.00]
    # |1 - 1.75| + |1 - 0.70| + |2 - 1.70| + |1 - 1.95| = 0.75 + 0.30 + 0.30 + 0.95 = 2.30; / 8
    assert calibration_error(CONFIDENCE, RIGHT, edges) == pytest.approx(0.2875)
    first, *_, last = reliability_bins(CONFIDENCE, RIGHT, edges)
    assert first == ReliabilityBin(
        low=0.0,
        high=0.6,
        items=3,
        confidence=pytest.approx(1.75 / 3),  # type: ignore[arg-type]
        accuracy=1 / 3,
    )
    assert last == ReliabilityBin(
        low=0.9,
        high=1.0,
        items=2,
        confidence=pytest.approx(0.975),  # type: ignore[arg-type]
        accuracy=0.5,
    )


def test_few_items_make_few_bins_and_fewer_edges_where_confidences_are_equal():
    assert [bins_for(items) for items in (5, 39, 40, 300, 9000)] == [1, 1, 2, 15, 15]
    assert equal_mass_edges(np.full(90, 0.4), 4).tolist() == [0.4, 1.0]


def test_confidence_a_hair_above_one_falls_into_the_last_bin():
    above = np.array([0.5, np.nextafter(1.0, 2.0)])
    assert calibration_error(above, np.array([1.0, 1.0]), equal_width_edges(4)) == pytest.approx(
        0.25
    )


def test_logits_times_three_are_repaired_by_the_temperature_fitted_on_validation_items():
    test, validation = made(times=3.0), made(times=3.0, seed=1, prefix="v")
    found = measure_calibration(test, validation=validation, resamples=400)
    assert found.temperature == pytest.approx(3.0, rel=0.12)
    assert found.validation_items == 600
    assert found.ece > 0.15
    assert found.ci95[0] > 0.1
    assert found.p_value == pytest.approx(1 / 1001)
    assert found.ece_after is not None
    assert found.ece_after < 0.4 * found.ece
    assert found.ci95_after is not None
    assert found.ci95_after[1] < found.ci95[0]
    # No answer changes, so accuracy stays: at full coverage it is that of the items.
    _, right = confidence_of(test)
    assert found.selective[-1] == pytest.approx((1.0, right.mean()))
    assert sum(b.items for b in found.bins) == sum(b.items for b in found.bins_after) == 600


def test_the_temperature_is_the_best_of_a_fine_grid_and_undoes_a_known_one():
    items = made(times=2.0)
    fitted = fit_temperature(items.probabilities, items.targets)
    rows = np.arange(len(items.targets))

    def nats(temperature):
        return -np.log(scale(items.probabilities, temperature)[rows, items.targets]).mean()

    grid = np.geomspace(0.2, 10, 400)
    assert fitted == pytest.approx(grid[np.argmin([nats(t) for t in grid])], rel=0.02)
    plain = made()
    assert scale(items.probabilities, 2.0) == pytest.approx(plain.probabilities, abs=1e-12)


def test_items_that_are_also_in_the_test_fit_no_temperature():
    test = made(40)
    with pytest.raises(DataError, match=r"40 of 40 validation groups are also in the test \(g0"):
        measure_calibration(test, validation=test)


def test_too_few_validation_items_fit_none():
    found = measure_calibration(made(60), validation=made(19, prefix="v"), resamples=200)
    assert (found.temperature, found.validation_items) == (1.0, 0)
    assert (found.ece_after, found.ci95_after, found.bins_after) == (None, None, ())


def test_a_perfect_model_shows_an_error_too_and_the_record_says_how_large():
    found = measure_calibration(made(200, seed=3), resamples=400)
    assert found.ece_if_calibrated is not None
    assert found.ece == pytest.approx(found.ece_if_calibrated, abs=0.03)
    assert found.ece_if_calibrated > 0.02
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert found.ci95[0] == 0.0


def test_a_perfect_models_error_shrinks_with_items_and_is_found_no_oftener_than_stated():
    means = [if_calibrated(confidence_of(made(n))[0], 0.0)[0] for n in (300, 3000)]
    assert means[1] < 0.5 * means[0]
    false = 0
    for seed in range(400):
        confidence, right = confidence_of(made(120, seed=seed))
        edges = equal_mass_edges(confidence, bins_for(120))
        ece = calibration_error(confidence, right, edges)
        false += if_calibrated(confidence, ece, seed=seed)[1] <= 0.05
    assert false <= 0.05 * 400 + 2 * math.sqrt(400 * 0.05 * 0.95)


def test_whole_groups_are_resampled():
    alone = made(200, times=2.0)
    fours = Answered(
        probabilities=np.repeat(alone.probabilities, 4, axis=0),
        targets=np.repeat(alone.targets, 4),
        groups=tuple(np.repeat(alone.groups, 4)),
    )
    widths = [
        float(np.diff(measure_calibration(items, resamples=400).ci95)[0])
        for items in (alone, fours)
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.35)  # rows would make it half as wide


def test_selective_accuracy_is_the_one_counted_by_hand_and_ties_count_as_their_mean():
    # By confidence: 1.00 yes, 0.95 no, 0.90 yes, 0.80 yes, 0.70 yes, two of 0.60 half right, 0.55.
    expected = [1, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 4.5 / 6, 5 / 7, 5 / 8]
    coverage, accuracy = zip(*selective_accuracy(CONFIDENCE, RIGHT), strict=True)
    assert coverage == pytest.approx([(n + 1) / 8 for n in range(8)])
    assert accuracy == pytest.approx(expected)


def test_probabilities_of_options_are_the_softmax_of_their_log_probabilities():
    two = ChoiceScore(logprobs=(math.log(0.2), math.log(0.6)), tokens=(1, 2), characters=(4, 90))
    three = ChoiceScore(logprobs=(-900.0, -901.0, -902.0), tokens=(3,) * 3, characters=(9,) * 3)
    e = math.e
    whole = 1 + 1 / e + 1 / e**2
    assert option_probabilities([two, three]) == pytest.approx(
        np.array([[0.25, 0.75, 0.0], [1 / whole, 1 / e / whole, 1 / e**2 / whole]])
    )


def test_half_of_a_probes_questions_fit_the_temperature_and_the_other_half_are_reported():
    random = np.random.default_rng(0)
    names = ["piqa"] * 81 + ["openbookqa"] * 81
    items = [ChoiceItem(question="?", options=("a", "b"), answer=0) for _ in names]
    scores = [
        ChoiceScore(logprobs=tuple(random.normal(size=2)), tokens=(1, 1), characters=(1, 1))
        for _ in names
    ]
    found = calibrate_choices(items, names, scores, scores, resamples=200)
    assert (found.items, found.validation_items) == (82, 80)
    assert found.base_ece == found.ece
    reported = [number for number, place in enumerate([*range(81), *range(81)]) if place % 2 == 0]
    assert Counter(names[number] for number in reported) == {"piqa": 41, "openbookqa": 41}
    alone = Answered(
        probabilities=option_probabilities(scores)[reported],
        targets=np.zeros(82, int),
        groups=tuple(map(str, reported)),
    )
    assert measure_calibration(alone, resamples=200).ece == found.ece


def test_probabilities_that_are_none_are_refused():
    for shape, targets in (((3, 2), 2), ((3,), 3), ((0, 2), 0)):
        with pytest.raises(ValueError, match="needs probabilities of shape"):
            Answered(
                probabilities=np.full(shape, 0.5),
                targets=np.zeros(targets, int),
                groups=("a",) * targets,
            )
    with pytest.raises(ValueError, match="that sum to 1"):
        Answered(probabilities=np.full((1, 2), 0.4), targets=np.zeros(1, int), groups=("a",))


@pytest.mark.faults
@pytest.mark.parametrize(("surplus", "each"), [(0.0, 1), (0.03, 1), (0.15, 1), (0.1, 4)])
def test_the_interval_covers_the_true_error_about_as_often_as_it_says(surplus, each):
    covered = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        # Confidence is too high by `surplus` everywhere; groups of `each` are right together.
        sure = np.repeat(0.6 + 0.4 * random.beta(3, 1.5, size=400 // each), each)
        right = np.repeat(random.random(400 // each), each) < sure - surplus
        test = Answered(
            probabilities=np.stack([1 - sure, sure], axis=1),
            targets=right.astype(int),
            groups=tuple(f"g{n // each}" for n in range(400)),
        )
        low, high = measure_calibration(test, resamples=400, seed=seed).ci95
        covered += low <= surplus <= high
    # At exactly 0 and for clusters it is wide. Four standard errors of 300 draws are 5 points.
    assert covered >= (0.95 - 0.05) * 300
