"""Notebook 10's exercises: values to check against, right answers and plausible wrong ones."""

from typing import Any

OWN = """
task: classify
tests:
  - name: Plain complaints
    kind: minimum
    template: "My {thing} {fault}."
    slots: {thing: [lamp, globe, map, chart, atlas], fault: [is broken, has a crack]}
    expect: {label: damage}
    allowed: 0.2
"""

GIVEN: dict[str, dict[str, Any]] = {
    "10.1": {"train_groups": ["a", "a", "b", "c", "d"], "test_groups": ["a", "a", "e", "f"]},
    "10.2": {"share": 0.8, "half": 0.05},
    "10.3": {"labels": ["damage", "billing"]},
    "10.4": {
        "gains": {
            "tickets": (0.02, -0.01, 0.05),
            "icd10": (0.09, 0.07, 0.11),
            "privacy": (-0.04, -0.06, -0.02),
        }
    },
}
RIGHT: dict[str, Any] = {"10.1": 0.5, "10.2": 246, "10.3": OWN, "10.4": {"icd10"}}
WRONG: list[tuple[str, Any, str]] = [
    ("10.1", 2, "a share between 0 and 1"),
    ("10.1", 1 / 3, "count rows, not groups"),
    ("10.1", 0.4, "a share of the test rows"),
    ("10.1", 0.9, "match the rows"),
    ("10.2", 0, "a number of rows"),
    ("10.2", 6.272, "four times the rows"),
    ("10.2", 983.4496, "half of the interval"),
    ("10.2", 500, "match the formula"),
    ("10.3", 7, "a file of behaviour tests"),
    ("10.3", "tests: []", "a file of behaviour tests"),
    (
        "10.3",
        OWN.replace("minimum", "invariance").replace("{label: damage}", "{same: true}")
        .replace("    slots", '    to: "{thing} {fault}"\n    slots'),
        "of the kind minimum",
    ),
    ("10.3", OWN.replace("label: damage", "label: Damage"), "labels that the model knows"),
    ("10.3", OWN.replace(", map, chart, atlas", ""), "ten letters or more"),
    ("10.4", "icd10", "a set of names"),
    ("10.4", {"tickets", "icd10"}, "by the interval, not by the gain"),
    ("10.4", {"icd10", "privacy"}, "Worse is no win"),
    ("10.4", set(), "match the intervals"),
]  # fmt: skip
