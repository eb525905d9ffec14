"""What memory this process holds, now and at most so far, and what there is for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


NO_LIMIT = 1 << 60
"""A limit above it is none: version 1 of control groups writes 2**63, rounded to pages."""


def memory_bytes() -> int:
    """Memory this process holds now: its resident set."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """Most memory this process has held so far: the peak of its resident set.

    Where it has used CUDA, the most that torch has reserved of any one device instead.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_reserved(n) for n in range(torch.cuda.device_count()))
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss begins with the parent's peak after a fork
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", memory_bytes()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux KiB


def held_bytes(device: torch.device) -> int:
    """Memory held for training on a device, as the one who watches for it to run out sees it.

    On a CPU the process's resident set; on CUDA what torch has reserved of the device, which
    includes what the largest moment so far needed; on an Apple GPU what the driver gave.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return memory_bytes()


def free_bytes(system: Path = Path("/")) -> int:
    """Memory that this process and new ones can still take.

    What the machine has available, or what is left below the limit of a control group that this
    process is in, where that is less: a container's limit does not show in the machine's numbers.
    Pages of files that were not used lately count as free, as they are given back first.

    Args:
        system: The folder that holds /proc and /sys.
    """
    import psutil

    left = [psutil.virtual_memory().available, *_left_in_groups(system)]
    return int(max(0, min(left)))


def _left_in_groups(system: Path) -> list[int]:
    """Give what is left in every limited control group above this process (Linux)."""
    root = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:  # number:controllers:path, no controllers in version 2
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        kept = "total_inactive_file" if controllers else "inactive_file"
        # In a container the group's folder may be mounted as the top, whatever its path is.
        group = top / path.strip("/")
        for folder in {top, group, *(one for one in group.parents if top in one.parents)}:
            limit, used = (_number(folder / f"memory.{name}") for name in names)
            if limit is not None and used is not None and limit < NO_LIMIT:
                found.append(limit - used + _stat(folder / "memory.stat", kept))
    return found


def _number(path: Path) -> int | None:
    """Read a number; None where there is no file, or it says that there is no limit."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, name: str) -> int:
    """Read one number of a file of names and numbers; 0 where it is missing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
