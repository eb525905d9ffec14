"""The gate's policy: which rules a run has to pass, and their limits; read from YAML."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftkit.errors import SettingsError, near_names
from sftkit.recipe import fit_settings, parse_yaml
from sftkit.settings import to_plain

MOST_BYTES = 100_000
"""A policy is a page; a larger file is something else."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a run must show. Null (false for yes-or-no rules) leaves a rule out.

    Every limit is held against a bound of the 95 % interval, never against the point.

    Attributes:
        min_knowledge_gain: Least gain of right answers on test questions, as a share of 1.
        min_style_gain: Least fall of the loss on test answers, nats per token.
        min_label_gain: Least lead over every baseline of a run on labels, in label_metric's unit.
        label_metric: Metric of the label rules; null takes macro_f1, and rmse for numbers.
        max_drift: Largest rise of the loss on general text, nats per token.
        max_ability_loss: Largest loss of accuracy over all probes, as a share of 1.
        max_probe_loss: The same for each probe alone.
        max_behaviour_failures: Largest share of failing cases in each behaviour test; where a test
            allows more itself, that counts.
        max_fairness_gap: Largest gap between groups of people, in each measure's own unit.
        max_calibration_error: Largest expected calibration error.
        contamination: Tested rows found in the training rows fail the run from this severity of
            finding on: error (the same question), warning (nearly the same) or information (13
            words in a row).
        reproducible: Whether versions, seed, fingerprints and the unchanged recipe must be there.
        separate_halves: Whether what chose a setting must not also be what is reported.
        same_measurement: With --against: whether base model, questions and evaluation must be the
            previous run's.
        max_knowledge_drop: With --against: largest fall of knowledge since then, as a share of 1.
        max_style_drop: With --against: largest rise of the loss on test answers since then.
        max_label_drop: With --against: largest fall of label_metric since then, in its unit.
        max_drift_rise: With --against: largest rise of drift since then, nats per token.
        max_ability_drop: With --against: largest fall of accuracy over all probes since then.
        min_items: Fewest groups, questions, passages or cases a decision may rest on.
        required: Rules that are undecided where the run did not measure them. A policy file
            requires every rule it names.
    """

    min_knowledge_gain: float | None = 0.0
    min_style_gain: float | None = None
    min_label_gain: float | None = 0.0
    label_metric: str | None = None
    max_drift: float | None = 0.1
    max_ability_loss: float | None = None
    max_probe_loss: float | None = None
    max_behaviour_failures: float | None = 0.0
    max_fairness_gap: float | None = None
    max_calibration_error: float | None = None
    contamination: Literal["error", "warning", "information"] | None = "error"
    reproducible: bool = True
    separate_halves: bool = True
    same_measurement: bool = True
    max_knowledge_drop: float | None = 0.1
    max_style_drop: float | None = None
    max_label_drop: float | None = 0.05
    max_drift_rise: float | None = 0.05
    max_ability_drop: float | None = None
    min_items: int = 10
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse limits that are no numbers, and rules that do not exist."""
        faults = []
        for name, value in vars(self).items():
            signed = name.startswith("min_")  # a gain may be asked for that is a small loss
            least = -math.inf if signed else 0.0
            if isinstance(value, float) and not (math.isfinite(value) and value >= least):
                wanted = "a finite number" if signed else "a finite number, 0 or more"
                faults.append(f"Policy.{name} must be {wanted}, got {value}.")
        if self.min_items < 2:
            faults.append(f"Policy.min_items must be 2 or more, got {self.min_items}.")
        faults += [
            f"Policy.required names no rule {name!r}.{near_names(name, RULES)}"
            for name in self.required
            if name not in RULES
        ]
        if faults:
            raise SettingsError("\n".join(faults))

    def asks_for(self, rule: str) -> bool:
        """Say whether a rule is part of this policy."""
        limit = getattr(self, rule)
        return limit is not None and limit is not False  # 0 is a limit


RULES = tuple(
    info.name
    for info in dataclasses.fields(Policy)
    if info.name not in ("label_metric", "min_items", "required")
)
"""Every rule, in the order it is judged."""


def load_policy(path: str | Path) -> Policy:
    """Read a policy file. Rules it does not name keep their defaults; those it names are required.

    Raises:
        SettingsError: The file cannot be read, is not YAML, or holds faults; all of them at once,
            each with its line.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Cannot read the policy {path}: {error}.") from error
    if len(raw) > MOST_BYTES:
        raise SettingsError(f"{path} is longer than {MOST_BYTES:,} bytes, so it is no policy.")
    return policy_from_text(text, where=str(path))


def policy_from_text(text: str, *, where: str = "the policy") -> Policy:
    """Read a policy from YAML; see `load_policy`.

    Args:
        text: The document.
        where: Its name, for errors.
    """
    raw = parse_yaml(text, where=where)
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        kind = {"list": "a list", "str": "text"}.get(type(raw).__name__, type(raw).__name__)
        raise SettingsError(f"{where} must hold a mapping (max_drift: 0.1, ...), got {kind}.")
    policy, faults = fit_settings(Policy, raw)
    if faults:
        lines = _key_lines(text)
        said = "\n".join(
            f"  - {words}" for _, words in sorted(_with_line(f, lines) for f in faults)
        )
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise SettingsError(f"{where} has {count}:\n{said}")
    named = [name for name in RULES if name in raw and policy.asks_for(name)]
    return dataclasses.replace(policy, required=tuple(dict.fromkeys([*policy.required, *named])))


def policy_text(policy: Policy) -> str:
    """Write a policy as YAML, each key under what it means."""
    import yaml

    meanings = key_meanings()
    blocks = [
        "# A policy of `sftkit gate`. Every limit is held against a bound of a 95 % interval.\n"
        "# Null (false) leaves a rule out. A run that did not measure a rule named in a policy\n"
        "# file is undecided; delete the lines that you do not want to require.\n"
    ]
    for key, value in to_plain(policy).items():
        comment = textwrap.fill(
            meanings[key], width=98, initial_indent="# ", subsequent_indent="# "
        )
        blocks.append(f"{comment}\n{yaml.safe_dump({key: value})}")
    return "\n".join(blocks)


def key_meanings() -> dict[str, str]:
    """Give what each key of a policy means, from the one place where it is written."""
    part = (Policy.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ +(\w+): (.+(?:\n {12}.+)*)", part, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def _key_lines(text: str) -> dict[str, int]:
    """Give the line of each key, from 1. The text was read once, so it is YAML."""
    import yaml

    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    return {str(key.value): key.start_mark.line + 1 for key, _ in node.value}


def _with_line(fault: str, lines: dict[str, int]) -> tuple[int, str]:
    named = re.match(r"unknown key '([^']*)'|(\w+)", fault)
    key = (named[1] or named[2]) if named else ""
    return (lines[key], f"line {lines[key]}: {fault}") if key in lines else (0, fault)
