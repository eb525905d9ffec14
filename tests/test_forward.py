"""The one forward pass: its precision, whatever the adapter is held in."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from sftkit.adapter import attach_adapter
from sftkit.forward import precision_of
from sftkit.settings import AdapterSettings

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
