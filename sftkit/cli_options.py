"""Options that several verbs of the command line share, and how they print JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sftkit.errors import SettingsError

Format = Annotated[
    Literal["text", "json"], typer.Option("--format", help="What to print: text or json.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the run. Default: the next free runs/NAME."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting: train.learning_rate=5e-4. May be repeated."),
]


def print_json(value: Any) -> None:
    """Print a plain value as JSON, readable by eye."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def read_pairs(given: list[str], option: str) -> dict[str, str]:
    """Read NAME=VALUE options."""
    for one in given:
        if not all(one.partition("=")):
            raise SettingsError(f"{option} {one!r}: write it as NAME=VALUE, e.g. question=Frage.")
    return {name: value for name, _, value in (one.partition("=") for one in given)}
