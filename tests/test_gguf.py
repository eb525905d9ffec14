"""GGUF files nobody vouches for: refused at once, or converted under limits."""

import contextlib
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit import catalog
from sftkit.errors import FetchError
from sftkit.gguf_convert import check_gguf, convert_gguf
from sftkit.settings import ModelSettings


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


ONE_TENSOR = text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(64)
BOMB = header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 60)
"""49 bytes that promise a list of 2^60 numbers; gguf 0.19 reads it for ever."""


def test_the_bomb_has_49_bytes():
    assert len(BOMB) == 49


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (BOMB, "a list of 1,152,921,504,606,846,976 values cannot fit"),
        (b"", "does not begin with the letters GGUF"),
        (b"PK\x03\x04" + bytes(100), "does not begin with the letters GGUF"),
        (b"GGUF", "ends inside its header"),
        (header(1, 0, version=99) + bytes(100), "version 99 is unknown"),
        (header(1 << 40, 0) + bytes(100), "1,099,511,627,776 tensors and 0 values cannot fit"),
        (header(0, 0), "it holds no tensors"),
        (header(0, 1) + text(b"k") + struct.pack("<IQ", 8, 1 << 50), "bytes cannot fit into it"),
        (header(0, 1) + text(b"k") + struct.pack("<I", 77), "value type 77 is unknown"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1), "cannot fit"),
        (
            header(0, 1) + text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "nested too deep",
        ),
        (header(1, 0) + text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 1 << 40), "beyond the end"),
    ],
)
def test_a_file_that_cannot_be_a_model_is_refused_at_once(data, words, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    started = time.monotonic()
    with pytest.raises(FetchError, match=words):
        catalog.fetch_model(ModelSettings(name=str(path)))
    assert time.monotonic() - started < 1


def test_a_whole_header_is_accepted(tmp_path):
    pairs = text(b"name") + struct.pack("<I", 8) + text(b"tiny")
    pairs += text(b"list") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc")
    path = tmp_path / "model.gguf"
    path.write_bytes(header(1, 2) + pairs + ONE_TENSOR)
    check_gguf(path)


@settings(max_examples=300, deadline=1000)
@given(st.binary(max_size=400), st.integers(0, 5), st.integers(0, 5))
def test_random_bytes_raise_nothing_but_our_error(tmp_path_factory, data, tensors, pairs):
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    path.write_bytes(header(tensors, pairs) + data)
    with contextlib.suppress(FetchError):
        check_gguf(path)


@pytest.fixture
def unreadable(tmp_path):
    """A file whose header is whole, and in which transformers will find no model."""
    path = tmp_path / "model.gguf"
    path.write_bytes(header(1, 0) + ONE_TENSOR)
    (tmp_path / "out").mkdir()
    return path


def test_a_conversion_that_takes_too_long_is_stopped(unreadable, tmp_path):
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"took longer than 0\.2 s and was stopped"):
        convert_gguf(unreadable, tmp_path / "out", wait_s=0.2)
    assert time.monotonic() - started < 10


@pytest.mark.faults
@pytest.mark.skipif("not __import__('importlib').util.find_spec('resource')", reason="no rlimits")
def test_a_conversion_that_takes_too_much_memory_is_stopped(unreadable, tmp_path):
    with pytest.raises(FetchError, match="could not be converted"):
        convert_gguf(unreadable, tmp_path / "out", wait_s=120, memory_bytes=30_000_000)


@pytest.mark.faults
def test_a_file_that_is_no_model_inside_leaves_nothing_in_the_cache(
    unreadable, tmp_path, monkeypatch
):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match=r"model\.gguf could not be converted"):
        catalog.fetch_model(ModelSettings(name=str(unreadable)))
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
