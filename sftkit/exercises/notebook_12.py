"""The exercises of notebook 12."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_number, is_whole

MARGIN = 0.03
"""How much of the best accuracy on old images may be given up, as a share of 1."""


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    rank: int
    into: int
    out: int
    size: int

    @property
    def count(self) -> int:
        return self.rank * self.into * self.size**2 + self.out * self.rank

    @property
    def whole(self) -> int:
        return self.out * self.into * self.size**2

    @property
    def linear(self) -> int:
        """What lora would have if the kernel were one pixel wide."""
        return self.rank * (self.into + self.out)


def _kernel(given: Mapping[str, Any]) -> _Kernel:
    out, into, size, _ = (int(part) for part in given["kernel"])
    return _Kernel(rank=int(given["rank"]), into=into, out=out, size=size)


@dataclass(frozen=True, kw_only=True)
class _Flips:
    lost: int
    gained: int
    wrong_after: int


def _flips(given: Mapping[str, Any]) -> _Flips:
    rows = list(zip(given["true"], given["before"], given["after"], strict=True))
    if not rows:
        raise SftkitError("There are no predictions to compare. Run the cells above again.")
    return _Flips(
        lost=sum(int(old) == int(true) != int(new) for true, old, new in rows),
        gained=sum(int(new) == int(true) != int(old) for true, old, new in rows),
        wrong_after=sum(int(new) != int(true) for true, _, new in rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Taken:
    cells: Mapping[tuple[str, str], int]
    classes: tuple[str, ...]

    @property
    def most(self) -> int:
        return max(self.cells.values())


def _taken(given: Mapping[str, Any]) -> _Taken:
    classes = tuple(str(name) for name in given["classes"])
    cells = {
        (classes[true], classes[said]): int(count)
        for true, line in enumerate(given["confusion"])
        for said, count in enumerate(line)
        if true != said and count
    }
    if not cells:
        raise SftkitError("No image was mistaken, so there is nothing to find. Raise the epochs.")
    return _Taken(cells=cells, classes=classes)


@dataclass(frozen=True, kw_only=True)
class _Shares:
    old: Mapping[float, float]
    right: float


def _shares(given: Mapping[str, Any]) -> _Shares:
    old = {float(share): float(pair[1]) for share, pair in given["measured"].items()}
    if len(old) < 2:
        raise SftkitError("Two shares or more must be measured. Run the cells above again.")
    enough = max(old.values()) - MARGIN
    return _Shares(
        old=old, right=min(share for share, value in old.items() if value >= enough - 1e-9)
    )


def _share_of(answer: Any, facts: _Shares) -> float | None:
    return next((share for share in facts.old if abs(share - float(answer)) < 1e-9), None)


EXERCISES = (
    Exercise(
        id="12.1",
        asks="trainable numbers that convolutional lora adds to one kernel",
        given=("kernel", "rank"),
        facts=_kernel,
        properties=(
            Property(
                says="The answer should be a whole number above 0.",
                holds=lambda a, _: is_whole(a) and a > 0,
                hint="Count the numbers in A and in B, and add them.",
            ),
            Property(
                says="It should not be the size of the kernel itself.",
                holds=lambda a, f: a != f.whole or a == f.count,
                hint="The kernel stays as it is. Only A and B are trained.",
            ),
            Property(
                says="A should see as many pixels as the kernel does.",
                holds=lambda a, f: a != f.linear or a == f.count,
                hint="A is a convolution of the kernel's own height and width; B looks at one "
                "pixel.",
            ),
            Property(
                says="Both A and B should be counted.",
                holds=lambda a, f: a not in (f.rank * f.into * f.size**2, f.out * f.rank),
                hint="A has shape (r, in, k, k), B has shape (out, r, 1, 1).",
            ),
            Property(
                says="The number should fit the shapes.",
                holds=lambda a, f: a == f.count,
                hint="Multiply the four sizes of A, multiply the four sizes of B, add the two.",
            ),
        ),
        deepens="B costs only out × r because it mixes channels at one pixel: all of the "
        "neighbourhood is seen by A.",
    ),
    Exercise(
        id="12.2",
        asks="old images that were right before and wrong after, and the other way round",
        given=("true", "before", "after"),
        facts=_flips,
        properties=(
            Property(
                says="The answer should be a pair of whole numbers.",
                holds=lambda a, _: len(a) == 2 and all(is_whole(one) for one in a),
                hint="First how many were lost, then how many were gained.",
            ),
            Property(
                says="The first number should be what was lost, the second what was gained.",
                holds=lambda a, f: tuple(a) != (f.gained, f.lost) or f.gained == f.lost,
                hint="Lost means right before and wrong after.",
            ),
            Property(
                says="Only images that were right before should count as lost.",
                holds=lambda a, f: a[0] != f.wrong_after or f.wrong_after == f.lost,
                hint="What was wrong before and is wrong now was not forgotten.",
            ),
            Property(
                says="Both counts should match the predictions.",
                holds=lambda a, f: tuple(a) == (f.lost, f.gained),
                hint="Compare each image with its true label, once before and once after.",
            ),
        ),
        deepens="The difference of two accuracies hides what was gained behind what was lost; a "
        "paired interval looks at both.",
    ),
    Exercise(
        id="12.3",
        asks="the pair (true label, predicted label) that is mistaken most often",
        given=("confusion", "classes"),
        facts=_taken,
        properties=(
            Property(
                says="The answer should be a pair of labels, both among the classes.",
                holds=lambda a, f: len(a) == 2 and all(str(one) in f.classes for one in a),
                hint="Labels are texts such as '3'; the true one comes first.",
            ),
            Property(
                says="The two should differ.",
                holds=lambda a, _: str(a[0]) != str(a[1]),
                hint="What stands on the diagonal is right.",
            ),
            Property(
                says="The true label should come first.",
                holds=lambda a, f: (
                    (str(a[0]), str(a[1])) in f.cells
                    or f.cells.get((str(a[1]), str(a[0])), 0) < f.most
                ),
                hint="A row of the table is a true label, a column what it was taken for.",
            ),
            Property(
                says="No other pair should be mistaken more often.",
                holds=lambda a, f: f.cells.get((str(a[0]), str(a[1])), 0) == f.most,
                hint="Look for the largest count off the diagonal.",
            ),
        ),
        deepens="Where all of one label becomes one other label, the model has not lost the "
        "image; it has lost the answer.",
    ),
    Exercise(
        id="12.4",
        asks="the smallest share of replay that keeps the old images",
        given=("measured",),
        facts=_shares,
        properties=(
            Property(
                says="The answer should be a share that was measured.",
                holds=lambda a, f: is_number(a) and _share_of(a, f) is not None,
                hint="A number such as 0.1, as it stands in `measured`.",
            ),
            Property(
                says=f"It should keep the old images to within {MARGIN:.0%} of the best share.",
                holds=lambda a, f: (
                    f.old[_share_of(a, f) or 0.0] >= max(f.old.values()) - MARGIN - 1e-9
                ),
                hint="The second number of each pair is the accuracy on old images.",
            ),
            Property(
                says="No smaller share should do as much.",
                holds=lambda a, f: _share_of(a, f) == f.right,
                hint="Replay costs training time, so take the least that is enough.",
            ),
        ),
        deepens="A share chosen by these validation images is reported on test images, which had "
        "no part in the choice.",
    ),
)
