"""What a frontier keeps and what follows from it: changes, the Pareto set, and one choice.

Plain values only, so that it can be read, judged and drawn without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sftkit.errors import RecordError
from sftkit.evidence.statistics import Interval, paired_interval
from sftkit.records import Forgot, Learned, Verdicts

Axis = Literal["gain", "drift", "ability", "answers"]
Forgetting = Literal["drift", "ability", "answers"]
UNITS: Mapping[str, tuple[str, float, int]] = {
    "gain": ("nats per token", 1.0, 2),
    "drift": ("nats per token", 1.0, 3),
    "ability": ("points", 100.0, 1),
    "answers": ("nats per token", 1.0, 3),
}
"""Unit, factor and decimals of each axis."""
LOSES: Mapping[str, str] = {
    "drift": "drift on general text",
    "ability": "accuracy lost on the probes",
    "answers": "log-probability lost by right answers",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every point was asked.

    Attributes:
        answers: Group of each held-out answer; whole groups are resampled.
        answer_tokens: Tokens of each of them.
        passage_tokens: Tokens of each general passage.
        probes: Probe of each question.
        half: Half of the probes; "choose" for all that a choice may look at.
    """

    answers: tuple[str, ...]
    answer_tokens: tuple[int, ...]
    passage_tokens: tuple[int, ...]
    probes: tuple[str, ...]
    half: Literal["all", "choose", "report"] = "choose"


@dataclass(frozen=True, kw_only=True)
class Items:
    """One model's values, item by item.

    Attributes:
        answers: Loss of each held-out answer, nats per token.
        passages: Loss of each general passage, nats per token.
        right: 1 for each question answered right, else 0.
        logprobs: Log-probability of each right option, nats per token.
    """

    answers: tuple[float, ...]
    passages: tuple[float, ...]
    right: tuple[float, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One trained adapter at one strength.

    Attributes:
        name: Name of the recipe, with the strength where that is not as trained.
        series: Name of the recipe.
        strength: What the trained update is multiplied by.
        recipe: The recipe that makes just this adapter, its strength included.
        steps: Optimizer steps of the training.
        seconds: Wall clock of the training.
        items: What it scored.
    """

    name: str
    series: str
    strength: float
    recipe: dict[str, Any]
    steps: int
    seconds: float
    items: Items


@dataclass(frozen=True, kw_only=True)
class FrontierReport:
    """What one point is said to have learned and forgotten, by the half that did not choose."""

    name: str
    learned: Learned
    forgot: Forgot
    verdicts: Verdicts


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one point stands.

    Attributes:
        name: The point.
        state: front (no point gains at least as much and forgets at most as much), dominated
            (another does better in both, beyond chance), or undecided (another does at least as
            well in both, but not beyond chance).
        by: The point that dominates it; empty on the front.
        sentence: The same in words, with the numbers.
    """

    name: str
    state: Literal["front", "dominated", "undecided"]
    by: str = ""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """All points, put to the same questions.

    Attributes:
        asked: What was asked of all of them.
        base: What the base model scored.
        points: In the order of the recipes.
        drift_margin: Rise of the loss on general text that counts as unmoved, nats per token.
        ability_margin: Loss of accuracy that counts as kept, as a share of 1.
        resamples: Bootstrap draws per interval.
        chosen: The point that was chosen; empty before.
        why: By what rule, in words.
        reports: The chosen point and those named beforehand, by what did not choose.
    """

    asked: Asked
    base: Items
    points: tuple[FrontierPoint, ...]
    drift_margin: float = 0.1
    ability_margin: float = 0.05
    resamples: int = 4000
    chosen: str = ""
    why: str = ""
    reports: tuple[FrontierReport, ...] = ()

    def point(self, name: str) -> FrontierPoint:
        """Give a point by its name.

        Raises:
            RecordError: There is none of this name.
        """
        for one in self.points:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in self.points)
        raise RecordError(f"There is no point {name!r} in this frontier. There are: {names}.")

    def report(self, name: str) -> FrontierReport:
        """Give the report on a point.

        Raises:
            RecordError: It was not reported.
        """
        for one in self.reports:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in self.reports)
        raise RecordError(f"{name!r} was not reported. There are: {names}. Name it in report=.")

    def change(self, axis: Axis, *, after: str, before: str = "") -> Interval:
        """Compare two points item by item, or a point with the base model.

        Args:
            axis: gain is the fall of the held-out answers' loss, nats per token; drift the rise of
                the loss on general text; ability the share of questions lost; answers the fall of
                the right options' log-probability, nats per token. More of the last three is worse.
            after: Name of a point.
            before: Name of the point it is compared with; empty is the base model.
        """
        found = self._compared(axis, after, before)
        return paired_interval(
            found.differences,
            groups=found.groups,
            weights=found.weights,
            strata=found.strata,
            resamples=self.resamples,
        )

    def pareto(self, forgetting: Forgetting = "drift") -> tuple[str, ...]:
        """Name the points of the Pareto set, the one that forgets least first."""
        places = self._places(forgetting)
        front = [name for name in places if not _dominators(places, name)]
        return tuple(sorted(front, key=lambda name: (places[name][1], places[name][0])))

    def standing(self, name: str, forgetting: Forgetting = "drift") -> Standing:
        """Say whether a point is on the front, and if not, whether that is beyond chance."""
        places = self._places(forgetting)
        better = _dominators(places, self.point(name).name)
        if not better:
            sentence = f"{name}: on the front; no point gains as much and forgets as little"
            return Standing(name=name, state="front", sentence=sentence)
        found = []
        for other in better:
            gain = self.change("gain", before=name, after=other)
            loss = self.change(forgetting, before=name, after=other)
            shown = (gain.ci95[0] > 0) + (loss.ci95[1] < 0)
            words = (
                f"gains {in_words('gain', gain)} more and its {LOSES[forgetting]} differs by "
                f"{in_words(forgetting, loss)}"
            )
            found.append((shown, places[other][0], other, words))
        shown, _, by, words = max(found)
        if shown == 2:
            sentence = f"{name}: dominated; {by} {words}"
            return Standing(name=name, state="dominated", by=by, sentence=sentence)
        sentence = f"{name}: undecided; by its points {by} is no worse in both, but it {words}"
        return Standing(name=name, state="undecided", by=by, sentence=sentence)

    def choose(self) -> tuple[str, str]:
        """Choose the largest gain among points that keep within the margins, and say so.

        A point keeps within them if the interval of its drift ends below the margin, and its
        accuracy is not shown to have fallen. If none does, it is the point that drifts least.
        """
        kept = []
        for one in self.points:
            drift = self.change("drift", after=one.name)
            fell = self.change("ability", after=one.name)
            if drift.ci95[1] < self.drift_margin and fell.ci95[0] <= 0:
                kept.append(one.name)
        if kept:
            name = max(kept, key=lambda one: self.change("gain", after=one).delta)
            rule = (
                f"{name}: the largest gain among {len(kept)} of {len(self.points)} points whose "
                f"drift is below {self.drift_margin:g} by the interval and whose accuracy is not "
                "shown to have fallen"
            )
        else:
            name = min(
                (one.name for one in self.points),
                key=lambda one: self.change("drift", after=one).delta,
            )
            rule = f"{name}: it drifts least, and no point keeps drift below {self.drift_margin:g}"
        gain = self.change("gain", after=name)
        return name, f"{rule}. It gains {in_words('gain', gain)}."

    def _compared(self, axis: Axis, after: str, before: str = "") -> _Compared:
        """Pair the items of two points, so that more is more gain or more loss."""
        start = self.point(before).items if before else self.base
        end, asked = self.point(after).items, self.asked
        if axis == "gain":
            fell = _less(end.answers, start.answers)
            return _Compared(differences=fell, groups=asked.answers, weights=asked.answer_tokens)
        if axis == "drift":
            rose = _less(start.passages, end.passages)
            places = tuple(str(place) for place in range(len(rose)))
            return _Compared(differences=rose, groups=places, weights=asked.passage_tokens)
        fell = (
            _less(end.right, start.right)
            if axis == "ability"
            else _less(end.logprobs, start.logprobs)
        )
        places = tuple(str(place) for place in range(len(fell)))
        return _Compared(differences=fell, groups=places, strata=asked.probes)

    def _places(self, forgetting: Forgetting) -> dict[str, tuple[float, float]]:
        """Give gain and forgetting of every point."""
        return {
            one.name: (
                self._compared("gain", one.name).mean,
                self._compared(forgetting, one.name).mean,
            )
            for one in self.points
        }


@dataclass(frozen=True, kw_only=True)
class _Compared:
    differences: tuple[float, ...]
    groups: tuple[str, ...]
    weights: tuple[int, ...] | None = None
    strata: tuple[str, ...] | None = None

    @property
    def mean(self) -> float:
        weights = self.weights or (1,) * len(self.differences)
        pairs = zip(self.differences, weights, strict=True)
        return sum(value * weight for value, weight in pairs) / sum(weights)


def _less(less: tuple[float, ...], more: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(b - a for a, b in zip(less, more, strict=True))


def standings(measured: Frontier, forgetting: Forgetting = "drift") -> tuple[Standing, ...]:
    """Say of every point where it stands; the front first, then the others in their order."""
    found = [measured.standing(one.name, forgetting) for one in measured.points]
    return tuple(sorted(found, key=lambda one: one.state != "front"))


def in_words(axis: Axis, found: Interval) -> str:
    """Write a change with its interval and unit."""
    unit, factor, digits = UNITS[axis]
    low, high = (factor * end for end in found.ci95)
    return (
        f"{factor * found.delta:+.{digits}f} {unit} (95 % interval {low:+.{digits}f} to "
        f"{high:+.{digits}f})"
    )


def _dominators(places: Mapping[str, tuple[float, float]], name: str) -> list[str]:
    """Name the points that are no worse in both, and better in one."""
    gain, loss = places[name]
    return [
        other
        for other, (more, less) in places.items()
        if more >= gain and less <= loss and (more > gain or less < loss)
    ]
