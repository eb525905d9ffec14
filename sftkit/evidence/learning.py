"""What was learned: knowledge (exact answers or recognition) and style (loss on held-out answers).

A model can take on the wording of its examples without knowing one new thing. So knowledge is asked
for in phrasings that were never trained, beside control facts that were never trained at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.chat import encode_prompt, encode_rows, split_question
from sftkit.evidence.answers import compare_answers, token_f1
from sftkit.evidence.choice import ChoiceScore, Prompt, score_choices
from sftkit.evidence.generation import Written, write_answers
from sftkit.evidence.perplexity import TokenLoss, score_examples
from sftkit.evidence.statistics import paired_change
from sftkit.evidence_records import AnswerMeasure, Change, ItemChange
from sftkit.records import IGNORE, Answer, Encoded, Learned, is_exact
from sftkit.settings import EvaluateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = Sequence[Mapping[str, Any]]
Turns = list[dict[str, str]]
WRONG_ANSWERS = 3
CHANGES_TO_READ = 5
"""Items that are named per measure and direction."""


@dataclass(frozen=True, kw_only=True)
class LearningTest:
    """Everything asked about what was learned, ready as tokens.

    Attributes:
        heldout: Test examples whose answers' loss is measured.
        questions: Questions to be answered in words: test rows, then control rows.
        expected: Reference answer of each question.
        splits: test or control, per question.
        groups: Group per question.
        prompts: The questions as token ids.
        recognition: Prompts with the right answer first and three answers of other groups.
        recognition_groups: Group of each of these.
        heldout_texts: Question and answer of each held-out example.
        how: What a baseline is, in words; empty for the way base and tuned model are asked.
    """

    heldout: tuple[Encoded, ...]
    questions: tuple[str, ...]
    expected: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    recognition: tuple[Prompt, ...]
    recognition_groups: tuple[str, ...]
    heldout_texts: tuple[tuple[str, str], ...] = ()
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class LearningScores:
    """One model's results on a learning test."""

    heldout: tuple[TokenLoss, ...]
    answers: tuple[Written, ...]
    recognition: tuple[ChoiceScore, ...]


def make_learning_test(
    test: Rows,
    control: Rows,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    max_tokens: int,
    system: str | None = None,
    seed: int = 0,
    lead_in: Callable[[Turns, str], Turns] = lambda turns, group: turns,
) -> LearningTest:
    """Prepare the questions. The same test is then put to base and tuned model.

    Args:
        test: Test rows with messages and group; unseen phrasings or unseen groups.
        control: Rows about what was never trained; may be empty.
        tokenizer: The model's tokenizer.
        settings: Which measures, and how many items.
        max_tokens: Longest example in tokens.
        system: System prompt, as in training.
        seed: Seed of the choice of wrong answers.
        lead_in: Is given the turns before an answer and the row's group; gives the turns to ask
            with. For baselines; held-out examples stay as they are.
    """
    test, control = list(test), list(control)
    styled = spread(test, settings.style_items)
    heldout = encode_rows(styled, tokenizer, max_tokens=max_tokens, system=system).examples
    if settings.knowledge == "exact":
        asked = spread(test, settings.knowledge_items) + spread(control, settings.knowledge_items)
    else:
        asked = spread(test, settings.side_by_side)
    halves = [split_question(row["messages"]) for row in asked]
    groups = tuple(str(row["group"]) for row in asked)
    in_control = {id(row) for row in control}
    recognition: tuple[Prompt, ...] = ()
    ranked: Rows = []
    if settings.knowledge == "recognition":
        ranked = spread(test, settings.knowledge_items)
        recognition = _recognition(ranked, tokenizer, system, seed, lead_in)
    return LearningTest(
        heldout=heldout,
        questions=tuple(_last_words(before) for before, _ in halves),
        expected=tuple(answer for _, answer in halves),
        splits=tuple("control" if id(row) in in_control else "test" for row in asked),
        groups=groups,
        prompts=tuple(
            encode_prompt(lead_in(before, group), tokenizer, system=system)
            for (before, _), group in zip(halves, groups, strict=True)
        ),
        recognition=recognition,
        recognition_groups=tuple(str(row["group"]) for row in ranked),
        heldout_texts=tuple(_words_of(styled[example.row]) for example in heldout),
    )


def score_learning(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    test: LearningTest,
    settings: EvaluateSettings,
) -> LearningScores:
    """Put the test to one model."""
    return LearningScores(
        heldout=score_examples(model, test.heldout),
        answers=write_answers(
            model, tokenizer, test.prompts, max_new_tokens=settings.max_new_tokens
        ),
        recognition=score_choices(model, test.recognition) if test.recognition else (),
    )


def compare_learning(
    test: LearningTest,
    before: LearningScores,
    after: LearningScores,
    settings: EvaluateSettings,
    *,
    baselines: Mapping[str, LearningScores] | None = None,
) -> Learned:
    """Compare base and tuned model, item by item.

    Args:
        test: What was asked.
        before: The base model's results.
        after: The tuned model's results.
        settings: Which measures.
        baselines: The base model's results when asked in other ways, by name.
    """
    rivals = baselines or {}
    exact = control = recognition = None
    measures: tuple[AnswerMeasure, ...] = ()
    if settings.knowledge == "exact":
        exact = _exact_change(test, before, after, settings, split="test")
        control = _exact_change(test, before, after, settings, split="control")
    if test.recognition:
        recognition = _recognition_change(test, before, after, settings)
        others = {
            name: _recognition_change(test, rival, after, settings)
            for name, rival in rivals.items()
        }
        measures = (
            AnswerMeasure(
                name="recognition",
                unit="share",
                better="higher",
                change=recognition,
                baselines=others,
            ),
        )
    asked = [place for place, split in enumerate(test.splits) if split == "test"]
    if asked:
        measures += compare_answers(
            [before.answers[place] for place in asked],
            [after.answers[place] for place in asked],
            [test.expected[place] for place in asked],
            groups=[test.groups[place] for place in asked],
            baselines={
                name: [rival.answers[place] for place in asked] for name, rival in rivals.items()
            },
            resamples=settings.resamples,
        )
    heldout = None
    if test.heldout:
        heldout = paired_change(
            [score.mean for score in before.heldout],
            [score.mean for score in after.heldout],
            groups=[example.group for example in test.heldout],
            weights=[score.tokens for score in before.heldout],
            resamples=settings.resamples,
        )
    return Learned(
        heldout_loss=heldout,
        exact=exact,
        control=control,
        recognition=recognition,
        answers=measures,
        changed=largest_changes(test, before, after, exact=settings.knowledge == "exact"),
    )


def largest_changes(
    test: LearningTest,
    before: LearningScores,
    after: LearningScores,
    *,
    exact: bool,
    at_most: int = CHANGES_TO_READ,
) -> tuple[ItemChange, ...]:
    """List the test items that changed most, for better and for worse, to read.

    Args:
        test: What was asked.
        before: The base model's results.
        after: The tuned model's results.
        exact: Whether answers that turned right or wrong are listed; those with the largest change
            of token F1 come first.
        at_most: Items per measure and direction.

    Returns:
        By exactness, then by the loss of the reference answer; wins before losses, the largest
        change first.
    """
    turned: list[tuple[float, ItemChange]] = []
    said: dict[tuple[str, str], tuple[str, str]] = {}
    for place, (question, wanted) in enumerate(zip(test.questions, test.expected, strict=True)):
        base, tuned = before.answers[place].text, after.answers[place].text
        said[question, wanted] = (base, tuned)
        could, can = is_exact(base, wanted), is_exact(tuned, wanted)
        if exact and could != can and test.splits[place] == "test":
            item = ItemChange(
                measure="exact",
                won=can,
                question=question,
                expected=wanted,
                base=base,
                tuned=tuned,
                before=float(could),
                after=float(can),
            )
            turned.append((abs(token_f1(tuned, wanted) - token_f1(base, wanted)), item))
    moved: list[tuple[float, ItemChange]] = []
    for words, was, now in zip(test.heldout_texts, before.heldout, after.heldout, strict=False):
        base, tuned = said.get(words, ("", ""))
        item = ItemChange(
            measure="loss",
            won=now.mean < was.mean,
            question=words[0],
            expected=words[1],
            base=base,
            tuned=tuned,
            before=was.mean,
            after=now.mean,
        )
        if now.mean != was.mean:
            moved.append((abs(now.mean - was.mean), item))
    chosen: list[ItemChange] = []
    for found in (turned, moved):
        ranked = [item for _, item in sorted(found, key=lambda pair: -pair[0])]
        for won in (True, False):
            chosen += [item for item in ranked if item.won == won][:at_most]
    return tuple(chosen)


def side_by_side(
    test: LearningTest, before: LearningScores, after: LearningScores
) -> tuple[Answer, ...]:
    """Pair the answers of both models, for reading."""
    return tuple(
        Answer(question=q, expected=e, base=b.text, tuned=t.text, split=s, group=g)
        for q, e, b, t, s, g in zip(
            test.questions,
            test.expected,
            before.answers,
            after.answers,
            test.splits,
            test.groups,
            strict=True,
        )
    )


def spread(rows: Rows, count: int) -> list[Mapping[str, Any]]:
    """Take at most `count` rows, one of every group before a second of any."""
    turns: dict[str, int] = {}
    ranked = []
    for position, row in enumerate(rows):
        group = str(row["group"])
        turns[group] = turns.get(group, -1) + 1
        ranked.append((turns[group], position))
    kept = sorted(position for _, position in sorted(ranked)[:count])
    return [rows[position] for position in kept]


def _exact_change(
    test: LearningTest,
    before: LearningScores,
    after: LearningScores,
    settings: EvaluateSettings,
    *,
    split: str,
) -> Change | None:
    places = [place for place, name in enumerate(test.splits) if name == split]
    if not places:
        return None
    return paired_change(
        [float(is_exact(before.answers[place].text, test.expected[place])) for place in places],
        [float(is_exact(after.answers[place].text, test.expected[place])) for place in places],
        groups=[test.groups[place] for place in places],
        resamples=settings.resamples,
    )


def _recognition_change(
    test: LearningTest, before: LearningScores, after: LearningScores, settings: EvaluateSettings
) -> Change:
    return paired_change(
        [float(score.picked == 0) for score in before.recognition],
        [float(score.picked == 0) for score in after.recognition],
        groups=test.recognition_groups,
        resamples=settings.resamples,
    )


def _last_words(turns: Turns) -> str:
    return turns[-1]["content"] if turns else ""


def _words_of(row: Mapping[str, Any]) -> tuple[str, str]:
    before, answer = split_question(row["messages"])
    return _last_words(before), answer


def _recognition(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    seed: int,
    lead_in: Callable[[Turns, str], Turns],
) -> tuple[Prompt, ...]:
    """Pair every question with its own answer and three answers to questions of its kind."""
    halves = [split_question(row["messages"]) for row in rows]
    chance = random.Random(seed)  # noqa: S311  (a choice of wrong answers, not a secret)
    prompts = []
    for place, (before, right) in enumerate(halves):
        others = [
            answer
            for other, (_, answer) in enumerate(halves)
            if rows[other]["group"] != rows[place]["group"] and answer != right
        ]
        if len(others) < WRONG_ANSWERS:
            return ()
        options = [right, *chance.sample(others, WRONG_ANSWERS)]
        encoded: list[Any] = [tokenizer(text, add_special_tokens=False) for text in options]
        prompts.append(
            Prompt(
                prefix=encode_prompt(
                    lead_in(before, str(rows[place]["group"])), tokenizer, system=system
                ),
                options=tuple(tuple(coded["input_ids"]) for coded in encoded),
                characters=tuple(len(text) for text in options),
            )
        )
    return tuple(prompts)


def heldout_examples(examples: Sequence[Encoded], *, at_most: int) -> list[Encoded]:
    """Take a fixed, evenly spaced part of the validation examples for the learning curve."""
    usable = [e for e in examples if any(label != IGNORE for label in e.labels)]
    step = max(1, len(usable) // at_most)
    return usable[::step][:at_most]
