"""Sources: every kind gives the same rows, and a damaged one is described, never a traceback."""

import datetime
import gzip
import io
import json
import os
import tracemalloc
import zipfile

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import zstandard
from PIL import Image

from sftkit.dataset import columnar, files, json_lines, lines
from sftkit.dataset.files import open_table
from sftkit.errors import DataError

ROWS = [{"question": "Hours?", "answer": "9 to 5"}, {"question": "Fee?", "answer": "2 €"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = "question,answer\nHours?,9 to 5\nFee?,2 €\n"


def put(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def draw(source, **options):
    """Draw everything; give the rows without their places, the places, and the findings."""
    table = open_table(source, **options)
    drawn = list(table.rows)
    return [row for _, row in drawn], [place for place, _ in drawn], table.log.findings()


def found(findings):
    return [(f.code, f.where[0], f.severity) for f in findings]


# ---- kinds ----


def make(kind, folder):
    """Write ROWS as a file of some kind, or make an object of them."""
    frame, dataset = pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)
    path = folder / f"a.{kind}"
    if kind in ("frame", "dataset", "list"):
        return {"frame": frame, "dataset": dataset, "list": ROWS}[kind]
    if kind == "saved":
        dataset.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    if kind == "stream.arrow":
        with pa.ipc.new_stream(str(path), dataset.data.schema) as writer:
            writer.write_table(dataset.data.table)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), dataset.data.schema) as writer:
            writer.write_table(dataset.data.table)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "xlsx":
        frame.to_excel(path, index=False)
    else:
        text = {"csv": TABLE, "tsv": TABLE.replace(",", "\t"), "json": json.dumps(ROWS)}
        data = text.get(kind.split(".")[0], LINES)
        data = data.encode() if isinstance(data, str) else data
        packing = kind.split(".")[-1]
        data = gzip.compress(data) if packing == "gz" else data
        path.write_bytes(zstandard.compress(data) if packing == "zst" else data)
    return path


KINDS = {
    "csv": "a.csv:2",
    "tsv": "a.tsv:2",
    "json": "a.json row 1",
    "jsonl": "a.jsonl:1",
    "ndjson": "a.ndjson:1",
    "csv.gz": "a.csv.gz:2",
    "jsonl.gz": "a.jsonl.gz:1",
    "json.zst": "a.json.zst row 1",
    "jsonl.zst": "a.jsonl.zst:1",
    "parquet": "a.parquet row 1",
    "arrow": "a.arrow row 1",
    "stream.arrow": "a.stream.arrow row 1",
    "xlsx": "a.xlsx row 2",
    "frame": "frame row 1",
    "dataset": "dataset row 1",
    "saved": "saved row 1",
    "list": "row 1",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_rows_with_their_places(kind, tmp_path):
    rows, places, findings = draw(make(kind, tmp_path))
    assert rows == ROWS
    assert places[0] == KINDS[kind]
    assert findings == ()


def test_the_keys_of_a_dataset_dict_become_the_split():
    one = datasets.Dataset.from_list(ROWS[:1])
    rows, places, _ = draw(datasets.DatasetDict({"train": one, "test": one}))
    assert [row["split"] for row in rows] == ["train", "test"]
    assert places == ["dataset train row 1", "dataset test row 1"]


def test_numbers_that_stand_for_class_names_become_names(tmp_path):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    for source in (dataset, tmp_path / "a.parquet"):
        assert [row["label"] for row in draw(source)[0]] == ["yes", "no", None]


def test_missing_values_of_a_frame_are_none_and_arrays_are_lists():
    frame = pd.DataFrame(
        {
            "text": ["a", None],
            "label": [1.0, float("nan")],
            "when": [pd.Timestamp("2031-01-02"), pd.NaT],
            "turns": [[{"role": "user"}], None],
        }
    )
    (first, second), _, _ = draw(frame)
    assert first["when"] == datetime.datetime(2031, 1, 2)
    assert (first["label"], first["turns"]) == (1.0, [{"role": "user"}])
    assert second == dict.fromkeys(["text", "label", "when", "turns"])


def test_only_the_first_sheet_of_a_workbook_is_read_and_that_is_said(tmp_path):
    path = tmp_path / "a.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame(ROWS).to_excel(book, sheet_name="Fragen", index=False)
        pd.DataFrame({"x": [1]}).to_excel(book, sheet_name="More", index=False)
    rows, _, (finding,) = draw(path)
    assert rows == ROWS
    assert (finding.code, finding.severity) == ("D22", "information")
    assert finding.message == "only the first sheet was read, 'Fragen'; also there: 'More'"


def test_a_workbook_that_understates_its_size_is_read_whole(tmp_path):
    pd.DataFrame(ROWS).to_excel(tmp_path / "right.xlsx", index=False)
    with (
        zipfile.ZipFile(tmp_path / "right.xlsx") as right,
        zipfile.ZipFile(tmp_path / "wrong.xlsx", "w") as wrong,
    ):
        for name in right.namelist():
            wrong.writestr(name, right.read(name).replace(b'ref="A1:B3"', b'ref="A1"'))
    assert draw(tmp_path / "wrong.xlsx")[0] == ROWS


# ---- what the suffix says and what the content is ----


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", LINES, "read as JSON Lines (one object a line)"),
        ("a.jsonl", json.dumps(ROWS, indent=1), "read as JSON"),
        ("a.csv", LINES, "read as JSON Lines (one object a line)"),
        ("a.txt", LINES, "read as JSON Lines (one object a line)"),
        ("a.dat", TABLE.replace(",", ";"), "read as CSV with ';' between columns"),
        ("table", TABLE, "read as CSV"),
        ("a.txt", TABLE.replace(",", "\t"), "read as TSV (tabs)"),
        ("a.json", TABLE, "read as CSV"),
    ],
)
def test_content_decides_what_a_file_is_and_what_was_read_is_said(name, data, said, tmp_path):
    rows, _, (finding,) = draw(put(tmp_path, name, data))
    assert rows == ROWS
    assert (finding.code, finding.field, finding.message) == ("D22", "file", said)


@pytest.mark.parametrize(
    "document",
    [
        {"data": ROWS, "version": 1},
        {"question": ["Hours?", "Fee?"], "answer": ["9 to 5", "2 €"]},
        {
            "question": {"0": "Hours?", "1": "Fee?"},
            "answer": {"0": "9 to 5", "1": "2 €"},
        },
    ],
    ids=["wrapped", "columns", "pandas"],
)
def test_rows_are_found_inside_a_json_document(document, tmp_path):
    assert draw(put(tmp_path, "a.json", json.dumps(document)))[0] == ROWS


def test_one_conversation_in_a_json_file_is_one_row(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert draw(put(tmp_path, "a.json", json.dumps(row, indent=1)))[0] == [row]


def test_lists_named_by_split_give_a_split_column(tmp_path):
    document = {"train": ROWS[:1], "test": ROWS[1:]}
    rows, _, _ = draw(put(tmp_path, "a.json", json.dumps(document)))
    assert [row["split"] for row in rows] == ["train", "test"]


def test_objects_over_several_lines_one_after_another_are_rows(tmp_path):
    text = "\n".join(json.dumps(row, indent=1) for row in ROWS)
    assert draw(put(tmp_path, "a.jsonl", text))[0] == ROWS


def test_a_list_longer_than_one_piece_is_read_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_PIECE", 7)
    rows = [{"x": n, "text": "y" * n} for n in range(30)]
    for indent in (None, 1):
        assert draw(put(tmp_path, "a.json", json.dumps(rows, indent=indent)))[0] == rows


def test_a_document_that_would_have_to_be_read_whole_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "WHOLE_CHARACTERS", 50)
    monkeypatch.setattr(json_lines, "_PIECE", 40)
    path = put(tmp_path, "a.json", json.dumps({"data": ROWS * 9}, indent=1))
    with pytest.raises(DataError, match=r"over 50 characters.*JSON Lines"):
        draw(path)


# ---- folders ----


def png(colour=0, mode="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(data, mode)
    return data.getvalue()


def test_folders_of_texts_are_labels(tmp_path):
    put(tmp_path, "train/good/1.txt", "fine")
    put(tmp_path, "test/bad/2.txt", "awful")
    put(tmp_path, ".hidden/x.txt", "no")
    put(tmp_path, "README.txt", "no")
    rows, places, _ = draw(tmp_path)
    assert rows == [
        {"text": "awful", "file": "test/bad/2.txt", "label": "bad", "split": "test"},
        {"text": "fine", "file": "train/good/1.txt", "label": "good", "split": "train"},
    ]
    assert places[0] == f"{tmp_path.name}/test/bad/2.txt"


def test_a_text_of_another_encoding_costs_only_itself(tmp_path):
    put(tmp_path, "a/1.txt", "fine")
    put(tmp_path, "a/2.txt", "café".encode("cp1252"))
    put(tmp_path, "a/3.txt", "")
    rows, _, findings = draw(tmp_path)
    assert [row["text"] for row in rows] == ["fine"]
    assert [f.code for f in findings] == ["D01", "D09"]
    assert [row["text"] for row in draw(tmp_path, encoding="cp1252")[0]] == ["fine", "café"]


def test_folders_of_images_are_labels(tmp_path):
    put(tmp_path, "cat/1.png", png())
    put(tmp_path, "dog/2.jpg", png(mode="JPEG"))
    rows, _, _ = draw(tmp_path)
    assert rows == [
        {"image": str(tmp_path / "cat/1.png"), "file": "cat/1.png", "label": "cat"},
        {"image": str(tmp_path / "dog/2.jpg"), "file": "dog/2.jpg", "label": "dog"},
    ]


def test_files_named_by_split_are_one_table(tmp_path):
    put(tmp_path, "train-00000-of-00002.csv", TABLE)
    put(tmp_path, "train-00001-of-00002.jsonl", LINES)
    put(tmp_path, "test.csv", TABLE)
    rows, places, _ = draw(tmp_path)
    assert [row.pop("split") for row in rows] == ["test"] * 2 + ["train"] * 4
    assert rows == ROWS * 3
    assert places[0] == "test.csv:2"


# ---- what is no source ----


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", b"%PDF-1.7", "PDF document; extract its text"),
        ("a.xls", b"\xd0\xcf\x11\xe0", "before 2007.*save it as .xlsx"),
        ("a.db", b"SQLite format 3\0", "SQLite"),
        ("a.pkl", b"\x80\x04\x95\x01", "pickle.*not read"),
        ("a.csv.bz2", b"BZh9", "bzip2"),
        ("a.png", b"\x89PNG\r\n", "an image; give the folder"),
        ("a.parquet", b"nonsense", "does not begin as a parquet file does"),
        ("a.parquet", b"PAR1nonsense", "no sound Parquet file"),
        ("a.arrow", b"ARROW1\0\0nonsense", "no sound Arrow file"),
        ("a.arrow", b"\xff\xff\xff\xff\x01", "no sound Arrow file"),
        ("a.xlsx", b"PK\x03\x04nonsense", "no sound Excel file"),
        ("a.zip", b"PK\x03\x04nonsense", "zip archive. Unpack it"),
        ("a.parquet.gz", gzip.compress(b"PAR1nonsense"), "of kind parquet inside gzip. Unpack it"),
        ("a.txt", b"Once upon a time\nthere was\n", "neither a table nor JSON Lines"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.csv", b"<!DOCTYPE html>\n<html><body>404", "a web page"),
    ],
)
def test_what_is_no_table_is_refused_by_what_it_is(name, data, words, tmp_path):
    with pytest.raises(DataError, match=words):
        draw(put(tmp_path, name, data))


def test_a_path_that_leads_nowhere_is_refused_in_words(tmp_path):
    (tmp_path / "empty").mkdir()
    put(tmp_path, "other/a.bin", b"x")
    put(tmp_path, "tables/tickets.csv", TABLE)
    for source, words in [
        (tmp_path / "missing.csv", "No such file"),
        (tmp_path / "missing", "No such file"),
        (str(tmp_path / "missing"), "no file or folder"),
        (tmp_path / "empty", "holds nothing that is read.*It is empty"),
        (tmp_path / "other", "holds nothing that is read.*a.bin"),
        ("owner/name", "no file or folder 'owner/name', and the hub dataset"),
        (str(tmp_path / "other" / "b.csv"), "No such file.*Check the path"),
        (str(tmp_path / "nowhere" / "b.csv"), "There is no folder .*nowhere either"),
        (str(tmp_path / "tables" / "ticket.csv"), "Did you mean 'tickets.csv'"),
        ("", "is no source"),
        ("-", "standard input is not read"),
        ("https://example.org/a.csv", "is an address.*Download the file"),
        ("a\0b.csv", "cannot be read"),
        (3, "int is no source of rows"),
    ]:
        with pytest.raises(DataError, match=words):
            draw(source)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="rights do not bind this user")
def test_a_file_without_reading_rights_is_refused(tmp_path):
    path = put(tmp_path, "a.csv", TABLE)
    path.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        draw(path)


def test_a_pipe_is_refused(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes with names here")
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        draw(tmp_path / "a.csv")


# ---- damage and bombs ----


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_cut_off_archive_gives_what_stands_before(pack, tmp_path):
    packed = pack(b"".join(os.urandom(99).hex().encode() + b"\n" for _ in range(9000)))
    data = b'"' + packed  # the first byte is taken off again: only the tail is missing
    path = put(tmp_path, "a.jsonl", data[1 : len(packed) // 2])
    _, _, findings = draw(path)
    (finding,) = (f for f in findings if f.field == "file")
    assert (finding.code, finding.severity) == ("D15", "error")
    assert "cut off or damaged" in finding.message
    assert any(f.where[0] == "a.jsonl:1" for f in findings)


def test_several_archives_one_after_another_are_one(tmp_path):
    for pack in (gzip.compress, zstandard.compress):
        path = put(tmp_path, "a.jsonl", b"".join(pack(line + b"\n") for line in LINES.split(b"\n")))
        assert draw(path)[0] == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_decompression_bomb_is_stopped_in_little_memory(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BOMB_BYTES", 1 << 22)
    line = b"a" * 9999 + b",b\n"
    path = put(tmp_path, "a.csv", pack(b"question,answer\n" + line * 6000))
    tracemalloc.start()
    with pytest.raises(DataError, match="taken for a decompression bomb"):
        for _ in open_table(path).rows:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20  # of 60 MB unpacked


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(DataError, match=r"a.\w+:2 · the line is longer than 1,000 bytes"):
            draw(put(tmp_path, name, b'{"a":1}\n' + b"x" * 2000))


def test_a_workbook_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "SHEET_BYTES", 1000)
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/workbook.xml", "x" * 2000)
    with pytest.raises(DataError, match="unpacks to 2,000 bytes"):
        draw(path)


# ---- encodings ----


def test_bytes_that_are_no_utf8_are_named_and_reading_goes_on(tmp_path):
    data = "question,answer\nCafé?,9\nFee?,2\nThé?,3,4\n".encode("cp1252")
    rows, _, findings = draw(put(tmp_path, "a.csv", data))
    assert [row["question"] for row in rows] == ["Café?", "Fee?"]
    assert found(findings) == [("D01", "a.csv:2", "error"), ("D04", "a.csv:4", "error")]
    assert findings[0].message == (
        "not UTF-8 at byte 19; looks like cp1252 (Windows or Latin-1): pass encoding='cp1252'"
    )
    assert findings[0].where == ("a.csv:2", "a.csv:4")


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("вопрос,ответ\nкак дела?,хорошо\n", "cp1251", "an older encoding"),
        ("question,answer\nHours?,9\n", "utf-16-le", None),
        ("質問,答え\n営業時間は?,九時\n", "shift_jis", "an older encoding"),
    ],
)
def test_a_named_encoding_is_honoured(text, encoding, guess, tmp_path):
    path = put(tmp_path, "a.csv", text.encode(encoding))
    (row,), places, findings = draw(path, encoding=encoding)
    assert [list(row), list(row.values())] == [r.split(",") for r in text.splitlines()]
    assert (places, findings) == (["a.csv:2"], ())
    if guess:
        assert guess in draw(path)[2][0].message


@pytest.mark.parametrize(
    ("mark", "encoding", "code"),
    [(b"\xef\xbb\xbf", "utf-8", "D03"), (b"\xff\xfe", "utf-16-le", "D02")],
)
def test_a_byte_order_mark_is_reported_and_no_part_of_the_header(mark, encoding, code, tmp_path):
    rows, places, findings = draw(put(tmp_path, "a.csv", mark + TABLE.encode(encoding)))
    assert (rows, places) == (ROWS, ["a.csv:2", "a.csv:3"])
    assert [f.code for f in findings] == [code]


def test_an_encoding_that_is_none_gets_the_near_one(tmp_path):
    for name in ("utf-61", "base64"):
        with pytest.raises(DataError, match="is no encoding of text"):
            draw(put(tmp_path, "a.csv", TABLE), encoding=name)
    with pytest.raises(DataError, match="Did you mean 'utf-16'"):
        open_table(tmp_path / "a.csv", encoding="utf-61")


def test_a_named_encoding_that_does_not_fit_is_named(tmp_path):
    path = put(tmp_path, "a.csv", TABLE)
    assert draw(path, encoding="ascii")[2][0].message == "not ascii at byte 37"
    cut = put(tmp_path, "b.csv", TABLE.encode("utf-16")[:-1])
    assert ("D01", "b.csv:3", "error") in found(draw(cut, encoding="utf-16")[2])


# ---- lines ----


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_numbers_count_the_lines_of_the_file(end, tmp_path):
    text = 'question,answer\n"two\nlines",x\n\nshort\n"a ""b""",y\n'.replace("\n", end)
    rows, places, findings = draw(put(tmp_path, "a.csv", text))
    assert places == ["a.csv:2", "a.csv:6"]
    assert rows[0]["question"] == f"two{end}lines"
    assert rows[1]["question"] == 'a "b"'
    assert found(findings) == [("D05", "a.csv:5", "error")]


def test_an_unclosed_quote_does_not_hide_what_follows(tmp_path):
    text = 'text,label\nfine,a\n"open,b\ngood,a\nx,y,z\n"e f",a\nlast,b\n'
    rows, _, findings = draw(put(tmp_path, "a.csv", text))
    assert [row["text"] for row in rows] == ["fine", "good", "e f", "last"]
    assert found(findings) == [("D04", "a.csv:5", "error"), ("D06", "a.csv:3", "error")]


def test_a_table_full_of_open_quotes_is_given_up(tmp_path):
    lines_of_it = ["text,label"] + ['"open,b'] * 2001
    _, _, (finding,) = draw(put(tmp_path, "a.csv", "\n".join(lines_of_it) + "\n"))
    assert (finding.code, finding.where[0]) == ("D06", "a.csv:2")


def test_fifty_megabytes_with_faults_at_the_end_are_read_in_one_pass(tmp_path):
    path = tmp_path / "big.csv"
    line = "what about a question that goes on for some while?," + "and its answer too " * 4 + "\n"
    quoted = '"a question\nover two lines?","an answer, quoted"\n'
    count = 400_000
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("question,answer\n" + quoted)  # lines 1, 2 and 3
        for _ in range(count // 1000):
            file.write(line * 1000)
        file.write("one,two,three\n" + "short\n")
    with path.open("ab") as file:
        file.write(b"caf\xe9?,yes\n" + b'fine?,yes\n"open,never closed\n')
    assert path.stat().st_size > 50_000_000
    table = open_table(path)
    rows = sum(1 for _ in table.rows)
    assert rows == count + 3
    assert found(table.log.findings()) == [
        ("D01", f"big.csv:{count + 6}", "error"),
        ("D04", f"big.csv:{count + 4}", "error"),
        ("D05", f"big.csv:{count + 5}", "error"),
        ("D06", f"big.csv:{count + 8}", "error"),
    ]
    assert table.log.findings()[0].message.startswith(
        f"not UTF-8 at byte {path.stat().st_size - 36}"
    )


def test_faults_of_json_are_named_by_line(tmp_path):
    data = (
        b'{"id": 1, "text": "a"}\n'
        b"\n"
        b'{"id": 99999999999999999999, "text": "b"}\n'
        b'{"id": 3, "id": 4, "text": "c"}\n'
        b'{"id": 5, "text": "\\ud83d"}\n'
        b'{"id": 6, "text": "\\ud83d\\ude00"}\n'
        b"[1]\n"
        b'{"id": 7} {"id": 8}\n'
        b'{"id": 9, "text": "cut'
    )
    rows, places, findings = draw(put(tmp_path, "a.jsonl", data))
    assert [row["id"] for row in rows] == [1, "99999999999999999999", 4, 6]
    assert places == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4", "a.jsonl:6"]
    assert [(f.code, f.where) for f in findings] == [
        ("D13", ("a.jsonl:3",)),
        ("D15", ("a.jsonl:7", "a.jsonl:8", "a.jsonl:9")),
        ("D16", ("a.jsonl:4",)),
        ("D17", ("a.jsonl:5",)),
    ]


def test_a_cut_off_line_is_called_cut_off(tmp_path):
    _, _, (finding,) = draw(put(tmp_path, "a.jsonl", LINES[:-9]))
    assert finding.where == ("a.jsonl:2",)
    assert "line 2 is cut off at column 34 (partial download?)" in finding.message


def test_a_list_that_breaks_gives_the_rows_before(tmp_path):
    for text, line, words in [
        ('[\n{"a": 1},\n{"a": 2', 3, "line 3 is cut off"),
        ('[\n{"a": 1}\n', 3, "the list never closes"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "a comma is missing before row 2"),
        ('[\n{"a": 1}]\n\nmore', 4, "more text after the list"),
        ('[\n{"a": 1},\n{"a": }]', 3, "Expecting value"),
    ]:
        rows, _, findings = draw(put(tmp_path, "a.json", text))
        assert rows == [{"a": 1}]
        assert found(findings) == [("D15", f"a.json:{line}", "error")]
        assert words in findings[0].message


@pytest.mark.parametrize("depth", [500, 5000, 100_000])
def test_deep_nesting_is_a_finding(depth, tmp_path):
    text = '{"a": ' + "[" * depth + "]" * depth + "}\n" + '{"a": 1}\n'
    rows, _, findings = draw(put(tmp_path, "a.jsonl", text))
    assert rows[-1] == {"a": 1}
    assert [f.code for f in findings] == ([] if depth == 500 else ["D15"])


def test_an_object_nested_as_deeply_as_can_be_read_is_read(tmp_path):
    text = '{"a": ' * 900 + "1" + "}" * 900
    rows, _, findings = draw(put(tmp_path, "a.jsonl", text + '\n{"a": 1}\n'))
    assert (len(rows), findings) == (2, ())


def test_a_number_of_five_thousand_digits_is_kept_as_text(tmp_path):
    rows, _, (finding,) = draw(put(tmp_path, "a.jsonl", '{"id": ' + "9" * 5000 + "}\n"))
    assert rows == [{"id": "9" * 5000}]
    assert (finding.code, finding.field) == ("D13", "id")


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt"])
def test_an_empty_file_is_called_empty(name, data, tmp_path):
    _, _, findings = draw(put(tmp_path, name, data))
    assert [f.code for f in findings if f.severity == "error"] == ["D09"]


def test_a_header_without_rows_is_called_so(tmp_path):
    for name, data in [
        ("a.csv", "question,answer\n"),
        ("a.json", "[]"),
        ("a.json", '{"data": []}'),
    ]:
        assert [f.code for f in draw(put(tmp_path, name, data))[2]] == ["D10"]
    assert [f.code for f in draw(pd.DataFrame({"text": []}))[2]] == ["D10"]


# ---- columns ----


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", "a tab"), ("|", "'|'")])
def test_another_delimiter_is_noticed_and_used(mark, shown, tmp_path):
    text = TABLE.replace(",", mark).replace("9 to 5", "9, or 10, to 5")
    rows, _, (finding,) = draw(put(tmp_path, "a.csv", text))
    assert rows[0] == {"question": "Hours?", "answer": "9, or 10, to 5"}
    assert (finding.code, finding.where) == ("D07", ("a.csv:1",))
    assert shown in finding.message


def test_a_comma_table_whose_texts_hold_semicolons_stays_one(tmp_path):
    text = "question,answer\na; b?,c; d\ne; f?,g; h\n"
    rows, _, findings = draw(put(tmp_path, "a.csv", text))
    assert (rows[0], findings) == ({"question": "a; b?", "answer": "c; d"}, ())


def test_a_column_named_twice_keeps_both_values(tmp_path):
    rows, _, (finding,) = draw(put(tmp_path, "a.csv", "text, text ,,label\na,b,c,d\n"))
    assert rows == [{"text": "a", "text (2)": "b", "column 3": "c", "label": "d"}]
    assert (finding.code, finding.field, finding.where) == ("D08", "text", ("a.csv:1",))


def test_words_that_others_read_as_missing_stay_words_and_are_counted(tmp_path):
    rows, _, findings = draw(put(tmp_path, "a.csv", "text,label\nNA,x\nNone,null\nfine,x\n"))
    assert [row["text"] for row in rows] == ["NA", "None", "fine"]
    assert [(f.code, f.field, f.count, f.where) for f in findings] == [
        ("D11", "label", 1, ("a.csv:3",)),
        ("D11", "text", 2, ("a.csv:2", "a.csv:3")),
    ]


def test_long_whole_numbers_in_a_table_are_counted(tmp_path):
    text = "id,text\n9223372036854775807,a\n9223372036854775808,b\n0000000000000000000001,c\n"
    rows, _, (finding,) = draw(put(tmp_path, "a.csv", text))
    assert rows[1]["id"] == "9223372036854775808"
    assert (finding.code, finding.field, finding.where) == ("D13", "id", ("a.csv:3",))


def test_a_row_of_a_sheet_that_is_too_long_is_named_as_excel_numbers_it(tmp_path):
    path = tmp_path / "a.xlsx"
    rows = [["text", "label", None], ["a", "x", None], ["b", "y", "z"], ["NA", None, None]]
    pd.DataFrame(rows).to_excel(path, index=False, header=False)
    given, places, findings = draw(path)
    assert places == ["a.xlsx row 2", "a.xlsx row 4"]
    assert given[1] == {"text": "NA", "label": None}
    assert found(findings) == [
        ("D04", "a.xlsx row 3", "error"),
        ("D11", "a.xlsx row 4", "information"),
    ]


def test_files_are_closed_when_a_table_is_left_early(tmp_path):
    table = open_table(put(tmp_path, "a.csv", TABLE * 100))
    next(table.rows)
    del table  # an open file would be a ResourceWarning, which is an error here
    assert files.open_table(tmp_path / "a.csv").name == "a.csv"
