"""Load tokenizer and base model; pick the dtype; quantize (the only home of bitsandbytes)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftkit.catalog import ModelSource, fetch_model
from sftkit.catalog_hub import read_config
from sftkit.errors import FetchError, ModelError
from sftkit.loading import Case, check_loading, dropout_fields, quantized_as
from sftkit.processes import is_launched, local_index
from sftkit.settings import ModelSettings
from sftkit.weights import lean_folder, release_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows, inner, columns: a small model's layer at a short batch, and small enough that a processor
# without instructions for bfloat16 (about 2 GFLOP/s) is through with it in 0.1 s.
_PRODUCT = (64, 576, 576)
_FEWEST_TRIALS, _MOST_TRIALS, _TRIAL_S = 3, 40, 0.06


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """Which type weights and compute have, and why.

    Attributes:
        dtype: float32, bfloat16 or float16.
        reason: In words, with the timings that decided.
        gflops: Speed of one matrix product in that type, 1e9 operations per second.
    """

    dtype: torch.dtype
    reason: str
    gflops: float

    @property
    def name(self) -> str:
        """The type's name as recipes write it."""
        return str(self.dtype).removeprefix("torch.")


def pick_device(settings: ModelSettings) -> torch.device:
    """Choose where the model lives: what was asked for, else CUDA, else MPS, else the CPU.

    Of several processes on one machine each takes the GPU of its own number.

    Raises:
        ModelError: The device asked for is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if settings.device == "auto":
        return _own_device(next(name for name, present in there.items() if present))
    if not there[settings.device]:
        have = ", ".join(name for name, present in there.items() if present)
        raise ModelError(
            f"model.device={settings.device} was asked for, but torch {torch.__version__} sees "
            f"only {have} here. Use device: auto."
        )
    return _own_device(settings.device)


def _own_device(name: str) -> torch.device:
    """Give this process's own GPU; the other kinds of device have no number."""
    if name == "cuda" and is_launched():
        return torch.device(name, local_index())
    return torch.device(name)


def pick_dtype(settings: ModelSettings) -> DtypeChoice:
    """Choose the type of weights and compute by timing one matrix product per type.

    bfloat16 halves memory everywhere, but is 10 to 500 times slower than float32 on processors
    without instructions for it, so it is taken only where it is not slower. float16 is taken on
    GPUs without bfloat16, where the adapter stays float32.

    Raises:
        ModelError: The type asked for cannot work on the device.
    """
    device = pick_device(settings)
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        if dtype == torch.float16 and device.type == "cpu":
            raise ModelError("model.dtype=float16 cannot train on a CPU. Use dtype: auto.")
        return DtypeChoice(dtype=dtype, reason="asked for", gflops=_gflops([dtype], device)[0])
    half_type = torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        half_type = torch.float16
    full, half = _gflops([torch.float32, half_type], device)
    name = str(half_type).removeprefix("torch.")
    timings = f"one product: float32 {full:.0f}, {name} {half:.0f} GFLOP/s"
    if half >= full:
        return DtypeChoice(dtype=half_type, reason=f"auto ({timings})", gflops=half)
    return DtypeChoice(dtype=torch.float32, reason=f"auto ({timings})", gflops=full)


def try_quantized_layers(device: torch.device, dtype: torch.dtype) -> None:
    """Compute one small layer in 8 and one in 4 bits.

    Raises:
        Exception: Whatever the library raises where it has no code for the device.
    """
    import bitsandbytes as bnb

    layers = (
        bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False),
        bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=dtype),
    )
    for layer in layers:
        with torch.inference_mode():
            out = layer.to(device)(torch.ones(2, 64, device=device, dtype=dtype))
        if not bool(torch.isfinite(out.float()).all()):
            raise ModelError(f"{type(layer).__name__} gave no numbers on {device.type}.")


def load_tokenizer(
    settings: ModelSettings, *, source: ModelSource | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Args:
        settings: Which model.
        source: Where it lies, if already fetched.

    Raises:
        FetchError: The model cannot be had.
        ModelError: It has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    source = source or fetch_model(settings)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"No tokenizer could be loaded for {source.name!r}: {error}") from error
    return tokenizer


def load_model(
    settings: ModelSettings,
    *,
    dtype: torch.dtype | None = None,
    source: ModelSource | None = None,
) -> PreTrainedModel:
    """Load the base model, frozen, in the chosen type and quantization, on its device.

    Args:
        settings: Which model, and how its weights are held.
        dtype: Type already picked; None picks it here.
        source: Where the model lies, if already fetched.

    Returns:
        A causal language model in evaluation mode; no parameter requires a gradient.

    Raises:
        FetchError: The model cannot be had.
        ModelError: It cannot be loaded as asked.
    """
    from transformers import AutoModelForCausalLM

    return load_as(AutoModelForCausalLM, settings, dtype=dtype, source=source)


def load_as(
    kind: Any,
    settings: ModelSettings,
    *,
    dtype: torch.dtype | None = None,
    source: ModelSource | None = None,
    heads: Sequence[str] = (),
    **options: Any,
) -> PreTrainedModel:
    """Load a base model as one of transformers' Auto classes; see `load_model`.

    Args:
        kind: Such as AutoModelForCausalLM or AutoModelForSequenceClassification.
        settings: Which model, and how its weights are held.
        dtype: Type already picked; None picks it here.
        source: Where the model lies, if already fetched.
        heads: Modules whose weights may be fresh: a new head. They are never quantized. All
            other weights must be there.
        options: Passed on to the class, such as num_labels.
    """
    from safetensors import SafetensorError

    source = source or fetch_model(settings)
    what = "a model with a new head" if heads else "a chat model"
    device = pick_device(settings)
    dtype = dtype or pick_dtype(settings).dtype
    config = _config_of(source)
    case = Case(name=source.name, settings=settings, config=config, device=device.type, dtype=dtype)
    check_loading(case)
    options |= _how_held(settings, config, device=device, dtype=dtype, heads=heads)
    try:
        with without_loading_bar():
            loaded: Any = kind.from_pretrained(
                lean_folder(source, dtype),
                revision=source.revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source.name!r} cannot be loaded as {what}: {error}") from error
    model: PreTrainedModel = loaded[0]
    _check_whole(model, loaded[1], source, settings, heads)
    if "device_map" not in options:
        model.to(device)  # type: ignore[arg-type]  # transformers types .to() for tensors only
    if getattr(model, "is_quantized", False) and device.type == "cpu":
        _never_repack(model)
        release_files(model)
    return model.requires_grad_(False).eval()


def _how_held(
    settings: ModelSettings,
    config: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    heads: Sequence[str],
) -> dict[str, Any]:
    """Give transformers' options for attention, dropout, quantization and placement."""
    attention = settings.attention
    if attention == "auto":
        attention = "eager" if device.type == "cpu" else "sdpa"
    options: dict[str, Any] = {"attn_implementation": attention}
    if settings.dropout is not None:
        options |= dict.fromkeys(dropout_fields(config), settings.dropout)
    if settings.quantization != "none":
        options["quantization_config"] = _quantization(settings, dtype)
        if heads:
            options["quantization_config"].llm_int8_skip_modules = list(heads)  # 4 bit too
    if settings.device_map is not None:
        options |= _placement(settings, device)
    elif settings.quantization != "none" or quantized_as(config) is not None:
        options["device_map"] = {"": str(device)}
    return options


def _check_whole(
    model: PreTrainedModel,
    report: Mapping[str, Any],
    source: ModelSource,
    settings: ModelSettings,
    heads: Sequence[str],
) -> None:
    """Refuse weights that were made up, or went to a disk that was not offered."""
    lost = (*report["missing_keys"], *(key[0] for key in report["mismatched_keys"]))
    fresh = tuple(f"{head}." for head in heads)
    missing = sorted(name for name in lost if not name.startswith(fresh))
    if missing:  # transformers would fill them with random numbers
        raise ModelError(
            f"{source.name!r} lacks {len(missing)} of its weights, such as {missing[0]}. Its files "
            "are incomplete, or belong to another kind of model; fetch it again."
        )
    on_disk = "disk" in getattr(model, "hf_device_map", {}).values()
    if on_disk and settings.offload_folder is None:
        raise ModelError(
            f"{source.name!r} does not fit into what model.device_map may use. Raise "
            "model.max_memory, use quantization: nf4 or a smaller model; or, for answers alone, "
            "give an offload_folder for the rest."
        )


def check_trainable(model: Any) -> None:
    """Refuse a base model through which nothing can be trained.

    Raises:
        ModelError: Part of it lies on disk or beside the GPU, or its quantization lets no
            gradient through.
    """
    placed = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if "disk" in placed or ("cpu" in placed and len(placed) > 1):
        away = ", ".join(sorted(placed & {"cpu", "disk"}))
        raise ModelError(
            f"Part of the model was offloaded to {away}. It can answer so, but training would "
            "bring every layer back at every step. Use quantization: nf4, a smaller model, or a "
            "larger device; or raise model.max_memory."
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        kind = quantizer.quantization_config.quant_method
        raise ModelError(
            f"Weights quantized as {getattr(kind, 'value', kind)} let no gradient through. Use the "
            "model it was made from, with quantization: nf4."
        )


def _config_of(source: ModelSource) -> dict[str, Any]:
    """Read a model's config.json; of a hub model that alone is downloaded."""
    if not source.fingerprint.startswith("hub:"):
        return read_config(Path(source.path) / "config.json")
    from transformers import PretrainedConfig

    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(
            source.path, revision=source.revision
        )[0]
    except (OSError, ValueError) as error:
        raise FetchError(f"{source.path!r} cannot be had from the hub: {error}") from error
    return config


def _placement(settings: ModelSettings, device: torch.device) -> dict[str, Any]:
    """Give transformers' options for spreading layers; see ModelSettings."""
    from accelerate.utils import get_max_memory

    memory: dict[Any, Any] = {
        int(name) if name.isdigit() else name: size for name, size in settings.max_memory.items()
    }
    if device.type == "cpu" and not memory:
        memory = {"cpu": get_max_memory()["cpu"]}  # no GPU, though one may be there
    placed: dict[str, Any] = {"device_map": settings.device_map, "max_memory": memory or None}
    if settings.offload_folder is not None:
        placed["offload_folder"] = settings.offload_folder
    return placed


def _never_repack(model: PreTrainedModel) -> None:
    """Keep 4-bit layers as they were loaded.

    On processors with AVX512-BF16, bitsandbytes 0.50 rounds their scales anew at the first forward
    pass in evaluation mode, for a product that has no backward pass. Training after that (a look
    at validation examples is enough) went on with gradients that leave the base model out.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@contextlib.contextmanager
def without_loading_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar per model; progress is shown by the run itself."""
    from transformers.utils import logging as words

    was_on = words.is_progress_bar_enabled()
    words.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            words.enable_progress_bar()


def _quantization(settings: ModelSettings, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        # It would say at every forward pass of every layer that inputs become float16 for a while.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantization,
        bnb_4bit_use_double_quant=settings.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def _gflops(dtypes: Sequence[torch.dtype], device: torch.device) -> list[float]:
    """Time one matrix product in each type, best of a few, in 1e9 operations per second.

    The best of several, because another program may take the processor away in the middle of one;
    and taking turns, because it may take it away from all trials of one type.
    """
    rows, inner, columns = _PRODUCT
    pairs = [
        (
            torch.ones(rows, inner, dtype=dtype, device=device),
            torch.ones(inner, columns, dtype=dtype, device=device),
        )
        for dtype in dtypes
    ]
    best = [float("inf")] * len(pairs)
    began = time.perf_counter()
    for trial in range(_MOST_TRIALS + 1):  # the first also builds the kernels
        if trial > _FEWEST_TRIALS and time.perf_counter() - began > _TRIAL_S:
            break
        for place, (left, right) in enumerate(pairs):
            start = time.perf_counter()
            (left @ right).sum().item()  # reading the number waits for the device
            if trial:
                best[place] = min(best[place], time.perf_counter() - start)
    return [2 * rows * inner * columns / seconds / 1e9 for seconds in best]
