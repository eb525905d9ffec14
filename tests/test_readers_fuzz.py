"""The readers under arbitrary input: our own errors only; and what was written reads back equal."""

import csv
import gzip
import io
import json
from typing import Any

import zstandard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sftkit.dataset.files import open_table
from sftkit.dataset.read import read_dataset
from sftkit.errors import SftkitError

TEXT_KINDS = ("csv", "tsv", "json", "jsonl", "txt")
KINDS = (*TEXT_KINDS, "parquet", "arrow", "xlsx", "gz", "zst")
MAGIC = (
    b"PAR1",
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
)
HEADS = (b"", b"", b"prompt,completion\n", b'"a', b'[{"', b'{"messages":[', *MAGIC)
PIECES = st.sampled_from(
    [b"\n", b"\r", b",", b";", b'"', b"\t", b"\0", b"{}", b"[]", b"\xff\xfe", b"\xef\xbb\xbf"]
)


def says_something(path, **options):
    """Say that reading gives rows, or refuses in words of our own; anything else is raised."""
    try:
        return len(read_dataset(path, **options)) > 0
    except SftkitError as error:
        return len(str(error)) > 10


@settings(max_examples=2000)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(HEADS),
    st.binary(max_size=80) | st.lists(PIECES | st.binary(max_size=4), max_size=30).map(b"".join),
)
@example("csv", b"", b"a,b\n" + b'"' * 9)
@example("jsonl", b"", b"[" * 100_000)
@example("json", b"", b'{"a":' * 50_000)
@example("jsonl", b"", b'{"a": ' + b"9" * 5000 + b"}")
@example("csv", b"", b"a\0b,c\0d\n\0,\0\n")
def test_any_bytes_raise_only_our_errors(tmp_path_factory, kind, head, data):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(head + data)
    assert says_something(path)


KEYS: tuple[str, ...] = (
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "prompt",
    "completion",
)
KEYS += ("text", "label", "score", "id", "group", "place", "split", "image", "bytes", "path", "x")
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
LEAVES |= st.sampled_from(["user", "assistant", "a.png", "12", "2031-01-01", "[{'role': 1}]"])
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=6,
)
TASKS = st.sampled_from([None, "chat", "classify", "regress", "image"])


@settings(max_examples=2000)
@given(st.sampled_from(["json", "jsonl"]), JSON | st.lists(JSON, max_size=4), TASKS)
def test_any_json_raises_only_our_errors(tmp_path_factory, kind, value, task):
    path = tmp_path_factory.getbasetemp() / f"value.{kind}"
    lines = value if isinstance(value, list) and kind == "jsonl" else [value]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert says_something(path, task=task)


# The csv module reads lone carriage returns as line ends, and blank lines as nothing.
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=9)
TABLES = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6)


@settings(max_examples=200)
@given(TABLES)
def test_a_table_that_csv_wrote_reads_back_equal(tmp_path_factory, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("question", "answer"), *rows])
    path = tmp_path_factory.getbasetemp() / "back.csv"
    path.write_bytes(text.getvalue().encode())
    table = open_table(path)
    drawn = list(table.rows)
    assert [tuple(row.values()) for _, row in drawn] == rows
    lines, line = [], 2
    for row in rows:
        lines.append(f"back.csv:{line}")
        line += 1 + sum(cell.count("\n") for cell in row)
    assert [place for place, _ in drawn] == lines
    assert all(finding.code == "D11" for finding in table.log.findings())


PLAIN: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9)
)
PLAIN = st.one_of(PLAIN, st.floats(allow_nan=False), st.lists(st.text(max_size=3), max_size=2))
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), PLAIN, max_size=4), min_size=1, max_size=5)


@settings(max_examples=200)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]))
def test_objects_that_json_wrote_read_back_equal(tmp_path_factory, rows, ascii_only, indent):
    lines = tmp_path_factory.getbasetemp() / "back.jsonl"
    whole = tmp_path_factory.getbasetemp() / "back.json"
    dump = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    lines.write_text("\n".join(dump), encoding="utf-8", newline="")
    whole.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert [row for _, row in open_table(lines).rows] == rows
    assert [row for _, row in open_table(whole).rows] == rows


@settings(max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(TEXT_KINDS), st.sampled_from(["gz", "zst"]))
def test_a_packed_file_reads_as_the_plain_one(tmp_path_factory, data, kind, packing):
    folder = tmp_path_factory.getbasetemp()
    plain, packed = folder / f"same.{kind}", folder / f"same.{kind}.{packing}"
    plain.write_bytes(data)
    pack = gzip.compress if packing == "gz" else zstandard.compress
    packed.write_bytes(pack(data))

    def outcome(path):
        try:
            table = open_table(path)
            drawn = [row for _, row in table.rows]
        except SftkitError as error:
            return str(error).replace(path.name, plain.name)
        return repr(drawn), [(f.code, f.field, f.count, f.message) for f in table.log.findings()]

    # What is packed twice, or binary inside an archive, is refused as such.
    assume(not data.startswith((*MAGIC, b"ARROW1", b"\x1f\x8b")))
    assert outcome(packed) == outcome(plain)
