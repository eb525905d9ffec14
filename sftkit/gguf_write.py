"""A model of transformers as one GGUF file, for llama.cpp and what is built on it.

Names of tensors and keys come from the `gguf` package, which llama.cpp publishes. What a reader
would divide into other tokens, or compute in another way, is refused rather than written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sftkit.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["f16", "q8_0"]
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""By transformers' model_type, what llama.cpp calls it."""
_ROTATES_IN_PAIRS = {"llama"}
"""llama.cpp turns neighbouring numbers where transformers turns the two halves of a head."""
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
_Q8_BLOCK = 32
QWEN2_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words before it joins bytes (its tokenizer.json)."""


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path, *, kind: Kind
) -> Path:
    """Write weights, tokenizer and chat template into one file.

    Args:
        model: A plain causal language model, its adapter merged.
        tokenizer: Its tokenizer, of the byte-level BPE kind.
        path: The file to write.
        kind: f16, or q8_0 (8 bits in blocks of 32, with a 16-bit scale each). Vectors such as
            norms stay float32, as llama.cpp keeps them.

    Returns:
        The path.

    Raises:
        ModelError: llama.cpp has no such architecture here, or would read the tokenizer otherwise.
    """
    from gguf import GGUFWriter

    path = Path(path)
    config = model.config
    architecture = _ARCHITECTURES.get(str(config.model_type))
    if architecture is None:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(
            f"A model of type {config.model_type!r} cannot be written as GGUF here; these can: "
            f"{known}. Export it merged, and convert that folder with llama.cpp's own script."
        )
    _refuse_what_is_lost(config)
    tokens = _tokens(tokenizer, int(config.vocab_size))
    before = _how_words_are_cut(tokenizer)
    partial = path.with_name(f".writing-{path.name}")
    writer = GGUFWriter(partial, architecture)
    try:
        _put_shape(writer, config, kind)
        _put_tokenizer(writer, tokenizer, tokens, before)
        _put_tensors(writer, model, architecture, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    partial.replace(path)
    return path


def _refuse_what_is_lost(config: Any) -> None:
    """Refuse what this writer does not carry over."""
    rope = _rope(config)
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"The model's positions are scaled ({rope['rope_type']}), which is not written here. "
            "Export it merged, and convert that folder with llama.cpp's own script."
        )
    if str(getattr(config, "hidden_act", "silu")) != "silu":
        raise ModelError(f"llama.cpp would compute silu where the model has {config.hidden_act}.")
    if getattr(config, "mlp_bias", False):
        raise ModelError("The model has biases in its feed-forward layers, which are not written.")


def _rope(config: Any) -> Mapping[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _put_shape(writer: GGUFWriter, config: Any, kind: Kind) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    theta = _rope(config).get("rope_theta", getattr(config, "rope_theta", 10000.0))
    types = {"f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(types[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_rope_freq_base(float(theta))
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(int(config.vocab_size))


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> list[tuple[str, int]]:
    """Give every token's text and type, in order of its id, up to the size of the embedding."""
    added = tokenizer.added_tokens_decoder
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    if texts and max(texts) >= size:
        raise ModelError(
            f"The tokenizer knows token {max(texts)}, and the embedding has {size} rows. Resize "
            "the embedding before training."
        )
    tokens = []
    for number in range(size):
        if number not in texts:
            tokens.append((f"[PAD{number}]", _UNUSED))
        elif number in added:
            kind = _CONTROL if added[number].special else _USER
            tokens.append((added[number].content, kind))
        else:
            tokens.append((texts[number], _NORMAL))
    return tokens


def _how_words_are_cut(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """Name the rule by which llama.cpp has to cut text before BPE, and give the merges.

    llama.cpp knows such rules by name only, so a rule that is none of them is refused.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    plain = json.loads(backend.to_str()) if backend is not None else {}
    model = plain.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError("Only byte-level BPE tokenizers are written as GGUF here.")
    steps = plain.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", [steps])
    kinds = [part.get("type") for part in parts]
    name = None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and parts[0].get("pattern", {}).get("Regex") == QWEN2_RULE:
        name = "qwen2"
    if name is None or (parts[-1].get("add_prefix_space")):
        raise ModelError(
            "llama.cpp would cut text into other tokens than this tokenizer does (its rule is "
            f"{' then '.join(map(str, kinds))}). Export it merged, and convert that folder with "
            "llama.cpp's own script."
        )
    merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges", [])]
    return name, merges


def _put_tokenizer(
    writer: GGUFWriter,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[tuple[str, int]],
    cut: tuple[str, list[str]],
) -> None:
    name, merges = cut
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges(merges)
    for number, put in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if isinstance(number, int):
            put(number)
    plain = tokenizer("x").input_ids
    writer.add_add_bos_token(bool(plain) and plain[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _put_tensors(writer: GGUFWriter, model: PreTrainedModel, architecture: str, kind: Kind) -> None:
    import torch
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map, quants

    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    config = model.config
    names = get_tensor_name_map(numbers[architecture], int(config.num_hidden_layers))
    tied = bool(config.tie_word_embeddings)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # the reader takes the embedding
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(f"llama.cpp has no place for {name} of this model.")
        array = tensor.detach().to(torch.float32).cpu().numpy()
        layer = name.rsplit(".", 2)[-2]
        if architecture in _ROTATES_IN_PAIRS and layer in heads:
            array = _in_pairs(array, int(heads[layer]))
        if array.ndim == 1:
            writer.add_tensor(target, np.ascontiguousarray(array))
        elif kind == "q8_0" and array.shape[-1] % _Q8_BLOCK == 0:
            few = quants.quantize(np.ascontiguousarray(array), GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, few, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
                raise ModelError(f"{name} holds numbers too large for 16 bits.")
            writer.add_tensor(target, array.astype(np.float16))


def _in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head from two halves to neighbouring pairs.

    Args:
        weight: Of a query or key projection, shape (heads * head_dim, ...).
        heads: Heads in it.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
