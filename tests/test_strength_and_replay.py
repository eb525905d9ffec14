"""Adapters turned down for good, replayed passages, and logits for the last token only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.adapter import adapter_scaled, attach_adapter, weaken_adapter
from sftkit.errors import DataError
from sftkit.forward import last_logits_only, output_head
from sftkit.prepare import replayed_passages
from sftkit.recipe import recipe_from_dict
from sftkit.settings import AdapterSettings, Recipe

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture
def trained(tiny_model: Any) -> Any:
    model = attach_adapter(tiny_model, AdapterSettings(r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    return model


def test_an_adapter_weakened_for_good_equals_one_scaled_for_now(trained: Any) -> None:
    with torch.no_grad():
        full = trained(input_ids=IDS).logits
        with adapter_scaled(trained, 0.5):
            scaled = trained(input_ids=IDS).logits
        weaken_adapter(trained, 0.5)
        weakened = trained(input_ids=IDS).logits

    assert not torch.allclose(full, weakened, atol=1e-4)
    assert torch.allclose(scaled, weakened, atol=1e-6)


def test_only_the_last_position_reaches_the_head_and_in_one_piece(trained: Any) -> None:
    seen = []
    with torch.no_grad():
        full = trained(input_ids=IDS).logits
        with last_logits_only(trained):
            hook = output_head(trained).register_forward_pre_hook(
                lambda _, given: seen.append((tuple(given[0].shape), given[0].is_contiguous()))
            )
            last = trained(input_ids=IDS).logits
            hook.remove()
        again = trained(input_ids=IDS).logits

    assert seen == [((2, 1, 32), True)]
    assert torch.allclose(last, full[:, -1:], atol=1e-6)
    assert again.shape == full.shape  # the hook is gone


def _recipe(**data: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "x",
            "data": {"source": "shop", "replay": "boolq", "replay_share": 0.25, **data},
            "evaluate": {"drift_passages": 2},
        }
    )


def test_replayed_passages_are_never_those_that_measure_drift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["a", "b", "c", "d", "e"]
    monkeypatch.setattr("sftkit.catalog.passages", lambda name, limit=None: texts[:limit])

    assert replayed_passages(_recipe(), beside=6) == ["d", "e"]  # 2 of 8 rows are a quarter
    assert replayed_passages(_recipe(), beside=9) == ["c", "d", "e"]
    with pytest.raises(DataError, match="needs 4 passages of boolq, and 3 are free"):
        replayed_passages(_recipe(), beside=12)
