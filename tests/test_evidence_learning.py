"""Learning and forgetting, end to end on the tiny model: nothing changed measures exactly zero."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sftkit.adapter import adapter_off, adapter_scaled, attach_adapter
from sftkit.evidence.choice import ChoiceScore, Prompt
from sftkit.evidence.forgetting import (
    ForgettingScores,
    ForgettingTest,
    accuracy,
    compare_forgetting,
    make_forgetting_test,
    score_forgetting,
)
from sftkit.evidence.generation import Written
from sftkit.evidence.learning import (
    LearningScores,
    LearningTest,
    compare_learning,
    heldout_examples,
    largest_changes,
    make_learning_test,
    score_learning,
    side_by_side,
    spread,
)
from sftkit.evidence.perplexity import TokenLoss
from sftkit.evidence_records import Change, Drift, ItemChange, Overall
from sftkit.records import IGNORE, Answer, ChoiceItem, Encoded
from sftkit.settings import AdapterSettings, EvaluateSettings
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
SETTINGS = EvaluateSettings(resamples=400, max_new_tokens=4)


def row(question: str, answer: str, group: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "group": group}


TEST_ROWS = [row(f"What is {n}?", f"It is {n * n}.", f"fact {n // 2}") for n in range(12)]
CONTROL_ROWS = [row(f"Who is {n}?", f"Mr {n}", f"control {n}") for n in range(4)]
PROBES = {
    "one": [
        ChoiceItem(question=f"{n}?", options=("yes", "no", "maybe so"), answer=n % 3)
        for n in range(6)
    ],
    "two": [
        ChoiceItem(question=f"Is it {n}?", options=("a", "bb"), answer=n % 2) for n in range(4)
    ],
}
PASSAGES = [f"Passage {n} is about nothing in particular, and says so {n} times." for n in range(5)]


@pytest.fixture(scope="module")
def tuned() -> Any:
    """A tiny model whose adapter has values, as after training."""
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), AdapterSettings(r=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def learning_test(**changes: Any) -> LearningTest:
    settings = dataclasses.replace(SETTINGS, **changes)
    return make_learning_test(TEST_ROWS, CONTROL_ROWS, TOKENIZER, settings, max_tokens=200)


# ---- nothing changed: exactly zero, everywhere ----


@pytest.mark.parametrize("knowledge", ["exact", "recognition"])
def test_a_zero_scaled_adapter_changes_no_measure_of_learning(tuned, knowledge):
    test = learning_test(knowledge=knowledge)
    with adapter_off(tuned):
        before = score_learning(tuned, TOKENIZER, test, SETTINGS)
    with adapter_scaled(tuned, 0.0):
        after = score_learning(tuned, TOKENIZER, test, SETTINGS)
    assert after == before
    settings = dataclasses.replace(SETTINGS, knowledge=knowledge)
    learned = compare_learning(test, before, after, settings)
    measured = [learned.heldout_loss, learned.exact, learned.control, learned.recognition]
    changes = [change for change in measured if change is not None]
    assert len(changes) == (3 if knowledge == "exact" else 2)
    assert all((change.delta, change.ci95) == (0.0, (0.0, 0.0)) for change in changes)


def test_a_zero_scaled_adapter_changes_no_measure_of_forgetting(tuned):
    test = make_forgetting_test(PROBES, PASSAGES, TOKENIZER, SETTINGS)
    with adapter_off(tuned):
        before = score_forgetting(tuned, test)
    with adapter_scaled(tuned, 0.0):
        after = score_forgetting(tuned, test)
    assert after == before
    forgot = compare_forgetting(test, before, after, SETTINGS)
    nothing = (0.0, (0.0, 0.0))
    for probe in forgot.probes:
        assert (probe.delta, probe.ci95) == nothing
        assert (probe.logprob_delta, probe.logprob_ci95) == nothing
        assert (probe.flipped_to_wrong, probe.flipped_to_right) == (0, 0)
    assert forgot.overall == Overall(
        delta=0.0, ci95=(0.0, 0.0), logprob_delta=0.0, logprob_ci95=(0.0, 0.0), items=10
    )
    assert forgot.drift is not None
    assert (forgot.drift.delta, forgot.drift.ci95) == nothing


def test_an_adapter_that_is_on_does_change_them(tuned):
    test = make_forgetting_test(PROBES, PASSAGES, TOKENIZER, SETTINGS)
    with adapter_off(tuned):
        before = score_forgetting(tuned, test)
    forgot = compare_forgetting(test, before, score_forgetting(tuned, test), SETTINGS)
    assert forgot.drift is not None
    assert forgot.drift.delta != 0.0
    assert all(probe.logprob_delta != 0.0 for probe in forgot.probes)


# ---- comparisons by hand ----


def prompt(tokens: int = 2) -> Prompt:
    return Prompt(prefix=(1,), options=((2,) * tokens, (3,) * tokens), characters=(2, 2))


def pick(first: float, second: float) -> ChoiceScore:
    return ChoiceScore(logprobs=(first, second), tokens=(2, 2), characters=(2, 2))


def test_forgetting_is_compared_question_by_question():
    items = tuple(ChoiceItem(question="q", options=("aa", "bb"), answer=a) for a in (0, 1, 0, 0))
    passage = Encoded(input_ids=(1, 2), labels=(IGNORE, 2))
    test = ForgettingTest(
        names=("p", "p", "p", "q"), items=items, prompts=(prompt(),) * 4, passages=(passage,) * 2
    )
    before = ForgettingScores(
        choices=(pick(-2, -8), pick(-8, -2), pick(-8, -2), pick(-4, -6)),
        passages=(TokenLoss(nats=2.0, tokens=1), TokenLoss(nats=3.0, tokens=3)),
    )
    after = ForgettingScores(  # the second question flips to wrong; the others stay
        choices=(pick(-2, -8), pick(-2, -8), pick(-8, -2), pick(-4, -6)),
        passages=(TokenLoss(nats=4.0, tokens=1), TokenLoss(nats=3.0, tokens=3)),
    )
    assert accuracy(items, before.choices) == 0.75
    assert accuracy(items, after.choices) == 0.5
    forgot = compare_forgetting(test, before, after, SETTINGS)
    first, second = forgot.probes
    assert (first.name, first.items, first.chance) == ("p", 3, 0.5)
    assert (first.before, first.after) == pytest.approx((2 / 3, 1 / 3))
    assert first.delta == pytest.approx(-1 / 3)
    assert (first.flipped_to_wrong, first.flipped_to_right) == (1, 0)
    # The right option of the second question fell from -2 to -8 over its two tokens.
    assert first.logprob_delta == pytest.approx(-1.0)
    assert (second.name, second.delta, second.logprob_delta) == ("q", 0.0, 0.0)
    assert forgot.overall is not None
    assert (forgot.overall.delta, forgot.overall.items) == (-0.25, 4)
    assert forgot.overall.logprob_delta == pytest.approx(-0.75)
    # One token rose by two nats, three by none: half a nat per token.
    assert forgot.drift == Drift(
        before=1.25, after=1.75, delta=0.5, ci95=(0.0, 2.0), passages=2, tokens=4
    )


def test_a_probe_that_is_left_out_is_none_and_not_zero():
    test = make_forgetting_test({}, [], TOKENIZER, SETTINGS)
    nothing = ForgettingScores(choices=(), passages=())
    forgot = compare_forgetting(test, nothing, nothing, SETTINGS)
    assert (forgot.probes, forgot.overall, forgot.drift) == ((), None, None)


def wrote(*texts: str) -> tuple[Written, ...]:
    return tuple(Written(text=text, tokens=len(text.split()), ended=True) for text in texts)


def hand_test(**changes: Any) -> LearningTest:
    long = Encoded(input_ids=(1, 2, 3, 4), labels=(IGNORE, 2, 3, 4), group="a")
    short = Encoded(input_ids=(1, 2), labels=(IGNORE, 2), group="b")
    test = LearningTest(
        heldout=(long, short),
        questions=("q1", "q2", "q3"),
        expected=("The Cat", "dog", "owl"),
        splits=("test", "test", "control"),
        groups=("a", "b", "c"),
        prompts=((1,), (2,), (3,)),
        recognition=(),
        recognition_groups=(),
    )
    return dataclasses.replace(test, **changes)


BEFORE = LearningScores(
    heldout=(TokenLoss(nats=6.0, tokens=3), TokenLoss(nats=4.0, tokens=1)),
    answers=wrote("a dog", "a cat", "an owl, I think"),
    recognition=(),
)
AFTER = LearningScores(
    heldout=(TokenLoss(nats=3.0, tokens=3), TokenLoss(nats=4.0, tokens=1)),
    answers=wrote("cat.", "a cat", "An owl!"),
    recognition=(),
)


def test_learning_is_compared_answer_by_answer_trained_facts_apart_from_control():
    learned = compare_learning(hand_test(), BEFORE, AFTER, SETTINGS)
    assert learned.exact == Change(
        before=0.0, after=0.5, delta=0.5, ci95=(0.0, 1.0), items=2, groups=2
    )
    assert learned.control == Change(
        before=0.0, after=1.0, delta=1.0, ci95=(1.0, 1.0), items=1, groups=1
    )
    # 10 nats over 4 tokens fell to 7 over 4.
    assert learned.heldout_loss == Change(
        before=2.5, after=1.75, delta=-0.75, ci95=(-1.0, 0.0), items=2, groups=2, tokens=4
    )
    assert learned.recognition is None


def test_recognition_counts_how_often_the_right_answer_comes_first():
    test = hand_test(recognition=(prompt(), prompt()), recognition_groups=("a", "b"))
    settings = dataclasses.replace(SETTINGS, knowledge="recognition")
    before = dataclasses.replace(BEFORE, recognition=(pick(-9, -1), pick(-1, -9)))
    after = dataclasses.replace(AFTER, recognition=(pick(-1, -9), pick(-1, -9)))
    learned = compare_learning(test, before, after, settings)
    assert learned.exact is None
    assert learned.recognition == Change(
        before=0.5, after=1.0, delta=0.5, ci95=(0.0, 1.0), items=2, groups=2
    )


def test_what_changed_most_is_listed_for_better_and_for_worse():
    test = hand_test(
        questions=("q1", "q2", "q3", "q4"),
        expected=("The Cat", "dog", "owl", "a red hen"),
        splits=("test", "test", "control", "test"),
        groups=("a", "b", "c", "d"),
        heldout_texts=(("q1", "The Cat"), ("else", "where")),
    )
    before = dataclasses.replace(BEFORE, answers=wrote("a dog", "a dog", "no", "red"))
    after = dataclasses.replace(AFTER, answers=wrote("cat", "a cat", "owl", "red hen"))
    found = largest_changes(test, before, after, exact=True)
    # The cat was gained whole, of the hen one word was there before; the dog was lost. An owl that
    # was never trained is no win, and a loss that did not move is not listed.
    assert found == (
        ItemChange(
            measure="exact", won=True, question="q1", expected="The Cat", base="a dog",
            tuned="cat", before=0.0, after=1.0,
        ),
        ItemChange(
            measure="exact", won=True, question="q4", expected="a red hen", base="red",
            tuned="red hen", before=0.0, after=1.0,
        ),
        ItemChange(
            measure="exact", won=False, question="q2", expected="dog", base="a dog",
            tuned="a cat", before=1.0, after=0.0,
        ),
        ItemChange(
            measure="loss", won=True, question="q1", expected="The Cat", base="a dog",
            tuned="cat", before=2.0, after=1.0,
        ),
    )  # fmt: skip
    assert [item.measure for item in largest_changes(test, before, after, exact=False)] == ["loss"]
    # At most one a direction: the larger change stays, and a rise of the loss is no win.
    worse = dataclasses.replace(
        after, heldout=(TokenLoss(nats=9.0, tokens=3), TokenLoss(nats=9.0, tokens=1))
    )
    kept = largest_changes(test, before, worse, exact=True, at_most=1)
    assert [(item.measure, item.won, item.question) for item in kept] == [
        ("exact", True, "q1"),
        ("exact", False, "q2"),
        ("loss", False, "else"),
    ]
    assert (kept[-1].base, kept[-1].tuned) == ("", "")  # it was not asked to be written


def test_held_out_texts_stand_beside_their_examples():
    test = learning_test(style_items=3)
    texts = [(f"What is {n}?", f"It is {n * n}.") for n in (0, 2, 4)]
    assert list(test.heldout_texts) == texts
    assert len(test.heldout) == 3


def test_answers_stand_side_by_side_with_their_question():
    assert side_by_side(hand_test(), BEFORE, AFTER)[0] == Answer(
        question="q1", expected="The Cat", base="a dog", tuned="cat.", split="test", group="a"
    )


# ---- which questions are asked ----


def test_exact_asks_test_rows_then_control_rows_in_words():
    test = learning_test()
    assert test.questions[0] == "What is 0?"
    assert test.expected[0] == "It is 0."
    assert test.splits == ("test",) * 12 + ("control",) * 4
    assert test.groups[:3] == ("fact 0", "fact 0", "fact 1")
    assert len(test.heldout) == 12
    assert TOKENIZER.decode(test.prompts[0]).endswith("<|im_start|>assistant\n")
    assert test.recognition == ()


def test_counts_of_the_settings_bound_what_is_asked():
    test = learning_test(knowledge_items=5, style_items=3)
    assert (test.splits.count("test"), test.splits.count("control")) == (5, 4)
    assert len(test.heldout) == 3
    ranked = learning_test(knowledge="recognition", knowledge_items=5, side_by_side=2)
    assert (len(ranked.recognition), len(ranked.questions)) == (5, 2)


def test_recognition_offers_the_right_answer_first_and_three_of_other_groups():
    test = learning_test(knowledge="recognition")
    answers = {f"It is {n * n}.": f"fact {n // 2}" for n in range(12)}
    for asked, group in zip(test.recognition, test.recognition_groups, strict=True):
        options = [TOKENIZER.decode(option) for option in asked.options]
        assert len(set(options)) == 4
        assert answers[options[0]] == group
        assert all(answers[wrong] != group for wrong in options[1:])
        assert asked.characters == tuple(len(option) for option in options)


def test_recognition_is_not_asked_where_there_are_too_few_other_answers():
    settings = dataclasses.replace(SETTINGS, knowledge="recognition")
    few = make_learning_test(TEST_ROWS[:4], [], TOKENIZER, settings, max_tokens=200)
    assert few.recognition == ()
    scores = LearningScores(
        heldout=(TokenLoss(nats=1.0, tokens=9),) * 4, answers=wrote(*"abcd"), recognition=()
    )
    assert compare_learning(few, scores, scores, settings).recognition is None


def test_a_part_of_the_rows_takes_every_group_before_a_second_of_any():
    rows = [{"group": g} for g in "aaabbc"]
    assert [r["group"] for r in spread(rows, 3)] == ["a", "b", "c"]
    assert [r["group"] for r in spread(rows, 5)] == ["a", "a", "b", "b", "c"]
    assert spread(rows, 99) == rows


def test_the_learning_curve_measures_a_fixed_even_part():
    examples = [
        Encoded(input_ids=(1, n), labels=(IGNORE, n), row=n) for n in range(10)
    ]  # fmt: skip
    assert [e.row for e in heldout_examples(examples, at_most=3)] == [0, 3, 6]
    assert heldout_examples(examples, at_most=99) == examples
    muted = [dataclasses.replace(e, labels=(IGNORE, IGNORE)) for e in examples]
    assert heldout_examples(muted, at_most=3) == []
