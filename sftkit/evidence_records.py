"""What evidence hands on beyond labels: changes, flips, behaviour, fairness, calibration, the gate.

Plain values only, so a run's folder can be read, judged and drawn without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LEAST_CASES = 10
"""Of fewer cases a behaviour test does not pass."""


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
class AnswerMeasure:
    """One measure of written answers: base against tuned, and other baselines against tuned.

    Attributes:
        name: What is measured, such as exact, token F1, chrF, ended or repetition.
        unit: share (0..1), tokens or words.
        better: Whether more of it is better, less is, or neither by itself.
        change: Base against tuned.
        reference: The same of the reference answers, where that says something (repetition,
            words); None otherwise.
        baselines: Per baseline, such as few-shot: before is the base model asked in that way, after
            is the tuned model.
    """

    name: str
    unit: Literal["share", "tokens", "words"]
    better: Literal["higher", "lower", "neither"]
    change: Change
    reference: float | None = None
    baselines: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ItemChange:
    """One test item that changed much, to read.

    Attributes:
        measure: exact (an answer became right or wrong) or loss (of the reference answer).
        won: Whether it changed for the better.
        question: What was asked.
        expected: The reference answer.
        base: What the base model wrote; empty if it was not asked to write.
        tuned: What the tuned model wrote; empty likewise.
        before: Value of the measure for the base model: 0 or 1, or nats per token.
        after: Value for the tuned model.
    """

    measure: Literal["exact", "loss"]
    won: bool
    question: str
    expected: str
    base: str = ""
    tuned: str = ""
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Whether an answer depends on what is asked beside it.

    Attributes:
        answers: Prompts that were answered twice.
        changed: Answers that were others when asked beside half of the prompts, in another order.
        score_gap: Largest difference between the scores (logits) of the same token.
        changed_in_smaller_batches: Answers that were others in batches of half as many rows.
        score_gap_in_smaller_batches: The difference there.
        sentence: The finding in words.
    """

    answers: int
    changed: int
    score_gap: float
    changed_in_smaller_batches: int
    score_gap_in_smaller_batches: float
    sentence: str


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

    @property
    def state(self) -> Literal["pass", "fail", "undecided"]:
        """Whether the interval keeps to what is allowed; of a few cases without failure, unknown.

        A failure that is not allowed is one, of however few cases; where none of at least 10 cases
        failed, no interval is needed for a pass.
        """
        low, high = self.ci95
        if low > self.allowed:
            return "fail"
        kept = high <= self.allowed or self.failures == 0
        return "pass" if kept and self.cases >= LEAST_CASES else "undecided"

    @property
    def sentence(self) -> str:
        """The state in words, with its numbers."""
        low, high = (f"{100 * bound:.1f}" for bound in self.ci95)
        words = {"pass": "Passes", "fail": "Fails", "undecided": "Undecided"}[self.state]
        if self.state == "undecided":
            words += ", too few cases to tell"
        base = "" if self.base_failures is None else f"; of the base model {self.base_failures}"
        return (
            f"{words}: {self.failures} of {self.cases} cases failed{base} (95 % interval {low} to "
            f"{high} %; allowed {100 * self.allowed:g} %)."
        )


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
        unit: What the value is counted in: share (0..1), nats per token, or the data's own unit.
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
    unit: str = "share"


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
        bins_after: The reliability diagram with the temperature; empty if none was fitted.
        ece_equal_width: ECE in 15 bins of equal width; `ece` and `bins` are of equally many items.
        ece_if_calibrated: Mean ECE of simulated models with these confidences and no fault.
        p_value: Share of these simulated models whose ECE is at least `ece`.
        base_ece: ECE of the base model on the same items, or None.
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
    bins_after: tuple[ReliabilityBin, ...] = ()
    ece_equal_width: float | None = None
    ece_if_calibrated: float | None = None
    p_value: float | None = None
    base_ece: float | None = None


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
        value: The number that was judged; None where the rule is about no number.
        ci95: Its 95 % interval; a bound of it decides.
        limit: What the policy allows or asks for.
    """

    name: str
    state: Literal["pass", "fail", "undecided"]
    sentence: str
    value: float | None = None
    ci95: tuple[float, float] | None = None
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class MutantCell:
    """What one check said of one model with a planted fault, or of a sound one.

    Attributes:
        check: Name of the check.
        state: killed (the model is refused), spared, or unasked (nothing to judge by).
        said: The number that decided, in words; empty if unasked.
    """

    check: str
    state: Literal["killed", "spared", "unasked"]
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class MutantRow:
    """One model, put to every check.

    Attributes:
        name: What it is called.
        wrong: What is wrong with it; empty for a sound one.
        origin: sound, served (a fault planted after training) or trained (one in training).
        cells: One per check.
    """

    name: str
    wrong: str
    origin: Literal["sound", "served", "trained"]
    cells: tuple[MutantCell, ...]

    def killed_by(self) -> tuple[str, ...]:
        """Name the checks that refuse it."""
        return tuple(cell.check for cell in self.cells if cell.state == "killed")


@dataclass(frozen=True, kw_only=True)
class MutantMatrix:
    """Which check kills which planted fault.

    Attributes:
        model: Base model.
        data: What it was trained on.
        alone: Names of the checks that look at accuracy only.
        rows: Sound models first, then those with faults.
        seconds: Wall clock of all trainings and measurements.
    """

    model: str
    data: str
    alone: tuple[str, ...]
    rows: tuple[MutantRow, ...]
    seconds: float = 0.0

    @property
    def checks(self) -> tuple[str, ...]:
        """Names of all checks, those of accuracy first."""
        return tuple(cell.check for cell in self.rows[0].cells)

    @property
    def mutants(self) -> tuple[MutantRow, ...]:
        """The models with a planted fault."""
        return tuple(row for row in self.rows if row.origin != "sound")

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Sound models that a check refuses, as `model: check`: with one, no kill means much."""
        return tuple(
            f"{row.name}: {check}"
            for row in self.rows
            if row.origin == "sound"
            for check in row.killed_by()
        )

    def killed(self) -> tuple[str, ...]:
        """Name the faults that some check notices."""
        return tuple(row.name for row in self.mutants if row.killed_by())

    def killed_by_accuracy(self) -> tuple[str, ...]:
        """Name the faults that accuracy alone notices."""
        return tuple(row.name for row in self.mutants if set(row.killed_by()) & set(self.alone))
