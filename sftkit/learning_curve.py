"""A learning curve over data size: the same test after trainings on more and more rows, by seed.

All trainings see every group (fact, document) equally often: with fewer rows of it, each row more
often. What changes along the curve is the variety of the data, not the amount of training.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sftkit.errors import SettingsError
from sftkit.evidence.learning import LearningScores, LearningTest, score_learning
from sftkit.evidence.perplexity import TokenLoss, score_examples
from sftkit.evidence.seeds import SeedChange, change_over_seeds
from sftkit.records import Encoded, is_exact
from sftkit.settings import AdapterSettings, EvaluateSettings, TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Measure = Literal["exact", "loss", "control loss"]
MEASURES: tuple[Measure, ...] = ("exact", "loss", "control loss")
"""Share of answers that are right word for word; loss of the right answers, nats per token; the
same of questions whose answers no training has seen."""


@dataclass(frozen=True, kw_only=True)
class CurveTest:
    """What is asked at every point of the curve.

    Attributes:
        learning: Questions to answer, and held-out examples of what is trained.
        control: Held-out examples of what is never trained; may be empty.
    """

    learning: LearningTest
    control: tuple[Encoded, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CurveScores:
    """One model's results on it."""

    learning: LearningScores
    control: tuple[TokenLoss, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CurveRun:
    """One training, and what it scored.

    Attributes:
        size: Rows of each group that it learned from.
        rows: All rows that it learned from.
        seed: Seed of the choice of rows, of the adapter and of the order.
        steps: Optimizer steps.
        seconds: Wall clock of the training.
        scores: The test's results.
    """

    size: int
    rows: int
    seed: int
    steps: int
    seconds: float
    scores: CurveScores


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """The base model and all trainings, put to one test.

    Attributes:
        test: What was asked.
        base: The base model's results.
        runs: One per size and seed.
    """

    test: CurveTest
    base: CurveScores
    runs: tuple[CurveRun, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each group, the fewest first."""
        return tuple(sorted({run.size for run in self.runs}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed, in order."""
        return tuple(sorted({run.seed for run in self.runs}))

    def rows(self, size: int) -> int:
        """Count the rows that trainings of a size learned from."""
        return next(run.rows for run in self.runs if run.size == size)

    def change(self, measure: Measure, *, after: int, before: int = 0) -> SeedChange:
        """Compare two sizes, seed by seed and question by question.

        Args:
            measure: One of MEASURES.
            after: Rows of each group.
            before: The same of what it is compared with; 0 is the base model.

        Raises:
            SettingsError: The curve has no such size, or nothing of this measure was asked.
        """
        return self._compare(measure, before, after)

    def level(self, measure: Measure, size: int) -> SeedChange:
        """Give a size's value itself, as a change from 0, with its interval."""
        return self._compare(measure, None, size)

    def _compare(self, measure: Measure, before: int | None, after: int) -> SeedChange:
        groups, weights = _layout(self.test, self.base, measure)
        if not groups:
            raise SettingsError(f"The test of this learning curve has nothing for {measure!r}.")
        values = self._values(measure, after)
        zero = [[0.0] * len(groups)] * len(values)
        first = zero if before is None else self._values(measure, before)
        return change_over_seeds(first, values, groups=groups, weights=weights)

    def _values(self, measure: Measure, size: int) -> list[list[float]]:
        by_seed = {run.seed: run.scores for run in self.runs if run.size == size}
        if size == 0:
            by_seed = dict.fromkeys(self.seeds, self.base)
        if set(by_seed) != set(self.seeds):
            raise SettingsError(
                f"Size {size} was trained with seeds {sorted(by_seed)}, the curve has seeds "
                f"{list(self.seeds)} and sizes {list(self.sizes)}."
            )
        return [_values(self.test, by_seed[seed], measure) for seed in self.seeds]


def measure_curve(
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    test: CurveTest,
    *,
    sizes: Sequence[int],
    seeds: Sequence[int],
    views: int,
    adapter: AdapterSettings,
    train: TrainSettings,
    evaluate: EvaluateSettings,
    start: CurveScores | None = None,
    done: Sequence[CurveRun] = (),
    note: Callable[[str], None] = print,
) -> LearningCurve:
    """Train a fresh adapter for every size and seed on one base, and put the same test to each.

    Args:
        base: The base model, frozen, without an adapter; it has none afterwards either.
        tokenizer: Its tokenizer.
        examples: Training examples with their groups.
        test: What is asked.
        sizes: Rows of each group.
        seeds: A seed draws the rows (a smaller size's are among a larger one's), makes the adapter
            and orders the batches.
        views: How often every group is seen in each training, whatever the size.
        adapter: What is attached.
        train: How to train; epochs and seed are replaced.
        evaluate: How the test is put.
        start: The base model's results, if they are known.
        done: Trainings that need not be done again.
        note: Told of each training when it is done.

    Raises:
        SettingsError: A size that is not in the data, or does not divide the views.
        AdapterError: An adapter could not be taken off again without a trace.
    """
    for size in sizes:
        draw_rows(examples, size=size, seed=0)  # refuses a size before anything is trained
        _epochs(views, size)
    known = {(run.size, run.seed): run for run in done}
    start = start or score_curve(base, tokenizer, test, evaluate)
    runs = []
    for size in sorted(set(sizes)):
        for seed in sorted(set(seeds)):
            run = known.get((size, seed)) or try_size(
                base, tokenizer, examples, test, size=size, seed=seed, views=views,
                adapter=adapter, train=train, evaluate=evaluate,
            )  # fmt: skip
            runs.append(run)
            right = sum(_values(test, run.scores, "exact"))
            note(
                f"{run.rows:>4} rows, seed {seed}: {right:.0f} of {len(test.learning.questions)} "
                f"right; {run.steps} steps in {run.seconds:.0f} s"
            )
    return LearningCurve(test=test, base=start, runs=tuple(runs))


def try_size(
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Encoded],
    test: CurveTest,
    *,
    size: int,
    seed: int,
    views: int,
    adapter: AdapterSettings,
    train: TrainSettings,
    evaluate: EvaluateSettings,
) -> CurveRun:
    """Train one fresh adapter on some rows of every group, test it, and take it off again.

    Args and errors are those of `measure_curve`.
    """
    from sftkit.adapter import attach_adapter, take_apart
    from sftkit.objectives import chat_loss
    from sftkit.optim import rate_scales
    from sftkit.sweep import refuse_if_it_leaves_traces
    from sftkit.train import train as fit

    refuse_if_it_leaves_traces(adapter)
    chosen = draw_rows(examples, size=size, seed=seed)
    settings = dataclasses.replace(train, epochs=_epochs(views, size), seed=seed)
    model = attach_adapter(base, adapter, seed=seed)
    try:
        clock = time.perf_counter()
        record = fit(model, chosen, settings, objective=chat_loss, rate_scales=rate_scales(adapter))
        seconds = time.perf_counter() - clock
        scores = score_curve(model, tokenizer, test, evaluate)
    finally:
        take_apart(base)
    return CurveRun(
        size=size,
        rows=len(chosen),
        seed=seed,
        steps=len(record.steps),
        seconds=seconds,
        scores=scores,
    )


def score_curve(
    model: Any, tokenizer: PreTrainedTokenizerBase, test: CurveTest, evaluate: EvaluateSettings
) -> CurveScores:
    """Put the test to one model."""
    return CurveScores(
        learning=score_learning(model, tokenizer, test.learning, evaluate),
        control=score_examples(model, test.control) if test.control else (),
    )


def steps_in_words(curve: LearningCurve) -> tuple[str, ...]:
    """Say of each step to the next larger size whether it helps, by right answers and by loss.

    An interval decides: it helps or harms if zero lies outside, and else it is undecided.
    """
    from sftkit.panels import interval, signed

    sentences = []
    measures: tuple[tuple[Measure, int, int, str, bool], ...] = (
        ("exact", 100, 1, "points", True),
        ("loss", 1, 2, "nats per token", False),
    )
    for smaller, larger in itertools.pairwise(curve.sizes):
        for measure, factor, digits, unit, more_is_better in measures:
            found = curve.change(measure, before=smaller, after=larger)
            low, high = (factor * end for end in found.ci95)
            state = "undecided"
            if not low <= 0 <= high:
                state = "helps" if (low > 0) == more_is_better else "harms"
            each = ", ".join(signed(factor * delta, digits) for delta in found.by_seed)
            sentences.append(
                f"{curve.rows(smaller)} → {curve.rows(larger)} rows, {measure}: {state}, "
                f"{signed(factor * found.delta, digits)} {unit} (95 % interval "
                f"{interval(found.ci95, factor, digits)}; by seed {each})"
            )
    return tuple(sentences)


def draw_rows(examples: Sequence[Encoded], *, size: int, seed: int) -> list[Encoded]:
    """Draw rows of every group; those of a smaller size are among those of a larger one.

    Args:
        examples: Training examples with their groups.
        size: Rows of each group.
        seed: Seed of the draw.

    Raises:
        SettingsError: A group has fewer rows.
    """
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        places.setdefault(example.group, []).append(place)
    fewest = min(map(len, places.values()), default=0)
    if not 1 <= size <= fewest:
        raise SettingsError(
            f"A learning curve with {size} rows of each group needs from 1 to {fewest} of them: "
            f"the smallest of {len(places)} groups has {fewest}."
        )
    chosen: list[int] = []
    for group, own in sorted(places.items()):
        random.Random(f"{seed}/{group}").shuffle(own)  # noqa: S311  (a choice, not a secret)
        chosen += own[:size]
    return [examples[place] for place in sorted(chosen)]


def _epochs(views: int, size: int) -> int:
    if size < 1 or views % size:
        raise SettingsError(
            f"views={views} cannot be shared out evenly among {size} rows of a group. Take a "
            "number that every size divides."
        )
    return views // size


def _layout(
    test: CurveTest, base: CurveScores, measure: Measure
) -> tuple[list[str], list[float] | None]:
    """Give group and weight of every item of a measure."""
    if measure == "exact":
        return list(test.learning.groups), None
    examples = test.learning.heldout if measure == "loss" else test.control
    scores = base.learning.heldout if measure == "loss" else base.control
    return [example.group for example in examples], [float(score.tokens) for score in scores]


def _values(test: CurveTest, scores: CurveScores, measure: Measure) -> list[float]:
    if measure == "exact":
        said = zip(scores.learning.answers, test.learning.expected, strict=True)
        return [float(is_exact(answer.text, right)) for answer, right in said]
    found = scores.learning.heldout if measure == "loss" else scores.control
    return [score.mean for score in found]
