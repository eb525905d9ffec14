"""The verbs that use a finished run: export and chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sftkit.cli_options import Format, print_json
from sftkit.errors import SettingsError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(export)
    app.command()(chat)


def export(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder, with its run.json.")],
    *,
    to: Annotated[
        Literal["adapter", "merged", "gguf", "hub"],
        typer.Option(help="What to make: adapter, merged, gguf, or an adapter on the hub."),
    ] = "merged",
    out: Annotated[Path | None, typer.Option(help="Folder. Default: RUN/export-TO.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Type of merged weights.")
    ] = "float32",
    gguf: Annotated[
        Literal["f16", "q8_0"], typer.Option(help="Type of the weights in a GGUF file.")
    ] = "f16",
    check: Annotated[
        Literal["vllm", "llama.cpp"] | None,
        typer.Option(help="Server whose rules the export is held against."),
    ] = None,
    repo: Annotated[str | None, typer.Option(help="owner/name on the hub, with --to hub.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --to hub: only say what would be sent.")
    ] = False,
    output: Format = "text",
) -> None:
    """Write a run as something to serve; exit code 1 if it does not answer like what was tested."""
    from sftkit.export import export_run, push_to_hub
    from sftkit.settings import to_plain

    if to == "hub" and repo is None:
        raise SettingsError("Which repository? Give it: --repo owner/name.")
    found = export_run(
        run_folder,
        out or run_folder / f"export-{to}",
        to="adapter" if to == "hub" else to,
        precision=precision,
        gguf=gguf,
        check=check,
    )
    sent: list[str] = []
    if to == "hub" and repo is not None and found.is_good:
        sent = push_to_hub(found.folder, repo, dry_run=dry_run)
    if output == "json":
        print_json(to_plain(found) | {"is_good": found.is_good, "sent": sent})
    else:
        typer.echo(f"{found.folder}: {sum(size for _, size in found.files) / 1e6:,.1f} MB")
        typer.echo(found.parity.sentence)
        for finding in found.serving:
            typer.echo(f"{check}: {finding}")
        if sent:
            typer.echo(f"{'Would send' if dry_run else 'Sent'} to {repo}:")
            typer.echo("\n".join(f"  {line}" for line in sent))
    raise typer.Exit(0 if found.is_good else 1)


def chat(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder, with its run.json.")],
    *,
    strength: Annotated[
        float, typer.Option(help="Of the adapter: 1 is as trained, 0 is the base.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", min=1)
    ] = None,
) -> None:
    """Ask the base and the tuned model the same; the answers grow side by side."""
    from sftkit.talk import MAX_NEW_TOKENS, open_talk
    from sftkit.talk_terminal import converse

    longest = max_new_tokens or MAX_NEW_TOKENS
    converse(open_talk(run_folder, strength=strength, max_new_tokens=longest))
