"""Where a run happens: device, type, versions, and the base it starts from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sftkit.processes import process_count
from sftkit.recipe import recipe_to_dict
from sftkit.records import DataFacts, Environment
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
FINGERPRINTS = ("the rows", "the base model", "the tokenizer", "the chat template")
"""Hashes that a record keeps of what a run was made from."""


def describe_environment(
    recipe: Recipe, base: Any, source: ModelSource, choice: DtypeChoice
) -> Environment:
    """Write down where a run happens and which base it starts from."""
    return Environment(
        versions=versions(),
        device=describe_device(base.device),
        dtype=choice.name,
        quantization=recipe.model.quantization,
        seed=recipe.train.seed,
        processes=process_count(),
        base=f"{source.name}: {source.title}" if source.title else source.name,
        base_fingerprint=source.fingerprint,
        dtype_reason=choice.reason,
    )


def run_fingerprints(
    recipe: Recipe, environment: Environment, data: DataFacts, tokenizer: Any
) -> dict[str, str]:
    """Name everything the next training step depends on, for a checkpoint to compare.

    Args:
        recipe: Every setting of it but those of evaluation, names and checkpoints.
        environment: Base model, type of compute and versions.
        data: The fingerprint of the rows.
        tokenizer: The tokenizer with its chat template; None for images.
    """
    plain = recipe_to_dict(recipe)
    prints = {
        f"{section}.{name}": json.dumps(value)
        for section in ("model", "data", "adapter", "objective", "train")
        for name, value in plain[section].items()
        if f"{section}.{name}" not in ("train.save_every", "train.keep_last", "train.trackers")
    }
    prints |= {
        "the rows": data.fingerprint,
        "the base model": environment.base_fingerprint,
        "the type of compute": environment.dtype,
    }
    if tokenizer is not None:
        words = json.dumps(sorted(tokenizer.get_vocab().items()))
        prints["the tokenizer"] = hashlib.sha256(words.encode()).hexdigest()
        template = str(getattr(tokenizer, "chat_template", None) or "")
        prints["the chat template"] = hashlib.sha256(template.encode()).hexdigest()
    shown = ("sftkit-notebooks", "torch", "transformers", "peft", "bitsandbytes")
    return prints | {f"version of {name}": environment.versions[name] for name in shown}


def describe_device(device: torch.device) -> str:
    """Name the processor or GPU in words, without the machine's own name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {_threads()} threads, {platform.machine()} {capability}"


def versions() -> Mapping[str, str]:
    """Give the versions of Python and of the packages that a run depends on most."""
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
