"""Build the notebooks from their one source.

    python notebooks/build.py [NN ...] [--execute] [--short] [--check]

`src/NN_name.py` (jupytext's percent format) becomes `NN_name.ipynb`, with solutions taken out, and
`solutions/NN_name.ipynb`, with solutions in. Without numbers, all sources are built.

A source says in its header what a short run overrides in its `parameters` cell; the short run is
used by the tests and by `--short`, whose results go to `runs/short/` and are never shipped:

    # ---
    # jupyter:
    #   sftkit:
    #     short: {max_steps: 3, items: 8}
    # ---
"""

# ruff: noqa: T201  (a command that talks to its user)

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jupytext
import nbformat
from nbformat import NotebookNode

from sftkit.errors import SftkitError
from sftkit.exercises import EXERCISES, has_solution, strip_solutions

HERE = Path(__file__).resolve().parent
MAX_LINES = 25
MIN_EXERCISES = 3
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

Kind = Literal["student", "solutions"]
KINDS: tuple[Kind, ...] = ("student", "solutions")


class NotebookError(SftkitError):
    """A notebook's source that breaks a rule, or a notebook that does not run."""


def sources(folder: Path = HERE, wanted: Sequence[str] = ()) -> list[Path]:
    """List the sources, all or those whose number or name is wanted, in order.

    Raises:
        NotebookError: A number or name has no source.
    """
    found = sorted((folder / "src").glob("[0-9][0-9]_*.py"))
    known = {name for path in found for name in (path.stem, path.stem[:2])}
    missing = [name for name in wanted if name not in known]
    if missing:
        stems = ", ".join(path.stem for path in found) or "none"
        raise NotebookError(f"No source for {', '.join(missing)}. There are: {stems}.")
    return [path for path in found if not wanted or {path.stem, path.stem[:2]} & set(wanted)]


def read_source(path: Path) -> NotebookNode:
    """Read a percent source as a notebook with ids that depend on its text alone."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    own = notebook.metadata.get("sftkit", {})
    notebook.metadata = NotebookNode(
        kernelspec={
            "name": "python3",
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
        },
        language_info={"name": "python"},
        sftkit=own,
    )
    return notebook


def short_parameters(source: NotebookNode) -> dict[str, Any]:
    """Give what a short run overrides in the `parameters` cell."""
    return dict(source.metadata.sftkit.get("short", {}))


def make(source: NotebookNode, kind: Kind) -> NotebookNode:
    """Make one of the two notebooks of a source; neither has outputs yet."""
    notebook = copy.deepcopy(source)
    if kind == "student":
        for cell in notebook.cells:
            if _is_tagged(cell, "exercise"):
                cell.source = strip_solutions(cell.source)
    return notebook


def built_path(path: Path, kind: Kind) -> Path:
    """Say where a source's notebook belongs."""
    folder = path.parent.parent
    return (folder if kind == "student" else folder / "solutions") / f"{path.stem}.ipynb"


# --- Rules ---------------------------------------------------------------------------------


def source_faults(path: Path) -> list[str]:
    """List every rule that a source breaks, each with its cell."""
    source = read_source(path)
    cells = source.cells
    faults = []
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        faults.append("the first cell must be text that starts with '# ' and the title")
    parameters = [cell for cell in cells if _is_tagged(cell, "parameters")]
    if len(parameters) != 1:
        faults.append(f"one cell must be tagged parameters, found {len(parameters)}")
    else:
        faults += _short_faults(short_parameters(source), parameters[0])
    exercises = [cell for cell in cells if _is_tagged(cell, "exercise")]
    if len(exercises) < MIN_EXERCISES:
        faults.append(
            f"at least {MIN_EXERCISES} cells must be tagged exercise, found {len(exercises)}"
        )
    ids: list[str] = []
    for number, cell in enumerate(cells, start=1):
        where = f"cell {number} ({_first_line(cell)})"
        try:
            faults += [f"{where}: {fault}" for fault in _cell_faults(cell, path.stem[:2], ids)]
        except SftkitError as error:
            faults.append(f"{where}: {error}")
    return [f"{path.name}: {fault}" for fault in faults]


def _short_faults(short: Mapping[str, Any], cell: NotebookNode) -> list[str]:
    assigned = set(re.findall(r"^(\w+)\s*(?::[^=]+)?=(?!=)", cell.source, re.MULTILINE))
    return [
        f"the short setting overrides {name!r}, which the parameters cell does not set"
        for name in short
        if name not in assigned
    ]


def _cell_faults(cell: NotebookNode, number: str, ids: list[str]) -> Iterator[str]:
    if cell.cell_type != "code":
        return
    is_exercise = _is_tagged(cell, "exercise")
    lines = [line for line in cell.source.splitlines() if "SOLUTION" not in line]
    if len(lines) > MAX_LINES:
        yield f"{len(lines)} lines of code, at most {MAX_LINES}; move some into the package"
    if re.search(r"^\s*(if|elif|while)\s+(False|0)\s*:", cell.source, re.MULTILINE):
        yield "code that never runs (if False)"
    if has_solution(cell.source) != is_exercise:
        yield (
            "an exercise needs '### BEGIN SOLUTION' and '### END SOLUTION'"
            if is_exercise
            else "a solution outside a cell tagged exercise would be shown"
        )
    if is_exercise:
        id_ = _checked_exercise(strip_solutions(cell.source))
        if id_ not in EXERCISES or not str(id_).startswith(f"{number}."):
            yield f"the last line must be check('{number}.…', …) with a known exercise, got {id_!r}"
        elif id_ in ids:
            yield f"exercise {id_} is checked twice"
        ids.append(str(id_))


def _checked_exercise(code: str) -> str | None:
    """Name the exercise that a cell's last statement checks, or None."""
    try:
        statements = ast.parse(code).body
    except SyntaxError as error:
        raise NotebookError(f"an exercise must be plain Python ({error.msg})") from error
    match statements[-1:]:
        case [ast.Expr(ast.Call(ast.Name("check"), [ast.Constant(str(id_)), *_]))]:
            return id_
    return None


def output_faults(notebook: NotebookNode, kind: Kind) -> list[str]:
    """List what an executed notebook shows and must not.

    An exercise must be unanswered for the student and right in the solutions.
    """
    wanted = "not answered yet" if kind == "student" else "✓"
    faults = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        where = f"cell {number} ({_first_line(cell)})"
        if any(output.output_type == "error" for output in cell.outputs):
            faults.append(f"{where}: ended in an error")
        elif _is_tagged(cell, "exercise") and cell.execution_count is not None:
            shown = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            if not shown or wanted not in shown[-1]:
                faults.append(f"{where}: the check should say {wanted!r}, it says {shown}")
    return faults


def stale_faults(path: Path) -> list[str]:
    """List where the built notebooks do not match their source, or were not executed."""
    source = read_source(path)
    faults = []
    for kind in KINDS:
        target = built_path(path, kind)
        name = target.relative_to(path.parent.parent).as_posix()
        command = f"run: python notebooks/build.py {path.stem[:2]}"
        if not target.exists():
            faults.append(f"{name} is missing; {command} --execute")
            continue
        built = _read(target)
        if _essence(built) != _essence(make(source, kind)):
            faults.append(f"{name} does not match src/{path.name}; {command} --execute")
        elif kind == "student" and not _is_executed(built):
            faults.append(f"{name} has cells that were never run; {command} --execute")
        faults += [f"{name}: {fault}" for fault in output_faults(built, kind)]
    return faults


# --- Running -------------------------------------------------------------------------------


def execute(
    notebook: NotebookNode, folder: Path, *, parameters: Mapping[str, Any] | None = None
) -> NotebookNode:
    """Run a notebook top to bottom with this interpreter, and give it with clean outputs.

    Args:
        notebook: What to run; it is not changed.
        folder: Where to run it.
        parameters: Overrides of its parameters cell, put in by papermill.

    Returns:
        The executed notebook, with papermill's extra cell if there are parameters.

    Raises:
        NotebookError: A cell raised; the message holds the cell and its traceback.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    notebook = copy.deepcopy(notebook)
    if parameters:
        from papermill.parameterize import parameterize_notebook

        # What papermill's own reader would add, and its next call relies on.
        notebook.metadata["papermill"] = NotebookNode()
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
        notebook = parameterize_notebook(notebook, dict(parameters))
        _injected(notebook).id = "injected-parameters"
    # With no folders to search, the kernel is ipykernel's own: the interpreter that runs this.
    kernels = KernelSpecManager(kernel_dirs=[])
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # This checkout's package, not another installed one; and figures in the notebook.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=None,
        startup_timeout=120,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(cleanup_kc=True, env=environment)
    except (CellExecutionError, DeadKernelError) as error:
        raise NotebookError(f"The notebook did not run to its end: {error}") from error
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out of an executed notebook what would differ on the next machine or run.

    Timestamps and widget state go; the checkout's, home, temporary and Python folders get
    short neutral names; of each redrawn progress bar the last state stays.

    Args:
        notebook: The executed notebook, changed in place.
    """
    notebook.metadata = NotebookNode(
        {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "sftkit")},
        language_info={"name": "python"},
    )
    places = _places()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [
                NotebookNode(_neutral(output, places))
                for output in map(_without_widget, cell.outputs)
                if output is not None
            ]
    return notebook


def _without_widget(output: NotebookNode) -> NotebookNode | None:
    """Drop a widget's view, which is dead without its state; None if nothing else is shown."""
    if output.output_type == "stream":
        text = output.text.replace("\r\n", "\n")
        lines = ([part for part in line.split("\r") if part] for line in text.split("\n"))
        output.text = "\n".join(parts[-1] if parts else "" for parts in lines)
    elif WIDGET_VIEW in output.get("data", {}):
        output.data = {k: v for k, v in output.data.items() if k not in (WIDGET_VIEW, "text/plain")}
        return output if output.data else None
    return output


def _places() -> list[tuple[re.Pattern[str], str]]:
    """Pair each folder of this machine with its neutral name, the longest first."""
    temporary = Path(tempfile.gettempdir())
    named = {HERE.parent: "sftkit", Path.home(): "~"}
    if sys.prefix != sys.base_prefix:  # elsewhere it is a folder such as /usr, which is no secret
        named[Path(sys.prefix)] = "python"
    forms = {str(form): name for path, name in named.items() for form in (path, path.resolve())}
    forms = {form: name for form, name in forms.items() if form != Path(form).anchor}
    inside = r"[\\/][^\\/\s\"'<>:]+"  # the random part of a temporary name
    patterns = [(form, re.escape(form) + r"(?![\w-])", name) for form, name in forms.items()]
    patterns += [
        (str(form), re.escape(str(form)) + inside, "tmp")
        for form in {temporary, temporary.resolve()}
    ]
    patterns.sort(key=lambda entry: -len(entry[0]))
    return [(re.compile(pattern), name) for _, pattern, name in patterns]


def _neutral(value: Any, places: Sequence[tuple[re.Pattern[str], str]]) -> Any:
    if isinstance(value, str):
        for pattern, name in places:
            value = pattern.sub(name, value)
        return value
    if isinstance(value, Mapping):
        return NotebookNode(
            {k: v if _is_binary(k) else _neutral(v, places) for k, v in value.items()}
        )
    return [_neutral(item, places) for item in value] if isinstance(value, list) else value


def _is_binary(key: str) -> bool:
    return key.startswith(("image/", "audio/", "video/")) and key != "image/svg+xml"


# --- Files and the command -----------------------------------------------------------------


def build(path: Path, *, run: bool = False) -> list[Path]:
    """Write both notebooks of a source.

    Unless they are run, outputs of an earlier run stay where all code is as it was then.

    Args:
        path: The source.
        run: Execute both and store the outputs.

    Returns:
        The two files.

    Raises:
        NotebookError: The source breaks a rule (all are named), or a cell or check fails.
    """
    _refuse(source_faults(path))
    source = read_source(path)
    written = []
    for kind in KINDS:
        notebook, target = make(source, kind), built_path(path, kind)
        target.parent.mkdir(exist_ok=True)
        if run:
            notebook = execute(notebook, target.parent)
            _refuse([f"{target.name}: {fault}" for fault in output_faults(notebook, kind)])
        elif target.exists():
            _keep_outputs(_read(target), notebook)
        _write(notebook, target)
        written.append(target)
    return written


def build_short(path: Path, out: Path) -> list[Path]:
    """Run both notebooks of a source in their short setting and write the results to `out`.

    Raises:
        NotebookError: The source breaks a rule, or a cell or check fails.
    """
    _refuse(source_faults(path))
    source = read_source(path)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in KINDS:
        folder = built_path(path, kind).parent
        folder.mkdir(exist_ok=True)
        notebook = execute(make(source, kind), folder, parameters=short_parameters(source))
        _refuse([f"{path.stem} ({kind}): {fault}" for fault in output_faults(notebook, kind)])
        written.append(out / f"{path.stem}.{kind}.ipynb")
        _write(notebook, written[-1])
    return written


def main(arguments: Sequence[str] | None = None, *, folder: Path = HERE) -> int:
    """Run the command; 0 is fine, 1 means a fault was found and printed."""
    parser = argparse.ArgumentParser(description="Build the notebooks from notebooks/src.")
    parser.add_argument("wanted", nargs="*", metavar="NN", help="numbers or names; default: all")
    parser.add_argument("--execute", action="store_true", help="run them and store the outputs")
    parser.add_argument("--short", action="store_true", help="run the short setting, ship nothing")
    parser.add_argument("--check", action="store_true", help="only say what is stale or wrong")
    options = parser.parse_args(arguments)
    try:
        paths = sources(folder, options.wanted)
        if options.check:
            _refuse(
                [fault for path in paths for fault in source_faults(path) or stale_faults(path)]
            )
            print(f"{len(paths)} sources checked: their notebooks are up to date")
            return 0
        for path in paths:
            out = folder.parent / "runs" / "short"
            made = build_short(path, out) if options.short else build(path, run=options.execute)
            for target in made:
                print(f"wrote {target.relative_to(folder.parent)}")
    except SftkitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise NotebookError("\n".join(faults))


def _keep_outputs(before: NotebookNode, notebook: NotebookNode) -> None:
    old = [cell for cell in before.cells if cell.cell_type == "code"]
    new = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.source for cell in old] == [cell.source for cell in new]:
        for was, cell in zip(old, new, strict=True):
            cell.outputs, cell.execution_count = was.outputs, was.execution_count


def _essence(notebook: NotebookNode) -> list[tuple[str, str, str, list[str]]]:
    return [(c.id, c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]


def _is_executed(notebook: NotebookNode) -> bool:
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return all(cell.execution_count is not None for cell in code)


def _is_tagged(cell: NotebookNode, tag: str) -> bool:
    return cell.cell_type == "code" and tag in cell.metadata.get("tags", [])


def _injected(notebook: NotebookNode) -> NotebookNode:
    return next(cell for cell in notebook.cells if _is_tagged(cell, "injected-parameters"))


def _first_line(cell: NotebookNode) -> str:
    return next((line.strip() for line in cell.source.splitlines() if line.strip()), "empty")[:40]


def _read(path: Path) -> NotebookNode:
    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)


def _write(notebook: NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
