"""The training loop, on Accelerate. It is meant to be read from top to bottom.

What makes it fast: batches are filled to a token budget, the output head runs only where tokens
are supervised, and a frozen base stays in 16 bits where the machine multiplies them fast.
What makes it right: the loss of a step is normalised over all its supervised tokens, so dividing
the step over micro-batches or processes changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from sftkit import forward, regularise, speed
from sftkit.batching import deal, plan_batches
from sftkit.errors import TrainError
from sftkit.forward import Batch, unwrapped
from sftkit.held_memory import held_bytes
from sftkit.optim import make_optimizer
from sftkit.processes import Processes
from sftkit.records import Example, Step, TrainRecord
from sftkit.regularise import trained_parameters
from sftkit.settings import TrainSettings
from sftkit.train_state import Keeping, Progress, State, StopButton
from sftkit.trouble import (
    does_not_fit,
    free_memory,
    halve,
    is_out_of_memory,
    memory_in_words,
    rows_of,
    spike_in,
    stop_unless_finite,
)

Objective = Callable[[Any, Batch], tuple[torch.Tensor, float]]
Size = TypeVar("Size", int, float)
OnStep = Callable[[Step, int], None]
Measure = Callable[[], Mapping[str, float]]
"""Measures the model in training on validation examples: metrics by name, heldout_loss first."""


class Collate(Protocol):
    """Makes one batch of tensors of examples, as `forward.collate` does."""

    def __call__(self, examples: Sequence[Any], *, pad_id: int, device: torch.device) -> Batch:
        """Pad the examples and put them on the device."""
        ...


def train(
    model: Any,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    objective: Objective,
    collate: Collate = forward.collate,
    measure: Measure | None = None,
    rate_scales: Mapping[str, float] | None = None,
    keeping: Keeping | None = None,
    on_step: OnStep | None = None,
) -> TrainRecord:
    """Train a model's adapter in place.

    Args:
        model: A model with an adapter; whatever requires a gradient is trained.
        examples: Training examples.
        settings: How to train.
        objective: The loss, such as `objectives.chat_loss`.
        collate: Makes tensors of a batch; `forward.collate` does it for conversations.
        measure: Measures the model on validation examples; called before the first step and
            between steps.
        rate_scales: Factor on the learning rate by a part of parameters' names (lora+).
        keeping: Where checkpoints go, and whether to go on from one; None keeps none.
        on_step: Told every step and the count of all steps.

    Returns:
        What happened, step by step.

    Raises:
        TrainError: Nothing would be learned, or the loss is no longer a number.
        MemoryRanOutError: A step does not fit, however it is cut.
        ProcessError: Another process of the run was lost.
        StoppedError: Somebody asked for it; with `keeping`, everything is saved.
    """
    refuse_if_nothing_to_learn(model, examples)
    lengths = _sizes(examples, "lengths", lambda example: example.length)
    plan = plan_steps(lengths, settings)
    together = Processes(unwrapped(model), advice=keeping.how_to_resume if keeping else "")
    optimizer = make_optimizer(model, settings, rate_scales=rate_scales)
    model, optimizer = together.prepare(model, optimizer)
    torch.manual_seed(settings.seed + together.index)  # no two processes drop the same

    measure_after = {
        round(len(plan) * part / settings.heldout_evaluations)
        for part in range(1, settings.heldout_evaluations + 1)
    }
    tell: OnStep = on_step if on_step and together.is_main else lambda step, steps: None
    best = _best_weights(model, settings, measure)
    done = Progress(
        micro_batches=settings.micro_batches,
        activation_checkpointing=settings.activation_checkpointing,
    )
    state = State(model=model, optimizer=optimizer, best=best, together=together, progress=done)
    if keeping and state.restore(keeping):
        for step in done.steps:  # so that whoever listens knows the whole run
            tell(step, len(plan))
    else:
        metrics = _measured(measure, together)
        done.heldout_start = _finite(metrics).get("heldout_loss")
        if best:
            best.see(0, metrics)
    backward = functools.partial(
        _backward, model, together=together, objective=objective, collate=collate
    )
    model.train()
    with _for_training(model, settings, done, together) as aids, StopButton().watched() as stop:
        for number, batch in enumerate(plan, start=1):
            if number <= len(done.steps) or (best and best.is_over):
                continue
            started = time.perf_counter()
            rate = rate_at(number, len(plan), settings)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_scale"]
            chosen = [examples[row] for row in batch]
            while (loss := backward(chosen, done.micro_batches)) is None:
                words = _ease(model, chosen, number, done=done, together=together, aids=aids)
                state.tell(words, keeping)
            norm = _clip(model, chosen, number, loss, settings=settings, together=together)
            _update(optimizer)
            if jump := spike_in(done.steps, loss, chosen):
                state.tell(jump, keeping)
            done.tokens += sum(lengths[row] for row in batch)
            done.weight += sum(example.weight for example in chosen)
            done.seconds += time.perf_counter() - started
            metrics = _measured(measure, together) if number in measure_after else {}
            step = Step(
                step=number,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=done.tokens,
                seconds=done.seconds,
                heldout_loss=_finite(metrics).get("heldout_loss"),
                metrics={n: v for n, v in _finite(metrics).items() if n != "heldout_loss"},
                memory_bytes=held_bytes(unwrapped(model).device),
            )
            done.steps.append(step)
            if best and metrics:
                best.see(number, metrics)
            tell(step, len(plan))
            state.keep(keeping, settings, stop, steps=len(plan))
    if best:
        best.put_back()
    model.eval()
    return TrainRecord(
        steps=tuple(done.steps),
        heldout_start=done.heldout_start,
        kept_step=best.step if best else len(done.steps),
        tokens=done.tokens,
        supervised_tokens=round(done.weight),
        seconds=done.seconds,
        trainable_parameters=sum(p.numel() for p in trained_parameters(model).values()),
        total_parameters=sum(p.numel() for p in model.parameters()),
        events=tuple(done.events),
    )


@contextlib.contextmanager
def _for_training(
    model: Any, settings: TrainSettings, done: Progress, together: Processes
) -> Iterator[contextlib.ExitStack]:
    """Put on what only training has; more may be entered while it lasts."""
    with contextlib.ExitStack() as stack:
        if not together.is_sharded:
            stack.enter_context(speed.fast_training(model, settings))
        stack.enter_context(regularise.noisy_embeddings(model, settings.neftune_alpha))
        if done.activation_checkpointing:
            stack.enter_context(activations_computed_twice(model))
        yield stack


@contextlib.contextmanager
def activations_computed_twice(model: Any) -> Iterator[None]:
    """Keep only what enters each block, and compute the rest again in the backward pass.

    Raises:
        TrainError: The model cannot do that.
    """
    base = unwrapped(model)
    if not base.supports_gradient_checkpointing:
        raise TrainError(
            f"{type(base).__name__} cannot compute its activations twice. Use "
            "activation_checkpointing: false and more micro_batches."
        )
    # By the name of transformers before 5.2x where it has no other.
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    # The second computation happens in the backward pass, outside of the forward's precision;
    # inputs must not be cast there either.
    with forward.without_input_copies(model):
        getattr(base, f"{name}_checkpointing_enable")({"use_reentrant": False})
        try:
            yield
        finally:
            getattr(base, f"{name}_checkpointing_disable")()


def _best_weights(
    model: Any, settings: TrainSettings, measure: Measure | None
) -> regularise.BestWeights | None:
    if settings.early_stopping is None:
        return None
    if measure is None:
        raise TrainError(
            f"train.early_stopping={settings.early_stopping!r} needs validation examples to "
            "measure, and there are none. Raise data.validation_fraction."
        )
    return regularise.BestWeights(model, settings.early_stopping, settings.early_stopping_patience)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out what was not defined, such as a correlation with a constant."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _measured(measure: Measure | None, together: Processes) -> dict[str, float]:
    """Measure in the first process; all get its metrics, and so decide alike."""
    if measure is None:
        return {}
    told = together.from_first(lambda: json.dumps(dict(measure())).encode())
    return dict(json.loads(told))


def plan_steps(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """Plan every optimizer step of the run: row numbers per step."""
    plan = plan_batches(
        lengths,
        max_tokens=settings.max_tokens_per_batch,
        max_rows=settings.examples_per_batch,
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


def refuse_if_nothing_to_learn(model: Any, examples: Sequence[Example]) -> None:
    """Stop before the first step when no token is supervised or no parameter is trained.

    Raises:
        TrainError: With the count of rows and tokens concerned.
    """
    if not examples:
        raise TrainError("There are no training examples. See the refused rows for why.")
    weights = _sizes(examples, "supervised", lambda example: example.weight)
    silent = [examples[place] for place, weight in enumerate(weights) if not weight]
    if len(silent) == len(examples):
        total = sum(example.length for example in silent)
        raise TrainError(
            f"0 of {total} tokens would be learned from: every label is masked, in rows "
            f"{rows_of(silent)}. Check that the rows have assistant turns and that the chat "
            "template is the model's own."
        )
    if silent:
        raise TrainError(
            f"{len(silent)} of {len(examples)} examples have no supervised token and would teach "
            f"nothing: rows {rows_of(silent)}. Leave them out."
        )
    if not trained_parameters(model):
        raise TrainError("No parameter requires a gradient. Attach an adapter first.")


def _sizes(examples: Sequence[Example], known: str, size: Callable[[Example], Size]) -> list[Size]:
    """Give a size of every example; a large table knows them all without reading its rows."""
    column = getattr(examples, known, None)
    return [size(example) for example in examples] if column is None else column.tolist()


def _backward(
    model: Any,
    batch: Sequence[Example],
    micro_batches: int,
    *,
    together: Processes,
    objective: Objective,
    collate: Collate,
) -> float | None:
    """Make this process's part of a step's gradient, a micro-batch at a time.

    Returns:
        The step's loss over all processes; None if memory ran out in any of them.
    """
    base = unwrapped(model)
    pad_id = getattr(base.config.get_text_config(), "pad_token_id", None) or 0
    weight = sum(example.weight for example in batch)
    hands = deal(
        [example.length for example in batch],
        process=together.index,
        processes=together.count,
        micro_batches=micro_batches,
    )
    total, has_room = torch.zeros((), device=base.device), True
    try:
        for turn, places in enumerate(hands, start=1):
            if not (places or together.is_sharded):
                continue
            # A process that holds a part of the model takes part without rows of its own too.
            chosen = [batch[place] for place in places] or [batch[0].silenced()]
            inputs = collate(chosen, pad_id=pad_id, device=base.device)
            with together.sums_itself(model, is_last=turn == len(hands)):
                summed, _ = objective(model, inputs)
                together.accelerator.backward(summed * (together.scale / weight))
            total += summed.detach()
        loss = float(total)
    except (RuntimeError, MemoryError) as error:
        if together.is_sharded or not is_out_of_memory(error):
            raise
        loss, has_room = 0.0, False
    loss, without_room = together.sum(loss, float(not has_room))
    return None if without_room else loss / weight


def _ease(
    model: Any,
    batch: Sequence[Example],
    number: int,
    *,
    done: Progress,
    together: Processes,
    aids: contextlib.ExitStack,
) -> str:
    """Make the steps take less memory from here on, with the same effective batch and loss.

    Returns:
        What was changed, in words.

    Raises:
        MemoryRanOutError: Nothing is left to change.
    """
    for parameter in model.parameters():
        parameter.grad = None
    free_memory()
    more = halve(done.micro_batches, len(batch), together.count)
    if more:
        done.micro_batches = more
        return (
            f"memory ran out in step {number}: {more} micro-batches from here on, each half as "
            "large; batch and loss stay the same (train.micro_batches)"
        )
    can_do = unwrapped(model).supports_gradient_checkpointing
    if done.activation_checkpointing or not can_do:
        raise does_not_fit(batch, done.micro_batches, twice=done.activation_checkpointing)
    aids.enter_context(activations_computed_twice(model))
    done.activation_checkpointing = True
    return (
        f"memory ran out in step {number} with micro-batches of one example: activations are "
        "computed twice from here on, which is slower (train.activation_checkpointing)"
    )


def _update(optimizer: torch.optim.Optimizer) -> None:
    with memory_in_words("updating the weights"):  # the first step makes the optimizer's state
        optimizer.step()
    optimizer.zero_grad()


def _clip(
    model: Any,
    batch: Sequence[Example],
    number: int,
    loss: float,
    *,
    settings: TrainSettings,
    together: Processes,
) -> float:
    """Sum the gradient over processes and cap its norm.

    Returns:
        The norm before; 0 where float16 overflowed, and the step will be skipped.

    Raises:
        TrainError: Loss or gradient is no number.
    """
    stop_unless_finite("loss", loss, number, batch, settings)
    parameters = list(trained_parameters(model).values())
    together.sum_gradients(parameters)
    accelerator = together.accelerator
    norm = float(accelerator.clip_grad_norm_(parameters, settings.max_grad_norm))
    if accelerator.scaler is None:  # a scaler skips such steps
        stop_unless_finite("gradient", norm, number, batch, settings)
    return norm if math.isfinite(norm) else 0.0
