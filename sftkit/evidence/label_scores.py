"""What a model with a head says of labelled examples, and how well, while it trains and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.batching import fill_batches
from sftkit.errors import TrainError
from sftkit.evidence.label_metrics import Array, Scored, metrics_of
from sftkit.forward import scoring, unwrapped
from sftkit.labelled import LabelledImage, Targets, collate_images, collate_texts
from sftkit.objectives import Objective, outputs_of

if TYPE_CHECKING:
    from sftkit.label_records import LabelTask

TOKENS_AT_ONCE = 2048
"""Tokens scored at once, padding included."""
IMAGES_AT_ONCE = 64
CURVE_ITEMS = 256
"""Validation examples measured at each point of the learning curve."""


def score_labels(model: Any, examples: Sequence[Any], targets: Targets) -> Array:
    """Ask a model for the label or number of every example.

    Args:
        model: A model with a head, with or without adapter.
        examples: Labelled texts or images; N of them.
        targets: What the outputs stand for.

    Returns:
        Probabilities of the classes, shape (N, C); or numbers in the data's own units, shape (N,).
    """
    with scoring(model):
        said = [outputs_of(model, batch) for batch in _batches(model, examples)]
    outputs = np.concatenate([part.double().cpu().numpy() for part in said])
    outputs = outputs[np.argsort(_order(examples))]  # back from shortest first
    if not targets.labels:
        return targets.scores(outputs[:, 0])
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def true_values(examples: Sequence[Any], targets: Targets) -> Array:
    """Give what the examples' targets stand for: class numbers, or numbers in their own units."""
    given = np.array([example.target for example in examples])
    return given.astype(int) if targets.labels else targets.scores(given)


def make_label_measure(
    model: Any,
    validation: Sequence[Any],
    targets: Targets,
    objective: Objective,
    task: LabelTask,
) -> Callable[[], dict[str, float]] | None:
    """Give the function that measures the points of the learning curve.

    Args:
        model: The model in training; it is measured as it stands at each call.
        validation: Validation examples, of which a fixed, evenly spaced part is measured.
        targets: What the outputs stand for.
        objective: The loss that is minimised; here every example counts once.
        task: classify, image or regress.

    Returns:
        The function, which gives heldout_loss and every metric that is defined on these examples;
        None if there is nothing to measure. It raises TrainError where the model's answers are
        not finite.
    """
    count = min(len(validation), CURVE_ITEMS)
    if not count:
        return None
    chosen = [validation[place * len(validation) // count] for place in range(count)]
    true = true_values(chosen, targets)

    def measure() -> dict[str, float]:
        loss = weight = 0.0
        with scoring(model):
            for batch in _batches(model, chosen):
                part, parts_weight = objective(model, batch)
                loss, weight = loss + float(part), weight + parts_weight
        said = score_labels(model, chosen, targets)
        broken = len(said) - int(np.isfinite(said.reshape(len(said), -1)).all(axis=1).sum())
        if broken:
            raise TrainError(
                f"The model's answers to {broken} of {len(said)} validation examples are not "
                "finite numbers, so training diverged in a step before. Usual causes: "
                "learning_rate too high or float16 overflow."
            )
        predicted = said.argmax(axis=1) if targets.labels else said
        items = Scored(targets=true, scores=said, predicted=predicted, classes=targets.labels)
        found = {
            name: row.point(items)
            for name, row in metrics_of(task).items()
            if not row.undefined(items)
        }
        return {"heldout_loss": loss / weight, **found}

    return measure


def _order(examples: Sequence[Any]) -> list[int]:
    """Order examples by length, so that batches hold little padding."""
    return sorted(range(len(examples)), key=lambda place: examples[place].length)


def _batches(model: Any, examples: Sequence[Any]) -> Any:
    """Give the examples as batches of tensors, shortest first.

    Batches depend on lengths alone, so two models see the same ones.
    """
    base = unwrapped(model)
    is_image = isinstance(examples[0], LabelledImage)
    batches = fill_batches(
        _order(examples),
        [example.length for example in examples],
        max_tokens=IMAGES_AT_ONCE if is_image else TOKENS_AT_ONCE,
    )
    for places in batches:
        chosen = [examples[place] for place in places]
        if is_image:
            yield collate_images(chosen, device=base.device)
        else:
            pad_id = getattr(base.config.get_text_config(), "pad_token_id", None) or 0
            yield collate_texts(chosen, pad_id=pad_id, device=base.device)
