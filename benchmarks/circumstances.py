"""Where and when a benchmark ran: machine, versions, load; and where its result is kept."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUSY_LOAD = 0.5


def note_load() -> float:
    """Give the load of the last minute, and warn if other programs are running."""
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(f"load {load:.1f}: other programs are running, so times are unsure", file=sys.stderr)
    return load


def describe(packages: Sequence[str], load_before: float) -> dict[str, Any]:
    """Describe date, machine, versions and load; the run ends here."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "load_before": round(load_before, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def describe_machine() -> dict[str, Any]:
    """Describe processor and memory, without the machine's name."""
    import psutil

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "bf16_instructions": sorted({"avx512_bf16", "amx_bf16"} & set(flags)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def save(report: dict[str, Any], name: str) -> None:
    """Keep a report as results/NAME.json."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
