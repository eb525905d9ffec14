"""Notebook 03's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any


def step(number, loss, *, norm=1.0, held=None, rate=0.01, seconds=None):
    """Make what an exercise reads of a step."""
    return SimpleNamespace(
        step=number, loss=loss, grad_norm=norm, heldout_loss=held, learning_rate=rate,
        seconds=7.0 * number if seconds is None else seconds,
    )  # fmt: skip


def change(after, ci95):
    """Make what an exercise reads of a change."""
    return SimpleNamespace(after=after, ci95=ci95)


RUNS = {
    "a": [step(1, 4.0), step(2, 0.05)],
    "b": [step(1, 4.0, norm=0.0), step(2, 4.0, norm=0.0)],
    "c": [step(1, 4.0), step(2, 3.9)],
}
SWEEP = {
    1e-3: SimpleNamespace(heldout=change(1.9, (-4, -3))),
    3e-3: SimpleNamespace(heldout=change(1.8, (-4, -3))),
    1e-1: SimpleNamespace(heldout=change(9.0, (3, 5))),
    1.0: SimpleNamespace(heldout=None),
}
COMPARED = {
    1e-3: change(1.9, (0, 0)),
    3e-3: change(1.8, (-0.3, 0.1)),
    1e-1: change(9.0, (6, 8)),
    1.0: None,
}
LONG = SimpleNamespace(
    steps=[
        step(1, 4.0),
        step(2, 2.0, held=2.5),
        step(3, 1.0),
        step(4, 0.5, held=2.0),
        step(5, 0.1, held=2.75),
    ]
)
DECAYED = SimpleNamespace(
    steps=[step(n, 1.0, rate=0.1) for n in range(1, 11)], settings=SimpleNamespace(weight_decay=2.0)
)
USUAL, OURS = 1 - 0.999**10, 1 - 0.8**10
STEPS = [step(n, 1.0) for n in range(1, 13)]  # 7 seconds each, so 8 of them in a minute

GIVEN: dict[str, dict[str, Any]] = {
    "03.1": {"runs": RUNS},
    "03.2": {"sweep": SWEEP, "compared": COMPARED},
    "03.3": {"run": LONG},
    "03.4": {"run": DECAYED},
    "03.5": {"whole": STEPS, "killed": STEPS[:10], "saved": 8},
}
RIGHT: dict[str, Any] = {
    "03.1": {"a": "healthy", "b": "no gradient", "c": "too slow"},
    "03.2": (3e-3, False),
    "03.3": (4, 0.75),
    "03.4": (USUAL, OURS),
    "03.5": (2, 8),
}
WRONG: list[tuple[str, Any, str]] = [
    ("03.1", {"a": "healthy", "b": "no gradient"}, "one of the three words"),
    ("03.1", {"a": "fine", "b": "no gradient", "c": "too slow"}, "one of the three words"),
    ("03.1", {"a": "too slow", "b": "no gradient", "c": "too slow"}, "healthy run"),
    ("03.1", {"a": "healthy", "b": "healthy", "c": "too slow"}, "healthy run"),
    ("03.1", {"a": "healthy", "b": "too slow", "c": "no gradient"}, "told from one"),
    ("03.2", 3e-3, "a rate that was tried"),
    ("03.2", (2e-3, False), "a rate that was tried"),
    ("03.2", (3e-3, "no"), "a rate that was tried"),
    ("03.2", (1e-3, False), "lowest held-out loss"),
    ("03.2", (3e-3, True), "follow from the interval"),
    ("03.3", 4, "a step and a number"),
    ("03.3", (3, 0.75), "was measured"),
    ("03.3", (5, 0.0), "No other step"),
    ("03.3", (4, -0.75), "positive cost"),
    ("03.3", (4, 1.9), "two held-out losses"),
    ("03.4", 0.01, "two numbers"),
    ("03.4", (1.0, 89.0), "between 0 and 1"),
    ("03.4", (1 - USUAL, 1 - OURS), "should be small"),
    ("03.4", (0.001, OURS), "All steps"),
    ("03.4", (USUAL, 0.2), "our own decay"),
    ("03.5", 2, "two whole numbers"),
    ("03.5", (2, 8.5), "two whole numbers"),
    ("03.5", (10, 8), "after the checkpoint"),
    ("03.5", (2, 9), "at most a minute"),
    ("03.5", (2, 4), "more often than"),
]
