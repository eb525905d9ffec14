"""Batches hold every row once per epoch, keep their budget, and are dealt out whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit.batching import deal, fill_batches, plan_batches
from sftkit.errors import TrainError

BUDGET = 64
rows_of_lengths = st.lists(st.integers(1, BUDGET), max_size=600)


def test_rows_of_like_length_share_a_batch_up_to_the_budget():
    # Budget 12: three rows of up to 4 tokens, or two of up to 6.
    lengths = [6, 3, 4, 6, 2, 4]
    assert fill_batches([4, 1, 2, 5, 0, 3], lengths, max_tokens=12) == [[4, 1, 2], [5, 0], [3]]


def test_a_row_longer_than_the_budget_gets_a_batch_of_its_own_when_scoring():
    assert fill_batches([0, 1, 2], [3, 20, 3], max_tokens=8) == [[0], [1], [2]]
    assert fill_batches([], [], max_tokens=8) == []


@given(rows_of_lengths, st.integers(1, 3), st.integers(0, 5))
def test_every_row_comes_once_per_epoch(lengths, epochs, seed):
    plan = plan_batches(lengths, max_tokens=BUDGET, epochs=epochs, seed=seed)
    seen = Counter(row for batch in plan for row in batch)
    assert seen == dict.fromkeys(range(len(lengths)), epochs)


@given(rows_of_lengths, st.integers(1, 3))
def test_epochs_follow_one_another_whole(lengths, epochs):
    plan = plan_batches(lengths, max_tokens=BUDGET, epochs=epochs, seed=0)
    order = [row for batch in plan for row in batch]
    for epoch in range(epochs):
        part = order[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))


@given(rows_of_lengths, st.integers(0, 5))
def test_no_batch_is_empty_or_exceeds_the_budget_padding_included(lengths, seed):
    for batch in plan_batches(lengths, max_tokens=BUDGET, epochs=1, seed=seed):
        assert batch
        assert len(batch) * max(lengths[row] for row in batch) <= BUDGET


@given(rows_of_lengths, st.integers(0, 5))
def test_the_same_seed_plans_the_same_batches(lengths, seed):
    first = plan_batches(lengths, max_tokens=BUDGET, epochs=2, seed=seed)
    assert plan_batches(lengths, max_tokens=BUDGET, epochs=2, seed=seed) == first


def test_another_seed_and_another_epoch_come_in_another_order():
    lengths = [5] * 100
    plans = [plan_batches(lengths, max_tokens=10, epochs=2, seed=seed) for seed in (0, 1)]
    assert plans[0] != plans[1]
    assert plans[0][:50] != plans[0][50:]


def test_an_example_beyond_the_budget_is_refused_with_the_remedy():
    with pytest.raises(TrainError) as caught:
        plan_batches([5, 70, 9], max_tokens=64, epochs=1, seed=0)
    assert str(caught.value) == (
        "The longest example has 70 tokens and max_tokens_per_batch is 64. Raise "
        "train.max_tokens_per_batch to 70 or lower data.max_tokens."
    )


def test_rows_are_dealt_there_and_back_so_that_no_hand_gets_all_long_ones():
    # Longest first: places 3, 1, 2, 0 with 9, 7, 5, 3 tokens go to hands 0, 1, 1, 0.
    assert deal([3, 7, 5, 9], process=0, processes=1, micro_batches=2) == [[3, 0], [1, 2]]


@given(st.lists(st.integers(1, BUDGET), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_all_hands_together_are_the_batch(lengths, processes, micro_batches):
    hands = [
        deal(lengths, process=process, processes=processes, micro_batches=micro_batches)
        for process in range(processes)
    ]
    # Every process runs as many passes as any other: they wait for one another at each.
    assert [len(hand) for hand in hands] == [micro_batches] * processes
    dealt = [place for hand in hands for places in hand for place in places]
    assert sorted(dealt) == list(range(len(lengths)))


@given(st.lists(st.integers(1, BUDGET), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_hands_differ_by_one_row_at_most(lengths, processes, micro_batches):
    sizes = [
        len(places)
        for process in range(processes)
        for places in deal(
            lengths, process=process, processes=processes, micro_batches=micro_batches
        )
    ]
    assert max(sizes) - min(sizes) <= 1
