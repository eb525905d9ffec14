"""The gate: may this run be shipped? Rules over its record, an exit code, and JUnit XML for CI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

from sftkit.errors import SettingsError
from sftkit.evidence_records import GateRule
from sftkit.gate_against import Kept, judge_against, load_kept
from sftkit.gate_bounds import say_rule
from sftkit.gate_policy import RULES, Policy
from sftkit.gate_rules import RULES_OF_A_RUN, judge_reproducible

EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
"""What the shell is told; 2 is wrong usage, as everywhere."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the gate says about a run.

    Attributes:
        name: The run.
        rules: Every rule that was applied.
        left_out: Rules of the policy that were not applied, and why.
    """

    name: str
    rules: tuple[GateRule, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def state(self) -> Literal["pass", "fail", "undecided"]:
        """Give fail if a rule fails, else undecided if one is or none was applied, else pass."""
        states = {rule.state for rule in self.rules}
        if "fail" in states:
            return "fail"
        return "undecided" if "undecided" in states or not states else "pass"

    @property
    def exit_code(self) -> int:
        """0 all rules pass, 1 a rule fails, 3 undecided."""
        return EXIT_CODES[self.state]


def gate_run(
    folder: str | Path, policy: Policy | None = None, *, against: str | Path | None = None
) -> GateResult:
    """Hold a run's record against a policy.

    Args:
        folder: The run's folder.
        policy: The limits; None takes the defaults of `Policy`.
        against: Folder of a previous run, for the rules that compare.

    Raises:
        RecordError: A folder holds no run that can be read.
    """
    before = None if against is None else load_kept(against)
    return judge(load_kept(folder), policy or Policy(), against=before)


def judge(now: Kept, policy: Policy, *, against: Kept | None = None) -> GateResult:
    """Apply every rule of a policy to a run.

    A rule whose measure is absent is left out, and said to be; where the policy requires it, it is
    undecided, so that nobody takes silence for a pass.

    Args:
        now: The run.
        policy: The limits.
        against: A previous run.
    """
    compared = None if against is None else judge_against(now, against, policy)
    rules: list[GateRule] = []
    left_out: list[tuple[str, str]] = []
    for name in RULES:
        if not policy.asks_for(name):
            continue
        missing = "not measured in this run"
        if name == "reproducible":
            found = [judge_reproducible(now.record, now.recipe_text)]
        elif name in RULES_OF_A_RUN:
            found = RULES_OF_A_RUN[name](now.record, policy, getattr(policy, name))
            if name == "contamination":
                missing = "not measured: what the adapter was trained on is not known"
        elif compared is None:
            found, missing = [], "no previous run was given (--against)"
        else:
            found, missing = compared[name], "not measured in both runs"
        if not found and name in policy.required:
            found = [say_rule(name, "undecided", f"{missing}, and the policy asks for it.")]
        rules += found
        if not found:
            left_out.append((name, missing))
    return GateResult(name=now.record.name, rules=tuple(rules), left_out=tuple(left_out))


def gate_text(result: GateResult) -> str:
    """Write what the gate says for a terminal, one line per rule."""
    name = say_rule("", "pass", result.name).sentence
    names = [*(rule.name for rule in result.rules), *(rule for rule, _ in result.left_out)]
    width = max(map(len, names), default=0)
    lines = [f"{rule.state:<9}  {rule.name:<{width}}  {rule.sentence}" for rule in result.rules]
    lines += [f"{'-':<9}  {rule:<{width}}  {why}" for rule, why in result.left_out]
    return "\n".join([*lines, "", f"gate: {result.state} ({name}: {_counts(result.rules)})"])


def _counts(rules: Sequence[GateRule]) -> str:
    of = {state: sum(rule.state == state for rule in rules) for state in EXIT_CODES}
    words = {"pass": "passed", "fail": "failed", "undecided": "undecided"}
    return ", ".join(f"{of[state]} {words[state]}" for state in EXIT_CODES)


def gate_dict(result: GateResult) -> dict[str, object]:
    """Give what the gate says as plain values, for JSON."""
    from sftkit.settings import to_plain

    return {
        "run": result.name,
        "state": result.state,
        "exit_code": result.exit_code,
        "rules": to_plain(result.rules),
        "left_out": [{"name": name, "why": why} for name, why in result.left_out],
    }


def write_junit(result: GateResult, path: str | Path) -> Path:
    """Write the outcome as JUnit XML, which CI systems show as a table of tests.

    A rule that fails is a failure. One that is undecided is an error, which JUnit calls a test that
    came to no result: CI shows it red, and a skipped test would be shown as harmless. Rules that
    were left out are skipped.

    Args:
        result: What the gate said.
        path: File to write.

    Raises:
        SettingsError: It cannot be written.
    """
    counts = {
        "tests": len(result.rules) + len(result.left_out),
        "failures": sum(rule.state == "fail" for rule in result.rules),
        "errors": sum(rule.state == "undecided" for rule in result.rules),
        "skipped": len(result.left_out),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    root = ET.Element("testsuites", {"name": "sftkit gate", **numbers})
    suite = ET.SubElement(root, "testsuite", {"name": _xml(result.name), **numbers})
    for rule in result.rules:
        case = _case(suite, rule.name)
        kind = {"fail": "failure", "undecided": "error"}.get(rule.state)
        if kind is None:
            ET.SubElement(case, "system-out").text = _xml(rule.sentence)
        else:
            said = {"message": _xml(rule.sentence), "type": rule.state}
            ET.SubElement(case, kind, said).text = _xml(rule.sentence)
    for name, why in result.left_out:
        ET.SubElement(_case(suite, name), "skipped", {"message": _xml(why)})
    ET.indent(root)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}).") from error
    return path


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"classname": "sftkit.gate", "name": _xml(name)})


def _xml(text: str) -> str:
    """Leave out what XML cannot hold, escaped or not."""
    from sftkit.report.redact import redact
    from sftkit.show import visible

    return _NOT_XML.sub("\ufffd", redact(visible(text)))
