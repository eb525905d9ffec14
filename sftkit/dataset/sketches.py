"""Texts as numbers that can be compared: words, shingles, MinHash signatures, bands.

What a shingle is, and why, stands in `near`, which finds near duplicates with these.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORDS_IN_SHINGLE = 3
SLOTS = 128
"""Length of a MinHash signature."""
_RECALL = 0.995
"""Share of pairs at exactly the threshold that the bands must bring together."""

# Scripts without spaces between words: there every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Signs that carry meaning (+ - = emoji) are words of their own; punctuation is none.
_WORD = re.compile(
    rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+"
    r"|[^\w\s!\"'(),.:;?\[\]\\_`{}\u00a0-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]"
)


def normalise(text: str) -> str:
    """Bring a text to the form in which two count as the same.

    Case, spacing, composed or decomposed letters and the outermost punctuation do not count.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def split_words(text: str) -> list[str]:
    """Give the words of a text as shingles count them: case folded, without punctuation.

    Characters of scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer), emoji and signs
    such as + and = are words of their own.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _WORD.findall(text.casefold())


def hash_text(text: str) -> int:
    """Hash a text to 64 bits, the same in every process; 0 for the empty text only."""
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def jaccard(text: str, other: str) -> float:
    """Compute the Jaccard similarity of two texts' word shingles, between 0 and 1."""
    return set_jaccard(*Sketcher(plan_bands(0.8), 0).shingle_sets([text, other]))


@dataclass(frozen=True, kw_only=True)
class Bands:
    """How a signature is cut: `count` bands of `rows` slots."""

    count: int
    rows: int


def plan_bands(threshold: float) -> Bands:
    """Take the longest bands that still bring together enough pairs at the threshold.

    A pair of similarity s shares at least one of b bands of r slots with probability
    1 - (1 - s^r)^b; longer bands propose fewer pairs in vain.
    """
    if not 0 < threshold <= 1:
        raise DataError(f"threshold must be above 0 and at most 1, got {threshold}.")
    for rows in range(32, 1, -1):
        count = SLOTS // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return Bands(count=count, rows=rows)
    return Bands(count=SLOTS, rows=1)


def estimate_jaccard(slots: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Estimate the similarity of pairs from one byte per slot.

    Unequal slots agree in one of 256 cases by chance (b-bit minwise hashing, Li and König 2010).
    """
    agree = (slots == others).mean(axis=1)
    return (agree - 1 / 256) / (1 - 1 / 256)


class _WordHashes(dict[str, int]):
    """Hashes of words seen lately; the same in every process, unlike Python's own."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 200_000:
            self.clear()
        self[word] = value = hash_text(word)
        return value


class Sketcher:
    """Turns texts into shingles and signatures, batch by batch."""

    def __init__(self, bands: Bands, seed: int) -> None:
        import numpy as np

        self._bands, self._seed = bands, seed
        self._words = _WordHashes()
        random = np.random.default_rng(seed)
        self._factors = random.integers(1, 2**63, size=bands.rows).astype(np.uint64) | np.uint64(1)

    def sketch(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Give each text's hash of words (0: no word), band keys (n, bands) and slots (n, 128)."""
        import numpy as np
        from rensa import RMinHash

        shingles, offsets = self._shingles(texts)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, SLOTS, self._seed)
        slots = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), SLOTS)
        count, rows = self._bands.count, self._bands.rows
        cut = slots[:, : count * rows].reshape(len(texts), count, rows).astype(np.uint64)
        keys = _mix((cut * self._factors).sum(axis=2, dtype=np.uint64))
        bounds = offsets.tolist()
        hashes = [
            _hash_bytes(shingles[start:stop]) if stop - start > 2 else 0
            for start, stop in itertools.pairwise(bounds)
        ]
        return (
            np.array(hashes, dtype=np.uint64),
            (keys >> np.uint64(32)).astype(np.uint32),
            (slots & np.uint32(255)).astype(np.uint8),
        )

    def shingle_sets(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Give each text's shingles as 64-bit hashes, sorted, without repeats."""
        import numpy as np

        shingles, offsets = self._shingles(texts)
        bounds = offsets.tolist()
        return [np.unique(shingles[a:b]) for a, b in itertools.pairwise(bounds)]

    def _shingles(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Hash the shingles of all texts into one array; text i has [offsets[i], offsets[i+1])."""
        import numpy as np

        words = [split_words(text) for text in texts]
        lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        total = int(lengths.sum())
        pad = _WORDS_IN_SHINGLE - 1
        hashes = map(self._words.__getitem__, itertools.chain.from_iterable(words))
        flat = np.fromiter(hashes, dtype=np.uint64, count=total)
        starts = np.concatenate([[0], np.cumsum(lengths + 2 * pad)])
        padded = np.full(int(starts[-1]), 3, dtype=np.uint64)
        for mark in range(pad):
            padded[starts[:-1] + mark] = 2
        padded[np.arange(total) + np.repeat(2 * pad * np.arange(len(words)) + pad, lengths)] = flat
        factors = np.array(
            [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64
        )
        windows = np.zeros(len(padded), dtype=np.uint64)
        for step, factor in enumerate(factors):
            windows[: len(padded) - step] += padded[step:] * factor
        whole = np.ones(len(padded), dtype=bool)
        for mark in range(pad):
            whole[starts[1:] - 1 - mark] = False
        offsets = np.concatenate([[0], np.cumsum(lengths + pad)]).astype(np.uint64)
        return _mix(windows[whole]), offsets


def _mix(values: NDArray[Any]) -> NDArray[Any]:
    """Spread 64-bit values, so that every bit of the result hangs on every bit given.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_bytes(values: NDArray[Any]) -> int:
    digest = hashlib.blake2b(values.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def set_jaccard(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Divide what two sorted sets share by what they hold together; NaN for two empty sets."""
    import numpy as np

    both = np.concatenate([one, two])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared) if len(both) else math.nan
