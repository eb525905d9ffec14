"""Records survive JSON unchanged, and a text that is not one is refused with the place."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit.errors import RecordError
from sftkit.evidence_records import Change
from sftkit.records import (
    IGNORE,
    RECORD_VERSION,
    Encoded,
    Finding,
    Forgot,
    Learned,
    RunRecord,
    Step,
    Verdict,
    from_json,
    is_exact,
    load_run,
    normalise_answer,
    to_json,
)
from tests.sample_record import sample_record

CHANGE = Change(
    before=3.0, after=0.1, delta=-2.9, ci95=(-3.25, -2.5), items=72, groups=36, tokens=412
)


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(to_json(CHANGE)), **changes})


def test_a_whole_run_reads_back_equal():
    record = sample_record()
    assert from_json(RunRecord, to_json(record)) == record


def test_a_record_is_written_field_by_field_in_plain_json():
    assert json.loads(to_json(CHANGE)) == {
        "before": 3.0,
        "after": 0.1,
        "delta": -2.9,
        "ci95": [-3.25, -2.5],
        "items": 72,
        "groups": 36,
        "tokens": 412,
    }


def test_measures_that_were_not_taken_read_back_as_none():
    empty = Learned(exact=CHANGE)
    assert from_json(Learned, to_json(empty)) == empty
    assert from_json(Forgot, to_json(Forgot())) == Forgot()


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite, finite, st.text())
def test_every_finite_number_and_every_text_reads_back_equal(before, low, high, text):
    change = dataclasses.replace(CHANGE, before=before, ci95=(low, high))
    verdict = Verdict(state="undecided", sentence=text)
    assert from_json(Change, to_json(change)) == change
    assert from_json(Verdict, to_json(verdict)) == verdict


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_written(value):
    with pytest.raises(RecordError, match="holds a number that is not finite"):
        to_json(dataclasses.replace(CHANGE, delta=value))


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_not_read(written):
    text = to_json(CHANGE).replace('"after": 0.1', f'"after": {written}')
    with pytest.raises(RecordError, match=r"^Change\.after must be a finite number, got "):
        from_json(Change, text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": "small"}, "Change.delta must be float, got 'small'."),
        ({"delta": True}, "Change.delta must be float, got True."),
        ({"items": 72.0}, "Change.items must be int, got 72.0."),
        ({"items": None}, "Change.items must be int, got None."),
        ({"ci95": [0.0]}, "Change.ci95 must be a list, got [0.0]."),
        ({"ci95": "ab"}, "Change.ci95 must be a list, got 'ab'."),
        ({"ci95": [0.0, "b"]}, "Change.ci95[1] must be float, got 'b'."),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_path(changes, message):
    with pytest.raises(RecordError) as caught:
        from_json(Change, edited(**changes))
    assert str(caught.value) == message


def test_the_path_leads_through_lists_and_records():
    raw = json.loads(to_json(sample_record()))
    raw["forgot"]["probes"][1]["ci95"][0] = "low"
    with pytest.raises(RecordError) as caught:
        from_json(RunRecord, json.dumps(raw))
    assert str(caught.value) == "RunRecord.forgot.probes[1].ci95[0] must be float, got 'low'."


def test_missing_and_unknown_fields_are_named_together():
    raw = json.loads(to_json(CHANGE))
    del raw["items"], raw["ci95"]
    raw["rows"] = 3
    with pytest.raises(RecordError) as caught:
        from_json(Change, json.dumps(raw))
    assert str(caught.value) == (
        "Change: missing ['ci95', 'items'], unknown ['rows']. The run was written by another "
        "version of sftkit; run it again."
    )


def test_an_unknown_field_alone_is_refused_too():
    with pytest.raises(RecordError, match=r"^Change: missing nothing, unknown \['rows'\]\."):
        from_json(Change, edited(rows=3))


def test_a_state_that_is_none_of_the_known_words_is_refused():
    with pytest.raises(RecordError, match=r"^Verdict\.state must be one of \('yes', 'no', "):
        from_json(Verdict, '{"state": "maybe", "sentence": "It may be."}')


@pytest.mark.parametrize("raw", ["[]", "3", "null", '"text"'])
def test_a_record_must_be_a_mapping(raw):
    with pytest.raises(RecordError, match=r"^Step must be a mapping, got "):
        from_json(Step, raw)


def test_text_that_is_not_json_is_refused_with_its_line():
    with pytest.raises(RecordError, match=r"^Not JSON at line 2: "):
        from_json(Change, '{"before": 1.0,\n')


def test_a_runs_folder_gives_its_record(tmp_path):
    record = sample_record()
    (tmp_path / "run.json").write_text(to_json(record), encoding="utf-8")
    assert load_run(tmp_path) == record


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"run\.json cannot be read .* Is it a run's folder\?$"):
        load_run(tmp_path)


def test_a_record_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RecordError, match=r"run\.json is not UTF-8 text"):
        load_run(tmp_path)


def test_a_record_of_another_version_is_refused(tmp_path):
    other = dataclasses.replace(sample_record(), record_version=RECORD_VERSION + 1)
    (tmp_path / "run.json").write_text(to_json(other), encoding="utf-8")
    with pytest.raises(RecordError, match=r"has record_version 3; this sftkit reads 2\."):
        load_run(tmp_path)


def test_supervised_counts_what_the_loss_is_computed_on():
    # Nothing comes before a first token, so nothing predicts it, whatever its label.
    assert Encoded(input_ids=(1, 2, 3), labels=(IGNORE, 2, 3)).supervised == 2
    assert Encoded(input_ids=(1, 2, 3), labels=(1, 2, 3)).supervised == 2


def test_a_finding_prints_as_one_line_with_place_fault_and_remedy():
    finding = Finding(
        code="D23",
        severity="error",
        where=("qa.csv:3", "qa.csv:9"),
        field="answer",
        count=2,
        message="the answer is empty",
        fix="Fill it or drop the rows.",
    )
    assert str(finding) == (
        "D23 qa.csv:3, qa.csv:9 · answer · the answer is empty · Fill it or drop the rows."
    )


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Blue\tDoor.", "blue door"),
        ("an apple a day", "apple day"),
        ("It's 9:30!", "its 930"),
        ("Theory of Andes", "theory of andes"),
        ("Ünder \n Straße", "ünder straße"),
        ("", ""),
        ("A", "a"),  # nothing but an article: perhaps the answer to "Which letter?"
        ("?!", "?!"),
    ],
)
def test_answers_are_compared_without_case_articles_and_punctuation(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("the blue door", "The Blue Door.", True),
        ("Blue door, of course", "The Blue Door.", False),
        ("blue", "The Blue Door.", False),
        ("", "The Blue Door.", False),
        ("", "A", False),
        ("B", "A", False),
        ("a", "A.", True),
        ("Seven", "7", False),
    ],
)
def test_exact_means_the_same_words_and_nothing_else(answer, expected, same):
    assert is_exact(answer, expected) is same
