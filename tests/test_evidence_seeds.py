"""Changes over several trainings: hand-computed, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sftkit.evidence.seeds import ONE_SEED, SeedChange, change_over_seeds
from sftkit.evidence.statistics import ALL_EQUAL, ONE_GROUP

QUANTILE_OF_1 = 12.7062047  # Student's 0.975 quantile with 1 degree of freedom
QUANTILE_OF_2 = 4.302653  # with 2


def test_three_seeds_that_agree_on_every_question_differ_by_questions_alone():
    before = [[0.0, 0.0, 0.0]] * 3
    after = [[1.0, 2.0, 3.0]] * 3
    half = QUANTILE_OF_2 * math.sqrt(1 / 3)  # variance 1 of three groups
    found = change_over_seeds(before, after, groups=["a", "b", "c"])
    assert found.ci95 == pytest.approx((2 - half, 2 + half))
    assert found == SeedChange(
        before=0.0, after=2.0, delta=2.0, ci95=found.ci95, by_seed=(2.0, 2.0, 2.0), items=3,
        groups=3,
    )  # fmt: skip


def test_seeds_that_move_all_questions_alike_differ_by_seeds_alone():
    after = [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    found = change_over_seeds([[0.0] * 4] * 3, after, groups=["a", "b", "c", "d"])
    half = QUANTILE_OF_2 * math.sqrt(1 / 3)
    assert (found.delta, found.by_seed) == (2.0, (1.0, 2.0, 3.0))
    assert found.ci95 == pytest.approx((2 - half, 2 + half))


def test_what_groups_and_seeds_vary_by_adds_up():
    found = change_over_seeds([[0, 0]] * 2, [[0, 2], [2, 4]], groups=["a", "b"])
    half = QUANTILE_OF_2 * math.sqrt(1 + 1)  # variance 2 of two groups, and of two seeds
    assert found.ci95 == pytest.approx((2 - half, 2 + half))


def test_what_both_count_is_counted_once():
    # Of the variance of groups' and of seeds' means, 1/4 each, all may be due to single answers.
    found = change_over_seeds([[0, 0]] * 2, [[0, 0], [0, 2]], groups=["a", "b"])
    half = QUANTILE_OF_1 * math.sqrt(1 / 4)
    assert found.ci95 == pytest.approx((0.5 - half, 0.5 + half))


def test_phrasings_of_one_fact_count_once():
    random = np.random.default_rng(0)
    facts = random.normal(size=(3, 12))
    zeros = np.zeros((3, 12))
    names = [f"fact {n}" for n in range(12)]
    once = change_over_seeds(zeros, facts, groups=names)
    twice = change_over_seeds(
        np.hstack([zeros] * 2), np.hstack([facts] * 2), groups=[*names, *names]
    )
    assert twice.ci95 == pytest.approx((once.ci95[0], once.ci95[1]))
    assert (once.items, twice.items, twice.groups) == (12, 24, 12)


def test_answers_weigh_by_their_tokens():
    found = change_over_seeds(
        [[0.0, 0.0]] * 2, [[1.0, 4.0], [1.0, 4.0]], groups=["a", "b"], weights=[2.0, 1.0]
    )
    assert [found.delta, *found.by_seed] == pytest.approx([2, 2, 2])
    half = QUANTILE_OF_1 * 4 / 3  # the sums pull by -2 and 2, of a mean weight of 1.5
    assert found.ci95 == pytest.approx((2 - half, 2 + half))


def test_the_order_of_rows_does_not_matter():
    random = np.random.default_rng(1)
    values, groups = random.normal(size=(3, 10)), [f"g{n // 2}" for n in range(10)]
    order = random.permutation(10)
    one = change_over_seeds(np.zeros((3, 10)), values, groups=groups)
    other = change_over_seeds(
        np.zeros((3, 10)), values[:, order], groups=[groups[n] for n in order]
    )
    assert other.ci95 == pytest.approx((one.ci95[0], one.ci95[1]))


def test_an_interval_says_what_it_leaves_out():
    one = change_over_seeds([[0, 0, 0]], [[1, 2, 3]], groups=["a", "b", "c"])
    assert (one.note, one.ci95[0] < one.delta < one.ci95[1]) == (ONE_SEED, True)
    group = change_over_seeds([[0, 0]] * 2, [[1, 2], [3, 4]], groups=["a", "a"])
    assert (group.note, group.ci95) == (ONE_GROUP, (2.5, 2.5))
    equal = change_over_seeds([[0, 0]] * 2, [[1, 1]] * 2, groups=["a", "b"])
    assert (equal.note, equal.ci95) == (ALL_EQUAL, (1.0, 1.0))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"one shape .*\(1, 2\) before and \(1, 3\) after"):
        change_over_seeds([[0, 0]], [[1, 1, 1]], groups=["a", "b"])
    with pytest.raises(ValueError, match="with 3 groups"):
        change_over_seeds([[0, 0]], [[1, 1]], groups=["a", "b", "c"])


@pytest.mark.parametrize(
    ("of_groups", "of_seeds", "of_both"),
    [(1, 0, 0), (1, 0, 1), (0, 0, 1), (1, 0.25, 0.5), (1, 0.5, 0.5), (0.3, 1, 0.3), (0, 0.5, 0.5)],
)
def test_intervals_cover_the_truth(of_groups, of_seeds, of_both):
    random = np.random.default_rng(7)
    groups = [f"{n // 2:02}" for n in range(32)]  # 16 facts, two questions each
    hits, draws = 0, 2000
    for _ in range(draws):
        ability = (
            of_groups * random.normal(size=16)
            + of_seeds * random.normal(size=(3, 1))
            + of_both * random.normal(size=(3, 16))
        )
        values = np.repeat(ability, 2, axis=1) + 0.5 * random.normal(size=(3, 32))
        found = change_over_seeds(np.zeros((3, 32)), values, groups=groups)
        hits += found.ci95[0] <= 0 <= found.ci95[1]
    assert 0.93 <= hits / draws <= 0.995
