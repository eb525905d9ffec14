"""Which examples share a step: batches filled to a token budget, then dealt out.

A batch is one optimizer step. It is planned for the whole run before the first step, from lengths
and a seed alone, so one process or eight see the same batches and the same loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sftkit.errors import TrainError

WINDOW_ROWS = 256
"""Rows sorted by length together. Larger saves padding; smaller keeps batches more mixed."""


def plan_batches(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    epochs: int,
    seed: int,
    max_rows: int | None = None,
) -> list[list[int]]:
    """Fill batches to a token budget from length-sorted windows of a shuffled order.

    Args:
        lengths: Length of each example in tokens, shape (N,).
        max_tokens: Budget of one batch, padding included: rows × longest row.
        epochs: Passes over the examples; each is shuffled anew.
        seed: Seed of the order.
        max_rows: Most examples of one batch; None sets no limit beside the budget.

    Returns:
        Row numbers per batch, for all epochs. Every row comes once per epoch.

    Raises:
        TrainError: An example alone exceeds the budget.
    """
    longest = max(lengths, default=0)
    if longest > max_tokens:
        raise TrainError(
            f"The longest example has {longest} tokens and max_tokens_per_batch is {max_tokens}. "
            f"Raise train.max_tokens_per_batch to {longest} or lower data.max_tokens."
        )
    batches: list[list[int]] = []
    for epoch in range(epochs):
        chance = random.Random(f"{seed}/{epoch}")  # noqa: S311  (an order, not a secret)
        order = list(range(len(lengths)))
        chance.shuffle(order)
        of_epoch: list[list[int]] = []
        for start in range(0, len(order), WINDOW_ROWS):
            window = sorted(order[start : start + WINDOW_ROWS], key=lambda row: lengths[row])
            of_epoch.extend(fill_batches(window, lengths, max_tokens=max_tokens, max_rows=max_rows))
        chance.shuffle(of_epoch)
        batches.extend(of_epoch)
    return batches


def fill_batches(
    rows: Sequence[int],
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_rows: int | None = None,
) -> list[list[int]]:
    """Cut an ordered list of rows into batches of at most max_tokens, padding included.

    Args:
        rows: Row numbers in the order to keep, shape (M,).
        lengths: Length of each example in tokens, shape (N,).
        max_tokens: Budget of rows × longest row.
        max_rows: Most rows of one batch; None sets no limit beside the budget.

    Returns:
        Row numbers per batch. A row longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        is_full = len(current) == max_rows
        if current and (is_full or longest * (len(current) + 1) > max_tokens):
            batches.append(current)
            current, longest = [], lengths[row]
        current.append(row)
    if current:
        batches.append(current)
    return batches


def deal(
    lengths: Sequence[int], *, process: int, processes: int, micro_batches: int
) -> list[list[int]]:
    """Deal one batch to one process, as micro-batches of similar length.

    Args:
        lengths: Length of each example of the batch in tokens, shape (B,).
        process: This process, from 0.
        processes: How many processes share the step.
        micro_batches: Forward passes per process.

    Returns:
        Exactly `micro_batches` lists of places in the batch; some are empty when rows are fewer
        than hands. All processes' lists together are the batch.
    """
    hands: list[list[int]] = [[] for _ in range(processes * micro_batches)]
    ordered = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for position, row in enumerate(ordered):
        # There and back, so that no hand gets the longest row of every round.
        lap, place = divmod(position, len(hands))
        hands[place if lap % 2 == 0 else len(hands) - 1 - place].append(row)
    return hands[process::processes]
