"""Figures of runs on several processes: their titles say what the values say."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sftkit import catalog
from sftkit.errors import SettingsError
from sftkit.memory import SPLIT, estimate, per_process
from sftkit.memory_formulas import ForwardPass
from sftkit.panels import alt_text, to_png
from sftkit.plots_processes import (
    plot_dealt,
    plot_same_losses,
    plot_scaling,
    plot_split,
    speed_gains,
)
from sftkit.records import Step
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings


def steps(losses: list[float]) -> tuple[Step, ...]:
    return tuple(
        Step(step=n, loss=loss, learning_rate=1e-3, grad_norm=1.0, tokens=100 * n, seconds=1.0 * n)
        for n, loss in enumerate(losses, start=1)
    )


def timed(seconds: list[float]) -> tuple[Step, ...]:
    """Give steps that took so long each."""
    ends = itertools.accumulate(seconds)
    return tuple(
        dataclasses.replace(step, seconds=end)
        for step, end in zip(steps([1.0] * len(seconds)), ends, strict=True)
    )


def title_of(figure):
    to_png(figure)  # lays it out
    return " ".join(figure._suptitle.get_text().split())


def full(processes=1):
    model = ModelSettings(name="qwen3-8b", dtype="bfloat16")
    return estimate(
        catalog.model_config(model),
        model=model,
        adapter=AdapterSettings(kind="full"),
        train=TrainSettings(micro_batches=2, activation_checkpointing=True),
        device="cuda",
        passes=[ForwardPass(rows=8 // processes, length=512, supervised=2048 // processes)],
    )


def test_dealt_rows_are_counted_in_tokens_and_supervised_tokens():
    figure = plot_dealt([40, 30, 20, 10], [4, 3, 2, 1], [[0, 3], [1, 2]])
    assert title_of(figure) == (
        "4 rows dealt to 2 processes: 50 and 50 tokens, of them 5 and 5 supervised"
    )


def test_losses_that_differ_are_said_by_how_much_and_equal_ones_to_be_equal():
    figure = plot_same_losses({"1 process": steps([3, 2]), "2 processes": steps([3, 2.000004])})
    assert title_of(figure) == (
        "2 processes and 1 process: the losses of 2 steps differ by 4.0e-06 at most"
    )
    assert "by step 1: 3.0000, 2: 2.0000." in alt_text(figure)
    same = plot_same_losses({"whole": steps([3, 2]), "stopped": steps([3, 2])})
    assert title_of(same) == "stopped and whole: the losses of 2 steps are equal bit for bit"


@pytest.mark.parametrize("lengths", [(1,), (2, 3), (0, 0), (1, 1, 1)])
def test_only_two_runs_of_as_many_steps_are_laid_over_each_other(lengths):
    runs = {str(number): steps([1.0] * length) for number, length in enumerate(lengths)}
    with pytest.raises(SettingsError, match="equally many steps"):
        plot_same_losses(runs)


def test_speed_is_compared_step_by_step_from_the_second_on():
    alone = timed([9.0, 4.0, 6.0, 8.0])
    gains = speed_gains({(1, 1): alone, (2, 1): timed([50.0, 2.0, 4.0, 2.0])})
    assert gains == {(1, 1): [1.0, 1.0, 1.0], (2, 1): [2.0, 1.5, 4.0]}


def test_the_speed_that_is_told_is_that_of_the_middle_step():
    runs = {(1, 1): timed([9.0, 4.0, 6.0, 8.0]), (2, 1): timed([50.0, 2.0, 4.0, 2.0])}
    figure = plot_scaling({**runs, (1, 2): timed([5.0, 2.5, 3.75, 5.0])})
    assert title_of(figure) == (
        "2 processes, 1 core each: 2.00 times as fast as one core; 1 process, 2 cores: 1.60 times "
        "as fast as one core"
    )
    assert "2 processes, 1 core each 2.00, 1.50, 4.00;" in alt_text(figure)


@pytest.mark.parametrize(
    "runs",
    [
        {(2, 1): steps([1, 1])},
        {(1, 1): steps([1])},
        {(1, 1): steps([1, 1]), (2, 1): steps([1, 1, 1])},
    ],
)
def test_speeds_without_anything_to_compare_with_are_refused(runs):
    with pytest.raises(SettingsError, match="step by step from the second"):
        speed_gains(runs)


def test_a_strategy_divides_its_own_parts_and_nothing_else():
    whole = full()
    for strategy, parts in SPLIT.items():
        share = per_process(whole, strategy=strategy, processes=8)
        for name, size in whole.components.items():
            wanted = -(-size // 8) if name in parts else size
            assert share.components[name] == wanted, (strategy, name)
        assert share.total == sum(share.components.values())
        assert share.low < share.total < share.high
    assert per_process(whole, strategy="ddp", processes=8).total == whole.total
    assert per_process(whole, strategy="fsdp", processes=1).components == whole.components


@pytest.mark.parametrize(("strategy", "processes"), [("zero2", 8), ("ddp", 0)])
def test_an_unknown_strategy_or_no_process_is_refused(strategy, processes):
    with pytest.raises(SettingsError, match="must be one of ddp, deepspeed-zero2"):
        per_process(full(), strategy=strategy, processes=processes)


def test_memory_by_strategy_names_the_one_that_needs_least():
    alone = full()
    split = per_process(full(8), strategy="fsdp", processes=8)
    figure = plot_split({"all weights": {"1 GPU": alone, "fsdp": split}})
    assert title_of(figure) == (
        f"all weights: {alone.total / 1e9:.0f} GB alone, {split.total / 1e9:.0f} GB with fsdp"
    )
    assert "all weights, fsdp: program 0.6 GB, weights 4.1 GB" in alt_text(figure)
