"""How good labels are: whether annotators agree, and which labels are likely to be wrong."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from sftkit.errors import DataError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

Level = Literal["nominal", "ordinal", "interval"]
_LEVELS = ("nominal", "ordinal", "interval")
INSTALL = "python -m pip install -c constraints.txt -e '.[labels]'"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far annotators agree.

    Attributes:
        columns: One column of labels for each annotator.
        level: How labels differ: nominal (only same or not), ordinal (by rank) or interval (by
            distance).
        rows: Rows that at least two of them labelled.
        observed: Share of pairs of labels of one row that are equal, between 0 and 1.
        alpha: Krippendorff's alpha; 1 is perfect, 0 is chance. None when only one label was
            ever given: then agreement by chance is complete, and nothing can be said.
        kappas: Cohen's kappa of each two columns over the rows both labelled; None as above.
        disagreements: Positions of the rows with more than one label, ascending.
    """

    columns: tuple[str, ...]
    level: Level
    rows: int
    observed: float
    alpha: float | None
    kappas: Mapping[tuple[str, str], float | None]
    disagreements: tuple[int, ...]

    def __str__(self) -> str:
        alpha = (
            "alpha is not defined, because only one label was given"
            if self.alpha is None
            else f"Krippendorff's alpha ({self.level}) is {self.alpha:.3f}: {judge(self.alpha)}"
        )
        two = ""
        if len(self.kappas) == 1 and (kappa := next(iter(self.kappas.values()))) is not None:
            two = f" Cohen's kappa is {kappa:.3f}."
        return (
            f"{len(self.columns)} annotators, {self.rows:,} rows with two labels or more, "
            f"{self.observed:.1%} of pairs equal; {alpha}.{two} They disagree on "
            f"{len(self.disagreements):,} rows."
        )


def judge(alpha: float) -> str:
    """Say what an alpha allows, by Krippendorff's limits (2018, "Content Analysis", ch. 12)."""
    if alpha >= 0.8:
        return "reliable"
    if alpha >= 0.667:
        return "enough for tentative conclusions only"
    return "too low to rely on these labels" if alpha > 0 else "no better than chance"


def measure_agreement(
    dataset: Dataset,
    columns: Sequence[str],
    *,
    level: Level = "nominal",
    order: Sequence[Any] | None = None,
) -> Agreement:
    """Measure how far annotators agree beyond chance.

    Args:
        dataset: Rows with one column of labels for each annotator; None means not labelled.
        columns: Two columns or more.
        level: nominal for kinds, ordinal for ranks, interval for numbers.
        order: For ordinal labels that are no numbers: all of them, from low to high.

    Returns:
        Cohen's kappa (Cohen 1960), which ignores ranks and distances, for each pair, and
        Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Raises:
        DataError: Fewer than two columns, a column that is not there, labels that do not fit the
            level, no row with two labels, or the package krippendorff is not installed.
    """
    labels = _label_columns(dataset, columns)
    if level not in _LEVELS:
        raise DataError(f"There is no level {level!r}.{near_names(level, _LEVELS)}")
    rows = list(zip(*labels.values(), strict=True))
    given = [[label for label in row if label is not None] for row in rows]
    pairable = [row for row in given if len(row) > 1]
    if not pairable:
        raise DataError(f"No row has a label in two of {', '.join(columns)}.")
    equal, pairs = 0, 0
    for row in pairable:
        matches = [one == other for one, other in itertools.combinations(row, 2)]
        equal, pairs = equal + sum(matches), pairs + len(matches)
    return Agreement(
        columns=tuple(columns),
        level=level,
        rows=len(pairable),
        observed=equal / pairs,
        alpha=_alpha(rows, {label for row in pairable for label in row}, level, order),
        kappas=MappingProxyType(
            {
                (one, other): _kappa(labels[one], labels[other])
                for one, other in itertools.combinations(columns, 2)
            }
        ),
        disagreements=tuple(i for i, row in enumerate(given) if len(set(row)) > 1),
    )


def _label_columns(dataset: Dataset, columns: Sequence[str]) -> dict[str, list[Any]]:
    if isinstance(columns, str) or len(set(columns)) < 2:
        raise DataError(f"Agreement needs two columns of labels or more, got {columns!r}.")
    for column in columns:
        if column not in dataset.column_names:
            near = near_names(column, dataset.column_names)
            raise DataError(f"There is no column {column!r}.{near}")
    plain = dataset.with_format(None)
    return {column: [_or_none(label) for label in plain[column]] for column in columns}


def _or_none(label: Any) -> Any:
    missing = label == "" or (isinstance(label, float) and math.isnan(label))
    return None if missing else label


def _kappa(one: Sequence[Any], other: Sequence[Any]) -> float | None:
    """Compute (observed - expected) / (1 - expected) agreement of two annotators."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not both:
        return None
    observed = sum(a == b for a, b in both) / len(both)
    first, second = Counter(a for a, _ in both), Counter(b for _, b in both)
    expected = sum(first[label] * second[label] for label in first) / len(both) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _alpha(
    rows: Sequence[Sequence[Any]], used: set[Any], level: Level, order: Sequence[Any] | None
) -> float | None:
    import numpy as np

    values = _label_values(rows, level, order)
    if len(used) < 2:
        return None
    krippendorff = _need("krippendorff", "Krippendorff's alpha")
    table = np.array(
        [[math.nan if label is None else values[label] for label in row] for row in rows],
        dtype=float,
    )
    return float(krippendorff.alpha(reliability_data=table.T, level_of_measurement=level))


def _label_values(
    rows: Sequence[Sequence[Any]], level: Level, order: Sequence[Any] | None
) -> dict[Any, float]:
    """Give each label a number: its place in the order, its value, or any."""
    labels = {label for row in rows for label in row if label is not None}
    if level == "nominal":
        return {label: float(i) for i, label in enumerate(sorted(labels, key=str))}
    if level == "ordinal" and order is not None:
        if unknown := sorted(labels - set(order), key=str):
            raise DataError(
                f"order lacks {', '.join(map(repr, unknown[:3]))}; give all labels, low to high."
            )
        return {label: float(place) for place, label in enumerate(order)}
    try:
        return {label: float(label) for label in labels}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"level={level} needs numbers, got {error.args[0]}. For words give level='ordinal' "
            "and order=[…], from low to high."
        ) from error


def _need(package: str, what: str) -> Any:
    """Import a package of the extra `labels`, or say how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise DataError(
            f"{what} needs the package {package.partition('.')[0]}, which is not installed. Run: "
            f"{INSTALL}"
        ) from error


# ---- labels that are likely to be wrong ----


@dataclass(frozen=True, kw_only=True)
class LabelSuspect:
    """A row whose label is likely to be wrong.

    Attributes:
        row: Position in the dataset.
        given: Its label.
        suggested: The label that a model which did not see the row gives it.
        confidence: Probability that this model gives to the label that was given.
    """

    row: int
    given: Any
    suggested: Any
    confidence: float


def find_label_suspects(
    dataset: Dataset,
    *,
    label: str = "label",
    probabilities: Any = None,
    folds: int = 5,
    seed: int = 0,
) -> tuple[LabelSuspect, ...]:
    """Find rows whose label is likely to be wrong, the most doubtful first.

    Confident learning (Northcutt, Jiang and Chuang 2021), by cleanlab. Suspects are for a human to
    look at: a rare case looks like an error to a model, too. Labels with a single row cannot be
    judged and are left out. All texts are held in memory, as TF-IDF.

    Args:
        dataset: Rows with text and label; rows without a label are left out.
        label: The column of labels.
        probabilities: Of each row for each class (classes sorted as text), shape (rows,
            classes), from a model that did not learn from that row. None makes them: TF-IDF and
            logistic regression in `folds` parts, each judged by a model of the others.
        folds: Parts for that; fewer where a class has fewer rows.
        seed: Seed of the parts.

    Returns:
        The suspects.

    Raises:
        DataError: There is no such column, fewer than two classes have two rows, the
            probabilities have another shape, or cleanlab is not installed.
    """
    import numpy as np

    if label not in dataset.column_names:
        raise DataError(f"There is no column {label!r}.{near_names(label, dataset.column_names)}")
    labels = [_or_none(value) for value in dataset.with_format(None)[label]]
    counts = Counter(value for value in labels if value is not None)
    least = 1 if probabilities is not None else 2
    classes = sorted((value for value, count in counts.items() if count >= least), key=str)
    if len(classes) < 2:
        raise DataError(
            f"Suspects need two classes or more with {least} rows or more each, got "
            f"{len(classes)} in the column {label!r}."
        )
    known = {value: number for number, value in enumerate(classes)}
    rows = [row for row, value in enumerate(labels) if value in known]
    numbers = np.array([known[labels[row]] for row in rows])
    if probabilities is None:
        parts = min(folds, *(counts[value] for value in classes))
        chances = _out_of_fold(dataset, rows, numbers, max(parts, 2), seed)
    else:
        chances = _check_probabilities(probabilities, (len(labels), len(classes)))[rows]
    cleanlab = _need("cleanlab.filter", "Finding label errors")
    ranked = cleanlab.find_label_issues(
        numbers, chances, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return tuple(
        LabelSuspect(
            row=rows[place],
            given=labels[rows[place]],
            suggested=classes[int(chances[place].argmax())],
            confidence=float(chances[place, numbers[place]]),
        )
        for place in ranked.tolist()
    )


def _check_probabilities(probabilities: Any, expected: tuple[int, int]) -> Any:
    import numpy as np

    given = np.asarray(probabilities, dtype=float)
    if given.shape != expected:
        raise DataError(
            f"probabilities must have one row for each row and one column for each class, "
            f"{expected}, got {given.shape}."
        )
    if not np.allclose(given.sum(axis=1), 1, atol=1e-3) or (given < 0).any():
        raise DataError("probabilities must be 0 or more and sum to 1 in every row.")
    return given


def _out_of_fold(dataset: Dataset, rows: Sequence[int], labels: Any, folds: int, seed: int) -> Any:
    """Predict each row by a model of the other parts, shape (rows, classes)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    from sftkit.dataset.texts import RowTexts

    texts = RowTexts(dataset)[list(rows)]
    # Character n-grams inside words serve every language and forgive typing errors.
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=1),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    parts = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    try:
        return cross_val_predict(model, texts, labels, cv=parts, method="predict_proba")
    except ValueError as error:  # texts without a single character
        raise DataError(f"The texts cannot be compared: {error}.") from error
