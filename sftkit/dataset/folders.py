"""Rows out of folders: texts and images sorted by label, shards of one table, saved datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftkit.dataset.faults import FaultLog
from sftkit.errors import DataError

Row = dict[str, Any]
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"))
TEXT_SUFFIXES = frozenset((".txt", ".text", ".md"))
LONGEST_TEXT = 1 << 24
"""Bytes of a text file in a folder of texts."""
SPLIT_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("validation", "valid", "val", "dev", "development", "eval", "evaluation"), "validation"
    ),
    **dict.fromkeys(("test", "testing", "holdout", "held-out", "held_out"), "test"),
    "control": "control",
}


def list_files(folder: Path) -> list[Path]:
    """List all files below a folder in a fixed order, hidden ones left out; links to folders too.

    Raises:
        DataError: A folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (name for name in sorted(names) if not name.startswith((".", "Thumbs.db")))
        found.extend(Path(parent, name) for name in visible)
    return found


def is_saved_dataset(folder: Path) -> bool:
    """Say whether a folder is what `save_to_disk` of `datasets` writes."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load_saved(folder: Path) -> Any:
    """Load what `save_to_disk` wrote.

    Raises:
        DataError: It is damaged.
    """
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds on damaged files
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise DataError(
            f"{folder} looks like a dataset saved with save_to_disk, but cannot be loaded "
            f"({reason}). Save it again."
        ) from error


def label_of(path: Path, root: Path) -> tuple[str | None, str | None]:
    """Read label and split off a path: root/label/file or root/split/label/file."""
    parts = list(path.relative_to(root).parts[:-1])
    split = SPLIT_WORDS.get(parts[0].lower()) if parts else None
    if split is not None:
        parts = parts[1:]
    return "/".join(parts) or None, split


def _facts(path: Path, root: Path) -> Row:
    label, split = label_of(path, root)
    row: Row = {"file": path.relative_to(root).as_posix()}
    if label is not None:
        row["label"] = label
    if split is not None:
        row["split"] = split
    return row


def read_text_folder(
    files: list[Path], root: Path, encoding: str | None, log: FaultLog
) -> Iterator[tuple[str, Row]]:
    """Give one row for each text file; the folder it lies in is its label.

    Faults of a file's encoding cost that file only.
    """
    for path in files:
        place = f"{root.name}/{path.relative_to(root).as_posix()}"
        try:
            if path.stat().st_size > LONGEST_TEXT:
                raise DataError(
                    f"{place} is larger than {LONGEST_TEXT:,} bytes; a folder of texts has one "
                    "example in each file. Divide it."
                )
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).") from error
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) and encoding is None:
            log.add("D02", place)
            continue
        try:
            text = data.decode(encoding or "utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            log.add("D01", place, detail=str(error.start))
            continue
        if not text.strip():
            log.add("D09", place)
            continue
        yield place, {"text": text, **_facts(path, root)}


def read_image_folder(files: list[Path], root: Path, log: FaultLog) -> Iterator[tuple[str, Row]]:
    """Give one row for each image file; the folder it lies in is its label."""
    for path in files:
        place = f"{root.name}/{path.relative_to(root).as_posix()}"
        yield place, {"image": str(path), **_facts(path, root)}


def check_image(value: Any) -> str:
    """Say what is wrong with an image; nothing when it can be decoded.

    Args:
        value: Encoded bytes, or an image of Pillow.

    Returns:
        Words, such as "cut off or damaged (…)"; empty for a sound image.
    """
    import io
    import warnings

    from PIL import Image, UnidentifiedImageError

    source = io.BytesIO(value) if isinstance(value, bytes) else value
    if isinstance(source, Image.Image):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.draft("RGB", (64, 64))  # JPEG files are then decoded at an eighth
                image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels (taken for a decompression bomb)"
    except UnidentifiedImageError:
        return "no image, or of a kind that is not read"
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return f"cut off or damaged ({reason})"
    return ""
