"""Rows out of CSV and TSV lines, with the line of each and everything that is wrong with it."""

from __future__ import annotations

import csv
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sftkit.dataset.faults import FaultLog

LONGEST_FIELD = 1 << 24
"""Characters a quoted field may have before its quote counts as never closed."""
MOST_OPEN_QUOTES = 20
"""Unclosed quotes after which reading stops: each costs another look at the lines behind it."""
MISSING_WORDS = frozenset(
    ("NA", "N/A", "n/a", "None", "null", "NULL", "NaN", "nan", "-NaN", "-nan", "<NA>", "#N/A")
)
"""Texts that pandas.read_csv takes for missing values (its documentation, parameter na_values)."""
_MARKS = (",", "\t", ";", "|")
_MARK_WORDS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars (|)"}
_PROBED = 50

Row = dict[str, Any]


def read_delimited(
    lines: Iterator[str], name: str, expected: str, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    """Give the rows of a table with a header.

    Args:
        lines: Lines with their line ends.
        name: What messages call the file.
        expected: The delimiter that its suffix promises, or empty to take what is found.
        log: Where faults are noted; a faulty row is left out.

    Yields:
        The row's place and its values by column, all of them text as written.
    """
    first = list(itertools.islice(lines, _PROBED))
    delimiter = choose_delimiter(first, expected)
    header: list[str] = []
    as_written: list[str] = []
    checks: list[tuple[str, int]] = []
    given = 0
    for line, fields in _records(itertools.chain(first, lines), delimiter, name, log):
        place = f"{name}:{line}"
        if not header:
            header = name_columns(fields, place, log)
            if expected and delimiter != expected:
                log.add("D07", place, detail="a tab" if delimiter == "\t" else repr(delimiter))
            width, as_written = len(header), fields
            continue
        if len(fields) != width:
            log_width(fields, header, place, log, delimiter=delimiter)
            continue
        if fields == as_written:
            message = "the header again, in {rows} that were left out"
            fix = "Delete these lines; files were put together, it seems."
            log.add("D33", place, of="header", message=message, fix=fix)
            continue
        if not MISSING_WORDS.isdisjoint(fields):
            log_missing_words(zip(header, fields, strict=True), place, given, log)
        for position, value in enumerate(fields):
            if len(value) > 18 and _exceeds_64_bits(value):
                checks.append((header[position], position))
        if checks:
            for column, position in checks:
                log.add("D13", place, row=given, of=column, detail=fields[position][:40])
            checks.clear()
        given += 1
        yield place, dict(zip(header, fields, strict=True))


def _records(
    lines: Iterable[str], delimiter: str, name: str, log: FaultLog
) -> Iterator[tuple[int, list[str]]]:
    """Give each record with the number of its first line; blank lines are none.

    A quote that never closes swallows all that follows. It is logged, and the lines behind it are
    read again as lines of their own.
    """
    csv.field_size_limit(LONGEST_FIELD)
    again: deque[str] = deque()
    held: list[str] = []
    rest = iter(lines)

    def draw() -> Iterator[str]:
        while True:
            if again:
                line = again.popleft()
            elif (drawn := next(rest, None)) is not None:
                line = drawn
            else:
                return
            held.append(line)
            yield line

    reader = csv.reader(draw(), delimiter=delimiter, strict=True)
    start, open_quotes = 1, 0
    while True:
        held.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            swallowed = held[1:]
            log_unreadable(str(error), start, len(swallowed) > 0, name, log)
            open_quotes += 1
            if open_quotes >= MOST_OPEN_QUOTES and swallowed:
                return
            again.extendleft(reversed(swallowed))
            reader = csv.reader(draw(), delimiter=delimiter, strict=True)
            start += 1
            continue
        if fields:
            yield start, fields
        start += len(held)


def log_unreadable(error: str, line: int, spans_lines: bool, name: str, log: FaultLog) -> None:
    """Note why a record cannot be read; nearly always it is a quote."""
    place = f"{name}:{line}"
    if spans_lines or "unexpected end of data" in error or "field larger" in error:
        log.add("D06", place, detail=str(line))
    elif "expected after" in error:
        message = "a quote inside a quoted field is not doubled on line {detail}"
        log.add("D06", place, of="quote", detail=str(line), message=message)
    else:
        # Of the csv module's faults only a lone carriage return is left.
        message = "{rows} with a line end (a lone carriage return) in a field without quotes"
        fix = "Put the field into double quotes, or write a space for the line end."
        log.add("D04", place, of="line", message=message, fix=fix)


def choose_delimiter(lines: Sequence[str], expected: str) -> str:
    """Give the expected delimiter, unless another one plainly divides the first lines.

    Args:
        lines: The first lines of a file.
        expected: What the suffix promises; empty for no promise.

    Returns:
        The delimiter; empty when nothing was promised and none divides the lines into columns.
    """
    widths = {mark: _widths(lines, mark) for mark in _MARKS}

    def divides(mark: str) -> bool:
        found = widths[mark]
        return bool(found) and found[0] > 1 and all(width == found[0] for width in found)

    others = [mark for mark in _MARKS if mark != expected and divides(mark)]
    if not expected:
        others = [mark for mark in others if len(widths[mark]) > 1]
        return max(others, key=lambda mark: widths[mark][0], default="")
    has_columns = bool(widths[expected]) and widths[expected][0] > 1
    if has_columns and (divides(expected) or not others):
        return expected
    if others:
        return max(others, key=lambda mark: widths[mark][0])
    if not has_columns:
        heads = [mark for mark in _MARKS if widths[mark] and widths[mark][0] > 1]
        return max(heads, key=lambda mark: widths[mark][0], default=expected)
    return expected


def _widths(lines: Sequence[str], mark: str) -> list[int]:
    """Count the fields of each record among the first lines."""
    found: list[int] = []
    try:
        found.extend(len(fields) for fields in csv.reader(lines, delimiter=mark) if fields)
    except csv.Error:
        return found
    # The last record may go on behind the lines that were probed.
    return found[:-1] if len(lines) >= _PROBED else found


def name_columns(fields: Sequence[Any], place: str, log: FaultLog) -> list[str]:
    """Give every column a name of its own; names that stand twice are logged."""
    given = ["" if value is None else str(value).strip() for value in fields]
    for name, count in Counter(filter(None, given)).items():
        if count > 1:
            often = "twice" if count == 2 else f"{count} times"
            message = f"column {{detail}} stands {often} in the header"
            log.add("D08", place, of=name, detail=repr(name), message=message)
    names: list[str] = []
    for number, written in enumerate(given, start=1):
        name = written or f"column {number}"
        while name in names:
            name = f"{name} ({number})"
        names.append(name)
    return names


def log_width(
    fields: Sequence[Any],
    header: Sequence[str],
    place: str,
    log: FaultLog,
    *,
    delimiter: str = "",
) -> None:
    """Note a row that has more or fewer fields than the header.

    Args:
        fields: Of the row.
        header: Names of the columns.
        place: Of the row.
        log: Takes the finding.
        delimiter: What stands between fields; empty for the cells of a sheet.
    """
    if len(fields) > len(header):
        mark = _MARK_WORDS.get(delimiter, repr(delimiter))
        fix = f"Put fields that hold {mark} into double quotes."
        if len(header) == 1:
            fix = "Delete what stands above the header, such as a title; it must come first."
        elif not delimiter:
            fix = "Give the further cells a header, or empty them."
        elif not any(fields[len(header) :]):
            fix = f"Delete {mark} at the end of the line: nothing stands behind."
        log.add("D04", place, detail=f"{len(fields)}, the header {len(header)}", fix=fix)
    else:
        log.add("D05", place, detail=repr(header[len(fields)]))


def log_missing_words(
    values: Iterable[tuple[str, Any]], place: str, row: int, log: FaultLog
) -> None:
    """Note the texts of a row that other tools read as missing."""
    for column, value in values:
        if isinstance(value, str) and value in MISSING_WORDS:
            log.add("D11", place, row=row, of=column, detail=repr(value))


def _exceeds_64_bits(text: str) -> bool:
    digits = text.strip().lstrip("+-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) < 19:
        return False
    return len(digits.lstrip("0")) > 19 or not -(2**63) <= int(text) < 2**63
