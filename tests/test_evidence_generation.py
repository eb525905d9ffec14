"""Answers are written the same in company as alone, and end where the turn ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.chat import encode_chat, encode_prompt
from sftkit.evidence.generation import generate_answers
from sftkit.objectives import chat_loss
from sftkit.settings import AdapterSettings, TrainSettings
from sftkit.train import train
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
FACTS = {"Who?": "Ada", "What is sold here?": "Tea", "9": "No"}


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def taught() -> Any:
    """A tiny model that was taught three answers and when to stop."""
    model = make_model(vocab_size=len(TOKENIZER)).requires_grad_(True)
    rows = [[*ask(q), {"role": "assistant", "content": a}] for q, a in FACTS.items()]
    examples = [encode_chat(row, TOKENIZER, max_tokens=200) for row in rows]
    settings = TrainSettings(max_tokens_per_batch=600, epochs=60, learning_rate=1e-2)
    train(model, examples, settings, objective=chat_loss)
    return model


PROMPTS = [encode_prompt(ask(question), TOKENIZER) for question in FACTS]


def test_what_was_taught_is_written_and_the_end_of_turn_ends_it(taught):
    assert generate_answers(taught, TOKENIZER, PROMPTS, max_new_tokens=12) == tuple(FACTS.values())


def test_prompts_of_different_length_are_answered_in_company_as_alone(taught):
    strange = [encode_prompt(ask(q), TOKENIZER) for q in ("Why is it so very long?", "x", "Ada")]
    prompts = [*PROMPTS, *strange]
    together = generate_answers(taught, TOKENIZER, prompts, max_new_tokens=12)
    alone = [generate_answers(taught, TOKENIZER, [p], max_new_tokens=12)[0] for p in prompts]
    assert together == tuple(alone)
    assert len(set(together)) >= 3


def test_an_answer_is_no_longer_than_allowed(taught):
    answers = generate_answers(taught, TOKENIZER, PROMPTS, max_new_tokens=2)
    assert answers == ("Ad", "Te", "No")


def test_padding_after_the_end_is_no_part_of_an_answer(taught, monkeypatch):
    # Without a padding token of its own the model pads with id 0, which is the mark ! here.
    assert TOKENIZER.vocab["!"] == 0
    monkeypatch.setattr(taught.config, "pad_token_id", None)
    answers = generate_answers(taught, TOKENIZER, PROMPTS, max_new_tokens=12)
    assert answers == tuple(FACTS.values())


def test_no_prompts_have_no_answers(taught):
    assert generate_answers(taught, TOKENIZER, [], max_new_tokens=3) == ()


def test_answers_behind_virtual_tokens_are_the_models_own_and_raise_no_warning():
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), AdapterSettings(kind="prompt"))
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            model.prompt_encoder["default"].embedding.weight.normal_(std=3.0)
            likeliest = int(model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1].argmax())
            (answer, _) = generate_answers(model, TOKENIZER, [(1, 2, 3), (4, 5)], max_new_tokens=1)
            assert answer == TOKENIZER.decode([likeliest], skip_special_tokens=True).strip()
