"""Tasks of lm-evaluation-harness as probes."""

from __future__ import annotations

import json
import sys

import pytest

from sftkit import catalog
from sftkit.catalog_harness import harness_items
from sftkit.errors import FetchError
from sftkit.evidence.choice import encode_choices
from sftkit.records import ChoiceItem
from tests.conftest import make_tokenizer

ROWS = [
    {"ask": "Is snow warm?", "choices": ["yes", "no"], "right": 1},
    {"ask": "Is fire warm?", "choices": ["yes", "no"], "right": 0},
]
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{ask}}\nSay: ",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "right",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tasks in files: one of multiple choice, one of free text."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra `harness`) is not here")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    data = {"dataset_kwargs": {"data_files": {"test": str(rows)}}}
    for name, kind in (("warmth", "multiple_choice"), ("talk", "generate_until")):
        task = {**TASK, **data, "task": name, "output_type": kind}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return tmp_path


def test_a_task_s_questions_are_asked_in_its_own_words(folder):
    assert harness_items("harness:warmth", folder=folder) == [
        ChoiceItem(
            question="Is snow warm?\nSay:",
            options=("yes", "no"),
            answer=1,
            prompt="Is snow warm?\nSay:",
            joint="  ",
        ),
        ChoiceItem(
            question="Is fire warm?\nSay:",
            options=("yes", "no"),
            answer=0,
            prompt="Is fire warm?\nSay:",
            joint="  ",
        ),
    ]
    assert len(harness_items("harness:warmth", 1, folder=folder)) == 1


def test_a_task_without_options_and_an_unknown_one_are_refused(folder):
    with pytest.raises(FetchError, match="answered by generate until"):
        harness_items("harness:talk", folder=folder)
    with pytest.raises(FetchError, match=r"has no task 'warmt'\. Near it: warmth\."):
        harness_items("harness:warmt", folder=folder)


def test_without_the_harness_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(FetchError, match=r"harness:arc_easy: .* is not installed. Run: .*harness"):
        catalog.probe_items("harness:arc_easy")


def test_a_prompt_of_its_own_is_written_as_it_stands():
    tokenizer = make_tokenizer()
    item = ChoiceItem(question="q", options=("a", "b c"), answer=0, prompt="Up:", joint="\n")
    (prompt,) = encode_choices([item], tokenizer)
    written = [tokenizer.decode(prompt.prefix + option) for option in prompt.options]
    assert written == ["Up:\na", "Up:\nb c"]
