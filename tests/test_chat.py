"""Exactly the assistant's words and the token that ends its turn are supervised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sftkit.chat import (
    encode_chat,
    encode_prompt,
    encode_rows,
    end_tokens,
    mask_summary,
    render_chat,
    split_question,
)
from sftkit.errors import EncodeError
from sftkit.records import IGNORE, Encoded, Refused
from tests.conftest import CHATML, make_tokenizer
from tests.templates import TEMPLATES

TOKENIZERS = {name: make_tokenizer(t.source, t.specials) for name, t in TEMPLATES.items()}
ONE_TURN = (
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
)
TWO_TURNS = (
    *ONE_TURN,
    {"role": "user", "content": "A cat."},  # the same words, said by someone else
    {"role": "assistant", "content": "No: two."},
)


def supervised_text(encoded: Encoded, tokenizer: Any) -> str:
    ids = [label for label in encoded.labels if label != IGNORE]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def supervised_runs(encoded: Encoded, tokenizer: Any) -> list[str]:
    """Give every unbroken stretch of supervised tokens as text."""
    runs: list[list[int]] = []
    before = IGNORE
    for label in encoded.labels:
        if label != IGNORE:
            if before == IGNORE:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answer_and_its_end_are_supervised(name):
    tokenizer = TOKENIZERS[name]
    encoded = encode_chat(ONE_TURN, tokenizer, max_tokens=500)
    assert supervised_runs(encoded, tokenizer) == ["A cat." + TEMPLATES[name].end]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_of_a_longer_conversation_is_supervised(name):
    tokenizer, end = TOKENIZERS[name], TEMPLATES[name].end
    encoded = encode_chat(TWO_TURNS, tokenizer, max_tokens=500)
    assert supervised_runs(encoded, tokenizer) == ["A cat." + end, "No: two." + end]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_the_templates_own_and_labels_repeat_them(name):
    tokenizer = TOKENIZERS[name]
    encoded = encode_chat(TWO_TURNS, tokenizer, max_tokens=500)
    own = tokenizer.apply_chat_template(list(TWO_TURNS), tokenize=True, return_dict=False)
    assert list(encoded.input_ids) == own
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"llama-2"}))
def test_the_prompt_asked_at_generation_ends_where_supervision_begins(name):
    tokenizer = TOKENIZERS[name]
    encoded = encode_chat(ONE_TURN, tokenizer, max_tokens=500)
    prompt = encode_prompt(ONE_TURN[:1], tokenizer)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt) + 1] == (IGNORE,) * len(prompt) + (tokenizer.vocab["A"],)


def test_the_end_of_turn_is_supervised_although_it_is_also_the_padding_token():
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode_chat(ONE_TURN, tokenizer, max_tokens=500)
    # Both turns end with it: the user's is not learned, the assistant's is.
    end = tokenizer.eos_token_id
    ends = [label for t, label in zip(encoded.input_ids, encoded.labels, strict=True) if t == end]
    assert ends == [IGNORE, end]
    assert mask_summary([encoded]).end_of_turn_supervised == 1


def test_a_system_prompt_goes_first_unless_the_conversation_has_one():
    tokenizer = make_tokenizer()
    assert render_chat(ONE_TURN, tokenizer, system="Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
    )
    own = ({"role": "system", "content": "Rhyme."}, *ONE_TURN)
    assert render_chat(own, tokenizer, system="Be brief.") == render_chat(own, tokenizer)


# ---- any words ----

letters = st.characters(exclude_categories=["Cs"])  # lone surrogates are not text
words = st.text(letters, max_size=40)
tricky = st.sampled_from(
    [
        "sftkitAnswer1mark",
        "sftkit0Answer1mark and sftkitAnswer3mark",
        "  two before and three after   ",
        "\n\nlines around\n",
        "\t",
        "👩‍🔬🇩🇪 e\u0301",
        "<think>hm</think>",
        "{{ message }} {% endfor %}",
        "[INST] not the user [/INST]",
        "\r\n",
        "\x00",
    ]
)
said = st.one_of(words, tricky)


@pytest.mark.parametrize("name", ["chatml", "chatml-own-system", "zephyr", "generation-markers"])
@given(question=said, first=said, second=said)
@example(question="sftkitAnswer1mark", first="sftkit0Answer1mark", second="sftkitAnswer1mark")
@example(question="a", first="", second=" ")
def test_any_words_are_supervised_as_they_were_said(name, question, first, second):
    tokenizer, end = TOKENIZERS[name], TEMPLATES[name].end
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": first},
        {"role": "user", "content": question},
        {"role": "assistant", "content": second},
    ]
    encoded = encode_chat(messages, tokenizer, max_tokens=5000)
    assert supervised_runs(encoded, tokenizer) == [first + end, second + end]


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "gemma"])
@given(question=said, first=said, second=said)
@example(question="a", first="", second=" ")
def test_templates_that_trim_supervise_the_trimmed_words(name, question, first, second):
    tokenizer, end = TOKENIZERS[name], TEMPLATES[name].end
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": first},
        {"role": "user", "content": question},
        {"role": "assistant", "content": second},
    ]
    encoded = encode_chat(messages, tokenizer, max_tokens=5000)
    assert supervised_runs(encoded, tokenizer) == [first.strip() + end, second.strip() + end]


@given(question=said, answer=said.filter(lambda text: "</think>" not in text))
def test_a_template_that_trims_line_ends_supervises_what_is_left(question, answer):
    tokenizer = TOKENIZERS["qwen-3"]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    encoded = encode_chat(messages, tokenizer, max_tokens=5000)
    assert supervised_runs(encoded, tokenizer) == [answer.lstrip("\n") + "<|im_end|>"]


def test_a_system_prompt_that_looks_like_the_internal_mark_does_no_harm():
    tokenizer = make_tokenizer()
    encoded = encode_chat(ONE_TURN, tokenizer, max_tokens=500, system="sftkitAnswer1mark")
    assert supervised_text(encoded, tokenizer) == "A cat.<|im_end|>"


def test_control_tokens_inside_an_answer_do_not_end_its_supervision():
    tokenizer = make_tokenizer()
    messages = (ONE_TURN[0], {"role": "assistant", "content": "It is <|im_end|> that ends."})
    encoded = encode_chat(messages, tokenizer, max_tokens=500)
    assert supervised_text(encoded, tokenizer) == "It is <|im_end|> that ends.<|im_end|>"


# ---- refused in words ----


def refusal(messages: Any, tokenizer: Any, **options: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        encode_chat(messages, tokenizer, **{"max_tokens": 500, **options})
    return str(caught.value)


def test_an_example_that_is_too_long_is_refused_and_never_cut():
    tokenizer = make_tokenizer()
    length = len(encode_chat(ONE_TURN, tokenizer, max_tokens=500).input_ids)
    assert len(encode_chat(ONE_TURN, tokenizer, max_tokens=length).input_ids) == length
    assert refusal(ONE_TURN, tokenizer, max_tokens=length - 1, row=7) == (
        f"row 7: {length} tokens exceed max_tokens={length - 1}. Raise max_tokens to {length} or "
        "shorten the row."
    )


def test_a_template_that_rewrites_the_answer_is_refused():
    messages = (
        ONE_TURN[0],
        {"role": "assistant", "content": "<think>Fur, whiskers.</think>\n\nA cat."},
    )
    assert refusal(messages, TOKENIZERS["qwen-3"]) == (
        "The chat template rewrites what the assistant said (for example it removes a thinking "
        "block), so the words to learn cannot be found in it. Train with a plain template."
    )


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ messages[-1]['content'] }}<|im_end|>", id="only the last turn"),
        pytest.param(CHATML.replace("['content']", "['content'] | upper"), id="capitals"),
    ],
)
def test_a_template_that_leaves_out_or_changes_an_answer_is_refused(template):
    assert refusal(TWO_TURNS, make_tokenizer(template)) == (
        "The chat template leaves out an assistant turn or rewrites its words, so the words to "
        "learn cannot be found in it. Train with a plain template."
    )


NO_END = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(NO_END, id="no end anywhere"),
        pytest.param(NO_END + "<|im_end|>", id="one end for the whole conversation"),
    ],
)
def test_a_template_that_does_not_end_every_answer_is_refused(template):
    assert refusal(TWO_TURNS, make_tokenizer(template), row=4) == (
        "row 4: the chat template puts no end-of-turn token after an answer, so the model would "
        "never learn to stop. Set eos_token inside the template after each answer."
    )


def test_a_conversation_without_an_answer_is_refused():
    assert refusal(ONE_TURN[:1], make_tokenizer(), row=2) == (
        "row 2 has no assistant turn, so there is nothing to learn from."
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages must be a list of turns, got None."),
        ("text", "messages must be a list of turns, got 'text'."),
        (
            [*ONE_TURN, {"role": "assistant", "content": None}],
            "turn 3 must have a content that is text, got None. Repair the row or leave it out.",
        ),
        (
            [{"content": "Hi"}],
            "turn 1 must have a role that is text, got None. Repair the row or leave it out.",
        ),
        (
            [{"role": "assistant", "content": "half \ud83d"}],
            "the content of turn 1 holds half a character (a lone surrogate), which is no text. "
            "Repair the row or leave it out.",
        ),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(messages, reason):
    assert refusal(messages, make_tokenizer(), row=6) == f"row 6: {reason}"


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    assert refusal(ONE_TURN, tokenizer).startswith("The tokenizer has no chat template")


def test_what_a_template_objects_to_is_passed_on():
    tokenizer = make_tokenizer("{{ raise_exception('Roles must alternate.') }}")
    assert refusal(ONE_TURN, tokenizer) == (
        "The chat template refuses this conversation: Roles must alternate."
    )


def test_rows_that_cannot_be_encoded_are_listed_with_their_reason_and_the_others_kept():
    tokenizer = make_tokenizer()
    rows: list[dict[str, Any]] = [
        {"messages": list(ONE_TURN), "group": "cats"},
        {"messages": list(ONE_TURN[:1]), "group": "cats"},
        {"messages": list(TWO_TURNS), "group": 5},
    ]
    encoded = encode_rows(rows, tokenizer, max_tokens=500)
    assert [(e.row, e.group) for e in encoded.examples] == [(0, "cats"), (2, "5")]
    assert encoded.refused == (
        Refused(row=1, reason="row 1 has no assistant turn, so there is nothing to learn from."),
    )


# ---- small parts ----


def test_a_conversation_divides_at_its_last_answer():
    assert split_question(TWO_TURNS) == ([dict(m) for m in TWO_TURNS[:3]], "No: two.")
    with pytest.raises(EncodeError, match="no assistant turn"):
        split_question(ONE_TURN[:1])


def test_every_control_token_can_end_a_turn():
    tokenizer = make_tokenizer(CHATML, ("<|eot_id|>",))
    names = {"<|im_start|>", "<|im_end|>", "<|eot_id|>"}
    assert end_tokens(tokenizer) == set(tokenizer.convert_tokens_to_ids(sorted(names)))


def test_the_summary_counts_what_would_be_learned():
    tokenizer = make_tokenizer()
    one = encode_chat(ONE_TURN, tokenizer, max_tokens=500)
    two = encode_chat(TWO_TURNS, tokenizer, max_tokens=500)
    silent = Encoded(input_ids=(1, 2), labels=(IGNORE, IGNORE), end_of_turn=False)
    summary = mask_summary([one, two, silent])
    words = len("A cat.") + 1
    assert summary.rows == 3
    assert summary.tokens == len(one.input_ids) + len(two.input_ids) + 2
    assert summary.supervised == words + words + len("No: two.") + 1
    assert summary.rows_without_supervision == 1
    assert summary.end_of_turn_supervised == 2
    assert summary.longest == len(two.input_ids)
    assert str(mask_summary([])) == (
        "0 rows, 0 tokens, 0 supervised (0%); 0 rows teach nothing; 0 end their turn; "
        "longest row 0 tokens"
    )
