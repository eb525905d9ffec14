"""Shares and counts: Wilson, McNemar, Holm, and the smallest difference that can be seen.

Everything here is exact or closed; nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
POWER = 0.8


def wilson_interval(count: int, items: int) -> tuple[float, float]:
    """Give the 95 % interval of a share of independent items.

    Over all true shares alike it covers 95 times in 100, for one share sometimes less or more
    (Wilson 1927; recommended by Brown, Cai and DasGupta 2001). It is never of no width: 0 of 100
    gives 0 to 3.7 %.

    Args:
        count: Items with the property.
        items: All items, 1 or more.

    Raises:
        ValueError: count is not within 0 and items, or there are no items.
    """
    from scipy.stats import binomtest

    if not 0 <= count <= items or items < 1:
        raise ValueError(f"wilson_interval needs 0 <= count <= items, got {count} of {items}.")
    found = binomtest(count, items).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def mcnemar_exact(to_wrong: int, to_right: int) -> float:
    """Give the two-sided p-value that flips in both directions are equally likely.

    The exact test, a binomial one with p = 1/2 on the items that flipped (McNemar 1947). It is
    conservative: of true nulls it rejects at most the stated share. Without flips it is 1.

    Args:
        to_wrong: Items right before and wrong after.
        to_right: Items wrong before and right after.
    """
    from scipy.stats import binomtest

    flips = to_wrong + to_right
    return float(binomtest(to_wrong, flips, 0.5).pvalue) if flips else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for their number, in the order given.

    The chance of even one false alarm among all of them stays at the level, whatever their
    dependence (Holm 1979).

    Args:
        p_values: One per hypothesis, each in 0..1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return tuple(corrected)


def detectable_share(items: int, *, discordance: float = 0.0, power: float = POWER) -> float | None:
    """Give the smallest drop of a share that McNemar's exact test sees often enough.

    The model: a share `discordance` of the items flips in any case, half of it each way, and the
    drop comes on top, in one direction. The power is summed exactly over all counts of flips.

    Args:
        items: Paired items.
        discordance: Share of items that flip without any drop, as observed between two models.
        power: How often the drop has to be seen.

    Returns:
        The drop, in 0..1; None where even a drop of every item would not be seen.
    """
    room = 1.0 - discordance
    if items < 1 or _power(items, discordance, room) < power:
        return None
    low, high = 0.0, room
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _power(items, discordance, middle) < power:
            low = middle
        else:
            high = middle
    return high


def _power(items: int, discordance: float, drop: float) -> float:
    """Give how often McNemar's exact test, two-sided at 5 %, finds a drop to be one."""
    from scipy.stats import binom

    flipping = min(1.0, discordance + drop)
    if flipping <= 0:
        return 0.0
    flips = np.arange(items + 1)
    # The most flips to right with which so many flips still count as a drop.
    most = binom.ppf(ALPHA / 2, flips, 0.5)
    most = np.where(binom.cdf(most, flips, 0.5) <= ALPHA / 2, most, most - 1)
    to_right = (discordance / 2) / flipping
    seen = np.where(most >= 0, binom.cdf(most, flips, to_right), 0.0)
    return float((binom.pmf(flips, items, flipping) * seen).sum())


def least_share(items: int) -> float:
    """Give the share that no occurrence among so many independent items rules out.

    The upper end of the 95 % interval of 0 of n is about 3/n: the rule of three (Hanley and
    Lippman-Hand 1983).
    """
    return min(1.0, 3.0 / items) if items else math.inf
