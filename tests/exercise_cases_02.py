"""Notebook 02's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any


def trial(trainable, after, off):
    """Make what an exercise reads of a trial."""
    return SimpleNamespace(
        trainable=trainable, heldout=SimpleNamespace(after=after), off_change=off
    )


RESULTS = {
    "lora": trial(1000, 2.0, 0.0),
    "ia3": trial(100, 2.5, 0.0),
    "pissa": trial(1000, 1.9, 0.4),
    "full": trial(50_000, 1.7, None),
}
BY_RANK = {1: [1.0, 0.7], 2: [1.0, 0.4], 3: [1.0, 0.2], 4: [1.0, 0.02], 8: [1.0, 0.01]}

GIVEN: dict[str, dict[str, Any]] = {
    "02.1": {"layer": SimpleNamespace(in_features=10, out_features=30), "r": 2},
    "02.2": {"by_rank": BY_RANK},
    "02.3": {"results": RESULTS},
    "02.4": {"results": RESULTS},
}
RIGHT: dict[str, Any] = {
    "02.1": (80, 80 / 300),
    "02.2": 4,
    "02.3": {"lora", "ia3"},
    "02.4": (500, 0.8),
}
WRONG: list[tuple[str, Any, str]] = [
    ("02.1", 80, "a whole number and a number"),
    ("02.1", (80.5, 0.27), "a whole number and a number"),
    ("02.1", (20, 0.07), "Both thin matrices"),
    ("02.1", (60, 0.2), "Both thin matrices"),
    ("02.1", (300, 1.0), "product itself"),
    ("02.1", (600, 2.0), "product itself"),
    ("02.1", (40, 0.13), "of A and B together"),
    ("02.1", (80, 26.7), "between 0 and 1"),
    ("02.1", (80, 0.5), "layer's own numbers"),
    ("02.2", "4", "a rank that was measured"),
    ("02.2", 5, "a rank that was measured"),
    ("02.2", 2, "Less than a tenth"),
    ("02.2", 8, "No smaller rank"),
    ("02.3", "lora", "a set of methods that were tried"),
    ("02.3", {"qlora"}, "a set of methods that were tried"),
    ("02.3", {"lora", "full"}, "nothing to switch off"),
    ("02.3", {"lora", "pissa"}, "whose base changed"),
    ("02.3", {"lora"}, "Every method that comes back"),
    ("02.4", 500, "two numbers"),
    ("02.4", (1 / 500, 0.8), "how many times as many"),
    ("02.4", (50, 0.8), "most and the fewest"),
    ("02.4", (500, -0.8), "come out positive"),
    ("02.4", (500, 0.3), "between the two methods"),
]
