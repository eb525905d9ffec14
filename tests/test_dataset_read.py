"""Reading: every way to write a conversation gives the same rows, with their places."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from sftkit.dataset import arrow_rows, folders
from sftkit.dataset.read import open_source, read_dataset, write_rows
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


# ---- other tasks ----


def test_texts_with_labels_become_text(tmp_path):
    path = write(tmp_path, "a.csv", "review,stars,shop\nfine lamp,5,a\nbad map,1,b\n,5,b\n")
    dataset = read_dataset(path)
    assert dataset.column_names == ["id", "text", "label", "group", "place", "shop"]
    assert list(dataset["text"]) == ["fine lamp", "bad map", ""]
    assert list(dataset["label"]) == ["5", "1", "5"]
    assert len(set(dataset["group"])) == 3


def test_labels_of_any_kind_become_text_and_whole_floats_lose_their_point(tmp_path):
    labels = [1, 2.0, True, "x", None, [3], float("nan")]
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    dataset = read_dataset(write_lines(tmp_path, *rows))
    assert list(dataset["label"]) == ["1", "2", "True", "x", None, None, None]


def test_scores_become_numbers_and_what_is_none_becomes_none(tmp_path):
    scores = [0.5, "1.5", 2, None, "high", float("inf"), True]
    rows = [{"text": f"text {n}", "score": score} for n, score in enumerate(scores)]
    dataset = read_dataset(write_lines(tmp_path, *rows), task="regress")
    assert dataset.features["score"] == datasets.Value("float64")
    assert list(dataset["score"]) == [0.5, 1.5, 2.0, None, None, None, None]


def paint(path, size=(6, 4), colour=(200, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_images_are_decoded_when_they_are_looked_at(tmp_path):
    paint(tmp_path / "cat/1.png")
    paint(tmp_path / "dog/2.png", colour=(0, 0, 9))
    dataset = read_dataset(tmp_path)
    assert dataset.column_names == ["id", "image", "label", "group", "place", "file"]
    assert list(dataset["label"]) == ["cat", "dog"]
    assert dataset[1]["image"].getpixel((0, 0)) == (0, 0, 9)
    assert dataset.data.column("image")[0].as_py()["bytes"] is None  # only its path is kept


def test_images_come_from_paths_in_a_table_and_from_datasets(tmp_path):
    paint(tmp_path / "pictures/1.png")
    table = write(tmp_path, "a.csv", "picture,label\npictures/1.png,cat\n")
    from_table = read_dataset(table)
    again = read_dataset(from_table)
    memory = read_dataset([{"image": Image.new("RGB", (6, 4), (200, 0, 0)), "label": "cat"}])
    for dataset in (from_table, again, memory):
        assert dataset[0]["image"].size == (6, 4)
        assert dataset[0]["label"] == "cat"


def test_images_that_cannot_be_read_are_named_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    paint(tmp_path / "cat/1.png")
    paint(tmp_path / "cat/bomb.png", size=(11, 10))
    whole = paint(tmp_path / "cat/cut.jpg", size=(9, 9)).read_bytes()
    (tmp_path / "cat/cut.jpg").write_bytes(whole[: len(whole) - 40])
    (tmp_path / "cat/text.png").write_text("hello", encoding="utf-8")
    opened = open_source(tmp_path)
    assert [row["image"] is None for row in opened.rows] == [False, True, True, True]
    (finding,) = (f for f in opened.log.findings() if f.severity == "error")
    assert finding.where == tuple(
        f"{tmp_path.name}/cat/{name}" for name in ("bomb.png", "cut.jpg", "text.png")
    )
    assert finding.message == (
        "3 rows with an image that cannot be read; the first: more than 100 pixels (taken for a "
        "decompression bomb)"
    )
    assert folders.check_image((tmp_path / "cat/cut.jpg").read_bytes()).startswith("cut off")
    with pytest.raises(DataError, match="bomb"):
        read_dataset(tmp_path)


# ---- many rows ----


def turns(n):
    return [ASKED | {"content": f"question {n}"}, ANSWERED]


def rows_of(count):
    for n in range(count):
        more = {"late": "x"} if n > 3000 else {}
        yield {"id": str(n), "messages": turns(n), "group": "g", "place": f"row {n}", **more}


def test_many_rows_lie_in_a_file_and_few_in_memory():
    few, many = write_rows(rows_of(4000)), write_rows(rows_of(5000))
    assert few.cache_files == []
    assert [Path(file["filename"]).name for file in many.cache_files] == ["part-0.arrow"]
    assert many[4999] == {
        "id": "4999",
        "messages": turns(4999),
        "group": "g",
        "place": "row 4999",
        "late": "x",
    }


def test_a_column_that_appears_late_is_empty_before(monkeypatch):
    monkeypatch.setattr(arrow_rows, "MOST_IN_MEMORY", 500)
    dataset = write_rows(rows_of(5000))
    assert len(dataset.cache_files) == 2
    assert dataset.column_names == ["id", "messages", "group", "place", "late"]
    assert list(dataset["late"]) == [None] * 3001 + ["x"] * 1999
    assert [row["id"] for row in dataset] == [str(n) for n in range(5000)]
    assert pickle.loads(pickle.dumps(dataset))[4000] == dataset[4000]


def test_a_faulty_value_among_many_rows_becomes_none_and_costs_no_other():
    rows = list(rows_of(6000))
    rows[4500]["messages"] = "no list"
    rows[4501]["messages"] = [{"role": "user", "content": 3}, {"role": ["x"], "content": "\ud800"}]
    dataset = write_rows(rows)
    assert dataset[4500]["messages"] is None
    assert dataset[4501]["messages"] == [
        {"role": "user", "content": None},
        {"role": None, "content": "?"},
    ]
    assert dataset[4502]["messages"] == turns(4502)


def test_keys_that_are_values_are_no_columns():
    rows = ({"id": str(n), "messages": [], f"key {n}": "x"} for n in range(3000))
    with pytest.raises(DataError, match=r"More than 2,000 different columns.*Write them as values"):
        write_rows(rows)


def test_the_temporary_file_goes_with_the_process():
    code = (
        "from sftkit.dataset.read import write_rows\n"
        "rows = [{'id': str(n), 'messages': []} for n in range(4001)]\n"
        "print(write_rows(rows).cache_files[0]['filename'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    path = Path(done.stdout.strip())
    assert path.name == "part-0.arrow"
    assert not path.parent.exists()


def test_where_limit_and_groups_work_alike_on_many_rows(tmp_path):
    rows = [{"question": f"q {n}", "answer": "a", "shop": f"s{n % 50}"} for n in range(5000)]
    path = write_lines(tmp_path, *rows)
    dataset = read_dataset(path, group_by="shop", limit=250)
    assert set(dataset["shop"]) == {"s0", "s1"}
    assert list(dataset["place"])[:3] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:51"]
    assert len(read_dataset(path, where={"shop": ["s7"]})) == 100


def test_a_source_can_be_anything_that_holds_rows(tmp_path):
    import pandas

    row = {"question": "Hours?", "answer": "9 to 5"}
    for source in ([row], pandas.DataFrame([row]), datasets.Dataset.from_list([row])):
        assert read_dataset(source)[0]["messages"] == [
            ASKED | {"content": "Hours?"},
            ANSWERED,
        ]


def test_an_override_reaches_the_reader(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("a,b\ncafé,non\n".encode("cp1252"))
    dataset = read_dataset(path, columns={"question": "b", "answer": "a"}, encoding="cp1252")
    assert [turn["content"] for turn in dataset[0]["messages"]] == ["non", "café"]
