"""The loop: the loss it minimises, and what dividing, seeding and clipping do to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.adapter_files import save_adapter
from sftkit.chat import encode_chat
from sftkit.errors import TrainError
from sftkit.forward import SPARE_ROWS, collate, logits_at
from sftkit.objectives import chat_loss
from sftkit.records import IGNORE, Encoded, Step
from sftkit.settings import AdapterSettings, TrainSettings
from sftkit.train import plan_steps, rate_at, refuse_if_nothing_to_learn, train
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
ANSWERS = ("A cat.", "Two.", "Blue, mostly.", "No", "Seven days", "In the shop", "Ask Ada.", "9")


def make_examples(answers: Sequence[str] = ANSWERS) -> list[Encoded]:
    """Make short conversations with answers of different length."""
    return [
        encode_chat(
            [
                {"role": "user", "content": f"What is {number}?"},
                {"role": "assistant", "content": answer},
            ],
            TOKENIZER,
            max_tokens=200,
            row=number,
        )
        for number, answer in enumerate(answers)
    ]


def make_tuned(seed: int = 0, **settings: Any) -> Any:
    """Make a tiny model with a fresh adapter."""
    model = make_model(vocab_size=len(TOKENIZER))
    return attach_adapter(model, AdapterSettings(r=4, **settings), seed=seed)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert list(first) == list(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# One step holds all eight rows (the longest has 69 tokens), so that it can be divided by 8.
WHOLE = TrainSettings(max_tokens_per_batch=1000, epochs=6, learning_rate=1e-2)


# ---- the loss ----


def test_the_loss_of_a_step_is_the_mean_over_its_supervised_tokens():
    examples = make_examples()
    model = make_tuned()
    total, count = 0.0, 0
    for example in examples:  # one row at a time, all logits, torch's own arithmetic
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        for place in range(1, len(example.labels)):
            if example.labels[place] != IGNORE:
                total -= float(torch.log_softmax(logits[place - 1], -1)[example.labels[place]])
                count += 1
    settings = dataclasses.replace(WHOLE, epochs=1)
    record = train(model, examples, settings, objective=chat_loss)
    assert count == sum(len(answer) + 1 for answer in ANSWERS)
    assert record.steps[0].loss == pytest.approx(total / count, abs=1e-6)


def test_the_gradient_of_a_step_is_that_of_its_mean_loss():
    # AdamW hides a gradient's scale; its norm before clipping does not.
    model = make_tuned()
    model(**collate(make_examples(), pad_id=256, device=torch.device("cpu"))).loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad]).norm()
    settings = dataclasses.replace(WHOLE, epochs=1, micro_batches=3)
    record = train(make_tuned(), make_examples(), settings, objective=chat_loss)
    assert record.steps[0].grad_norm == pytest.approx(float(norm), rel=1e-5)


def test_the_objective_is_transformers_own_loss_times_its_tokens(tiny_model):
    batch = collate(make_examples(), pad_id=256, device=torch.device("cpu"))
    loss, weight = chat_loss(tiny_model, batch)
    own = tiny_model(**batch).loss
    assert weight == sum(len(answer) + 1 for answer in ANSWERS)
    assert float(loss) / weight == pytest.approx(float(own), abs=1e-6)


def test_virtual_tokens_in_front_shift_no_label(tiny_model):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    virtual: Any = get_peft_model(tiny_model, config)
    batch = collate(make_examples(), pad_id=256, device=torch.device("cpu"))
    loss, weight = chat_loss(virtual, batch)
    assert float(loss.detach()) / weight == pytest.approx(virtual(**batch).loss.item(), abs=1e-6)


def test_a_supervised_first_token_counts_nowhere_because_nothing_predicts_it(tiny_model):
    whole = Encoded(input_ids=(5, 6, 7), labels=(5, 6, 7))
    batch = collate([whole], pad_id=256, device=torch.device("cpu"))
    loss, weight = chat_loss(tiny_model, batch)
    own = tiny_model(**batch).loss
    assert weight == whole.supervised == 2
    assert float(loss) / 2 == pytest.approx(float(own), abs=1e-6)


def test_padding_changes_no_loss(tiny_model):
    examples = make_examples()
    together, _ = chat_loss(tiny_model, collate(examples, pad_id=256, device=torch.device("cpu")))
    apart = sum(
        float(chat_loss(tiny_model, collate([e], pad_id=256, device=torch.device("cpu")))[0])
        for e in examples
    )
    assert float(together) == pytest.approx(apart, abs=1e-4)


def test_padding_is_masked_by_length_although_its_token_also_ends_turns():
    first = Encoded(input_ids=(7, 8, 256), labels=(IGNORE, 8, 256))
    second = Encoded(input_ids=(9,), labels=(IGNORE,))
    batch = collate([first, second], pad_id=256, device=torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 8, 256], [9, 256, 256]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[IGNORE, 8, 256], [IGNORE, IGNORE, IGNORE]],
    }


def test_the_output_head_sees_supervised_positions_only(tiny_model):
    seen: list[tuple[int, ...]] = []
    hook = tiny_model.lm_head.register_forward_hook(lambda _, given, out: seen.append(out.shape))
    batch = collate(make_examples(), pad_id=256, device=torch.device("cpu"))
    chat_loss(tiny_model, batch)  # for the first time: finds out whether the head ends the model
    seen.clear()
    chat_loss(tiny_model, batch)
    hook.remove()
    of_forward, *parts = seen
    assert of_forward == (8, 0, len(TOKENIZER))
    rows = sum(len(answer) + 1 for answer in ANSWERS)
    assert sum(shape[0] for shape in parts) == rows + -rows % SPARE_ROWS
    assert {shape[1] for shape in parts} == {len(TOKENIZER)}


def test_logits_at_chosen_positions_are_the_models_own(tiny_model):
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    chosen = torch.tensor([[False, True, True], [True, False, False]])
    with torch.no_grad():
        own = tiny_model(input_ids=ids).logits[chosen]
        assert torch.allclose(logits_at(tiny_model, chosen, input_ids=ids), own, atol=1e-6)
    # Nothing of it stays behind: the model's next forward gives every position again.
    assert tiny_model(input_ids=ids).logits.shape == (2, 3, len(TOKENIZER))


# ---- dividing a step ----


def run_divided(micro_batches: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = make_tuned()
    settings = dataclasses.replace(WHOLE, micro_batches=micro_batches)
    record = train(model, make_examples(), settings, objective=chat_loss)
    return [step.loss for step in record.steps], weights_of(model)


@pytest.mark.parametrize("micro_batches", [2, 3, 8, 11])
def test_a_step_divided_into_micro_batches_is_the_same_step(micro_batches):
    losses, weights = run_divided(1)
    divided_losses, divided_weights = run_divided(micro_batches)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1  # it learned, so equality says something
    assert divided_losses == pytest.approx(losses, abs=1e-6)
    assert furthest(weights, divided_weights) < 5e-6  # rounding, after six steps of adamw


def test_the_same_seed_gives_the_same_adapter_bytes(tmp_path):
    settings = TrainSettings(max_tokens_per_batch=140, epochs=2, learning_rate=1e-2, seed=3)
    files = []
    for name in ("first", "second"):
        model = make_tuned(seed=3, lora_dropout=0.3)
        train(model, make_examples(), settings, objective=chat_loss)
        folder = save_adapter(model, tmp_path / name)
        files.append((folder / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_another_seed_gives_another_adapter():
    runs = []
    for seed in (0, 1):
        model = make_tuned()
        settings = TrainSettings(max_tokens_per_batch=140, learning_rate=1e-2, seed=seed)
        train(model, make_examples(), settings, objective=chat_loss)
        runs.append(weights_of(model))
    assert furthest(*runs) > 1e-4


def test_dropout_is_on_while_training_and_off_after():
    losses = []
    for dropout in (0.0, 0.5):
        model = make_tuned(lora_dropout=dropout)
        record = train(model, make_examples(), WHOLE, objective=chat_loss)
        losses.append([step.loss for step in record.steps])
        assert not model.training
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)  # the adapter is still nothing
    assert losses[0][1:] != pytest.approx(losses[1][1:], abs=1e-6)


def test_only_the_adapter_changes():
    model = make_tuned()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = weights_of(model)
    train(model, make_examples(), WHOLE, objective=chat_loss)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert all(not torch.equal(now[name], value) for name, value in before.items())


# ---- every setting reaches its call ----


def test_the_rate_rises_evenly_then_decays_to_a_tenth():
    settings = TrainSettings(learning_rate=1.0, warmup_fraction=0.2, schedule="linear")
    rates = [rate_at(step, 10, settings) for step in range(1, 11)]
    assert rates == pytest.approx(
        [0.5, 1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1]
    )


def test_the_cosine_is_half_way_down_at_half_time():
    settings = TrainSettings(learning_rate=1.0, warmup_fraction=0.0, schedule="cosine")
    rates = [rate_at(step, 4, settings) for step in (1, 2, 3, 4)]
    root = math.sqrt(0.5)
    assert rates == pytest.approx([0.55 + 0.45 * root, 0.55, 0.55 - 0.45 * root, 0.1])


def test_a_constant_rate_stays_where_the_warm_up_left_it():
    settings = TrainSettings(learning_rate=0.5, warmup_fraction=0.5, schedule="constant")
    assert [rate_at(step, 4, settings) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_short_run_has_a_rate_above_zero_at_every_step(schedule, steps):
    settings = TrainSettings(learning_rate=1.0, schedule=schedule)
    rates = [rate_at(step, steps, settings) for step in range(1, steps + 1)]
    assert all(0.1 - 1e-12 <= rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0


def test_the_recorded_rates_are_those_of_the_schedule():
    settings = dataclasses.replace(WHOLE, warmup_fraction=0.4, schedule="linear")
    record = train(make_tuned(), make_examples(), settings, objective=chat_loss)
    rates = [step.learning_rate for step in record.steps]
    assert rates == [rate_at(step, 6, settings) for step in range(1, 7)]


def silent_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Give a loss without slope, so that only weight decay moves anything."""
    loss, weight = chat_loss(model, batch)
    return loss * 0.0, weight


def test_weight_decay_acts_on_matrices_and_on_nothing_else():
    model = make_tuned()
    names = [name for name, _ in model.named_parameters() if "input_layernorm" in name]
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    before = weights_of(model)
    settings = TrainSettings(
        learning_rate=0.1, weight_decay=0.5, max_tokens_per_batch=1000,
        warmup_fraction=0.0, schedule="constant",
    )  # fmt: skip
    record = train(model, make_examples(), settings, objective=silent_loss)
    assert len(record.steps) == 1
    after = weights_of(model)
    assert len(names) == 2
    for name, value in before.items():
        shrunk = value if name in names else value * (1 - 0.1 * 0.5)
        assert torch.allclose(after[name], shrunk, atol=1e-7, rtol=0), name


def test_clipping_scales_the_gradient_that_the_optimizer_gets():
    moved, norms = [], []
    for limit in (1.0, 1e-9):
        model = make_tuned()
        before = weights_of(model)
        settings = dataclasses.replace(WHOLE, epochs=1, max_grad_norm=limit)
        record = train(model, make_examples(), settings, objective=chat_loss)
        moved.append(furthest(before, weights_of(model)))
        norms.append(record.steps[0].grad_norm)
    # AdamW ignores a gradient's scale until it falls below its epsilon of 1e-8.
    assert moved[0] == pytest.approx(1e-2, rel=1e-2)
    assert moved[1] < 2e-3
    assert norms[0] == norms[1] > 0.1  # recorded before clipping


def test_max_steps_ends_the_run_early_and_the_schedule_with_it():
    settings = dataclasses.replace(WHOLE, max_steps=2, schedule="linear")
    record = train(make_tuned(), make_examples(), settings, objective=chat_loss)
    assert [step.step for step in record.steps] == [1, 2]
    assert record.steps[-1].learning_rate == pytest.approx(1e-3)


def test_epochs_and_the_token_budget_decide_the_steps():
    settings = TrainSettings(max_tokens_per_batch=20, epochs=3)
    assert len(plan_steps([10, 10, 10, 10], settings)) == 6
    assert len(plan_steps([10, 10, 10, 10], dataclasses.replace(settings, max_steps=4))) == 4


def test_heldout_loss_is_measured_before_and_evenly_through_the_run():
    told = iter([5.0, 4.0, 3.0, 2.0])
    seen: list[tuple[Step, int]] = []
    settings = dataclasses.replace(WHOLE, heldout_evaluations=3)
    record = train(
        make_tuned(),
        make_examples(),
        settings,
        objective=chat_loss,
        measure=lambda: {"heldout_loss": next(told), "drift": 0.5},
        on_step=lambda step, steps: seen.append((step, steps)),
    )
    assert record.heldout_start == 5.0
    assert [step.heldout_loss for step in record.steps] == [None, 4.0, None, 3.0, None, 2.0]
    assert [step.metrics for step in record.steps] == [{}, {"drift": 0.5}] * 3
    assert seen == [(step, 6) for step in record.steps]


def test_the_record_counts_tokens_and_parameters():
    examples = make_examples()
    model = make_tuned()
    record = train(model, examples, WHOLE, objective=chat_loss)
    assert record.tokens == 6 * sum(len(example.input_ids) for example in examples)
    assert record.steps[-1].tokens == record.tokens
    assert record.supervised_tokens == 6 * sum(len(answer) + 1 for answer in ANSWERS)
    assert record.trainable_parameters == sum(p.numel() for p in weights_of(model).values())
    assert record.total_parameters == sum(p.numel() for p in model.parameters())
    assert record.heldout_start is None


# ---- refused or stopped, in words ----


def muted(example: Encoded) -> Encoded:
    return dataclasses.replace(example, labels=(IGNORE,) * len(example.labels))


def refusal(model: Any, examples: Sequence[Encoded]) -> str:
    with pytest.raises(TrainError) as caught:
        train(model, examples, WHOLE, objective=chat_loss)
    return str(caught.value)


def test_a_run_whose_labels_are_all_masked_is_refused():
    examples = [muted(example) for example in make_examples()]
    tokens = sum(len(example.input_ids) for example in examples)
    assert refusal(make_tuned(), examples) == (
        f"0 of {tokens} tokens would be learned from: every label is masked, in rows "
        "[0, 1, 2, 3, 4, 5, 6, 7]. Check that the rows have assistant turns and that the chat "
        "template is the model's own."
    )


def test_rows_that_teach_nothing_are_refused_by_their_number():
    examples = make_examples()
    examples[2], examples[5] = muted(examples[2]), muted(examples[5])
    assert refusal(make_tuned(), examples) == (
        "2 of 8 examples have no supervised token and would teach nothing: rows [2, 5]. Leave them "
        "out."
    )


def test_a_run_without_examples_is_refused():
    message = "There are no training examples. See the refused rows for why."
    assert refusal(make_tuned(), []) == message


def test_a_model_without_an_adapter_is_refused(tiny_model):
    with pytest.raises(TrainError, match=r"No parameter requires a gradient\. Attach an adapter"):
        refuse_if_nothing_to_learn(tiny_model, make_examples())


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows():
    calls = 0

    def breaks_at_third(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        nonlocal calls
        calls += 1
        loss, weight = chat_loss(model, batch)
        return loss * (math.nan if calls == 3 else 1.0), weight

    model = make_tuned()
    seen: list[dict[str, torch.Tensor]] = []
    with pytest.raises(TrainError) as caught:
        train(
            model,
            make_examples(),
            WHOLE,
            objective=breaks_at_third,
            on_step=lambda step, steps: seen.append(weights_of(model)),
        )
    assert str(caught.value) == (
        "The loss of step 3 is nan, so training stopped before the adapter changed. Rows of the "
        "batch: [0, 1, 2, 3, 4, 5, 6, 7]. Usual causes: learning_rate too high (here 0.01) or "
        "float16 overflow."
    )
    assert len(seen) == 2
    assert furthest(seen[-1], weights_of(model)) == 0.0  # as the last good step left it


def test_a_gradient_that_is_no_number_stops_the_run_before_the_adapter_is_spoiled():
    def flat_loss_steep_slope(model: Any, batch: dict[str, torch.Tensor]) -> Any:
        loss, weight = chat_loss(model, batch)
        return loss.detach() + torch.sqrt(loss - loss), weight  # the root's slope at 0 is infinite

    model = make_tuned()
    before = weights_of(model)
    with pytest.raises(TrainError, match=r"^The gradient of step 1 is nan, so training stopped"):
        train(model, make_examples(), WHOLE, objective=flat_loss_steep_slope)
    assert furthest(before, weights_of(model)) == 0.0
