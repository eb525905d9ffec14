"""Changes over several trainings: an interval that counts the seeds as well as the questions.

A test says how sure a number is for one trained model. Train it again with another seed and the
number moves, though no question changed. Here each seed answers the same questions, so the two
causes can be told apart and added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftkit.evidence.statistics import ALL_EQUAL, ONE_GROUP

ONE_SEED = "there is one seed, so what another training would bring is not counted"


@dataclass(frozen=True, kw_only=True)
class SeedChange:
    """One paired measurement, before and after, over several trainings.

    Attributes:
        before: Mean over seeds and items, before.
        after: The same, after.
        delta: after - before.
        ci95: 95 % interval of delta, for other seeds and other groups of questions.
        by_seed: The difference of each seed.
        items: Items, the same for every seed.
        groups: Groups they fall into.
        note: What the interval leaves out; empty if nothing.
    """

    before: float
    after: float
    delta: float
    ci95: tuple[float, float]
    by_seed: tuple[float, ...]
    items: int
    groups: int
    note: str = ""


def change_over_seeds(
    before: Sequence[Sequence[float]] | np.ndarray,
    after: Sequence[Sequence[float]] | np.ndarray,
    *,
    groups: Sequence[str],
    weights: Sequence[float] | None = None,
) -> SeedChange:
    """Compare two measurements of the same items, each by several trainings.

    Seeds and groups are both drawn from more: the variance of the mean is that of the groups' means
    plus that of the seeds' means, less what both count twice (a two-way table without repetition).
    The degrees of freedom join as by Satterthwaite (1946). Three seeds say little about how far
    seeds differ, and the interval is as wide as that demands.

    With 3 seeds and 16 groups it covers the truth 93 to 97 times in 100, whichever of the two
    varies more, and up to 99 times where neither varies beyond chance: tests/test_evidence_seeds.py
    simulates it.

    Args:
        before: Value per seed and item, shape (S, N); a base model's values are repeated S times.
        after: The same of the trained models; row s belongs to row s of `before`.
        groups: Group of each item, shape (N,).
        weights: Weight of each item, such as its supervised tokens; None weighs all alike.

    Returns:
        Means, their difference, and its interval.

    Raises:
        ValueError: No items, or shapes that differ.
    """
    first, second = (
        np.atleast_2d(np.asarray(before, float)),
        np.atleast_2d(np.asarray(after, float)),
    )
    weight = np.ones(len(groups)) if weights is None else np.asarray(weights, dtype=float)
    if not first.size or first.shape != second.shape or first.shape[1:] != (len(groups),):
        raise ValueError(
            f"change_over_seeds needs values of one shape (seeds, items), got {first.shape} before "
            f"and {second.shape} after, with {len(groups)} groups."
        )
    difference = second - first
    names = sorted(set(groups))
    member = np.array([names.index(group) for group in groups])
    inside = member == np.arange(len(names))[:, None]
    sizes = inside @ weight
    delta = float((difference @ weight).mean() / weight.sum())
    # How far each seed pulls the mean in each group, to first order; groups may differ in size.
    pulls = ((difference * weight) @ inside.T - delta * sizes) / sizes.mean()
    spread, note = _half_width(pulls)
    return SeedChange(
        before=float((first @ weight).mean() / weight.sum()),
        after=float((second @ weight).mean() / weight.sum()),
        delta=delta,
        ci95=(delta - spread, delta + spread),
        by_seed=tuple(float(value) for value in difference @ weight / weight.sum()),
        items=len(groups),
        groups=len(names),
        note=note,
    )


def _half_width(pulls: np.ndarray) -> tuple[float, str]:
    """Give half the width of the mean's interval, and what it leaves out; shape (S, G)."""
    from scipy.special import stdtrit

    seeds, groups = pulls.shape
    if groups < 2:
        return 0.0, ONE_GROUP
    by_group, by_seed = pulls.mean(axis=0), pulls.mean(axis=1)
    of_groups, free = float(by_group.var(ddof=1)) / groups, groups - 1
    if seeds < 2:
        return math.sqrt(of_groups) * float(stdtrit(free, 0.975)), ONE_SEED
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    rest = pulls - by_group - by_seed[:, None] + pulls.mean()
    freedom = (free, seeds - 1, free * (seeds - 1))
    twice = float((rest**2).sum()) / freedom[2] / pulls.size
    parts = (of_groups, of_seeds, twice)
    variance = max(of_groups, of_seeds, of_groups + of_seeds - twice)
    if variance <= 0:
        return 0.0, ALL_EQUAL
    of_all = sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
    quantile = float(stdtrit(max(1.0, variance**2 / of_all), 0.975))
    return math.sqrt(variance) * quantile, ""
