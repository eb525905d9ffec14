"""Behaviour tests on a model: cases put to it, and judged one by one.

A model is anything that answers: for conversations a function from prompts to what is said, for
labels and numbers one from texts to scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit.evidence.answers import token_f1
from sftkit.evidence.behaviour_cases import Plan, Question, questions
from sftkit.evidence.behaviour_tests import Expectation, listed
from sftkit.evidence.shares import wilson_interval
from sftkit.evidence_records import BehaviourResult, FailedCase
from sftkit.records import is_exact, normalise_answer

SHOWN = 20
"""Failed cases that are kept to read."""
PATTERN_TIME_S = 0.25
"""A pattern that takes longer on an answer counts as not found."""
MATCHED_CHARACTERS = 4_000
"""Of an answer, what a pattern is looked for in."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said of one text.

    Attributes:
        text: Its answer, for conversations.
        ended: Whether it ended its turn.
        scores: Probability of each label, for labels.
        value: Its number, for numbers.
    """

    text: str = ""
    ended: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None

    @property
    def label(self) -> str:
        """The likeliest label."""
        return max(self.scores, key=lambda name: self.scores[name])

    @property
    def broken(self) -> bool:
        """Whether it is no answer: a number or probability that is not finite."""
        numbers = [*self.scores.values(), *([] if self.value is None else [self.value])]
        return not all(map(math.isfinite, numbers))

    def __str__(self) -> str:
        if self.broken:
            return "no finite number"
        if self.scores:
            return f"{self.label} ({self.scores[self.label]:.3f})"
        if self.value is not None:
            return f"{self.value:.4g}"
        return self.text + ("" if self.ended else " … (its turn not ended)")


def judge_behaviour(
    plans: Sequence[Plan], said: Sequence[Said], base: Sequence[Said] | None = None
) -> tuple[BehaviourResult, ...]:
    """Judge what a model said, case by case.

    Args:
        plans: The tests with their cases.
        said: What the model said of each of `questions(plans)`.
        base: What the base model said of them; None if it was not asked.
    """
    results = []
    place = 0
    for plan in plans:
        count = len(questions([plan]))
        part = slice(place, place + count)
        place += count
        failed = _failed(plan, said[part])
        results.append(
            BehaviourResult(
                name=plan.test.name,
                capability=plan.test.capability,
                kind=plan.test.kind,
                cases=len(plan.cases),
                failures=len(failed),
                ci95=wilson_interval(len(failed), len(plan.cases)),
                base_failures=None if base is None else len(_failed(plan, base[part])),
                allowed=plan.test.allowed,
                failed=tuple(failed[:SHOWN]),
            )
        )
    return tuple(results)


def run_behaviour(
    plans: Sequence[Plan],
    ask: Callable[[Sequence[Question]], Sequence[Said]],
    base: Callable[[Sequence[Question]], Sequence[Said]] | None = None,
) -> tuple[BehaviourResult, ...]:
    """Put all cases to a model, and to its base where there is one to ask.

    Args:
        plans: The tests with their cases.
        ask: Asks the model; `answering` and `scoring` make one of a plain function.
        base: Asks the base model.
    """
    asked = questions(plans)
    return judge_behaviour(plans, ask(asked), base(asked) if base is not None else None)


def answering(
    answer: Callable[[Sequence[str]], Sequence[str]],
) -> Callable[[Sequence[Question]], tuple[Said, ...]]:
    """Make a function from prompts to answers into one that can be tested."""
    return lambda asked: tuple(Said(text=text) for text in answer([q.text for q in asked]))


def scoring(
    score: Callable[[Sequence[str]], Any], labels: Sequence[str] = ()
) -> Callable[[Sequence[Question]], tuple[Said, ...]]:
    """Make a function from N texts to scores into one that can be tested.

    Args:
        score: Gives probabilities of the labels, shape (N, C), or numbers, shape (N,).
        labels: The labels in order; none for numbers.
    """

    def ask(asked: Sequence[Question]) -> tuple[Said, ...]:
        rows = score([question.text for question in asked])
        if not labels:
            return tuple(Said(value=float(row)) for row in rows)
        return tuple(Said(scores=dict(zip(labels, map(float, row), strict=True))) for row in rows)

    return ask


def _failed(plan: Plan, said: Sequence[Said]) -> list[FailedCase]:
    """Judge the cases of one test; give those that failed."""
    failed = []
    answers = iter(said)
    for case in plan.cases:
        first = next(answers)
        second = next(answers) if case.changed is not None else None
        missed = _missed(case.expect, first, second, plan.task)
        if missed:
            failed.append(
                FailedCase(
                    given=case.given.text,
                    changed="" if case.changed is None else case.changed.text,
                    said=str(first),
                    said_changed="" if second is None else str(second),
                    expected="; ".join(missed),
                )
            )
    return failed


def _missed(expect: Expectation, first: Said, second: Said | None, task: str) -> list[str]:
    """List, in words, what was expected and does not hold."""
    if first.broken or (second is not None and second.broken):
        return ["a finite number"]
    if task == "chat":
        return _missed_in_text(expect, first, second)
    if second is None:
        return _missed_alone(expect, first)
    return _missed_between(expect, first, second)


def _missed_in_text(expect: Expectation, first: Said, second: Said | None) -> list[str]:
    missed = []
    answer = first if second is None else second
    low = answer.text.casefold()
    missed += [f"contains {w!r}" for w in listed(expect.contains) if w.casefold() not in low]
    missed += [f"does not contain {w!r}" for w in listed(expect.lacks) if w.casefold() in low]
    if expect.exact is not None and not is_exact(answer.text, expect.exact):
        missed.append(f"is {expect.exact!r}")
    if expect.matches is not None and not finds(expect.matches, answer.text):
        missed.append(f"matches {expect.matches!r}")
    if expect.ends and not answer.ended:
        missed.append("ends its turn")
    if second is None:
        return missed
    equal = normalise_answer(first.text) == normalise_answer(second.text)
    if expect.same and not equal:
        missed.append("the same answer")
    if expect.differs and equal:
        missed.append("another answer")
    if expect.f1 is not None and (found := token_f1(second.text, first.text)) < expect.f1:
        missed.append(f"answers whose words overlap by F1 {expect.f1:g} or more (here {found:.2f})")
    return missed


def _missed_alone(expect: Expectation, said: Said) -> list[str]:
    if said.value is not None:
        value, within = expect.value or 0.0, expect.within or 0.0
        return [f"{value:g} ± {within:g}"] if abs(said.value - value) > within else []
    label = expect.label or ""
    if said.label != label:
        return [f"{label} (its probability was {said.scores[label]:.3f})"]
    if expect.at_least is not None and said.scores[label] < expect.at_least:
        return [f"{label} with a probability of {expect.at_least:g} or more"]
    return []


def _missed_between(expect: Expectation, first: Said, second: Said) -> list[str]:
    missed = []
    if expect.same and first.label != second.label:
        missed.append("the same label")
    if expect.label is not None:
        what = f"probability of {expect.label}"
        change = second.scores[expect.label] - first.scores[expect.label]
    else:
        what, change = "number", (second.value or 0.0) - (first.value or 0.0)
    if expect.within is not None and abs(change) > expect.within:
        missed.append(f"{what} moves by at most {expect.within:g} (here {change:+.3g})")
    if expect.rises is not None and not (change > 0 and change >= expect.rises):
        missed.append(f"{what} rises by {expect.rises:g} or more (here {change:+.3g})")
    if expect.falls is not None and not (change < 0 and -change >= expect.falls):
        missed.append(f"{what} falls by {expect.falls:g} or more (here {change:+.3g})")
    return missed


def finds(pattern: str, text: str) -> bool:
    """Look for a regular expression in the beginning of a text, for a bounded time."""
    import regex

    try:
        found = regex.search(
            pattern, text[:MATCHED_CHARACTERS], regex.IGNORECASE, timeout=PATTERN_TIME_S
        )
    except (TimeoutError, regex.error, MemoryError):
        return False
    return found is not None
