"""Read examples from a file, a folder, an object, the catalog or the hub into one canonical form.

Reading does not judge the examples: that is the audit's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.dataset.arrow_rows import write_rows
from sftkit.dataset.faults import raise_on_errors
from sftkit.dataset.files import open_table
from sftkit.dataset.folders import SPLIT_WORDS
from sftkit.dataset.formats import Converted, convert_table
from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

    from sftkit.dataset.plans import Task

__all__ = ["Converted", "open_source", "read_dataset", "rows_to_dataset", "write_rows"]

Row = dict[str, Any]
_VALUES_SHOWN = 6


def open_source(
    source: Any,
    *,
    task: Task | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> Converted:
    """Open a source for one pass over its canonical rows.

    Args:
        source: See `read_dataset`.
        task: chat, classify, regress or image; None takes what the rows are made for.
        format: A name of `sftkit.dataset.plans.FORMATS`; None finds it by content.
        columns: Column of each role, such as {"question": "Frage", "answer": "Antwort"}.
        encoding: Encoding of a text file; None expects UTF-8.

    Returns:
        The rows, and a log that fills while they are drawn.

    Raises:
        DataError: There is no such source, task, format or column.
        FetchError: A catalog dataset that cannot be had.
    """
    table = open_table(source, encoding=encoding)
    return convert_table(table, task=task, format=format, columns=columns)


def read_dataset(
    source: Any,
    *,
    task: Task | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    group_by: str | None = None,
    split_by: str | None = None,
) -> Dataset:
    """Read examples into a dataset with canonical columns.

    One pass, in bounded memory: many rows come to lie in a temporary Arrow file.

    Args:
        source: A catalog name; a CSV, TSV, JSON, JSON Lines, Parquet, Arrow or Excel file (the text
            kinds also in gzip or zstd); a folder of texts or images sorted by label; a hub id
            (owner/name); a pandas frame; a `datasets` object; or a list of dictionaries.
        task: chat, classify, regress or image; None takes what the rows are made for.
        format: A name of `sftkit.dataset.plans.FORMATS`; None finds it by content.
        columns: Column of each role, such as {"question": "Frage", "answer": "Antwort"}; roles
            that are not named are guessed.
        encoding: Encoding of a text file; None expects UTF-8.
        where: Keep only rows whose column has one of these values.
        limit: Keep at most this many rows: the first groups that fit, each whole.
        group_by: Column whose values stay together; None takes the source's own groups, or
            groups rows that begin with the same question or have the same text.
        split_by: Column that says train, validation, test or control.

    Returns:
        Columns id, group, place, split if known, every other column of plain values as text, and
        by task: messages (list of role and content); text and label; text and score; image
        (decoded when it is looked at) and label. Values that are not what their column holds are
        None, for the audit to report.

    Raises:
        DataError: An unreadable source (with all its findings), a column that is not there, or no
            rows left.
        FetchError: A catalog dataset that cannot be had.
    """
    opened = open_source(source, task=task, format=format, columns=columns, encoding=encoding)
    name = opened.name
    seen: dict[str, None] = {}
    rows = note_columns(opened.rows, seen)
    met: dict[str, dict[str, None]] = {}
    for column, values in (where or {}).items():
        met[column] = {}
        rows = _keep_where(rows, column, values, met[column])
    if group_by is not None:
        rows = set_groups(rows, group_by)
    if split_by is not None:
        rows = _set_splits(rows, split_by, seen, name)
    dataset = write_rows(rows, opened.task)
    raise_on_errors(opened.log.findings(), source=name)
    for column in where or {}:
        need_seen_column(seen, column, "where", name)
    for asked_by, wanted in (("group_by", group_by), ("split_by", split_by)):
        if wanted is not None:
            need_seen_column(seen, wanted, asked_by, name)
    if len(dataset) == 0:
        raise DataError(_explain_nothing(where or {}, met, name))
    return dataset if limit is None else _take_groups(dataset, limit)


def rows_to_dataset(rows: Iterable[Row]) -> Dataset:
    """Put canonical conversations into a dataset; see `write_rows`."""
    return write_rows(rows, "chat")


def note_columns(rows: Iterable[Row], seen: dict[str, None]) -> Iterator[Row]:
    """Give the rows on, and note every column they have."""
    known: frozenset[str] = frozenset()
    for row in rows:
        if not row.keys() <= known:
            seen.update(dict.fromkeys(row))
            known = frozenset(seen)
        yield row


def need_seen_column(seen: Mapping[str, None], column: str, asked_by: str, name: str) -> None:
    """Refuse a column that no row had.

    Raises:
        DataError: There was no such column.
    """
    columns = [key for key in seen if key not in ("messages", "place")]
    if column not in columns:
        raise DataError(
            f"{asked_by}={column!r}: {name} has no such column.{near_names(column, columns)}"
        )


def _keep_where(
    rows: Iterable[Row], column: str, values: Sequence[str], met: dict[str, None]
) -> Iterator[Row]:
    wanted = {str(value) for value in ([values] if isinstance(values, str) else values)}
    for row in rows:
        value = str(row.get(column))
        if len(met) <= _VALUES_SHOWN:
            met[value] = None
        if value in wanted:
            yield row


def _explain_nothing(
    where: Mapping[str, Sequence[str]], met: Mapping[str, Mapping[str, None]], name: str
) -> str:
    for column, values in where.items():
        have = list(met[column])
        wanted = [values] if isinstance(values, str) else [str(value) for value in values]
        if not set(have) & set(wanted) or len(where) == 1:
            more = " …" if len(have) > _VALUES_SHOWN else ""
            return (
                f"where={column}: no row of {name} has {' or '.join(map(repr, wanted))}. It has "
                f"{', '.join(have[:_VALUES_SHOWN])}{more}."
            )
    return f"No row of {name} is left. Loosen where, or check the source."


def set_groups(rows: Iterable[Row], group_by: str) -> Iterator[Row]:
    """Put the values of a column in the place of groups; rows without one keep their own."""
    for row in rows:
        row["group"] = row.get(group_by) or row["group"]
        yield row


def _set_splits(
    rows: Iterable[Row], split_by: str, seen: Mapping[str, None], name: str
) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number == 0:
            need_seen_column(seen, split_by, "split_by", name)
        said = row.get(split_by)
        word = SPLIT_WORDS.get(str(said).strip().lower())
        if word is None:
            raise DataError(
                f"{row['place']} · {split_by} · the split is {said!r} · Use train, validation, "
                "test or control in every row."
            )
        row["split"] = word
        yield row


def _take_groups(dataset: Dataset, limit: int) -> Dataset:
    """Keep the first groups that fit, each whole; groups count in order of first appearance."""
    import numpy as np
    import pyarrow.compute as pc

    coded = pc.dictionary_encode(dataset.data.column("group").combine_chunks())
    codes = coded.indices.to_numpy(zero_copy_only=False)
    totals = np.cumsum(np.bincount(codes, minlength=len(coded.dictionary)))
    fitting = int(np.searchsorted(totals, limit, side="right"))
    if fitting == 0:
        raise DataError(
            f"limit={limit} takes whole groups, but the first one ({coded.dictionary[0]}) has "
            f"{totals[0]} rows. Raise limit to {totals[0]} or more."
        )
    return dataset if fitting == len(totals) else dataset.select(np.flatnonzero(codes < fitting))
