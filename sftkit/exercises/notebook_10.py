"""The exercises of notebook 10."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.evidence.behaviour_cases import plan_behaviour
from sftkit.evidence.behaviour_file import BehaviourFile, parse_behaviour
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, near

FEWEST_CASES = 10
_SPREAD = 1.96  # standard errors in half a 95 % interval


@dataclass(frozen=True, kw_only=True)
class _Shared:
    right: float
    of_groups: float
    of_train: float


def _shared(given: Mapping[str, Any]) -> _Shared:
    train, test = given["train_groups"], given["test_groups"]
    return _Shared(
        right=sum(group in set(train) for group in test) / len(test),
        of_groups=len(set(train) & set(test)) / len(set(test)),
        of_train=sum(group in set(test) for group in train) / len(train),
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    right: float
    unsquared: float
    whole_width: float


def _rows(given: Mapping[str, Any]) -> _Rows:
    share, half = given["share"], given["half"]
    spread = share * (1 - share)
    return _Rows(
        right=math.ceil(spread * (_SPREAD / half) ** 2),
        unsquared=spread * _SPREAD / half,
        whole_width=spread * (_SPREAD / (half / 2)) ** 2,
    )


def _own(text: Any) -> BehaviourFile:
    return parse_behaviour(text, where="your test")


def _is_readable(text: Any, _: Any) -> bool:
    return isinstance(text, str) and _own(text).task == "classify"


def _asked_labels(text: Any) -> set[str]:
    plans = plan_behaviour(_own(text))
    return {str(case.expect.label) for plan in plans for case in plan.cases}


def _cases(text: Any) -> int:
    return sum(len(plan.cases) for plan in plan_behaviour(_own(text)))


@dataclass(frozen=True, kw_only=True)
class _Beaten:
    right: frozenset[str]
    by_point: frozenset[str]
    moved: frozenset[str]


def _beaten(given: Mapping[str, Any]) -> _Beaten:
    gains = given["gains"]
    return _Beaten(
        right=frozenset(name for name, (_, low, _) in gains.items() if low > 0),
        by_point=frozenset(name for name, (delta, _, _) in gains.items() if delta > 0),
        moved=frozenset(name for name, (_, low, high) in gains.items() if low > 0 or high < 0),
    )


EXERCISES = (
    Exercise(
        id="10.1",
        asks="the share of test rows whose group has rows in train, too",
        given=("train_groups", "test_groups"),
        facts=_shared,
        properties=(
            Property(
                says="The answer should be a share between 0 and 1.",
                holds=lambda a, _: is_number(a) and 0 <= float(a) <= 1,
                hint="Count test rows with a group that train knows, and divide by the test rows.",
            ),
            Property(
                says="It should count rows, not groups.",
                holds=lambda a, f: is_not(a, f.of_groups, f.right),
                hint="A group with many test rows counts as many times.",
            ),
            Property(
                says="It should be a share of the test rows.",
                holds=lambda a, f: is_not(a, f.of_train, f.right),
                hint="Go through the test rows; train only says which groups are known.",
            ),
            Property(
                says="The share should match the rows.",
                holds=lambda a, f: near(a, f.right),
                hint="A set of the groups of train makes the question short.",
            ),
        ),
        deepens="Every such row asks a model about something it has seen from another side. A "
        "score over them is higher than what new users will get.",
    ),
    Exercise(
        id="10.2",
        asks="how many test rows the interval needs to be as narrow as wanted",
        given=("share", "half"),
        facts=_rows,
        properties=(
            Property(
                says="The answer should be a number of rows.",
                holds=lambda a, _: is_number(a) and float(a) >= 1,
                hint="Half the interval is 1.96 × sqrt(p (1 - p) / n). Solve it for n.",
            ),
            Property(
                says="Twice as narrow should need four times the rows.",
                holds=lambda a, f: is_not(a, f.unsquared, f.right),
                hint="n stands under a root: square what you get.",
            ),
            Property(
                says="The half should be taken as half of the interval.",
                holds=lambda a, f: is_not(a, f.whole_width, f.right),
                hint="±5 points is a half of 0.05, to each side.",
            ),
            Property(
                says="The number should match the formula.",
                holds=lambda a, f: f.right - 1 <= float(a) <= f.right + 1,
                hint="p (1 - p) × (1.96 / half)², rounded up.",
            ),
        ),
        deepens="The formula is for rows that stand alone. Rows of one group tell less than as "
        "many separate ones, so plan with groups.",
    ),
    Exercise(
        id="10.3",
        asks="a minimum test for the tickets, as YAML text",
        given=("labels",),
        facts=lambda given: frozenset(given["labels"]),
        properties=(
            Property(
                says="The text should be a file of behaviour tests for task classify.",
                holds=_is_readable,
                hint="Call parse_behaviour(own_test, where='my test'): it names every fault with "
                "its line. The text begins with `task: classify` and `tests:`.",
            ),
            Property(
                says="Its tests should be of the kind minimum.",
                holds=lambda a, _: {test.kind for test in _own(a).tests} == {"minimum"},
                hint="kind: minimum, with expect: {label: …}. An invariance asks for no label.",
            ),
            Property(
                says="It should expect labels that the model knows.",
                holds=lambda a, f: _asked_labels(a) <= f,
                hint="Look at the labels above; spelling and capitals count.",
            ),
            Property(
                says="Of it should come ten letters or more.",
                holds=lambda a, _: _cases(a) >= FEWEST_CASES,
                hint="Under slots: list ten letters, or use a template with several {slots}. Of "
                "fewer cases no test passes.",
            ),
        ),
        deepens="You wrote these letters without looking at the data. That is what makes them "
        "worth something: the held-out rows come from the same desk as the training rows.",
    ),
    Exercise(
        id="10.4",
        asks="the domains in which the fine-tune is shown to beat counting words, as a set",
        given=("gains",),
        facts=_beaten,
        properties=(
            Property(
                says="The answer should be a set of names.",
                holds=lambda a, _: not isinstance(a, str) and all(isinstance(n, str) for n in a),
                hint='Such as {"tickets"}; gains maps a name to (gain, low, high).',
            ),
            Property(
                says="It should go by the interval, not by the gain itself.",
                holds=lambda a, f: f.by_point == f.right or set(a) != f.by_point,
                hint="The gain may be chance where its interval holds 0.",
            ),
            Property(
                says="Worse is no win.",
                holds=lambda a, f: f.moved == f.right or set(a) != f.moved,
                hint="An interval below 0 shows that counting words is better.",
            ),
            Property(
                says="The set should match the intervals.",
                holds=lambda a, f: set(a) == f.right,
                hint="The whole interval has to lie above 0.",
            ),
        ),
        deepens="Where counting words is as good, take it: it trains in a second, and everybody "
        "can read its weights.",
    ),
)
