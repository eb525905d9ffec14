"""Notebook 15's exercises: ten patients, right and plausible wrong diagnoses."""

from types import SimpleNamespace
from typing import Any

FAULTS = (
    "all masked",
    "pad is eos",
    "huge rate",  # for "wrong template", on either side of the training, see test_clinic.py
    "leaked test",
    "swapped labels",
    "huge rate",
    "tiny data",
    "adapter not attached",
    "wrong base",
    "merged into 4-bit",
)
WARD = SimpleNamespace(
    case=lambda number: SimpleNamespace(chart=SimpleNamespace(fault=FAULTS[number - 1]))
)

GIVEN: dict[str, dict[str, Any]] = {f"15.{n}": {"ward": WARD} for n in range(1, 11)}
RIGHT: dict[str, Any] = {f"15.{n}": fault for n, fault in enumerate(FAULTS, start=1)}
NOT_ONE, SIDE, WHOLE = "one of the ten faults", "right side of the training", "the whole chart"
WRONG: list[tuple[str, Any, str]] = [
    ("15.1", "masked", NOT_ONE),
    ("15.1", "adapter not attached", SIDE),
    ("15.1", "tiny data", WHOLE),
    ("15.2", 2, NOT_ONE),
    ("15.2", "merged into 4-bit", SIDE),
    ("15.2", "huge rate", WHOLE),
    ("15.3", "Wrong Template", NOT_ONE),
    ("15.3", "wrong base", SIDE),
    ("15.3", "wrong template", WHOLE),
    ("15.4", ["leaked test"], NOT_ONE),
    ("15.4", "swapped labels", SIDE),
    ("15.4", "tiny data", WHOLE),
    ("15.5", "swapped", NOT_ONE),
    ("15.5", "leaked test", SIDE),
    ("15.5", "wrong base", WHOLE),
    ("15.6", "rate", NOT_ONE),
    ("15.6", "merged into 4-bit", SIDE),
    ("15.6", "all masked", WHOLE),
    ("15.7", "", NOT_ONE),
    ("15.7", "wrong base", SIDE),
    ("15.7", "leaked test", WHOLE),
    ("15.8", True, NOT_ONE),
    ("15.8", "all masked", SIDE),
    ("15.8", "wrong base", WHOLE),
    ("15.9", "base", NOT_ONE),
    ("15.9", "tiny data", SIDE),
    ("15.9", "merged into 4-bit", WHOLE),
    ("15.10", "4-bit", NOT_ONE),
    ("15.10", "huge rate", SIDE),
    ("15.10", "adapter not attached", WHOLE),
]
