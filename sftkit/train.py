"""The training loop, on Accelerate. It is meant to be read from top to bottom.

What makes it fast: batches are filled to a token budget, the output head runs only where tokens
are supervised, and a frozen base stays in 16 bits where the machine multiplies them fast.
What makes it right: the loss of a step is normalised over all its supervised tokens, so dividing
the step over micro-batches or processes changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sftkit import forward, regularise
from sftkit.batching import deal, plan_batches
from sftkit.errors import TrainError
from sftkit.forward import Batch, unwrapped
from sftkit.optim import make_optimizer
from sftkit.records import Example, Step, TrainRecord
from sftkit.settings import TrainSettings
from sftkit.train_state import Keeping, Progress, State, StopButton

if TYPE_CHECKING:
    from accelerate import Accelerator

Objective = Callable[[Any, Batch], tuple[torch.Tensor, float]]
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
        StoppedError: Somebody asked for it; with `keeping`, everything is saved.
    """
    refuse_if_nothing_to_learn(model, examples)
    lengths = [example.length for example in examples]
    plan = plan_steps(lengths, settings)
    accelerator = _accelerator(unwrapped(model))
    optimizer = make_optimizer(model, settings, rate_scales=rate_scales)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(settings.seed)

    measure_after = {
        round(len(plan) * part / settings.heldout_evaluations)
        for part in range(1, settings.heldout_evaluations + 1)
    }
    is_main = accelerator.is_main_process
    tell: OnStep = on_step if on_step and is_main else lambda step, steps: None
    best = _best_weights(model, settings, measure)
    done = Progress()
    state = State(
        model=model, optimizer=optimizer, best=best, scaler=accelerator.scaler, progress=done
    )
    if keeping and state.restore(keeping):
        for step in done.steps:  # so that whoever listens knows the whole run
            tell(step, len(plan))
    else:
        metrics = measure() if measure else {}
        done.heldout_start = _finite(metrics).get("heldout_loss")
        if best:
            best.see(0, metrics)
    model.train()
    with _for_training(model, settings), StopButton().watched() as stop:
        for number, batch in enumerate(plan, start=1):
            if number <= len(done.steps) or (best and best.is_over):
                continue
            started = time.perf_counter()
            rate = rate_at(number, len(plan), settings)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_scale"]
            chosen = [examples[row] for row in batch]
            loss, norm = _backward(
                model, accelerator, chosen, number, settings, objective=objective, collate=collate
            )
            optimizer.step()
            optimizer.zero_grad()
            done.tokens += sum(lengths[row] for row in batch)
            done.weight += sum(example.weight for example in chosen)
            done.seconds += time.perf_counter() - started
            metrics = measure() if measure and number in measure_after else {}
            step = Step(
                step=number,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=done.tokens,
                seconds=done.seconds,
                heldout_loss=_finite(metrics).get("heldout_loss"),
                metrics={n: v for n, v in _finite(metrics).items() if n != "heldout_loss"},
            )
            done.steps.append(step)
            if best and metrics:
                best.see(number, metrics)
            tell(step, len(plan))
            is_due = settings.save_every is not None and number % settings.save_every == 0
            if keeping and is_main and (is_due or stop.asked_by):
                state.save(keeping, settings.keep_last)
            if stop.asked_by:
                stop.raise_stopped(number, len(plan), keeping)
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
        trainable_parameters=sum(p.numel() for p in _trained(model)),
        total_parameters=sum(p.numel() for p in model.parameters()),
    )


@contextlib.contextmanager
def _for_training(model: Any, settings: TrainSettings) -> Iterator[None]:
    """Put on what only training has: noise on embeddings, activations that are computed twice."""
    base = unwrapped(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(regularise.noisy_embeddings(model, settings.neftune_alpha))
        if settings.activation_checkpointing:
            if not base.supports_gradient_checkpointing:
                raise TrainError(
                    f"{type(base).__name__} cannot compute its activations twice. Use "
                    "activation_checkpointing: false and more micro_batches."
                )
            # The second computation happens in the backward pass, outside of the forward's
            # precision; inputs must not be cast there either.
            stack.enter_context(forward.without_input_copies(model))
            # By the name of transformers before 5.2x where it has no other.
            name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
            getattr(base, f"{name}_checkpointing_enable")({"use_reentrant": False})
            stack.callback(getattr(base, f"{name}_checkpointing_disable"))
        yield


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


def _stop_unless_finite(
    what: str, value: float, number: int, chosen: Sequence[Example], settings: TrainSettings
) -> None:
    if not math.isfinite(value):
        raise TrainError(
            f"The {what} of step {number} is {value}, so training stopped before the adapter "
            f"changed. Rows of the batch: {sorted(example.row for example in chosen)[:20]}. Usual "
            f"causes: learning_rate too high (here {settings.learning_rate:g}) or float16 overflow."
        )


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
    silent = [example.row for example in examples if not example.weight]
    if len(silent) == len(examples):
        total = sum(example.length for example in examples)
        raise TrainError(
            f"0 of {total} tokens would be learned from: every label is masked. Check that the "
            "rows have assistant turns and that the chat template is the model's own."
        )
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
    batch: Sequence[Example],
    number: int,
    settings: TrainSettings,
    *,
    objective: Objective,
    collate: Collate,
) -> tuple[float, float]:
    """Make the gradient of one step, over micro-batches and processes; give loss and its norm.

    Raises:
        TrainError: Loss or gradient is no number.
    """
    base = unwrapped(model)
    pad_id = getattr(base.config.get_text_config(), "pad_token_id", None) or 0
    weight = sum(example.weight for example in batch)
    hands = deal(
        [example.length for example in batch],
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        micro_batches=settings.micro_batches,
    )
    total = torch.zeros((), device=base.device)
    for turn, places in enumerate(hands, start=1):
        # A process without rows still takes part, with a row that teaches nothing.
        chosen = [batch[place] for place in places] or [batch[0].silenced()]
        inputs = collate(chosen, pad_id=pad_id, device=base.device)
        last = turn == len(hands)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            summed, _ = objective(model, inputs)
            # Processes' gradients are averaged, so each contributes its sum times their number.
            accelerator.backward(summed * (accelerator.num_processes / weight))
        total += summed.detach()
    loss = float(accelerator.reduce(total, reduction="sum")) / weight
    _stop_unless_finite("loss", loss, number, batch, settings)
    norm = float(accelerator.clip_grad_norm_(_trained(model), settings.max_grad_norm))
    if accelerator.scaler is None:  # a scaler skips such steps
        _stop_unless_finite("gradient", norm, number, batch, settings)
    return loss, norm if math.isfinite(norm) else 0.0


def _accelerator(base: Any) -> Accelerator:
    """Make the accelerator for the device the model already lives on."""
    from accelerate import Accelerator

    # 16-bit compute is autocast in `forward`; float16 also needs its gradients scaled.
    half = base.dtype == torch.float16
    return Accelerator(cpu=base.device.type == "cpu", mixed_precision="fp16" if half else "no")


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
