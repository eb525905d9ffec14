"""Baselines: the same questions, asked of the base model with examples or with a system prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sftkit.errors import SettingsError
from sftkit.evidence.choice import ChoiceScore
from sftkit.evidence.generation import Written
from sftkit.evidence.learning import LearningScores, compare_learning, make_learning_test
from sftkit.evidence.prompting import make_baseline_tests
from sftkit.recipe import recipe_from_dict
from sftkit.settings import DataSettings, EvaluateSettings
from tests.conftest import make_tokenizer
from tests.test_evidence_learning import CONTROL_ROWS, TEST_ROWS, row

TOKENIZER = make_tokenizer()
DATA = DataSettings(source="rows.jsonl", max_tokens=300)
SETTINGS = EvaluateSettings(
    resamples=400, baselines=("few-shot", "system"), few_shot=2, system_prompt="Be brief."
)
TRAIN_ROWS = [row(f"Tell {n}?", f"Told {n}.", f"fact {n // 2}") for n in range(12)]


def make(**changes: Any) -> Any:
    settings = dataclasses.replace(SETTINGS, **changes)
    return make_baseline_tests(TEST_ROWS, TRAIN_ROWS, TOKENIZER, settings, DATA)


def plain(**changes: Any) -> Any:
    settings = dataclasses.replace(SETTINGS, **changes)
    return make_learning_test(
        TEST_ROWS, CONTROL_ROWS, TOKENIZER, settings, max_tokens=300, seed=DATA.seed
    )


def test_few_shot_shows_training_examples_as_turns_and_never_the_fact_that_is_asked_about():
    few = make()["few-shot"]
    facts = {f"Tell {n}?": f"fact {n // 2}" for n in range(12)}
    seen = set()
    for prompt, question, group in zip(few.prompts, few.questions, few.groups, strict=True):
        turns = TOKENIZER.decode(prompt).split("<|im_start|>")[1:]
        roles = [turn.partition("\n")[0] for turn in turns]
        assert roles == ["user", "assistant", "user", "assistant", "user", "assistant"]
        asked = [turn.partition("\n")[2].removesuffix("<|im_end|>\n") for turn in turns]
        assert asked[4] == question
        for shown, answer in (asked[:2], asked[2:4]):
            assert answer == shown.replace("Tell", "Told").replace("?", ".")
            assert facts[shown] != group
        seen |= {asked[0], asked[2]}
    assert len(seen) == 3  # the same two for all, but for the facts they are about


def test_the_system_prompt_stands_in_front_of_the_same_questions():
    told, base = make()["system"], plain()
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert [TOKENIZER.decode(prompt) for prompt in told.prompts] == [
        asked + TOKENIZER.decode(prompt) for prompt in base.prompts[: len(told.prompts)]
    ]
    assert told.how == "the base model with the system prompt 'Be brief.'"


def test_baselines_are_asked_the_tests_own_questions_and_nothing_else():
    base = plain()
    for test in make().values():
        count = base.splits.count("test")
        assert (test.questions, test.expected) == (base.questions[:count], base.expected[:count])
        assert set(test.splits) == {"test"}
        assert (test.heldout, test.heldout_texts) == ((), ())


def test_the_draw_of_examples_follows_from_the_seed():
    other = dataclasses.replace(DATA, seed=1)
    again = make_baseline_tests(TEST_ROWS, TRAIN_ROWS, TOKENIZER, SETTINGS, other)
    assert make() == make()
    assert again["few-shot"].prompts != make()["few-shot"].prompts
    assert again["few-shot"].how == (
        "the base model, shown 2 training examples as earlier turns (drawn with seed 1, none of "
        "the group that is asked about)"
    )


def test_recognition_asks_baselines_with_the_same_options():
    few, base = make(knowledge="recognition")["few-shot"], plain(knowledge="recognition")
    assert [one.options for one in few.recognition] == [one.options for one in base.recognition]
    for longer, one in zip(few.recognition, base.recognition, strict=True):
        assert longer.prefix[-len(one.prefix) :] == one.prefix
        assert len(longer.prefix) > len(one.prefix)


def test_a_system_turn_of_the_rows_own_stays_in_front():
    turns = [{"role": "system", "content": "You sell lamps."}, *TEST_ROWS[0]["messages"]]
    rows = [{"messages": turns, "group": "fact 0"}]
    (prompt,) = make_baseline_tests(rows, TRAIN_ROWS, TOKENIZER, SETTINGS, DATA)["few-shot"].prompts
    text = TOKENIZER.decode(prompt)
    assert text.startswith("<|im_start|>system\nYou sell lamps.<|im_end|>\n<|im_start|>user\nTell")
    assert text.count("system") == 1


def test_too_few_groups_to_draw_from_are_refused_in_words():
    with pytest.raises(SettingsError, match=r"needs training rows of 7 groups.*there are 6\."):
        make(few_shot=6)


def test_a_system_baseline_without_words_is_refused():
    with pytest.raises(SettingsError, match="system_prompt must say what the baseline 'system'"):
        EvaluateSettings(baselines=("system",))


@pytest.mark.parametrize("changes", [{"task": "classify"}, {"knowledge": "none"}])
def test_baselines_are_refused_where_no_knowledge_is_asked_for(changes):
    evaluate = {"baselines": ["few-shot"], "knowledge": changes.get("knowledge", "exact")}
    data = {"source": "rows.jsonl", "task": changes.get("task", "chat")}
    with pytest.raises(SettingsError, match=r"evaluate\.baselines=\['few-shot'\] are asked"):
        recipe_from_dict({"name": "x", "data": data, "evaluate": evaluate})


def scores(texts: list[str], picked: int) -> LearningScores:
    ranks = (-1.0, -9.0) if picked == 0 else (-9.0, -1.0)
    choice = ChoiceScore(logprobs=ranks, tokens=(1, 1), characters=(1, 1))
    return LearningScores(
        heldout=(),
        answers=tuple(Written(text=text, tokens=1, ended=True) for text in texts),
        recognition=(choice,) * 12,
    )


def test_every_baseline_stands_beside_the_base_in_every_measure():
    test = dataclasses.replace(plain(), heldout=(), heldout_texts=())
    right = list(test.expected)
    before, after = scores(["no"] * 16, 1), scores(right, 0)
    few = scores(right[:6] + ["no"] * 6, 0)
    learned = compare_learning(test, before, after, SETTINGS, baselines={"few-shot": few})
    exact = learned.answers[0]
    assert exact.name == "exact"
    assert exact.change == learned.exact
    beside = exact.baselines["few-shot"]
    assert (beside.before, beside.after, beside.items, beside.groups) == (0.5, 1.0, 12, 6)
    assert all(set(measure.baselines) == {"few-shot"} for measure in learned.answers)

    ranked = dataclasses.replace(SETTINGS, knowledge="recognition", side_by_side=12)
    test = dataclasses.replace(
        plain(knowledge="recognition", side_by_side=12), heldout=(), heldout_texts=()
    )
    learned = compare_learning(test, before, after, ranked, baselines={"few-shot": few})
    first = learned.answers[0]
    assert (first.name, first.change) == ("recognition", learned.recognition)
    assert (first.change.before, first.baselines["few-shot"].before) == (0.0, 1.0)
