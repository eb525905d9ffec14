"""Loading: what is refused before weights are read, placement, dropout, formats, lean copies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftkit import catalog, loading, weights
from sftkit.adapter import attach_adapter
from sftkit.catalog import fetch_model
from sftkit.errors import FetchError, ModelError
from sftkit.loading import FORMATS, RULES, Case, check_loading, dropout_fields, quantized_as
from sftkit.model import check_trainable, load_model
from sftkit.settings import AdapterSettings, ModelSettings
from tests.conftest import make_model, make_tokenizer

LLAMA = {"model_type": "llama"}


def case(config: dict[str, Any] | None = None, **changes: Any) -> Case:
    """Give a case that breaks no rule, but for the changes."""
    device = changes.pop("device", "cpu")
    dtype = changes.pop("dtype", torch.bfloat16)
    return Case(
        name="m", settings=ModelSettings(**changes), config={**LLAMA, **(config or {})},
        device=device, dtype=dtype,
    )  # fmt: skip


def quantized(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


FLASH: dict[str, Any] = {"attention": "flash_attention_2"}
BROKEN = {
    "code of its own": (
        case({"model_type": "custom", "auto_map": {"AutoConfig": "custom.Config"}}),
        "its config.json names code of its own (auto_map) for the model type 'custom', and such "
        "code is never run. Use a model type that transformers has itself.",
    ),
    "quantized twice": (
        case(quantized("gptq", bits=4), quantization="nf4"),
        "model.quantization=nf4 on top of weights that are already quantized (gptq). Use "
        "quantization: none, or the model it was made from.",
    ),
    "unknown format": (
        case(quantized("exl9")),
        f"its weights are quantized as 'exl9'; known here are {', '.join(FORMATS)}. Use the model "
        "it was made from.",
    ),
    "format needs a GPU": (
        case(quantized("vptq")),
        "weights quantized as vptq run on a CUDA GPU only, and the device is cpu. Use the model it "
        "was made from; quantization: nf4 works on a CPU.",
    ),
    "format needs a package": (
        case(quantized("gptq")),
        "weights quantized as gptq need optimum and gptqmodel. Run: pip install optimum gptqmodel",
    ),
    "bitsandbytes missing": (
        case(quantization="int8"),
        "model.quantization=int8 needs it. Run: pip install 'bitsandbytes>=0.49'",
    ),
    "quantization on mps": (
        case(quantization="fp4", device="mps"),
        "model.quantization=fp4 needs a CPU or CUDA device, got mps. Use quantization: none, or "
        "device: cpu.",
    ),
    "4 bits in narrow rows": (
        case({"hidden_size": 96, "intermediate_size": 256}, quantization="fp4"),
        "model.quantization=fp4 on a CPU, with layers of width 96: bitsandbytes reads 4-bit rows "
        "wrongly there when they are no multiple of 64. Use quantization: int8, or none.",
    ),
    "quantized layers on disk": (
        case(quantization="nf4", device_map="auto", offload_folder="away"),
        "model.quantization=nf4 with model.offload_folder: quantized layers cannot be kept on "
        "disk. Drop offload_folder, or use quantization: none.",
    ),
    "memory of an unknown device": (
        case(device_map="auto", max_memory={"0": "10GB", "cpu": "1GB"}),
        "model.max_memory names 0; with device: auto this machine has cpu.",
    ),
    "flash attention without CUDA": (
        case(**FLASH),
        "model.attention=flash_attention_2 needs a CUDA GPU, and the device is cpu. Use "
        "attention: auto.",
    ),
    "flash attention on an old GPU": (
        case(**FLASH, device="cuda"),
        "model.attention=flash_attention_2 needs a GPU of compute capability 8.0, and this one "
        "has 7.5. Use attention: sdpa.",
    ),
    "flash attention missing": (
        case(**FLASH),
        "model.attention=flash_attention_2 needs the package flash_attn. Run: pip install "
        "flash-attn --no-build-isolation; or use attention: sdpa.",
    ),
    "flash attention in float32": (
        case(**FLASH, dtype=torch.float32),
        "model.attention=flash_attention_2 computes in 16 bits, and the type is float32. Use "
        "dtype: bfloat16, or attention: sdpa.",
    ),
    "nothing to drop": (
        case({"model_type": "resnet"}, dropout=0.1),
        "model.dropout=0.1, but a resnet model has no dropout of its own. Use "
        "adapter.lora_dropout.",
    ),
}  # fmt: skip


@pytest.fixture
def nothing_installed(monkeypatch):
    """A machine without the optional packages, and with a T4 where CUDA is asked after."""
    monkeypatch.setattr(loading, "_is_here", lambda module: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize("rule", RULES)
def test_each_impossible_combination_is_refused_with_what_would_work(rule, nothing_installed):
    broken, words = BROKEN[rule]
    assert RULES[rule](broken) == words
    with pytest.raises(ModelError) as caught:
        check_loading(broken)
    assert f"\n  - {words}" in str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_stops_what_works(rule, monkeypatch):
    monkeypatch.setattr(loading, "_is_here", lambda module: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    native = {"auto_map": {"AutoConfig": "old.Config"}}  # transformers has a llama of its own
    for fine in (
        case(native, dropout=0.1),
        case(quantized("gptq")),
        case(quantized("vptq"), device="cuda"),
        case({"hidden_size": 128, "intermediate_size": 192}, quantization="nf4"),
        case({"hidden_size": 96}, quantization="int8"),
        case(quantization="int8", device="cuda", device_map="auto", max_memory={"0": "9GB"}),
        case(device_map="auto", offload_folder="away", max_memory={"cpu": "1GB"}),
        case(**FLASH, device="cuda"),
    ):
        assert RULES[rule](fine) is None


def test_all_reasons_are_told_at_once(nothing_installed):
    broken = case(quantized("awq"), **FLASH, quantization="nf4", dtype=torch.float32)
    with pytest.raises(ModelError) as caught:
        check_loading(broken)
    heads = [line[4:30] for line in str(caught.value).splitlines()[1:]]
    assert heads == [
        "model.quantization=nf4 on ", "weights quantized as awq n", "model.quantization=nf4 nee",
        "model.attention=flash_atte", "model.attention=flash_atte", "model.attention=flash_atte",
    ]  # fmt: skip


def test_a_refusal_comes_before_weights_are_read(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | quantized("eetq")), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_model(ModelSettings(name=str(folder), device="cpu", dtype="float32"))
    assert "weights quantized as eetq run on a CUDA GPU only" in str(caught.value)


def test_a_package_inside_a_package_that_is_not_there_is_not_there():
    assert not loading._is_here("no_such_package.part")
    assert loading._is_here("transformers")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (None, None),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"bits": 4}, "an unnamed format"),
    ],
)
def test_the_format_is_read_from_the_configuration(said, name):
    assert quantized_as({"quantization_config": said} if said else {}) == name


# ---- quantization ----


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_type_of_4_bit_double_quantization_and_compute_type_reach_the_layers(
    folder, quantization, double
):
    model = load_model(
        ModelSettings(
            name=str(folder), device="cpu", dtype="bfloat16", quantization=quantization,
            double_quantization=double,
        )
    )  # fmt: skip
    layer = model.model.layers[0].mlp.up_proj
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested) == (quantization, double)
    assert layer.compute_dtype == torch.bfloat16
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_weights_that_were_saved_quantized_load_as_they_were(folder, tmp_path, quantization):
    settings = ModelSettings(name=str(folder), device="cpu", dtype="float32")
    made = load_model(dataclasses.replace(settings, quantization=quantization))
    made.save_pretrained(tmp_path / "quantized")
    again = dataclasses.replace(settings, name=str(tmp_path / "quantized"))
    ids = torch.tensor([[72, 73, 74]])
    with torch.no_grad():
        assert torch.equal(load_model(again)(ids).logits, made(ids).logits)
    with pytest.raises(ModelError, match=r"already quantized \(bitsandbytes\)"):
        load_model(dataclasses.replace(again, quantization="nf4"))


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_an_evaluation_between_two_steps_changes_no_gradient(folder, quantization):
    settings = ModelSettings(
        name=str(folder), device="cpu", dtype="float32", quantization=quantization
    )
    tuned = attach_adapter(load_model(settings), AdapterSettings(r=2))
    ids = torch.tensor([[72, 73, 74]])

    def gradients() -> list[torch.Tensor]:
        tuned.train().zero_grad()
        tuned(ids).logits.square().sum().backward()
        return [p.grad.clone() for p in tuned.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        tuned.eval()(ids)
    assert all(map(torch.equal, before, gradients()))


# ---- placement ----


def test_layers_that_no_device_holds_go_to_disk_and_answer_alike(folder, tmp_path):
    settings = ModelSettings(name=str(folder), device="cpu", dtype="float32")
    ids = torch.tensor([[72, 73, 74]])
    with torch.no_grad():
        whole = load_model(settings)(ids).logits
        spread: Any = load_model(
            dataclasses.replace(
                settings, device_map="sequential", max_memory={"cpu": "300KB"},
                offload_folder=str(tmp_path / "away"),
            )
        )  # fmt: skip
        assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
        assert torch.equal(spread(ids).logits, whole)
    with pytest.raises(ModelError, match=r"offloaded to cpu, disk\. It can answer so, but trai"):
        check_trainable(spread)


def test_without_a_folder_nothing_goes_to_disk(folder):
    settings = ModelSettings(
        name=str(folder), device="cpu", dtype="float32", device_map="auto",
        max_memory={"cpu": "300KB"},
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"does not fit .* Raise model\.max_memory, use quantizat"):
        load_model(settings)


def test_a_map_on_one_device_keeps_the_model_whole_and_trainable(folder):
    model = load_model(
        ModelSettings(name=str(folder), device="cpu", dtype="float32", device_map="auto")
    )
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    check_trainable(model)


def test_quantization_that_lets_no_gradient_through_is_refused_for_training(folder, monkeypatch):
    model: Any = load_model(
        ModelSettings(name=str(folder), device="cpu", dtype="float32", quantization="nf4")
    )
    check_trainable(model)
    quantizer = model.hf_quantizer
    monkeypatch.setattr(type(quantizer), "is_trainable", False)
    with pytest.raises(ModelError, match="as bitsandbytes let no gradient through"):
        check_trainable(model)


# ---- dropout ----


def test_dropout_reaches_the_model_and_works_in_training_only(folder):
    settings = ModelSettings(name=str(folder), device="cpu", dtype="float32", dropout=0.5)
    model = load_model(settings)
    assert model.config.attention_dropout == 0.5
    ids = torch.tensor([[72, 73, 74, 75]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
    assert load_model(dataclasses.replace(settings, dropout=None)).config.attention_dropout == 0.0


def test_every_kind_of_dropout_a_configuration_has_is_found():
    assert tuple(sorted(dropout_fields({"model_type": "bert"}))) == (
        "attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout_prob",
    )  # fmt: skip
    assert tuple(sorted(dropout_fields({"model_type": "gpt2"}))) == (
        "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout",
    )  # fmt: skip
    assert dropout_fields({"model_type": "resnet"}) == ()


# ---- a 16-bit copy in the cache ----


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A float32 model in a cache of its own."""
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "models" / "tiny"
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_copy_gives_bit_for_bit_the_weights_of_plain_loading(cached, dtype):
    from transformers import AutoModelForCausalLM

    source = fetch_model(ModelSettings(name=str(cached)))
    copy = Path(weights.lean_folder(source, dtype))
    assert copy.parent == cached
    plain = AutoModelForCausalLM.from_pretrained(cached, dtype=dtype).state_dict()
    lean = AutoModelForCausalLM.from_pretrained(copy, dtype=dtype).state_dict()
    assert list(plain) == list(lean)
    assert all(torch.equal(plain[name], lean[name]) for name in plain)
    assert load_file(copy / "model.safetensors")["model.norm.weight"].dtype == dtype


def test_a_copy_leaves_the_fingerprint_alone_and_is_written_once(cached):
    settings = ModelSettings(name=str(cached), device="cpu", dtype="bfloat16")
    before = fetch_model(settings)
    load_model(settings)
    copy = Path(weights.lean_folder(before, torch.bfloat16))
    written = (copy / "model.safetensors").stat().st_mtime_ns
    load_model(settings)
    assert (copy / "model.safetensors").stat().st_mtime_ns == written
    assert fetch_model(settings) == before
    assert catalog._holds_model(cached)


def test_another_source_gets_another_copy(cached):
    source = fetch_model(ModelSettings(name=str(cached)))
    first = weights.lean_folder(source, torch.bfloat16)
    make_model(vocab_size=258, seed=1).save_pretrained(cached)
    changed = fetch_model(ModelSettings(name=str(cached)))
    assert changed.fingerprint != source.fingerprint
    assert weights.lean_folder(changed, torch.bfloat16) != first


def test_what_gains_nothing_is_loaded_from_where_it_lies(cached, folder, monkeypatch):
    source = fetch_model(ModelSettings(name=str(cached)))
    assert weights.lean_folder(source, torch.float32) == source.path
    own = fetch_model(ModelSettings(name=str(folder)))  # nothing is written beside people's files
    assert weights.lean_folder(own, torch.bfloat16) == own.path
    make_model(vocab_size=258).to(torch.float16).save_pretrained(cached)
    half = fetch_model(ModelSettings(name=str(cached)))
    assert weights.lean_folder(half, torch.bfloat16) == half.path


def test_a_cache_that_cannot_be_written_is_read_all_the_same(cached, monkeypatch):
    def refuse(*args):
        raise FetchError("full")

    source = fetch_model(ModelSettings(name=str(cached)))
    monkeypatch.setattr(weights, "filled_atomically", refuse)
    assert weights.lean_folder(source, torch.bfloat16) == source.path


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "distilbert", "dim": 96, "hidden_dim": 128},
        {"model_type": "distilbert", "dim": 128, "hidden_dim": 96},
        {"text_config": {"hidden_size": 96}},
        {"num_attention_heads": 3, "head_dim": 32},
    ],
    ids=str,
)
def test_narrow_rows_are_found_wherever_a_configuration_writes_them(config):
    fault = RULES["4 bits in narrow rows"](case(config, quantization="nf4"))
    assert fault is not None
    assert "layers of width 96:" in fault


def test_a_list_of_widths_is_no_width_of_a_row():
    listed = case({"hidden_sizes": [96], "hidden_size": [96, 192]}, quantization="nf4")
    assert RULES["4 bits in narrow rows"](listed) is None


def test_a_look_ahead_for_a_flash_gpu_that_is_not_here_is_no_fault():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert RULES["flash attention on an old GPU"](case(**FLASH, device="cuda")) is None


@pytest.mark.parametrize("task", ["chat", "classify"])
def test_a_run_refuses_before_its_data_are_read(task, folder, tmp_path):
    from sftkit.recipe import recipe_from_dict
    from sftkit.run import run

    recipe = recipe_from_dict(
        {
            "name": "x",
            "model": {"name": str(folder), "device": "cpu", "dtype": "float32", **FLASH},
            "data": {"source": str(tmp_path / "no-such-file.jsonl"), "task": task},
            "evaluate": {"probes": [], "drift_passages": 0},
        }
    )
    with pytest.raises(ModelError, match="flash_attention_2 needs a CUDA GPU"):
        run(recipe, tmp_path / "out")
