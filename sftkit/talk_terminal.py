"""A conversation in the terminal: two columns that fill while both models answer.

Where output is no terminal (a pipe, a test), questions are read line by line and each answer is
printed when it is whole.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sftkit.errors import ModelError
from sftkit.show import NEWLINE, visible

if TYPE_CHECKING:
    from rich.table import Table

    from sftkit.talk import Name, Piece, Talk

HELP = "Type a question. /new begins a new conversation, /quit ends (or Ctrl+D)."
_HEADINGS: dict[Name, str] = {"base": "Base", "tuned": "Tuned"}


def converse(talk: Talk) -> None:
    """Read questions and show both answers, until the input ends or says /quit."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    console.print(talk.title, style="bold")
    for line in (*talk.notes, HELP):
        console.print(line)
    while (question := _read()) is not None:
        if question in ("/quit", "/exit"):
            break
        if question == "/new":
            talk.begin_anew()
            console.print("A new conversation.")
        elif question.startswith("/"):
            console.print(HELP)
        elif question:
            try:
                (_live if sys.stdout.isatty() else _plain)(talk, question)
            except ModelError as error:
                console.print(str(error))
            except KeyboardInterrupt:
                console.print("Stopped; this question is forgotten.")
    console.print("")


def _read() -> str | None:
    """Read a question, or None at the end of the input."""
    try:
        if sys.stdin.isatty():
            return input("\n> ").strip()
        line = sys.stdin.readline()
        if line:
            sys.stdout.write(f"\n> {line}")
        return line.strip() if line else None
    except (EOFError, KeyboardInterrupt):
        return None


def _plain(talk: Talk, question: str) -> None:
    said = {piece.speaker: piece for piece in talk.ask(question)}
    for name, heading in _HEADINGS.items():
        sys.stdout.write(f"{heading}: {_shown(said[name])}\n")
    sys.stdout.flush()


def _live(talk: Talk, question: str) -> None:
    from rich.live import Live

    said: dict[Name, Piece] = {}
    with Live(_columns(said), refresh_per_second=12, vertical_overflow="visible") as live:
        for piece in talk.ask(question):
            said[piece.speaker] = piece
            live.update(_columns(said))


def _columns(said: dict[Name, Piece]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, show_edge=False)
    for heading in _HEADINGS.values():
        table.add_column(heading, ratio=1, overflow="fold")
    # Text, not markup: what a model writes colours nothing and moves no cursor.
    table.add_row(*(Text(_shown(said[name]) if name in said else "") for name in _HEADINGS))
    return table


def _shown(piece: Piece) -> str:
    text = visible(piece.text, keep_newlines=True).replace(f"{NEWLINE}\n", "\n")
    if piece.is_done and not piece.ended:
        return f"{text} … (the longest answer)"
    return text if piece.is_done else f"{text}▌"
