"""The one forward pass: its precision, whatever the adapter is held in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from sftkit.adapter import attach_adapter
from sftkit.forward import HEAD_ROWS, _head_stands_alone, answer_losses, precision_of
from sftkit.records import IGNORE
from sftkit.settings import AdapterSettings
from tests.conftest import make_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def _casting(model: Any) -> set[bool]:
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {bool(getattr(module, "cast_input_dtype_enabled")) for module in layers}  # noqa: B009


def test_half_precision_skips_pefts_copies_and_gives_the_same_numbers(tiny_model: Any) -> None:
    model = attach_adapter(tiny_model.to(torch.bfloat16), AdapterSettings(r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with_copies = model(input_ids=IDS).logits
        with precision_of(model):
            inside = _casting(model)
            without = model(input_ids=IDS).logits

    assert torch.equal(with_copies, without)
    assert (inside, _casting(model)) == ({False}, {True})  # plain calls outside still work


def test_full_precision_is_left_alone(tiny_model: Any) -> None:
    model = attach_adapter(tiny_model, AdapterSettings(r=4))
    with precision_of(model):
        assert not torch.is_autocast_enabled("cpu")
        assert _casting(model) == {True}


# ---- losses a few rows of logits at a time ----


def long_batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 250
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def gradients_of(model: Any, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weigh every loss differently, so that rows cannot be mixed up, and give all gradients."""
    model.zero_grad()
    (losses * torch.linspace(0.1, 2.0, len(losses))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_in_parts_are_the_losses_of_all_logits_and_so_are_their_gradients(smoothing):
    model = attach_adapter(make_model(vocab_size=260), AdapterSettings(r=4))
    with torch.no_grad():  # a fresh adapter's A gets no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = long_batch(3, 2 * HEAD_ROWS // 3 + 5)  # more rows than one part holds, and a rest
    losses, rows = answer_losses(model, batch, label_smoothing=smoothing)
    assert len(losses) > HEAD_ROWS
    assert len(losses) % HEAD_ROWS
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    own = torch.nn.functional.cross_entropy(
        logits, batch["labels"][:, 1:].flatten(), reduction="none", label_smoothing=smoothing
    )
    assert torch.allclose(losses, own, atol=1e-5)
    assert rows.tolist() == [row for row in range(3) for _ in range(len(losses) // 3)]
    mine, theirs = gradients_of(model, losses), gradients_of(model, own)
    assert list(mine) == list(theirs)
    for name, gradient in mine.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-5), name


def test_scoring_and_training_see_the_same_losses():
    model = attach_adapter(make_model(vocab_size=260), AdapterSettings(r=4))
    batch = long_batch(2, HEAD_ROWS)
    in_training, _ = answer_losses(model, batch)
    with torch.inference_mode():
        in_scoring, _ = answer_losses(model, batch)
    assert torch.equal(in_training.detach(), in_scoring)


def test_a_head_that_is_trained_gets_its_gradient():
    model = make_model(vocab_size=260)
    batch = long_batch(2, HEAD_ROWS)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.get_output_embeddings().weight)
    losses, _ = answer_losses(model, batch)
    (gradient,) = gradients_of(model, losses).values()
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("cap", [0.05, 30.0])  # the second is not seen in small logits
def test_a_model_that_caps_its_logits_after_the_head_is_scored_with_the_cap(cap):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            final_logit_softcapping=cap,
        )
    ).eval()  # fmt: skip
    model.set_attn_implementation("eager")
    batch = long_batch(1, 8)
    with torch.no_grad():
        losses, _ = answer_losses(model, batch)
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
    own = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="none")
    assert float(logits.abs().max()) <= cap
    assert not _head_stands_alone(model)
    assert torch.allclose(losses, own, atol=1e-6)


def test_a_batch_without_a_supervised_token_still_takes_part_in_the_backward_pass():
    # A process without rows of its own answers like this; its partners wait for its gradients.
    model = attach_adapter(make_model(vocab_size=260), AdapterSettings(r=4))
    batch = long_batch(1, 6)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    losses, _ = answer_losses(model, batch)
    assert losses.shape == (0,)
    losses.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
