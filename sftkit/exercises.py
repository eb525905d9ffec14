"""Exercises that check themselves: `check` answers, give hints, show progress, strip solutions.

An exercise is data: an entry of `EXERCISES` that names what a right answer must satisfy, one
property after the other, each with a hint. Answers are values, never text to be evaluated.

To add one, put an `Exercise` into `_ALL`. What the notebook measured reaches it as keyword
arguments of `check`; so would the seed of a variant.
"""

from __future__ import annotations

import ast
import html
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sftkit.errors import SftkitError, near_names
from sftkit.records import IGNORE

State = Literal["unanswered", "right", "wrong"]

_MARKS: Mapping[State, str] = {"right": "✓", "wrong": "✗", "unanswered": "–"}
_COLOURS: Mapping[State, str] = {"right": "#0072B2", "wrong": "#D55E00", "unanswered": "#777777"}


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


def strip_solutions(source: str) -> str:
    """Replace each solution in a cell by placeholders.

    A solution stands between nbgrader's marker lines, `### BEGIN SOLUTION` and
    `### END SOLUTION`. Names assigned in it, at any depth but not inside its functions, become
    `name = ...` at the block's indentation; names that start with an underscore are the
    solution's own helpers and vanish. A block that assigns no name becomes `...`.

    Args:
        source: Source of one code cell.

    Returns:
        The source without solutions; equal to `source` if it has no markers.

    Raises:
        SftkitError: A marker is misspelt, missing or nested (a solution would be shown), or
            the solution is not plain Python.
    """
    stripped: list[str] = []
    block: list[str] | None = None
    for number, line in enumerate(source.splitlines(keepends=True), start=1):
        marker = _marker(line, number)
        if marker == "BEGIN" and block is None:
            block = []
        elif marker == "END" and block is not None:
            stripped.append(_placeholders(block, number))
            block = None
        elif marker:
            raise SftkitError(f"Line {number}: {line.strip()!r} has no partner before it.")
        else:
            (stripped if block is None else block).append(line)
    if block is not None:
        raise SftkitError("The last '### BEGIN SOLUTION' has no '### END SOLUTION' after it.")
    # A last marker without a line break must not leave one behind.
    return "".join(stripped) if source.endswith("\n") else "".join(stripped).removesuffix("\n")


def has_solution(source: str) -> bool:
    """Say whether a cell's source holds a solution block.

    Raises:
        SftkitError: A line looks like a marker and is not one.
    """
    return any(_marker(line, n) for n, line in enumerate(source.splitlines(), start=1))


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


def _marker(line: str, number: int) -> str:
    """Name the marker on a line: BEGIN, END, or nothing."""
    text = line.strip()
    if text in ("### BEGIN SOLUTION", "### END SOLUTION"):
        return text.split()[1]
    if re.match(r"#+\s*(begin|end)\W*solutions?\b", text, re.IGNORECASE):
        raise SftkitError(
            f"Line {number}: {text!r} is not a marker, so the solution would be shown. "
            "Write '### BEGIN SOLUTION' or '### END SOLUTION'."
        )
    return ""


def _placeholders(block: Sequence[str], end_line: int) -> str:
    first = next((line for line in block if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    # An `if` above it makes an indented block a module; dedenting would cut into long strings.
    text = ("if True:\n" if indent else "") + "".join(block)
    try:
        names = _assigned(ast.parse(text))
    except SyntaxError as error:
        raise SftkitError(
            f"The solution that ends on line {end_line} is not plain Python: {error.msg}. "
            "Keep magics and shell commands outside the markers."
        ) from error
    kept = [name for name in dict.fromkeys(names) if not name.startswith("_")]
    return "".join(f"{indent}{name} = ...\n" for name in kept) or f"{indent}...\n"


def _assigned(node: ast.AST) -> list[str]:
    """List the names a block assigns, in order, leaving out what its functions keep inside."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return []
    names: list[str] = []
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names += [name for target in targets for name in _target_names(target)]
    return names + [name for child in ast.iter_child_nodes(node) for name in _assigned(child)]


def _target_names(target: ast.expr) -> list[str]:
    """List plain names of a target; `table[key]` and `record.field` hold no name to keep."""
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Starred):
        return _target_names(target.value)
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in _target_names(part)]
    return []


# --- What the exercises compare with -------------------------------------------------------


def _is_whole(value: Any) -> bool:
    operator.index(value)  # raises for what is no whole number; takes numpy's and torch's
    return not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str | bytes) and math.isfinite(float(value))


def _is_not(value: Any, mistake: float, expected: float) -> bool:
    """Say that a value is not a known mistake, where that mistake would show."""
    return not _near(value, mistake) or _near(mistake, expected)


def _near(value: Any, expected: float) -> bool:
    """Compare as far as three digits after the point, so that a rounded answer counts."""
    return math.isclose(float(value), expected, rel_tol=1e-6, abs_tol=5.1e-4)


@dataclass(frozen=True, kw_only=True)
class _Supervision:
    tokens: int
    supervised: int
    end_position: int
    end_id: int


def _supervision(given: Mapping[str, Any]) -> _Supervision:
    labels = tuple(int(label) for label in given["example"].labels)
    learned = [position for position, label in enumerate(labels) if label != IGNORE]
    if not learned:
        raise SftkitError("This example has no supervised token. Take another one.")
    return _Supervision(
        tokens=len(labels),
        supervised=len(learned),
        end_position=learned[-1],
        end_id=labels[learned[-1]],
    )


@dataclass(frozen=True, kw_only=True)
class _Paired:
    delta: float
    percent: float
    total: float
    unsigned: float
    relative: float
    excludes_zero: bool


def _paired(given: Mapping[str, Any]) -> _Paired:
    before = [float(value) for value in given["before"]]
    after = [float(value) for value in given["after"]]
    low, high = (float(end) for end in given["ci95"])
    if not before or len(before) != len(after):
        raise SftkitError(
            f"Pairs need as many values before as after, got {len(before)} and {len(after)}."
        )
    differences = [a - b for b, a in zip(before, after, strict=True)]
    total = sum(differences)
    delta = total / len(differences)
    return _Paired(
        delta=delta,
        percent=100 * delta,
        total=total,
        unsigned=sum(abs(difference) for difference in differences) / len(differences),
        relative=total / sum(before) if sum(before) else delta,
        excludes_zero=low > 0 or high < 0,
    )


_MEASURES = ("accuracy", "logprob", "drift")


def _which_saw(given: Mapping[str, Any]) -> frozenset[str]:
    forgot = given["forgot"]
    if forgot.overall is None or forgot.drift is None:
        raise SftkitError(
            "This run measured no probes or no drift, so there is nothing to choose from. "
            "Set evaluate.probes and evaluate.drift_passages."
        )
    intervals = (forgot.overall.ci95, forgot.overall.logprob_ci95, forgot.drift.ci95)
    pairs = zip(_MEASURES, intervals, strict=True)
    return frozenset(name for name, (low, high) in pairs if low > 0 or high < 0)


def _words(answer: Any) -> frozenset[str]:
    """Read one word or several; "none" stands for no word at all."""
    words = [answer] if isinstance(answer, str) else list(answer)
    return frozenset(word.strip().lower() for word in words) - {"none"}


@dataclass(frozen=True, kw_only=True)
class _Strengths:
    measured: Mapping[float, tuple[float, float]]
    margin: float

    @property
    def allowed(self) -> dict[float, float]:
        """Share answered, by strength, where drift, a rise of loss, is below the margin."""
        items = self.measured.items()
        return {strength: right for strength, (right, drift) in items if drift < self.margin}


def _strengths(given: Mapping[str, Any]) -> _Strengths:
    return _Strengths(measured=given["measured"], margin=float(given["margin"]))


# --- The exercises -------------------------------------------------------------------------

_ALL = (
    Exercise(
        id="00.1",
        asks="(count, token_id): supervised tokens of the example, and the id of the last one",
        given=("example",),
        facts=_supervision,
        properties=(
            Property(
                says="The answer should be a pair of whole numbers.",
                holds=lambda a, _: len(a) == 2 and _is_whole(a[0]) and _is_whole(a[1]),
                hint="First how many tokens are supervised, then the id of the token that ends "
                "the turn: an id as it stands in `example.labels`, not its text.",
            ),
            Property(
                says="The count should leave out the question.",
                holds=lambda a, f: a[0] != f.tokens or f.tokens == f.supervised,
                hint="You counted every token of the example. Which label says 'not learned from'?",
            ),
            Property(
                says="The count should be of the tokens learned from, not of the others.",
                holds=lambda a, f: a[0] != f.tokens - f.supervised or 2 * a[0] == f.tokens,
                hint="You counted the ignored side of the mask.",
            ),
            Property(
                says="The count should include every kind of supervised token.",
                holds=lambda a, f: a[0] != f.supervised - 1,
                hint="Besides the words of the answer, what must a model see to learn to stop?",
            ),
            Property(
                says="The count should match the labels.",
                holds=lambda a, f: a[0] == f.supervised,
                hint="Count the entries of `example.labels` that are not -100. Counting words by "
                "eye goes wrong: one word can be several tokens.",
            ),
            Property(
                says="The token should be a real one.",
                holds=lambda a, _: a[1] != IGNORE,
                hint="-100 is no token. It marks a place that is not learned from.",
            ),
            Property(
                says="The token should be given by its id, not by its place.",
                holds=lambda a, f: a[1] != f.end_position or a[1] == f.end_id,
                hint="You found the right place. What stands there?",
            ),
            Property(
                says="The token should be the one that ends the assistant's turn.",
                holds=lambda a, f: a[1] == f.end_id,
                hint="It is the last token that is learned from, which need not be the last "
                "token of the example.",
            ),
        ),
        deepens="A model that never has this last token supervised answers well and then "
        "rambles on, because nothing taught it where to stop.",
    ),
    Exercise(
        id="00.2",
        asks="(delta, is_sure): mean of after - before, and whether ci95 excludes zero",
        given=("before", "after", "ci95"),
        facts=_paired,
        properties=(
            Property(
                says="The answer should be a number and a True or False.",
                holds=lambda a, _: len(a) == 2 and _is_number(a[0]) and a[1] in (True, False),
                hint="First the mean of the paired differences, then whether the interval "
                "excludes zero.",
            ),
            Property(
                says="A gain should come out positive.",
                holds=lambda a, f: _is_not(a[0], -f.delta, f.delta),
                hint="A difference is the later value minus the earlier one.",
            ),
            Property(
                says="The difference should be in the unit of the values.",
                holds=lambda a, f: _is_not(a[0], f.percent, f.delta),
                hint="The values are shares of 1 or nats, and so is their difference; yours is "
                "a hundred times that.",
            ),
            Property(
                says="The difference should be an average over the pairs.",
                holds=lambda a, f: _is_not(a[0], f.total, f.delta),
                hint="You added the differences up. How many pairs are there?",
            ),
            Property(
                says="Losses and gains should cancel.",
                holds=lambda a, f: _is_not(a[0], f.unsigned, f.delta),
                hint="Keep the sign of each difference: an item that got worse counts against "
                "one that got better.",
            ),
            Property(
                says="The difference should be absolute, not relative to the start.",
                holds=lambda a, f: _is_not(a[0], f.relative, f.delta),
                hint="You divided by the value before. A model that starts at almost nothing "
                "would then seem to gain without bound.",
            ),
            Property(
                says="The difference should fit the pairs.",
                holds=lambda a, f: _near(a[0], f.delta),
                hint="Subtract pair by pair, then take the mean over all pairs; round to no "
                "fewer than three digits.",
            ),
            Property(
                says="The second part should say on which side of zero the interval lies.",
                holds=lambda a, f: bool(a[1]) == f.excludes_zero,
                hint="An interval excludes zero only when both its ends have the same sign. The "
                "size of the difference alone does not decide it.",
            ),
        ),
        deepens="Subtracting two averages gives the same number, but only the pairs give the "
        "honest interval: what makes a question hard is in both answers and cancels.",
    ),
    Exercise(
        id="00.3",
        asks="the words among accuracy, logprob, drift whose interval excludes zero, or none",
        given=("forgot",),
        facts=_which_saw,
        properties=(
            Property(
                says="The answer should be one or more of: accuracy, logprob, drift; or none.",
                holds=lambda a, _: _words(a) <= set(_MEASURES) and len(a) > 0,
                hint="Name the measures that saw a change, as a word or a set of words.",
            ),
            Property(
                says="A measure that is named should tell the change from noise.",
                holds=lambda a, f: _words(a) <= f,
                hint="For a measure you named, zero lies inside its interval: with this many "
                "items it cannot say that anything changed, nor that nothing did.",
            ),
            Property(
                says="Every measure that saw a change should be named.",
                holds=lambda a, f: _words(a) >= f,
                hint="Both ends of another interval lie on the same side of zero. Look at all "
                "three, `overall` holds two of them.",
            ),
        ),
        deepens="Accuracy counts only answers that flip, and a probability can fall a long way "
        "before one does: 'accuracy unchanged' is not 'nothing forgotten'.",
    ),
    Exercise(
        id="00.4",
        asks="the measured strength that answers most while drift stays below the margin",
        given=("measured", "margin"),
        facts=_strengths,
        properties=(
            Property(
                says="Each measurement should be a pair of numbers.",
                holds=lambda _, f: all(
                    len(pair) == 2 and all(_is_number(part) for part in pair)
                    for pair in f.measured.values()
                ),
                hint="`measured[strength]` holds two numbers: the share answered right, then the "
                "drift.",
            ),
            Property(
                says="The experiment should look between off and full strength.",
                holds=lambda _, f: len(f.measured) >= 3 and any(0 < s < 1 for s in f.measured),
                hint="Measure at least three strengths, one of them above 0 and below 1.",
            ),
            Property(
                says="Strength 0 should change nothing.",
                holds=lambda _, f: 0 not in f.measured or abs(f.measured[0][1]) < 1e-6,
                hint="At strength 0 the tuned model is the base model. Is your drift a change "
                "against the base, or a loss?",
            ),
            Property(
                says="The answer should be a strength that was measured.",
                holds=lambda a, f: _is_number(a) and a in f.measured,
                hint="Hand in one of the keys of `measured`. To try another, measure it first.",
            ),
            Property(
                says="Drift should stay below the margin.",
                holds=lambda a, f: a in f.allowed,
                hint="At this strength general text got worse by the margin or more. What "
                "happens to the drift when the adapter gets weaker?",
            ),
            Property(
                says="No other measured strength should do better within the margin.",
                holds=lambda a, f: f.allowed[a] >= max(f.allowed.values()),
                hint="Another strength you measured answers more questions and also stays below "
                "the margin.",
            ),
        ),
        deepens="You chose the strength on these very questions, so their score now flatters it; "
        "a fair report measures the chosen one on questions that had no say.",
    ),
)

EXERCISES: Mapping[str, Exercise] = {exercise.id: exercise for exercise in _ALL}
"""Every exercise by id: the one registry."""
