"""What a behaviour test may say: its fields, and the rules that refuse a test of nothing.

The three kinds are those of CheckList (Ribeiro et al. 2020): minimum (a right answer is asked for),
invariance (the answer must not move) and directional (it must move in a stated direction).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sftkit.errors import SettingsError, near_names
from sftkit.evidence.perturb import PERTURBATIONS

MOST_CASES = 2_000
MOST_COMBINATIONS = 1_000_000
MOST_CHARACTERS = 4_000
"""Of one template, slot value or other text of a file."""
MOST_PATTERN = 200

FileTask = Literal["chat", "classify", "regress"]
Kind = Literal["minimum", "invariance", "directional"]
_SLOT = re.compile(r"\{([A-Za-z_]\w*)\}")
_TEXT = ("contains", "lacks", "exact", "matches", "ends")
_FITTING: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("chat", "minimum"): _TEXT,
    ("chat", "invariance"): ("same", "f1", "lacks", "ends"),
    ("chat", "directional"): ("differs", *_TEXT),
    ("classify", "minimum"): ("label", "at_least"),
    ("classify", "invariance"): ("same", "label", "within"),
    ("classify", "directional"): ("label", "rises", "falls"),
    ("regress", "minimum"): ("value", "within"),
    ("regress", "invariance"): ("within",),
    ("regress", "directional"): ("rises", "falls"),
}
"""Which expectations mean something for a task and kind."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What is expected of a case; texts may hold slots. All that is given has to hold.

    Attributes:
        contains: The answer holds each of these, capitals or not.
        lacks: The answer holds none of these; of a pair, the answer to the changed text.
        exact: The answer is this, but for case, articles and punctuation around it.
        matches: The answer holds what this regular expression describes, capitals or not.
        ends: The answer ends its turn within the tokens it may use.
        same: The answer, or the label, does not move.
        f1: The words of both answers overlap by at least this F1.
        differs: The answer moves.
        label: The expected label; for the other kinds, the one whose probability is watched.
        at_least: Least probability of the expected label.
        value: The expected number.
        within: Largest distance from it, or between the two numbers or probabilities.
        rises: By how much the number, or the label's probability, has to rise at least.
        falls: By how much it has to fall at least.
    """

    contains: str | tuple[str, ...] = ()
    lacks: str | tuple[str, ...] = ()
    exact: str | None = None
    matches: str | None = None
    ends: bool = False
    same: bool = False
    f1: float | None = None
    differs: bool = False
    label: str | None = None
    at_least: float | None = None
    value: float | None = None
    within: float | None = None
    rises: float | None = None
    falls: float | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what is expected."""
        fields = dataclasses.fields(self)
        values = {f.name: getattr(self, f.name) for f in fields}
        # By identity: 0 is a number that was given, and equals False.
        return tuple(
            name
            for name, value in values.items()
            if value is not None and value is not False and value not in ((), "")
        )


@dataclass(frozen=True, kw_only=True)
class BehaviourTest:
    """One test: texts, what is changed in them, and what is expected.

    Attributes:
        name: Name of the test, once in a file.
        kind: minimum, invariance or directional.
        capability: What it is about, such as negation or robustness.
        template: One text or several; {slot} takes a value of a slot or of a case.
        slots: Values per slot.
        combine: product fills in every combination of slots, zip the first values, the second...
        cases: Values of slots that belong together, such as a question and its answer.
        rows: test takes the texts from the run's own test rows (of a conversation the last
            question) instead of a template.
        change: Names of perturbations; each text is changed by each.
        to: What the template becomes, instead of a change; its slots are filled alike.
        keep: Words no change may alter; may hold slots.
        texts: Sentences, tokens or suffixes for the change, instead of the bundled ones.
        words: For paraphrase and negate: phrases, and what may stand for each.
        edits: Typos per text.
        expect: What is expected.
        allowed: Largest share of failures that still passes.
        at_most: Cases, at most; of more, a random choice.
        seed: Seed of that choice and of the changes.
    """

    name: str
    kind: Kind
    capability: str = ""
    template: str | tuple[str, ...] = ()
    slots: Mapping[str, Any] = field(default_factory=dict)
    combine: Literal["product", "zip"] = "product"
    cases: tuple[Mapping[str, str], ...] = ()
    rows: Literal["test"] | None = None
    change: str | tuple[str, ...] = ()
    to: str | None = None
    keep: str | tuple[str, ...] = ()
    texts: str | tuple[str, ...] = ()
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    edits: int = 1
    expect: Expectation = field(default_factory=Expectation)
    allowed: float = 0.0
    at_most: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse tests that test nothing."""
        faults = [*_shape_faults(self), *_slot_faults(self), *_change_faults(self)]
        if faults:
            raise SettingsError("\n".join(faults))


def listed(given: str | Sequence[str]) -> tuple[str, ...]:
    """Give one text or several as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def slot_values(test: BehaviourTest) -> dict[str, tuple[str, ...]]:
    """Give the values of each slot of a test."""
    return {name: listed(values) for name, values in test.slots.items()}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values for the slots of a text; nothing else in braces is touched."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), text)


def _shape_faults(test: BehaviourTest) -> Iterator[str]:
    if not 0 < len(test.name.strip()) <= 120:
        yield "name must have 1 to 120 characters."
    templates = listed(test.template)
    if not templates and test.rows is None:
        yield "template is missing: one text or several, or rows: test to take the run's own."
    if test.rows and (templates or test.slots or test.cases or test.to is not None):
        yield "rows takes whole texts, so template, slots, cases and to cannot be used with it."
    if not all(text.strip() for text in templates):
        yield "template must not be empty."
    if test.slots and not templates:
        yield "slots need a template that holds them."
    if not 0 <= test.allowed < 1:
        yield f"allowed must be in [0, 1), got {test.allowed!r}."
    if not 1 <= test.at_most <= MOST_CASES:
        yield f"at_most must be in 1 to {MOST_CASES}, got {test.at_most}."
    if not 1 <= test.edits <= 20:
        yield f"edits must be in 1 to 20, got {test.edits}."
    if not 0 <= test.seed < 2**32:
        yield "seed must be in 0 to 2^32 - 1."
    for text in _all_texts(test):
        if not _is_text(text):
            yield f"template and other texts may have {MOST_CHARACTERS:,} characters, none cut."
            return


def _is_text(text: str) -> bool:
    """Say whether a text is short enough, and of whole characters: no half one, no null."""
    whole = "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
    return whole and len(text) <= MOST_CHARACTERS


def _all_texts(test: BehaviourTest) -> Iterator[str]:
    expect = test.expect
    yield from (test.name, test.capability, test.to or "")
    for several in (test.template, test.keep, test.texts, expect.contains, expect.lacks):
        yield from listed(several)
    for values in test.words.values():
        yield from values
    for case in test.cases:
        yield from case.values()


def _slot_faults(test: BehaviourTest) -> Iterator[str]:
    lengths = {}
    for name, values in test.slots.items():
        items = [values] if isinstance(values, str) else values
        if not isinstance(items, list | tuple) or not items:
            yield f"slots.{name} must be a list with at least one text."
        elif not all(isinstance(item, str) and _is_text(item) for item in items):
            yield (
                f"slots.{name} must hold texts of at most {MOST_CHARACTERS:,} characters; numbers "
                "and words like yes need quotes."
            )
        else:
            lengths[name] = len(items)
    if test.combine == "zip" and len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in lengths.items())
        yield f"slots that are zipped must be of one length, got {sizes}."
    count = math.prod(lengths.values()) if test.combine == "product" else 1
    count *= max(1, len(test.cases)) * max(1, len(listed(test.template)))
    if count > MOST_COMBINATIONS:
        yield f"slots make {count:,} combinations; {MOST_COMBINATIONS:,} is the most."
    both = sorted(set(test.slots) & {name for case in test.cases for name in case})
    if both:
        yield f"cases and slots both give values for {', '.join(both)}."
    known = [{*test.slots, *case} for case in test.cases] or [set(test.slots)]
    used = {name for text in _with_slots(test) for name in _SLOT.findall(text)}
    for name in sorted(used):
        if not all(name in names for names in known):
            yield f"template or expect uses {{{name}}}, which not every case fills." + (
                near_names(name, sorted(set().union(*known)))
            )
    idle = sorted(set(test.slots) - used)
    if idle:
        yield f"slots.{idle[0]} is used nowhere: write {{{idle[0]}}} into the template."


def _with_slots(test: BehaviourTest) -> Iterator[str]:
    """Give every text in which slots are filled."""
    expect = test.expect
    yield from (*listed(test.template), test.to or "", *listed(test.keep))
    yield from (*listed(expect.contains), *listed(expect.lacks))
    yield from filter(None, (expect.exact, expect.matches, expect.label))


def _change_faults(test: BehaviourTest) -> Iterator[str]:
    changes = listed(test.change)
    for name in changes:
        if name not in PERTURBATIONS:
            yield f"change {name!r} is not known.{near_names(name, PERTURBATIONS)}"
    if changes and test.to is not None:
        yield "change and to cannot be used together."
    if test.kind == "minimum" and test.to is not None:
        yield "to is for invariance and directional tests."
    if test.kind != "minimum" and not changes and test.to is None:
        yield f"change is missing: an {test.kind} test compares a text with a changed one."
    takes = {option for name in changes if name in PERTURBATIONS for option in
             PERTURBATIONS[name].takes}  # fmt: skip
    for option, default in (("texts", ()), ("words", {}), ("edits", 1)):
        if getattr(test, option) != default and option not in takes:
            yield f"{option} is used by no change of this test."
    if "paraphrase" in changes and not test.words:
        yield "words is missing: paraphrase needs phrases and what may stand for each."
    if any(not phrase.strip() or not others for phrase, others in test.words.items()):
        yield "words must name a phrase and at least one other for each."


def expectation_faults(test: BehaviourTest, task: str) -> Iterator[str]:
    """Say what is expected of a test that its task and kind cannot give."""
    fitting = _FITTING.get((task, test.kind), ())
    given, expect = test.expect.given, test.expect
    for name in given:
        if fitting and name not in fitting:
            yield f"expect.{name} does not fit task {task}, kind {test.kind}." + (
                near_names("", fitting)
            )
    needed: Mapping[tuple[str, str], tuple[tuple[str, ...], ...]] = {
        ("classify", "minimum"): (("label",),),
        ("classify", "invariance"): (("same", "within"),),
        ("classify", "directional"): (("label",), ("rises", "falls")),
        ("regress", "minimum"): (("value",), ("within",)),
        ("regress", "directional"): (("rises", "falls"),),
    }
    for names in needed.get((task, test.kind), (fitting,) if fitting else ()):
        if not set(names) & set(given):
            yield f"expect needs {' or '.join(names)}."
    if "within" in given and task == "classify" and expect.label is None:
        yield "expect.within needs expect.label, whose probability is watched."
    if {"rises", "falls"} <= set(given):
        yield "expect.rises and expect.falls cannot both hold."
    for name in ("at_least", "f1"):
        number = getattr(expect, name)
        if number is not None and not 0 < number <= 1:
            yield f"expect.{name} must be in (0, 1], got {number!r}."
    for name in ("within", "rises", "falls", "value"):
        number = getattr(expect, name)
        if number is not None and not (math.isfinite(number) and (number >= 0 or name == "value")):
            yield f"expect.{name} must be a finite number, 0 or more, got {number!r}."
    yield from _pattern_faults(expect.matches)


def _pattern_faults(pattern: str | None) -> Iterator[str]:
    if pattern is None:
        return
    if len(pattern) > MOST_PATTERN:
        yield f"expect.matches may have {MOST_PATTERN} characters, got {len(pattern)}."
        return
    import regex

    try:
        regex.compile(_SLOT.sub("x", pattern))
    except (regex.error, OverflowError, RecursionError, ValueError, TypeError) as error:
        yield f"expect.matches is no regular expression: {error}."
