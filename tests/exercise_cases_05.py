"""Notebook 05's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any

from sftkit.batching import deal

ADDRESS = "10.0.0.1:29500"


def plan(processes=12, machines=3, machine_rank=2, main_address=ADDRESS):
    return SimpleNamespace(
        processes=processes, machines=machines, machine_rank=machine_rank, main_address=main_address
    )


def needs(gigabytes):
    return SimpleNamespace(total=gigabytes * 1e9, high=1.25e9 * gigabytes)


# Longest first and three hands: 40 + 20, 35 + 24, 30 + 25.
GIVEN: dict[str, dict[str, Any]] = {
    "05.1": {"lengths": [20, 24, 25, 30, 35, 40], "processes": 3, "deal": deal},
    "05.2": {"tokens": (20, 80)},
    "05.3": {"gains": {(1, 1): 1.0, (1, 2): 1.9, (2, 1): 1.71}},
    "05.4": {
        "needed": {
            "ddp": needs(140),
            "deepspeed-zero2": needs(46),
            "deepspeed-zero3": needs(18),
            "fsdp": needs(18),
        },
        "budgets": (80e9, 40e9),
    },
    "05.5": {"address": ADDRESS},
}
RIGHT: dict[str, Any] = {
    "05.1": 60,
    "05.2": 4.0,
    "05.3": (1.71, 0.9),
    "05.4": ("deepspeed-zero2", "fsdp"),
    "05.5": plan(),
}
WRONG: list[tuple[str, Any, str]] = [
    ("05.1", 58.0, "a whole number of tokens"),
    ("05.1", 174, "should be divided"),
    ("05.1", 55, "at least an even share"),
    ("05.1", 75, "there and back"),
    ("05.1", 59, "that of the busiest"),
    ("05.1", 87, "that of the busiest"),
    ("05.2", "four", "a number above 0"),
    ("05.2", -4, "a number above 0"),
    ("05.2", 1, "treat the tokens differently"),
    ("05.2", 0.25, "count more, not less"),
    ("05.2", 1.6, "follow from the counts"),
    ("05.3", 1.71, "a pair of numbers"),
    ("05.3", (1.71, -0.1), "a pair of numbers"),
    ("05.3", (0.5848, 0.9), "not subtracted or turned round"),
    ("05.3", (0.9, 1.71), "with one core"),
    ("05.3", (1.71, 1.111), "uses both cores"),
    ("05.3", (1.71, 1.71), "uses both cores"),
    ("05.4", "fsdp", "two names"),
    ("05.4", ("zero2", "zero3"), "two names"),
    ("05.4", ("ddp", "fsdp"), "should fit"),
    ("05.4", ("deepspeed-zero2", "deepspeed-zero2"), "should fit"),
    ("05.4", ("fsdp", "fsdp"), "splits less"),
    ("05.5", 12, "should be a plan"),
    ("05.5", plan(machines=2, processes=8), "three machines"),
    ("05.5", plan(processes=4), "those of all machines"),
    ("05.5", plan(machine_rank=3), "the last machine"),
    ("05.5", plan(main_address="10.0.0.3:29500"), "at the same address"),
]
