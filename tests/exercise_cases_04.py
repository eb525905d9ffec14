"""Notebook 04's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any


def cost(delta, low, high):
    return SimpleNamespace(delta=delta, ci95=(low, high))


COSTS = {
    "bf16": cost(0.001, -0.002, 0.004),
    "int8": cost(0.01, 0.004, 0.016),
    "nf4": cost(0.05, 0.03, 0.07),
}
SIZES = {"small": 2, "middle": 8, "large": 20}


def needed(name, quantization, batch):
    """Give made-up bytes: weights and two gigabytes per thousand tokens."""
    assert quantization == "nf4"
    return SIZES[name] * 1e9 + batch * 2e6


GIVEN: dict[str, dict[str, Any]] = {
    "04.1": {"blocksize": 64},
    "04.2": {"costs": COSTS},
    "04.3": {"models": list(SIZES), "needed": needed, "budget": 16e9},
}
RIGHT: dict[str, Any] = {
    "04.1": (4.5, 4.127),
    "04.2": {"int8", "nf4"},
    "04.3": ("middle", 2048),
}
WRONG: list[tuple[str, Any, str]] = [
    ("04.1", 4.5, "a pair of numbers"),
    ("04.1", (0.5, 0.127), "its own four bits"),
    ("04.1", (36, 4.127), "shared by the weights of its block"),
    ("04.1", (4.5, 4.125), "own scale should count too"),
    ("04.1", (4.5, 4.25), "scales smaller, and nothing else"),
    ("04.2", "fp32", "names of `costs`"),
    ("04.2", {"bf16", "int8", "nf4"}, "higher loss alone"),
    ("04.2", {"bf16", "nf4"}, "worse for sure"),
    ("04.2", "nf4", "Every way that is worse"),
    ("04.2", "none", "Every way that is worse"),
    ("04.3", "middle", "a name of the list and a number"),
    ("04.3", ("huge", 512), "a name of the list and a number"),
    ("04.3", ("middle", 700), "one of those to be tried"),
    ("04.3", ("large", 512), "should fit together"),
    ("04.3", ("middle", 4096), "should fit together"),
    ("04.3", ("small", 4096), "No larger model"),
    ("04.3", ("middle", 1024), "No larger batch"),
]
