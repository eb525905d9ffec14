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
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from sftkit import packed
from sftkit.forward import adds_virtual_tokens, unwrapped
from sftkit.settings import TrainSettings

Forward = Callable[[torch.Tensor], torch.Tensor]
Part = tuple["Member", torch.Tensor, torch.Tensor]
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A frozen linear layer and its low-rank update.

    Attributes:
        weight: Shape (out, in).
        bias: Shape (out,), or None.
        scaling: Factor on the update.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scaling: float


def part_of(layer: Any) -> Part | None:
    """Give a peft layer's parts, A and B last; None where it is anything but plain lora."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.disable_adapters or layer.merged:
        return None
    base = layer.base_layer
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if type(base) is not torch.nn.Linear or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    name = names[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    drops = layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    if drops or not frozen or a.bias is not None or b.bias is not None or layer.fan_in_fan_out:
        return None
    part = Member(weight=base.weight, bias=base.bias, scaling=layer.scaling[name])
    return part, a.weight, b.weight


def _multiply(
    x: torch.Tensor, members: Sequence[Member], low: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Multiply tokens (N, in) by layers; also give what the A matrices made of them, (N, sum r)."""
    dtype = x.dtype
    h = x @ torch.cat([a.to(dtype) for a in low[::2]]).T
    outputs = []
    at = 0
    for member, b in zip(members, low[1::2], strict=True):
        y = functional.linear(x, member.weight, member.bias)
        r = b.shape[1]
        y.addmm_(h[:, at : at + r], b.to(dtype).T, alpha=member.scaling)
        at += r
        outputs.append(y)
    return outputs, h


def _multiply_back(
    gradients: Sequence[torch.Tensor],
    x: torch.Tensor,
    h: torch.Tensor,
    members: Sequence[Member],
    low: Sequence[torch.Tensor],
    *,
    needs_input: bool = True,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """From the gradients of outputs to those of the input and of every A and B."""
    dtype = x.dtype
    into_h = torch.empty_like(h)
    of_b = []
    at = 0
    for given, member, b in zip(gradients, members, low[1::2], strict=True):
        r = b.shape[1]
        into_h[:, at : at + r] = given @ (b.to(dtype) * member.scaling)
        of_b.append((h[:, at : at + r].T @ given).T.to(b.dtype) * member.scaling)
        at += r
    of_a = (into_h.T @ x).to(low[0].dtype).split([b.shape[1] for b in low[1::2]])
    back = None
    if needs_input:
        back = into_h @ torch.cat([a.to(dtype) for a in low[::2]])
        for given, member in zip(gradients, members, strict=True):
            back.addmm_(given, member.weight)
    return back, [part for pair in zip(of_a, of_b, strict=True) for part in pair]


class _Layers(torch.autograd.Function):
    """Linear layers with low-rank updates that read the same input."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[Member], *low: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs, h = _multiply(x, members, low)
        ctx.save_for_backward(x, h, *low)
        ctx.members = members
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, h, *low = ctx.saved_tensors
        back, of_low = _multiply_back(
            gradients, x, h, ctx.members, low, needs_input=ctx.needs_input_grad[0]
        )
        return back, None, *of_low


class _GatedLayers(torch.autograd.Function):
    """A feed-forward part, down(silu(gate(x)) * up(x)), that keeps x, gate(x) and up(x) only."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[Member], *low: torch.Tensor
    ) -> torch.Tensor:
        (gate, up), h = _multiply(x, members[:2], low[:4])
        inner = functional.silu(gate).mul_(up)
        (y,), h_down = _multiply(inner, members[2:], low[4:])
        ctx.save_for_backward(x, gate, up, h, h_down, *low)
        ctx.members = members
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, gate, up, h, h_down, *low = ctx.saved_tensors
        activated = functional.silu(gate)
        inner: Any
        inner, of_down = _multiply_back(gradients, activated * up, h_down, ctx.members[2:], low[4:])
        of_up = activated.mul_(inner)
        of_gate = torch.ops.aten.silu_backward(inner.mul_(up), gate)
        back, of_rest = _multiply_back(
            (of_gate, of_up), x, h, ctx.members[:2], low[:4], needs_input=ctx.needs_input_grad[0]
        )
        return back, None, *of_rest, *of_down


class _Norm(torch.autograd.Function):
    """Root mean square norm that keeps its input and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        given = (gradients[0] * weight).float()
        normed = x.float() * scale
        dot = torch.linalg.vecdot(given, normed)[..., None].div_(-x.shape[-1])
        return given.addcmul_(normed, dot).mul_(scale).to(x.dtype), None, None


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
            outputs = _apply(_Layers, x, [part for part in parts if part is not None])
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
        return _apply(_GatedLayers, x, [part for part in parts if part is not None])[0]

    return forward


def fast_norm(module: Any) -> Forward:
    """Give the forward of a root mean square norm as one function."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.as_tensor(_Norm.apply(x, module.weight, module.variance_epsilon))

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


@contextlib.contextmanager
def fast_training(model: Any, settings: TrainSettings) -> Iterator[None]:
    """Make a training faster while it lasts, as far as model and settings allow.

    Args:
        model: A model, bare or with an adapter; FSDP and DeepSpeed must not have split it.
        settings: `speed` auto or off. Rows are packed only where nothing draws random numbers in
            the forward pass (dropout, NEFTune): what is drawn for a shared beginning would else
            be the same in all rows.
    """
    if settings.speed == "off":
        yield
        return
    base = unwrapped(model)
    with contextlib.ExitStack() as stack:
        draws = settings.neftune_alpha > 0 or any(map(_draws, model.modules()))
        if not (draws or adds_virtual_tokens(model)) and packed.can_pack(base):
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
