"""Several runs side by side: what differs between them, and what that did.

Everything comes out of the runs' folders. Each later run is held against the first: question by
question where both kept their answers to the same questions, else by the widest difference that
the two intervals allow.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftkit.errors import RecordError
from sftkit.evidence_records import Change
from sftkit.gate_against import Kept, load_kept, losses_since, same_measurement
from sftkit.gate_bounds import Judged
from sftkit.gate_policy import Policy
from sftkit.records import Finding, RunRecord
from sftkit.report.redact import redact, redact_record
from sftkit.settings import to_plain

MOST_RUNS = 8
NOT_SET = "(not there)"
"""What a run says of a setting that it does not know."""
# Timings stand in the reason, so that it is never the same twice; what was chosen is `dtype`.
_SHOWN = 40
_LEFT_OUT = {"dtype_reason"}
_STEPS = {
    "max_knowledge_drop": ("knowledge", "gain"),
    "max_style_drop": ("loss on test answers", "loss"),
    "max_label_drop": ("labels", "gain"),
    "max_drift_rise": ("drift", "loss"),
    "max_ability_drop": ("ability", "gain"),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place at which the runs are not all alike.

    Attributes:
        part: Where it stands: recipe, data or environment.
        place: Its name, such as train.learning_rate.
        values: What each run says, in words.
    """

    part: Literal["recipe", "data", "environment"]
    place: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measure of one run: its value and 95 % interval."""

    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One measure of every run.

    Attributes:
        name: What is measured.
        unit: points, nats per token, or empty for a metric's own scale.
        is_change: Whether it is a change against the base model, so that zero means "as before".
        points: By run; None where it was not measured.
    """

    name: str
    unit: str
    is_change: bool
    points: tuple[Point | None, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What changed from the first run to another one.

    Attributes:
        run: Letter of the other run.
        name: What is measured.
        change: Its difference, in the measure's own direction, and the interval of that.
        unit: points, nats per token, or empty.
        counted: What it rests on, in words.
        state: Whether the other run is shown to be better or worse.
    """

    run: str
    name: str
    change: Point
    unit: str
    counted: str
    state: Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        letters: A, B, … in the order given.
        records: The runs.
        differences: Every place at which they are not all alike.
        outcomes: Every measure that two of them took.
        comparable: For each run after the first, whether it measured the same, in words.
        steps: What changed since the first run; empty for runs that did not measure the same.
    """

    letters: tuple[str, ...]
    records: tuple[RunRecord, ...]
    differences: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]
    comparable: tuple[str, ...]
    steps: tuple[Step, ...]


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Read finished runs and put them side by side; the first is the one to compare with.

    Args:
        folders: Folders of two to eight runs.

    Raises:
        RecordError: There are too few or too many, or a folder holds no run.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise RecordError(f"Compare 2 to {MOST_RUNS} runs at a time; {len(folders)} were given.")
    kept = [load_kept(folder) for folder in folders]
    records = tuple(run.record for run in kept)
    letters = tuple(string.ascii_uppercase[: len(kept)])
    same = [same_measurement(run, kept[0]) for run in kept[1:]]
    steps: list[Step] = []
    for letter, run, rule in zip(letters[1:], kept[1:], same, strict=True):
        steps += _steps(letter, run, kept[0]) if rule.state == "pass" else []
    return Comparison(
        letters=letters,
        records=records,
        differences=find_differences(records),
        outcomes=_outcomes(records),
        comparable=tuple(rule.sentence for rule in same),
        steps=tuple(steps),
    )


def find_differences(records: Sequence[RunRecord]) -> tuple[Difference, ...]:
    """Name every setting, fact about the data, and part of the environment that is not the same."""
    parts: dict[Any, list[dict[str, str]]] = {
        "recipe": [_flat(record.recipe) for record in records],
        "data": [_flat(vars(record.data)) for record in records],
        "environment": [_flat(vars(record.environment)) | _prints(record) for record in records],
    }
    return tuple(
        Difference(part=part, place=place, values=values)
        for part, runs in parts.items()
        for place in dict.fromkeys(place for run in runs for place in run)
        if place.rpartition(".")[2] not in _LEFT_OUT
        and len(set(values := tuple(run.get(place, NOT_SET) for run in runs))) > 1
    )


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison as plain values, the runs by name and date; for JSON."""
    plain = to_plain(redact_record(dataclasses.replace(comparison, records=())))
    runs = zip(comparison.letters, comparison.records, strict=True)
    plain["records"] = {
        letter: {
            "name": redact(run.name),
            "date": run.date,
            "summary": redact(run.verdicts.summary),
        }
        for letter, run in runs
    }
    return dict(plain)


def _prints(record: RunRecord) -> dict[str, str]:
    """Give the hashes of what went in; the rows' and the base's stand elsewhere too."""
    known = ("the tokenizer", "the chat template")
    return {
        name: record.training.fingerprints[name]
        for name in known
        if name in record.training.fingerprints
    }


def reproduction(now: RunRecord, before: RunRecord) -> str:
    """Say whether a run made the same adapter as an earlier one, and if not, what differs.

    Args:
        now: The run.
        before: The one whose recipe it followed.
    """
    made, wanted = (run.training.fingerprints.get("the adapter") for run in (now, before))
    if made is None or wanted is None:
        return "Whether the adapter is the same cannot be said: no hash of it was recorded."
    if made == wanted:
        return "Reproduced: the adapter is the same as before, bit for bit."
    differ = [
        f"{one.place} ({_short(one.values[1])}, before {_short(one.values[0])})"
        for one in find_differences([before, now])
        if not one.place.startswith("evaluate.") and one.place != "name"
    ]
    if not differ:
        return (
            "Not the same bits as before, though recipe, data, base and versions are alike. "
            "Another processor or number of threads adds in another order."
        )
    return f"Not the same bits as before. These differ: {'; '.join(differ)}."


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """Give every plain value below, by its dotted place."""
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, below in value.items():
            found |= _flat(below, f"{place}.{key}" if place else str(key))
        return found
    if isinstance(value, tuple | list) and any(isinstance(one, Finding) for one in value):
        told: dict[str, list[str]] = {}
        for one in value:
            name = f"{place}.{one.code} {one.field}".rstrip()
            told.setdefault(name, []).append(f"{one.severity}: {one.message}")
        return {name: "; ".join(said) for name, said in told.items()}
    return {place: _in_words(value)}


def _in_words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_in_words, value)) + "]"
    if isinstance(value, Mapping):
        return "{}"
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _steps(letter: str, now: Kept, before: Kept) -> list[Step]:
    steps = []
    for rule, found in losses_since(now, before, Policy()).items():
        if found is not None:
            name, direction = _STEPS[rule]
            steps.append(_step(letter, name, found, turn=direction == "gain"))
    return steps


def _step(letter: str, name: str, found: Judged, *, turn: bool) -> Step:
    """Say a loss as a change of the measure itself: a fall of accuracy is below zero."""
    low, high = found.ci95
    state: Literal["better", "worse", "undecided"] = "undecided"
    if low > 0:
        state = "worse"
    elif high < 0:
        state = "better"
    change = Point(value=0.0 - found.value, ci95=(0.0 - high, 0.0 - low))
    return Step(
        run=letter,
        name=name,
        change=change if turn else Point(value=found.value, ci95=found.ci95),
        unit=found.unit,
        counted=found.counted,
        state=state,
    )


def _outcomes(records: Sequence[RunRecord]) -> tuple[Outcome, ...]:
    columns: list[dict[str, tuple[str, bool, Point]]] = [_measures(record) for record in records]
    found = []
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [column.get(name) for column in columns]
        unit, is_change, _ = next(cell for cell in cells if cell is not None)
        points = tuple(None if cell is None else cell[2] for cell in cells)
        found.append(Outcome(name=name, unit=unit, is_change=is_change, points=points))
    return tuple(found)


def _measures(record: RunRecord) -> dict[str, tuple[str, bool, Point]]:
    """Give what one run measured: unit, whether it is a change, and the number."""
    learned, forgot = record.learned, record.forgot
    shares: dict[str, Any] = {
        "trained facts, exact": learned.exact,
        "facts never trained, exact": learned.control,
        "right answer ranked first": learned.recognition,
        "ability, all probes": forgot.overall,
    }
    nats: dict[str, Any] = {
        "loss on test answers": learned.heldout_loss,
        "drift of general text": forgot.drift,
    }
    found = {
        name: ("points", True, _scaled(change, 100.0))
        for name, change in shares.items()
        if change is not None
    }
    found |= {
        name: ("nats per token", True, _scaled(change, 1.0))
        for name, change in nats.items()
        if change is not None
    }
    for measure in () if learned.labels is None else learned.labels.tuned.measures:
        if measure.value is not None:
            point = Point(value=measure.value, ci95=measure.ci95)
            found[measure.name.replace("_", " ")] = ("", False, point)
    return found


def _scaled(change: Change | Any, factor: float) -> Point:
    low, high = change.ci95
    return Point(value=factor * change.delta, ci95=(factor * low, factor * high))
