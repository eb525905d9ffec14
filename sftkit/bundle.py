"""A folder for a room without internet: packages, models, data, notebooks, and how to use them.

Everything comes through pip and the catalog's own fetch, so mirrors and offline folders are
honoured. `bundle.json` lists every file with its hash; `verify_bundle` finds what was lost or
changed on the way.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sftkit import DISTRIBUTION, __version__, catalog
from sftkit.errors import FetchError
from sftkit.recipe import load_recipe
from sftkit.settings import Recipe
from sftkit.wheels import hash_file, pip_words

MANIFEST, README, CONSTRAINTS = "bundle.json", "README.txt", "constraints.txt"
WHEELS, CACHE, NOTEBOOKS = "wheels", "cache", "notebooks"
EXTRA = "notebooks"
_WAIT_S = 3600.0
_MOST_BYTES = 50_000_000  # of a manifest

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

    What lies in the folder already and is whole is kept, so that a bundle that was stopped goes on.

    Args:
        folder: The bundle's folder; made if missing.
        names: Catalog names beside those that the demo and notebook 00 use.
        platforms: Platforms as pip names them (win_amd64, macosx_14_0_arm64); none is this one.
        note: Told before each slow step.

    Raises:
        FetchError: There is no checkout, pip did not get a package, or the disk is full.
    """
    folder = Path(folder)
    checkout = _checkout()
    wanted = tuple(dict.fromkeys([*demo_names(), *names]))
    for name in wanted:
        catalog.entry(name)  # refused before anything is downloaded
    try:
        (folder / WHEELS).mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.copyfile(_constraints(checkout), folder / CONSTRAINTS)
        _gather_wheels(checkout, folder, platforms, note)
        for name in wanted:
            _gather_entry(catalog.entry(name), folder / CACHE, note)
        _gather_notebooks(checkout, folder / NOTEBOOKS)
        (folder / README).write_text(_readme(wanted), encoding="utf-8")
        note("hashing every file")
        files: dict[str, dict[str, Any]] = {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": hash_file(path),
            }
            for path in _listed(folder)
        }
        about = {
            "bundle": f"{DISTRIBUTION} {__version__}",
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "platforms": list(platforms) or [_this_platform()],
            "names": list(wanted),
            "files": files,
        }
        partial = folder / f".writing-{MANIFEST}"
        partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / MANIFEST)  # noqa: PTH105  (over an older one, also on Windows)
    except OSError as error:
        raise FetchError(f"{folder} cannot be written: {error.strerror}.") from error
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


def verify_bundle(folder: str | Path) -> tuple[str, ...]:
    """Compare a bundle with its manifest.

    Args:
        folder: The bundle's folder.

    Returns:
        What is wrong, one line for each file; empty if all is whole.

    Raises:
        FetchError: There is no manifest, or it is damaged.
    """
    folder = Path(folder)
    listed = _manifest(folder)
    faults = []
    for name, about in listed.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
            faults.append(f"{name}: leads out of the bundle")
            continue
        path = folder / place
        if path.is_symlink() or any((folder / part).is_symlink() for part in place.parents):
            faults.append(f"{name}: is a link; a bundle has none")
        elif not path.is_file():
            faults.append(f"{name}: is missing")
        elif path.stat().st_size != about["bytes"]:
            size = path.stat().st_size
            faults.append(f"{name}: has {size:,} bytes instead of {about['bytes']:,}")
        elif hash_file(path) != about["sha256"]:
            faults.append(f"{name}: has another content")
    # Caches and notebooks grow in use; a package that nobody gathered would be installed.
    present = {path.relative_to(folder).as_posix() for path in _listed(folder, [WHEELS])}
    faults += [f"{name}: was not in the bundle" for name in sorted(present - set(listed))]
    return tuple(faults)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = "Make the bundle again: sftkit fetch --bundle FOLDER."
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too large")
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not all(
            isinstance(one["bytes"], int) and isinstance(one["sha256"], str)
            for one in files.values()
        ):
            raise ValueError("a file without size and hash")
    except FileNotFoundError:
        raise FetchError(f"{folder} holds no {MANIFEST}, so it is no whole bundle. {remedy}") from (
            None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"{path} is damaged ({error}). {remedy}") from error
    return dict(files)


def _listed(folder: Path, parts: Iterable[str] = (WHEELS, CACHE, NOTEBOOKS)) -> list[Path]:
    """List the files of a bundle; an environment or runs that were made beside them are none."""
    found = [path for part in parts for path in sorted((folder / part).rglob("*"))]
    found += [folder / name for name in (README, CONSTRAINTS)]
    return [
        path
        for path in found
        if (path.is_symlink() or path.is_file())
        and path.name not in (".DS_Store", "Thumbs.db", "desktop.ini")
    ]


# ---- packages ----


def _checkout() -> Path:
    """Find the checkout: the distribution is on no index, and its wheel is built from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / "notebooks").is_dir():
        raise FetchError(
            "A bundle is made from a checkout, which has the notebooks: clone the repository, "
            "install it with `python -m pip install -c constraints.txt -e .`, and try again."
        )
    return root


def _constraints(checkout: Path) -> Path:
    return checkout / CONSTRAINTS


def _gather_wheels(checkout: Path, folder: Path, platforms: Sequence[str], note: Progress) -> None:
    wheels = folder / WHEELS
    for old in wheels.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl"):
        old.unlink()
    note(f"building the wheel of {DISTRIBUTION}")
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(checkout))
    (own,) = wheels.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl")
    pinned = ["--constraint", str(folder / CONSTRAINTS), "--find-links", str(wheels)]
    wanted = f"{own}[{EXTRA}]"
    if not platforms:
        note("gathering its packages (the largest is torch)")
        _pip("wheel", *pinned, "--wheel-dir", str(wheels), wanted)
        return
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in platforms:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise FetchError(f"--platform {name!r}: write it as pip does, e.g. win_amd64.")
        note(f"gathering its packages for {name} (the largest is torch)")
        _pip(
            "download", *pinned, "--only-binary=:all:", "--platform", name,
            "--python-version", python, "--dest", str(wheels), wanted,
        )  # fmt: skip


def _pip(verb: str, *words: str) -> None:
    """Run pip in a process of its own; what it says of a failure is told without secrets."""
    command = [sys.executable, "-m", "pip", verb, "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(  # noqa: S603  (fixed words and paths of our own)
            [*command, "--quiet", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip {verb} did not end within {_WAIT_S / 60:.0f} minutes.") from error
    if done.returncode != 0:
        raise FetchError(f"pip {verb} failed: {pip_words(done.stderr)}.")


def _this_platform() -> str:
    return f"{sys.platform}-{platform.machine()}".lower()


# ---- models, data, notebooks ----


def _gather_entry(wanted: catalog.Entry, cache: Path, note: Progress) -> None:
    """Copy an entry out of the cache, to where a cache in the bundle would have it."""
    if wanted.hub is not None:
        raise FetchError(
            f"{wanted.name} comes from the hub, whose files a bundle does not carry. Copy the "
            "hub's own cache (HF_HOME), or leave the name out."
        )
    source = catalog.fetch_entry(wanted, progress=note)
    root = catalog.cache_folder()
    if not source.is_relative_to(root):
        return  # it comes with sftkit, or with another package
    target = cache / source.relative_to(root)
    if target.exists():
        return
    partial = target.with_name(f".writing-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def _gather_notebooks(checkout: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for path in _notebooks(checkout / "notebooks"):
        place = target / path.relative_to(checkout / "notebooks")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _notebooks(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.ipynb"))
    yield from sorted(folder.glob("solutions/*.ipynb"))


def _readme(names: Iterable[str]) -> str:
    return f"""{DISTRIBUTION} {__version__}: everything for a room without internet.

Linux and macOS, in this folder:

  python3 -m venv .venv && . .venv/bin/activate
  python -m pip install --no-index --find-links {WHEELS} -c {CONSTRAINTS} "{DISTRIBUTION}[{EXTRA}]"
  export SFTKIT_CACHE="$PWD/{CACHE}"
  sftkit fetch --verify .
  sftkit demo
  jupyter lab {NOTEBOOKS}/00_start_here.ipynb

Windows (PowerShell), in this folder:

  py -m venv .venv; .venv\\Scripts\\Activate.ps1
  python -m pip install --no-index --find-links {WHEELS} -c {CONSTRAINTS} "{DISTRIBUTION}[{EXTRA}]"
  $env:SFTKIT_CACHE = "$PWD\\{CACHE}"
  sftkit fetch --verify .
  sftkit demo
  jupyter lab {NOTEBOOKS}\\00_start_here.ipynb

Models and data in {CACHE}: {", ".join(names)}. `sftkit fetch --list` shows their licences.
Other notebooks fetch more data; name it when the bundle is made: sftkit fetch --bundle FOLDER NAME
"""
