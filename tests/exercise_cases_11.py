"""Notebook 11's exercises: values to check against, right answers and plausible wrong ones."""

from typing import Any

# 50 pairs: 30 of 33 irrelevant ones right, 12 of 17 relevant ones found.
CONFUSION = ((30, 3), (5, 12))

GIVEN: dict[str, dict[str, Any]] = {
    "11.1": {"confusion": CONFUSION},
    "11.2": {"by_question": (0.68, 0.76), "by_row": (0.70, 0.74)},
    "11.3": {
        "targets": [1, 1, 0, 0],
        "usual": [0, 1, 0, 0],
        "chosen": [1, 1, 1, 0],
        "costs": (5, 1),
    },
    "11.4": {"support": (95, 5)},
    "11.5": {"error": -3.0},
}
RIGHT: dict[str, Any] = {
    "11.1": (12 / 17, 12 / 15),
    "11.2": 2.0,
    "11.3": (1.25, 0.25),
    "11.4": (0.95, 95 / 195),
    "11.5": (9.0, 2.5),
}
WRONG: list[tuple[str, Any, str]] = [
    ("11.1", 0.7, "a pair of shares"),
    ("11.1", (70.6, 80), "a pair of shares"),
    ("11.1", (12 / 15, 12 / 17), "not be swapped"),
    ("11.1", (42 / 50, 12 / 15), "share of all right answers"),
    ("11.1", (0.9, 0.8), "Recall should match"),
    ("11.1", (12 / 17, 0.7), "Precision should match"),
    ("11.2", "2", "a number above 0"),
    ("11.2", (0.08, 0.04), "a number above 0"),
    ("11.2", 0.08, "compare widths"),
    ("11.2", 0.5, "divided by the one by row"),
    ("11.2", 1.5, "match the intervals"),
    ("11.3", 1.25, "a pair of numbers"),
    ("11.3", (5, 1), "per test pair"),
    ("11.3", (0.25, 0.25), "cost more than a false alarm"),
    ("11.3", (1.0, 0.25), "The cost at 0.5"),
    ("11.3", (1.25, 0.5), "chosen threshold should match"),
    ("11.4", 0.95, "a pair of shares"),
    ("11.4", (0.5, 0.5), "accuracy should match"),
    ("11.4", (0.95, 190 / 195), "count both classes alike"),
    ("11.4", (0.95, 0.5), "Macro-F1 should match"),
    ("11.5", 9, "a pair of numbers"),
    ("11.5", (4.5, 2.5), "squared error should match"),
    ("11.5", (9, 4.5), "should not be squared"),
    ("11.5", (9, 3), "Huber loss should match"),
]
