"""What was forgotten: ability (multiple choice) and drift (loss on general text), always both.

Accuracy alone cannot see forgetting: a choice between four options stays right long after the
model's distribution has moved. Drift is continuous and sees it; ability says whether it matters.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sftkit.evidence.choice import ChoiceScore, Prompt, encode_choices, score_choices
from sftkit.evidence.perplexity import TokenLoss, encode_passages, score_examples
from sftkit.evidence.shares import holm, mcnemar_exact
from sftkit.evidence.statistics import paired_change, paired_interval, sign_flip_p_value
from sftkit.evidence_records import Drift, Flip, Overall, ProbeChange
from sftkit.records import ChoiceItem, Encoded, Forgot
from sftkit.settings import EvaluateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Half = Literal["all", "choose", "report"]
FLIPS_SHOWN = 20
"""Flipped questions kept of each probe, to read."""


@dataclass(frozen=True, kw_only=True)
class ForgettingTest:
    """Everything asked about what might be forgotten, ready as tokens.

    Attributes:
        names: Name of the probe each question belongs to, shape (N,).
        items: The questions.
        prompts: The questions as token ids.
        passages: General passages as token ids.
        half: Which half of the questions it holds.
    """

    names: tuple[str, ...]
    items: tuple[ChoiceItem, ...]
    prompts: tuple[Prompt, ...]
    passages: tuple[Encoded, ...]
    half: Half = "all"


@dataclass(frozen=True, kw_only=True)
class ForgettingScores:
    """One model's results on a forgetting test."""

    choices: tuple[ChoiceScore, ...]
    passages: tuple[TokenLoss, ...]


def make_forgetting_test(
    probes: Mapping[str, Sequence[ChoiceItem]],
    passages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    half: Half = "all",
) -> ForgettingTest:
    """Prepare the questions. The same test is then put to base and tuned model.

    Args:
        probes: Questions per probe name.
        passages: General text, none of it trained on.
        tokenizer: The model's tokenizer.
        settings: How long a passage is scored.
        half: Where a probe chooses something (a strength, a step to stop at), ask by "choose" then
            and by "report" for the report. Passages are taken as given.
    """
    named = [
        (name, item)
        for name, items in probes.items()
        for item in items
        if half in ("all", half_of(item.question))
    ]
    return ForgettingTest(
        names=tuple(name for name, _ in named),
        items=tuple(item for _, item in named),
        prompts=encode_choices([item for _, item in named], tokenizer),
        passages=encode_passages(passages, tokenizer, max_tokens=settings.passage_tokens),
        half=half,
    )


def half_of(text: str) -> Literal["choose", "report"]:
    """Say which half an item belongs to, by a hash of its words.

    Neither its place nor its options, spelling in capitals or spacing matter, so the halves stay
    apart whatever else is asked, and a question asked twice is in one half.
    """
    plain = " ".join(text.casefold().split())
    return "choose" if hashlib.sha256(plain.encode()).digest()[0] % 2 else "report"


def score_forgetting(model: Any, test: ForgettingTest) -> ForgettingScores:
    """Put the test to one model."""
    return ForgettingScores(
        choices=score_choices(model, test.prompts) if test.prompts else (),
        passages=score_examples(model, test.passages) if test.passages else (),
    )


def compare_forgetting(
    test: ForgettingTest,
    before: ForgettingScores,
    after: ForgettingScores,
    settings: EvaluateSettings,
) -> Forgot:
    """Compare base and tuned model, item by item; p-values are corrected over all probes."""
    probes = _corrected(
        [_probe_change(name, test, before, after, settings) for name in dict.fromkeys(test.names)]
    )
    return Forgot(
        probes=probes,
        flips=find_flips(test, before, after),
        half=test.half,
        overall=_overall(test, before, after, settings) if probes else None,
        drift=_drift(before, after, settings) if before.passages else None,
    )


def find_flips(
    test: ForgettingTest,
    before: ForgettingScores,
    after: ForgettingScores,
    *,
    at_most: int = FLIPS_SHOWN,
) -> tuple[Flip, ...]:
    """Give the questions whose answer turned from right to wrong or back, the first of each probe.

    Args:
        test: The questions.
        before: Scores of the base model.
        after: Scores of the tuned model.
        at_most: So many of each probe.
    """
    kept: dict[str, list[Flip]] = {}
    scores = zip(test.names, test.items, before.choices, after.choices, strict=True)
    for name, item, first, second in scores:
        found = kept.setdefault(name, [])
        if (first.picked == item.answer) != (second.picked == item.answer) and len(found) < at_most:
            found.append(
                Flip(
                    probe=name,
                    question=item.question,
                    right=item.options[item.answer],
                    base=item.options[first.picked],
                    tuned=item.options[second.picked],
                )
            )
    return tuple(flip for found in kept.values() for flip in found)


def _corrected(probes: Sequence[ProbeChange]) -> tuple[ProbeChange, ...]:
    """Correct each of the two tests over the probes it was made on."""
    flips = holm([probe.p_value for probe in probes if probe.p_value is not None])
    logprobs = holm([p.logprob_p_value for p in probes if p.logprob_p_value is not None])
    return tuple(
        dataclasses.replace(probe, p_value=one, logprob_p_value=other)
        for probe, one, other in zip(probes, flips, logprobs, strict=True)
    )


def accuracy(items: Sequence[ChoiceItem], scores: Sequence[ChoiceScore]) -> float:
    """Return the share of questions whose most likely option is the right one."""
    return sum(_right(items, scores)) / len(items)


def _right(items: Sequence[ChoiceItem], scores: Sequence[ChoiceScore]) -> list[float]:
    return [float(s.picked == item.answer) for item, s in zip(items, scores, strict=True)]


def _gold(items: Sequence[ChoiceItem], scores: Sequence[ChoiceScore]) -> list[float]:
    return [s.per_token(item.answer) for item, s in zip(items, scores, strict=True)]


def _probe_change(
    name: str,
    test: ForgettingTest,
    before: ForgettingScores,
    after: ForgettingScores,
    settings: EvaluateSettings,
) -> ProbeChange:
    places = [place for place, probe in enumerate(test.names) if probe == name]
    items = [test.items[place] for place in places]
    first = [before.choices[place] for place in places]
    second = [after.choices[place] for place in places]
    questions = [str(place) for place in places]
    was, now = _right(items, first), _right(items, second)
    right = paired_change(was, now, groups=questions, resamples=settings.resamples)
    had, has = _gold(items, first), _gold(items, second)
    gold = paired_change(had, has, groups=questions, resamples=settings.resamples)
    flips = list(zip(was, now, strict=True))
    to_wrong, to_right = flips.count((1.0, 0.0)), flips.count((0.0, 1.0))
    return ProbeChange(
        name=name,
        before=right.before,
        after=right.after,
        delta=right.delta,
        ci95=right.ci95,
        items=len(items),
        chance=sum(1 / len(item.options) for item in items) / len(items),
        logprob_delta=gold.delta,
        logprob_ci95=gold.ci95,
        flipped_to_wrong=to_wrong,
        flipped_to_right=to_right,
        p_value=mcnemar_exact(to_wrong, to_right),
        logprob_p_value=sign_flip_p_value(
            [b - a for a, b in zip(had, has, strict=True)], groups=questions
        ),
    )


def _overall(
    test: ForgettingTest,
    before: ForgettingScores,
    after: ForgettingScores,
    settings: EvaluateSettings,
) -> Overall:
    questions = [str(place) for place in range(len(test.items))]
    was, now = _right(test.items, before.choices), _right(test.items, after.choices)
    had, has = _gold(test.items, before.choices), _gold(test.items, after.choices)
    right = paired_interval(
        [b - a for a, b in zip(was, now, strict=True)],
        groups=questions,
        strata=test.names,
        resamples=settings.resamples,
    )
    gold = paired_interval(
        [b - a for a, b in zip(had, has, strict=True)],
        groups=questions,
        strata=test.names,
        resamples=settings.resamples,
    )
    return Overall(
        delta=right.delta,
        ci95=right.ci95,
        logprob_delta=gold.delta,
        logprob_ci95=gold.ci95,
        items=len(test.items),
    )


def _drift(before: ForgettingScores, after: ForgettingScores, settings: EvaluateSettings) -> Drift:
    change = paired_change(
        [score.mean for score in before.passages],
        [score.mean for score in after.passages],
        groups=[str(place) for place in range(len(before.passages))],
        weights=[score.tokens for score in before.passages],
        resamples=settings.resamples,
    )
    return Drift(
        before=change.before,
        after=change.after,
        delta=change.delta,
        ci95=change.ci95,
        passages=change.items,
        tokens=change.tokens,
    )
