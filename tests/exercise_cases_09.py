"""Notebook 09's exercises: values to check against, right answers and plausible wrong ones."""

from typing import Any

PROBES = {
    "piqa": (-0.01, -0.03, 0.01),
    "openbookqa": (-0.02, -0.08, 0.04),
    "commonsenseqa": (-0.03, -0.045, -0.015),
}
FIRST = {"train": {"epochs": 3, "learning_rate": 1e-3}, "adapter": {"r": 16, "kind": "lora"}}
SECOND = {"train": {"epochs": 1, "learning_rate": 1e-3}, "adapter": {"r": 16, "dropout": 0.1}}
GIVEN: dict[str, dict[str, Any]] = {
    "09.1": {"probes": PROBES, "margin": 0.05},
    "09.2": {"first": FIRST, "second": SECOND},
    "09.3": {"tested": [0.7, 0.2, 0.1], "served": [0.5, 0.3, 0.2]},
    "09.4": {"rank": 24},
}
RIGHT: dict[str, Any] = {
    "09.1": {"piqa", "commonsenseqa"},
    "09.2": {"train.epochs", "adapter.kind", "adapter.dropout"},
    "09.3": 0.0851228,
    "09.4": 32,
}
WRONG: list[tuple[str, Any, str]] = [
    ("09.1", "piqa", "a set of names"),
    ("09.1", set(PROBES), "by the interval, not by the change"),
    ("09.1", {"commonsenseqa"}, "whether the interval holds 0"),
    ("09.1", {"piqa"}, "match the intervals"),
    ("09.2", "train.epochs", "a set of dotted names"),
    ("09.2", {"train", "adapter"}, "not whole sections"),
    ("09.2", {"train.epochs", "train.learning_rate"}, "leave out what is alike"),
    ("09.2", {"train.epochs"}, "every setting that differs"),
    ("09.3", -0.1, "a number of 0 or more"),
    ("09.3", 0.0920323, "the one that is expected over"),
    ("09.3", 0.1228063, "in nats"),
    ("09.3", 0.2, "match the two distributions"),
    ("09.4", 24, "one of the ranks"),
    ("09.4", 16, "should fit"),
    ("09.4", 64, "the smallest one"),
]
