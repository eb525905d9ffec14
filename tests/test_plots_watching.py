"""Figures of trainings side by side: what their titles say is what was measured."""

from __future__ import annotations

import pytest

from sftkit.evidence.perplexity import TokenLoss
from sftkit.evidence_records import Change
from sftkit.panels import alt_text, to_png
from sftkit.plots_watching import (
    largest_difference,
    plot_compared,
    plot_fits,
    plot_one_batch,
    plot_rate_sweep,
    plot_resumed,
)
from sftkit.records import Step, TrainRecord
from sftkit.settings import AdapterSettings, TrainSettings
from sftkit.sweep import ShortRun


def steps(
    losses: list[float], *, norm: float = 1.0, held: dict[int, float] | None = None
) -> tuple[Step, ...]:
    return tuple(
        Step(
            step=number, loss=loss, learning_rate=1e-3, grad_norm=norm, tokens=10 * number,
            seconds=float(number), heldout_loss=(held or {}).get(number),
        )
        for number, loss in enumerate(losses, start=1)
    )  # fmt: skip


def change(after: float, ci95: tuple[float, float], before: float = 5.0) -> Change:
    return Change(
        before=before, after=after, delta=after - before, ci95=ci95, items=24, groups=6, tokens=96
    )


def short_run(
    rate: float,
    heldout: Change | None,
    *,
    losses: list[float],
    held: dict[int, float] | None = None,
    kept: int = 0,
) -> ShortRun:
    done = steps(losses, held=held)
    record = TrainRecord(
        steps=done, heldout_start=5.0, kept_step=kept or len(done), tokens=1, supervised_tokens=1,
        seconds=1.0, trainable_parameters=1, total_parameters=2,
    )  # fmt: skip
    return ShortRun(
        adapter=AdapterSettings(), settings=TrainSettings(learning_rate=rate), steps=done,
        start=(TokenLoss(nats=10.0, tokens=2),), kept=(),
        heldout=heldout, record=record if heldout else None,
        stopped="" if heldout else "The loss of step 2 is nan",
    )  # fmt: skip


def test_the_figure_of_one_batch_names_what_fitted_and_what_did_not():
    figure = plot_one_batch(
        {
            "healthy": steps([4.0, 1.0, 0.01]),
            "B frozen": steps([4.0, 4.0], norm=0.0),
            "rate too low": steps([4.0, 3.98]),
        }
    )
    assert alt_text(figure).startswith(
        "Fitted below 0.1 nats per token: healthy; ended B frozen at 4.00, rate too low at 3.98. "
        "healthy: loss 4.00 to 0.01, gradient 1 to 1; B frozen: loss 4.00 to 4.00, gradient 0 to 0"
    )
    assert len(figure.axes[0].texts) == 3  # every line is named where it ends
    assert alt_text(plot_one_batch({"ill": steps([4.0, 4.0])})).startswith(
        "Fitted below 0.1 nats per token: none; ended ill at 4.00."
    )


def sweep_of(*harmed: float) -> dict[float, ShortRun]:
    runs = {
        1e-4: short_run(1e-4, change(4.5, (-0.6, -0.4)), losses=[5.0, 4.5]),
        1e-3: short_run(1e-3, change(1.8, (-3.6, -2.9)), losses=[5.0, 1.8]),
    }
    for rate in harmed:
        runs[rate] = short_run(rate, change(9.0, (3.0, 5.0)), losses=[5.0, 20.0])
    return runs


def test_the_figure_of_a_sweep_names_the_best_rate_and_where_harm_begins():
    figure = plot_rate_sweep(sweep_of(3e-2, 1e-1))
    assert alt_text(figure).startswith(
        "After 2 steps the lowest held-out loss is at a rate of 0.001; from 0.03 on, training does "
        "harm. Before 5.00; by rate 0.0001: 4.50, 0.001: 1.80, 0.03: 9.00, 0.1: 9.00."
    )
    assert alt_text(plot_rate_sweep(sweep_of())).startswith(
        "After 2 steps the lowest held-out loss is at a rate of 0.001. Before"
    )


def test_a_training_that_stopped_counts_as_harm_and_a_sweep_of_nothing_else_is_refused():
    runs = {**sweep_of(), 1.0: short_run(1.0, None, losses=[5.0])}
    assert "from 1 on, training does harm" in alt_text(plot_rate_sweep(runs))
    assert "1: stopped" in alt_text(plot_rate_sweep(runs))
    with pytest.raises(ValueError, match="No training of the sweep"):
        plot_rate_sweep({1.0: runs[1.0]})


def test_the_figure_of_fits_compares_what_was_kept():
    runs = {
        "overfitted": short_run(
            1e-3, change(4.0, (-2.0, -0.5)), losses=[5.0, 2.0, 0.1, 0.0], held={2: 2.5, 4: 4.0}
        ),
        "early stopping": short_run(
            1e-3, change(2.5, (-3.0, -2.0)), losses=[5.0, 2.0, 0.1], held={2: 2.5, 3: 3.0}, kept=2
        ),
    }
    figure = plot_fits(runs)
    assert alt_text(figure) == (
        "Held-out loss of what was kept: lowest with early stopping (2.50), highest with "
        "overfitted (4.00). overfitted: training 0.00, held-out 4.00 at step 4. early stopping: "
        "training 2.00, held-out 2.50 at step 2."
    )
    four = {f"{name} {n}": run for n in (1, 2) for name, run in runs.items()}
    assert sum(axes.axison for axes in plot_fits(four).axes) == 4


def test_the_figure_of_cures_claims_only_what_excludes_zero():
    figure = plot_compared(
        {
            "dropout": change(1.9, (-0.3, 0.1), before=2.0),
            "early stopping": change(1.2, (-1.0, -0.6), before=2.0),
        },
        against="overfitted",
    )
    assert alt_text(figure).startswith(
        "Lower held-out loss than overfitted, beyond chance: early stopping (24 answers, 6 groups)."
    )
    none = plot_compared({"dropout": change(1.9, (-0.3, 0.1), before=2.0)}, against="overfitted")
    assert "beyond chance: none of these" in alt_text(none)
    assert to_png(figure).startswith(b"\x89PNG")


def test_the_figure_of_a_resumed_run_says_by_how_much_losses_differ():
    whole = steps([4.0, 3.0, 2.0, 1.0])
    same = plot_resumed(whole, whole[:3], whole)
    assert alt_text(same) == (
        "Killed after step 3 of 4 and gone on with: all 4 losses equal those of the undisturbed "
        "run bit for bit."
    )
    other = steps([4.0, 3.0, 2.0, 1.5])
    assert largest_difference(whole, other) == 0.5
    assert "to within 5.0e-01 nats per token" in alt_text(plot_resumed(whole, whole[:3], other))
    with pytest.raises(ValueError, match="shorter"):
        largest_difference(whole, other[:2])
