"""Read conversations from a catalog name, a file or the hub into one canonical form.

Reading does not judge the conversations: that is the audit's part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.dataset.faults import FaultLog, raise_on_errors
from sftkit.dataset.files import SUFFIXES, RawTable, Row, read_file
from sftkit.dataset.formats import convert_table, question_key
from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "control": "control",
}


def read_dataset(
    source: str | Path,
    *,
    where: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    group_by: str | None = None,
    split_by: str | None = None,
) -> Dataset:
    """Read conversations into a dataset with canonical columns.

    Args:
        source: A catalog name, a .jsonl, .json, .csv or .tsv file, or a hub id (owner/name).
        where: Keep only rows whose column has one of these values.
        limit: Keep at most this many rows: the first groups that fit, each whole.
        group_by: Column whose values stay together; None takes the source's own groups, or
            groups rows that begin with the same question.
        split_by: Column that says train, validation, test or control.

    Returns:
        Columns id, messages (list of role and content), group, place, split if known, and every
        other column of plain values as text. Rows that are not conversations are kept for the
        audit to report, with messages None.

    Raises:
        DataError: An unreadable file (with all its findings), a column that is not there, or no
            rows left.
        FetchError: A catalog dataset that cannot be had.
    """
    table = read_table(source)
    rows = convert_table(table)
    raise_on_errors(table.log.findings(), source=table.name)
    rows = _keep_where(rows, where or {}, table.name)
    if group_by is not None:
        _set_groups(rows, group_by, table.name)
    if split_by is not None:
        _set_splits(rows, split_by, table.name)
    if limit is not None:
        rows = _take_groups(rows, limit)
    return rows_to_dataset(rows)


def read_table(source: str | Path) -> RawTable:
    """Read raw rows from wherever a source is."""
    name = str(source)
    if isinstance(source, str) and source in catalog.names():
        return _listed_table(name, catalog.dataset_rows(source))
    path = Path(source).expanduser()
    if path.suffix.lower() in SUFFIXES or path.is_file():
        return read_file(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.exists():
        return _read_hub(name)
    raise DataError(
        f"No dataset {name!r}: not in the catalog, not a file ending in {', '.join(SUFFIXES)}, "
        f"and not a hub id (owner/name).{near_names(name, catalog.names('dataset'))}"
    )


def _listed_table(name: str, rows: Sequence[Row]) -> RawTable:
    places = tuple(f"row {number}" for number in range(1, len(rows) + 1))
    return RawTable(name=name, places=places, rows=tuple(rows), log=FaultLog())


def _read_hub(name: str) -> RawTable:
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub library raises dozens of kinds
        raise DataError(
            f"The hub dataset {name!r} could not be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). Check the name "
            "and the network, or give a file."
        ) from error
    rows = [{**row, "split": split} for split in loaded for row in loaded[split]]
    return _listed_table(name, rows)


def _need_column(rows: Sequence[Row], column: str, asked_by: str, name: str) -> None:
    columns = dict.fromkeys(key for row in rows for key in row if key not in ("messages", "place"))
    if column not in columns:
        raise DataError(
            f"{asked_by}={column!r}: {name} has no such column.{near_names(column, columns)}"
        )


def _keep_where(rows: list[Row], where: Mapping[str, Sequence[str]], name: str) -> list[Row]:
    for column, values in where.items():
        _need_column(rows, column, "where", name)
        kept = [row for row in rows if row.get(column) in values]
        if not kept:
            have = dict.fromkeys(str(row.get(column)) for row in rows)
            raise DataError(
                f"where={column}: no row of {name} has {' or '.join(map(repr, values))}. It has "
                f"{', '.join(list(have)[:6])}{' …' if len(have) > 6 else ''}."
            )
        rows = kept
    return rows


def _set_groups(rows: list[Row], group_by: str, name: str) -> None:
    _need_column(rows, group_by, "group_by", name)
    for row in rows:
        row["group"] = row.get(group_by) or question_key(row["messages"])


def _set_splits(rows: list[Row], split_by: str, name: str) -> None:
    _need_column(rows, split_by, "split_by", name)
    for row in rows:
        said = row.get(split_by)
        word = _SPLIT_WORDS.get(str(said).strip().lower())
        if word is None:
            raise DataError(
                f"{row['place']} · {split_by} · the split is {said!r} · Use train, validation, "
                "test or control in every row."
            )
        row["split"] = word


def _take_groups(rows: list[Row], limit: int) -> list[Row]:
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["group"]] = sizes.get(row["group"], 0) + 1
    taken: set[str] = set()
    left = limit
    for group, size in sizes.items():
        if size > left:
            break
        taken.add(group)
        left -= size
    if not taken:
        group, size = next(iter(sizes.items()))
        raise DataError(
            f"limit={limit} takes whole groups, but the first one ({group}) has {size} rows. Raise "
            f"limit to {size} or more."
        )
    return [row for row in rows if row["group"] in taken]


def rows_to_dataset(rows: Sequence[Row]) -> Dataset:
    """Put canonical rows into a dataset.

    Messages that are no list of turns become None, and content that is no text becomes None:
    Arrow has one type per column. The audit reports both.
    """
    import datasets

    text = datasets.Value("string")
    extras = dict.fromkeys(key for row in rows for key in row if key != "messages")
    features = dict.fromkeys(extras, text)
    features["messages"] = [{"role": text, "content": text}]
    order = ["id", "messages", "group", "place"]
    order = [key for key in order if key in features] + [key for key in extras if key not in order]
    columns: dict[str, list[Any]] = {
        key: [_arrow_messages(r["messages"]) if key == "messages" else r.get(key) for r in rows]
        for key in order
    }
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features({key: features[key] for key in order})
    )


def _arrow_messages(messages: Any) -> list[Row] | None:
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        return None
    return [
        {
            key: turn.get(key) if isinstance(turn.get(key), str) else None
            for key in ("role", "content")
        }
        for turn in messages
    ]
