"""Raw rows out of JSON Lines, JSON and CSV files, with the place of each and what is wrong.

Nothing here knows conversations. A fault costs its own row, so that all faults of a file are found
in one pass; only where the file cannot be read on does reading stop.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.dataset.faults import FaultLog
from sftkit.errors import DataError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Rows as their source gives them.

    Attributes:
        name: What the source is called in messages.
        places: Place of each row, file:line or row N.
        rows: Values by column, not yet converted.
        log: What is wrong with the source as a file.
    """

    name: str
    places: tuple[str, ...]
    rows: tuple[Row, ...]
    log: FaultLog

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order of first appearance."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row))


def read_file(path: Path) -> RawTable:
    """Read a file's rows, and log what is wrong with it as a file.

    Raises:
        DataError: There is no such file, or its kind is not read.
    """
    log = FaultLog()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is not read; expected a file ending in {', '.join(SUFFIXES)}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    text = _decode(data, path.name, log)
    reader = {".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json}.get(suffix, _read_jsonl)
    found: list[tuple[str, Row]] = []
    if text is not None:
        if text.strip():
            found = list(reader(text, path, log))
        else:
            log.add("D09", path.name)
        if not found and not log.findings():
            log.add("D10", path.name)
    return RawTable(
        name=path.name,
        places=tuple(place for place, _ in found),
        rows=tuple(row for _, row in found),
        log=log,
    )


def _decode(data: bytes, name: str, log: FaultLog) -> str | None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        log.add("D02", name)
        return None
    if data.startswith(b"\xef\xbb\xbf"):
        log.add("D03", name)
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        try:
            data.decode("cp1252")
            guess = "; looks like cp1252 (Windows or Latin-1)"
        except UnicodeDecodeError:
            guess = ""
        log.add("D01", f"{name}:{line}", detail=f"{error.start}{guess}")
        return None


def _read_jsonl(text: str, path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path.name}:{number}"
            value = _parse_json(line, place, log)
            if isinstance(value, dict):
                yield place, value
            elif value is not _UNREADABLE:
                log.add("D15", place, detail=f"{_kind(value)} where an object is expected")


def _read_json(text: str, path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    quiet = FaultLog()
    value = _parse_json(text, path.name, quiet)
    if value is _UNREADABLE and _begins_as_lines(text):
        yield from _read_jsonl(text, path, log)
        return
    if value is _UNREADABLE or quiet.findings():
        value = _parse_json(text, path.name, log)
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            place = f"{path.name} row {number}"
            if isinstance(row, dict):
                yield place, row
            else:
                log.add("D15", place, detail=f"{_kind(row)} where an object is expected")
    elif value is not _UNREADABLE:
        log.add("D15", path.name, detail=f"{_kind(value)} where a list of objects is expected")


def _begins_as_lines(text: str) -> bool:
    """Say whether the first line alone is a JSON object: JSON Lines under another name."""
    first = text.lstrip().split("\n", 1)[0]
    return isinstance(_parse_json(first, "", FaultLog()), dict)


_UNREADABLE = object()


def _parse_json(text: str, place: str, log: FaultLog) -> Any:
    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twin = next(key for key in keys if keys.count(key) > 1)
            log.add("D16", place, detail=repr(twin))
        return found

    try:
        value = json.loads(text, object_pairs_hook=without_twins)
    except json.JSONDecodeError as error:
        if error.lineno > 1:
            place = f"{place}:{error.lineno}"
        log.add("D15", place, detail=f"{error.msg} at column {error.colno}")
        return _UNREADABLE
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5,000 digits
        log.add("D15", place, detail=str(error)[:80])
        return _UNREADABLE
    if r"\ud" in text or r"\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = str(error.object)[error.start : error.start + 1]
            log.add("D17", place, detail=half.encode("unicode_escape").decode())
            return _UNREADABLE
    return value


def _read_csv(text: str, path: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                log.add("D06", f"{path.name}:{start}", detail=str(start))
            else:
                log.add("D04", f"{path.name}:{start}", detail=f"{error}")
            return
        line, start = start, reader.line_num + 1
        if not fields:
            continue
        if not header:
            header = [name.strip() for name in fields]
            if not _check_header(header, f"{path.name}:{line}", delimiter, log):
                return
            continue
        place = f"{path.name}:{line}"
        if len(fields) > len(header):
            log.add("D04", place, detail=f"{len(fields)}, the header {len(header)}")
        elif len(fields) < len(header):
            log.add("D05", place, detail=repr(header[len(fields)]))
        else:
            yield place, dict(zip(header, fields, strict=True))


def _check_header(header: list[str], place: str, delimiter: str, log: FaultLog) -> bool:
    twins = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    for twin in twins:
        log.add("D08", place, detail=repr(twin))
    other = next((mark for mark in ";\t|" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other:
        log.add("D07", place, detail="a tab" if other == "\t" else repr(other))
        return False
    return not twins


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "a bool"}
    return names.get(type(value), "a number")
