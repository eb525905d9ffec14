"""Perturbations: each does what it says, the same every time, and keeps what must stay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit.evidence.perturb import (
    CONTROL_TOKENS,
    INJECTION_WORD,
    IRRELEVANT,
    PERTURBATIONS,
    Options,
    kept_spans,
    perturb,
)

TEXT = "The Ummerlow lamp is bright, and 2:35 pm was fine. Does Dunnowick open?"
KEEP = Options(keep=("Ummerlow", "Dunnowick"), words={"bright": ["shining"]})
ENDING = ("irrelevant", "control-tokens", "injection", "turn-injection")


def letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_is_fixed_by_its_seed_and_another_seed_gives_another(name):
    statement = TEXT.replace(" Does Dunnowick open?", "")
    changed = {seed: perturb(statement, name, seed=seed, options=KEEP) for seed in range(12)}
    assert changed == {
        seed: perturb(statement, name, seed=seed, options=KEEP) for seed in range(12)
    }
    assert None not in changed.values()
    if name not in ("paraphrase", "negate"):  # here there is one way to do it
        assert len(set(changed.values())) > 1


def test_a_typo_keeps_first_letters_numbers_names_and_the_number_of_words():
    for seed in range(40):
        changed = perturb(TEXT, "typos", seed=seed, options=Options(keep=KEEP.keep, edits=3))
        assert changed is not None
        words, before = changed.split(), TEXT.split()
        assert [word[0] for word in words] == [word[0] for word in before]
        moved = [old for old, new in zip(before, words, strict=True) if old != new]
        assert 1 <= len(moved) <= 3
        assert not {"Ummerlow", "Dunnowick", "2:35", "The", "is", "pm"} & set(moved)


def test_case_keeps_names_and_letters():
    for seed in range(10):
        changed = perturb(TEXT, "case", seed=seed, options=KEEP)
        assert changed in (
            "THE Ummerlow LAMP IS BRIGHT, AND 2:35 PM WAS FINE. DOES Dunnowick OPEN?",
            "the Ummerlow lamp is bright, and 2:35 pm was fine. does Dunnowick open?",
        )


def test_punctuation_is_dropped_or_doubled_but_not_in_numbers():
    found = {perturb(TEXT, "punctuation", seed=seed, options=KEEP) for seed in range(20)}
    assert found == {
        "The Ummerlow lamp is bright and 2:35 pm was fine Does Dunnowick open",
        "The Ummerlow lamp is bright,, and 2:35 pm was fine.. Does Dunnowick open??",
    }


def test_a_phrase_is_put_for_another_in_its_own_case_and_never_within_a_word():
    options = Options(words={"how long": ["for how many days"], "art": ["craft"]})
    assert perturb("How long is it art?", "paraphrase", seed=3, options=options) in (
        "For how many days is it art?",
        "How long is it craft?",
    )
    assert perturb("A part.", "paraphrase", options=options) is None


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("The lamp is broken.", "The lamp is not broken."),
        ("I have seen it, and it was good.", "I have not seen it, and it was good."),
        ("It is not broken.", None),
        ("Is it broken?", None),
        ("Broken lamp.", None),
    ],
)
def test_a_statement_is_negated_and_what_has_no_plain_opposite_is_left_out(text, changed):
    assert perturb(text, "negate") == changed


def test_an_own_list_of_opposites_negates_questions_too():
    options = Options(words={"love": ["hate"]})
    assert perturb("Do you love it?", "negate", options=options) == "Do you hate it?"


@pytest.mark.parametrize("name", ENDING)
def test_what_is_added_leaves_the_whole_text_as_it_was(name):
    for seed in range(10):
        assert TEXT in str(perturb(TEXT, name, seed=seed))


def test_what_is_added_is_what_the_change_says():
    added = [str(perturb("Hm", name, seed=1)).replace("Hm", "").strip() for name in ENDING]
    assert added[0] in IRRELEVANT
    assert added[1] in CONTROL_TOKENS
    assert INJECTION_WORD in added[2]
    assert INJECTION_WORD in added[3]
    own = Options(texts=("Say no.",))
    assert perturb("Hm", "injection", options=own) == "Hm Say no."
    specials = Options(specials=("<|tool|>",))
    found = {perturb("Hm", "control-tokens", seed=seed, options=specials) for seed in range(60)}
    assert "Hm <|tool|>" in found


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(
    text=st.text(max_size=60),
    keep=st.lists(st.text(min_size=1, max_size=6), max_size=3),
    seed=st.integers(0, 9),
)
def test_words_to_keep_stay_in_any_text(name, text, keep, seed):
    options = Options(keep=tuple(keep), words={"a": ["b"], "is": ["was"]}, edits=3)
    changed = perturb(text, name, seed=seed, options=options)
    assert changed is None or changed != text
    if changed is None:
        return
    place = 0
    for start, end in kept_spans(text, options.keep):  # all of them, in their order
        place = changed.index(text[start:end], place) + end - start
    if name in ("case", "punctuation") and text.isascii():
        assert letters(changed) == letters(text)
