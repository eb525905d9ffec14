"""Intervals resample whole groups, and cover the truth as often as they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import binom, bootstrap

from sftkit.evidence import statistics
from sftkit.evidence.statistics import (
    ALL_EQUAL,
    ONE_GROUP,
    Interval,
    detectable_difference,
    paired_change,
    paired_interval,
    sign_flip_p_value,
)
from sftkit.evidence.verdicts import FEWEST_GROUPS
from sftkit.evidence_records import Change


def width(interval: Interval) -> float:
    return interval.ci95[1] - interval.ci95[0]


def test_a_change_is_the_weighted_mean_of_paired_differences():
    # Differences +1 +1 0 -1. Two groups are drawn twice: a+a gives 1, a+b -1/6, b+b -3/4; with
    # so few groups the interval reaches to the outermost draws.
    change = paired_change(
        [0.0, 0.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 0.0],
        groups=["a", "a", "b", "b"],
        weights=[1.0, 1.0, 1.0, 3.0],
    )
    assert change == Change(
        before=4 / 6,
        after=3 / 6,
        delta=-1 / 6,
        ci95=(-0.75, 1.0),
        items=4,
        groups=2,
        tokens=6,
    )


def test_without_weights_all_items_weigh_alike_and_no_tokens_are_counted():
    change = paired_change([1.0, 2.0, 3.0], [2.0, 2.0, 5.0], groups=["a", "b", "c"])
    assert (change.before, change.after, change.delta) == (2.0, 3.0, 1.0)
    assert (change.items, change.groups, change.tokens) == (3, 3, 0)


def test_no_difference_gives_exactly_zero():
    values = [0.1, 0.2, 0.7]
    change = paired_change(values, values, groups=["a", "b", "c"], weights=[3.0, 0.1, 7.3])
    assert (change.delta, change.ci95) == (0.0, (0.0, 0.0))


def test_where_nothing_varies_the_interval_has_no_width_and_says_why():
    many = paired_interval([0.25] * 8, groups=[str(i) for i in range(8)])
    assert many == Interval(delta=0.25, ci95=(0.25, 0.25), note=ALL_EQUAL)
    tokens = [3.0, 0.1, 7.3, 2.2]
    uneven = paired_interval([0.1] * 4, groups=["a", "b", "c", "d"], weights=tokens)
    assert (uneven.ci95, uneven.note) == ((uneven.delta, uneven.delta), ALL_EQUAL)
    one = paired_interval([0.0, 1.0], groups=["a", "a"])
    assert one == Interval(delta=0.5, ci95=(0.5, 0.5), note=ONE_GROUP)


def test_a_group_without_weight_changes_nothing():
    differences = np.random.default_rng(0).normal(size=12)
    groups = [str(i) for i in range(12)]
    without = paired_interval(differences, groups=groups)
    beside = paired_interval(
        [*differences, 100.0], groups=[*groups, "z"], weights=[1.0] * 12 + [0.0]
    )
    assert beside.ci95 == pytest.approx(without.ci95)


def test_bias_and_acceleration_are_those_of_scipy(monkeypatch):
    # Without the expansion for few groups the interval is scipy's, as far as draws agree.
    monkeypatch.setattr(statistics, "_expansion", lambda *_: 1.0)
    values = np.random.default_rng(3).exponential(size=40)
    own = paired_interval(values, groups=[str(i) for i in range(40)], resamples=40_000)
    theirs = bootstrap(
        (values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert own.ci95 == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert own.ci95[1] - own.delta > 1.2 * (own.delta - own.ci95[0])  # the long tail is above


def test_few_groups_of_one_size_widen_the_interval_as_students_does():
    pulls = np.array([1.0, -2.0, 0.5, 0.5, 1.0, -1.0])
    one = statistics._expansion(pulls, np.ones(6), np.zeros(6, dtype=int))
    assert one == pytest.approx(math.sqrt(6 / 5) * stdtrit(5, 0.975) / 1.959964)
    # Two strata alike: each is short by sqrt(6/5), and their degrees of freedom add up.
    both = statistics._expansion(np.tile(pulls, 2), np.ones(12), np.repeat([0, 1], 6))
    assert both == pytest.approx(math.sqrt(6 / 5) * stdtrit(10, 0.975) / 1.959964)


def test_one_large_group_among_small_ones_widens_it_further():
    pulls = np.array([1.0, -2.0, 0.5, 0.5, 1.0, -1.0])
    layer = np.zeros(6, dtype=int)
    alike = statistics._expansion(pulls, np.ones(6), layer)
    assert statistics._expansion(pulls, np.array([1.0, 9, 1, 1, 1, 1]), layer) > 1.2 * alike


def test_copies_of_rows_in_their_group_add_no_certainty():
    differences = np.random.default_rng(0).normal(size=20)
    single = paired_interval(differences, groups=[str(i) for i in range(20)])
    copied = np.repeat(differences, 4)
    grouped = paired_interval(copied, groups=[str(i) for i in range(20) for _ in range(4)])
    as_if_new = paired_interval(copied, groups=[str(i) for i in range(80)])
    assert grouped.ci95 == pytest.approx(single.ci95)
    assert width(as_if_new) == pytest.approx(width(single) / 2, rel=0.15)


def test_groups_are_drawn_within_their_stratum():
    # Each stratum has one group: there is nothing to draw, so nothing varies.
    differences, groups = [1.0, -1.0], ["a", "b"]
    apart = paired_interval(differences, groups=groups, strata=["x", "y"])
    together = paired_interval(differences, groups=groups)
    assert apart == Interval(delta=0.0, ci95=(0.0, 0.0), note=ALL_EQUAL)
    assert together == Interval(delta=0.0, ci95=(-1.0, 1.0))


def test_groups_of_one_name_in_two_strata_are_two_groups():
    named_alike = paired_interval(
        [1.0, 3.0, -1.0, -3.0], groups=["0", "1", "0", "1"], strata=["x", "x", "y", "y"]
    )
    named_apart = paired_interval(
        [1.0, 3.0, -1.0, -3.0], groups=["0", "1", "2", "3"], strata=["x", "x", "y", "y"]
    )
    assert named_alike == named_apart
    assert named_alike.ci95 == (-1.0, 1.0)  # x gives 1 to 3, y the negatives: means -1 to 1


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_the_same():
    differences = np.random.default_rng(1).normal(size=50)
    groups = [str(i) for i in range(50)]
    first, again, other = (
        paired_interval(differences, groups=groups, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first.ci95 == pytest.approx(other.ci95, abs=0.03)


def test_the_count_of_resamples_reaches_the_draws():
    differences = np.random.default_rng(1).normal(size=50)
    groups = [str(i) for i in range(50)]
    few = paired_interval(differences, groups=groups, resamples=200)
    assert few != paired_interval(differences, groups=groups, resamples=1200)


@pytest.mark.parametrize(
    ("before", "after", "groups"), [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([1.0], [1.0], [])]
)
def test_what_cannot_be_paired_is_refused(before, after, groups):
    with pytest.raises(ValueError, match="paired_change needs as many values before"):
        paired_change(before, after, groups=groups)


# ---- the sign-flip test ----


def test_few_groups_are_tested_by_all_patterns_of_signs():
    # Of the eight sums ±1 ±2 ±3 two are as far from zero as 6; with 1, 2 and -3 six are.
    assert sign_flip_p_value([1.0, 2.0, 3.0], groups=["a", "b", "c"]) == 2 / 8
    assert sign_flip_p_value([1.0, 2.0, -3.0], groups=["a", "b", "c"]) == 1.0
    # Items of a group keep together, and weigh: 2·1 + 1·2 = 4 and 3, in two groups.
    paired = sign_flip_p_value([1, 2, 3], groups=["a", "a", "b"], weights=[2.0, 1.0, 1.0])
    assert paired == 2 / 4
    assert sign_flip_p_value([0.0, 0.0], groups=["a", "b"]) == 1.0


def test_many_groups_are_tested_by_random_patterns_that_agree_with_all():
    values = np.random.default_rng(5).normal(0.4, 1.0, size=14)
    all_signs = np.array(list(itertools.product((-1.0, 1.0), repeat=14)))
    exact = (np.abs(all_signs @ values) >= abs(values.sum()) - 1e-9).mean()
    found = sign_flip_p_value(values, groups=[str(i) for i in range(14)], draws=19_999)
    assert found == pytest.approx(exact, abs=0.01)
    clear = sign_flip_p_value([1.0] * 30, groups=[str(i) for i in range(30)], draws=999)
    assert clear == 1 / 1000


@pytest.mark.faults
def test_the_sign_flip_test_rejects_a_true_null_5_times_in_100():
    random = np.random.default_rng(0)
    groups = [str(i // 3) for i in range(60)]
    rejected = 0
    for draw in range(2000):
        rows = np.repeat(random.standard_t(3, size=20), 3) + random.normal(0, 0.3, size=60)
        rejected += sign_flip_p_value(rows, groups=groups, draws=399, seed=draw) <= 0.05
    assert rejected / 2000 == pytest.approx(0.05, abs=0.015)


# ---- coverage ----

Make = Callable[[np.random.Generator], dict[str, Any]]


def cover(make: Make, truth: float, *, draws: int = 2000, resamples: int = 2000) -> float:
    """Give the share of draws whose interval holds the true difference."""
    random = np.random.default_rng(0)
    hits = 0
    for draw in range(draws):
        low, high = paired_interval(**make(random), resamples=resamples, seed=draw).ci95
        hits += low <= truth <= high
    return hits / draws


def independent(count: int, *, skew: bool = False) -> Make:
    """One row per group; normal, or a gamma's tail to one side (skewness 1.4)."""
    groups = [str(i) for i in range(count)]

    def make(random: np.random.Generator) -> dict[str, Any]:
        values = random.gamma(2.0, 1.0, count) - 2 if skew else random.normal(size=count)
        return {"differences": values, "groups": groups}

    return make


def clustered(count: int, *, tokens: bool = False, skew: bool = False) -> Make:
    """One to six like rows per group; with tokens, 5 to 60 per row, by which rows weigh."""

    def make(random: np.random.Generator) -> dict[str, Any]:
        member = np.repeat(np.arange(count), random.integers(1, 7, count))
        shared = random.gamma(2.0, 1.0, count) - 2 if skew else random.normal(size=count)
        rows = shared[member] + random.normal(0.0, 0.5, len(member))
        weights = random.integers(5, 61, len(member)).astype(float)
        named: dict[str, Any] = {"differences": rows, "groups": [str(i) for i in member]}
        return {**named, "weights": weights} if tokens else named

    return make


def stratified(*counts: int, unlike: bool = False) -> Make:
    """Strata that differ in mean; unlike ones in spread, too, as 1 to 2 to 3."""
    groups = [str(i) for i in range(sum(counts))]
    strata = [str(place) for place, count in enumerate(counts) for _ in range(count)]

    def make(random: np.random.Generator) -> dict[str, Any]:
        values = [
            random.normal(place, 1 + place if unlike else 1, count)
            for place, count in enumerate(counts)
        ]
        return {"differences": np.concatenate(values), "groups": groups, "strata": strata}

    return make


def flips(items: int, *, to_wrong: float, to_right: float) -> Make:
    """Questions of which some turn wrong and some right."""
    groups = [str(i) for i in range(items)]
    shares = [to_wrong, 1 - to_wrong - to_right, to_right]

    def make(random: np.random.Generator) -> dict[str, Any]:
        turned = random.choice([-1.0, 0.0, 1.0], size=items, p=shares)
        return {"differences": turned, "groups": groups}

    return make


COVERED: dict[str, tuple[Make, float]] = {
    "independent": (independent(FEWEST_GROUPS), 0.0),
    "independent, 100": (independent(100), 0.0),
    "independent, skewed": (independent(FEWEST_GROUPS, skew=True), 0.0),
    "clustered": (clustered(FEWEST_GROUPS), 0.0),
    "clustered, 40": (clustered(40), 0.0),
    "clustered, tokens": (clustered(FEWEST_GROUPS, tokens=True), 0.0),
    "clustered, tokens, 40": (clustered(40, tokens=True), 0.0),
    "clustered, tokens, skewed, 40": (clustered(40, tokens=True, skew=True), 0.0),
    "strata": (stratified(FEWEST_GROUPS, FEWEST_GROUPS, FEWEST_GROUPS), 1.0),
    "strata, unlike, 20": (stratified(20, 20, 20, unlike=True), 1.0),
    "flips": (flips(200, to_wrong=0.08, to_right=0.04), -0.04),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", COVERED)
def test_the_interval_covers_the_truth_95_times_in_100(case):
    make, truth = COVERED[case]
    assert cover(make, truth) == pytest.approx(0.95, abs=0.015)


def test_resampling_rows_instead_of_groups_would_claim_too_much():
    grouped = clustered(40)

    def as_rows(random: np.random.Generator) -> dict[str, Any]:
        made = grouped(random)
        return {**made, "groups": [str(i) for i in range(len(made["groups"]))]}

    assert cover(as_rows, 0.0, draws=300, resamples=400) < 0.80


# ---- what can be seen ----


def test_the_smallest_difference_that_can_be_seen_is_seen_four_times_in_five():
    # The spread is known here; half the mean interval is Student's quantile times it.
    random = np.random.default_rng(0)
    groups = [str(i) for i in range(40)]
    half = float(stdtrit(39, 0.975)) / math.sqrt(40)
    least = detectable_difference((-half, half), groups=40)
    seen = 0
    for draw in range(400):
        rows = random.normal(least, 1.0, size=40)
        seen += paired_interval(rows, groups=groups, resamples=400, seed=draw).ci95[0] > 0
    assert binom.ppf(0.005, 400, 0.8) <= seen <= binom.ppf(0.995, 400, 0.8)


def test_one_group_sees_nothing():
    assert detectable_difference((0.1, 0.1), groups=1) == math.inf
    assert detectable_difference((0.1, 0.1), groups=9) == 0.0
