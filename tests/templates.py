"""Chat templates of the common families, each with what a rendered turn looks like.

They are written after the published templates and shortened to what matters for labels: where the
assistant's words stand, what ends its turn, and what the template does to the words.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.conftest import CHATML


@dataclass(frozen=True)
class Template:
    """A chat template.

    Attributes:
        source: The template itself, in Jinja.
        specials: Control tokens its tokenizer declares.
        end: What ends the assistant's turn, as it stands in the text.
        trims: Whether the template trims what was said.
    """

    source: str
    specials: tuple[str, ...]
    end: str
    trims: bool = False


TEMPLATES = {
    "chatml": Template(CHATML, ("<|im_start|>",), "<|im_end|>"),
    # SmolLM2 and Qwen2: a system prompt of the template's own where none is given.
    "chatml-own-system": Template(
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
        "<|im_end|>\n{% endif %}" + CHATML,
        ("<|im_start|>",),
        "<|im_end|>",
    ),
    # Llama 2: a space before the end of the turn.
    "llama-2": Template(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] | trim + ' ' + '</s>' }}{% else %}"
        "{{ '<s>' + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        " </s>",
        trims=True,
    ),
    # Llama 3: roles as headers, and a control token that ends every turn.
    "llama-3": Template(
        "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        trims=True,
    ),
    # Gemma: the assistant is called model, and words are trimmed.
    "gemma": Template(
        "{{ '<bos>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        trims=True,
    ),
    # Zephyr: role marks are plain text, only the end is a control token.
    "zephyr": Template(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
        "'</s>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% endif %}",
        ("</s>",),
        "</s>",
    ),
    # Qwen3 with thinking off: an empty thinking block before the last answer; line ends trimmed.
    "qwen-3": Template(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% set words = message['content'] %}"
        "{% if '</think>' in words %}{% set words = words.split('</think>')[-1].lstrip('\n') %}"
        "{% endif %}{% if loop.last %}{{ '<think>\n\n</think>\n\n' + words.lstrip('\n') }}"
        "{% else %}{{ words }}{% endif %}{% else %}{{ message['content'] }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}",
        ("<|im_start|>",),
        "<|im_end|>",
    ),
    # With markers of its own around what the assistant generates.
    "generation-markers": Template(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>",),
        "<|im_end|>",
    ),
}
