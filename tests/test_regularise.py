"""Noise on embeddings, early stopping, activations computed twice, rows per batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from sftkit.errors import TrainError
from sftkit.objectives import chat_loss
from sftkit.regularise import BestWeights, noisy_embeddings
from sftkit.settings import TrainSettings
from sftkit.train import plan_steps, train
from tests.conftest import make_model
from tests.test_train import TOKENIZER, WHOLE, furthest, make_examples, make_tuned, weights_of

# ---- noise ----


def test_noise_on_embeddings_stays_within_its_bound_and_fills_it():
    model = make_model(vocab_size=len(TOKENIZER)).train()
    ids = torch.randint(0, 250, (2, 50))
    embedding = model.get_input_embeddings()
    clean = embedding(ids)
    with noisy_embeddings(model, 5.0):
        noise = embedding(ids) - clean
    bound = 5.0 / math.sqrt(50 * clean.shape[-1])
    assert 0.95 * bound < float(noise.abs().max()) <= bound * 1.0001
    assert torch.equal(embedding(ids), clean)  # the hook is gone


def test_scoring_sees_no_noise():
    model = make_model(vocab_size=len(TOKENIZER)).eval()
    ids = torch.arange(20)[None]
    clean = model(ids).logits
    with noisy_embeddings(model, 5.0):
        assert torch.equal(model(ids).logits, clean)


def test_noise_reaches_training_and_changes_what_is_learned():
    plain, noisy = make_tuned(), make_tuned()
    train(plain, make_examples(), WHOLE, objective=chat_loss)
    settings = dataclasses.replace(WHOLE, neftune_alpha=5.0)
    train(noisy, make_examples(), settings, objective=chat_loss)
    assert furthest(weights_of(plain), weights_of(noisy)) > 1e-4


def test_noise_is_refused_where_there_is_no_embedding_of_tokens():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    with (
        pytest.raises(TrainError, match="ResNetForImageClassification has none"),
        noisy_embeddings(ResNetForImageClassification(config), 5.0),
    ):
        raise AssertionError("not reached")


# ---- early stopping ----


def run_with(told: Sequence[Mapping[str, float]], **settings: Any) -> tuple[Any, Any, list[Any]]:
    """Train six steps, measuring after each what `told` says; also give the weights per step."""
    model = make_tuned()
    answers = iter(told)
    weights: list[Any] = []
    record = train(
        model,
        make_examples(),
        dataclasses.replace(WHOLE, heldout_evaluations=6, **settings),
        objective=chat_loss,
        measure=lambda: next(answers),
        on_step=lambda step, _: weights.append(weights_of(model)),
    )
    return model, record, weights


def test_training_ends_after_the_patience_and_keeps_the_best_weights():
    losses = [{"heldout_loss": value} for value in (5.0, 3.0, 2.0, 2.5, 2.0, 1.0, 0.5)]
    model, record, weights = run_with(
        losses, early_stopping="heldout_loss", early_stopping_patience=2
    )
    assert [step.step for step in record.steps] == [1, 2, 3, 4]  # 2.5, then an equal 2.0
    assert record.kept_step == 2
    assert furthest(weights_of(model), weights[1]) == 0.0
    assert furthest(weights[1], weights[3]) > 1e-3


def test_any_recorded_metric_may_decide_and_scores_are_better_when_higher():
    told = [{"heldout_loss": 5.0, "macro_f1": value} for value in (0.1, 0.5, 0.4, 0.6, 0.2, 0.1, 0)]
    _, record, _ = run_with(told, early_stopping="macro_f1", early_stopping_patience=3)
    assert record.kept_step == 3
    assert len(record.steps) == 6
    assert record.steps[2].metrics == {"macro_f1": 0.6}


def test_weights_that_only_got_worse_are_those_from_before_the_first_step():
    told = [{"heldout_loss": value} for value in (1.0, 2.0, 3.0, 4.0)]
    model, record, _ = run_with(told, early_stopping="heldout_loss", early_stopping_patience=2)
    assert record.kept_step == 0
    assert furthest(weights_of(model), weights_of(make_tuned())) == 0.0


def test_without_early_stopping_the_last_weights_are_kept():
    told = [{"heldout_loss": float(value)} for value in range(7)]
    model, record, weights = run_with(told)
    assert (len(record.steps), record.kept_step) == (6, 6)
    assert furthest(weights_of(model), weights[-1]) == 0.0


def test_a_metric_that_is_not_measured_is_refused_before_the_first_step():
    with pytest.raises(TrainError) as caught:
        run_with([{"heldout_loss": 1.0}], early_stopping="heldout_los")
    assert str(caught.value) == (
        "train.early_stopping='heldout_los' is not measured in this run. "
        "Did you mean 'heldout_loss'?"
    )


def test_early_stopping_without_validation_examples_is_refused():
    settings = dataclasses.replace(WHOLE, early_stopping="heldout_loss")
    with pytest.raises(TrainError, match=r"needs validation examples.*validation_fraction"):
        train(make_tuned(), make_examples(), settings, objective=chat_loss)


def test_losses_and_errors_are_better_when_lower():
    for metric, better in (("heldout_loss", 0.5), ("rmse", 0.5), ("mae", 0.5), ("accuracy", 1.5)):
        best = BestWeights(make_tuned(), metric, patience=1)
        best.see(1, {metric: 1.0})
        best.see(2, {metric: better})
        assert (best.step, best.is_over) == (2, False)


# ---- activations computed twice ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computing_activations_twice_changes_no_step(dtype):
    def trained(twice: bool) -> Any:
        from sftkit.adapter import attach_adapter
        from sftkit.settings import AdapterSettings

        base = make_model(vocab_size=len(TOKENIZER)).to(dtype)
        model = attach_adapter(base, AdapterSettings(r=4))
        settings = dataclasses.replace(WHOLE, activation_checkpointing=twice)
        return train(model, make_examples(), settings, objective=chat_loss), weights_of(model)

    (plain, weights), (twice, same_weights) = trained(False), trained(True)
    assert [step.loss for step in twice.steps] == [step.loss for step in plain.steps]
    assert furthest(weights, same_weights) == 0.0


def test_activations_are_really_computed_twice_and_only_in_training():
    model = make_tuned()
    train(model, make_examples(), WHOLE, objective=chat_loss)  # what is found out once is known
    # Not the last part of a block: computing it anew ends as soon as nothing more is needed.
    block = model.get_base_model().model.layers[0].self_attn
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    block.register_forward_hook(count)
    settings = dataclasses.replace(
        WHOLE, max_steps=1, activation_checkpointing=True, speed="off"
    )  # the faster parts are tried out once more
    train(model, make_examples(), settings, objective=chat_loss)
    assert calls == 2
    assert not model.get_base_model().is_activation_checkpointing


# ---- rows per batch ----


def test_a_batch_holds_no_more_examples_than_asked_for():
    settings = TrainSettings(max_tokens_per_batch=1000, examples_per_batch=3)
    assert [len(batch) for batch in plan_steps([10] * 8, settings)] in (
        [3, 3, 2],
        [3, 2, 3],
        [2, 3, 3],
    )
    assert [len(batch) for batch in plan_steps([10] * 8, TrainSettings())] == [8]


def test_a_metric_that_is_no_number_is_no_improvement_and_stands_in_no_record():
    told = [{"heldout_loss": value} for value in (math.nan, 3.0, math.nan, 2.0, 4.0, math.nan, 9.0)]
    _, record, _ = run_with(told, early_stopping="heldout_loss", early_stopping_patience=3)
    assert record.heldout_start is None
    assert [step.heldout_loss for step in record.steps] == [3.0, None, 2.0, 4.0, None, 9.0]
    assert record.kept_step == 3
