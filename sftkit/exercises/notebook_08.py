"""The exercises of notebook 08."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.evidence.behaviour_cases import plan_behaviour
from sftkit.evidence.behaviour_file import BehaviourFile, parse_behaviour
from sftkit.evidence.shares import wilson_interval
from sftkit.evidence_records import BehaviourResult
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, near

FEWEST_LETTERS = 10


def _states(given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        BehaviourResult(
            name="",
            capability="",
            kind="minimum",
            cases=cases,
            failures=failures,
            ci95=wilson_interval(failures, cases),
            allowed=given["allowed"],
        ).state
        for failures, cases in given["counts"]
    )


def _own(text: Any) -> BehaviourFile:
    return parse_behaviour(text, where="your test")


def _cases(text: Any) -> int:
    return sum(len(plan.cases) for plan in plan_behaviour(_own(text)))


def _is_readable(text: Any, _: Any) -> bool:
    return isinstance(text, str) and _own(text).task == "classify"


@dataclass(frozen=True, kw_only=True)
class _Weight:
    right: float

    @property
    def upside_down(self) -> float:
        return 1 / self.right


def _weight(given: Mapping[str, Any]) -> _Weight:
    table = given["table"]
    total = sum(table.values())
    group = sum(count for (person, _), count in table.items() if person == "Black-sounding")
    urgent = sum(count for (_, label), count in table.items() if label == "urgent")
    both = table["Black-sounding", "urgent"]
    if not both:
        raise SftkitError("No urgent letter of this group is in the training rows. Take more.")
    return _Weight(right=group * urgent / total / both)


@dataclass(frozen=True, kw_only=True)
class _Errors:
    ece: float
    signed: float
    unweighted: float


def _errors(given: Mapping[str, Any]) -> _Errors:
    bins = [(items, sure - right) for items, sure, right in given["bins"]]
    total = sum(items for items, _ in bins)
    return _Errors(
        ece=sum(items * abs(gap) for items, gap in bins) / total,
        signed=sum(items * gap for items, gap in bins) / total,
        unweighted=sum(abs(gap) for _, gap in bins) / len(bins),
    )


@dataclass(frozen=True, kw_only=True)
class _Refused:
    everyone: frozenset[str]
    alone: frozenset[str]


def _refused(given: Mapping[str, Any]) -> _Refused:
    matrix = given["matrix"]
    return _Refused(
        everyone=frozenset(matrix.killed()), alone=frozenset(matrix.killed_by_accuracy())
    )


EXERCISES = (
    Exercise(
        id="08.1",
        asks="the states of three behaviour tests, as a list of three words",
        given=("counts", "allowed"),
        facts=_states,
        properties=(
            Property(
                says="The answer should be a list of three of the words pass, fail, undecided.",
                holds=lambda a, _: (
                    not isinstance(a, str)
                    and len(a) == 3
                    and set(a) <= {"pass", "fail", "undecided"}
                ),
                hint='In the order of the tests, such as ["pass", "pass", "pass"].',
            ),
            Property(
                says="A test without any failure should be judged by the rule for it.",
                holds=lambda a, f: a[0] == f[0],
                hint="None of 12 cases failed, and 12 are at least 10.",
            ),
            Property(
                says="The second should be judged by its interval, not by its point.",
                holds=lambda a, f: a[1] == f[1],
                hint="On which side of 10 % are the two ends of the interval?",
            ),
            Property(
                says="The third should be judged by its interval, too.",
                holds=lambda a, f: a[2] == f[2],
                hint="Even the lower end of its interval is how large?",
            ),
        ),
        deepens="3 of 40 is 7.5 %, under the limit of 10 %; and yet more than 10 % may well be "
        "true. More cases would decide it; a friendlier reading of the same cases would not.",
    ),
    Exercise(
        id="08.2",
        asks="an invariance test for the classifier, as YAML text",
        given=(),
        facts=lambda _: None,
        properties=(
            Property(
                says="The text should be a file of behaviour tests for task classify.",
                holds=_is_readable,
                hint="Call parse_behaviour(own_test, where='my test'): it names every fault with "
                "its line. The text begins with `task: classify` and `tests:`.",
            ),
            Property(
                says="Its tests should be of the kind invariance.",
                holds=lambda a, _: {test.kind for test in _own(a).tests} == {"invariance"},
                hint="kind: invariance. A minimum test asks for a label, and a directional one for "
                "a change.",
            ),
            Property(
                says="The same letter should come twice, the second time with something behind it.",
                holds=lambda a, _: all(test.template and test.to for test in _own(a).tests),
                hint="Give `template` and `to`; both hold the same {slot}.",
            ),
            Property(
                says="Of it should come ten letters or more.",
                holds=lambda a, _: _cases(a) >= FEWEST_LETTERS,
                hint="Under slots: list ten letters for the {slot}. Of fewer cases no test passes.",
            ),
            Property(
                says="The expected label should be the same.",
                holds=lambda a, _: all(test.expect.same for test in _own(a).tests),
                hint="expect: {same: true}",
            ),
        ),
        deepens="You did not need to know the right topic of any letter. That makes invariance "
        "tests cheap: they run on texts that nobody has labelled.",
    ),
    Exercise(
        id="08.3",
        asks="the weight of an urgent letter of the second group",
        given=("table",),
        facts=_weight,
        properties=(
            Property(
                says="The answer should be a number above 0.",
                holds=lambda a, _: is_number(a) and float(a) > 0,
                hint="P(group) × P(label) / P(group and label); each P is a count divided by all.",
            ),
            Property(
                says="A combination that is too rare should count more, not less.",
                holds=lambda a, f: is_not(a, f.upside_down, f.right),
                hint="You divided the other way round: what would be expected stands on top.",
            ),
            Property(
                says="The weight should match the table.",
                holds=lambda a, f: near(a, f.right),
                hint="P(group) counts both labels of the group, P(label) both groups.",
            ),
        ),
        deepens="All letters together keep their weight, and so do each group and each label: "
        "reweighing moves weight within them, and cannot know which labels are wrong.",
    ),
    Exercise(
        id="08.4",
        asks="the expected calibration error of three bins",
        given=("bins",),
        facts=_errors,
        properties=(
            Property(
                says="The answer should be a number between 0 and 1.",
                holds=lambda a, _: is_number(a) and 0 <= float(a) <= 1,
                hint="A share, not points: 0.05, not 5.",
            ),
            Property(
                says="Distances should not cancel.",
                holds=lambda a, f: is_not(a, f.signed, f.ece),
                hint="One bin is too unsure, the others are too sure: take absolute values.",
            ),
            Property(
                says="Bins should count by their letters.",
                holds=lambda a, f: is_not(a, f.unweighted, f.ece),
                hint="Multiply each distance by the letters of its bin, and divide by all letters.",
            ),
            Property(
                says="The error should match the bins.",
                holds=lambda a, f: near(a, f.ece),
                hint="Sum of letters × |confidence - accuracy|, divided by the sum of letters.",
            ),
        ),
        deepens="An ECE is a mean: a model that is far too sure where it matters may have a "
        "small one.",
    ),
    Exercise(
        id="08.5",
        asks="a set: the faults that some check refuses, and accuracy alone does not",
        given=("matrix",),
        facts=_refused,
        properties=(
            Property(
                says="The answer should be a collection of names of faults.",
                holds=lambda a, _: (
                    not isinstance(a, str) and all(isinstance(name, str) for name in a)
                ),
                hint="A set of row.name, for rows of matrix.mutants.",
            ),
            Property(
                says="Faults that accuracy notices should not be in it.",
                holds=lambda a, f: not set(a) & f.alone,
                hint="Leave out rows whose killed_by() holds one of matrix.alone.",
            ),
            Property(
                says="Faults that nobody notices should not be in it, nor sound models.",
                holds=lambda a, f: set(a) <= f.everyone,
                hint="killed_by() must not be empty; matrix.mutants holds no sound model.",
            ),
            Property(
                says="All of them should be in it.",
                holds=lambda a, f: set(a) == f.everyone - f.alone,
                hint="Compare killed_by() of every row with matrix.alone.",
            ),
        ),
        deepens="These would have been shipped with a good score. Which of your own projects has a "
        "check that would refuse them?",
    ),
)
