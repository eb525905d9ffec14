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
    for given, written in (
        (tmp_path / "somebody" / "tiny.gguf", "tiny.gguf"),  # a file, and gone by now
        ("hub/tiny", "hub/tiny"),
    ):
        base = fresh_base()
        base.name_or_path = str(given)
        folder = save_adapter(attach_adapter(base, AdapterSettings(r=4)), tmp_path / "a")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == written


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
        ({"arrow_config": {"top_k": 1}}, "'arrow_config' would load"),
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


def test_a_shadow_that_would_fetch_a_model_by_name_is_refused(tmp_path):
    folder = saved(tmp_path / "a", r=4)
    shadow = {"peft_type": "SHADOW", "shadow_model": "evil/model"}
    (folder / "adapter_config.json").write_text(json.dumps(shadow), encoding="utf-8")
    assert "the field 'shadow_model' would load" in refusal(folder)


def test_a_weight_that_cannot_be_read_is_refused_in_our_words(tmp_path, monkeypatch):
    from sftkit import adapter_files

    def broken(folder: Path) -> Any:
        raise OSError("read error")

    folder = saved(tmp_path / "a", r=4)
    monkeypatch.setattr(adapter_files, "_shapes", broken)
    assert refusal(folder).endswith("does not fit LlamaForCausalLM: read error")


def other_weights(
    folder: Path, added: dict[str, torch.Tensor] | None = None, *, gone: str = ""
) -> None:
    """Change what an adapter's file holds."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if not (gone and gone in n)}
    save_file(tensors | (added or {}), path)


@pytest.mark.parametrize("kind", ["lora", "pissa", "ia3", "prompt"])
@pytest.mark.parametrize("loaded", [False, True])
def test_an_adapter_that_names_weights_of_the_base_is_refused_and_leaves_no_trace(
    tmp_path, kind, loaded
):
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    astray = {
        f"{layer}.base_layer.weight": torch.full((32, 32), 3.0),
        f"{layer}.weight": torch.full((32, 32), 3.0),
        "base_model.model.model.norm.weight": torch.full((32,), 3.0),
        "base_model.model.lm_head.weight": torch.full((258, 32), 3.0),
    }
    model = fresh_base()
    if loaded:
        model = load_adapter(model, saved(tmp_path / "one", kind=_beside(kind)), name="one")
    before, names = logits(model), [n for n, _ in model.named_parameters()]
    folder = saved(tmp_path / "evil", kind=kind)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for key, value in astray.items():
        (folder / "adapter_model.safetensors").write_bytes(whole)
        other_weights(folder, {key: value})
        message = refusal(folder, model, name="two")
        assert f"1 of its weights have no place there or are missing, such as {key}" in message
        assert torch.equal(logits(model), before)
        assert [n for n, _ in model.named_parameters()] == names
        assert list(getattr(model, "peft_config", {})) == (["one"] if loaded else [])
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    good = saved(tmp_path / "good", kind=_beside(kind), seed=3)  # the name is free again
    alone = logits(load_adapter(fresh_base(), good))
    assert torch.equal(logits(load_adapter(model, good, name="two")), alone)


def _beside(kind: str) -> str:
    return "lora" if kind == "pissa" else kind


@pytest.mark.parametrize("loaded", [False, True])
def test_every_refusal_leaves_the_model_as_it_was(tmp_path, loaded):
    def less(folder: Path) -> None:
        other_weights(folder, gone="layers.0.self_attn.q_proj.lora_B")

    def larger(folder: Path) -> None:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
        other_weights(folder, {name: torch.ones(32, 5)})

    def damaged(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"no")

    def elsewhere(folder: Path) -> None:
        change(folder, target_modules=["c_attn"])

    model = fresh_base()
    if loaded:
        model = load_adapter(model, saved(tmp_path / "one", r=4), name="one")
    before, names = logits(model), [n for n, _ in model.named_parameters()]
    for spoil in (less, larger, damaged, elsewhere):
        folder = saved(tmp_path / spoil.__name__, r=4)
        spoil(folder)
        refusal(folder, model, name="two")
        assert torch.equal(logits(model), before)
        assert [n for n, _ in model.named_parameters()] == names
        assert list(getattr(model, "peft_config", {})) == (["one"] if loaded else [])


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


def test_trained_weights_that_are_not_whole_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "a", kind="freeze")
    path = folder / "trained_weights.safetensors"
    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    save_file(tensors, path)
    assert (
        "is not whole: 1 of the weights that sftkit.json lists are missing, such as model.norm"
        in (refusal(folder))
    )


# ---- several on one base ----


def test_of_several_adapters_the_active_one_is_saved_at_the_root(tmp_path):
    folders = {name: saved(tmp_path / name, seed=n) for n, name in enumerate(("default", "two"))}
    model = load_adapter(fresh_base(), folders["default"])
    model = load_adapter(model, folders["two"], name="two")
    for name in ("two", "default"):
        switch_adapter(model, name)
        again = save_adapter(model, tmp_path / f"{name} again")
        assert sorted(path.name for path in again.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "sftkit.json",
        ]
        assert torch.equal(logits(load_adapter(fresh_base(), again)), logits(model))


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
