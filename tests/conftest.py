"""Fixtures shared by all tests: a tiny real model and tokenizer, made in-process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.faults_table import pytest_terminal_summary, without_copies

__all__ = ["pytest_terminal_summary"]  # a hook: it prints what a run survives

# Set before torch is imported: two cores, and no network however a library is called.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is slow, not wrong; and the same code gives the same verdict in every run.
settings.register_profile("sftkit", deadline=None, derandomize=True, database=None)
settings.load_profile("sftkit")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(template: str = CHATML, specials: tuple[str, ...] = ()) -> Any:
    """Make a byte-level tokenizer without merges: one token per byte, plus control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",  # the hard case: padding looks like the end of a turn
        additional_special_tokens=["<|im_start|>", *specials],
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(*, vocab_size: int, layers: int = 2, seed: int = 0, width: int = 32) -> Any:
    """Make a Llama-type model small enough for unit tests, with tied embeddings as SmolLM2 has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=256,
        bos_token_id=None,
        eos_token_id=256,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compute on one thread: a tiny product on two took 200 times as long beside a busy process.

    Tests with a real model take all processors.
    """
    if torch := sys.modules.get("torch"):
        real = item.get_closest_marker("model") is not None
        torch.set_num_threads((os.cpu_count() or 1) if real else 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a test that another module shows among its own once."""
    items[:] = without_copies(items)


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A byte tokenizer with a ChatML template."""
    return make_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    """A two-layer Llama with random weights."""
    return make_model(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as anyone might have it; wide enough for a block of 4-bit weights."""
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer), width=64).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def checkout() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent
