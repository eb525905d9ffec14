"""Notebook 07's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any


def flip(base: str, tuned: str) -> SimpleNamespace:
    """Make a flip of which "a" is right."""
    return SimpleNamespace(right="a", base=base, tuned=tuned)


GIVEN: dict[str, dict[str, Any]] = {
    "07.1": {"raw": {"x": 0.03, "y": 0.02, "z": 0.6, "w": 0.025}},
    "07.2": {"flips": [flip("a", "b"), flip("a", "c"), flip("b", "a")]},
    "07.3": {
        "table": {0.25: (1.0, 0.02), 0.5: (1.8, 0.08), 0.75: (2.2, 0.15), 1.0: (2.1, 0.4)},
        "margin": 0.1,
    },
    "07.4": {
        "places": {
            "gentle": (1.0, 0.0), "slow": (2.0, 0.1), "small": (1.9, 0.2), "harsh": (2.5, 0.9),
            "replay": (2.0, 0.3),
        }
    },
}  # fmt: skip
RIGHT: dict[str, Any] = {
    "07.1": {"y": 0.08, "w": 0.08, "x": 0.08, "z": 0.6},
    "07.2": (2, 1),
    "07.3": 0.5,
    "07.4": {"gentle", "slow", "harsh"},
}
WRONG: list[tuple[str, Any, str]] = [
    ("07.1", {"x": 0.03}, "one number for each probe"),
    ("07.1", {"x": 0.01, "y": 0.01, "z": 0.2, "w": 0.01}, "smaller than the raw one"),
    ("07.1", {"x": 0.12, "y": 0.08, "z": 2.4, "w": 0.1}, "should exceed 1"),
    ("07.1", {"x": 0.12, "y": 0.08, "z": 1.0, "w": 0.1}, "Only the smallest p-value"),
    ("07.1", {"x": 0.06, "y": 0.08, "z": 0.6, "w": 0.075}, "never get a smaller"),
    ("07.1", {"x": 0.09, "y": 0.08, "z": 0.6, "w": 0.08}, "should be Holm's"),
    ("07.2", 3, "two whole numbers"),
    ("07.2", (1, 2), "should come first"),
    ("07.2", (2, 2), "counted once"),
    ("07.2", (3, 0), "match the flips"),
    ("07.3", 0.6, "one of the strengths"),
    ("07.3", 0.75, "stay within the margin"),
    ("07.3", 1.0, "stay within the margin"),
    ("07.3", 0.25, "No other strength"),
    ("07.3", 0, "No other strength"),
    ("07.4", "slow", "collection of names"),
    ("07.4", {"gentle", "slow"}, "gains most"),
    ("07.4", {"harsh", "slow"}, "drifts least"),
    ("07.4", {"gentle", "slow", "harsh", "replay"}, "No point that another beats"),
    ("07.4", {"gentle", "harsh"}, "should be missing"),
]
