"""A learning curve: which rows, the same training, the same test, and what two sizes differ by."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from test_plots import drawn_texts, on_axis, title_of  # type: ignore[import-not-found]

from sftkit.chat import encode_rows
from sftkit.errors import AdapterError, RecordError, SettingsError
from sftkit.evidence.generation import Written
from sftkit.evidence.learning import LearningScores, LearningTest, make_learning_test
from sftkit.evidence.perplexity import TokenLoss
from sftkit.evidence.shares import detectable_share
from sftkit.evidence_records import AnswerMeasure, Change
from sftkit.learning_curve import (
    CurveRun,
    CurveScores,
    CurveTest,
    LearningCurve,
    draw_rows,
    measure_curve,
    steps_in_words,
)
from sftkit.panels import alt_text
from sftkit.plots_learning import plot_detectable, plot_learning_curve, plot_rivals
from sftkit.records import Encoded
from sftkit.settings import AdapterSettings, EvaluateSettings, TrainSettings
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
SETTINGS = EvaluateSettings(max_new_tokens=2, probes=(), drift_passages=0)
HOW: dict[str, Any] = {
    "adapter": AdapterSettings(r=4, lora_alpha=8),
    "train": TrainSettings(learning_rate=2e-2, max_tokens_per_batch=400, heldout_evaluations=1),
    "evaluate": SETTINGS,
    "views": 4,
}


def rows(facts, words) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{word} {fact}?"},
                {"role": "assistant", "content": "yn"[fact % 2]},
            ],
            "group": f"fact {fact}",
        }
        for fact in range(facts)
        for word in words
    ]


def encoded(facts, words) -> tuple[Encoded, ...]:
    return encode_rows(rows(facts, words), TOKENIZER, max_tokens=200).examples


@functools.cache
def measured() -> tuple[Any, dict[str, Any], LearningCurve, list[str]]:
    """Measure a curve of two sizes and two seeds; give the base, its weights, curve and notes."""
    base = make_model(vocab_size=len(TOKENIZER))
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    learning = make_learning_test(rows(3, "x"), [], TOKENIZER, SETTINGS, max_tokens=200)
    test = CurveTest(learning=learning, control=encoded(2, "z"))
    notes: list[str] = []
    curve = measure_curve(
        base, TOKENIZER, encoded(3, "abcd"), test, sizes=(2, 1), seeds=(0, 1), note=notes.append,
        **HOW,
    )  # fmt: skip
    return base, weights, curve, notes


def test_every_group_gives_as_many_rows_and_a_smaller_draw_is_part_of_a_larger_one():
    examples = encoded(5, "abcdefgh")
    for seed in (0, 1):
        kept: set[int] = set()
        for size in (1, 2, 4, 8):
            drawn = draw_rows(examples, size=size, seed=seed)
            groups = [example.group for example in drawn]
            assert {group: groups.count(group) for group in groups} == dict.fromkeys(
                sorted({example.group for example in examples}), size
            )
            assert kept <= {example.row for example in drawn}
            kept = {example.row for example in drawn}
    chosen = [[e.row for e in draw_rows(examples, size=2, seed=seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({row % 8 for row in chosen[0]}) > 2  # not the same phrasings of every fact


def test_all_trainings_see_every_group_equally_often_and_leave_the_base_as_it_was():
    base, weights, curve, notes = measured()
    assert [(run.size, run.seed, run.rows) for run in curve.runs] == [
        (1, 0, 3), (1, 1, 3), (2, 0, 6), (2, 1, 6),
    ]  # fmt: skip
    assert (curve.sizes, curve.seeds, curve.rows(2)) == ((1, 2), (0, 1), 6)
    assert [note.partition(":")[0] for note in notes] == [
        "   3 rows, seed 0", "   3 rows, seed 1", "   6 rows, seed 0", "   6 rows, seed 1",
    ]  # fmt: skip
    # 4 views of 3 facts: 4 passes over 3 rows, or 2 over 6; all rows of a pass fit one step.
    assert [run.steps for run in curve.runs] == [4, 4, 2, 2]
    after = base.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_trainings_differ_by_seed_and_by_size_and_from_the_base():
    _, _, curve, _ = measured()
    losses = [tuple(one.nats for one in run.scores.learning.heldout) for run in curve.runs]
    losses.append(tuple(one.nats for one in curve.base.learning.heldout))
    assert len(set(losses)) == 5
    assert all(len(run.scores.control) == 2 for run in curve.runs)


def test_a_training_that_was_done_is_not_done_again_and_a_new_one_repeats_it_to_the_bit():
    base, _, curve, _ = measured()
    one, other = curve.runs[0], curve.runs[2]
    again = measure_curve(
        base, TOKENIZER, encoded(3, "abcd"), curve.test, sizes=(1, 2), seeds=(0,),
        start=curve.base, done=(other,), note=lambda _: None, **HOW,
    )  # fmt: skip
    assert again.base is curve.base
    assert again.runs[1] is other
    assert again.runs[0].scores == one.scores


def made(shares: dict[int, list[list[int]]], *, control: bool = True) -> LearningCurve:
    """Make a curve of answers that are right (1) or wrong (0), by size and seed."""
    facts = len(next(iter(shares.values()))[0])
    coded = Encoded(input_ids=(1, 2), labels=(-100, 2))
    held = tuple(dataclasses.replace(coded, group=f"fact {n}") for n in range(facts))
    test = CurveTest(
        learning=LearningTest(
            heldout=held, questions=("?",) * facts, expected=("yes",) * facts,
            splits=("test",) * facts, groups=tuple(f"fact {n}" for n in range(facts)),
            prompts=((1,),) * facts, recognition=(), recognition_groups=(),
        ),
        control=held if control else (),
    )  # fmt: skip

    def scores(right: list[int]) -> CurveScores:
        said = tuple(Written(text="yes" if one else "no", tokens=1, ended=True) for one in right)
        nats = tuple(
            TokenLoss(nats=3.0 - 2 * one + n / 50, tokens=1) for n, one in enumerate(right)
        )
        old = tuple(TokenLoss(nats=2.5 + n / 50, tokens=1) for n in range(facts)) if control else ()
        return CurveScores(
            learning=LearningScores(heldout=nats, answers=said, recognition=()), control=old
        )

    runs = tuple(
        CurveRun(
            size=size, rows=size * facts, seed=seed, steps=9, seconds=1.0, scores=scores(right)
        )
        for size, by_seed in shares.items()
        for seed, right in enumerate(by_seed)
    )
    return LearningCurve(test=test, base=scores([0] * facts), runs=runs)


RISING = {
    1: [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]],
    4: [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]],
    8: [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]],
}


def test_two_sizes_are_compared_seed_by_seed():
    curve = made(RISING)
    exact = curve.change("exact", before=1, after=4)
    assert [exact.before, exact.after] == pytest.approx([2 / 12, 11 / 12])
    assert exact.by_seed == (0.75, 0.75, 0.75)
    assert curve.change("exact", after=8).by_seed == (1.0, 0.75, 0.75)
    assert curve.change("loss", after=4).by_seed == (-2.0, -1.5, -2.0)
    assert curve.change("control loss", after=4).by_seed == (0.0, 0.0, 0.0)
    level = curve.level("exact", 4)
    assert [level.before, level.after, *level.by_seed] == pytest.approx([0, 11 / 12, 1, 0.75, 1])


def test_each_step_helps_harms_or_is_undecided_as_its_interval_says():
    facts = 12
    poor, rich = [[0] * facts] * 3, [[1] * 11 + [0]] * 3
    mixed = [[1] * 10 + [0, 1], [1] * 11 + [0], [1] * 9 + [0, 1, 0]]
    said = {}
    for name, shares in {"up": {1: poor, 2: rich}, "down": {1: rich, 2: poor},
                         "same": {1: rich, 2: mixed}}.items():  # fmt: skip
        said[name] = [one.split(": ", 1)[1].split(",")[0] for one in steps_in_words(made(shares))]
    assert said == {"up": ["helps"] * 2, "down": ["harms"] * 2, "same": ["undecided"] * 2}
    exact, loss = steps_in_words(made({1: poor, 2: rich}))
    assert exact.startswith("12 → 24 rows, exact: helps, +91.7 points (95 % interval +")
    assert exact.endswith("; by seed +91.7, +91.7, +91.7)")
    assert loss.startswith(
        "12 → 24 rows, loss: helps, \N{MINUS SIGN}1.83 nats per token (95 % interval "
    )


def test_what_cannot_be_measured_or_compared_is_refused_in_words():
    examples = encoded(3, "ab")
    with pytest.raises(SettingsError, match=r"3 rows of each group needs from 1 to 2 of them"):
        draw_rows(examples, size=3, seed=0)
    base, _, curve, _ = measured()
    call = functools.partial(
        measure_curve, base, TOKENIZER, examples, curve.test, seeds=(0,), start=curve.base
    )
    with pytest.raises(SettingsError, match="views=5 cannot be shared out evenly among 2 rows"):
        call(sizes=(2,), **{**HOW, "views": 5})
    with pytest.raises(AdapterError, match="not proven to change nothing"):
        call(sizes=(1,), **{**HOW, "adapter": AdapterSettings(kind="pissa")})
    with pytest.raises(SettingsError, match=r"Size 3 was trained with seeds \[\]"):
        curve.change("exact", after=3)
    with pytest.raises(SettingsError, match="has nothing for 'control loss'"):
        made(RISING, control=False).change("control loss", after=1)


# --- Figures -------------------------------------------------------------------------------


def gain(name: str, base: float, *, better: Any = "higher", wide: float = 0.1) -> AnswerMeasure:
    def change(before: float) -> Change:
        delta = 0.8 - before
        return Change(
            before=before, after=0.8, delta=delta, ci95=(delta - wide, delta + wide), items=32,
            groups=16,
        )  # fmt: skip

    rivals = {
        "few-shot": change(0.1),
        "system prompt": change(0.02),
        "facts in prompt": change(0.7),
    }
    return AnswerMeasure(
        name=name, unit="share", better=better, change=change(base), baselines=rivals
    )


SMALLEST = {s: {n: detectable_share(n, discordance=s) for n in (4, 10, 30, 100)} for s in (0, 0.2)}
FIGURES = {
    "curve": lambda: plot_learning_curve(made(RISING)),
    "two sizes": lambda: plot_learning_curve(
        made({1: [[0, 0, 0, 0]], 8: [[1, 1, 1, 1]]}, control=False)
    ),
    "measured": lambda: plot_learning_curve(measured()[2]),
    "rivals": lambda: plot_rivals(
        [gain("exact", 0.0), gain("chrF", 0.3), gain("repetition", 0.9, better="lower")]
    ),
    "one rival": lambda: plot_rivals([dataclasses.replace(gain("exact", 0.0), baselines={})]),
    "detectable": lambda: plot_detectable(SMALLEST, items=30),
    "none": lambda: plot_detectable(SMALLEST, items=4),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_figure_or_lies_over_another(name):
    figure = FIGURES[name]()
    boxes = [(t.get_text(), t.get_window_extent()) for t in drawn_texts(figure)
             if on_axis(t, figure)]  # fmt: skip
    for text, box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_the_curves_title_says_the_whole_gain_and_that_of_the_last_step():
    curve = made(RISING)
    title = title_of(plot_learning_curve(curve))
    assert title.startswith("Right answers at 32 rows: 83 % (3 seeds); since 4 rows it changed")
    clear = title_of(plot_learning_curve(made({1: [[0] * 12] * 2, 8: [[1] * 11 + [0]] * 2})))
    assert clear.startswith("Right answers at 96 rows: 92 % (2 seeds); since 12 rows it rose by 92")
    assert ", since 16 rows it changed by \N{MINUS SIGN}8 points [" in title
    words = alt_text(plot_learning_curve(curve))
    assert "32 rows 83 (by seed 100, 75, 75; 95 % interval " in words
    assert "Control loss, nats per token: base 2.53" in words


def test_rivals_are_drawn_against_the_strongest_of_them():
    figure = plot_rivals([gain("exact", 0.0)])
    assert title_of(figure).startswith(
        "Exact: +10.0 points [0.0 to +20.0] over the strongest rival, facts in prompt"
    )
    assert "exact against few-shot: +70.0 points [+60.0 to +80.0]" in alt_text(figure)
    with pytest.raises(RecordError, match="measures that are shares"):
        plot_rivals([dataclasses.replace(gain("words", 0.0), unit="words")])


def test_what_a_test_cannot_see_is_in_the_title():
    low, high = (100 * (SMALLEST[share][30] or 0) for share in (0, 0.2))
    assert title_of(plot_detectable(SMALLEST, items=30)) == (
        f"With 30 questions a gain under {low:.0f} to {high:.0f} points cannot be seen"
    )
    assert title_of(plot_detectable(SMALLEST, items=4)) == "With 4 questions no gain can be seen"
    with pytest.raises(RecordError, match="needs two sizes or more"):
        plot_learning_curve(made({1: [[0, 1]]}))
