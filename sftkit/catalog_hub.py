"""Models of the Hugging Face hub: what is in its cache here, and how the rest is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sftkit.errors import FetchError

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]  # no pickle, no code


def hub_folder(name: str, revision: str | None, *, download: bool) -> Path | None:
    """Find a hub model's files in the hub's own cache, downloading them if that is wanted.

    Args:
        name: Hub id.
        revision: Commit or tag; None takes the default branch.
        download: Whether to download what is not there.

    Returns:
        The folder; None if it is not there and was not to be downloaded.

    Raises:
        FetchError: It cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, local_files_only=not download
            )
        )
    except (OSError, ValueError) as error:
        if not download:
            return None
        raise FetchError(
            f"{name} cannot be downloaded from huggingface.co ({type(error).__name__}). On a "
            "machine that reaches it, download it and copy the folder here; then give the folder "
            "as model.name. Without a hub there is smollm2-135m."
        ) from error


def hub_config(name: str, revision: str | None) -> dict[str, Any]:
    """Read a hub model's configuration from the hub's cache, without network.

    Raises:
        FetchError: It is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(found, str):
        raise FetchError(
            f"The configuration of {name!r} is not known here: it is no catalog name, and the "
            "hub's cache on this machine has no config.json of it. Load it once where the hub is "
            "reached, or give a folder with its config.json as model.name."
        )
    return read_config(Path(found))


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        FetchError: It cannot be read, or holds no mapping.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FetchError(f"{path} cannot be read as JSON ({error}). Fetch it again.") from error
    if not isinstance(config, dict):
        raise FetchError(f"{path} must hold a mapping, got {type(config).__name__}.")
    return config
