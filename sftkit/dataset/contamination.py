"""Find what is tested in what is trained on: such a score measures memory, not ability.

Three measures, from strict to loose. *exact*: the question is the same when case, spacing and
outer punctuation are set aside. *13-gram*: thirteen words in a row are shared, case and
punctuation set aside (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C);
word sequences that more than ten training rows share are counted as common phrases, as there.
*near*: the questions are near duplicates (see `near`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from sftkit.dataset.near import find_near_matches, normalise, split_words
from sftkit.dataset.sketches import hash_text
from sftkit.dataset.texts import RowTexts, question_text, spoken_text
from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["exact", "13-gram", "near"]
KINDS: tuple[Kind, ...] = ("exact", "13-gram", "near")
WORDS_IN_A_ROW = 13
COMMON_ROWS = 10
"""Word sequences in more training rows than this are common phrases."""
_BATCH = 2000


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Which tested rows stand in the training rows.

    Attributes:
        train_name: What the training rows are called.
        test_name: What the tested rows are called.
        train_rows: How many training rows were looked at.
        test_rows: How many tested rows were looked up.
        matches: By kind: the position of a training row, by position of the tested row.
    """

    train_name: str
    test_name: str
    train_rows: int
    test_rows: int
    matches: Mapping[Kind, Mapping[int, int]]

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions of the tested rows that overlap in any way, ascending."""
        return tuple(sorted(set().union(*self.matches.values())))

    @property
    def clean_rows(self) -> tuple[int, ...]:
        """Positions of the tested rows that are free of overlap, ascending."""
        concerned = set(self.rows)
        return tuple(row for row in range(self.test_rows) if row not in concerned)

    @property
    def share(self) -> float:
        """Share of the tested rows that overlap, between 0 and 1."""
        return len(self.rows) / self.test_rows if self.test_rows else 0.0

    def clean_mean(self, scores: Sequence[float]) -> float | None:
        """Average the scores of the clean rows: the score to be had without the overlap.

        Args:
            scores: One score for each tested row, in order.

        Returns:
            Their mean over `clean_rows`; None when no row is clean.

        Raises:
            DataError: There is not one score for each tested row.
        """
        if len(scores) != self.test_rows:
            raise DataError(f"{self.test_rows} rows were tested, got {len(scores)} scores.")
        clean = [float(scores[row]) for row in self.clean_rows]
        return sum(clean) / len(clean) if clean else None

    def __str__(self) -> str:
        if not self.rows:
            looked = " or ".join(_WORDS[kind] for kind in self.matches)
            return (
                f"None of the {self.test_rows:,} rows of {self.test_name} stands in "
                f"{self.train_name} ({looked})."
            )
        parts = (f"{len(found):,} {_WORDS[kind]}" for kind, found in self.matches.items() if found)
        return (
            f"{len(self.rows):,} of {self.test_rows:,} rows of {self.test_name} "
            f"({self.share:.1%}) stand in {self.train_name}: {', '.join(parts)}. Scores over them "
            f"measure memory; {len(self.clean_rows):,} rows are clean."
        )


_WORDS: Mapping[Kind, str] = {
    "exact": "word for word",
    "13-gram": "with 13 words in a row",
    "near": "as near duplicates",
}


def find_overlap(
    train: Dataset | Sequence[str],
    test: Dataset | Sequence[str],
    *,
    kinds: Iterable[Kind] = KINDS,
    threshold: float = 0.8,
    seed: int = 0,
    names: tuple[str, str] = ("train", "test"),
) -> Overlap:
    """Find the tested rows that stand in the training rows.

    Questions are compared; in conversations that is all before the last reply (with the reply,
    where that is under 4 words), in rows with a text the text. The 13-gram measure looks at
    replies too. System turns never count. Rows of fewer than 13 words have no 13-gram: for them
    the other measures speak.

    Training rows are drawn in batches, so there may be many; memory grows with the tested rows.

    Args:
        train: Rows with messages or text, or plain texts.
        test: The same, or the questions of a probe.
        kinds: Which measures to take.
        threshold: Least Jaccard similarity of near duplicates.
        seed: Seed of their hash functions.
        names: What to call the two in words.

    Returns:
        For each kind, the tested rows concerned and one training row for each.

    Raises:
        DataError: An unknown kind, a threshold out of range, or rows without text.
    """
    kinds = tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise DataError(f"There is no overlap of kind {kind!r}.{near_names(kind, KINDS)}")
    matches: dict[Kind, Mapping[int, int]] = {}
    asked = (_texts(train, question_text), _texts(test, question_text))
    for kind in kinds:
        if kind == "exact":
            found = _find_exact(*asked)
        elif kind == "13-gram":
            found = _find_grams(_texts(train, spoken_text), _texts(test, spoken_text))
        else:
            found = find_near_matches(asked[1], asked[0], threshold=threshold, seed=seed)
        matches[kind] = MappingProxyType(found)
    return Overlap(
        train_name=names[0],
        test_name=names[1],
        train_rows=len(asked[0]),
        test_rows=len(asked[1]),
        matches=MappingProxyType(matches),
    )


def compare_splits(
    splits: Mapping[str, Dataset],
    probes: Mapping[str, Sequence[str]] | None = None,
    *,
    kinds: Iterable[Kind] = KINDS,
    threshold: float = 0.8,
) -> tuple[Overlap, ...]:
    """Compare every split with the later ones, and train with the probes.

    Args:
        splits: Datasets by split, in the order train, validation, test; empty ones are skipped.
        probes: Questions by the probe's name.
        kinds: Which measures to take.
        threshold: Least Jaccard similarity of near duplicates.

    Returns:
        One overlap for each pair: train and validation, train and test, validation and test,
        then train and each probe.
    """
    parts = {name: part for name, part in splits.items() if len(part)}
    pairs: list[tuple[tuple[str, str], Any, Any]] = [
        ((one, two), parts[one], parts[two]) for one, two in itertools.combinations(parts, 2)
    ]
    if "train" in parts:
        pairs += [
            (("train", name), parts["train"], asked) for name, asked in (probes or {}).items()
        ]
    kinds = tuple(kinds)
    return tuple(
        find_overlap(train, test, kinds=kinds, threshold=threshold, names=names)
        for names, train, test in pairs
    )


def take_clean_rows(test: Dataset, overlap: Overlap) -> Dataset:
    """Take the rows of a test dataset that do not stand in the training rows.

    Raises:
        DataError: The overlap was found for another number of rows.
    """
    if len(test) != overlap.test_rows:
        raise DataError(
            f"The overlap was found for {overlap.test_rows} rows, the dataset has {len(test)}. "
            "Find it again for this dataset."
        )
    return test.select(overlap.clean_rows)


def _texts(rows: Dataset | Sequence[str], say: Any) -> Sequence[str]:
    if isinstance(rows, str):
        raise DataError("Expected a dataset or a sequence of texts, got one text.")
    return RowTexts(rows, say) if hasattr(rows, "column_names") else rows


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    for start in range(0, len(texts), _BATCH):
        yield from enumerate((text or "" for text in texts[start : start + _BATCH]), start)


def _find_exact(train: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    wanted: dict[int, list[int]] = {}
    for row, text in _batches(test):
        if key := hash_text(normalise(text)):
            wanted.setdefault(key, []).append(row)
    found: dict[int, int] = {}
    for row, text in _batches(train):
        for tested in wanted.pop(hash_text(normalise(text)), ()):
            found[tested] = row
    return dict(sorted(found.items()))


def _find_grams(train: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    first_rows: dict[int, int] = {}
    counts: dict[int, int] = dict.fromkeys(
        itertools.chain.from_iterable(_grams(text) for _, text in _batches(test)), 0
    )
    for row, text in _batches(train):
        for gram in counts.keys() & _grams(text):
            counts[gram] += 1
            first_rows.setdefault(gram, row)
    telling = {gram for gram, count in counts.items() if 1 <= count <= COMMON_ROWS}
    found = {}
    for row, text in _batches(test):
        if shared := telling & _grams(text):
            found[row] = min(first_rows[gram] for gram in shared)
    return found


def _grams(text: str) -> set[int]:
    """Hash every run of thirteen words of a text."""
    words = split_words(text)
    return {
        hash(tuple(words[start : start + WORDS_IN_A_ROW]))
        for start in range(len(words) - WORDS_IN_A_ROW + 1)
    }
