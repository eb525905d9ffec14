"""Optimizers by name, and which parameters get which rate and decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sftkit.errors import TrainError
from sftkit.settings import AdapterSettings, TrainSettings

_FUSED = ("cpu", "cuda")


def make_optimizer(
    model: Any, settings: TrainSettings, *, rate_scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer a recipe names, over whatever requires a gradient.

    Args:
        model: The model; its device decides what is possible.
        settings: Name, rate, momentum, betas and weight decay.
        rate_scales: As for `parameter_groups`.

    Returns:
        An optimizer whose groups carry `rate_scale`, the factor on the scheduled rate.

    Raises:
        TrainError: The optimizer cannot work on this device, with one that can.
    """
    groups = parameter_groups(model, settings, rate_scales=rate_scales)
    rate = settings.learning_rate
    betas = (settings.betas[0], settings.betas[1])
    name = settings.optimizer
    if name == "adamw":
        # One pass over all weights: 4 in the place of 16 ms for the 420 matrices of rank 8.
        in_one = settings.speed == "auto" and next(model.parameters()).device.type in _FUSED
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=in_one)
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=betas)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # Steps relative to a weight's size (Shazeer and Stern 2018, section 8; the only way of
        # torch's own) would hardly move the B matrices of lora, which start at zero.
        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    refuse_optimizer(name, next(model.parameters()).device.type)
    import bitsandbytes

    kinds = {
        "adamw-8bit": bitsandbytes.optim.AdamW8bit,
        "adamw-paged": bitsandbytes.optim.PagedAdamW,
        "adamw-paged-8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    made: torch.optim.Optimizer = kinds[name](groups, lr=rate, betas=betas)
    return made


def refuse_optimizer(name: str, device: str) -> None:
    """Refuse an optimizer that cannot work on a device, before any weight is read.

    Raises:
        TrainError: bitsandbytes' paged optimizers move their state between GPU and main memory,
            so they need CUDA (on a CPU they silently become the plain ones); the 8-bit ones need
            a CPU or CUDA.
    """
    paged = "paged" in name
    if paged and device != "cuda":
        plain = "adamw-8bit" if name.endswith("8bit") and device == "cpu" else "adamw"
        raise TrainError(
            f"train.optimizer={name} moves its state between GPU and main memory and needs a CUDA "
            f"device, got {device}. Use optimizer: {plain}."
        )
    if name == "adamw-8bit" and device not in ("cpu", "cuda"):
        raise TrainError(
            f"train.optimizer={name} needs bitsandbytes on a CPU or CUDA device, got {device}. "
            "Use optimizer: adamw."
        )


def parameter_groups(
    model: Any, settings: TrainSettings, *, rate_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Sort trained parameters by weight decay (matrices only) and by rate.

    Args:
        model: The model.
        settings: Its weight decay.
        rate_scales: Factor on the rate by a part of parameters' names, e.g. {"lora_B": 16}.

    Returns:
        Groups for a torch optimizer, with `rate_scale` beside `params` and `weight_decay`.
    """
    sorted_by: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((s for part, s in (rate_scales or {}).items() if part in name), 1.0)
        # ia3's vectors and dora's sizes have axes of length one; at zero they switch layers off.
        is_matrix = sum(length > 1 for length in parameter.shape) > 1
        decay = settings.weight_decay if is_matrix and "ia3_l" not in name else 0.0
        sorted_by.setdefault((scale, decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "rate_scale": scale,
            "lr": settings.learning_rate * scale,
        }
        for (scale, decay), parameters in sorted_by.items()
    ]


def rate_scales(adapter: AdapterSettings) -> dict[str, float]:
    """Say which parameters of an adapter learn at another rate: the B matrices of lora+."""
    if adapter.kind != "lora+":
        return {}
    return dict.fromkeys(("lora_B", "lora_embedding_B"), adapter.lora_plus_ratio)
