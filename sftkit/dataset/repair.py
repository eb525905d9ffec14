"""Repair one text: encoding, control characters and tokens, personal data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sftkit.dataset.personal import find_personal, mask_spans
from sftkit.dataset.row_checks import LIKE_CONTROL

Repair = Callable[[str], "tuple[str, dict[str, str]]"]
"""Gives the repaired text and, by reason, what was done in words; nothing when it was sound."""

_BREAKS = re.compile(r"[\x0b\x0c\x85]")
_CONTROL = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""Terminal colours, control characters, byte-order marks. Joiners stay: emoji and scripts of
India are written with them."""
_ROUNDS = 50


class _Wanted(Protocol):
    """The settings that concern one text."""

    @property
    def encoding(self) -> bool: ...
    @property
    def control(self) -> bool: ...
    @property
    def personal(self) -> tuple[Any, ...]: ...


def make_repair(settings: _Wanted, tokenizer: Any = None) -> Repair:
    """Make a function that repairs a text until there is nothing left to repair.

    One repair may uncover work for another (a token removed from the middle of a token), so
    they are repeated; repairing a repaired text changes nothing.

    Args:
        settings: What to repair.
        tokenizer: The model's, for its control tokens; None takes the usual form <|…|>.
    """
    pattern = _token_pattern(tokenizer) if settings.control else None

    def steps(text: str) -> Iterator[tuple[str, str, str]]:
        if settings.encoding and (fixed := fix_encoding(text)) != text:
            yield fixed, "encoding", "text that was decoded wrongly"
            text = fixed
        if settings.control and (bare := _CONTROL.sub("", _BREAKS.sub("\n", text))) != text:
            yield bare, "control", "control characters"
            text = bare
        if pattern and (found := pattern.search(text)):
            yield pattern.sub("", text), "control", f"the control token {found[0]}"
            return
        if settings.personal and (spans := find_personal(text, settings.personal)):
            kinds = ", ".join(dict.fromkeys(span.kind for span in spans))
            yield mask_spans(text, spans), "personal", kinds

    def repair(text: str) -> tuple[str, dict[str, str]]:
        done: dict[str, str] = {}
        for _ in range(_ROUNDS):
            before = text
            for after, reason, what in steps(text):
                text = after
                if what not in done.get(reason, "").split(" and "):
                    done[reason] = f"{done[reason]} and {what}" if reason in done else what
            if text == before:
                break
        return text, done

    return repair


def fix_encoding(text: str) -> str:
    """Undo a wrong decoding, such as Ã© for é, and nothing else.

    By ftfy, which acts only where the result is plausible and the text as it stands is not.
    Everything else it offers is off: quotes stay curly, ligatures and full-width letters stay,
    HTML entities and line ends stay, because they may be what the text is about.
    """
    if text.isascii():
        return text
    import ftfy

    return ftfy.fix_text(
        text,
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def _token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    if tokenizer is None:
        return LIKE_CONTROL
    from sftkit.dataset.token_checks import control_tokens

    return any_of(control_tokens(tokenizer))


def any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Make a pattern of literal tokens, the longest first; None when there are none."""
    known = sorted((token for token in tokens if token.strip()), key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, known))) if known else None
