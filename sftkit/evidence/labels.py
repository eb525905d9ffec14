"""How well classes or numbers are predicted: metrics, intervals, and gains over baselines.

All systems are measured on the same items. An interval resamples whole groups, and a gain measures
both systems on the same drawn groups, so what is hard about an item cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sftkit.evidence.label_metrics import (
    Array,
    LabelMetric,
    Scored,
    draw_classes,
    draw_metrics,
    metrics_of,
)
from sftkit.evidence.thresholds import apply_threshold, precision_recall
from sftkit.evidence.verdicts import FEWEST_GROUPS
from sftkit.label_records import (
    ClassRow,
    Gain,
    LabelReport,
    LabelTask,
    Measure,
    Mistake,
    System,
    decimals_of,
)
from sftkit.records import Verdict

TUNED = "tuned"
MAIN_METRIC: Mapping[LabelTask, str] = {
    "classify": "macro_f1",
    "image": "macro_f1",
    "regress": "rmse",
}
"""The metric a verdict is about, unless another is asked for.

Numbers are judged by RMSE because the baselines are fitted to squared errors: by MAE, answering
the median of skewed numbers would beat the mean without having learned anything.
"""
_CHUNK = 2_000_000  # counts held at once; bounds memory to some tens of MB
_MOST_UNDEFINED = 0.05  # share of draws that may lack a class before an interval is refused
_MOST_POINTS, _TEXT_LENGTH = 500, 400


def evaluate_labels(
    targets: Sequence[int] | Sequence[float] | Array,
    scores: Array,
    *,
    task: LabelTask,
    groups: Sequence[str],
    classes: Sequence[str] = (),
    baselines: Mapping[str, Array] | None = None,
    resamples: int = 4000,
    seed: int = 0,
    threshold: float | None = None,
    texts: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
    mistakes: int = 10,
) -> LabelReport:
    """Measure a tuned model's predictions beside those of its baselines.

    Args:
        targets: Class numbers, or true numbers of a regression, shape (N,).
        scores: The tuned model's probabilities, shape (N, C), or numbers, shape (N,).
        task: classify, image or regress.
        groups: Group of each item; whole groups are resampled.
        classes: Names of the C classes. Of two, the second is the positive one.
        baselines: What others say of the same items, by name (majority, tf-idf, base), each like
            `scores`.
        resamples: Bootstrap draws.
        seed: Seed of the draws.
        threshold: The tuned model predicts the positive class from this probability on; None
            takes the largest probability. Choose it on validation items (`choose_threshold`).
        texts: Texts to show beside mistakes.
        rows: Row number of each item in its dataset; None counts from 0.
        mistakes: How many of the most confident mistakes are kept.

    Returns:
        Everything measured. Intervals are percentile intervals (Efron and Tibshirani 1993,
        chapter 13); nothing in it is NaN: what is undefined is None and has a note.

    Raises:
        ValueError: Shapes that do not belong together, a score that is not finite, no items, or
            a threshold for other than two classes.
    """
    given = {TUNED: scores, **(baselines or {})}
    systems = {
        name: _scored(targets, said, classes, task, threshold if name == TUNED else None)
        for name, said in given.items()
    }
    _check_columns(len(systems[TUNED].targets), groups=groups, texts=texts, rows=rows)
    tuned, table = systems[TUNED], metrics_of(task)
    draws, by_class = _draw_all(systems, groups, resamples, seed)
    points = {
        (name, row.name): None if row.undefined(items) else row.point(items)
        for name, items in systems.items()
        for row in table.values()
    }
    count = len(set(groups))
    numbers = list(rows) if rows is not None else list(range(len(groups)))
    return LabelReport(
        task=task,
        classes=tuned.classes,
        items=len(groups),
        groups=count,
        resamples=resamples,
        seed=seed,
        systems=tuple(
            System(
                name=name,
                measures=tuple(
                    _measure(row, items, points[name, row.name], draws[name, row.name], count)
                    for row in table.values()
                ),
            )
            for name, items in systems.items()
        ),
        gains=tuple(
            _gain(row, systems, name, points=points, draws=draws, groups=count)
            for name in systems
            if name != TUNED
            for row in table.values()
        ),
        per_class=_per_class(tuned, by_class, count),
        confusion=_confusion(tuned),
        curve=precision_recall(tuned.targets, tuned.scores) if len(classes) == 2 else (),
        threshold=threshold,
        points=_points(tuned) if task == "regress" else (),
        mistakes=_mistakes(tuned, groups, texts, numbers, mistakes),
        notes=_notes(tuned, count),
    )


def judge_labels(report: LabelReport, *, over: str = "", metric: str = "") -> Verdict:
    """Say in words whether the tuned model beats another system.

    Args:
        report: What was measured.
        over: The other system; empty takes tf-idf if it was measured, or else the last one.
        metric: Name of the metric; empty takes the task's main one.
    """
    names = [system.name for system in report.systems[1:]]
    if not names:
        return Verdict(state="unmeasured", sentence="No baseline was measured beside the model.")
    other = over or ("tf-idf" if "tf-idf" in names else names[-1])
    gain = report.gain(metric or MAIN_METRIC[report.task], other)
    title = metrics_of(report.task)[gain.metric].title
    sizes = f"{report.items:,} test items in {report.groups:,} groups"
    if gain.before is None or gain.after is None or gain.delta is None:
        sentence = f"The {title} on {sizes} is not defined: {gain.note}."
        return Verdict(state="unmeasured", sentence=sentence)
    digits = decimals_of(gain.metric, gain.after, gain.before)
    numbers = f"{title} on {sizes} is {gain.after:.{digits}f} against {gain.before:.{digits}f}"
    whom = "the untuned model" if other == "base" else f"the {_BASELINES.get(other, other)}"
    if gain.ci95 is None:
        sentence = f"Not measurable whether it beats {whom}: {numbers}, but {gain.note}."
        return Verdict(state="undecided", sentence=sentence)
    low, high = gain.ci95
    digits = decimals_of(gain.metric, gain.delta, low, high)
    span = f"{low:+.{digits}f} to {high:+.{digits}f}"
    numbers += f" ({gain.delta:+.{digits}f}, 95 % interval {span})"
    if gain.is_shown:
        return Verdict(state="yes", sentence=f"Beats {whom}: {numbers}.")
    if gain.is_reversed:
        return Verdict(state="no", sentence=f"Does worse than {whom}: {numbers}.")
    return Verdict(state="undecided", sentence=f"It cannot be shown to beat {whom}: {numbers}.")


_BASELINES = {
    "tf-idf": "TF-IDF baseline",
    "linear": "linear baseline",
    "majority": "majority class",
    "mean": "mean",
}


# --- Draws and intervals ---------------------------------------------------------------------


def group_counts(
    groups: Sequence[str], *, resamples: int, seed: int, chunk: int = _CHUNK
) -> Iterator[Array]:
    """Draw groups with replacement; give how often each item was drawn, a few draws at a time.

    Args:
        groups: Group of each item.
        resamples: Draws in all.
        seed: Seed of the draws.
        chunk: Counts held at once, at most.

    Yields:
        Counts of shape (R, N), R of all draws together being `resamples`.
    """
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size = int(member.max()) + 1
    random = np.random.default_rng(seed)
    at_once = max(chunk // len(member), 1)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        yield random.multinomial(size, np.full(size, 1 / size), size=count)[:, member].astype(float)


def _draw_all(
    systems: Mapping[str, Scored],
    groups: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[dict[tuple[str, str], Array], dict[str, Array]]:
    """Measure every system on the same draws: by system and metric, and per class."""
    parts: dict[Any, list[Array]] = {}
    tuned = systems[TUNED]
    for counts in group_counts(groups, resamples=resamples, seed=seed):
        for name, items in systems.items():
            for metric, values in draw_metrics(items, counts).items():
                parts.setdefault((name, metric), []).append(values)
        if tuned.classes:
            for name, values in draw_classes(tuned, counts).items():
                parts.setdefault(name, []).append(values)
    joined = {key: np.concatenate(values) for key, values in parts.items()}
    metrics = {key: value for key, value in joined.items() if isinstance(key, tuple)}
    return metrics, {key: value for key, value in joined.items() if isinstance(key, str)}


def _interval(draws: Array, groups: int) -> tuple[tuple[float, float] | None, str]:
    """Give the 95 % interval of draws, or None and why there is none."""
    if groups < FEWEST_GROUPS:
        return None, f"an interval needs {FEWEST_GROUPS} groups and there are {groups}"
    known = draws[~np.isnan(draws)]
    if len(known) < (1 - _MOST_UNDEFINED) * len(draws):
        share = 1 - len(known) / len(draws)
        return None, f"no interval, because {share:.0%} of the draws lack what it is computed from"
    low, high = np.percentile(known, [2.5, 97.5])
    return (float(low), float(high)), ""


def _measure(
    row: LabelMetric, items: Scored, value: float | None, draws: Array, groups: int
) -> Measure:
    if value is None:
        return Measure(name=row.name, value=None, ci95=None, note=row.undefined(items))
    ci95, why = _interval(draws, groups)
    note = "; ".join(part for part in (row.convention(items), why) if part)
    return Measure(name=row.name, value=value, ci95=ci95, note=note)


def _gain(
    row: LabelMetric,
    systems: Mapping[str, Scored],
    over: str,
    *,
    points: Mapping[tuple[str, str], float | None],
    draws: Mapping[tuple[str, str], Array],
    groups: int,
) -> Gain:
    after, before = points[TUNED, row.name], points[over, row.name]
    head: dict[str, Any] = {"metric": row.name, "over": over, "before": before, "after": after}
    head["lower_is_better"] = row.lower_is_better
    if before is None or after is None:
        reason = row.undefined(systems[TUNED]) or f"{over}: {row.undefined(systems[over])}"
        return Gain(**head, delta=None, ci95=None, note=reason)
    ci95, why = _interval(draws[TUNED, row.name] - draws[over, row.name], groups)
    return Gain(**head, delta=after - before, ci95=ci95, note=why)


# --- Tables and mistakes ---------------------------------------------------------------------


def _per_class(items: Scored, draws: Mapping[str, Array], groups: int) -> tuple[ClassRow, ...]:
    once = draw_classes(items, np.ones((1, len(items.targets)))) if items.classes else {}
    missing = {
        "precision": "never predicted",
        "recall": "not in the test",
        "f1": "neither in the test nor predicted",
    }
    rows = []
    for c, name in enumerate(items.classes):
        measures = {}
        for metric, values in once.items():
            value = float(values[0, c])
            if np.isnan(value):
                measures[metric] = Measure(name=metric, value=None, ci95=None, note=missing[metric])
            else:
                ci95, why = _interval(draws[metric][:, c], groups)
                measures[metric] = Measure(name=metric, value=value, ci95=ci95, note=why)
        rows.append(
            ClassRow(
                name=name,
                **measures,
                support=int((items.targets == c).sum()),
                predicted=int((items.predicted == c).sum()),
            )
        )
    return tuple(rows)


def _confusion(items: Scored) -> tuple[tuple[int, ...], ...]:
    size = len(items.classes)
    if not size:
        return ()
    pairs = np.bincount(items.targets * size + items.predicted, minlength=size * size)
    return tuple(tuple(int(cell) for cell in line) for line in pairs.reshape(size, size))


def _points(items: Scored) -> tuple[tuple[float, float], ...]:
    """Thin true and predicted numbers out evenly over the ranks of the true ones."""
    order = np.argsort(items.targets, kind="stable")
    kept = np.unique(np.linspace(0, len(order) - 1, _MOST_POINTS).round().astype(int))
    return tuple((float(items.targets[i]), float(items.scores[i])) for i in order[kept])


def _mistakes(
    items: Scored,
    groups: Sequence[str],
    texts: Sequence[str] | None,
    rows: Sequence[int],
    most: int,
) -> tuple[Mistake, ...]:
    if items.classes:
        wrong = items.predicted != items.targets
        confidence = items.scores[np.arange(len(wrong)), items.predicted]
    else:
        confidence = np.abs(items.targets - items.scores)
        wrong = confidence > 0
    order = np.argsort(np.where(wrong, -confidence, np.inf), kind="stable")
    return tuple(
        Mistake(
            row=int(rows[i]),
            group=str(groups[i]),
            text=_shorten(texts[i]) if texts is not None else "",
            target=_word(items, items.targets[i]),
            predicted=_word(items, items.predicted[i]),
            confidence=float(confidence[i]),
        )
        for i in order[: min(most, int(wrong.sum()))]
    )


def _word(items: Scored, value: float) -> str:
    return items.classes[int(value)] if items.classes else f"{value:.4g}"


def _shorten(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1].rstrip() + "…"


def _notes(items: Scored, groups: int) -> tuple[str, ...]:
    notes = []
    absent = [name for c, name in enumerate(items.classes) if c not in items.present]
    if absent:
        notes.append(f"No test item is of {', '.join(map(repr, absent))}: nothing is known of it.")
    if len(np.unique(items.predicted)) == 1 and len(items.targets) > 1:
        said = _word(items, items.predicted[0])
        notes.append(f"The tuned model predicts {said!r} for every item: it learned no difference.")
    if groups < FEWEST_GROUPS:
        notes.append(
            f"The test has {groups} groups; below {FEWEST_GROUPS} no interval is given, because "
            "resampling so few says little."
        )
    return tuple(notes)


# --- What comes in ---------------------------------------------------------------------------


def _scored(
    targets: Any, scores: Any, classes: Sequence[str], task: LabelTask, threshold: float | None
) -> Scored:
    """Bring one system's answers into shape, or say what is wrong with them."""
    said = np.asarray(scores, dtype=float)
    true = np.asarray(targets, dtype=float if task == "regress" else None)
    wanted = (len(true),) if task == "regress" else (len(true), len(classes))
    if not len(true) or said.shape != wanted or not np.isfinite(said).all():
        raise ValueError(
            f"evaluate_labels needs at least one item and finite scores of shape {wanted} for "
            f"task {task}, got shape {said.shape}."
        )
    if task == "regress":
        if threshold is not None or classes or not np.isfinite(true).all():
            raise ValueError("A regression has finite targets, no classes and no threshold.")
        return Scored(targets=true, scores=said, predicted=said)
    if true.dtype.kind not in "iu" or true.min() < 0 or true.max() >= len(classes):
        raise ValueError(f"Targets must be class numbers from 0 to {len(classes) - 1}.")
    if threshold is not None and len(classes) != 2:
        raise ValueError(f"A threshold needs two classes, got {len(classes)}.")
    predicted = said.argmax(axis=1) if threshold is None else apply_threshold(said, threshold)
    return Scored(targets=true, scores=said, predicted=predicted, classes=tuple(classes))


def _check_columns(items: int, **columns: Sequence[Any] | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != items:
            raise ValueError(f"evaluate_labels has {items} items but {len(column)} {name}.")
