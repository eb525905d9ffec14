"""Notebook 06's exercises: values to check against, right answers and plausible wrong ones."""

import math
from types import SimpleNamespace
from typing import Any


def change(before: float, low: float) -> SimpleNamespace:
    """Make what an exercise reads of a change."""
    return SimpleNamespace(before=before, ci95=(low, 0.9))


SCORES = [SimpleNamespace(nats=4.0, tokens=1), SimpleNamespace(nats=5.0, tokens=5)]
# Of eight: five turn right, one turns wrong, two stay right.
RIVAL = [0, 0, 0, 0, 0, 1, 1, 1]
TUNED = [1, 1, 1, 1, 1, 0, 1, 1]
P_VALUE = 2 * (1 + 6) / 2**6
MEASURE = SimpleNamespace(
    change=change(0.0, 0.2),
    baselines={"few-shot": change(0.1, 0.1), "open book": change(0.5, -0.1)},
)

GIVEN: dict[str, dict[str, Any]] = {
    "06.1": {"smallest": {10: None, 30: 0.25, 100: 0.1, 300: 0.04}, "wanted": 0.1},
    "06.2": {"scores": SCORES},
    "06.3": {"rival": RIVAL, "tuned": TUNED},
    "06.4": {"measure": MEASURE},
    "06.5": {"fewer": (0.5, 0.6, 0.7), "more": (0.65, 0.6, 0.8)},
}
RIGHT: dict[str, Any] = {
    "06.1": 100,
    "06.2": math.exp(1.5),
    "06.3": (5, 1, P_VALUE),
    "06.4": ("open book", False),
    "06.5": 3,
}
WRONG: list[tuple[str, Any, str]] = [
    ("06.1", 0.1, "one of the numbers of questions"),
    ("06.1", 50, "one of the numbers of questions"),
    ("06.1", 10, "able to see the gain"),
    ("06.1", 300, "No smaller test"),
    ("06.2", -1, "a number of 1 or more"),
    ("06.2", 1.5, "not be the loss itself"),
    ("06.2", math.exp(2.5), "Long answers should weigh more"),
    ("06.2", (math.exp(4.0) + math.exp(1.0)) / 2, "before the exponential"),
    ("06.2", 2.7, "match the scores"),
    ("06.3", (5, 1), "two counts and a p-value"),
    ("06.3", (5, 1, 5.0), "two counts and a p-value"),
    ("06.3", (7, 3, P_VALUE), "both answer right"),
    ("06.3", (1, 5, P_VALUE), "counts should match"),
    ("06.3", (5, 1, P_VALUE / 2), "should be McNemar's"),
    ("06.4", "open book", "name of a rival"),
    ("06.4", ("tuned", True), "name of a rival"),
    ("06.4", ("base", True), "No other rival"),
    ("06.4", ("open book", True), "leaves out zero"),
    ("06.5", 0.5, "a whole number"),
    ("06.5", 10, "a whole number"),
    ("06.5", 1, "not only those of the same seed"),
    ("06.5", 2, "A tie should count"),
    ("06.5", 5, "match the shares"),
]
