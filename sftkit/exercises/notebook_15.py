"""The exercises of notebook 15: ten patients, a diagnosis each.

Which patient has which number follows from the notebook's seed, so the right answer comes with the
ward that `check` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sftkit.exercises.terms import Exercise, Property

IN_TRAINING = {"all masked", "pad is eos", "leaked test", "huge rate", "tiny data"}
"""Faults that the training had already."""
IN_USE = {"swapped labels", "adapter not attached", "wrong base", "merged into 4-bit"}
"""Faults that were made after a sound training."""
EITHER = {"wrong template"}
"""Faults in which the two do not fit together; each alone is sound."""


@dataclass(frozen=True, kw_only=True)
class _Sealed:
    fault: str


def _sealed(number: int, given: Mapping[str, Any]) -> _Sealed:
    return _Sealed(fault=str(given["ward"].case(number).chart.fault))


def _is_on_its_side(answer: Any, facts: _Sealed) -> bool:
    either = {answer, facts.fault} & EITHER
    return bool(either) or (answer in IN_USE) == (facts.fault in IN_USE)


def _patient(number: int) -> Exercise:
    return Exercise(
        id=f"15.{number}",
        asks=f"the name of what is wrong with patient {number}",
        given=("ward",),
        facts=partial(_sealed, number),
        properties=(
            Property(
                says="The diagnosis should be one of the ten faults.",
                holds=lambda a, _: a in IN_TRAINING | IN_USE | EITHER,
                hint="Write it letter for letter as in the list of faults, in quotation marks.",
            ),
            Property(
                says="The diagnosis should lie on the right side of the training.",
                holds=_is_on_its_side,
                hint="Did the training go wrong, or what was done with its result? Compare the "
                "loss in the log with the loss where the model is used.",
            ),
            Property(
                says="The diagnosis should explain the whole chart.",
                holds=lambda a, f: a == f.fault,
                hint="Find the one line or token that it does not explain; "
                f"print(ward.hint({number})) says where to look.",
            ),
        ),
        deepens="Right. Open the diagnosis below: it says what was broken, and what cures it.",
    )


EXERCISES = tuple(_patient(number) for number in range(1, 11))
