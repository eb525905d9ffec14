"""The gate, from the command line: every rule red, green and undecided; policies; JUnit; CI."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sftkit.cli import start
from sftkit.errors import SettingsError, SftkitError
from sftkit.evidence_records import (
    BehaviourResult,
    Calibration,
    Checks,
    Drift,
    FairnessGap,
    GateRule,
    Overall,
)
from sftkit.gate import GateResult, write_junit
from sftkit.gate_policy import RULES, Policy, key_meanings, policy_from_text, policy_text
from sftkit.label_records import Gain
from sftkit.records import Answer, RunRecord, to_json
from sftkit.settings import to_plain
from tests.sample_record import FORGOT, HOSTILE, LEARNED, hostile_record, label_record
from tests.sample_record import sample_record as any_record

Run = Callable[..., tuple[int, str]]
ENVIRONMENT = any_record().environment
VERSIONS = {**ENVIRONMENT.versions, "peft": "0.21.0"}
DRIFT = Drift(before=3.21, after=3.25, delta=0.04, ci95=(0.03, 0.05), passages=100, tokens=11840)


def record(**changes: Any) -> RunRecord:
    """A gentle run: 87.5 points learned, 0.04 nats of drift."""
    run = any_record(
        forgot=dataclasses.replace(FORGOT, drift=DRIFT),
        environment=dataclasses.replace(ENVIRONMENT, versions=VERSIONS),
    )
    return dataclasses.replace(run, **changes)


def write(folder: Path, run: RunRecord, answers: list[Answer] | None = None) -> Path:
    """Write what a run's folder holds for the gate."""
    folder.mkdir()
    (folder / "run.json").write_text(to_json(run), encoding="utf-8")
    text = yaml.safe_dump(to_plain(run.recipe), allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    if answers is not None:
        lines = [json.dumps(to_plain(answer)) for answer in answers]
        (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `sftkit gate` as a shell does; gives the exit code and what was printed."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sftkit", "gate", *map(str, arguments)])
        try:
            code = start()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def exact(low: float, high: float, groups: int = 36, **control: Any) -> RunRecord:
    assert LEARNED.exact is not None
    assert LEARNED.control is not None
    change = dataclasses.replace(
        LEARNED.exact, delta=(low + high) / 2, ci95=(low, high), groups=groups
    )
    beside = dataclasses.replace(LEARNED.control, **control)
    return record(learned=dataclasses.replace(LEARNED, exact=change, control=beside))


def style(low: float, high: float) -> RunRecord:
    assert LEARNED.heldout_loss is not None
    change = dataclasses.replace(LEARNED.heldout_loss, delta=(low + high) / 2, ci95=(low, high))
    return record(learned=dataclasses.replace(LEARNED, heldout_loss=change))


def labels(low: float, high: float) -> RunRecord:
    report = label_record().learned.labels
    assert report is not None
    gain = Gain(
        metric="macro_f1", over="tf-idf", before=0.5, after=0.6, delta=(low + high) / 2,
        ci95=(low, high),
    )  # fmt: skip
    learned = dataclasses.replace(LEARNED, labels=dataclasses.replace(report, gains=(gain,)))
    return record(learned=learned)


def labels_measured(value: float, low: float, high: float) -> RunRecord:
    run = labels(0.1, 0.2)
    assert run.learned.labels is not None
    (tuned, *others) = run.learned.labels.systems
    measure = dataclasses.replace(tuned.measure("macro_f1"), value=value, ci95=(low, high))
    system = dataclasses.replace(tuned, measures=(measure,))
    report = dataclasses.replace(run.learned.labels, systems=(system, *others))
    return dataclasses.replace(run, learned=dataclasses.replace(run.learned, labels=report))


def drift(low: float, high: float, passages: int = 100) -> RunRecord:
    change = dataclasses.replace(DRIFT, delta=(low + high) / 2, ci95=(low, high), passages=passages)
    return record(forgot=dataclasses.replace(FORGOT, drift=change))


def ability(low: float, high: float, items: int = 600) -> RunRecord:
    overall = Overall(
        delta=(low + high) / 2, ci95=(low, high), logprob_delta=0.0, logprob_ci95=(0.0, 0.0),
        items=items,
    )  # fmt: skip
    return record(forgot=dataclasses.replace(FORGOT, drift=DRIFT, overall=overall))


def probe(low: float, high: float) -> RunRecord:
    one = dataclasses.replace(FORGOT.probes[0], delta=(low + high) / 2, ci95=(low, high))
    return record(forgot=dataclasses.replace(FORGOT, drift=DRIFT, probes=(one,)))


def behaviour(failures: int, cases: int, ci95: tuple[float, float], allowed: float = 0.0) -> Any:
    test = BehaviourResult(
        name="typos", capability="robustness", kind="invariance", cases=cases, failures=failures,
        ci95=ci95, allowed=allowed, base_failures=1,
    )  # fmt: skip
    return record(checks=Checks(behaviour=(test,)))


def gap(low: float, high: float) -> RunRecord:
    found = FairnessGap(
        name="score gap", attribute="gender", groups=("women", "men"), value=(low + high) / 2,
        ci95=(low, high), items=80, base=0.01,
    )  # fmt: skip
    return record(checks=Checks(fairness=(found,)))


def ece(low: float, high: float) -> RunRecord:
    found = Calibration(items=300, ece=(low + high) / 2, ci95=(low, high), bins=())
    return record(checks=Checks(calibration=found))


def leak(severity: Any, faulty_rows: str = "refuse") -> RunRecord:
    finding = dataclasses.replace(
        any_record().data.findings[0], code="D34", severity=severity,
        message="train holds 3 of 72 test rows (4.2%)",
    )  # fmt: skip
    run = record(data=dataclasses.replace(any_record().data, findings=(finding,)))
    section = {**run.recipe["data"], "faulty_rows": faulty_rows}
    return dataclasses.replace(run, recipe={**run.recipe, "data": section})


def environment(**changes: Any) -> RunRecord:
    return record(environment=dataclasses.replace(record().environment, **changes))


def half(name: Any) -> RunRecord:
    return record(forgot=dataclasses.replace(FORGOT, drift=DRIFT, half=name))


# rule -> (line of the policy, what passes, what fails, what is undecided or None)
OF_A_RUN: dict[str, tuple[str, RunRecord, RunRecord, RunRecord | None]] = {
    "min_knowledge_gain": ("0.5", exact(0.51, 0.9), exact(0.3, 0.5), exact(0.4, 0.6)),
    "min_style_gain": ("1.0", style(-3.2, -1.1), style(-0.9, -0.2), style(-1.2, -0.9)),
    "min_label_gain": ("0.05", labels(0.06, 0.2), labels(-0.1, 0.05), labels(0.0, 0.1)),
    "max_drift": ("0.1", drift(0.05, 0.1), drift(0.11, 0.2), drift(0.05, 0.15)),
    "max_ability_loss": ("0.05", ability(-0.05, 0.0), ability(-0.1, -0.06), ability(-0.06, 0.0)),
    "max_probe_loss": ("0.05", probe(-0.05, 0.01), probe(-0.2, -0.06), probe(-0.1, 0.0)),
    "max_behaviour_failures": (
        "0.1",
        behaviour(2, 100, (0.005, 0.07)),
        behaviour(30, 100, (0.21, 0.4)),
        behaviour(9, 100, (0.05, 0.16)),
    ),
    "max_fairness_gap": ("0.1", gap(-0.09, 0.02), gap(-0.3, -0.11), gap(0.05, 0.2)),
    "max_calibration_error": ("0.1", ece(0.02, 0.09), ece(0.11, 0.2), ece(0.05, 0.2)),
    "contamination": ("error", leak("warning"), leak("error"), None),
    "reproducible": ("true", record(), environment(base_fingerprint=""), None),
    "separate_halves": ("true", record(), half("choose"), None),
}
# rule -> (line, the previous run, what passes, what fails, what is undecided)
OF_TWO: dict[str, tuple[str, RunRecord, RunRecord, RunRecord | None, RunRecord]] = {
    "same_measurement": ("true", record(), record(), None, environment(base_fingerprint="sha:0")),
    "max_knowledge_drop": (
        "0.1", exact(0.8, 0.85), exact(0.8, 0.85), exact(0.3, 0.4), exact(0.6, 0.8),
    ),
    "max_style_drop": ("0.1", style(-1.0, -0.95), style(-1.0, -0.95), style(-0.5, -0.4),
                       style(-0.9, -0.8)),
    "max_label_drop": ("0.1", labels_measured(0.8, 0.79, 0.81), labels_measured(0.79, 0.78, 0.8),
                       labels_measured(0.5, 0.45, 0.55), labels_measured(0.7, 0.65, 0.75)),
    "max_drift_rise": ("0.05", drift(0.03, 0.04), drift(0.04, 0.05), drift(0.3, 0.4),
                       drift(0.04, 0.1)),
    "max_ability_drop": ("0.05", ability(-0.01, 0.0), ability(-0.02, 0.0), ability(-0.2, -0.1),
                         ability(-0.08, 0.0)),
}  # fmt: skip


def state_of(said: str, rule: str) -> str:
    """The state of a rule on its line of the output."""
    (line,) = [line for line in said.splitlines() if line.split()[1:2] == [rule]]
    return line.split()[0]


@pytest.mark.parametrize("rule", OF_A_RUN)
def test_a_rule_on_one_run_is_green_red_and_undecided(rule: str, tmp_path: Path, gate: Run) -> None:
    line, green, red, open_ = OF_A_RUN[rule]
    policy = tmp_path / "policy.yaml"
    alone = "".join(f"{name}: {'false' if getattr(Policy(), name) is True else 'null'}\n"
                    for name in RULES if name != rule)  # fmt: skip
    policy.write_text(f"{alone}{rule}: {line}\n", encoding="utf-8")
    wanted = [("pass", 0, green), ("fail", 1, red), ("undecided", 3, open_)]
    for state, code, run in wanted:
        if run is not None:
            found, said = gate(write(tmp_path / state, run), "--policy", policy)
            assert (found, state_of(said, rule)) == (code, state), said
            assert f"gate: {state} (shop: " in said


@pytest.mark.parametrize("rule", OF_TWO)
def test_a_rule_on_two_runs_is_green_red_and_undecided(
    rule: str, tmp_path: Path, gate: Run
) -> None:
    line, before, green, red, open_ = OF_TWO[rule]
    previous = write(tmp_path / "previous", before)
    policy = tmp_path / "policy.yaml"
    alone = "".join(f"{name}: {'false' if getattr(Policy(), name) is True else 'null'}\n"
                    for name in RULES if name not in (rule, "same_measurement"))  # fmt: skip
    policy.write_text(f"{alone}{rule}: {line}\n", encoding="utf-8")
    wanted = [("pass", 0, green), ("fail", 1, red), ("undecided", 3, open_)]
    for state, code, run in wanted:
        if run is not None:
            folder = write(tmp_path / state, run)
            found, said = gate(folder, "--policy", policy, "--against", previous)
            assert (found, state_of(said, rule)) == (code, state), said


def test_every_rule_of_the_policy_has_its_case() -> None:
    assert {*OF_A_RUN, *OF_TWO} == set(RULES)


def test_the_default_policy_passes_a_gentle_run_and_fails_a_harsh_one(
    tmp_path: Path, gate: Run
) -> None:
    code, said = gate(write(tmp_path / "gentle", record()))
    assert code == 0, said
    assert [line.split()[:2] for line in said.splitlines()[:8]] == [
        ["pass", "min_knowledge_gain"],
        ["pass", "max_drift"],
        ["pass", "contamination"],
        ["pass", "reproducible"],
        ["pass", "separate_halves"],
        ["-", "min_label_gain"],
        ["-", "max_behaviour_failures"],
        ["-", "same_measurement"],
    ]
    harsh = record(forgot=FORGOT)
    code, said = gate(write(tmp_path / "harsh", harsh))
    assert code == 1
    assert (
        "max_drift loss on general text rose by +0.580 nats per token (95 % interval "
        "+0.552 to +0.611; 100 passages); allowed: at most +0.100 nats per token."
        in " ".join(said.split())
    )


def test_an_adapter_that_changes_nothing_has_learned_nothing(tmp_path: Path, gate: Run) -> None:
    code, said = gate(write(tmp_path / "still", exact(0.0, 0.0)))
    assert (code, state_of(said, "min_knowledge_gain")) == (1, "fail")


def test_facts_that_do_not_stand_out_from_control_facts_are_undecided(
    tmp_path: Path, gate: Run
) -> None:
    code, said = gate(write(tmp_path / "run", exact(0.5, 0.6, delta=0.5, ci95=(0.4, 0.6))))
    assert (code, state_of(said, "min_knowledge_gain")) == (3, "undecided")
    assert "trained ones do not stand out" in said


def test_a_probe_that_chose_when_to_stop_must_not_report_on_the_same_questions(
    tmp_path: Path, gate: Run
) -> None:
    states = []
    for name in ("all", "report"):
        run = half(name)
        train = {**run.recipe["train"], "early_stopping": "drift"}
        run = dataclasses.replace(run, recipe={**run.recipe, "train": train})
        states.append(state_of(gate(write(tmp_path / name, run))[1], "separate_halves"))
    assert states == ["fail", "pass"]


@pytest.mark.parametrize("run", [exact(0.7, 0.9, groups=9), drift(0.0, 0.01, passages=9)])
def test_too_few_items_are_never_a_pass(run: RunRecord, tmp_path: Path, gate: Run) -> None:
    code, said = gate(write(tmp_path / "run", run))
    assert code == 3
    assert "too few to judge, 10 are needed" in said


def test_questions_of_which_none_flipped_rule_out_no_smaller_share_than_three_in_n(
    tmp_path: Path, gate: Run
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_ability_loss: 0.05\n", encoding="utf-8")
    states = []
    for items in (59, 60):
        folder = write(tmp_path / str(items), ability(0.0, 0.0, items=items))
        states.append(state_of(gate(folder, "--policy", policy)[1], "max_ability_loss"))
    assert states == ["undecided", "pass"]


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (behaviour(0, 20, (0.0, 0.16)), "pass"),
        (behaviour(1, 20, (0.01, 0.24)), "fail"),
        (behaviour(0, 9, (0.0, 0.3)), "undecided"),
        (behaviour(1, 9, (0.02, 0.44)), "fail"),
        (behaviour(1, 100, (0.002, 0.05), allowed=0.06), "pass"),
    ],
)
def test_where_no_case_may_fail_one_that_does_is_enough(
    run: RunRecord, state: str, tmp_path: Path, gate: Run
) -> None:
    _, said = gate(write(tmp_path / "run", run))
    rule = "max_behaviour_failures"
    assert [line.split()[0] for line in said.splitlines() if rule in line] == [state]


def test_a_rule_without_its_measure_is_left_out_unless_the_policy_names_it(
    tmp_path: Path, gate: Run
) -> None:
    folder = write(tmp_path / "run", record(checks=Checks()))
    assert "-          max_behaviour_failures  not measured in this run" in gate(folder)[1]
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_behaviour_failures: 0.1\nmax_drift_rise: 0.1\n", encoding="utf-8")
    code, said = gate(folder, "--policy", policy)
    assert code == 3
    assert "not measured in this run, and the policy asks for it." in said
    assert "no previous run was given (--against), and the policy asks for it." in said


def test_rows_with_errors_that_were_dropped_before_training_contaminate_nothing(
    tmp_path: Path, gate: Run
) -> None:
    code, said = gate(write(tmp_path / "run", leak("error", faulty_rows="drop")))
    assert (code, state_of(said, "contamination")) == (0, "pass")
    assert "left out of training" in said


def test_what_an_adapter_trained_elsewhere_saw_is_not_known(tmp_path: Path, gate: Run) -> None:
    data = dataclasses.replace(any_record().data, counts={"test": 72})
    run = record(data=data, training=dataclasses.replace(any_record().training, steps=()))
    code, said = gate(write(tmp_path / "run", run))
    assert code == 0, said
    assert "contamination           not measured: what the adapter was trained on is not" in said
    assert "versions, trained elsewhere, base " in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "recipe.yaml").unlink(), "recipe.yaml is missing"),
        (
            lambda folder: (folder / "recipe.yaml").write_text("name: [shop", encoding="utf-8"),
            "recipe.yaml cannot be read",
        ),
        (
            lambda folder: (folder / "recipe.yaml").write_text(
                (folder / "recipe.yaml").read_text("utf-8").replace("epochs: 6", "epochs: 7"),
                encoding="utf-8",
            ),
            "recipe.yaml is not the recipe of the run: train.epochs differ",
        ),
    ],
    ids=["missing", "not YAML", "changed"],
)
def test_a_recipe_that_is_not_the_runs_own_fails(
    change: Callable[[Path], Any], words: str, tmp_path: Path, gate: Run
) -> None:
    folder = write(tmp_path / "run", record())
    change(folder)
    code, said = gate(folder)
    assert (code, state_of(said, "reproducible")) == (1, "fail")
    assert words in said


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (environment(versions={"python": "3.12"}), "the version of torch is not recorded"),
        (environment(base_fingerprint="hub:a/b@default branch"), "set model.revision"),
        (
            record(data=dataclasses.replace(any_record().data, fingerprint="")),
            "the rows have no fingerprint",
        ),
    ],
)
def test_a_run_that_cannot_be_made_again_fails(
    run: RunRecord, words: str, tmp_path: Path, gate: Run
) -> None:
    code, said = gate(write(tmp_path / "run", run))
    assert code == 1
    assert words in said


def asked(right: int, *, of: int = 72, prefix: str = "q") -> list[Answer]:
    return [
        Answer(
            question=f"{prefix}{n}", expected="yes", base="no", tuned="yes" if n < right else "no",
            group=f"fact {n % 36}",
        )
        for n in range(of)
    ]  # fmt: skip


def answered(right: int) -> RunRecord:
    run = exact(0.5, 0.6)
    assert run.learned.exact is not None
    change = dataclasses.replace(run.learned.exact, after=right / 72)
    return dataclasses.replace(run, learned=dataclasses.replace(run.learned, exact=change))


def test_the_same_questions_are_compared_in_pairs(tmp_path: Path, gate: Run) -> None:
    now = write(tmp_path / "now", answered(63), asked(63))
    before = write(tmp_path / "before", answered(63), asked(63)[::-1])
    code, said = gate(now, "--against", before)
    assert code == 0, said
    assert (
        "exact answers went from 87.5% to 87.5%, a fall by +0.0 points (95 % interval +0.0 to "
        "+0.0; the same 72 questions in 36 groups, paired)" in said
    )
    worse = write(tmp_path / "worse", answered(20), asked(20))
    code, said = gate(worse, "--against", before)
    assert (code, state_of(said, "max_knowledge_drop")) == (1, "fail")


@pytest.mark.parametrize(
    ("record_right", "kept"),
    [(63, asked(63, prefix="other ")), (63, asked(60)), (63, asked(63, of=71)), (63, None)],
    ids=["other questions", "not the answers the record counted", "fewer", "none kept"],
)
def test_without_the_same_questions_only_the_intervals_are_compared(
    record_right: int, kept: list[Answer] | None, tmp_path: Path, gate: Run
) -> None:
    now = write(tmp_path / "now", answered(record_right), kept)
    before = write(tmp_path / "before", answered(63), asked(63))
    _, said = gate(now, "--against", before)
    assert "from the two intervals" in said
    assert "paired" not in said


def test_other_rows_cannot_be_compared_unless_the_same_questions_were_asked(
    tmp_path: Path, gate: Run
) -> None:
    other = dataclasses.replace(any_record().data, fingerprint="sha256:other")
    run = dataclasses.replace(answered(63), data=other)
    before = write(tmp_path / "before", answered(63), asked(63))
    code, said = gate(write(tmp_path / "without", run), "--against", before)
    assert code == 3
    assert "same_measurement differs: the rows." in " ".join(said.split())
    assert state_of(said, "max_drift_rise") == "undecided"
    code, said = gate(write(tmp_path / "with", run, asked(63)), "--against", before)
    assert code == 0, said
    assert "what else differs: the rows, but not the questions." in said


def test_what_differs_from_the_previous_run_is_named(tmp_path: Path, gate: Run) -> None:
    now = environment(seed=1, versions={**VERSIONS, "torch": "2.13"})
    recipe = {**now.recipe, "train": {**now.recipe["train"], "epochs": 3}}
    now = dataclasses.replace(now, recipe=recipe)
    before = write(tmp_path / "before", record())
    _, said = gate(write(tmp_path / "now", now), "--against", before)
    assert (
        "what else differs: seed (0 before, 1 now), torch (2.9.1 before, 2.13 now), train.epochs."
        in said
    )
    asked_more = {**now.recipe, "evaluate": {**now.recipe["evaluate"], "items_per_probe": 5}}
    now = dataclasses.replace(now, recipe=asked_more)
    code, said = gate(write(tmp_path / "more", now), "--against", before)
    assert code == 3
    assert "same_measurement differs: evaluate.items_per_probe;" in " ".join(said.split())


def test_json_says_the_same_and_junit_reads_back(tmp_path: Path, gate: Run) -> None:
    folder = write(tmp_path / "run", ability(-0.06, 0.0))
    policy = tmp_path / "policy.yaml"
    policy.write_text("max_ability_loss: 0.05\nmax_drift: 0.02\n", encoding="utf-8")
    junit = tmp_path / "out" / "gate.xml"
    code, said = gate(folder, "--policy", policy, "--junit", junit, "--format", "json")
    found = json.loads(said)
    assert (code, found["state"], found["exit_code"]) == (1, "fail", 1)
    states = {rule["name"]: rule["state"] for rule in found["rules"]}
    assert states == {
        "min_knowledge_gain": "pass",
        "max_drift": "fail",
        "max_ability_loss": "undecided",
        "contamination": "pass",
        "reproducible": "pass",
        "separate_halves": "pass",
    }
    (drifted,) = [rule for rule in found["rules"] if rule["name"] == "max_drift"]
    assert (drifted["value"], drifted["ci95"], drifted["limit"]) == (0.04, [0.03, 0.05], 0.02)
    suite = ET.parse(junit).getroot()[0]
    assert suite.attrib == {
        "name": "shop", "tests": str(6 + len(found["left_out"])), "failures": "1", "errors": "1",
        "skipped": str(len(found["left_out"])),
    }  # fmt: skip
    kinds = {"failure": "fail", "error": "undecided", "system-out": "pass"}
    read = {case.attrib["name"]: case[0].tag for case in suite}
    assert {name: kinds[tag] for name, tag in read.items() if tag != "skipped"} == states
    assert [name for name, tag in read.items() if tag == "skipped"] == [
        left["name"] for left in found["left_out"]
    ]
    (failed,) = suite.iter("failure")
    assert failed.attrib["message"] == failed.text == drifted["sentence"]


NASTY = (*HOSTILE, "]]> &amp; <b>", "\ud800", "\ufffe \uffff", "a\r\nb", 'x" onload="y')


@pytest.mark.parametrize("payload", NASTY)
def test_a_payload_in_any_name_stays_text(payload: str, tmp_path: Path, gate: Run) -> None:
    state: Any = "fail"
    rule = GateRule(name=payload, state=state, sentence=payload)
    result = GateResult(name=payload, rules=(rule,), left_out=((payload, payload),))
    root = ET.parse(write_junit(result, tmp_path / "gate.xml")).getroot()
    assert [element.tag for element in root.iter()] == [
        "testsuites", "testsuite", "testcase", "failure", "testcase", "skipped",
    ]  # fmt: skip
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", "".join(root.itertext()))


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_hostile_record_goes_through_the_gate_as_text(
    payload: str, tmp_path: Path, gate: Run
) -> None:
    checks = dataclasses.replace(
        behaviour(1, 20, (0.01, 0.2)).checks, fairness=gap(0.1, 0.2).checks.fairness
    )
    test = dataclasses.replace(checks.behaviour[0], name=payload)
    run = dataclasses.replace(
        hostile_record(payload), checks=dataclasses.replace(checks, behaviour=(test,))
    )
    folder = write(tmp_path / "run", run)
    code, said = gate(folder, "--junit", tmp_path / "gate.xml", "--against", folder)
    assert code == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", said)
    ET.parse(tmp_path / "gate.xml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_drft: 0.1\n", "line 1: unknown key 'max_drft'. Did you mean 'max_drift'"),
        ("\nmax_drift: much\n", "line 2: max_drift must be number or null, got 'much'."),
        ("max_drift: -0.1\n", "line 1: max_drift must be a finite number, 0 or more, got -0.1."),
        ("max_drift: .inf\n", "line 1: max_drift must be a finite number, 0 or more, got inf."),
        ("min_style_gain: .nan\n", "line 1: min_style_gain must be a finite number, got nan."),
        ("min_items: 1\n", "line 1: min_items must be 2 or more, got 1."),
        ("min_items: 2.5\n", "line 1: min_items must be whole number, got 2.5."),
        ("reproducible: maybe\n", "line 1: reproducible must be true or false, got 'maybe'."),
        ("contamination: eror\n", "line 1: contamination must be one of error, warning, informat"),
        ("required: [max_dirft]\n", "line 1: required names no rule 'max_dirft'. Did you mean"),
        ("max_drift: 0.1\nmax_drift: 0.2\n", "line 2: the key 'max_drift' is given twice."),
        ("max_drift: [\n", "is not valid YAML"),
        ("- max_drift\n", "must hold a mapping (max_drift: 0.1, ...), got a list."),
        ("max_drift: 2024-13-45\n", "holds a value that is not what it looks like"),
        ("a: !!python/object:os.system x\n", "is not valid YAML"),
        ("[" * 3000, "is nested too deeply"),
        (f"max_drift: 1{'0' * 400}\n", "line 1: max_drift must be number or null, got 1000"),
    ],
)
def test_a_fault_in_a_policy_is_named_with_its_line(
    text: str, words: str, tmp_path: Path, gate: Run
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(text, encoding="utf-8")
    code, said = gate(write(tmp_path / "run", record()), "--policy", policy)
    assert code == 2
    assert words in said


def test_all_faults_of_a_policy_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as told:
        policy_from_text("max_drft: 1\nmax_drift: x\nmin_items: 0\n")
    assert [line[:10] for line in str(told.value).splitlines()] == [
        "the policy", "  - line 1", "  - line 2", "  - line 3",
    ]  # fmt: skip


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_LEAVES, inner, max_size=3)
)


@given(st.text() | st.dictionaries(st.sampled_from(RULES) | _LEAVES, _VALUES).map(yaml.safe_dump))
def test_any_text_is_a_policy_or_a_fault_in_words(text: str) -> None:
    try:
        policy = policy_from_text(text)
    except SftkitError:
        return
    assert set(policy.required) <= set(RULES)


@pytest.mark.parametrize(
    "text", ["0b_", "!!int x", "!!bool x", "!!timestamp x", "!!float x", "? [a]\n: b", "<<: 1",
             "&a [*a]", "&a {? *a : 1}", "0x" + "f" * 20_000 + ": 1", "a: &a [1]\nb: *a\nc: *b"],
)  # fmt: skip
def test_what_yaml_itself_stumbles_over_is_a_fault_in_words(text: str) -> None:
    with pytest.raises(SettingsError):
        policy_from_text(text)


def test_aliases_of_aliases_are_not_written_out() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{two}: &{two} [{','.join([f'*{one}'] * 9)}]\n"
    with pytest.raises(SettingsError) as told:
        policy_from_text(f"{text}max_drift: *i\n")
    assert len(str(told.value)) < 100_000


def test_the_shown_policy_reads_back_and_explains_every_key(gate: Run, tmp_path: Path) -> None:
    code, said = gate("--show-policy")
    assert code == 0
    names = [info.name for info in dataclasses.fields(Policy)]
    assert list(yaml.safe_load(said)) == names == list(key_meanings())
    read = policy_from_text(said)
    assert dataclasses.replace(read, required=()) == Policy()
    assert set(read.required) == {name for name in RULES if Policy().asks_for(name)}
    assert policy_text(Policy()) == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Which run? Give its folder"),
        (("nowhere",), "Is it a run's folder?"),
        (("nowhere", "--policy", "none.yaml"), "Cannot read the policy none.yaml"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: tuple[str, ...], words: str, gate: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, said = gate(*arguments)
    assert code == 2
    assert words in said


def test_a_damaged_answers_file_is_told(tmp_path: Path, gate: Run) -> None:
    folder = write(tmp_path / "run", record())
    (folder / "answers.jsonl").write_text("{}\n", encoding="utf-8")
    code, said = gate(folder)
    assert code == 2
    assert "RecordError" in said


def test_the_gate_loads_no_torch_and_its_exit_code_reaches_the_shell(
    tmp_path: Path, checkout: Path
) -> None:
    folder = write(tmp_path / "run", record(forgot=FORGOT))
    code = (
        "import sys; from sftkit.cli import start; sys.argv[1:] = ['gate', sys.argv[1]]\n"
        "try:\n    start()\n"
        "except SystemExit as end:\n"
        "    print(sorted({'torch', 'transformers'} & set(sys.modules)))\n    sys.exit(end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=checkout, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "[]"), done.stderr


def test_the_page_says_something_about_every_key_and_exit_code(checkout: Path) -> None:
    page = (checkout / "docs" / "gate.md").read_text(encoding="utf-8")
    default = to_plain(Policy())
    for name in RULES:
        said = re.search(rf"^\| `{name}` \| (\S+) \| \S", page, flags=re.MULTILINE)
        assert said, name
        assert yaml.safe_load(said[1]) == default[name], name
    assert set(key_meanings()) - set(re.findall(r"`(\w+)`", page)) == set()
    assert re.findall(r"^\| (\d) \|", page, flags=re.MULTILINE) == ["0", "1", "2", "3"]
    for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL):
        policy_from_text(block)


def test_the_workflow_pins_its_actions_and_may_only_read(checkout: Path) -> None:
    flow = yaml.safe_load((checkout / "docs" / "gate-ci.yml").read_text(encoding="utf-8"))
    (job,) = flow["jobs"].values()
    assert flow["permissions"] == {"contents": "read"}
    uses = [step["uses"] for step in job["steps"] if "uses" in step]
    assert [use for use in uses if not re.fullmatch(r"actions/[a-z-]+@v\d+", use)] == []
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert 'sftkit run "$RECIPE" --out "$RUN"' in commands
    assert '--junit "$RUN/gate.xml"' in commands
    assert "${{" not in commands  # what a title or a branch holds never becomes a command
