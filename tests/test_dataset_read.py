"""Reading: every way to write a conversation gives the same rows, with their places."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.dataset.read import read_dataset
from sftkit.errors import DataError

ASKED = {"role": "user", "content": "Opening hours?"}
ANSWERED = {"role": "assistant", "content": "9 to 5"}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_lines(folder, *rows, name="data.jsonl"):
    return write(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, ANSWERED]},
        {
            "conversations": [
                {"from": "human", "value": "Opening hours?"},
                {"from": "gpt", "value": "9 to 5"},
            ]
        },
        {"instruction": "Opening hours?", "input": "", "output": "9 to 5"},
        {"prompt": "Opening hours?", "completion": "9 to 5"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": "Opening hours?", "response": "9 to 5"},
        {"Question": "Opening hours?", "Answer": "9 to 5"},
    ],
    ids=["messages", "sharegpt", "alpaca", "prompt", "prompt-lists", "response", "question"],
)
def test_every_format_gives_the_same_messages(row, tmp_path):
    dataset = read_dataset(write_lines(tmp_path, row))
    assert dataset[0]["messages"] == [ASKED, ANSWERED]
    assert dataset[0]["id"] == "row-1"
    assert dataset[0]["place"] == "data.jsonl:1"
    assert dataset.column_names == ["id", "messages", "group", "place"]


def test_an_alpaca_input_stands_below_its_instruction(tmp_path):
    row = {"instruction": "Add.", "input": "1 and 2", "output": 3, "system": "Be brief."}
    assert read_dataset(write_lines(tmp_path, row))[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n\n1 and 2"},
        {"role": "assistant", "content": "3"},
    ]


def test_csv_places_count_lines_and_not_rows(tmp_path):
    path = write(
        tmp_path, "a.csv", 'question,answer,topic\nHours?,"9\nto 5",time\n\nFee?,2,money\n'
    )
    dataset = read_dataset(path)
    assert list(dataset["place"]) == ["a.csv:2", "a.csv:5"]
    assert list(dataset["topic"]) == ["time", "money"]
    assert dataset[0]["messages"][1]["content"] == "9\nto 5"


def test_the_words_na_none_and_null_stay_words(tmp_path):
    path = write(tmp_path, "a.csv", "question,answer\nSodium?,NA\nNothing?,None\nZero?,null\n")
    answers = [row["messages"][1]["content"] for row in read_dataset(path)]
    assert answers == ["NA", "None", "null"]


def test_tabs_and_byte_order_marks_are_read(tmp_path):
    path = write(tmp_path, "a.tsv", "\ufeffquestion\tanswer\nHours?\t9, or 10\n")
    assert read_dataset(path)[0]["messages"][1]["content"] == "9, or 10"


@pytest.mark.parametrize("wrapped", [False, True])
def test_json_lists_are_read(wrapped, tmp_path):
    rows = [{"id": 7, "prompt": "a", "completion": "b"}]
    path = write(tmp_path, "a.json", json.dumps({"data": rows} if wrapped else rows, indent=1))
    assert read_dataset(path)[0] | {"group": ""} == {
        "id": "7",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "group": "",
        "place": "a.json row 1",
    }


def test_json_lines_under_the_name_json_are_read(tmp_path):
    path = write_lines(tmp_path, *[{"prompt": "a", "completion": "b"}] * 2, name="a.json")
    assert list(read_dataset(path)["place"]) == ["a.json:1", "a.json:2"]


def test_rows_that_begin_with_the_same_question_are_one_group(tmp_path):
    questions = ("Hours?", "  hours? ", "Fee?")
    rows = [{"question": question, "answer": "x"} for question in questions]
    groups = read_dataset(write_lines(tmp_path, *rows))["group"]
    assert groups[0] == groups[1] != groups[2]


SHOP = [
    {"question": f"{shop} {n}?", "answer": "x", "shop": shop, "part": part}
    for shop, n, part in [("a", 1, "train"), ("b", 1, "dev"), ("a", 2, "test"), ("c", 1, "train")]
]


def test_where_keeps_matching_rows(tmp_path):
    dataset = read_dataset(write_lines(tmp_path, *SHOP), where={"shop": ("a", "c")})
    assert list(dataset["shop"]) == ["a", "a", "c"]


def test_group_by_and_split_by_fill_the_canonical_columns(tmp_path):
    dataset = read_dataset(write_lines(tmp_path, *SHOP), group_by="shop", split_by="part")
    assert list(dataset["group"]) == ["a", "b", "a", "c"]
    assert list(dataset["split"]) == ["train", "validation", "test", "train"]


@pytest.mark.parametrize(
    ("limit", "kept"), [(2, ["a", "a"]), (3, ["a", "b", "a"]), (9, list("abac"))]
)
def test_a_limit_takes_whole_groups_in_order(limit, kept, tmp_path):
    dataset = read_dataset(write_lines(tmp_path, *SHOP), group_by="shop", limit=limit)
    assert list(dataset["shop"]) == kept


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"group_by": "shopp"}, r"group_by='shopp'.*no such column. Did you mean 'shop'"),
        ({"split_by": "prat"}, r"split_by='prat'.*Did you mean 'part'"),
        ({"split_by": "shop"}, r"data.jsonl:1 · shop · the split is 'a'"),
        ({"where": {"shpo": ("a",)}}, r"where='shpo'.*Did you mean 'shop'"),
        ({"where": {"shop": ("z",)}}, r"where=shop: no row of data.jsonl has 'z'. It has a, b, c"),
        ({"group_by": "shop", "limit": 1}, r"limit=1 takes whole groups.*\(a\) has 2 rows"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_words(asked, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read_dataset(write_lines(tmp_path, *SHOP), **asked)


def test_all_faults_of_a_file_come_in_one_error(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "com\n[1]\n'
    )
    with pytest.raises(DataError, match="not readable as JSON") as caught:
        read_dataset(path)
    (finding,) = (f for f in caught.value.findings if f.code == "D15")
    assert (finding.where, finding.count) == (("a.jsonl:2", "a.jsonl:3"), 2)


@pytest.mark.parametrize("name", ["a.xlsx", "missing.jsonl"])
def test_a_file_that_cannot_be_read_is_refused(name, tmp_path):
    if name == "a.xlsx":
        write(tmp_path, name, "x")
    with pytest.raises(DataError, match=name):
        read_dataset(tmp_path / name)


def test_an_unknown_name_gets_the_near_one():
    with pytest.raises(DataError, match="Did you mean 'shop'"):
        read_dataset("shpo")


def test_the_shop_reads_with_its_own_splits_and_groups():
    dataset = read_dataset("shop", split_by="split")
    assert len(dataset) == 384
    assert len(set(dataset["group"])) == 48
    assert set(dataset["split"]) == {"train", "validation", "test", "control"}
    assert set(read_dataset("shop", where={"kind": ["fee"]})["kind"]) == {"fee"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "prompt", "completion", "id", "group", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(JSON, max_size=4))
def test_any_json_is_read_or_refused_in_our_words(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with contextlib.suppress(DataError):
        read_dataset(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["csv", "tsv", "json", "jsonl"]))
def test_any_bytes_are_read_or_refused_in_our_words(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(b"prompt,completion\n" + data if suffix == "csv" else data)
    with contextlib.suppress(DataError):
        read_dataset(path)
