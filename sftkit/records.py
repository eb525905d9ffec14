"""What stages hand on: findings, encoded examples, measured changes, the record of a run.

Records are frozen and hold plain values only, so a run's folder can be read without torch,
and a report can be drawn from `run.json` alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import string
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sftkit.errors import RecordError
from sftkit.evidence_records import (
    AnswerMeasure,
    Change,
    Checks,
    Drift,
    Flip,
    ItemChange,
    Overall,
    ProbeChange,
)
from sftkit.label_records import LabelReport
from sftkit.settings import to_plain

IGNORE = -100
"""The label that means "not learned from"; torch's cross-entropy default ignore_index."""

Severity = Literal["error", "warning", "information"]
Split = Literal["train", "validation", "test", "control"]
RECORD_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing the audit found.

    Attributes:
        code: Stable code, e.g. D23.
        severity: error (training would be wrong), warning, or information.
        where: First three places, as file:line or row numbers.
        field: Column or part of the row it concerns; empty for the whole file.
        count: Rows concerned.
        message: What was found.
        fix: What to do about it.
    """

    code: str
    severity: Severity
    where: tuple[str, ...]
    field: str
    count: int
    message: str
    fix: str

    def __str__(self) -> str:
        place = ", ".join(self.where)
        return " · ".join(
            part
            for part in (f"{self.code} {place}".strip(), self.field, self.message, self.fix)
            if part
        )


class Example(typing.Protocol):
    """What the training loop needs to know of an example, whatever its task."""

    @property
    def row(self) -> int:
        """Row number in the dataset it came from."""
        ...

    @property
    def length(self) -> int:
        """Tokens it takes of a batch's budget."""
        ...

    @property
    def weight(self) -> float:
        """What it adds to the divisor of a step's loss: supervised tokens, or a label's weight."""
        ...

    def silenced(self) -> typing.Self:
        """Give the same example, teaching nothing: its weight is 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation as token ids and labels.

    Labels are not shifted: causal models shift them inside the loss.

    Attributes:
        input_ids: Token ids, shape (T,).
        labels: Token ids where learned from, IGNORE elsewhere, shape (T,).
        row: Row number in the dataset it came from.
        group: What intervals resample together (a fact, a document, a question).
        end_of_turn: Whether the last supervised token ends the assistant's turn.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    row: int = 0
    group: str = ""
    end_of_turn: bool = True

    @property
    def supervised(self) -> int:
        """Count of supervised tokens; a first token is none, because nothing predicts it."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def length(self) -> int:
        """Tokens, T."""
        return len(self.input_ids)

    @property
    def weight(self) -> float:
        """What the loss of a step is divided by: its supervised tokens."""
        return self.supervised

    def silenced(self) -> Encoded:
        """Give the same conversation with no token supervised."""
        return dataclasses.replace(self, labels=(IGNORE,) * len(self.labels))


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row that could not be encoded, and why."""

    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """One multiple-choice question.

    Attributes:
        question: The question, without its options.
        options: The answers to choose from, in order.
        answer: Position of the right one, from 0.
        prompt: What stands before an option, word for word; None writes the question the usual way.
        joint: What stands between prompt and option.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    prompt: str | None = None
    joint: str = " "


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One prompt answered by both models.

    Attributes:
        question: What was asked.
        expected: The reference answer; empty if there is none.
        base: What the base model wrote.
        tuned: What the tuned model wrote.
        split: Split the question came from.
        group: Its group.
    """

    question: str
    expected: str
    base: str
    tuned: str
    split: str = "test"
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What was learned. A measure that was not taken is None.

    Attributes:
        heldout_loss: Loss on the answers of test examples, nats per token.
        exact: Share of trained facts' unseen phrasings answered word for word.
        control: The same on facts that were never trained.
        recognition: Share of questions whose right answer outranks three wrong ones.
        labels: How well labels or numbers are predicted, in a run on labels.
        answers: Measures of the answers to test questions, each with its baselines.
        baselines: What each baseline beside the base model was, in words, by name.
        changed: Test items with the largest changes for better and for worse, to read.
    """

    heldout_loss: Change | None = None
    exact: Change | None = None
    control: Change | None = None
    recognition: Change | None = None
    labels: LabelReport | None = None
    answers: tuple[AnswerMeasure, ...] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[ItemChange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Forgot:
    """What was forgotten. A measure that was not taken is None or empty.

    Attributes:
        probes: Every multiple-choice probe.
        overall: All probes together.
        drift: Change of loss on general text.
        flips: Questions whose answer turned right or wrong, to read: the first of each probe.
        half: Which half of every probe was asked: all, or, where something was chosen by one half
            (choose), the other one (report).
    """

    probes: tuple[ProbeChange, ...] = ()
    overall: Overall | None = None
    drift: Drift | None = None
    flips: tuple[Flip, ...] = ()
    half: Literal["all", "choose", "report"] = "all"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A conclusion in words.

    Attributes:
        state: One word a program can test: yes, no, kept, lost, moved, undecided or unmeasured.
        sentence: The conclusion with its number, interval and sample size.
    """

    state: Literal["yes", "no", "kept", "lost", "moved", "undecided", "unmeasured"]
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The four verdicts: knowledge and style (learned), ability and drift (forgotten)."""

    knowledge: Verdict
    style: Verdict
    ability: Verdict
    drift: Verdict
    summary: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Attributes:
        step: Counted from 1.
        loss: Mean loss over the step's supervised tokens, nats per token.
        learning_rate: Rate used in the step.
        grad_norm: Norm of the gradient before clipping; 0 where float16 overflowed and the step
            was skipped.
        tokens: Tokens processed so far, padding excluded.
        seconds: Training seconds so far, held-out evaluations excluded.
        heldout_loss: Validation loss measured after this step, or None.
        metrics: What else was measured on validation examples after this step, by name.
        memory_bytes: Memory the first process held as the step ended (`held_memory.held_bytes`).
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    heldout_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """What training did.

    Attributes:
        steps: Every optimizer step, in order.
        heldout_start: Validation loss before the first step, or None.
        kept_step: Step whose weights were kept; the last one, or with early stopping the best.
        tokens: Tokens processed, padding excluded.
        supervised_tokens: Tokens the loss was computed on.
        seconds: Training seconds, held-out evaluations excluded.
        trainable_parameters: Parameters that were trained.
        total_parameters: All parameters, the adapter's included.
        events: What happened on the way, in words: memory ran out, the loss jumped, a resume.
        fingerprints: SHA-256 of what went in and came out: the rows, the base model, the tokenizer,
            the chat template, the adapter (its weights as saved).
    """

    steps: tuple[Step, ...]
    heldout_start: float | None
    kept_step: int
    tokens: int
    supervised_tokens: int
    seconds: float
    trainable_parameters: int
    total_parameters: int
    events: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is known before the first step.

    Attributes:
        rows: Training examples, replayed ones included.
        replayed: Of these, replayed general examples.
        tokens: Tokens of one epoch.
        supervised_tokens: Of these, tokens learned from.
        steps: Optimizer steps that will be run.
        longest: Longest example in tokens.
        refused: Rows that could not be encoded, and why: the first twenty.
        refused_rows: All rows that could not be encoded.
        example_tokens: One example, token by token, as text.
        example_supervised: Which of these tokens are learned from.
    """

    rows: int
    replayed: int
    tokens: int
    supervised_tokens: int
    steps: int
    longest: int
    refused: tuple[Refused, ...]
    refused_rows: int
    example_tokens: tuple[str, ...]
    example_supervised: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the run cost.

    Attributes:
        train_s: Seconds of training, wall clock.
        total_s: Seconds of the whole run.
        cpu_s: CPU seconds of the whole run, all cores together.
        tokens: Training tokens processed.
        tokens_per_s: tokens / train_s.
        peak_bytes: Peak memory of the process (its resident set; on CUDA the device's peak).
        matmul_gflops: Measured speed of one matrix product in the run's dtype, so that two
            machines can be compared.
        stages_s: Seconds per stage.
    """

    train_s: float
    total_s: float
    cpu_s: float
    tokens: int
    tokens_per_s: float
    peak_bytes: int
    matmul_gflops: float
    stages_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Where the data came from.

    Attributes:
        source: As named in the recipe.
        fingerprint: SHA-256 over the rows in canonical form.
        counts: Rows per split, after cleaning.
        groups: Groups per split.
        licence: Licence of the data, in words.
        notice: Notice that must be kept with it.
        findings: What the audit found.
    """

    source: str
    fingerprint: str
    counts: Mapping[str, int]
    groups: Mapping[str, int]
    licence: str
    notice: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where the run happened.

    Attributes:
        versions: Package versions.
        device: Processor or GPU in words.
        dtype: Type of weights and compute.
        quantization: none, int8 or nf4.
        seed: The one training seed.
        processes: Processes that trained together.
        base: Base model's name and what that name stands for.
        base_fingerprint: SHA-256 of its weights, or the hub commit.
        dtype_reason: Why this dtype, with the timings that decided.
    """

    versions: Mapping[str, str]
    device: str
    dtype: str
    quantization: str
    seed: int
    processes: int
    base: str
    base_fingerprint: str
    dtype_reason: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything one run measured; `run.json` is this record."""

    name: str
    date: str
    record_version: int = RECORD_VERSION
    recipe: Mapping[str, Any]
    learned: Learned
    forgot: Forgot
    verdicts: Verdicts
    answers: tuple[Answer, ...]
    preflight: Preflight
    training: TrainRecord
    cost: Cost
    environment: Environment
    data: DataFacts
    checks: Checks = field(default_factory=Checks)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (SQuAD, Rajpurkar et al. 2016).

    An answer that is nothing but an article or punctuation ("A", "?") keeps it, so that it does
    not equal an empty one.
    """
    lower = text.lower()
    plain = "".join(mark for mark in lower if mark not in string.punctuation)
    bare = re.sub(r"\b(a|an|the)\b", " ", plain)
    return " ".join(bare.split() or plain.split() or lower.split())


def is_exact(answer: str, expected: str) -> bool:
    """Say whether an answer says the expected words and nothing else."""
    return normalise_answer(answer) == normalise_answer(expected)


Record = TypeVar("Record")


def to_json(record: Any) -> str:
    """Write a record as JSON text, readable by eye, with numbers that read back equal.

    Raises:
        RecordError: A number is not finite; JSON has no word for it.
    """
    try:
        return json.dumps(to_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise RecordError(f"The record holds a number that is not finite: {error}.") from error


def from_json(cls: type[Record], text: str) -> Record:
    """Read a record back; the inverse of `to_json`.

    Raises:
        RecordError: The text is not JSON, lacks a field, or has a value of the wrong kind.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"Not JSON at line {error.lineno}: {error.msg}.") from error
    return typing.cast(Record, _restore(cls, raw, cls.__name__))


def load_run(folder: str | Path) -> RunRecord:
    """Read the record of a run's folder.

    Raises:
        RecordError: There is no run.json in it, or it was written by another version.
    """
    path = Path(folder) / "run.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}). Is it a run's folder?") from (
            error
        )
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text: {error.reason}.") from error
    record = from_json(RunRecord, text)
    if record.record_version != RECORD_VERSION:
        raise RecordError(
            f"{path} has record_version {record.record_version}; this sftkit reads "
            f"{RECORD_VERSION}. Run it again with this version."
        )
    return record


def _restore(hint: Any, raw: Any, path: str) -> Any:  # noqa: PLR0911, PLR0912  (one per kind)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _restore_record(hint, raw, path)
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in arguments:
            return None
        return _restore(next(a for a in arguments if a is not type(None)), raw, path)
    if origin is tuple:
        if isinstance(raw, Sequence) and not isinstance(raw, str):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_restore(arguments[0], x, f"{path}[{i}]") for i, x in enumerate(raw))
            if len(arguments) == len(raw):
                pairs = zip(arguments, raw, strict=True)
                return tuple(_restore(a, x, f"{path}[{i}]") for i, (a, x) in enumerate(pairs))
        raise RecordError(f"{path} must be a list, got {raw!r}.")
    if origin is Literal:
        if raw in arguments:
            return raw
        raise RecordError(f"{path} must be one of {arguments}, got {raw!r}.")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(raw, dict):
            return {key: _restore(arguments[1], item, f"{path}.{key}") for key, item in raw.items()}
        raise RecordError(f"{path} must be a mapping, got {raw!r}.")
    if hint is Any:
        return raw
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        if not math.isfinite(raw):
            raise RecordError(f"{path} must be a finite number, got {raw}.")
        return float(raw)
    if isinstance(hint, type) and type(raw) is hint:
        return raw
    raise RecordError(f"{path} must be {getattr(hint, '__name__', hint)}, got {raw!r}.")


def _restore_record(hint: Any, raw: Any, path: str) -> Any:
    if not isinstance(raw, dict):
        raise RecordError(f"{path} must be a mapping, got {raw!r}.")
    hints = typing.get_type_hints(hint)
    fields = dataclasses.fields(hint)
    names = {f.name for f in fields}
    # A field that was added later has a default, and records written before it can be read.
    absent = dataclasses.MISSING
    needed = {f.name for f in fields if f.default is absent and f.default_factory is absent}
    missing = sorted(needed - set(raw))
    extra = sorted(set(raw) - names)
    if missing or extra:
        raise RecordError(
            f"{path}: missing {missing or 'nothing'}, unknown {extra or 'nothing'}. "
            "The run was written by another version of sftkit; run it again."
        )
    return hint(**{name: _restore(hints[name], raw[name], f"{path}.{name}") for name in raw})
