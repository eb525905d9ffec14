"""What a row says as one text, drawn lazily from a dataset, for comparisons across rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sftkit.dataset.near import normalise
from sftkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]
_COLUMNS = ("messages", "text", "image")
_FEWEST_WORDS = 4


def whole_text(row: Row) -> str:
    """Give everything a row says: its text, or all turns of its conversation with their roles.

    Turns are normalised one by one, so that case, spacing and the marks around each do not count.
    """
    if "messages" not in row:
        return row.get("text") or ""
    turns = _turns(row)
    return "\n".join(
        f"{turn.get('role')}: {normalise(turn.get('content') or '')}" for turn in turns
    )


def transcript(row: Row) -> str:
    """Give a row for reading: its text, or its conversation with a role before each turn."""
    if "messages" not in row:
        return row.get("text") or ""
    return "\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in _turns(row))


def spoken_text(row: Row) -> str:
    """Give what a row says without system turns, which many rows share by intent."""
    if "messages" not in row:
        return row.get("text") or ""
    return "\n".join(
        turn.get("content") or "" for turn in _turns(row) if turn.get("role") != "system"
    )


def question_text(row: Row) -> str:
    """Give what is asked: everything before the last reply, system turns left out.

    Where that is under 4 words the reply is added: "Hello" may open any number of different
    conversations. Turns are normalised one by one. Rows with a text give that text.
    """
    if "messages" not in row:
        return row.get("text") or ""
    turns = [turn for turn in _turns(row) if turn.get("role") != "system"]
    replies = [i for i, turn in enumerate(turns) if turn.get("role") == "assistant"]
    said = [normalise(turn.get("content") or "") for turn in turns]
    asked = said[: replies[-1]] if replies else said
    if replies and len(" ".join(asked).split()) < _FEWEST_WORDS:
        asked = said[: replies[-1] + 1]
    return "\n".join(asked)


def _turns(row: Row) -> list[Row]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        return []
    return [turn for turn in messages if isinstance(turn, Mapping)]


def _image_text(row: Row) -> str:
    """Name an image by the hash of its bytes, so that only the same file is a copy."""
    image = row.get("image") or {}
    content = image.get("bytes")
    if content is None and image.get("path"):
        content = Path(image["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest() if content else ""


class RowTexts(Sequence[str]):
    """The rows of a dataset as texts, made when they are asked for.

    Takes a position, a slice or a list of positions, as a column of a dataset does; nothing is
    kept, so a million rows cost no memory.
    """

    def __init__(self, dataset: Dataset, say: Callable[[Row], str] = whole_text) -> None:
        """Look at a dataset through `say`, which makes one text of one row.

        Images are named by a hash of their bytes instead.

        Raises:
            DataError: The dataset has neither messages nor text nor image.
        """
        columns = [name for name in _COLUMNS if name in dataset.column_names][:1]
        if not columns:
            raise DataError(
                f"The rows have no text: expected a column messages, text or image, got "
                f"{', '.join(dataset.column_names) or 'no columns'}. Read them with read_dataset."
            )
        self._column = columns[0]
        if self._column == "image":
            import datasets

            dataset = dataset.cast_column("image", datasets.Image(decode=False))
            say = _image_text
        self._rows = dataset.with_format(None)[self._column]
        self._say = say

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    @overload
    def __getitem__(self, index: list[int]) -> list[str]: ...
    def __getitem__(self, index: int | slice | list[int]) -> str | list[str]:
        found = self._rows[index]
        if isinstance(index, int):
            return self._say({self._column: found})
        return [self._say({self._column: value}) for value in found]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 2000):
            yield from self[start : start + 2000]
