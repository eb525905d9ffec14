"""Stratified division that is exact in every stratum and moves no row when rows are appended."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FINEST = 100_000
"""Shares are taken as fractions with denominators up to this."""
ROUNDS = 60
"""Rounds of proportional fitting; the chances are then right to about four digits."""
AT_ONCE = 20_000
"""Entries of the table worked out together; bounds memory where shares have many digits."""


@dataclass(frozen=True, kw_only=True)
class QuotaTable:
    """What the next unit of a stratum may become, by the units before it.

    The tables are flat; the entry is 3 * (number of units before, modulo period) + state.

    Attributes:
        period: Units after which the table begins again.
        first: A draw below first[entry] gives part 0.
        second: Else a draw below second[entry] gives part 1, and any other part 2.
        then: The state after that, at 3 * entry + part.
    """

    period: int
    first: array[float]
    second: array[float]
    then: bytes


def divide_strata(
    strata: Sequence[int] | np.ndarray, draws: Sequence[float] | np.ndarray, shares: Sequence[float]
) -> list[int]:
    """Put each unit into one of three parts, within one unit of the exact share at every point.

    Units are taken in order. In a stratum of which n units have come, each part holds the exact
    number, share times n, rounded down or up; this holds for every n. What a unit becomes depends
    on its own draw and on the units before it in its stratum, never on later ones. So appended
    units move nobody, and no stratum is ever more than one unit off. Both at once cannot be had
    for units put in front of or between others: these may move later ones of their stratum.

    Within these bounds the choice is by chance, so that no rhythm of the file shows in a part, and
    each unit's chances are the shares, also in a stratum of one. This is the rounding of a
    fractional matching of units to places (Gandhi et al. 2006, "Dependent rounding"), made step
    by step: the rounding-up parts at n are 0, 1 or 2 of three, so that their chances alone fix the
    joint distribution, and each step is a transport from one of these to the next.

    Args:
        strata: Stratum of each unit as a code from 0, shape (units,).
        draws: A number in [0, 1) for each unit, shape (units,).
        shares: Shares of the three parts; they sum to 1.

    Returns:
        0, 1 or 2 for each unit.
    """
    import numpy as np

    codes = np.asarray(strata)
    if not len(codes):
        return []
    sizes = np.bincount(codes)
    table = quota_table(shares, longest=int(sizes.max()))
    first, second, then, period = table.first, table.second, table.then, table.period
    come, state = [0] * len(sizes), [0] * len(sizes)
    parts = []
    for stratum, draw in zip(codes.tolist(), np.asarray(draws).tolist(), strict=True):
        entry = 3 * come[stratum] + state[stratum]
        part = 0 if draw < first[entry] else 1 if draw < second[entry] else 2
        state[stratum] = then[3 * entry + part]
        come[stratum] = (come[stratum] + 1) % period
        parts.append(part)
    return parts


def quota_table(shares: Sequence[float], *, longest: int) -> QuotaTable:
    """Work out the chances of every step.

    A state says which parts are rounded up: with one such part, its number; with two, the number
    of the third; with none, 0.

    Args:
        shares: Shares of the three parts; they sum to 1.
        longest: Units of the largest stratum.
    """
    import numpy as np

    exact = [Fraction(repr(float(share))).limit_denominator(FINEST) for share in shares[1:]]
    exact = [1 - sum(exact, Fraction(0)), *exact]
    whole = math.lcm(*(part.denominator for part in exact))
    steps = np.array([int(part * whole) for part in exact], dtype=np.int64)
    period = min(whole, longest)
    first, second, then = array("d"), array("d"), bytearray()
    for start in range(0, period, AT_ONCE):
        before = np.arange(start, min(start + AT_ONCE, period), dtype=np.int64)
        below_first, below_second, states = _work_out(before, steps, whole)
        first.frombytes(below_first.tobytes())
        second.frombytes(below_second.tobytes())
        then += states.tobytes()
    return QuotaTable(period=period, first=first, second=second, then=bytes(then))


def _work_out(
    numbers: np.ndarray, steps: np.ndarray, whole: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Work out the entries of the table for some numbers of units before."""
    import numpy as np

    before = np.outer(numbers, steps) % whole  # what each part's exact number exceeds a whole by
    after = (before + steps) % whole
    up, up_after = before.sum(axis=1) // whole, after.sum(axis=1) // whole  # parts rounded up
    chance = _chances(before / whole, up)  # (n, state)
    wraps = before + steps >= whole  # the rounded-down number rises with this unit
    change = np.eye(3, dtype=np.int8) - wraps[:, None, None, :].astype(np.int8)
    became = _states(up)[:, :, None, :] + change  # (n, state, part chosen, part)
    allowed = ((became >= 0) & (became <= (after > 0)[:, None, None, :])).all(axis=3)
    flow = _fit(allowed * chance[:, :, None], chance, steps / whole)
    total = flow.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = flow[:, :, 0] / total
        second = (flow[:, :, 0] + flow[:, :, 1]) / total
    # A part that must not come is out of reach of any draw, however sums were rounded.
    second = np.where(allowed[:, :, 2], second, 2.0)
    first = np.where(allowed[:, :, 1] | allowed[:, :, 2], first, 2.0)
    # The one part that is not up, or the one that is; where none is, nothing is found: state 0.
    wanted = np.where(up_after == 2, 0, 1)
    then = (became == wanted[:, None, None, None]).argmax(axis=3).astype(np.uint8)
    return first, second, then


def _states(up: np.ndarray) -> np.ndarray:
    """Say which parts are rounded up in each state, shape (n, state, part)."""
    import numpy as np

    one = np.eye(3, dtype=np.int8)
    return np.stack([0 * one, one, 1 - one])[up]


def _chances(rest: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Give the chance of each state, shape (n, state), which the parts' own chances fix."""
    import numpy as np

    none = np.array([1.0, 0.0, 0.0])
    counts = up[:, None]
    return np.where(counts == 0, none, np.where(counts == 1, rest, 1 - rest))


def _fit(flow: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Scale allowed cells until they sum to given rows and columns (iterative proportions)."""
    import numpy as np

    flow = flow * columns
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(ROUNDS):
            flow = flow * np.nan_to_num(columns / flow.sum(axis=1), posinf=0.0)[:, None, :]
            flow = flow * np.nan_to_num(rows / flow.sum(axis=2), posinf=0.0)[:, :, None]
    return flow
