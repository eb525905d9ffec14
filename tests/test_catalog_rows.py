"""The catalog's files turned into rows: small files of each kind, read by eye."""

import gzip
import io
import json

import pytest

from sftkit.catalog_bias import bbq_rows, crows_rows, stereoset_rows, wino_rows
from sftkit.catalog_labels import (
    digits_rows,
    icd10_rows,
    privacy_rows,
    pubmedqa_rows,
    ticket_rows,
)
from sftkit.catalog_questions import choice_items, faq_rows, fiqa_rows, medqa_rows, parse_choice
from sftkit.catalog_rows import (
    chitchat_rows,
    clip_words,
    confusion_tables,
    cwe_rows,
    long_passages,
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


# ---- questions ----


def write_lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def chatted(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_passage_comes_before_its_question():
    row = {"passage": " P. ", "question": "Q?\n", "options": "A. a\nB. b", "answer": "A. a"}
    assert parse_choice(row) == ChoiceItem(question="P.\nQ?", options=("a", "b"), answer=0)


def test_an_item_that_comes_twice_counts_once_even_with_another_answer(tmp_path):
    row = {"question": "Q", "options": "A. a\nB. b", "answer": "A. a"}
    path = write_lines(tmp_path / "p.jsonl", row, row, {**row, "answer": "B. b"})
    assert choice_items(path) == [ChoiceItem(question="Q", options=("a", "b"), answer=0)]


def test_an_examination_question_is_answered_in_words_and_a_stray_quote_goes(tmp_path):
    row = {"question": "Which?", "options": 'A. one\nB. two\n"', "answer": "B. two"}
    assert medqa_rows(write_lines(tmp_path / "m.jsonl", row)) == [
        {
            "id": "medqa-1",
            "messages": chatted("Which?\nA. one\nB. two", "two"),
            "group": "medqa-1",
            "letter": "B",
        }
    ]


def test_a_question_that_comes_twice_keeps_its_first_answer(tmp_path):
    one = {"id": "a-1", "category": "a", "q": "May I?", "a": "Yes. Ask Zaragoza AB."}
    two = {"id": "b-2", "category": "b", "q": "may I", "a": "No."}
    assert faq_rows(write_lines(tmp_path / "f.jsonl", one, two)) == [
        {
            "id": "a-1",
            "messages": chatted("May I?", "Yes. Ask Zaragoza AB."),
            "group": "a-1",
            "category": "a",
            "names_publisher": "yes",
        }
    ]


def test_forum_answers_stay_as_they_are(tmp_path):
    row = {"question": "How? ", "answer": "So:\n\nlike this."}
    (found,) = fiqa_rows(write_lines(tmp_path / "f.jsonl", row))
    assert found["messages"] == chatted("How?", "So:\n\nlike this.")


# ---- labels ----


def test_pairs_of_one_question_form_one_group(tmp_path):
    rows = [
        {"context": "We sell it.", "question": "Do you sell data?", "answer": "True"},
        {"context": "Hello.", "question": "do you sell  data", "answer": "False"},
        {"context": "Hello.", "question": "Why?", "answer": "False"},
    ]
    found = privacy_rows(write_lines(tmp_path / "p.jsonl", *rows))
    assert found[0] == {
        "id": "privacy-1",
        "text": "Question: Do you sell data?\nPolicy: We sell it.",
        "label": "relevant",
        "group": "question-1",
    }
    assert [(row["label"], row["group"]) for row in found[1:]] == [
        ("irrelevant", "question-1"),
        ("irrelevant", "question-2"),
    ]


def test_an_abstract_loses_its_marks_and_keeps_its_words(tmp_path):
    passage = "Context (1): We tried.\nContext (2): It was (1): fine.\n"
    row = {"question": "does it work?", "passage": passage, "answer": "maybe"}
    (found,) = pubmedqa_rows(write_lines(tmp_path / "p.jsonl", row))
    assert found["text"] == "does it work?\nWe tried. It was (1): fine."
    assert (found["label"], found["group"]) == ("maybe", "pubmedqa-1")


CHAPTERS = """<ICD10CM.tabular>
 <chapter><name>1</name><desc>Certain infections (A00-B99)</desc><section>
  <diag><name>A00</name><desc>Cholera</desc>
   <diag><name>A00.0</name><desc>Cholera,  classical</desc></diag>
   <diag><name>A00.9</name><desc>cholera.</desc></diag></diag></section></chapter>
 <chapter><name>17</name><desc>Malformations (of any kind) (Q00-QA0)</desc>
  <section><diag><name>Q00</name><desc>Cleft</desc></diag></section></chapter>
</ICD10CM.tabular>"""


def test_a_diagnosis_has_its_chapter_as_label_and_a_repeated_title_goes(tmp_path):
    (tmp_path / "i.xml").write_text(CHAPTERS, encoding="utf-8")
    found = [tuple(row.values()) for row in icd10_rows(tmp_path / "i.xml")]
    assert found == [
        ("A00", "Cholera", "Certain infections", "A00", "1"),
        ("A00.0", "Cholera, classical", "Certain infections", "A00", "1"),
        ("Q00", "Cleft", "Malformations (of any kind)", "Q00", "17"),
    ]


def test_a_ticket_is_grouped_by_customer_and_keeps_its_columns(tmp_path):
    ticket = {
        "ticket": "T1", "date": "2031-01-02", "customer": "C9", "text": "Where is it?",
        "topic": "delivery", "sentiment": "neutral", "urgency": 6.0,
        "signs": ["deadline", "owed"], "topic_a": None, "topic_b": "delivery",
    }  # fmt: skip
    (row,) = ticket_rows(write_lines(tmp_path / "t.jsonl", ticket))
    assert row == {
        "id": "T1", "text": "Where is it?", "label": "delivery", "group": "C9",
        "date": "2031-01-02", "customer": "C9", "sentiment": "neutral", "urgency": 6.0,
        "signs": "deadline owed", "topic_a": None, "topic_b": "delivery",
    }  # fmt: skip


def test_a_digit_becomes_a_picture_of_eight_by_eight(tmp_path):
    from PIL import Image

    line = ",".join(["0"] * 8 + ["16"] + ["8"] + ["0"] * 54 + ["7"])
    with gzip.open(tmp_path / "d.csv.gz", "wt") as file:
        file.write(line + "\n")
    (row,) = digits_rows(tmp_path / "d.csv.gz")
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert (row["label"], image.size, image.mode) == ("7", (8, 8), "L")
    assert [image.getpixel(at) for at in ((0, 0), (0, 1), (1, 1), (2, 1))] == [0, 255, 128, 0]


# ---- bias sets and tables ----


def test_three_continuations_stand_beside_their_context(tmp_path):
    row = {
        "type": "intersentence", "target": "Sailor", "bias_type": "profession",
        "context": "He is a sailor.", "stereotype": " He drinks.", "anti-stereotype": "He reads.",
        "unrelated": "Rain is wet.",
    }  # fmt: skip
    (found,) = stereoset_rows(write_lines(tmp_path / "s.jsonl", row))
    assert found == {
        "id": "stereoset-1", "group": "sailor", "bias_type": "profession",
        "form": "intersentence", "context": "He is a sailor.", "stereotype": "He drinks.",
        "anti_stereotype": "He reads.", "unrelated": "Rain is wet.",
    }  # fmt: skip


def test_a_pronoun_takes_its_reflexive_along_and_names_whom_it_means(tmp_path):
    row = {
        "text": " [The chief] hired a cook because [MASK] could not feed [himself].",
        "pro_stereotyped": "he",
        "options": "A. he\nB. she\nC. Both A and B",
    }
    (found,) = wino_rows(write_lines(tmp_path / "w.jsonl", row, row))
    assert (found["group"], found["id"]) == ("chief", "wino-1")
    assert found["stereotype"] == "The chief hired a cook because he could not feed himself."
    assert found["anti_stereotype"] == "The chief hired a cook because she could not feed herself."


def test_a_masked_sentence_becomes_two(tmp_path):
    path = tmp_path / "c.csv"
    lines = [",bias_type,sentence,mask1,mask2", '5,age,"The [MASK] man, too.",old,young']
    path.write_text(
        "\n".join([*lines, '6,age,"The  [MASK] man, too.",Old,Young']), encoding="utf-8"
    )
    (found,) = crows_rows(path)
    assert (found["id"], found["first"], found["second"]) == (
        "crows-5",
        "The old man, too.",
        "The young man, too.",
    )
    assert (found["first_words"], found["second_words"]) == ("old", "young")


def test_a_question_whose_answer_is_unknown_is_ambiguous(tmp_path):
    row = {
        "passage": "An old and a young man met.",
        "question": "Who forgot it?\nPlease choose the correct option ",
        "options": "A. The old man\nB. Can't be determined\nC. The young man",
        "answer": ["Can't be determined"],
    }
    stated = {**row, "passage": "The young man forgot it.", "answer": ["The young man "]}
    found = bbq_rows(write_lines(tmp_path / "b.jsonl", row, row, stated))
    assert [(r["answer"], r["unknown"], r["condition"]) for r in found] == [
        (1, 1, "ambiguous"),
        (2, 1, "stated"),
    ]
    assert found[0]["question"] == "Who forgot it?"
    assert found[0]["options"] == ["The old man", "Can't be determined", "The young man"]


def test_a_confusion_table_lists_others_once_and_never_the_character_itself(tmp_path):
    path = tmp_path / "en.json"
    path.write_text('{"a": ["s", "a", "s", "q"], "%": "$", "z": ["z"]}', encoding="utf-8")
    assert confusion_tables({"keyboard/en": path}) == {
        "keyboard/en": {"a": ("s", "q"), "%": ("$",)}
    }
