"""Rows without padding: many rows in one, and the beginning they share computed once.

All rows of a chat batch begin with the same system message; in a causal model what is computed for
it depends on nothing that comes later, so it is the same in every row. A packed batch is the shared
beginning, then what is each row's own, one after another. Only attention needs to know: it lets a
row see the shared beginning and itself. Everything else treats tokens one by one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from sftkit.speed_rules import FLASH, is_beyond_window, round_up

NAME = "sftkit_packed_"
"""What the attention is called in a model's configuration, followed by that of unpacked rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the tokens of B rows of at most T tokens stand in one row of N.

    Attributes:
        input_ids: Token ids, shape (1, N): S shared ones, each row's own, a few spare ones.
        position_ids: Place of each token in its row, shape (1, N).
        places: Where each token of the padded rows stands in the packed one, shape (B, T); padding
            stands where its row's last token does.
        shared: S, tokens that all rows begin with.
        own: Places of the rows' own tokens, padded, shape (B, L).
        is_own: Which of these are no padding, as places in the flattened `own`.
        ends: Where the first row starts and each row ends, shape (B + 1,); of use where S is 0.
        mask: 0 where a query may see a key, else -inf, shape (B, 1, L, S + L), float32.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places: torch.Tensor
    shared: int
    own: torch.Tensor
    is_own: torch.Tensor
    ends: torch.Tensor
    mask: torch.Tensor


def pack(
    input_ids: torch.Tensor,
    lengths: list[int],
    *,
    share: bool = True,
) -> Layout:
    """Lay rows out one after another.

    Args:
        input_ids: Rows padded on the right, shape (B, T).
        lengths: Tokens of each row.
        share: Whether the shared beginning is put there once.
    """
    device = input_ids.device
    ids = input_ids.cpu()
    same = (ids[:, : min(lengths) - 1] == ids[:1, : min(lengths) - 1]).all(0)
    shared = int(same.long().cumprod(0).sum()) if share else 0
    column = torch.arange(ids.shape[1])
    own_lengths = torch.tensor(lengths) - shared
    starts = shared + own_lengths.cumsum(0) - own_lengths
    last = starts + own_lengths - 1
    places = torch.where(
        column < shared,
        column,
        torch.minimum(starts[:, None] + column - shared, last[:, None]),
    )
    own = places[:, shared:]
    is_real = torch.arange(own.shape[1]) < own_lengths[:, None]
    span = own.shape[1]
    seen = torch.ones(span, span, dtype=torch.bool).tril() & is_real[:, None, :]
    # A query of padding sees what is shared and itself, so that no row of the softmax is empty.
    seen |= torch.eye(span, dtype=torch.bool)
    seen = torch.cat([torch.ones(len(lengths), span, shared, dtype=torch.bool), seen], dim=-1)
    mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    order = torch.cat([column[:shared], (column[shared:] + 0 * own)[is_real]])
    flat = torch.cat([ids[0, :shared], ids[:, shared:][is_real]])
    spare = round_up(len(flat)) - len(flat) if device.type == "cpu" else 0
    flat, order = (functional.pad(part, (0, spare)) for part in (flat, order))
    return Layout(
        input_ids=flat[None].to(device),
        position_ids=order[None].to(device),
        places=places.to(device),
        shared=shared,
        own=own.to(device),
        is_own=is_real.reshape(-1).nonzero()[:, 0].to(device),
        ends=torch.cat([starts[:1], last + 1]).to(device, torch.int32),
        mask=mask[:, None].to(device),
    )


class _Attention(torch.autograd.Function):
    """Attention of packed rows: softmax(Q K' * scaling) V over the shared beginning and the own.

    Heads that share keys are queries of one product (no key is repeated), and the gradient is
    written out, as the shared beginning's is a sum over rows.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        scaling: float,
    ) -> torch.Tensor:
        """Queries (N, H, D), keys and values (N, K, D), to outputs (N, H, D)."""
        count, heads, width = query.shape
        kinds, shared = key.shape[1], layout.shared
        rows, span = layout.own.shape
        own = layout.own.reshape(-1)
        # K kinds of heads, B rows, H / K heads of a kind, L tokens, D numbers.
        q = query.index_select(0, own).view(rows, span, kinds, heads // kinds, width)
        q = q.permute(2, 0, 3, 1, 4).contiguous()
        k, v = (
            part.index_select(0, own)
            .view(rows, span, kinds, width)
            .permute(2, 0, 1, 3)
            .contiguous()
            for part in (key, value)
        )
        ks, vs = (part[:shared].transpose(0, 1).contiguous() for part in (key, value))
        by_row = (kinds * rows, -1)
        scores = torch.cat(
            [
                (q.view(kinds, -1, width) @ ks.mT).view(*q.shape[:4], shared),
                (q.view(*by_row, width) @ k.view(*by_row, width).mT).view(*q.shape[:4], span),
            ],
            dim=-1,
        )
        # In float32 (the mask's type), where it is as exact as it is fast: half of bfloat16's time.
        chances = torch.add(layout.mask, scores, alpha=scaling).softmax(-1).to(q.dtype)
        out = _weigh(chances, vs, v)
        end = shared + len(layout.is_own)
        result = query.new_zeros(query.shape)
        result[shared:end] = (
            out.permute(1, 3, 0, 2, 4).reshape(-1, heads, width).index_select(0, layout.is_own)
        )
        of_shared = None
        if shared:
            qs = _by_kind(query[:shared], kinds)
            of_shared = _triangle(qs @ ks.mT, scaling)
            result[:shared] = _by_token(of_shared @ vs, shared)
            ctx.save_for_backward(q, k, v, chances, ks, vs, qs, of_shared)
        else:
            ctx.save_for_backward(q, k, v, chances, ks, vs)
        ctx.layout, ctx.scaling, ctx.count = layout, scaling, count
        return result

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        """From the gradient of outputs to those of queries, keys and values."""
        (gradient,) = given
        q, k, v, chances, ks, vs, *rest = ctx.saved_tensors
        layout, shared = ctx.layout, ctx.layout.shared
        kinds, rows, group, span, width = q.shape
        wide = gradient.new_zeros((rows * span, kinds * group, width))
        end = shared + len(layout.is_own)
        wide.index_copy_(0, layout.is_own, gradient[shared:end])
        wide = wide.view(rows, span, kinds, group, width).permute(2, 0, 3, 1, 4).contiguous()
        by_row, by_kind = (kinds * rows, -1), (kinds, -1)
        d_chances = torch.cat(
            [
                (wide.view(*by_kind, width) @ vs.mT).view(*q.shape[:4], shared),
                (wide.view(*by_row, width) @ v.view(*by_row, width).mT).view(*q.shape[:4], span),
            ],
            dim=-1,
        )
        d_scores = torch._softmax_backward_data(d_chances, chances, -1, chances.dtype)
        d_scores.mul_(ctx.scaling)
        on_shared, on_own = (part.contiguous() for part in d_scores.split([shared, span], dim=-1))
        seen_shared, seen_own = (
            part.contiguous() for part in chances.split([shared, span], dim=-1)
        )
        dq = (on_own.view(*by_row, span) @ k.view(*by_row, width)).view(q.shape)
        if shared:
            dq = dq + (on_shared.view(*by_kind, shared) @ ks).view(q.shape)
        dk = on_own.view(*by_row, span).mT @ q.view(*by_row, width)
        dv = seen_own.view(*by_row, span).mT @ wide.view(*by_row, width)
        d_query = gradient.new_zeros((ctx.count, kinds * group, width))
        d_query[shared:end] = (
            dq.permute(1, 3, 0, 2, 4)
            .reshape(-1, kinds * group, width)
            .index_select(0, layout.is_own)
        )
        d_key, d_value = (gradient.new_zeros((ctx.count, kinds, width)) for _ in range(2))
        for to, of_own in ((d_key, dk), (d_value, dv)):
            by_place = of_own.view(kinds, rows, span, width).permute(1, 2, 0, 3)
            to[shared:end] = by_place.reshape(-1, kinds, width).index_select(0, layout.is_own)
        if shared:
            qs, of_shared = rest
            out = _by_kind(gradient[:shared], kinds)
            ds = torch._softmax_backward_data(out @ vs.mT, of_shared, -1, of_shared.dtype).mul_(
                ctx.scaling
            )
            d_query[:shared] = _by_token(ds @ ks, shared)
            dks = ds.mT @ qs
            dvs = of_shared.mT @ out
            dks += on_shared.view(*by_kind, shared).mT @ q.view(*by_kind, width)
            dvs += seen_shared.view(*by_kind, shared).mT @ wide.view(*by_kind, width)
            d_key[:shared], d_value[:shared] = dks.transpose(0, 1), dvs.transpose(0, 1)
        return d_query, d_key, d_value, None, None


def _attend_by_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> torch.Tensor:
    """Do what `_Attention` does by torch's own attention, which keeps no table of chances."""
    shared, rows = layout.shared, len(layout.own)
    attention = functional.scaled_dot_product_attention
    before = torch.arange(shared, device=query.device).expand(rows, shared)
    seen = torch.cat([before, layout.own], dim=1)
    own = attention(
        query[layout.own].transpose(1, 2),
        key[seen].transpose(1, 2),
        value[seen].transpose(1, 2),
        attn_mask=layout.mask.to(query.dtype),
        scale=scaling,
        enable_gqa=True,
    )
    own = own.transpose(1, 2).flatten(0, 1)[layout.is_own]
    spare = query.new_zeros((len(query) - shared - len(own), *query.shape[1:]))
    q, k, v = (part[None, :shared].transpose(1, 2) for part in (query, key, value))
    first = attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    return torch.cat([first[0].transpose(0, 1), own, spare])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as transformers asks an attention function to; rows that are not packed as before.

    Args:
        module: The attention layer.
        query: Shape (B, H, T, D).
        key: Shape (B, K, T, D); H is a multiple of K.
        value: Shape (B, K, T, D).
        attention_mask: For rows that are not packed.
        packed: Where packed rows stand; then B is 1.
        options: Others of transformers, scaling among them.

    Returns:
        Outputs of shape (B, T, H, D), and the chances where the former attention gives them.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = str(module.config._attn_implementation).removeprefix(NAME)  # type: ignore[union-attr]
    if packed is None or name in FLASH:
        given: dict[str, Any] = {}
        if packed is not None:  # rows one after another are what this attention is made for
            ends = packed.ends
            longest = int(ends.diff().max())
            given = {f"cu_seq_lens_{side}": ends for side in "qk"}
            given |= {f"max_length_{side}": longest for side in "qk"}
            attention_mask = None
        plain = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        former: Any = ALL_ATTENTION_FUNCTIONS.get_interface(name, plain)  # type: ignore[arg-type]
        result: tuple[torch.Tensor, torch.Tensor | None] = former(
            module, query, key, value, attention_mask, **options, **given
        )
        return result
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        if name == "sdpa":
            return _attend_by_sdpa(q, k, v, packed, scaling)[None], None
        return _Attention.apply(q, k, v, packed, scaling)[None], None


@contextlib.contextmanager
def packing(base: Any) -> Iterator[None]:
    """Let a model that can (`speed.can_pack`) take packed rows while this lasts."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = base.config.get_text_config()
    before = config._attn_implementation
    name = f"{NAME}{before}"
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def layout_for(base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Layout | None:
    """Lay out a batch for a model that takes packed rows; None where it does not, or for one row.

    Args:
        base: A transformers model.
        input_ids: Rows padded on the right, shape (B, T).
        attention_mask: 0 at padding, shape (B, T).
    """
    config = base.config.get_text_config()
    attention = str(getattr(config, "_attn_implementation", ""))
    if not attention.startswith(NAME) or len(input_ids) == 1:
        return None
    if is_beyond_window(input_ids.shape[1], getattr(config, "sliding_window", None)):
        return None
    lengths = [int(length) for length in attention_mask.sum(1)]
    share = attention.removeprefix(NAME) not in FLASH
    return pack(input_ids, lengths, share=share)


def inputs_of(layout: Layout) -> dict[str, Any]:
    """Give what the model's own forward is called with."""
    return {
        "input_ids": layout.input_ids,
        "position_ids": layout.position_ids,
        # Four axes: transformers makes no mask of its own. `attend` has the layout's.
        "attention_mask": layout.input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool),
        "packed": layout,
    }


def _weigh(chances: torch.Tensor, vs: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Sum values by their chances: shared ones (K, S, D) and own ones (K, B, L, D)."""
    kinds, rows, group, span, _ = chances.shape
    shared, width = vs.shape[1:]
    on_shared, on_own = chances.split([shared, span], dim=-1)
    out = on_own.reshape(kinds * rows, -1, span) @ v.view(kinds * rows, span, width)
    out = out.view(kinds, rows, group, span, width)
    if shared:
        out = out + (on_shared.reshape(kinds, -1, shared) @ vs).view(out.shape)
    return out


def _triangle(scores: torch.Tensor, scaling: float) -> torch.Tensor:
    """Turn scores (K, G * S, S) of the shared beginning into chances: each sees what is before."""
    size = scores.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(1)
    scores = scores.view(scores.shape[0], -1, size, size) * scaling
    return scores.masked_fill_(future, -torch.inf).softmax(-1).view(scores.shape[0], -1, size)


def _by_kind(tokens: torch.Tensor, kinds: int) -> torch.Tensor:
    """Sort (S, H, D) by kind of head: (K, H / K * S, D)."""
    count, heads, width = tokens.shape
    split = tokens.reshape(count, kinds, heads // kinds, width).permute(1, 2, 0, 3)
    return split.reshape(kinds, -1, width)


def _by_token(sorted_: torch.Tensor, count: int) -> torch.Tensor:
    """Undo `_by_kind`."""
    kinds, _, width = sorted_.shape
    return sorted_.view(kinds, -1, count, width).permute(2, 0, 1, 3).reshape(count, -1, width)
