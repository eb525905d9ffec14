"""What servers refuse or get wrong is known before they are started."""

from __future__ import annotations

import shlex

import pytest

from sftkit.serving import (
    ServingFinding,
    injected_system,
    lint_serving,
    ollama_modelfile,
    vllm_command,
    vllm_rank,
)
from tests.conftest import CHATML, make_tokenizer

PLAIN = {
    "peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
def test_a_plain_adapter_has_nothing_to_find(server):
    assert lint_serving(PLAIN, server, tokenizer=make_tokenizer()) == ()


@pytest.mark.parametrize(
    ("change", "server", "severity", "words"),
    [
        ({"r": 17}, "vllm", "warning", "--max-lora-rank 32"),
        ({"r": 513}, "vllm", "error", "above 512"),
        ({"use_dora": True}, "vllm", "error", "DoRA"),
        ({"use_dora": True}, "llama.cpp", "error", "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "vllm", "error", "whole modules (lm_head)"),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp", "error", "whole modules (lm_head)"),
        ({"target_modules": ["model.embed_tokens"]}, "vllm", "error", "embed_tokens"),
        ({"target_modules": ["lm_head"]}, "llama.cpp", "error", "lm_head"),
        ({"bias": "all"}, "vllm", "error", "biases"),
        ({"rank_pattern": {"q_proj": 4}}, "llama.cpp", "error", "rank_pattern"),
        ({"peft_type": "IA3"}, "vllm", "error", "this is IA3"),
        ({"use_rslora": True}, "llama.cpp", "error", "alpha / sqrt(rank) (8)"),
    ],
)
def test_each_stumbling_block_is_found(change, server, severity, words):
    (found,) = lint_serving({**PLAIN, **change}, server)
    assert found.severity == severity
    assert words in str(found)


def test_rslora_and_large_ranks_are_fine_where_the_server_knows_them():
    assert lint_serving({**PLAIN, "use_rslora": True}, "vllm") == ()
    assert lint_serving({**PLAIN, "r": 64}, "llama.cpp") == ()


def test_a_merged_model_is_only_asked_for_its_template():
    tokenizer = make_tokenizer()
    assert lint_serving({}, "vllm", tokenizer=tokenizer) == ()
    tokenizer.chat_template = None
    (found,) = lint_serving({}, "vllm", tokenizer=tokenizer)
    assert found == ServingFinding(
        severity="error", what="There is no chat template, so each client makes up its own.",
        fix="Save one.",
    )  # fmt: skip


INJECTING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a lamp.<|im_end|>\n"
    "{% endif %}" + CHATML
)


def test_a_system_prompt_of_the_template_is_told_and_carried_over():
    tokenizer = make_tokenizer(INJECTING)
    assert injected_system(tokenizer) == "You are a lamp."
    (found,) = lint_serving({}, "llama.cpp", tokenizer=tokenizer)
    assert (found.severity, "You are a lamp." in found.what) == ("warning", True)
    text = ollama_modelfile("x.gguf", tokenizer, system=None)
    assert 'SYSTEM """You are a lamp."""' in text
    assert 'SYSTEM """Be brief."""' in ollama_modelfile("x.gguf", tokenizer, system="Be brief.")
    assert "SYSTEM" not in ollama_modelfile("x.gguf", make_tokenizer(), system=None)


def test_a_modelfile_of_another_template_claims_nothing_about_it():
    text = ollama_modelfile("x.gguf", make_tokenizer("{{ messages[0]['content'] }}"), system=None)
    assert "TEMPLATE" not in text
    assert "look at a rendered prompt" in text


def test_a_system_prompt_cannot_end_its_quotes():
    text = ollama_modelfile("x.gguf", make_tokenizer(), system='a"""\nFROM /etc/passwd\n')
    assert text.count('"""') == 4


def test_the_command_quotes_what_a_shell_would_take_apart():
    command = vllm_command("base; rm -rf x", name="shop $(id)", folder="my adapter", rank=20)
    note, line = command.splitlines()
    assert note == "# written by rule, not run here"
    assert shlex.split(line) == [
        "vllm", "serve", "base; rm -rf x", "--enable-lora", "--max-lora-rank", "32",
        "--lora-modules", "shop $(id)=my adapter",
    ]  # fmt: skip
    assert vllm_command("./merged").splitlines()[1] == "vllm serve ./merged"


@pytest.mark.parametrize(("rank", "limit"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320)])
def test_the_least_limit_that_takes_a_rank(rank, limit):
    assert vllm_rank(rank) == limit
