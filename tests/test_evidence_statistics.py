"""Intervals resample whole groups, and cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from sftkit.evidence.statistics import Interval, paired_change, paired_interval
from sftkit.evidence_records import Change


def width(interval: Interval) -> float:
    return interval.ci95[1] - interval.ci95[0]


def test_a_change_is_the_weighted_mean_of_paired_differences():
    # Differences +1 +1 0 -1. Two groups are drawn twice: a+a gives 1, a+b -1/6, b+b -3/4; the
    # outer two come once in four draws each, so they are the ends of the interval.
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


def test_one_difference_everywhere_gives_an_interval_of_no_width():
    interval = paired_interval([0.25] * 8, groups=[str(i) for i in range(8)])
    assert interval == Interval(delta=0.25, ci95=(0.25, 0.25))


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
    assert apart == Interval(delta=0.0, ci95=(0.0, 0.0))
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


def cover(draws: int, *, by_group: bool) -> float:
    """Count how often the interval holds the true difference: 40 groups of 3 like rows each."""
    random = np.random.default_rng(0)
    truth, hits = 0.3, 0
    for draw in range(draws):
        of_group = random.normal(truth, 1.0, size=40)
        rows = np.repeat(of_group, 3) + random.normal(0.0, 0.3, size=120)
        groups = [str(i // 3 if by_group else i) for i in range(120)]
        low, high = paired_interval(rows, groups=groups, resamples=400, seed=draw).ci95
        hits += low <= truth <= high
    return hits / draws


def test_the_interval_covers_the_truth_about_95_times_in_100():
    assert 0.90 <= cover(300, by_group=True) <= 0.98


def test_resampling_rows_instead_of_groups_would_claim_too_much():
    assert cover(300, by_group=False) < 0.80
