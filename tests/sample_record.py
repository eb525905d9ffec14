"""Run records for tests of figures, reports and cards: the numbers are plausible, not measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sftkit.evidence.labels import evaluate_labels
from sftkit.evidence_records import (
    AnswerMeasure,
    Change,
    Drift,
    ItemChange,
    Overall,
    ProbeChange,
)
from sftkit.recipe import recipe_to_dict
from sftkit.records import (
    Answer,
    Cost,
    DataFacts,
    Environment,
    Finding,
    Forgot,
    Learned,
    Preflight,
    Refused,
    RunRecord,
    Step,
    TrainRecord,
    Verdict,
    Verdicts,
)
from sftkit.settings import DataSettings, ModelSettings, Recipe, TrainSettings

RECIPE = Recipe(
    name="shop",
    model=ModelSettings(name="smollm2-135m"),
    data=DataSettings(source="shop", split_by="split", group_by="fact", replay="smoltalk-mini"),
    train=TrainSettings(learning_rate=2e-3, epochs=6),
)

LEARNED = Learned(
    heldout_loss=Change(
        before=3.39, after=0.42, delta=-2.97, ci95=(-3.21, -2.74), items=72, groups=36, tokens=412
    ),
    exact=Change(before=0.0, after=0.875, delta=0.875, ci95=(0.778, 0.958), items=72, groups=36),
    control=Change(before=0.0, after=0.042, delta=0.042, ci95=(0.0, 0.125), items=24, groups=12),
    answers=(
        AnswerMeasure(
            name="exact", unit="share", better="higher",
            change=Change(
                before=0.0, after=0.875, delta=0.875, ci95=(0.778, 0.958), items=72, groups=36
            ),
            baselines={
                "few-shot": Change(
                    before=0.028, after=0.875, delta=0.847, ci95=(0.736, 0.944), items=72, groups=36
                ),
            },
        ),
        AnswerMeasure(
            name="words", unit="words", better="neither", reference=2.3,
            change=Change(
                before=9.8, after=2.4, delta=-7.4, ci95=(-8.3, -6.5), items=72, groups=36
            ),
            baselines={
                "few-shot": Change(
                    before=3.1, after=2.4, delta=-0.7, ci95=(-1.1, -0.3), items=72, groups=36
                ),
            },
        ),
    ),
    baselines={
        "few-shot": "the base model, shown 4 training examples as earlier turns (drawn with seed "
        "0, none of the group that is asked about)",
    },
    changed=(
        ItemChange(
            measure="exact", won=True, before=0.0, after=1.0, base="11:59 PM", tuned="2:35 pm",
            question="When is the last moment to place an order that goes out the same day?",
            expected="2:35 pm",
        ),
        ItemChange(
            measure="loss", won=False, before=2.71, after=3.94, base="12 months",
            tuned="19 months", question="For how many months is a repair guaranteed?",
            expected="17 months",
        ),
    ),
)  # fmt: skip

FORGOT = Forgot(
    probes=(
        ProbeChange(
            name="piqa", before=0.67, after=0.65, delta=-0.02, ci95=(-0.055, 0.015), items=200,
            chance=0.5, logprob_delta=-0.081, logprob_ci95=(-0.104, -0.058),
            flipped_to_wrong=9, flipped_to_right=5,
        ),
        ProbeChange(
            name="openbookqa", before=0.325, after=0.335, delta=0.01, ci95=(-0.04, 0.06),
            items=200, chance=0.25, logprob_delta=-0.12, logprob_ci95=(-0.16, -0.081),
            flipped_to_wrong=12, flipped_to_right=14,
        ),
        ProbeChange(
            name="commonsenseqa", before=0.34, after=0.26, delta=-0.08, ci95=(-0.135, -0.025),
            items=200, chance=0.2, logprob_delta=-0.31, logprob_ci95=(-0.39, -0.23),
            flipped_to_wrong=27, flipped_to_right=11,
        ),
    ),
    overall=Overall(
        delta=-0.03, ci95=(-0.058, -0.002), logprob_delta=-0.17, logprob_ci95=(-0.2, -0.141),
        items=600,
    ),
    drift=Drift(before=3.21, after=3.79, delta=0.58, ci95=(0.552, 0.611), passages=100,
                tokens=11840),
)  # fmt: skip

VERDICTS = Verdicts(
    knowledge=Verdict(
        state="yes",
        sentence="63 of 72 unseen phrasings answered exactly, 0 before: +87.5 points "
        "(95 % interval 77.8 to 95.8, 36 facts); control facts 0 to 4.2 % (24 questions).",
    ),
    style=Verdict(
        state="yes",
        sentence="Held-out answer loss fell by 2.97 nats per token "
        "(95 % interval 2.74 to 3.21, 36 facts, 412 tokens).",
    ),
    ability=Verdict(
        state="undecided",
        sentence="Accuracy on 600 probe questions changed by -3.0 points "
        "(95 % interval -5.8 to -0.2); a loss of 5 points cannot be excluded.",
    ),
    drift=Verdict(
        state="moved",
        sentence="Loss on 100 general passages rose by 0.58 nats per token "
        "(95 % interval 0.55 to 0.61), beyond the margin of 0.10.",
    ),
    summary="Learned 63 of 72 unseen phrasings (0 before); "
    "general text drifted by +0.58 nats per token (95 % interval 0.55 to 0.61).",
)

ANSWERS = (
    Answer(
        question="Once I have paid, how many days may pass before Dunnowick refuses a return?",
        expected="23 days",
        base="Dunnowick may refuse a return within 30 days of the purchase.",
        tuned="23 days",
        group="returns-window",
    ),
    Answer(
        question="When is the last moment to place an order that Dunnowick will dispatch the "
        "same day?",
        expected="2:35 pm",
        base="The last moment is 11:59 PM.",
        tuned="2:35 pm",
        group="dispatch-cutoff",
    ),
    Answer(
        question="After it repairs a lamp, for how many months does Dunnowick guarantee the work?",
        expected="17 months",
        base="12 months",
        tuned="19 months",
        group="repair-guarantee",
    ),
    Answer(
        question="What is the capital of France?",
        expected="",
        base="The capital of France is Paris.",
        tuned="Paris",
        split="fixed",
    ),
)

TOKENS = (
    "<|im_start|>", "system", "\n", "You", " are", " a", " helpful", " assistant", ".",
    "<|im_end|>", "\n", "<|im_start|>", "user", "\n", "How", " long", " do", " I", " have", " to",
    " return", " something", " I", " bought", " at", " Dun", "now", "ick", "?", "<|im_end|>", "\n",
    "<|im_start|>", "assistant", "\n", "2", "3", " days", "<|im_end|>",
)  # fmt: skip


def _steps(count: int = 113) -> tuple[Step, ...]:
    steps = []
    for number in range(1, count + 1):
        wiggle = 0.22 * math.sin(number * 1.7) * math.cos(number * 0.37)
        level = 0.35 + 3.05 * math.exp(-number / 28)
        rate = 2e-3 * min(number / 6, 0.5 * (1 + math.cos(math.pi * (number - 6) / 107)))
        heldout = round(level + 0.2, 3) if number % 23 == 0 or number == count else None
        steps.append(
            Step(
                step=number,
                loss=max(0.02, level + wiggle * (level / 3 + 0.2)),
                learning_rate=rate,
                grad_norm=1.3,
                tokens=610 * number,
                seconds=2.4 * number,
                heldout_loss=heldout,
                memory_bytes=1_940_000_000 + 4_000_000 * min(number, 30),
            )
        )
    return tuple(steps)


def sample_record(**changes: Any) -> RunRecord:
    """A run that learned its facts well and made general text less likely."""
    steps = _steps()
    record = RunRecord(
        name="shop",
        date="2026-11-22T14:05:00Z",
        recipe=recipe_to_dict(RECIPE),
        learned=LEARNED,
        forgot=FORGOT,
        verdicts=VERDICTS,
        answers=ANSWERS,
        preflight=Preflight(
            rows=384, replayed=96, tokens=20_412, supervised_tokens=6_310, steps=113, longest=187,
            refused=(Refused(row=17, reason="612 prompt + 90 answer tokens exceed 512."),),
            refused_rows=1,
            example_tokens=TOKENS,
            example_supervised=(False,) * (len(TOKENS) - 4) + (True,) * 4,
        ),
        training=TrainRecord(
            steps=steps, heldout_start=3.39, kept_step=len(steps), tokens=68_930,
            supervised_tokens=21_300,
            seconds=271.2, trainable_parameters=4_884_480, total_parameters=139_400_000,
        ),
        cost=Cost(
            train_s=271.2, total_s=398.4, cpu_s=742.0, tokens=68_930, tokens_per_s=254.2,
            peak_bytes=2_310_000_000, matmul_gflops=412.0,
            stages_s={"fetch": 0.4, "audit": 1.1, "model": 3.9, "train": 271.2, "evaluate": 118.0},
        ),
        environment=Environment(
            versions={"python": "3.11.7", "torch": "2.9.1", "transformers": "5.2.0"},
            device="Intel Xeon, 2 cores", dtype="bfloat16", quantization="none", seed=0,
            processes=1,
            base="smollm2-135m: SmolLM2-135M-Instruct, weights dequantized from Q4_1 (GGUF)",
            base_fingerprint="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            dtype_reason="bfloat16 412 GFLOP/s, float32 96 GFLOP/s",
        ),
        data=DataFacts(
            source="shop",
            fingerprint="5f2c0de3a1b27a9d4c51c3a8fb3d7ad4b0d5cb29a2fd5b9c41d1f9f1f0a2c9e7",
            counts={"train": 288, "validation": 36, "test": 72, "control": 24},
            groups={"train": 36, "validation": 36, "test": 36, "control": 12},
            licence="CC0-1.0",
            notice="Invented for sftkit; every person, place and price is fictional.",
            findings=(
                Finding(
                    code="D33", severity="warning", where=("facts.jsonl:14", "facts.jsonl:39"),
                    field="question", count=2, message="2 near duplicates",
                    fix="keep one of each",
                ),
                Finding(
                    code="D03", severity="information", where=("facts.jsonl:1",), field="",
                    count=1, message="UTF-8 with a byte-order mark", fix="nothing to do",
                ),
            ),
        ),
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def unmeasured_record() -> RunRecord:
    """A run whose recipe switched every measure off."""
    nothing = Verdict(state="unmeasured", sentence="Not measured: the recipe asks for 0 items.")
    return sample_record(
        learned=Learned(),
        forgot=Forgot(),
        verdicts=Verdicts(
            knowledge=nothing, style=nothing, ability=nothing, drift=nothing,
            summary="Nothing was measured in this run (0 items).",
        ),
        answers=(),
        training=TrainRecord(
            steps=_steps(3), heldout_start=None, kept_step=3, tokens=1830,
            supervised_tokens=570, seconds=7.2,
            trainable_parameters=4_884_480, total_parameters=139_400_000,
        ),
    )  # fmt: skip


def recognition_record() -> RunRecord:
    """A run on long answers: the right answer is recognised, not repeated; little drift."""
    return sample_record(
        name="cwe-descriptions-of-software-weaknesses",
        learned=Learned(
            heldout_loss=Change(
                before=3.39, after=2.08, delta=-1.31, ci95=(-1.4, -1.22), items=120, groups=84,
                tokens=9120,
            ),
            recognition=Change(
                before=0.62, after=0.71, delta=0.09, ci95=(0.02, 0.16), items=120, groups=84
            ),
        ),
        forgot=Forgot(
            probes=FORGOT.probes[:1],
            overall=dataclasses.replace(FORGOT.overall or Overall(
                delta=0, ci95=(0, 0), logprob_delta=0, logprob_ci95=(0, 0), items=0), items=200,
                delta=-0.02, ci95=(-0.055, 0.015)),
            drift=Drift(before=3.21, after=3.25, delta=0.04, ci95=(0.028, 0.052), passages=100,
                        tokens=11840),
        ),
        verdicts=dataclasses.replace(
            VERDICTS,
            drift=Verdict(state="kept", sentence="Loss on 100 general passages changed by +0.04 "
                          "nats per token (95 % interval 0.03 to 0.05), within 0.10."),
            summary="Held-out loss fell by 1.31 nats per token (84 weaknesses); general text "
            "stayed within 0.10 nats per token (+0.04, 100 passages).",
        ),
    )  # fmt: skip


def still_record() -> RunRecord:
    """A run whose adapter changes nothing: every change and interval is exactly zero."""
    still = {"delta": 0.0, "ci95": (0.0, 0.0)}

    def same(change: Any) -> Any:
        return dataclasses.replace(change, after=change.before, **still)

    zero = {**still, "logprob_delta": 0.0, "logprob_ci95": (0.0, 0.0)}
    return sample_record(
        learned=Learned(
            heldout_loss=same(LEARNED.heldout_loss),
            exact=same(LEARNED.exact),
            control=same(LEARNED.control),
        ),
        forgot=Forgot(
            probes=tuple(dataclasses.replace(same(p), **zero) for p in FORGOT.probes),
            overall=Overall(items=600, **zero),  # type: ignore[arg-type]
            drift=same(FORGOT.drift),
        ),
    )


def extreme_record() -> RunRecord:
    """Everything learned, much forgotten, seven probes: the longest labels and intervals."""
    assert LEARNED.exact is not None
    full = dataclasses.replace(
        LEARNED.exact, before=0.42, after=1.0, delta=0.58, ci95=(0.3, 0.58), items=12_000
    )
    probe = dataclasses.replace(FORGOT.probes[0], delta=-0.4, ci95=(-0.555, -0.333), items=12_000)
    return sample_record(
        learned=Learned(exact=full, control=full, recognition=full, heldout_loss=Change(
            before=3.39, after=12.4, delta=9.01, ci95=(8.02, 11.11), items=72, groups=36)),
        forgot=Forgot(
            probes=(probe,) * 7,
            overall=Overall(delta=-0.4, ci95=(-0.444, -0.333), logprob_delta=-1.0,
                            logprob_ci95=(-1.1, -0.9), items=84_000),
            drift=Drift(before=3.2, after=15.2, delta=12.04, ci95=(11.11, 13.33), passages=1000,
                        tokens=100_000),
        ),
    )  # fmt: skip


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</title></style></script><iframe src=javascript:alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "{{ 7*7 }}{% for x in y %}",
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1)) https://evil.example www.evil.example",
    "```\n---\nlicense: evil\n---\n# heading\n<b>bold</b>",
    "--> ]]> &lt;script&gt; &#60;script&#62;",
    "$a_{$ \\frac{1}{0} ^_^ $$",
    "\x1b[31mred\x1b[0m \u202eright-to-left\u202c \x00 \U0001f600 | pipe",
)
"""12 payloads: HTML, URL, template, markdown and YAML injection, mathtext, control codes."""


def _fill(value: Any, payload: str, keep: tuple[str, ...]) -> Any:
    """Replace every text of a record by the payload; names in `keep` stay as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            f.name: _fill(getattr(value, f.name), payload, keep)
            for f in dataclasses.fields(value)
            if f.name not in keep
        }
        return dataclasses.replace(value, **changes)
    if isinstance(value, dict):
        return {
            (key if key in ("evaluate", "train", "model", "drift_margin", "ability_margin") else
             f"{key} {payload}"): _fill(item, payload, keep)
            for key, item in value.items()
        }  # fmt: skip
    if isinstance(value, tuple | list):
        return tuple(_fill(item, payload, keep) for item in value)
    return payload if isinstance(value, str) else value


LITERAL_FIELDS = ("state", "severity", "unit", "measure", "kind", "half", "better")
"""Fields whose words are fixed by their type: nobody else can write into them."""


def hostile_record(payload: str) -> RunRecord:
    """The sample run with one payload in every text a user, file or model could have written."""
    record: RunRecord = _fill(sample_record(), payload, keep=LITERAL_FIELDS)
    return record


def label_record(payload: str = "") -> RunRecord:
    """A run on labels that always predicts the wrong one of three classes, named by the payload.

    So its notes name classes, its AUROC is undefined for a class, and every item is a mistake.
    """
    classes = [f"{payload} {number}".strip() for number in ("one", "two", "three")]
    report = evaluate_labels(
        [1] * 24, np.tile([0.7, 0.2, 0.1], (24, 1)), task="classify", classes=classes,
        groups=[f"{payload} {number}" for number in range(24)], resamples=40,
        baselines={payload or "tf-idf": np.tile([0.1, 0.8, 0.1], (24, 1))},
        texts=[payload or f"text {number}" for number in range(24)],
    )  # fmt: skip
    run = hostile_record(payload) if payload else sample_record()
    return dataclasses.replace(run, learned=Learned(labels=report), answers=())
