"""The exercises of notebook 02."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_not, is_number, is_whole, near


@dataclass(frozen=True, kw_only=True)
class _LayerSize:
    inputs: int
    outputs: int
    r: int

    @property
    def numbers(self) -> int:
        return self.r * (self.inputs + self.outputs)

    @property
    def own(self) -> int:
        return self.inputs * self.outputs


def _layer_size(given: Mapping[str, Any]) -> _LayerSize:
    layer = given["layer"]
    return _LayerSize(
        inputs=int(layer.in_features), outputs=int(layer.out_features), r=int(given["r"])
    )


@dataclass(frozen=True, kw_only=True)
class _Ranks:
    """Error left at the end, by rank, as a share of the start."""

    left: Mapping[int, float]

    @property
    def enough(self) -> list[int]:
        return sorted(r for r, error in self.left.items() if error < 0.1)


def _ranks(given: Mapping[str, Any]) -> _Ranks:
    left = {int(r): float(errors[-1]) for r, errors in given["by_rank"].items()}
    ranks = _Ranks(left=left)
    if not ranks.enough:
        raise SftkitError(
            "No rank leaves less than a tenth of the error in so few steps. Raise toy_steps at the "
            "top and run section 4 again."
        )
    return ranks


def _off_changes(given: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: trial.off_change for name, trial in given["results"].items()}


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    most: Any
    fewest: Any

    @property
    def times(self) -> float:
        return float(self.most.trainable / self.fewest.trainable)

    @property
    def lower_by(self) -> float:
        return float(self.fewest.heldout.after - self.most.heldout.after)


def _sizes(given: Mapping[str, Any]) -> _Sizes:
    by_size = sorted(given["results"].values(), key=lambda trial: trial.trainable)
    if len(by_size) < 2:
        raise SftkitError("One method cannot be compared. Run at least two: see kinds at the top.")
    return _Sizes(most=by_size[-1], fewest=by_size[0])


EXERCISES = (
    Exercise(
        id="02.1",
        asks="(numbers, share): what LoRA of rank r trains for the layer, and as a share of it",
        given=("layer", "r"),
        facts=_layer_size,
        properties=(
            Property(
                says="The answer should be a whole number and a number.",
                holds=lambda a, _: len(a) == 2 and is_whole(a[0]) and is_number(a[1]),
                hint="First how many numbers are trained, then that count divided by another.",
            ),
            Property(
                says="Both thin matrices should be counted.",
                holds=lambda a, f: a[0] not in (f.r * f.inputs, f.r * f.outputs),
                hint="You counted one of A and B. The update is their product.",
            ),
            Property(
                says="The product itself should not be counted.",
                holds=lambda a, f: a[0] not in (f.own, f.r * f.own),
                hint="B·A is as large as the layer, but it is never stored: only A and B are "
                "trained.",
            ),
            Property(
                says="The count should be that of A and B together.",
                holds=lambda a, f: a[0] == f.numbers,
                hint="A has r rows of `layer.in_features` numbers; B has `layer.out_features` rows "
                "of r numbers.",
            ),
            Property(
                says="The share should lie between 0 and 1.",
                holds=lambda a, _: 0 < a[1] < 1,
                hint="A share of 1 would be the whole layer; percent are a hundred times that.",
            ),
            Property(
                says="The share should be that of the layer's own numbers.",
                holds=lambda a, f: near(a[1], f.numbers / f.own),
                hint="Divide by `layer.weight.numel()`, the numbers of the frozen layer.",
            ),
        ),
        deepens="The thin pair grows with the sum of a layer's sides and the layer with their "
        "product, so the larger the model, the smaller the share at the same rank.",
    ),
    Exercise(
        id="02.2",
        asks="the smallest measured rank that leaves less than a tenth of the error",
        given=("by_rank",),
        facts=_ranks,
        properties=(
            Property(
                says="The answer should be a rank that was measured.",
                holds=lambda a, f: is_whole(a) and a in f.left,
                hint="Hand in one of the keys of `by_rank`.",
            ),
            Property(
                says="Less than a tenth of the error should be left.",
                holds=lambda a, f: a in f.enough,
                hint="With this rank more is left. Look at the last number of its list, and not at "
                "how fast it falls at the start.",
            ),
            Property(
                says="No smaller rank should do.",
                holds=lambda a, f: a == min(f.enough),
                hint="A smaller rank that you measured also leaves less than a tenth.",
            ),
        ),
        deepens="A rank below that of the change leaves its missing directions for good; how many "
        "directions a real task needs is not known before it is tried.",
    ),
    Exercise(
        id="02.3",
        asks="the set of methods whose off_change is exactly 0",
        given=("results",),
        facts=_off_changes,
        properties=(
            Property(
                says="The answer should be a set of methods that were tried.",
                holds=lambda a, f: not isinstance(a, str) and set(a) <= set(f),
                hint="Hand in a set of keys of `results`.",
            ),
            Property(
                says="A method with nothing to switch off should not be named.",
                holds=lambda a, f: all(f[name] is not None for name in a),
                hint="For one you named, off_change is None: the base itself was trained, and is "
                "gone.",
            ),
            Property(
                says="A method whose base changed should not be named.",
                holds=lambda a, f: all(f[name] == 0 for name in a),
                hint="For one you named, switched off and base differ by more than nothing.",
            ),
            Property(
                says="Every method that comes back to the base should be named.",
                holds=lambda a, f: set(a) == {name for name, off in f.items() if off == 0},
                hint="Others have an off_change of 0 as well; what the fresh adapter does is "
                "another question.",
            ),
        ),
        deepens="It is exactly zero and not nearly: switched off, the same multiplications are "
        "done as in the base, so any difference at all is a fault.",
    ),
    Exercise(
        id="02.4",
        asks="(times, lower_by): most against fewest trained parameters, and the loss it saved",
        given=("results",),
        facts=_sizes,
        properties=(
            Property(
                says="The answer should be two numbers.",
                holds=lambda a, _: len(a) == 2 and is_number(a[0]) and is_number(a[1]),
                hint="First a ratio of `trainable`, then a difference of `heldout.after`.",
            ),
            Property(
                says="The ratio should say how many times as many.",
                holds=lambda a, f: a[0] > 1,
                hint="Divide the larger count by the smaller one.",
            ),
            Property(
                says="The ratio should be of the most and the fewest trained parameters.",
                holds=lambda a, f: abs(a[0] / f.times - 1) < 0.01,
                hint="Sort by `trainable`, and take the two ends.",
            ),
            Property(
                says="A lower loss of the larger method should come out positive.",
                holds=lambda a, f: is_not(a[1], -f.lower_by, f.lower_by),
                hint="Loss of the smaller method minus loss of the larger one.",
            ),
            Property(
                says="The difference should be between the two methods after training.",
                holds=lambda a, f: near(a[1], f.lower_by),
                hint="Take `heldout.after` of both, the loss of the same test answers.",
            ),
        ),
        deepens="A difference between two methods needs an interval of its own, from their losses "
        "row by row; two intervals that overlap do not yet say that there is none.",
    ),
)
