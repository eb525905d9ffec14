"""One redactor for every writer: tokens, keys, credentials and home folders never reach a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from sftkit.records import Preflight

REDACTED = "[redacted]"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Private keys, with their armour.
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            REDACTED,
        ),
        # Hugging Face, OpenAI and kin, AWS, GitHub, GitLab, Slack, Google.
        (r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}", REDACTED),
        (r"\bsk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{16,}", REDACTED),
        (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", REDACTED),
        (r"\b(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{20,}", REDACTED),
        (r"\bxox[abprs]-[A-Za-z0-9-]{10,}", REDACTED),
        (r"\bAIza[A-Za-z0-9_-]{35}", REDACTED),
        # JSON web tokens.
        (r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?", REDACTED),
        (
            r"(?i)(aws_?secret_?access_?key[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9/+=]{30,}",
            rf"\1{REDACTED}",
        ),
        (
            r"\b([A-Z][A-Z0-9_]*_(?:TOKEN|KEY|SECRET|PASSWORD)\s*=\s*[\"']?)[^\s\"'\[\\]{8,}",
            rf"\1{REDACTED}",
        ),
        (
            r"(?i)\b(bearer\s+)(?=[A-Za-z0-9._~+/-]*\d)[A-Za-z0-9._~+/-]{12,}=*",
            rf"\1{REDACTED}",
        ),
        # user:password@ and token@ in front of a host.
        (r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)[^\s/@\"'<>\\?#]+@", rf"\1{REDACTED}@"),
        # Home folders name their owner; backslashes are doubled in JSON and repr.
        (r"(?<![\w.])/(?:home|Users)/[^/\s\"'<>:;,)\\]+", "~"),
        (r"(?i)\b[a-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[^\\/\s\"'<>:;,)]+", "~"),
        (r"(?<![\w./])/root(?=/\S)", "~"),
    )
)
_Any = TypeVar("_Any")


def redact(text: str) -> str:
    """Replace secrets and home folders; everything else stays as it is.

    Safe on JSON text too: no rule reaches past a quote. Redacting twice changes nothing more.
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
