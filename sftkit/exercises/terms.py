"""What an exercise is made of: its properties, and how answers are compared."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Property:
    """One thing that must hold of a right answer.

    Attributes:
        says: The property, as "... should ...", shown when it fails.
        holds: Called with the answer and the exercise's facts. A predicate that raises has
            failed, so it may assume the type that the first property asks for.
        hint: Where to look. It never states the answer.
    """

    says: str
    holds: Callable[[Any, Any], bool]
    hint: str


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise.

    Attributes:
        id: Notebook and number, e.g. 00.1.
        asks: What is handed in, in one line.
        given: Names of the values the notebook passes to `check` beside the answer.
        facts: Turns these values into what the properties compare with. It raises SftkitError
            when the run cannot answer the question at all.
        properties: Tried in order; the first that fails is the one reported.
        deepens: One sentence to think about once it is solved.
    """

    id: str
    asks: str
    given: tuple[str, ...]
    facts: Callable[[Mapping[str, Any]], Any]
    properties: tuple[Property, ...]
    deepens: str


def is_whole(value: Any) -> bool:
    """Say that a value is a whole number, numpy's and torch's included; other kinds raise."""
    operator.index(value)
    return not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Say that a value is a finite number; what cannot be one raises."""
    return not isinstance(value, bool | str | bytes) and math.isfinite(float(value))


def is_not(value: Any, mistake: float, expected: float) -> bool:
    """Say that a value is not a known mistake, where that mistake would show."""
    return not near(value, mistake) or near(mistake, expected)


def near(value: Any, expected: float) -> bool:
    """Compare as far as three digits after the point, so that a rounded answer counts."""
    return math.isclose(float(value), expected, rel_tol=1e-6, abs_tol=5.1e-4)
