"""The exercises of notebook 04."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near

BATCHES = (512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class _Bits:
    plain: float
    double: float
    shared_only: float


def _bits(given: Mapping[str, Any]) -> _Bits:
    size = int(given["blocksize"])
    return _Bits(
        plain=4 + 32 / size, double=4 + 8 / size + 32 / (256 * size), shared_only=4 + 8 / size
    )


@dataclass(frozen=True, kw_only=True)
class _Costs:
    names: frozenset[str]
    sure: frozenset[str]
    above: frozenset[str]


def _costs(given: Mapping[str, Any]) -> _Costs:
    costs = given["costs"]
    return _Costs(
        names=frozenset(costs),
        sure=frozenset(name for name, cost in costs.items() if cost.ci95[0] > 0),
        above=frozenset(name for name, cost in costs.items() if cost.delta > 0),
    )


def _chosen(answer: Any) -> frozenset[str]:
    names = (answer,) if isinstance(answer, str) else answer
    return frozenset(str(name) for name in names) - {"none"}


@dataclass(frozen=True, kw_only=True)
class _Room:
    models: tuple[str, ...]
    fits: frozenset[tuple[str, int]]

    @property
    def largest(self) -> str:
        return max((name for name, _ in self.fits), key=self.models.index)


def _room(given: Mapping[str, Any]) -> _Room:
    models, budget = tuple(given["models"]), float(given["budget"])
    tried = [(name, batch) for name in models for batch in BATCHES]
    fits = frozenset(one for one in tried if given["needed"](one[0], "nf4", one[1]) <= budget)
    if not fits:
        raise SftkitError(f"No model of {', '.join(models)} fits into {budget / 1e9:g} GB.")
    return _Room(models=models, fits=fits)


EXERCISES = (
    Exercise(
        id="04.1",
        asks="(bits with 32-bit scales, bits with double quantization), averages per weight",
        given=("blocksize",),
        facts=_bits,
        properties=(
            Property(
                says="The answer should be a pair of numbers.",
                holds=lambda a, _: len(a) == 2 and is_number(a[0]) and is_number(a[1]),
                hint="First with scales of 32 bits, then with double quantization.",
            ),
            Property(
                says="A weight should take at least its own four bits.",
                holds=lambda a, _: a[0] > 4 and a[1] > 4,
                hint="Four bits point to a level; the share of the scales comes on top.",
            ),
            Property(
                says="A scale should be shared by the weights of its block.",
                holds=lambda a, f: near(a[0], f.plain),
                hint="A block keeps one scale of 32 bits. How many weights share it?",
            ),
            Property(
                says="The scales' own scale should count too.",
                holds=lambda a, f: is_not(a[1], f.shared_only, f.double),
                hint="Each 8-bit scale needs a 32-bit scale of its own, which 256 of them share. "
                "Over how many weights is that?",
            ),
            Property(
                says="Double quantization should make the scales smaller, and nothing else.",
                holds=lambda a, f: near(a[1], f.double),
                hint="The scale of a block has 8 bits now; on top comes 32 bits per 256 blocks. "
                "Give at least three digits.",
            ),
        ),
        deepens="Double quantization saves a third of a bit per weight: 0.3 GB on a model of 8 "
        "billion, which can be what was missing.",
    ),
    Exercise(
        id="04.2",
        asks="the names of the ways whose interval lies above zero, or none",
        given=("costs",),
        facts=_costs,
        properties=(
            Property(
                says="The answer should be names of `costs`, or none.",
                holds=lambda a, f: (
                    _chosen(a) <= f.names and (len(_chosen(a)) > 0 or a in ("none", set()))
                ),
                hint="Give a set of names as they are printed, or the word none.",
            ),
            Property(
                says="A higher loss alone should not be enough.",
                holds=lambda a, f: _chosen(a) != f.above or f.above == f.sure,
                hint="You took every way whose loss rose. Would it rise on other passages as well? "
                "Look at `ci95`.",
            ),
            Property(
                says="A way that is named should be worse for sure.",
                holds=lambda a, f: _chosen(a) <= f.sure,
                hint="For a way you named, zero lies inside its interval: it may cost nothing.",
            ),
            Property(
                says="Every way that is worse for sure should be named.",
                holds=lambda a, f: _chosen(a) >= f.sure,
                hint="Another interval lies above zero as a whole. Its lower end decides.",
            ),
        ),
        deepens="An interval that includes zero is no proof of no cost: with more passages it gets "
        "narrower, and a small cost shows.",
    ),
    Exercise(
        id="04.3",
        asks="(name of the largest model that fits in nf4, largest of the batches it takes)",
        given=("models", "needed", "budget"),
        facts=_room,
        properties=(
            Property(
                says="The answer should be a name of the list and a number of tokens.",
                holds=lambda a, f: len(a) == 2 and a[0] in f.models and is_whole(a[1]),
                hint="First a name as it is printed, then the batch, such as 512.",
            ),
            Property(
                says="The batch should be one of those to be tried.",
                holds=lambda a, _: a[1] in BATCHES,
                hint="Try 512, 1024, 2048 and 4096 tokens.",
            ),
            Property(
                says="Model and batch should fit together.",
                holds=lambda a, f: tuple(a) in f.fits,
                hint="`needed(name, 'nf4', batch)` gives bytes, at the upper end of the interval. "
                "Is it below 16e9?",
            ),
            Property(
                says="No larger model should fit.",
                holds=lambda a, f: a[0] == f.largest,
                hint="A larger model fits with a smaller batch. The list is in order of size.",
            ),
            Property(
                says="No larger batch should fit with this model.",
                holds=lambda a, f: not any(n == a[0] and b > a[1] for n, b in f.fits),
                hint="There is still room: try the next larger batch.",
            ),
        ),
        deepens="With activations computed again in the backward pass a larger batch fits, for "
        "about a third more time.",
    ),
)
