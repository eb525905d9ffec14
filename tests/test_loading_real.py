"""The 135M model and MiniLM quantized: footprint, peak of loading, training, reload, and cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.adapter_files import load_adapter, save_adapter
from sftkit.catalog import dataset_rows, fetch_model
from sftkit.chat import encode_chat
from sftkit.holdings import held_bytes
from sftkit.model import load_as, load_model, load_tokenizer
from sftkit.objectives import chat_loss
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings
from sftkit.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(1800)]
CHECKOUT = Path(__file__).resolve().parent.parent


def settings(**changes: Any) -> ModelSettings:
    return ModelSettings(**{"device": "cpu", "dtype": "bfloat16", **changes})


PEAK = """
from sftkit.model import load_model
from sftkit.settings import ModelSettings
model = load_model(ModelSettings(device='cpu', dtype='bfloat16'))
status = open('/proc/self/status').read()
print(model.get_memory_footprint(), status.split('VmHWM:')[1].split()[0])
"""


def test_loading_in_16_bits_needs_no_room_for_a_second_copy():
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    load_model(settings())  # the 16-bit copy in the cache is there afterwards
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    weights, peak = (int(word) for word in done.stdout.split())
    print(f"weights {weights / 1e6:.0f} MB, peak of the process {peak / 1e3:.0f} MB")
    assert weights == pytest.approx(269e6, rel=0.01)
    assert peak * 1024 < 0.85e9


@pytest.mark.parametrize(
    ("changes", "megabytes"),
    [
        ({"dtype": "float32"}, 538),
        ({"quantization": "int8"}, 163),
        ({"quantization": "nf4"}, 112),
        ({"quantization": "nf4", "double_quantization": False}, 116),
    ],
)
def test_the_weights_take_what_the_type_promises(changes, megabytes):
    taken = held_bytes(load_model(settings(**changes)))
    print(f"{changes}: {taken / 1e6:.1f} MB")
    assert taken == pytest.approx(megabytes * 1e6, rel=0.02)


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
def test_a_quantized_base_trains_on_a_cpu_and_its_adapter_answers_alike_after_reload(
    quantization, tmp_path
):
    held = settings(quantization=quantization)
    source = fetch_model(held)
    tokenizer = load_tokenizer(held, source=source)
    rows = [row["messages"] for row in dataset_rows("shop")[:16]]
    examples = [encode_chat(row, tokenizer, max_tokens=128) for row in rows]
    tuned = attach_adapter(load_model(held, source=source), AdapterSettings(r=8, lora_alpha=16))
    plan = TrainSettings(epochs=3, max_tokens_per_batch=640, learning_rate=2e-3)
    steps = train(tuned, examples, plan, objective=chat_loss).steps
    print(f"{quantization}: loss {steps[0].loss:.2f} to {steps[-1].loss:.2f}, {len(steps)} steps")
    assert steps[-1].loss < steps[0].loss - 0.3
    save_adapter(tuned, tmp_path / "adapter")
    again = load_adapter(load_model(held, source=source), tmp_path / "adapter")
    ids = torch.tensor([examples[0].input_ids])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, tuned.eval()(ids).logits)


def sentence_vectors(quantization: str, texts: list[str]) -> torch.Tensor:
    """Give MiniLM's sentence vectors: the mean over tokens, of length 1."""
    from transformers import AutoModel

    held = settings(name="minilm-l6", dtype="float32", quantization=quantization)
    tokenizer = load_tokenizer(held)
    model = load_as(AutoModel, held, heads=["pooler"])
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def test_4_bits_cost_more_than_8_on_weights_that_were_never_on_a_4_bit_grid():
    texts = [row["messages"][0]["content"] for row in dataset_rows("shop")[:64]]
    exact = sentence_vectors("none", texts)
    kept = {
        kind: (exact * sentence_vectors(kind, texts)).sum(-1).mean().item()
        for kind in ("int8", "nf4", "fp4")
    }
    print({kind: round(value, 4) for kind, value in kept.items()})
    assert kept["int8"] > 0.995 > kept["nf4"] > kept["fp4"] > 0.8
