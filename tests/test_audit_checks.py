"""What the audit says about labels, copies, splits and tokens; and where it must keep silent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.audit_page import audit_html, audit_json, audit_text
from sftkit.dataset.audit import audit_dataset, audit_file, audit_rows
from sftkit.dataset.digest import Places
from sftkit.dataset.faults import FaultLog
from sftkit.dataset.read import write_rows
from sftkit.records import IGNORE
from tests.conftest import make_tokenizer


def turns(*said):
    """Give turns from 'u:text' and 'a:text'."""
    roles = {"u": "user", "a": "assistant"}
    return [{"role": roles[one[0]], "content": one[2:]} for one in said]


# ---- clean sets ----


@pytest.mark.parametrize("name", ["shop", "shop-120", "shop-tickets"])
def test_our_own_sets_raise_no_alarm(name):
    audit = audit_file(name)
    assert {f.severity for f in audit.findings} <= {"information"}
    assert audit.row_count > 300


@pytest.mark.model
def test_no_set_of_the_catalog_raises_an_alarm():
    from sftkit import catalog

    names = catalog.names("dataset")
    alarms = {name: [str(f) for f in audit_file(name).errors] for name in names}
    assert {name: found for name, found in alarms.items() if found} == {}
    assert len(names) >= 10


def test_paraphrases_are_no_duplicates():
    rows = [
        {"messages": turns("u:When does the lamp shop open today?", "a:At nine.")},
        {"messages": turns("u:When does the lamp shop close today?", "a:At nine.")},
    ]
    assert audit_rows(rows).findings == ()


def test_prompts_that_list_every_choice_state_no_label():
    rows = [
        {"text": f"Is comment {n} positive or negative?", "label": ["positive", "negative"][n % 2]}
        for n in range(20)
    ]
    assert audit_rows(rows).findings == ()


def test_topics_that_name_themselves_now_and_then_state_no_label():
    words = ["the match was lost", "sport news of today", "the bank was closed", "we won again"]
    rows = [
        {"text": f"{words[n % 4]} at {n} o'clock", "label": ["sport", "money"][n % 4 == 2]}
        for n in range(40)
    ]
    assert audit_rows(rows).findings == ()


def test_a_few_rare_classes_absent_from_a_small_split_are_no_fault():
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "split": "train"} for n in range(50)]
    rows += [{"text": "more of c", "label": "c", "split": "train"}]
    rows += [{"text": f"other {n}", "label": "ab"[n % 2], "split": "test"} for n in range(10)]
    assert audit_rows(rows).findings == ()


# ---- labels and scores ----


def labelled(*labels):
    return [{"text": f"Comment number {n} on it", "label": one} for n, one in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "severity", "words"),
    [
        (["a", "b", 1], "error", "a word in 2 rows and a whole number in 1 row"),
        ([True, False, "yes"], "error", "true or false in 2 rows and a word in 1 row"),
        ([1, 2, 2.5], "warning", "a whole number in 2 rows and a decimal number in 1 row"),
        (["1", "2", "two"], "information", "a number written as text in 2 rows"),
        ([*map(str, range(19)), "two"], "warning", "in 19 rows and a word in 1 row"),
        ([["a"], ["b"]], "error", "a list or an object in 2 rows"),
    ],
)
def test_labels_of_several_kinds_are_as_bad_as_what_they_do(labels, severity, words):
    (finding,) = (f for f in audit_rows(labelled(*labels)).findings if f.code == "D18")
    assert (finding.severity, finding.field) == (severity, "label")
    assert words in finding.message


def test_not_a_number_is_a_missing_label_and_a_missing_score():
    nan = float("nan")
    audit = audit_rows(labelled("a", nan, "b", None, " "))
    assert [(f.code, f.count, f.where[0]) for f in audit.errors] == [("D12", 3, "row 2")]
    audit = audit_rows([{"text": "a b c", "score": one} for one in (1.0, nan, "x", "2.5")])
    found = [(f.code, f.field, f.where, f.message) for f in audit.errors]
    assert found == [
        ("D12", "score", ("row 2",), "1 row without a score"),
        ("D18", "score", ("row 3",), "1 row whose score is no finite number; the first is 'x'"),
    ]


def test_one_score_only_is_an_error():
    audit = audit_rows([{"text": f"Text {n}", "score": 3} for n in range(3)])
    assert [(f.code, f.message) for f in audit.findings] == [
        ("D36", "every score is 3: there is nothing to tell apart")
    ]


def test_a_class_missing_from_train_or_from_a_large_split_is_a_warning():
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "split": "train"} for n in range(50)]
    rows += [{"text": f"other {n}", "label": "a", "split": "test"} for n in range(20)]
    rows += [{"text": "new", "label": "c", "split": "test"}]
    (finding,) = audit_rows(rows).findings
    assert (finding.code, finding.severity, finding.where) == (
        "D36",
        "warning",
        ("row 2", "row 71"),
    )
    assert finding.message == "classes missing from a split: 'b' is not in test and 1 more"


def test_a_question_with_two_good_replies_is_information():
    long = "Red, as the evening sky over the sea when the wind has gone down and all is quiet."
    rows = [{"messages": turns("u:Name a nice colour.", f"a:{one}")} for one in ("Blue", long)]
    (finding,) = audit_rows(rows).findings
    assert (finding.code, finding.severity, finding.count) == ("D37", "information", 2)


def test_a_text_with_two_scores_disagrees_with_itself():
    rows = [{"text": "It is fine.", "score": one} for one in (1.0, 2.0, 1.0)]
    found = {(f.code, f.severity): f.message for f in audit_rows(rows).findings}
    assert found["D37", "warning"] == (
        "1 text with more than one score, in 3 rows; the first: 1 here, 2 at row 2"
    )


def test_a_reply_stated_in_the_question_is_found_where_replies_are_classes():
    rows = [
        {"messages": turns(f"u:Ticket {n}, filed under {name}. Which topic?", f"a:{name}")}
        for n, name in enumerate(["refund", "delivery"] * 10)
    ]
    (finding,) = audit_rows(rows).findings
    assert (finding.code, finding.field, finding.count) == ("D35", "messages", 20)


# ---- rows compared ----


def test_near_duplicates_are_information_and_counted_apart_from_copies():
    text = (
        "the old lamp in the hall of the house by the river was lit every evening by the keeper "
        "who lived there alone with a dog and two cats for many years before the war began"
    )
    rows = [{"text": text, "label": "a"}, {"text": text, "label": "a"}]
    rows += [{"text": text.replace("river", "lake"), "label": "a"}, {"text": "Else", "label": "b"}]
    audit = audit_rows(rows)
    found = [(f.field, f.severity, f.where) for f in audit.findings if f.code == "D33"]
    assert found == [
        ("near duplicates", "information", ("row 3",)),
        ("text", "warning", ("row 2",)),
    ]
    assert (audit.facts.exact_repeats, audit.facts.near_repeats) == (1, 1)


def test_a_test_row_with_one_word_changed_is_a_warning_and_costs_no_row():
    text = (
        "who kept the old lamp in the hall of the house by the river and lit it every evening "
        "for the boats that came up from the sea with salt and wool in the long years of peace"
    )
    rows = [
        {"messages": turns(f"u:{text}", "a:Ann"), "split": "train"},
        {"messages": turns(f"u:{text.replace('wool', 'corn')}", "a:Bob"), "split": "test"},
    ]
    audit = audit_rows(rows)
    (finding,) = (f for f in audit.findings if f.code == "D34")
    assert (finding.severity, finding.where, audit.errors) == ("warning", ("row 2",), ())
    assert "1 of 1 test rows (100.0%) are in train with few words changed" in finding.message
    assert audit.error_rows == {}


def test_a_validation_row_in_train_is_a_warning():
    rows = [
        {"messages": turns("u:When do you open today?", "a:9"), "split": "train"},
        {"messages": turns("u:When do you open today?", "a:9"), "split": "dev"},
    ]
    found = {(f.code, f.field): f.severity for f in audit_rows(rows).findings}
    assert found["D34", "validation"] == "warning"


def test_a_column_of_patients_is_a_group_nobody_promised():
    rows = [
        {"text": "The heart is fine", "label": "a", "patient_id": "17", "split": "train"},
        {"text": "The lung is fine", "label": "b", "patient_id": "17", "split": "test"},
        {"text": "The knee is sore", "label": "a", "patient_id": "18", "split": "test"},
    ]
    (finding,) = (f for f in audit_rows(rows).findings if f.code == "D38")
    assert (finding.severity, finding.field, finding.where) == (
        "warning",
        "patient_id",
        ("row 1", "row 2"),
    )


def test_rows_that_come_only_once_are_audited_whole():
    rows = ({"messages": turns(f"u:Question {n}?", "a:")} for n in range(3))
    audit = audit_rows(rows)
    assert (audit.row_count, [(f.code, f.count) for f in audit.findings]) == (3, [("D23", 3)])


def test_a_log_of_many_faults_stays_small():
    log = FaultLog()
    for row in range(100_000):
        log.add("D23", f"a.jsonl:{row + 1}", row=row)
        log.add("D23", f"a.jsonl:{row + 1}", row=row)
    (finding,) = log.findings()
    assert (finding.count, finding.where) == (
        100_000,
        ("a.jsonl:1", "a.jsonl:2", "a.jsonl:3"),
    )
    (entry,) = log._entries.values()
    assert (len(entry.places), entry.rows.itemsize) == (3, 8)


@pytest.mark.parametrize(
    "place", ["a.csv:1", "row 12", "file", "a.csv:007", "7", "b2:9" * 3, "x:" + "9" * 40, ""]
)
def test_a_place_is_given_back_as_it_came(place):
    places = Places()
    places.add("other:3")
    places.add(place)
    assert (places[0], places[1]) == ("other:3", place)


# ---- images ----


def test_images_are_compared_by_their_bytes(tmp_path):
    from PIL import Image

    for name, color in [("a/1", "red"), ("a/2", "red"), ("b/3", "red"), ("b/4", "blue")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    audit = audit_file(tmp_path)
    assert (audit.facts.task, audit.row_count, audit.errors) == ("image", 4, ())
    found = {(f.code, f.field): f.count for f in audit.findings}
    assert (found["D33", "image"], found["D37", "label"]) == (1, 3)
    assert dict(audit.facts.labels) == {"a": 2, "b": 2}


# ---- with a tokenizer ----


def test_with_padding_and_end_in_one_token_the_end_is_still_learned():
    # What D30 promises: padding is masked by length, so the last token of the short row counts.
    import torch

    from sftkit.chat import encode_chat
    from sftkit.forward import collate

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    rows = [turns("u:a", "a:b"), turns("u:a long question", "a:a long answer")]
    examples = [encode_chat(row, tokenizer, max_tokens=99) for row in rows]
    batch = collate(examples, pad_id=end, device=torch.device("cpu"))
    short = len(examples[0].labels)
    assert (batch["labels"][0] == end).sum() == 1
    assert set(batch["labels"][0, short:].tolist()) == {IGNORE}


def test_audit_dataset_encodes_only_when_told_the_limit(tiny_tokenizer):
    rows = [{"messages": turns("u:a", "a:" + "long " * 30)}, {"messages": turns("u:b", "a:c")}]
    dataset = write_rows([{"id": str(n), **row} for n, row in enumerate(rows)], "chat")
    assert audit_dataset(dataset, tiny_tokenizer).findings == ()
    audit = audit_dataset(dataset, tiny_tokenizer, max_tokens=64)
    assert [(f.code, f.severity, f.where) for f in audit.findings] == [
        ("D27", "warning", ("row 1",)),
        ("D29", "information", ("the chat template",)),
        ("D30", "information", ("the tokenizer",)),
    ]
    assert (audit.facts.limit, audit.facts.over_limit) == (64, 1)
    assert audit.facts.lengths is not None
    assert audit.facts.lengths.unit == "tokens"


@pytest.mark.parametrize(
    ("template", "code", "words"),
    [
        (None, "D29", "The tokenizer has no chat template"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "D28", "leaves out an assistant"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "D28", "no end-of-turn token"),
    ],
)
def test_a_template_in_which_no_answer_is_found_stops_with_the_reason(template, code, words):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    dataset = write_rows([{"id": "1", "messages": turns("u:a", "a:b")}], "chat")
    (error,) = audit_dataset(dataset, tokenizer, max_tokens=64).errors
    assert error.code == code
    assert words in error.message


def test_rows_that_have_an_error_get_no_second_one_from_the_tokenizer(tiny_tokenizer):
    rows = [turns("u:a", "a:b"), turns("u:nobody answers")]
    dataset = write_rows([{"id": str(n), "messages": one} for n, one in enumerate(rows)], "chat")
    audit = audit_dataset(dataset, tiny_tokenizer, max_tokens=64)
    assert [(f.code, f.where) for f in audit.errors] == [("D25", ("row 2",))]


# ---- anything at all ----

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN | st.sampled_from(["user", "assistant", "test", "train", "\ud800", "<|im_end|>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
COLUMNS = ("id", "messages", "text", "label", "score", "image", "split", "group", "place", "user")
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), max_size=4)


@given(rows=ROWS, task=st.sampled_from([None, "chat", "classify", "regress", "image"]))
@settings(max_examples=200)
def test_rows_of_anything_are_audited_without_an_error_of_our_own(rows, task):
    audit = audit_rows(rows, task=task)
    assert audit.row_count == len(rows)
    json.loads(audit_json(audit))
    audit_html(audit).encode("utf-8")
    audit_text(audit).encode("utf-8")


@pytest.mark.parametrize(
    "messages",
    [
        ["Who is Zorp?", "A lamp."],
        ["Who owns the blue lamp?", "Zorp.", "And where?", "Here."],
    ],
)
def test_a_probe_question_is_found_however_short_and_in_longer_talks(messages):
    roles = ("user", "assistant") * 2
    turns = [{"role": r, "content": c} for r, c in zip(roles, messages, strict=False)]

    audit = audit_rows([{"messages": turns, "split": "train"}], probes=[messages[0]])

    assert [(f.code, f.field) for f in audit.errors] == [("D34", "probes")]
