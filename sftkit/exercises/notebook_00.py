"""The exercises of notebook 00."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near
from sftkit.records import IGNORE


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


EXERCISES = (
    Exercise(
        id="00.1",
        asks="(count, token_id): supervised tokens of the example, and the id of the last one",
        given=("example",),
        facts=_supervision,
        properties=(
            Property(
                says="The answer should be a pair of whole numbers.",
                holds=lambda a, _: len(a) == 2 and is_whole(a[0]) and is_whole(a[1]),
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
                holds=lambda a, _: len(a) == 2 and is_number(a[0]) and a[1] in (True, False),
                hint="First the mean of the paired differences, then whether the interval "
                "excludes zero.",
            ),
            Property(
                says="A gain should come out positive.",
                holds=lambda a, f: is_not(a[0], -f.delta, f.delta),
                hint="A difference is the later value minus the earlier one.",
            ),
            Property(
                says="The difference should be in the unit of the values.",
                holds=lambda a, f: is_not(a[0], f.percent, f.delta),
                hint="The values are shares of 1 or nats, and so is their difference; yours is "
                "a hundred times that.",
            ),
            Property(
                says="The difference should be an average over the pairs.",
                holds=lambda a, f: is_not(a[0], f.total, f.delta),
                hint="You added the differences up. How many pairs are there?",
            ),
            Property(
                says="Losses and gains should cancel.",
                holds=lambda a, f: is_not(a[0], f.unsigned, f.delta),
                hint="Keep the sign of each difference: an item that got worse counts against "
                "one that got better.",
            ),
            Property(
                says="The difference should be absolute, not relative to the start.",
                holds=lambda a, f: is_not(a[0], f.relative, f.delta),
                hint="You divided by the value before. A model that starts at almost nothing "
                "would then seem to gain without bound.",
            ),
            Property(
                says="The difference should fit the pairs.",
                holds=lambda a, f: near(a[0], f.delta),
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
                    len(pair) == 2 and all(is_number(part) for part in pair)
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
                holds=lambda a, f: is_number(a) and a in f.measured,
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
