"""Say from the first rows of a table which column holds what.

Content decides and names help: a list of turns is one whatever it is called, and of two columns of
free text the one whose texts end in question marks asks. What stays open is not guessed.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.dataset.column_words import LABEL_WORDS

Row = Mapping[str, Any]
FEW_CLASSES = 100
"""Distinct values up to which a column of short texts may be a label."""
FEW_NUMBERS = 20
"""Distinct whole numbers up to which a column is a label and not a score."""
_LABEL_CHARACTERS = 40
_CODED = re.compile(r"\s*\[\s*\{")
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*%?\s*")
"""Also with a comma or as a percentage: a score written so has to be repaired, but is no text."""
_DATE = re.compile(r"\s*(\d{4}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{2,4})")
_IMAGE = re.compile(r"[^\n]{1,500}\.(png|jpe?g|gif|bmp|webp|tiff?)", re.IGNORECASE)
_LINK = re.compile(r"\s*https?://\S+\s*")
_PARTS = re.compile(r"[\W_]+")


@dataclass(frozen=True, kw_only=True)
class Column:
    """What the first rows say about one column.

    Attributes:
        name: As in the table.
        count: Values that are not missing.
        turns: Share of lists of turns.
        senders: Share of lists of turns written as from and value.
        coded: Share of lists of turns written as text.
        texts: Share of texts that are no numbers, dates or links.
        numbers: Share of numbers, also those written as text.
        whole: Whether all numbers are whole.
        counts_up: Whether the numbers are 1, 2, 3 … (from any start).
        images: Share of images, or paths of images.
        distinct: Different values.
        length: Mean characters of the values as text.
        asks: Share of texts that end in a question mark.
        spaced: Share of texts of more than one word.
    """

    name: str
    count: int
    turns: float
    senders: float
    coded: float
    texts: float
    numbers: float
    whole: bool
    counts_up: bool
    images: float
    distinct: int
    length: float
    asks: float
    spaced: float

    def is_named(self, words: Collection[str]) -> bool:
        """Say whether the name, or a part of it, is one of the words."""
        key = self.name.strip().casefold()
        return key in words or any(part in words for part in _PARTS.split(key))

    @property
    def is_numeric(self) -> bool:
        """Say whether nearly all values are numbers."""
        return self.numbers > 0.9

    @property
    def is_text(self) -> bool:
        """Say whether most values are texts."""
        return self.texts > 0.6

    @property
    def is_label(self) -> bool:
        """Few different short values, of which some come again (or a name that says label)."""
        named = self.is_named(LABEL_WORDS)
        if self.is_numeric:
            most = self.count // 2 if named else FEW_NUMBERS
            return self.whole and not self.counts_up and self.distinct <= max(most, 2)
        if not self.count or self.length > _LABEL_CHARACTERS:
            return False
        if named:
            return self.distinct <= max(FEW_CLASSES, self.count // 2)
        repeats = self.distinct <= max(2, min(FEW_CLASSES, self.count // 2))
        return repeats and self.distinct < self.count and self.spaced < 0.9


def describe_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Describe every column of the first rows, in order of first appearance."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: _describe(name, [row.get(name) for row in rows]) for name in names}


def _describe(name: str, values: Iterable[Any]) -> Column:
    known = [v for v in values if v is not None and v != "" and not is_nan(v)]
    count = len(known)
    texts = [str(v).strip() for v in known if isinstance(v, str | bool)]
    written = [text for text in texts if _is_number_text(text)]
    others = [text for text in texts if not _is_number_text(text)]
    plain = [text for text in others if not (_DATE.match(text) or _LINK.fullmatch(text[:2000]))]
    numbers = [float(v) for v in known if is_number(v)] + [
        float(text.rstrip("% ").replace(",", ".")) for text in written
    ]
    lists = [v for v in known if is_turns(v)]
    coded = [text for text in texts if _CODED.match(text)]
    whole = bool(numbers) and all(number.is_integer() for number in numbers)
    steps = {after - before for before, after in itertools.pairwise(numbers)}

    def share(part: int, of: int = count) -> float:
        return part / of if of else 0.0

    return Column(
        name=name,
        count=count,
        turns=share(len(lists)),
        senders=share(sum("from" in value[0] for value in lists), len(lists)),
        # A few are decoded to be sure that the lists hold turns.
        coded=share(len(coded)) if any(decode_turns(text) for text in coded[:20]) else 0.0,
        texts=share(len(plain)),
        numbers=share(len(numbers)),
        whole=whole,
        counts_up=whole and steps == {1.0},
        images=share(sum(is_image(v) for v in known)),
        distinct=len({v if isinstance(v, str | int | float) else repr(v) for v in known}),
        length=sum(len(str(v)) for v in known) / max(count, 1),
        asks=share(sum(text.endswith(("?", "？", "؟")) for text in texts), len(texts)),
        spaced=share(sum(" " in text for text in texts), len(texts)),
    )


def is_nan(value: Any) -> bool:
    """Say whether a value is the float that means missing."""
    return isinstance(value, float) and math.isnan(value)


def is_number(value: Any) -> bool:
    """Say whether a value is a number that a float can hold."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _is_number_text(text: str) -> bool:
    return len(text) <= 60 and _NUMBER.fullmatch(text) is not None


def is_turns(value: Any) -> bool:
    """Say whether a value is a list of turns of a conversation."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def is_image(value: Any) -> bool:
    """Say whether a value is an image: its path, its bytes as `datasets` keeps them, or itself."""
    if isinstance(value, str):
        return len(value) < 1000 and _IMAGE.fullmatch(value.strip()) is not None
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    return type(value).__module__.startswith("PIL.")


def decode_turns(text: str) -> list[Any] | None:
    """Read turns that were written as JSON, or as Python prints a list, into a field of text.

    Returns:
        The list; None when the text is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > 1_000_000:
            return None
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list) else None
