"""Exercises that check themselves: `check` answers, give hints, show progress, strip solutions.

An exercise is data: an entry of `EXERCISES` that names what a right answer must satisfy, one
property after the other, each with a hint. Answers are values, never text to be evaluated.

To add one, put an `Exercise` into the module of its notebook. What the notebook measured reaches
it as keyword arguments of `check`; so would the seed of a variant.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sftkit.errors import SftkitError, near_names
from sftkit.exercises import (
    notebook_00,
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
    notebook_10,
    notebook_11,
    notebook_12,
    notebook_15,
)
from sftkit.exercises.solutions import has_solution, strip_solutions
from sftkit.exercises.terms import Exercise, Property

__all__ = [
    "EXERCISES",
    "CheckResult",
    "Progress",
    "check",
    "has_solution",
    "progress",
    "strip_solutions",
]

State = Literal["unanswered", "right", "wrong"]

_MARKS: Mapping[State, str] = {"right": "✓", "wrong": "✗", "unanswered": "–"}
_COLOURS: Mapping[State, str] = {"right": "#0072B2", "wrong": "#D55E00", "unanswered": "#777777"}

EXERCISES: Mapping[str, Exercise] = {
    one.id: one
    for notebook in (
        notebook_00,
        notebook_01,
        notebook_02,
        notebook_03,
        notebook_04,
        notebook_05,
        notebook_06,
        notebook_07,
        notebook_08,
        notebook_09,
        notebook_10,
        notebook_11,
        notebook_12,
        notebook_15,
    )
    for one in notebook.EXERCISES
}
"""Every exercise by id: the one registry."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CheckResult:
    """What `check` says; a notebook shows it as the value of the cell.

    Attributes:
        id: The exercise.
        state: unanswered, right or wrong.
        message: One line for the learner.
    """

    id: str
    state: State
    message: str

    def __repr__(self) -> str:
        return self.message

    def _repr_html_(self) -> str:
        return _box(self.message, _COLOURS[self.state])


@dataclass(frozen=True, kw_only=True, repr=False)
class Progress:
    """Which exercises were solved in this session.

    Attributes:
        states: State of each exercise, by id; one that was solved stays solved.
    """

    states: Mapping[str, State]

    def __repr__(self) -> str:
        solved = sum(state == "right" for state in self.states.values())
        each = " · ".join(f"{id_} {_MARKS[state]}" for id_, state in self.states.items())
        return f"{solved} of {len(self.states)} solved: {each}"

    def _repr_html_(self) -> str:
        return _box(str(self), _COLOURS["right"])


def check(exercise_id: str, answer: Any, **given: Any) -> CheckResult:
    """Say whether an answer is right, or which property fails, with a hint.

    `...` and None, alone or inside the answer, count as not answered yet, so that a notebook
    runs top to bottom with its exercises untouched. What each exercise of a notebook expects
    is in its entry: `EXERCISES["00.1"].asks` and `.given`.

    Args:
        exercise_id: Such as "00.1".
        answer: The learner's answer.
        given: Values measured in the notebook that the answer must fit.

    Returns:
        The result, shown by the notebook; let `check(...)` be the last line of its cell.

    Raises:
        SftkitError: The exercise is unknown, a value it needs is missing or cannot be used.
    """
    if exercise_id not in EXERCISES:
        raise SftkitError(f"No exercise {exercise_id!r}.{near_names(str(exercise_id), EXERCISES)}")
    exercise = EXERCISES[exercise_id]
    if set(given) != set(exercise.given):
        needed = "".join(f", {name}=..." for name in exercise.given)
        raise SftkitError(
            f"check({exercise_id!r}) was given {sorted(given) or 'nothing'} beside the answer. "
            f"Write check({exercise_id!r}, answer{needed})."
        )
    result = _judge(exercise, answer, given)
    if exercise_id not in _session or _session[exercise_id].state != "right":
        _session[exercise_id] = result
    return result


def progress(notebook: str = "") -> Progress:
    """Show which exercises were solved in this session.

    Args:
        notebook: Number of a notebook, such as "00"; empty for all.

    Returns:
        The state of each exercise, in order.
    """
    return Progress(
        states={
            id_: _session[id_].state if id_ in _session else "unanswered"
            for id_ in EXERCISES
            if id_.startswith(notebook)
        }
    )


_session: dict[str, CheckResult] = {}


def _judge(exercise: Exercise, answer: Any, given: Mapping[str, Any]) -> CheckResult:
    if _is_unanswered(answer):
        message = f"{exercise.id}: not answered yet"
        return CheckResult(id=exercise.id, state="unanswered", message=message)
    try:
        facts = exercise.facts(given)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise SftkitError(
            f"check({exercise.id!r}) cannot use what it was given as {', '.join(given)}: {error}. "
            "Run the cells above again, unchanged."
        ) from error
    for wanted in exercise.properties:
        if not _holds(wanted, answer, facts):
            message = f"{exercise.id} ✗ {wanted.says} Hint: {wanted.hint}"
            return CheckResult(id=exercise.id, state="wrong", message=message)
    message = f"{exercise.id} ✓ {exercise.deepens}"
    return CheckResult(id=exercise.id, state="right", message=message)


def _is_unanswered(answer: Any) -> bool:
    inside: Sequence[Any] = ()
    if isinstance(answer, Mapping):
        inside = tuple(answer.values())
    elif isinstance(answer, list | tuple):
        inside = answer
    return any(part is ... or part is None for part in (answer, *inside))


def _holds(wanted: Property, answer: Any, facts: Any) -> bool:
    try:
        return bool(wanted.holds(answer, facts))
    except Exception:  # whatever an answer of the wrong kind makes a comparison raise
        return False


def _box(text: str, colour: str) -> str:
    style = f"border-left: 4px solid {colour}; padding: 0.2em 0.8em"
    return f'<div style="{style}">{html.escape(text)}</div>'
