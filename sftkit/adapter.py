"""Attach, count, scale, switch off, save and load adapters (peft does the mathematics)."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftkit.errors import AdapterError, near_names
from sftkit.settings import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many parameters there are, and how many of them are trained."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total if self.total else 0.0
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2%})"


def attach_adapter(
    model: PreTrainedModel, settings: AdapterSettings, *, seed: int = 0
) -> PeftModel:
    """Put a fresh adapter on a base model. Until it is trained, no logit changes.

    Args:
        model: The base model; its weights stay as they are.
        settings: Which updates, and where.
        seed: Seed of the adapter's first weights.

    Returns:
        The model with its adapter, in float32 whatever the base's type.

    Raises:
        AdapterError: The model has an adapter already, the target matches no layer, or `layers`
            lies outside the model.
    """
    from peft import LoraConfig, get_peft_model

    if getattr(model, "peft_config", None):
        raise AdapterError(
            "The model already carries an adapter, so a second one would be tested against the "
            "first instead of the base. Load the base model afresh (load_model) and attach to that."
        )

    targets = find_targets(model, settings)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that is about to change; nothing of ours depends on it.
        warnings.filterwarnings(
            "ignore", message=".is_gradient_checkpointing", category=FutureWarning
        )
        attached: PeftModel = get_peft_model(model, config)
    attached.eval()
    return attached


def find_targets(model: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """List the full names of the layers that an adapter would change.

    Args:
        model: The base model.
        settings: `target_modules` and `layers` decide.

    Returns:
        Names such as model.layers.0.self_attn.q_proj, in the model's order.

    Raises:
        AdapterError: Nothing matches; near names are listed.
    """
    if isinstance(settings.target_modules, str):
        try:
            re.compile(settings.target_modules)
        except re.error as error:
            raise AdapterError(
                f"adapter.target_modules {settings.target_modules!r} is no regular expression: "
                f"{error}."
            ) from error
    head = model.get_output_embeddings()
    linear = [
        name for name, module in model.named_modules() if _is_linear(module) and module is not head
    ]
    chosen = [name for name in linear if _matches(name, settings.target_modules)]
    wanted = settings.target_modules
    unmatched = [
        target
        for target in ((wanted,) if isinstance(wanted, str) else wanted)
        if not any(_matches(name, target if target == wanted else (target,)) for name in linear)
    ]
    if unmatched:
        last_names = {name.rsplit(".", 1)[-1] for name in linear}
        raise AdapterError(
            f"adapter.target_modules {unmatched[0]!r} matches no linear layer of "
            f"{type(model).__name__}.{near_names(unmatched[0], last_names | {'all-linear'})}"
        )
    if settings.layers is None:
        return chosen
    first, last = settings.layers
    inside = [name for name in chosen if (n := _block(name)) is not None and first <= n <= last]
    blocks = [n for name in linear if (n := _block(name)) is not None]
    if not inside or last > max(blocks):
        raise AdapterError(
            f"adapter.layers={list(settings.layers)} lies outside the model, whose blocks are 0 to "
            f"{max(blocks, default=0)}."
        )
    return inside


def count_parameters(model: Any) -> ParameterCount:
    """Count parameters; four-bit ones count as the weights they stand for."""
    trainable, total = 0, 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return ParameterCount(trainable=trainable, total=total)


@contextlib.contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Switch the adapter off: for lora, the model then is the base model, bit for bit."""
    with model.disable_adapter():
        yield


@contextlib.contextmanager
def adapter_scaled(model: PeftModel, scale: float) -> Iterator[None]:
    """Run the adapter at another strength: 1 is as trained, 0 changes nothing at all."""
    from peft.helpers import rescale_adapter_scale

    if scale == 1.0:
        yield
        return
    with rescale_adapter_scale(model, multiplier=scale):
        yield


def weaken_adapter(model: PeftModel, strength: float) -> None:
    """Multiply the trained update by a factor, for good: what is saved is the weaker adapter.

    Args:
        model: A model with a lora adapter.
        strength: The factor; 1 changes nothing.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.mul_(strength)


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """Write a standard PEFT adapter folder: adapter_model.safetensors and adapter_config.json."""
    folder = Path(folder)
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; the run's card is ours
    return folder


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model.

    Raises:
        AdapterError: The folder is no adapter, is damaged, holds pickled weights only, or was made
            for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(f"{folder} is no adapter folder: adapter_config.json is missing.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise AdapterError(
            f"{folder} holds no adapter_model.safetensors. Pickled weights (.bin, .pt) can run any "
            "code when opened and are refused; save the adapter again as safetensors."
        )
    fits = f"{folder} does not fit {type(model).__name__}"
    try:
        with warnings.catch_warnings():  # peft only warns of what is refused below
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            attached: PeftModel = PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise AdapterError(f"{folder}/adapter_model.safetensors is damaged: {error}") from error
    except json.JSONDecodeError as error:
        raise AdapterError(f"{folder}/adapter_config.json is not JSON: {error}") from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise AdapterError(f"{fits}: {error}") from error
    astray = _astray(attached, folder)
    if astray:
        raise AdapterError(
            f"{fits}: {len(astray)} of its weights have no place there or are missing, such as "
            f"{astray[0]}. Use the base model it was made for (see adapter_config.json)."
        )
    return attached.eval()


def _astray(attached: PeftModel, folder: Path) -> list[str]:
    """List lora weights that are in the file and not in the model, or the other way round."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
    return sorted(name for name in stored ^ wanted if "lora_" in name)


def _is_linear(module: torch.nn.Module) -> bool:
    # bitsandbytes' layers are nn.Linear too; GPT-2's Conv1D is linear by another name.
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _matches(name: str, target: str | tuple[str, ...]) -> bool:
    if target == "all-linear":
        return True
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None or name.rsplit(".", 1)[-1] == target
    return any(name == part or name.endswith(f".{part}") for part in target)


def _block(name: str) -> int | None:
    """Number of the block a layer is in: the first number in its name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
