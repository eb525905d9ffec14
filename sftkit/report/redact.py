"""One redactor for every writer: secrets, mail addresses and home folders never reach a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from sftkit.credentials import CREDENTIALS, EMAIL
from sftkit.records import Preflight

REDACTED = "[redacted]"
HIDDEN_EMAIL = "[e-mail]"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    *((pattern, kept.format(REDACTED)) for pattern, kept in CREDENTIALS),
    (EMAIL, HIDDEN_EMAIL),
    # Home folders name their owner; backslashes are doubled in JSON and repr.
    (re.compile(r"(?<![\w.])/(?:home|Users)/[^/\s\"'<>:;,)\\]+"), "~"),
    (re.compile(r"(?i)\b[a-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[^\\/\s\"'<>:;,)]+"), "~"),
    (re.compile(r"(?<![\w./])/root(?=/\S)"), "~"),
)
_Any = TypeVar("_Any")


def redact(text: str) -> str:
    """Replace secrets, mail addresses and home folders; everything else stays as it is.

    Redact a record before it becomes JSON, not after: a private key that was cut off reaches to
    the end of the text. Redacting twice changes nothing more.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_record(record: _Any) -> _Any:
    """Redact every text in a record, mapping keys included.

    The example's tokens are redacted as the text they join to, because a secret is never one
    token; the tokens keep their number, so that they still line up with the mask.
    """
    if isinstance(record, Preflight):
        tokens = redact_tokens(record.example_tokens)
        record = cast(_Any, dataclasses.replace(record, example_tokens=tokens))
    return cast(_Any, _redact_any(record))


def redact_tokens(tokens: Sequence[str]) -> tuple[str, ...]:
    """Redact the text that tokens join to, and give back as many tokens.

    Args:
        tokens: Texts of the tokens, in order.

    Returns:
        The same tokens; of those that hold a secret the first carries the replacement and the
        rest are empty.
    """
    texts = list(tokens)
    for pattern, replacement in _RULES:
        whole = "".join(texts)
        for found in reversed(list(pattern.finditer(whole))):
            new = found.expand(replacement)
            if new != found.group():
                _replace_span(texts, found.start(), found.end(), new)
    return tuple(texts)


def _replace_span(texts: list[str], start: int, end: int, new: str) -> None:
    """Put `new` where characters start..end of the joined texts were."""
    place = 0
    for index, text in enumerate(texts):
        low, high = max(start - place, 0), min(end - place, len(text))
        place += len(text)
        if low < high:
            texts[index] = text[:low] + new + text[high:]
            new = ""


def _redact_any(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{f.name: redact_record(getattr(value, f.name)) for f in fields}
        )
    if isinstance(value, Mapping):
        return {redact_record(key): redact_record(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(redact_record(item) for item in value)
    return value
