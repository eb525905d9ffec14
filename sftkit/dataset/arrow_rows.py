"""Canonical rows into a dataset that lies in an Arrow file, so that memory stays bounded."""

from __future__ import annotations

import atexit
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.columnar import to_text
from sftkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features

Row = dict[str, Any]
BATCH_ROWS = 1_000
"""Rows written at once."""
MOST_IN_MEMORY = 4_000
"""Rows of a table that needs no file."""
MOST_COLUMNS = 2_000
_PREFIX = "sftkit-rows-"
_CANONICAL: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "classify": ("text", "label"),
    "regress": ("text", "score"),
    "image": ("image", "label"),
}


def write_rows(rows: Iterable[Row], task: str = "chat") -> Dataset:
    """Put canonical rows into a dataset.

    Arrow has one type per column: messages that are no list of turns, content that is no text and
    scores that are no numbers become None. The audit reports them.

    Args:
        rows: Mappings with id, group, place, the task's columns, and others as text.
        task: chat, classify, regress or image.

    Returns:
        The dataset. More than 4,000 rows lie in a temporary file, which is mapped into memory and
        removed when the interpreter exits.

    Raises:
        DataError: There are more columns than any table has.
    """
    import datasets

    iterator = iter(rows)
    columns = ["id", *_CANONICAL[task], "group", "place"]
    parts: list[Dataset] = []
    first = list(itertools.islice(iterator, MOST_IN_MEMORY + 1))
    if len(first) <= MOST_IN_MEMORY:
        have = {key for row in first for key in row}
        columns = [key for key in columns if key in have or key in _CANONICAL[task] or not have]
        features = _features(columns, first, task)
        return datasets.Dataset.from_dict(_columns(first, features), features=features)
    folder = make_folder()
    batch = first
    while batch:
        features = _features(columns, batch, task)
        columns = list(features)
        path = folder / f"part-{len(parts)}.arrow"
        batch = _write_part(path, batch, iterator, features)
        parts.append(datasets.Dataset.from_file(str(path)))
    # Rows of a later part may have columns that earlier ones lack.
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _features(columns: list[str], rows: Iterable[Row], task: str) -> Features:
    import datasets

    text = datasets.Value("string")
    special: dict[str, Any] = {"score": datasets.Value("float64"), "image": datasets.Image()}
    special["messages"] = [{"role": text, "content": text}]
    own = {key: special[key] for key in _CANONICAL[task] if key in special}
    names = dict.fromkeys([*columns, *(key for row in rows for key in row)])
    if len(names) > MOST_COLUMNS:
        raise DataError(
            f"More than {MOST_COLUMNS:,} different columns (such as {list(names)[-1]!r}): the keys "
            "of the rows are no columns of a table. Write them as values."
        )
    return datasets.Features({name: own.get(name, text) for name in names})


def _write_part(path: Path, batch: list[Row], rest: Iterator[Row], features: Features) -> list[Row]:
    """Write batches while they have no new column; give the first that has one."""
    import pyarrow as pa

    schema = features.arrow_schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while batch and not any(row.keys() - features.keys() for row in batch):
            for written in _to_arrow(batch, features, schema):
                writer.write_batch(written)
            batch = list(itertools.islice(rest, BATCH_ROWS))
    return batch


def _to_arrow(
    rows: list[Row], features: Features, schema: pyarrow.Schema
) -> Iterator[pyarrow.RecordBatch]:
    """Give the rows as record batches; one, unless a column is over 2 GB of text."""
    import pyarrow as pa

    arrays = []
    for field in schema:
        feature = features[field.name]
        values = [row.get(field.name) for row in rows]
        if type(feature).__name__ == "Image":
            values = [None if v is None else feature.encode_example(v) for v in values]
        elif type(feature).__name__ == "Value" and feature.dtype == "float64":
            values = [to_score(value) for value in values]
        try:
            array = pa.array(values, type=field.type)
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
            array = pa.array(_clean(values, feature), type=field.type)
        if isinstance(array, pa.ChunkedArray):
            middle = len(rows) // 2
            yield from _to_arrow(rows[:middle], features, schema)
            yield from _to_arrow(rows[middle:], features, schema)
            return
        arrays.append(array)
    yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _columns(rows: list[Row], features: Features) -> dict[str, list[Any]]:
    return {key: _clean([row.get(key) for row in rows], features[key]) for key in features}


def _clean(values: list[Any], feature: Any) -> list[Any]:
    """Make the values of a column fit its type; what does not becomes None."""
    kind = type(feature).__name__
    if kind == "Image":
        return values
    if kind != "Value":
        return [_clean_messages(value) for value in values]
    if feature.dtype == "float64":
        return [to_score(value) for value in values]
    return [_clean_text(value) for value in values]


def _clean_text(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes 1 as 1.0 beside missing values
    text = to_text(value)
    if text is not None and not text.isascii():
        return text.encode("utf-8", "replace").decode()
    return text


def to_score(value: Any) -> float | None:
    """Give a number, also one written as text; None for anything else, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _clean_messages(messages: Any) -> list[Row] | None:
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        return None
    return [
        {
            key: _clean_text(turn[key]) if isinstance(turn.get(key), str) else None
            for key in ("role", "content")
        }
        for turn in messages
    ]


# ---- temporary files ----


def make_folder() -> Path:
    """Make a folder that goes when the interpreter exits; clear those that others left behind.

    A dataset maps its file, and what is derived from it does too, so the file stays until the end.
    Windows refuses to remove mapped files: the next process does it.
    """
    import psutil

    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = old.name.removeprefix(_PREFIX).split("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(old, ignore_errors=True)
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{owner}-"))

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves its parent's files alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
