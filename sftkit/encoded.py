"""Encoded conversations in a file: many rows, little memory, and plain tools can read them."""

from __future__ import annotations

import itertools
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from sftkit.chat import MaskSummary
from sftkit.records import Encoded, Refused

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray


class EncodedTable(Sequence[Encoded]):
    """Encoded conversations in an Arrow file; behaves as a sequence of `Encoded`.

    The file is temporary. It goes when neither this table nor a dataset made from it is left.

    Attributes:
        lengths: Tokens of every example, shape (N,).
        supervised: Tokens of every example that are learned from, shape (N,).
        rows: Row number of every example in the dataset it came from, shape (N,).
        refused: Rows that could not be encoded, and why: the first thousand.
        refused_rows: Row numbers of all that could not be encoded, shape (R,).
    """

    def __init__(
        self,
        path: Path,
        *,
        supervised: NDArray[np.int64],
        refused: Sequence[Refused],
        refused_rows: Sequence[int],
    ) -> None:
        from datasets import Dataset

        self._folder = _Folder(path.parent)
        self._dataset = Dataset.from_file(str(path))
        chunks = self._dataset.data.table.to_batches()
        parts = [_Chunk.of(chunk) for chunk in chunks]
        self._examples = JoinedExamples(*parts)
        empty = [np.zeros(0, np.int64)]
        self.lengths = np.concatenate(
            [np.diff(part.offsets).astype(np.int64) for part in parts] or empty
        )
        self.rows = np.concatenate([part.rows for part in parts] or empty)
        self.supervised = supervised
        self.refused = tuple(refused)
        self.refused_rows = np.asarray(refused_rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, position: int) -> Encoded: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Encoded, ...]: ...
    def __getitem__(self, position: int | slice) -> Encoded | tuple[Encoded, ...]:
        return self._examples[position]

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self._examples)

    def __repr__(self) -> str:
        return f"EncodedTable({self.summary()}; {len(self.refused_rows)} rows refused)"

    def summary(self) -> MaskSummary:
        """Count what the examples teach."""
        return MaskSummary(
            rows=len(self),
            tokens=int(self.lengths.sum()),
            supervised=int(self.supervised.sum()),
            rows_without_supervision=int((self.supervised == 0).sum()),
            end_of_turn_supervised=len(self),  # encode_chat refuses all others
            longest=int(self.lengths.max(initial=0)),
        )

    def as_dataset(self) -> Dataset:
        """Give the examples to plain tools: columns input_ids and labels, read from the file."""
        chosen = self._dataset.select_columns(["input_ids", "labels"])
        chosen._sftkit_folder = self._folder  # the file stays as long as the dataset does
        return chosen


class JoinedExamples(Sequence[Encoded]):
    """Several sequences of examples as one, read where they lie."""

    def __init__(self, *parts: Sequence[Encoded]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every example, shape (N,)."""
        return self._column("lengths", lambda example: example.length)

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Tokens of every example that are learned from, shape (N,)."""
        return self._column("supervised", lambda example: int(example.weight))

    def _column(self, name: str, size: Callable[[Encoded], int]) -> NDArray[np.int64]:
        known = [getattr(part, name, None) for part in self._parts]
        return np.array(
            [
                each
                for part, column in zip(self._parts, known, strict=True)
                for each in (map(size, part) if column is None else column)
            ],
            dtype=np.int64,
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, position: int) -> Encoded: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Encoded, ...]: ...
    def __getitem__(self, position: int | slice) -> Encoded | tuple[Encoded, ...]:
        if isinstance(position, slice):
            return tuple(self[each] for each in range(*position.indices(len(self))))
        place = position + len(self) if position < 0 else position
        if not 0 <= place < len(self):
            raise IndexError(f"example {position} of {len(self)}")
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._parts[number][place - int(self._starts[number])]

    def __iter__(self) -> Iterator[Encoded]:
        return itertools.chain(*self._parts)


class _Folder:
    """A temporary folder that goes with its last user."""

    def __init__(self, path: Path) -> None:
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


@dataclass(frozen=True)
class _Chunk(Sequence[Encoded]):
    """One batch of the file, as arrays over it; whole positions only."""

    offsets: NDArray[np.int32]
    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    rows: NDArray[np.int64]
    groups: pa.Array

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Chunk:
        ids, labels = batch.column("input_ids"), batch.column("labels")
        return cls(
            ids.offsets.to_numpy(),
            ids.values.to_numpy(),
            labels.values.to_numpy(),
            batch.column("row").to_numpy(),
            batch.column("group"),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Encoded:  # type: ignore[override]
        if position >= len(self):
            raise IndexError(position)
        part = slice(self.offsets[position], self.offsets[position + 1])
        return Encoded(
            input_ids=tuple(self.ids[part].tolist()),
            labels=tuple(self.labels[part].tolist()),
            row=int(self.rows[position]),
            group=self.groups[position].as_py(),
        )
