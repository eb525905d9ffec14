"""Bytes to lines of text: compression, byte-order marks and encodings, each fault with its place.

A file is never held whole: bytes are drawn through one buffer, decompressed under a cap, and
decoded line by line, so that a byte that is no text is named with its line and does not end the
reading.
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.dataset.faults import FaultLog
from sftkit.errors import DataError, near_names

LONGEST_LINE = 1 << 26
"""Bytes of the longest line that is read; a longer one is no row of a table."""
BOMB_BYTES = 1 << 30
"""Decompressed bytes up to which any ratio is accepted."""
BOMB_RATIO = 200
"""Decompressed bytes per compressed byte beyond that. Text shrinks 3 to 20 times, rows that say
nearly the same up to 100 times; zeros 1,000 times by gzip and far more by zstd."""
_BUFFER = 1 << 20
_PACKED_PIECE = 1 << 16
_HEAD = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF8_MARK = codecs.BOM_UTF8
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_ENCODINGS = ("utf-8", "utf-16", "cp1252", "latin-1", "cp1251", "gb18030", "shift_jis", "euc-kr")


@dataclass(frozen=True, kw_only=True)
class ByteFile:
    """An open file, decompressed.

    Attributes:
        name: What messages call it.
        suffix: Lower-case suffix without that of the compression, ".csv" of a.csv.gz.
        head: Its first bytes, at most 64 KiB.
        stream: Its bytes from the start.
        packed: The compression in words, or empty.
        log: Where faults are noted.
    """

    name: str
    suffix: str
    head: bytes
    stream: io.BufferedReader[Any]
    packed: str
    log: FaultLog


def open_bytes(path: Path, log: FaultLog, *, name: str = "") -> ByteFile:
    """Open a file, whether plain, gzip or zstd; its content decides which.

    Raises:
        DataError: It is not there, no file, or may not be read.
    """
    name = name or path.name
    file: io.BufferedReader[Any]
    stream: io.BufferedReader[Any]
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder; copy it to a file first.")
        file = io.BufferedReader(io.FileIO(path), _BUFFER)
        magic = file.peek(4)[:4]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the path
        raise DataError(f"{str(path)!r} cannot be read ({error}).") from error
    suffix, packed, stream = path.suffix.lower(), "", file
    if magic.startswith((_GZIP, _ZSTD)):
        packed = "gzip" if magic.startswith(_GZIP) else "zstd"
        stream = io.BufferedReader(_Unpacked(file, packed, name, log), _BUFFER)
        if suffix in (".gz", ".gzip", ".zst", ".zstd"):
            suffix = Path(path.stem).suffix.lower()
    head = stream.peek(_HEAD)[:_HEAD]
    return ByteFile(name=name, suffix=suffix, head=head, stream=stream, packed=packed, log=log)


class _Unpacked(io.RawIOBase):
    """Decompressed bytes of a file, under a cap; a damaged end is a finding, not the end of all."""

    def __init__(self, file: io.BufferedReader[Any], packed: str, name: str, log: FaultLog) -> None:
        self._file, self._packed, self._name, self._log = file, packed, name, log
        self._chunks = (_gunzip if packed == "gzip" else _unzstd)(file)
        self._left = memoryview(b"")
        self._given = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readinto(self, target: Any) -> int:
        """Fill the buffer as far as there is anything, so that a look ahead sees enough."""
        filled = 0
        while filled < len(target):
            if not self._left:
                self._left = memoryview(self._next_chunk())
                if not self._left:
                    break
            taken = min(len(self._left), len(target) - filled)
            target[filled : filled + taken] = self._left[:taken]
            self._left = self._left[taken:]
            filled += taken
        self._given += filled
        if self._given > BOMB_BYTES and self._given > BOMB_RATIO * self._file.tell():
            raise DataError(
                f"{self._name} unpacks to over {self._given:,} bytes from {self._file.tell():,} of "
                f"{self._packed}: more than {BOMB_RATIO} times is taken for a decompression bomb. "
                "If it is none, unpack it yourself and give the plain file."
            )
        return filled

    def _next_chunk(self) -> bytes:
        import zstandard

        try:
            return next(self._chunks, b"")
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            self._log.add(
                "D15",
                self._name,
                of="file",
                detail=str(error).splitlines()[0][:100],
                message=f"the {self._packed} stream is cut off or damaged ({{detail}})",
                fix="Fetch the file again (partial download?); what stands before was read.",
            )
            return b""


def _gunzip(file: io.BufferedReader[Any]) -> Iterator[bytes]:
    """Give the bytes of a gzip file piece by piece; those before a damaged place too."""
    inner, data = zlib.decompressobj(wbits=31), b""
    while data := data or file.read(_PACKED_PIECE):
        if chunk := inner.decompress(data, _BUFFER):
            yield chunk
        data = inner.unconsumed_tail
        if inner.eof:
            data = inner.unused_data.lstrip(b"\0") or file.read(_PACKED_PIECE).lstrip(b"\0")
            if not data:
                return
            inner = zlib.decompressobj(wbits=31)
    raise EOFError("it ends before its end mark")


def _unzstd(file: io.BufferedReader[Any]) -> Iterator[bytes]:
    """Give the bytes of a zstd file; a small piece at a time, for one may unpack to much."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor()
    inner, data = unpacker.decompressobj(), b""
    while data := data or file.read(1024):
        if chunk := inner.decompress(data):
            yield chunk
        data = b""
        if inner.eof:
            data = inner.unused_data or file.read(1024)
            if not data:
                return
            inner = unpacker.decompressobj()
    raise EOFError("it ends before its end mark")


def check_encoding(encoding: str | None) -> str | None:
    """Give an encoding's usual name.

    Raises:
        DataError: There is no such encoding of text.
    """
    if encoding is None:
        return None
    try:
        "".encode(encoding)  # refuses codecs that are none of text, such as base64
        return codecs.lookup(encoding).name
    except (LookupError, ValueError, TypeError) as error:
        raise DataError(
            f"encoding={encoding!r} is no encoding of text.{near_names(str(encoding), _ENCODINGS)}"
        ) from error


def read_lines(file: ByteFile, *, encoding: str | None = None) -> Iterator[str]:
    """Give a file's lines with their line ends; faults of the encoding go to its log.

    UTF-8 is expected unless an encoding is named. A line that is not UTF-8 is logged and given as
    what it most likely is, so that faults further down are found in the same pass.

    Raises:
        DataError: A line is longer than any row of text.
    """
    encoding = check_encoding(encoding)
    head, skip = file.head, 0
    if head.startswith(_UTF8_MARK) and (encoding is None or _keeps_ascii(encoding)):
        file.log.add("D03", file.name)
        encoding, skip = None, len(_UTF8_MARK)
        file.stream.read(skip)
    elif encoding is None and head.startswith((*_UTF32_MARKS, *_UTF16_MARKS)):
        # The mark of UTF-32 (little-endian) begins with that of UTF-16.
        encoding = "utf-32" if head.startswith(_UTF32_MARKS) else "utf-16"
        message = f"begins with a {encoding.upper()} byte-order mark"
        file.log.add("D02", file.name, message=message)
    elif encoding is None and (order := _order_of_zeros(head)):
        encoding = f"utf-16-{order}"
        message = "looks like UTF-16 without its byte-order mark"
        fix = f"Save the file again as UTF-8, or pass encoding={encoding!r} (--encoding)."
        file.log.add("D02", file.name, message=message, fix=fix)
    lone_returns = b"\r" in head and b"\n" not in head
    by_bytes = encoding is None or _keeps_ascii(encoding)
    if by_bytes and not lone_returns:
        yield from _decode_lines(file, encoding or "utf-8", skip)
    else:
        yield from _decode_stream(file, encoding or "utf-8")


def _order_of_zeros(head: bytes) -> str:
    """Say in which order UTF-16 without a mark has its bytes; nothing for other text."""
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if half < 2 or max(even, odd) * 2 < half or min(even, odd) * 20 > max(even, odd):
        return ""
    return "le" if odd > even else "be"


def _keeps_ascii(encoding: str) -> bool:
    """Say whether a line feed is always the one byte 0x0A in it."""
    return encoding.startswith(("utf-8", "cp12", "iso8859", "ascii", "koi8", "mac-"))


def _decode_lines(file: ByteFile, encoding: str, offset: int) -> Iterator[str]:
    readline, guess, number = file.stream.readline, "", 0
    while raw := readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise _too_long(file.name, number)
        try:
            line = raw.decode(encoding)
        except UnicodeDecodeError as error:
            if encoding == "utf-8" and (half := _find_raw_half(raw)):
                file.log.add("D17", f"{file.name}:{number}", detail=half)
                offset += len(raw)
                yield raw.decode("utf-8", "replace")
                continue
            guess = guess or _guess_encoding(raw + file.stream.peek(1))
            _log_undecodable(file, encoding, number, offset + error.start, guess)
            line = raw.decode("latin-1" if guess != "cp1252" else guess, "replace")
        offset += len(raw)
        yield line


def _find_raw_half(raw: bytes) -> str:
    """Give the half character of a line that would be UTF-8 but for it, or nothing."""
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return ""
    half = re.search(r"[\ud800-\udfff]", text)
    return half[0].encode("unicode_escape").decode() if half else ""


def _decode_stream(file: ByteFile, encoding: str) -> Iterator[str]:
    """Decode what has no line feeds to cut at: UTF-16 and kin, and files with lone returns."""
    wrapped = io.TextIOWrapper(file.stream, encoding=encoding, newline="")
    number = 0
    try:
        while line := wrapped.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise _too_long(file.name, number)
            yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        message = f"not {encoding.upper()} after line {number}: {{detail}}"
        detail = getattr(error, "reason", str(error))
        if "BOM" in detail:
            message = f"not {encoding.upper()}: it begins without a byte-order mark"
        place = f"{file.name}:{number + 1}"
        file.log.add("D01", place, of="file", detail=detail, message=message)
    finally:
        wrapped.detach()  # the file is closed by who opened it


def _too_long(name: str, number: int) -> DataError:
    return DataError(
        f"{name}:{number} · the line is longer than {LONGEST_LINE:,} bytes, which no row of text "
        "is. Check the export, or write one row a line (JSON Lines)."
    )


def _log_undecodable(file: ByteFile, encoding: str, number: int, offset: int, guess: str) -> None:
    place = f"{file.name}:{number}"
    if encoding != "utf-8":
        message = f"not {encoding} at byte {{detail}}"
        file.log.add("D01", place, detail=str(offset), message=message)
        return
    words = {
        "": "",
        "cp1252": "; looks like cp1252 (Windows or Latin-1): pass encoding='cp1252'",
        "utf-16": "; looks like UTF-16 without its mark: pass encoding='utf-16-le' or 'utf-16-be'",
        "binary": "; looks like no text at all",
        "other": "; looks like an older encoding: pass encoding= (cp1251, gb18030, shift_jis …)",
    }
    file.log.add("D01", place, detail=f"{offset}{words[guess]}")


def _guess_encoding(sample: bytes) -> str:
    """Say what bytes that are not UTF-8 most likely are."""
    sample = sample[:_HEAD]
    zeros = sample.count(0)
    if zeros > len(sample) // 5:
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        return "utf-16" if min(even, odd) * 4 < max(even, odd) else "binary"
    controls = len(re.findall(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", sample))
    if controls > len(sample) // 10:
        return "binary"
    high = len(re.findall(rb"[\x80-\xff]", sample))
    letters = len(re.findall(rb"[A-Za-z]", sample))
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "other"
    # Western texts have few letters beyond ASCII; in Cyrillic or Greek ones nearly all are.
    return "cp1252" if high <= max(letters, 3) else "other"
