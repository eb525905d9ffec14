"""What cannot be loaded as asked, found before any weights are read: one table of rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sftkit.catalog import model_config
from sftkit.errors import FetchError, ModelError
from sftkit.settings import ModelSettings

_BLOCK = 64  # weights that share one scale (bitsandbytes' default)
_WIDTHS = ("hidden_size", "intermediate_size", "dim", "hidden_dim")  # the last two: distilbert
_OWN = ("dropout", "drop_rate", "_pdrop")  # how transformers' configurations name such layers


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a rule looks at.

    Attributes:
        name: The model as named in the recipe.
        settings: How its weights are to be held.
        config: What its config.json says.
        device: cpu, cuda or mps.
        dtype: Type of the unquantized weights.
    """

    name: str
    settings: ModelSettings
    config: Mapping[str, Any]
    device: str
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way in which published weights are already quantized.

    Attributes:
        modules: What has to be importable.
        install: What pip installs for it.
        needs_gpu: Whether it runs on a CUDA GPU only.
    """

    modules: tuple[str, ...] = ()
    install: str = ""
    needs_gpu: bool = False


# As transformers 5.23 asks for them (quantizers/quantizer_*.py, validate_environment).
FORMATS: Mapping[str, Format] = {
    "bitsandbytes": Format(modules=("bitsandbytes",), install="'bitsandbytes>=0.49'"),
    "gptq": Format(modules=("optimum", "gptqmodel"), install="optimum gptqmodel"),
    "awq": Format(modules=("gptqmodel",), install="gptqmodel"),
    "compressed-tensors": Format(
        modules=("compressed_tensors",), install="'compressed-tensors>=0.15.0'"
    ),
    "auto-round": Format(modules=("auto_round",), install="'auto-round>=0.5'"),
    "aqlm": Format(modules=("aqlm",), install="'aqlm[gpu,cpu]'"),
    "hqq": Format(modules=("hqq",), install="hqq"),
    "quanto": Format(modules=("optimum", "optimum.quanto"), install="optimum-quanto"),
    "torchao": Format(modules=("torchao",), install="torchao"),
    "eetq": Format(modules=("kernels",), install="kernels", needs_gpu=True),
    "fbgemm_fp8": Format(modules=("fbgemm_gpu",), install="fbgemm-gpu", needs_gpu=True),
    "fp_quant": Format(modules=("fp_quant",), install="fp_quant", needs_gpu=True),
    "higgs": Format(modules=("flute",), install="'flute-kernel>=0.3.0'", needs_gpu=True),
    "spqr": Format(modules=("spqr_quant",), install="'spqr_quant[gpu]'", needs_gpu=True),
    "vptq": Format(modules=("vptq",), install="vptq", needs_gpu=True),
    "fp8": Format(),  # without a GPU of its kind transformers dequantizes it, as the next two
    "mxfp4": Format(),
    "bitnet": Format(),
}


def quantized_as(config: Mapping[str, Any]) -> str | None:
    """Tell the format in which a model's weights are already quantized, or None."""
    said = config.get("quantization_config")
    if not isinstance(said, Mapping):
        return None
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes"
    return str(said.get("quant_method") or "an unnamed format")


def has_device(settings: ModelSettings) -> bool:
    """Say whether the device that is asked for is one of this machine's."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there.get(settings.device, True)


def loading_faults(case: Case) -> list[str]:
    """List in words what stands against loading a model as asked."""
    return [fault for rule in RULES.values() if (fault := rule(case))]


def check_loading(case: Case) -> None:
    """Refuse what cannot work, with all reasons at once and what would work instead.

    Raises:
        ModelError: At least one rule is broken.
    """
    if faults := loading_faults(case):
        lines = "".join(f"\n  - {fault}" for fault in faults)
        raise ModelError(f"{case.name!r} cannot be loaded as asked:{lines}")


def make_case(
    settings: ModelSettings, config: Mapping[str, Any], device: str, dtype: str | None
) -> Case:
    """Make a case; a type that is not known yet is taken to be bfloat16."""
    held: torch.dtype = getattr(torch, dtype or "bfloat16")
    name = settings.name.strip()
    return Case(name=name, settings=settings, config=config, device=device, dtype=held)


def check_model(settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> None:
    """Do what `check_loading` does, before anything but the configuration is read.

    A hub model whose configuration is not here yet is left to the check at loading.

    Raises:
        ModelError: At least one rule is broken.
    """
    try:
        config = model_config(settings)
    except FetchError:
        return
    check_loading(make_case(settings, config, device.type, str(dtype).removeprefix("torch.")))


def dropout_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """List the fields of a configuration that are probabilities of its own dropout layers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    defaults = CONFIG_MAPPING[kind]().to_dict() if kind in CONFIG_MAPPING else {}
    return tuple(
        name
        for name, value in {**defaults, **config}.items()
        if any(word in name for word in _OWN)
        and (isinstance(value, int | float) or (value is None and name == "classifier_dropout"))
        and not isinstance(value, bool)
    )


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _format_of(case: Case) -> Format | None:
    return FORMATS.get(quantized_as(case.config) or "")


def _remote_code(case: Case) -> str | None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = case.config.get("model_type")
    if "auto_map" not in case.config or kind in CONFIG_MAPPING:
        return None
    return (
        f"its config.json names code of its own (auto_map) for the model type {kind!r}, and such "
        "code is never run. Use a model type that transformers has itself."
    )


def _quantized_twice(case: Case) -> str | None:
    there, asked = quantized_as(case.config), case.settings.quantization
    if there is None or asked == "none":
        return None
    return (
        f"model.quantization={asked} on top of weights that are already quantized ({there}). Use "
        "quantization: none, or the model it was made from."
    )


def _unknown_format(case: Case) -> str | None:
    there = quantized_as(case.config)
    if there is None or there in FORMATS:
        return None
    return (
        f"its weights are quantized as {there!r}; known here are {', '.join(FORMATS)}. Use the "
        "model it was made from."
    )


def _format_needs_gpu(case: Case) -> str | None:
    found = _format_of(case)
    if found is None or not found.needs_gpu or case.device == "cuda":
        return None
    return (
        f"weights quantized as {quantized_as(case.config)} run on a CUDA GPU only, and the device "
        f"is {case.device}. Use the model it was made from; quantization: nf4 works on a CPU."
    )


def _format_needs_package(case: Case) -> str | None:
    found = _format_of(case)
    lost = [] if found is None else [name for name in found.modules if not _is_here(name)]
    if found is None or not lost:
        return None
    return (
        f"weights quantized as {quantized_as(case.config)} need {' and '.join(lost)}. Run: "
        f"pip install {found.install}"
    )


def _bitsandbytes_missing(case: Case) -> str | None:
    if case.settings.quantization == "none" or _is_here("bitsandbytes"):
        return None
    install = FORMATS["bitsandbytes"].install
    return f"model.quantization={case.settings.quantization} needs it. Run: pip install {install}"


def _quantization_on_mps(case: Case) -> str | None:
    if case.settings.quantization == "none" or case.device != "mps":
        return None
    return (
        f"model.quantization={case.settings.quantization} needs a CPU or CUDA device, got mps. Use "
        "quantization: none, or device: cpu."
    )


def _whole(config: Mapping[str, Any], name: str) -> int:
    """Give a number of a configuration; 0 where it is a list, as for images, or not there."""
    value = config.get(name)
    return value if isinstance(value, int) else 0


def _narrow_rows(case: Case) -> str | None:
    if case.settings.quantization not in ("nf4", "fp4") or case.device != "cpu":
        return None
    nested = case.config.get("text_config")
    widths: set[int] = set()
    for config in (case.config, nested if isinstance(nested, Mapping) else {}):
        heads = _whole(config, "num_attention_heads") * _whole(config, "head_dim")
        widths |= {heads, *(_whole(config, name) for name in _WIDTHS)}
    odd = sorted(width for width in widths if width % _BLOCK)
    if not odd:
        return None
    return (
        f"model.quantization={case.settings.quantization} on a CPU, with layers of width "
        f"{', '.join(map(str, odd))}: bitsandbytes reads 4-bit rows wrongly there when they are "
        f"no multiple of {_BLOCK}. Use quantization: int8, or none."
    )


def _quantized_offload(case: Case) -> str | None:
    asked = case.settings.quantization
    if asked == "none" or case.settings.offload_folder is None:
        return None
    return (
        f"model.quantization={asked} with model.offload_folder: quantized layers cannot be kept on "
        "disk. Drop offload_folder, or use quantization: none."
    )


def _unknown_device(case: Case) -> str | None:
    there = {"cpu"} if case.device != "mps" else {"cpu", "mps"}
    if case.device == "cuda":
        there |= {str(number) for number in range(torch.cuda.device_count())}
    wrong = [name for name in case.settings.max_memory if name not in there]
    if not wrong:
        return None
    return (
        f"model.max_memory names {', '.join(wrong)}; with device: {case.settings.device} this "
        f"machine has {', '.join(sorted(there))}."
    )


def _flash_needs_cuda(case: Case) -> str | None:
    if case.settings.attention != "flash_attention_2" or case.device == "cuda":
        return None
    return (
        f"model.attention=flash_attention_2 needs a CUDA GPU, and the device is {case.device}. Use "
        "attention: auto."
    )


def _flash_needs_newer_gpu(case: Case) -> str | None:
    if case.settings.attention != "flash_attention_2" or case.device != "cuda":
        return None
    try:
        major, minor = torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError):  # a look ahead for a GPU that is not here
        return None
    if major >= 8:  # Ampere
        return None
    return (
        "model.attention=flash_attention_2 needs a GPU of compute capability 8.0, and this one has "
        f"{major}.{minor}. Use attention: sdpa."
    )


def _flash_missing(case: Case) -> str | None:
    if case.settings.attention != "flash_attention_2" or _is_here("flash_attn"):
        return None
    return (
        "model.attention=flash_attention_2 needs the package flash_attn. Run: pip install "
        "flash-attn --no-build-isolation; or use attention: sdpa."
    )


def _flash_needs_16_bit(case: Case) -> str | None:
    if case.settings.attention != "flash_attention_2" or case.dtype != torch.float32:
        return None
    return (
        "model.attention=flash_attention_2 computes in 16 bits, and the type is float32. Use "
        "dtype: bfloat16, or attention: sdpa."
    )


def _nothing_to_drop(case: Case) -> str | None:
    if case.settings.dropout is None or dropout_fields(case.config):
        return None
    return (
        f"model.dropout={case.settings.dropout:g}, but a {case.config.get('model_type')} model has "
        "no dropout of its own. Use adapter.lora_dropout."
    )


RULES: Mapping[str, Callable[[Case], str | None]] = {
    "code of its own": _remote_code,
    "quantized twice": _quantized_twice,
    "unknown format": _unknown_format,
    "format needs a GPU": _format_needs_gpu,
    "format needs a package": _format_needs_package,
    "bitsandbytes missing": _bitsandbytes_missing,
    "quantization on mps": _quantization_on_mps,
    "4 bits in narrow rows": _narrow_rows,
    "quantized layers on disk": _quantized_offload,
    "memory of an unknown device": _unknown_device,
    "flash attention without CUDA": _flash_needs_cuda,
    "flash attention on an old GPU": _flash_needs_newer_gpu,
    "flash attention missing": _flash_missing,
    "flash attention in float32": _flash_needs_16_bit,
    "nothing to drop": _nothing_to_drop,
}
"""Every combination that is refused, by what is wrong; each gives its words, or None."""
