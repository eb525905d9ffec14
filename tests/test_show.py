"""The coloured mask and the answers side by side."""

from __future__ import annotations

from typing import Any

import pytest
from sample_record import ANSWERS, HOSTILE, sample_record  # type: ignore[import-not-found]

from sftkit.records import IGNORE, Answer, Encoded
from sftkit.show import (
    AnswersView,
    MaskView,
    answers_table,
    matches,
    show_example,
    show_mask,
    token_texts,
    visible,
)


class ByteTokenizer:
    """A tokenizer with one token per byte and one control token, id 256."""

    all_special_ids = (256,)

    def decode(self, ids, **_):
        chunks, raw = [], b""
        for token in ids:
            if token == 256:
                chunks.append(raw.decode("utf-8", errors="replace") + "<|end|>")
                raw = b""
            else:
                raw += bytes([token])
        return "".join(chunks) + raw.decode("utf-8", errors="replace")


BYTES: Any = ByteTokenizer()


def encoded(prompt: str, answer: str) -> Encoded:
    left, right = tuple(prompt.encode()), (*answer.encode(), 256)
    return Encoded(input_ids=left + right, labels=(IGNORE,) * len(left) + right)


def test_the_mask_marks_the_answer_and_its_end():
    view = show_mask(encoded("Hi\n", "ok"), BYTES)
    assert view == MaskView(
        tokens=("H", "i", "\n", "o", "k", "<|end|>"),
        supervised=(False, False, False, True, True, True),
        control=(False, False, False, False, False, True),
    )
    assert str(view) == (
        "Hi↵\n⟦ok<|end|>⟧\n3 of 6 tokens are learned from (50 %). Learned from: between ⟦ and ⟧."
    )


def test_a_character_of_several_tokens_belongs_to_the_last():
    assert token_texts(tuple("é!".encode()), BYTES) == ("", "é", "!")


def test_the_mask_in_a_notebook_is_escaped_and_coloured():
    html = show_mask(encoded("<b>", "<i>"), BYTES)._repr_html_()
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("<mark") == 4
    assert "&lt;|end|&gt;</mark>" in html
    assert "4 of 7 tokens are learned from (57 %)." in html


def test_the_example_of_a_record_is_shown_alike():
    view = show_example(sample_record().preflight)
    assert sum(view.control) == 6
    assert view.marked.endswith("⟦23 days<|im_end|>⟧")


def test_in_a_terminal_the_mask_is_coloured(monkeypatch):
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = str(show_mask(encoded("Hi", "ok"), BYTES))
    assert "\x1b[" in text
    assert "⟦" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in str(show_mask(encoded("Hi", "ok"), BYTES))


def test_answers_stand_side_by_side_and_matches_are_marked():
    lines = str(answers_table(ANSWERS[:1])).splitlines()
    assert [cell.strip() for cell in lines[1].strip("┃").split("┃")] == [
        "Question", "Expected", "Base model", "Tuned model",
    ]  # fmt: skip
    assert "23 days ✓" in lines[3]
    assert str(answers_table(ANSWERS)).count("✓") == 2


def test_answers_in_a_notebook_are_a_table_with_headings():
    html = answers_table(ANSWERS)._repr_html_()
    assert html.count('<th scope="col"') == 4
    assert html.count("<tr>") == 5
    assert html.count("✓") == 2


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_stays_text(payload):
    answer = Answer(question=payload, expected=payload, base=payload, tuned=payload)
    views: tuple[Any, ...] = (AnswersView((answer,)), MaskView((payload,), (True,), (False,)))
    benign: tuple[Any, ...] = (AnswersView((ANSWERS[0],)), MaskView(("x",), (True,), (False,)))
    for view, plain in zip(views, benign, strict=True):
        html = view._repr_html_()
        html = html.replace("<br>", "").replace('<span aria-label="as expected"> ✓</span>', "")
        other = plain._repr_html_()
        other = other.replace("<br>", "").replace('<span aria-label="as expected"> ✓</span>', "")
        assert html.count("<") == other.count("<")
        assert "\x1b" not in str(view)
        assert "\u202e" not in str(view)


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("23 days", "23 days", True),
        (" The 23  Days. ", "23 days", True),
        ("in 23 days", "23 days", False),
        ("", "", False),
        ("anything", "", False),
    ],
)
def test_an_answer_matches_but_for_case_spaces_articles_and_punctuation(given, expected, same):
    assert matches(given, expected) is same


def test_control_codes_and_direction_marks_become_visible():
    assert visible("a\n\x1b[0m\t\x7f\u202e") == "a↵␛[0m␉␡⟨U+202E⟩"
