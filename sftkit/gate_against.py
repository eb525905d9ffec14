"""The gate's rules on two runs: is the new one worse than the one before, beyond a margin?

Where both runs kept their answers to the same questions, answers are compared in pairs. Where only
the two intervals are there, the widest difference they allow is taken: it is too wide, because both
runs were measured on the same items, and never too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.errors import RecordError
from sftkit.evidence.statistics import paired_change
from sftkit.evidence_records import Change, GateRule
from sftkit.gate_bounds import Judged, at_most, say_rule, turned
from sftkit.gate_policy import Policy
from sftkit.gate_rules import differing_keys, knowledge_of, label_metric
from sftkit.label_records import Measure
from sftkit.records import Answer, RunRecord, from_json, is_exact, load_run

ANSWERS = "answers.jsonl"
MOST_BYTES = 200_000_000


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run with what its folder keeps beside the record.

    Attributes:
        record: The run.
        recipe_text: Its recipe.yaml, or None.
        answers: All its answers; empty where it kept none.
    """

    record: RunRecord
    recipe_text: str | None = None
    answers: tuple[Answer, ...] = ()


def load_kept(folder: str | Path) -> Kept:
    """Read a run's folder for the gate.

    Raises:
        RecordError: It holds no run, or a file of it is damaged.
    """
    folder = Path(folder)
    record = load_run(folder)
    recipe = _text(folder / "recipe.yaml")
    lines = (_text(folder / ANSWERS) or "").splitlines()
    answers = tuple(from_json(Answer, line) for line in lines if line.strip())
    return Kept(record=record, recipe_text=recipe, answers=answers)


def _text(path: Path) -> str | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecordError(f"{path} is larger than {MOST_BYTES:,} bytes. Is it a run's folder?")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from error


def judge_against(now: Kept, before: Kept, policy: Policy) -> dict[str, list[GateRule]]:
    """Apply the rules that compare a run with a previous one.

    Args:
        now: The run.
        before: The previous run.
        policy: The limits.

    Returns:
        By rule, its outcomes; a rule whose measure one of the runs lacks has none.
    """
    same = same_measurement(now, before)
    found: dict[str, list[GateRule]] = {"same_measurement": [same]}
    for name, judged in losses_since(now, before, policy).items():
        if judged is None or not policy.asks_for(name):
            found[name] = []
        elif same.state != "pass" and policy.asks_for("same_measurement"):
            words = f"not compared, because the runs did not measure the same: {same.sentence}"
            found[name] = [say_rule(name, "undecided", words, limit=getattr(policy, name))]
        else:
            found[name] = [at_most(name, judged, getattr(policy, name), policy)]
    return found


def losses_since(now: Kept, before: Kept, policy: Policy) -> dict[str, Judged | None]:
    """Measure by how much a run is worse than a previous one, by rule; None if not in both.

    Args:
        now: The run.
        before: The previous run.
        policy: Names the measure of labels.
    """
    pairs = _paired_knowledge(now, before)
    return {
        "max_knowledge_drop": _knowledge_drop(now.record, before.record, pairs),
        "max_style_drop": _style_drop(now.record, before.record),
        "max_label_drop": _label_drop(now.record, before.record, policy),
        "max_drift_rise": _drift_rise(now.record, before.record),
        "max_ability_drop": _ability_drop(now.record, before.record),
    }


def same_measurement(now: Kept, before: Kept) -> GateRule:
    """Say which fingerprints of two runs differ, and whether numbers can be compared all the same.

    Other training settings, seeds or versions are what a comparison is for; another base model or
    other questions are not.
    """
    paired = _paired_knowledge(now, before) is not None
    return _same_measurement(now.record, before.record, paired=paired)


def _same_measurement(now: RunRecord, before: RunRecord, *, paired: bool) -> GateRule:
    ours, theirs = (_measured_by(record) for record in (now, before))
    stops = [name for name in ours if ours[name] != theirs[name]]
    if paired and "the rows" in stops:
        stops.remove("the rows")  # other training rows, and the same questions were asked
    stops += [
        f"evaluate.{key}"
        for key in differing_keys(now.recipe.get("evaluate"), before.recipe.get("evaluate"))
        if not key.endswith("margin")
    ]
    beside = [
        f"{name} ({was} before, {is_now} now)"
        for name, is_now, was in _beside(now, before)
        if is_now != was
    ]
    beside += [
        place
        for section in ("model", "data", "adapter", "objective", "train")
        for place in differing_keys(now.recipe.get(section), before.recipe.get(section), section)
    ]
    beside += ["the rows, but not the questions"] * (
        paired and ours["the rows"] != theirs["the rows"]
    )
    also = f"; what else differs: {', '.join(beside)}" if beside else ""
    if stops:
        return say_rule("same_measurement", "undecided", f"differs: {', '.join(stops)}{also}.")
    return say_rule("same_measurement", "pass", f"same base model, rows and evaluation{also}.")


def _measured_by(record: RunRecord) -> dict[str, Any]:
    environment = record.environment
    return {
        "the base model": environment.base_fingerprint,
        "the rows": record.data.fingerprint,
        "the quantization": environment.quantization,
        "the half of the probes": record.forgot.half,
    }


def _beside(now: RunRecord, before: RunRecord) -> list[tuple[str, Any, Any]]:
    ours, theirs = now.environment, before.environment
    names = dict.fromkeys([*ours.versions, *theirs.versions])
    versions = [(name, ours.versions.get(name), theirs.versions.get(name)) for name in names]
    return [
        ("seed", ours.seed, theirs.seed),
        ("type of compute", ours.dtype, theirs.dtype),
        ("device", ours.device, theirs.device),
        *versions,
    ]


def _paired_knowledge(now: Kept, before: Kept) -> Change | None:
    """Compare the answers of two runs to the same test questions, question by question."""
    asked = [_exact_answers(kept) for kept in (now, before)]
    if not asked[0] or not asked[1] or list(asked[0]) != list(asked[1]):
        return None
    evaluate = now.record.recipe.get("evaluate")
    resamples = evaluate.get("resamples") if isinstance(evaluate, Mapping) else None
    return paired_change(
        list(asked[1].values()),
        list(asked[0].values()),
        groups=[key[2] for key in asked[0]],
        resamples=resamples if isinstance(resamples, int) else 4000,
    )


def _exact_answers(kept: Kept) -> dict[tuple[str, str, str, int], float]:
    """Give right or wrong by question; nothing if these are not the answers the record counted."""
    measured = kept.record.learned.exact
    found: dict[tuple[str, str, str, int], float] = {}
    times: dict[tuple[str, str, str], int] = {}
    for answer in kept.answers:
        if answer.split == "test":
            key = (answer.question, answer.expected, answer.group)
            times[key] = times.get(key, -1) + 1
            found[(*key, times[key])] = float(is_exact(answer.tuned, answer.expected))
    if measured is None or len(found) != measured.items:
        return {}
    share = sum(found.values()) / len(found)
    return dict(sorted(found.items())) if abs(share - measured.after) < 1e-9 else {}


def _knowledge_drop(now: RunRecord, before: RunRecord, pairs: Change | None) -> Judged | None:
    if pairs is not None:
        return Judged(
            what=f"exact answers went from {pairs.before:.1%} to {pairs.after:.1%}, a fall by",
            value=0.0 - pairs.delta,
            ci95=turned(pairs.ci95),
            items=pairs.groups,
            counted=f"the same {pairs.items} questions in {pairs.groups} groups, paired",
        )
    (name, ours), (other, theirs) = knowledge_of(now), knowledge_of(before)
    if ours is None or theirs is None or name != other:
        return None
    return _fall(f"the gain of {name} fell by", ours, theirs, "points", "questions")


def _style_drop(now: RunRecord, before: RunRecord) -> Judged | None:
    ours, theirs = now.learned.heldout_loss, before.learned.heldout_loss
    if ours is None or theirs is None:
        return None
    return _rise("loss on test answers, against the base model, rose by", ours, theirs, "answers")


def _drift_rise(now: RunRecord, before: RunRecord) -> Judged | None:
    ours, theirs = now.forgot.drift, before.forgot.drift
    if ours is None or theirs is None:
        return None
    return Judged(
        what="drift of general text rose by",
        value=ours.delta - theirs.delta,
        ci95=(ours.ci95[0] - theirs.ci95[1], ours.ci95[1] - theirs.ci95[0]),
        items=min(ours.passages, theirs.passages),
        counted=f"{ours.passages} passages, from the two intervals",
        unit="nats per token",
    )


def _ability_drop(now: RunRecord, before: RunRecord) -> Judged | None:
    ours, theirs = now.forgot.overall, before.forgot.overall
    if ours is None or theirs is None:
        return None
    return Judged(
        what="accuracy over all probes fell by",
        value=theirs.delta - ours.delta,
        ci95=(theirs.ci95[0] - ours.ci95[1], theirs.ci95[1] - ours.ci95[0]),
        items=min(ours.items, theirs.items),
        counted=f"{ours.items} questions, from the two intervals",
        is_share=True,
    )


def _label_drop(now: RunRecord, before: RunRecord, policy: Policy) -> Judged | None:
    metric = label_metric(now, policy)
    ours, theirs = (_label_measure(record, metric) for record in (now, before))
    labels = now.learned.labels
    if labels is None or ours is None or theirs is None:
        return None
    (value, ci), (other, other_ci) = ours, theirs
    sign = -1 if any(g.metric == metric and g.lower_is_better for g in labels.gains) else 1
    low, high = (ci, other_ci) if sign < 0 else (other_ci, ci)
    return Judged(
        what=f"{metric} went from {other:.3f} to {value:.3f}, worse by",
        value=sign * (other - value),
        ci95=(low[0] - high[1], low[1] - high[0]),
        items=labels.groups,
        counted=f"{labels.items} items, from the two intervals",
        unit="",
    )


def _label_measure(record: RunRecord, metric: str) -> tuple[float, tuple[float, float]] | None:
    labels = record.learned.labels
    measures: tuple[Measure, ...] = () if labels is None else labels.tuned.measures
    for measure in measures:
        if measure.name == metric and measure.value is not None and measure.ci95 is not None:
            return measure.value, measure.ci95
    return None


def _fall(what: str, now: Change, before: Change, unit: str, counted: str) -> Judged:
    return Judged(
        what=what,
        value=before.delta - now.delta,
        ci95=(before.ci95[0] - now.ci95[1], before.ci95[1] - now.ci95[0]),
        items=min(now.groups, before.groups),
        counted=f"{now.items} {counted}, from the two intervals",
        unit=unit,
    )


def _rise(what: str, now: Change, before: Change, counted: str) -> Judged:
    return _fall(what, before, now, "nats per token", counted)
