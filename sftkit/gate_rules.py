"""The gate's rules on one run: each takes a record and a limit, and gives what it finds.

A rule whose measure the run does not have gives nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sftkit.errors import SettingsError
from sftkit.evidence_records import Change, GateRule
from sftkit.gate_bounds import Judged, State, at_least, at_most, say_rule, share_change, turned
from sftkit.gate_policy import Policy
from sftkit.records import RunRecord
from sftkit.settings import to_plain

SEVERITIES = ("information", "warning", "error")
NEEDED_VERSIONS = ("python", "torch", "transformers", "peft")


def knowledge_of(record: RunRecord) -> tuple[str, Change | None]:
    """Give the measure of knowledge a run took, and its name."""
    if record.learned.exact is not None:
        return "exact answers to unseen phrasings", record.learned.exact
    return "right answers ranked first", record.learned.recognition


def _knowledge(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    name, change = knowledge_of(record)
    if change is None:
        return []
    rule = at_least("min_knowledge_gain", share_change(f"{name} changed by", change), limit, policy)
    control = record.learned.control
    if rule.state == "pass" and control is not None and control.ci95[1] >= change.ci95[0]:
        words = (
            f" Facts never trained changed by {100 * control.delta:+.1f} points (up to "
            f"{100 * control.ci95[1]:+.1f}), so trained ones do not stand out."
        )
        return [say_rule(rule.name, "undecided", rule.sentence + words, **_numbers(rule))]
    return [rule]


def _numbers(rule: GateRule) -> dict[str, Any]:
    return {"value": rule.value, "ci95": rule.ci95, "limit": rule.limit}


def _style(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    change = record.learned.heldout_loss
    if change is None:
        return []
    found = Judged(
        what="loss on test answers fell by",
        value=0.0 - change.delta,
        ci95=turned(change.ci95),
        items=change.groups,
        counted=f"{change.items} answers in {change.groups} groups",
        unit="nats per token",
    )
    return [at_least("min_style_gain", found, limit, policy)]


def label_metric(record: RunRecord, policy: Policy) -> str:
    """Name the metric that the label rules look at."""
    labels = record.learned.labels
    numbers = labels is not None and labels.task == "regress"
    return policy.label_metric or ("rmse" if numbers else "macro_f1")


def _labels(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    labels = record.learned.labels
    if labels is None:
        return []
    metric = label_metric(record, policy)
    rules = []
    for gain in labels.gains:
        if gain.metric != metric:
            continue
        name = f"min_label_gain ({gain.over})"
        if gain.delta is None or gain.ci95 is None:
            words = f"{metric} cannot be compared with {gain.over}: {gain.note or 'no interval'}."
            rules.append(say_rule(name, "undecided", words, limit=limit))
            continue
        better = (
            (0.0 - gain.delta, turned(gain.ci95))
            if gain.lower_is_better
            else (gain.delta, gain.ci95)
        )
        found = Judged(
            what=f"{metric} is better than that of {gain.over} by",
            value=better[0],
            ci95=better[1],
            items=labels.groups,
            counted=f"{labels.items} items in {labels.groups} groups",
            unit="",
        )
        rules.append(at_least(name, found, limit, policy))
    return rules


def _drift(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    drift = record.forgot.drift
    if drift is None:
        return []
    found = Judged(
        what="loss on general text rose by",
        value=drift.delta,
        ci95=drift.ci95,
        items=drift.passages,
        counted=f"{drift.passages} passages",
        unit="nats per token",
    )
    return [at_most("max_drift", found, limit, policy)]


def _ability(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    overall = record.forgot.overall
    if overall is None:
        return []
    found = Judged(
        what="accuracy over all probes fell by",
        value=0.0 - overall.delta,
        ci95=turned(overall.ci95),
        items=overall.items,
        counted=f"{overall.items} questions",
        is_share=True,
    )
    return [at_most("max_ability_loss", found, limit, policy)]


def _probes(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    return [
        at_most(
            f"max_probe_loss ({probe.name})",
            Judged(
                what=f"accuracy on {probe.name} fell by",
                value=0.0 - probe.delta,
                ci95=turned(probe.ci95),
                items=probe.items,
                counted=f"{probe.items} questions, {probe.flipped_to_wrong} turned wrong and "
                f"{probe.flipped_to_right} right",
                is_share=True,
            ),
            limit,
            policy,
        )
        for probe in record.forgot.probes
    ]


def _behaviour(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    """Judge each behaviour test; where no case at all failed, no interval is needed for a pass."""
    rules = []
    for test in record.checks.behaviour:
        most = max(limit, test.allowed)
        share = test.failures / max(test.cases, 1)
        low, high = test.ci95
        kept = test.failures == 0 or high <= most
        state: State = "pass" if kept else "fail" if low > most else "undecided"
        base = "" if test.base_failures is None else f" (base model: {test.base_failures})"
        words = (
            f"{test.failures} of {test.cases} cases of {test.name} ({test.kind}) failed{base}: "
            f"{share:.1%}, 95 % interval {low:.1%} to {high:.1%}; allowed: at most {most:.1%}"
        )
        if test.cases < policy.min_items:
            state = "undecided" if state == "pass" else state  # one failure is one, of however few
            words += f"; too few to judge, {policy.min_items} are needed"
        numbers = {"value": share, "ci95": test.ci95, "limit": most}
        rules.append(
            say_rule(f"max_behaviour_failures ({test.name})", state, words + ".", **numbers)
        )
    return rules


def _fairness(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    rules = []
    for gap in record.checks.fairness:
        low, high = gap.ci95
        size = (low, high) if low >= 0 else turned(gap.ci95) if high <= 0 else (0, max(-low, high))
        found = Judged(
            what=f"{gap.name} between {', '.join(gap.groups) or gap.attribute} is",
            value=abs(gap.value),
            ci95=size,
            items=gap.items,
            counted=f"{gap.items} items"
            + ("" if gap.base is None else f"; base model {gap.base:+.3f}"),
            unit="" if gap.unit == "share" else gap.unit,
        )
        rules.append(
            at_most(f"max_fairness_gap ({gap.name}, {gap.attribute})", found, limit, policy)
        )
    return rules


def _calibration(record: RunRecord, policy: Policy, limit: float) -> list[GateRule]:
    found = record.checks.calibration
    if found is None:
        return []
    after = "" if found.ece_after is None else f"; with its temperature {found.ece_after:.3f}"
    judged = Judged(
        what="calibration error of the model as it is:",
        value=found.ece,
        ci95=found.ci95,
        items=found.items,
        counted=f"{found.items} items{after}",
        unit="",
    )
    return [at_most("max_calibration_error", judged, limit, policy)]


def _contamination(record: RunRecord, policy: Policy, limit: str) -> list[GateRule]:
    """Judge tested rows in training rows, which are not known of an adapter trained elsewhere."""
    if not record.data.counts.get("train"):
        return []
    bad = SEVERITIES[SEVERITIES.index(limit) :]
    found = [f for f in record.data.findings if f.code == "D34"]
    section = record.recipe.get("data")
    dropped = isinstance(section, Mapping) and section.get("faulty_rows") == "drop"
    counted = [f for f in found if f.severity in bad and not (dropped and f.severity == "error")]
    said = "; ".join(f"{f.severity}: {f.message}" for f in found) or "none found"
    asked = f"fails from {limit} on"
    out = (
        " Rows with errors were left out of training."
        if dropped and any(f.severity == "error" for f in found)
        else ""
    )
    return [
        say_rule(
            "contamination",
            "fail" if counted else "pass",
            f"tested rows in the training rows (audit code D34): {said}; {asked}.{out}",
            value=float(sum(f.count for f in counted)),
            limit=0.0,
        )
    ]


def _halves(record: RunRecord, policy: Policy, limit: bool) -> list[GateRule]:
    """Refuse numbers on forgetting from the questions that something was chosen by."""
    half, train = record.forgot.half, record.recipe.get("train")
    watched = str(train.get("early_stopping") or "") if isinstance(train, Mapping) else ""
    of_forgetting = ("drift", "ability", "probe", *(probe.name for probe in record.forgot.probes))
    chose = any(name in watched for name in of_forgetting)
    words = f"forgetting was measured on: {half}"
    if half == "choose":
        words += ", the half of the probes that chooses; report on the other one"
    elif half == "all" and chose:
        words += f", and {watched} chose when to stop; report on the half that did not choose"
    else:
        words += "; nothing was chosen by it" if half == "all" else ", the half that did not choose"
        return [say_rule("separate_halves", "pass", f"{words}.")]
    return [say_rule("separate_halves", "fail", f"{words}.")]


def judge_reproducible(record: RunRecord, recipe_text: str | None) -> GateRule:
    """Judge whether a run says all that is needed to make it again.

    Args:
        record: The run.
        recipe_text: What stands in its folder's recipe.yaml; None if there is none.
    """
    environment, data = record.environment, record.data
    faults = [
        f"the version of {name} is not recorded"
        for name in NEEDED_VERSIONS
        if not environment.versions.get(name)
    ]
    if not environment.base_fingerprint:
        faults.append("the base model has no fingerprint")
    elif environment.base_fingerprint.endswith("@default branch"):
        faults.append("the base model is a hub branch, which moves: set model.revision to a commit")
    if data.counts and not data.fingerprint:
        faults.append("the rows have no fingerprint")
    faults += _recipe_faults(record, recipe_text)
    prints = f"base {environment.base_fingerprint[:19]}, rows {data.fingerprint[:19] or 'none'}"
    seed = f"seed {environment.seed}" if record.training.steps else "trained elsewhere"
    said = "; ".join(faults) or f"versions, {seed}, {prints}, and recipe.yaml as it was run"
    return say_rule("reproducible", "fail" if faults else "pass", f"{said}.")


def _recipe_faults(record: RunRecord, text: str | None) -> list[str]:
    from sftkit.recipe import parse_yaml

    if text is None:
        return ["recipe.yaml is missing from the run's folder"]
    try:
        written = parse_yaml(text, where="recipe.yaml")
    except SettingsError as error:
        return [f"recipe.yaml cannot be read ({error})"]
    differing = differing_keys(written, to_plain(record.recipe))
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    listed = ", ".join(differing[:5])
    return [f"recipe.yaml is not the recipe of the run: {listed}{more} differ"] if differing else []


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Name the places at which two plain values differ, as section.key."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        absent = object()
        return [
            place
            for key in dict.fromkeys([*one, *other])
            for place in differing_keys(
                one.get(key, absent), other.get(key, absent), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if one == other else [path or "the whole"]


Rule = Callable[[RunRecord, Policy, Any], list[GateRule]]
RULES_OF_A_RUN: Mapping[str, Rule] = {
    "min_knowledge_gain": _knowledge,
    "min_style_gain": _style,
    "min_label_gain": _labels,
    "max_drift": _drift,
    "max_ability_loss": _ability,
    "max_probe_loss": _probes,
    "max_behaviour_failures": _behaviour,
    "max_fairness_gap": _fairness,
    "max_calibration_error": _calibration,
    "contamination": _contamination,
    "separate_halves": _halves,
}
"""Every rule that needs one run's record alone; reproducible needs its folder too."""
