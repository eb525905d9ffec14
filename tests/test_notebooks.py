"""Notebooks: the builder, the rules, and every notebook run in its short setting."""

import base64
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="notebook tests need the extra: pip install -e '.[test]'")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def load_builder():
    """Import notebooks/build.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("notebooks_build", NOTEBOOKS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_builder()

NO_SOURCES = pytest.param(None, marks=pytest.mark.skip(reason="notebooks/src holds no notebook"))
SOURCES = [pytest.param(path, id=path.stem) for path in build.sources()] or [NO_SOURCES]

# --- The notebooks of this checkout ---------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES)
def test_a_notebook_obeys_the_rules_and_is_not_stale(path):
    assert build.source_faults(path) + build.stale_faults(path) == []


@pytest.mark.parametrize("kind", build.KINDS)
@pytest.mark.parametrize("path", SOURCES)
def test_a_built_notebook_names_no_folder_of_this_machine(path, kind):
    text = build.built_path(path, kind).read_text(encoding="utf-8")
    for folder in {str(ROOT), str(Path.home()), sys.prefix} - {"/", "/usr", sys.base_prefix}:
        assert not re.search(re.escape(folder) + r"(?![\w-])", text), folder


@pytest.mark.notebooks
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", build.KINDS)
@pytest.mark.parametrize("path", SOURCES)
def test_a_notebook_runs_in_its_short_setting(path, kind):
    source = build.read_source(path)
    short = build.short_parameters(source)
    assert short, f"{path.name} has no sftkit: short: in its header"
    folder = build.built_path(path, kind).parent
    done = build.execute(build.make(source, kind), folder, parameters=short)
    assert build.output_faults(done, kind) == []


# --- The builder, on a notebook made up here -------------------------------------------------

TINY = """
# ---
# jupyter:
#   sftkit:
#     short: {items: 2}
# ---

# %% [markdown]
# # Tiny

# %% tags=["parameters"]
items = 4

# %%
import sys
from pathlib import Path

from sftkit.exercises import check
from sftkit.records import Encoded

example = Encoded(input_ids=(1, 2, 3), labels=(-100, 2, 3))
print(items, sys.executable, Path.home())

# %% tags=["exercise"]
### BEGIN SOLUTION
_learned = [label for label in example.labels if label != -100]
answer = len(_learned), _learned[-1]
### END SOLUTION
check("00.1", answer, example=example)

# %% tags=["exercise"]
before, after = [0.0] * items, [1.0] * items
### BEGIN SOLUTION
delta = 1.0
### END SOLUTION
check("00.2", (delta, True), before=before, after=after, ci95=(0.5, 1.5))

# %% tags=["exercise"]
measured = {0.0: (0.0, 0.0), 0.5: (0.6, 0.05), 1.0: (0.9, 0.4)}
### BEGIN SOLUTION
best = 0.5
### END SOLUTION
check("00.4", best, measured=measured, margin=0.1)
""".lstrip()


@pytest.fixture
def folder(tmp_path):
    """Make a notebooks folder with one tiny source."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "src").mkdir(parents=True)
    (notebooks / "src" / "00_tiny.py").write_text(TINY, encoding="utf-8")
    return notebooks


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source_of(notebook, number):
    return "".join(notebook["cells"][number]["source"])


def test_a_source_becomes_a_notebook_without_and_one_with_solutions(folder, capsys):
    assert build.main(["00"], folder=folder) == 0
    student = load(folder / "00_tiny.ipynb")
    solutions = load(folder / "solutions" / "00_tiny.ipynb")
    assert source_of(student, 3) == 'answer = ...\ncheck("00.1", answer, example=example)'
    assert "answer = len(_learned), _learned[-1]" in source_of(solutions, 3)
    assert [cell["id"] for cell in student["cells"]] == [cell["id"] for cell in solutions["cells"]]
    assert student["metadata"]["sftkit"] == {"short": {"items": 2}}
    assert capsys.readouterr().out.count("wrote notebooks/") == 2


def test_the_same_source_gives_the_same_bytes(folder):
    first = [path.read_bytes() for path in build.build(folder / "src" / "00_tiny.py")]
    for path in folder.rglob("*.ipynb"):
        path.unlink()
    assert [path.read_bytes() for path in build.build(folder / "src" / "00_tiny.py")] == first


def test_an_edit_renames_only_the_edited_cell_and_twins_get_ids_of_their_own(folder):
    path = folder / "src" / "00_tiny.py"
    before = [cell.id for cell in build.read_source(path).cells]
    twin = "\n# %%\nitems\n"
    path.write_text(TINY.replace("# # Tiny", "# # Tinier") + twin + twin, encoding="utf-8")
    after = [cell.id for cell in build.read_source(path).cells]
    assert after[1:-2] == before[1:]
    assert after[-1] == f"{after[-2]}-2"


def test_a_notebook_runs_top_to_bottom_and_comes_out_clean(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert build.main(["00_tiny", "--execute"], folder=folder) == 0
    assert build.main(["--check"], folder=folder) == 0
    text = (folder / "00_tiny.ipynb").read_text(encoding="utf-8")
    student = json.loads(text)
    printed = "".join(student["cells"][2]["outputs"][0]["text"])
    assert printed.startswith("4 ")
    assert printed.endswith(" ~\n")
    assert str(Path.home()) + os.sep not in text
    assert text.count("not answered yet") == 6  # in words and as HTML, for each of three
    assert (folder / "solutions" / "00_tiny.ipynb").read_text("utf-8").count("✓") == 6

    # New prose keeps the outputs; new code does not, and the old notebook is then stale.
    path = folder / "src" / "00_tiny.py"
    path.write_text(TINY.replace("# # Tiny", "# # Tinier"), encoding="utf-8")
    assert build.main([], folder=folder) == 0
    assert load(folder / "00_tiny.ipynb")["cells"][2]["outputs"]
    path.write_text(TINY.replace("items = 4", "items = 5"), encoding="utf-8")
    assert build.main(["--check"], folder=folder) == 1
    assert build.main([], folder=folder) == 0
    assert not load(folder / "00_tiny.ipynb")["cells"][2]["outputs"]


def test_the_short_setting_overrides_parameters_and_ships_nothing(folder):
    assert build.main(["--short"], folder=folder) == 0
    short = load(folder.parent / "runs" / "short" / "00_tiny.student.ipynb")
    assert "".join(short["cells"][3]["outputs"][0]["text"]).startswith("2 ")
    assert not list(folder.rglob("*.ipynb"))


def test_a_cell_that_raises_stops_the_build_and_is_shown(folder, capsys):
    path = folder / "src" / "00_tiny.py"
    path.write_text(TINY + '\n# %%\nraise ValueError("no such lamp")\n', encoding="utf-8")
    assert build.main(["--execute"], folder=folder) == 1
    assert "no such lamp" in capsys.readouterr().err
    assert not (folder / "00_tiny.ipynb").exists()


def test_what_is_stale_missing_or_never_run_is_said_with_the_command(folder, capsys):
    path = folder / "src" / "00_tiny.py"
    assert build.main(["--check"], folder=folder) == 1
    assert "00_tiny.ipynb is missing; run: python notebooks/build.py 00" in capsys.readouterr().err
    build.build(path)
    never, *others = build.stale_faults(path)
    assert "never run" in never
    assert others == []
    path.write_text(TINY.replace("items = 4", "items = 5"), encoding="utf-8")
    assert [fault.split(";")[0] for fault in build.stale_faults(path)] == [
        "00_tiny.ipynb does not match src/00_tiny.py",
        "solutions/00_tiny.ipynb does not match src/00_tiny.py",
    ]


def test_a_wanted_notebook_without_a_source_is_refused(folder, capsys):
    assert build.main(["07"], folder=folder) == 1
    assert capsys.readouterr().err == "No source for 07. There are: 00_tiny.\n"


EXERCISE = '\n# %% tags=["exercise"]\n'
SOLUTION = "### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n"
FAULTY = {
    "no title": (("# # Tiny", "# Tiny"), "the first cell must be text that starts with '# '"),
    "no parameters": ((' tags=["parameters"]', ""), "tagged parameters, found 0"),
    "two parameters": (("# %%\nimport", '# %% tags=["parameters"]\nimport'), "parameters, found 2"),
    "misspelt override": (("{items: 2}", "{item: 2}"), "short setting overrides 'item'"),
    "too few exercises": (('# %% tags=["exercise"]\nbefore', "# %%\nbefore"), "found 2"),
    "dead code": (("items = 4", "if False:\n    items = 4"), "never runs (if False)"),
    "long cell": (("items = 4", "items = 4\n" + "items\n" * 25), "26 lines of code, at most 25"),
    "leak": (("items = 4", "items = 4\n" + SOLUTION), "outside a cell tagged exercise"),
    "misspelt marker": (("### END", "## END"), "is not a marker"),
    "no solution": (("", EXERCISE + "check('00.3', ...)\n"), "an exercise needs '### BEGIN"),
    "no check": (("", EXERCISE + SOLUTION + "x\n"), "the last line must be check('00.…', …)"),
    "other number": (("", EXERCISE + SOLUTION + "check('01.1', x)\n"), "got '01.1'"),
    "twice": (("", EXERCISE + SOLUTION + "check('00.1', x)\n"), "00.1 is checked twice"),
    "magic": (("", EXERCISE + SOLUTION + "!ls\ncheck('00.3', x)\n"), "must be plain Python"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_source_that_breaks_a_rule_is_refused_before_it_runs(folder, name, capsys):
    (old, new), message = FAULTY[name]
    path = folder / "src" / "00_tiny.py"
    path.write_text(TINY.replace(old, new, 1) if old else TINY + new, encoding="utf-8")
    assert any(message in fault for fault in build.source_faults(path))
    assert build.main(["--execute"], folder=folder) == 1
    assert message in capsys.readouterr().err
    assert not list(folder.glob("*.ipynb"))


def test_a_sound_source_breaks_no_rule(folder):
    assert build.source_faults(folder / "src" / "00_tiny.py") == []


def test_a_wrong_solution_and_a_stored_error_are_found(folder):
    path = folder / "src" / "00_tiny.py"
    path.write_text(TINY.replace("best = 0.5", "best = 1.0"), encoding="utf-8")
    solved = build.make(build.read_source(path), "solutions")
    exercise, plain = solved.cells[5], solved.cells[2]
    exercise.execution_count = 1
    exercise.outputs = [
        build.nbformat.v4.new_output("display_data", data={"text/plain": "00.4 ✗ Drift should"})
    ]
    plain.outputs = [build.nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    error, wrong = build.output_faults(solved, "solutions")
    assert "ended in an error" in error
    assert "the check should say '✓'" in wrong


def test_outputs_lose_folders_widgets_and_redrawn_bars_and_keep_the_rest():
    new = build.nbformat.v4
    picture = base64.b64encode(b"\x89PNG" + str(Path.home()).encode()).decode()
    widget = {build.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "IntSlider()"}
    cell = new.new_code_cell(
        "x",
        metadata={"tags": ["a"], "execution": {"iopub.execute_input": "2025"}, "papermill": {}},
        outputs=[
            new.new_output("stream", text=f"0%\r50%\r100%\r\nat {ROOT}/sftkit/run.py:3\n"),
            new.new_output("display_data", data=widget),
            new.new_output("display_data", data={**widget, "text/html": "<b>kept</b>"}),
            new.new_output("display_data", data={"image/png": picture, "text/plain": "Figure"}),
            new.new_output("display_data", data={"application/json": {"at": [str(ROOT)]}}),
        ],
    )
    notebook = new.new_notebook(cells=[cell], metadata={"widgets": {"state": 1}, "papermill": {}})
    build.clean(notebook)
    assert notebook.metadata == {"language_info": {"name": "python"}}
    assert cell.metadata == {"tags": ["a"]}
    assert cell.outputs[0].text == "100%\nat sftkit/sftkit/run.py:3\n"
    assert [dict(output.data) for output in cell.outputs[1:]] == [
        {"text/html": "<b>kept</b>"},
        {"image/png": picture, "text/plain": "Figure"},
        {"application/json": {"at": ["sftkit"]}},
    ]


def test_temporary_and_python_folders_get_short_names(tmp_path, monkeypatch):
    new = build.nbformat.v4
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(build.Path, "home", lambda: tmp_path.parent)
    monkeypatch.setattr(build.sys, "prefix", "/opt/some/venv")
    lines = [f"{tmp_path}/ipykernel_71/12.py:3", "/opt/some/venv/lib/x.py:1", "/opt/some/venv2"]
    text = "\n".join([*lines, f"{tmp_path.parent}/runs"])
    cell = new.new_code_cell("x", outputs=[new.new_output("stream", text=text)])
    build.clean(new.new_notebook(cells=[cell]))
    assert cell.outputs[0].text == "tmp/12.py:3\npython/lib/x.py:1\n/opt/some/venv2\n~/runs"
