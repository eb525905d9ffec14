"""The loss of each task, as a function `(model, batch) -> (sum, weight)`.

Sum and weight stay apart, so that the loop can normalise over a whole step: the mean of
micro-batch means is not the mean of the step when their weights differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from sftkit.errors import SettingsError
from sftkit.forward import Batch, answer_losses, precision_of
from sftkit.settings import LOSSES, ObjectiveSettings, Task

Objective = Callable[[Any, Batch], tuple[torch.Tensor, float]]
Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs of shape (B, C) and targets of shape (B,) to one loss each, shape (B,)."""
_NOT_INPUTS = ("targets", "weights")


def make_objective(task: Task, settings: ObjectiveSettings) -> Objective:
    """Give the loss function of a task.

    Args:
        task: chat, classify, regress or image.
        settings: Which loss, and its constants.

    Returns:
        A function of model and batch. Its sum weighs each example by the example's own weight,
        and its weight is the sum of these; for chat, the count of supervised tokens.

    Raises:
        SettingsError: A loss that does not fit the task.
    """
    loss = LOSSES[task][0] if settings.loss == "auto" else settings.loss
    if loss not in LOSSES[task]:
        raise SettingsError(
            f"objective.loss={loss} does not fit data.task={task}. Use auto, or one of "
            f"{', '.join(LOSSES[task])}."
        )
    smoothing = settings.label_smoothing
    if task == "chat":
        return lambda model, batch: chat_loss(model, batch, label_smoothing=smoothing)
    losses: dict[str, Losses] = {
        "cross-entropy": lambda outputs, targets: functional.cross_entropy(
            outputs, targets.long(), reduction="none", label_smoothing=smoothing
        ),
        "focal": lambda outputs, targets: focal_losses(
            outputs, targets, gamma=settings.focal_gamma, label_smoothing=smoothing
        ),
        "mse": lambda outputs, targets: (outputs[:, 0] - targets).square(),
        "huber": lambda outputs, targets: functional.huber_loss(
            outputs[:, 0], targets, reduction="none", delta=settings.huber_delta
        ),
    }
    return lambda model, batch: labelled_loss(model, batch, losses[loss])


def chat_loss(
    model: Any, batch: Batch, *, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, float]:
    """Sum the cross-entropy over supervised tokens.

    Args:
        model: A causal model.
        batch: From `forward.collate`.
        label_smoothing: Share of each target that is spread evenly over the vocabulary.

    Returns:
        The summed loss in nats, a scalar with gradient, and the count of supervised tokens.
    """
    losses, _ = answer_losses(model, batch, label_smoothing=label_smoothing)
    return losses.sum(), losses.numel()


def labelled_loss(model: Any, batch: Batch, losses: Losses) -> tuple[torch.Tensor, float]:
    """Sum the losses of labelled examples, each times its weight.

    Args:
        model: A model with a head, bare or wrapped by peft or Accelerate.
        batch: From `labelled.collate_texts` or `labelled.collate_images`.
        losses: One loss per example.

    Returns:
        The sum, a scalar with gradient, and the sum of the weights.
    """
    weights = batch["weights"]
    each = losses(outputs_of(model, batch), batch["targets"])
    return (weights * each).sum(), float(weights.sum())


def outputs_of(model: Any, batch: Batch) -> torch.Tensor:
    """Compute what the head says of every example: logits, or one number; float32, shape (B, C)."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_INPUTS}
    with precision_of(model):
        output = model(**inputs)
    return torch.as_tensor(output.logits).float()


def focal_losses(
    logits: torch.Tensor, targets: torch.Tensor, *, gamma: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Weigh each cross-entropy by (1 - p)^gamma, p the right class's probability.

    What is already easy then counts little (Lin et al. 2017, equation 4). The factor is part of
    what is differentiated; gamma 0 is cross-entropy.

    Args:
        logits: Shape (B, C).
        targets: Numbers of the right classes, shape (B,).
        gamma: Exponent, 0 or more.
        label_smoothing: Share of each target that is spread evenly over the classes.

    Returns:
        Losses in nats, shape (B,).
    """
    entropy = functional.cross_entropy(
        logits, targets.long(), reduction="none", label_smoothing=label_smoothing
    )
    if gamma == 0:
        return entropy
    others = logits.log_softmax(-1).gather(1, targets.long()[:, None])[:, 0]
    # -expm1(log p) is 1 - p without cancellation; the floor keeps the power's slope finite at p=1.
    missing = (-torch.expm1(others)).clamp_min(torch.finfo(logits.dtype).eps)
    return missing**gamma * entropy
