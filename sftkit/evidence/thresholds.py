"""From which score on an item counts as positive: chosen on validation, applied on test items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sftkit.label_records import CurvePoint, Threshold

Array = np.ndarray
_CURVE_POINTS = 101


def choose_threshold(
    targets: Sequence[int] | Array,
    scores: Sequence[float] | Array,
    *,
    aim: Literal["f1", "recall", "cost"] = "f1",
    recall: float = 0.9,
    costs: tuple[float, float] = (1.0, 1.0),
) -> Threshold:
    """Choose from which score on an item counts as positive. Only ever hand in validation items.

    Args:
        targets: 1 for positive items, 0 for others, shape (N,).
        scores: Probability of the positive class, shape (N,), or of both, shape (N, 2).
        aim: f1 takes the largest F1; recall the best precision among thresholds that reach
            `recall`; cost the least mean cost per item.
        recall: Wanted share of positive items found.
        costs: Cost of a missed positive, and of a false alarm.

    Returns:
        A threshold halfway between two neighbouring scores, so that rounding decides no item. Of
        equally good ones, the highest.

    Raises:
        ValueError: One class has no item, or costs or recall cannot be meant.
    """
    true, positive = np.asarray(targets).astype(int), _positive_scores(scores)
    if len(true) != len(positive) or set(true.tolist()) != {0, 1}:
        raise ValueError(
            f"A threshold needs as many scores ({len(positive)}) as targets ({len(true)}), and "
            "items of both classes, 0 and 1. Use a larger validation split."
        )
    if not 0 < recall <= 1 or min(costs) < 0 or max(costs) == 0:
        raise ValueError(f"recall must be in (0, 1] and costs above 0, got {recall} and {costs}.")
    order = np.argsort(-positive, kind="stable")
    ranked = positive[order]
    # The first candidate takes no item, each further one all items of one more distinct score.
    taken = np.append(0, np.flatnonzero(np.append(np.diff(ranked) < 0, True)) + 1)
    found = np.append(0, np.cumsum(true[order]))[taken]
    total = int(true.sum())
    if aim == "f1":
        words, value = "largest F1", 2 * found / (taken + total)
        best = int(value.argmax())
    elif aim == "recall":
        words = f"best precision at recall {recall:g} or more"
        value = found / np.maximum(taken, 1)
        best = int(np.where(found / total >= recall, value, -1).argmax())
    else:
        words = f"least cost, {costs[0]:g} per missed positive and {costs[1]:g} per false alarm"
        value = (costs[0] * (total - found) + costs[1] * (taken - found)) / len(true)
        best = int(value.argmin())
    return Threshold(
        value=_between(ranked, int(taken[best])),
        aim=words,
        reached=float(value[best]),
        items=len(true),
    )


def _between(ranked: Array, taken: int) -> float:
    """Give a threshold that takes exactly the first items of scores in descending order."""
    if taken == len(ranked):
        return float(ranked[-1])
    below = ranked[taken]
    above = ranked[taken - 1] if taken else np.inf
    middle = (above + below) / 2 if taken else below
    return float(max(middle, np.nextafter(below, above)))


def apply_threshold(scores: Sequence[float] | Array, threshold: Threshold | float) -> Array:
    """Predict 1 where the positive class's score reaches the threshold, else 0; shape (N,)."""
    value = threshold.value if isinstance(threshold, Threshold) else threshold
    return (_positive_scores(scores) >= value).astype(int)


def precision_recall(
    targets: Sequence[int] | Array, scores: Sequence[float] | Array
) -> tuple[CurvePoint, ...]:
    """Give precision and recall at about a hundred thresholds, the highest first.

    Args:
        targets: 1 for positive items, 0 for others, shape (N,).
        scores: Probability of the positive class, shape (N,), or of both, shape (N, 2).

    Returns:
        The points; empty if no item is positive.
    """
    true, positive = np.asarray(targets) == 1, _positive_scores(scores)
    if not true.any():
        return ()
    values = np.unique(positive)[::-1]
    kept = np.unique(np.linspace(0, len(values) - 1, _CURVE_POINTS).round().astype(int))
    points = []
    for value in values[kept]:
        taken = positive >= value
        right = float((true & taken).sum())
        points.append(
            CurvePoint(
                threshold=float(value),
                precision=right / float(taken.sum()),
                recall=right / float(true.sum()),
            )
        )
    return tuple(points)


def _positive_scores(scores: Sequence[float] | Array) -> Array:
    array = np.asarray(scores, dtype=float)
    return array[:, 1] if array.ndim == 2 else array
