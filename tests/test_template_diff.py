"""What a chat template adds is found by rendering, and shown beside what was said."""

from __future__ import annotations

from typing import Any

import pytest
from sample_record import HOSTILE  # type: ignore[import-not-found]

from sftkit.chat import TemplateFacts, template_facts
from sftkit.errors import EncodeError
from sftkit.settings import ModelSettings
from sftkit.show import TemplateView, show_template
from tests.conftest import CHATML, make_tokenizer
from tests.templates import TEMPLATES

TOKENIZERS = {name: make_tokenizer(t.source, t.specials) for name, t in TEMPLATES.items()}
TURNS = (
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A cat."},
)

# ---- facts ----

PROMPTS = {
    "chatml": "<|im_start|>assistant\n",
    "chatml-own-system": "<|im_start|>assistant\n",
    "llama-2": "",
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>model\n",
    "zephyr": "<|assistant|>\n",
    "qwen-3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "generation-markers": "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_facts_of_every_template(name):
    assert template_facts(TOKENIZERS[name]) == TemplateFacts(
        injected_system="You are a helpful assistant." if name == "chatml-own-system" else None,
        has_generation_marker=name == "generation-markers",
        pad_is_eos=True,
        end_of_turn=TEMPLATES[name].end.strip(),
        generation_prompt=PROMPTS[name],
    )


LLAMA_3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n".format
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: "
    "{{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "specials", "words"),
    [
        pytest.param("A chat with an AI. " + VICUNA, ("</s>",), "A chat with an AI.", id="plain"),
        pytest.param(VICUNA, ("</s>",), None, id="plain without"),
        pytest.param(
            "{% if messages[0].role != 'system' %}{{ '<|system|>\nBe kind.</s>\n' }}{% endif %}"
            + TEMPLATES["zephyr"].source,
            ("</s>",),
            "Be kind.",
            id="zephyr",
        ),
        pytest.param(
            "{{ '<|begin_of_text|>" + LLAMA_3_HEADER("system") + "Today: 1 May.\n\n' }}"
            "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
            "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
            + TEMPLATES["llama-3"].source.replace("{{ '<|begin_of_text|>' }}", ""),
            TEMPLATES["llama-3"].specials,
            "Today: 1 May.",
            id="even beside a system prompt",
        ),
        pytest.param(
            "{{ '<s>[INST] <<SYS>>\nBe safe.\n<</SYS>>\n\n' }}{% for m in messages %}"
            "{% if m.role == 'user' %}{{ ('' if loop.first else '<s>[INST] ') + m.content }}"
            " [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
            ("<s>", "</s>"),
            "Be safe.",
            id="llama-2",
        ),
        pytest.param(
            "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}"
            + CHATML,
            (),
            None,
            id="an empty system turn",
        ),
        pytest.param(
            "{% if messages | length > 2 %}{{ raise_exception('One at a time.') }}{% endif %}"
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No.') }}"
            "{% endif %}{% endfor %}" + CHATML,
            (),
            None,
            id="a template for one exchange",
        ),
    ],
)
def test_a_system_prompt_nobody_wrote_is_found(template, specials, words):
    assert template_facts(make_tokenizer(template, specials)).injected_system == words


def test_padding_that_does_not_end_a_turn_is_no_concern():
    tokenizer = make_tokenizer(CHATML, ("<|pad|>",))
    tokenizer.pad_token = "<|pad|>"
    assert not template_facts(tokenizer).pad_is_eos
    tokenizer.pad_token = None
    assert not template_facts(tokenizer).pad_is_eos


def test_padding_that_ends_the_turn_counts_although_the_text_ends_otherwise():
    tokenizer = make_tokenizer(CHATML, ("<|endoftext|>",))
    tokenizer.eos_token = "<|endoftext|>"
    assert template_facts(tokenizer).pad_is_eos


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(CHATML.replace("<|im_end|>", ""), id="no end"),
        pytest.param(CHATML.replace("<|im_end|>", " over. <|im_end|>"), id="words before the end"),
    ],
)
def test_an_answer_that_nothing_ends_has_no_end_of_turn(template):
    assert template_facts(make_tokenizer(template)).end_of_turn is None


def test_a_tokenizer_without_a_template_has_no_facts():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(EncodeError, match="has no chat template"):
        template_facts(tokenizer)


@pytest.mark.model
def test_the_facts_of_the_real_template():
    from sftkit.model import load_tokenizer

    assert template_facts(load_tokenizer(ModelSettings())) == TemplateFacts(
        injected_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        has_generation_marker=False,
        pad_is_eos=True,
        end_of_turn="<|im_end|>",
        generation_prompt="<|im_start|>assistant\n",
    )


# ---- the view ----


def test_what_the_template_adds_stands_between_marks():
    view = show_template(TURNS, TOKENIZERS["chatml"])
    assert view == TemplateView(
        parts=(
            ("<|im_start|>user\n", "added"),
            ("What is it?", "said"),
            ("<|im_end|>\n<|im_start|>assistant\n", "added"),
            ("A cat.", "said"),
            ("<|im_end|>\n", "added"),
        ),
        tokens=(38, 17),
        notes=(),
    )
    assert str(view) == (
        "⟪<|im_start|>user↵\n⟫What is it?⟪<|im_end|>↵\n<|im_start|>assistant↵\n⟫A cat."
        "⟪<|im_end|>↵\n⟫\nThe template adds 21 of 38 tokens (55 %). Added: between ⟪ and ⟫."
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_parts_joined_are_the_templates_own_text_and_what_was_said_is_in_them(name):
    tokenizer = TOKENIZERS[name]
    view = show_template(TURNS, tokenizer)
    whole = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert "".join(text for text, _ in view.parts) == whole
    assert [text for text, origin in view.parts if origin == "said"] == ["What is it?", "A cat."]


def test_a_system_prompt_nobody_wrote_is_called_out_with_the_remedy():
    tokenizer = TOKENIZERS["chatml-own-system"]
    view = show_template(TURNS, tokenizer)
    assert [text for text, origin in view.parts if origin == "injected"] == [
        "You are a helpful assistant."
    ]
    assert view.notes == (
        "The template puts a system prompt first that nobody wrote: 'You are a helpful "
        "assistant.'. The model is trained and asked with it. To choose your own words, pass "
        "system= (in a recipe: data.system).",
    )
    own = show_template(TURNS, tokenizer, system="Rhyme.")
    assert own.notes == ()
    assert [text for text, origin in own.parts if origin == "said"] == [
        "Rhyme.", "What is it?", "A cat.",
    ]  # fmt: skip


def test_trimmed_and_rewritten_words_are_noted():
    spaced = (TURNS[0], {"role": "assistant", "content": " A cat. "})
    assert show_template(spaced, TOKENIZERS["gemma"]).notes == (
        "The template trims the words of turn 2.",
    )
    thinking = (TURNS[0], {"role": "assistant", "content": "<think>Fur.</think>A cat."})
    view = show_template(thinking, TOKENIZERS["qwen-3"])
    assert view.notes == (
        "The template rewrites or leaves out the words of turn 2; what is left of them is shown as "
        "added.",
    )
    assert [text for text, origin in view.parts if origin == "said"] == ["What is it?"]


def test_in_a_notebook_every_origin_looks_different_also_without_colour():
    html = show_template(TURNS, TOKENIZERS["chatml-own-system"])._repr_html_()
    assert html.count("<mark") == 5
    assert html.count("2px dashed") == 1 + 4
    assert html.count("border:2px solid") == 1 + 1
    assert "<span>A cat.</span>" in html
    assert "pass system=" in html


def test_in_a_terminal_what_is_added_is_coloured(monkeypatch):
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = str(show_template(TURNS, TOKENIZERS["chatml"]))
    assert "\x1b[" in text
    assert "⟪" not in text


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_stays_text(payload):
    tokenizer = TOKENIZERS["chatml"]
    turns: Any = [{"role": "user", "content": payload}, {"role": "assistant", "content": payload}]
    view, plain = show_template(turns, tokenizer), show_template(TURNS, tokenizer)
    html = view._repr_html_().replace("<br>", "")
    assert html.count("<") == plain._repr_html_().replace("<br>", "").count("<")
    assert "\x1b" not in str(view)
    assert "\u202e" not in str(view)
