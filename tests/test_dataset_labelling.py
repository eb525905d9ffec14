"""The labelling widget: buttons write at once, a crash costs one label, text is no markup."""

import builtins
import json
import subprocess
import sys

import pytest
from datasets import Dataset

from sftkit.dataset.labelling import LabelFile, label_rows
from sftkit.errors import DataError

TEXTS = ["good lamp", "<script>alert(1)</script>", "bad chair", "fine"]


@pytest.fixture
def dataset():
    return Dataset.from_dict(
        {"id": ["a", "b", "c", "d"], "text": TEXTS, "label": [None, "", None, "pos"]}
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pressing_a_button_writes_the_label_and_shows_the_next_unlabelled_row(dataset, tmp_path):
    path = tmp_path / "labels.jsonl"
    widget = label_rows(dataset, ["pos", "neg"], path)
    assert (widget.shown, widget.progress, path.exists()) == (0, "0 of 3 done", False)
    widget.buttons["pos"].click()
    assert [(line["row"], line["id"], line["label"]) for line in lines(path)] == [(0, "a", "pos")]
    assert (widget.shown, widget.progress) == (1, "1 of 3 done")
    widget.skip.click()
    widget.buttons["neg"].click()
    assert (widget.shown, widget.progress) == (None, "3 of 3 done, 1 of them skipped")
    assert widget.file.labels == {0: "pos", 2: "neg"}
    assert widget.buttons["pos"].disabled
    widget.buttons["pos"].click()
    assert len(lines(path)) == 3
    assert dataset["label"][0] is None


def test_text_of_the_data_is_shown_and_never_run(dataset, tmp_path):
    widget = label_rows(dataset, ["pos"], tmp_path / "<b>.jsonl", rows=[1])
    progress, text, *_ = widget.widget.children
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text.value
    assert "<script" not in text.value
    assert "<b>" not in progress.value
    assert "text/plain" in widget._repr_mimebundle_()


def test_a_long_text_is_cut_for_the_eye_only(tmp_path):
    dataset = Dataset.from_dict({"text": ["x" * 20_050]})
    widget = label_rows(dataset, ["a"], tmp_path / "labels.jsonl")
    assert "… (50 characters more)" in widget.widget.children[1].value


def test_undo_takes_back_the_last_label_also_after_a_restart(dataset, tmp_path):
    path = tmp_path / "labels.jsonl"
    widget = label_rows(dataset, ["pos", "neg"], path)
    widget.undo.click()
    assert not path.exists()
    widget.buttons["pos"].click()
    widget.buttons["pos"].click()
    again = label_rows(dataset, ["pos", "neg"], path)
    assert again.shown == 2
    again.undo.click()
    assert (again.shown, again.file.labels) == (1, {0: "pos"})
    again.buttons["neg"].click()
    assert again.file.labels == {0: "pos", 1: "neg"}
    again.undo.click()
    again.undo.click()
    assert (again.shown, again.file.labels) == (0, {})
    assert LabelFile(path, dataset).labels == {}


def test_labelling_goes_on_where_it_stopped_and_suspects_may_be_chosen(dataset, tmp_path):
    path = tmp_path / "labels.jsonl"
    label_rows(dataset, ["pos"], path, rows=[3, 1]).buttons["pos"].click()
    widget = label_rows(dataset, ["pos"], path, rows=[3, 1])
    assert (widget.shown, widget.progress) == (1, "1 of 2 done")


@pytest.mark.parametrize("kept", [1, 8, 9, 40, -4])
def test_a_line_cut_off_by_a_crash_costs_that_one_label(dataset, tmp_path, kept):
    path = tmp_path / "labels.jsonl"
    widget = label_rows(dataset, ["pos", "né"], path)
    widget.buttons["pos"].click()
    whole = path.read_bytes()
    widget.buttons["né"].click()
    path.write_bytes(path.read_bytes()[: len(whole) + kept if kept > 0 else kept])
    again = label_rows(dataset, ["pos", "neg"], path)
    assert (again.shown, again.file.labels) == (1, {0: "pos"})
    again.buttons["pos"].click()
    assert LabelFile(path, dataset).labels == {0: "pos", 1: "pos"}
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\ngood,pos\n", r"labels.jsonl:1 is no label. .* give another path"),
        ('{"text": "good"}\n', "labels.jsonl:1 is no label"),
        ('{"row": 0, "key": "0000000000000000", "label": "x"}\n', "labels.jsonl:1 labels a row"),
        ('{"row": 9, "key": "", "label": "x"}\n', "labels.jsonl:1 labels a row"),
        ('{"row": true, "key": "", "label": "x"}\n', "labels.jsonl:1 is no label"),
        ("[]\n", "labels.jsonl:1 is no label"),
        ("[]", "labels.jsonl:1 is no label"),
        (b"\xff\xfe\n", "labels.jsonl:1 is no label"),
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(dataset, tmp_path, content, message):
    path = tmp_path / "labels.jsonl"
    before = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(before)
    with pytest.raises(DataError, match=message):
        label_rows(dataset, ["pos"], path)
    assert path.read_bytes() == before


def test_a_label_that_could_not_be_saved_is_not_counted(dataset, tmp_path):
    (tmp_path / "file").write_text("x")
    widget = label_rows(dataset, ["pos"], tmp_path / "file" / "labels.jsonl")
    widget.buttons["pos"].click()
    assert (widget.shown, widget.file.labels) == (0, {})
    assert "The label was not saved" in widget.widget.children[0].value


@pytest.mark.parametrize(
    ("labels", "extra", "message"),
    [
        ([], {}, "Give 1 to 30 labels to choose from, got 0"),
        ("pos", {}, "Give 1 to 30 labels to choose from, got 'pos'"),
        ([str(i) for i in range(31)], {}, "got 31"),
        (["a", " "], {}, "must be texts that are not empty"),
        (["a"], {"rows": [4]}, "There is no row 4: the dataset has 4, from 0 on"),
        (["a"], {"rows": []}, "No row to show"),
        (["a"], {"rows": [-1]}, "There is no row -1"),
        (["a"], {"label": "text"}, r"No row to show: all 4 have a text. Give rows="),
    ],
)
def test_what_cannot_be_labelled_is_refused_in_words(dataset, tmp_path, labels, extra, message):
    with pytest.raises(DataError, match=message):
        label_rows(dataset, labels, tmp_path / "labels.jsonl", **extra)


def test_a_dataset_without_labels_is_shown_whole_and_conversations_too(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]
    dataset = Dataset.from_dict({"messages": [turns, turns]})
    widget = label_rows(dataset, ["good", "bad"], tmp_path / "labels.jsonl")
    assert widget.progress == "0 of 2 done"
    assert "user: Hi" in widget.widget.children[1].value


def test_ipywidgets_is_loaded_only_when_a_widget_is_made(dataset, tmp_path, monkeypatch):
    code = "import sys, sftkit.dataset.labelling; print('ipywidgets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"needs ipywidgets, .* -e '.\[notebooks\]'$"):
        label_rows(dataset, ["pos"], tmp_path / "labels.jsonl")
