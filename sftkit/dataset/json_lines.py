"""Rows out of JSON Lines and JSON, with the line of each and everything that is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sftkit.dataset.faults import FaultLog
from sftkit.dataset.folders import SPLIT_WORDS
from sftkit.errors import DataError

Row = dict[str, Any]
WHOLE_CHARACTERS = 1 << 28
"""Characters of a JSON document that is read whole; lists of objects are read piece by piece."""
LONGEST_ITEM = 1 << 26
"""Characters of one object in a JSON list."""
_PIECE = 1 << 20
_UNREADABLE = object()
_SPEAKERS = {"role", "from"}
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")


class _Parser:
    """A JSON parser that notices keys given twice; one for each file, used row by row."""

    def __init__(self) -> None:
        self.twins: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._keep)
        self._lenient = json.JSONDecoder(object_pairs_hook=self._keep, parse_int=_int_or_text)

    def _keep(self, pairs: list[tuple[str, Any]]) -> Row:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twins.append(next(key for key in keys if keys.count(key) > 1))
        return found

    def parse(self, text: str, start: int = 0) -> tuple[Any, int]:
        """Give the value that begins at a position, and where it ends.

        Raises:
            ValueError: There is none (JSONDecodeError says where).
            RecursionError: It is nested too deeply.
        """
        self.twins.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of more digits than int() takes
            self.twins.clear()
            return self._lenient.raw_decode(text, start)


def _int_or_text(digits: str) -> int | str:
    return int(digits) if len(digits) < 4000 else digits


def read_json_lines(lines: Iterable[str], name: str, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the objects of a file that has one on each line; a faulty line is logged, left out."""
    parser = _Parser()
    parse = parser.parse
    given = 0
    for number, line in enumerate(lines, start=1):
        start = 0
        if line[:1] != "{":
            start = _skip_blank(line, 0)
            if start == len(line):
                continue
        place = f"{name}:{number}"
        try:
            value, end = parse(line, start)
        except (ValueError, RecursionError) as error:
            log.add("D15", place, detail=_explain(error, line, number))
            continue
        if rest := line[end:].strip():
            what = "a comma" if rest == "," else "more text"
            log.add("D15", place, detail=f"{what} after the object, at column {end + 1}")
        elif type(value) is not dict:
            log.add("D15", place, detail=_explain_kind(value))
        elif _is_sound(value, line, parser.twins, place=place, position=given, log=log):
            given += 1
            yield place, value


def _explain(error: Exception, text: str, line: int) -> str:
    """Say in words why a text is no JSON; one that just ends is called cut off."""
    if isinstance(error, RecursionError):
        return f"line {line} is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return f"line {line}: {str(error)[:80]}"
    unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
    if unfinished:
        written = text.rstrip()
        column = len(written) - written.rfind("\n")
        return f"line {line} is cut off at column {column} (partial download?)"
    mark = text[error.pos : error.pos + 1]
    words = error.msg.removesuffix(" at")
    if words == "Invalid control character":
        words = "a raw tab or line end inside a text, where JSON wants \\t or \\n,"
    elif mark == "'" and words.startswith("Expecting"):
        words = "single quotes, where JSON wants double ones,"
    elif mark in ("]", "}") and text[: error.pos].rstrip()[-1:] == ",":
        words = f"a comma before {mark}, where JSON has none,"
    return f"{words} at column {error.colno}"


def _is_sound(
    row: Row, text: str, twins: Sequence[str], *, place: str, position: int, log: FaultLog
) -> bool:
    """Note keys given twice, half characters and long numbers; say whether the row can be used."""
    if twins:
        for key in dict.fromkeys(twins):
            shown = key.encode("unicode_escape").decode()
            log.add("D16", place, row=position, detail=f"'{shown}'")
    if ("\\ud" in text or "\\uD" in text) and (half := find_half_character(row)):
        log.add("D17", place, detail=half)
        return False
    for key, value in row.items():
        if type(value) is int and not -(2**63) <= value < 2**63:
            row[key] = str(value)
        elif type(value) is dict and (long := _find_long(value)):
            log.add("D13", place, row=position, of=key, detail=long)
            continue
        elif not (isinstance(value, str) and len(value) >= 4000 and value.lstrip("-").isdigit()):
            continue
        log.add("D13", place, row=position, of=key, detail=row[key][:40])
    return True


def _find_long(value: Any) -> str:
    """Give the first whole number over 64 bits inside an object, or nothing."""
    left = [value]  # no recursion: objects may be nested as deeply as the parser allows
    while left:
        one = left.pop()
        if type(one) is dict:
            left.extend(reversed(one.values()))
        elif type(one) is list:
            left.extend(reversed(one))
        elif type(one) is int and not -(2**63) <= one < 2**63:
            return str(one)[:40]
    return ""


def find_half_character(value: Any) -> str:
    r"""Give the first lone surrogate in a value, as it is escaped (\ud800), or nothing."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start : error.start + 1]
        return half.encode("unicode_escape").decode()
    except (RecursionError, TypeError, ValueError):
        return ""
    return ""


def is_json_object(text: str) -> bool:
    """Say whether a text is one JSON object and nothing else."""
    return isinstance(_parse_alone(text), dict)


def _parse_alone(text: str) -> Any:
    try:
        value, end = _Parser().parse(text, _skip_blank(text, 0))
    except (ValueError, RecursionError):
        return _UNREADABLE
    return value if not text[end:].strip() else _UNREADABLE


def is_one_document(first: Sequence[str], *, is_all: bool, named_lines: bool) -> bool:
    """Tell one JSON document from JSON Lines by the first lines, whatever the file is called.

    Args:
        first: The first lines.
        is_all: There are no more.
        named_lines: The name promises JSON Lines.
    """
    filled = [line for line in first if line.strip()]
    begin = filled[0].lstrip("\ufeff \t")[:1]
    alone = [_parse_alone(line) for line in filled[:2]]
    if isinstance(alone[0], dict):
        return len(filled) == 1 and is_all and not named_lines
    if alone[0] is not _UNREADABLE:
        return len(alone) == 1 or alone[1] is _UNREADABLE
    if begin == "[":
        return True
    if len(alone) > 1 and isinstance(alone[1], dict):
        return False
    # An object over several lines begins with a brace alone on its line.
    return begin == "{" and (not named_lines or filled[0].strip() == "{")


# ---- one document ----


class _Text:
    """The part of a long text that is looked at, filled up as it is consumed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.buffer, self.at, self.line = "", 0, 1
        self._lines = iter(lines)

    def fill(self) -> bool:
        """Put another piece behind what is left; say whether there was one."""
        piece, length = [self.buffer[self.at :]], 0
        for line in self._lines:
            piece.append(line)
            length += len(line)
            if length >= _PIECE:
                break
        if length:
            self.buffer, self.at = "".join(piece), 0
        return length > 0

    def move(self, to: int) -> None:
        self.line += self.buffer.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """Give the next character that is not blank; nothing at the end."""
        while True:
            self.move(_skip_blank(self.buffer, self.at))
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.fill():
                return ""

    def parse(self, parser: _Parser, most: int) -> tuple[Any, str]:
        """Give the value that begins here, and its text.

        Raises:
            ValueError: There is none, or it is longer than `most` characters.
            RecursionError: It is nested too deeply.
        """
        while True:
            try:
                value, end = parser.parse(self.buffer, self.at)
                # A number may go on behind the piece.
                if end == len(self.buffer) and self.fill():
                    continue
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string")
                if not unfinished and error.pos < len(self.buffer) - len("-Infinity"):
                    raise
                if len(self.buffer) - self.at > most:
                    raise ValueError(f"one value of over {most:,} characters") from error
                if not self.fill():
                    raise
                continue
            text = self.buffer[self.at : end]
            self.move(end)
            return value, text


def read_json_document(lines: Iterable[str], name: str, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give the rows of one JSON document: a list of objects, an object that holds one, or columns.

    A list is read item by item; any other document whole.

    Raises:
        DataError: A document that is no list is too large to be read whole.
    """
    text, parser = _Text(lines), _Parser()
    items = _list_items(text, parser, name, log)
    if text.peek() != "[":
        items = _document_items(text, parser, name, log)
    given = 0
    for number, (line, row, source) in enumerate(items, start=1):
        place = f"{name} row {number}"
        if type(row) is not dict:
            log.add("D15", place, detail=_explain_kind(row))
            continue
        fault_place = f"{name}:{line}" if parser.twins else place
        if _is_sound(row, source, parser.twins, place=fault_place, position=given, log=log):
            given += 1
            yield place, row


def _list_items(
    text: _Text, parser: _Parser, name: str, log: FaultLog
) -> Iterator[tuple[int, Any, str]]:
    """Give (line, value, its text) for each item of a list."""
    text.peek()
    text.move(text.at + 1)
    count = 0
    while (mark := text.peek()) != "]":
        if mark and count:
            if mark != ",":
                detail = f"a comma is missing before row {count + 1}"
                log.add("D15", f"{name}:{text.line}", detail=detail)
                return
            text.move(text.at + 1)
            mark = text.peek()
        if not mark:
            detail = f"line {text.line} is cut off: the list never closes (partial download?)"
            log.add("D15", f"{name}:{text.line}", detail=detail)
            return
        line = text.line
        parsed = _parse_or_log(text, parser, LONGEST_ITEM, name, log)
        if parsed is None:
            return
        count += 1
        yield line, *parsed
    text.move(text.at + 1)
    if text.peek():
        log.add("D15", f"{name}:{text.line}", detail="more text after the list")


def _document_items(
    text: _Text, parser: _Parser, name: str, log: FaultLog
) -> Iterator[tuple[int, Any, str]]:
    """Give (line, value, its text) for each row of a document that is no list."""
    line = text.line
    parsed = _parse_or_log(text, parser, WHOLE_CHARACTERS, name, log)
    if parsed is None:
        return
    value, source = parsed
    if text.peek():  # objects one after another, each over several lines
        while parsed is not None:
            yield line, *parsed
            if not text.peek():
                return
            line = text.line
            parsed = _parse_or_log(text, parser, LONGEST_ITEM, name, log)
        return
    if parser.twins and not (isinstance(value, dict) and unwrap_rows(value) == [value]):
        log.add("D16", name, detail=repr(parser.twins[0]))
        parser.twins.clear()
    # Half characters are looked for in each row if there are any in the document.
    source = "\\ud" if "\\ud" in source or "\\uD" in source else ""
    for row in unwrap_rows(value):
        yield line, row, source


def _parse_or_log(
    text: _Text, parser: _Parser, most: int, name: str, log: FaultLog
) -> tuple[Any, str] | None:
    try:
        return text.parse(parser, most)
    except json.JSONDecodeError as error:
        line = text.line + text.buffer.count("\n", text.at, error.pos)
        log.add("D15", f"{name}:{line}", detail=_explain(error, text.buffer, line))
    except RecursionError as error:
        log.add("D15", f"{name}:{text.line}", detail=_explain(error, "", text.line))
    except ValueError as error:
        raise DataError(
            f"{name}:{text.line} · {error} are not read whole. Write one object a line (JSON "
            "Lines), which has no limit."
        ) from error
    return None


def unwrap_rows(value: Any) -> list[Any]:
    """Find the rows in a document that is no list.

    Returns:
        The objects of the one list it holds; of lists named by split, with a column `split`; the
        rows of columns written as lists; otherwise the document as the only row.
    """
    if not isinstance(value, dict) or not value:
        return [value]
    lists = {key: inner for key, inner in value.items() if _is_row_list(inner)}
    if lists and all(key.lower() in SPLIT_WORDS for key in value) and len(lists) == len(value):
        return [
            {"split": key, **row} if isinstance(row, dict) else row
            for key, rows in lists.items()
            for row in rows
        ]
    if len(lists) == 1:
        return next(iter(lists.values()))
    empty = [inner for inner in value.values() if isinstance(inner, list)]
    if len(value) == 1 and empty == [[]]:
        return []
    columns = [_column_values(inner) for inner in value.values()]
    lengths = {len(column) for column in columns if column is not None}
    if None not in columns and len(columns) > 1 and len(lengths) == 1:
        filled = [column for column in columns if column is not None]
        return [dict(zip(value, row, strict=True)) for row in zip(*filled, strict=True)]
    return [value]


def _is_row_list(value: Any) -> bool:
    """Say whether a value is a list of objects that are rows, not turns of a conversation."""
    if not isinstance(value, list) or not value:
        return False
    objects = [item for item in value if isinstance(item, dict)]
    return len(objects) * 2 > len(value) and not all(_SPEAKERS & set(item) for item in objects)


def _column_values(value: Any) -> list[Any] | None:
    """Give a column that was written as a list, or as {"0": …, "1": …} as pandas does."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(key.isdigit() for key in value):
        return list(value.values())
    return None


def _skip_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _explain_kind(value: Any) -> str:
    said = f"{_kind(value)} where an object is expected"
    return f'{said}; write {{"messages": [turns]}}' if _are_turns(value) else said


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(v, dict) and _SPEAKERS & set(v) for v in value
    )


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "a bool"}
    return names.get(type(value), "a number")
