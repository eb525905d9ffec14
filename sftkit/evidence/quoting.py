"""Prompts in which a user's control tokens stay words.

A chat template writes turns between control tokens, and a tokenizer takes the same characters for
control tokens wherever they stand: also where a user typed them. A user could so end their turn
and speak for the assistant. Here such characters inside a turn become the tokens of plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.chat import encode_prompt, render_chat
from sftkit.errors import EncodeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def control_words(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """List the texts a tokenizer takes for control tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return tuple(sorted({str(token) for token in added if token.special and str(token).strip()}))


def encode_quoted(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
) -> tuple[int, ...]:
    """Encode a conversation up to the point where the assistant speaks, shape (P,).

    Args:
        messages: Turns with role and content.
        tokenizer: A tokenizer with a chat template.
        system: System prompt to put first, if the conversation has none.

    Returns:
        The ids of `chat.encode_prompt`; but where a turn's own words hold a control token, the ids
        of its characters in its place.

    Raises:
        EncodeError: A turn holds a control token, and the template rewrites the turn, or the
            tokenizer does not tell where its tokens stand.
    """
    words = control_words(tokenizer)
    if not any(word in turn["content"] for word in words for turn in messages):
        return encode_prompt(messages, tokenizer, system=system)
    if not getattr(tokenizer, "is_fast", False):
        raise EncodeError("A fast tokenizer is needed: only it tells where each token stands.")
    text = render_chat(messages, tokenizer, system=system, for_answer=True)
    spans = _places(messages, tokenizer, system, text)
    coded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    named: Any = tokenizer.convert_tokens_to_ids(list(words))
    control = set(named)
    ids: list[int] = []
    for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        inside = any(first <= start and end <= last for first, last in spans)
        if token in control and inside:
            plain: Any = tokenizer(
                text[start:end], add_special_tokens=False, split_special_tokens=True
            )
            ids += plain["input_ids"]
        else:
            ids.append(token)
    return tuple(ids)


def _places(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    text: str,
) -> list[tuple[int, int]]:
    """Find where the words of each turn stand in the rendered text."""
    marks = [f"sftkitTurn{place}mark" for place in range(len(messages))]
    marked = [{**turn, "content": mark} for turn, mark in zip(messages, marks, strict=True)]
    scaffold = render_chat(marked, tokenizer, system=system, for_answer=True)
    rendered, rest, spans = "", scaffold, []
    for turn, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        words = turn["content"]
        if not text.startswith(rendered + before + words):
            words = words.strip()  # some templates trim what was said
        if not found or not text.startswith(rendered + before + words):
            break
        rendered += before
        spans.append((len(rendered), len(rendered) + len(words)))
        rendered += words
    if len(spans) < len(messages) or rendered + rest != text:
        raise EncodeError(
            "The chat template rewrites a turn that holds control tokens, so they cannot be kept "
            "apart from the template's own. Leave the tokens out of the text, or use a plain "
            "template."
        )
    return spans
