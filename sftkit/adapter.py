"""Attach adapters, count, scale and switch them off (peft does the mathematics)."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit import adapter_kinds
from sftkit.adapter_kinds import (
    AdapterKind,
    check_kind,
    kind_of,
    why_not_scalable,
    why_off_is_not_base,
)
from sftkit.adapter_targets import find_targets, head_names, inner_feedforward, last_parameters
from sftkit.errors import AdapterError
from sftkit.peft_import import quick_import
from sftkit.settings import AdapterSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many parameters there are, and how many of them are trained."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Share of all parameters that is trained."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.2%})"


def attach_adapter(
    model: PreTrainedModel,
    settings: AdapterSettings,
    *,
    seed: int = 0,
    task_type: str | None = "CAUSAL_LM",
) -> Any:
    """Put a fresh adapter on a base model, or make weights of the base itself trainable.

    Until it is trained no logit changes, but for methods whose row in `adapter_kinds.KINDS` says
    otherwise. In a model for labels the head is fresh, so it is trained in full beside the
    adapter. Statistics of batch normalisation stay the base's own in training.

    Args:
        model: The base model; its weights stay as they are, except with freeze, full and pissa.
        settings: Which method, and where.
        seed: Seed of the adapter's first weights.
        task_type: CAUSAL_LM for chat models, SEQ_CLS for texts with labels or numbers, None for
            images.

    Returns:
        A PeftModel with its adapter in float32 whatever the base's type; for freeze and full the
        model itself, turned to float32.

    Raises:
        AdapterError: The method is unknown or cannot be put on this model, the model has an
            adapter already, the target matches no layer, or `layers` lies outside the model.
    """
    with quick_import():
        from peft import get_peft_model

    if getattr(model, "peft_config", None) or hasattr(model, "sftkit_trained"):
        raise AdapterError(
            "The model already carries an adapter, so a second one would be tested against the "
            "first instead of the base. Load the base model afresh (load_model) and attach to that."
        )
    kind = check_kind(
        settings, quantization="few bits" if is_quantized(model) else "none", task_type=task_type
    )
    torch.manual_seed(seed)
    if kind.peft_type is None:
        names = [name for name, _ in model.named_parameters()]
        if kind.name == "freeze":
            names = last_parameters(model, settings.last_blocks)
        _keep_statistics(model)
        return own_weights(model, kind, names, trained=True)
    fields = _fields(model, kind, settings, task_type)
    config = adapter_kinds.peft_config(kind, fields, settings.options)
    try:
        with quiet():
            attached = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, KeyError, NotImplementedError, OSError) as error:
        take_apart(model)
        raise AdapterError(
            f"peft cannot put adapter.kind={kind.name} on {type(model).__name__}: {error}"
        ) from error
    _keep_statistics(attached)
    return attached.eval()


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
def adapter_off(model: Any) -> Iterator[None]:
    """Switch the adapter off: the model then is the base model, bit for bit.

    Raises:
        AdapterError: With this method, what is left is not the base.
    """
    kind = kind_of(model)
    if not kind.off_equals_base:
        raise AdapterError(
            f"Switching off adapter.kind={kind.name} does not bring the base back: "
            f"{why_off_is_not_base(kind)}. Score the base before attach_adapter, or load it afresh."
        )
    with model.disable_adapter():
        yield


@contextlib.contextmanager
def adapter_scaled(model: Any, scale: float) -> Iterator[None]:
    """Run the adapter at another strength: 1 is as trained, 0 changes nothing at all.

    Raises:
        AdapterError: A part of its strength means nothing for this method; at 0, what is left
            would not be the base.
    """
    if scale == 1.0:
        yield
        return
    if scale == 0.0:  # needs no more than a base that comes back
        with adapter_off(model):
            yield
        return
    _refuse_unscalable(model)
    kept = [(parameter, parameter.detach().clone()) for parameter, _ in _updates(model)]
    weaken_adapter(model, scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def weaken_adapter(model: Any, strength: float) -> None:
    """Turn the trained update down, for good: what is saved is the weaker adapter.

    Each tensor goes a part of the way from where it changes nothing to where training took it:
    from 0 for the B of lora, from 1 for the vectors of ia3, and for the sizes of dora from those
    of the base's weights.

    Args:
        model: A model with an adapter.
        strength: The part; 1 changes nothing.

    Raises:
        AdapterError: A part of its strength means nothing for this method.
    """
    if strength == 1.0:
        return
    _refuse_unscalable(model)
    with torch.no_grad():
        for parameter, neutral in list(_updates(model)):
            parameter.copy_(neutral + strength * (parameter - neutral))


def _fields(
    model: PreTrainedModel, kind: AdapterKind, settings: AdapterSettings, task_type: str | None
) -> dict[str, Any]:
    """Collect the fields of peft's configuration that settings and model decide."""
    fields: dict[str, Any] = {"task_type": task_type}
    if "target_modules" in kind.fields and "target_modules" not in settings.options:
        targets = find_targets(model, settings)
        fields["target_modules"] = targets
        if kind.peft_type == "IA3":
            fields["feedforward_modules"] = inner_feedforward(model, targets)
        convolutions = {n for n, m in model.named_modules() if type(m).__name__.startswith("Conv")}
        if kind.name == "pissa" and convolutions & set(targets):
            raise AdapterError("adapter.kind=pissa takes linear layers only. Use lora or dora.")
    if task_type != "CAUSAL_LM":
        fields["modules_to_save"] = head_names(model)
    if "r" in kind.fields:
        fields |= {name: getattr(settings, name) for name in ("r", "lora_alpha", "lora_dropout")}
    if "virtual_tokens" in kind.fields:
        fields["num_virtual_tokens"] = settings.virtual_tokens
    return fields


def own_weights(model: Any, kind: AdapterKind, names: Sequence[str], *, trained: bool) -> Any:
    """Turn a model to float32, as small updates are lost in 16 bits, and mark what is trained."""
    model = model.float().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained and name in set(names))
    model.sftkit_trained = (kind.name, tuple(names))
    return model.eval()


def _refuse_unscalable(model: Any) -> None:
    kind = kind_of(model)
    if not kind.scalable:
        raise AdapterError(why_not_scalable(kind))


def _updates(model: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor | float]]:
    """Give each tensor that carries the update, and the value at which it changes nothing."""
    from peft.utils.integrations import dequantize_module_weight

    name = model.active_adapter
    for module in model.modules():
        if name in getattr(module, "lora_B", {}):
            yield from ((parameter, 0.0) for parameter in module.lora_B[name].parameters())
        if name in getattr(module, "lora_embedding_B", {}):
            yield module.lora_embedding_B[name], 0.0
        if name in getattr(module, "ia3_l", {}):
            yield module.ia3_l[name], 1.0
        if name in getattr(module, "lora_magnitude_vector", {}):
            vector = module.lora_magnitude_vector[name]
            weight = dequantize_module_weight(module.get_base_layer()).float()
            yield vector.weight, vector.get_weight_norm(weight, 0.0, 0.0)


def _keep_statistics(model: Any) -> None:
    """Keep batch normalisation in evaluation mode, so that training leaves the base as it is."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = types.MethodType(_stay, module)  # type: ignore[method-assign]


def _stay(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    """Stand in for `train`, whatever mode is asked for."""
    return module


def take_apart(model: Any) -> None:
    """Take what peft put into a model out again, also where peft stopped halfway."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(module, name, child.get_base_layer())
            elif isinstance(child, AuxiliaryTrainingWrapper):
                setattr(module, name, child.original_module)
    model.__dict__.pop("peft_config", None)


def is_quantized(model: Any) -> bool:
    """Say whether the weights of a base model are held in 8 or 4 bits."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence a warning about peft's own use of transformers."""
    with warnings.catch_warnings():
        # peft asks transformers by a name that is about to change; nothing of ours depends on it.
        warnings.filterwarnings(
            "ignore", message=".is_gradient_checkpointing", category=FutureWarning
        )
        yield
