"""Behaviour tests: the file, the cases, the judging of every kind, and the way into a run."""

from __future__ import annotations

import dataclasses
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_run_labels import recipe as label_recipe  # type: ignore[import-not-found]

from sftkit.errors import SettingsError
from sftkit.evidence.behaviour import (
    Said,
    answering,
    finds,
    judge_behaviour,
    run_behaviour,
    scoring,
)
from sftkit.evidence.behaviour_cases import Question, plan_behaviour, questions
from sftkit.evidence.behaviour_file import (
    MOST_BYTES,
    bundled_tests,
    parse_behaviour,
    read_behaviour,
    read_for_task,
)
from sftkit.evidence.shares import wilson_interval
from sftkit.evidence_records import BehaviourResult, Checks, FailedCase
from sftkit.recipe import recipe_from_dict
from sftkit.report.html import render_report
from sftkit.run import run
from tests.sample_record import sample_record


def plans_of(task, own=(), labels=(), **test):
    text = yaml.safe_dump({"task": task, "tests": [{"name": "t", **test}]})
    given = parse_behaviour(text, where="t.yaml")
    return plan_behaviour(given, rows=[Question(text=row) for row in own], labels=labels)


def failures(plans, ask):
    (result,) = run_behaviour(plans, ask)
    return result.failures


# ---- cases ----


def test_slots_are_combined_zipped_and_filled_into_what_is_expected():
    both = {"a": ["x", "y"], "b": ["1", "2"]}
    common = {"kind": "minimum", "template": "{a}-{b} {z}", "expect": {"contains": "{b}"}}
    (product,) = plans_of("chat", slots=both, **common | {"template": "{a}-{b}"})
    assert [q.text for q in questions([product])] == ["x-1", "y-1", "x-2", "y-2"]
    assert [case.expect.contains for case in product.cases] == [("1",), ("1",), ("2",), ("2",)]
    (zipped,) = plans_of("chat", slots=both, combine="zip", **common | {"template": "{a}-{b}"})
    assert [q.text for q in questions([zipped])] == ["x-1", "y-2"]
    (cases,) = plans_of("chat", slots=both, cases=[{"z": "u"}, {"z": "v"}], **common)
    assert len(cases.cases) == 8


def test_many_combinations_are_sampled_by_the_seed_and_never_listed_whole():
    many = {name: [str(n) for n in range(99)] for name in "abc"}
    test = {"kind": "minimum", "template": "{a} {b} {c}", "slots": many, "at_most": 20,
            "expect": {"ends": True}}  # fmt: skip
    first, again = plans_of("chat", **test), plans_of("chat", **test)
    assert len(first[0].cases) == 20
    assert questions(first) == questions(again)
    assert questions(first) != questions(plans_of("chat", **test, seed=1))


def test_braces_that_are_no_slot_stay():
    (plan,) = plans_of(
        "chat", kind="minimum", template="{a} {0} {a.b} {{}", slots={"a": ["x"]},
        expect={"matches": "^{a}{2}$"},
    )  # fmt: skip
    assert (plan.cases[0].given.text, plan.cases[0].expect.matches) == (
        "x {0} {a.b} {{}",
        "^x{2}$",
    )


def test_a_value_filled_into_a_pattern_is_taken_literally():
    (plan,) = plans_of(
        "chat", kind="minimum", template="{a}", slots={"a": ["1.5 (net)"]},
        expect={"matches": "^{a}$"},
    )  # fmt: skip
    assert [finds(str(plan.cases[0].expect.matches), t) for t in ("1.5 (net)", "1x5 net")] == [
        True,
        False,
    ]


def test_a_test_without_any_case_is_refused_and_so_is_an_unknown_label():
    invariance = {"kind": "invariance", "rows": "test", "expect": {"same": True}}
    with pytest.raises(SettingsError, match=r"no case comes of it \(no test row\)"):
        plans_of("chat", change="case", **invariance)
    with pytest.raises(SettingsError, match="no text that its change can change"):
        plans_of("chat", change="punctuation", own=["no marks"], **invariance)
    with pytest.raises(SettingsError, match=r"no label 'bilding'\. Did you mean 'billing'"):
        plans_of(
            "classify", labels=["billing", "other"], kind="minimum", template="x",
            expect={"label": "bilding"},
        )  # fmt: skip


# ---- judging ----

ECHO = answering(lambda texts: [f"You said: {text}" for text in texts])
DEAF = answering(lambda texts: ["I do not know."] * len(texts))


@pytest.mark.parametrize(
    ("expect", "passing", "failing"),
    [
        ({"contains": ["lamp", "MAP"]}, "A map and a lamp.", "A lamp."),
        ({"lacks": "pineapple"}, "No.", "PINEAPPLE!"),
        ({"exact": "23 days"}, "23 days.", "It is 23 days."),
        ({"matches": r"\b\d+ crowns\b"}, "It costs 19 crowns.", "It costs crowns."),
    ],
)
def test_every_expectation_on_one_answer_holds_and_breaks(expect, passing, failing):
    plans = plans_of("chat", kind="minimum", template="What?", expect=expect)
    assert failures(plans, answering(lambda texts: [passing])) == 0
    assert failures(plans, answering(lambda texts: [failing])) == 1


def test_an_answer_that_does_not_end_its_turn_fails_where_it_should():
    plans = plans_of("chat", kind="minimum", template="What?", expect={"ends": True})
    assert failures(plans, lambda asked: [Said(text="x")]) == 0
    (result,) = run_behaviour(plans, lambda asked: [Said(text="x", ended=False)])
    assert (result.failed[0].said, result.failed[0].expected) == (
        "x … (its turn not ended)",
        "ends its turn",
    )


def test_invariance_and_direction_of_answers_hold_and_break():
    own = ["Where is it?", "Who are you?"]
    common = {"kind": "invariance", "rows": "test", "change": "case"}
    same = plans_of("chat", own=own, expect={"same": True, "lacks": "secret"},
                    **common)  # fmt: skip
    assert failures(same, ECHO) == 0  # capitals do not count
    shouted = answering(lambda texts: ["no" if text.isupper() else "yes" for text in texts])
    spilled = answering(lambda texts: ["a secret"] * len(texts))
    upper = sum(case.changed.text.isupper() for case in same[0].cases)
    assert (failures(same, shouted), failures(same, spilled)) == (upper, 2)
    overlap = plans_of(
        "chat", kind="invariance", template="one two {a}", to="one two {a} more",
        slots={"a": ["x"]}, expect={"f1": 0.9},
    )  # fmt: skip
    assert failures(overlap, ECHO) == 0  # 5 words of 5 in 6: F1 10/11
    strict = [dataclasses.replace(overlap[0], cases=tuple(
        dataclasses.replace(c, expect=dataclasses.replace(c.expect, f1=0.95))
        for c in overlap[0].cases))]  # fmt: skip
    assert failures(strict, ECHO) == 1
    moved = plans_of(
        "chat", kind="directional", template="{a}", to="{b}",
        slots={"a": ["lamp"], "b": ["map"]}, expect={"differs": True, "contains": "{b}"},
    )  # fmt: skip
    assert (failures(moved, ECHO), failures(moved, DEAF)) == (0, 1)


def by_word(**weights):
    """A classifier: the probability of `bad` grows with the words it is given weights for."""

    def score(texts):
        bad = [min(0.9, 0.1 + sum(w for word, w in weights.items() if word in text.lower()))
               for text in texts]  # fmt: skip
        return [[1 - value, value] for value in bad]

    return scoring(score, ("good", "bad"))


def test_every_kind_of_test_of_a_classifier_holds_and_breaks():
    labels = ("good", "bad")
    right = plans_of("classify", labels=labels, kind="minimum", template="It is broken.",
                     expect={"label": "bad", "at_least": 0.7})  # fmt: skip
    assert [failures(right, by_word(broken=w)) for w in (0.8, 0.5, 0.1)] == [0, 1, 1]
    case = {"kind": "invariance", "template": "Fine by {a}", "to": "Fine by {b}",
            "slots": {"a": ["Emily"], "b": ["Lakisha"]}}  # fmt: skip
    same = plans_of("classify", labels=labels, expect={"same": True}, **case)
    assert [failures(same, by_word(lakisha=w)) for w in (0.0, 0.3, 0.7)] == [0, 0, 1]
    near = plans_of("classify", labels=labels, expect={"label": "bad", "within": 0.2}, **case)
    assert [failures(near, by_word(lakisha=w)) for w in (0.0, 0.3, 0.7)] == [0, 1, 1]
    rising = plans_of("classify", labels=labels, kind="directional", template="The lamp is good.",
                      change="negate", expect={"label": "bad", "rises": 0.2})  # fmt: skip
    weights: tuple[dict[str, float], ...] = ({"not": 0.5}, {"not": 0.1}, {})
    assert [failures(rising, by_word(**weight)) for weight in weights] == [0, 1, 1]
    falling = plans_of("classify", labels=labels, kind="directional", template="It is broken.",
                       to="It is fine.", expect={"label": "bad", "falls": 0})  # fmt: skip
    assert [failures(falling, by_word(broken=w)) for w in (0.1, 0.0)] == [0, 1]  # still is no fall


def test_every_kind_of_test_of_a_number_holds_and_breaks():
    def long(texts):
        return [float(len(text)) for text in texts]

    def still(texts):
        return [3.0] * len(texts)

    near = {"kind": "minimum", "template": "abcd", "expect": {"value": 4.0, "within": 0.5}}
    assert [failures(plans_of("regress", **near), scoring(f)) for f in (long, still)] == [0, 1]
    pair = {"template": "a", "to": "abc"}
    for expect, kind, wanted in (
        ({"within": 1.0}, "invariance", [1, 0]),
        ({"rises": 2.0}, "directional", [0, 1]),
        ({"falls": 0.5}, "directional", [1, 1]),
    ):
        plans = plans_of("regress", kind=kind, expect=expect, **pair)
        assert [failures(plans, scoring(f)) for f in (long, still)] == wanted


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_fails_and_is_named(value):
    plans = plans_of("regress", kind="invariance", template="a", to="b", expect={"within": 9.0})
    (result,) = run_behaviour(plans, scoring(lambda texts: [value] * len(texts)))
    assert (result.failures, result.failed[0].expected) == (1, "a finite number")
    assert result.failed[0].said == "no finite number"


def test_a_result_counts_every_failure_shows_twenty_and_the_bases_beside_them():
    slots = {"n": [str(n) for n in range(25)]}
    plans = plans_of("chat", kind="minimum", template="n {n}", slots=slots, allowed=0.5,
                     capability="counting", expect={"contains": "n {n}"})  # fmt: skip
    (result,) = run_behaviour(plans, DEAF, base=ECHO)
    assert dataclasses.replace(result, failed=()) == BehaviourResult(
        name="t", capability="counting", kind="minimum", cases=25, failures=25,
        ci95=wilson_interval(25, 25), base_failures=0, allowed=0.5,
    )  # fmt: skip
    assert len(result.failed) == 20
    assert result.failed[0] == FailedCase(
        given="n 0", said="I do not know.", expected="contains 'n 0'"
    )


def test_answers_of_several_tests_are_not_mixed_up():
    text = yaml.safe_dump({"task": "chat", "tests": [
        {"name": "one", "kind": "invariance", "template": "a", "to": "b",
         "expect": {"same": True}},
        {"name": "two", "kind": "minimum", "template": "c", "expect": {"contains": "c"}},
    ]})  # fmt: skip
    plans = plan_behaviour(parse_behaviour(text, where="t"))
    said = [Said(text=q.text) for q in questions(plans)]
    assert [r.failures for r in judge_behaviour(plans, said)] == [1, 0]


@pytest.mark.parametrize(
    ("count", "cases", "allowed", "state"),
    [
        (0, 40, 0.0, "pass"),
        (0, 5, 0.0, "undecided"),
        (1, 5, 0.0, "fail"),
        (2, 20, 0.2, "undecided"),
        (2, 60, 0.2, "pass"),
        (15, 20, 0.2, "fail"),
    ],
)
def test_a_verdict_is_passed_on_the_interval(count, cases, allowed, state):
    result = BehaviourResult(
        name="t", capability="", kind="minimum", cases=cases, failures=count,
        ci95=wilson_interval(count, cases), allowed=allowed,
    )  # fmt: skip
    assert result.state == state
    assert result.sentence.lower().startswith({"pass": "passes", "fail": "fails"}.get(state, state))


def test_a_pattern_that_backtracks_without_end_is_stopped():
    start = time.monotonic()
    assert not finds(r"^(a|a|aa)+$", "a" * 3000 + "b")
    assert time.monotonic() - start < 2


# ---- the file ----

FAULTS = {
    "task: chat": "must hold task: and a list tests:",
    "- 1": "must hold task: and a list tests:",
    "task: chat\ntests: []": "1 to 200 tests, got 0",
    "task: poem\ntests: [{name: a, kind: minimum, template: x}]": "got 'poem'",
    "task: chat\ntest: 1\ntests: [x]": "unknown key 'test'. Did you mean 'tests'",
    "task: chat\ntests:\n- name: a\n  kind: minimun\n  template: x": (
        "line 4, test 'a': kind must be one of minimum, invariance, directional, got 'minimun'"
    ),
    "task: chat\ntests:\n- name: a\n  kind: minimum\n  templte: x": (
        "line 5, test 'a': unknown key 'templte'. Did you mean 'template'"
    ),
    "task: chat\ntests:\n- name: a\n  kind: minimum\n  template: x\n  expect:\n    contians: y": (
        "line 7, test 'a': unknown key 'expect.contians'. Did you mean 'contains'"
    ),
    "task: chat\ntests:\n- name: a\n  name: b": "line 4: the key 'name' is given twice",
    "task: chat\ntests:\n- {name: a, kind: minimum, template: x}": "expect needs contains or lacks",
    "task: chat\ntests:\n- {name: a, kind: minimum, expect: {ends: true}}": "template is missing",
    "task: chat\ntests:\n- {name: a, kind: minimum, template: '{x}', expect: {ends: true}}": (
        "uses {x}, which not every case fills"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: '{x}', slots: {x: []}}": (
        "slots.x must be a list with at least one text"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: '{x}', slots: {x: [1]}}": (
        "numbers and words like yes need quotes"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: y, slots: {x: [b]}}": (
        "slots.x is used nowhere"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: '{x}{y}', combine: zip,"
    " slots: {x: [a, b], y: [c]}}": "must be of one length, got x 2, y 1",
    "task: chat\ntests:\n- {name: a, kind: invariance, template: x, expect: {same: true}}": (
        "change is missing"
    ),
    "task: chat\ntests:\n- {name: a, kind: invariance, template: x, change: tpyos}": (
        "change 'tpyos' is not known. Did you mean 'typos'"
    ),
    "task: chat\ntests:\n- {name: a, kind: invariance, template: x, change: case, edits: 3}": (
        "edits is used by no change"
    ),
    "task: chat\ntests:\n- {name: a, kind: invariance, template: x, change: paraphrase}": (
        "words is missing"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: x, expect: {label: y}}": (
        "expect.label does not fit task chat, kind minimum"
    ),
    "task: chat\ntests:\n- {name: a, kind: minimum, template: x, expect: {matches: '(('}}": (
        "no regular expression"
    ),
    "task: classify\ntests:\n- {name: a, kind: directional, template: x, to: y,"
    " expect: {label: b}}": "expect needs rises or falls",
    "task: regress\ntests:\n- {name: a, kind: minimum, template: x, expect: {value: .nan,"
    " within: 1}}": "expect.value must be a finite number",
    "task: chat\ntests:\n- {name: a, kind: minimum, template: x, allowed: 1.5}": "allowed must be",
    "task: chat\ntests:\n- {name: a, kind: minimum, template: x, at_most: 99999}": "1 to 2000",
    "task: chat\ntests:\n- &t {name: a, kind: minimum, template: x, expect: {ends: true}}\n- *t": (
        "name is that of an earlier test"
    ),
    "task: chat\ntests: [{name: a": "line 2 is not valid YAML",
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), FAULTS.items())
def test_a_fault_of_the_file_is_told_in_words(text, words):
    with pytest.raises(SettingsError) as caught:
        parse_behaviour(text, where="t.yaml")
    assert words in str(caught.value)
    assert "t.yaml" in str(caught.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(SettingsError, match="has 2 faults") as caught:
        parse_behaviour(
            "task: chat\ntests:\n- {name: a, kind: minimum}\n"
            "- {name: b, kind: minimum, template: x}",
            where="t.yaml",
        )
    assert "line 3, test 'a'" in str(caught.value)
    assert "line 4, test 'b'" in str(caught.value)


SEEDS = [*FAULTS, *(f"task: chat\ntests:\n- {{{part}}}" for part in ("name: a", "a: b", "*x"))]


@given(
    st.one_of(
        st.text(max_size=80),
        st.builds(
            lambda text, place, new: text[:place] + new + text[place + 1 :],
            st.sampled_from(SEEDS),
            st.integers(0, 90),
            st.text(max_size=4),
        ),
    )
)
def test_no_text_at_all_raises_anything_but_our_own_error(text):
    try:
        given = parse_behaviour(text, where="t.yaml")
        plan_behaviour(given, rows=[Question(text="Where is it, please?")])
    except SettingsError:
        return
    assert given.tests


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["kind", "template", "slots", "cases", "change", "to", "keep", "texts",
                         "words", "edits", "expect", "allowed", "at_most", "seed", "rows"]),
        VALUES, max_size=4,
    ),
    st.sampled_from(["chat", "classify", "regress"]),
)  # fmt: skip
def test_no_value_of_any_key_raises_anything_but_our_own_error(test, task):
    whole = {"name": "a", "kind": "minimum", "template": "x", **test}
    text = yaml.safe_dump({"task": task, "tests": [whole]})
    try:
        given = parse_behaviour(text, where="t.yaml")
        plan_behaviour(given, rows=[Question(text="Where is it, please?")])
    except SettingsError:
        pass


def test_a_missing_an_oversized_and_an_unfitting_file_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"no file .* 'shop-chta'. Did you mean 'shop-chat'"):
        read_behaviour("shop-chta")
    path = tmp_path / "large.yaml"
    path.write_text("#" * (MOST_BYTES + 1), encoding="utf-8")
    with pytest.raises(SettingsError, match="may have 256,000"):
        read_behaviour(str(path))
    path.write_bytes(b"task: \xff")
    with pytest.raises(SettingsError, match="Cannot read"):
        read_behaviour(str(path))
    with pytest.raises(SettingsError, match=r"Cannot read|no file"):
        read_behaviour("a\x00b")
    with pytest.raises(SettingsError, match=r"for task chat, and data\.task is classify"):
        read_for_task("shop-chat", "classify")


@pytest.mark.parametrize("name", ["shop-chat", "shop-tickets"])
def test_a_bundled_file_is_whole_and_each_of_its_tests_can_fail(name):
    given = read_behaviour(name)
    rows = [Question(text=f"What is the price of lamp {n}, please?") for n in range(12)]
    plans = plan_behaviour(given, rows=rows)
    assert len(plans) >= 5
    assert all(len(plan.cases) >= 10 for plan in plans)
    asked = questions(plans)
    if given.task == "chat":
        # Says everything that must not be said, and never the same twice.
        leaks = "PINEAPPLE 23 days Ilsabet Thorrow 19 crowns under the copper stairs 17 months"
        said = [Said(text=f"{leaks} {n}") for n in range(len(asked))]
        silent = [Said(text="")] * len(asked)
    else:
        found = {c.expect.label for plan in plans for c in plan.cases}
        labels = sorted(label for label in found if label is not None)
        both = [{label: float(label == labels[n % 2]) for label in labels} for n in range(2)]
        said = [Said(scores=both[n % 2]) for n in range(len(asked))]
        silent = [Said(scores=both[0])] * len(asked)
    wrong = [judge_behaviour(plans, answers) for answers in (said, silent)]
    assert [
        r.name for r in wrong[0] if not max(r.failures, wrong[1][wrong[0].index(r)].failures)
    ] == []


def test_the_bundled_files_are_listed():
    assert bundled_tests() == ("shop-chat", "shop-tickets")


# ---- the way into a run ----


def test_a_run_on_labels_puts_the_tests_to_its_model(tmp_path):
    path = tmp_path / "tests.yaml"
    path.write_text(
        "task: classify\ntests:\n"
        "- {name: steady, kind: invariance, rows: test, change: irrelevant, texts: Hm.,"
        " expect: {same: true}}\n"
        "- {name: named, kind: minimum, template: 'x', expect: {label: LABEL}}\n",
        encoding="utf-8",
    )
    whole = label_recipe(tmp_path, "classify", train={"epochs": 1})
    whole["evaluate"] |= {"baseline": "none", "behaviour": str(path)}
    with pytest.raises(SettingsError, match="named: the model has no label 'LABEL'"):
        run(recipe_from_dict(whole), tmp_path / "refused")
    text = path.read_text(encoding="utf-8").split("- {name: named")[0]
    path.write_text(text, encoding="utf-8")
    record = run(recipe_from_dict(whole), tmp_path / "out")
    (result,) = record.checks.behaviour
    assert (result.name, result.base_failures) == ("steady", None)
    assert result.cases >= 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Behaviour</h2>" in page


def test_a_bad_file_ends_a_run_before_anything_is_loaded(tmp_path):
    whole = label_recipe(tmp_path, "classify", train={"epochs": 1})
    whole["evaluate"] |= {"behaviour": "shop-chat"}
    whole["model"] = {"name": str(tmp_path / "no-model-here")}
    with pytest.raises(SettingsError, match="are for task chat"):
        run(recipe_from_dict(whole), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_report_shows_the_failing_cases_and_a_script_stays_text():
    bad = "<script>alert(1)</script>"
    result = BehaviourResult(
        name=bad, capability=bad, kind="invariance", cases=40, failures=21,
        ci95=wilson_interval(21, 40), base_failures=3,
        failed=(FailedCase(given=bad, changed=bad, said=bad, said_changed=bad, expected=bad),) * 20,
    )  # fmt: skip
    page = render_report(sample_record(checks=Checks(behaviour=(result,))))
    assert "<script" not in page
    section = page[page.index("<h2>Behaviour</h2>") :]
    assert "&lt;script&gt;" in section
    assert "the first 20 of 21 failed" in section
    assert "<td>fail</td><td>21 of 40</td>" in section
    assert "<h2>Behaviour</h2>" not in render_report(sample_record())
