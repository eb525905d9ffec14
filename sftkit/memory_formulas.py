"""The formulas: bytes of every part of a plan, from the model's shape and the settings.

What a forward pass keeps was read off the graphs that autograd builds for these models, and the
tests compare the two. What the machine adds cannot be computed; it was fitted to measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sftkit.memory_activations import LORA, Activations, update_size
from sftkit.memory_shapes import Linear, ModelShape, find_targets
from sftkit.settings import AdapterSettings, ModelSettings, Task, TrainSettings

Device = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """What one forward pass holds.

    Attributes:
        rows: Rows.
        length: Tokens of the longest; the others are padded to it, unless they are packed.
        supervised: Tokens whose logits are computed, all rows together.
        padding: Tokens of padding, all rows together.
        shared: Tokens that all rows begin with.
    """

    rows: int
    length: int
    supervised: int
    padding: int = 0
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What no formula gives: constants of a kind of machine.

    Attributes:
        program: Bytes of the program before any weight.
        lost_16: Share of the temporary values of a pass that stay lost until it ends, 16-bit.
        lost_32: The same in float32.
        lost_faster: The same of either type where rows are packed or layers are single functions.
        again: The same, of a block that is computed twice, by checkpointing.
        later: Factor on these where passes follow one another within a step (1.7 to 1.85 in three
            of the configurations; not part of the fit).
        loading: Bytes that loading a quantized model takes, per byte of it unquantized.
        loading_most: The most of these that was seen: threads share the work as it comes.
        spread: Half the interval, as a share of the total.
        source: Where these numbers come from.
    """

    program: float
    lost_16: float
    lost_32: float
    lost_faster: float
    again: float
    later: float
    loading: float
    loading_most: float
    spread: float
    source: str


MACHINES: dict[Device, Machine] = {
    # Fitted by `benchmarks/memory_error.py --fit` to its calibration configurations: those of the
    # plain path to 52 with `speed: off`, lost_faster to 27 with `speed: auto`; the spread rounded
    # up. glibc cannot give an aligned block it got back to the next request of the same size,
    # hence the lost share. Single functions work in place, so less of theirs is lost.
    "cpu": Machine(
        program=0.680e9, lost_16=0.230, lost_32=0.386, lost_faster=0.18, again=2.93, later=1.8,
        loading=1.97, loading_most=2.79, spread=0.11,
        source="measured on 2 cores: benchmarks/results/memory-2-cores.json",
    ),
    "cuda": Machine(
        program=0.6e9, lost_16=0.1, lost_32=0.1, lost_faster=0.1, again=0.2, later=1.0,
        loading=0.0, loading_most=0.0, spread=0.25, source="formula only, not measured here",
    ),
    "mps": Machine(
        program=0.6e9, lost_16=0.1, lost_32=0.1, lost_faster=0.1, again=0.2, later=1.0,
        loading=0.0, loading_most=0.0, spread=0.25, source="formula only, not measured here",
    ),
}  # fmt: skip
SCORING_TOKENS = 512
"""Tokens scored at once between and after training (evidence.perplexity)."""
HEAD_ROWS = 128
"""Rows of logits computed at once where the head is frozen (forward)."""


FORMULAS = (*LORA, "ia3", "prompt", "freeze", "full")
_STATE_BYTES = {
    "adamw": 8.0, "adam": 8.0, "adamw-paged": 8.0, "sgd": 4.0,
    # Two bytes and, per block of 256, two scales; parameters below 4,096 entries stay in float32.
    "adamw-8bit": 2.03, "adamw-paged-8bit": 2.03, "adafactor": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """One model under one set of settings; gives bytes."""

    shape: ModelShape
    model: ModelSettings
    adapter: AdapterSettings
    train: TrainSettings
    task: Task
    classes: int
    device: Device
    width: int  # bytes of a computed value

    # ---- what is held all along ----

    @property
    def targets(self) -> Mapping[int, tuple[Linear, ...]]:
        """Layers with an update of their own, by block."""
        if self.adapter.kind in ("prompt", "freeze", "full"):
            return {}
        return find_targets(self.shape, self.adapter)

    @property
    def first_trained(self) -> int:
        """First block that the backward pass reaches."""
        if self.adapter.kind == "freeze" and not (self.task == "chat" and self.shape.tied):
            return self.first_own
        return min(self.targets, default=0)

    @property
    def first_own(self) -> int:
        """First block whose own weights are trained; with an adapter there is none."""
        blocks = self.shape.blocks
        first = {"full": 0, "freeze": max(0, blocks - self.adapter.last_blocks)}
        return first.get(self.adapter.kind, blocks)

    @property
    def head(self) -> int:
        """Parameters of a fresh head, which is trained in full."""
        if self.task == "chat":
            return 0
        if self.shape.family == "decoder":
            return self.shape.width * self.classes
        return self.shape.behind + (self.shape.width + 1) * self.classes

    @property
    def trainable(self) -> int:
        """Trained parameters."""
        shape, adapter = self.shape, self.adapter
        is_decoder = shape.family == "decoder"
        if adapter.kind == "full":
            if self.task == "chat":
                return shape.parameters
            tied = shape.tied or not is_decoder  # else the head over the vocabulary is not there
            head = self.head if is_decoder else self.head - shape.behind
            return shape.parameters + head - (0 if tied else shape.vocabulary * shape.width)
        if adapter.kind == "freeze":
            of_block = sum(layer.weights for layer in shape.linear) + shape.other
            head = shape.vocabulary * shape.width if self.task == "chat" else self.head
            behind = shape.behind if is_decoder else 0  # an encoder's is part of its head
            return min(adapter.last_blocks, shape.blocks) * of_block + behind + head
        if adapter.kind == "prompt":
            return adapter.virtual_tokens * shape.width
        return self.head + sum(
            update_size(self.adapter, layer) for layers in self.targets.values() for layer in layers
        )

    @property
    def weights(self) -> float:
        """Bytes of the base model as it is held."""
        shape, held = self.shape, self.model
        rest = (shape.parameters - shape.matrices) * self.width
        return rest + shape.matrices * weight_bytes(held, self.width) + self._row_scales

    @property
    def _row_scales(self) -> float:
        if self.model.quantization != "int8":
            return 0.0
        return 4 * self.shape.blocks * sum(layer.outputs for layer in self.shape.linear)

    # ---- what passes through ----

    @property
    def activations(self) -> Activations:
        """What forward passes keep and let through."""
        return Activations(
            self.shape, self.model, self.adapter, self.train, self.task, self.device, self.width,
            self.targets, self.first_trained, self.first_own,
        )  # fmt: skip

    def components(self, one: ForwardPass) -> dict[str, float]:
        """Give bytes by part when this pass is the heaviest."""
        machine = MACHINES[self.device]
        count = self.trainable
        beside = self.adapter.kind not in ("freeze", "full")
        copies = 4 if self.train.early_stopping else 0
        # Autocast keeps 16-bit copies of a pass; single functions make theirs as they go.
        narrow = 2 if self.width == 2 and not self.activations.fuses else 0
        keeps, loses = self.activations.of_pass(one)
        lost = machine.lost_32 if self.width == 4 else machine.lost_16
        if self.activations.packs or self.activations.fuses:
            lost = machine.lost_faster
        lost = machine.again if self.train.activation_checkpointing else lost
        lost *= machine.later if self.train.micro_batches > 1 else 1
        optimizer = _STATE_BYTES[self.train.optimizer]
        if self.train.optimizer == "sgd" and not self.train.momentum:
            optimizer = 0.0
        # Gradients take the place of activations as the backward pass goes on; those of earlier
        # micro-batches are there already.
        replaced = 4 * count if self.train.micro_batches == 1 else 0
        parts = {
            "weights": self.weights,
            "adapter": count * ((4 if beside else 0) + narrow + copies),
            "gradients": 4 * count + (0 if beside else 8 * self._trained_embeddings),
            "optimizer": optimizer * count,
            "activations": max(0, keeps - replaced),
            "logits": self._logits(one),
            "allocator": lost * loses,
            "overhead": machine.program,
        }
        beyond = self.loading(machine.loading) - sum(parts.values())
        return parts | {"loading": max(0, beyond)}

    def loading(self, factor: float) -> float:
        """Give the peak while a quantized model is made, in bytes; 0 for others."""
        if self.model.quantization == "none" or self.device != "cpu":
            return 0.0
        unquantized = self.shape.parameters * self.width
        return MACHINES[self.device].program + factor * unquantized

    @property
    def _trained_embeddings(self) -> int:
        """Trained embeddings: a tied head's second gradient, and the optimizer's root of them."""
        follows = self.adapter.kind == "full" or (self.task == "chat" and self.shape.tied)
        return self.shape.embeddings if follows else 0

    def bytes_of_pass(self, one: ForwardPass) -> float:
        """Give what changes from pass to pass."""
        keeps, loses = self.activations.of_pass(one)
        return keeps + self._logits(one) + loses / 4

    def _logits(self, one: ForwardPass) -> float:
        """Give bytes at the head: logits, and what becomes of them.

        A frozen head is computed a few rows at a time, its logits turn into their gradients where
        they are, and only the gradient by what it was fed is kept. A trained one has logits,
        log-probabilities and gradients of all rows at once.
        """
        if self.task != "chat":
            return 8.0 * one.rows * self.classes
        per_row, at_once = self.shape.vocabulary * self.width, HEAD_ROWS
        if self.adapter.kind in ("freeze", "full"):
            per_row = self.shape.vocabulary * (8 + (2 if self.width == 2 else 0))
            at_once = max(one.supervised, SCORING_TOKENS)
        return float(at_once * per_row + 4 * one.supervised * self.shape.width)


def weight_bytes(held: ModelSettings, width: int) -> float:
    """Give bytes per weight of a linear layer.

    int8 has one byte (and a scale per row, counted apart). 4-bit types have half a byte and a
    scale per 64 weights: 4 bytes, or with double quantization 1 byte and, per 256 scales, 4 bytes
    (Dettmers et al. 2023, section 3).

    Args:
        held: Quantization of the model.
        width: Bytes of an unquantized weight.
    """
    if held.quantization == "none":
        return float(width)
    if held.quantization == "int8":
        return 1.0
    return 0.5 + ((1 + 4 / 256) / 64 if held.double_quantization else 4 / 64)
