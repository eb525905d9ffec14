"""Faster arithmetic for training, put on while a training lasts and taken off after.

Nothing here changes what is computed, only in how many calls: a layer and its low-rank update are
one function whose backward pass is written out, layers that read the same input share products,
and rows lie in memory without padding (`packed`). Every part has its plain twin, the module's own
forward, and is compared with it before it is used: what differs stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from sftkit import packed
from sftkit.forward import adds_virtual_tokens, unwrapped
from sftkit.fused import GatedLayers, Layers, Member, Norm
from sftkit.settings import TrainSettings
from sftkit.speed_rules import ATTENTION, FLASH, GATED, is_alike_in_all_rows, may_fuse, may_pack

Forward = Callable[[torch.Tensor], torch.Tensor]
Part = tuple[Member, torch.Tensor, torch.Tensor]


def part_of(layer: Any) -> Part | None:
    """Give a peft layer's parts, A and B last; None where it is anything but plain lora."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.disable_adapters or layer.merged:
        return None
    base = layer.base_layer
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return None
    name = names[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    drops = layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0
    can = may_fuse(
        is_plain=type(base) is torch.nn.Linear,
        has_variant=name in layer.lora_variant,
        drops=drops,
        is_frozen=not any(parameter.requires_grad for parameter in base.parameters()),
    )
    if not can or a.bias is not None or b.bias is not None or layer.fan_in_fan_out:
        return None
    part = Member(weight=base.weight, bias=base.bias, scaling=layer.scaling[name])
    return part, a.weight, b.weight


def fast_layers(layers: Sequence[Any]) -> list[Forward]:
    """Give forwards for layers that read the same input: who is asked first computes for all.

    The others' outputs wait until they are asked for with the same tensor. Whatever is not plain
    lora at the time of a call (switched off, merged, with dropout) computes as before.
    """
    waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def make(place: int) -> Forward:
        own = type(layers[place]).forward

        def forward(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            of_input, output = waiting.pop(place, (None, None))
            if of_input is x and output is not None:
                return output
            parts = [part_of(layer) for layer in layers]
            if args or options or any(part is None for part in parts):
                return torch.as_tensor(own(layers[place], x, *args, **options))
            outputs = _apply(Layers, x, [part for part in parts if part is not None])
            for other, output in enumerate(outputs):
                waiting[other] = (x, output)
            return waiting.pop(place)[1]

        return forward

    return [make(place) for place in range(len(layers))]


def fast_gated(module: Any) -> Forward:
    """Give the forward of a gated feed-forward part as one function."""
    layers = [getattr(module, name) for name in GATED]
    own = type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        parts = [part_of(layer) for layer in layers]
        if any(part is None for part in parts):
            return torch.as_tensor(own(module, x))
        return _apply(GatedLayers, x, [part for part in parts if part is not None])[0]

    return forward


def fast_norm(module: Any) -> Forward:
    """Give the forward of a root mean square norm as one function."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.as_tensor(Norm.apply(x, module.weight, module.variance_epsilon))

    return forward


def _apply(function: Any, x: torch.Tensor, parts: Sequence[Part]) -> list[torch.Tensor]:
    """Apply a function of tokens (N, in) to x (..., in), in the type of the weights."""
    members = [part[0] for part in parts]
    low = [matrix for part in parts for matrix in part[1:]]
    with torch.autocast(x.device.type, enabled=False):
        flat = x.reshape(-1, x.shape[-1]).to(members[0].weight.dtype)
        made = function.apply(flat, members, *low)
    outputs = made if isinstance(made, tuple) else (made,)
    return [output.view(*x.shape[:-1], -1) for output in outputs]


def plan(model: Any) -> list[tuple[Any, Forward]]:
    """List the modules that have a faster forward, and it."""
    from peft.tuners.lora.layer import Linear

    found: list[tuple[Any, Forward]] = []
    done: set[int] = set()

    def take(modules: Sequence[Any], forwards: Sequence[Forward]) -> None:
        found.extend(zip(modules, forwards, strict=True))
        done.update(id(module) for module in modules)

    for module in model.modules():
        kind = type(module).__name__
        children = dict(module.named_children())
        if kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            if not module.weight.requires_grad:
                take([module], [fast_norm(module)])
        elif kind.endswith("MLP") and set(GATED) <= set(children):
            layers = [children[name] for name in GATED]
            is_silu = type(getattr(module, "act_fn", None)).__name__ in {"SiLU", "SiLUActivation"}
            if is_silu and all(map(part_of, layers)) and not any(map(_is_watched, layers)):
                take([module], [fast_gated(module)])
                done.update(map(id, layers))
        elif set(ATTENTION) <= set(children):
            layers = [children[name] for name in ATTENTION]
            layers = [layer for layer in layers if part_of(layer)]
            if layers:
                take(layers, fast_layers(layers))
    for module in model.modules():
        if id(module) not in done and type(module) is Linear and part_of(module):
            take([module], fast_layers([module]))
    return [(module, forward) for module, forward in found if "forward" not in vars(module)]


def _is_watched(layer: Any) -> bool:
    """Say whether somebody looks at what goes through a layer or a part of it."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())


def agrees(module: Any, forward: Forward) -> bool:
    """Compare a faster forward with the module's own: three tokens, and the gradient by them."""
    inner = getattr(module, "gate_proj", module)
    weight = inner.base_layer.weight if hasattr(inner, "base_layer") else inner.weight
    tokens = torch.linspace(-2, 2, 3 * weight.shape[-1], device=weight.device)
    tokens = tokens.view(1, 3, -1).roll(1, 1).to(weight.dtype)

    def run(call: Forward) -> list[torch.Tensor]:
        with torch.enable_grad():
            x = tokens.clone().requires_grad_()
            y = call(x)
            ramp = torch.linspace(-1, 2, y.numel(), device=y.device).view_as(y)
            (gradient,) = torch.autograd.grad((y.float() * ramp).sum(), x)
        return [y.detach(), gradient]

    is_half = weight.dtype in {torch.bfloat16, torch.float16}
    limit = 0.05 if is_half else 1e-4
    device = weight.device.type
    with torch.autocast(device, weight.dtype) if is_half else contextlib.nullcontext():
        pairs = zip(run(forward), run(type(module).forward.__get__(module)), strict=True)
        gaps = [(one - two).float().norm() / two.float().norm() for one, two in pairs]
    return all(bool(gap < limit) for gap in gaps)


@contextlib.contextmanager
def fast_layers_of(model: Any) -> Iterator[int]:
    """Give modules their faster forwards while this lasts; tell how many have one.

    One module of each class is compared with its plain twin first.
    """
    found = plan(model)
    verdict: dict[type, bool] = {}
    for module, forward in found:
        if type(module) not in verdict:
            verdict[type(module)] = agrees(module, forward)
    chosen = [(module, forward) for module, forward in found if verdict[type(module)]]
    for module, forward in chosen:
        module.forward = forward
    try:
        yield len(chosen)
    finally:
        for module, _ in chosen:
            vars(module).pop("forward", None)


def can_pack(base: Any) -> bool:
    """Say whether a model takes packed rows: found out by putting two short rows through both ways.

    Models whose layers mix tokens by other means than the attention they get from transformers, or
    that do not hand on what they are called with, give other numbers.
    """
    config = base.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    is_allowed = may_pack(
        attention=attention,
        config=vars(config),
        devices=len(set(getattr(base, "hf_device_map", {}).values())),
        writes=base.get_output_embeddings() is not None,
    )
    if not is_allowed or not getattr(base, "_supports_attention_backend", False):
        return False
    body = base.base_model
    was_training = base.training
    highest = min(config.vocab_size, 100)
    ids = torch.arange(14, device=base.device).view(2, 7) * 31 % highest
    ids[1, :3] = ids[0, :3]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    base.eval()
    try:
        with torch.inference_mode():
            plain = body(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            with packed.packing(base):
                layout = packed.pack(ids, [7, 5], share=attention not in FLASH)
                other = body(**packed.inputs_of(layout), use_cache=False)[0][0][layout.places]
    except (TypeError, ValueError, NotImplementedError):  # it does not take what it is given
        return False
    finally:
        base.train(was_training)
    real = mask.bool()
    gap = (plain[real].float() - other[real].float()).norm() / plain[real].float().norm()
    return bool(gap < (1e-4 if base.dtype == torch.float32 else 0.05))


@contextlib.contextmanager
def fast_training(model: Any, settings: TrainSettings) -> Iterator[None]:
    """Make a training faster while it lasts, as far as model and settings allow.

    Args:
        model: A model, bare or with an adapter; FSDP and DeepSpeed must not have split it.
        settings: `speed` auto or off. Rows are packed only where they may be (`speed_rules`).
    """
    if settings.speed == "off":
        yield
        return
    base = unwrapped(model)
    with contextlib.ExitStack() as stack:
        draws = settings.neftune_alpha > 0 or any(map(_draws, model.modules()))
        is_alike = is_alike_in_all_rows(draws=draws, adds_tokens=adds_virtual_tokens(model))
        if is_alike and can_pack(base):
            stack.enter_context(packed.packing(base))
        if base.device.type == "cuda":
            stack.enter_context(_liger(base))
        stack.enter_context(fast_layers_of(model))
        yield


def _draws(module: Any) -> bool:
    """Say whether a module drops something at random in training."""
    own = isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
    chance = getattr(module, "attention_dropout", 0.0)
    return own or (isinstance(chance, float) and chance > 0)


@contextlib.contextmanager
def _liger(base: Any) -> Iterator[None]:
    """Use Liger's kernels for norms and rotations on CUDA where it is installed (untested here)."""
    if importlib.util.find_spec("liger_kernel") is None:
        yield
        return
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        _apply_liger_kernel_to_instance,
    )

    before = {module: dict(vars(module)) for module in base.modules()}
    # The loss stays ours: it has logits at supervised positions only.
    _apply_liger_kernel_to_instance(base, cross_entropy=False, fused_linear_cross_entropy=False)
    try:
        yield
    finally:
        for module, own in before.items():
            for name in set(vars(module)) - set(own):
                delattr(module, name)
            vars(module).update(own)
