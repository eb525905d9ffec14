"""Read conversations from a catalog name, a file or the hub into one canonical form.

Reading has two halves. `read_file` gives raw rows with their places and whatever is wrong with the
file as a file; `convert_table` finds the format and turns each row into `messages`. Neither judges
the conversations: that is the audit's part.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.dataset.faults import FaultLog, raise_on_errors
from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "control": "control",
}


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
    if path.suffix.lower() in _SUFFIXES or path.is_file():
        return read_file(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.exists():
        return _read_hub(name)
    raise DataError(
        f"No dataset {name!r}: not in the catalog, not a file ending in {', '.join(_SUFFIXES)}, "
        f"and not a hub id (owner/name).{near_names(name, catalog.names('dataset'))}"
    )


def read_file(path: Path) -> RawTable:
    """Read a file's rows, and log what is wrong with it as a file.

    Raises:
        DataError: There is no such file, or its kind is not read.
    """
    log = FaultLog()
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path} is not read; expected a file ending in {', '.join(_SUFFIXES)}.")
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
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). Check the name and "
            "the network, or give a file."
        ) from error
    rows = [{**row, "split": split} for split in loaded for row in loaded[split]]
    return _listed_table(name, rows)


# ---- files ----


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


# ---- formats ----

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bot", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function"), "tool"),
}


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write conversations.

    Attributes:
        name: As the finding says it; empty for the canonical form.
        columns: Columns it needs.
        optional: Columns it uses when they are there.
        convert: Gives the turns of a row (whatever stands where a list should be).
    """

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Row], Any]
    optional: tuple[str, ...] = ()


def _pair(question: str, answer: str) -> Format:
    def convert(row: Row) -> Any:
        asked, answered = row.get(question), row.get(answer)
        if isinstance(asked, list) and isinstance(answered, list):
            return _turns(asked + answered)
        turns = [_turn("user", asked), _turn("assistant", answered)]
        system = row.get("system")
        return [_turn("system", system), *turns] if system else turns

    return Format(
        name=f"{question} and {answer} columns",
        columns=(question, answer),
        optional=("system",),
        convert=convert,
    )


def _turn(role: Any, content: Any) -> Row:
    number = isinstance(content, int | float) and not isinstance(content, bool)
    return {"role": role, "content": str(content) if number else content}


def _turns(value: Any) -> Any:
    """Give turns as role and content, whether they were written so or as from and value."""
    if not isinstance(value, list):
        return value
    turns: list[Any] = []
    for turn in value:
        if isinstance(turn, Mapping):
            said = turn.get("role", turn.get("from"))
            role = _ROLES.get(said.lower(), said) if isinstance(said, str) else said
            turns.append(_turn(role, turn.get("content", turn.get("value"))))
        else:
            turns.append(turn)
    return turns


def _from_alpaca(row: Row) -> Any:
    asked = row.get("instruction")
    extra = row.get("input")
    if isinstance(asked, str) and isinstance(extra, str) and extra.strip():
        asked = f"{asked}\n\n{extra}"
    turns = [_turn("user", asked), _turn("assistant", row.get("output"))]
    system = row.get("system")
    return [_turn("system", system), *turns] if system else turns


FORMATS = (
    Format(name="", columns=("messages",), convert=lambda row: _turns(row.get("messages"))),
    Format(
        name="ShareGPT (from and value)",
        columns=("conversations",),
        convert=lambda row: _turns(row.get("conversations")),
    ),
    Format(
        name="Alpaca (instruction, input, output)",
        columns=("instruction", "output"),
        optional=("input", "system"),
        convert=_from_alpaca,
    ),
    _pair("prompt", "completion"),
    _pair("prompt", "response"),
    _pair("instruction", "response"),
    _pair("question", "answer"),
)
"""Tried in this order; a table has the first format whose columns it has."""


def convert_table(table: RawTable) -> list[Row]:
    """Turn raw rows into canonical ones, and log which format they had.

    Returns:
        Rows with id, messages (not yet judged), group, place, and the other columns as text;
        nothing when no format fits, which is logged.
    """
    if not table.rows:
        return []
    named = {column.strip().lower(): column for column in table.columns if isinstance(column, str)}
    found = next((f for f in FORMATS if all(column in named for column in f.columns)), None)
    if found is None:
        have = ", ".join(table.columns[:8])
        need = "; ".join(" + ".join(f.columns) for f in FORMATS)
        message = f"no conversation in the columns {have}. Expected one of: {need}"
        table.log.add("D25", table.places[0], message=message.replace("{", "{{").replace("}", "}}"))
        return []
    if found.name:
        table.log.add("D22", table.places[0], detail=found.name)
    used = {named[c] for c in (*found.columns, *found.optional) if c in named}
    rows = []
    for number, (place, raw) in enumerate(zip(table.places, table.rows, strict=True), start=1):
        lowered = {column: raw.get(original) for column, original in named.items()}
        messages = found.convert(lowered)
        extras = {key: _as_text(value) for key, value in raw.items() if key not in used}
        own = {key: extras.pop(key, None) for key in ("id", "group", "place")}
        rows.append(
            {
                "id": own["id"] or f"row-{number}",
                "messages": messages,
                "group": own["group"] or question_key(messages),
                "place": place,
                **{key: value for key, value in extras.items() if _is_plain(raw[key])},
            }
        )
    return rows


def question_key(messages: Any) -> str:
    """Name the group of rows that begin with the same question, whatever its case and spacing."""
    turns = messages if isinstance(messages, list) else []
    asked = (t.get("content") for t in turns if isinstance(t, Mapping) and t.get("role") == "user")
    first = next((text for text in asked if isinstance(text, str)), "")
    words = " ".join(first.casefold().split())
    return "q-" + hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:12]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "a bool"}
    return names.get(type(value), "a number")


# ---- choosing rows ----


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
                f"{row['place']} · {split_by} · the split is {said!r} · Use train, validation, test or "
                "control in every row."
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
    features = {key: text for key in extras}
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
