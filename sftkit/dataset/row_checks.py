"""What can be wrong with one row: its turns, its text, its label; and the text it is known by."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sftkit.dataset.faults import FaultLog
from sftkit.records import Severity

Row = Mapping[str, Any]
Finder = Callable[[str], str]
LIKE_CONTROL = re.compile(
    r"<\|[A-Za-z0-9_][A-Za-z0-9_ ]{0,28}[A-Za-z0-9_]\|>"  # not <| f |> of functional code
    r"|<\uff5c[^\uff5c<>\n]{2,30}\uff5c>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
"""What control tokens look like where no tokenizer is known: in most chat models, DeepSeek's,
Gemma's and Llama 2's."""
_LOOKS_LIKE = "what looks like a control token in {rows}; the first: {detail}"
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control codes that no text needs; tab, line ends and NEL (x85) are white space."""
_WIDTHLESS = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_FEW = 9
_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*")
KINDS = (
    "missing",
    "a word",
    "a number written as text",
    "a whole number",
    "a decimal number",
    "true or false",
    "a list or an object",
)
"""What a label can be; the names below are positions in it."""
MISSING, WORD, NUMERAL, WHOLE, DECIMAL, TRUTH, NESTED = range(len(KINDS))
_ROLES = ("system", "user", "assistant", "tool")
_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def check_row(
    row: Row,
    position: int,
    place: str,
    log: FaultLog,
    *,
    task: str,
    find_token: Finder,
    token_severity: Severity | None,
) -> None:
    """Log everything that is wrong with one canonical row, whatever stands in it.

    Args:
        row: Raw canonical values.
        position: Its place among the rows, from 0.
        place: Its place in the source, as messages say it.
        log: Takes the findings.
        task: chat, classify, regress or image.
        find_token: Finds the first control token in a text; gives "" if there is none.
        token_severity: How bad a control token is; None for the usual severity.
    """
    if task == "chat":
        of = "messages"
        for code, part, detail in conversation_faults(row.get("messages")):
            log.add(code, place, row=position, of=part, detail=detail)
    elif task == "image":
        of = "label"
    else:
        of = "text"
        text = row.get("text")
        if not isinstance(text, str) or is_blank(text):
            detail = _kind(text) if text is None or not isinstance(text, str) else "empty"
            message = "{rows} without a text; the first is {detail}"
            log.add("D20", place, row=position, of=of, detail=detail, message=message)
    if task != "chat":
        _check_target(row, position, place, log, task)
    for text in texts_of(row, task):
        if token := find_token(text):
            log.add(
                "D31",
                place,
                row=position,
                of=of,
                detail=token,
                severity=token_severity,
                message=_LOOKS_LIKE if token_severity else None,
            )
        if _INVISIBLE.search(text):
            log.add("D14", place, row=position, of=of)


def _check_target(row: Row, position: int, place: str, log: FaultLog, task: str) -> None:
    """Log a label or score that is missing, and a score that is no number."""
    of = "score" if task == "regress" else "label"
    value = row.get(of)
    if label_kind(value) == MISSING:
        log.add("D12", place, row=position, of=of, detail=of)
    elif isinstance(value, str) and _INVISIBLE.search(value):
        log.add("D14", place, row=position, of=of)
    elif task == "regress" and as_number(value) is None:
        message = "{rows} whose score is no finite number; the first is {detail}"
        fix = "Write a number (with a point, not a comma), or delete the row."
        detail = shown(value)
        log.add("D18", place, row=position, of=of, detail=detail, message=message, fix=fix)


def conversation_faults(messages: Any) -> Iterator[tuple[str, str, str]]:
    """Give (code, part of the row, detail) for each fault of one conversation."""
    if not isinstance(messages, list):
        yield "D19", "messages", _kind(messages)
        return
    if _is_usual(messages):
        return
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping):
            yield "D19", "messages", f"turn {number} is {_kind(turn)}"
            return
    for number, turn in enumerate(messages, start=1):
        yield from _turn_faults(number, turn)
    roles = [turn.get("role") for turn in messages]
    if "assistant" not in roles:
        yield "D25", "messages", "no assistant turn"
    elif all(role in _ROLES for role in roles) and (fault := _order_fault(roles)):
        yield "D24", "messages", fault


def _is_usual(messages: list[Any]) -> bool:
    """Say quickly that nothing is wrong with questions and answers in turn; most rows are so."""
    if len(messages) < 2 or len(messages) % 2:
        return False
    for number, turn in enumerate(messages):
        if type(turn) is not dict or turn.get("role") != ("assistant" if number % 2 else "user"):
            return False
        content = turn.get("content")
        if type(content) is not str or (number % 2 and is_blank(content)):
            return False
    return True


def is_blank(text: str) -> bool:
    """Say whether a text shows nothing: white space, or marks without width."""
    seen = text.strip()
    return not seen or (len(seen) < _FEW and not seen.strip(_WIDTHLESS).strip())


def _turn_faults(number: int, turn: Row) -> Iterator[tuple[str, str, str]]:
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        yield "D21", "role", f"{shown(role)} in turn {number}"
    if isinstance(content, list | Mapping):
        yield "D26", "content", f"turn {number}"
    elif not isinstance(content, str):
        yield "D20", "content", f"turn {number} is {_kind(content)}"
    elif role == "assistant" and is_blank(content):
        yield "D23", "content", ""


def _order_fault(roles: Sequence[Any]) -> str:
    """Say where the order of known roles breaks; nothing when it does not."""
    before = "start"
    for number, role in enumerate(roles, start=1):
        if role not in _FOLLOWS[before]:
            after = "stands first" if before == "start" else f"follows {before}"
            return f"{role} {after} in turn {number}"
        before = role
    return ""


def texts_of(row: Row, task: str) -> Iterator[str]:
    """Give every text of a row that a model would see."""
    if task == "chat":
        messages = row.get("messages")
        for turn in messages if isinstance(messages, list) else ():
            if isinstance(turn, Mapping) and isinstance(turn.get("content"), str):
                yield turn["content"]
    elif isinstance(text := row.get("text"), str):
        yield text


def token_finder(tokens: Iterable[str] | None) -> Finder:
    """Give a function that finds the first control token in a text.

    Args:
        tokens: Those of the model; None looks for the usual forms, such as <|…|>.
    """
    if tokens is None:
        return _find_like_control
    known = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    if not known:
        return lambda text: ""
    pattern = re.compile("|".join(map(re.escape, known)))

    def find(text: str) -> str:
        found = pattern.search(text)
        return found[0] if found else ""

    return find


def _find_like_control(text: str) -> str:
    if "<" not in text and "[" not in text:  # forty times faster than the pattern
        return ""
    found = LIKE_CONTROL.search(text)
    return found[0] if found else ""


def label_kind(value: Any) -> int:
    """Say what kind of value a label or score is, as a position in KINDS.

    Nothing, "not a number" and blank texts are missing.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, str):
        if not value.strip():
            return MISSING
        return NUMERAL if _NUMBER.fullmatch(value) else WORD
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int):
        return WHOLE
    return DECIMAL if isinstance(value, float) else NESTED


def as_number(value: Any) -> float | None:
    """Read a score; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    names = {type(None): "nothing", str: "a text", list: "a list", bool: "true or false"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "a number")


def shown(value: Any, *, at_most: int = 60) -> str:
    """Quote a user's value, cut where it would drown the message."""
    text = repr(value)
    return text if len(text) <= at_most else text[: at_most - 1] + "…"
