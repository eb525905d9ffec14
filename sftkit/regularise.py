"""What keeps training from fitting too closely: noise on embeddings, and stopping in time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sftkit.errors import TrainError, near_names
from sftkit.forward import unwrapped

_LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae", "error", "brier")
"""Parts of names of metrics that are better when lower; all others are better when higher."""


@contextlib.contextmanager
def noisy_embeddings(model: Any, alpha: float) -> Iterator[None]:
    """Add uniform noise to the input embeddings while the model is in training mode.

    The noise lies within alpha / sqrt(T × D) of zero for embeddings of shape (B, T, D), as in
    NEFTune (Jain et al. 2023, algorithm 1). Scoring, in evaluation mode, sees none.

    Args:
        model: A model with an embedding of token ids.
        alpha: Strength; 0 adds nothing and hooks nothing.

    Raises:
        TrainError: The model has no embedding of tokens, such as an image model.
    """
    if not alpha:
        yield
        return
    base = unwrapped(model)
    try:
        embedding = base.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, torch.nn.Embedding):
        raise TrainError(
            f"train.neftune_alpha={alpha:g} adds noise to token embeddings, and "
            f"{type(base).__name__} has none. Use neftune_alpha: 0."
        )

    def add_noise(_: torch.nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not base.training:
            return embedded
        bound = alpha / math.sqrt(embedded.shape[-2] * embedded.shape[-1])
        return embedded + torch.empty_like(embedded).uniform_(-bound, bound)

    hook = embedding.register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Name what is trained, without what Accelerate may put in front of names."""
    return {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class BestWeights:
    """The trained weights at the best measurement so far; says when it is time to stop.

    Args:
        model: Its trained parameters are kept.
        metric: Name of what decides. Losses and errors are better when lower, all else higher.
        patience: Measurements in a row without an improvement until `is_over`.
    """

    def __init__(self, model: Any, metric: str, patience: int) -> None:
        self.metric, self.patience = metric, patience
        self._trained = trained_parameters(model)
        self._kept: dict[str, torch.Tensor] = {}
        self._best: float | None = None
        self._waited = 0
        self.step = 0

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` measurements brought no improvement."""
        return self._waited >= self.patience

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of a measurement; keep the weights if it is the best one.

        Raises:
            TrainError: The metric is not among those measured.
        """
        if self.metric not in metrics and self._best is None and not self._waited:
            raise TrainError(
                f"train.early_stopping={self.metric!r} is not measured in this run."
                f"{near_names(self.metric, metrics)}"
            )
        value = metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            self._waited += 1
            return
        lower_is_better = any(word in self.metric for word in _LOWER_IS_BETTER)
        gain = 0.0 if self._best is None else value - self._best
        if self._best is None or (gain < 0 if lower_is_better else gain > 0):
            self._best, self._waited, self.step = value, 0, step
            self._kept = {n: p.detach().clone() for n, p in self._trained.items()}
        else:
            self._waited += 1

    def put_back(self) -> None:
        """Give the model the best weights."""
        with torch.no_grad():
            for name, weights in self._kept.items():
                self._trained[name].copy_(weights)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Give what a checkpoint keeps of it: the best weights, and plain values."""
        return self._kept, {"best": self._best, "waited": self._waited, "step": self.step}

    def take(self, kept: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._kept = {name: weights.to(self._trained[name]) for name, weights in kept.items()}
        self._best, self._waited, self.step = plain["best"], plain["waited"], plain["step"]
