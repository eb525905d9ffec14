"""Rows out of Parquet, Arrow, Excel, pandas frames and datasets, a batch at a time."""

from __future__ import annotations

import datetime
import decimal
import itertools
import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.delimited import MISSING_WORDS, log_missing_words, log_width, name_columns
from sftkit.dataset.faults import FaultLog
from sftkit.dataset.json_lines import find_half_character
from sftkit.errors import DataError

if TYPE_CHECKING:
    import pandas
    import pyarrow

Row = dict[str, Any]
BATCH_ROWS = 1000
EXACT_IN_EXCEL = 10**15
"""Whole numbers below it keep all their digits (Excel's limit is 15 of them)."""
SHEET_BYTES = 1 << 30
"""Unpacked bytes of an Excel file up to which it is read."""


def read_parquet(path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of a Parquet file; damage behind the first row groups is logged."""
    import pyarrow.parquet as pq

    with _words_for(path.name, "Parquet"):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    batches = file.iter_batches(batch_size=BATCH_ROWS)
    yield from _arrow_rows(batches, schema, path.name, log)
    file.close()


def read_arrow(path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of an Arrow file, whether in the file or in the stream format."""
    import pyarrow as pa

    with path.open("rb") as file, _words_for(path.name, "Arrow"):
        is_file = file.read(6) == b"ARROW1"
    with pa.memory_map(str(path)) as source:
        with _words_for(path.name, "Arrow"):
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            if is_file:
                count = reader.num_record_batches
                batches = (reader.get_batch(number) for number in range(count))
            else:
                batches = iter(reader)
        yield from _arrow_rows(batches, reader.schema, path.name, log)


class _words_for:  # noqa: N801  # a context manager, used like a function
    """Turn what Arrow raises on a damaged file into a DataError."""

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(
                f"{self._name} is no sound {self._kind} file ({_first_line(error)}). Fetch or "
                "export it again (partial download?)."
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def _arrow_rows(
    batches: Iterator[pyarrow.RecordBatch], schema: pyarrow.Schema, name: str, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    names = name_columns(schema.names, name, log)
    found = _class_names(schema)
    class_names = {
        n: found[raw] for n, raw in zip(names, schema.names, strict=True) if raw in found
    }
    number = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            columns = [_as_plain(batch.column(i)).to_pylist() for i in range(batch.num_columns)]
        except Exception as error:  # Arrow raises a dozen kinds on damaged bytes
            log.add(
                "D15",
                f"{name} row {number + 1}",
                of="file",
                detail=_first_line(error),
                message="the file is damaged: {detail}",
                fix="Fetch or export it again (partial download?); what stands before was read.",
            )
            return
        for values in zip(*columns, strict=True):
            number += 1
            row = dict(zip(names, values, strict=True))
            for column, labels in class_names.items():
                row[column] = _class_name(row[column], labels)
            yield f"{name} row {number}", row


def _as_plain(column: pyarrow.Array) -> pyarrow.Array:
    """Give decimals as numbers, and bytes as text where they are text (as Spark may write it)."""
    import pyarrow as pa

    kind: pa.DataType | None = None
    if pa.types.is_decimal(column.type):
        kind = pa.float64() if column.type.scale > 0 else pa.int64()
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        kind = pa.large_string()
    try:
        return column if kind is None else column.cast(kind)
    except pa.ArrowInvalid:  # bytes of an image; a number over 64 bits
        return column


def _class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Find the columns whose numbers stand for names, as `datasets` writes them."""
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except Exception:  # unknown types are no reason not to read the rest
        return {}
    return {
        column: feature.names
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }


def _class_name(value: Any, names: list[str]) -> Any:
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return None if value == -1 else value  # -1 is how `datasets` writes a missing class


def read_dataset_rows(loaded: Any, name: str, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of a `datasets` object; the key of a split becomes the column `split`."""
    if isinstance(loaded, Mapping):
        for split, part in loaded.items():
            for place, row in read_dataset_rows(part, f"{name} {split}", log):
                yield place, {**row, "split": split}
        return
    import datasets

    features = loaded.features or {}
    for column, feature in features.items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            loaded = loaded.cast_column(column, type(feature)(decode=False))
    if isinstance(loaded, datasets.Dataset):
        tables = (t.to_batches() for t in loaded.with_format("arrow").iter(BATCH_ROWS))
        schema = loaded.features.arrow_schema
        yield from _arrow_rows(itertools.chain.from_iterable(tables), schema, name, log)
        return
    labels = {c: f.names for c, f in features.items() if isinstance(f, datasets.ClassLabel)}
    for number, row in enumerate(loaded, start=1):
        named = {c: _class_name(v, labels[c]) if c in labels else v for c, v in row.items()}
        yield f"{name} row {number}", named


def read_frame(frame: pandas.DataFrame, name: str, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of a pandas frame; missing values of every kind become None."""
    names = name_columns([_join_name(column) for column in frame.columns], name, log)
    for number, values in enumerate(frame.itertuples(index=False, name=None), start=1):
        place = f"{name} row {number}"
        row = {key: to_native(value) for key, value in zip(names, values, strict=True)}
        half = next((h for v in row.values() if isinstance(v, str) and (h := _half(v))), "")
        if half:
            log.add("D17", place, detail=half)
            continue
        yield place, row


def _half(text: str) -> str:
    return "" if text.isascii() else find_half_character(text)


def _join_name(column: Any) -> str:
    return " ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def to_native(value: Any) -> Any:
    """Turn a cell of pandas or NumPy into a plain value; missing ones into None."""
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_native(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_native(item) for key, item in value.items()}
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan or type(value).__name__ in ("NaTType", "NAType") else value


def to_text(value: Any) -> str | None:
    """Write a plain value as text; None for what is missing or no plain value."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bool | int | decimal.Decimal):
        return str(value)
    return None


# ---- Excel ----


def read_excel(path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of an Excel file's first sheet; places are the rows as Excel numbers them."""
    import openpyxl

    name = path.name
    with _words_for(name, "Excel"):
        with zipfile.ZipFile(path) as packed:
            size = sum(part.file_size for part in packed.infolist())
        if size > SHEET_BYTES:
            raise DataError(
                f"{name} unpacks to {size:,} bytes; Excel files are read up to {SHEET_BYTES:,}. "
                "Save it as CSV."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    sheets = book.worksheets
    if not sheets:
        raise DataError(f"{name} has no sheet with cells.")
    if len(sheets) > 1:
        others = ", ".join(repr(sheet.title) for sheet in sheets[1:4])
        message = f"only the first sheet was read, {sheets[0].title!r}; also there: {others}"
        log.add("D22", name, of="sheet", message=_plain(message))
    try:
        yield from _sheet_rows(_quiet_rows(sheets[0], name), name, log)
    finally:
        book.close()


def _log_rounded(value: float, column: str, place: str, row: int, log: FaultLog) -> None:
    if float(value).is_integer():
        log.add(
            "D13",
            place,
            row=row,
            of=column,
            detail=str(value),
            message="{rows} with a whole number of over 15 digits, the first {detail}: Excel "
            "rounds it",
            fix="Format the column as text before the numbers are put in, or export as CSV.",
        )


def _plain(message: str) -> str:
    """Keep braces of a user's words out of the filling-in of messages."""
    return message.replace("{", "{{").replace("}", "}}")


def _quiet_rows(sheet: Any, name: str) -> Iterator[tuple[Any, ...]]:
    """Draw rows in batches, so that openpyxl's warnings are silenced around its own work only."""
    sheet.reset_dimensions()  # some exporters write a size that is wrong, and rows get lost
    rows = sheet.iter_rows(values_only=True)
    while True:
        with warnings.catch_warnings(), _words_for(name, "Excel"):
            warnings.simplefilter("ignore")
            batch = list(itertools.islice(rows, BATCH_ROWS))
        if not batch:
            return
        yield from batch


def _sheet_rows(
    rows: Iterable[tuple[Any, ...]], name: str, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    header: list[str] = []
    given = 0
    for number, cells in enumerate(rows, start=1):
        place = f"{name} row {number}"
        values = list(cells)
        while values and values[-1] is None:
            values.pop()
        if not values:
            continue
        if not header:
            header = name_columns(values, place, log)
            continue
        if len(values) > len(header):
            log_width(values, header, place, log)
            continue
        values += [None] * (len(header) - len(values))
        row = dict(zip(header, values, strict=True))
        if any(isinstance(value, str) and value in MISSING_WORDS for value in values):
            log_missing_words(row.items(), place, given, log)
        for column, value in row.items():
            if type(value) in (int, float) and abs(value) >= EXACT_IN_EXCEL:
                _log_rounded(value, column, place, given, log)
        given += 1
        yield place, row
