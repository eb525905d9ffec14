"""Answers are written the same in company as alone, and end where the turn ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.chat import encode_chat, encode_prompt
from sftkit.evidence.generation import (
    ROWS_PER_BATCH,
    Written,
    check_stability,
    generate_answers,
    write_answers,
)
from sftkit.objectives import chat_loss
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings
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


def test_it_is_told_whether_a_turn_ended_or_ran_into_the_limit(taught):
    whole = write_answers(taught, TOKENIZER, PROMPTS, max_new_tokens=12)
    assert whole == tuple(Written(text=t, tokens=len(t), ended=True) for t in FACTS.values())
    # With exactly as many tokens as words, the end itself was never written.
    cut = write_answers(taught, TOKENIZER, PROMPTS, max_new_tokens=3)
    assert cut == (
        Written(text="Ada", tokens=3, ended=False),
        Written(text="Tea", tokens=3, ended=False),
        Written(text="No", tokens=2, ended=True),
    )


def test_what_is_asked_beside_a_prompt_changes_no_shape_of_what_the_model_reads(taught):
    shapes: list[tuple[int, ...]] = []
    hook = taught.model.embed_tokens.register_forward_hook(
        lambda module, given, output: shapes.append(tuple(given[0].shape))
    )

    def read(prompts: list[Any]) -> tuple[int, ...]:
        shapes.clear()
        write_answers(taught, TOKENIZER, prompts, max_new_tokens=2)
        return shapes[0]

    try:
        short = min(PROMPTS, key=len)
        alone = read([short])
        assert alone[0] == ROWS_PER_BATCH
        assert alone[1] > len(short)  # padded always, so that a mask is always there
        assert alone == read([*PROMPTS, short, (1,) * 90]) == read([short] * 20)
    finally:
        hook.remove()


def many() -> list[Any]:
    words = ("Who?", "9", "What is sold here?", "Why?", "Tea or Ada?", "x", "A very long question?")
    return [encode_prompt(ask(q), TOKENIZER) for q in words]


def test_answers_are_the_same_to_the_bit_in_any_company_and_order(taught):
    found = check_stability(taught, TOKENIZER, many(), max_new_tokens=8)
    assert (found.answers, found.changed, found.score_gap) == (7, 0, 0.0)
    start = "All 7 answers are the same to the bit in other company (float32, cpu)."
    assert found.sentence.startswith(start)


def test_a_model_whose_answers_depend_on_their_company_is_found_out_and_named(taught):
    def look_at_neighbours(module: Any, given: Any, output: Any) -> Any:
        return output + strength * output.mean(dim=0, keepdim=True)

    hook = taught.model.layers[0].register_forward_hook(look_at_neighbours)
    try:
        strength = 5.0
        found = check_stability(taught, TOKENIZER, many(), max_new_tokens=8)
        assert found.changed > 0
        assert found.score_gap > 1e-3
        assert f"{found.changed} of 7 answers changed in other company" in found.sentence
        assert "Compare only answers to the same list of prompts." in found.sentence
        strength = 1e-4  # too little to change a word, but not nothing
        found = check_stability(taught, TOKENIZER, many(), max_new_tokens=8)
        assert (found.changed, found.score_gap > 0) == (0, True)
        assert "the same in other company, but their scores differ by up to" in found.sentence
    finally:
        hook.remove()


def test_the_stability_of_no_answers_is_unknown(taught):
    found = check_stability(taught, TOKENIZER, [], max_new_tokens=8)
    assert found.sentence.startswith("No answer was asked for")


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_model_answers_the_same_to_the_bit_in_any_company(dtype):
    from sftkit import catalog
    from sftkit.model import load_model, load_tokenizer

    settings = ModelSettings(name="smollm2-135m", device="cpu", dtype=dtype)
    source = catalog.fetch_model(settings)
    tokenizer = load_tokenizer(settings, source=source)
    model = load_model(settings, dtype=getattr(torch, dtype), source=source)
    words = ("What is tea?", "Name a colour.", "Where is Paris? Answer in one word.", "Why?")
    prompts = [encode_prompt(ask(q), tokenizer, system="") for q in words]
    found = check_stability(model, tokenizer, prompts, max_new_tokens=4)
    assert (found.changed, found.score_gap) == (0, 0.0), found.sentence


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
