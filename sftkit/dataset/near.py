"""Find texts that say almost the same: MinHash and bands propose pairs, exact Jaccard decides.

Two texts are near duplicates when the Jaccard similarity of their word shingles (shared shingles
divided by all shingles of both) reaches the threshold. A shingle is three words in a row; two
marks stand before and after the text, so that every word is in exactly three shingles wherever it
stands. One changed word of w therefore leaves (w - 1) / (w + 5): at a threshold of 0.8 that takes
25 words. In shorter texts one word changes the meaning ("the capital of France", "of Spain"), and
there only other case, spacing and punctuation count as near.

Shingles and min-wise hashing: Broder 1997, "On the resemblance and containment of documents".
Bands: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.dataset.sketches import (
    SLOTS,
    Sketcher,
    estimate_jaccard,
    hash_text,
    jaccard,
    normalise,
    plan_bands,
    set_jaccard,
    split_words,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "find_exact_duplicates",
    "find_near_duplicates",
    "find_near_matches",
    "jaccard",
    "normalise",
    "split_words",
]

_SLACK = 0.12
"""A pair is compared in full when its estimate is at most this far below the threshold; the
estimate of 0.8 from 128 slots has a standard deviation of 0.035."""
_WINDOW = 16
"""How many neighbours in a bucket a text is paired with; smaller buckets are paired completely."""
_MAX_FAILURES = 24
"""Full comparisons in vain after which a text is compared no further. Only millions of texts
from one template get there; without a limit they would take quadratic time."""
_BATCH = 2000
_MAX_PAIRS = 1_000_000


def find_exact_duplicates(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Find texts that are the same when normalised.

    Args:
        texts: Any sequence; it is drawn in batches, once. Texts that are empty when normalised
            are duplicates of nothing.

    Returns:
        Clusters of two or more positions, ascending, ordered by their first.
    """
    import numpy as np

    hashes = np.zeros(len(texts), dtype=np.uint64)
    for start, batch in _draw_batches(texts):
        hashes[start : start + len(batch)] = [hash_text(normalise(text)) for text in batch]
    positions = np.flatnonzero(hashes)
    return _clusters(hashes[positions], positions)


def find_near_duplicates(
    texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0
) -> tuple[tuple[int, ...], ...]:
    """Find groups of texts that are linked by near duplicates; exact ones are among them.

    Every link was verified by the Jaccard similarity of the two texts' shingle sets; a cluster
    is what such links connect, so its ends may be less alike. The bands miss at most 1 of 200
    pairs at exactly the threshold, and fewer above it. The same texts and seed give the same
    clusters. Memory grows by about 400 bytes a text, whatever its length; time grows with the
    number of words, also for a million copies of one text or one template.

    Args:
        texts: Any sequence, such as a column of a dataset; it is drawn in batches. None counts
            as empty. Texts without a word are duplicates of nothing.
        threshold: Least Jaccard similarity, above 0 and at most 1.
        seed: Seed of the hash functions.

    Returns:
        Clusters of two or more positions, ascending, ordered by their first.

    Raises:
        DataError: The threshold is not in (0, 1].
    """
    import numpy as np

    bands = plan_bands(threshold)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    keys = np.zeros((len(texts), bands.count), dtype=np.uint32)
    slots = np.zeros((len(texts), SLOTS), dtype=np.uint8)
    sketcher = Sketcher(bands, seed)
    for start, batch in _draw_batches(texts):
        stop = start + len(batch)
        hashes[start:stop], keys[start:stop], slots[start:stop] = sketcher.sketch(batch)

    # Copies are collapsed first: only the first of each stands for all in what follows.
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    firsts = first[hashes[first] != 0]
    firsts.sort()
    links = _Links(texts, slots, sketcher, threshold)
    for pairs in _candidate_pairs(keys, firsts):
        links.try_pairs(pairs)
    roots = links.roots()[first[inverse]]
    positions = np.flatnonzero(hashes)
    return _clusters(roots[positions], positions)


def find_near_matches(
    texts: Sequence[str], others: Sequence[str], *, threshold: float = 0.8, seed: int = 0
) -> dict[int, int]:
    """Find, for each text, one near duplicate among others.

    The others are drawn once, in batches, and may be many; the texts are sketched and kept.

    Args:
        texts: What is looked up; memory grows by about 400 bytes each.
        others: Where it is looked up.
        threshold: See `find_near_duplicates`.
        seed: Seed of the hash functions.

    Returns:
        Position among the others, the first that was found, by position of the text; texts
        without a match are left out.

    Raises:
        DataError: The threshold is not in (0, 1].
    """
    import numpy as np

    sketcher = Sketcher(plan_bands(threshold), seed)
    sketched = [sketcher.sketch(batch) for _, batch in _draw_batches(texts)]
    if not sketched:
        return {}
    hashes, keys, slots = (np.concatenate(part) for part in zip(*sketched, strict=True))
    orders = [np.argsort(column, kind="stable") for column in keys.T]
    columns = [column[order] for column, order in zip(keys.T, orders, strict=True)]
    left = hashes != 0
    failures = np.zeros(len(texts), dtype=np.int64)
    found: dict[int, int] = {}
    for start, batch in _draw_batches(others):
        other_hashes, other_keys, other_slots = sketcher.sketch(batch)
        pairs = []
        for column, order, asked in zip(columns, orders, other_keys.T, strict=True):
            low = np.searchsorted(column, asked, side="left")
            high = np.searchsorted(column, asked, side="right")
            high[other_hashes == 0] = low[other_hashes == 0]
            for step in range(4 * _WINDOW):
                rows = np.flatnonzero(low + step < high)
                if not len(rows):
                    break
                pairs.append(np.stack([order[low[rows] + step], rows], axis=1))
        if not pairs:
            continue
        candidates = np.unique(np.concatenate(pairs), axis=0)
        candidates = candidates[left[candidates[:, 0]]]
        close = estimate_jaccard(slots[candidates[:, 0]], other_slots[candidates[:, 1]])
        candidates = candidates[close >= threshold - _SLACK]
        for text, other in candidates.tolist():
            if not left[text] or failures[text] >= 40 * _MAX_FAILURES:
                continue
            same = hashes[text] == other_hashes[other]
            pair = [_draw(texts, np.array([text]))[0], batch[other]]
            if same or set_jaccard(*sketcher.shingle_sets(pair)) >= threshold:
                found[text], left[text] = start + other, False
            else:
                failures[text] += 1
    return dict(sorted(found.items()))


# ---- bands ----


def _candidate_pairs(keys: NDArray[Any], positions: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Give pairs of positions that share a band, a bounded number at a time, shape (P, 2).

    Within a bucket each text is paired with its next neighbours. Buckets are ordered by the
    following band, so that in a crowded one those stand together that share more than this band.
    """
    import numpy as np

    held: list[NDArray[Any]] = []
    count = 0
    bands = keys.shape[1]
    for band in range(bands):
        column = keys[positions, band]
        order = np.lexsort((keys[positions, (band + 1) % bands], column))
        column, ordered = column[order], positions[order]
        for step in range(1, _WINDOW + 1):
            meet = np.flatnonzero(column[step:] == column[:-step])
            if not len(meet):
                break
            pairs = np.stack([ordered[meet], ordered[meet + step]], axis=1)
            held.append(np.sort(pairs, axis=1))
            count += len(meet)
            if count >= _MAX_PAIRS:
                yield np.unique(np.concatenate(held), axis=0)
                held, count = [], 0
    if held:
        yield np.unique(np.concatenate(held), axis=0)


class _Links:
    """What has been linked so far: a union-find over positions, and who failed how often."""

    def __init__(
        self, texts: Sequence[str], slots: NDArray[Any], sketcher: Sketcher, threshold: float
    ) -> None:
        import numpy as np

        self._texts, self._slots, self._sketcher = texts, slots, sketcher
        self._threshold = threshold
        self._parents = np.arange(len(texts))
        self._failures = np.zeros(len(texts), dtype=np.uint16)

    def roots(self) -> NDArray[Any]:
        """Give the first position of everybody's cluster."""
        import numpy as np

        while True:
            above = self._parents[self._parents]
            if np.array_equal(above, self._parents):
                return self._parents
            self._parents = above

    def try_pairs(self, pairs: NDArray[Any]) -> None:
        """Link those of the pairs that are near duplicates."""
        chunk = 65_536
        for start in range(0, len(pairs), chunk):
            part = self._open(pairs[start : start + chunk])
            left, right = part[:, 0], part[:, 1]
            close = estimate_jaccard(self._slots[left], self._slots[right])
            part = part[close >= self._threshold - _SLACK]
            # Few at a time: what is linked by one comparison spares the next.
            for small in range(0, len(part), _BATCH):
                self._verify(self._open(part[small : small + _BATCH]))

    def _open(self, pairs: NDArray[Any]) -> NDArray[Any]:
        """Leave out pairs that are linked already, or that have failed too often."""
        roots = self.roots()
        apart = roots[pairs[:, 0]] != roots[pairs[:, 1]]
        return pairs[apart & (self._failures[pairs].max(axis=1) < _MAX_FAILURES)]

    def _verify(self, pairs: NDArray[Any]) -> None:
        import numpy as np

        if not len(pairs):
            return
        positions, places = np.unique(pairs, return_inverse=True)
        sets = self._sketcher.shingle_sets(_draw(self._texts, positions))
        indices = places.reshape(-1, 2).tolist()
        for (one, two), (i, j) in zip(pairs.tolist(), indices, strict=True):
            first, second = self._find(one), self._find(two)
            if first == second:
                continue
            if set_jaccard(sets[i], sets[j]) >= self._threshold:
                self._parents[max(first, second)] = min(first, second)
            else:
                self._failures[one] += 1
                self._failures[two] += 1

    def _find(self, position: int) -> int:
        parents = self._parents
        while (above := int(parents[position])) != position:
            parents[position] = parents[above]
            position = above
        return position


# ---- drawing ----


def _draw_batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(texts), _BATCH):
        yield start, [text or "" for text in texts[start : start + _BATCH]]


def _draw(texts: Sequence[str], positions: NDArray[Any]) -> list[str]:
    """Draw texts by position; from a dataset's column many at a time."""
    if isinstance(texts, list | tuple):
        return [texts[position] or "" for position in positions.tolist()]
    try:
        drawn: Any = texts[positions.tolist()]
    except TypeError:
        drawn = [texts[position] for position in positions.tolist()]
    return [text or "" for text in drawn]


def _clusters(names: NDArray[Any], positions: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Group ascending positions that bear the same name; leave out single ones."""
    import numpy as np

    if not len(names):
        return ()
    order = np.argsort(names, kind="stable")
    cuts = np.flatnonzero(np.diff(names[order])) + 1
    bounds = [0, *cuts.tolist(), len(order)]
    ordered = positions[order]
    groups = (tuple(ordered[a:b].tolist()) for a, b in itertools.pairwise(bounds) if b - a > 1)
    return tuple(sorted(groups))
