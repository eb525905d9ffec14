"""Raw rows out of whatever a source is, with the place of each and what is wrong with it.

Nothing here knows conversations. Rows are drawn one at a time and never held together. A fault
costs its own row, so that all faults of a source are found in one pass; only where it cannot be
read on does reading stop.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit import catalog
from sftkit.dataset import columnar, folders
from sftkit.dataset.delimited import choose_delimiter, read_delimited
from sftkit.dataset.faults import FaultLog
from sftkit.dataset.json_lines import is_one_document, read_json_document, read_json_lines
from sftkit.dataset.lines import ByteFile, check_encoding, open_bytes, read_lines
from sftkit.errors import DataError, near_names

Row = dict[str, Any]
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow", ".xlsx", ".gz", ".zst")
_PROMISED = {".csv": ",", ".tsv": "\t"}
_READ_AS = {".json": "JSON", ".csv": "CSV", ".tsv": "TSV", **dict.fromkeys(
    (".jsonl", ".ndjson"), "JSON Lines (one object a line)")}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIRST_CHARACTERS = 1 << 16
_FOREIGN = {
    b"%PDF": "a PDF document; extract its text first",
    b"\xd0\xcf\x11\xe0": "an Excel file in the format before 2007, or an encrypted one; save it "
    "as .xlsx without a password",
    b"SQLite format 3": "a SQLite database; export the table as CSV",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch that with "
    "git lfs pull",
    b"<!DOCTYPE html": "a web page (an error or a login instead of the file?); download it again",
    b"<!doctype html": "a web page (an error or a login instead of the file?); download it again",
    b"<html": "a web page (an error or a login instead of the file?); download it again",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip or zstd",
    b"\xfd7zXZ": "packed with xz; unpack it, or pack it with gzip or zstd",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89PNG": "an image; give the folder with one subfolder of images for each label",
    b"\xff\xd8\xff": "an image; give the folder with one subfolder of images for each label",
    b"GIF8": "an image; give the folder with one subfolder of images for each label",
    b"\x89HDF": "an HDF5 file; export the table as Parquet",
    b"\x80\x04\x95": "a Python pickle, which could run any code when opened; it is not read. "
    "Export the data as JSON Lines or Parquet",
}


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Rows as their source gives them, to be drawn once.

    Attributes:
        name: What the source is called in messages.
        log: What is wrong with the source as a file; filled while rows are drawn.
        rows: Place (file:line or "file row N") and values by column, not yet converted.
        folder: Where paths in the rows begin, if the source is a file.
    """

    name: str
    log: FaultLog
    rows: Iterator[tuple[str, Row]]
    folder: Path | None = None


def open_table(source: Any, *, encoding: str | None = None) -> RawTable:
    """Open a source for one pass over its rows.

    Args:
        source: A catalog name, a file, a folder, a hub id (owner/name), a pandas frame, a
            `datasets` object, or a list of mappings.
        encoding: Encoding of a text file; None expects UTF-8.

    Returns:
        The table; faults appear in its log as rows are drawn.

    Raises:
        DataError: There is no such source, or its kind is not read.
        FetchError: A catalog dataset that cannot be had.
    """
    encoding = check_encoding(encoding)
    if not isinstance(source, str | Path):
        return _open_object(source)
    name = str(source)
    if isinstance(source, str) and source in catalog.names():
        return _listed(name, catalog.dataset_rows(source), "row")
    if isinstance(source, str) and (advice := _explain_no_path(source)):
        raise DataError(f"{name!r} is {advice}")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _open_folder(path, encoding)
        is_there = path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{name!r} cannot be read ({error}).") from error
    if not is_there and (path.suffix.lower() in SUFFIXES or isinstance(source, Path)):
        raise DataError(f"{path} cannot be read (No such file or directory).{_near_files(path)}")
    if is_there:
        return _open_file(path, encoding)
    if _HUB_ID.fullmatch(name):
        return _open_hub(name)
    raise DataError(
        f"No dataset {name!r}: not in the catalog, no file or folder, and not a hub id "
        f"(owner/name). Files end in {', '.join(SUFFIXES)}."
        f"{near_names(name, catalog.names('dataset'))}"
    )


def _explain_no_path(source: str) -> str:
    """Say what a source is that is no path, and what to do; nothing for one that may be."""
    if not source.strip():
        return "no source: give a file, a folder, a catalog name or a hub id."
    if source == "-":
        return "no file: standard input is not read. Write it to a file first, and give that."
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        return "an address, and nothing is downloaded from it. Download the file, and give that."
    return ""


def _near_files(path: Path) -> str:
    """Name what a wrong path may have meant, as the tail of a message."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either: check the path."
    try:
        beside = [file.name for file in path.parent.iterdir()]
    except OSError:
        beside = []
    near = near_names(path.name, beside)
    return near if "Did you mean" in near else " Check the path."


def _open_object(source: Any) -> RawTable:
    """Open a frame, a dataset, or rows that are already in memory."""
    log = FaultLog()
    kind = type(source).__module__.split(".")[0]
    if kind == "pandas" and hasattr(source, "itertuples"):
        rows = columnar.read_frame(source, "frame", log)
        return RawTable(name="the frame", log=log, rows=_count_rows(rows, "frame", log))
    if kind == "datasets":
        rows = columnar.read_dataset_rows(source, "dataset", log)
        return RawTable(name="the dataset", log=log, rows=_count_rows(rows, "dataset", log))
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return _listed("the list", [columnar.to_native(row) for row in source], "row")
    raise DataError(
        f"{type(source).__name__} is no source of rows. Give a path, a catalog name, a hub id, a "
        "pandas frame, a dataset, or a list of dictionaries."
    )


def _listed(name: str, rows: Sequence[Row], word: str) -> RawTable:
    log = FaultLog()
    numbered = ((f"{word} {number}", row) for number, row in enumerate(rows, start=1))
    return RawTable(name=name, log=log, rows=_count_rows(numbered, name, log))


def _count_rows(
    rows: Iterator[tuple[str, Row]], name: str, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    """Pass rows on; note when there is none and nothing else explains it."""
    is_empty = True
    for item in rows:
        is_empty = False
        yield item
    if is_empty and not _has_errors(log):
        log.add("D10", name)


def _has_errors(log: FaultLog) -> bool:
    return any(finding.severity == "error" for finding in log.findings())


def _open_hub(name: str) -> RawTable:
    import datasets

    log = FaultLog()
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub library raises dozens of kinds
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise DataError(
            f"There is no file or folder {name!r}, and the hub dataset of this name could not be "
            f"loaded ({type(error).__name__}: {reason}). Check the name and the network, or give "
            "a file."
        ) from error
    rows = columnar.read_dataset_rows(loaded, name, log)
    return RawTable(name=name, log=log, rows=_count_rows(rows, name, log))


# ---- one file ----


def _open_file(path: Path, encoding: str | None) -> RawTable:
    log = FaultLog()
    rows = _file_rows(path, path.name, encoding, log)
    return RawTable(
        name=path.name, log=log, rows=_count_rows(rows, path.name, log), folder=path.parent
    )


def _file_rows(
    path: Path, name: str, encoding: str | None, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    """Choose a reader by the file's content; its suffix only says what was promised."""
    file = open_bytes(path, FaultLog(), name=name)
    file.stream.close()
    binary = _binary_reader(file)
    if binary is None:
        return _text_rows(path, name, encoding, log)
    kind, reader = binary
    _note_kind(file, kind, log)
    return reader(path, log)


def _binary_reader(file: ByteFile) -> Any:
    head, name = file.head, file.name
    if not head:
        return None
    kind, reader = "", None
    if head.startswith(b"PAR1"):
        kind, reader = "parquet", columnar.read_parquet
    elif head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        kind, reader = "arrow", columnar.read_arrow
    elif head.startswith(b"PK\x03\x04"):
        kind, reader = "xlsx", columnar.read_excel
        if file.suffix not in (".xlsx", ".xlsm"):
            raise DataError(f"{name} is a zip archive. Unpack it and give a file or folder of it.")
    foreign = next((words for magic, words in _FOREIGN.items() if head.startswith(magic)), "")
    if foreign:
        raise DataError(f"{name} is {foreign}.")
    if reader is not None and file.packed:
        raise DataError(
            f"{name} holds a file of kind {kind} inside {file.packed}. Unpack it first; such files "
            "are compressed in themselves."
        )
    promised = file.suffix.removeprefix(".")
    if reader is None and promised in ("parquet", "arrow", "xlsx", "xlsm", "feather"):
        raise DataError(
            f"{name} does not begin as a {promised} file does: it is damaged or something else. "
            "Fetch or export it again."
        )
    return None if reader is None else (kind, reader)


def _note_kind(file: ByteFile, kind: str, log: FaultLog) -> None:
    """Say which kind a file was read as, where its name does not."""
    said = _READ_AS.get(file.suffix, file.suffix.removeprefix("."))
    same = {"xlsm": "xlsx", "feather": "arrow"}.get(said, said)
    if kind != same:
        log.add("D22", file.name, of="file", detail=kind, message="read as {detail}")


def _text_rows(
    path: Path, name: str, encoding: str | None, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    file = open_bytes(path, log, name=name)
    try:
        yield from _rows_of_lines(file, read_lines(file, encoding=encoding), log)
    finally:
        file.stream.close()


def _rows_of_lines(
    file: ByteFile, lines: Iterator[str], log: FaultLog
) -> Iterator[tuple[str, Row]]:
    first, is_all = _first_lines(lines)
    filled = [line for line in first if line.strip("\ufeff \t\r\n")]
    if not filled:
        if not is_all:
            raise DataError(f"{file.name} begins with {len(first):,} blank lines.")
        if not _has_errors(log):
            log.add("D09", file.name)
        return
    name, suffix = file.name, file.suffix
    everything = itertools.chain(first, lines)
    promised = _PROMISED.get(suffix, "")
    named_lines = suffix in (".jsonl", ".ndjson")
    looks_like_json = filled[0].lstrip("\ufeff \t")[:1] in ("{", "[")
    if looks_like_json and not (promised and not _is_json_after_all(filled)):
        whole = is_one_document(filled, is_all=is_all, named_lines=named_lines)
        if not (suffix == ".json" if whole else named_lines):
            _note_kind(file, _READ_AS[".json" if whole else ".jsonl"], log)
        read = read_json_document if whole else read_json_lines
        yield from read(everything, name, log)
    elif (named_lines or suffix == ".json") and not _is_table_after_all(first):
        yield from read_json_lines(everything, name, log)
    elif promised:
        yield from read_delimited(everything, name, promised, log)
    elif mark := choose_delimiter(first if is_all else first[:-1], ""):
        words = {",": "CSV", "\t": "TSV (tabs)"}.get(mark, f"CSV with {mark!r} between columns")
        _note_kind(file, words, log)
        yield from read_delimited(everything, name, mark, log)
    else:
        raise DataError(
            f"{name} is neither a table nor JSON Lines: no delimiter divides its lines into "
            f"columns. Expected {', '.join(SUFFIXES)}, or a folder with one subfolder of texts or "
            "images for each label."
        )


def _first_lines(lines: Iterator[str]) -> tuple[list[str], bool]:
    """Draw lines up to 64 Ki characters; say whether these are all."""
    first: list[str] = []
    length = 0
    for line in lines:
        first.append(line)
        length += len(line)
        if length >= _FIRST_CHARACTERS and len(first) > 1:
            return first, False
    return first, True


def _is_table_after_all(lines: Sequence[str]) -> bool:
    """Say whether the lines of what is called JSON are a table: all divided alike, no braces."""
    begins = {line.lstrip()[:1] for line in lines}
    return not begins & {"{", "[", "]", "}", '"'} and bool(choose_delimiter(lines, ""))


def _is_json_after_all(filled: Sequence[str]) -> bool:
    """Say whether the lines of what is called a table are JSON; a header seldom is an object."""
    begin = re.sub(r"\s", "", "".join(filled[:3]))
    return bool(re.match(r'\{"[^"]*":|\[(\{|$)', begin))


# ---- a folder ----


def _open_folder(path: Path, encoding: str | None) -> RawTable:
    log = FaultLog()
    root = path.resolve()
    if folders.is_saved_dataset(root):
        rows = columnar.read_dataset_rows(folders.load_saved(root), root.name, log)
        return RawTable(name=root.name, log=log, rows=_count_rows(rows, root.name, log))
    files = folders.list_files(root)
    images = [file for file in files if file.suffix.lower() in folders.IMAGE_SUFFIXES]
    texts = [file for file in files if file.suffix.lower() in folders.TEXT_SUFFIXES]
    tables = [file for file in files if file.suffix.lower() in SUFFIXES]
    texts = [file for file in texts if file.stem.lower() not in ("readme", "license", "licence")]
    if len(images) > max(len(texts), len(tables)):
        rows = folders.read_image_folder(images, root, log)
    elif tables and len(tables) >= len(texts):
        rows = _shard_rows(tables, root, encoding, log)
    elif texts:
        rows = folders.read_text_folder(texts, root, encoding, log)
    else:
        raise DataError(
            f"{path} holds nothing that is read: expected texts or images in one subfolder for "
            f"each label, or files ending in {', '.join(SUFFIXES)}. "
            + (f"It has {', '.join(f.name for f in files[:3])}." if files else "It is empty.")
        )
    return RawTable(name=root.name, log=log, rows=_count_rows(rows, root.name, log), folder=root)


def _shard_rows(
    files: Sequence[Path], root: Path, encoding: str | None, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    """Give the rows of several files after one another; train.csv and test.csv name splits."""
    splits = [folders.SPLIT_WORDS.get(re.split(r"[-_.]", f.stem.lower())[0]) for f in files]
    for path, split in zip(files, splits, strict=True):
        rows = _file_rows(path, path.relative_to(root).as_posix(), encoding, log)
        for place, row in rows:
            yield place, ({**row, "split": split} if all(splits) else row)
