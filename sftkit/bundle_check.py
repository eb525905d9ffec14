"""Whether a bundle is whole: every file of its manifest, and no other.

The hashes find what was lost or changed on the way. They are no signature: who can change a file
can change the manifest, too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sftkit.errors import FetchError
from sftkit.wheels import hash_file

MANIFEST = "bundle.json"
WHEELS, CACHE = "wheels", "cache"
MADE_IN_USE = (".venv", "runs", f"{CACHE}/scores")
"""What following a bundle's README makes inside it."""
_LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
_MOST_BYTES = 50_000_000  # of a manifest


def verify_bundle(folder: str | Path) -> tuple[str, ...]:
    """Compare a bundle with its manifest.

    Args:
        folder: The bundle's folder.

    Returns:
        What is wrong, one line for each file; empty if all is whole. What using a bundle makes
        in it (an environment, runs, scores, hidden files of the cache) is no fault.

    Raises:
        FetchError: There is no manifest, or it is damaged.
    """
    folder = Path(folder)
    listed: Mapping[str, Any] = read_manifest(folder)["files"]
    faults = []
    for name, about in listed.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or re.search(r"[\\:\0]", name):
            faults.append(f"{name}: leads out of the bundle")
            continue
        path = folder / place
        if any((folder / part).is_symlink() for part in (place, *place.parents[:-1])):
            faults.append(f"{name}: is a link; a bundle has none")
        elif not path.is_file():
            faults.append(f"{name}: is missing")
        elif path.stat().st_size != about["bytes"]:
            size = path.stat().st_size
            faults.append(f"{name}: has {size:,} bytes instead of {about['bytes']:,}")
        elif hash_file(path) != about["sha256"]:
            faults.append(f"{name}: has another content")
    faults += [
        f"{name}: was not in the bundle"
        for name in listed_files(folder)
        if name not in listed and not _is_made_in_use(name)
    ]
    return tuple(fault if fault.isprintable() else ascii(fault) for fault in faults)


def _is_made_in_use(name: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts[1:])
    return hidden and not name.startswith(f"{WHEELS}/")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a bundle says of itself.

    Raises:
        FetchError: There is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    remedy = "Make the bundle again: sftkit fetch --bundle FOLDER."
    try:
        if path.is_symlink():
            raise ValueError("a link")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        about = json.loads(path.read_text(encoding="utf-8"))
        if not all(
            isinstance(one["bytes"], int) and isinstance(one["sha256"], str)
            for one in about["files"].values()
        ):
            raise ValueError("a file without size and hash")
    except FileNotFoundError:
        raise FetchError(f"{folder} holds no {MANIFEST}, so it is no whole bundle. {remedy}") from (
            None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError(f"{path} is damaged ({error}). {remedy}") from error
    return dict(about)


def listed_files(folder: Path) -> list[str]:
    """List the files and links of a bundle, but its manifest and what is made beside its parts."""
    found = []
    for root, inner, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        links = [name for name in inner if (Path(root) / name).is_symlink()]
        inner[:] = [n for n in sorted(inner) if (here / n).as_posix() not in MADE_IN_USE]
        found += [(here / name).as_posix() for name in [*files, *links] if not is_noise(name)]
    outside = (*MADE_IN_USE, MANIFEST)
    return sorted(name for name in found if name not in outside)


def is_noise(name: str) -> bool:
    """Say whether an operating system leaves files of this name wherever it looks."""
    return name in _LEFT_BY_SYSTEMS or name.startswith("._")  # macOS, on foreign disks
