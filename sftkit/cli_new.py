"""The verb that begins a task of one's own: new."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sftkit.cli_options import Format, print_json, read_pairs
from sftkit.errors import SettingsError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(new)


def new(
    name: Annotated[str, typer.Argument(help="Name of the task: letters, digits, '.', '-', '_'.")],
    *,
    data: Annotated[str, typer.Option(help="Your rows: a file, a folder, a hub id.")],
    out: Annotated[Path | None, typer.Option(help="Folder to make. Default: NAME.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept every guess.")] = False,
    task: Annotated[
        str | None, typer.Option(help="chat, classify, regress or image, where the guess is wrong.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="ROLE=NAME, such as question=Frage. May be repeated.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a text file, such as cp1252.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model. Default: one that fits.")] = None,
    output: Format = "text",
) -> None:
    """Read a file, guess what can be learned from it, and write a folder that runs at once."""
    from sftkit.scaffold import RECIPE, write_project
    from sftkit.scaffold_guess import guess_recipe

    folder = out or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is there already. Give another folder with --out.")
    columns = read_pairs(column or [], "--column")
    while True:
        guess = guess_recipe(
            name, data, task=task, columns=columns or None, encoding=encoding, model=model
        )
        if output == "text":
            typer.echo(f"{guess.audit.row_count:,} rows in {data}. Guessed:")
            for what, why in guess.reasons:
                typer.echo(f"  {what + ':':<10} {why}")
            for note in guess.notes:
                typer.echo(f"  note:      {note}")
        if yes or output == "json":
            break
        if not sys.stdin.isatty():
            raise SettingsError("Nobody is there to ask. Add --yes to accept every guess.")
        if typer.confirm("Is that right?", default=True):
            break
        task, columns, model = _asked(guess.recipe.data.task, columns, guess.recipe.model.name)
    written = write_project(guess, folder)
    if output == "json":
        print_json(
            {
                "folder": str(folder),
                "files": [path.name for path in written],
                "guesses": dict(guess.reasons),
                "notes": list(guess.notes),
                "rows": dict(guess.splits),
            }
        )
        return
    typer.echo(f"{folder}: {', '.join(path.name for path in written)}")
    typer.echo(f"Go on with: sftkit run {folder / RECIPE}")


def _asked(
    task: str, columns: dict[str, str], model: str
) -> tuple[str, dict[str, str], str | None]:
    """Ask what the guess got wrong; an empty answer keeps it."""
    task = typer.prompt("What is to be learned (chat, classify, regress, image)?", default=task)
    said = typer.prompt(
        "Which column is what, such as question=Frage answer=Antwort? (empty: guess again)",
        default=" ".join(f"{role}={name}" for role, name in columns.items()),
        show_default=False,
    )
    named = typer.prompt("Which model?", default=model)
    return task, read_pairs(said.split(), "--column"), None if named == model else named
