"""Metrics of labels: each once on the items, and once for many bootstrap draws together.

A metric's value comes from scikit-learn. For intervals the same metric is computed for many draws
at once, where a draw is a count per item: how often the item's group was drawn. Tests hold the two
together: a draw's value is scikit-learn's value of the items repeated that often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sftkit.label_records import LabelTask

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Test items and what one system says of them.

    Attributes:
        targets: Class numbers, or true numbers, shape (N,).
        scores: Probabilities, shape (N, C), or predicted numbers, shape (N,).
        predicted: Predicted class numbers, shape (N,); the scores themselves in a regression.
        classes: Names of the classes; empty in a regression.
    """

    targets: Array
    scores: Array
    predicted: Array
    classes: tuple[str, ...] = ()

    @property
    def present(self) -> list[int]:
        """Classes that occur among the items."""
        return [int(number) for number in np.unique(self.targets)]


@dataclass(frozen=True)
class LabelMetric:
    """One row of the table of metrics.

    Attributes:
        name: As in records.
        title: As in figures and sentences.
        point: Its value by scikit-learn.
        undefined: Why the items do not define it; empty if they do.
        convention: What has to be said of the value; empty if nothing.
        lower_is_better: Whether it measures an error.
        from_scores: Whether it is computed from scores and not from predicted classes.
    """

    name: str
    title: str
    point: Callable[[Scored], float]
    undefined: Callable[[Scored], str] = lambda _: ""
    convention: Callable[[Scored], str] = lambda _: ""
    lower_is_better: bool = False
    from_scores: bool = False


def metrics_of(task: LabelTask) -> Mapping[str, LabelMetric]:
    """Give the metrics of a task, by name."""
    rows = _REGRESSION if task == "regress" else _CLASSIFICATION
    return {row.name: row for row in rows}


def evaluate_metric(name: str) -> Any:
    """Make a metric of the table an `evaluate.Metric`, to be used alone or in `evaluate.combine`.

    It takes `references` (class or true numbers) and `predictions` (class or predicted numbers);
    auroc and auprc take `prediction_scores` (a probability per class) instead of `predictions`.
    Nothing is fetched, and nothing is written to disk. An undefined value is None.

    Args:
        name: Name of a metric, e.g. macro_f1.

    Raises:
        KeyError: There is no metric of that name.
    """
    known = {row.name: row for row in (*_CLASSIFICATION, *_REGRESSION)}
    if name not in known:
        raise KeyError(f"No metric {name!r}; there are {', '.join(known)}.")
    return _evaluate_class()(known[name])


@cache
def _evaluate_class() -> type:
    import datasets
    import evaluate

    class SftkitMetric(evaluate.Metric):
        """A metric of the table, for the evaluate library."""

        def __init__(self, row: LabelMetric) -> None:
            self.row = row
            super().__init__(config_name=row.name, keep_in_memory=True)

        def _info(self) -> Any:
            number = "float64" if self.row in _REGRESSION else "int64"
            label = datasets.Value(number)
            scores = {"prediction_scores": datasets.Sequence(datasets.Value("float64"))}
            answers = scores if self.row.from_scores else {"predictions": label}
            return evaluate.MetricInfo(
                description=self.row.title,
                citation="",
                inputs_description=f"references and {next(iter(answers))}",
                features=datasets.Features({"references": label, **answers}),
            )

        def _compute(self, **columns: Any) -> dict[str, float | None]:
            # combine() hands every input to every metric; each takes its own.
            answers = "prediction_scores" if self.row.from_scores else "predictions"
            targets, said = np.asarray(columns["references"]), np.asarray(columns[answers])
            predicted = said.argmax(axis=1) if said.ndim == 2 else said
            count = said.shape[1] if said.ndim == 2 else int(max(targets.max(), said.max())) + 1
            names = () if self.row in _REGRESSION else tuple(str(n) for n in range(count))
            items = Scored(targets=targets, scores=said, predicted=predicted, classes=names)
            value = None if self.row.undefined(items) else self.row.point(items)
            return {self.row.name: value}

    return SftkitMetric


def draw_metrics(items: Scored, counts: Array) -> dict[str, Array]:
    """Give every metric of the items' task in each draw.

    Args:
        items: N items, and what one system says of them.
        counts: How often each item was drawn, shape (R, N).

    Returns:
        Values of shape (R,) by metric, NaN where a draw does not define one. Macro-F1 is defined
        by the draws that hold every class of the items: without a rare class, which is often the
        hardest, the mean over the others would be of something else.
    """
    if not items.classes:
        error = items.targets - items.scores
        return {
            "rmse": np.sqrt(_mean(error**2, counts)),
            "mae": _mean(np.abs(error), counts),
            "spearman": _spearman_draws(items, counts),
            "r2": _r2_draws(items, counts),
        }
    right, support, predicted = _class_counts(items, counts)
    total = counts.sum(axis=1)
    present = items.present
    f1 = 2 * right[:, present] / np.maximum(support + predicted, 1)[:, present]
    whole = (support[:, present] > 0).all(axis=1)
    top = right.sum(axis=1) * total - (support * predicted).sum(axis=1)
    spread = (total**2 - (support**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    return {
        "accuracy": right.sum(axis=1) / total,
        "macro_f1": np.where(whole, f1.mean(axis=1), np.nan),
        "mcc": np.where(spread > 0, top / np.sqrt(np.maximum(spread, 1)), 0.0),
        **_ranking_draws(items, counts),
    }


def draw_classes(items: Scored, counts: Array) -> dict[str, Array]:
    """Give precision, recall and f1 of each class in each draw, shape (R, C); NaN for 0 / 0."""
    right, support, predicted = _class_counts(items, counts)
    return {
        "precision": _divide(right, predicted),
        "recall": _divide(right, support),
        "f1": _divide(2 * right, support + predicted),
    }


def _class_counts(items: Scored, counts: Array) -> tuple[Array, Array, Array]:
    """Count items right, true and predicted per class in each draw, shapes (R, C)."""
    true = np.eye(len(items.classes))[items.targets]
    said = np.eye(len(items.classes))[items.predicted]
    return counts @ (true * said), counts @ true, counts @ said


def _divide(top: Array, bottom: Array) -> Array:
    """Divide; 0 / 0 is NaN, without a warning."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """What is drawn beside and below each positive item, in the order of the scores; (R, P)."""

    positive: Array
    all_below: Array
    all_up_to: Array
    positive_below: Array
    positive_up_to: Array
    all_drawn: Array
    positive_drawn: Array


def _rank(is_positive: Array, scores: Array, counts: Array) -> _Ranking:
    """Order the drawn items by score; sums are whole numbers, which float32 holds up to 2^24."""
    order = np.argsort(scores, kind="stable")
    ranked, places = scores[order], np.flatnonzero(is_positive[order])
    # Items of equal score are a block; of each positive item's block, its start and its end.
    start, end = (np.searchsorted(ranked, ranked[places], side) for side in ("left", "right"))
    drawn = np.take(counts, order, axis=1)
    positive = np.take(drawn, places, axis=1)
    every, found = (_sums_before(part) for part in (drawn, positive))
    before, up_to = (np.searchsorted(places, edge) for edge in (start, end))
    return _Ranking(
        positive=positive,
        all_below=np.take(every, start, axis=1),
        all_up_to=np.take(every, end, axis=1),
        positive_below=np.take(found, before, axis=1),
        positive_up_to=np.take(found, up_to, axis=1),
        all_drawn=every[:, -1:].astype(float),
        positive_drawn=found[:, -1:].astype(float),
    )


def _sums_before(counts: Array) -> Array:
    """Sum what stands before each column, and after the last one all; shape (R, N + 1)."""
    return np.cumsum(np.pad(counts, ((0, 0), (1, 0))), axis=1, dtype=np.float32)


def _auroc_of(rank: _Ranking) -> Array:
    """Share of (positive, negative) pairs in the right order, a tie counting half."""
    below, up_to = rank.all_below - rank.positive_below, rank.all_up_to - rank.positive_up_to
    ordered = np.einsum("rp,rp->r", rank.positive, (below + up_to) / 2, dtype=float)
    pairs = rank.positive_drawn * (rank.all_drawn - rank.positive_drawn)
    return _divide(ordered, pairs[:, 0])


def _auprc_of(rank: _Ranking) -> Array:
    """Average precision: the sum of precision × gain in recall, without interpolation."""
    taken = rank.all_drawn - rank.all_below
    precision = _divide(rank.positive_drawn - rank.positive_below, taken)
    gained = np.nansum(rank.positive * precision, axis=1)
    both = rank.positive_drawn * (rank.all_drawn > rank.positive_drawn)  # one class ranks nothing
    return _divide(gained, both[:, 0])


def _each_class(items: Scored) -> list[int]:
    """Classes to score one against the rest: of two, only the second, the positive one."""
    return [1] if len(items.classes) == 2 else items.present


def _ranking_draws(items: Scored, counts: Array) -> dict[str, Array]:
    """Give AUROC and AUPRC in each draw: the mean over the classes that the draw holds."""
    slim, each = counts.astype(np.float32), []
    for c in _each_class(items):
        rank = _rank(items.targets == c, items.scores[:, c], slim)
        each.append((_auroc_of(rank), _auprc_of(rank)))
    values = np.array(each)
    known = ~np.isnan(values)
    auroc, auprc = _divide(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))
    return {"auroc": auroc, "auprc": auprc}


def _mean_over_classes(of_one: str) -> Callable[[Scored], float]:
    def point(items: Scored) -> float:
        from sklearn import metrics

        function = getattr(metrics, of_one)
        values = [function(items.targets == c, items.scores[:, c]) for c in _each_class(items)]
        return float(np.mean(values))

    return point


def _mean(values: Array, counts: Array) -> Array:
    return counts @ values / counts.sum(axis=1)


def _r2_draws(items: Scored, counts: Array) -> Array:
    centre = items.targets.mean()  # shifted first, so that large numbers lose no digits
    shifted = items.targets - centre
    spread = _mean(shifted**2, counts) - _mean(shifted, counts) ** 2
    error = _mean((items.targets - items.scores) ** 2, counts)
    return 1 - _divide(error, np.where(spread > 1e-12 * (shifted**2).mean(), spread, 0))


def _ranks(values: Array, counts: Array) -> Array:
    """Rank each item among the drawn ones, equal values sharing their mean rank, shape (R, N)."""
    order = np.argsort(values, kind="stable")
    before = _sums_before(np.take(counts, order, axis=1)).astype(float)
    start, end = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    return (np.take(before, start, axis=1) + np.take(before, end, axis=1) + 1) / 2


def _spearman_draws(items: Scored, counts: Array) -> Array:
    total = counts.sum(axis=1, keepdims=True)
    centred = []
    for values in (items.targets, items.scores):
        rank = _ranks(values, counts)
        centred.append(rank - (counts * rank).sum(axis=1, keepdims=True) / total)
    one, two = centred
    spread = (counts * one**2).sum(axis=1) * (counts * two**2).sum(axis=1)
    return _divide((counts * one * two).sum(axis=1), np.sqrt(spread))


# --- Values by scikit-learn, and when they mean nothing ----------------------------------------


def _accuracy(items: Scored) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(items.targets, items.predicted))


def _macro_f1(items: Scored) -> float:
    from sklearn.metrics import f1_score

    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    return float(f1_score(items.targets, items.predicted, labels=items.present, **options))


def _mcc(items: Scored) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(items):
        return 0.0
    return float(matthews_corrcoef(items.targets, items.predicted))


def _number(name: str) -> Callable[[Scored], float]:
    def point(items: Scored) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(items.targets, items.scores))

    return point


def _spearman(items: Scored) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(items.targets, items.scores).statistic)


def _constant(items: Scored) -> str:
    said = np.unique(items.predicted)
    if len(said) == 1:
        return f"every item was predicted as {items.classes[said[0]]!r}, so it is 0 by convention"
    if len(items.present) == 1:
        return f"{_one_class(items)}, so it is 0 by convention"
    return ""


def _one_class(items: Scored) -> str:
    if len(items.present) > 1:
        return ""
    return f"all {len(items.targets)} test items are {items.classes[items.present[0]]!r}"


def _missing(items: Scored) -> str:
    absent = [name for c, name in enumerate(items.classes) if c not in items.present]
    if not absent:
        return ""
    return f"over the classes in the test, without {', '.join(map(repr, absent))}"


def _no_order(items: Scored) -> str:
    for what, values in (("true numbers", items.targets), ("predictions", items.scores)):
        if len(np.unique(values)) == 1:
            return f"all {what} are the same"
    return ""


def _no_spread(items: Scored) -> str:
    return "all true numbers are the same" if len(np.unique(items.targets)) == 1 else ""


_RANKING: dict[str, Any] = {"undefined": _one_class, "convention": _missing, "from_scores": True}
_ERROR: dict[str, Any] = {"lower_is_better": True}
_CLASSIFICATION = (
    LabelMetric("accuracy", "accuracy", _accuracy),
    LabelMetric("macro_f1", "macro-F1", _macro_f1, convention=_missing),
    LabelMetric("mcc", "Matthews correlation", _mcc, convention=_constant),
    LabelMetric("auroc", "AUROC", _mean_over_classes("roc_auc_score"), **_RANKING),
    LabelMetric("auprc", "AUPRC", _mean_over_classes("average_precision_score"), **_RANKING),
)
_REGRESSION = (
    LabelMetric("rmse", "root mean squared error", _number("root_mean_squared_error"), **_ERROR),
    LabelMetric("mae", "mean absolute error", _number("mean_absolute_error"), **_ERROR),
    LabelMetric("spearman", "Spearman correlation", _spearman, undefined=_no_order),
    LabelMetric("r2", "R²", _number("r2_score"), undefined=_no_spread),
)
