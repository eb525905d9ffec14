"""The packages of a bundle: gathered by pip, and held against what they require of one another.

pip judges the conditions in a wheel's metadata (`os_name == "nt"`) by the machine it runs on, also
where it downloads for another. So the requirements of another platform are followed here, with that
platform's own answers, and pip is asked for each package alone.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from sftkit import DISTRIBUTION
from sftkit.errors import FetchError
from sftkit.wheels import hash_file, pip_words

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.tags import Tag
    from packaging.version import Version

Progress = Callable[[str], None]
PYTHON = sys.version_info[:2]
_WAIT_S = 3600.0
_TAG = re.compile(
    r"(?P<windows>win)_(?P<win_machine>amd64|arm64)"
    r"|(?P<mac>macosx)_(?P<major>\d{2})_(?P<minor>\d+)_(?P<mac_machine>arm64|x86_64)"
    r"|(?P<linux>manylinux)_2_(?P<glibc>\d{2})_(?P<linux_machine>x86_64|aarch64)"
)
_OLDER_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of machine that a bundle is for.

    Attributes:
        name: As pip names it; empty for this machine.
        answers: What a requirement's conditions ask, such as sys_platform.
        platforms: Every platform whose wheels it takes, the best first; empty for this machine.
    """

    name: str
    answers: Mapping[str, str]
    platforms: tuple[str, ...]

    def tags(self) -> list[Tag]:
        """List what a wheel may be marked with, the best first."""
        from packaging import tags

        if not self.name:
            return list(tags.sys_tags())
        cpython = f"cp{PYTHON[0]}{PYTHON[1]}"
        own = tags.cpython_tags(PYTHON, platforms=self.platforms)
        return [*own, *tags.compatible_tags(PYTHON, cpython, self.platforms)]

    def words(self) -> list[str]:
        """Say to pip what to download for it."""
        # In full: pip takes 3.11 for 3.11.0, and packages may ask for 3.11.5.
        version = platform.python_version()
        words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
        return words + [word for name in self.platforms for word in ("--platform", name)]


def read_target(name: str) -> Target:
    """Say what a platform means; an empty name is this machine.

    Raises:
        FetchError: The name is none of the forms that are known.
    """
    from packaging.markers import default_environment
    from packaging.tags import mac_platforms

    answers = {key: str(value) for key, value in default_environment().items()}
    if not name:
        return Target(name="", answers=answers, platforms=())
    found = _TAG.fullmatch(name)
    if found is None:
        raise FetchError(
            f"--platform {name!r} is not known. Write it as pip does: win_amd64, macosx_14_0_arm64 "
            "or manylinux_2_28_x86_64 (for Linux with glibc 2.28 or newer)."
        )
    if found["windows"]:
        machine = found["win_machine"]
        said = ("win32", "Windows", "nt", machine.upper())
        platforms = [name]
    elif found["mac"]:
        machine = found["mac_machine"]
        said = ("darwin", "Darwin", "posix", machine)
        platforms = list(mac_platforms((int(found["major"]), int(found["minor"])), machine))
    else:
        machine = found["linux_machine"]
        said = ("linux", "Linux", "posix", machine)
        platforms = []
        for minor in range(int(found["glibc"]), 4, -1):
            platforms += [f"manylinux_2_{minor}_{machine}"]
            platforms += [f"{_OLDER_NAMES[minor]}_{machine}"] if minor in _OLDER_NAMES else []
        platforms.append(f"linux_{machine}")
    asked = ("sys_platform", "platform_system", "os_name", "platform_machine")
    unknown = {"platform_release": "", "platform_version": ""}
    answers |= unknown | dict(zip(asked, said, strict=True))
    return Target(name=name, answers=answers, platforms=tuple(platforms))


def gather_wheels(
    checkout: Path,
    folder: Path,
    constraints: Path,
    *,
    extra: str,
    platforms: Sequence[str] = (),
    known: Mapping[str, str] | None = None,
    note: Progress = lambda line: None,
) -> dict[str, list[str]]:
    """Fill a folder with every wheel that installing sftkit offline takes, and with nothing else.

    Args:
        checkout: Where sftkit's own wheel is built from.
        folder: Where the wheels go. What is whole there is kept, what is not needed is removed.
        constraints: The versions that are wanted.
        extra: Which of sftkit's extras is installed with it.
        platforms: Platforms as pip names them; none is this machine.
        known: SHA-256 by file name, of wheels that were gathered before.
        note: Told before each slow step.

    Returns:
        The versions of each package.

    Raises:
        FetchError: A platform is not known, or a package cannot be had for it.
    """
    targets = [read_target(name) for name in platforms or [""]]
    folder.mkdir(parents=True, exist_ok=True)
    _drop_damaged(folder, known or {})
    note(f"building the wheel of {DISTRIBUTION}")
    run_pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout))
    needed: set[Path] = set()
    for target in targets:
        needed |= _gather_for(target, folder, constraints, extra, note)
    versions: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path not in needed:
            path.unlink()
            continue
        name, version = path.name.split("-")[:2]
        versions.setdefault(name.lower().replace("_", "-"), []).append(version)
    return {name: sorted(set(held)) for name, held in versions.items()}


def _gather_for(
    target: Target, folder: Path, constraints: Path, extra: str, note: Progress
) -> set[Path]:
    """Ask pip for what is missing until nothing is."""
    where = target.name or "this machine"
    limits = _read_limits(constraints)
    common = ["--constraint", str(constraints), "--find-links", str(folder)]
    asked: set[str] = set()
    while True:
        needed, missing = follow(folder, f"{DISTRIBUTION}[{extra}]", target, limits)
        if not missing:
            return needed
        if missing <= asked:
            break
        note(f"gathering {len(missing)} packages for {where}")
        if target.name:
            run_pip(
                "download", "--no-deps", *target.words(), *common, "--dest", str(folder),
                *sorted(missing),
            )  # fmt: skip
        elif not asked:
            own = next(folder.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl"))
            wanted = f"{DISTRIBUTION}[{extra}] @ {own.resolve().as_uri()}"
            run_pip("wheel", *common, "--wheel-dir", str(folder), wanted)
        else:
            run_pip("wheel", "--no-deps", *common, "--wheel-dir", str(folder), *sorted(missing))
        asked |= missing
    raise FetchError(
        f"pip delivered no wheel for {where} of: {', '.join(sorted(missing))}. Look whether there "
        "is one in the version that constraints.txt names, or leave this platform out."
    )


def follow(
    folder: Path, root: str, target: Target, limits: dict[str, SpecifierSet]
) -> tuple[set[Path], set[str]]:
    """Follow what wheels require of one another, beginning with one requirement.

    Args:
        folder: The wheels.
        root: The first requirement.
        target: Whose wheels count, and whose answers.
        limits: Versions that are wanted, by package; what is required is added to them.

    Returns:
        The wheels that are needed, and the requirements that none of them fulfils.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    offered = _offered(folder, target)
    while True:
        before = dict(limits)
        needed: set[Path] = set()
        missing: set[str] = set()
        queue = [Requirement(root)]
        seen: set[tuple[str, str]] = set()
        while queue:
            wanted = queue.pop()
            name = canonicalize_name(wanted.name)
            limits[name] = limits[name] & wanted.specifier if name in limits else wanted.specifier
            fitting = [
                o for o in offered.get(name, ()) if limits[name].contains(o[0], prereleases=True)
            ]
            if not fitting:
                missing.add(f"{name}{limits[name]}")
                continue
            path = max(fitting)[-1]
            needed.add(path)
            for part in {"", *wanted.extras}:
                if (name, part) not in seen:
                    seen.add((name, part))
                    queue += _required(path, {**target.answers, "extra": part})
        if limits == before:
            return needed, missing


def _offered(folder: Path, target: Target) -> dict[str, list[tuple[Version, int, Path]]]:
    """List the wheels that a target takes, by package: version, how well it fits, path."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    rank = {tag: -place for place, tag in enumerate(target.tags())}
    offered: dict[str, list[tuple[Version, int, Path]]] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if fits := [rank[tag] for tag in tags if tag in rank]:
            offered.setdefault(name, []).append((version, max(fits), path))
    return offered


def _required(wheel: Path, answers: Mapping[str, str]) -> Iterator[Requirement]:
    """Read what a wheel requires under these answers."""
    from packaging.requirements import InvalidRequirement, Requirement

    for line in _metadata(wheel):
        try:
            wanted = Requirement(line)
        except InvalidRequirement as error:
            raise FetchError(f"{wheel.name} requires {line!r}, which cannot be read.") from error
        if wanted.marker is None or wanted.marker.evaluate(dict(answers)):
            yield wanted


def _metadata(wheel: Path) -> list[str]:
    """Read the lines of a wheel's metadata that tell what it requires."""
    try:
        with zipfile.ZipFile(wheel) as zipped:
            inside = [n for n in zipped.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            text = zipped.read(inside[0]).decode("utf-8", errors="replace")
    except (OSError, zipfile.BadZipFile, IndexError) as error:
        raise FetchError(f"{wheel.name} is no readable wheel ({error}). Fetch again.") from error
    return HeaderParser().parsestr(text).get_all("Requires-Dist") or []


def _read_limits(constraints: Path) -> dict[str, SpecifierSet]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = constraints.read_text(encoding="utf-8").splitlines()
    texts = (line.split("#")[0].strip() for line in lines)
    wanted = [Requirement(text) for text in texts if text]
    return {canonicalize_name(one.name): one.specifier for one in wanted}


def _drop_damaged(folder: Path, known: Mapping[str, str]) -> None:
    """Remove wheels that are cut short or were changed, and all of sftkit's own."""
    own = DISTRIBUTION.replace("-", "_") + "-"
    for path in folder.iterdir():
        if path.name in known:
            whole = hash_file(path) == known[path.name]
        else:
            whole = not path.name.startswith(own) and _is_readable(path)
        if not whole or path.name.startswith(own):
            path.unlink()


def _is_readable(path: Path) -> bool:
    """Say whether a wheel's own checksums are right; a download that was stopped is cut short."""
    try:
        with zipfile.ZipFile(path) as zipped:
            return zipped.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def run_pip(verb: str, *words: str) -> None:
    """Run pip in a process of its own; what it says of a failure is told without secrets.

    Raises:
        FetchError: pip failed, is not there, or did not end.
    """
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
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip {verb} did not end within {_WAIT_S / 60:.0f} minutes.") from error
    if "No module named pip" in done.stderr:
        raise FetchError("This Python has no pip. Run `python -m ensurepip` and try again.")
    if done.returncode != 0:
        raise FetchError(f"pip {verb} failed: {pip_words(done.stderr)}.")
