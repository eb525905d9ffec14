"""What a fine-tuned classifier or regression has to beat: a linear model on word counts.

A linear model trains in seconds on any machine. A fine-tune that does not beat it has learned
nothing that counting words would not give. Its one setting is chosen on validation rows; its class
weights are the fine-tune's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sftkit.label_records import LabelTask

Array = np.ndarray
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Values of C, the inverse strength of regularisation, that validation chooses from."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A trained baseline and what it says.

    Attributes:
        name: tf-idf or linear; majority or mean.
        test: Its answers on the test items: probabilities (N, C) or numbers (N,).
        validation: The same on the validation items.
        strength: The chosen C; None where there was nothing to choose.
        fit: What was compared on validation, by C: mean log loss, or mean squared error.
    """

    name: str
    test: Array
    validation: Array
    strength: float | None
    fit: Mapping[float, float]


def constant_baseline(
    train_targets: Sequence[float] | Array,
    *,
    task: LabelTask,
    classes: int,
    validation: int,
    test: int,
) -> Baseline:
    """Answer with the shares of the classes in training (so, the majority), or with the mean.

    Of all constants the mean has the smallest squared error, as C is chosen by and RMSE judges.

    Args:
        train_targets: Class numbers, or numbers.
        task: classify, image or regress.
        classes: Classes; ignored in a regression.
        validation: Validation items.
        test: Test items.
    """
    targets = np.asarray(train_targets)
    if task == "regress":
        name, answer = "mean", np.asarray(targets.mean())
    else:
        shares = np.bincount(targets.astype(int), minlength=classes) / len(targets)
        name, answer = "majority", shares
    return Baseline(
        name=name,
        test=np.broadcast_to(answer, (test, *answer.shape)).copy(),
        validation=np.broadcast_to(answer, (validation, *answer.shape)).copy(),
        strength=None,
        fit={},
    )


def tfidf_baseline(
    train: tuple[Sequence[str], Sequence[float] | Array],
    validation: tuple[Sequence[str], Sequence[float] | Array],
    test_texts: Sequence[str],
    *,
    task: LabelTask,
    classes: int = 0,
    class_weights: Literal["none", "balanced"] = "none",
    seed: int = 0,
) -> Baseline:
    """Train a linear model on the TF-IDF weights of words and word pairs.

    Args:
        train: Texts as the fine-tuned model sees them, and their targets.
        validation: The same of the validation rows, which choose C.
        test_texts: Texts of the test items.
        task: classify or regress.
        classes: How many classes there are; those without a training row get probability 0.
        class_weights: As the fine-tune's objective.
        seed: Seed of the solver.

    Raises:
        ValueError: No validation rows to choose on, or one class only in training.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = [
        vectorizer.fit_transform(train[0]),
        vectorizer.transform(validation[0]),
        vectorizer.transform(test_texts),
    ]
    return linear_baseline(
        features,
        (np.asarray(train[1]), np.asarray(validation[1])),
        name="tf-idf",
        task=task,
        classes=classes,
        class_weights=class_weights,
        seed=seed,
    )


def linear_baseline(
    features: Sequence[Any],
    targets: tuple[Array, Array],
    *,
    name: str = "linear",
    task: LabelTask,
    classes: int = 0,
    class_weights: Literal["none", "balanced"] = "none",
    seed: int = 0,
) -> Baseline:
    """Train logistic regression, or ridge, on features; C is chosen on validation rows alone.

    Args:
        features: Of training, validation and test rows, each (N, F); pixels of images, for example.
        targets: Of training and validation rows.
        name: What the baseline is called in reports.
        task: classify, image or regress.
        classes: How many classes there are.
        class_weights: As the fine-tune's objective.
        seed: Seed of the solver.

    Raises:
        ValueError: No validation rows to choose on, or one class only in training.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    train, validation, test = features
    wanted, held = targets
    if not len(held):
        raise ValueError("C is chosen on validation rows, and there are none. Set a fraction.")
    if task != "regress" and len(np.unique(wanted)) < 2:
        raise ValueError("All training rows are of one class, so a classifier learns nothing.")
    fit: dict[float, float] = {}
    answers: dict[float, list[Array]] = {}
    for strength in STRENGTHS:
        if task == "regress":
            model: Any = Ridge(alpha=1 / strength, random_state=seed).fit(train, wanted)
            said = [model.predict(part) for part in (validation, test)]
            fit[strength] = float(np.mean((said[0] - held) ** 2))
        else:
            balanced = "balanced" if class_weights == "balanced" else None
            model = LogisticRegression(
                C=strength, class_weight=balanced, max_iter=1000, random_state=seed
            ).fit(train, wanted)
            said = [_spread(model, part, classes) for part in (validation, test)]
            fit[strength] = _log_loss(said[0], held, wanted if balanced else None)
        answers[strength] = said
    best = min(fit, key=fit.__getitem__)
    said = answers[best]
    return Baseline(name=name, test=said[1], validation=said[0], strength=best, fit=fit)


def _spread(model: Any, features: Any, classes: int) -> Array:
    """Give probabilities of all classes; a class without training rows gets 0."""
    known = model.predict_proba(features)
    answer = np.zeros((known.shape[0], classes))
    answer[:, model.classes_] = known
    return answer


def _log_loss(said: Array, held: Array, balanced_by: Array | None) -> float:
    """Mean negative log-probability of the right class, weighted as training was."""
    loss = -np.log(np.maximum(said[np.arange(len(held)), held], 1e-12))
    if balanced_by is None:
        return float(loss.mean())
    share = np.bincount(balanced_by, minlength=said.shape[1]) / len(balanced_by)
    weight = 1 / np.maximum(share[held], 1 / len(balanced_by))
    return float((weight * loss).sum() / weight.sum())
