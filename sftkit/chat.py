"""Conversations to token ids and labels, through the model's own chat template.

Exactly the assistant's words and the token that ends its turn are supervised. The answer's place is
found by rendering the conversation once more with marks where the assistant speaks, so it holds
for any template whether or not that template knows about generation markers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sftkit.errors import EncodeError
from sftkit.records import IGNORE, Encoded, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

# A mark must survive any template, also one that strips its messages: printable letters only.
_MARK = "sftkitAnswer{}mark"
_SURROGATE = re.compile("[\ud800-\udfff]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Headers as plain text around a part: "system", "### System:", "[INST] <<SYS>>", "user".
_HEADER = re.compile(
    r"^(\[INST\])?\W*sys(tem)?\b\W*?(\n|:|>+|$)|<</SYS>>$|(^|\n)\W*(user|human)\W*$", re.IGNORECASE
)
TRIMS = (str, str.strip, lambda words: words.strip("\n"), lambda words: words.lstrip("\n"))
"""What templates do to the words of a turn, in the order in which it is tried."""


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Rows as tokens, and the rows that could not be."""

    examples: tuple[Encoded, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True, kw_only=True)
class MaskSummary:
    """What a set of examples teaches.

    Attributes:
        rows: Examples.
        tokens: All tokens.
        supervised: Tokens learned from.
        rows_without_supervision: Examples that teach nothing.
        end_of_turn_supervised: Examples whose last supervised token ends the turn.
        longest: Longest example in tokens.
    """

    rows: int
    tokens: int
    supervised: int
    rows_without_supervision: int
    end_of_turn_supervised: int
    longest: int

    def __str__(self) -> str:
        share = self.supervised / self.tokens if self.tokens else 0.0
        return (
            f"{self.rows} rows, {self.tokens} tokens, {self.supervised} supervised ({share:.0%}); "
            f"{self.rows_without_supervision} rows teach nothing; "
            f"{self.end_of_turn_supervised} end their turn; longest row {self.longest} tokens"
        )


@dataclass(frozen=True, kw_only=True)
class TemplateFacts:
    """What a chat template does beside writing down what was said.

    Attributes:
        injected_system: Words the template adds before the first turn of a conversation that has
            no system prompt; None if it adds none. Such words may hold the date of the day.
        has_generation_marker: Whether it marks what the assistant generates ({% generation %}).
        pad_is_eos: Whether the padding token is also one that ends the text or the turn, so that
            masking labels by id would mask the end of every answer.
        end_of_turn: The control token that ends an answer; None if none does.
        generation_prompt: What is put after a question so that the assistant speaks; empty if
            nothing is.
    """

    injected_system: str | None
    has_generation_marker: bool
    pad_is_eos: bool
    end_of_turn: str | None
    generation_prompt: str


def template_facts(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    """Find out by rendering what the chat template adds that nobody said.

    Raises:
        EncodeError: The tokenizer has no template, or the template refuses a question and an
            answer.
    """
    question = {"role": "user", "content": _MARK.format("Q")}
    answer = {"role": "assistant", "content": _MARK.format("A")}
    alone = render_chat([question], tokenizer)
    asked = render_chat([question], tokenizer, for_answer=True)
    answered = render_chat([question, answer], tokenizer)
    end = _turn_end(answered.partition(answer["content"])[2], tokenizer)
    pad = tokenizer.pad_token
    source: Any = tokenizer.get_chat_template()
    return TemplateFacts(
        injected_system=_injected_system(tokenizer),
        has_generation_marker=_GENERATION.search(source) is not None,
        pad_is_eos=pad is not None and pad in (tokenizer.eos_token, end),
        end_of_turn=end,
        generation_prompt=asked.removeprefix(alone) if asked.startswith(alone) else "",
    )


def render_chat(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    for_answer: bool = False,
) -> str:
    """Write a conversation as the one string the model sees.

    Args:
        messages: Turns with role and content.
        tokenizer: A tokenizer with a chat template.
        system: System prompt to put first, if the conversation has none.
        for_answer: Whether to end with the header after which the assistant speaks.

    Returns:
        The rendered text, control tokens included.

    Raises:
        EncodeError: The tokenizer has no template, or the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise EncodeError(
            "The tokenizer has no chat template, so a conversation cannot be written as text. "
            "Use an instruction-tuned model, or set tokenizer.chat_template."
        )
    turns: list[dict[str, str]] = [dict(message) for message in messages]
    if system is not None and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=for_answer
        )
    except Exception as error:  # templates raise whatever their author chose
        raise EncodeError(f"The chat template refuses this conversation: {error}") from error
    return str(text)


def encode_chat(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    system: str | None = None,
    row: int = 0,
    group: str = "",
) -> Encoded:
    """Turn one conversation into ids and labels.

    Args:
        messages: Turns with role and content; at least one assistant turn.
        tokenizer: A fast tokenizer with a chat template.
        max_tokens: Longest example the model is trained on.
        system: System prompt to put first, if the conversation has none.
        row: Row number, kept for messages.
        group: Group for intervals.

    Returns:
        Ids and labels of shape (T,). Labels equal ids on every assistant turn, from its first
        character to the token that ends the turn, and IGNORE elsewhere.

    Raises:
        EncodeError: Turns without role or text; no assistant turn; a turn the template changes or
            does not close; more than max_tokens tokens. Answers are never cut, because the model
            would then not see the end of its turn.
    """
    _refuse_malformed(messages, row)
    if not any(message["role"] == "assistant" for message in messages):
        raise EncodeError(f"row {row} has no assistant turn, so there is nothing to learn from.")
    if not getattr(tokenizer, "is_fast", False):
        raise EncodeError("A fast tokenizer is needed: only it tells where each token stands.")
    text, spans = _find_answers(messages, tokenizer, system)
    coded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = coded["input_ids"]
    if len(ids) > max_tokens:
        raise EncodeError(too_long(row, len(ids), max_tokens))
    labels, ends = _label(text, ids, coded["offset_mapping"], spans, end_tokens(tokenizer))
    if not all(ends):
        raise EncodeError(
            f"row {row}: the chat template puts no end-of-turn token after an answer, so the model "
            "would never learn to stop. Set eos_token inside the template after each answer."
        )
    return Encoded(input_ids=tuple(ids), labels=tuple(labels), row=row, group=group)


def encode_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    system: str | None = None,
) -> EncodedRows:
    """Encode every row that can be, and say why the others cannot.

    Args:
        rows: Rows with `messages` and, if known, `group`; a datasets.Dataset is one.
        tokenizer: A fast tokenizer with a chat template.
        max_tokens: Longest example in tokens.
        system: System prompt put first where there is none.
    """
    examples, refused = [], []
    for number, row in enumerate(rows):
        group = str(row.get("group", number))
        try:
            examples.append(
                encode_chat(
                    cast("Messages", row.get("messages")),
                    tokenizer,
                    max_tokens=max_tokens,
                    system=system,
                    row=number,
                    group=group,
                )
            )
        except EncodeError as error:
            refused.append(Refused(row=number, reason=str(error)))
    return EncodedRows(examples=tuple(examples), refused=tuple(refused))


def encode_prompt(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None
) -> tuple[int, ...]:
    """Encode a conversation up to the point where the assistant speaks, shape (P,)."""
    text = render_chat(messages, tokenizer, system=system, for_answer=True)
    coded: Any = tokenizer(text, add_special_tokens=False)
    return tuple(coded["input_ids"])


def split_question(messages: Messages) -> tuple[list[dict[str, str]], str]:
    """Divide a conversation into what comes before the last assistant turn, and that turn's text.

    Raises:
        EncodeError: There is no assistant turn.
    """
    for position in range(len(messages) - 1, -1, -1):
        if messages[position]["role"] == "assistant":
            return [dict(m) for m in messages[:position]], messages[position]["content"]
    raise EncodeError("The conversation has no assistant turn.")


def mask_summary(examples: Iterable[Encoded]) -> MaskSummary:
    """Count what a set of examples teaches."""
    counts = [(len(e.input_ids), e.supervised, e.end_of_turn) for e in examples]
    return MaskSummary(
        rows=len(counts),
        tokens=sum(tokens for tokens, _, _ in counts),
        supervised=sum(supervised for _, supervised, _ in counts),
        rows_without_supervision=sum(supervised == 0 for _, supervised, _ in counts),
        end_of_turn_supervised=sum(ends for _, _, ends in counts),
        longest=max((tokens for tokens, _, _ in counts), default=0),
    )


def too_long(row: int, tokens: int, max_tokens: int) -> str:
    """Say that a row has too many tokens, and what to do."""
    return (
        f"row {row}: {tokens} tokens exceed max_tokens={max_tokens}. Raise max_tokens to {tokens} "
        "or shorten the row."
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that may end a turn: every token the tokenizer declares special."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _injected_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Find words before the first question that stand neither before the second nor in a header."""
    first, answer, second = (_MARK.format(name) for name in ("Q", "A", "R"))
    asked = {"role": "user", "content": first}
    before = render_chat([asked], tokenizer).partition(first)[0]
    turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": second}]
    try:
        longer = render_chat([asked, *turns], tokenizer)
        header = longer.partition(answer)[2].partition(second)[0]
    except EncodeError:  # a template for one question and one answer
        header = ""
    special = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len)
    divide = re.compile(f"({'|'.join(map(re.escape, reversed(special))) or '$^'})")
    words, known = divide.split(before), divide.split(header)
    while words and known and words[-1] == known[-1]:
        words.pop()
        known.pop()
    if words and known and not {words[-1], known[-1]} & set(special):
        words[-1] = words[-1].removesuffix(_common_end(words[-1], known[-1]))
    words = [_HEADER.sub("", part.strip()).strip() for part in words if part not in special]
    said = "\n".join(words).strip()
    return said if any(char.isalnum() for char in said) else None


def _common_end(one: str, other: str) -> str:
    while not one.endswith(other):
        other = other[1:]
    return other


def _turn_end(tail: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Name the special token that ends an answer, if nothing else is said before it."""
    special = end_tokens(tokenizer)
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        if token in special:
            return str(tokenizer.convert_ids_to_tokens(token))
        if text.strip():
            return None
    return None


def _refuse_malformed(messages: Any, row: int) -> None:
    """Refuse what is no list of turns with role and text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise EncodeError(f"row {row}: messages must be a list of turns, got {messages!r:.80}.")
    for number, turn in enumerate(messages, start=1):
        for part in ("role", "content"):
            value = turn.get(part) if isinstance(turn, Mapping) else None
            if not isinstance(value, str):
                raise EncodeError(
                    f"row {row}: turn {number} must have a {part} that is text, got "
                    f"{value!r:.80}. Repair the row or leave it out."
                )
            if not value.isascii() and _SURROGATE.search(value):
                raise EncodeError(
                    f"row {row}: the {part} of turn {number} holds half a character (a lone "
                    "surrogate), which is no text. Repair the row or leave it out."
                )


def _find_answers(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, system: str | None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find the character span of every assistant turn's words."""
    said = (system or "") + "".join(message["content"] for message in messages)
    stem = _MARK
    for attempt in itertools.count():
        if stem.split("{}", maxsplit=1)[0] not in said:
            break
        stem = f"sftkit{attempt}Answer{{}}mark"
    marks, marked = {}, []
    for position, message in enumerate(messages):
        if message["role"] == "assistant":
            mark = stem.format(position)
            marks[mark] = message["content"]
            marked.append({**message, "content": mark})
        else:
            marked.append(dict(message))
    scaffold = render_chat(marked, tokenizer, system=system)
    real = render_chat(messages, tokenizer, system=system)
    # Some templates trim what was said, so the words as given and the usual trims are tried.
    for cleaned in TRIMS:
        text, spans, place = "", [], 0
        for mark, words in marks.items():
            found = scaffold.find(mark, place)
            if found < 0:
                raise EncodeError(
                    "The chat template leaves out an assistant turn or rewrites its words, so the "
                    "words to learn cannot be found in it. Train with a plain template."
                )
            text += scaffold[place:found]
            spans.append((len(text), len(text) + len(cleaned(words))))
            text += cleaned(words)
            place = found + len(mark)
        text += scaffold[place:]
        if text == real:
            return real, spans
    raise EncodeError(
        "The chat template rewrites what the assistant said (for example it removes a thinking "
        "block), so the words to learn cannot be found in it. Train with a plain template."
    )


def _label(
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    ending: frozenset[int],
) -> tuple[list[int], list[bool]]:
    """Copy ids to labels from the start of each span to the first special token after it."""
    labels = [IGNORE] * len(ids)
    ends = []
    for start, stop in spans:
        ended = False
        for position, (token_start, token_stop) in enumerate(offsets):
            if token_stop <= start:
                continue
            if text[stop:token_start].strip():
                break  # someone else speaks before any end: these are not the assistant's words
            labels[position] = ids[position]
            if token_start >= stop and ids[position] in ending:
                ended = True
                break
        ends.append(ended)
    return labels, ends
