"""How far a model's confidence can be believed: calibration error, temperature, selective answers.

Confidence is the largest probability a model gives; it is calibrated when, of all answers given
with confidence 0.8, eight in ten are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sftkit.errors import DataError
from sftkit.evidence.labels import group_counts
from sftkit.evidence_records import Calibration, ReliabilityBin

if TYPE_CHECKING:
    from sftkit.evidence.choice import ChoiceScore
    from sftkit.records import ChoiceItem

Array = np.ndarray
MOST_BINS = 15
"""As Guo et al. 2017 and most work after them."""
ITEMS_PER_BIN = 20
"""Fewer items make fewer bins: the accuracy of a bin of five items is mostly chance."""
FEWEST_TO_FIT = 20
"""Validation items below which no temperature is fitted."""
TEMPERATURES = (0.05, 20.0)
_LEAST = 1e-300  # stands for probability 0, so that logarithms stay finite
_SIMULATED = 1000
_CHUNK = 2_000_000  # numbers drawn at once; bounds memory to some tens of MB
_COVERAGES = 20
_LARGEST_FACTOR = 8.0  # of the observed error; reached only where that is next to nothing
_HALVINGS = 12


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Items with the probabilities a model gave their classes or options.

    Attributes:
        probabilities: Shape (N, C), each row summing to 1; 0 where an item has fewer options.
        targets: Number of the right class or option, shape (N,).
        groups: Group of each item; whole groups are resampled.
    """

    probabilities: Array
    targets: Array
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together."""
        shape = np.shape(self.probabilities)
        fits = len(shape) == 2 and shape[0] == len(self.targets) == len(self.groups) > 0
        if not fits or not np.allclose(np.sum(self.probabilities, axis=1), 1.0, atol=1e-4):
            raise ValueError(
                f"Answered needs probabilities of shape (N, C) that sum to 1, N targets and N "
                f"groups, got {shape}, {len(self.targets)} and {len(self.groups)}."
            )


def option_probabilities(scores: Sequence[ChoiceScore]) -> Array:
    """Give the probability of each option, given that one of them is the answer.

    It is the softmax of the options' summed log-probabilities: what the model itself holds likely,
    not the ranking per character that a probe's accuracy goes by.

    Returns:
        Shape (N, most options); 0 where a question has fewer.
    """
    widest = max(len(score.logprobs) for score in scores)
    logprobs = np.full((len(scores), widest), -np.inf)
    for row, score in enumerate(scores):
        logprobs[row, : len(score.logprobs)] = score.logprobs
    return _softmax(logprobs)


def measure_calibration(
    test: Answered,
    *,
    validation: Answered | None = None,
    base: Answered | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Calibration:
    """Measure how far confidence and accuracy are apart, before and after temperature scaling.

    The error that is reported goes by bins that hold equally many items: each bin's accuracy is
    then equally sure. Bins of equal width, as in Guo et al. 2017, are reported beside it; there
    most items of a confident model share one bin and the others hold a few each.

    Args:
        test: What is reported; no number of it fits anything.
        validation: What the temperature is fitted on; None, or fewer than FEWEST_TO_FIT items,
            fits none.
        base: What the base model says of the test items.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Everything measured; see `Calibration`. A small test has an error above zero even where
        confidence is perfect, so what such a model would show is given beside it.

    Raises:
        DataError: A group of the validation items is also in the test.
    """
    before = _measure(test, test.probabilities, resamples, seed)
    after = None
    temperature, fitted_on = 1.0, 0
    if validation is not None and len(validation.targets) >= FEWEST_TO_FIT:
        _refuse_shared(validation, test)
        temperature = fit_temperature(validation.probabilities, validation.targets)
        fitted_on = len(validation.targets)
        after = _measure(test, scale(test.probabilities, temperature), resamples, seed)
    confidence, right = confidence_of(test)
    expected, p_value = if_calibrated(confidence, before.ece, seed=seed)
    return Calibration(
        items=len(test.targets),
        ece=before.ece,
        ci95=before.ci95,
        bins=before.bins,
        temperature=temperature,
        validation_items=fitted_on,
        ece_after=after.ece if after else None,
        ci95_after=after.ci95 if after else None,
        selective=selective_accuracy(confidence, right),
        bins_after=after.bins if after else (),
        ece_equal_width=calibration_error(confidence, right, equal_width_edges(MOST_BINS)),
        ece_if_calibrated=expected,
        p_value=p_value,
        base_ece=_measure(base, base.probabilities, 0, seed).ece if base else None,
    )


def calibrate_choices(
    items: Sequence[ChoiceItem],
    probes: Sequence[str],
    before: Sequence[ChoiceScore],
    after: Sequence[ChoiceScore],
    *,
    resamples: int = 4000,
) -> Calibration:
    """Measure the calibration of a chat model's answers to multiple-choice questions.

    Every other question of a probe fits the temperature; the others are reported.

    Args:
        items: The questions.
        probes: Name of the probe each belongs to.
        before: The base model's scores.
        after: The tuned model's.
        resamples: Bootstrap draws.
    """
    seen: Counter[str] = Counter()
    fits = []
    for probe in probes:
        fits.append(seen[probe] % 2 == 1)
        seen[probe] += 1
    halves = np.array(fits)
    targets = np.array([item.answer for item in items])
    groups = np.array([str(place) for place in range(len(items))])

    def half(scores: Sequence[ChoiceScore], chosen: Array) -> Answered:
        return Answered(
            probabilities=option_probabilities(scores)[chosen],
            targets=targets[chosen],
            groups=tuple(groups[chosen]),
        )

    return measure_calibration(
        half(after, ~halves),
        validation=half(after, halves) if halves.any() else None,
        base=half(before, ~halves),
        resamples=resamples,
    )


def confidence_of(answered: Answered) -> tuple[Array, Array]:
    """Give the largest probability of each item, and whether that class or option is right."""
    picked = answered.probabilities.argmax(axis=1)
    confidence = answered.probabilities[np.arange(len(picked)), picked]
    return confidence, (picked == answered.targets).astype(float)


def calibration_error(confidence: Array, right: Array, edges: Array) -> float:
    """Average |accuracy - confidence| over bins, weighted by items (Guo et al. 2017, equation 3).

    Args:
        confidence: In 0..1, shape (N,).
        right: 1 where the answer is right, shape (N,).
        edges: Upper edges of the bins, ascending; each belongs to its bin.
    """
    sums = np.bincount(_bin_of(confidence, edges), weights=right - confidence)
    return float(np.abs(sums).sum() / len(confidence))


def equal_mass_edges(confidence: Array, bins: int) -> Array:
    """Give upper edges that put equally many items into each bin; equal items share a bin."""
    ranked = np.sort(confidence)
    last = np.ceil(np.arange(1, bins + 1) * len(ranked) / bins).astype(int) - 1
    edges = ranked[last]
    edges[-1] = 1.0
    return np.unique(edges)


def equal_width_edges(bins: int) -> Array:
    """Give the upper edges of bins of equal width between 0 and 1."""
    return np.arange(1, bins + 1) / bins


def reliability_bins(confidence: Array, right: Array, edges: Array) -> tuple[ReliabilityBin, ...]:
    """Give count, mean confidence and accuracy of each bin that holds an item."""
    place = _bin_of(confidence, edges)
    lows = np.append(0.0, edges[:-1])
    return tuple(
        ReliabilityBin(
            low=float(lows[number]),
            high=float(edges[number]),
            items=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for number in range(len(edges))
        if (inside := place == number).any()
    )


def fit_temperature(probabilities: Array, targets: Array) -> float:
    """Find the T that makes softmax(logits / T) most likely on validation items.

    One number that cannot change which class is largest, so accuracy stays (Guo et al. 2017,
    section 4.2). Logits are known up to a constant from the probabilities, which is all it takes.

    Args:
        probabilities: Of validation items only, shape (N, C).
        targets: Their right classes, shape (N,).

    Returns:
        The temperature, within TEMPERATURES; an end of that range where every item is right or
        confidence says nothing.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(probabilities, _LEAST))
    rows = np.arange(len(targets))

    def nats(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((total - scaled[rows, targets]).mean())

    found = minimize_scalar(nats, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def scale(probabilities: Array, temperature: float) -> Array:
    """Give softmax(logits / temperature) from probabilities, shape (N, C)."""
    scaled = np.log(np.maximum(probabilities, _LEAST)) / temperature
    return _softmax(np.where(probabilities > 0, scaled, -np.inf))


def if_calibrated(confidence: Array, ece: float, *, seed: int = 0) -> tuple[float, float]:
    """Simulate a model of just these confidences that is perfectly calibrated.

    Each item is right with the probability its confidence says, independently of the others.

    Returns:
        The mean error such models show (it is above 0: accuracies of bins scatter), and the share
        of them that show at least `ece`, the observed one counted among them.
    """
    edges = equal_mass_edges(confidence, bins_for(len(confidence)))
    inside = np.eye(len(edges))[_bin_of(confidence, edges)]
    random = np.random.default_rng(seed)
    at_once = max(_CHUNK // len(confidence), 1)
    errors: list[Array] = []
    for start in range(0, _SIMULATED, at_once):
        size = (min(at_once, _SIMULATED - start), len(confidence))
        surplus = (random.random(size) < confidence) - confidence
        errors.append(np.abs(surplus @ inside).sum(axis=1) / len(confidence))
    shown = np.concatenate(errors)
    return float(shown.mean()), float(((shown >= ece).sum() + 1) / (len(shown) + 1))


def selective_accuracy(confidence: Array, right: Array) -> tuple[tuple[float, float], ...]:
    """Give the accuracy when only the most confident share of the items is answered.

    Items of equal confidence come in no order of their own, so each counts as their mean
    (El-Yaniv and Wiener 2010 for the trade of coverage against risk).

    Returns:
        Pairs of coverage and accuracy, by ascending coverage.
    """
    _, place = np.unique(confidence, return_inverse=True)
    shared = (np.bincount(place, weights=right) / np.bincount(place))[place]
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(shared[order]) / np.arange(1, len(order) + 1)
    steps = min(_COVERAGES, len(order))
    counts = np.ceil(np.arange(1, steps + 1) * len(order) / steps).astype(int)
    return tuple((float(count / len(order)), float(share[count - 1])) for count in counts)


def bins_for(items: int) -> int:
    """Say into how many bins so many items are divided."""
    return int(np.clip(items // ITEMS_PER_BIN, 1, MOST_BINS))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The error of one set of probabilities, its interval and its bins."""

    ece: float
    ci95: tuple[float, float]
    bins: tuple[ReliabilityBin, ...]


def _measure(items: Answered, probabilities: Array, resamples: int, seed: int) -> _Measured:
    answered = Answered(probabilities=probabilities, targets=items.targets, groups=items.groups)
    confidence, right = confidence_of(answered)
    edges = equal_mass_edges(confidence, bins_for(len(right)))
    place = _bin_of(confidence, edges)
    inside = np.eye(len(edges))[place] * (right - confidence)[:, None]
    gaps = inside.mean(axis=0)
    ece = float(np.abs(gaps).sum())
    ci95 = (ece, ece)
    if resamples:
        drawn = [
            counts @ inside / counts.sum(axis=1, keepdims=True)
            for counts in group_counts(items.groups, resamples=resamples, seed=seed)
        ]
        pairs = np.unique(np.stack([place, _numbered(items.groups)]), axis=1)
        independent = np.maximum(np.bincount(pairs[0], minlength=len(edges)), 2)
        noise = (np.concatenate(drawn) - gaps) * np.sqrt(independent / (independent - 1))
        ci95 = _interval(gaps, noise)
    return _Measured(ece=ece, ci95=ci95, bins=reliability_bins(confidence, right, edges))


def _interval(gaps: Array, noise: Array) -> tuple[float, float]:
    """Invert a test: which true errors are such that the observed one is no surprise?

    Percentiles of bootstrap draws will not do, for scatter raises this error, and drawing again
    adds scatter: they lie above it. So the true gaps of the bins are taken to be the observed ones
    times a factor, the draws' scatter is added, and the interval holds the errors of all factors
    with which the observed error lies between the 2.5 % and 97.5 % quantiles of what comes out.

    Args:
        gaps: Observed gap of each bin times its share of the items, shape (B,).
        noise: Scatter of these in bootstrap draws, shape (R, B).
    """
    ece = float(np.abs(gaps).sum())

    def quantile(factor: float, share: float) -> float:
        return float(np.quantile(np.abs(factor * gaps + noise).sum(axis=1), share))

    low = 0.0
    if quantile(0.0, 0.975) < ece:
        low = _last(lambda factor: quantile(factor, 0.975) < ece, 0.0, 1.0)
    high = _last(lambda factor: quantile(factor, 0.025) <= ece, 1.0, _LARGEST_FACTOR)
    return min(low, 1.0) * ece, high * ece


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Halve an interval to the last place where something holds."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def _numbered(groups: Sequence[str]) -> Array:
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


def _refuse_shared(validation: Answered, test: Answered) -> None:
    shared = sorted(set(validation.groups) & set(test.groups))
    if shared:
        named = ", ".join(shared[:3]) + (" ..." if len(shared) > 3 else "")
        raise DataError(
            f"{len(shared)} of {len(set(validation.groups))} validation groups are also in the "
            f"test ({named}). A temperature fitted on them would be tested on what it was fitted "
            "to. Give validation items of other groups."
        )


def _bin_of(confidence: Array, edges: Array) -> Array:
    # A sum of floats may end a hair above 1.
    return np.minimum(np.searchsorted(edges, confidence, side="left"), len(edges) - 1)


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
