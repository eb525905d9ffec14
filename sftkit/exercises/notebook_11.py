"""The exercises of notebook 11."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, near


@dataclass(frozen=True, kw_only=True)
class _Counts:
    hits: int
    missed: int
    alarms: int
    quiet: int

    @property
    def recall(self) -> float:
        return self.hits / (self.hits + self.missed)

    @property
    def precision(self) -> float:
        return self.hits / (self.hits + self.alarms)

    @property
    def accuracy(self) -> float:
        return (self.hits + self.quiet) / (self.hits + self.missed + self.alarms + self.quiet)


def _counts(given: Mapping[str, Any]) -> _Counts:
    (quiet, alarms), (missed, hits) = given["confusion"]
    if not hits + missed or not hits + alarms:
        raise SftkitError("No item of the second class is in this test, or none was predicted.")
    return _Counts(hits=int(hits), missed=int(missed), alarms=int(alarms), quiet=int(quiet))


@dataclass(frozen=True, kw_only=True)
class _Widths:
    by_question: float
    by_row: float


def _widths(given: Mapping[str, Any]) -> _Widths:
    widths = {}
    for name in ("by_question", "by_row"):
        if given[name] is None:
            raise SftkitError("This test has too few questions for an interval. Test more rows.")
        low, high = given[name]
        widths[name] = float(high) - float(low)
    if not min(widths.values()) > 0:
        raise SftkitError("An interval here has no width, so there is nothing to compare.")
    return _Widths(**widths)


@dataclass(frozen=True, kw_only=True)
class _Costs:
    usual: float
    chosen: float
    swapped: float
    rows: int


def _costs(given: Mapping[str, Any]) -> _Costs:
    missed_cost, alarm_cost = given["costs"]
    found = []
    for said in (given["usual"], given["chosen"]):
        pairs = list(zip(given["targets"], said, strict=True))
        missed = sum(bool(true) and not bool(one) for true, one in pairs)
        alarms = sum(bool(one) and not bool(true) for true, one in pairs)
        found.append((missed, alarms, len(pairs)))
    costs = [(m * missed_cost + a * alarm_cost) / n for m, a, n in found]
    missed, alarms, rows = found[0]
    return _Costs(
        usual=costs[0],
        chosen=costs[1],
        swapped=(alarms * missed_cost + missed * alarm_cost) / rows,
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True)
class _Lazy:
    accuracy: float
    f1_common: float

    @property
    def macro_f1(self) -> float:
        return self.f1_common / 2


def _lazy(given: Mapping[str, Any]) -> _Lazy:
    common, rare = (int(count) for count in given["support"])
    if common < 1 or rare < 1:
        raise SftkitError("Both classes must be in the test.")
    return _Lazy(accuracy=common / (common + rare), f1_common=2 * common / (2 * common + rare))


@dataclass(frozen=True, kw_only=True)
class _Losses:
    error: float

    @property
    def mse(self) -> float:
        return self.error**2

    @property
    def huber(self) -> float:
        size = abs(self.error)
        return size**2 / 2 if size <= 1 else size - 0.5


def _losses(given: Mapping[str, Any]) -> _Losses:
    return _Losses(error=float(given["error"]))


def _are_numbers(answer: Any, _: Any) -> bool:
    return len(answer) == 2 and all(is_number(part) for part in answer)


EXERCISES = (
    Exercise(
        id="11.1",
        asks="(recall, precision) of the class relevant, from the confusion matrix",
        given=("confusion",),
        facts=_counts,
        properties=(
            Property(
                says="The answer should be a pair of shares between 0 and 1.",
                holds=lambda a, f: _are_numbers(a, f) and all(0 <= part <= 1 for part in a),
                hint="First recall, then precision; 0.5, not 50.",
            ),
            Property(
                says="The two should not be swapped.",
                holds=lambda a, f: (
                    not (near(a[0], f.precision) and near(a[1], f.recall))
                    or near(f.recall, f.precision)
                ),
                hint="Recall asks of the relevant ones how many were found; precision asks of the "
                "ones said to be relevant how many are.",
            ),
            Property(
                says="Recall should not be the share of all right answers.",
                holds=lambda a, f: is_not(a[0], f.accuracy, f.recall),
                hint="That is accuracy. Recall looks at one line of the matrix only.",
            ),
            Property(
                says="Recall should match the matrix.",
                holds=lambda a, f: near(a[0], f.recall),
                hint="Lines are true classes: the second line holds all relevant pairs.",
            ),
            Property(
                says="Precision should match the matrix.",
                holds=lambda a, f: near(a[1], f.precision),
                hint="Columns are predicted classes: the second column holds all pairs that were "
                "called relevant.",
            ),
        ),
        deepens="Recall is what the reader of a policy misses, precision what he reads in vain. "
        "One number for both hides which of the two a model is bad at.",
    ),
    Exercise(
        id="11.2",
        asks="how many times wider the interval is when whole questions are resampled",
        given=("by_question", "by_row"),
        facts=_widths,
        properties=(
            Property(
                says="The answer should be a number above 0.",
                holds=lambda a, _: is_number(a) and float(a) > 0,
                hint="Divide one width by the other. A width is upper end minus lower end.",
            ),
            Property(
                says="It should compare widths, not ends.",
                holds=lambda a, f: (
                    near(a, f.by_question / f.by_row)
                    or not (near(a, f.by_question) or near(a, f.by_row))
                ),
                hint="That is one of the widths itself. How often does the smaller one fit into "
                "the larger one?",
            ),
            Property(
                says="The interval by question should be divided by the one by row.",
                holds=lambda a, f: is_not(a, f.by_row / f.by_question, f.by_question / f.by_row),
                hint="You divided the other way round.",
            ),
            Property(
                says="The number should match the intervals.",
                holds=lambda a, f: near(a, f.by_question / f.by_row),
                hint="(upper - lower) by question, divided by (upper - lower) by row.",
            ),
        ),
        deepens="A hundred passages of one question stand or fall together. Whoever resamples rows "
        "takes them for a hundred independent facts, and is far too sure.",
    ),
    Exercise(
        id="11.3",
        asks="(cost at 0.5, cost at the chosen threshold), mean per test pair",
        given=("targets", "usual", "chosen", "costs"),
        facts=_costs,
        properties=(
            Property(
                says="The answer should be a pair of numbers.",
                holds=_are_numbers,
                hint="First the mean cost at a threshold of 0.5, then at the chosen one.",
            ),
            Property(
                says="The costs should be per test pair.",
                holds=lambda a, f: is_not(a[0], f.usual * f.rows, f.usual),
                hint="That is the sum over all pairs. Divide it by their number.",
            ),
            Property(
                says="A missed passage should cost more than a false alarm.",
                holds=lambda a, f: is_not(a[0], f.swapped, f.usual),
                hint="You multiplied the wrong counts: missed is relevant and not found.",
            ),
            Property(
                says="The cost at 0.5 should match the predictions.",
                holds=lambda a, f: near(a[0], f.usual),
                hint="Count pairs that are 1 in `targets` and 0 in `usual`, and the reverse.",
            ),
            Property(
                says="The cost at the chosen threshold should match the predictions.",
                holds=lambda a, f: near(a[1], f.chosen),
                hint="The same counting, with `chosen` in place of `usual`.",
            ),
        ),
        deepens="The threshold was chosen on other pairs, so what it saves here is honest. Had it "
        "been chosen on the test, the saving would be partly luck.",
    ),
    Exercise(
        id="11.4",
        asks="(accuracy, macro_f1) of a model that always says irrelevant",
        given=("support",),
        facts=_lazy,
        properties=(
            Property(
                says="The answer should be a pair of shares between 0 and 1.",
                holds=lambda a, f: _are_numbers(a, f) and all(0 <= part <= 1 for part in a),
                hint="First accuracy, then macro-F1.",
            ),
            Property(
                says="The accuracy should match the counts.",
                holds=lambda a, f: near(a[0], f.accuracy),
                hint="It is right for every irrelevant pair, and for no other.",
            ),
            Property(
                says="Macro-F1 should count both classes alike.",
                holds=lambda a, f: is_not(a[1], f.f1_common, f.macro_f1),
                hint="That is F1 of the frequent class alone. What is F1 of the class that is "
                "never predicted, and what is the mean of the two?",
            ),
            Property(
                says="Macro-F1 should match the counts.",
                holds=lambda a, f: near(a[1], f.macro_f1),
                hint="For the frequent class recall is 1 and precision is the accuracy; F1 is "
                "2 × precision × recall / (precision + recall).",
            ),
        ),
        deepens="An accuracy far above 90 % that knows nothing. Before you believe a score, ask "
        "what the laziest model would get.",
    ),
    Exercise(
        id="11.5",
        asks="(mse, huber): both losses of the same error",
        given=("error",),
        facts=_losses,
        properties=(
            Property(
                says="The answer should be a pair of numbers.",
                holds=_are_numbers,
                hint="First the squared error, then the Huber loss.",
            ),
            Property(
                says="The squared error should match.",
                holds=lambda a, f: near(a[0], f.mse),
                hint="The error, times itself.",
            ),
            Property(
                says="The Huber loss of a large error should not be squared.",
                holds=lambda a, f: is_not(a[1], f.mse / 2, f.huber),
                hint="Beyond delta the Huber loss grows in a straight line.",
            ),
            Property(
                says="The Huber loss should match.",
                holds=lambda a, f: near(a[1], f.huber),
                hint="Beyond delta it is delta × (size of the error - delta / 2), and delta is 1.",
            ),
        ),
        deepens="One letter whose score is far off pulls a model trained on squares much harder. "
        "Whether that is good depends on whether such letters are the important ones, or mistakes.",
    ),
)
