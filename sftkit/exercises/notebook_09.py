"""The exercises of notebook 09."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.exercises.terms import Exercise, Property, is_not, is_number, near
from sftkit.serving import VLLM_RANKS


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {place: value}
    found: dict[str, Any] = {}
    for key, below in value.items():
        found |= _flat(below, f"{place}.{key}" if place else str(key))
    return found


@dataclass(frozen=True, kw_only=True)
class _Places:
    differing: frozenset[str]
    everything: frozenset[str]
    sections: frozenset[str]


def _differing(given: Mapping[str, Any]) -> _Places:
    one, other = _flat(given["first"]), _flat(given["second"])
    everything = frozenset(one) | frozenset(other)
    missing = object()
    differing = frozenset(
        place for place in everything if one.get(place, missing) != other.get(place, missing)
    )
    return _Places(
        differing=differing,
        everything=everything,
        sections=frozenset(place.split(".")[0] for place in differing),
    )


@dataclass(frozen=True, kw_only=True)
class _Ruled:
    out: frozenset[str]
    by_point: frozenset[str]
    moved: frozenset[str]


def _ruled(given: Mapping[str, Any]) -> _Ruled:
    probes, margin = given["probes"], given["margin"]
    return _Ruled(
        out=frozenset(name for name, (_, low, _) in probes.items() if low > -margin),
        by_point=frozenset(name for name, (delta, _, _) in probes.items() if delta > -margin),
        moved=frozenset(name for name, (_, low, high) in probes.items() if not low <= 0 <= high),
    )


@dataclass(frozen=True, kw_only=True)
class _Alike:
    kl: float
    backwards: float
    bits: float


def _alike(given: Mapping[str, Any]) -> _Alike:
    tested, served = given["tested"], given["served"]
    pairs = list(zip(tested, served, strict=True))
    kl = sum(p * math.log(p / q) for p, q in pairs)
    return _Alike(
        kl=kl, backwards=sum(q * math.log(q / p) for p, q in pairs), bits=kl / math.log(2)
    )


EXERCISES = (
    Exercise(
        id="09.1",
        asks="the probes on which a loss of the margin or more is ruled out, as a set of names",
        given=("probes", "margin"),
        facts=_ruled,
        properties=(
            Property(
                says="The answer should be a set of names of probes.",
                holds=lambda a, _: not isinstance(a, str) and all(isinstance(n, str) for n in a),
                hint='Such as {"piqa", "openbookqa"}; probes maps a name to (change, low, high).',
            ),
            Property(
                says="It should go by the interval, not by the change itself.",
                holds=lambda a, f: f.by_point == f.out or set(a) != f.by_point,
                hint="The true change may lie anywhere in the interval, also at its lower end.",
            ),
            Property(
                says="It should not ask whether the interval holds 0.",
                holds=lambda a, f: f.moved == f.out or set(a) != f.moved,
                hint="An interval around 0 may be narrow: then a large loss is ruled out.",
            ),
            Property(
                says="The set should match the intervals.",
                holds=lambda a, f: set(a) == f.out,
                hint="A loss of the margin is ruled out where the lower end lies above -margin.",
            ),
        ),
        deepens="“No significant loss” is what small tests always say. “A loss of 5 points is "
        "ruled out” has to be earned with enough questions.",
    ),
    Exercise(
        id="09.2",
        asks="the settings in which two recipes differ, as a set of dotted names",
        given=("first", "second"),
        facts=_differing,
        properties=(
            Property(
                says="The answer should be a set of dotted names.",
                holds=lambda a, _: not isinstance(a, str) and all(isinstance(n, str) for n in a),
                hint='Such as {"train.epochs"}.',
            ),
            Property(
                says="It should name settings, not whole sections.",
                holds=lambda a, f: not (set(a) & (f.sections - f.differing)),
                hint="Go one level down: for every section, for every setting in it.",
            ),
            Property(
                says="It should leave out what is alike.",
                holds=lambda a, f: not set(a) & (f.everything - f.differing),
                hint="Compare the values, not only the names.",
            ),
            Property(
                says="It should name every setting that differs.",
                holds=lambda a, f: set(a) == f.differing,
                hint="A setting that only one of the two has differs, too.",
            ),
        ),
        deepens="Two runs that differ in two settings cannot say which of them did it. Change one "
        "thing at a time, or run all combinations.",
    ),
    Exercise(
        id="09.3",
        asks="the KL divergence of the served model from the tested one at one place, in nats",
        given=("tested", "served"),
        facts=_alike,
        properties=(
            Property(
                says="The answer should be a number of 0 or more.",
                holds=lambda a, _: is_number(a) and float(a) >= 0,
                hint="Sum p × log(p / q) over the tokens.",
            ),
            Property(
                says="What was tested should be the one that is expected over.",
                holds=lambda a, f: is_not(a, f.backwards, f.kl),
                hint="p is the tested model's probability, q the served one's.",
            ),
            Property(
                says="It should be in nats.",
                holds=lambda a, f: is_not(a, f.bits, f.kl),
                hint="Take the natural logarithm; log2 gives bits.",
            ),
            Property(
                says="The number should match the two distributions.",
                holds=lambda a, f: near(a, f.kl),
                hint="Sum over all tokens, also those whose term is negative.",
            ),
        ),
        deepens="The most likely token is the same in both, and yet they differ: with sampling, "
        "users would notice before any accuracy does.",
    ),
    Exercise(
        id="09.4",
        asks="the --max-lora-rank to start vLLM with",
        given=("rank",),
        facts=lambda given: given["rank"],
        properties=(
            Property(
                says="The answer should be one of the ranks that vLLM takes.",
                holds=lambda a, _: is_number(a) and a in VLLM_RANKS,
                hint=f"They are {', '.join(map(str, VLLM_RANKS))}.",
            ),
            Property(
                says="The adapter should fit.",
                holds=lambda a, f: a >= f,
                hint="A rank below the adapter's is refused when it is loaded.",
            ),
            Property(
                says="It should be the smallest one that fits.",
                holds=lambda a, f: a == next(one for one in VLLM_RANKS if one >= f),
                hint="Memory is set aside for this rank, whatever the adapter's own is.",
            ),
        ),
        deepens="What a server takes is known before training: a rank of 24 costs as much there as "
        "one of 32.",
    ),
)
