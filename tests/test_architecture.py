"""The import table of the design, held against the code; and the limits that keep it readable."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import sftkit

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = CHECKOUT / "sftkit"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "bundled" not in path.parts
}

# What every stage may import. All but the first four are the catalog's own parts.
CATALOG_READERS = {
    "catalog_rows", "catalog_questions", "catalog_labels", "catalog_bias", "catalog_hub",
    "catalog_harness",
}  # fmt: skip
NOUNS = {
    "errors",
    "settings",
    "recipe",
    "records",
    "label_records",
    "evidence_records",
    "catalog",
    "credentials",
    "gguf_convert",
    "wheels",
} | CATALOG_READERS
EVERYTHING = {name.split(".")[0] for name in FILES}

MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors"},
    "recipe": {"errors", "settings"},
    "records": {
        "errors",
        "settings",
        "label_records",
        "evidence_records",
    },  # settings for to_plain, the one way to plain values
    "label_records": set(),
    "evidence_records": set(),
    "catalog": NOUNS,
    **dict.fromkeys(CATALOG_READERS, NOUNS),
    "gguf_convert": NOUNS,
    "wheels": NOUNS,
    "credentials": set(),
    # The audit counts tokens as training will see them (chat, encoding; loaded when a tokenizer is
    # given), and an audit shows itself in a notebook (audit_page; loaded when it is shown).
    "dataset": NOUNS | {"chat", "encoding", "audit_page"},
    # One page, or one text, for people: what an audit found.
    "audit_page": NOUNS | {"dataset", "show"},
    "plots_data": NOUNS | {"dataset", "panels"},
    "plots_labels": NOUNS | {"panels"},
    "plots_images": NOUNS | {"panels"},
    # A sound model and faulty ones, put to the same checks; it composes stages, as a run does.
    "mutant_bench": EVERYTHING - {"cli"},
    "mutant_runs": EVERYTHING - {"cli"},
    "plots_mutants": NOUNS | {"panels"},
    # Broken runs, made on purpose: the signs of each, how they are made, and how they are shown.
    "clinic": NOUNS | {"show"},
    "clinic_views": NOUNS | {"clinic", "show"},
    **dict.fromkeys(("clinic_bench", "clinic_labels", "clinic_runs"), EVERYTHING - {"cli", "run"}),
    "plots_clinic": NOUNS | {"panels", "clinic", "clinic_views"},
    "plots_checks": NOUNS | {"panels", "evidence"},  # Wilson's interval of a bin
    "plots_memory": NOUNS | {"panels", "memory"},
    "plots_processes": NOUNS | {"panels", "memory"},
    "chat": NOUNS,
    # Where words stand in a rendered conversation; then many conversations at once.
    "template": NOUNS | {"chat"},
    "encoded": NOUNS | {"chat"},
    "encoding": NOUNS | {"chat", "template", "encoded"},
    "batching": NOUNS,
    "weights": NOUNS,
    "loading": NOUNS,
    "model": NOUNS | {"weights", "loading", "processes"},
    # Several methods on one task: it composes stages, as a run does, and draws nothing.
    "methods": EVERYTHING - {"cli", "run"},
    "sweep": EVERYTHING - {"cli", "run"},  # the same for several settings of one method
    "plots_watching": NOUNS | {"panels", "sweep"},
    "learning_curve": EVERYTHING - {"cli", "run"},  # many short trainings on more and more rows
    "plots_learning": NOUNS | {"panels", "learning_curve"},
    # A grid of recipes on one base: gain against forgetting; it composes stages, as a run does.
    "frontier": EVERYTHING - {"cli"},
    "frontier_records": NOUNS | {"evidence"},
    "plots_frontier": NOUNS | {"panels", "frontier_records"},
    "holdings": EVERYTHING - {"cli", "run"},
    "plots_holdings": NOUNS | {"panels", "holdings"},
    "plots_adapters": NOUNS | {"panels", "methods"},
    # The table of methods, the layers they act on, and what is done with them.
    "peft_import": set(),
    "adapter_kinds": NOUNS | {"peft_import"},
    "adapter_targets": NOUNS,
    "adapter": NOUNS | {"adapter_kinds", "adapter_targets", "peft_import"},
    "adapter_files": NOUNS | {"adapter_kinds", "adapter"},
    # One forward pass: its precision, and the output head at chosen positions. Training and
    # scoring share it, so that what is measured is what was trained.
    "forward": NOUNS | {"packed"},
    # When training takes its faster parts; asked of models that are here, or only planned.
    "speed_rules": set(),
    # Rows without padding; then faster forwards of layers. Both only while a training lasts.
    "packed": {"speed_rules"},
    "fused": set(),
    "speed": NOUNS | {"forward", "fused", "packed", "speed_rules"},
    "objectives": NOUNS | {"forward"},
    "labelled": NOUNS,
    "heads": NOUNS | {"model", "labelled", "adapter_targets"},
    "optim": NOUNS,
    "regularise": NOUNS | {"forward"},
    "checkpoint": NOUNS,
    "processes": {"errors"},
    # Many processes: what they are told to be, how they are started and watched, what each does,
    # and what they say to each other before they train.
    "launch_config": NOUNS,
    "launch": NOUNS | {"launch_config", "progress", "train_state", "worker"},
    "worker": EVERYTHING - {"cli"},
    "meeting": {"errors", "processes"},
    "trouble": NOUNS,
    "train_state": NOUNS | {"checkpoint", "processes", "regularise"},
    "train": NOUNS
    | {"forward", "batching", "held_memory", "optim", "processes", "regularise"}
    | {"speed", "train_state", "trouble"},
    # Scorers put prompts through the chat template and fill batches as training does.
    "evidence": NOUNS | {"forward", "batching", "chat", "labelled", "objectives"},
    "panels": NOUNS,  # the pieces plots are made of
    "plots": NOUNS | {"panels", "metrics"},
    "show": NOUNS | {"chat", "template"},
    "held_memory": set(),
    "metrics": NOUNS,
    "trackers": NOUNS | {"metrics", "report"},  # the redactor
    "progress": NOUNS | {"plots", "held_memory"},
    # The machine: what it has, and whether training works on it.
    "doctor": NOUNS | {"model"},
    "selftest": NOUNS
    | {"adapter", "adapter_files", "chat", "dataset", "environment", "forward", "model"}
    | {"objectives", "progress", "report", "train"},  # of report the redactor
    "cli_doctor": EVERYTHING,
    # A run for others: what is written, and whether it answers like what was tested.
    "gguf_write": NOUNS,
    "parity": NOUNS | {"chat"},
    "serving": NOUNS | {"chat"},
    "export": NOUNS
    | {"adapter_files", "model", "chat", "gguf_write", "parity", "serving", "gate_against"}
    | {"report"},  # the card and the redactor
    "cli_share": EVERYTHING,
    # A folder for a room without internet.
    "bundle": NOUNS | {"bundle_check", "bundle_wheels"},
    "bundle_check": NOUNS,
    "bundle_wheels": NOUNS,
    # A task of one's own: what a file can teach, and the folder to start from.
    "scaffold_settings": NOUNS
    | {"held_memory", "memory", "memory_formulas", "memory_ladder", "model"},
    "scaffold_guess": NOUNS | {"dataset", "prepare", "scaffold_settings"},
    "scaffold": NOUNS | {"chat", "evidence", "report", "scaffold_guess", "show"},  # the redactor
    "cli_new": EVERYTHING,
    "talk": NOUNS | {"adapter", "adapter_files", "chat", "forward", "model", "show"},
    "talk_terminal": NOUNS | {"show", "talk"},
    # Several runs side by side: the gate's measures, and one more page of the report.
    "compare": NOUNS | {"gate_against", "gate_bounds", "gate_policy", "report"},  # the redactor
    "plots_compare": NOUNS | {"panels", "compare"},
    "report": NOUNS
    | {"plots", "plots_labels", "plots_checks", "plots_compare", "panels", "show", "compare"},
    # An answer may be a behaviour test, judged as tests are; or a rule of a server.
    "exercises": NOUNS | {"evidence", "serving"},
    "environment": NOUNS | {"processes"},
    # The data half of a run, so that each half can be read in one sitting.
    "prepare": NOUNS | {"dataset", "chat", "encoded", "encoding", "evidence"},
    "prepare_labels": NOUNS | {"dataset", "labelled", "prepare"},
    # Peak memory from a configuration alone: a model's shape, bytes of each part, what would help.
    "memory_shapes": NOUNS | {"speed_rules"},
    "memory_activations": NOUNS | {"memory_shapes", "speed_rules"},
    "memory_formulas": NOUNS | {"memory_shapes", "memory_activations"},
    "memory": NOUNS | {"memory_shapes", "memory_formulas", "batching"},
    "memory_ladder": NOUNS | {"memory_shapes", "memory_formulas", "memory"},
    "run": EVERYTHING - {"cli"},
    "run_folder": NOUNS
    | {"checkpoint", "evidence", "model", "prepare", "prepare_labels", "progress", "report"},
    # May this run be shipped? The limits, what a bound says of them, rules on one run and on two.
    "gate_policy": NOUNS,
    "gate_bounds": NOUNS | {"gate_policy", "show", "report"},  # of report the redactor
    "gate_rules": NOUNS | {"gate_policy", "gate_bounds"},
    "gate_against": NOUNS | {"gate_policy", "gate_bounds", "gate_rules", "evidence"},
    "cli_options": {"errors"},
    "cli_results": EVERYTHING,
    "gate": NOUNS | {"gate_policy", "gate_bounds", "gate_rules", "gate_against", "show", "report"},
    # An adapter that anybody trained: what it is, and the stages of a run but training.
    "candidate": NOUNS | {"adapter_kinds", "adapter_files"},
    "evaluate_adapter": EVERYTHING - {"cli"},
    "dryrun": EVERYTHING - {"cli"},
    "dryrun_text": NOUNS | {"dryrun", "memory"},
    "run_text": NOUNS,
    # Fairness and calibration, where test texts are encoded anew.
    "check_labels": NOUNS | {"evidence", "labelled", "prepare_labels"},
    "run_labels": EVERYTHING - {"cli"},  # the same for texts and images with labels
    "cli": EVERYTHING,
    "__init__": set(),  # public names load late, by the table in it
}

# Modules past 420 lines, and why each is still one module.
LONG = {
    "settings": "every default in one place, with its documentation",
    "records": "every record in one place, with its documentation",
    "evidence_records": "the same for what evidence hands on",
    "catalog": "the table, the fetch and the readers of named data",
}
LONGEST = 420
LONGEST_WITH_REASON = 620


def imports_of(path: Path) -> set[str]:
    """List the top-level parts of sftkit a file imports, wherever in it, for more than types."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sftkit.")
            )
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are written in full"
            if node.module == "sftkit":
                modules = {alias.name for alias in node.names} & EVERYTHING
                found.update(modules)
            elif (node.module or "").startswith("sftkit."):
                found.add(str(node.module).split(".")[1])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_the_import_reader_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import os, sftkit.chat\n"
        "from sftkit import train, __version__\n"
        "from sftkit.evidence.choice import Prompt\n"
        "if TYPE_CHECKING:\n    from sftkit.run import run\n"
        "else:\n    from sftkit import cli\n"
        "def late():\n    from sftkit.adapter import attach_adapter\n",
        encoding="utf-8",
    )
    assert imports_of(path) == {"chat", "train", "evidence", "cli", "adapter"}


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_what_the_design_allows(name):
    part = name.split(".")[0]
    assert part in MAY_IMPORT, f"{name} is not in the table of the design; say what it may import"
    assert imports_of(FILES[name]) - {part} - MAY_IMPORT[part] == set()


def test_the_table_names_no_module_that_is_gone():
    assert set(MAY_IMPORT) - EVERYTHING == set()


def test_only_loading_and_optimizers_know_bitsandbytes():
    users = [
        name
        for name, path in FILES.items()
        if "import bitsandbytes" in (text := path.read_text(encoding="utf-8"))
        or "BitsAndBytesConfig" in text
    ]
    assert users == ["model", "optim"]


@pytest.mark.parametrize("name", FILES)
def test_no_module_is_a_drawer_for_anything(name):
    assert not {"utils", "helpers", "common", "misc"} & set(name.split("."))


@pytest.mark.parametrize("name", FILES)
def test_a_module_is_short_enough_to_read_in_one_sitting(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= (LONGEST_WITH_REASON if name in LONG else LONGEST)


def test_every_exception_for_length_is_still_needed():
    lengths = {n: len(FILES[n].read_text(encoding="utf-8").splitlines()) for n in LONG}
    assert [name for name, lines in lengths.items() if lines <= LONGEST] == []


def test_the_public_names_are_few_and_each_is_there():
    assert len(sftkit.__all__) <= 40
    assert sorted(set(sftkit.__all__)) == sorted(sftkit.__all__)
    assert [name for name in sftkit.__all__ if getattr(sftkit, name, None) is None] == []
    with pytest.raises(AttributeError, match="module 'sftkit' has no attribute 'fine_tune'"):
        sftkit.fine_tune  # noqa: B018


def test_importing_sftkit_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import sftkit; "
        "seconds = time.perf_counter() - start; "
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'numpy'}; "
        "print(seconds, *sorted(heavy & set(sys.modules)))"
    )
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        seconds, *heavy = done.stdout.split()
        assert heavy == []
        times.append(float(seconds))
    assert statistics.median(times) < 0.3, times


def test_the_nouns_load_no_torch():
    # So a recipe can be checked, data audited and a run's record read on any machine, at once.
    code = (
        "import sys\n"
        "from sftkit import errors, settings, records, catalog, batching\n"
        "from sftkit.dataset import audit, read, split\n"
        "from sftkit.evidence import statistics, verdicts\n"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []
