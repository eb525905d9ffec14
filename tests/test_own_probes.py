"""Probes and passages of one's own: read as they are meant, refused in words with line numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftkit import catalog
from sftkit.errors import FetchError
from sftkit.progress import make_watcher
from sftkit.recipe import recipe_from_dict
from sftkit.records import ChoiceItem
from sftkit.run import run

GOOD = {"question": " Why? ", "options": ["Because. ", "No"], "answer": 0}


def written(folder: Path, *rows: Any, name: str = "own.jsonl") -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def test_questions_are_read_with_an_answer_by_place_or_by_words(tmp_path):
    path = written(tmp_path, GOOD, "", {**GOOD, "question": "And?", "answer": "No"}, GOOD)
    assert catalog.probe_items(path) == [
        ChoiceItem(question="Why?", options=("Because.", "No"), answer=0),
        ChoiceItem(question="And?", options=("Because.", "No"), answer=1),
    ]
    assert len(catalog.probe_items(path, 1)) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: not JSON: "),
        ("[" * 100_000, "line 2: not JSON: "),
        ("7", "line 2: expected an object, got 7"),
        ('"text"', "line 2: expected an object, got ['text']"),
        ({**GOOD, "question": " "}, "line 2: question must be text, got ' '"),
        ({**GOOD, "options": "ab"}, "line 2: options must be a list of texts, got 'ab'"),
        ({**GOOD, "options": ["a", 1]}, "line 2: options must be a list of texts, got ['a', 1]"),
        ({**GOOD, "options": ["a"]}, "line 2: options must be two or more, all different"),
        ({**GOOD, "options": ["a", "a "]}, "line 2: options must be two or more, all different"),
        ({**GOOD, "answer": 2}, "line 2: answer must be one of the options or a position from 0 "),
        ({**GOOD, "answer": True}, "position from 0 to 1, got True"),
        ({**GOOD, "answer": "Perhaps"}, "position from 0 to 1, got 'Perhaps'"),
        ({"question": "Why?"}, "line 2: options must be a list of texts, got None"),
    ],
)
def test_a_line_that_is_no_question_is_named_with_its_fault(tmp_path, row, words):
    with pytest.raises(FetchError) as caught:
        catalog.probe_items(written(tmp_path, GOOD, row))
    assert words in str(caught.value)
    assert str(caught.value).endswith(
        'Expected one object a line, as {"question": "…", "options": ["…", "…"], "answer": 0}.'
    )


def test_all_faulty_lines_are_counted_and_the_first_five_shown(tmp_path):
    with pytest.raises(FetchError, match=r"has 9 faulty lines: line 1: .*line 5: .*; and 4 more\."):
        catalog.probe_items(written(tmp_path, *[{}] * 9))


def test_passages_come_from_lines_or_paragraphs_each_once(tmp_path):
    lines = written(tmp_path, {"text": " One. "}, {"text": "Two.\nAnd more."}, {"text": "One."})
    assert catalog.passages(lines) == ["One.", "Two.\nAnd more."]
    text = written(tmp_path, "One.\n\n\nTwo.\nAnd more.\n \nOne.", name="own.txt")
    assert catalog.passages(text) == ["One.", "Two.\nAnd more."]
    assert catalog.passages(text, 1) == ["One."]


def test_a_line_without_text_is_named(tmp_path):
    path = written(tmp_path, {"text": "One."}, {"words": "Two."}, "{", {"text": ""})
    with pytest.raises(FetchError) as caught:
        catalog.passages(path)
    said = str(caught.value)
    assert "has 3 faulty lines: line 2: expected text under `text`, got {'words': 'Two.'}; " in said
    assert "; line 3: not JSON: " in said
    assert "; line 4: expected text under `text`, got {'text': ''}. Expected one " in said


@pytest.mark.parametrize("read", [catalog.probe_items, catalog.passages])
def test_a_file_that_cannot_be_read_is_named(tmp_path, read):
    with pytest.raises(FetchError, match=r"gone\.jsonl cannot be read: No such file or directory"):
        read(str(tmp_path / "gone.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xe9"}')
    with pytest.raises(FetchError, match=r"latin\.jsonl line 2: not UTF-8"):
        read(str(tmp_path / "latin.jsonl"))
    with pytest.raises(FetchError, match=r"empty\.jsonl holds no "):
        read(written(tmp_path, "", name="empty.jsonl"))


def test_a_name_without_a_path_is_still_looked_up_in_the_catalog():
    with pytest.raises(FetchError, match=r"The catalog has no 'pika'.* Did you mean 'piqa'"):
        catalog.probe_items("pika")


def test_a_run_measures_with_ones_own_probe_and_passages(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Box {n}?", "answer": f"Colour {n % 7}."} for n in range(30)]
    probe = written(
        tmp_path, *[{"question": f"{n}?", "options": ["yes", "no"], "answer": 0} for n in range(12)]
    )
    texts = written(tmp_path, "\n\n".join(f"Passage {n}." for n in range(11)), name="own.txt")
    recipe = recipe_from_dict(
        {
            "name": "own",
            "model": {"name": str(folder), "dtype": "float32"},
            "data": {"source": written(tmp_path, *rows, name="rows.jsonl")},
            "train": {"max_steps": 1},
            "evaluate": {
                "knowledge": "none",
                "style_items": 1,
                "side_by_side": 0,
                "resamples": 200,
                "probes": [probe],
                "drift_source": texts,
            },
        }
    )
    forgot = run(recipe, tmp_path / "out", watcher=make_watcher("silent")).forgot
    assert [(found.name, found.items) for found in forgot.probes] == [(probe, 12)]
    assert forgot.drift is not None
    assert (forgot.drift.passages, forgot.half) == (11, "all")
