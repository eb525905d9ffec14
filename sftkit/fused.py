"""Layers with low-rank updates, and norms, as single functions with their gradients written out.

Each keeps little for the backward pass and makes no copies on the way. `speed` puts them in the
place of the plain modules, after comparing the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional


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


class Layers(torch.autograd.Function):
    """Linear layers with low-rank updates that read the same input."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[Member], *low: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Multiply tokens (N, in) by each layer: outputs (N, out)."""
        outputs, h = _multiply(x, members, low)
        ctx.save_for_backward(x, h, *low)
        ctx.members = members
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Give the gradients of the input and of every A and B."""
        x, h, *low = ctx.saved_tensors
        back, of_low = _multiply_back(
            gradients, x, h, ctx.members, low, needs_input=ctx.needs_input_grad[0]
        )
        return back, None, *of_low


class GatedLayers(torch.autograd.Function):
    """A feed-forward part, down(silu(gate(x)) * up(x)), that keeps x, gate(x) and up(x) only."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, members: Sequence[Member], *low: torch.Tensor
    ) -> torch.Tensor:
        """Put tokens (N, in) through gate, up and down: outputs (N, in)."""
        (gate, up), h = _multiply(x, members[:2], low[:4])
        inner = functional.silu(gate).mul_(up)
        (y,), h_down = _multiply(inner, members[2:], low[4:])
        ctx.save_for_backward(x, gate, up, h, h_down, *low)
        ctx.members = members
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Give the gradients of the input and of every A and B."""
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


class Norm(torch.autograd.Function):
    """Root mean square norm that keeps its input and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Norm tokens (..., D) and weigh them, (D,)."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Give the gradient of the input; the weights are frozen."""
        x, weight, scale = ctx.saved_tensors
        given = (gradients[0] * weight).float()
        normed = x.float() * scale
        dot = torch.linalg.vecdot(given, normed)[..., None].div_(-x.shape[-1])
        return given.addcmul_(normed, dot).mul_(scale).to(x.dtype), None, None
