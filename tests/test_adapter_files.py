"""Adapters on disk and several on one base: what is checked, refused and kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.adapter import adapter_off, attach_adapter
from sftkit.adapter_files import load_adapter, merge_adapter, save_adapter, switch_adapter
from sftkit.errors import AdapterError
from sftkit.settings import AdapterSettings
from tests.conftest import make_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def fresh_base(layers: int = 2) -> Any:
    return make_model(vocab_size=258, layers=layers)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def saved(folder: Path, *, seed: int = 0, base_fingerprint: str = "", **settings: Any) -> Path:
    """Save an adapter whose weights are as if trained."""
    model = attach_adapter(fresh_base(), AdapterSettings(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return save_adapter(model, folder, base_fingerprint=base_fingerprint)


def change(folder: Path, name: str = "adapter_config.json", **fields: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def refusal(folder: Path, model: Any = None, **given: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(model or fresh_base(), folder, **given)
    return str(caught.value)


# ---- the base it was made for ----


def test_the_fingerprint_of_the_base_is_stored_and_compared(tmp_path):
    folder = saved(tmp_path / "a", r=4, base_fingerprint="sha256:aa")
    about = json.loads((folder / "sftkit.json").read_text(encoding="utf-8"))
    assert about == {"kind": "lora", "base_fingerprint": "sha256:aa"}
    load_adapter(fresh_base(), folder, base_fingerprint="sha256:aa")
    load_adapter(fresh_base(), folder)  # not known here: nothing to compare
    load_adapter(fresh_base(), folder, base_fingerprint="hub:x@main")  # another way to say it
    assert refusal(folder, base_fingerprint="sha256:bb").endswith(
        "was made for another base: its fingerprint is sha256:aa, this base's is sha256:bb. Use "
        "the base model it was made for."
    )


def test_an_adapter_of_others_has_no_fingerprint_and_loads(tmp_path):
    folder = saved(tmp_path / "a", r=4)
    expected = logits(load_adapter(fresh_base(), folder))
    (folder / "sftkit.json").unlink()
    loaded = load_adapter(fresh_base(), folder, base_fingerprint="sha256:bb")
    assert torch.equal(logits(loaded), expected)


def test_the_place_of_the_base_on_this_machine_is_not_written_down(tmp_path):
    base = fresh_base()
    home = tmp_path / "somebody" / "tiny-model"
    home.mkdir(parents=True)
    base.name_or_path = str(home)
    folder = save_adapter(attach_adapter(base, AdapterSettings(r=4)), tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny-model"


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'])
@pytest.mark.parametrize("name", ["sftkit.json", "adapter_config.json"])
def test_files_that_hold_no_object_are_refused_by_name(tmp_path, name, text):
    folder = saved(tmp_path / "a", r=4)
    (folder / name).write_text(text, encoding="utf-8")
    assert name in refusal(folder)


# ---- what peft is never given ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"custom_code": "x.py"}, "the field 'custom_code' is none of peft's LORA"),
        ({"peft_type": "EVIL"}, "peft_type 'EVIL' is no method"),
        ({"peft_type": ["LORA"]}, "is no method"),
        ({"peft_type": "XLORA"}, "XLORA loads other adapters by their paths"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "'megatron_config' would load"),
        ({"eva_config": {"rho": 1}}, "'eva_config' would load"),
        (
            {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
            "'auto_mapping' would load",
        ),
    ],
)
def test_a_configuration_with_foreign_or_unsafe_fields_is_refused(tmp_path, fields, message):
    folder = saved(tmp_path / "a", r=4)
    change(folder, **fields)
    assert message in refusal(folder)


def test_a_prompt_that_would_fetch_a_tokenizer_with_its_code_is_refused(tmp_path):
    folder = saved(tmp_path / "a", kind="prompt")
    change(
        folder, prompt_tuning_init="TEXT", tokenizer_name_or_path="evil/model",
        tokenizer_kwargs={"trust_remote_code": True},
    )  # fmt: skip
    message = refusal(folder)
    assert "'tokenizer_kwargs' would load" in message
    assert "'tokenizer_name_or_path' would load" in message


# ---- freeze and full ----


@pytest.mark.parametrize("kind", ["freeze", "full"])
def test_trained_weights_that_do_not_fit_are_refused(tmp_path, kind):
    folder = saved(tmp_path / kind, kind=kind)
    assert sorted(path.name for path in folder.iterdir()) == [
        "sftkit.json",
        "trained_weights.safetensors",
    ]
    assert "have no place there, such as model.layers.1." in refusal(folder, fresh_base(layers=1))
    assert "Load the base afresh" in refusal(folder, load_adapter(fresh_base(), folder))
    change(folder, "sftkit.json", kind="lora")
    assert "names no method that trains whole weights: 'lora'" in refusal(folder)
    change(folder, "sftkit.json", kind=kind)
    (folder / "trained_weights.safetensors").write_bytes(b"no")
    assert "trained_weights.safetensors is damaged" in refusal(folder)


# ---- several on one base ----


@pytest.mark.parametrize(("first", "second"), [("lora", "lora"), ("lora", "dora"), ("ia3", "ia3")])
def test_each_of_several_adapters_answers_as_it_does_alone(tmp_path, first, second):
    folders = {
        "one": saved(tmp_path / "one", kind=first, seed=1),
        "two": saved(tmp_path / "two", kind=second, seed=2),
    }
    alone = {name: logits(load_adapter(fresh_base(), at)) for name, at in folders.items()}
    base = logits(fresh_base())
    model = load_adapter(fresh_base(), folders["one"], name="one")
    assert load_adapter(model, folders["two"], name="two") is model
    for name in ("two", "one", "two"):
        switch_adapter(model, name)
        assert torch.equal(logits(model), alone[name])
        assert not [n for n, p in model.named_parameters() if p.requires_grad]
    with adapter_off(model):
        assert torch.equal(logits(model), base)
    switch_adapter(model, "one")
    assert float((logits(merge_adapter(model)) - alone["one"]).abs().max()) <= 1e-4


def test_names_are_kept_apart_and_a_second_adapter_needs_an_unchanged_base(tmp_path):
    folder, other = saved(tmp_path / "a", r=4), saved(tmp_path / "b", kind="ia3")
    model = load_adapter(fresh_base(), folder, name="one")
    assert "already carries an adapter named 'one'" in refusal(folder, model, name="one")
    for name in ("half", "a.b", " "):  # torch has a method of that name, or a rule against it
        assert f"cannot be named {name!r}" in refusal(folder, model, name=name)
    with pytest.raises(AdapterError, match=r"carries no adapter 'ones'\. Did you mean 'one'\?"):
        switch_adapter(model, "ones")
    assert "does not fit" in refusal(other, model, name="two")
    moved = load_adapter(fresh_base(), saved(tmp_path / "p", kind="pissa", r=4))
    assert "no longer as it was loaded" in refusal(folder, moved, name="two")


# ---- on a quantized base ----


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt"])
def test_on_a_four_bit_base_an_adapter_trains_comes_back_and_is_not_merged(tmp_path, kind):
    from transformers import LlamaConfig, LlamaForCausalLM

    from sftkit.model import load_model
    from sftkit.settings import ModelSettings

    config = LlamaConfig(  # a block of four-bit weights is 64 long
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = ModelSettings(
        name=str(tmp_path / "base"), quantization="nf4", dtype="float32", device="cpu"
    )
    base = load_model(settings)
    before = logits(base)
    model = attach_adapter(base, AdapterSettings(kind=kind))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()  # after it was scored: the gradients must still flow
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    model.eval()
    after = logits(model)
    with adapter_off(model):
        assert torch.equal(logits(model), before)
    loaded = load_adapter(load_model(settings), save_adapter(model, tmp_path / "adapter"))
    assert torch.equal(logits(loaded), after)
    with pytest.raises(AdapterError, match=r"The base is quantized|cannot be merged"):
        merge_adapter(model)
    with pytest.raises(AdapterError, match="changes the base's own weights"):
        attach_adapter(load_model(settings), AdapterSettings(kind="full"))
