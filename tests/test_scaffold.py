"""A folder for a stranger's file: guessed rightly and run without an edit, or refused in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sftkit import catalog
from sftkit.cli import start
from sftkit.errors import DataError, ModelError, SettingsError
from sftkit.evidence.behaviour_file import read_behaviour
from sftkit.memory_ladder import Plan
from sftkit.recipe import load_recipe
from sftkit.records import load_run
from sftkit.scaffold import recipe_text, write_project
from sftkit.scaffold_guess import guess_recipe
from sftkit.scaffold_settings import Machine, pick_model
from sftkit.settings import AdapterSettings, ModelSettings
from tests.conftest import make_tokenizer
from tests.strangers_files import STRANGERS
from tests.test_heads import make_base

ROOM = Machine(device="cpu", free=16 * 10**9)
GOOD = [name for name, one in STRANGERS.items() if one.task is not None]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["sftkit", *map(str, arguments)])
    try:
        return start()
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("name", GOOD)
def test_task_and_columns_are_guessed(name, tmp_path):
    stranger = STRANGERS[name]
    guess = guess_recipe("mine", stranger.write(tmp_path), machine=ROOM)
    data = guess.recipe.data
    assert (data.task, dict(data.columns or {})) == (stranger.task, dict(stranger.columns))
    assert stranger.told in f"{guess.reasons} {guess.notes}"
    assert min(guess.splits.values()) >= 1


def test_what_cannot_teach_is_refused_with_what_to_do(tmp_path):
    stranger = STRANGERS["a table of numbers"]
    with pytest.raises(DataError, match=stranger.told):
        guess_recipe("mine", stranger.write(tmp_path), machine=ROOM)


@pytest.fixture
def models(tmp_path: Path, folder: Path) -> dict[str, Path]:
    """A tiny chat model, and a tiny encoder."""
    encoder = tmp_path / "encoder"
    make_base("bert").save_pretrained(encoder)
    make_tokenizer().save_pretrained(encoder)
    return {"chat": folder, "classify": encoder, "regress": encoder}


# Probes and general text would be fetched.
OFFLINE = (
    "evaluate.probes=[]", "evaluate.drift_passages=0", "data.replay=null", "train.max_steps=3",
)  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_the_folder_runs_without_an_edit(name, models, tmp_path, monkeypatch, capsys):
    stranger = STRANGERS[name]
    monkeypatch.chdir(tmp_path)
    data = stranger.write(tmp_path).relative_to(tmp_path)
    monkeypatch.setattr("sftkit.scaffold_guess.this_machine", lambda: ROOM)
    model = models[str(stranger.task)]
    assert call(monkeypatch, "new", "mine", "--data", data, "--yes", "--model", model) == 0
    said = capsys.readouterr().out
    assert "Guessed:" in said
    assert "Go on with: sftkit run mine/recipe.yaml" in said
    names = {"recipe.yaml", "notebook.ipynb", "README.md", "behaviour.yaml"}
    assert {path.name for path in (tmp_path / "mine").iterdir()} == names

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # a recipe finds its data from anywhere
    # A byte is a token of the tiny tokenizer; the real ones hold three or four.
    window = 400 if stranger.task == "chat" else 64  # places of the tiny encoder
    changes = (*OFFLINE, f"data.max_tokens={window}", "train.max_tokens_per_batch=2000")
    asked = [part for change in changes for part in ("--set", change)]
    assert call(monkeypatch, "run", "../mine/recipe.yaml", "--out", "run", *asked) == 0
    record = load_run(elsewhere / "run")
    assert len(record.training.steps) == 3
    assert (tmp_path / "elsewhere" / "run" / "report.html").is_file()


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    return STRANGERS["messages in JSON Lines"].write(tmp_path)


def test_the_recipe_says_what_was_guessed_and_nothing_else(chat_file, tmp_path):
    guess = guess_recipe("mine", chat_file, machine=ROOM)
    write_project(guess, tmp_path / "mine")
    read = load_recipe(tmp_path / "mine" / "recipe.yaml")
    data = dataclasses.replace(read.data, source=guess.recipe.data.source)
    evaluate = dataclasses.replace(read.evaluate, behaviour=guess.recipe.evaluate.behaviour)
    assert dataclasses.replace(read, data=data, evaluate=evaluate) == guess.recipe
    assert Path(read.data.source).resolve() == chat_file.resolve()


def test_a_column_name_cannot_write_settings(tmp_path):
    evil = "Frage\nmodel: {name: evil}\n# "
    rows = [{evil: f"Was kostet {n}?", "Antwort": f"{n} Kronen"} for n in range(60)]
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    guess = guess_recipe(
        "mine", path, columns={"question": evil, "answer": "Antwort"}, machine=ROOM
    )
    write_project(guess, tmp_path / "mine")
    read = load_recipe(tmp_path / "mine" / "recipe.yaml")
    assert read.model.name == "smollm2-135m"
    assert dict(read.data.columns or {})["question"] == evil


def test_rows_become_behaviour_tests_without_secrets_and_braces_stay_text(tmp_path):
    rows = [{"question": f"Key {{n}} of {n}?", "answer": f"hf_{'aB3' * 12}{n}"} for n in range(60)]
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    write_project(guess_recipe("mine", path, machine=ROOM), tmp_path / "mine")
    read_behaviour(str(tmp_path / "mine" / "behaviour.yaml"))
    for file in (tmp_path / "mine").iterdir():
        assert "aB3aB3" not in file.read_text(encoding="utf-8")


def test_faulty_rows_are_left_out_and_told(tmp_path):
    rows = [{"question": f"What is {n}?", "answer": "" if n < 6 else str(n)} for n in range(60)]
    path = tmp_path / "holes.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    guess = guess_recipe("mine", path, machine=ROOM)
    assert guess.recipe.data.faulty_rows == "drop"
    assert guess.notes[0].startswith("6 of 60 rows have errors")
    assert sum(guess.splits.values()) == 54


def test_rows_of_one_group_are_not_on_both_sides(tmp_path):
    rows = [
        {"text": f"passage {n} of {n % 30}", "label": "ab"[n % 2], "group": f"question {n % 30}"}
        for n in range(240)
    ]
    path = tmp_path / "passages.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    guess = guess_recipe("mine", path, machine=ROOM)
    assert guess.recipe.data.stratify_by is None
    assert dict(guess.reasons)["division"].startswith("by chance, rows of one group together")


def test_mostly_faulty_and_too_few_rows_are_refused(tmp_path):
    path = tmp_path / "holes.json"
    rows = [{"question": f"What is {n}?", "answer": "" if n < 40 else str(n)} for n in range(60)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError, match="D23"):
        guess_recipe("mine", path, machine=ROOM)
    path.write_text(json.dumps(rows[45:52]), encoding="utf-8")
    with pytest.raises(DataError, match="7 good rows are too few"):
        guess_recipe("mine", path, machine=ROOM)


def test_long_answers_are_recognised_and_long_files_end_early(tmp_path):
    rows = [
        {"question": f"Describe part {n}.", "answer": " ".join(f"word{n}-{k}" for k in range(40))}
        for n in range(3000)
    ]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    recipe = guess_recipe("mine", path, machine=ROOM).recipe
    assert recipe.evaluate.knowledge == "recognition"
    assert (recipe.train.epochs, recipe.train.max_steps) == (1, 150)
    assert recipe.data.test_fraction == 0.15


# ---- the model ----


def test_on_a_cpu_small_models_are_taken_that_need_no_hub():
    assert pick_model("chat", ROOM)[0].name == "smollm2-135m"
    assert pick_model("classify", ROOM)[0].name == "minilm-l6"
    with pytest.raises(ModelError, match="Close other programs"):
        pick_model("chat", Machine(device="cpu", free=10**9))
    with pytest.raises(ModelError, match="--model microsoft/resnet-18"):
        pick_model("image", ROOM)
    assert pick_model("image", ROOM, "microsoft/resnet-18")[0].name == "microsoft/resnet-18"


@pytest.mark.parametrize("gigabytes", [4, 8, 16, 24, 40, 80])
def test_on_a_gpu_the_largest_is_taken_that_leaves_a_tenth(gigabytes):
    machine = Machine(device="cuda", free=gigabytes * 10**9)
    settings, why = pick_model("chat", machine)
    assert "predicted to take" in why
    sizes = {one.name: one.bytes for one in catalog.entries() if one.kind == "model"}
    larger = [name for name in sizes if sizes[name] > sizes[settings.name] and "minilm" not in name]
    for name in larger:
        config = catalog.model_config(ModelSettings(name=name))
        plan = Plan(
            config=config,
            model=ModelSettings(name=name, quantization="nf4"),
            adapter=AdapterSettings(kind="lora", r=16, lora_alpha=32, target_modules="all-linear"),
            train=dataclasses.replace(load_train(), max_tokens_per_batch=4096, micro_batches=2),
            device="cuda",
        )
        assert plan.estimate().high > machine.free * 0.9


def load_train() -> Any:
    from sftkit.settings import TrainSettings

    return TrainSettings()


def test_more_memory_never_takes_a_smaller_model():
    sizes = {one.name: one.bytes for one in catalog.entries() if one.kind == "model"}
    taken = [
        sizes[pick_model("chat", Machine(device="cuda", free=n * 10**9))[0].name]
        for n in (4, 8, 16, 24, 40, 80)
    ]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]


# ---- the command ----


def test_nobody_to_ask_needs_yes_and_a_folder_in_use_is_refused(
    chat_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", "mine", "--data", chat_file) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert call(monkeypatch, "new", "mine", "--data", chat_file, "--yes") == 0
    assert call(monkeypatch, "new", "mine", "--data", chat_file, "--yes") == 2
    assert "is there already" in capsys.readouterr().err


def test_it_asks_in_plain_words_and_guesses_again(tmp_path, monkeypatch, capsys):
    rows = [
        {"question": f"What is {n}?", "answer": f"It is {n}.", "tag": "xy"[n % 2]}
        for n in range(60)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    said = iter([False, True])
    asked = iter(["classify", "text=question label=tag", "minilm-l6"])
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(said))
    monkeypatch.setattr("typer.prompt", lambda *_, **__: next(asked))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert call(monkeypatch, "new", "mine", "--data", path) == 0
    shown = capsys.readouterr().out
    assert shown.count("Guessed:") == 2
    read = load_recipe(tmp_path / "mine" / "recipe.yaml")
    assert (read.data.task, dict(read.data.columns or {})) == (
        "classify", {"text": "question", "label": "tag"},
    )  # fmt: skip


def test_json_names_folder_files_and_guesses(chat_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made"
    assert call(
        monkeypatch, "new", "mine", "--data", chat_file, "--out", out, "--format", "json"
    ) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["files"][0] == "recipe.yaml"
    assert told["guesses"]["task"].startswith("chat")


# ---- paths in recipes ----


def test_paths_with_a_dot_are_taken_from_the_recipes_folder(chat_file, tmp_path, monkeypatch):
    text = recipe_text(guess_recipe("mine", chat_file, machine=ROOM), tmp_path / "a")
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("a/recipe.yaml").data.source == "chat.jsonl"  # short, without a home folder
    monkeypatch.chdir(tmp_path / "a")
    assert load_recipe("recipe.yaml").data.source == str(chat_file)


def test_a_faulty_name_writes_nothing(chat_file, tmp_path):
    with pytest.raises(SettingsError, match="name must be"):
        guess_recipe("my task", chat_file, machine=ROOM)
