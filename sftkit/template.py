"""Where the words of each turn stand in a rendered conversation, and what stands between them.

A chat template writes the same text around the words of all conversations with the same roles. This
text is found once, by rendering marks; afterwards a conversation's own rendering is checked against
it, which tells where everyone's words are without rendering again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.chat import TRIMS, Messages, render_chat
from sftkit.errors import EncodeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

# Letters only, so that no template trims or escapes them; the tabs around show what is trimmed.
_MARK = "sftkitTurn{}mark"
_FIND_MARK = re.compile(r"sftkitTurn(\d+)mark")
_AROUND = ("\n\t", "\t\n")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a template writes around the words of conversations with certain roles.

    Attributes:
        pieces: Text before, between and after the words, one more than there are slots.
        slots: Turns whose words stand between the pieces, in order of appearance.
        trims: What happens to the words, for each slot.
    """

    pieces: tuple[str, ...]
    slots: tuple[int, ...]
    trims: tuple[Callable[[str], str], ...]


def with_system(messages: Messages, system: str | None) -> list[Mapping[str, str]]:
    """Put a system prompt first, if one is given and the conversation has none."""
    turns = list(messages)
    if system is not None and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def find_shape(roles: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Shape | None:
    """Find what the template writes around conversations with these roles.

    Returns:
        The shape; None where the template refuses the roles or rewrites words beyond trimming.
    """
    plain = [_MARK.format(turn) for turn in range(len(roles))]
    wide = [_AROUND[0] + mark + _AROUND[1] for mark in plain]
    try:
        bare, padded = (
            render_chat(
                [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)], tokenizer
            )
            for contents in (plain, wide)
        )
    except EncodeError:
        return None
    parts = _FIND_MARK.split(bare)
    pieces, slots = parts[::2], [int(turn) for turn in parts[1::2]]
    trims = []
    place = len(pieces[0])
    for slot, after in zip(slots, pieces[1:], strict=True):
        fitting = (t for t in TRIMS if padded.startswith(t(wide[slot]) + after, place))
        trim = next(fitting, None)
        if trim is None:
            return None
        trims.append(trim)
        place += len(trim(wide[slot])) + len(after)
    shape = Shape(pieces=tuple(pieces), slots=tuple(slots), trims=tuple(trims))
    return shape if fit_shape(shape, wide, padded) is not None else None


def fit_shape(shape: Shape, contents: Sequence[str], rendered: str) -> list[Span] | None:
    """Say where the words of each slot stand in a rendered conversation.

    Args:
        shape: A shape of the conversation's roles.
        contents: What was said in each turn.
        rendered: The template's own rendering of it.

    Returns:
        First and last character (exclusive) of each slot's words. None unless the shape filled
        with the words gives exactly the rendered text.
    """
    pieces = shape.pieces
    parts = [pieces[0]]
    spans = []
    place = len(pieces[0])
    for slot, trim, after in zip(shape.slots, shape.trims, pieces[1:], strict=True):
        words = contents[slot] if trim is str else trim(contents[slot])
        end = place + len(words)
        spans.append((place, end))
        parts += (words, after)
        place = end + len(after)
    return spans if "".join(parts) == rendered else None


class ShapeCache:
    """The shapes of one tokenizer's template, each found once.

    Only so many are kept: conversations of ever new roles must not fill the memory.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, at_most: int = 500) -> None:
        self.tokenizer = tokenizer
        self.at_most = at_most
        self.found: dict[tuple[str, ...], Shape | None] = {}

    def get(self, roles: Iterable[str]) -> Shape | None:
        """Give the shape of these roles."""
        key = tuple(roles)
        if key not in self.found:
            if len(self.found) >= self.at_most:
                self.found.clear()
            self.found[key] = find_shape(key, self.tokenizer)
        return self.found[key]
