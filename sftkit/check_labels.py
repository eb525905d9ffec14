"""Fairness and calibration of a finished model with labels or numbers, as its recipe asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.evidence_records import BehaviourResult, Calibration, Checks, FairnessGap
from sftkit.labelled import Targets, encode_labelled
from sftkit.prepare_labels import PreparedLabels, cut_pairs, people_columns
from sftkit.settings import DataSettings, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.evidence.behaviour_cases import Plan


def make_asker(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    targets: Targets,
    settings: DataSettings,
    *,
    max_tokens: int,
) -> Callable[[Sequence[str]], np.ndarray]:
    """Give the function that asks a model with a head about any texts.

    Args:
        model: The model, with or without adapter.
        tokenizer: Its tokenizer.
        targets: What its outputs stand for.
        settings: Where texts are cut into pairs.
        max_tokens: Longest text that is asked about.

    Returns:
        A function from N texts to probabilities, shape (N, C), or numbers, shape (N,); NaN where a
        text is too long.
    """
    from sftkit.evidence.label_scores import score_labels

    # Rows want a target to be encoded; what is said of them does not depend on it.
    filler = {"label": targets.labels[0]} if targets.labels else {"score": targets.mean}

    def say(texts: Sequence[str]) -> np.ndarray:
        rows: Any = [{"text": text, **filler} for text in texts]
        if settings.pair_at is not None:
            rows = cut_pairs(rows, settings.pair_at)
        encoded = encode_labelled(rows, tokenizer, targets, max_tokens=max_tokens).examples
        shape = (len(texts), len(targets.labels)) if targets.labels else (len(texts),)
        answers = np.full(shape, np.nan)
        if encoded:
            answers[[example.row for example in encoded]] = score_labels(model, encoded, targets)
        return answers

    return say


def check_labels(
    recipe: Recipe,
    data: PreparedLabels,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    true: np.ndarray,
    said: np.ndarray,
    texts: Sequence[str] | None,
    plans: Sequence[Plan] = (),
) -> Checks:
    """Measure what the recipe asks for.

    Args:
        recipe: Its evaluation settings decide.
        data: Validation items fit the temperature; test items are reported.
        model: The tuned model.
        tokenizer: Its tokenizer; None for images.
        true: Right classes or numbers of the test items.
        said: What the model says of them.
        texts: Their texts; None for images.
        plans: Behaviour tests, from `plan_label_behaviour`.
    """
    return Checks(
        behaviour=_behaviour(recipe, data, model, tokenizer, plans),
        fairness=_gaps(recipe, data, model, tokenizer, true=true, said=said, texts=texts),
        calibration=_calibration(recipe, data, model, (true, said)),
    )


def plan_label_behaviour(
    recipe: Recipe, data: PreparedLabels, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Plan, ...]:
    """Make the cases of the recipe's behaviour tests, before anything is trained.

    Raises:
        SettingsError: The file holds faults, or does not fit the run.
    """
    from sftkit.evidence.behaviour_cases import Question, plan_behaviour
    from sftkit.evidence.behaviour_file import read_for_task

    if not recipe.evaluate.behaviour or tokenizer is None:
        return ()
    targets, pair_at = data.targets, recipe.data.pair_at
    filler = {"label": targets.labels[0]} if targets.labels else {"score": targets.mean}

    def readable(texts: Sequence[str]) -> list[bool]:
        rows: Any = [{"text": text, **filler} for text in texts]
        if pair_at is not None:
            rows = cut_pairs(rows, pair_at)
        most = min(recipe.data.max_tokens, tokenizer.model_max_length)
        encoded = encode_labelled(rows, tokenizer, targets, max_tokens=most).examples
        read = {example.row for example in encoded}
        return [place in read for place in range(len(texts))]

    rows = data.splits.test.select([example.row for example in data.test])
    return plan_behaviour(
        read_for_task(recipe.evaluate.behaviour, recipe.data.task),
        rows=[Question(text=text) for text in rows["text"]],
        labels=targets.labels,
        keep=() if pair_at is None else (pair_at,),
        readable=readable,
    )


def _behaviour(
    recipe: Recipe,
    data: PreparedLabels,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    plans: Sequence[Plan],
) -> tuple[BehaviourResult, ...]:
    """Put behaviour tests to the tuned model; the base has no trained head to compare with."""
    from sftkit.evidence.behaviour import run_behaviour, scoring

    if not plans or tokenizer is None:
        return ()
    most = min(recipe.data.max_tokens, tokenizer.model_max_length)
    say = make_asker(model, tokenizer, data.targets, recipe.data, max_tokens=most)
    return run_behaviour(plans, scoring(say, data.targets.labels))


def _calibration(
    recipe: Recipe, data: PreparedLabels, model: Any, test: tuple[np.ndarray, np.ndarray]
) -> Calibration | None:
    from sftkit.evidence.calibration import Answered, measure_calibration
    from sftkit.evidence.label_scores import score_labels, true_values

    if not recipe.evaluate.calibration:
        return None
    validation = Answered(
        probabilities=score_labels(model, data.validation, data.targets),
        targets=true_values(data.validation, data.targets),
        groups=tuple(example.group for example in data.validation),
    )
    tested = Answered(
        probabilities=test[1], targets=test[0], groups=tuple(example.group for example in data.test)
    )
    return measure_calibration(tested, validation=validation, resamples=recipe.evaluate.resamples)


def _gaps(
    recipe: Recipe,
    data: PreparedLabels,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    true: np.ndarray,
    said: np.ndarray,
    texts: Sequence[str] | None,
) -> tuple[FairnessGap, ...]:
    from sftkit.evidence.fairness import label_gaps

    if not recipe.evaluate.fairness:
        return ()
    say = None
    if tokenizer is not None:
        # No longer than the longest example, of which it is known that the model reads it.
        parts = (data.train, data.validation, data.test)
        longest = max(example.length for part in parts for example in part)
        say = make_asker(model, tokenizer, data.targets, recipe.data, max_tokens=longest)
    rows = data.splits.test.select([example.row for example in data.test])
    return label_gaps(
        recipe.evaluate.fairness,
        texts or (),
        say=say,
        true=true,
        said=said,
        groups=[example.group for example in data.test],
        classes=data.targets.labels,
        columns={name: rows[name] for name in people_columns(recipe)},
        resamples=recipe.evaluate.resamples,
    )
