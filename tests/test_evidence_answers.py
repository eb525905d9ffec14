"""Measures of written answers: hand-computed, and equal to the libraries they are named after."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from sftkit.evidence.answers import (
    LEAST_ANSWERS,
    MEASURES,
    compare_answers,
    measure_answer,
    repetition,
    rouge_l,
    token_f1,
)
from sftkit.evidence.generation import Written

WORDS = ("tea", "lamp", "is", "sold", "Here", "23", "days", "don't", "über", "well-lit", "_x_", "!")


def wrote(text: str, *, ended: bool = True) -> Written:
    return Written(text=text, tokens=len(text), ended=ended)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The 23 days.", "23 days", 1.0),
        ("within 23 days of it", "23 days", 2 * 2 / (5 + 2)),
        ("23 23", "23 days", 0.5),  # a word counts as often as it stands in both
        ("a month", "23 days", 0.0),
        ("", "23 days", 0.0),
        ("", "", 1.0),
    ],
)
def test_token_f1_compares_bags_of_normalised_words(answer, expected, value):
    assert token_f1(answer, expected) == value


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("one two three", "one two three", 1.0),
        ("three two one", "one two three", 2 * 1 / 6),  # order counts
        ("one x two y three", "one two three", 2 * 3 / 8),
        ("Über 23", "über 23", 1.0),  # letters of any script are words
        ("", "one", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(answer, expected, value):
    assert rouge_l(answer, expected) == pytest.approx(value, abs=1e-15)


def test_rouge_l_equals_the_library_on_any_text_it_can_read():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    chance = random.Random(0)
    plain = [word for word in WORDS if word.isascii()]
    for _ in range(300):
        one, other = (" ".join(chance.choices(plain, k=chance.randint(0, 90))) for _ in "ab")
        theirs = scorer.score(target=other, prediction=one)["rougeL"].fmeasure
        assert rouge_l(one, other) == pytest.approx(theirs, abs=1e-12)


def test_chrf_and_bleu_are_sacrebleus_in_zero_to_one():
    import sacrebleu

    answer, expected = "the lamp is sold here now", "this lamp is sold here"
    values = measure_answer(wrote(answer), expected)
    assert values["chrF"] == sacrebleu.sentence_chrf(answer, [expected]).score / 100
    bleu = sacrebleu.sentence_bleu(answer, [expected], use_effective_order=True).score
    assert values["BLEU"] == bleu / 100
    assert 0.5 < values["BLEU"] < values["chrF"] < 1.0


def test_an_answer_of_two_words_can_be_perfect():
    values = measure_answer(wrote("23 days"), "23 days")
    overlap = [values[name] for name in ("exact", "token F1", "ROUGE-L", "chrF", "BLEU")]
    assert overlap == pytest.approx([1.0] * 5)


def test_repetition_is_the_share_of_three_words_that_stood_before():
    assert repetition("so so so so so so") == 3 / 4  # four runs, one of them new
    assert repetition("a b c d a B c d") == pytest.approx(2 / 6)
    assert repetition("a b c") == repetition("a b") == repetition("") == 0.0
    assert repetition("a a b a a", size=2) == 1 / 4


def test_without_a_reference_only_what_needs_none_is_measured():
    said = wrote("on and on and on and on", ended=False)
    assert measure_answer(said, "") == {
        "ended": 0.0,
        "repetition": pytest.approx(1 - 2 / 5),
        "tokens": 23.0,
        "words": 7.0,
    }


def test_answers_are_compared_item_by_item_baselines_beside():
    expected = ["yes"] * 10
    before = [wrote("no")] * 10
    after = [wrote("yes")] * 5 + [wrote("no", ended=False)] * 5
    shown = [wrote("yes")] * 10
    groups = [str(place) for place in range(10)]
    found = compare_answers(
        before, after, expected, groups=groups, baselines={"few-shot": shown}, resamples=400
    )
    assert [measure.name for measure in found] == list(MEASURES)
    exact = found[0]
    assert (exact.unit, exact.better, exact.reference) == ("share", "higher", None)
    gain, rest = exact.change, exact.baselines["few-shot"]
    assert (gain.before, gain.after, gain.delta, gain.items, gain.groups) == (0, 0.5, 0.5, 10, 10)
    assert (rest.before, rest.after, rest.delta) == (1.0, 0.5, -0.5)
    assert gain.ci95[0] > 0 > rest.ci95[1]
    by_name = {measure.name: measure for measure in found}
    ended, words = by_name["ended"].change, by_name["words"]
    assert (ended.before, ended.after) == (1.0, 0.5)
    assert (words.reference, words.change.before, words.better) == (1.0, 1.0, "neither")
    assert by_name["repetition"].better == "lower"


def test_the_same_answers_twice_change_nothing():
    said = [wrote(text) for text in ("tea", "no lamp", "23 days or so", *"abcdefg")]
    found = compare_answers(said, said, ["tea"] * 10, groups=["g", "h"] * 5, resamples=200)
    assert len(found) == len(MEASURES)
    assert {(one.change.delta, one.change.ci95) for one in found} == {(0.0, (0.0, 0.0))}


def test_a_handful_of_answers_is_for_reading():
    few = [wrote("yes")] * (LEAST_ANSWERS - 1)
    assert compare_answers(few, few, ["yes"] * len(few), groups=["g"] * len(few)) == ()
    unanswered = ["yes"] * 4 + [""] * 6  # ten answers, of which four have a reference
    many = [wrote("yes")] * 10
    names = [one.name for one in compare_answers(many, many, unanswered, groups=list("abcdefghij"))]
    assert names == ["ended", "repetition", "tokens", "words"]


def test_importing_the_measures_loads_no_library_of_measures():
    code = (
        "import sys, sftkit.evidence.answers; "
        "assert not {'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
