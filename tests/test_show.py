"""The coloured mask and the answers side by side."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_record import ANSWERS, HOSTILE, sample_record  # type: ignore[import-not-found]

from sftkit.chat import encode_chat
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
from tests.conftest import make_tokenizer
from tests.templates import TEMPLATES


class ByteTokenizer:
    """A tokenizer with one token per byte and one control token, id 256."""

    all_special_ids = (256,)
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

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


def test_texts_of_tokens_joined_are_the_whole_whatever_the_bytes():
    @given(st.lists(st.integers(0, 256)))
    def check(ids: list[int]) -> None:
        assert "".join(token_texts(ids, BYTES)) == BYTES.decode(ids)

    check()


def test_a_long_example_is_cut_into_tokens_in_time_proportional_to_its_length():
    decoded = []

    class Counting(ByteTokenizer):
        def decode(self, ids, **_):
            decoded.append(len(ids))
            return super().decode(ids)

    text = "word " * 1000
    counting: Any = Counting()
    assert "".join(token_texts(text.encode(), counting)) == text
    assert max(decoded) <= 3


def test_every_control_token_of_the_template_is_boxed_not_only_the_named_ones():
    source = TEMPLATES["llama-3"]
    tokenizer = make_tokenizer(source.source, source.specials)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ok"}]
    view = show_mask(encode_chat(messages, tokenizer, max_tokens=99), tokenizer)
    boxed = [token for token, control in zip(view.tokens, view.control, strict=True) if control]
    header = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert boxed == ["<|begin_of_text|>", *header, *header]
    assert view.marked.endswith("⟦ok<|eot_id|>⟧")


def test_no_token_is_invisible_in_a_notebook():
    html = MaskView((" ", "", "é", "\t", "\n"), (True,) * 5, (False,) * 5)._repr_html_()
    body = html.partition('role="region"')[2]
    for sign in (">␣<", ">⋯<", ">é<", ">⇥<", ">↵<br><"):
        assert sign in body


def test_the_mask_has_a_legend_and_scrolls_when_long():
    html = show_mask(encoded("Hi", "ok"), BYTES)._repr_html_()
    for words in ("learned from</span>", "read only</span>", "control token</span>"):
        assert words in html
    assert "overflow:auto" in html
    assert 'tabindex="0" role="region"' in html
    # Without colour the underline still tells what is learned from.
    assert html.count("border-bottom:2px solid") == 1 + 3


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
    assert visible("a\n\x1b[0m\t\x7f\u202e") == "a↵␛[0m⇥␡⟨U+202E⟩"
