"""How much memory a plan takes at its peak, before any weight is read.

Everything is computed from the model's configuration and the settings: what is held all along
(weights, adapter, gradients, optimizer), what one forward pass keeps for the backward pass, and
what the machine adds. The formulas follow this package's own loop: where `speed_rules` allow it,
rows are packed and layers are single functions, elsewhere rows are padded within one pass; the
output head runs only where tokens are supervised. No torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.batching import deal, plan_batches
from sftkit.errors import ModelError, SettingsError
from sftkit.memory_formulas import FORMULAS, MACHINES, Device, ForwardPass, Held
from sftkit.memory_shapes import read_shape
from sftkit.settings import AdapterSettings, ModelSettings, Task, TrainSettings

COMPONENTS: Mapping[str, str] = {
    "weights": "the base model, as it is held",
    "adapter": "what is trained, in float32, and its 16-bit copy while computing",
    "gradients": "one number per trained parameter",
    "optimizer": "its running means",
    "activations": "what a forward pass keeps until gradients take its place",
    "logits": "scores of the vocabulary at supervised positions, and their gradient",
    "allocator": "memory that was given back and cannot be used again before the pass ends",
    "overhead": "the program itself: interpreter, libraries, on a GPU its context",
    "loading": "what reading and quantizing the weights takes beyond all that",
}
"""Parts of an estimate, in the order they are drawn and listed."""
_TRAINED = ("gradients", "optimizer")
SPLIT: Mapping[str, tuple[str, ...]] = {
    "ddp": (),
    "deepspeed-zero2": _TRAINED,
    "deepspeed-zero3": ("weights", "adapter", *_TRAINED),
    "fsdp": ("weights", "adapter", *_TRAINED),
}
"""Parts of which every process holds only its share, by strategy (Rajbhandari et al. 2020)."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Predicted peak memory on one device.

    Attributes:
        device: cpu (the whole process), cuda or mps.
        dtype: Type of the unquantized weights and of the compute.
        components: Bytes by part, in the order of COMPONENTS.
        total: Their sum: the peak.
        low: Lower end of the interval that 95 of 100 such plans should lie in.
        high: Its upper end.
        heaviest: The forward pass that needs most.
        trainable: Trained parameters.
        parameters: Parameters of the base model.
        interval_source: Where the interval comes from.
        assumed: What was not known and had to be assumed, in words.
    """

    device: Device
    dtype: str
    components: Mapping[str, int]
    total: int
    low: int
    high: int
    heaviest: ForwardPass
    trainable: int
    parameters: int
    interval_source: str
    assumed: tuple[str, ...] = ()


def estimate(
    config: Mapping[str, Any],
    *,
    model: ModelSettings,
    adapter: AdapterSettings,
    train: TrainSettings,
    max_tokens: int = 512,
    passes: Sequence[ForwardPass] | None = None,
    supervised_share: float = 0.5,
    shared: int = 0,
    processes: int = 1,
    task: Task = "chat",
    classes: int = 2,
    device: Device = "cpu",
    dtype: str | None = None,
) -> MemoryEstimate:
    """Predict the peak of memory until training ends; evaluation and report are not counted.

    Args:
        config: The model's config.json.
        model: How its weights are held.
        adapter: What is trained.
        train: Batch, optimizer, checkpointing.
        max_tokens: Longest row in tokens; used where `passes` is not given.
        passes: The forward passes of the plan (see `passes_of`); None assumes batches filled with
            the longest rows.
        supervised_share: Share of tokens that is supervised, where `passes` is not given.
        shared: Tokens that all rows begin with, where `passes` is not given.
        processes: How many processes share a step, where `passes` is not given.
        task: chat computes logits over the vocabulary, the others over a few classes.
        classes: Classes of a labelled task.
        device: Where the model lives.
        dtype: Type of weights and compute; None takes what the settings say, and bfloat16 for
            auto.

    Raises:
        ModelError: A kind of model whose shape is not known, or weights that are published
            already quantized.
        AdapterError: The adapter's targets match nothing.
    """
    shape = read_shape(config)
    _refuse_quantized(config)
    assumed: list[str] = []
    if adapter.kind in ("freeze", "full"):
        dtype = "float32"
    elif dtype is None:
        dtype = "bfloat16" if model.dtype == "auto" else model.dtype
        if model.dtype == "auto":
            assumed.append("dtype auto is bfloat16")
    width = 4 if dtype == "float32" else 2
    plan = Held(shape, model, adapter, train, task, classes, device, width)
    if passes is None:
        passes = [_fullest(train, max_tokens, supervised_share, shared, processes)]
        assumed.append(
            f"every row has {max_tokens} tokens, {supervised_share:.0%} of them supervised"
        )
    longest = max(one.length for one in passes)
    if longest > shape.longest:
        assumed.append(
            f"rows of {longest} tokens work, though the model has {shape.longest} positions: lower "
            "data.max_tokens"
        )
    if adapter.kind not in FORMULAS:
        assumed.append(f"adapter.kind={adapter.kind} takes what lora takes")
    if device != "cpu":
        assumed.append("lost to the allocator: a tenth of what passes through")
        if processes == 1:
            assumed.append("one process takes each step as a whole")
    if model.device_map is not None:
        assumed.append("device_map spreads these bytes over the devices; here they are one sum")
    heaviest = max(passes, key=plan.bytes_of_pass)
    components = {name: round(size) for name, size in plan.components(heaviest).items()}
    total = sum(components.values())
    machine = MACHINES[device]
    return MemoryEstimate(
        device=device,
        dtype=dtype,
        components=components,
        total=total,
        low=round(total * (1 - machine.spread)),
        high=round(max(total, plan.loading(machine.loading_most)) * (1 + machine.spread)),
        heaviest=heaviest,
        trainable=plan.trainable,
        parameters=shape.parameters,
        interval_source=machine.source,
        assumed=tuple(assumed),
    )


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is quantized already: its bits are not those of the settings."""
    said = config.get("quantization_config")
    if isinstance(said, Mapping):
        form = said.get("quant_method") or "an unnamed format"
        raise ModelError(
            f"The memory of weights that are already quantized ({form}) is not predicted. Look at "
            "the model it was made from, with quantization: nf4 or int8."
        )


def passes_of(
    lengths: Sequence[int],
    supervised: Sequence[int],
    train: TrainSettings,
    *,
    shared: int = 0,
    processes: int = 1,
) -> list[ForwardPass]:
    """List the forward passes of a run, as the training loop plans and deals them.

    Args:
        lengths: Tokens of every example, shape (N,).
        supervised: Supervised tokens of every example, shape (N,).
        train: How batches are filled and divided.
        shared: Tokens that all rows begin with (`shared_beginning`).
        processes: How many processes share a step; the passes are those of the first.

    Raises:
        TrainError: An example alone exceeds a batch.
    """
    plan = plan_batches(
        lengths,
        max_tokens=train.max_tokens_per_batch,
        max_rows=train.examples_per_batch,
        epochs=train.epochs,
        seed=train.seed,
    )

    def pass_of(chosen: Sequence[int]) -> ForwardPass:
        sizes = [lengths[row] for row in chosen]
        return ForwardPass(
            rows=len(sizes),
            length=max(sizes),
            supervised=sum(supervised[row] for row in chosen),
            padding=len(sizes) * max(sizes) - sum(sizes),
            shared=min(shared, min(sizes) - 1),
        )

    return [
        pass_of([batch[place] for place in hand])
        for batch in plan[: train.max_steps]
        for hand in deal(
            [lengths[row] for row in batch],
            process=0,
            processes=processes,
            micro_batches=train.micro_batches,
        )
        if hand
    ]


def shared_beginning(rows: Iterable[Sequence[int]]) -> int:
    """Count the tokens that all rows begin with, one token of each left over."""
    first: Sequence[int] | None = None
    for row in rows:
        if first is None:
            first = row[:-1]
            continue
        most = min(len(first), len(row) - 1)
        same = (place for place in range(most) if first[place] != row[place])
        if not (first := first[: next(same, most)]):
            break
    return len(first or ())


def _fullest(
    train: TrainSettings, length: int, share: float, shared: int, processes: int
) -> ForwardPass:
    """Give the pass of a batch filled with the longest rows."""
    rows = max(1, train.max_tokens_per_batch // length)
    rows = min(rows, train.examples_per_batch or rows)
    rows = math.ceil(rows / (train.micro_batches * processes))
    return ForwardPass(
        rows=rows,
        length=length,
        supervised=round(share * rows * length),
        shared=min(shared, length - 1),
    )


def per_process(one: MemoryEstimate, *, strategy: str, processes: int) -> MemoryEstimate:
    """Divide what a strategy splits among processes: plain arithmetic, not fitted to any run.

    Not counted: buffers for what the processes send each other, and the block whose weights are
    brought together while it computes (deepspeed-zero3, fsdp). Where a model is split, training
    takes its plain path: give an estimate with `train.speed` off.

    Args:
        one: What one process needs with its own share of a step's rows.
        strategy: ddp, fsdp, deepspeed-zero2 or deepspeed-zero3.
        processes: How many processes.

    Raises:
        SettingsError: There is no such strategy, or no process.
    """
    if strategy not in SPLIT or processes < 1:
        raise SettingsError(
            f"strategy={strategy!r} must be one of {', '.join(SPLIT)}, and processes={processes} "
            "must be 1 or more."
        )
    components = {
        name: math.ceil(size / processes) if name in SPLIT[strategy] else size
        for name, size in one.components.items()
    }
    total = sum(components.values())
    return dataclasses.replace(
        one,
        components=components,
        total=total,
        low=round(one.low * total / one.total),
        high=round(one.high * total / one.total),
        assumed=(*one.assumed, f"{strategy} divides its parts evenly by {processes}"),
    )


def in_gigabytes(size: float) -> str:
    """Write bytes as gigabytes (1e9), or megabytes below one."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.0f} MB"
