"""Behaviour tests to cases: templates filled, test rows taken, texts changed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sftkit.errors import SettingsError, near_names
from sftkit.evidence.behaviour_file import BehaviourFile
from sftkit.evidence.behaviour_tests import BehaviourTest, Expectation, fill, listed, slot_values
from sftkit.evidence.perturb import PERTURBATIONS, Options, perturb


@dataclass(frozen=True, kw_only=True)
class Question:
    """One text put to a model.

    Attributes:
        text: The text; of a conversation the last turn, which the user speaks.
        before: The turns before it.
    """

    text: str
    before: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of a test.

    Attributes:
        given: What is asked; for a minimum test with a change, the changed text.
        changed: The text it is compared with; None for a minimum test.
        expect: What is expected, its slots filled.
    """

    given: Question
    changed: Question | None
    expect: Expectation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A test with its cases.

    Attributes:
        test: The test.
        task: chat, classify or regress.
        cases: Its cases; at least one.
    """

    test: BehaviourTest
    task: str
    cases: tuple[Case, ...]


def plan_behaviour(
    given: BehaviourFile,
    *,
    rows: Sequence[Question] = (),
    labels: Sequence[str] = (),
    specials: Sequence[str] = (),
    keep: Sequence[str] = (),
    readable: Callable[[Sequence[str]], Sequence[bool]] | None = None,
) -> tuple[Plan, ...]:
    """Make the cases of all tests.

    Args:
        given: The tests.
        rows: The run's own test rows, for tests that take their texts from there.
        labels: The model's labels; a test that expects another one is refused.
        specials: The model's own control tokens, for the change control-tokens.
        keep: Words that no change of any test may alter.
        readable: Says of texts whether the model can read them whole; cases with others are left
            out.

    Raises:
        SettingsError: A test expects a label the model does not know, or no case comes of it.
    """
    faults: list[str] = []
    plans = []
    for test in given.tests:
        cases = _cases(test, rows, specials, keep)
        if readable is not None and cases:
            read = dict(zip(texts := _texts(cases), readable(texts), strict=True))
            cases = [case for case in cases if all(read[text] for text in _texts([case]))]
        if not cases:
            why = "no test row" if test.rows and not rows else "no text that its change can change"
            faults.append(f"{test.name}: no case comes of it ({why}).")
        expected = {case.expect.label for case in cases} - {None}
        unknown = sorted(filter(None, expected - set(labels))) if labels else ()
        faults += [
            f"{test.name}: the model has no label {label!r}.{near_names(label, labels)}"
            for label in unknown
        ]
        plans.append(Plan(test=test, task=given.task, cases=tuple(cases)))
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise SettingsError(f"The behaviour tests {given.where} do not fit this run:\n{lines}")
    return tuple(plans)


def questions(plans: Sequence[Plan]) -> tuple[Question, ...]:
    """List what is asked, in the order in which answers are judged."""
    return tuple(
        question
        for plan in plans
        for case in plan.cases
        for question in (case.given, case.changed)
        if question is not None
    )


def _cases(
    test: BehaviourTest, rows: Sequence[Question], specials: Sequence[str], keep: Sequence[str]
) -> list[Case]:
    """Make the cases of a test, at most as many as it allows."""
    chance = random.Random(test.seed)  # noqa: S311  (a choice of cases, not a secret)
    changes: Sequence[str | None] = listed(test.change) or (None,)
    sources = len(rows) if test.rows else _combinations(test)
    total = sources * len(changes)
    # More than are wanted are tried in turn: a text may leave a change nothing to change.
    order = chance.sample(range(total), min(total, 4 * test.at_most))
    order = order if total > test.at_most else sorted(order)
    found: list[Case] = []
    seen: set[tuple[str, str | None]] = set()
    for number in order:
        source, change = number // len(changes), changes[number % len(changes)]
        filled = _filled(test, source)
        question = (
            rows[source] if test.rows else Question(text=fill(filled.template, filled.values))
        )
        case = _case(test, question, filled.values, change=change, specials=specials, keep=keep)
        if case is None:
            continue
        key = (case.given.text, case.changed.text if case.changed else None)
        if key in seen and not test.rows:
            continue
        seen.add(key)
        found.append(case)
        if len(found) == test.at_most:
            break
    return found


@dataclass(frozen=True, kw_only=True)
class _Filled:
    template: str
    values: Mapping[str, str]


def _combinations(test: BehaviourTest) -> int:
    lengths = [len(values) for values in slot_values(test).values()]
    slots = math.prod(lengths) if test.combine == "product" else max(lengths, default=1)
    return len(listed(test.template)) * max(1, len(test.cases)) * slots


def _filled(test: BehaviourTest, number: int) -> _Filled:
    """Give the template and slot values of one combination, counted through without listing all."""
    templates = listed(test.template)
    if not templates:
        return _Filled(template="", values={})
    number, place = divmod(number, len(templates))
    template = templates[place]
    values: dict[str, str] = {}
    if test.cases:
        number, place = divmod(number, len(test.cases))
        values |= test.cases[place]
    for name, items in slot_values(test).items():
        if test.combine == "product":
            number, place = divmod(number, len(items))
        else:
            place = number
        values[name] = items[place]
    return _Filled(template=template, values=values)


def _case(
    test: BehaviourTest,
    question: Question,
    values: Mapping[str, str],
    *,
    change: str | None,
    specials: Sequence[str],
    keep: Sequence[str],
) -> Case | None:
    """Make one case; None where its change finds nothing to change."""
    other: Question | None = None
    if test.to is not None:
        other = replace(question, text=fill(test.to, values))
    elif change is not None:
        takes = PERTURBATIONS[change].takes
        options = Options(
            keep=(*keep, *(fill(words, values) for words in listed(test.keep))),
            edits=test.edits,
            texts=listed(test.texts) if "texts" in takes else (),
            words=test.words if "words" in takes else {},
            specials=specials,
        )
        changed = perturb(question.text, change, seed=test.seed, options=options)
        if changed is None:
            return None
        other = replace(question, text=changed)
    if test.kind == "minimum":
        question, other = other or question, None
    return Case(given=question, changed=other, expect=_filled_expectation(test.expect, values))


def _filled_expectation(expect: Expectation, values: Mapping[str, str]) -> Expectation:
    import regex

    def text(given: str | None) -> str | None:
        return None if given is None else fill(given, values)

    quoted = {name: regex.escape(value) for name, value in values.items()}
    return replace(
        expect,
        contains=tuple(fill(words, values) for words in listed(expect.contains)),
        lacks=tuple(fill(words, values) for words in listed(expect.lacks)),
        exact=text(expect.exact),
        label=text(expect.label),
        matches=None if expect.matches is None else fill(expect.matches, quoted),
    )


def _texts(cases: Sequence[Case]) -> list[str]:
    asked = [question for case in cases for question in (case.given, case.changed)]
    return list(dict.fromkeys(question.text for question in asked if question is not None))
