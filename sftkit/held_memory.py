"""What memory this process holds: now, and at most so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
