"""Behaviour tests put to a chat model: base and tuned model are asked the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.chat import split_question
from sftkit.evidence.behaviour import Said, judge_behaviour
from sftkit.evidence.behaviour_cases import Plan, Question, plan_behaviour, questions
from sftkit.evidence.behaviour_file import read_for_task
from sftkit.evidence.generation import write_answers
from sftkit.evidence.quoting import control_words, encode_quoted
from sftkit.evidence_records import BehaviourResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class BehaviourExam:
    """The cases of all tests, ready as tokens.

    Attributes:
        plans: The tests with their cases.
        prompts: What is asked, each once; control tokens in what the user says are words.
        places: Place in `prompts` of each of `questions(plans)`.
    """

    plans: tuple[Plan, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    places: tuple[int, ...] = ()


def make_behaviour_exam(
    name: str,
    test: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
) -> BehaviourExam:
    """Make the cases of a file's tests, and encode what they ask.

    Args:
        name: The recipe's evaluate.behaviour; empty makes an exam without cases.
        test: Test rows with messages.
        tokenizer: The model's tokenizer.
        system: System prompt, as in training.
    """
    if not name:
        return BehaviourExam()
    plans = plan_behaviour(
        read_for_task(name, "chat"),
        rows=[_last_question(row["messages"]) for row in test],
        specials=control_words(tokenizer),
    )
    prompts: dict[tuple[int, ...], int] = {}
    places = []
    for asked in questions(plans):
        turns = [*asked.before, {"role": "user", "content": asked.text}]
        ids = encode_quoted(turns, tokenizer, system=system)
        places.append(prompts.setdefault(ids, len(prompts)))
    return BehaviourExam(plans=plans, prompts=tuple(prompts), places=tuple(places))


def ask_behaviour(
    model: Any, tokenizer: PreTrainedTokenizerBase, exam: BehaviourExam, *, max_new_tokens: int
) -> tuple[Said, ...]:
    """Put an exam to one model; give what it said of each prompt."""
    if not exam.prompts:
        return ()
    written = write_answers(model, tokenizer, exam.prompts, max_new_tokens=max_new_tokens)
    return tuple(Said(text=answer.text, ended=answer.ended) for answer in written)


def compare_behaviour(
    exam: BehaviourExam, before: Sequence[Said], after: Sequence[Said]
) -> tuple[BehaviourResult, ...]:
    """Judge the tuned model, and count the base model's failures in the same cases."""
    return judge_behaviour(
        exam.plans,
        [after[place] for place in exam.places],
        [before[place] for place in exam.places],
    )


def _last_question(messages: Sequence[Mapping[str, str]]) -> Question:
    before, _ = split_question(messages)
    text = before[-1]["content"] if before else ""
    return Question(text=text, before=tuple(before[:-1]))
