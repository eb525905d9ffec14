"""Multiple choice: options side by side score as they do alone, and rank per character."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.adapter import attach_adapter
from sftkit.evidence.choice import (
    ChoiceScore,
    Prompt,
    encode_choices,
    grow_tree,
    score_choices,
    score_choices_plainly,
    takes_own_mask,
)
from sftkit.records import ChoiceItem
from sftkit.settings import AdapterSettings
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
MODEL = make_model(vocab_size=len(TOKENIZER))
ITEMS = (
    ChoiceItem(question="Why?", options=("Because.", "No", "A cat sat there"), answer=0),
    ChoiceItem(question="What is the longest of these questions?", options=("1", "22"), answer=1),
    ChoiceItem(question="é", options=("ü", "a b", "x", "yes", "no"), answer=4),
)


def by_hand(prefix: tuple[int, ...], option: tuple[int, ...]) -> float:
    """Sum an option's log-probability, one forward over prompt and option, all logits."""
    with torch.no_grad():
        logits = MODEL(input_ids=torch.tensor([prefix + option])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    places = range(len(prefix) - 1, len(prefix) + len(option) - 1)
    return sum(float(logprobs[p, t]) for p, t in zip(places, option, strict=True))


def test_questions_are_written_as_question_and_answer_without_a_template():
    prompt = encode_choices(ITEMS[:1], TOKENIZER)[0]
    assert TOKENIZER.decode(prompt.prefix) == "Question: Why?\nAnswer:"
    assert [TOKENIZER.decode(o) for o in prompt.options] == [" Because.", " No", " A cat sat there"]
    assert prompt.characters == (8, 2, 15)


@pytest.mark.parametrize("score", [score_choices, score_choices_plainly])
def test_both_ways_give_the_log_probability_computed_by_hand(score):
    prompts = encode_choices(ITEMS, TOKENIZER)
    for prompt, found in zip(prompts, score(MODEL, prompts), strict=True):
        hand = [by_hand(prompt.prefix, option) for option in prompt.options]
        assert found.logprobs == pytest.approx(hand, abs=1e-4)
        assert found.tokens == tuple(len(option) for option in prompt.options)
        assert found.characters == prompt.characters


def test_common_beginnings_stand_in_the_row_once_and_last_tokens_not_at_all():
    options = ((7, 8, 9), (7, 8, 5, 4), (6,), (7, 3))
    tree = grow_tree(Prompt(prefix=(1, 2), options=options, characters=(1, 1, 1, 1)))
    assert tree.tokens == (1, 2, 7, 8, 5)
    assert tree.parents == (-1, 0, 1, 2, 3)
    assert tree.depths == (0, 1, 2, 3, 4)
    assert tree.sources == ((1, 2, 3), (1, 2, 3, 4), (1,), (1, 2))


tokens = st.lists(st.integers(0, 255), min_size=1, max_size=12).map(tuple)
short = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)  # these begin alike
any_prompt = st.builds(
    lambda prefix, options: Prompt(
        prefix=prefix, options=tuple(options), characters=tuple(len(o) for o in options)
    ),
    tokens,
    st.lists(tokens | short, min_size=1, max_size=5),
)


@settings(max_examples=25)
@given(st.lists(any_prompt, min_size=1, max_size=4))
def test_options_side_by_side_score_as_they_do_in_rows_of_their_own(prompts):
    together, apart = score_choices(MODEL, prompts), score_choices_plainly(MODEL, prompts)
    for one, other in zip(together, apart, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_head_that_is_scaled_after_it_is_asked_for_all_its_logits():
    scaled = make_model(vocab_size=len(TOKENIZER))
    scaled.register_forward_hook(
        lambda module, given, output: setattr(output, "logits", output.logits * 8.0)
    )
    prompts = encode_choices(ITEMS, TOKENIZER)
    pairs = zip(score_choices(scaled, prompts), score_choices_plainly(scaled, prompts), strict=True)
    assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-4) for a, b in pairs)
    plain = score_choices(MODEL, prompts)
    assert score_choices(scaled, prompts)[0].logprobs != pytest.approx(plain[0].logprobs, abs=0.1)


def test_an_option_does_not_see_its_neighbours():
    prefix, option = (5, 6, 7), (8, 9)
    beside = [
        Prompt(prefix=prefix, options=(option, other), characters=(2, len(other)))
        for other in ((1,), (200, 201, 202, 203))
    ]
    first, second = (score_choices(MODEL, [prompt])[0].logprobs[0] for prompt in beside)
    assert first == pytest.approx(second, abs=1e-5)


def test_sdpa_attention_takes_the_same_mask():
    sdpa = make_model(vocab_size=len(TOKENIZER))
    sdpa.set_attn_implementation("sdpa")
    prompts = encode_choices(ITEMS, TOKENIZER)
    pairs = zip(score_choices(sdpa, prompts), score_choices(MODEL, prompts), strict=True)
    assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-4) for a, b in pairs)


def test_models_that_take_no_mask_of_ours_are_scored_plainly():
    from peft import PromptTuningConfig, get_peft_model

    assert takes_own_mask(MODEL)
    assert takes_own_mask(attach_adapter(make_model(vocab_size=258), AdapterSettings(r=2)))
    virtual: Any = get_peft_model(
        make_model(vocab_size=258),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )
    assert not takes_own_mask(virtual)
    prompts = encode_choices(ITEMS[:2], TOKENIZER)
    assert score_choices(virtual, prompts) == score_choices_plainly(virtual, prompts)
    flash = make_model(vocab_size=258)
    flash.config._attn_implementation = "flash_attention_2"
    assert not takes_own_mask(flash)


def test_the_pick_is_ranked_per_character_not_in_sum_or_per_token():
    # Sums prefer the first, tokens the second, characters the third: -1/1, -1.8/6, -2/10.
    score = ChoiceScore(logprobs=(-1.0, -1.8, -2.0), tokens=(1, 20, 2), characters=(1, 6, 10))
    assert score.picked == 2
    assert [score.per_token(option) for option in range(3)] == [-1.0, -0.09, -1.0]


def test_scores_come_back_in_the_order_of_the_questions():
    prompts = encode_choices(ITEMS, TOKENIZER)
    forth, back = score_choices(MODEL, prompts), score_choices(MODEL, prompts[::-1])
    for one, other in zip(forth, back[::-1], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
