"""Columns of a dataset as Arrow arrays and codes, so that no Python list of rows is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

MADE = ("augmented", "repeated", "replayed")
"""Columns that mark rows which were made or added for training."""
MOST_IN_MEMORY = 4_000
ROWS_AT_ONCE = 100_000
"""Rows put together at once; each time costs a pass over the table's chunks."""


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Give one column, shape (rows,), as it lies in memory or in its file."""
    column, picked = dataset.data.column(name), _picked(dataset)
    return column if picked is None else column.take(picked)


def with_column(dataset: Dataset, name: str, values: pa.Array) -> Dataset:
    """Add a column to a dataset.

    Rows that were picked out of others are first put together: many of them in a temporary file.
    `datasets` itself would do this forty times more slowly, with a progress bar.
    """
    return _put_together(dataset).add_column(name, values)


def _picked(dataset: Dataset) -> pa.ChunkedArray | None:
    """Give the positions of a dataset's rows in its table; None where the table is all."""
    indices = dataset._indices
    return None if indices is None else indices.column(0)


def _put_together(dataset: Dataset) -> Dataset:
    import datasets
    import pyarrow as pa

    from sftkit.dataset.arrow_rows import make_folder

    picked = _picked(dataset)
    if picked is None:
        return dataset
    table, schema = dataset.data.table, dataset.features.arrow_schema
    if len(picked) <= MOST_IN_MEMORY:
        return datasets.Dataset(table.take(picked).cast(schema))
    path = make_folder() / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(picked), ROWS_AT_ONCE):
            rows = table.take(picked.slice(start, ROWS_AT_ONCE))
            writer.write_table(rows.cast(schema), max_chunksize=MOST_IN_MEMORY)
    return datasets.Dataset.from_file(str(path))


def need_column(dataset: Dataset, name: str, asked_by: str) -> None:
    """Refuse a column that is not there, naming the nearest one that is.

    Raises:
        DataError: There is no such column.
    """
    if name not in dataset.column_names:
        columns = [column for column in dataset.column_names if column != "messages"]
        raise DataError(
            f"{asked_by}={name!r}: the dataset has no such column.{near_names(name, columns)}"
        )


def encode_column(dataset: Dataset, name: str) -> tuple[np.ndarray, list[str]]:
    """Number a column's values, as text, in order of first appearance.

    Returns:
        A code per row, shape (rows,), and the values the codes stand for; a missing one is "".
    """
    import pyarrow as pa

    texts = read_column(dataset, name).cast(pa.large_string()).fill_null("")
    coded = texts.dictionary_encode().combine_chunks()
    return coded.indices.to_numpy(), coded.dictionary.to_pylist()


def find_made_rows(dataset: Dataset, column: str) -> np.ndarray:
    """Say for every row whether a column of MADE marks it, shape (rows,)."""
    import numpy as np

    if column not in dataset.column_names or not len(dataset):
        return np.zeros(len(dataset), dtype=bool)
    codes, values = encode_column(dataset, column)
    # Marks that went through a file come back as text.
    is_mark = [value.strip().lower() not in ("", "false", "0", "no", "none") for value in values]
    return np.array(is_mark, dtype=bool)[codes]


def name_places(dataset: Dataset, positions: Sequence[int] | np.ndarray) -> str:
    """Name the first three of some rows by their places."""
    first = [int(position) for position in positions[:3]]
    if "place" in dataset.column_names:
        return ", ".join(str(dataset[position]["place"]) for position in first)
    return ", ".join(f"row {position + 1}" for position in first)


def need_train(train: Dataset) -> None:
    """Refuse rows of other splits, where a column `split` tells.

    Raises:
        DataError: Some rows do not train.
    """
    if "split" not in train.column_names or not len(train):
        return
    import numpy as np
    import pyarrow.compute as pc

    others = np.flatnonzero(pc.not_equal(read_column(train, "split"), "train"))
    if len(others):
        raise DataError(
            f"{len(others)} rows do not train: {name_places(train, others)}. Only training rows "
            "may be balanced, augmented or mixed with others: give splits.train."
        )


def append_rows(dataset: Dataset, added: dict[str, Any], marks: dict[str, Any]) -> Dataset:
    """Put rows below a dataset's own, with marks that tell the two apart.

    Args:
        dataset: Its rows come first; its columns decide.
        added: Columns of the new rows, as lists or Arrow arrays; what is left out is missing.
        marks: For each new column the value its old rows get and the values of the new ones.

    Returns:
        The rows of both. Where the dataset has a marking column already, its values stay.
    """
    import datasets
    import pyarrow as pa

    given, count = dict(added), len(next(iter(added.values())))
    for name, (old, new) in marks.items():
        if name not in dataset.column_names:
            kind = pa.bool_() if isinstance(old, bool) else pa.string()
            dataset = with_column(dataset, name, pa.array([old] * len(dataset), kind))
        given[name] = new
    schema = dataset.features.arrow_schema
    columns = [_as_array(given.get(field.name), count, field.type) for field in schema]
    below = datasets.Dataset(pa.Table.from_arrays(columns, schema=schema))
    return datasets.concatenate_datasets([dataset, below])


def _as_array(values: Iterable[Any] | None, count: int, kind: pa.DataType) -> Any:
    import pyarrow as pa

    if values is None:
        return pa.nulls(count, kind)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(list(values), kind)
