"""The verbs that look at finished runs: report and gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sftkit.cli_options import Format, print_json
from sftkit.errors import SettingsError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(report)
    app.command()(gate)


def report(
    run_folders: Annotated[
        list[Path], typer.Argument(help="Folder of a run; several are compared with the first.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="File of a comparison of several runs.")] = Path(
        "comparison.html"
    ),
    output: Format = "text",
) -> None:
    """Draw a run's report, card and plots again, or compare several runs side by side."""
    from sftkit.compare import compare_runs, comparison_dict
    from sftkit.records import load_run
    from sftkit.report.comparison import write_comparison
    from sftkit.report.html import write_report

    if len(run_folders) == 1:
        typer.echo(write_report(load_run(run_folders[0]), run_folders[0]))
        return
    found = compare_runs(run_folders)
    path = write_comparison(found, out)
    if output == "json":
        print_json(comparison_dict(found))
    else:
        typer.echo(path)


def gate(
    run_folder: Annotated[
        Path | None, typer.Argument(help="A run's folder, with its run.json.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of the previous run, to compare with.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Limits, in YAML (--show-policy).")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write, for CI.")] = None,
    *,
    show_policy: Annotated[
        bool, typer.Option("--show-policy", help="Print the policy with every key explained.")
    ] = False,
    output: Format = "text",
) -> None:
    """Say whether a run may be shipped. Exit code 0 it may, 1 a rule fails, 3 undecided."""
    from sftkit import gate as gates
    from sftkit.gate_policy import Policy, load_policy, policy_text

    limits = Policy() if policy is None else load_policy(policy)
    if show_policy:
        typer.echo(policy_text(limits), nl=False)
        return
    if run_folder is None:
        raise SettingsError("Which run? Give its folder: sftkit gate runs/NAME.")
    found = gates.gate_run(run_folder, limits, against=against)
    if junit is not None:
        gates.write_junit(found, junit)
    if output == "json":
        print_json(gates.gate_dict(found))
    else:
        typer.echo(gates.gate_text(found))
    raise typer.Exit(found.exit_code)
