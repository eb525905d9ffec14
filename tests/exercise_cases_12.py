"""Notebook 12's exercises: values to check against, right answers and plausible wrong ones."""

from typing import Any

CONFUSION = ((5, 0, 1), (4, 2, 0), (0, 3, 9))
MEASURED = {0.0: (0.99, 0.1), 0.05: (0.98, 0.9), 0.1: (0.98, 0.96), 0.25: (0.97, 0.98)}

GIVEN: dict[str, dict[str, Any]] = {
    "12.1": {"kernel": (32, 16, 3, 3), "rank": 4},
    "12.2": {
        "true": [0, 1, 2, 3, 4, 4],
        "before": [0, 1, 2, 0, 0, 4],
        "after": [5, 6, 2, 3, 1, 4],
    },
    "12.3": {"confusion": CONFUSION, "classes": ("0", "1", "2")},
    "12.4": {"measured": MEASURED},
}
RIGHT: dict[str, Any] = {
    "12.1": 4 * 16 * 9 + 32 * 4,
    "12.2": (2, 1),
    "12.3": ("1", "0"),
    "12.4": 0.1,
}
WRONG: list[tuple[str, Any, str]] = [
    ("12.1", "704", "a whole number"),
    ("12.1", 4608, "size of the kernel itself"),
    ("12.1", 192, "as many pixels"),
    ("12.1", 576, "Both A and B"),
    ("12.1", 128, "Both A and B"),
    ("12.1", 705, "fit the shapes"),
    ("12.2", 2, "a pair of whole numbers"),
    ("12.2", (1, 2), "the second what was gained"),
    ("12.2", (3, 1), "right before should count"),
    ("12.2", (2, 0), "match the predictions"),
    ("12.3", ("1", "7"), "among the classes"),
    ("12.3", ("1", "1"), "should differ"),
    ("12.3", ("0", "1"), "true label should come first"),
    ("12.3", ("2", "1"), "mistaken more often"),
    ("12.4", 0.5, "a share that was measured"),
    ("12.4", "little", "a share that was measured"),
    ("12.4", 0.05, "keep the old images"),
    ("12.4", 0.0, "keep the old images"),
    ("12.4", 0.25, "No smaller share"),
]
