"""What one forward pass keeps for the backward pass, and what only passes through it, in bytes.

Read off the graphs that autograd builds for these models, with and without the faster parts of
training (`speed_rules` says when they are taken); the tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit import speed_rules
from sftkit.memory_shapes import Linear, ModelShape
from sftkit.settings import AdapterSettings, ModelSettings, Task, TrainSettings

if TYPE_CHECKING:
    from sftkit.memory_formulas import Device, ForwardPass

LORA = ("lora", "rslora", "dora", "pissa", "lora+")
"""Methods that multiply by two small matrices."""
MAPPED_BYTES = 1 << 25
"""glibc maps a block of this size apart, whatever it has seen before (mallopt(3))."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How the rows of a pass lie in memory.

    Attributes:
        rows: Rows.
        tokens: Tokens that pass through layers, spare ones and padding among them.
        span: Tokens of a row that are its own, padding included.
        shared: Tokens that all rows begin with and that are computed once.
        packed: Whether rows lie one after another, without padding.
    """

    rows: int
    tokens: int
    span: int
    shared: int = 0
    packed: bool = False

    @property
    def own(self) -> int:
        """The rows' own tokens, padding included: what attention works on."""
        return self.rows * self.span


@dataclass(frozen=True)
class Activations:
    """One model under one set of settings; gives bytes of its forward passes."""

    shape: ModelShape
    model: ModelSettings
    adapter: AdapterSettings
    train: TrainSettings
    task: Task
    device: Device
    width: int  # bytes of a computed value
    targets: Mapping[int, tuple[Linear, ...]]  # layers with an update, by block
    first_trained: int  # first block that the backward pass reaches
    first_own: int  # first block whose own weights are trained

    # ---- which parts are the faster ones ----

    @property
    def attention(self) -> str:
        """Attention as it will be loaded."""
        if self.model.attention == "auto":
            return "eager" if self.device == "cpu" else "sdpa"
        return self.model.attention

    @property
    def dropout(self) -> tuple[float, float]:
        """Probabilities of dropping hidden values and attention."""
        given = self.model.dropout
        return self.shape.dropout if given is None else (given, given)

    @property
    def packs(self) -> bool:
        """Whether several rows are packed."""
        if self.train.speed == "off":
            return False
        drops = self.adapter.lora_dropout if self.adapter.kind in LORA else 0.0
        return speed_rules.may_pack(
            attention=self.attention,
            config=self.shape.attention_fields,
            devices=1 if self.model.device_map is None else 2,
            # The loop packs rows for a frozen head, whose logits it computes a few at a time.
            writes=self.task == "chat" and self.adapter.kind not in {"freeze", "full"},
        ) and speed_rules.is_alike_in_all_rows(
            draws=any((self.train.neftune_alpha, drops, *self.dropout)),
            adds_tokens=self.adapter.kind == "prompt",
        )

    @property
    def fuses(self) -> bool:
        """Whether a layer and its update are one function."""
        return self.train.speed == "auto" and speed_rules.may_fuse(
            is_plain=self.model.quantization == "none",
            has_variant=self.adapter.kind not in LORA or self.adapter.kind == "dora",
            drops=self.adapter.lora_dropout > 0,
            is_frozen=self.adapter.kind not in {"freeze", "full"},
        )

    def gates(self, targets: Sequence[Linear]) -> bool:
        """Say whether a gated feed-forward part with these targets is one function."""
        named = {layer.name.rsplit(".", 1)[-1] for layer in targets}
        return self.fuses and named.issuperset(speed_rules.GATED)

    def lay_out(self, one: ForwardPass) -> Rows:
        """Say how the rows of a pass lie in memory."""
        added = self.adapter.virtual_tokens if self.adapter.kind == "prompt" else 0
        length = one.length + added
        beyond = speed_rules.is_beyond_window(one.length, self.shape.window)
        if not self.packs or one.rows == 1 or beyond:
            return Rows(rows=one.rows, tokens=one.rows * length, span=length)
        shared = 0 if self.attention in speed_rules.FLASH else one.shared
        tokens = one.tokens - one.padding - (one.rows - 1) * shared
        tokens = speed_rules.round_up(tokens) if self.device == "cpu" else tokens
        return Rows(rows=one.rows, tokens=tokens, span=length - shared, shared=shared, packed=True)

    # ---- bytes ----

    def of_pass(self, one: ForwardPass) -> tuple[float, float]:
        """Give bytes kept for the backward pass, and bytes of values that only pass through."""
        shape, rows = self.shape, self.lay_out(one)
        alike: dict[tuple[tuple[Linear, ...], bool], int] = {}
        for block in range(self.first_trained, shape.blocks):
            key = (self.targets.get(block, ()), block >= self.first_own)
            alike[key] = alike.get(key, 0) + 1
        kept = [(self._kept(*key, rows), count) for key, count in alike.items()]
        passing = [(self._passing(key[0], rows), count) for key, count in alike.items()]
        mask = 4 * rows.own * (rows.shared + rows.span) if rows.packed else 0
        if not self.train.activation_checkpointing:
            return (
                mask + sum(size * count for size, count in kept),
                sum(size * count for size, count in passing),
            )
        # Only each block's input is kept; one block at a time is computed again.
        inputs = shape.blocks * shape.width * self.width * rows.tokens
        return mask + inputs + max(size for size, _ in kept), max(size for size, _ in passing)

    def _kept(self, targets: Sequence[Linear], own: bool, rows: Rows) -> float:
        """Give bytes that one block keeps for the backward pass.

        Args:
            targets: Its layers with an update.
            own: Whether its own weights are trained.
            rows: How the rows lie.
        """
        shape, size = self.shape, self.width
        mixed, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        flash = self.attention != "eager"
        keeps_mixed = flash and not rows.packed
        total, kept = 0.0, 0.0
        if shape.family == "decoder":
            # A plain norm keeps its input in float32; one in a single function as it is.
            wide = size if self.train.speed == "auto" and not own else 4
            kept = wide * (2 * shape.width + (mixed + keys) * shape.head_norms)
            kept += (2 if self.gates(targets) else 3) * shape.inner * size
            if rows.packed:
                total += self._kept_by_packed(rows)
            elif flash:
                kept += (2 * mixed + 2 * keys) * size
            else:
                kept += 3 * mixed * size
                total += shape.heads * rows.own * rows.span * (4 + (2 if size == 2 else 0))
        else:
            drops_hidden, drops_scores = self.dropout
            kept = 2 * shape.width * size + shape.inner * size
            # On a GPU dropout keeps a mask of one byte, elsewhere the noise itself.
            kept += 2 * shape.width * (size if self.device == "cpu" else 1) * bool(drops_hidden)
            if flash and (not drops_scores or self.device != "cpu"):
                kept += 4 * mixed * size
            else:  # with dropout sdpa computes as eager does on a CPU, and in float32
                wide = 4 if flash else size
                kept += 3 * mixed * wide
                copies = 3 if drops_scores else 1
                total += shape.heads * rows.own * rows.span * wide * copies
        if own and shape.family == "decoder":
            kept += 2 * shape.width * size  # what the norms' weights are multiplied by
        layers = shape.linear if own else targets
        kept += self._kept_inputs(layers, keeps_mixed, self.gates(targets))
        return total + rows.tokens * (kept + self._kept_by_updates(targets))

    def _kept_by_packed(self, rows: Rows) -> float:
        """Give bytes that attention keeps of packed rows, as `packed` computes it."""
        shape, size = self.shape, self.width
        mixed, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        seen = rows.own * (rows.shared + rows.span)
        if self.attention in speed_rules.FLASH:
            return float(size * rows.tokens * (2 * mixed + 2 * keys))
        if self.attention == "sdpa":  # queries, outputs; keys and values; the mask in 16 bits
            both = rows.rows * (rows.shared + rows.span) * 2 * keys
            copied = seen if size == 2 else 0
            # Of the shared beginning it keeps views, and so the whole.
            first = rows.tokens * (mixed + 2 * keys) + rows.shared * mixed if rows.shared else 0
            return float(size * (rows.own * 2 * mixed + both + copied + first))
        own = rows.own * (mixed + 2 * keys) + shape.heads * seen
        shared = rows.shared * (mixed + 2 * keys) + shape.heads * rows.shared**2
        views = 0 if rows.shared else rows.tokens * 2 * keys  # of none, and yet of the whole
        return float(size * (own + shared + views))

    def _kept_inputs(self, layers: Sequence[Linear], keeps_mixed: bool, gated: bool) -> float:
        """Give bytes per token of inputs that the trained weights' gradients need."""
        if self.adapter.kind in ("prompt", "ia3"):
            return 0.0
        if self.adapter.lora_dropout and self.adapter.kind in LORA:  # each drops its own copy
            return 2.0 * self.width * sum(layer.inputs for layer in layers)
        reads = {layer.reads: layer.inputs for layer in layers}
        if keeps_mixed:
            reads.pop("mixed", None)  # attention keeps what it gave
        if gated:
            reads.pop("inner", None)  # it is computed again
        return float(self.width * sum(reads.values()))

    def _kept_by_updates(self, targets: Sequence[Linear]) -> float:
        kind, size = self.adapter.kind, self.width
        if kind == "ia3":
            # It multiplies what enters the last layer in its own float32.
            wide = {layer: 4 if layer.reads == "inner" else size for layer in targets}
            return float(sum(w * update_size(self.adapter, one) for one, w in wide.items()))
        inner = self.adapter.r * len(targets)
        scaled = 2 * sum(layer.outputs for layer in targets) if kind == "dora" else 0
        return float(size * (inner + scaled))

    def _passing(self, targets: Sequence[Linear], rows: Rows) -> float:
        """Give bytes of one block's values that are freed within the forward pass."""
        shape, size, tokens = self.shape, self.width, rows.tokens
        mixed, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        # What an update adds: its own output, scaled, and the sum; dora scales twice.
        added = {"dora": 5, "prompt": 0}.get(self.adapter.kind, 0 if self.fuses else 2)
        values = [x.outputs for x in shape.linear if x.outputs != shape.inner or x in targets]
        values += [layer.outputs for layer in targets] * added
        values += [shape.width] * 2  # sums beside the residual stream
        if shape.family == "decoder":
            values += [mixed, keys] * 4  # rotary positions
        sizes = [size * tokens * count for count in values] + [4 * tokens * shape.width] * 2
        scores = shape.heads * rows.own * (rows.shared + rows.span)
        if self.attention == "eager" and rows.packed:  # two parts, their sum and softmax
            sizes += [size * scores] * 2 + [4 * scores] * 2
        elif self.attention == "eager":
            sizes += [size * scores] * 3
        if self.adapter.kind == "dora":  # peft multiplies out each update for its norms
            sizes += [size * layer.inputs**2 for layer in targets]
            sizes += [size * layer.weights for layer in targets]
        if self.model.quantization in ("nf4", "fp4"):  # weights are written out for each product
            sizes += [size * layer.weights for layer in shape.linear]
        if self.model.quantization == "int8":  # inputs in 16 and 8 bits, sums in 32
            sizes += [3 * tokens * layer.inputs for layer in shape.linear]
            sizes += [4 * tokens * layer.outputs for layer in shape.linear]
        # The C library maps larger blocks apart and gives them back at once; the bound keeps an
        # estimate from falling where a batch grows past it.
        most = MAPPED_BYTES if self.device == "cpu" else math.inf
        return float(sum(min(one, most) for one in sizes))


def update_size(adapter: AdapterSettings, layer: Linear) -> int:
    """Count the trained parameters of a layer's update."""
    if adapter.kind == "ia3":
        return layer.inputs if layer.reads == "inner" else layer.outputs
    vector = layer.outputs if adapter.kind == "dora" else 0
    return adapter.r * (layer.inputs + layer.outputs) + vector
