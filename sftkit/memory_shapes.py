"""What a model is made of, read from its configuration alone: layers by name and size, norms, head.

No torch and no weights: this is what lets memory be predicted for models that are not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sftkit.errors import AdapterError, ModelError, near_names
from sftkit.settings import AdapterSettings
from sftkit.speed_rules import OTHER_ATTENTION


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of every block.

    Attributes:
        name: As after the block's number, such as self_attn.q_proj.
        inputs: Values it takes per token.
        outputs: Values it gives per token.
        reads: Which tensor it reads: x (into attention), mixed (out of attention), y (into the
            feed-forward part) or inner. Layers that read the same keep it once.
        bias: Whether it adds a vector.
    """

    name: str
    inputs: int
    outputs: int
    reads: str
    bias: bool = False

    @property
    def weights(self) -> int:
        """Entries of its matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A transformer in numbers.

    Attributes:
        family: decoder (gated feed-forward, RMS norms) or encoder (BERT's kind).
        path: Names of the blocks, such as model.layers.{}.
        blocks: How many blocks.
        width: Values per token between blocks.
        inner: Values per token inside the feed-forward part.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        head_size: Values per head.
        vocabulary: Token ids.
        embeddings: Entries of all input embeddings.
        linear: Linear layers of one block.
        other: Parameters of one block beside its matrices: norms and biases.
        behind: Parameters behind the blocks beside a head: last norm, pooler.
        tied: Whether the output head is the input embedding.
        head_norms: Whether queries and keys are normed, as in Qwen3.
        dropout: Probabilities of the model's own dropout: hidden values, attention.
        longest: Longest row in tokens that its positions hold.
        window: How many tokens back attention looks; None is all.
        attention_fields: What its configuration says of attention that is not the plain one.
    """

    family: str
    path: str
    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    embeddings: int
    linear: tuple[Linear, ...]
    other: int
    behind: int
    tied: bool
    head_norms: bool
    dropout: tuple[float, float]
    longest: int
    window: int | None = None
    attention_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matrices(self) -> int:
        """Weights of all linear layers in blocks: those that are quantized."""
        return self.blocks * sum(layer.weights for layer in self.linear)

    @property
    def parameters(self) -> int:
        """Parameters of the body and a chat model's head, a tied one counted once."""
        head = 0 if self.family == "encoder" or self.tied else self.vocabulary * self.width
        return self.embeddings + self.matrices + self.blocks * self.other + self.behind + head


# Decoders whose blocks are Llama's, and which of their linear layers have biases of their own.
_DECODERS: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "smollm3": (),
    "qwen2": ("q_proj", "k_proj", "v_proj"),
    "qwen3": (),
}
_TIED = ("smollm3",)
"""Decoders that are tied where their configuration does not say; others are not."""
_BERT = ("attention.self.query", "attention.self.key", "attention.self.value",
         "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
_DISTIL = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
           "ffn.lin1", "ffn.lin2")  # fmt: skip
_ENCODERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "bert": ("bert.encoder.layer.{}.", _BERT),
    "roberta": ("roberta.encoder.layer.{}.", _BERT),
    "xlm-roberta": ("roberta.encoder.layer.{}.", _BERT),
    "distilbert": ("distilbert.transformer.layer.{}.", _DISTIL),
}
KNOWN = (*_DECODERS, *_ENCODERS)
"""Model types whose shape is known; each as config.json's model_type has it."""


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """Read a model's shape from its config.json.

    Args:
        config: The file's content.

    Raises:
        ModelError: A kind of model whose shape is not known here, or a value is missing.
    """
    kind = str(config.get("model_type"))
    if kind not in KNOWN:
        raise ModelError(
            f"The memory of a {kind!r} model is not predicted: its shape is not known here."
            f"{near_names(kind, KNOWN)} Known: {', '.join(KNOWN)}."
        )
    try:
        return _decoder(kind, config) if kind in _DECODERS else _encoder(kind, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"This configuration of a {kind} model is incomplete: {error}.") from error


def _decoder(kind: str, config: Mapping[str, Any]) -> ModelShape:
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or width // heads)
    biased = set(_DECODERS[kind])
    biased |= {"q_proj", "k_proj", "v_proj", "o_proj"} if config.get("attention_bias") else set()
    biased |= {"gate_proj", "up_proj", "down_proj"} if config.get("mlp_bias") else set()
    queries, keys = heads * size, kv_heads * size
    linear = tuple(
        Linear(name=f"{part}.{name}", inputs=taken, outputs=given, reads=reads, bias=name in biased)
        for part, name, taken, given, reads in (
            ("self_attn", "q_proj", width, queries, "x"),
            ("self_attn", "k_proj", width, keys, "x"),
            ("self_attn", "v_proj", width, keys, "x"),
            ("self_attn", "o_proj", queries, width, "mixed"),
            ("mlp", "gate_proj", width, inner, "y"),
            ("mlp", "up_proj", width, inner, "y"),
            ("mlp", "down_proj", inner, width, "inner"),
        )
    )
    head_norms = kind == "qwen3"
    return ModelShape(
        family="decoder",
        path="model.layers.{}.",
        blocks=int(config["num_hidden_layers"]),
        width=width,
        inner=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        vocabulary=int(config["vocab_size"]),
        embeddings=int(config["vocab_size"]) * width,
        linear=linear,
        other=2 * width + 2 * size * head_norms + sum(x.outputs for x in linear if x.bias),
        behind=width,
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
        head_norms=head_norms,
        dropout=(0.0, float(config.get("attention_dropout") or 0.0)),
        longest=int(config["max_position_embeddings"]),
        window=_window(kind, config),
        attention_fields={name: config.get(name) for name in OTHER_ATTENTION},
    )


def _window(kind: str, config: Mapping[str, Any]) -> int | None:
    """Read how far attention looks back; where a switch is off, as in Qwen2, the number is idle."""
    given = config.get("sliding_window", 4096 if kind == "mistral" else None)
    is_on = config.get("use_sliding_window", kind == "mistral")
    return int(given) if given is not None and is_on else None


def _encoder(kind: str, config: Mapping[str, Any]) -> ModelShape:
    distil = kind == "distilbert"
    names = ("dim", "hidden_dim", "n_heads", "n_layers", "dropout", "attention_dropout") if distil \
        else ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
              "hidden_dropout_prob", "attention_probs_dropout_prob")  # fmt: skip
    width, inner, heads, blocks = (int(config[name]) for name in names[:4])
    path, layers = _ENCODERS[kind]
    sizes = (*[(width, width, "x")] * 3, (width, width, "mixed"), (width, inner, "y"),
             (inner, width, "inner"))  # fmt: skip
    linear = tuple(
        Linear(name=name, inputs=taken, outputs=given, reads=reads, bias=True)
        for name, (taken, given, reads) in zip(layers, sizes, strict=True)
    )
    vocabulary, places = int(config["vocab_size"]), int(config["max_position_embeddings"])
    padding = config.get("pad_token_id")
    # RoBERTa numbers the positions of a text from its padding token's id + 1.
    lost = (1 if padding is None else int(padding)) + 1 if "roberta" in kind else 0
    kinds = 0 if distil else int(config.get("type_vocab_size", 2))
    return ModelShape(
        family="encoder",
        path=path,
        blocks=blocks,
        width=width,
        inner=inner,
        heads=heads,
        kv_heads=heads,
        head_size=width // heads,
        vocabulary=vocabulary,
        embeddings=(vocabulary + places + kinds + 2) * width,  # two vectors of their norm
        linear=linear,
        other=4 * width + sum(layer.outputs for layer in linear),
        behind=width * width + width,  # BERT's pooler, or the layer in its place
        tied=True,
        head_norms=False,
        dropout=(float(config[names[4]]), float(config[names[5]])),
        longest=places - lost,
    )


def find_targets(shape: ModelShape, settings: AdapterSettings) -> dict[int, tuple[Linear, ...]]:
    """List the layers an adapter changes, by block, as `adapter_targets` does on the model.

    Args:
        shape: The model.
        settings: `target_modules` and `layers` decide.

    Raises:
        AdapterError: Nothing matches; near names are listed.
    """
    first, last = settings.layers or (0, shape.blocks - 1)
    found: dict[int, tuple[Linear, ...]] = {}
    for block in range(first, min(last, shape.blocks - 1) + 1):
        path = shape.path.format(block)
        chosen = tuple(x for x in shape.linear if _matches(path + x.name, settings.target_modules))
        if chosen:
            found[block] = chosen
    if not found:
        names = {layer.name.rsplit(".", 1)[-1] for layer in shape.linear}
        wanted = settings.target_modules
        given = wanted if isinstance(wanted, str) else wanted[0]
        raise AdapterError(
            f"adapter.target_modules {given!r} with layers={settings.layers} matches no linear "
            f"layer of this model.{near_names(given, names | {'all-linear', 'attention'})}"
        )
    return found


def _matches(name: str, target: str | tuple[str, ...]) -> bool:
    if target == "all-linear":
        return True
    if target == "attention":
        return any("attn" in part or "attention" in part for part in name.split(".")[:-1])
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None or name.rsplit(".", 1)[-1] == target
    return any(name == part or name.endswith(f".{part}") for part in target)
