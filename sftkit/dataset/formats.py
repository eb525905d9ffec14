"""The ways examples are written down, each turned into canonical rows.

A plan says which format a table has and which column plays which role; it comes from the guess,
or from what the user says. Values are passed on unjudged: that is the audit's part.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.dataset.columnar import to_text
from sftkit.dataset.faults import FaultLog
from sftkit.dataset.files import RawTable, Row
from sftkit.dataset.folders import check_image
from sftkit.dataset.guess import decode_turns, describe_columns, is_nan
from sftkit.dataset.plans import (
    FORMATS,
    TASKS,
    NoPlan,
    Plan,
    Task,
    plan_by_request,
    plan_by_rows,
)
from sftkit.errors import DataError, near_names

FIRST_ROWS = 1000
"""Rows that decide which format a table has."""
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bot", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function"), "tool"),
}
LONGEST_IMAGE = 1 << 28
"""Bytes of the largest image file that is read."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Canonical rows, to be drawn once.

    Attributes:
        name: What the source is called in messages.
        task: What can be learned from them.
        log: What is wrong with the source; filled while rows are drawn.
        seen_as: The format in words; empty when none was found (the log says why).
        format: A name of `FORMATS`; empty when none was found.
        columns: Column of each role.
        rows: Rows with id, group, place, the task's columns as they were given, and every other
            column of plain values as text.
    """

    name: str
    task: Task
    log: FaultLog
    seen_as: str
    rows: Iterator[Row]
    format: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


def convert_table(
    table: RawTable,
    *,
    task: Task | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Converted:
    """Turn raw rows into canonical ones, and log which format they have.

    Args:
        table: Rows as their source gives them.
        task: chat, classify, regress or image; None takes what the rows are made for.
        format: One of `FORMATS`; None takes what the first 1,000 rows show.
        columns: Which column plays which role, such as {"question": "Frage"}; the rest is guessed.

    Returns:
        The rows; none when no format fits, which is then logged as an error.

    Raises:
        DataError: A task, format, role or column that does not exist.
    """
    first = list(itertools.islice(table.rows, FIRST_ROWS))
    found = describe_columns([row for _, row in first])
    if task is not None and task not in TASKS:
        raise DataError(f"task={task!r} is no task.{near_names(str(task), TASKS)}")
    if format is not None and format not in FORMATS:
        raise DataError(f"format={format!r} is no format.{near_names(str(format), FORMATS)}")
    plan: Plan | NoPlan
    if first and (format is not None or columns):
        plan = plan_by_request(found, task, format, columns or {}, table.name)
    else:
        plan = plan_by_rows(found, task)
    everything = itertools.chain(first, table.rows)
    if isinstance(plan, NoPlan):
        rows = _refuse(everything, plan, table.log, has_rows=bool(first))
        return Converted(name=table.name, task=task or "chat", log=table.log, seen_as="", rows=rows)
    _check_header(plan, first, table.log)
    if plan.is_news:
        message = "seen as {detail}" + (" and converted to messages" * (plan.task == "chat"))
        fix = (
            "Nothing has to be done if that is right; otherwise say columns=, format= or task= "
            "(--column, --as-format, --task)."
        )
        table.log.add("D22", first[0][0], detail=plan.seen_as, message=message, fix=fix)
    return Converted(
        name=table.name,
        task=plan.task,
        log=table.log,
        seen_as=plan.seen_as,
        rows=_convert_rows(everything, plan, table),
        format=plan.format,
        columns=plan.columns,
    )


def _check_header(plan: Plan, first: Sequence[tuple[str, Row]], log: FaultLog) -> None:
    """Log a table whose first line is a row: a name of a column then stands below it too."""
    for column in plan.columns.values():
        if sum(row.get(column) == column for _, row in first) > 1:
            message = "the first line looks like a row: {detail}, taken for a column, comes again"
            fix = "Put a line with the names of the columns first."
            detail = repr(column)
            log.add(
                "D22",
                first[0][0],
                of="header",
                detail=detail,
                severity="warning",
                message=message,
                fix=fix,
            )


def _refuse(
    rows: Iterable[tuple[str, Row]], plan: NoPlan, log: FaultLog, *, has_rows: bool
) -> Iterator[Row]:
    """Give no row, but draw all of them, so that the faults of the file are known too."""
    place = ""
    for place, _ in rows:
        if has_rows:
            message, fix = (
                text.replace("{", "{{").replace("}", "}}") for text in (plan.reason, plan.fix)
            )
            log.add("D25", place, message=message, fix=fix)
            has_rows = False
    return
    yield


def _convert_rows(rows: Iterable[tuple[str, Row]], plan: Plan, table: RawTable) -> Iterator[Row]:
    """Give canonical rows, one for each raw row."""
    columns = {"id": "id", "group": "group", **plan.columns}
    if plan.task == "chat":
        columns = {"system": "system", **columns}
    if plan.format == "alpaca":
        columns = {"input": "input", **columns}
    used = {*columns.values(), "place"}
    read = _reader(plan, columns, table)
    canonical = {"id", "group", "messages", "text", "label", "score", "image"}
    for number, (place, raw) in enumerate(rows, start=1):
        values = read(raw, place, number - 1)
        group = to_text(raw.get(columns["group"])) or values.pop("group", None)
        row: Row = {
            "id": to_text(raw.get(columns["id"])) or f"row-{number}",
            **values,
            "group": group or _group_of(values),
            "place": place,
        }
        for key, value in raw.items():
            if key in used:
                continue
            text = value if value is None or type(value) is str else to_text(value)
            if text is not None or value is None or is_nan(value):
                # A column that is not used must not take the place of a canonical one; and Arrow
                # cuts a name at a zero byte.
                name = f"{key}_given" if key in canonical else key
                row[name.replace("\0", "\N{SYMBOL FOR NULL}")] = text
        yield row


Read = Callable[[Row, str, int], Row]


def _reader(plan: Plan, columns: Mapping[str, str], table: RawTable) -> Read:
    """Give the function that takes a raw row's place, position and the task's values out of it."""
    if plan.task == "image":
        return _image_reader(columns, table)
    if plan.task == "classify":
        text, label = columns["text"], columns["label"]
        return lambda raw, place, row: {
            "text": _as_words(raw.get(text)),
            "label": _label(raw.get(label)),
        }
    if plan.task == "regress":
        text, score = columns["text"], columns["score"]
        return lambda raw, place, row: {
            "text": _as_words(raw.get(text)),
            "score": _known(raw.get(score)),
        }
    if "messages" in columns:
        turns, system = columns["messages"], columns["system"]
        return lambda raw, place, row: {"messages": _read_turns(raw.get(turns), raw.get(system))}
    question, answer = columns["question"], columns["answer"]
    system, extra = columns["system"], columns.get("input")

    def read_pair(raw: Row, place: str, row: int) -> Row:
        asked = raw.get(question)
        more = raw.get(extra) if extra else None
        if isinstance(asked, str) and isinstance(more, str) and more.strip():
            asked = f"{asked}\n\n{more}"
        return {"messages": _pair(asked, raw.get(answer), raw.get(system))}

    return read_pair


def _label(value: Any) -> Any:
    """Give a label; the space after a comma would make a class of its own."""
    return value.strip() if isinstance(value, str) else _known(value)


def _known(value: Any) -> Any:
    return None if is_nan(value) else value


def _pair(asked: Any, answered: Any, system: Any) -> Any:
    if _are_turns(answered) and _are_turns(asked):
        turns = _read_turns(asked + answered, None)
    elif _are_turns(answered) and len(answered) > 1:  # the whole conversation
        turns = _read_turns(answered, None)
    else:
        if _are_turns(answered):
            answered = answered[0].get("content")
        turns = [_turn("user", asked), _turn("assistant", answered)]
    return [_turn("system", system), *turns] if system else turns


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, Mapping) for t in value)


def _turn(role: Any, content: Any) -> Row:
    return {"role": role, "content": _as_words(content)}


def _as_words(value: Any) -> Any:
    """Write a number or date as text, since a cell of a sheet may be one; leave all else."""
    if type(value) is str:
        return value
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()  # Excel has no dates without a time
    plain = int | float | decimal.Decimal | datetime.date | datetime.time
    if isinstance(value, plain) and not is_nan(value):
        return str(value)
    return _known(value)


def _read_turns(value: Any, system: Any) -> Any:
    """Give turns as role and content, whether they were written so or as from and value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        decoded = decode_turns(value)
        value = value if decoded is None else decoded
    if not isinstance(value, list):
        return value
    turns: list[Any] = []
    for turn in value:
        if not isinstance(turn, Mapping):
            turns.append(turn)
            continue
        said = turn["role"] if "role" in turn else turn.get("from")
        role = _ROLES.get(said) or _ROLES.get(said.lower(), said) if isinstance(said, str) else said
        turns.append(_turn(role, turn["content"] if "content" in turn else turn.get("value")))
    begins = turns[0].get("role") if turns and isinstance(turns[0], Mapping) else None
    if isinstance(system, str) and system and begins != "system":
        turns.insert(0, _turn("system", system))
    return turns


def _image_reader(columns: Mapping[str, str], table: RawTable) -> Read:
    image, label, folder = columns["image"], columns["label"], table.folder

    def read_image(raw: Row, place: str, row: int) -> Row:
        value, content, fault = _load_image(raw.get(image), folder)
        fault = fault or check_image(content)
        if fault:
            table.log.add(
                "D15",
                place,
                row=row,
                of=image,
                detail=fault,
                message="{rows} with an image that cannot be read; the first: {detail}",
                fix="Fetch or save the image again, or delete the row.",
            )
            value = None
        group = hashlib.sha256(content).hexdigest()[:12] if isinstance(content, bytes) else ""
        values = {"image": value, "label": _label(raw.get(label))}
        return values | ({"group": f"i-{group}"} if group else {})

    return read_image


def _load_image(value: Any, folder: Path | None) -> tuple[Any, Any, str]:
    """Give an image as it will be kept, its bytes, and why there are none."""
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return dict(value), value["bytes"], ""
        value = value.get("path")
    if isinstance(value, str):
        path = Path(value) if folder is None else folder / value
        try:
            if path.stat().st_size > LONGEST_IMAGE:
                return None, None, f"larger than {LONGEST_IMAGE:,} bytes"
            return str(path), path.read_bytes(), ""
        except (OSError, ValueError) as error:
            return None, None, getattr(error, "strerror", None) or str(error)
    if value is None:
        return None, None, "there is none"
    return value, value, ""


def _group_of(values: Row) -> str:
    """Name the group of rows that begin with the same question or have the same text."""
    if "messages" in values:
        return question_key(values["messages"])
    return _key(values.get("text"))


def question_key(messages: Any) -> str:
    """Name the group of rows that begin with the same question, whatever its case and spacing."""
    for turn in messages if isinstance(messages, list) else ():
        if isinstance(turn, Mapping) and turn.get("role") == "user":
            content = turn.get("content")
            if isinstance(content, str):
                return _key(content)
    return _key("")


def _key(text: Any) -> str:
    words = " ".join((text if isinstance(text, str) else to_text(text) or "").casefold().split())
    return "q-" + hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:12]
