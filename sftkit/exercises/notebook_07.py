"""The exercises of notebook 07."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_number, is_whole, near


@dataclass(frozen=True, kw_only=True)
class _Tested:
    raw: Mapping[str, float]
    corrected: Mapping[str, float]
    bonferroni: Mapping[str, float]
    uncapped: Mapping[str, float]
    unordered: Mapping[str, float]


def _tested(given: Mapping[str, Any]) -> _Tested:
    raw = {str(name): float(value) for name, value in given["raw"].items()}
    if len(raw) < 2:
        raise SftkitError("Correct two p-values or more. Name more probes in evaluate.probes.")
    names = sorted(raw, key=lambda name: raw[name])
    steps = [(len(raw) - rank) * raw[name] for rank, name in enumerate(names)]
    climbed = list(itertools.accumulate(steps, max))
    return _Tested(
        raw=raw,
        corrected={name: min(1.0, one) for name, one in zip(names, climbed, strict=True)},
        bonferroni={name: min(1.0, len(raw) * value) for name, value in raw.items()},
        uncapped=dict(zip(names, climbed, strict=True)),
        unordered={name: min(1.0, one) for name, one in zip(names, steps, strict=True)},
    )


def _same(answer: Mapping[str, Any], values: Mapping[str, float]) -> bool:
    return all(near(answer[name], value) for name, value in values.items())


def _is_not(answer: Any, mistake: Mapping[str, float], facts: _Tested) -> bool:
    return not _same(answer, mistake) or _same(mistake, facts.corrected)


@dataclass(frozen=True, kw_only=True)
class _Turned:
    to_wrong: int
    to_right: int


def _turned(given: Mapping[str, Any]) -> _Turned:
    flips = given["flips"]
    return _Turned(
        to_wrong=sum(flip.base == flip.right for flip in flips),
        to_right=sum(flip.tuned == flip.right for flip in flips),
    )


@dataclass(frozen=True, kw_only=True)
class _Strengths:
    gains: Mapping[float, float]
    within: frozenset[float]

    @property
    def best(self) -> float:
        return max(self.within, key=lambda one: self.gains[one], default=0.0)


def _strengths(given: Mapping[str, Any]) -> _Strengths:
    table = {float(strength): tuple(map(float, row)) for strength, row in given["table"].items()}
    return _Strengths(
        gains={strength: gain for strength, (gain, _) in table.items()},
        within=frozenset(one for one, (_, most) in table.items() if most < float(given["margin"])),
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    names: frozenset[str]
    front: frozenset[str]
    most_gain: str
    least_drift: str


def _places(given: Mapping[str, Any]) -> _Places:
    places = {str(name): (float(a), float(b)) for name, (a, b) in given["places"].items()}
    if not places:
        raise SftkitError("There are no points to compare. Run the cells above again.")

    def beaten(own: tuple[float, float]) -> bool:
        return any(o != own and o[0] >= own[0] and o[1] <= own[1] for o in places.values())

    return _Places(
        names=frozenset(places),
        front=frozenset(name for name, own in places.items() if not beaten(own)),
        most_gain=max(places, key=lambda name: (places[name][0], -places[name][1])),
        least_drift=min(places, key=lambda name: (places[name][1], -places[name][0])),
    )


EXERCISES = (
    Exercise(
        id="07.1",
        asks="a dictionary from each probe's name to its p-value after Holm's correction",
        given=("raw",),
        facts=_tested,
        properties=(
            Property(
                says="The answer should have one number for each probe.",
                holds=lambda a, f: set(a) == set(f.raw) and all(map(is_number, a.values())),
                hint="The keys are those of `raw`.",
            ),
            Property(
                says="No corrected p-value should be smaller than the raw one.",
                holds=lambda a, f: all(float(a[n]) >= v - 5.1e-4 for n, v in f.raw.items()),
                hint="A correction makes it harder to find something, never easier.",
            ),
            Property(
                says="No p-value should exceed 1.",
                holds=lambda a, f: all(float(value) <= 1 + 1e-9 for value in a.values()),
                hint="Take min(1, …) of each product.",
            ),
            Property(
                says="Only the smallest p-value should be multiplied by the number of probes.",
                holds=lambda a, f: _is_not(a, f.bonferroni, f),
                hint="That is Bonferroni's correction. Holm multiplies the next one by one less.",
            ),
            Property(
                says="A larger raw p-value should never get a smaller corrected one.",
                holds=lambda a, f: _is_not(a, f.unordered, f),
                hint="Go from the smallest to the largest, and keep the largest product so far.",
            ),
            Property(
                says="The numbers should be Holm's.",
                holds=lambda a, f: _same(a, f.corrected),
                hint="Sort by raw p-value; multiply by 3, 2, 1; keep the largest so far; cap at 1.",
            ),
        ),
        deepens="Of twenty probes without any forgetting, one will have p < 0.05 on average. "
        "Whoever reports only that one has found nothing.",
    ),
    Exercise(
        id="07.2",
        asks="(questions that turned wrong, questions that turned right)",
        given=("flips",),
        facts=_turned,
        properties=(
            Property(
                says="The answer should be two whole numbers of 0 or more.",
                holds=lambda a, _: len(a) == 2 and all(is_whole(one) and one >= 0 for one in a),
                hint="Such as (7, 3).",
            ),
            Property(
                says="Questions that turned wrong should come first.",
                holds=lambda a, f: (
                    f.to_right == f.to_wrong or (int(a[0]), int(a[1])) != (f.to_right, f.to_wrong)
                ),
                hint="Turned wrong: the base model's option is the right one.",
            ),
            Property(
                says="Each flip should be counted once.",
                holds=lambda a, f: int(a[0]) + int(a[1]) == f.to_right + f.to_wrong,
                hint="Each flip either turned wrong (`base == right`) or right (`tuned == right`).",
            ),
            Property(
                says="The numbers should match the flips.",
                holds=lambda a, f: (int(a[0]), int(a[1])) == (f.to_wrong, f.to_right),
                hint="Compare `flip.base` and `flip.tuned` with `flip.right`.",
            ),
        ),
        deepens="Equal numbers both ways are no proof that nothing happened: the model changed its "
        "mind on all of them. Log-probabilities and drift would show it.",
    ),
    Exercise(
        id="07.3",
        asks="the strength with the largest gain within the margin, or 0",
        given=("table", "margin"),
        facts=_strengths,
        properties=(
            Property(
                says="The answer should be one of the strengths, or 0.",
                holds=lambda a, f: is_number(a) and float(a) in {0.0, *f.gains},
                hint="The keys of `table` are the strengths.",
            ),
            Property(
                says="Its drift should stay within the margin by the interval.",
                holds=lambda a, f: float(a) == 0 or float(a) in f.within,
                hint="The second number of its row must be below `margin`.",
            ),
            Property(
                says="No other strength within the margin should gain more.",
                holds=lambda a, f: float(a) == f.best,
                hint="Among the rows that stay within the margin, take the largest first number.",
            ),
        ),
        deepens="A bound decides here, not a point: whoever must not forget has to show that the "
        "worst the data allow is still small enough.",
    ),
    Exercise(
        id="07.4",
        asks="the names of all points that no other point beats, as a set",
        given=("places",),
        facts=_places,
        properties=(
            Property(
                says="The answer should be a collection of names of points.",
                holds=lambda a, f: not isinstance(a, str) and len(a) > 0 and set(a) <= f.names,
                hint="A set, such as {'gentle', 'slow'}.",
            ),
            Property(
                says="The point that gains most should be in it.",
                holds=lambda a, f: f.most_gain in a,
                hint="Nobody gains more than it, so nobody can beat it.",
            ),
            Property(
                says="The point that drifts least should be in it.",
                holds=lambda a, f: f.least_drift in a,
                hint="Nobody forgets less, so nobody can beat it.",
            ),
            Property(
                says="No point that another beats should be in it.",
                holds=lambda a, f: set(a) <= f.front,
                hint="One of yours has another point above it or level, and to its left or level.",
            ),
            Property(
                says="No point that nobody beats should be missing.",
                holds=lambda a, f: set(a) == f.front,
                hint="For each point ask: is there another with at least its gain and at most its "
                "drift? If not, it belongs in.",
            ),
        ),
        deepens="The set says what can be had, not what to take. That needs a margin: how much "
        "forgetting is too much?",
    ),
)
