"""Which column of a table plays a role, as far as content and names make it plain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sftkit.dataset.column_words import (
    ANSWER_WORDS,
    LABEL_WORDS,
    META_WORDS,
    NAMED_WORDS,
    QUESTION_WORDS,
    SCORE_WORDS,
    TEXT_WORDS,
)
from sftkit.dataset.guess import Column

Columns = Mapping[str, Column]
TURN_NAMES = ("messages", "conversations", "conversation")


def find_turns(found: Columns) -> Column | None:
    """Find the column of conversations: lists of turns, or a name that promises them."""
    lists = [c for c in found.values() if c.turns > 0.5 or c.coded > 0.5]
    named = [c for c in found.values() if c.name.strip().casefold() in TURN_NAMES]
    both = [c for c in named if c in lists]
    return next(iter(both or named or lists), None)


def find_image(found: Columns) -> Column | None:
    """Find the column of images, or of their paths."""
    images = [c for c in found.values() if c.images > 0.9]
    named = [c for c in images if c.is_named(("image", "images", "img", "picture", "photo"))]
    return next(iter(named or images), None)


def usable_columns(found: Columns) -> list[Column]:
    """Leave out columns whose name says that they describe the row, such as id or date."""

    def is_meta(column: Column) -> bool:
        key = column.name.strip().casefold()
        last = key.replace("-", "_").replace(" ", "_").split("_")[-1]
        return key not in NAMED_WORDS and last not in NAMED_WORDS and column.is_named(META_WORDS)

    return [column for column in found.values() if not is_meta(column)]


def free_texts(found: Columns, taken: Collection[str] = ()) -> list[Column]:
    """List the columns of free text."""
    return [
        c
        for c in usable_columns(found)
        if c.name not in taken
        and c.is_text
        and c.images < 0.5
        and (not c.is_label or c.is_named(TEXT_WORDS | QUESTION_WORDS))
        and not (c.is_named(LABEL_WORDS) and c.is_label)
    ]


def only_name(columns: Sequence[Column]) -> str | None:
    """Give the name of the only column there is."""
    return columns[0].name if len(columns) == 1 else None


def find_role(
    role: str, found: Columns, taken: Collection[str], *, is_asked: bool = False
) -> str | None:
    """Find the column that plays a role; None when there is none or several would do.

    Args:
        role: As in the formats.
        found: All columns.
        taken: Columns that play another role.
        is_asked: The user wants this role; few whole numbers are then a score too.
    """
    usable = [c for c in usable_columns(found) if c.name not in taken]
    free = free_texts(found, taken)
    if role == "messages":
        column = find_turns(found)
        return column.name if column else None
    if role == "image":
        column = find_image(found)
        return column.name if column else None
    if role == "question":
        asking = [c for c in free if c.asks > 0.5]
        named = [c for c in free if c.is_named(QUESTION_WORDS)]
        others = [c for c in free if not c.is_named(ANSWER_WORDS)]
        return only_name(named) or only_name(asking) or (others[0].name if others else None)
    if role == "answer":
        named = [c for c in usable if c.is_named(ANSWER_WORDS)]
        return only_name(named) or (free[0].name if free else None)
    if role == "text":
        exact = [c for c in usable if c.name.strip().casefold() == "text"]
        named = [c for c in free if c.is_named(TEXT_WORDS)]
        asking = [c for c in free if c.is_named(QUESTION_WORDS)]
        wordy = [c for c in usable if c.is_text and c.images < 0.5]
        longest = max(wordy, key=lambda c: c.length, default=None)
        lone = longest.name if longest and not free and len(wordy) > 1 else None
        return only_name(exact) or only_name(named) or only_name(free) or only_name(asking) or lone
    words = LABEL_WORDS if role == "label" else SCORE_WORDS
    fits = [c for c in usable if (c.is_label if role == "label" else _is_score(c))]
    if is_asked and role == "score" and not fits:
        fits = [c for c in usable if c.is_numeric and not c.counts_up]
    exact = [c for c in usable if c.name.strip().casefold() == role]
    if not is_asked:  # a name alone does not make a label of a number, nor a score of a text
        most = (lambda c: c.is_text) if role == "label" else (lambda c: c.numbers > 0.5)
        exact = [c for c in exact if c in fits or not c.count or most(c)]
    named = [c for c in fits if c.is_named(words)]
    return only_name(exact) or (named[0].name if named else only_name(fits))


def _is_score(column: Column) -> bool:
    return column.is_numeric and not column.is_label and not column.counts_up
