"""Every sentence follows from its numbers, shows them, and flips when they are flipped."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from sftkit.evidence.shares import detectable_share, mcnemar_exact
from sftkit.evidence.statistics import detectable_difference, paired_change
from sftkit.evidence.verdicts import (
    decide,
    judge_ability,
    judge_drift,
    judge_knowledge,
    judge_style,
    lost_probes,
)
from sftkit.evidence_records import Change, Drift, Overall, ProbeChange
from sftkit.records import Forgot, Learned, Verdict
from sftkit.settings import EvaluateSettings

SETTINGS = EvaluateSettings(drift_margin=0.1, ability_margin=0.05)

EXACT = Change(
    before=0.0, after=0.875, delta=0.875, ci95=(0.778, 0.958), items=72, groups=36
)  # fmt: skip
CONTROL = Change(before=0.0, after=0.042, delta=0.042, ci95=(0.0, 0.125), items=24, groups=12)
RECOGNITION = Change(before=0.5, after=0.7, delta=0.2, ci95=(0.1, 0.3), items=60, groups=60)
STYLE = Change(
    before=3.39, after=0.42, delta=-2.97, ci95=(-3.21, -2.74), items=72, groups=36, tokens=412
)  # fmt: skip
PROBE = ProbeChange(
    name="piqa", before=0.67, after=0.66, delta=-0.01, ci95=(-0.03, 0.01), items=200, chance=0.5,
    logprob_delta=-0.08, logprob_ci95=(-0.1, -0.06), flipped_to_wrong=5, flipped_to_right=3,
)  # fmt: skip
OVERALL = Overall(
    delta=-0.01, ci95=(-0.03, 0.01), logprob_delta=-0.08, logprob_ci95=(-0.1, -0.06), items=600
)
DRIFT = Drift(before=3.3, after=3.32, delta=0.02, ci95=(0.01, 0.03), passages=100, tokens=12700)
LEARNED = Learned(heldout_loss=STYLE, exact=EXACT, control=CONTROL)
FORGOT = Forgot(probes=(PROBE,), overall=OVERALL, drift=DRIFT)


def changed(record: Any, **changes: Any) -> Any:
    return dataclasses.replace(record, **changes)


# ---- the sentences of a good run, whole ----


def test_a_good_run_is_told_in_four_sentences_and_a_summary():
    verdicts = decide(LEARNED, FORGOT, SETTINGS)
    assert verdicts.knowledge == Verdict(
        state="yes",
        sentence="Facts were learned: 63 of 72 unseen phrasings answered word for word, 0 before "
        "(+87.5 points, 95 % interval +77.8 to +95.8, resampling 36 facts); facts never trained: "
        "1 of 24, 0 before.",
    )
    assert verdicts.style == Verdict(
        state="yes",
        sentence="The style was learned: loss on test answers went from 3.39 to 0.42 nats per "
        "token, perplexity from 29.7 to 1.52 (-2.97, 95 % interval -3.21 to -2.74; 72 answers in "
        "36 groups).",
    )
    assert verdicts.ability == Verdict(
        state="kept",
        sentence="A loss of 5% or more is ruled out: accuracy over 600 questions of 1 probe moved "
        "by -1.0 points (95 % interval -3.0 to +1.0), log-probability of the right answer by "
        "-0.080 nats per token (-0.100 to -0.060).",
    )
    assert verdicts.drift == Verdict(
        state="kept",
        sentence="General text rose, but less than the margin of 0.1: loss on 100 general passages "
        "moved by +0.020 nats per token (95 % interval +0.010 to +0.030).",
    )
    assert verdicts.summary == (
        "Learned 88% of what was asked in unseen phrasings. "
        "Nothing that was measured was forgotten beyond the margins "
        "(general text +0.02 nats per token, ability -1.0 points)."
    )


# ---- sabotage: the numbers flip, and the sentence with them ----


@pytest.mark.parametrize(
    ("exact", "control", "state", "words"),
    [
        ((0.778, 0.958), (0.0, 0.125), "yes", "Facts were learned: "),
        ((0.0, 0.0), (0.0, 0.125), "no", "No facts can be shown as learned: "),
        ((0.0, 0.05), (0.0, 0.125), "undecided", "No facts can be shown as learned: "),
        ((-0.9, -0.7), (0.0, 0.125), "no", "No facts can be shown as learned: "),
        ((0.05, 0.3), (0.0, 0.125), "undecided", "Trained facts do not stand out from facts "),
        ((0.778, 0.958), (0.7, 0.9), "undecided", "Trained facts do not stand out from facts "),
    ],
)
def test_knowledge_flips_with_the_intervals_of_trained_and_control_facts(
    exact, control, state, words
):
    learned = Learned(
        exact=changed(EXACT, ci95=exact),
        control=changed(CONTROL, ci95=control),
    )
    verdict = judge_knowledge(learned)
    assert (verdict.state, verdict.sentence.startswith(words)) == (state, True)


def test_knowledge_without_control_facts_is_judged_by_the_interval_alone():
    assert judge_knowledge(Learned(exact=EXACT)).state == "yes"


@pytest.mark.parametrize(
    ("interval", "state", "words"),
    [
        ((0.1, 0.3), "yes", "Knowledge was gained: "),
        ((-0.3, -0.1), "no", "Knowledge went down: "),
        ((-0.1, 0.1), "undecided", "No new knowledge can be shown: "),
        ((0.0, 0.0), "undecided", "No new knowledge can be shown: "),
    ],
)
def test_recognition_flips_with_its_interval(interval, state, words):
    verdict = judge_knowledge(Learned(recognition=changed(RECOGNITION, ci95=interval)))
    assert (verdict.state, verdict.sentence.startswith(words)) == (state, True)


@pytest.mark.parametrize(
    ("interval", "state", "words"),
    [
        ((-3.21, -2.74), "yes", "The style was learned: "),
        ((2.74, 3.21), "no", "The style got worse: "),
        ((-0.1, 0.1), "undecided", "No change of style can be shown: "),
        ((0.0, 0.0), "undecided", "No change of style can be shown: "),
    ],
)
def test_style_flips_with_its_interval(interval, state, words):
    verdict = judge_style(Learned(heldout_loss=changed(STYLE, ci95=interval)))
    assert (verdict.state, verdict.sentence.startswith(words)) == (state, True)


@pytest.mark.parametrize(
    ("interval", "state", "words"),
    [
        ((-0.03, 0.01), "kept", "A loss of 5% or more is ruled out: "),
        ((-0.30, -0.10), "lost", "Ability was lost: "),
        ((-0.09, 0.02), "undecided", "Not measurable with 600 questions whether ability fell "),
        ((0.0, 0.0), "kept", "A loss of 5% or more is ruled out: "),
    ],
)
def test_ability_flips_with_its_interval(interval, state, words):
    forgot = Forgot(probes=(PROBE,), overall=changed(OVERALL, ci95=interval))
    verdict = judge_ability(forgot, SETTINGS)
    assert (verdict.state, verdict.sentence.startswith(words)) == (state, True)


@pytest.mark.parametrize(
    ("interval", "state", "words"),
    [
        ((-0.01, 0.03), "kept", "General text did not rise by the margin of 0.1: "),
        ((0.01, 0.03), "kept", "General text rose, but less than the margin of 0.1: "),
        ((0.52, 0.61), "lost", "General text was partly forgotten: "),
        ((0.05, 0.15), "undecided", "Not measurable with 100 passages whether drift exceeds "),
        ((0.0, 0.0), "kept", "General text did not rise by the margin of 0.1: "),
    ],
)
def test_drift_flips_with_its_interval(interval, state, words):
    verdict = judge_drift(Forgot(drift=changed(DRIFT, ci95=interval)), SETTINGS)
    assert (verdict.state, verdict.sentence.startswith(words)) == (state, True)


def test_the_margins_are_those_of_the_settings():
    wide = EvaluateSettings(drift_margin=0.7, ability_margin=0.3)
    drift = changed(DRIFT, ci95=(0.52, 0.61))
    overall = changed(OVERALL, ci95=(-0.2, 0.02))
    forgot = Forgot(probes=(PROBE,), overall=overall, drift=drift)
    assert (judge_drift(forgot, SETTINGS).state, judge_ability(forgot, SETTINGS).state) == (
        "lost",
        "undecided",
    )
    assert (judge_drift(forgot, wide).state, judge_ability(forgot, wide).state) == ("kept", "kept")


# ---- planted mutants: the same items, and what a broken or a gentle run would have done ----

GROUPS = [str(place) for place in range(60)]
CHANCE = np.random.default_rng(0)
NOISE = CHANCE.normal(0.0, 1.0, 60)
NONE, ALL = np.zeros(60), np.ones(60)
HALF = np.arange(60) % 2.0


def shifted(by: float, spread: float = 0.1) -> Change:
    """Loss of 60 answers or passages, each moved by as much, more or less."""
    return paired_change(
        (3.0 + NOISE).tolist(), (3.0 + NOISE + by + spread * NOISE[::-1]).tolist(),
        groups=GROUPS, weights=[20.0] * 60,
    )  # fmt: skip


def answered(before: np.ndarray, after: np.ndarray) -> Change:
    return paired_change(before.tolist(), after.tolist(), groups=GROUPS)


def turned(share: float, back: float = 0.0) -> Forgot:
    """600 questions, 300 of them right before: so many of all turn wrong, and so many right."""
    was = np.arange(600) % 2.0
    now = was.copy()
    now[np.flatnonzero(was)[: round(share * 600)]] = 0.0
    now[np.flatnonzero(1 - was)[: round(back * 600)]] = 1.0
    questions = [str(place) for place in range(600)]
    change = paired_change(was.tolist(), now.tolist(), groups=questions)
    wrong, right = int((was > now).sum()), int((was < now).sum())
    probe = changed(
        PROBE, before=change.before, after=change.after, delta=change.delta, ci95=change.ci95,
        items=600, logprob_ci95=(-0.05, 0.05), flipped_to_wrong=wrong, flipped_to_right=right,
        p_value=mcnemar_exact(wrong, right), logprob_p_value=1.0,
    )  # fmt: skip
    overall = changed(OVERALL, delta=change.delta, ci95=change.ci95, logprob_ci95=(-0.05, 0.05))
    return Forgot(probes=(probe,), overall=overall)


def drifted(by: float, spread: float = 0.1) -> Forgot:
    change = shifted(by, spread)
    return Forgot(
        drift=Drift(
            before=change.before,
            after=change.after,
            delta=change.delta,
            ci95=change.ci95,
            passages=60,
            tokens=1200,
        )
    )


def knew(exact: Change | None, control: Change | None = None) -> Verdict:
    return judge_knowledge(Learned(exact=exact, control=control))


PLANTED: dict[str, tuple[Verdict, str, str]] = {
    "knowledge: facts learned": (
        knew(answered(NONE, ALL), answered(NONE, NONE)), "yes", "Facts were learned: 60 of 60 "),
    "knowledge: adapter off": (
        knew(answered(NONE, NONE), answered(NONE, NONE)), "no", "No facts can be shown as learned: "
        "0 of 60 "),
    "knowledge: one fact by luck": (
        knew(answered(NONE, (np.arange(60) == 7) * 1.0)), "undecided",
        "No facts can be shown as learned: 1 of 60 "),
    "knowledge: the control is known, too": (
        knew(answered(NONE, HALF), answered(NONE, HALF)), "undecided",
        "Trained facts do not stand out from facts never trained: 30 of 60 "),
    "knowledge: not asked": (knew(None), "unmeasured", "Knowledge was not measured"),
    "style: answers likelier": (
        judge_style(Learned(heldout_loss=shifted(-1.0))), "yes", "The style was learned: "),
    "style: adapter subtracted": (
        judge_style(Learned(heldout_loss=shifted(+1.0))), "no", "The style got worse: "),
    "style: noise": (
        judge_style(Learned(heldout_loss=shifted(0.0))), "undecided", "No change of style can be "),
    "style: no answers": (judge_style(Learned()), "unmeasured", "There were no test answers"),
    "ability: a few flips both ways": (
        judge_ability(turned(0.01, 0.01), SETTINGS), "kept", "A loss of 5% or more is ruled out: "),
    "ability: a tenth turns wrong": (
        judge_ability(turned(0.1), SETTINGS), "lost", "Ability was lost: "),
    "ability: many flips both ways": (
        judge_ability(turned(0.24, 0.22), SETTINGS), "undecided", "Not measurable with 600 "),
    "ability: no probe": (
        judge_ability(Forgot(), SETTINGS), "unmeasured", "No ability probe was run"),
    "drift: noise": (
        judge_drift(drifted(0.0), SETTINGS), "kept", "General text did not rise by the margin "),
    "drift: a small rise": (
        judge_drift(drifted(0.05, 0.01), SETTINGS), "kept", "General text rose, but less than "),
    "drift: weights damaged": (
        judge_drift(drifted(0.5), SETTINGS), "lost", "General text was partly forgotten: "),
    "drift: a rise near the margin": (
        judge_drift(drifted(0.1), SETTINGS), "undecided", "Not measurable with 60 passages "),
    "drift: no passages": (judge_drift(Forgot(), SETTINGS), "unmeasured", "Drift on general text "),
}  # fmt: skip


@pytest.mark.parametrize("mutant", PLANTED)
def test_a_planted_mutant_flips_the_sentence(mutant):
    verdict, state, words = PLANTED[mutant]
    assert (verdict.state, verdict.sentence[: len(words)]) == (state, words)


# ---- what could have been seen ----


def test_what_is_undecided_says_how_large_a_change_would_be_seen():
    ends = {
        name: verdict.sentence.rsplit("; ", 1)[1]
        for name, (verdict, state, _) in PLANTED.items()
        if state == "undecided" and "control" not in name
    }
    assert {name: re.sub(r"\d+\.\d+", "N", end) for name, end in ends.items()} == {
        "knowledge: one fact by luck": "with 60 facts a gain under N points cannot be seen.",
        "style: noise": "with 60 groups a change under N cannot be seen.",
        "ability: many flips both ways": "with 600 questions a drop under N points cannot be seen.",
        "drift: a rise near the margin": "a rise under N cannot be told from the margin.",
    }


def test_the_drop_that_can_be_seen_follows_from_the_flips_and_the_rise_from_the_interval():
    forgot = turned(0.24, 0.22)
    drop = detectable_share(600, discordance=0.46)
    assert drop is not None
    assert f"a drop under {drop * 100:.1f} points" in judge_ability(forgot, SETTINGS).sentence
    still = changed(OVERALL, delta=0.0, ci95=(0.0, 0.0), items=12)
    sentence = judge_ability(Forgot(overall=still), SETTINGS).sentence
    least = detectable_share(12)
    assert least is not None
    assert sentence.endswith(
        f"with 12 questions a drop under {least * 100:.1f} points cannot be seen."
    )
    drift = changed(DRIFT, ci95=(0.05, 0.15))
    rise = 0.1 + detectable_difference((0.05, 0.15), groups=100)
    assert f"a rise under {rise:.3f} cannot" in judge_drift(Forgot(drift=drift), SETTINGS).sentence


def test_a_probe_is_called_lost_only_after_the_correction():
    lost = changed(PROBE, name="piqa", delta=-0.09, p_value=0.012)
    clear = changed(PROBE, name="boolq", delta=-0.2, p_value=0.0001)
    chance = changed(PROBE, name="openbookqa", delta=-0.06, p_value=0.051)
    better = changed(PROBE, name="commonsenseqa", delta=0.09, p_value=0.012)
    old = changed(PROBE, name="old", delta=-0.3, p_value=None)
    forgot = Forgot(probes=(lost, clear, chance, better, old), overall=OVERALL)
    assert lost_probes(forgot) == (lost, clear)
    verdict = judge_ability(forgot, SETTINGS)
    assert verdict.state == "kept"  # overall decides
    assert verdict.sentence.endswith(
        "; accuracy was lost on piqa (-9.0 points, 200 questions, corrected p = 0.012) and boolq "
        "(-20.0 points, 200 questions, corrected p below 0.001)."
    )


def test_a_probe_whose_fall_may_be_chance_is_not_named():
    fell = changed(PROBE, logprob_delta=-0.44, logprob_ci95=(-0.56, -0.33), logprob_p_value=0.06)
    forgot = Forgot(probes=(fell,), overall=OVERALL)
    assert "it fell" not in judge_ability(forgot, SETTINGS).sentence
    corrected = changed(fell, logprob_p_value=0.04)
    sentence = judge_ability(changed(forgot, probes=(corrected,)), SETTINGS).sentence
    assert sentence.endswith("; on piqa (-0.440, 200 questions) it fell.")


# ---- what every sentence holds ----


def test_every_sentence_holds_its_change_its_interval_and_its_count():
    bad = Forgot(
        probes=(PROBE,),
        overall=changed(OVERALL, ci95=(-0.3, -0.1)),
        drift=changed(DRIFT, ci95=(0.5, 0.6)),
    )
    worse = Learned(
        heldout_loss=changed(STYLE, ci95=(1.0, 2.0)),
        exact=changed(EXACT, ci95=(-0.1, 0.2)),
        control=CONTROL,
    )
    for verdicts in (decide(LEARNED, FORGOT, SETTINGS), decide(worse, bad, SETTINGS)):
        for name, count in (
            ("knowledge", "72"),
            ("style", "72"),
            ("ability", "600"),
            ("drift", "100"),
        ):
            sentence = getattr(verdicts, name).sentence
            assert re.search(r"95 % interval [+-]\d+\.\d+ to [+-]\d+\.\d+", sentence), sentence
            assert re.search(rf"\b{count}\b", sentence), sentence


def test_what_was_not_measured_is_said_to_be_unmeasured():
    verdicts = decide(Learned(), Forgot(), SETTINGS)
    states = [getattr(verdicts, name).state for name in ("knowledge", "style", "ability", "drift")]
    assert states == ["unmeasured"] * 4
    assert verdicts.summary == (
        "Learned nothing that can be shown. Forgetting was not fully measured (no probe was run)."
    )


def test_few_groups_decide_nothing_however_narrow_their_interval():
    # One fact asked in 72 phrasings gives an interval of no width: that is no evidence.
    learned = Learned(
        heldout_loss=changed(STYLE, groups=1, ci95=(-2.97, -2.97)),
        exact=changed(EXACT, groups=1, ci95=(0.875, 0.875)),
    )
    forgot = Forgot(
        probes=(PROBE,),
        overall=changed(OVERALL, items=9),
        drift=changed(DRIFT, passages=9),
    )
    verdicts = decide(learned, forgot, SETTINGS)
    assert {
        name: (getattr(verdicts, name).state, getattr(verdicts, name).sentence.split(":")[0])
        for name in ("knowledge", "style", "ability", "drift")
    } == {
        "knowledge": ("undecided", "Not measurable with 1 fact (10 are needed)"),
        "style": ("undecided", "Not measurable with answers in 1 group (10 are needed)"),
        "ability": ("undecided", "Not measurable with 9 questions (10 are needed)"),
        "drift": ("undecided", "Not measurable with 9 passages (10 are needed)"),
    }
    few = judge_knowledge(Learned(recognition=changed(RECOGNITION, groups=9)))
    assert few.state == "undecided"


def test_accuracy_that_holds_while_right_answers_grow_unlikely_is_not_called_kept():
    fell = changed(OVERALL, logprob_delta=-0.4, logprob_ci95=(-0.5, -0.3))
    on_piqa = changed(PROBE, logprob_delta=-0.44, logprob_ci95=(-0.56, -0.33))
    verdict = judge_ability(Forgot(probes=(on_piqa,), overall=fell), SETTINGS)
    assert verdict.state == "undecided"
    assert verdict.sentence.startswith("Accuracy held, but the right answers became less likely: ")
    assert verdict.sentence.endswith("; on piqa (-0.440, 200 questions) it fell.")


def test_twelve_questions_without_a_flip_do_not_rule_out_a_loss_of_five_percent():
    still = changed(OVERALL, delta=0.0, ci95=(0.0, 0.0), items=12)
    assert judge_ability(Forgot(probes=(PROBE,), overall=still), SETTINGS).state == "undecided"
    enough = changed(still, items=60)
    assert judge_ability(Forgot(probes=(PROBE,), overall=enough), SETTINGS).state == "kept"


# ---- the summary ----

BAD_DRIFT = changed(DRIFT, delta=0.58, ci95=(0.55, 0.61))
BAD_ABILITY = changed(OVERALL, delta=-0.2, ci95=(-0.25, -0.15))
UNSURE = changed(OVERALL, delta=-0.03, ci95=(-0.09, 0.02))


@pytest.mark.parametrize(
    ("forgot", "words"),
    [
        (
            FORGOT,
            "Nothing that was measured was forgotten beyond the margins (general text +0.02 nats "
            "per token, ",
        ),
        (
            changed(FORGOT, drift=BAD_DRIFT),
            "Something was forgotten (general text +0.58 nats per token, ability -1.0 points).",
        ),
        (
            changed(FORGOT, overall=BAD_ABILITY),
            "Something was forgotten (general text +0.02 nats per token, ability -20.0 points).",
        ),
        (changed(FORGOT, overall=UNSURE), "Whether anything was forgotten is undecided (general "),
        (changed(FORGOT, drift=None), "Forgetting was not fully measured (ability -1.0 points)."),
        (
            changed(FORGOT, overall=None),
            "Forgetting was not fully measured (general text +0.02 nats per token).",
        ),
    ],
)
def test_nothing_forgotten_needs_both_drift_and_ability(forgot, words):
    assert words in decide(LEARNED, forgot, SETTINGS).summary


@pytest.mark.parametrize(
    ("learned", "words"),
    [
        (LEARNED, "Learned 88% of what was asked in unseen phrasings. "),
        (
            changed(LEARNED, exact=changed(EXACT, after=0.01, ci95=(0.0, 0.02))),
            "Learned no facts that can be shown (1% exact). ",
        ),
        (Learned(recognition=RECOGNITION), "Learned: recognition rose to 70%. "),
        (
            Learned(heldout_loss=STYLE, recognition=changed(RECOGNITION, ci95=(-0.1, 0.2))),
            "Learned the style (-2.97 nats per token), no knowledge shown. ",
        ),
        (
            Learned(heldout_loss=changed(STYLE, ci95=(-0.1, 0.1))),
            "Learned nothing that can be shown. ",
        ),
    ],
)
def test_the_summary_claims_no_more_than_the_verdicts(learned, words):
    assert decide(learned, FORGOT, SETTINGS).summary.startswith(words)
