"""What the gate's rules are made of: a number, its interval, a limit, and what follows.

A limit is held against a bound of an interval: a rule passes where the whole interval keeps it,
fails where the whole interval breaks it, and is undecided in between or where too little was
measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sftkit.evidence_records import Change, GateRule
from sftkit.gate_policy import Policy
from sftkit.report.redact import redact
from sftkit.show import visible

State = Literal["pass", "fail", "undecided"]
RULE_OF_THREE = 3.0
"""Of n items without one case, a share below 3 / n cannot be excluded (Hanley 1983)."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A number with its interval, on its way to a limit.

    Attributes:
        what: What it is, in words.
        value: The number.
        ci95: Its interval.
        items: Groups, questions, passages or cases it rests on.
        counted: The same in words.
        unit: points for shares, else the unit's name; empty for plain shares.
        is_share: Whether it counts items, so that without one case 3 / items cannot be excluded.
    """

    what: str
    value: float
    ci95: tuple[float, float]
    items: int
    counted: str
    unit: str = "points"
    is_share: bool = False


def say_rule(name: str, state: State, sentence: str, **numbers: Any) -> GateRule:
    """Make a rule's outcome; names from data and models become harmless text."""
    return GateRule(
        name=redact(visible(name)), state=state, sentence=redact(visible(sentence)), **numbers
    )


def at_least(name: str, found: Judged, limit: float, policy: Policy) -> GateRule:
    """Judge a gain: its whole interval has to lie above the limit."""
    low, high = found.ci95
    state: State = "pass" if low > limit else "fail" if high <= limit else "undecided"
    return _judged(name, found, state, f"asked for: more than {_written(limit, found)}", policy)


def at_most(name: str, found: Judged, limit: float, policy: Policy) -> GateRule:
    """Judge a harm: its whole interval has to stay within the limit."""
    low, high = found.ci95
    state: State = "pass" if high <= limit else "fail" if low > limit else "undecided"
    allowed = f"allowed: at most {_written(limit, found)}"
    if state == "pass" and found.is_share and RULE_OF_THREE / max(found.items, 1) > limit:
        allowed += f", and {found.items} items cannot exclude less than {3 / found.items:.1%}"
        state = "undecided"
    return _judged(name, found, state, allowed, policy)


def _judged(name: str, found: Judged, state: State, limit: str, policy: Policy) -> GateRule:
    low, high = (_number(bound, found) for bound in found.ci95)
    few = found.items < policy.min_items
    sentence = (
        f"{found.what} {_written(found.value, found)} (95 % interval {low} to {high}; "
        f"{found.counted}); {limit}"
    )
    if few:
        sentence += f"; too few to judge, {policy.min_items} are needed"
    return say_rule(
        name,
        "undecided" if few else state,
        sentence + ".",
        value=found.value,
        ci95=found.ci95,
        limit=getattr(policy, name.partition(" ")[0]),
    )


def _written(value: float, found: Judged) -> str:
    return f"{_number(value, found)} {found.unit}".rstrip()


def _number(value: float, found: Judged) -> str:
    return f"{100 * value:+.1f}" if found.unit == "points" else f"{value:+.3f}"


def share_change(what: str, change: Change) -> Judged:
    """Take a change of a share of right answers."""
    return Judged(
        what=what,
        value=change.delta,
        ci95=change.ci95,
        items=change.groups,
        counted=f"{change.items} questions in {change.groups} groups",
    )


def turned(found: tuple[float, float]) -> tuple[float, float]:
    """Turn the interval of a change into that of its opposite."""
    return 0.0 - found[1], 0.0 - found[0]  # so that nothing is written as -0
