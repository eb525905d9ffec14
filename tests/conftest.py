"""Fixtures shared by all tests: a tiny real model and tokenizer, made in-process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Set before torch is imported: two cores, and no network however a library is called.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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


def make_model(*, vocab_size: int, layers: int = 2, seed: int = 0) -> Any:
    """Make a Llama-type model small enough for unit tests, with tied embeddings as SmolLM2 has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=256,
        bos_token_id=None,
        eos_token_id=256,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A byte tokenizer with a ChatML template."""
    return make_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    """A two-layer Llama with random weights."""
    return make_model(vocab_size=len(tiny_tokenizer))


@pytest.fixture
def checkout() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent
