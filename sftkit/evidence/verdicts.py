"""From numbers to words. Every sentence carries its number, its interval and its sample size.

A verdict is decided by an interval, never by a point: "kept" needs the whole interval on the safe
side of a margin, "lost" needs it wholly on the wrong side of zero, and what lies between is called
undecided. Where it is, the sentence says how large a change would have to be to be seen.
"""

from __future__ import annotations

import math
from typing import Literal

from sftkit.evidence.shares import ALPHA, detectable_share, least_share
from sftkit.evidence.statistics import detectable_difference
from sftkit.evidence_records import Change, ProbeChange
from sftkit.records import Forgot, Learned, Verdict, Verdicts
from sftkit.settings import EvaluateSettings

FEWEST_GROUPS = 10
"""From so many groups on intervals hold what they promise: see `statistics.paired_interval`."""


def decide(learned: Learned, forgot: Forgot, settings: EvaluateSettings) -> Verdicts:
    """Write the four verdicts and the summary that follows from them.

    Args:
        learned: Measured learning.
        forgot: Measured forgetting.
        settings: The margins.
    """
    knowledge = judge_knowledge(learned)
    style = judge_style(learned)
    ability = judge_ability(forgot, settings)
    drift = judge_drift(forgot, settings)
    return Verdicts(
        knowledge=knowledge,
        style=style,
        ability=ability,
        drift=drift,
        summary=f"{_learned_in_short(learned, knowledge, style)} "
        f"{_forgotten_in_short(forgot, ability, drift)}",
    )


def judge_knowledge(learned: Learned) -> Verdict:
    """Judge whether the model knows what it did not know before."""
    if learned.exact is not None:
        return _judge_exact(learned.exact, learned.control)
    change = learned.recognition
    if change is None:
        return Verdict(state="unmeasured", sentence="Knowledge was not measured in this run.")
    numbers = (
        f"the right answer among four was recognised in {change.before:.1%} of {change.items} "
        f"test questions before and {change.after:.1%} after: {_points(change.delta)} points, "
        f"95 % interval {_points(change.ci95[0])} to {_points(change.ci95[1])}"
    )
    if change.groups < FEWEST_GROUPS:
        return _too_few(f"{_counted(change.groups, 'group')} of questions", numbers)
    if change.ci95[0] > 0:
        return Verdict(state="yes", sentence=f"Knowledge was gained: {numbers}.")
    if change.ci95[1] < 0:
        return Verdict(state="no", sentence=f"Knowledge went down: {numbers}.")
    return Verdict(
        state="undecided",
        sentence=f"No new knowledge can be shown: {numbers}; "
        f"{_unseen_share(change, 'group', 'gain')}.",
    )


def judge_style(learned: Learned) -> Verdict:
    """Judge whether the model took on the wording of its examples."""
    change = learned.heldout_loss
    if change is None:
        return Verdict(state="unmeasured", sentence="There were no test answers to measure.")
    numbers = (
        f"loss on test answers went from {change.before:.2f} to {change.after:.2f} nats per token, "
        f"perplexity from {_perplexity(change.before)} to {_perplexity(change.after)} "
        f"({change.delta:+.2f}, 95 % interval {change.ci95[0]:+.2f} to {change.ci95[1]:+.2f}; "
        f"{_counted(change.items, 'answer')} in {_counted(change.groups, 'group')})"
    )
    if change.groups < FEWEST_GROUPS:
        return _too_few(f"answers in {_counted(change.groups, 'group')}", numbers)
    if change.ci95[1] < 0:
        return Verdict(state="yes", sentence=f"The style was learned: {numbers}.")
    if change.ci95[0] > 0:
        return Verdict(state="no", sentence=f"The style got worse: {numbers}.")
    least = detectable_difference(change.ci95, groups=change.groups)
    return Verdict(
        state="undecided",
        sentence=f"No change of style can be shown: {numbers}; with "
        f"{_counted(change.groups, 'group')} a change under {least:.3f} cannot be seen.",
    )


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 100.0))  # beyond that a digit says nothing
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


def judge_ability(forgot: Forgot, settings: EvaluateSettings) -> Verdict:
    """Judge whether the model still answers general questions as well as before."""
    overall = forgot.overall
    if overall is None:
        return Verdict(state="unmeasured", sentence="No ability probe was run.")
    margin = settings.ability_margin
    low, high = overall.ci95
    numbers = (
        f"accuracy over {_counted(overall.items, 'question')} of "
        f"{_counted(len(forgot.probes), 'probe')} moved by "
        f"{_points(overall.delta)} points (95 % interval {_points(low)} to {_points(high)}), "
        f"log-probability of the right answer by {overall.logprob_delta:+.3f} nats per token "
        f"({overall.logprob_ci95[0]:+.3f} to {overall.logprob_ci95[1]:+.3f})"
        f"{_fell_on(forgot, settings)}{_lost_on(forgot)}"
    )
    if overall.items < FEWEST_GROUPS:
        return _too_few(_counted(overall.items, "question"), numbers)
    if high < 0:
        return Verdict(state="lost", sentence=f"Ability was lost: {numbers}.")
    if low > -margin and overall.logprob_ci95[1] < -settings.drift_margin:
        return Verdict(
            state="undecided",
            sentence=f"Accuracy held, but the right answers became less likely: {numbers}.",
        )
    # Without one flipped answer the interval has no width, yet n items rule out no share below 3/n.
    if low > -margin and least_share(overall.items) <= margin:
        return Verdict(
            state="kept", sentence=f"A loss of {margin:.0%} or more is ruled out: {numbers}."
        )
    return Verdict(
        state="undecided",
        sentence=f"Not measurable with {_counted(overall.items, 'question')} whether ability fell "
        f"by {margin:.0%}: {numbers}; {_unseen_drop(forgot, overall.items)}.",
    )


def _fell_on(forgot: Forgot, settings: EvaluateSettings) -> str:
    """Name the probes whose right answers became less likely by more than the margin."""
    fell = [
        f"{probe.name} ({probe.logprob_delta:+.3f}, {_counted(probe.items, 'question')})"
        for probe in forgot.probes
        if probe.logprob_ci95[1] < -settings.drift_margin
        and (probe.logprob_p_value is None or probe.logprob_p_value < ALPHA)
    ]
    return f"; on {' and '.join(fell)} it fell" if fell else ""


def lost_probes(forgot: Forgot) -> tuple[ProbeChange, ...]:
    """Give the probes whose accuracy went down by more than chance, after Holm's correction."""
    return tuple(
        probe
        for probe in forgot.probes
        if probe.delta < 0 and probe.p_value is not None and probe.p_value < ALPHA
    )


def _lost_on(forgot: Forgot) -> str:
    lost = [
        f"{probe.name} ({_points(probe.delta)} points, {_counted(probe.items, 'question')}, "
        f"corrected p {_p_in_words(probe.p_value)})"
        for probe in lost_probes(forgot)
        if probe.p_value is not None
    ]
    return f"; accuracy was lost on {' and '.join(lost)}" if lost else ""


def _p_in_words(p_value: float) -> str:
    return f"= {p_value:.3f}" if p_value >= 0.001 else "below 0.001"


def _unseen_drop(forgot: Forgot, items: int) -> str:
    """Say how large a loss of accuracy has to be, by the share of questions that flip."""
    asked = sum(probe.items for probe in forgot.probes)
    flips = sum(probe.flipped_to_wrong + probe.flipped_to_right for probe in forgot.probes)
    least = detectable_share(items, discordance=flips / asked if asked else 0.0)
    return _unseen(_counted(items, "question"), "drop", least)


def _unseen_share(change: Change, noun: str, what: str) -> str:
    """Say how large a change of a share has to be, by its interval or, without one, by its groups.

    Without a flip the spread is not known; then a few flips in one direction have to be seen.
    """
    low, high = change.ci95
    least = (
        detectable_difference(change.ci95, groups=change.groups)
        if high > low
        else detectable_share(change.groups)
    )
    return _unseen(_counted(change.groups, noun), what, least)


def _unseen(with_what: str, what: str, least: float | None) -> str:
    if least is None or least >= 1:
        return f"with {with_what} no {what} can be seen"
    return f"with {with_what} a {what} under {least * 100:.1f} points cannot be seen"


def judge_drift(forgot: Forgot, settings: EvaluateSettings) -> Verdict:
    """Judge whether the model's grasp of general text moved."""
    drift = forgot.drift
    if drift is None:
        return Verdict(state="unmeasured", sentence="Drift on general text was not measured.")
    margin = settings.drift_margin
    low, high = drift.ci95
    numbers = (
        f"loss on {_counted(drift.passages, 'general passage')} moved by {drift.delta:+.3f} nats "
        f"per token (95 % interval {low:+.3f} to {high:+.3f})"
    )
    if drift.passages < FEWEST_GROUPS:
        return _too_few(_counted(drift.passages, "passage"), numbers)
    if low > margin:
        return Verdict(state="lost", sentence=f"General text was partly forgotten: {numbers}.")
    if high < margin:
        # A clear but small rise is said, and is still within the margin that was set.
        how = "rose, but less than" if low > 0 else "did not rise by"
        return Verdict(
            state="kept", sentence=f"General text {how} the margin of {margin:g}: {numbers}."
        )
    return Verdict(
        state="undecided",
        sentence=f"Not measurable with {_counted(drift.passages, 'passage')} whether drift exceeds "
        f"the margin of {margin:g}: {numbers}; a rise under "
        f"{margin + detectable_difference(drift.ci95, groups=drift.passages):.3f} cannot be told "
        "from the margin.",
    )


def _too_few(what: str, numbers: str) -> Verdict:
    sentence = f"Not measurable with {what} ({FEWEST_GROUPS} are needed): {numbers}."
    return Verdict(state="undecided", sentence=sentence)


def _judge_exact(exact: Change, control: Change | None) -> Verdict:
    numbers = (
        f"{_count(exact.after, exact.items)} of {exact.items} unseen phrasings answered word for "
        f"word, {_count(exact.before, exact.items)} before ({_points(exact.delta)} points, 95 % "
        f"interval {_points(exact.ci95[0])} to {_points(exact.ci95[1])}, resampling "
        f"{_counted(exact.groups, 'fact')})"
    )
    beside = ""
    if control is not None:
        beside = (
            f"; facts never trained: {_count(control.after, control.items)} of {control.items}, "
            f"{_count(control.before, control.items)} before"
        )
    if exact.groups < FEWEST_GROUPS:
        return _too_few(_counted(exact.groups, "fact"), f"{numbers}{beside}")
    if exact.ci95[0] <= 0:
        state: Literal["no", "undecided"] = "no" if exact.ci95[1] <= 0 else "undecided"
        unseen = "" if state == "no" else f"; {_unseen_share(exact, 'fact', 'gain')}"
        sentence = f"No facts can be shown as learned: {numbers}{beside}{unseen}."
        return Verdict(state=state, sentence=sentence)
    if control is not None and control.ci95[1] >= exact.ci95[0]:
        return Verdict(
            state="undecided",
            sentence=f"Trained facts do not stand out from facts never trained: {numbers}{beside}.",
        )
    return Verdict(state="yes", sentence=f"Facts were learned: {numbers}{beside}.")


def _learned_in_short(learned: Learned, knowledge: Verdict, style: Verdict) -> str:
    exact, recognition, loss = learned.exact, learned.recognition, learned.heldout_loss
    if exact is not None and knowledge.state == "yes":
        return f"Learned {exact.after:.0%} of what was asked in unseen phrasings."
    if exact is not None:
        return f"Learned no facts that can be shown ({exact.after:.0%} exact)."
    if recognition is not None and knowledge.state == "yes":
        return f"Learned: recognition rose to {recognition.after:.0%}."
    if loss is not None and style.state == "yes":
        return f"Learned the style ({loss.delta:+.2f} nats per token), no knowledge shown."
    return "Learned nothing that can be shown."


def _forgotten_in_short(forgot: Forgot, ability: Verdict, drift: Verdict) -> str:
    states = {ability.state, drift.state}
    moved = f"general text {forgot.drift.delta:+.2f} nats per token" if forgot.drift else ""
    points = f"ability {_points(forgot.overall.delta)} points" if forgot.overall else ""
    numbers = ", ".join(part for part in (moved, points) if part)
    if states == {"kept"}:
        return f"Nothing that was measured was forgotten beyond the margins ({numbers})."
    if "lost" in states:
        return f"Something was forgotten ({numbers})."
    if "unmeasured" in states:
        return f"Forgetting was not fully measured ({numbers or 'no probe was run'})."
    return f"Whether anything was forgotten is undecided ({numbers})."


def _points(share: float) -> str:
    return f"{share * 100:+.1f}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _count(share: float, items: int) -> int:
    return round(share * items)
