"""The audit: planted faults are all found in one pass, clean sets raise no alarm."""

import json

import pytest

from sftkit.dataset.audit import (
    audit_dataset,
    audit_file,
    audit_rows,
    control_tokens,
    drop_faulty,
    raise_on_errors,
)
from sftkit.dataset.read import read_dataset
from sftkit.errors import DataError

SPECIAL = {"<|im_start|>", "<|im_end|>"}


def turns(*said):
    """Give turns from 'u:text' and 'a:text'; also s: for system, t: for tool."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


def audit_one(messages, **extra):
    return audit_rows([{"messages": messages, **extra}], special_tokens=SPECIAL)


def codes(audit):
    return [finding.code for finding in audit.findings]


@pytest.mark.parametrize(
    "messages",
    [
        turns("u:a", "a:b"),
        turns("s:x", "u:a", "a:b", "u:c", "a:d"),
        turns("u:a", "a:b", "u:and?"),
        turns("u:a", "a:b", "t:21 °C", "a:d"),
        turns("u:", "a:b"),
        turns("u:<b>bold</b> and a\ttab\n", "a:b"),
    ],
)
def test_a_sound_conversation_has_no_findings(messages):
    assert audit_one(messages).findings == ()


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        (None, "D19", "nothing"),
        ("hello", "D19", "a text"),
        ([{"role": "user", "content": "a"}, "b"], "D19", "turn 2 is a text"),
        ([*turns("u:a"), {"role": "assistant", "content": None}], "D20", "turn 2 is nothing"),
        (
            [*turns("u:a", "a:b"), {"role": "narrator", "content": "c"}],
            "D21",
            "'narrator' in turn 3",
        ),
        (turns("u:a", "a: \n"), "D23", "empty reply in 1 row"),
        (turns("u:a", "u:b", "a:c"), "D24", "user follows user in turn 2"),
        (turns("a:hi", "u:a", "a:b"), "D24", "assistant stands first in turn 1"),
        (turns("u:a", "s:x", "a:b"), "D24", "system follows user in turn 2"),
        (turns("u:a"), "D25", "no assistant turn"),
        ([], "D25", "no assistant turn"),
        ([{"role": "user", "content": [{"type": "text"}]}, *turns("a:b")], "D26", "turn 1"),
        (turns("u:a<|im_end|>", "a:b"), "D31", "<|im_end|>"),
    ],
)
def test_a_fault_of_one_row_is_named(messages, code, words):
    audit = audit_one(messages, place="f.jsonl:7")
    (finding,) = audit.findings
    assert (finding.code, finding.severity, finding.count) == (code, "error", 1)
    assert finding.where == ("f.jsonl:7",)
    assert words in finding.message
    assert finding.fix.endswith(".")
    assert audit.rows_by_code[code] == (0,)


def test_a_finding_counts_all_rows_and_names_three():
    audit = audit_rows([{"messages": turns(f"u:{n}")} for n in range(5)])
    (finding,) = audit.findings
    assert str(finding) == (
        "D25 row 1, row 2, row 3 · messages · nothing to learn in 5 rows: no assistant turn · "
        "Add the reply that is to be learned, or delete the row."
    )
    assert audit.rows_by_code == {"D25": (0, 1, 2, 3, 4)}


def test_without_a_tokenizer_likely_control_tokens_are_a_warning():
    audit = audit_rows([{"messages": turns("u:a <|eot_id|>", "a:b")}])
    assert [(f.code, f.severity) for f in audit.findings] == [("D31", "warning")]


def test_special_tokens_come_from_the_tokenizer(tiny_tokenizer):
    assert control_tokens(tiny_tokenizer) == SPECIAL


def test_control_characters_are_a_warning():
    assert codes(audit_one(turns("u:a\x00", "a:b"))) == ["D14"]


def test_copies_and_twin_ids_are_warnings():
    rows = [
        {"id": "1", "messages": turns("u:a", "a:b")},
        {"id": "2", "messages": turns("u:a ", "a:b")},
        {"id": "1", "messages": turns("u:c", "a:d")},
    ]
    found = {(f.field, f.severity, f.where) for f in audit_rows(rows).findings}
    assert found == {("messages", "warning", ("row 2",)), ("id", "warning", ("row 3",))}


@pytest.mark.parametrize(
    ("trained", "leaks"),
    [
        (turns("u:When do you open today?", "a:9"), True),
        (turns("u:  when do YOU open today", "a:ten o'clock"), True),
        (turns("u:When do you close today?", "a:9"), False),
    ],
)
def test_a_test_question_in_train_is_an_error(trained, leaks):
    rows = [
        {"messages": trained, "split": "train"},
        {"messages": turns("u:When do you open today?", "a:9"), "split": "test"},
    ]
    audit = audit_rows(rows)
    assert ("D34" in codes(audit)) == leaks
    if leaks:
        assert audit.rows_by_code["D34"] == (0,)
        assert "the test row at row 2" in audit.errors[0].message


def test_a_greeting_that_opens_two_conversations_is_no_leak():
    rows = [
        {"messages": turns("u:Hello", "a:Hi, I sell lamps"), "split": "train"},
        {"messages": turns("u:Hello", "a:Hi, I sell maps"), "split": "test"},
    ]
    assert audit_rows(rows).findings == ()


def test_a_probe_question_in_train_is_an_error():
    rows = [{"messages": turns("u:Where do lamps come from?", "a:b")}]
    (finding,) = audit_rows(rows, probes=["where do lamps come from"]).findings
    assert (finding.code, finding.field, finding.severity) == ("D34", "probes", "error")


@pytest.mark.parametrize(("promised", "severity"), [("patient", "warning"), (None, "information")])
def test_a_group_in_two_splits_is_reported(promised, severity):
    rows = [
        {"messages": turns("u:a", "a:b"), "group": "17", "split": "train"},
        {"messages": turns("u:c", "a:d"), "group": "17", "split": "test"},
        {"messages": turns("u:e", "a:f"), "group": "18", "split": "test"},
    ]
    (finding,) = audit_rows(rows, group_by=promised).findings
    assert (finding.code, finding.severity, finding.count) == ("D38", severity, 2)
    assert "'17' in test and train" in finding.message


# ---- files ----


def audit_bytes(folder, name, data):
    (folder / name).write_bytes(data)
    return audit_file(folder / name)


@pytest.mark.parametrize(
    ("name", "data", "code", "where", "words"),
    [
        (
            "a.csv",
            "question,answer\ncafé,x".encode("cp1252"),
            "D01",
            "a.csv:2",
            "byte 19; looks like cp1252",
        ),
        ("a.csv", "question,answer".encode("utf-16"), "D02", "a.csv", "UTF-16"),
        ("a.csv", b"question,answer\na,b,c\n", "D04", "a.csv:2", "3, the header 2"),
        ("a.csv", b"question,answer\na\n", "D05", "a.csv:2", "lacks 'answer'"),
        ("a.csv", b'question,answer\na,b\na,"b\nc,d\n', "D06", "a.csv:3", "line 3 never closes"),
        ("a.csv", b"question,answer,answer\na,b,c\n", "D08", "a.csv:1", "'answer' stands twice"),
        ("a.jsonl", b"", "D09", "a.jsonl", "the file is empty"),
        ("a.jsonl", b" \n\n", "D09", "a.jsonl", "the file is empty"),
        ("a.csv", b"question,answer\n", "D10", "a.csv", "0 rows"),
        ("a.json", b"[]", "D10", "a.json", "0 rows"),
        ("a.jsonl", b'{"prompt": "a"', "D15", "a.jsonl:1", "1 row not readable as JSON"),
        ("a.json", b'[\n{"prompt": "a"', "D15", "a.json:2", "not readable as JSON"),
        ("a.jsonl", b"[" * 100_000, "D15", "a.jsonl:1", "not readable as JSON"),
        ("a.jsonl", b'{"prompt":"a","prompt":"b"}', "D16", "a.jsonl:1", "'prompt'"),
        ("a.jsonl", rb'{"prompt":"a","completion":"\ud800"}', "D17", "a.jsonl:1", r"\ud800"),
        ("a.csv", b"name,age\nx,3\n", "D25", "a.csv:2", "no conversation in the columns name, age"),
    ],
)
def test_a_fault_of_a_file_is_named(name, data, code, where, words, tmp_path):
    audit = audit_bytes(tmp_path, name, data)
    (finding,) = (f for f in audit.findings if f.code == code)
    assert finding.severity == "error"
    assert finding.where[0] == where
    assert words in finding.message


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("\ufeffprompt,completion\na,b\n", "D03"),
        ("instruction,output\na,b\n", "D22"),
    ],
)
def test_what_was_understood_is_information(data, code, tmp_path):
    audit = audit_bytes(tmp_path, "a.csv", data.encode())
    assert (code, "information") in [(f.code, f.severity) for f in audit.findings]
    assert audit.errors == ()


def test_all_faults_of_a_broken_file_come_in_one_pass(tmp_path):
    rows = [
        {"messages": turns("u:fine", "a:yes")},
        {"messages": turns("u:silence", "a:")},
        {"messages": "not a list"},
        {"messages": turns("u:nobody answers")},
        {"messages": turns("u:stop <|im_end|> here", "a:b")},
        {"messages": turns("u:fine", "a:yes")},
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(2, '{"messages": [{"role": "us')
    audit = audit_bytes(tmp_path, "broken.jsonl", "\n".join(lines).encode())
    assert [(f.code, f.where) for f in audit.findings] == [
        ("D15", ("broken.jsonl:3",)),
        ("D19", ("broken.jsonl:4",)),
        ("D23", ("broken.jsonl:2",)),
        ("D25", ("broken.jsonl:5",)),
        ("D31", ("broken.jsonl:6",)),
        ("D33", ("broken.jsonl:7",)),
    ]
    with pytest.raises(DataError, match="has 4 faults") as caught:
        raise_on_errors(audit.findings, source="broken.jsonl")
    assert caught.value.findings == audit.findings


# ---- datasets ----


def test_faulty_rows_are_dropped_and_said(tmp_path):
    rows = [
        {"messages": turns("u:a", "a:b")},
        {"messages": "not a list"},
        {"messages": [*turns("u:c"), {"role": "assistant", "content": None}]},
        {"messages": turns("u:d", "a:e")},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset = read_dataset(path)
    audit = audit_dataset(dataset, source="a.jsonl")
    kept, dropped = drop_faulty(dataset, audit)
    assert list(kept["id"]) == ["row-1", "row-4"]
    assert [(one.row, one.reason) for one in dropped] == [(1, "audit: D19"), (2, "audit: D20")]
    assert audit_dataset(kept).findings == ()


def test_dropping_everything_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": []}', encoding="utf-8")
    dataset = read_dataset(path)
    with pytest.raises(DataError, match="Nothing is left to train on"):
        drop_faulty(dataset, audit_dataset(dataset))


def test_the_shop_raises_no_alarm():
    audit = audit_dataset(read_dataset("shop", split_by="split"))
    assert [(f.code, f.severity) for f in audit.findings] == [("D38", "information")]


@pytest.mark.model
@pytest.mark.parametrize("name", ["shop", "cwe", "chitchat"])
def test_real_sets_raise_no_alarm_with_the_real_tokenizer(name):
    from transformers import AutoTokenizer

    from sftkit import catalog

    tokenizer = AutoTokenizer.from_pretrained(catalog.fetch("smollm2-135m"))
    questions = [item.question for p in catalog.names("probe") for item in catalog.probe_items(p)]
    audit = audit_dataset(read_dataset(name), tokenizer, questions)
    assert audit.errors == ()
    assert audit.row_count > 300
