"""Base scores, kept between runs: the same base asked the same questions gives the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sftkit.catalog import cache_folder
from sftkit.errors import RecordError
from sftkit.records import from_json, to_json
from sftkit.settings import to_plain

SCORER_VERSION = 2
"""Raise when a scorer's numbers change, so that older scores are not compared with new ones."""

Scores = TypeVar("Scores")


def cached_scores(
    cls: type[Scores], key: Mapping[str, Any], compute: Callable[[], Scores]
) -> Scores:
    """Return scores from the cache, or compute and keep them.

    Args:
        cls: Record type of the scores.
        key: Everything the scores depend on: base fingerprint, dtype, device, versions, questions.
        compute: Computes them when they are not there.
    """
    text = json.dumps(to_plain({**key, "scorer": SCORER_VERSION}), sort_keys=True)
    name = hashlib.sha256(f"{cls.__name__}\n{text}".encode()).hexdigest()[:32]
    path = cache_folder() / "scores" / f"{name}.json"
    if path.is_file():
        # A damaged file is computed anew.
        with contextlib.suppress(RecordError, OSError, UnicodeDecodeError):
            return from_json(cls, path.read_text(encoding="utf-8"))
    scores = compute()
    kept = to_json(scores)
    with contextlib.suppress(OSError):  # a read-only cache is fine, only slower
        _write(path, kept)
    return scores


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
