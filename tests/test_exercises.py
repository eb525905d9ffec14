"""Exercises: right, wrong and untouched answers, hints, progress, and the stripper."""

import textwrap
from typing import Any

import exercise_cases_01  # type: ignore[import-not-found]
import exercise_cases_02  # type: ignore[import-not-found]
import exercise_cases_03  # type: ignore[import-not-found]
import exercise_cases_04  # type: ignore[import-not-found]
import exercise_cases_05  # type: ignore[import-not-found]
import exercise_cases_06  # type: ignore[import-not-found]
import exercise_cases_07  # type: ignore[import-not-found]
import exercise_cases_08  # type: ignore[import-not-found]
import exercise_cases_09  # type: ignore[import-not-found]
import exercise_cases_10  # type: ignore[import-not-found]
import exercise_cases_11  # type: ignore[import-not-found]
import exercise_cases_12  # type: ignore[import-not-found]
import exercise_cases_15  # type: ignore[import-not-found]
import numpy as np
import pytest

from sftkit import exercises
from sftkit.errors import SftkitError
from sftkit.evidence_records import Change, Drift, Overall
from sftkit.exercises import EXERCISES, check, has_solution, progress, strip_solutions
from sftkit.records import IGNORE, Encoded, Forgot

CASES = (
    exercise_cases_01,
    exercise_cases_02,
    exercise_cases_03,
    exercise_cases_04,
    exercise_cases_05,
    exercise_cases_06,
    exercise_cases_07,
    exercise_cases_08,
    exercise_cases_09,
    exercise_cases_10,
    exercise_cases_11,
    exercise_cases_12,
    exercise_cases_15,
)
"""The cases of later notebooks, a module each."""


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    monkeypatch.setattr(exercises, "_session", {})


# Five tokens of question, then "23 days<end>" (51, 52, 7), then a line break nobody learns from.
EXAMPLE = Encoded(
    input_ids=(1, 11, 12, 13, 14, 51, 52, 7, 9),
    labels=(IGNORE, IGNORE, IGNORE, IGNORE, IGNORE, 51, 52, 7, IGNORE),
)
BEFORE = [0.2, 0.4, 0.1, 0.1]
AFTER = [0.6, 0.9, 0.0, 0.7]  # differences 0.4, 0.5, -0.1, 0.6: mean 0.35
FORGOT = Forgot(
    overall=Overall(
        delta=-0.01,
        ci95=(-0.04, 0.02),
        logprob_delta=-0.2,
        logprob_ci95=(-0.25, -0.15),
        items=600,
    ),
    drift=Drift(before=3.0, after=3.4, delta=0.4, ci95=(0.38, 0.42), passages=100, tokens=12800),
)
MEASURED = {0.0: (0.0, 0.0), 0.25: (0.3, 0.02), 0.5: (0.7, -0.08), 0.75: (0.8, 0.3), 1.0: (0.9, 1)}

GIVEN: dict[str, dict[str, Any]] = {
    "00.1": {"example": EXAMPLE},
    "00.2": {"before": BEFORE, "after": AFTER, "ci95": (0.05, 0.6)},
    "00.3": {"forgot": FORGOT},
    "00.4": {"measured": MEASURED, "margin": 0.1},
    **{id_: given for cases in CASES for id_, given in cases.GIVEN.items()},
}


def reference(exercise_id):
    """Solve an exercise as the notebook's solution does."""
    for cases in CASES:
        if exercise_id in cases.RIGHT:
            return cases.RIGHT[exercise_id]
    given = GIVEN[exercise_id]
    if exercise_id == "00.1":
        learned = [label for label in given["example"].labels if label != -100]
        return len(learned), learned[-1]
    if exercise_id == "00.2":
        pairs = list(zip(given["before"], given["after"], strict=True))
        low, high = given["ci95"]
        return sum(after - before for before, after in pairs) / len(pairs), not low <= 0 <= high
    if exercise_id == "00.3":
        overall, drift = given["forgot"].overall, given["forgot"].drift
        seen = {"accuracy": overall.ci95, "logprob": overall.logprob_ci95, "drift": drift.ci95}
        return {name for name, (low, high) in seen.items() if low > 0 or high < 0}
    allowed = [s for s, (_, drift) in MEASURED.items() if drift < given["margin"]]
    return max(allowed, key=lambda strength: MEASURED[strength][0])


WRONG: list[tuple[str, Any, str]] = [
    *(one for cases in CASES for one in cases.WRONG),
    ("00.1", 3, "pair of whole numbers"),
    ("00.1", "(3, 7)", "pair of whole numbers"),
    ("00.1", (3, "<|im_end|>"), "pair of whole numbers"),
    ("00.1", (True, 7), "pair of whole numbers"),
    ("00.1", (9, 7), "leave out the question"),
    ("00.1", (6, 7), "not of the others"),
    ("00.1", (2, 7), "every kind of supervised token"),
    ("00.1", (4, 7), "match the labels"),
    ("00.1", (3, -100), "a real one"),
    ("00.1", (3, 9), "ends the assistant's turn"),
    ("00.2", 0.35, "a number and a True or False"),
    ("00.2", ("0.35", True), "a number and a True or False"),
    ("00.2", (0.35, "yes"), "a number and a True or False"),
    ("00.2", (-0.35, True), "come out positive"),
    ("00.2", (35.0, True), "unit of the values"),
    ("00.2", (1.4, True), "average over the pairs"),
    ("00.2", (0.4, True), "cancel"),
    ("00.2", (1.75, True), "not relative"),
    ("00.2", (0.3, True), "fit the pairs"),
    ("00.2", (float("nan"), True), "a number and a True or False"),
    ("00.2", (0.35, False), "which side of zero"),
    ("00.3", "loss", "one or more of"),
    ("00.3", 3, "one or more of"),
    ("00.3", set(), "one or more of"),
    ("00.3", "accuracy", "tell the change from noise"),
    ("00.3", {"accuracy", "logprob", "drift"}, "tell the change from noise"),
    ("00.3", "none", "Every measure that saw"),
    ("00.3", "drift", "Every measure that saw"),
    ("00.4", "0.5", "a strength that was measured"),
    ("00.4", 0.6, "a strength that was measured"),
    ("00.4", True, "a strength that was measured"),
    ("00.4", 1.0, "below the margin"),
    ("00.4", 0.75, "below the margin"),
    ("00.4", 0.25, "do better within the margin"),
    ("00.4", 0, "do better within the margin"),
]


@pytest.mark.parametrize("exercise_id", EXERCISES)
def test_every_reference_solution_is_right(exercise_id):
    result = check(exercise_id, reference(exercise_id), **GIVEN[exercise_id])
    assert result.message == f"{exercise_id} ✓ {EXERCISES[exercise_id].deepens}"
    assert result.state == "right"


@pytest.mark.parametrize(("exercise_id", "answer", "failing"), WRONG)
def test_a_plausible_wrong_answer_fails_with_its_own_hint(exercise_id, answer, failing):
    result = check(exercise_id, answer, **GIVEN[exercise_id])
    broken = next(p for p in EXERCISES[exercise_id].properties if failing in p.says)
    assert result.message == f"{exercise_id} ✗ {broken.says} Hint: {broken.hint}"
    assert result.state == "wrong"


def test_every_exercise_has_three_wrong_answers_and_every_property_a_wrong_answer():
    tried = {id_: {says for i, _, says in WRONG if i == id_} for id_ in EXERCISES}
    assert min(len(says) for says in tried.values()) >= 3
    # These need other data than the shared ones; each has a test of its own below.
    elsewhere = {"by its id, not by its place", "pair of numbers", "between off and full"}
    elsewhere |= {"Strength 0"}
    for id_, exercise in EXERCISES.items():
        for wanted in exercise.properties:
            assert any(part in wanted.says for part in tried[id_] | elsewhere), wanted.says


@pytest.mark.parametrize("exercise_id", EXERCISES)
@pytest.mark.parametrize("untouched", [..., None, (..., ...), [3, ...], {"a": ...}])
def test_an_untouched_exercise_passes_without_a_verdict(exercise_id, untouched):
    result = check(exercise_id, untouched, **GIVEN[exercise_id])
    assert (result.state, str(result)) == ("unanswered", f"{exercise_id}: not answered yet")


class Hostile:
    """Raises whatever it is compared with, counted or turned into."""

    def _raise(self, *_):
        raise RuntimeError

    __eq__ = __len__ = __iter__ = __float__ = __index__ = __hash__ = _raise


@pytest.mark.parametrize("exercise_id", EXERCISES)
@pytest.mark.parametrize(
    "answer",
    ["", "__import__('os').abort()", b"x", object(), Hostile(), np.arange(3), {}, [[]], 1j, print],
)
def test_an_answer_of_any_kind_is_judged_and_never_a_traceback(exercise_id, answer):
    assert check(exercise_id, answer, **GIVEN[exercise_id]).state == "wrong"


def test_a_place_is_not_taken_for_the_token_that_stands_there():
    result = check("00.1", (3, EXAMPLE.labels.index(7)), example=EXAMPLE)
    # Place 7 holds token 7 here, so the place is right by chance.
    assert result.state == "right"
    moved = Encoded(input_ids=(1, 51, 52, 7), labels=(IGNORE, 51, 52, 7))
    assert "not by its place" in check("00.1", (3, 3), example=moved).message


def test_numbers_of_numpy_and_rounded_ones_count():
    assert check("00.1", (np.int64(3), np.int64(7)), **GIVEN["00.1"]).state == "right"
    thirds = {"before": [0, 0, 0], "after": [1, 1, 0], "ci95": (-0.1, 1.0)}
    assert check("00.2", (np.float32(0.667), np.bool_(False)), **thirds).state == "right"
    assert check("00.2", (0.67, False), **thirds).state == "wrong"


def test_a_run_in_which_nothing_changed_has_answers_too():
    same = {"before": [0.0, 0.0], "after": [0.0, 0.0], "ci95": (0.0, 0.0)}
    assert check("00.2", (0.0, False), **same).state == "right"
    still = Forgot(
        overall=Overall(
            delta=0.0, ci95=(0.0, 0.0), logprob_delta=0.0, logprob_ci95=(0.0, 0.0), items=9
        ),
        drift=Drift(before=3.0, after=3.0, delta=0.0, ci95=(0.0, 0.0), passages=9, tokens=90),
    )
    assert check("00.3", "none", forgot=still).state == "right"
    assert check("00.3", "drift", forgot=still).state == "wrong"
    unmoved = {0.0: (0.0, 0.0), 0.5: (0.0, 0.0), 1.0: (0.0, 0.01)}
    assert check("00.4", 1, measured=unmoved, margin=0.1).state == "right"


def test_words_may_come_as_one_word_a_list_or_in_capitals():
    drift_only = Forgot(
        overall=Overall(
            delta=0.0, ci95=(-0.1, 0.1), logprob_delta=0.0, logprob_ci95=(-0.1, 0.1), items=9
        ),
        drift=FORGOT.drift,
    )
    for answer in ("drift", " Drift ", ["drift"], ("DRIFT",), {"drift"}):
        assert check("00.3", answer, forgot=drift_only).state == "right"


@pytest.mark.parametrize(
    ("measured", "failing"),
    [
        ({0.0: (0.0, 0.0), 0.5: 0.7, 1.0: (0.9, 1.0)}, "a pair of numbers"),
        ({0.0: (0.0, 0.0), 0.5: (0.7, "low"), 1.0: (0.9, 1.0)}, "a pair of numbers"),
        ({0.0: (0.0, 0.0), 1.0: (0.9, 0.05)}, "between off and full"),
        ({0.0: (0.0, 3.1), 0.5: (0.7, 3.2), 1.0: (0.9, 3.9)}, "Strength 0"),
    ],
)
def test_an_experiment_that_was_not_done_right_is_told_so(measured, failing):
    assert failing in check("00.4", 0.5, measured=measured, margin=0.1).message


def test_drift_is_a_rise_of_loss_as_in_the_verdict():
    # General text that got easier is no harm, however much.
    measured = {0.0: (0.0, 0.0), 0.5: (0.4, 0.02), 1.0: (0.9, -0.5)}
    assert check("00.4", 1.0, measured=measured, margin=0.1).state == "right"


def test_an_unknown_exercise_is_refused_with_near_names():
    with pytest.raises(SftkitError, match=r"No exercise '00\.11'\. Did you mean '00\.1'"):
        check("00.11", 3)
    with pytest.raises(SftkitError, match=r"No exercise 0\.1\."):
        check(0.1, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{}, {"sample": EXAMPLE}, {"example": EXAMPLE, "seed": 1}])
def test_values_missing_beside_the_answer_are_named_even_if_untouched(given):
    with pytest.raises(SftkitError, match=r"Write check\('00\.1', answer, example=\.\.\.\)\."):
        check("00.1", ..., **given)


@pytest.mark.parametrize(
    ("exercise_id", "given", "message"),
    [
        ("00.1", {"example": 3}, "cannot use what it was given as example"),
        ("00.1", {"example": Encoded(input_ids=(1,), labels=(IGNORE,))}, "no supervised token"),
        ("00.2", {"before": [1], "after": [1, 2], "ci95": (0, 1)}, "got 1 and 2"),
        ("00.2", {"before": [1], "after": [2], "ci95": 3}, "cannot use what it was given"),
        ("00.3", {"forgot": Forgot()}, "measured no probes or no drift"),
        ("01.1", {"line": "Any charts?;Yes."}, "no semicolon too many"),
        ("01.2", {"dataset": []}, "No two rows of this dataset contradict"),
        ("01.2", {"dataset": 3}, "cannot use what it was given as dataset"),
        ("01.3", {"divided": {"id": (35, 384)}}, "Every column leaks"),
        ("01.4", {"example": EXAMPLE}, "has one answer"),
        ("01.5", {"agreement": 3}, "cannot use what it was given as agreement"),
    ],
)
def test_a_run_that_cannot_answer_is_an_error_not_a_wrong_answer(exercise_id, given, message):
    with pytest.raises(SftkitError, match=message):
        check(exercise_id, (3, 7), **given)


def test_no_hint_states_the_answer():
    for exercise_id, answer, _ in WRONG:
        if exercise_id in (
            "00.2",
            "00.4",
            "01.4",
        ):  # the others' answers are words the hints explain
            message = check(exercise_id, answer, **GIVEN[exercise_id]).message
            right = reference(exercise_id)
            number = right[0] if isinstance(right, tuple) else right
            assert f"{number:g}" not in message.replace(exercise_id, "")


def test_a_result_is_shown_once_and_escaped():
    result = exercises.CheckResult(id="x", state="wrong", message="<script>alert(1)</script>")
    assert repr(result) == str(result) == "<script>alert(1)</script>"
    assert "&lt;script&gt;" in result._repr_html_()
    assert "<script>" not in result._repr_html_()


def test_check_prints_nothing_so_a_notebook_shows_it_once(capsys):
    check("00.1", (3, 7), example=EXAMPLE)
    assert capsys.readouterr().out == ""


def test_progress_remembers_what_was_solved_and_what_was_tried():
    assert str(progress("00")) == "0 of 4 solved: 00.1 – · 00.2 – · 00.3 – · 00.4 –"
    check("00.1", (3, 7), example=EXAMPLE)
    check("00.1", (2, 7), example=EXAMPLE)  # solved once stays solved
    check("00.3", "accuracy", forgot=FORGOT)
    check("00.4", ..., **GIVEN["00.4"])
    assert str(progress("00")) == "1 of 4 solved: 00.1 ✓ · 00.2 – · 00.3 ✗ · 00.4 –"
    assert set(progress().states) == set(EXERCISES)
    assert "1 of 4 solved" in progress("00")._repr_html_()
    assert progress("99").states == {}


def test_a_change_record_fits_the_second_exercise():
    change = Change(
        before=0.2, after=0.55, delta=0.35, ci95=(0.05, 0.6), items=4, groups=4
    )  # what the notebook has at hand
    given = {"before": BEFORE, "after": AFTER, "ci95": change.ci95}
    assert check("00.2", (change.delta, True), **given).state == "right"


def cell(text):
    return textwrap.dedent(text).lstrip("\n")


STRIPPED = {
    "one name": (
        """
        ### BEGIN SOLUTION
        answer = 1 + 1
        ### END SOLUTION
        check("00.1", answer)
        """,
        """
        answer = ...
        check("00.1", answer)
        """,
    ),
    "nested indentation": (
        """
        def solve(x):
            if x:
                ### BEGIN SOLUTION
                text = '''
        reaches the margin
        '''
                count = len(text)
                ### END SOLUTION
            return count
        """,
        """
        def solve(x):
            if x:
                text = ...
                count = ...
            return count
        """,
    ),
    "tuples, stars, chains and types": (
        """
        ### BEGIN SOLUTION
        first, (second, *rest) = 1, (2, 3)
        [third] = rest
        a = b = first
        c: int = 2
        ### END SOLUTION
        """,
        """
        first = ...
        second = ...
        rest = ...
        third = ...
        a = ...
        b = ...
        c = ...
        """,
    ),
    "augmented, repeated and inside a loop": (
        """
        ### BEGIN SOLUTION
        total = 0
        for x in xs:
            total += x
            last = x
        if (n := len(xs)) > 3:
            total /= n
        ### END SOLUTION
        """,
        """
        total = ...
        last = ...
        n = ...
        """,
    ),
    "functions keep what is inside": (
        """
        ### BEGIN SOLUTION
        def mean(xs):
            inner = sum(xs)
            return inner / len(xs)
        squares = [(y := x * x) for x in xs]
        _helper = 3
        ### END SOLUTION
        """,
        """
        mean = ...
        squares = ...
        """,
    ),
    "no name to keep": (
        """
        def double(x):
            ### BEGIN SOLUTION
            return 2 * x
            ### END SOLUTION
        ### BEGIN SOLUTION
        table[0.5] = measure(0.5)
        record.field = 3
        ### END SOLUTION
        """,
        """
        def double(x):
            ...
        ...
        """,
    ),
    "two blocks and an empty one": (
        """
        ### BEGIN SOLUTION
        a = 1
        ### END SOLUTION
        b = 2
        ### BEGIN SOLUTION
        c = 3
        ### END SOLUTION
        ### BEGIN SOLUTION
        ### END SOLUTION
        """,
        """
        a = ...
        b = 2
        c = ...
        ...
        """,
    ),
}


@pytest.mark.parametrize("name", STRIPPED)
def test_a_solution_is_replaced_by_placeholders_of_its_names(name):
    source, expected = map(cell, STRIPPED[name])
    stripped = strip_solutions(source)
    assert stripped == expected
    compile(stripped, name, "exec")
    assert has_solution(source)
    assert not has_solution(stripped)
    assert strip_solutions(stripped) == stripped


def test_a_cell_keeps_its_missing_line_break_at_the_end():
    assert strip_solutions("### BEGIN SOLUTION\na = 1\n### END SOLUTION") == "a = ..."
    assert strip_solutions("a = 1") == "a = 1"
    assert strip_solutions("") == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("### BEGIN SOLUTION\na = 1\n", "has no '### END SOLUTION'"),
        ("a = 1\n### END SOLUTION\n", "Line 2: .* has no partner"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "Line 2: .* has no partner"),
        ("## BEGIN SOLUTION\na = 1\n", "Line 1: '## BEGIN SOLUTION' is not a marker"),
        ("### begin solution\na = 1\n", "is not a marker"),
        ("### BEGIN SOLUTIONS\na = 1\n", "is not a marker"),
        ("### BEGIN SOLUTION\n%time a = 1\n### END SOLUTION\n", "ends on line 3 is not plain"),
    ],
)
def test_a_marker_that_would_leak_a_solution_is_refused(source, message):
    with pytest.raises(SftkitError, match=message):
        strip_solutions(source)
