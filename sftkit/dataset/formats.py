"""The ways conversations are written down, each turned into `messages`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.dataset.files import RawTable, Row

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
