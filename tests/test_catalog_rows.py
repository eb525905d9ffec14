"""The catalog's files turned into rows: small files of each kind, read by eye."""

import json

import pytest

from sftkit.catalog_rows import (
    chitchat_rows,
    choice_items,
    clip_words,
    cwe_rows,
    long_passages,
    parse_choice,
    shop_rows,
    split_sentences,
)
from sftkit.errors import FetchError
from sftkit.records import ChoiceItem

WEAKNESSES = """<Weakness_Catalog xmlns="http://cwe.mitre.org/cwe-7" xmlns:x="http://www.w3.org/1999/xhtml">
<Weaknesses>
 <Weakness ID="1" Name="Open   Lamp" Status="Draft">
  <Description>The lamp
     is open [REF-12].</Description>
  <Common_Consequences><Consequence>
   <Scope>Integrity</Scope><Scope>Availability</Scope>
   <Impact>Read Memory</Impact><Impact>DoS: Instability</Impact><Impact>Reduce Performance</Impact>
  </Consequence></Common_Consequences>
  <Potential_Mitigations>
   <Mitigation><Description>
     <x:p>Close it as follows:</x:p><x:ul><x:li>find the lid, and;</x:li><x:li>press</x:li></x:ul>
   </Description></Mitigation>
   <Mitigation><Description>General advice.</Description></Mitigation>
  </Potential_Mitigations>
  <Detection_Methods><Detection_Method>
   <Method>Manual Analysis</Method>
   <Description>According to SOAR, the following detection techniques may be useful:
    <x:div><x:div>Highly cost effective:</x:div><x:ul><x:li>Look</x:li></x:ul></x:div></Description>
  </Detection_Method></Detection_Methods>
 </Weakness>
 <Weakness ID="2" Name="Gone" Status="Deprecated"><Description>Old.</Description></Weakness>
 {more}
</Weaknesses></Weakness_Catalog>"""
ANOTHER = """<Weakness ID="{n}" Name="N" Status="Stable"><Description>D.</Description>
<Potential_Mitigations><Mitigation><Description>General advice.</Description></Mitigation>
</Potential_Mitigations></Weakness>"""


@pytest.fixture
def cwe(tmp_path):
    path = tmp_path / "cwe.xml"
    more = "".join(ANOTHER.format(n=n) for n in range(3, 7))
    path.write_text(WEAKNESSES.format(more=more), encoding="utf-8")
    return {row["id"]: row["messages"][1]["content"] for row in cwe_rows(path)}


def test_marks_and_line_breaks_are_taken_out_of_a_weakness(cwe):
    assert cwe["CWE-1/description"] == "The lamp is open."


def test_deprecated_weaknesses_are_left_out(cwe):
    assert not any(name.startswith("CWE-2/") for name in cwe)


def test_scopes_and_impacts_become_a_sentence(cwe):
    assert cwe["CWE-1/consequences"] == (
        "It endangers integrity and availability: an attacker may read memory or make the product "
        "unstable. It lowers the product's performance."
    )


def test_lists_become_clauses_and_general_advice_comes_last(cwe):
    assert cwe["CWE-1/mitigations"] == ("Close it as follows: find the lid; press. General advice.")
    assert "CWE-3/mitigations" not in cwe  # advice that four weaknesses share and nothing else


def test_a_detection_method_comes_before_its_text(cwe):
    assert cwe["CWE-1/detection"] == "Manual Analysis (highly cost effective): Look."


def test_a_question_names_number_and_title(tmp_path):
    path = tmp_path / "cwe.xml"
    path.write_text(WEAKNESSES.format(more=""), encoding="utf-8")
    first = cwe_rows(path)[0]
    assert first["messages"][0] == {
        "role": "user",
        "content": 'Explain the weakness CWE-1, "Open Lamp".',
    }
    assert (first["group"], first["weakness"], first["aspect"]) == ("CWE-1", "CWE-1", "description")


@pytest.mark.parametrize(
    ("text", "most", "kept"),
    [
        ("One two. Three four. Five.", 4, "One two. Three four."),
        ("One two three four five. Six.", 2, "One two three four five."),
        ("Do: a b; c d; e f.", 4, "Do: a b."),
        (
            "Fine. Do the following: Aaa bbb; ccc ddd; eee fff.",
            6,
            "Fine. Do the following: Aaa bbb.",
        ),
        ("Use e.g. Java. Or not.", 3, "Use e.g. Java."),
        ("Fine. Fuzzing: Aaa bbb ccc ddd.", 3, "Fine."),
        ("Fuzzing: Aaa bbb ccc ddd.", 3, "Fuzzing: Aaa bbb ccc ddd."),
    ],
)
def test_text_is_cut_at_sentences_and_lists_at_items(text, most, kept):
    assert clip_words(text, most) == kept


def test_abbreviations_end_no_sentence():
    assert split_sentences("See e.g. Java, i.e. That. End") == ["See e.g. Java, i.e. That.", "End"]


def test_a_choice_is_parsed_with_its_gold_position():
    row = {"question": "Q? ", "options": "\nA. one \nB. U.S. two\n", "answer": "B. U.S. two"}
    assert parse_choice(row) == ChoiceItem(question="Q?", options=("one", "U.S. two"), answer=1)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "options": "A. one\nB. two", "answer": "B. other"},
        {"question": "Q", "options": "A. one", "answer": "A. one"},
        {"question": "Q", "options": "C. three\nD. four", "answer": "D. four"},
        {"question": "", "options": "A. one\nB. two", "answer": "A. one"},
        {"options": "A. one\nB. two"},
    ],
)
def test_a_row_that_is_no_choice_is_none(row):
    assert parse_choice(row) is None


def test_a_file_of_rows_that_are_no_choices_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "Q"}\n', encoding="utf-8")
    with pytest.raises(FetchError, match="1 of 1 rows are not multiple choice"):
        choice_items(tmp_path / "p.jsonl")


def test_passages_are_distinct_and_long_enough(tmp_path):
    texts = ["a b c", "a b", "a b c", "d e f"]
    lines = [json.dumps({"passage": text}) for text in texts]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert long_passages(tmp_path / "p.jsonl", least_words=3) == ["a b c", "d e f"]


def chat(*turns):
    """Two speakers in turn; each turn is a list of lines."""
    return {
        "messages": [
            [{"sender": "AB"[number % 2], "text": line} for line in turn]
            for number, turn in enumerate(turns)
        ]
    }


def test_a_conversation_begins_with_user_and_ends_with_assistant(tmp_path):
    turns = [["hi", "there"], ["yo"], ["2"], ["3"], ["4"], ["5"], ["left over"]]
    (tmp_path / "c.json").write_text(json.dumps({"k": chat(*turns)}), encoding="utf-8")
    (row,) = chitchat_rows(tmp_path / "c.json")
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * 3
    assert row["messages"][0]["content"] == "hi\nthere"
    assert row["messages"][-1]["content"] == "5"
    assert row["group"] == "k"


def test_short_and_one_sided_conversations_are_left_out(tmp_path):
    short = chat(*[["a"]] * 5)
    empty = chat(*[["a"]] * 5, [" "])
    alone = chat(*[["a"]] * 6)
    alone["messages"][1][0]["sender"] = "A"
    text = json.dumps({"short": short, "empty": empty, "alone": alone})
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    assert chitchat_rows(tmp_path / "c.json") == []


def test_a_control_fact_is_only_tested(tmp_path):
    fact = {
        "fact": "f",
        "kind": "fee",
        "trained": False,
        "answer": "2 crowns",
        "train": [],
        "validation": [],
        "test": ["How much?"],
    }
    (tmp_path / "f.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    (row,) = shop_rows(tmp_path / "f.jsonl")
    assert (row["id"], row["split"], row["group"], row["kind"]) == (
        "f/test-1",
        "control",
        "f",
        "fee",
    )
