"""Things a reader looks at: an example with its supervised tokens coloured, answers side by side.

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

from sftkit.records import IGNORE, Answer, Encoded, Preflight, is_exact

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
            style = "bold white on dark_blue" if learned else "dim"
            text.append(visible(token, keep_newlines=True), f"{style} italic" if control else style)
        return text.append(f"\n{self.caption}", "default")

    def _repr_html_(self) -> str:
        spans = []
        for token, learned, control in self.rows:
            style = (_LEARNED if learned else _CONTEXT) + (_BOXED if control else "")
            word = "mark" if learned else "span"
            text = html.escape(visible(token)).replace(NEWLINE, f"{NEWLINE}<br>")
            spans.append(f'<{word} style="{style}">{text}</{word}>')
        return (
            '<div style="font-family:monospace;line-height:1.7;white-space:pre-wrap;'
            f'overflow-wrap:anywhere">{"".join(spans)}</div>'
            f"<p>{html.escape(self.caption)}</p>"
        )

    @property
    def rows(self) -> tuple[tuple[str, bool, bool], ...]:
        """Token text, whether it is learned from, whether it is a control token."""
        return tuple(zip(self.tokens, self.supervised, self.control, strict=True))


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
    special = set(tokenizer.all_special_ids)
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


def answers_table(answers: Sequence[Answer]) -> AnswersView:
    """Show answers side by side; one that says what was expected is marked."""
    return AnswersView(tuple(answers))


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Give each token the text it adds, so that the texts joined are the decoded whole.

    A character spread over several tokens belongs to the last of them.
    """
    texts: list[str] = []
    done = ""
    for end in range(1, len(ids) + 1):
        whole: Any = tokenizer.decode(
            list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(done) :])
        done = whole
    return tuple(texts)


def matches(given: str, expected: str) -> bool:
    """Say whether an answer is the expected one; nothing matches where nothing was expected."""
    return bool(expected.strip()) and is_exact(given, expected)


def visible(text: str, *, keep_newlines: bool = False) -> str:
    """Make newlines, control codes and direction marks visible; nothing of them stays active."""
    after = f"{NEWLINE}\n" if keep_newlines else NEWLINE
    return "".join(after if char == "\n" else _visible_char(char) for char in text)


def _visible_char(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's own pictures of control codes
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return char


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
