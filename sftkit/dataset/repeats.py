"""Which rows say what another row says, or contradict it, and which of them should go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sftkit.dataset.near import find_exact_duplicates, find_near_duplicates
from sftkit.dataset.sketches import Sketcher, plan_bands, set_jaccard
from sftkit.dataset.texts import RowTexts

if TYPE_CHECKING:
    from datasets import Dataset

Call = Callable[[Sequence[int]], Sequence[str]]
"""Gives names of rows for a sentence, by position."""
_LEADERS = 32
"""How many kept rows of one cluster a row is compared with; more only in crowds of thousands."""
_CHUNK = 500
_HELD_OUT = {"test": 0, "control": 0, "validation": 1}


def find_contradicted(dataset: Dataset, policy: Literal["drop", "majority"]) -> dict[int, str]:
    """Find rows whose text another row has with another label or score.

    Args:
        dataset: Rows with text (or image) and label or score; others contradict nothing.
        policy: drop finds all of them; majority leaves those with the most frequent answer, if
            one is.

    Returns:
        Why a row should go, by position.
    """
    answers = _answers(dataset)
    if answers is None:
        return {}
    found: dict[int, str] = {}
    for cluster in find_exact_duplicates(RowTexts(dataset)):
        given = dict(zip(cluster, answers[list(cluster)], strict=True))
        counts = Counter(answer for answer in given.values() if answer is not None)
        if len(counts) < 2:
            continue
        (most, votes), (_, next_votes) = counts.most_common(2)
        rows = sum(counts.values())
        agreed = policy == "majority" and votes > next_votes
        words = ", ".join(f"{answer!r} in {count}" for answer, count in counts.items())
        for row, answer in given.items():
            if answer is not None and agreed and answer != most:
                found[row] = f"{answer!r}, where {votes} of {rows} rows with this text say {most!r}"
            elif answer is not None and not agreed:
                found[row] = f"{rows} rows with this text disagree: {words}"
    return found


def find_copies(dataset: Dataset, call: Call) -> dict[int, str]:
    """Find rows that say exactly what a row that stays says, with the same label.

    Returns:
        Why a row should go, by position.
    """
    firsts = {
        row: first
        for first, *others in _groups(dataset, find_exact_duplicates(RowTexts(dataset)))
        for row in others
    }
    names = call(list(firsts.values()))
    return {row: f"the same as {name}" for row, name in zip(firsts, names, strict=True)}


def find_near_copies(dataset: Dataset, call: Call, threshold: float, seed: int) -> dict[int, str]:
    """Find rows that are near duplicates of a row that stays, with the same label.

    Returns:
        Why a row should go, by position, with the Jaccard similarity that was measured.
    """
    texts = RowTexts(dataset)
    sketcher = Sketcher(plan_bands(threshold), seed)
    groups = _groups(dataset, find_near_duplicates(texts, threshold=threshold, seed=seed))
    members = [(number, row) for number, group in enumerate(groups) for row in group]
    found: dict[int, tuple[int, float]] = {}
    stay: list[tuple[int, Any]] = []
    current = -1
    for start in range(0, len(members), _CHUNK):
        chunk = members[start : start + _CHUNK]
        sets = sketcher.shingle_sets(texts[[row for _, row in chunk]])
        for (number, row), shingles in zip(chunk, sets, strict=True):
            if number != current:
                current, stay = number, []
            near = [(set_jaccard(shingles, kept), -first) for first, kept in stay]
            closeness, first = max(near, default=(0.0, 0))
            if closeness >= threshold:
                found[row] = (-first, closeness)
            elif len(stay) < _LEADERS:
                stay.append((row, shingles))
    names = call([first for first, _ in found.values()])
    return {
        row: f"{closeness:.2f} like {name}"
        for (row, (_, closeness)), name in zip(found.items(), names, strict=True)
    }


def _answers(dataset: Dataset) -> Any:
    """Give the column with labels or scores; conversations have none."""
    if "messages" in dataset.column_names:
        return None
    name = next((name for name in ("label", "score") if name in dataset.column_names), None)
    return None if name is None else dataset.with_format(None)[name]


def _groups(dataset: Dataset, clusters: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Give the rows of each cluster that have the same label; first the one that stays."""
    answers = _answers(dataset)
    splits = dataset.with_format(None)["split"] if "split" in dataset.column_names else None
    for cluster in clusters:
        rows = list(cluster)
        if splits is not None:
            names = dict(zip(rows, splits[rows], strict=True))
            rows.sort(key=lambda row: (_HELD_OUT.get(str(names[row]), 2), row))
        by_answer: dict[Any, list[int]] = {}
        for row, answer in zip(
            rows, [None] * len(rows) if answers is None else answers[rows], strict=True
        ):
            by_answer.setdefault(answer, []).append(row)
        yield from (same for same in by_answer.values() if len(same) > 1)
