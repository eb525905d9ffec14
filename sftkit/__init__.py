"""Fine-tune small language models with adapters, and test every fine-tune.

Public names load their module when first used, so `import sftkit` loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"
DISTRIBUTION = "sftkit-notebooks"
"""Name on the package index; plain `sftkit` there is another project's."""

# bitsandbytes says at import that an optional kernel package for CPUs is absent; nothing here
# depends on it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOME = {
    "AdapterSettings": "settings",
    "DataSettings": "settings",
    "EvaluateSettings": "settings",
    "ModelSettings": "settings",
    "Recipe": "settings",
    "RunRecord": "records",
    "SftkitError": "errors",
    "TrainSettings": "settings",
    "adapter_off": "adapter",
    "adapter_scaled": "adapter",
    "answers_table": "show",
    "attach_adapter": "adapter",
    "audit_dataset": "dataset.audit",
    "audit_file": "dataset.audit",
    "chat_loss": "objectives",
    "check": "exercises",
    "clean_dataset": "dataset.clean",
    "count_parameters": "adapter",
    "encode_chat": "chat",
    "encode_dataset": "encoding",
    "encode_rows": "chat",
    "fetch_model": "catalog",
    "load_adapter": "adapter_files",
    "load_model": "model",
    "load_recipe": "recipe",
    "load_run": "records",
    "load_tokenizer": "model",
    "make_watcher": "progress",
    "mask_summary": "chat",
    "paired_change": "evidence.statistics",
    "passages": "catalog",
    "pick_dtype": "model",
    "probe_items": "catalog",
    "read_dataset": "dataset.read",
    "save_adapter": "adapter_files",
    "show_mask": "show",
    "show_template": "show",
    "split_dataset": "dataset.split",
}

__all__ = [
    "AdapterSettings",
    "DataSettings",
    "EvaluateSettings",
    "ModelSettings",
    "Recipe",
    "RunRecord",
    "SftkitError",
    "TrainSettings",
    "adapter_off",
    "adapter_scaled",
    "answers_table",
    "attach_adapter",
    "audit_dataset",
    "audit_file",
    "chat_loss",
    "check",
    "clean_dataset",
    "count_parameters",
    "encode_chat",
    "encode_dataset",
    "encode_rows",
    "fetch_model",
    "load_adapter",
    "load_model",
    "load_recipe",
    "load_run",
    "load_tokenizer",
    "make_watcher",
    "mask_summary",
    "paired_change",
    "passages",
    "pick_dtype",
    "probe_items",
    "read_dataset",
    "save_adapter",
    "show_mask",
    "show_template",
    "split_dataset",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home module."""
    if name not in _HOME:
        raise AttributeError(f"module 'sftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
