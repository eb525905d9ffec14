"""What an audit knows about a dataset beside its faults: sizes, lengths, labels, repeats."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sftkit.dataset.digest import RowDigest

_BINS = 24
"""Bars of a histogram: enough for a shape, few enough to tell apart at half a slide's width."""
_LABELS_KEPT = 200
"""Labels a fact sheet lists; a table with more of them is no longer read by eye."""
_EVEN = 1.2
"""Largest class over smallest up to which a reader would call them even."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values of each size occur.

    Attributes:
        unit: What is counted: tokens, words or score.
        edges: Borders of the bins, ascending, one more than counts; the last bin is closed.
        counts: Values in each bin.
        median: The middle value.
        largest: The largest value.
    """

    unit: Literal["tokens", "words", "score"]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """What a dataset looks like.

    Attributes:
        rows: Rows looked at.
        task: chat, classify, regress or image.
        seen_as: How the source was understood, in words; empty when nothing had to be guessed.
        lengths: Of whole rows, in tokens with a tokenizer and in words without; None for images.
        limit: Longest row that is trained on, in tokens; None if it was not given.
        over_limit: Rows longer than that.
        scores: Of a regression; None otherwise.
        labels: Rows per label, most frequent first, at most 200 labels; empty for chat.
        label_kinds: How many different labels there are.
        exact_repeats: Rows that repeat an earlier one word for word.
        near_repeats: Rows nearly the same as an earlier one; None if that was not looked for.
        splits: Rows per split, where splits are marked.
    """

    rows: int
    task: str
    seen_as: str = ""
    lengths: Histogram | None = None
    limit: int | None = None
    over_limit: int = 0
    scores: Histogram | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    label_kinds: int = 0
    exact_repeats: int = 0
    near_repeats: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)


def bin_values(
    values: array[int] | array[float],
    unit: Literal["tokens", "words", "score"],
    *,
    limit: int | None = None,
) -> Histogram | None:
    """Count values in bins of equal width, which end at round numbers for lengths.

    Args:
        values: One for each row, NaN where there is none.
        unit: What they count.
        limit: The longest length that fits; bins are then placed so that one ends just above it.

    Returns:
        The histogram, or None if there are no values.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    low, high, bins = float(numbers.min()), float(numbers.max()), _BINS
    if unit != "score":
        width = max(round_up(high / _BINS), 1.0)
        low = 0.0
        if limit is not None:
            width, low = limit / math.ceil(limit / width), 0.5
        bins = math.floor((high - low) / width) + 1
        high = low + bins * width
    elif low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(numbers, bins=bins, range=(low, high))
    return Histogram(
        unit=unit,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
        median=float(np.median(numbers)),
        largest=float(numbers.max()),
    )


def round_up(value: float) -> float:
    """Give the next number of the series 1, 2, 5, 10, 20, 50 …, so that bins end at round ones."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if factor * step >= value:
                return factor * step
        step *= 10


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """Order labels by frequency, ties by name, and keep the first ones."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:_LABELS_KEPT])


def gather_facts(
    digest: RowDigest,
    *,
    seen_as: str,
    token_lengths: array[int] | None,
    over_limit: int,
    max_tokens: int | None,
    exact: int,
    near: int | None,
) -> AuditFacts:
    """Sum up what is remembered of all rows.

    Args:
        digest: The rows.
        seen_as: How the source was understood.
        token_lengths: Lengths in tokens, if they were counted; words are counted otherwise.
        over_limit: Rows longer than `max_tokens`.
        max_tokens: Longest row that is trained on.
        exact: Rows that repeat another word for word.
        near: Rows that nearly do, if that was looked for.
    """
    labelled = digest.task in ("classify", "image")
    if token_lengths is not None:
        lengths = bin_values(token_lengths, "tokens", limit=max_tokens)
    else:
        lengths = bin_values(digest.words, "words") if digest.task != "image" else None
    return AuditFacts(
        rows=digest.count,
        task=digest.task,
        seen_as=seen_as,
        lengths=lengths,
        limit=max_tokens if token_lengths is not None else None,
        over_limit=over_limit,
        scores=bin_values(digest.score, "score") if digest.task == "regress" else None,
        labels=most_frequent(_tally(digest.label, digest.labels.texts)) if labelled else {},
        label_kinds=len(digest.labels.texts) if labelled else 0,
        exact_repeats=exact,
        near_repeats=near,
        splits=_tally(digest.split, digest.splits.texts),
    )


def _tally(codes: array[int], names: list[str]) -> dict[str, int]:
    """Count how often each name occurs among numbers that stand for them."""
    import numpy as np

    counts = np.bincount(np.asarray(codes, dtype=np.int64), minlength=len(names) + 1)
    return {name: int(count) for name, count in zip(names, counts[1:], strict=True)}


def say_lengths(facts: AuditFacts) -> str:
    """Say in one line what the lengths of the rows amount to."""
    lengths = facts.lengths
    if lengths is None:
        return "No lengths"
    if facts.limit is None:
        return f"Longest row {lengths.largest:,.0f} {lengths.unit}, median {lengths.median:,.0f}"
    if facts.over_limit:
        verb = "exceeds" if facts.over_limit == 1 else "exceed"
        return f"{say_count(facts.over_limit, 'row')} {verb} the limit of {facts.limit:,} tokens"
    return f"All rows fit into {facts.limit:,} tokens"


def say_labels(facts: AuditFacts) -> str:
    """Say in one line how labels are balanced."""
    counts = list(facts.labels.values())
    if len(counts) < 2:
        return "One class only" if counts else "No labels"
    if facts.label_kinds > len(counts):
        return f"{facts.label_kinds:,} classes, the largest of {say_count(counts[0], 'row')}"
    ratio = counts[0] / counts[-1]
    if ratio <= _EVEN:
        return f"{facts.label_kinds} classes of about the same size"
    times = f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
    return f"{facts.label_kinds} classes, the largest {times} times the smallest"


def say_repeats(facts: AuditFacts) -> str:
    """Say in one line how many rows repeat another."""
    exact, near = facts.exact_repeats, facts.near_repeats
    if not exact and not near:
        return "No row repeats another"
    return f"{exact:,} exact" + (f", {near:,} near" if near is not None else "") + " duplicates"


def say_count(number: int, what: str) -> str:
    """Write a count with its noun: 1 row, 2,000 rows."""
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
