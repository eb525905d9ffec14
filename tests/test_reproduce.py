"""Doing a run again from its own folder: the same bytes, or what differs in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftkit.adapter_files import hash_weights
from sftkit.cli import start
from sftkit.compare import find_differences, reproduction
from sftkit.records import load_run
from tests.sample_record import sample_record
from tests.test_run import recipe, tiny_folder  # noqa: F401  (fixtures)


def carry_out(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["sftkit", "run", *map(str, arguments)])
    try:
        return start()
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def first(recipe: dict[str, Any], tmp_path: Path, monkeypatch) -> Path:  # noqa: F811
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert carry_out(monkeypatch, path, "--out", tmp_path / "first") == 0
    return tmp_path / "first"


def test_a_runs_own_recipe_gives_the_same_adapter_bytes(first, tmp_path, monkeypatch, capsys):
    again = tmp_path / "again"
    assert carry_out(monkeypatch, first / "recipe.yaml", "--out", again) == 0
    assert "Reproduced: the adapter is the same as before, bit for bit." in capsys.readouterr().out
    files = [run / "adapter" / "adapter_model.safetensors" for run in (first, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    prints = [load_run(run).training.fingerprints for run in (first, again)]
    assert prints[0] == prints[1]
    assert set(prints[0]) == {
        "the rows", "the base model", "the tokenizer", "the chat template", "the adapter",
    }  # fmt: skip
    assert prints[0]["the adapter"] == hash_weights(first / "adapter")
    assert prints[0]["the adapter"] in (first / "report.html").read_text(encoding="utf-8")


def test_another_seed_gives_other_bytes_and_is_named(first, tmp_path, monkeypatch, capsys):
    asked = ("--out", tmp_path / "again", "--set", "train.seed=1")
    assert carry_out(monkeypatch, first / "recipe.yaml", *asked) == 0
    said = capsys.readouterr().out
    assert "Not the same bits as before. These differ:" in said
    assert "train.seed (1, before 0)" in said


def test_what_differs_elsewhere_is_named():
    before = sample_record()
    prints = {"the adapter": "sha256:1", "the chat template": "a" * 64}
    before = dataclasses.replace(
        before, training=dataclasses.replace(before.training, fingerprints=prints)
    )
    versions = {**before.environment.versions, "torch": "2.13.0"}
    now = dataclasses.replace(
        before,
        training=dataclasses.replace(
            before.training, fingerprints={"the adapter": "sha256:2", "the chat template": "b" * 64}
        ),
        environment=dataclasses.replace(before.environment, versions=versions),
    )
    said = reproduction(now, before)
    assert "versions.torch (2.13.0, before 2.9.1)" in said
    assert f"the chat template ({'b' * 40}…, before {'a' * 40}…)" in said
    assert {one.place for one in find_differences([before, now])} == {
        "versions.torch", "the chat template",
    }  # fmt: skip
    other = dataclasses.replace(
        before, training=dataclasses.replace(before.training, fingerprints={"the adapter": "x"})
    )
    assert "Another processor or number of threads" in reproduction(
        other, dataclasses.replace(
            before,
            training=dataclasses.replace(before.training, fingerprints={"the adapter": "y"}),
        )
    )  # fmt: skip
    assert "cannot be said" in reproduction(sample_record(), before)
