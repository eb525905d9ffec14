"""Shares and counts: exact tests equal what is counted by hand, and intervals cover."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from sftkit.evidence.shares import (
    detectable_share,
    holm,
    least_share,
    mcnemar_exact,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("count", "items", "expected"),
    [
        (0, 100, (0.0, 0.0370)),  # z² / (n + z²) = 3.8415 / 103.8415
        (5, 10, (0.2366, 0.7634)),  # 0.5 ± 1.96 sqrt(0.025 + 0.0096) / 1.384
        (100, 100, (0.9630, 1.0)),
    ],
)
def test_wilsons_interval_is_the_one_computed_by_hand(count, items, expected):
    assert wilson_interval(count, items) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("count", "items"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(count, items):
    with pytest.raises(ValueError, match="needs 0 <= count <= items, got"):
        wilson_interval(count, items)


@pytest.mark.parametrize("items", [20, 200])
def test_wilsons_interval_covers_the_truth_95_times_in_100(items):
    random = np.random.default_rng(0)
    truths = random.uniform(size=4000)
    known = cache(wilson_interval)
    ends = np.array([known(int(c), items) for c in random.binomial(items, truths)])
    covered = ((ends[:, 0] <= truths) & (truths <= ends[:, 1])).mean()
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("to_wrong", "to_right", "expected"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (9, 1, 22 / 1024),  # twice (1 + 10) of 2^10 patterns
        (0, 5, 2 / 32),
        (6, 0, 2 / 64),
    ],
)
def test_mcnemars_test_counts_patterns_of_flips(to_wrong, to_right, expected):
    assert mcnemar_exact(to_wrong, to_right) == pytest.approx(expected)


def test_mcnemars_test_rejects_a_true_null_at_most_5_times_in_100():
    # Summed over all counts of 40 flips instead of drawn: the exact rate.
    rate = sum(binom.pmf(k, 40, 0.5) for k in range(41) if mcnemar_exact(k, 40 - k) < 0.05)
    assert 0.02 < rate <= 0.05


def test_holms_correction_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.6, 0.5]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()


def test_without_other_flips_six_have_to_be_seen():
    # Of five flips in one direction the two-sided p-value is 1/16, of six 1/32: so a drop is
    # detectable where six or more of the items flip four times in five.
    drop = detectable_share(60)
    assert drop is not None
    assert binom.sf(5, 60, drop) == pytest.approx(0.8, abs=0.002)
    assert (detectable_share(5), detectable_share(0)) == (None, None)


def test_the_power_behind_it_is_that_of_all_outcomes_counted():
    items, discordance = 14, 0.1
    drop = detectable_share(items, discordance=discordance)
    assert drop is not None
    worse, better = discordance / 2 + drop, discordance / 2
    seen = 0.0
    for wrong, right in itertools.product(range(items + 1), repeat=2):
        same = items - wrong - right
        if same >= 0 and wrong > right and mcnemar_exact(wrong, right) <= 0.05:
            ways = math.comb(items, wrong) * math.comb(items - wrong, right)
            seen += ways * worse**wrong * better**right * (1 - worse - better) ** same
    assert seen == pytest.approx(0.8, abs=0.002)


def test_more_items_see_smaller_drops_and_more_flips_hide_them():
    drops = [detectable_share(items, discordance=0.1) for items in (100, 200, 400)]
    assert drops == sorted(drops, key=lambda drop: -(drop or 1))
    assert (detectable_share(200, discordance=0.2) or 0) > (drops[1] or 1)


def test_the_rule_of_three():
    assert (least_share(100), least_share(2), least_share(0)) == (0.03, 1.0, math.inf)
