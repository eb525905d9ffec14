"""When training takes its faster parts: one place for the rules.

`speed` asks them about the model it holds, `memory_activations` about one that is only planned. So
they are about plain values. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTENTION = ("q_proj", "k_proj", "v_proj")
"""Layers that read the same input and share products."""
GATED = ("gate_proj", "up_proj", "down_proj")
"""Layers of a gated feed-forward part, which is one function where all of them can be."""
FLASH = ("flash_attention_2",)
"""Attention that takes rows one after another by itself, and no shared beginning."""
_PACKED = ("eager", "sdpa", *FLASH)
OTHER_ATTENTION = ("attn_logit_softcapping", "attention_chunk_size")
"""Fields of configurations that say that attention is not the plain one."""


def may_pack(
    *, attention: str | None, config: Mapping[str, Any], devices: int, writes: bool
) -> bool:
    """Say whether a model may take rows without padding; `speed.can_pack` then tries it.

    Args:
        attention: Implementation, such as eager.
        config: The model's configuration.
        devices: On how many devices its layers lie: a layout is on one.
        writes: Whether it has an output head for text; batches with labels are never packed.
    """
    is_plain = attention in _PACKED and not any(
        config.get(name) is not None for name in OTHER_ATTENTION
    )
    return is_plain and devices <= 1 and writes


def is_alike_in_all_rows(*, draws: bool, adds_tokens: bool) -> bool:
    """Say whether a shared beginning has the same values in every row.

    Args:
        draws: Whether the forward pass draws random numbers (dropout, NEFTune): what is drawn for
            a shared beginning would else be the same in all rows.
        adds_tokens: Whether the adapter puts tokens of its own in front.
    """
    return not (draws or adds_tokens)


def may_fuse(*, is_plain: bool, has_variant: bool, drops: bool, is_frozen: bool) -> bool:
    """Say whether a layer and its low-rank update may be one function.

    Args:
        is_plain: Whether the layer is torch's own linear one, so not quantized.
        has_variant: Whether the update is more than a product, as dora's.
        drops: Whether the update drops inputs at random.
        is_frozen: Whether the layer itself is not trained.
    """
    return is_plain and is_frozen and not (has_variant or drops)


def is_beyond_window(longest: int, window: int | None) -> bool:
    """Say whether rows are longer than attention looks back, so that they are not packed."""
    return window is not None and longest > window


def round_up(count: int) -> int:
    """Round up to one of sixteen counts of tokens between two powers of two.

    oneDNN makes and keeps code for every shape it multiplies: 30 products of a new count of tokens
    took 40 ms and 26 MB in bfloat16. So there are few counts; the spare tokens are read by nobody.
    """
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step
