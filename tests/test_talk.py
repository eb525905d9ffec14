"""Base and tuned answer side by side, as each would alone; what they write is never code."""

from __future__ import annotations

import dataclasses
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sftkit import model
from sftkit.adapter import attach_adapter
from sftkit.adapter_files import load_adapter
from sftkit.chat import encode_prompt
from sftkit.cli import start
from sftkit.errors import ModelError
from sftkit.evidence.generation import generate_answers
from sftkit.records import to_json
from sftkit.settings import AdapterSettings, ModelSettings
from sftkit.talk import Talk, TalkWidget, open_talk
from tests.sample_record import label_record
from tests.test_export import base, cache, trained  # noqa: F401  (fixtures)

ASKED = "What does lamp number 2 cost?"


def alone(run: Path | None, settings: ModelSettings, messages: list[dict[str, str]]) -> str:
    """Answer with one model, by the scorers' own generation."""
    speaker: Any = model.load_model(settings)
    if run is not None:
        speaker = load_adapter(speaker, run / "adapter")
    tokenizer = model.load_tokenizer(settings)
    prompt = encode_prompt(messages, tokenizer)
    (answer,) = generate_answers(speaker, tokenizer, [prompt], max_new_tokens=12, rows_per_batch=1)
    return answer


@pytest.fixture
def run(base, tmp_path):  # noqa: F811
    return trained(base, tmp_path / "run")


def test_each_says_what_it_says_alone_and_remembers_its_own_words(run, base):  # noqa: F811
    talk = open_talk(run, max_new_tokens=12)
    for question in (ASKED, "And number 3?"):
        earlier: dict[Any, Any] = {name: list(said) for name, said in talk._said.items()}
        answers: dict[Any, str] = dict(talk.answer(question))
        for name, folder in (("base", None), ("tuned", run)):
            asked = [*earlier[name], {"role": "user", "content": question}]
            assert answers[name] == alone(folder, base, asked)
        assert answers["base"] != answers["tuned"]
    assert talk.turns == 2
    talk.begin_anew()
    assert talk.turns == 0


def test_pieces_of_both_come_in_turn_and_grow(run):
    pieces = list(open_talk(run, max_new_tokens=6).ask(ASKED))
    assert [piece.speaker for piece in pieces[:4]] == ["base", "tuned", "base", "tuned"]
    for name in ("base", "tuned"):
        texts = [piece.text for piece in pieces if piece.speaker == name]
        assert all(late.startswith(early.rstrip()) for early, late in pairwise(texts))
        assert [piece.is_done for piece in pieces if piece.speaker == name].count(True) == 1


def test_a_question_not_answered_to_the_end_is_forgotten(run):
    talk = open_talk(run, max_new_tokens=6)
    next(talk.ask(ASKED))
    assert talk.turns == 0


def test_at_strength_nought_both_say_the_same(run):
    talk = open_talk(run, strength=0.0, max_new_tokens=12)
    answers = talk.answer(ASKED)
    assert answers["base"] == answers["tuned"]
    assert talk.notes == ["The adapter runs at 0 of its strength."]


@pytest.mark.parametrize("kind", ["pissa", "prompt"])
def test_methods_that_need_another_way_answer_as_they_do_alone(kind, base):  # noqa: F811
    tokenizer = model.load_tokenizer(base)
    plain = model.load_model(base)
    settings = AdapterSettings(kind=kind, r=4) if kind == "pissa" else AdapterSettings(kind=kind)
    tuned = attach_adapter(model.load_model(base), settings)
    talk = Talk(tuned, tokenizer, base=plain if kind == "pissa" else None, max_new_tokens=8)
    answers: dict[Any, str] = dict(talk.answer(ASKED))
    prompt = encode_prompt([{"role": "user", "content": ASKED}], tokenizer)
    for name, speaker in (("base", plain), ("tuned", tuned)):
        (expected,) = generate_answers(
            speaker, tokenizer, [prompt], max_new_tokens=8, rows_per_batch=1
        )
        assert answers[name] == expected


def test_what_cannot_be_asked_is_told(run):
    talk = open_talk(run, max_new_tokens=12)
    with pytest.raises(ModelError, match="The question is empty"):
        talk.answer("  ")
    with pytest.raises(ModelError, match="does not fit the model's 512"):
        talk.answer("lamp " * 600)
    with pytest.raises(ModelError, match="an answer takes 1 or more"):
        open_talk(run, max_new_tokens=0)


def test_runs_without_a_conversation_are_refused(run):
    (run / "run.json").write_text(to_json(label_record()), encoding="utf-8")
    with pytest.raises(ModelError, match="sorts texts and does not talk"):
        open_talk(run)


def test_the_terminal_answers_each_line_of_a_pipe(run, monkeypatch, capsys):
    lines = f"{ASKED}\n/new\n/what\n{ASKED}\n/quit\nnever asked\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    monkeypatch.setattr("sys.argv", ["sftkit", "chat", str(run), "--max-new-tokens", "6"])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("\nBase: ") == shown.count("\nTuned: ") == 2
    assert "A new conversation." in shown
    assert "never asked" not in shown


def speaking(text: str, talk: Talk) -> Talk:
    """Make both say a text."""
    from sftkit.talk import Piece

    def ask(question: str) -> Any:
        yield from (Piece(speaker=name, text=text, is_done=True) for name in ("base", "tuned"))

    talk.ask = ask  # type: ignore[method-assign]
    return talk


HOSTILE = "<script>alert(1)</script>\x1b[31m\x07\u202e<img src=x onerror=alert(2)>"


def test_control_codes_a_model_writes_do_not_reach_the_terminal(run, monkeypatch, capsys):
    from sftkit.talk_terminal import converse

    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    converse(speaking(HOSTILE, open_talk(run)))
    shown = capsys.readouterr().out
    assert "␛[31m␇⟨U+202E⟩" in shown
    assert not set("\x1b\x07\u202e") & set(shown)


def test_in_the_widget_markup_is_text_and_both_columns_fill(run):
    talk = open_talk(run, max_new_tokens=6)
    widget = TalkWidget(talk)
    widget.question.value = ASKED
    widget.ask.click()
    assert talk.turns == 1
    assert widget.question.value == ""
    assert all(ASKED in column.value for column in widget.columns.values())
    speaking(HOSTILE, talk)
    widget.question.value = "<b>bold</b>"
    widget.ask.click()
    for column in widget.columns.values():
        assert "<script" not in column.value
        assert "<img" not in column.value
        assert "&lt;b&gt;bold" in column.value
        assert ASKED in column.value
    widget.anew.click()
    assert not any(ASKED in column.value for column in widget.columns.values())


def test_the_widget_says_what_cannot_be_asked(run):
    widget = TalkWidget(open_talk(run, max_new_tokens=6))
    widget.ask.click()
    assert "The question is empty" in widget.columns["base"].value
    assert not widget.ask.disabled


def test_an_adapter_of_another_base_is_refused(run):
    from sftkit.errors import AdapterError
    from sftkit.records import load_run

    record = load_run(run)
    environment = dataclasses.replace(record.environment, base_fingerprint="sha256:" + "0" * 64)
    changed = dataclasses.replace(record, environment=environment)
    (run / "run.json").write_text(to_json(changed), encoding="utf-8")
    with pytest.raises(AdapterError, match="base"):
        open_talk(run)
