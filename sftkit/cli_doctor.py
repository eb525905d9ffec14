"""The verb that looks at the machine: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from sftkit.cli_options import Format


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(doctor)


def doctor(
    *,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Train, save and reload in every type; takes 2 minutes."),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
    output: Format = "text",
) -> None:
    """Say what this machine has and what is wrong with it. Exit code 1 if something will fail."""
    from sftkit.doctor import examine, signs_json, signs_text

    if selftest:
        from sftkit import selftest as tests

        trials = tests.selftest()
        typer.echo(tests.selftest_json(trials))
        raise typer.Exit(1 if any(trial.fault for trial in trials) else 0)
    signs = examine(reach_hub=not offline)
    typer.echo(signs_json(signs) if output == "json" else signs_text(signs))
    raise typer.Exit(1 if any(sign.state == "problem" for sign in signs) else 0)
