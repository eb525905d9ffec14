"""Fine-tune small language models with adapters, and test every fine-tune.

Public names load their module when first used, so `import sftkit` loads neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
DISTRIBUTION = "sftkit-notebooks"
"""Name on the package index; plain `sftkit` there is another project's."""

_HOME = {
    "Recipe": "settings",
}

__all__ = [
    "Recipe",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home module."""
    if name not in _HOME:
        raise AttributeError(f"module 'sftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
