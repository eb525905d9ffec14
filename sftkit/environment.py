"""Where a run happens: device, type, versions, and the base it starts from."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.records import Environment
from sftkit.settings import Recipe

if TYPE_CHECKING:
    import torch

    from sftkit.catalog import ModelSource
    from sftkit.model import DtypeChoice

PACKAGES = (
    "sftkit-notebooks",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "numpy",
)


def describe_environment(
    recipe: Recipe, base: Any, source: ModelSource, choice: DtypeChoice
) -> Environment:
    """Write down where a run happens and which base it starts from."""
    return Environment(
        versions=_versions(),
        device=describe_device(base.device),
        dtype=choice.name,
        quantization=recipe.model.quantization,
        seed=recipe.train.seed,
        processes=1,
        base=f"{source.name}: {source.title}" if source.title else source.name,
        base_fingerprint=source.fingerprint,
        dtype_reason=choice.reason,
    )


def describe_device(device: torch.device) -> str:
    """Name the processor or GPU in words, without the machine's own name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {_threads()} threads, {platform.machine()} {capability}"


def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _threads() -> int:
    import torch

    return torch.get_num_threads()
