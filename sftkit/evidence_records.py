"""What evidence hands on beyond labels: changes, flips, behaviour, fairness, calibration, the gate.

Plain values only, so a run's folder can be read, judged and drawn without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Change:
    """One paired measurement, before (base) and after (tuned).

    Attributes:
        before: Value of the base model.
        after: Value of the tuned model.
        delta: after - before.
        ci95: 95 % interval of delta from resampling whole groups.
        items: Paired items.
        groups: Groups they fall into.
        tokens: Tokens scored, where the value is per token; 0 otherwise.
    """

    before: float
    after: float
    delta: float
    ci95: tuple[float, float]
    items: int
    groups: int
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class ProbeChange:
    """One multiple-choice probe: accuracy and log-probability of the right answer.

    Attributes:
        name: Catalog name of the probe.
        before: Accuracy of the base model, in 0..1.
        after: Accuracy of the tuned model.
        delta: after - before.
        ci95: Interval of delta.
        items: Questions.
        chance: Expected accuracy of guessing.
        logprob_delta: Mean change of the right option's log-probability, nats per token.
        logprob_ci95: Its interval.
        flipped_to_wrong: Questions right before and wrong after.
        flipped_to_right: Questions wrong before and right after.
        p_value: Exact McNemar test of the flips, two-sided, corrected over all probes (Holm).
        logprob_p_value: Sign-flip test of the log-probabilities' change, corrected likewise.
    """

    name: str
    before: float
    after: float
    delta: float
    ci95: tuple[float, float]
    items: int
    chance: float
    logprob_delta: float
    logprob_ci95: tuple[float, float]
    flipped_to_wrong: int
    flipped_to_right: int
    p_value: float | None = None
    logprob_p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Change of loss on general text, nats per token."""

    before: float
    after: float
    delta: float
    ci95: tuple[float, float]
    passages: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Overall:
    """All probes together.

    Attributes:
        delta: Mean change of accuracy over all questions.
        ci95: Its interval, resampling questions within each probe.
        logprob_delta: Mean change of the right option's log-probability, nats per token.
        logprob_ci95: Its interval.
        items: Questions.
    """

    delta: float
    ci95: tuple[float, float]
    logprob_delta: float
    logprob_ci95: tuple[float, float]
    items: int


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A question whose answer went from right to wrong or back, to read.

    Attributes:
        probe: Name of the probe.
        question: As asked.
        right: The right option.
        base: The option the base model held most likely.
        tuned: The option the tuned model held most likely.
    """

    probe: str
    question: str
    right: str
    base: str
    tuned: str


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """One case of a behaviour test that failed, with all that is needed to see why.

    Attributes:
        given: The text the model got; for a pair of texts, the first.
        changed: The other text of an invariance or directional case; empty otherwise.
        said: What the model said of `given`: label with probability, number, or answer.
        said_changed: What it said of `changed`; empty otherwise.
        expected: What was expected, in words.
    """

    given: str
    changed: str = ""
    said: str
    said_changed: str = ""
    expected: str


@dataclass(frozen=True, kw_only=True)
class BehaviourResult:
    """One behaviour test, all its cases.

    Attributes:
        name: Name of the test.
        capability: What it is about, such as negation or robustness.
        kind: minimum (a right answer is asked for), invariance (the answer must not move) or
            directional (it must move in a stated direction). After Ribeiro et al. 2020 (CheckList).
        cases: Cases tried.
        failures: Cases that failed.
        ci95: 95 % Wilson interval of the share that fails.
        base_failures: Failures of the base model in the same cases, or None if it was not asked.
        allowed: Largest share of failures that still passes.
        failed: The first failed cases.
    """

    name: str
    capability: str
    kind: Literal["minimum", "invariance", "directional"]
    cases: int
    failures: int
    ci95: tuple[float, float]
    base_failures: int | None = None
    allowed: float = 0.0
    failed: tuple[FailedCase, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FairnessGap:
    """One difference between groups of people, with its interval.

    Attributes:
        name: Which measure: counterfactual flips, score gap, loss gap of stereotyped against
            anti-stereotyped text, demographic parity, equal opportunity, and so on.
        attribute: What was swapped or compared: gender, nationality, name.
        groups: Names of the groups compared.
        by_group: Value of the measure in each group; empty for paired swaps.
        value: The gap; 0 is none.
        ci95: Its 95 % interval.
        items: Paired items, or items in all groups.
        p_value: Of a permutation of the pair's labels; Holm-corrected over all gaps of a report.
        base: The same gap of the base model, or None.
    """

    name: str
    attribute: str
    groups: tuple[str, ...]
    by_group: Mapping[str, float] = field(default_factory=dict)
    value: float
    ci95: tuple[float, float]
    items: int
    p_value: float | None = None
    base: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Items whose confidence lies in one bin.

    Attributes:
        low: Lower edge, excluded, in 0..1.
        high: Upper edge, included.
        items: Items in it.
        confidence: Their mean confidence.
        accuracy: Share of them that are right.
    """

    low: float
    high: float
    items: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far a model's confidence can be believed.

    Attributes:
        items: Test items.
        ece: Expected calibration error (Guo et al. 2017), in 0..1.
        ci95: Its 95 % interval.
        bins: The reliability diagram.
        temperature: Fitted on validation items only; 1 changes nothing.
        validation_items: Items it was fitted on; 0 if it was not fitted.
        ece_after: ECE of the test items with it, or None.
        ci95_after: Its interval, or None.
        selective: Pairs of coverage and accuracy when only the most confident share is answered.
    """

    items: int
    ece: float
    ci95: tuple[float, float]
    bins: tuple[ReliabilityBin, ...]
    temperature: float = 1.0
    validation_items: int = 0
    ece_after: float | None = None
    ci95_after: tuple[float, float] | None = None
    selective: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What was tested beyond learning and forgetting. Empty or None was not tested.

    Attributes:
        behaviour: One result per behaviour test.
        fairness: One result per gap.
        calibration: Of a classifier, or of a chat model's multiple-choice answers.
    """

    behaviour: tuple[BehaviourResult, ...] = ()
    fairness: tuple[FairnessGap, ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class GateRule:
    """One rule of the gate, applied to a run.

    Attributes:
        name: Name of the rule, as in the policy.
        state: pass, fail or undecided (too little evidence; never counted as a pass).
        sentence: The number, its bound and the limit, in words.
    """

    name: str
    state: Literal["pass", "fail", "undecided"]
    sentence: str
