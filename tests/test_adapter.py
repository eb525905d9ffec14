"""Adapters: nothing until trained, nothing when off, and plain PEFT folders on disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.adapter import (
    adapter_off,
    adapter_scaled,
    attach_adapter,
    count_parameters,
)
from sftkit.adapter_files import load_adapter, save_adapter
from sftkit.adapter_targets import find_targets
from sftkit.errors import AdapterError
from sftkit.settings import AdapterSettings
from tests.conftest import make_model

VOCABULARY = 258
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = [
    f"model.layers.{block}.{layer}"
    for block in range(2)
    for layer in (
        *(f"self_attn.{name}" for name in PROJECTIONS),
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def stirred(model: Any) -> Any:
    """Give every adapter weight a value, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def make_tuned(**settings: Any) -> Any:
    return attach_adapter(make_model(vocab_size=VOCABULARY), AdapterSettings(r=4, **settings))


def refusal(**settings: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        find_targets(make_model(vocab_size=VOCABULARY), AdapterSettings(**settings))
    return str(caught.value)


# ---- what an adapter changes ----


def test_a_fresh_adapter_changes_no_logit(tiny_model):
    before = logits(tiny_model)
    assert torch.equal(logits(attach_adapter(tiny_model, AdapterSettings(r=4))), before)


def test_a_trained_adapter_that_is_off_leaves_the_base_model_bit_for_bit(tiny_model):
    before = logits(tiny_model)
    tuned = stirred(attach_adapter(tiny_model, AdapterSettings(r=4)))
    assert not torch.equal(logits(tuned), before)
    with adapter_off(tuned):
        assert torch.equal(logits(tuned), before)
    assert not torch.equal(logits(tuned), before)


def test_an_adapter_scaled_to_nothing_leaves_the_base_model_bit_for_bit(tiny_model):
    before = logits(tiny_model)
    tuned = stirred(attach_adapter(tiny_model, AdapterSettings(r=4)))
    as_trained = logits(tuned)
    with adapter_scaled(tuned, 0.0):
        assert torch.equal(logits(tuned), before)
    assert torch.equal(logits(tuned), as_trained)
    with adapter_scaled(tuned, 1.0):
        assert torch.equal(logits(tuned), as_trained)


def test_half_the_scale_is_half_of_lora_alpha():
    half = stirred(make_tuned(lora_alpha=16))
    whole = stirred(make_tuned(lora_alpha=32))
    with adapter_scaled(whole, 0.5):
        assert torch.equal(logits(whole), logits(half))


def test_the_scale_comes_back_when_scoring_fails(tiny_model):
    tuned = stirred(attach_adapter(tiny_model, AdapterSettings(r=4)))
    as_trained = logits(tuned)
    for context in (adapter_scaled(tuned, 0.0), adapter_off(tuned)):
        with pytest.raises(KeyboardInterrupt), context:
            raise KeyboardInterrupt
        assert torch.equal(logits(tuned), as_trained)


def test_the_same_seed_makes_the_same_first_weights():
    first, second, other = (
        attach_adapter(make_model(vocab_size=VOCABULARY), AdapterSettings(r=4), seed=seed)
        for seed in (7, 7, 8)
    )
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    weights = [dict(model.named_parameters())[name] for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_adapter_is_float32_over_a_bfloat16_base():
    model = make_model(vocab_size=VOCABULARY).to(torch.bfloat16)
    tuned = attach_adapter(model, AdapterSettings(r=4))
    kinds = {(p.requires_grad, p.dtype) for p in tuned.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_settings_reach_the_adapters_own_configuration():
    tuned = make_tuned(lora_alpha=12, lora_dropout=0.25)
    config = tuned.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.25)
    assert config.task_type == "CAUSAL_LM"
    assert config.use_rslora is False


# ---- where it goes ----


def test_all_linear_is_every_linear_layer_but_the_output_head(tiny_model):
    assert find_targets(tiny_model, AdapterSettings()) == LINEAR
    tuned = attach_adapter(tiny_model, AdapterSettings(r=4))
    adapted = [
        name.removeprefix("base_model.model.")
        for name, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    ]
    assert adapted == LINEAR


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"target_modules": ("q_proj", "v_proj")},
            [n for n in LINEAR if n.endswith(("q_proj", "v_proj"))],
        ),
        ({"target_modules": "down_proj"}, [n for n in LINEAR if n.endswith("down_proj")]),
        ({"target_modules": r".*\.1\..*(q|k)_proj"}, [LINEAR[7], LINEAR[8]]),
        ({"target_modules": ("self_attn.o_proj",)}, [LINEAR[3], LINEAR[10]]),
        ({"layers": (1, 1)}, LINEAR[7:]),
        ({"layers": (0, 1)}, LINEAR),
        ({"layers": (0, 0), "target_modules": ("q_proj",)}, [LINEAR[0]]),
    ],
)
def test_targets_are_chosen_by_name_pattern_and_block(tiny_model, settings, expected):
    assert find_targets(tiny_model, AdapterSettings(**settings)) == expected


def test_a_target_that_matches_nothing_is_refused_with_near_names():
    assert refusal(target_modules=("q_proj", "v_pro")) == (
        "adapter.target_modules 'v_pro' matches no linear layer of LlamaForCausalLM. Did you mean "
        "'v_proj' or 'q_proj' or 'o_proj'?"
    )
    assert refusal(target_modules="all_linear").endswith(" Did you mean 'all-linear'?")
    assert refusal(target_modules=("c_attn.weight",)) == (
        "adapter.target_modules 'c_attn.weight' matches no linear layer of LlamaForCausalLM. "
        "Valid: all-linear, attention, down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, "
        "v_proj."
    )


def test_the_output_head_and_the_embeddings_are_no_targets():
    for name in ("lm_head", "embed_tokens"):
        assert f"{name!r} matches no linear layer" in refusal(target_modules=(name,))


def test_a_pattern_that_is_no_regular_expression_is_refused_in_words():
    assert refusal(target_modules="q_proj(").startswith(
        "adapter.target_modules 'q_proj(' is no regular expression: missing ), "
    )


@pytest.mark.parametrize("layers", [(0, 2), (2, 3), (5, 9)])
def test_layers_outside_the_model_are_refused(layers):
    assert refusal(layers=layers) == (
        f"adapter.layers={list(layers)} lies outside the model, whose blocks are 0 to 1."
    )


def test_layers_that_hold_nothing_of_a_pattern_are_refused_for_that_reason():
    assert refusal(layers=(0, 0), target_modules=r".*\.1\..*q_proj") == (
        r"adapter.layers=[0, 0] holds none of the layers that adapter.target_modules "
        r"'.*\\.1\\..*q_proj' matches; they are in blocks 1. Change one of both."
    )


@pytest.mark.parametrize("word", ["all-linear", "attention"])
def test_a_word_in_brackets_is_the_word(tiny_model, word):
    found = find_targets(tiny_model, AdapterSettings(target_modules=(word,)))
    assert found == find_targets(tiny_model, AdapterSettings(target_modules=word))
    assert found


# ---- counting ----


def test_parameters_are_counted_by_hand(tiny_model):
    # Per block, rank 4: q and o are 32x32, k and v 16x32, gate and up 64x32, down 32x64.
    by_hand = 2 * 4 * (2 * (32 + 32) + 2 * (16 + 32) + 3 * (32 + 64))
    base = count_parameters(tiny_model)
    tuned = count_parameters(attach_adapter(tiny_model, AdapterSettings(r=4)))
    assert base.trainable == 0
    assert (tuned.trainable, tuned.total) == (by_hand, base.total + by_hand)
    assert str(tuned) == "4,096 of 30,944 parameters are trained (13.24%)"


# ---- on disk ----


def test_a_saved_adapter_loads_with_plain_peft_and_answers_the_same(tmp_path):
    from peft import PeftModel

    tuned = stirred(make_tuned(target_modules=("q_proj", "down_proj"), layers=(1, 1)))
    expected = logits(tuned)
    folder = save_adapter(tuned, tmp_path / "adapter")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "sftkit.json",
    ]
    plain = PeftModel.from_pretrained(make_model(vocab_size=VOCABULARY), str(folder))
    assert torch.equal(logits(plain.eval()), expected)


def test_a_saved_adapter_loads_with_ours_frozen_and_ready_to_answer(tmp_path):
    tuned = stirred(make_tuned())
    folder = save_adapter(tuned, tmp_path / "adapter")
    loaded = load_adapter(make_model(vocab_size=VOCABULARY), folder)
    assert torch.equal(logits(loaded), logits(tuned))
    assert not loaded.training
    assert count_parameters(loaded).trainable == 0


class Canary:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    folder = save_adapter(make_tuned(), tmp_path / "adapter")
    canary = tmp_path / "the pickle ran"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"holds no adapter_model\.safetensors\. Pickled"):
        load_adapter(make_model(vocab_size=VOCABULARY), folder)
    assert not canary.exists()
    pickle.loads((folder / "adapter_model.bin").read_bytes())
    assert canary.exists()  # the canary does sing when it is opened


def test_a_pickle_beside_safetensors_is_not_opened_either(tmp_path):
    folder = save_adapter(make_tuned(), tmp_path / "adapter")
    canary = tmp_path / "the pickle ran"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    load_adapter(make_model(vocab_size=VOCABULARY), folder)
    assert not canary.exists()


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"is no adapter folder: adapter_config\.json is miss"):
        load_adapter(make_model(vocab_size=VOCABULARY), tmp_path)


def test_an_adapter_of_another_model_is_refused_in_words(tmp_path):
    folder = save_adapter(make_tuned(), tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"does not fit LlamaForCausalLM"):
        load_adapter(make_model(vocab_size=VOCABULARY, layers=1), folder)


def test_a_damaged_adapter_is_refused_in_words(tmp_path):
    folder = save_adapter(make_tuned(), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        load_adapter(make_model(vocab_size=VOCABULARY), folder)
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_adapter(make_model(vocab_size=VOCABULARY), folder)


def test_an_adapter_that_targets_nothing_here_is_refused_in_words(tmp_path):
    folder = save_adapter(make_tuned(), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = ["c_attn"]
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"does not fit LlamaForCausalLM"):
        load_adapter(make_model(vocab_size=VOCABULARY), folder)


def test_a_model_that_carries_an_adapter_gets_no_second_one(tiny_model):
    once: Any = attach_adapter(tiny_model, AdapterSettings(r=2))

    with pytest.raises(AdapterError, match="already carries an adapter"):
        attach_adapter(once, AdapterSettings(r=2))
