"""Load tokenizer and base model; pick the dtype; quantize (the only home of bitsandbytes)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit.catalog import ModelSource, fetch_model
from sftkit.errors import ModelError
from sftkit.settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows, inner, columns: a small model's layer at a short batch, and small enough that a processor
# without instructions for bfloat16 (about 2 GFLOP/s) is through with it in 0.1 s.
_PRODUCT = (64, 576, 576)
_TRIALS = 3


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

    Raises:
        ModelError: The device asked for is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if settings.device == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    if not there[settings.device]:
        have = ", ".join(name for name, present in there.items() if present)
        raise ModelError(
            f"model.device={settings.device} was asked for, but torch {torch.__version__} sees "
            f"only {have} here. Use device: auto."
        )
    return torch.device(settings.device)


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
        return DtypeChoice(dtype=dtype, reason="asked for", gflops=_gflops(dtype, device))
    full = _gflops(torch.float32, device)
    half_type = torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        half_type = torch.float16
    half = _gflops(half_type, device)
    name = str(half_type).removeprefix("torch.")
    timings = f"one product: float32 {full:.0f}, {name} {half:.0f} GFLOP/s"
    if half >= full:
        return DtypeChoice(dtype=half_type, reason=f"auto ({timings})", gflops=half)
    return DtypeChoice(dtype=torch.float32, reason=f"auto ({timings})", gflops=full)


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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    source = source or fetch_model(settings)
    device = pick_device(settings)
    dtype = dtype or pick_dtype(settings).dtype
    attention = settings.attention
    if attention == "auto":
        attention = "eager" if device.type == "cpu" else "sdpa"
    options: dict[str, Any] = {}
    if settings.quantization != "none":
        options["quantization_config"] = _quantization(settings, dtype)
        options["device_map"] = {"": str(device)}
    try:
        with _without_loading_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                revision=source.revision,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source.name!r} cannot be loaded as a chat model: {error}") from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise ModelError(
            f"{source.name!r} lacks {len(missing)} of its weights, such as {missing[0]}. Its files "
            "are incomplete, or belong to another kind of model; fetch it again."
        )
    if settings.quantization == "none":
        model.to(device)  # type: ignore[arg-type]  # transformers types .to() for tensors only
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar per model; progress is shown by the run itself."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _quantization(settings: ModelSettings, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Time one matrix product, best of a few, in 1e9 operations per second.

    The best of several, because another program may take the processor away in the middle of one.
    """
    rows, inner, columns = _PRODUCT
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    times = []
    for _ in range(_TRIALS + 1):  # the first also builds the kernel
        start = time.perf_counter()
        (left @ right).sum().item()  # reading the number waits for the device
        times.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(times[1:]) / 1e9
