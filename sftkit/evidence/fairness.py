"""Differences a model makes between groups of people, each with its interval and its test.

The same text with the person swapped (`swaps`), and groups of test items compared; `stereotypes`
has the gaps of language models. No gap found is not the absence of one: the interval says how large
a gap these items could have missed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.evidence.shares import holm, wilson_interval
from sftkit.evidence.statistics import paired_interval, sign_flip_p_value
from sftkit.evidence.swaps import ATTRIBUTES, make_swaps, sides_of
from sftkit.evidence_records import FairnessGap

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray
FEWEST_IN_GROUP = 10
"""People who occur in fewer groups of the data (mostly: in fewer test items) are not compared."""
_FLIPS = 9999
_CHUNK = 1_000_000  # numbers drawn at once; bounds memory to some tens of MB


# --- The same text, with the person swapped ----------------------------------------------------


def swap_gaps(
    first: Array,
    second: Array,
    *,
    attribute: str,
    groups: Sequence[str],
    classes: Sequence[str] = (),
    resamples: int = 4000,
) -> tuple[FairnessGap, ...]:
    """Measure what changes when only the person a text speaks of is swapped.

    Args:
        first: What the model says of the versions of the first group: probabilities, shape (N, C),
            or numbers, shape (N,).
        second: The same of the second group's versions, in the same order.
        attribute: What was swapped; names the groups.
        groups: Group of each text in the data; whole groups are resampled.
        classes: Names of the classes; empty for numbers.
        resamples: Bootstrap draws.

    Returns:
        For classes the share of texts whose predicted class changes, with Wilson's interval for as
        many items as there are groups, and no p-value (a share of changes has no direction); then
        per class (of two, the second) the mean of its probability in the second group's version
        minus that in the first's. For numbers that difference alone.
    """
    people = ATTRIBUTES[attribute].groups
    shared: dict[str, Any] = {"attribute": attribute, "groups": people, "items": len(first)}
    if not classes:
        gap = paired_gap(second - first, groups, resamples)
        return (FairnessGap(name="predicted number", unit="data's own unit", **shared, **gap),)
    changed = first.argmax(axis=1) != second.argmax(axis=1)
    independent = len(set(groups))
    share = float(changed.mean())
    low, high = wilson_interval(round(share * independent), independent)
    flips = FairnessGap(
        name="predicted class changes", value=share, ci95=(min(low, share), high), **shared
    )
    wanted = range(1, 2) if len(classes) == 2 else range(len(classes))
    return (
        flips,
        *(
            FairnessGap(
                name=f"probability of {classes[number]}",
                **shared,
                **paired_gap(second[:, number] - first[:, number], groups, resamples),
            )
            for number in wanted
        ),
    )


def paired_gap(differences: Array, groups: Sequence[str], resamples: int) -> dict[str, Any]:
    """Give value, interval and p-value of paired differences; the null swaps a pair's labels."""
    interval = paired_interval(differences, groups=groups, resamples=resamples)
    return {
        "value": interval.delta,
        "ci95": interval.ci95,
        "p_value": sign_flip_p_value(differences, groups=groups),
    }


# --- Groups of test items ----------------------------------------------------------------------


def people_in(texts: Sequence[str], attribute: str) -> tuple[str | None, ...]:
    """Say of which group of people each text speaks; None where of neither or of both."""
    named = ATTRIBUTES[attribute].groups
    sides = [sides_of(text, attribute) for text in texts]
    return tuple(named[min(side)] if len(side) == 1 else None for side in sides)


def group_gaps(
    targets: Array,
    predicted: Array,
    people: Sequence[str | None],
    *,
    attribute: str,
    groups: Sequence[str],
    classes: Sequence[str],
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[FairnessGap, ...]:
    """Compare test items of different groups of people.

    The values are fairlearn's. Of two groups the gap is the second's value minus the first's, by
    name; of more it is the largest minus the smallest, which lies above zero by chance alone, so
    that its p-value and not its interval says whether there is one.

    Args:
        targets: Right classes, shape (N,).
        predicted: Predicted classes, shape (N,).
        people: Group of people of each item; items of None are left out, and people in fewer than
            FEWEST_IN_GROUP groups of the data.
        attribute: What the groups are, for the record.
        groups: Group of each item in the data; whole groups are resampled.
        classes: Names of the classes.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Accuracy by group; per class (of two, the second) its share among predictions (demographic
        parity) and among items of that class (equal opportunity; Hardt et al. 2016). Empty if
        fewer than two groups are large enough.
    """
    known = np.array([name is not None for name in people])
    distinct = {(name, own) for name, own in zip(people, groups, strict=True) if name is not None}
    sizes = Counter(name for name, _ in distinct)
    kept = sorted(name for name, size in sizes.items() if size >= FEWEST_IN_GROUP)
    if len(kept) < 2:
        return ()
    inside = known & np.isin([str(name) for name in people], kept)
    who = np.array([str(name) for name in people])[inside]
    true, said = np.asarray(targets)[inside], np.asarray(predicted)[inside]
    own = [group for group, is_in in zip(groups, inside, strict=True) if is_in]
    wanted = range(1, 2) if len(classes) == 2 else range(len(classes))
    everyone = np.ones(len(true), bool)
    measures = [("accuracy", "accuracy", true, said, everyone)]
    for number in wanted:
        name, is_it, says_it = classes[number], (true == number) * 1, (said == number) * 1
        measures += [
            (f"demographic parity, {name}", "selection", is_it, says_it, everyone),
            (f"equal opportunity, {name}", "recall", is_it, says_it, is_it == 1),
        ]
    gaps = []
    for name, metric, right, says, among in measures:
        if _fewest(own, who, among) < FEWEST_IN_GROUP:
            continue
        by_group = fairlearn_by_group(metric, right, says, who)
        hit = (says == right if metric == "accuracy" else says == 1)[among]
        part = [group for group, is_in in zip(own, among, strict=True) if is_in]
        draws, p_value = _resample(
            hit, who[among], part, names=kept, resamples=resamples, seed=seed
        )
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        gaps.append(
            FairnessGap(
                name=name,
                attribute=attribute,
                groups=tuple(kept),
                by_group=by_group,
                value=float(_difference(np.array([by_group[one] for one in kept]))),
                ci95=(float(low), float(high)),
                items=int(among.sum()),
                p_value=p_value,
            )
        )
    return tuple(gaps)


def fairlearn_by_group(metric: str, true: Array, said: Array, who: Array) -> dict[str, float]:
    """Give accuracy, selection (share of 1 among predictions) or recall in each group of people."""
    from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score

    known = {"accuracy": accuracy_score, "selection": selection_rate, "recall": true_positive_rate}
    frame = MetricFrame(metrics=known[metric], y_true=true, y_pred=said, sensitive_features=who)
    return {str(name): float(value) for name, value in frame.by_group.items()}


def _difference(shares: Array) -> Array:
    """Give second minus first, or largest minus smallest of more; groups on the last axis."""
    if shares.shape[-1] == 2:
        return np.asarray(shares[..., 1] - shares[..., 0])
    return np.asarray(shares.max(axis=-1) - shares.min(axis=-1))


def _resample(
    hit: Array,
    who: Array,
    groups: Sequence[str],
    *,
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[Array, float]:
    """Draw the gap over resampled groups of the data, and test whether there is one.

    A group's deviation from the mean is the sum of what each group of the data adds to it. Were
    people treated alike, each of these parts would be as likely of the other sign; so they are
    turned at random, whole, which holds however people spread over the groups of the data.
    """
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    is_of = (who[:, None] == np.array(names)).astype(float)
    shape = (int(member.max()) + 1, len(names))
    hits, sizes, parts = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    np.add.at(hits, member, is_of * hit[:, None])
    np.add.at(sizes, member, is_of)
    deviation = (is_of - is_of.mean(axis=0)) * (hit - hit.mean())[:, None] / is_of.sum(axis=0)
    np.add.at(parts, member, deviation)
    random = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // shape[0])
    drawn, extreme = [], 0
    least = np.ptp(parts.sum(axis=0)) - 1e-12
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        times = random.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=count)
        with np.errstate(invalid="ignore"):  # a draw may lack a group
            drawn.append(_difference((times @ hits) / (times @ sizes)))
    for start in range(0, _FLIPS, at_once):
        size = (min(at_once, _FLIPS - start), shape[0])
        signs = random.integers(0, 2, size=size) * 2.0 - 1.0
        extreme += int((np.ptp(signs @ parts, axis=1) >= least).sum())
    return np.concatenate(drawn), (extreme + 1) / (_FLIPS + 1)


def _fewest(groups: Sequence[str], who: Array, among: Array) -> int:
    """Count the groups of the data that each group of people has items of; give the least."""
    pairs = {(one, own) for one, own, is_in in zip(who, groups, among, strict=True) if is_in}
    return min(sum(one == name for one, _ in pairs) for name in np.unique(who))


# --- All gaps of a report, and a remedy --------------------------------------------------------


def correct_for_number(gaps: Sequence[FairnessGap]) -> tuple[FairnessGap, ...]:
    """Correct the p-values of all gaps of a report for their number (Holm)."""
    tested = [gap.p_value for gap in gaps if gap.p_value is not None]
    corrected = iter(holm(tested))
    return tuple(
        gap if gap.p_value is None else dataclasses.replace(gap, p_value=next(corrected))
        for gap in gaps
    )


def reweigh(people: Sequence[str | None], labels: Sequence[Any]) -> tuple[float, ...]:
    """Weigh training rows so that group of people and label become independent.

    A row of group s and label y weighs P(s) P(y) / P(s, y) (Kamiran and Calders 2012, section
    5.3). Each label and each group keeps its total weight, and all weights average 1.

    Args:
        people: Group of people of each row; None is a group of its own.
        labels: Label of each row.

    Raises:
        ValueError: No rows, or not as many labels as people.
    """
    if not people or len(people) != len(labels):
        raise ValueError(f"reweigh got {len(people)} people and {len(labels)} labels.")
    _, who = np.unique([str(one) for one in people], return_inverse=True)
    _, what = np.unique([str(label) for label in labels], return_inverse=True)
    counts = np.zeros((who.max() + 1, what.max() + 1))
    np.add.at(counts, (who, what), 1.0)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / len(people)
    return tuple(float(weight) for weight in expected[who, what] / counts[who, what])


def reweigh_examples(examples: Sequence[Any], people: Sequence[str | None]) -> tuple[Any, ...]:
    """Give labelled training examples the weights of `reweigh`, times those they have.

    Args:
        examples: Labelled texts or images, for `train.train`.
        people: Group of people of each.
    """
    weights = reweigh(people, [example.target for example in examples])
    return tuple(
        dataclasses.replace(example, weight=example.weight * weight)
        for example, weight in zip(examples, weights, strict=True)
    )


def label_gaps(
    names: Sequence[str],
    texts: Sequence[str],
    *,
    say: Callable[[Sequence[str]], Array] | None,
    true: Array,
    said: Array,
    groups: Sequence[str],
    classes: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    resamples: int = 4000,
) -> tuple[FairnessGap, ...]:
    """Measure all gaps of a model with labels or numbers that a recipe asks for.

    Args:
        names: Attributes to swap, and `column:NAME` for groups that a column of the data names.
        texts: Test texts.
        say: Gives what the model says of texts as `score_labels` does, NaN where one is too long;
            None where nothing is swapped.
        true: Right classes or numbers, shape (N,).
        said: What the model says of the texts as they are.
        groups: Group of each text in the data.
        classes: Names of the classes; empty for numbers.
        columns: The columns asked for, by name.
        resamples: Bootstrap draws.

    Returns:
        Of each attribute the gaps between swapped texts and, for classes, between the test items
        that speak of either group; p-values corrected for the number of all of them.
    """
    gaps: list[FairnessGap] = []
    options: dict[str, Any] = {"classes": classes, "resamples": resamples}
    for name in names:
        column = name.removeprefix("column:")
        if column == name and say is not None:
            swaps = make_swaps(texts, name)
            answers = say([swap.first for swap in swaps] + [swap.second for swap in swaps])
            first, second = answers[: len(swaps)], answers[len(swaps) :]
            whole = np.isfinite(first + second).reshape(len(swaps), -1).all(axis=1)
            own = [groups[swap.row] for swap, is_in in zip(swaps, whole, strict=True) if is_in]
            if own:
                gaps += swap_gaps(
                    first[whole], second[whole], attribute=name, groups=own, **options
                )
            people = people_in(texts, name)
        else:
            values = (columns or {})[column]
            people = tuple(None if value in (None, "") else str(value) for value in values)
        if classes:
            predicted = said.argmax(axis=1)
            gaps += group_gaps(true, predicted, people, attribute=column, groups=groups, **options)
    return correct_for_number(gaps)
