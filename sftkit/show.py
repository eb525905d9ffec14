"""What a reader looks at: supervised tokens coloured, what the template adds, answers side by side.

Each view prints in a terminal and shows itself in a notebook. Texts come from data and models, so
they are escaped for HTML, and control codes and direction marks are made visible everywhere.
"""

from __future__ import annotations

import html
import io
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.chat import Messages, end_tokens, render_chat, template_facts
from sftkit.errors import EncodeError
from sftkit.records import IGNORE, Answer, Encoded, Preflight, is_exact
from sftkit.template import Span, find_shape, fit_shape, with_system

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PreTrainedTokenizerBase

NEWLINE = "↵"
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?[a-z_]{1,30}>|\[/?[A-Z_]{2,20}\]")
_CELL = "padding:.4em .7em;border:1px solid #8886;text-align:left;vertical-align:top"
_MATCH = "background:#d7ecd9;color:#0b3d12;"
_LEARNED = "background:#cfe6f7;color:#00304d;border-bottom:2px solid #0072b2;"
_CONTEXT = "opacity:.75;"
_BOXED = "border:1px dashed #888;border-radius:3px;padding:0 .15em;font-size:.85em;"
_ADDED = "background:#fbe3c6;color:#5a3200;border-bottom:2px dashed #d55e00;"
_INJECTED = "background:#fbe3c6;color:#5a3200;border:2px solid #d55e00;font-weight:bold;"
# Long examples scroll, by keyboard too.
_SCROLL = (
    '<div tabindex="0" role="region" aria-label="{}" style="font-family:monospace;line-height:1.8;'
    "white-space:pre-wrap;overflow-wrap:anywhere;max-height:26em;overflow:auto;"
    'border:1px solid #8886;border-radius:6px;padding:.6em .8em">{}</div>'
)
_EDGE = "border-left:1px solid #8889;"  # where one token ends and the next begins
_PART_OF_A_CHARACTER = "⋯"  # the text stands at the last token of the character


@dataclass(frozen=True)
class MaskView:
    """One example, token by token, with what is learned from.

    Attributes:
        tokens: Texts of the tokens, in order; joined they give the example back.
        supervised: Which tokens are learned from.
        control: Which tokens belong to the chat template's grammar.
    """

    tokens: tuple[str, ...]
    supervised: tuple[bool, ...]
    control: tuple[bool, ...]

    @property
    def caption(self) -> str:
        """How many tokens are learned from."""
        learned, count = sum(self.supervised), len(self.tokens)
        share = 100 * learned / max(count, 1)
        return f"{learned} of {count} tokens are learned from ({share:.0f} %)."

    def __str__(self) -> str:
        if _in_colour():
            return _render(self.__rich__(), colour=True)
        return f"{self.marked}\n{self.caption} Learned from: between ⟦ and ⟧."

    @property
    def marked(self) -> str:
        """The example with ⟦ ⟧ around what is learned from; for files and logs."""
        parts: list[str] = []
        inside = False
        for token, learned in zip(self.tokens, self.supervised, strict=True):
            parts += ["⟦" if learned else "⟧"] if learned != inside else []
            parts.append(visible(token, keep_newlines=True))
            inside = learned
        return "".join(parts) + ("⟧" if inside else "")

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        text = Text()
        for token, learned, control in self.rows:
            style = "bold underline white on dark_blue" if learned else "dim"
            text.append(visible(token, keep_newlines=True), f"{style} italic" if control else style)
        return text.append(f"\n{self.caption}", "default")

    def _repr_html_(self) -> str:
        spans = []
        for token, learned, control in self.rows:
            style = (_LEARNED if learned else _CONTEXT) + (_BOXED if control else _EDGE)
            word = "mark" if learned else "span"
            spans.append(f'<{word} style="{style}">{_token_html(token)}</{word}>')
        legend = _legend(
            (_LEARNED + _EDGE, "learned from"),
            (_CONTEXT + _EDGE, "read only"),
            (_BOXED, "control token"),
        )
        return (
            f'<div style="max-width:60em"><p>{html.escape(self.caption)} {legend}</p>'
            + _SCROLL.format("one example, token by token", "".join(spans))
            + "</div>"
        )

    @property
    def rows(self) -> tuple[tuple[str, bool, bool], ...]:
        """Token text, whether it is learned from, whether it is a control token."""
        return tuple(zip(self.tokens, self.supervised, self.control, strict=True))


@dataclass(frozen=True)
class TemplateView:
    """A conversation as the model sees it, with what the chat template added.

    Attributes:
        parts: The rendered text in order, each part with where it comes from: said, added, or
            injected (words of the template's own that read as a system prompt).
        tokens: Tokens of the whole, and of these the ones that hold something that was said.
        notes: What a reader should know, in sentences.
    """

    parts: tuple[tuple[str, str], ...]
    tokens: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def caption(self) -> str:
        """How much of the text the template adds."""
        total, said = self.tokens
        share = 100 * (total - said) / max(total, 1)
        return f"The template adds {total - said} of {total} tokens ({share:.0f} %)."

    @property
    def marked(self) -> str:
        """The text with ⟪ ⟫ around what the template added; for files and logs."""
        texts = ((visible(text, keep_newlines=True), origin) for text, origin in self.parts)
        both = "".join(text if origin == "said" else f"⟪{text}⟫" for text, origin in texts)
        return both.replace("⟫⟪", "")

    def __str__(self) -> str:
        if _in_colour():
            return _render(self.__rich__(), colour=True)
        caption = f"{self.caption} Added: between ⟪ and ⟫."
        return "\n".join((self.marked, caption, *self.notes))

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        styles = {
            "said": "",
            "added": "black on yellow",
            "injected": "bold underline black on yellow",
        }
        text = Text()
        for words, origin in self.parts:
            text.append(visible(words, keep_newlines=True), styles[origin])
        return text.append("\n" + "\n".join((self.caption, *self.notes)), "default")

    def _repr_html_(self) -> str:
        styles = {"added": _ADDED, "injected": _INJECTED}
        spans = []
        for words, origin in self.parts:
            style = f' style="{styles[origin]}"' if origin in styles else ""
            word = "span" if origin == "said" else "mark"
            spans.append(f"<{word}{style}>{_html(words)}</{word}>")
        legend = _legend(
            ("", "said"),
            (_ADDED, "added by the template"),
            (_INJECTED, "a system prompt nobody wrote"),
        )
        notes = "".join(f"<p>{html.escape(visible(note))}</p>" for note in self.notes)
        return (
            f'<div style="max-width:60em"><p>{html.escape(self.caption)} {legend}</p>'
            + _SCROLL.format("the conversation as the model sees it", "".join(spans))
            + f"{notes}</div>"
        )


@dataclass(frozen=True)
class AnswersView:
    """Answers of the base and the tuned model, side by side."""

    answers: tuple[Answer, ...]

    @property
    def expects(self) -> bool:
        """Whether any answer was expected; a question of one's own has none."""
        return any(answer.expected.strip() for answer in self.answers)

    @property
    def headings(self) -> tuple[str, ...]:
        """Names of the columns."""
        expected = ("Expected",) if self.expects else ()
        return ("Question", *expected, "Base model", "Tuned model")

    def __str__(self) -> str:
        return _render(self.__rich__(), colour=_in_colour())

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(show_lines=True)
        for heading in self.headings:
            table.add_column(heading, overflow="fold")
        for answer in self.answers:
            cells = [Text(visible(answer.question))]
            cells += [Text(visible(answer.expected))] if self.expects else []
            for given in (answer.base, answer.tuned):
                right = matches(given, answer.expected)
                words = visible(given) + (" ✓" if right else "")
                cells.append(Text(words, "green" if right else ""))
            table.add_row(*cells)
        return table

    def _repr_html_(self) -> str:
        heads = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in self.headings)
        rows = []
        for answer in self.answers:
            cells = [f'<td style="{_CELL}">{_html(answer.question)}</td>']
            if self.expects:
                cells.append(f'<td style="{_CELL}">{_html(answer.expected)}</td>')
            for given in (answer.base, answer.tuned):
                right = matches(given, answer.expected)
                mark = '<span aria-label="as expected"> ✓</span>' if right else ""
                style = _CELL + (f";{_MATCH}" if right else "")
                cells.append(f'<td style="{style}">{_html(given)}{mark}</td>')
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return (
            '<table style="border-collapse:collapse;max-width:100%">'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )


def show_mask(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> MaskView:
    """Show one encoded example with its supervised tokens coloured and control tokens visible."""
    special = end_tokens(tokenizer)
    return MaskView(
        tokens=token_texts(encoded.input_ids, tokenizer),
        supervised=tuple(label != IGNORE for label in encoded.labels),
        control=tuple(token in special for token in encoded.input_ids),
    )


def show_example(preflight: Preflight) -> MaskView:
    """Show the example that a record keeps; control tokens are recognised by their look."""
    tokens = preflight.example_tokens
    control = tuple(_CONTROL.fullmatch(token) is not None for token in tokens)
    return MaskView(tokens=tokens, supervised=preflight.example_supervised, control=control)


def show_template(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None
) -> TemplateView:
    """Show what the chat template adds to a conversation that nobody said.

    Args:
        messages: Turns with role and content.
        tokenizer: A fast tokenizer with a chat template.
        system: System prompt to put first, if the conversation has none.

    Raises:
        EncodeError: The tokenizer has no template, or the template refuses the conversation.
    """
    turns = with_system(messages, system)
    text = render_chat(turns, tokenizer)
    said, notes = _said(turns, text, tokenizer)
    injected = None if turns and turns[0]["role"] == "system" else _injected(tokenizer)
    parts: list[tuple[str, str]] = []
    place = 0
    for start, stop in [*said, (len(text), len(text))]:
        parts += _divide(text[place:start], injected if place == 0 else None)
        parts += [(text[start:stop], "said")] if stop > start else []
        place = stop
    if any(origin == "injected" for _, origin in parts):
        notes.insert(
            0,
            f"The template puts a system prompt first that nobody wrote: {injected!r}. The model "
            "is trained and asked with it. To choose your own words, pass system= (in a recipe: "
            "data.system).",
        )
    coded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = coded["offset_mapping"]
    spoken = sum(any(a < stop and b > start for start, stop in said) for a, b in offsets)
    return TemplateView(parts=tuple(parts), tokens=(len(offsets), spoken), notes=tuple(notes))


def answers_table(answers: Sequence[Answer]) -> AnswersView:
    """Show answers side by side; one that says what was expected is marked."""
    return AnswersView(tuple(answers))


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Give each token the text it adds, so that the texts joined are the decoded whole.

    A character spread over several tokens belongs to the last of them.
    """
    texts: list[str] = []
    # Decoding starts anew at an anchor a few tokens back, so that long examples take no longer
    # per token; `ready` is the first token whose text is not yet given.
    anchor = ready = 0
    for end in range(1, len(ids) + 1):
        before, whole = _decode(ids[anchor:ready], tokenizer), _decode(ids[anchor:end], tokenizer)
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(before) :])
        anchor, ready = ready, end
    return tuple(texts)


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _said(
    turns: Messages, text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Span], list[str]]:
    """Find where everyone's words stand, and note which the template changes."""
    contents = [turn["content"] for turn in turns]
    notes = []
    shape = find_shape([turn["role"] for turn in turns], tokenizer)
    spans = fit_shape(shape, contents, text) if shape is not None else None
    if shape is not None and spans is not None:
        for slot, (start, stop) in zip(shape.slots, spans, strict=True):
            if stop - start < len(contents[slot]):
                notes.append(f"The template trims the words of turn {slot + 1}.")
        return spans, notes
    spans, place = [], 0
    for number, words in enumerate(contents, start=1):
        found = text.find(words.strip(), place)
        if found < 0:
            notes.append(
                f"The template rewrites or leaves out the words of turn {number}; what is left of "
                "them is shown as added."
            )
            continue
        place = found + len(words.strip())
        spans.append((found, place))
    return spans, notes


def _injected(tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return template_facts(tokenizer).injected_system
    except EncodeError:  # a template that wants more than a question and an answer
        return None


def _divide(text: str, injected: str | None) -> list[tuple[str, str]]:
    """Divide what the template added into its grammar and a system prompt of its own."""
    before, found, after = text.partition(injected) if injected else (text, "", "")
    parts = ((before, "added"), (found, "injected"), (after, "added"))
    return [(part, origin) for part, origin in parts if part]


def matches(given: str, expected: str) -> bool:
    """Say whether an answer is the expected one; nothing matches where nothing was expected."""
    return bool(expected.strip()) and is_exact(given, expected)


def visible(text: str, *, keep_newlines: bool = False) -> str:
    """Make newlines, control codes and direction marks visible; nothing of them stays active."""
    after = f"{NEWLINE}\n" if keep_newlines else NEWLINE
    return "".join(after if char == "\n" else _visible_char(char) for char in text)


def _visible_char(char: str) -> str:
    code = ord(char)
    if char == "\t":
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's own pictures of control codes
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return char


def _token_html(token: str) -> str:
    """Write a token so that none is invisible: parts of characters, spaces and line ends."""
    if not token:
        return _PART_OF_A_CHARACTER
    if token.isspace():
        token = token.replace(" ", "␣")
    return html.escape(visible(token)).replace(NEWLINE, f"{NEWLINE}<br>")


def _legend(*entries: tuple[str, str]) -> str:
    samples = (f'<span style="{style}padding:0 .3em">{text}</span>' for style, text in entries)
    return f'<span style="font-size:.9em">Legend: {" · ".join(samples)}</span>'


def _html(text: str) -> str:
    return html.escape(visible(text)).replace(NEWLINE, f"{NEWLINE}<br>")


def _in_colour() -> bool:
    import os

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _render(renderable: RenderableType, *, colour: bool) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    width = None if sys.stdout.isatty() else 120
    console = Console(
        file=buffer, force_terminal=colour, width=width, color_system="standard" if colour else None
    )
    console.print(renderable)
    return buffer.getvalue().rstrip("\n")
