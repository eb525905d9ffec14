"""The 38 faults of a dataset: each built as a file, each named with place, count and remedy."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from sftkit.dataset.audit import audit_file
from sftkit.dataset.faults import FAULTS
from tests.conftest import CHATML, make_tokenizer
from tests.templates import TEMPLATES


def turns(*said: str) -> list[dict[str, Any]]:
    """Give turns from 'u:text' and 'a:text'; also s: for system."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


def chat(*rows: Any) -> bytes:
    """Write a JSON Lines file: a row for each list of messages, or for each mapping as it is."""
    plain = (row if isinstance(row, dict) else {"messages": row} for row in rows)
    return "\n".join(map(json.dumps, plain)).encode()


def table(*rows: tuple[Any, ...]) -> bytes:
    """Write a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


GOOD = turns("u:Where do lamps come from?", "a:From Ghent.")
PAIRS = [("question", "answer"), ("Where do lamps come from?", "Ghent")]
LABELLED = [
    ("text", "label"),
    ("It broke after a day", "bad"),
    ("I like it a lot", "good"),
    ("It never came", "bad"),
    ("Quick and friendly", "good"),
]


@dataclass(frozen=True)
class Case:
    """A file with one fault.

    Attributes:
        code: The code it must be given.
        severity: How bad.
        name: File name.
        data: Its bytes.
        where: The places the finding must name.
        count: Rows concerned.
        message: Words of the message.
        fix: Words of the remedy.
        of: The field, where a code has several findings.
        options: Arguments of the audit.
        template: Chat template of the tokenizer that is passed; none is passed if empty.
    """

    code: str
    severity: str
    name: str
    data: bytes
    where: tuple[str, ...]
    count: int
    message: str
    fix: str
    of: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    template: str = ""


CASES = [
    Case("D01", "error", "a.csv", "question,answer\ncafé,x\n".encode("cp1252"), ("a.csv:2",), 1,
         "not UTF-8 at byte 19; looks like cp1252", "encoding="),
    Case("D02", "error", "a.csv", "question,answer\na,b\n".encode("utf-16"), ("a.csv",), 1,
         "UTF-16 byte-order mark", "UTF-8"),
    Case("D03", "information", "a.csv", "\ufeffquestion,answer\na,b\n".encode(), ("a.csv",), 1,
         "byte-order mark, which was skipped", "Nothing has to be done"),
    Case("D04", "error", "a.csv", b"text,label\ngood,pos\nfine, really,pos\nbad,neg\n",
         ("a.csv:3",), 1, "3, the header 2", "double quotes"),
    Case("D05", "error", "a.csv", b"text,label\ngood\nfine,pos\nbad,neg\n", ("a.csv:2",), 1,
         "the first lacks 'label'", "Complete the row"),
    Case("D06", "error", "a.csv", b'text,label\ngood,pos\nbad,neg\n"ugly,neg\nfine,pos\n',
         ("a.csv:4",), 1, "the quote opened on line 4 never closes", "double quotes inside"),
    Case("D07", "warning", "a.csv", b"text;label\ngood;pos\nbad;neg\n", ("a.csv:1",), 1,
         "looks like ';'", "commas"),
    Case("D08", "error", "a.csv", b"text,label,text\ngood,pos,x\nbad,neg,y\n", ("a.csv:1",), 1,
         "column 'text' stands twice", "Rename"),
    Case("D09", "error", "a.jsonl", b"", ("a.jsonl",), 1, "the file is empty", "Check the path"),
    Case("D10", "error", "a.csv", b"question,answer\n", ("a.csv",), 1, "0 rows", "export"),
    Case("D11", "information", "a.csv", table(*PAIRS, ("Code of Namibia?", "NA"),
         ("And of no country?", "None")), ("a.csv:3", "a.csv:4"), 2,
         "2 texts such as 'NA' that other tools read as missing", "leave the field empty"),
    Case("D12", "error", "a.csv", table(*LABELLED, ("It is blue", ""), ("It is red", " ")),
         ("a.csv:6", "a.csv:7"), 2, "2 rows without a label", "Fill it in"),
    Case("D13", "warning", "a.jsonl", chat({"id": 10**29, "messages": GOOD}), ("a.jsonl:1",), 1,
         "over 64 bits, the first 100000000000000000000000000000", "quotes"),
    Case("D14", "warning", "a.jsonl", chat(GOOD, turns("u:What\x00 is it?", "a:A lamp.")),
         ("a.jsonl:2",), 1, "control characters in 1 row", "Remove them"),
    Case("D15", "error", "a.jsonl", chat(GOOD) + b'\n{"messages": [{"role": "us',
         ("a.jsonl:2",), 1, "1 row not readable as JSON", "Complete or delete the line"),
    Case("D16", "error", "a.jsonl", b'{"question": "a", "answer": "b", "answer": "c"}',
         ("a.jsonl:1",), 1, "'answer'", "Keep one"),
    Case("D17", "error", "a.jsonl", rb'{"question": "a\ud800", "answer": "b"}', ("a.jsonl:1",), 1,
         r"\ud800", "whole character"),
    Case("D18", "error", "a.jsonl", chat({"text": "It is good", "label": "one"},
         {"text": "It is bad", "label": 0}, {"text": "It is fine", "label": "one"}),
         ("a.jsonl:2",), 1, "a word in 2 rows and a whole number in 1 row", "in one way"),
    Case("D19", "error", "a.jsonl", chat(GOOD, "hello", GOOD), ("a.jsonl:2",), 1,
         "1 row whose messages are no list of turns; the first: a text", '{"role": …'),
    Case("D20", "error", "a.jsonl", chat(GOOD, [{"role": "user", "content": None},
         *turns("a:Hi.")]), ("a.jsonl:2",), 1, "turn 1 is nothing", "Write the text"),
    Case("D21", "error", "a.jsonl", chat([*GOOD, {"role": "narrator", "content": "Night."}]),
         ("a.jsonl:1",), 1, "'narrator' in turn 3", "user, assistant or tool"),
    Case("D22", "information", "a.jsonl", chat({"conversations": [
         {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}),
         ("a.jsonl:1",), 1, "seen as ShareGPT", "Nothing has to be done"),
    Case("D23", "error", "a.jsonl", chat(GOOD, *[turns(f"u:What is {n}?", "a: ")
         for n in range(5)]), ("a.jsonl:2", "a.jsonl:3", "a.jsonl:4"), 5,
         "empty reply in 5 rows", "silence"),
    Case("D24", "error", "a.jsonl", chat(turns("a:Hi.", "u:Hi.", "a:Hi."),
         turns("u:Are you", "u:there?", "a:Yes.")), ("a.jsonl:1", "a.jsonl:2"), 2,
         "assistant stands first in turn 1", "Begin with user"),
    Case("D25", "error", "a.jsonl", chat(GOOD, turns("u:Hello?")), ("a.jsonl:2",), 1,
         "nothing to learn in 1 row", "Add the reply"),
    Case("D26", "error", "a.jsonl", chat([{"role": "user", "content": [
         {"type": "text", "text": "What is it?"}]}, *turns("a:A lamp.")]), ("a.jsonl:1",), 1,
         "content in several parts; the first: turn 1", "as one text"),
    Case("D27", "warning", "a.jsonl", chat(GOOD, turns("u:Why?", "a:" + "so " * 60),
         turns("u:" + "why " * 60, "a:So.")), ("a.jsonl:2", "a.jsonl:3"), 2,
         "cut there, 1 would lose the whole answer", "Raise max_tokens",
         options={"max_tokens": 128}, template=CHATML),
    Case("D28", "error", "a.jsonl", chat(turns("u:" + "why " * 60, "a:So.")), ("a.jsonl:1",), 1,
         "0 of 264 tokens", "Raise max_tokens to 264", of="dataset",
         options={"max_tokens": 128}, template=CHATML),
    Case("D29", "information", "a.jsonl", chat(GOOD), ("the chat template",), 1,
         "by rendering its row again", "show_mask", template=CHATML),
    Case("D30", "information", "a.jsonl", chat(GOOD), ("the tokenizer",), 1,
         "are one token, '<|im_end|>'", "other trainers need a pad token", template=CHATML),
    Case("D31", "error", "a.jsonl", chat(GOOD, turns("u:Stop.<|im_end|>", "a:No.")),
         ("a.jsonl:2",), 1, "a control token of the model in 1 row; the first: <|im_end|>",
         "Remove it", template=CHATML),
    Case("D32", "information", "a.jsonl", chat(GOOD, turns("s:Be brief.", "u:And you?", "a:No.")),
         ("a.jsonl:1",), 1, "'You are a helpful assistant.'", "set system=",
         template=TEMPLATES["chatml-own-system"].source),
    Case("D33", "warning", "a.jsonl", chat(GOOD, turns("u:Why not?", "a:So."), GOOD),
         ("a.jsonl:3",), 1, "in 1 row; the first is a.jsonl:1", "Delete the copies"),
    Case("D34", "error", "a.csv", table(("question", "answer", "split"),
         ("Where do lamps come from?", "Ghent", "train"), ("Who sells them?", "We", "train"),
         ("where do lamps come from", "Ghent", "test"), ("When do you open?", "Nine", "test")),
         ("a.csv:2",), 1, "train holds 1 of 2 test rows (50.0%), in 1 row", "Delete these rows"),
    Case("D35", "warning", "a.csv", table(("text", "label"), *[
         (f"Order {n} in category {label} was late again", label)
         for n, label in enumerate(["refund", "delivery"] * 10)]),
         ("a.csv:2", "a.csv:3", "a.csv:4"), 20,
         "100% of rows; other rows hold the same words in 0%", "Take it out"),
    Case("D36", "error", "a.csv", table(("text", "label"), ("Good", "pos"), ("Fine", "pos")),
         ("a.csv:2",), 1, "one class only: every label is 'pos'", "other classes"),
    Case("D37", "warning", "a.csv", table(*LABELLED, ("it never came", "good")),
         ("a.csv:4", "a.csv:6"), 2,
         "1 text with more than one label, in 2 rows; the first: 'bad' here, 'good' at a.csv:6",
         "Decide on one label"),
    Case("D38", "warning", "a.csv", table(("question", "answer", "split", "patient"),
         ("How is the heart?", "Fine", "train", "17"), ("And the lung?", "Fine", "test", "17"),
         ("And the knee?", "Sore", "test", "18")), ("a.csv:2", "a.csv:3"), 2,
         "'17' in test and train", "Keep a group in one split", options={"group_by": "patient"}),
]  # fmt: skip


def audit_case(case: Case, folder: Any) -> Any:
    path = folder / case.name
    path.write_bytes(case.data)
    options = dict(case.options)
    if case.template:
        options["tokenizer"] = make_tokenizer(case.template)
    return audit_file(path, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_fault_is_named_with_place_count_and_remedy(case, tmp_path):
    audit = audit_case(case, tmp_path)
    found = [f for f in audit.findings if f.code == case.code and case.of in (None, f.field)]
    assert len(found) == 1, [str(f) for f in audit.findings]
    (finding,) = found
    assert (finding.severity, finding.where, finding.count) == (
        case.severity,
        case.where,
        case.count,
    )
    assert case.message in finding.message
    assert case.fix in finding.fix


def test_every_code_has_its_case():
    assert [case.code for case in CASES] == list(FAULTS)
    assert list(FAULTS) == [f"D{number:02}" for number in range(1, 39)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_no_other_error_is_reported_beside_it(case, tmp_path):
    # An unread file has no rows; a text for the wrong reader is not also a missing label.
    audit = audit_case(case, tmp_path)
    assert {f.code for f in audit.errors} <= {case.code}


def test_many_faults_of_one_file_come_in_one_pass(tmp_path):
    rows = [
        {"id": "1", "messages": GOOD},
        {"id": "1", "messages": GOOD},
        {"id": "2", "messages": "hello"},
        {"id": "3", "messages": [{"role": "user", "content": None}, *turns("a:Hi.")]},
        {"id": "4", "messages": [{"role": "elf", "content": "Hi."}, *turns("u:Hi.", "a:Hi.")]},
        {"id": "5", "messages": turns("u:Why?", "a:")},
        {"id": "6", "messages": turns("u:Why", "u:not?", "a:So.")},
        {"id": "7", "messages": turns("u:Anyone?")},
        {"id": "8", "messages": [{"role": "user", "content": []}, *turns("a:Hi.")]},
        {"id": "9", "messages": turns("u:Bell\x07 or <|eot_id|>?", "a:Both.")},
        {"id": 2**70, "messages": turns("u:What is your number?", "a:Large.")},
    ]
    data = chat(*rows) + b'\n{"id": "11", "id": "12", "messages": []}\n{"id": "13", "mess'
    path = tmp_path / "many.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + data)
    found = {(f.code, f.field): f.where for f in audit_file(path).findings}
    assert found[("D15", "")] == ("many.jsonl:13",)
    assert found[("D16", "")] == ("many.jsonl:12",)
    assert found[("D13", "id")] == ("many.jsonl:11",)
    assert found[("D19", "messages")] == ("many.jsonl:3",)
    assert found[("D33", "id")] == ("many.jsonl:2",)
    codes = {code for code, _ in found}
    assert codes >= {"D03", "D13", "D14", "D15", "D16", "D19", "D20", "D21", "D23", "D24", "D25"}
    assert codes >= {"D26", "D31", "D33"}


def test_faults_in_the_last_rows_of_a_long_file_keep_their_line_numbers(tmp_path):
    # Two-line rows: a row's place is the line it begins on.
    rows = [(f"Question {n}\nin two lines", f"Answer {n}") for n in range(3000)]
    path = tmp_path / "long.csv"
    path.write_bytes(table(("question", "answer"), *rows, ("Silence?", ""), ("A\x01?", "B")))
    audit = audit_file(path)
    where = {f.code: f.where for f in audit.findings if f.code in ("D14", "D23")}
    assert audit.row_count == 3002
    assert where == {"D23": ("long.csv:6002",), "D14": ("long.csv:6003",)}


def find_one(path: Any, code: str, of: str | None = None, **options: Any) -> Any:
    """Audit a file; give its one finding of a code (and field)."""
    audit = audit_file(path, **options)
    found = [f for f in audit.findings if f.code == code and of in (None, f.field)]
    assert len(found) == 1, [str(f) for f in audit.findings]
    return found[0]


@pytest.mark.parametrize(
    ("name", "data", "code", "where", "message", "fix"),
    [
        ("a.csv", "question,answer\na b,c\n".encode("utf-16-le"), "D02", ("a.csv",),
         "without its byte-order mark", "utf-16-le"),
        ("a.jsonl", chat(GOOD).decode().encode("utf-16-be"), "D02", ("a.jsonl",),
         "without its byte-order mark", "utf-16-be"),
        ("a.tsv", b"text\tlabel\na\tx\nb\ty\tz\nc\ty\n", "D04", ("a.tsv:3",), "3, the header 2",
         "hold tabs"),
        ("a.csv", b"text,label\na,x,\nb,y,\n", "D04", ("a.csv:2", "a.csv:3"), "2 rows",
         "Delete commas at the end of the line"),
        ("a.csv", b"Export of May\ntext,label\na,x\nb,y\n", "D04",
         ("a.csv:2", "a.csv:3", "a.csv:4"), "3 rows", "such as a title"),
        ("a.csv", b"text,label\nfine\rday,pos\nbad,neg\ngood,pos\n", "D04", ("a.csv:2",),
         "1 row with a line end (a lone carriage return) in a field without quotes", "space for"),
        ("a.csv", b"text,text,text,label\na,b,c,x\nb,c,d,y\n", "D08", ("a.csv:1",),
         "column 'text' stands 3 times", "Rename"),
        ("a.jsonl", chat({"meta": {"ids": [1, 10**30]}, "messages": GOOD}), "D13",
         ("a.jsonl:1",), "the first 1000000000000000000000000000000", "quotes"),
        ("a.csv", table(*LABELLED, ("It rang", "b\x07d")), "D14", ("a.csv:6",), "1 row", "Remove"),
        ("a.jsonl", b"{'question': 'a', 'answer': 'b'}", "D15", ("a.jsonl:1",),
         "single quotes, where JSON wants double ones, at column 2", "line"),
        ("a.jsonl", b'{"question": "a", "answer": "b",}', "D15", ("a.jsonl:1",),
         "a comma before }, where JSON has none", "line"),
        ("a.jsonl", b'{"question": "a\tb", "answer": "c"}', "D15", ("a.jsonl:1",),
         r"JSON wants \t or \n, at column 16", "line"),
        ("a.jsonl", b'{"question": "a", "answer": "b"},\n', "D15", ("a.jsonl:1",),
         "a comma after the object", "line"),
        ("a.jsonl", (json.dumps(GOOD) + "\n" + json.dumps(GOOD)).encode(), "D15",
         ("a.jsonl:1", "a.jsonl:2"), 'write {"messages": [turns]}', "line"),
        ("a.csv", b"question,answer\na b,c\nd\xed\xa0\xbd e,f\n", "D17", ("a.csv:3",), r"\ud83d",
         "whole character"),
        ("a.csv", table(*[(f"Lamp {n} broke too soon", ("bad", "good")[n % 2])
         for n in range(8)]), "D22:header", ("a.csv:2",),
         "'bad', taken for a column, comes again", "names of the columns"),
        ("a.csv", table(*LABELLED, ("It rang", "Good")), "D18", ("a.csv:6",),
         "differ in case only, in 1 row; the first: 'Good' beside 'good'", "in one way"),
        ("a.csv", table(("text", "score"), *[(f"Row {n}", f"{n},5") for n in range(4)]), "D18",
         ("a.csv:2", "a.csv:3", "a.csv:4"), "the first is '0,5'", "not a comma"),
        ("a.jsonl", chat(turns("u:Why so?", "a:\u200b")), "D23", ("a.jsonl:1",), "1 row", "Write"),
        ("a.jsonl", chat({"question": "Which?", "answer": ["a", "b"]}), "D26", ("a.jsonl:1",),
         "in several parts; the first: turn 2", "as one text"),
        ("a.jsonl", chat(GOOD, turns("u:[INST] Why?", "a:So.")), "D31", ("a.jsonl:2",),
         "what looks like a control token in 1 row; the first: [INST]", "Remove it"),
        ("a.csv", table(*LABELLED, *LABELLED[:1], ("It rang", "good")), "D33", ("a.csv:6",),
         "the header again, in 1 row", "Delete"),
        ("a.csv", table(("question", "answer", "split"), ("Who sells the lamps?", "We", "train"),
         ("Who sells the lamps?", "We", "eval")), "D34", ("a.csv:2",), "validation", "Delete"),
    ],
)  # fmt: skip
def test_files_of_strangers_get_code_place_and_a_remedy_that_fits(
    name, data, code, where, message, fix, tmp_path
):
    path = tmp_path / name
    path.write_bytes(data)
    finding = find_one(path, *code.split(":"))
    assert finding.where == where
    assert message in finding.message
    assert fix in finding.fix


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_with_its_encoding_named_a_file_has_no_finding_about_it(encoding, tmp_path):
    path = tmp_path / "a.csv"
    text = table(*LABELLED).decode()
    path.write_bytes(text.encode(encoding))
    audit = audit_file(path, encoding=encoding)
    assert (audit.row_count, [f.code for f in audit.findings]) == (4, ["D22"])


def test_numbers_that_excel_has_rounded_are_named(tmp_path):
    import pandas as pd

    path = tmp_path / "a.xlsx"
    rows = [(10**15 - 1, "Good", "pos"), (1234567890123456789, "Bad", "neg")]
    pd.DataFrame(rows, columns=["id", "text", "label"]).to_excel(path, index=False)
    finding = find_one(path, "D13", "id")
    assert finding.where == ("a.xlsx row 3",)
    assert "over 15 digits" in finding.message
    assert "as text" in finding.fix


@pytest.mark.parametrize(
    ("data", "task", "message", "fix"),
    [
        (table(("width", "kind"), *[(n / 7, "ab"[n % 2]) for n in range(9)]), None,
         "no text with a label", "scikit-learn"),
        (table(("Höhe", "Breite"), ("1,5", "2,5"), ("0,3", "7,1")), None, "only numbers",
         "scikit-learn"),
        (table(*LABELLED), "regress", "no column of numbers that is plainly the score",
         "--column score="),
        (table(*LABELLED), "image", "no column of images", "one folder for each label"),
        (table(("messages",), (json.dumps(GOOD),)), "classify",
         "conversations in the column 'messages', which are for chat", "Leave the task out"),
    ],
)  # fmt: skip
def test_a_table_for_another_task_is_refused_with_what_to_do(data, task, message, fix, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    finding = find_one(path, "D25", task=task)
    assert message in finding.message
    assert fix in finding.fix


CLEAN = {
    "operators of functional code": chat(turns("u:Pipe it?", "a:x |> f\ntext <| g <| y |> h")),
    "dates and numbers as answers": b"question,answer\nWhen?,1969-07-20\nHow many?,3\nAnd?,12 %\n",
    "labels behind a space": b"text,label\nGood day, pos\nBad day, neg\nFine day,pos\n",
    "a table with braces": b"text,label\n{rows} good,{a}\n{0} bad,{b}\n{},{a}\n",
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_sound_file_of_a_stranger_raises_no_alarm(name, tmp_path):
    path = tmp_path / ("a.jsonl" if CLEAN[name].startswith(b"{") else "a.csv")
    path.write_bytes(CLEAN[name])
    assert [str(f) for f in audit_file(path).findings if f.severity != "information"] == []


def test_typed_cells_are_taken_as_the_text_they_show(tmp_path):
    import datetime
    import decimal

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    sheet = tmp_path / "a.xlsx"
    rows = [("When was it?", datetime.datetime(1969, 7, 20)), ("Who was it?", "Neil")]
    pd.DataFrame(rows, columns=["question", "answer"]).to_excel(sheet, index=False)
    assert audit_file(sheet).errors == ()
    path = tmp_path / "a.parquet"
    columns = {
        "text": pa.array([b"good", b"bad", "schön".encode()]),  # as Spark may write it
        "score": pa.array([decimal.Decimal(n) for n in ("1.50", "2.25", "0.10")]),
    }
    pq.write_table(pa.table(columns), path)
    audit = audit_file(path)
    assert (audit.row_count, audit.errors) == (3, ())
    columns["label"] = pa.array([decimal.Decimal(n) for n in (1, 0, 1)])
    pq.write_table(pa.table({name: columns[name] for name in ("text", "label")}), path)
    assert audit_file(path).errors == ()


def test_fifty_megabytes_with_faults_in_the_last_rows_are_audited_in_one_pass(tmp_path):
    path = tmp_path / "big.csv"
    line = "what about a question that goes on for a while?," + "and a long answer too " * 8 + "\n"
    two_lines = '"a question\nover two lines?","an answer, quoted"\n'  # lines 2 and 3
    count = 230_000
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("question,answer\n" + two_lines)
        for _ in range(count // 1000):
            file.write(line * 1000)
        file.write("how so?,\n" + "one,two,three\n" + "short\n" + "why?,\x07because\n")
    assert path.stat().st_size > 50_000_000

    audit = audit_file(path)

    last = count + 3
    assert {(f.code, f.where[0], f.count) for f in audit.findings if f.severity == "error"} == {
        ("D23", f"big.csv:{last + 1}", 1),
        ("D04", f"big.csv:{last + 2}", 1),
        ("D05", f"big.csv:{last + 3}", 1),
    }
    assert [f.where for f in audit.findings if f.code == "D14"] == [(f"big.csv:{last + 4}",)]
    assert audit.row_count == count + 3
