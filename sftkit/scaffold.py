"""A folder to start from: recipe with comments, notebook, behaviour tests, README.

What stands in it was guessed by `scaffold_guess`; all of it is the user's to change. Rows of the
user's data are written as data only, never as markup or code.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftkit.chat import split_question
from sftkit.errors import SettingsError
from sftkit.evidence.behaviour_cases import Question, plan_behaviour
from sftkit.evidence.behaviour_file import parse_behaviour
from sftkit.recipe import load_recipe
from sftkit.report.redact import redact
from sftkit.scaffold_guess import Guess, relative_source
from sftkit.settings import Recipe
from sftkit.show import visible

RECIPE, NOTEBOOK, BEHAVIOUR, README = "recipe.yaml", "notebook.ipynb", "behaviour.yaml", "README.md"
_CASES = 6
_LONGEST_CASE = 300  # characters


def write_project(guess: Guess, folder: str | Path) -> tuple[Path, ...]:
    """Write the folder; `sftkit run FOLDER/recipe.yaml` works at once.

    Args:
        guess: What was guessed about the file.
        folder: A folder that is not there yet, or empty.

    Returns:
        The files written.

    Raises:
        SettingsError: Something lies in the folder already, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is there already. Give another folder with --out.")
    partial = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    texts = {
        RECIPE: recipe_text(guess, folder),
        README: _readme(guess, folder),
        NOTEBOOK: json.dumps(_notebook(guess), indent=1, ensure_ascii=False) + "\n",
    }
    if guess.recipe.evaluate.behaviour:
        texts[BEHAVIOUR] = behaviour_text(guess)
    try:
        partial.mkdir(parents=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        load_recipe(partial / RECIPE)  # what is written is what a run will read
        folder.mkdir(parents=True, exist_ok=True)
        folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuple(folder / name for name in texts)


# ---- the recipe ----


def recipe_text(guess: Guess, folder: Path) -> str:
    """Write the recipe with the reason of every guess beside it."""
    recipe, why = guess.recipe, dict(guess.reasons)
    data, train, measured = recipe.data, recipe.train, recipe.evaluate
    source = relative_source(data.source, folder)
    lines = [
        "# What a run does. Change anything; a misspelt name is refused before training begins.",
        f"# sftkit run {folder.name}/{RECIPE} --dry-run   says what it would do, and the memory.",
        f"name: {_scalar(recipe.name)}",
        *_comment(why["model"]),
        f"model: {_flow({'name': recipe.model.name, **_quantized(recipe)})}",
        "data:",
        "  # A path that begins with ./ or ../ is taken from the folder of this file.",
        f"  source: {_scalar(source)}",
        *_comment(why["task"], 2),
        f"  task: {data.task}",
        f"  format: {data.format}",
        "  # Which column plays which part.",
        f"  columns: {_flow(dict(data.columns or {}))}",
    ]
    if data.encoding:
        lines.append(f"  encoding: {_scalar(data.encoding)}")
    lines += _comment(why["division"], 2)
    for name in ("split_by", "stratify_by"):
        if getattr(data, name):
            lines.append(f"  {name}: {_scalar(getattr(data, name))}")
    lines += [
        f"  validation_fraction: {data.validation_fraction}",
        f"  test_fraction: {data.test_fraction}   # read once, at the end",
        *_comment(why["length"], 2),
        f"  max_tokens: {data.max_tokens}",
    ]
    if data.faulty_rows == "drop":
        lines.append("  faulty_rows: drop   # rows with errors are left out; refuse stops at them")
    if data.replay:
        lines += [
            "  # General text mixed in, so that less is forgotten.",
            f"  replay: {_scalar(data.replay)}",
            f"  replay_share: {data.replay_share}",
        ]
    adapter = {name: getattr(recipe.adapter, name) for name in ("kind", "r", "lora_alpha")}
    lines += [
        f"adapter: {_flow(adapter)}",
        "train:",
        f"  learning_rate: {train.learning_rate!r}   # the setting that matters most",
        f"  epochs: {train.epochs}",
    ]
    if train.max_steps is not None:
        lines.append(
            f"  max_steps: {train.max_steps}   # a first run of minutes; take the line out to "
            "train on everything"
        )
    lines += [
        f"  max_tokens_per_batch: {train.max_tokens_per_batch}",
        f"  micro_batches: {train.micro_batches}   # more of them need less memory",
        f"  weight_decay: {train.weight_decay!r}",
        f"  heldout_evaluations: {train.heldout_evaluations}",
    ]
    if train.examples_per_batch:
        lines.append(f"  examples_per_batch: {train.examples_per_batch}")
    lines += ["  seed: 0", "evaluate:"]
    if data.task == "chat":
        lines += [
            "  # exact compares answers word for word; recognition ranks the right one among four.",
            f"  knowledge: {measured.knowledge}",
            f"  knowledge_items: {measured.knowledge_items}",
            f"  max_new_tokens: {measured.max_new_tokens}",
            "  # What it could do before: multiple-choice questions and general text.",
            f"  probes: {_flow(list(measured.probes))}",
            f"  items_per_probe: {measured.items_per_probe}",
            f"  drift_passages: {measured.drift_passages}",
            f"  style_items: {measured.style_items}",
        ]
    else:
        lines.append(f"  baseline: {measured.baseline}   # a linear model on word counts beside it")
    if measured.behaviour:
        lines.append(f"  behaviour: {_scalar(measured.behaviour)}   # tests to write yourself")
    return "\n".join(lines) + "\n"


def _quantized(recipe: Recipe) -> dict[str, Any]:
    kind = recipe.model.quantization
    return {} if kind == "none" else {"quantization": kind}


def _comment(text: str, indent: int = 0) -> list[str]:
    """Write a comment; a line end in a user's column name would end it and become a setting."""
    return [f"{' ' * indent}# {visible(text)[:200]}"]


def _scalar(text: str) -> str:
    """Write a text as YAML on one line; JSON's strings are YAML's."""
    plain = text.replace("-", "").replace("_", "").replace(".", "").replace("/", "")
    is_plain = plain.isascii() and plain.isalnum() and plain.lower() not in _WORDS_OF_YAML
    return text if is_plain and text[0].isalpha() else json.dumps(text)


_WORDS_OF_YAML = {"yes", "no", "true", "false", "null", "on", "off", "y", "n"}


def _flow(value: Mapping[str, Any] | Iterable[Any]) -> str:
    if isinstance(value, Mapping):
        inner = (f"{_scalar(key)}: {_item(item)}" for key, item in value.items())
        return "{" + ", ".join(inner) + "}"
    return "[" + ", ".join(map(_item, value)) + "]"


def _item(value: Any) -> str:
    return _scalar(value) if isinstance(value, str) else json.dumps(value)


# ---- behaviour tests ----


def behaviour_text(guess: Guess) -> str:
    """Write a starter of behaviour tests, with cases out of the user's own training rows."""
    import yaml

    task = guess.recipe.data.task
    tests: list[dict[str, Any]] = []
    own = {"chat": _chat_cases, "classify": _label_cases}.get(task)
    cases = own(guess) if own is not None else []
    if cases:
        expect = {"contains": "{answer}"} if task == "chat" else {"label": "{label}"}
        tests.append(
            {
                "name": "What it was trained on, word for word",
                "capability": "memory",
                "kind": "minimum",
                "template": "{text}",
                "cases": cases,
                "expect": expect,
                "allowed": 0.34,
            }
        )
    same = {"within": 0.5} if task == "regress" else {"same": True}
    invariances = [
        {
            "name": name,
            "capability": "robustness",
            "kind": "invariance",
            "rows": "test",
            "change": change,
            "expect": dict(same),
            "allowed": 0.2,
            "at_most": 24,
        }
        for name, change in _CHANGES.items()
    ]
    # Japanese has no capitals, and some texts no comma: such a test would have no case.
    tests += [test for test in invariances if _has_cases(test, task, guess.test_texts)]
    body = yaml.safe_dump(
        {
            "about": "A starter. The first test asks what was trained; add questions in your own "
            "words, and what must change an answer.",
            "task": task,
            "tests": tests,
        },
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )
    text = str(body)
    parse_behaviour(text, where=BEHAVIOUR)
    head = (
        "# Behaviour tests: minimum (it can do this at all), invariance (this must not matter),\n"
        "# directional (this must matter). Notebook 08 explains them; the file is checked on "
        "reading.\n"
    )
    return head + text


_CHANGES = {
    "Typos change nothing": "typos",
    "Capitals change nothing": "case",
    "Commas and full stops change nothing": "punctuation",
    "A sentence beside the point changes nothing": "irrelevant",
}


def _has_cases(test: Mapping[str, Any], task: str, texts: Iterable[str]) -> bool:
    given = parse_behaviour(json.dumps({"task": task, "tests": [test]}), where=BEHAVIOUR)
    try:
        plan_behaviour(given, rows=[Question(text=text) for text in texts if text])
    except SettingsError:
        return False
    return True


def _chat_cases(guess: Guess) -> list[dict[str, str]]:
    """Take short questions with short answers; a long answer is hardly ever met word for word."""
    found = []
    for row in guess.examples:
        before, answer = split_question(row["messages"])
        question = before[-1]["content"] if before else ""
        if len(before) == 1 and len(answer) <= 80 and len(question) <= _LONGEST_CASE:
            found.append({"text": redact(question), "answer": redact(answer.strip().rstrip("."))})
    return [case for case in found if all(case.values())][:_CASES]


def _label_cases(guess: Guess) -> list[dict[str, str]]:
    found = [
        {"text": redact(row["text"]), "label": str(row["label"])}
        for row in guess.examples
        if row["text"] and len(row["text"]) <= _LONGEST_CASE
    ]
    return found[:_CASES]


# ---- the notebook ----


def _notebook(guess: Guess) -> dict[str, Any]:
    recipe = guess.recipe
    task = recipe.data.task
    cells = [
        _markdown(
            f"# {visible(recipe.name)}: fine-tune, then test\n\nEvery setting stands in "
            f"`{RECIPE}`; this notebook runs it step by step. Start JupyterLab in this folder."
        ),
        _code(
            f'recipe_file = "{RECIPE}"  # all settings\n'
            "max_steps = None  # optimizer steps; None does what the recipe says\n"
            'out = "runs/first"  # folder for adapter, record and report',
            tags=["parameters"],
        ),
        _markdown(
            "## What is in the data\n\nRead every finding; each names its rows and a remedy."
        ),
        _code(
            "from sftkit import audit_file, load_recipe\n\n"
            'changes = [] if max_steps is None else [f"train.max_steps={max_steps}"]\n'
            "recipe = load_recipe(recipe_file, overrides=changes)\n"
            "data = recipe.data\n"
            "audit_file(\n"
            "    data.source,\n"
            "    task=data.task,\n"
            "    format=data.format,\n"
            "    columns=data.columns,\n"
            "    encoding=data.encoding,\n"
            ")"
        ),
        _markdown(
            "## Train and test\n\nThe base model is measured first, then trained, then measured "
            "again on the same items."
        ),
        _code("from sftkit.run import run\n\nrecord = run(recipe, out)"),
        _markdown("## What came of it\n\nEach verdict has an interval: how sure it is."),
        _code(
            "for verdict in record.verdicts:\n"
            '    print(f"{verdict.name}: {verdict.sentence}\\n")\n'
            'print(f"The whole report: {out}/report.html")'
        ),
    ]
    if task == "chat":
        cells += [
            _markdown("## Read answers\n\nUnseen questions, before and after."),
            _code("from sftkit import answers_table\n\nanswers_table(record.answers)"),
            _markdown("## Ask yourself"),
            _code(
                "from sftkit.talk import TalkWidget, open_talk\n\n"
                "talk = open_talk(out)\n"
                "try:\n"
                "    box = TalkWidget(talk)\n"
                "except ImportError:  # no ipywidgets here\n"
                '    box = talk.answer("Who are you?")\n'
                "box"
            ),
        ]
    cells.append(
        _markdown(
            "## What next\n\n"
            f"- Change one thing in `{RECIPE}`, run again into another folder, and compare: "
            "`sftkit report runs/first runs/second`.\n"
            f"- Write tests of your own into `{BEHAVIOUR}`.\n"
            "- Let a script decide: `sftkit gate runs/first` ends with 1 if it should not be used."
        )
    )
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02}"
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str, tags: list[str] | None = None) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": tags} if tags else {},
        "outputs": [],
        "source": text,
    }


# ---- the README ----


def _readme(guess: Guess, folder: Path) -> str:
    recipe, name = guess.recipe, shlex.quote(folder.name)
    guessed = "\n".join(f"- {what}: {_as_text(why)}" for what, why in guess.reasons)
    notes = "\n".join(f"- {_as_text(note)}" for note in guess.notes) or "- Nothing."
    talk = f"\nsftkit chat runs/{recipe.name}        # ask base and tuned the same"
    talk = talk if recipe.data.task == "chat" else ""
    return f"""# {recipe.name}

Run it from the folder above this one:

```bash
sftkit run {name}/{RECIPE} --dry-run   # what it would do, and the memory it takes
sftkit run {name}/{RECIPE} --out runs/{recipe.name}
sftkit gate runs/{recipe.name}        # exit code 1 if it should not be used{talk}
```

`{NOTEBOOK}` does the same step by step.

## What was guessed

{guessed}

Something wrong? Change `{RECIPE}`, or make the folder anew with `--task` and `--column ROLE=NAME`.

## What to know before the first run

{notes}
"""


def _as_text(text: str) -> str:
    """Write text into Markdown so that nothing of it is markup."""
    shown = visible(redact(text))
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!&" else char for char in shown)
