"""The loss of each task, as a function `(model, batch) -> (sum, weight)`.

Sum and weight stay apart, so that the loop can normalise over a whole step: the mean of
micro-batch means is not the mean of the step when their token counts differ.
"""

from __future__ import annotations

from typing import Any

import torch

from sftkit.forward import Batch, answer_losses


def chat_loss(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    """Sum the cross-entropy over supervised tokens.

    Args:
        model: A causal model.
        batch: From `forward.collate`.

    Returns:
        The summed loss in nats, a scalar with gradient, and the count of supervised tokens.
    """
    losses, _ = answer_losses(model, batch)
    return losses.sum(), losses.numel()
