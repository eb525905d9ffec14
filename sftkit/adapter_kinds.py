"""The one table of methods: what each needs, and what may be done with it.

Nothing here loads torch for a method that sftkit has proven itself, so a recipe can be refused
before weights are read. The tests hold every row to what it says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sftkit.errors import AdapterError, near_names
from sftkit.peft_import import quick_import
from sftkit.settings import AdapterSettings, ModelSettings


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One method.

    Attributes:
        name: As recipes write it.
        title: What it does, in one line.
        needs: What it needs beside a base model.
        peft_type: peft's name of the method; None trains weights of the base itself.
        fixed: Fields of peft's configuration that make it this method.
        fields: Fields of AdapterSettings it reads, beside kind, strength and options.
        proven: Whether sftkit's own tests train, save, load and merge it.
        fresh_change: Largest change of a logit by the fresh adapter over a float32 base; None
            where the method changes logits from the start, by design.
        works_on_quantized: Whether it can be put on an 8- or 4-bit base; None was not tried.
        mergeable: Whether it can become part of the base's weights.
        scalable: Whether a part of the update's strength means something.
        off_equals_base: Whether the base's answers come back when the adapter is off. Where they
            do not, the base has to be scored before the adapter is attached.
        vllm: Whether vLLM serves the saved adapter (its `vllm/lora/peft_helper.py` refuses
            use_dora and modules_to_save and scales by lora_alpha / sqrt(r) for use_rslora).
        llama_cpp: Whether llama.cpp's `convert_lora_to_gguf.py` takes it (it stops at any tensor
            that is not lora_A or lora_B, and hands on lora_alpha alone). Both read, not run here.
    """

    name: str
    title: str
    needs: str = "linear layers"
    peft_type: str | None = "LORA"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fields: frozenset[str] = frozenset({"r", "lora_alpha", "lora_dropout"})
    proven: bool = True
    fresh_change: float | None = 0.0
    works_on_quantized: bool | None = True
    mergeable: bool = True
    scalable: bool = True
    off_equals_base: bool = True
    vllm: str = "yes"
    llama_cpp: str = "yes"


_LORA = frozenset({"r", "lora_alpha", "lora_dropout", "target_modules", "layers"})
_MERGED = "no: merge it first"
_WHOLE = "yes, as a whole model"

KINDS: Mapping[str, AdapterKind] = {
    kind.name: kind
    for kind in (
        AdapterKind(
            name="lora",
            title="adds a product of two thin matrices, B·A, to each weight (Hu et al. 2021)",
            fields=_LORA,
        ),
        AdapterKind(
            name="rslora",
            title="lora scaled by lora_alpha / sqrt(r), so that high ranks learn too "
            "(Kalajdzievski 2023)",
            fixed={"use_rslora": True},
            fields=_LORA,
            llama_cpp="no: it would scale by lora_alpha / r; merge it first",
        ),
        AdapterKind(
            name="dora",
            title="lora for the direction of each weight and a vector for its size "
            "(Liu et al. 2024)",
            fixed={"use_dora": True},
            fields=_LORA,
            # The sizes are computed anew in each pass, and rounding may differ.
            fresh_change=1e-4,
            vllm=_MERGED,
            llama_cpp=_MERGED,
        ),
        AdapterKind(
            name="pissa",
            title="lora that starts at the largest singular vectors, taken out of the base "
            "(Meng et al. 2024)",
            needs="linear layers in 32 or 16 bits, and a singular value decomposition of each",
            fixed={"init_lora_weights": "pissa"},
            fields=_LORA,
            fresh_change=1e-3,
            works_on_quantized=False,
            scalable=False,
            off_equals_base=False,
            vllm=_MERGED,
            llama_cpp=_MERGED,
        ),
        AdapterKind(
            name="lora+",
            title="lora whose B learns at a higher rate than its A (Hayou et al. 2024)",
            needs="linear layers, and an optimizer with groups (optim.rate_scales)",
            fields=_LORA | {"lora_plus_ratio"},
        ),
        AdapterKind(
            name="ia3",
            title="multiplies what layers give, or the inner values of the feed-forward part, by "
            "one learned vector (Liu et al. 2022)",
            peft_type="IA3",
            fields=frozenset({"target_modules", "layers"}),
            vllm=_MERGED,
            llama_cpp=_MERGED,
        ),
        AdapterKind(
            name="prompt",
            title="learns tokens in front of every example (Lester et al. 2021)",
            needs="a chat model; the tokens take room in its context",
            peft_type="PROMPT_TUNING",
            fixed={"prompt_tuning_init": "SAMPLE_VOCAB"},
            fields=frozenset({"virtual_tokens"}),
            fresh_change=None,
            mergeable=False,
            scalable=False,
            vllm="no",
            llama_cpp="no",
        ),
        AdapterKind(
            name="freeze",
            title="trains the last blocks, the last norm and the head; a baseline",
            needs="weights in float32; where the head is tied to the input embeddings, both train",
            peft_type=None,
            fields=frozenset({"last_blocks"}),
            works_on_quantized=False,
            scalable=False,
            off_equals_base=False,
            vllm=_WHOLE,
            llama_cpp=_WHOLE,
        ),
        AdapterKind(
            name="full",
            title="trains every weight; a baseline",
            needs="weights in float32, and four times their memory",
            peft_type=None,
            fields=frozenset(),
            works_on_quantized=False,
            scalable=False,
            off_equals_base=False,
            vllm=_WHOLE,
            llama_cpp=_WHOLE,
        ),
    )
}
"""Every method proven here, by name."""

UNSAFE = frozenset({
    "megatron_config", "megatron_core", "tokenizer_kwargs", "tokenizer_name_or_path",
    "prompt_tuning_init_state_dict_path", "adapters", "corda_config", "eva_config",
    "lora_ga_config", "auto_mapping", "revision", "shadow_model", "arrow_config",
})  # fmt: skip
"""Fields that would read files or code of the configuration\'s own choosing, or other adapters."""
# What attach_adapter writes itself.
_ALWAYS_OURS = frozenset({
    "peft_type", "task_type", "inference_mode", "base_model_name_or_path", "peft_version",
})  # fmt: skip
_OURS = _ALWAYS_OURS | {
    "r", "lora_alpha", "lora_dropout", "target_modules", "feedforward_modules",
    "num_virtual_tokens",
}  # fmt: skip
# First weights that are taken out of the base, which is then another one with the adapter off.
_INSIDE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields that change the base itself, and fields that train what has no half strength.
_CHANGE_BASE = ("layer_replication", "kasa_config")
_WHOLE_PARTS = ("modules_to_save", "trainable_token_indices", "monteclora_config")
# Methods whose target_modules are no linear layers: attention blocks, embeddings, decoder blocks.
_OTHER_TARGETS = frozenset({"ADAPTION_PROMPT", "TRAINABLE_TOKENS", "SHADOW"})


def find_kind(name: str) -> AdapterKind:
    """Look a method up: one of ours, or peft's own by peft's name, such as loha.

    Raises:
        AdapterError: There is no such method; near names are listed.
    """
    if name in KINDS:
        return KINDS[name]
    passed = {peft_type.lower(): peft_type for peft_type in registry()}
    for kind in KINDS.values():
        passed.pop(str(kind.peft_type).lower(), None)
    if name not in passed:
        raise AdapterError(
            f"There is no adapter.kind {name!r}.{near_names(name, {*KINDS, *passed})} Proven here: "
            f"{', '.join(KINDS)}; other methods of peft go by peft's name and are passed through."
        )
    return AdapterKind(
        name=name,
        title="passed through to peft, not proven here",
        needs="see peft's documentation",
        peft_type=passed[name],
        fields=_can_target(passed[name]),
        proven=False,
        fresh_change=None,
        works_on_quantized=None,
        mergeable=False,
        scalable=False,
        off_equals_base=False,
        vllm="not known",
        llama_cpp="not known",
    )


def check_kind(
    settings: AdapterSettings, *, quantization: str = "none", task_type: str | None = "CAUSAL_LM"
) -> AdapterKind:
    """Refuse what cannot work, before any weight is read.

    Args:
        settings: The method and its settings.
        quantization: How the base's weights are held; none, or the name of a quantization.
        task_type: CAUSAL_LM for chat models, SEQ_CLS for texts with labels or numbers, None for
            images.

    Returns:
        The method's row.

    Raises:
        AdapterError: The method is unknown, cannot be put on such a base, or a setting was given
            that it does not read. All faults are named.
    """
    row = find_kind(settings.kind)
    kind = with_options(row, settings.options)
    faults = []
    if quantization != "none" and kind.works_on_quantized is False:
        able = ", ".join(name for name, other in KINDS.items() if other.works_on_quantized)
        named = kind.name if row.works_on_quantized is False else f"{kind.name} with these options"
        faults.append(
            f"adapter.kind={named} changes the base's own weights, which quantization="
            f"{quantization} holds in too few bits for that. Use quantization: none, or one of "
            f"{able}."
        )
    if kind.name == "prompt" and task_type != "CAUSAL_LM":
        faults.append("adapter.kind=prompt needs data.task=chat. Use lora for labels and images.")
    for info in dataclasses.fields(settings):
        given = getattr(settings, info.name)
        if info.name in {"kind", "strength", "options"} | kind.fields or given == info.default:
            continue
        able = ", ".join(name for name, other in KINDS.items() if info.name in other.fields)
        hint = "" if kind.proven else f" Fields of peft's {kind.name} go under adapter.options."
        faults.append(
            f"adapter.{info.name}={given} means nothing to adapter.kind={kind.name}; it belongs to "
            f"{able}. Leave it out, or change the kind.{hint}"
        )
    if settings.strength != 1.0 and not kind.scalable:
        faults.append(f"adapter.strength={settings.strength}: {why_not_scalable(kind)}")
    faults += _option_faults(kind, settings.options)
    if faults:
        raise AdapterError("\n".join(faults))
    return kind


def off_equals_base(settings: AdapterSettings) -> bool:
    """Say whether the base's answers come back when the adapter of these settings is off.

    Where they do not, the base has to be scored before `attach_adapter`.
    """
    return with_options(find_kind(settings.kind), settings.options).off_equals_base


def with_options(row: AdapterKind, options: Mapping[str, Any]) -> AdapterKind:
    """Say what fields of peft's configuration make of a method's row."""
    beside = stays_beside(options)
    whole = any(options.get(name) for name in _WHOLE_PARTS)
    return dataclasses.replace(
        row,
        works_on_quantized=False if _starts_inside(options) else row.works_on_quantized,
        off_equals_base=row.off_equals_base and beside,
        scalable=row.scalable and beside and not whole,
    )


def model_for(kind: AdapterKind, settings: ModelSettings) -> ModelSettings:
    """Hold the base as it is trained: in float32 where its own weights are (freeze, full).

    The base is then scored in the type it is tuned in, not in another one.
    """
    if kind.peft_type is None:
        return dataclasses.replace(settings, dtype="float32")
    return settings


def kind_of(model: Any) -> AdapterKind:
    """Tell the method a model carries; lora+ is lora once it is attached.

    Raises:
        AdapterError: It carries none.
    """
    own = getattr(model, "sftkit_trained", None)
    if own is not None:
        return KINDS[own[0]]
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise AdapterError(f"This {type(model).__name__} carries no adapter. Attach one first.")
    config = configs[model.active_adapter].to_dict()
    peft_type = getattr(config["peft_type"], "value", config["peft_type"])
    rows = [row for row in KINDS.values() if row.peft_type == peft_type]
    for row in sorted(rows, key=lambda row: -len(row.fixed)):
        if peft_type != "LORA" or all(config.get(n) == v for n, v in row.fixed.items()):
            return with_options(row, config)
    return find_kind(str(peft_type).lower())


def why_not_scalable(kind: AdapterKind) -> str:
    """Say why an adapter of a kind cannot be turned down."""
    reason = "it was trained with parts that are no update beside the base"
    if kind.name == "prompt":
        reason = "tokens in front of the text are there or not"
    elif kind.name == "pissa":
        reason = "it holds a part of the base's own weights, which would be turned down too"
    elif kind.peft_type is None:
        reason = "the base's own weights were trained, and no copy of the old ones is kept"
    elif not kind.proven:
        reason = "it is passed through to peft, and its strength was not proven here"
    return f"An adapter of kind {kind.name} cannot be turned down: {reason}. Use strength 1."


def why_off_is_not_base(kind: AdapterKind) -> str:
    """Say why switching an adapter of a kind off does not bring the base's answers back."""
    if kind.peft_type is None:
        return "the base's own weights were trained"
    if kind.proven:
        return "its options, or its first weights, changed the base itself"
    return "it is passed through to peft, and what is left was not proven to be the base"


def peft_config(kind: AdapterKind, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Build peft's configuration of a method.

    Raises:
        AdapterError: peft refuses a value.
    """
    config_class = registry()[str(kind.peft_type)]
    known = {info.name for info in dataclasses.fields(config_class)}
    given = {name: value for name, value in fields.items() if name in known}
    merged = {**given, **kind.fixed, **options}
    if given.get("modules_to_save") and options.get("modules_to_save"):
        also = options["modules_to_save"]  # beside the head, which is fresh, and not instead of it
        names = [*given["modules_to_save"], *([also] if isinstance(also, str) else also)]
        merged["modules_to_save"] = list(dict.fromkeys(names))
    try:
        return config_class(**merged)
    except (TypeError, ValueError, ImportError) as error:
        raise AdapterError(f"peft refuses adapter.kind={kind.name}: {error}") from error


def _option_faults(kind: AdapterKind, options: Mapping[str, Any]) -> list[str]:
    if not options:
        return []
    if kind.peft_type is None:
        return [f"adapter.options means nothing to adapter.kind={kind.name}, which is not peft's."]
    known = {info.name for info in dataclasses.fields(registry()[kind.peft_type])}
    taken = _OURS | set(kind.fixed) if kind.proven else _ALWAYS_OURS
    faults = []
    for name in options:
        if name not in known:
            faults.append(
                f"adapter.options.{name} is no field of peft's {kind.peft_type}."
                f"{near_names(name, known - taken - UNSAFE)}"
            )
        elif name in UNSAFE:
            faults.append(
                f"adapter.options.{name} would load code or files and is not reachable here."
            )
        elif name in taken:
            faults.append(
                f"adapter.options.{name} is set by the kind or by a field of adapter itself."
            )
    return faults


def stays_beside(config: Mapping[str, Any]) -> bool:
    """Say that neither biases nor first weights nor layers of an adapter are changes of the base.

    Args:
        config: Fields of peft's configuration; those that are left out have its defaults.
    """
    changed = _starts_inside(config) or any(config.get(name) for name in _CHANGE_BASE)
    return not changed and config.get("bias", "none") == "none"


def _starts_inside(config: Mapping[str, Any]) -> bool:
    start = config.get("init_lora_weights")
    return isinstance(start, str) and start.lower().startswith(_INSIDE_BASE)


def _can_target(peft_type: str) -> frozenset[str]:
    names = {info.name for info in dataclasses.fields(registry()[peft_type])}
    able = "target_modules" in names and peft_type not in _OTHER_TARGETS
    return frozenset({"target_modules", "layers"} if able else ())


@functools.cache
def registry() -> dict[str, Any]:
    """Read peft's own table: configuration class by method."""
    with quick_import():
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {peft_type.value: config for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
