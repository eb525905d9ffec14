"""A folder for a room without internet: packages, models, data, notebooks, and how to use them.

Everything comes through pip and the catalog's own fetch, so mirrors and offline folders are
honoured. `bundle.json` lists every file with its hash, for `bundle_check` to compare.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit import DISTRIBUTION, __version__, bundle_wheels, catalog
from sftkit.bundle_check import (
    CACHE,
    MADE_IN_USE,
    MANIFEST,
    WHEELS,
    is_noise,
    listed_files,
    read_manifest,
)
from sftkit.errors import FetchError
from sftkit.recipe import load_recipe
from sftkit.settings import Recipe
from sftkit.wheels import hash_file

README, CONSTRAINTS = "README.txt", "constraints.txt"
NOTEBOOKS = "notebooks"
EXTRA = "notebooks"
_PARTS = (WHEELS, CACHE, NOTEBOOKS, README, CONSTRAINTS, MANIFEST, f".writing-{MANIFEST}")

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        folder: Where it lies.
        files: How many files.
        bytes: Their size together.
        names: Models and data in its cache.
        platforms: What its packages are for, as pip names it.
    """

    folder: Path
    files: int
    bytes: int
    names: tuple[str, ...]
    platforms: tuple[str, ...]


def make_bundle(
    folder: str | Path,
    names: Sequence[str] = (),
    *,
    platforms: Sequence[str] = (),
    note: Progress = lambda line: None,
) -> Bundle:
    """Gather all that the demo, the notebooks and the named models and data need.

    What lies in the folder already and is whole is kept, so that a bundle that was stopped goes
    on. What an earlier bundle held and this one does not is removed.

    Args:
        folder: The bundle's folder; made if missing.
        names: Catalog names beside those that the demo and notebook 00 use.
        platforms: Platforms as pip names them (win_amd64, macosx_14_0_arm64); none is this one.
        note: Told before each slow step.

    Raises:
        FetchError: The folder holds other things, there is no checkout, pip did not get a package,
            a model is one of the hub, or the disk is full.
    """
    folder = Path(folder)
    checkout = _checkout()
    wanted = tuple(dict.fromkeys([*demo_names(), *names]))
    entries = [catalog.entry(name) for name in wanted]
    for entry in entries:
        _refuse_hub(entry)  # refused before anything is downloaded, as platforms are
    for name in platforms:
        bundle_wheels.read_target(name)
    known = _known_hashes(folder)
    _refuse_other_things(folder, known)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.copyfile(checkout / CONSTRAINTS, folder / CONSTRAINTS)
        versions = bundle_wheels.gather_wheels(
            checkout,
            folder / WHEELS,
            folder / CONSTRAINTS,
            extra=EXTRA,
            platforms=platforms,
            known={name.removeprefix(f"{WHEELS}/"): known[name] for name in known},
            note=note,
        )
        kept = {path for entry in entries for path in _gather_entry(entry, folder / CACHE, note)}
        _remove_all_but(kept, folder / CACHE)
        notebooks = checkout / NOTEBOOKS
        kept = {
            _copy(path, folder / NOTEBOOKS / path.relative_to(notebooks))
            for path in _notebooks(notebooks)
        }
        _remove_all_but(kept, folder / NOTEBOOKS)
        readme = _readme(wanted, platforms or (_this_platform(),))
        (folder / README).write_text(readme, encoding="utf-8")
        note("hashing every file")
        files: dict[str, dict[str, Any]] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
            for name in listed_files(folder)
        }
        about = {
            "bundle": f"{DISTRIBUTION} {__version__}",
            "python": platform.python_version(),
            "platforms": list(platforms) or [_this_platform()],
            "names": list(wanted),
            "versions": versions,
            "files": files,
        }
        partial = folder / f".writing-{MANIFEST}"
        partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / MANIFEST)  # noqa: PTH105  (over an older one, also on Windows)
    except OSError as error:
        raise FetchError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return Bundle(
        folder=folder,
        files=len(files),
        bytes=sum(one["bytes"] for one in files.values()),
        names=wanted,
        platforms=tuple(platforms) or (_this_platform(),),
    )


def demo_names() -> tuple[str, ...]:
    """List the catalog names that the demo and notebook 00 use."""
    recipe: Recipe = load_recipe(Path(__file__).parent / "recipes" / "demo.yaml")
    asked = (recipe.model.name, recipe.data.source, recipe.data.replay,
             *recipe.evaluate.probes, recipe.evaluate.drift_source)  # fmt: skip
    return tuple(dict.fromkeys(name for name in asked if name in catalog.names()))


def _known_hashes(folder: Path) -> dict[str, str]:
    """Take the hashes of files from an earlier manifest, if there is one."""
    with contextlib.suppress(FetchError):
        files = read_manifest(folder)["files"]
        return {name: one["sha256"] for name, one in files.items()}
    return {}


def _refuse_other_things(folder: Path, known: Mapping[str, str]) -> None:
    """Leave alone what is no bundle, and notebooks that somebody worked on in a finished one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FetchError(f"{folder} is a file; a bundle needs a folder.")
    ours = (*_PARTS, *MADE_IN_USE)
    listed = listed_files(folder)
    found = {
        "other things": [
            path.name
            for path in sorted(folder.iterdir())
            if path.name not in ours and not is_noise(path.name)
        ],
        "links": [name for name in listed if (folder / name).is_symlink()],
    }
    if known and not found["links"]:
        found["work of yours"] = [
            name
            for name in listed
            if name.startswith(f"{NOTEBOOKS}/")
            and "/." not in name
            and (name not in known or hash_file(folder / name) != known[name])
        ]
    for said, names in found.items():
        if names:
            shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            raise FetchError(
                f"{folder} holds {said}: {shown}. Move them away, or give an empty folder or one "
                "with an earlier bundle alone."
            )


def _checkout() -> Path:
    """Find the checkout: the distribution is on no index, and its wheel is built from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / "notebooks").is_dir():
        raise FetchError(
            "A bundle is made from a checkout, which has the notebooks: clone the repository, "
            "install it with `python -m pip install -c constraints.txt -e .`, and try again."
        )
    return root


def _this_platform() -> str:
    return f"{sys.platform}-{platform.machine()}".lower()


# ---- models, data, notebooks ----


def _refuse_hub(wanted: catalog.Entry) -> None:
    if wanted.hub is not None:
        raise FetchError(
            f"{wanted.name} comes from the hub, whose files a bundle does not carry. Copy the "
            "hub's own cache (HF_HOME), or leave the name out."
        )


def _gather_entry(wanted: catalog.Entry, cache: Path, note: Progress) -> Iterator[Path]:
    """Copy an entry out of the cache, to where a cache in the bundle would have it.

    Hidden files are left: they hold times of this disk, and copies that are made again at need.
    """
    source = catalog.fetch_entry(wanted, progress=note)
    root = catalog.cache_folder()
    if not source.is_relative_to(root):
        return  # it comes with sftkit, or with another package
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield _copy(path, cache / path.relative_to(root))


def _copy(source: Path, target: Path) -> Path:
    """Copy a file unless it is there; a copy that was stopped leaves no part of it."""
    same_size = target.is_file() and target.stat().st_size == source.stat().st_size
    if same_size and hash_file(target) == hash_file(source):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".writing-{target.name}")
    shutil.copyfile(source, partial)
    os.replace(partial, target)  # noqa: PTH105  (over an older one, also on Windows)
    return target


def _remove_all_but(kept: set[Path], folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for path in (Path(root) / name for name in files):
            if path not in kept:
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            Path(root).rmdir()


def _notebooks(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.ipynb"))
    yield from sorted(folder.glob("solutions/*.ipynb"))


def _readme(names: Sequence[str], platforms: Sequence[str]) -> str:
    python = ".".join(str(part) for part in bundle_wheels.PYTHON)
    install = (
        f'-m pip install --no-index --find-links {WHEELS} -c {CONSTRAINTS} "'
        f'{DISTRIBUTION}[{EXTRA}]"'
    )
    return f"""{DISTRIBUTION} {__version__}: everything for a room without internet.
For Python {python} ({platform.python_version()} or newer) on {", ".join(platforms)}.
Another version of Python, such as 3.{sys.version_info.minor + 1}, finds no fitting packages here.

Copy this folder to the computer's own disk. Then, in the copy, on Linux and macOS:

  python{python} -m venv .venv && . .venv/bin/activate
  python {install}
  sftkit fetch --verify .
  export SFTKIT_CACHE="$PWD/{CACHE}"
  sftkit demo
  jupyter lab {NOTEBOOKS}/00_start_here.ipynb

On Windows (PowerShell):

  py -{python} -m venv .venv
  .venv\\Scripts\\python {install}
  .venv\\Scripts\\sftkit fetch --verify .
  $env:SFTKIT_CACHE = "$PWD\\{CACHE}"
  .venv\\Scripts\\sftkit demo
  .venv\\Scripts\\jupyter lab {NOTEBOOKS}\\00_start_here.ipynb

Verify before the first use: notebooks that were worked on are told as changed.
Models and data in {CACHE}: {", ".join(names)}. `sftkit fetch --list` shows their licences.
Other notebooks fetch more data; name it when the bundle is made: sftkit fetch --bundle FOLDER NAME
"""
