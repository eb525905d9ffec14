"""What the evaluation of labels hands on: how well classes or numbers were predicted.

Plain values only, so a run's folder can be read and drawn without torch. What could not be measured
is None, and `note` says why in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LabelTask = Literal["classify", "regress", "image"]


def decimals_of(metric: str, *values: float) -> int:
    """Give the decimals that values of a metric, or changes of it, are written with.

    Three; but errors have the unit of the data, however small or large that is, so of them the
    largest of the values gets three significant digits.
    """
    largest = max(map(abs, values), default=0.0)
    if metric not in ("rmse", "mae") or not largest:
        return 3
    return max(2 - math.floor(math.log10(largest)), 0)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric of one system.

    Attributes:
        name: accuracy, macro_f1, mcc, auroc, auprc, rmse, mae, spearman or r2; in the table of
            classes precision, recall or f1.
        value: Its value, or None where it is not defined.
        ci95: 95 % interval from resampling whole groups, or None where it says nothing.
        note: Why value or interval is missing, or is a convention; empty otherwise.
    """

    name: str
    value: float | None
    ci95: tuple[float, float] | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A metric of the tuned model minus the same metric of another system, on the same items.

    Attributes:
        metric: Name of the metric.
        over: The other system, such as tf-idf, majority or base.
        before: Its value.
        after: The tuned model's value.
        delta: after - before, in the metric's unit.
        ci95: Interval of delta; both systems are measured on the same drawn groups.
        lower_is_better: Whether a negative delta is the improvement (errors).
        note: Why a number is missing; empty otherwise.
    """

    metric: str
    over: str
    before: float | None
    after: float | None
    delta: float | None
    ci95: tuple[float, float] | None
    lower_is_better: bool = False
    note: str = ""

    @property
    def is_shown(self) -> bool:
        """Whether the tuned model is better, with an interval that excludes zero."""
        if self.ci95 is None:
            return False
        return self.ci95[1] < 0 if self.lower_is_better else self.ci95[0] > 0

    @property
    def is_reversed(self) -> bool:
        """Whether the tuned model is worse, with an interval that excludes zero."""
        if self.ci95 is None:
            return False
        return self.ci95[0] > 0 if self.lower_is_better else self.ci95[1] < 0


@dataclass(frozen=True, kw_only=True)
class System:
    """One system and its metrics: the tuned model, or something to compare it with."""

    name: str
    measures: tuple[Measure, ...]

    def measure(self, name: str) -> Measure:
        """Give one metric by its name.

        Raises:
            KeyError: There is none of that name.
        """
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(f"No metric {name}; there are {', '.join(m.name for m in self.measures)}.")


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class in the test.

    Attributes:
        name: The class.
        precision: Share of the items predicted as this class that are of it.
        recall: Share of the items of this class that were predicted as it.
        f1: Harmonic mean of the two.
        support: Test items of this class.
        predicted: Test items predicted as this class.
    """

    name: str
    precision: Measure
    recall: Measure
    f1: Measure
    support: int
    predicted: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One test item that the tuned model got wrong.

    Attributes:
        row: Row number in the test split.
        group: Its group.
        text: Its text, shortened; empty for images.
        target: The right class, or the true number.
        predicted: The predicted class or number.
        confidence: Probability of the predicted class; for numbers, the absolute error.
    """

    row: int
    group: str
    text: str
    target: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Precision and recall of the positive class when scores from `threshold` on count as it."""

    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A decision threshold chosen on validation items.

    Attributes:
        value: Scores of the positive class from here on count as positive.
        aim: What it was chosen for, in words.
        reached: What the aim came to on the validation items.
        items: Validation items it was chosen on.
    """

    value: float
    aim: str
    reached: float
    items: int


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How well the tuned model predicts, beside its baselines, on the same test items.

    Attributes:
        task: classify, image or regress.
        classes: Names of the classes, in the order of the scores; empty for regress. Of two, the
            second is the positive one.
        items: Test items.
        groups: Groups they fall into; intervals resample these.
        resamples: Bootstrap draws.
        seed: Seed of the draws.
        systems: The tuned model first, then what it is compared with.
        gains: The tuned model minus each other system, for each metric.
        per_class: The tuned model, class by class; empty for regress.
        confusion: Items by true class (outer) and predicted class (inner); empty for regress.
        curve: Precision and recall over thresholds, of two classes; empty otherwise.
        threshold: From which score the positive class was predicted; None takes the largest score.
        points: True and predicted numbers of a regression, at most 500 of them.
        mistakes: The most confident errors, worst first.
        notes: What limits these numbers, in words.
    """

    task: LabelTask
    classes: tuple[str, ...]
    items: int
    groups: int
    resamples: int
    seed: int
    systems: tuple[System, ...]
    gains: tuple[Gain, ...]
    per_class: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    threshold: float | None = None
    points: tuple[tuple[float, float], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tuned(self) -> System:
        """The tuned model."""
        return self.systems[0]

    def gain(self, metric: str, over: str) -> Gain:
        """Give the comparison with one other system in one metric.

        Raises:
            KeyError: There is none.
        """
        for gain in self.gains:
            if (gain.metric, gain.over) == (metric, over):
                return gain
        known = ", ".join(f"{gain.metric} over {gain.over}" for gain in self.gains)
        raise KeyError(f"No gain of {metric} over {over}; there are: {known or 'none'}.")
