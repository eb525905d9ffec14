"""Loading the base: the type chosen by timing, the device, quantization, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftkit.adapter import attach_adapter, count_parameters
from sftkit.catalog import fetch_model
from sftkit.chat import encode_chat
from sftkit.errors import ModelError
from sftkit.model import load_model, load_tokenizer, pick_device, pick_dtype
from sftkit.objectives import chat_loss
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings
from sftkit.train import train
from tests.conftest import CHATML, make_model, make_tokenizer

CHECKOUT = Path(__file__).resolve().parent.parent
CPU = {"device": "cpu", "dtype": "float32"}


def settings_of(folder: Path, **changes: Any) -> ModelSettings:
    return ModelSettings(name=str(folder), **{**CPU, **changes})


# ---- dtype and device ----


def test_a_cpu_without_16_bit_instructions_gets_float32():
    code = (
        "from sftkit.model import pick_dtype; from sftkit.settings import ModelSettings; "
        "choice = pick_dtype(ModelSettings(device='cpu')); print(choice.name, choice.reason)"
    )
    capped = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT, env=capped, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("float32 auto (one product: float32 ")


def test_choosing_a_type_is_quick_and_its_reason_gives_both_timings():
    torch.ones(8, 8) @ torch.ones(8, 8)  # torch is up
    started = time.perf_counter()
    choice = pick_dtype(ModelSettings(device="cpu"))
    seconds = time.perf_counter() - started
    print(f"pick_dtype took {seconds:.3f} s: {choice.reason}")
    assert seconds < 2.0  # 0.02 s on a quiet machine; the bound only catches the hopeless
    assert choice.dtype in (torch.float32, torch.bfloat16)
    words = choice.reason.split()
    full, half = float(words[4].rstrip(",")), float(words[6])
    assert (choice.name, words[:4]) == (
        "bfloat16" if half >= full else "float32",
        ["auto", "(one", "product:", "float32"],
    )
    assert choice.gflops > 0


def test_a_type_that_was_asked_for_is_taken():
    choice = pick_dtype(ModelSettings(device="cpu", dtype="bfloat16"))
    assert (choice.dtype, choice.reason) == (torch.bfloat16, "asked for")


def test_float16_on_a_cpu_is_refused():
    # Only the machine knows that auto means the CPU here, so the recipe could not refuse it.
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("auto is no CPU on this machine")
    with pytest.raises(ModelError, match=r"^model\.dtype=float16 cannot train on a CPU\. Use dtyp"):
        pick_dtype(ModelSettings(device="auto", dtype="float16"))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_what_is(device):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there[device]:
        assert pick_device(ModelSettings(device=device)).type == device
        return
    with pytest.raises(ModelError) as caught:
        pick_device(ModelSettings(device=device))
    have = ", ".join([name for name, present in there.items() if present] + ["cpu"])
    assert str(caught.value) == (
        f"model.device={device} was asked for, but torch {torch.__version__} sees only {have} "
        "here. Use device: auto."
    )


def test_auto_takes_the_fastest_kind_of_device_there_is():
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    expected = next((name for name, present in kinds.items() if present), "cpu")
    assert pick_device(ModelSettings()).type == expected


# ---- loading ----


def test_a_folder_loads_frozen_in_evaluation_mode_with_the_same_weights(folder):
    model = load_model(settings_of(folder))
    original = make_model(vocab_size=258, width=64).state_dict()
    assert all(torch.equal(original[name], w) for name, w in model.state_dict().items())
    assert not model.training
    assert count_parameters(model).trainable == 0
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("asked", "given"), [("auto", "eager"), ("eager", "eager"), ("sdpa", "sdpa")]
)
def test_attention_is_eager_on_a_cpu_unless_asked_otherwise(folder, asked, given):
    assert load_model(settings_of(folder, attention=asked)).config._attn_implementation == given


def test_the_type_reaches_the_weights(folder):
    assert load_model(settings_of(folder, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_model(settings_of(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_tokenizer_comes_with_its_template(folder):
    tokenizer = load_tokenizer(settings_of(folder))
    assert tokenizer.chat_template == CHATML
    assert tokenizer("hi", add_special_tokens=False)["input_ids"] == [
        make_tokenizer().vocab[letter] for letter in "hi"
    ]


def test_code_in_a_model_folder_is_never_run(folder, tmp_path):
    canary = tmp_path / "the code ran"
    (folder / "custom.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "class Config: model_type = 'custom'\nclass Model: pass\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    remote = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    config |= {"auto_map": remote, "model_type": "custom"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"code of its own \(auto_map\) .* is never run\. Use a mod"
    ):
        load_model(settings_of(folder))
    assert not canary.exists()


def test_code_in_a_tokenizer_folder_is_never_run(folder, tmp_path):
    canary = tmp_path / "the code ran"
    (folder / "custom.py").write_text(f"open({str(canary)!r}, 'w').close()\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {
        "auto_map": {"AutoTokenizer": ["custom.Slow", "custom.Fast"]},
        "tokenizer_class": "Custom",
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    with contextlib.suppress(ModelError):  # it may also fall back on tokenizer.json
        load_tokenizer(settings_of(folder))
    assert not canary.exists()


def test_a_folder_without_a_tokenizer_is_refused_in_words(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="No tokenizer could be loaded for "):
        load_tokenizer(settings_of(folder))


def test_damaged_weights_are_refused_in_words(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a chat model"):
        load_model(settings_of(folder))


def test_missing_weights_are_refused_and_not_made_up(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(settings_of(folder))
    assert str(caught.value) == (
        f"{str(folder)!r} lacks 2 of its weights, such as model.layers.1.mlp.up_proj.weight. Its "
        "files are incomplete, or belong to another kind of model; fetch it again."
    )


def test_weights_of_another_shape_are_refused_in_words(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"intermediate_size": 48}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="cannot be loaded as a chat model"):
        load_model(settings_of(folder))


# ---- quantization ----


@pytest.mark.parametrize(
    ("quantization", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")]
)
def test_a_quantized_base_loads_on_a_cpu_and_its_adapter_learns(folder, quantization, layer):
    settings = settings_of(folder, quantization=quantization)
    model = load_model(settings, source=fetch_model(settings))
    kinds = {type(block.self_attn.q_proj).__name__ for block in model.model.layers}
    assert kinds == {layer}
    assert (
        count_parameters(model).total
        == count_parameters(make_model(vocab_size=258, width=64)).total
    )
    tokenizer = load_tokenizer(settings)
    rows = [
        [{"role": "user", "content": "Say A."}, {"role": "assistant", "content": "A A A A"}],
        [{"role": "user", "content": "Say B."}, {"role": "assistant", "content": "B B B B"}],
    ]
    examples = [encode_chat(messages, tokenizer, max_tokens=200) for messages in rows]
    tuned = attach_adapter(model, AdapterSettings(r=4))
    record = train(
        tuned,
        examples,
        TrainSettings(max_tokens_per_batch=400, epochs=5, learning_rate=1e-2),
        objective=chat_loss,
    )
    assert record.steps[-1].loss < record.steps[0].loss - 0.05
