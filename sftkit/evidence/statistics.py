"""Paired intervals that resample groups.

Two phrasings of one fact are not two independent facts, so whole groups are drawn. Before and after
are measured on the same items and drawn together, so what is hard about an item cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftkit.evidence_records import Change

_CHUNK = 500  # resamples drawn at once; bounds memory to a few MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference and its 95 % interval."""

    delta: float
    ci95: tuple[float, float]


def paired_change(
    before: Sequence[float],
    after: Sequence[float],
    *,
    groups: Sequence[str],
    weights: Sequence[float] | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Change:
    """Compare two measurements of the same items.

    Args:
        before: Value per item, base model, shape (N,).
        after: Value per item, tuned model, shape (N,).
        groups: Group of each item; whole groups are resampled.
        weights: Weight of each item, such as its supervised tokens; None weighs all alike.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Weighted means, their difference, and its percentile interval (Efron and Tibshirani 1993,
        chapter 13).

    Raises:
        ValueError: No items, or sequences of different length.
    """
    weight = np.ones(len(before)) if weights is None else np.asarray(weights, dtype=float)
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not len(first) or not len(first) == len(second) == len(groups) == len(weight):
        raise ValueError(
            f"paired_change needs as many values before ({len(first)}), after ({len(second)}), "
            f"groups ({len(groups)}) and weights ({len(weight)}), and at least one."
        )
    interval = paired_interval(
        second - first, groups=groups, weights=weight, resamples=resamples, seed=seed
    )
    total = float(weight.sum())
    return Change(
        before=float((weight * first).sum() / total),
        after=float((weight * second).sum() / total),
        delta=interval.delta,
        ci95=interval.ci95,
        items=len(first),
        groups=len(set(groups)),
        tokens=0 if weights is None else int(total),
    )


def paired_interval(
    differences: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[str],
    weights: Sequence[float] | np.ndarray | None = None,
    strata: Sequence[str] | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """Return the weighted mean of per-item differences with its 95 % interval.

    Args:
        differences: after - before per item, shape (N,).
        groups: Group of each item.
        weights: Weight of each item; None weighs all alike.
        strata: Groups are drawn within each of these, in its own number; None draws from all.
        resamples: Bootstrap draws.
        seed: Seed of the draws.
    """
    difference = np.asarray(differences, dtype=float)
    weight = np.ones(len(difference)) if weights is None else np.asarray(weights, dtype=float)
    layers = ["" for _ in groups] if strata is None else list(strata)
    keys = sorted(set(zip(layers, groups, strict=True)))
    place = {key: position for position, key in enumerate(keys)}
    member = np.array([place[key] for key in zip(layers, groups, strict=True)])
    sums = np.bincount(member, weights=weight * difference, minlength=len(keys))
    sizes = np.bincount(member, weights=weight, minlength=len(keys))
    of_layer = np.array([layer for layer, _ in keys])
    random = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        top, bottom = np.zeros(count), np.zeros(count)
        for layer in sorted(set(layers)):
            inside = of_layer == layer
            size = int(inside.sum())
            times = random.multinomial(size, np.full(size, 1 / size), size=count)
            top += times @ sums[inside]
            bottom += times @ sizes[inside]
        draws.append(top / bottom)
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    return Interval(
        delta=float((weight * difference).sum() / weight.sum()), ci95=(float(low), float(high))
    )
