"""What checks say of a model with a planted fault: killed, spared, or not to be asked.

A check is a function from what a model showed, and what the run known to be sound showed, to a
finding. All limits are those of a run's settings; none knows which fault was planted. A check may
kill only where the interval of its number says so, so that a sound model is spared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftkit.evidence.labels import judge_labels
from sftkit.evidence.shares import ALPHA, holm, mcnemar_exact, wilson_interval
from sftkit.evidence.statistics import paired_change
from sftkit.evidence_records import Change, Checks, MutantCell
from sftkit.label_records import LabelReport
from sftkit.records import Verdict, Verdicts
from sftkit.settings import EvaluateSettings

if TYPE_CHECKING:
    from sftkit.dataset.contamination import Overlap

SAME_LOSS = 0.001
"""Nats per token within which one adapter's loss on an answer is the same again, computed in the
same type. Asked twice, none of 20 answers moved at all (SmolLM2-135M in bfloat16, 10 of the shop's
facts); without the adapter of one block of 30 the largest moved by 0.024 to 0.189."""
SAME_LOSS_IN_OTHER_TYPE = 0.05
"""The same, where one of the two was computed in another type: float32 in the place of bfloat16
moved the 20 answers by up to 0.034. So a small part that is missing is seen in the same type only.
"""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a classifier says of validation and test items, as class numbers.

    Attributes:
        report: Measures on the test items, beside the baselines'.
        true: Right classes of the test items, shape (N,).
        said: Predicted ones.
        validation_true: The same of validation items, which may choose.
        validation_said: Their predicted ones.
    """

    report: LabelReport
    true: Sequence[int]
    said: Sequence[int]
    validation_true: Sequence[int]
    validation_said: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one model showed: all that checks may read.

    Attributes:
        right: 1 where the answer to a test item is right, else 0, shape (N,).
        before: The same of what is to be beaten, the base model or a linear baseline, shape (N,).
        said: The answers, shape (N,).
        groups: Group of each test item, shape (N,).
        losses: Loss of each reference answer or right label, nats per token, shape (M,).
        weights: Tokens of each, shape (M,).
        loss_groups: Group of each, shape (M,).
        overlap: Which tested rows stand in the rows that this model was trained on.
        served_again: Whether these are to be the weights of the reference, in use elsewhere: what
            the reference run wrote down then has to come out again.
        dtype: What it was computed in.
        ended: 1 where an answer ended its turn, else 0; empty for classifiers.
        verdicts: What a run's report says; None for classifiers.
        predicted: Of a classifier.
        checks: Behaviour, fairness and calibration, as far as they were measured.
    """

    right: Sequence[float]
    before: Sequence[float]
    said: Sequence[str]
    groups: Sequence[str]
    losses: Sequence[float]
    weights: Sequence[float]
    loss_groups: Sequence[str]
    overlap: Overlap
    served_again: bool = False
    dtype: str = "float32"
    ended: Sequence[float] = ()
    verdicts: Verdicts | None = None
    predicted: Predicted | None = None
    checks: Checks = field(default_factory=Checks)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a check found.

    Attributes:
        killed: Whether the model is refused.
        said: The number that decided, in words.
    """

    killed: bool
    said: str


Check = Callable[[Shown, Shown, EvaluateSettings], Found | None]
"""Takes the model, the reference and the settings; gives None where it has nothing to judge."""


def judge(
    shown: Shown, reference: Shown, checks: Mapping[str, Check], settings: EvaluateSettings
) -> tuple[MutantCell, ...]:
    """Put every check to one model.

    Args:
        shown: What it showed.
        reference: What the run known to be sound showed.
        checks: By name.
        settings: The margins.

    Returns:
        One cell per check, in their order.
    """
    cells = []
    for name, look in checks.items():
        found = look(shown, reference, settings)
        if found is None:
            cells.append(MutantCell(check=name, state="unasked"))
        else:
            state: Literal["killed", "spared"] = "killed" if found.killed else "spared"
            cells.append(MutantCell(check=name, state=state, said=found.said))
    return tuple(cells)


# --- Accuracy alone --------------------------------------------------------------------------


def beats_the_base(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found:
    """Kill what is not shown to be right more often than the base, or the linear baseline."""
    change = _change(shown.before, shown.right, shown.groups, settings)
    return Found(killed=change.ci95[0] <= 0, said=_rights(change))


def holds_accuracy(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found:
    """Kill what is shown to be right less often than the reference by more than the margin."""
    change = _change(reference.right, shown.right, shown.groups, settings)
    return Found(killed=change.ci95[1] < -settings.ability_margin, said=_rights(change))


# --- Against the reference run ---------------------------------------------------------------


def holds_loss(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found:
    """Kill what is shown to have a higher loss than the reference by more than the margin."""
    change = paired_change(
        reference.losses,
        shown.losses,
        groups=reference.loss_groups,
        weights=reference.weights,
        resamples=settings.resamples,
    )
    low, high = change.ci95
    said = f"{change.before:.2f} to {change.after:.2f} nats ({low:+.2f} to {high:+.2f})"
    return Found(killed=low > settings.drift_margin, said=said)


def repeats_record(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill a copy of the reference that gives an answer another loss than is on record."""
    if not shown.served_again:
        return None
    gaps = np.abs(np.subtract(shown.losses, reference.losses))
    same_type = shown.dtype == reference.dtype
    off = int((gaps > (SAME_LOSS if same_type else SAME_LOSS_IN_OTHER_TYPE)).sum())
    said = f"{off} of {len(gaps)} differ; the largest difference is {gaps.max():.3f}"
    return Found(killed=off > 0, said=said if same_type else f"{said}, in {shown.dtype}")


def repeats_answers(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill a copy of the reference that is shown to answer more than a few items otherwise."""
    if not shown.served_again:
        return None
    same = sum(a == b for a, b in zip(shown.said, reference.said, strict=True))
    most = wilson_interval(same, len(shown.said))[1]
    said = f"{same} of {len(shown.said)} as before"
    return Found(killed=most < 1 - settings.ability_margin, said=said)


def ends_turns(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to end its turn less often than the reference."""
    if not shown.ended:
        return None
    change = paired_change(
        reference.ended,
        shown.ended,
        groups=[str(place) for place in range(len(shown.ended))],
        resamples=settings.resamples,
    )
    said = f"{round(change.after * change.items)} of {change.items} end"
    return Found(killed=change.ci95[1] < -settings.ability_margin, said=said)


def is_uncontaminated(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found:
    """Kill what was trained on rows of the test, or on near duplicates of them."""
    hits = {row for kind in ("exact", "near") for row in shown.overlap.matches.get(kind, {})}
    said = f"{len(hits)} of {shown.overlap.test_rows} in training"
    return Found(killed=bool(hits), said=said)


# --- What a run's report says ----------------------------------------------------------------


def knows(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what does not know trained facts better than facts that were never trained."""
    return _by_verdict(shown, "knowledge", spares=("yes", "unmeasured"))


def has_style(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is not shown to have taken on the wording of its examples."""
    return _by_verdict(shown, "style", spares=("yes", "unmeasured"))


def has_not_drifted(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to have lost its grasp of general text beyond the margin."""
    return _by_verdict(shown, "drift", spares=("kept", "moved", "undecided", "unmeasured"))


def has_ability(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to answer general questions less well than the base."""
    return _by_verdict(shown, "ability", spares=("kept", "moved", "undecided", "unmeasured"))


def behaves(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to fail a behaviour test by more than it allows and the reference does.

    A sound model may fail a test too, and is to be mended; here it is asked whether this model is
    another one than the reference.
    """
    tests = shown.checks.behaviour
    if not tests:
        return None
    known = {test.name: test.ci95[1] for test in reference.checks.behaviour}
    failed = [
        test.name for test in tests if test.ci95[0] > max(test.allowed, known.get(test.name, 0.0))
    ]
    said = f"{len(failed)} of {len(tests)} tests fail as they did not before"
    return Found(killed=bool(failed), said=said)


# --- Classifiers -----------------------------------------------------------------------------


def beats_baselines(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is not shown to beat the linear baseline in macro-F1."""
    if shown.predicted is None:
        return None
    verdict = judge_labels(shown.predicted.report)
    gain = shown.predicted.report.gain("macro_f1", "tf-idf")
    said = f"{gain.before or 0:.2f} to {gain.after or 0:.2f}"
    return Found(killed=verdict.state != "yes", said=f"{said}: {verdict.state}")


def is_calibrated(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to be further from its confidence than the reference."""
    found, sound = shown.checks.calibration, reference.checks.calibration
    if found is None or sound is None:
        return None
    said = f"ECE {found.ece:.2f} ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})"
    return Found(killed=found.ci95[0] > sound.ci95[1] + settings.ability_margin, said=said)


def tells_classes_apart(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what takes a class for some other one more often than it recognises it."""
    if shown.predicted is None:
        return None
    table = np.array(shown.predicted.report.confusion)
    found = table.diagonal()
    others = table - np.diag(found)
    worst = others.max(axis=1)
    tests = [mcnemar_exact(int(o), int(f)) for o, f in zip(worst, found, strict=True)]
    # Each class has several others that it could be taken for.
    p_values = holm([min(1.0, p * (len(table) - 1)) for p in tests])
    names = shown.predicted.report.classes
    taken = [
        f"{names[row]} as {names[int(others[row].argmax())]}: {worst[row]} against {found[row]}"
        for row in range(len(table))
        if worst[row] > found[row] and p_values[row] < ALPHA
    ]
    right = f"{int(found.sum())} of {int(table.sum())} on the diagonal"
    return Found(killed=bool(taken), said="; ".join(taken) or right)


def has_labels_in_order(shown: Shown, reference: Shown, settings: EvaluateSettings) -> Found | None:
    """Kill what is shown to be right more often when its labels are named otherwise.

    The other naming is chosen on validation items, and judged on the test.
    """
    if shown.predicted is None:
        return None
    from scipy.optimize import linear_sum_assignment

    items = shown.predicted
    size = len(items.report.classes)
    pairs = np.zeros((size, size), dtype=int)
    np.add.at(pairs, (np.asarray(items.validation_said), np.asarray(items.validation_true)), 1)
    # A tie keeps the name: the diagonal is worth a little more.
    named = linear_sum_assignment(pairs + 0.5 / size * np.eye(size), maximize=True)[1]
    true, said = np.asarray(items.true), np.asarray(items.said)
    change = _change(said == true, named[said] == true, shown.groups, settings)
    moved = int((named != np.arange(size)).sum())
    said_so = f"{moved} labels renamed: {_rights(change)}"
    return Found(killed=change.ci95[0] > 0, said=said_so if moved else "no better naming")


ACCURACY: Mapping[str, Check] = {
    "accuracy against base": beats_the_base,
    "accuracy against reference": holds_accuracy,
}
"""What is usually looked at, in its strongest form: paired, with intervals."""
_BY_REFERENCE: Mapping[str, Check] = {
    "loss against reference": holds_loss,
    "losses on record": repeats_record,
    "answers on record": repeats_answers,
    "contamination": is_uncontaminated,
    "behaviour": behaves,
}
CHAT_CHECKS: Mapping[str, Check] = {
    **ACCURACY,
    "knowledge": knows,
    "style": has_style,
    "drift": has_not_drifted,
    "ability": has_ability,
    "stopping": ends_turns,
    **_BY_REFERENCE,
}
"""Checks of a chat model. One more is one more row."""
LABEL_CHECKS: Mapping[str, Check] = {
    **ACCURACY,
    "macro-F1 against baseline": beats_baselines,
    "calibration": is_calibrated,
    "confusion": tells_classes_apart,
    "label order": has_labels_in_order,
    **_BY_REFERENCE,
}
"""Checks of a classifier."""


def _by_verdict(shown: Shown, name: str, *, spares: tuple[str, ...]) -> Found | None:
    if shown.verdicts is None:
        return None
    verdict: Verdict = getattr(shown.verdicts, name)
    if verdict.state == "unmeasured":
        return None
    return Found(killed=verdict.state not in spares, said=f"{verdict.state}: {verdict.sentence}")


def _change(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    settings: EvaluateSettings,
) -> Change:
    values = [[float(value) for value in one] for one in (before, after)]
    return paired_change(values[0], values[1], groups=groups, resamples=settings.resamples)


def _rights(change: Change) -> str:
    was, now = (round(share * change.items) for share in (change.before, change.after))
    return f"{was} to {now} of {change.items}"
