"""Forgetting: per-item scores to tested changes, flips to read, halves; and how often it errs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from sftkit.adapter import adapter_off, adapter_scaled, attach_adapter
from sftkit.evidence.choice import ChoiceScore
from sftkit.evidence.exam import make_exam, make_trial
from sftkit.evidence.forgetting import (
    ForgettingScores,
    ForgettingTest,
    compare_forgetting,
    find_flips,
    half_of,
    make_forgetting_test,
    score_forgetting,
)
from sftkit.evidence.perplexity import TokenLoss
from sftkit.evidence.shares import detectable_share
from sftkit.evidence.statistics import detectable_difference
from sftkit.evidence.verdicts import judge_ability, judge_drift
from sftkit.evidence_records import Flip
from sftkit.records import ChoiceItem, Forgot
from sftkit.settings import AdapterSettings, DataSettings, EvaluateSettings
from tests.conftest import make_model, make_tokenizer

SETTINGS = EvaluateSettings(resamples=400)
TOKENIZER = make_tokenizer()
OPTIONS = ("red", "green")


def scored(right: bool, logprob: float = -2.0) -> ChoiceScore:
    """Score a question whose first of two options is right, ten characters and one token each."""
    other = logprob - 1 if right else logprob + 1
    return ChoiceScore(logprobs=(logprob, other), tokens=(1, 1), characters=(10, 10))


def make_test(names: list[str]) -> ForgettingTest:
    items = [
        ChoiceItem(question=f"{n} {i}?", options=OPTIONS, answer=0) for i, n in enumerate(names)
    ]
    return ForgettingTest(names=tuple(names), items=tuple(items), prompts=(), passages=())


def compared(
    names: list[str], before: list[ChoiceScore], after: list[ChoiceScore], **settings: Any
) -> Forgot:
    return compare_forgetting(
        make_test(names),
        ForgettingScores(choices=tuple(before), passages=()),
        ForgettingScores(choices=tuple(after), passages=()),
        dataclasses.replace(SETTINGS, **settings),
    )


# ---- tests and flips ----


def test_each_probe_is_tested_and_corrected_for_the_number_of_probes():
    # On "a" eight of twelve turn wrong: 2/2^8; twice that over two probes. On "b" nothing moves.
    names = ["a"] * 12 + ["b"] * 12
    before = [scored(True)] * 24
    after = [scored(False)] * 8 + [scored(True)] * 16
    first, second = compared(names, before, after).probes
    assert first.p_value == pytest.approx(2 * 2 / 2**8)
    assert second.p_value == 1.0
    assert (first.flipped_to_wrong, first.flipped_to_right) == (8, 0)
    assert (first.logprob_p_value, second.logprob_p_value) == (1.0, 1.0)


def test_log_probabilities_are_tested_by_the_signs_of_their_changes():
    names = ["a"] * 10
    before = [scored(True, -2.0)] * 10
    after = [scored(True, -2.0 - 0.1 * (place + 1)) for place in range(10)]
    (probe,) = compared(names, before, after).probes
    assert (probe.p_value, probe.logprob_p_value) == (1.0, 2 / 2**10)


def test_the_first_flips_of_each_probe_are_kept_in_both_directions():
    names = ["a"] * 4 + ["b"]
    before = [scored(True), scored(True), scored(False), scored(True), scored(False)]
    after = [scored(False), scored(True), scored(True), scored(False), scored(True)]
    worse = {"right": "red", "base": "red", "tuned": "green"}
    better = {"right": "red", "base": "green", "tuned": "red"}
    assert compared(names, before, after).flips == (
        Flip(probe="a", question="a 0?", **worse),
        Flip(probe="a", question="a 2?", **better),
        Flip(probe="a", question="a 3?", **worse),
        Flip(probe="b", question="b 4?", **better),
    )
    shown = find_flips(
        make_test(names),
        ForgettingScores(choices=tuple(before), passages=()),
        ForgettingScores(choices=tuple(after), passages=()),
        at_most=1,
    )
    assert [flip.question for flip in shown] == ["a 0?", "b 4?"]


def test_twenty_flips_of_each_probe_are_kept():
    names = ["a"] * 30 + ["b"] * 30
    flips = compared(names, [scored(True)] * 60, [scored(False)] * 60).flips
    assert [flip.probe for flip in flips] == ["a"] * 20 + ["b"] * 20


# ---- halves ----

QUESTIONS = [
    ChoiceItem(question=f"What is {number}?", options=OPTIONS, answer=0) for number in range(200)
]


def test_a_question_stays_in_its_half_whatever_its_place_options_and_spelling():
    # sha256 of "d" begins with an even byte, of "e" with an odd one.
    assert (half_of("d"), half_of("e")) == ("report", "choose")
    assert half_of(" what IS\n1? ") == half_of("What is 1?")
    chosen = sum(half_of(item.question) == "choose" for item in QUESTIONS)
    assert 80 <= chosen <= 120


def test_the_halves_share_no_question_and_miss_none():
    made = {
        half: make_forgetting_test({"a": QUESTIONS}, [], TOKENIZER, SETTINGS, half=half)
        for half in ("all", "choose", "report")
    }
    choose, report = (set(made[half].items) for half in ("choose", "report"))
    assert choose & report == set()
    assert choose | report == set(made["all"].items) == set(QUESTIONS)
    assert {half: test.half for half, test in made.items()} == {
        "all": "all", "choose": "choose", "report": "report",
    }  # fmt: skip


def test_what_chooses_asks_the_choosing_half_and_the_report_says_which_it_asked():
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "x"}],
         "group": str(i)}
        for i in range(4)
    ]  # fmt: skip
    splits: Any = SimpleNamespace(validation=rows, test=rows, control=[])
    settings = dataclasses.replace(SETTINGS, drift_passages=0, knowledge="none")
    data, probes = DataSettings(source="x"), {"a": QUESTIONS}
    asked = {"probes": probes, "tokenizer": TOKENIZER, "settings": settings, "data": data}
    trial = make_trial(splits, passages=0, **asked)
    report = make_exam(splits, half="report", **asked)
    assert {half_of(item.question) for item in trial.forgetting.items} == {"choose"}
    assert {half_of(item.question) for item in report.forgetting.items} == {"report"}
    scores = {
        test.half: ForgettingScores(choices=(scored(True),) * len(test.items), passages=())
        for test in (trial.forgetting, report.forgetting)
    }
    for test in (trial.forgetting, report.forgetting):
        forgot = compare_forgetting(test, scores[test.half], scores[test.half], settings)
        assert forgot.half == test.half
    assert make_exam(splits, **asked).forgetting.half == "all"


# ---- exactly nothing ----


def test_a_zero_scaled_adapter_changes_nothing_at_all():
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), AdapterSettings(r=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    passages = [f"{word} goes on and on, as words do. " * 3 for word in ("One", "Two", "Three")]
    test = make_forgetting_test(
        {"a": QUESTIONS[:12], "b": QUESTIONS[12:24]}, passages, TOKENIZER, SETTINGS
    )
    with adapter_off(model):
        before = score_forgetting(model, test)
    with adapter_scaled(model, 0.0):
        after = score_forgetting(model, test)
    forgot = compare_forgetting(test, before, after, SETTINGS)
    none = (0.0, (0.0, 0.0))
    assert forgot.overall is not None
    assert forgot.drift is not None
    assert (forgot.overall.delta, forgot.overall.ci95) == none
    assert (forgot.overall.logprob_delta, forgot.overall.logprob_ci95) == none
    assert (forgot.drift.delta, forgot.drift.ci95) == none
    for probe in forgot.probes:
        assert (probe.delta, probe.ci95) == (probe.logprob_delta, probe.logprob_ci95) == none
        assert (probe.p_value, probe.logprob_p_value) == (1.0, 1.0)
    assert forgot.flips == ()
    assert score_forgetting(model, test) != before  # the adapter does something when it is on


# ---- how often it errs, on the deltas of a real adapter ----


class Measured:
    """What each question and passage did in a real run; see the file for which."""

    def __init__(self) -> None:
        path = Path(__file__).with_name("forgetting_deltas.json")
        kept = json.loads(path.read_text(encoding="utf-8"))
        self.names = [row["probe"] for row in kept["questions"]]
        self.right = np.array([row["right"] for row in kept["questions"]], dtype=bool)
        self.logprob = np.array([row["logprob"] for row in kept["questions"]])
        self.tokens = [row["tokens"] for row in kept["passages"]]
        self.loss = np.array([row["loss"] for row in kept["passages"]])

    def null(self, random: np.random.Generator, *, drop: float = 0.0, rise: float = 0.0) -> Forgot:
        """Swap base and tuned of every item at random; then plant a loss, if one is given.

        Args:
            random: Where chance comes from.
            drop: Share of all questions that turn from right to wrong besides.
            rise: Added to the loss of every passage, nats per token.
        """
        swap = random.integers(0, 2, size=len(self.right), dtype=bool)
        was = np.where(swap, self.right[:, 1], self.right[:, 0])
        now = np.where(swap, self.right[:, 0], self.right[:, 1])
        moved = np.where(swap, -self.logprob, self.logprob)
        able = np.flatnonzero(was & now)
        planted = random.random(len(able)) < drop * len(was) / len(able)
        now[able[planted]] = False
        change = self.loss * (random.integers(0, 2, size=len(self.loss)) * 2 - 1) + rise
        losses = list(zip(self.tokens, change, strict=True))
        return compare_forgetting(
            make_test(self.names),
            ForgettingScores(
                choices=tuple(scored(bool(r)) for r in was),
                passages=tuple(TokenLoss(nats=5.0 * n, tokens=n) for n, _ in losses),
            ),
            ForgettingScores(
                choices=tuple(scored(bool(r), -2.0 + m) for r, m in zip(now, moved, strict=True)),
                passages=tuple(TokenLoss(nats=(5.0 + c) * n, tokens=n) for n, c in losses),
            ),
            SETTINGS,
        )


def lost(forgot: Forgot) -> tuple[bool, bool]:
    """Say whether ability and drift are called lost."""
    return (
        judge_ability(forgot, SETTINGS).state == "lost",
        judge_drift(forgot, SETTINGS).state == "lost",
    )


AT_MOST_5_OF_100 = binom.ppf(0.99, 400, 0.05)  # of 400 draws; a true rate of 5 % stays under it
AT_LEAST_80_OF_100 = binom.ppf(0.01, 400, 0.80)


@pytest.mark.faults
def test_a_real_adapters_deltas_with_random_signs_are_seldom_called_forgotten():
    measured, random = Measured(), np.random.default_rng(0)
    false = [any(lost(measured.null(random))) for _ in range(400)]
    assert sum(false) <= AT_MOST_5_OF_100


@pytest.mark.faults
def test_a_drift_of_exactly_the_margin_is_seldom_called_a_loss():
    measured, random = Measured(), np.random.default_rng(1)
    false = [lost(measured.null(random, rise=SETTINGS.drift_margin))[1] for _ in range(400)]
    assert sum(false) <= AT_MOST_5_OF_100


@pytest.mark.faults
def test_the_loss_that_a_sentence_says_can_be_seen_is_seen_four_times_in_five():
    measured, random = Measured(), np.random.default_rng(2)
    flips = float((measured.right[:, 0] != measured.right[:, 1]).mean())
    drop = detectable_share(len(measured.right), discordance=flips)
    still = measured.null(random)
    assert drop is not None
    assert still.drift is not None
    rise = SETTINGS.drift_margin + detectable_difference(
        still.drift.ci95, groups=still.drift.passages
    )
    print(f"planted: a drop of {drop:.1%} of accuracy, a rise of {rise:.3f} nats per token")
    seen = np.array([lost(measured.null(random, drop=drop, rise=rise)) for _ in range(400)])
    assert seen[:, 0].sum() >= AT_LEAST_80_OF_100
    assert seen[:, 1].sum() >= AT_LEAST_80_OF_100
