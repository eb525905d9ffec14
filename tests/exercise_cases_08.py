"""Notebook 08's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any

TABLE = {
    ("white-sounding", "urgent"): 30,
    ("white-sounding", "calm"): 70,
    ("Black-sounding", "urgent"): 10,
    ("Black-sounding", "calm"): 90,
}
# Leaving out "leaked" and "rounded": accuracy notices the first two, nobody the last.
MATRIX = SimpleNamespace(
    killed=lambda: ("zeroed", "swapped", "leaked", "dropped"),
    killed_by_accuracy=lambda: ("zeroed", "swapped"),
)
OWN = """
task: classify
tests:
  - name: Thanks change no topic
    kind: invariance
    template: "{letter}"
    to: "{letter} Thank you."
    slots: {letter: [a, b, c, d, e, f, g, h, i, j]}
    expect: {same: true}
"""

GIVEN: dict[str, dict[str, Any]] = {
    "08.1": {"counts": [(0, 12), (3, 40), (24, 40)], "allowed": 0.1},
    "08.2": {},
    "08.3": {"table": TABLE},
    "08.4": {"bins": [(10, 0.55, 0.60), (30, 0.80, 0.70), (60, 0.97, 0.90)]},
    "08.5": {"matrix": MATRIX},
}
RIGHT: dict[str, Any] = {
    "08.1": ["pass", "undecided", "fail"],
    "08.2": OWN,
    "08.3": 2.0,  # 0.5 × 0.2 / 0.05
    "08.4": 0.077,  # (0.5 + 3 + 4.2) / 100
    "08.5": {"leaked", "dropped"},
}
WRONG: list[tuple[str, Any, str]] = [
    ("08.1", "pass", "a list of three"),
    ("08.1", ["pass", "fail"], "a list of three"),
    ("08.1", ["undecided", "undecided", "fail"], "without any failure"),
    ("08.1", ["pass", "pass", "fail"], "by its interval, not by its point"),
    ("08.1", ["pass", "undecided", "undecided"], "its interval, too"),
    ("08.2", "tests: []", "a file of behaviour tests"),
    ("08.2", 7, "a file of behaviour tests"),
    ("08.2", OWN.replace("same: true", "label: a"), "a file of behaviour tests"),
    (
        "08.2",
        OWN.replace("invariance", "minimum").replace('    to: "{letter} Thank you."\n', "")
        .replace("same: true", "label: a"),
        "of the kind invariance",
    ),
    (
        "08.2",
        OWN.replace('to: "{letter} Thank you."', "change: case"),
        "The same letter should come twice",
    ),
    ("08.2", OWN.replace(", j]", "]"), "ten letters or more"),
    ("08.2", OWN.replace("{same: true}", "{label: a, within: 0.1}"), "label should be the same"),
    ("08.3", "2", "a number above 0"),
    ("08.3", 0, "a number above 0"),
    ("08.3", 0.5, "count more, not less"),
    ("08.3", 1.5, "match the table"),
    ("08.4", 7.7, "between 0 and 1"),
    ("08.4", 0.067, "not cancel"),
    ("08.4", 0.22 / 3, "count by their letters"),
    ("08.4", 0.08, "match the bins"),
    ("08.5", "leaked", "a collection of names"),
    ("08.5", {"leaked", "dropped", "zeroed"}, "that accuracy notices"),
    ("08.5", {"leaked", "dropped", "rounded"}, "that nobody notices"),
    ("08.5", {"leaked"}, "All of them"),
]  # fmt: skip
