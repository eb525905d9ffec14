"""The training loop, on Accelerate. It is meant to be read from top to bottom.

What makes it fast: batches are filled to a token budget, the output head runs only where tokens
are supervised, and a frozen base stays in 16 bits where the machine multiplies them fast.
What makes it right: the loss of a step is normalised over all its supervised tokens, so dividing
the step over micro-batches or processes changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit.batching import deal, plan_batches
from sftkit.errors import TrainError
from sftkit.forward import Batch, collate, unwrapped
from sftkit.records import IGNORE, Encoded, Step, TrainRecord
from sftkit.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Objective = Callable[[Any, Batch], tuple[torch.Tensor, int]]
OnStep = Callable[[Step, int], None]


def train(
    model: Any,
    examples: Sequence[Encoded],
    settings: TrainSettings,
    *,
    objective: Objective,
    heldout_loss: Callable[[], float] | None = None,
    on_step: OnStep | None = None,
) -> TrainRecord:
    """Train a model's adapter in place.

    Args:
        model: A model with an adapter; whatever requires a gradient is trained.
        examples: Training examples.
        settings: How to train.
        objective: The loss, such as `objectives.chat_loss`.
        heldout_loss: Measures the validation loss, nats per token; called between steps.
        on_step: Told every step and the count of all steps.

    Returns:
        What happened, step by step.

    Raises:
        TrainError: Nothing would be learned, or the loss is no longer a number.
    """
    refuse_if_nothing_to_learn(model, examples)
    lengths = [len(example.input_ids) for example in examples]
    plan = plan_steps(lengths, settings)
    accelerator = _accelerator(unwrapped(model))
    optimizer = _optimizer(model, settings)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(settings.seed)

    measure_after = {
        round(len(plan) * part / settings.heldout_evaluations)
        for part in range(1, settings.heldout_evaluations + 1)
    }
    heldout_start = heldout_loss() if heldout_loss else None
    steps: list[Step] = []
    tokens = supervised = 0
    seconds = 0.0
    model.train()
    for number, batch in enumerate(plan, start=1):
        started = time.perf_counter()
        rate = rate_at(number, len(plan), settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _backward(
            model,
            accelerator,
            [examples[row] for row in batch],
            objective=objective,
            micro_batches=settings.micro_batches,
        )
        if not math.isfinite(loss):
            raise TrainError(
                f"The loss of step {number} is {loss}, so training stopped. Rows of the batch: "
                f"{sorted(examples[row].row for row in batch)[:20]}. Usual causes: learning_rate "
                f"too high (here {settings.learning_rate:g}) or float16 overflow."
            )
        norm = accelerator.clip_grad_norm_(_trained(model), settings.max_grad_norm)
        if accelerator.scaler is None and not math.isfinite(norm):  # a scaler skips such steps
            raise TrainError(
                f"The gradient of step {number} is {float(norm)}, so training stopped before the "
                f"adapter changed. Rows of the batch: "
                f"{sorted(examples[row].row for row in batch)[:20]}. Usual cause: learning_rate "
                f"too high (here {settings.learning_rate:g})."
            )
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(lengths[row] for row in batch)
        supervised += sum(examples[row].supervised for row in batch)
        seconds += time.perf_counter() - started
        step = Step(
            step=number,
            loss=loss,
            learning_rate=rate,
            grad_norm=float(norm) if norm is not None else 0.0,
            tokens=tokens,
            seconds=seconds,
        )
        if heldout_loss and number in measure_after:
            step = dataclasses.replace(step, heldout_loss=heldout_loss())
        steps.append(step)
        if on_step and accelerator.is_main_process:
            on_step(step, len(plan))
    model.eval()
    return TrainRecord(
        steps=tuple(steps),
        heldout_start=heldout_start,
        tokens=tokens,
        supervised_tokens=supervised,
        seconds=seconds,
        trainable_parameters=sum(p.numel() for p in _trained(model)),
        total_parameters=sum(p.numel() for p in model.parameters()),
    )


def plan_steps(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """Plan every optimizer step of the run: row numbers per step."""
    plan = plan_batches(
        lengths,
        max_tokens=settings.max_tokens_per_batch,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    return plan[: settings.max_steps]


def rate_at(step: int, steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step: linear warm-up, then decay to a tenth of the peak.

    Args:
        step: Counted from 1.
        steps: All steps of the run.
        settings: Peak, schedule and share of warm-up.
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step <= warmup:
        return settings.learning_rate * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    shape = {
        "cosine": 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - 0.9 * done,
        "constant": 1.0,
    }
    return settings.learning_rate * shape[settings.schedule]


def refuse_if_nothing_to_learn(model: Any, examples: Sequence[Encoded]) -> None:
    """Stop before the first step when no token is supervised or no parameter is trained.

    Raises:
        TrainError: With the count of rows and tokens concerned.
    """
    if not examples:
        raise TrainError("There are no training examples. See the refused rows for why.")
    total = sum(len(example.input_ids) for example in examples)
    if not any(example.supervised for example in examples):
        raise TrainError(
            f"0 of {total} tokens would be learned from: every label is masked. Check that the "
            "rows have assistant turns and that the chat template is the model's own."
        )
    silent = [example.row for example in examples if not example.supervised]
    if silent:
        raise TrainError(
            f"{len(silent)} of {len(examples)} examples have no supervised token and would teach "
            f"nothing: rows {silent[:20]}. Leave them out."
        )
    if not _trained(model):
        raise TrainError("No parameter requires a gradient. Attach an adapter first.")


def _backward(
    model: Any,
    accelerator: Accelerator,
    batch: Sequence[Encoded],
    *,
    objective: Objective,
    micro_batches: int,
) -> float:
    """Add the gradient of one step, over micro-batches and processes; return its mean loss."""
    base = unwrapped(model)
    pad_id = base.config.pad_token_id or 0
    weight = sum(example.supervised for example in batch)
    hands = deal(
        [len(example.input_ids) for example in batch],
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        micro_batches=micro_batches,
    )
    total = torch.zeros((), device=base.device)
    for turn, places in enumerate(hands, start=1):
        # A process without rows still takes part, with a row that teaches nothing.
        chosen = [batch[place] for place in places] or [_silenced(batch[0])]
        inputs = collate(chosen, pad_id=pad_id, device=base.device)
        last = turn == len(hands)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss, _ = objective(model, inputs)
            # Processes' gradients are averaged, so each contributes its sum times their number.
            accelerator.backward(loss * (accelerator.num_processes / weight))
        total += loss.detach()
    return float(accelerator.reduce(total, reduction="sum")) / weight


def _silenced(example: Encoded) -> Encoded:
    return dataclasses.replace(example, labels=(IGNORE,) * len(example.labels))


def _accelerator(base: Any) -> Accelerator:
    """Make the accelerator for the device the model already lives on."""
    from accelerate import Accelerator

    # 16-bit compute is autocast in `forward`; float16 also needs its gradients scaled.
    half = base.dtype == torch.float16
    return Accelerator(cpu=base.device.type == "cpu", mixed_precision="fp16" if half else "no")


def _optimizer(model: Any, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices only."""
    trained = _trained(model)
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate
    )


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
