"""The command line: each verb is a few lines over the same functions the notebooks call.

Exit codes: 0 fine, 1 the answer is no (audit errors, a gate that fails), 2 wrong usage, settings or
environment, 3 undecided (a gate without enough evidence).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sftkit import __version__, cli_doctor, cli_new, cli_results, cli_share
from sftkit.cli_options import Format, Out, Set, print_json, read_pairs
from sftkit.errors import SettingsError, SftkitError, StoppedError

if TYPE_CHECKING:
    from sftkit.records import RunRecord

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune small language models with adapters, and test every fine-tune.",
)

BUNDLED = ", ".join(
    sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))
)
_ALONE = {
    "processes": 1,
    "machines": 1,
    "machine_rank": 0,
    "main_address": None,
    "strategy": "ddp",
}

cli_results.register(app)
cli_share.register(app)
cli_doctor.register(app)
cli_new.register(app)


@app.command()
def demo(out: Out = None, change: Set = None, output: Format = "text") -> None:
    """Fine-tune a real 135M model on invented facts and prove what happened (minutes, no GPU)."""
    _run("demo", out, change, output, resume=False)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"A recipe file, or a bundled one: {BUNDLED}.")],
    out: Out = None,
    change: Set = None,
    output: Format = "text",
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and the memory.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the newest checkpoint in --out, if there is one."
        ),
    ] = False,
    allow_changes: Annotated[
        list[str] | None,
        typer.Option(
            help="With --resume: what may differ, by the name the refusal gave. May be repeated."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="With --dry-run: time 5 steps, predict minutes.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on all machines together.")
    ] = None,
    machines: Annotated[int, typer.Option(min=1, help="Machines; start it on each.")] = 1,
    machine_rank: Annotated[int, typer.Option(help="Number of this machine, from 0.")] = 0,
    main_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of the first machine.")
    ] = None,
    strategy: Annotated[
        Literal["ddp", "fsdp", "deepspeed-zero2", "deepspeed-zero3"],
        typer.Option(help="What is divided among processes; all but ddp with --dry-run only."),
    ] = "ddp",
) -> None:
    """Fine-tune as a recipe says, test the result, write adapter, record and report."""
    group: dict[str, Any] = {
        "processes": processes or machines,
        "machines": machines,
        "machine_rank": machine_rank,
        "main_address": main_address,
        "strategy": strategy,
    }
    if group == _ALONE:
        group = {}
    if dry_run and out is not None:
        raise SettingsError("--dry-run writes nothing: leave --out away.")
    if dry_run:
        _look_ahead(recipe, change, output, probe=probe, group=group)
    elif probe:
        raise SettingsError("--probe only predicts minutes: add --dry-run.")
    elif allow_changes and not resume:
        raise SettingsError("--allow-changes is about going on with a run: add --resume.")
    else:
        allowed = allow_changes or []
        _run(recipe, out, change, output, resume=resume, allow_changes=allowed, group=group)


@app.command()
def audit(
    file: Annotated[str, typer.Argument(help="A file, a folder, a catalog name or a hub id.")],
    *,
    task: Annotated[
        Literal["chat", "classify", "regress", "image"] | None,
        typer.Option(help="What the rows are for. Default: found out from their content."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Count in this model's tokens, and look at its chat template."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest row that is trained on, in tokens.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of a text file, such as cp1252. Default: UTF-8.")
    ] = None,
    as_format: Annotated[
        str | None, typer.Option(help="How rows are written, such as sharegpt or text-label.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Which column is what: question=Frage. May be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    output: Annotated[
        Literal["text", "json", "html"], typer.Option("--format", help="text, json or html.")
    ] = "text",
) -> None:
    """Say what is wrong with a dataset, line by line. Exit code 1 if training would be wrong."""
    from sftkit.audit_page import audit_html, audit_json, audit_text
    from sftkit.dataset.audit import audit_file

    found = audit_file(
        file,
        task=task,
        format=as_format,
        columns=read_pairs(column or [], "--column"),
        encoding=encoding,
        tokenizer=_tokenizer(model, max_tokens),
        max_tokens=max_tokens,
    )
    written = {"text": audit_text, "json": audit_json, "html": audit_html}[output](found)
    if out is not None:
        _write_text(out, written)
    else:
        sys.stdout.write(written)
    raise typer.Exit(1 if found.errors else 0)


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Catalog names to fetch.")] = None,
    *,
    listing: Annotated[
        bool, typer.Option("--list", help="Show every name with its licence and notice.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Gather packages, models, data and notebooks for a room without internet."
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="With --bundle: for which machines, such as win_amd64. May be repeated."),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Say what of a bundle was lost or changed; exit code 1 if any."),
    ] = None,
    output: Format = "text",
) -> None:
    """Bring models and data into the cache, so that later runs need no network."""
    from sftkit import catalog

    if platform and bundle is None:
        raise SettingsError("--platform is about a bundle: add --bundle FOLDER.")
    if bundle is not None and verify is not None:
        raise SettingsError("Give one of --bundle and --verify.")
    if bundle is not None:
        from sftkit.bundle import make_bundle

        made = make_bundle(
            bundle,
            names or [],
            platforms=platform or [],
            note=lambda line: typer.echo(line, err=output == "json"),
        )
        if output == "json":
            print_json(vars(made))
        else:
            typer.echo(f"{made.folder}: {made.files:,} files, {made.bytes / 1e9:.2f} GB, with")
            typer.echo(f"  {', '.join(made.names)}. How to use it: {made.folder / 'README.txt'}")
        return
    if verify is not None:
        from sftkit.bundle_check import verify_bundle

        faults = verify_bundle(verify)
        if output == "json":
            print_json({"whole": not faults, "faults": faults})
        else:
            typer.echo("\n".join(faults) if faults else f"{verify}: every file is whole.")
        raise typer.Exit(1 if faults else 0)
    if listing or not names:
        entries = catalog.describe_entries()
        if output == "json":
            print_json(entries)
        else:
            typer.echo("\n\n".join(_datasheet(entry) for entry in entries))
        return
    for name in names:
        typer.echo(f"{name}: {catalog.fetch(name, progress=typer.echo)}")


@app.command()
def evaluate(
    adapter: Annotated[
        str, typer.Argument(help="Folder of an adapter (peft, TRL, Unsloth), or of a whole model.")
    ],
    *,
    base: Annotated[
        str | None, typer.Option(help="Base model. Default: the recipe's, or what it names.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Test rows: a file, a catalog name or a hub id.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe that says what is measured, and on which test rows.")
    ] = None,
    out: Out = None,
    change: Set = None,
    output: Format = "text",
) -> None:
    """Test an adapter or model that was trained anywhere; write the same record and report."""
    from sftkit.candidate import name_of
    from sftkit.evaluate_adapter import evaluate_adapter
    from sftkit.progress import make_watcher
    from sftkit.run import find_recipe

    folder = out or _next_free(Path("runs") / name_of(Path(adapter)))
    record = evaluate_adapter(
        adapter,
        folder,
        base=base,
        data=data,
        recipe=None if recipe is None else find_recipe(recipe),
        overrides=change or [],
        watcher=make_watcher("silent" if output == "json" else "auto"),
    )
    _tell(record, folder, output)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Fine-tune small language models with adapters, and test every fine-tune."""
    if show:
        typer.echo(f"sftkit-notebooks {__version__}")
        raise typer.Exit


def start() -> int:
    """Run the command line; our own errors become one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except StoppedError as error:
        typer.echo(str(error), err=True)
        return 130
    except SftkitError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        return 2
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
        return 130
    return 0


def _run(
    recipe: str,
    out: Path | None,
    change: list[str] | None,
    output: str,
    *,
    resume: bool,
    allow_changes: Collection[str] = (),
    group: Mapping[str, Any] | None = None,
) -> None:
    from sftkit.launch import launch
    from sftkit.progress import make_watcher
    from sftkit.run import find_recipe
    from sftkit.run import run as run_recipe

    checked = find_recipe(recipe, overrides=change or [])
    folder = out or _next_free(Path("runs") / checked.name)
    watcher = make_watcher("silent" if output == "json" else "auto")
    if resume and out is None:
        raise SettingsError("--resume needs --out, the folder of the run that was stopped.")
    options: dict[str, Any] = {"resume": resume, "allow_changes": allow_changes, "watcher": watcher}
    record = (
        launch(checked, out=folder, **group, **options)
        if group
        else run_recipe(checked, folder, **options)
    )
    if record is None:
        typer.echo("This machine's part is done; the record is on the first machine.", err=True)
        return
    _tell(record, folder, output)
    if output == "text" and folder.resolve() != Path(recipe).resolve().parent:
        _compare_with_origin(record, Path(recipe))


def _compare_with_origin(record: RunRecord, recipe: Path) -> None:
    """Say whether a run that follows a finished run's recipe made the same adapter."""
    from sftkit.compare import reproduction
    from sftkit.records import load_run

    origin = recipe.parent
    if recipe.is_file() and (origin / "run.json").is_file() and record.training.steps:
        typer.echo(f"{origin}: {reproduction(record, load_run(origin))}")


def _tell(record: RunRecord, folder: Path, output: str) -> None:
    from sftkit.records import to_json
    from sftkit.run_text import run_text

    typer.echo(to_json(record) if output == "json" else run_text(record, folder), nl=False)


def _look_ahead(
    recipe: str,
    change: list[str] | None,
    output: str,
    *,
    probe: bool,
    group: Mapping[str, Any],
) -> None:
    from sftkit import launch_config
    from sftkit.dryrun import look_ahead
    from sftkit.dryrun_text import dry_run_text
    from sftkit.run import find_recipe
    from sftkit.settings import to_plain

    checked = find_recipe(recipe, overrides=change or [])
    plan = launch_config.plan_launch(checked, **group) if group else None
    if plan is not None and output == "text":
        typer.echo(launch_config.dry_launch_text(plan, checked) + "\n")
    found = look_ahead(
        checked, probe=probe, note=lambda line: typer.echo(line, err=True), launch=plan
    )
    if output == "json":
        launching = {"launch": launch_config.dry_launch(plan, checked)} if plan else {}
        print_json({**to_plain(found), **launching})
    else:
        typer.echo(dry_run_text(found))


def _datasheet(entry: dict[str, Any]) -> str:
    """Write one catalog entry with its terms."""
    state = "cached" if entry["cached"] else f"{entry['bytes'] / 1e6:.1f} MB to fetch"
    lines = [f"{entry['name']} ({entry['kind']}, {state}): {entry['title']}"]
    lines += [f"  licence: {entry['licence']}"]
    lines += [f"  notice: {entry['notice']}"] if entry["notice"] else []
    return "\n".join(lines)


def _tokenizer(model: str | None, max_tokens: int | None) -> Any:
    """Load a model's tokenizer alone; its weights are not needed to count tokens."""
    if model is None:
        if max_tokens is not None:
            raise SettingsError("--max-tokens counts a model's tokens: add --model NAME.")
        return None
    from sftkit.model import load_tokenizer
    from sftkit.settings import ModelSettings

    return load_tokenizer(ModelSettings(name=model))


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}).") from error


def _next_free(folder: Path) -> Path:
    """Return the folder, or folder-2, folder-3 … if it already holds a run."""
    number, free = 1, folder
    while (free / "run.json").exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
