"""Checkpoints: written whole or not at all, verified before use, refused when the run has changed.

A checkpoint is a folder step-000120 with one safetensors file per group of tensors, progress.json,
and manifest.json, written last: SHA-256 and size of every file, fingerprints of everything the next
step depends on, and a seal over the manifest itself. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import CheckpointError, near_names

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
_VERSION = 1
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything the next step depends on.

    Attributes:
        step: Optimizer steps that were done.
        tensors: Tensors by name, in groups (weights, optimizer, random, best); a file each.
        progress: Plain values, as JSON can hold them.
    """

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    progress: Mapping[str, Any]


def save_checkpoint(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    fingerprints: Mapping[str, str],
    keep_last: int = 2,
) -> Path:
    """Write a checkpoint beside the earlier ones, then remove all but the newest few.

    The files are written to a temporary folder and flushed to the disk, the manifest last; then
    the folder is renamed. Killed at any moment, it leaves the earlier checkpoints as they were.

    Args:
        folder: The run's folder of checkpoints; made if missing.
        checkpoint: What to write.
        fingerprints: What the next step depends on, by name, such as train.learning_rate.
        keep_last: Checkpoints that stay, this one included.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: The disk is full or cannot be written; earlier checkpoints are whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    target = folder / f"step-{checkpoint.step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leavings(folder)
        workplace = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        try:
            for name, tensors in checkpoint.tensors.items():
                held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                save_file(held, workplace / f"{name}.safetensors")
            text = json.dumps(checkpoint.progress)
            (workplace / PROGRESS).write_text(text, encoding="utf-8")
            _write_manifest(workplace, checkpoint.step, fingerprints)
            if target.exists():  # damaged, or the run went on from before it
                target.rename(Path(tempfile.mkdtemp(prefix=".writing-", dir=folder)) / "old")
            workplace.rename(target)
            _flush(folder)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} could not be written to {folder} "
            f"({getattr(error, 'strerror', None) or error}). Earlier checkpoints are whole. Free "
            "some space; train.keep_last says how many are kept."
        ) from error
    _prune(folder, checkpoint.step, keep_last)
    return target


def _prune(folder: Path, newest: int, keep_last: int) -> None:
    """Keep the newest few up to the one just written. What is beyond it was left behind."""
    _remove_leavings(folder)
    kept = [path for step, path in checkpoints(folder) if step <= newest][:keep_last]
    for _, path in checkpoints(folder):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: str | Path) -> tuple[Checkpoint, dict[str, str]]:
    """Read a checkpoint after verifying every byte of it.

    Args:
        path: A checkpoint's folder.

    Returns:
        The checkpoint, and the fingerprints it was written with.

    Raises:
        CheckpointError: A file is missing, cut off or changed; all such files are named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    manifest = _read_manifest(path)
    faults = list(_faults(path, manifest["files"]))
    if faults:
        raise CheckpointError(f"{path.name} is damaged: {'; '.join(faults)}.")
    try:
        tensors = {
            Path(name).stem: load_file(path / name)
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    return (
        Checkpoint(step=manifest["step"], tensors=tensors, progress=progress),
        dict(manifest["fingerprints"]),
    )


def newest_checkpoint(
    folder: str | Path,
    *,
    fingerprints: Mapping[str, str],
    allow_changes: Collection[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Checkpoint | None:
    """Find the newest whole checkpoint of the same run.

    Args:
        folder: The run's folder of checkpoints.
        fingerprints: What the next step depends on now.
        allow_changes: Names of fingerprints that may differ.
        note: Told of every damaged checkpoint that was passed over, and every allowed change.

    Returns:
        The checkpoint; None if there is none at all.

    Raises:
        CheckpointError: Something the next step depends on has changed, or there are checkpoints
            and all of them are damaged.
    """
    damaged = []
    for _, path in checkpoints(Path(folder)):
        try:
            checkpoint, written = load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
            note(f"{error} Going back to the checkpoint before it.")
            continue
        for change in refuse_changes(written, fingerprints, allow_changes):
            note(f"Going on although {change}.")
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {folder} is whole: {' '.join(damaged)} Start again in another "
            "folder."
        )
    return None


def refuse_changes(
    written: Mapping[str, str], now: Mapping[str, str], allow_changes: Collection[str] = ()
) -> list[str]:
    """Refuse to go on with another recipe, other data, another base or other libraries.

    Returns:
        The differences that were allowed, with both values.

    Raises:
        CheckpointError: Every difference that was not allowed, with both values; or a name in
            allow_changes that nothing has.
    """
    names = {*written, *now}
    if unknown := sorted({*allow_changes} - names):
        near = near_names(unknown[0], names)
        raise CheckpointError(f"allow_changes: nothing a run depends on is {unknown[0]!r}.{near}")
    changed = {
        name: f"{name} was {written.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in sorted(names)
        if written.get(name) != now.get(name)
    }
    if refused := [words for name, words in changed.items() if name not in allow_changes]:
        raise CheckpointError(
            f"This is not the run that was begun: {'; '.join(refused)}. Put it back, start in "
            "another folder, or name what may differ in allow_changes."
        )
    return list(changed.values())


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List a run's checkpoints by step, the newest first, whole or not.

    A folder that is being written has another name.
    """
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _remove_leavings(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _write_manifest(folder: Path, step: int, fingerprints: Mapping[str, str]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    body = {
        "version": _VERSION,
        "step": step,
        "files": files,
        "fingerprints": dict(fingerprints),
    }
    path = folder / MANIFEST
    path.write_text(json.dumps({**body, "seal": _seal(body)}, indent=1), encoding="utf-8")
    _flush(path)
    _flush(folder)


def _read_manifest(path: Path) -> dict[str, Any]:
    place = f"{path.name}/{MANIFEST}"
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        body = {name: manifest[name] for name in ("version", "step", "files", "fingerprints")}
        seal = manifest["seal"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is not whole: {MANIFEST} is missing.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place} is damaged.") from error
    if seal != _seal(body):
        raise CheckpointError(f"{place} is damaged: it does not match its seal.")
    if body["version"] != _VERSION:
        raise CheckpointError(
            f"{place} has version {body['version']}; this sftkit reads {_VERSION}. Start again."
        )
    return body


def _faults(path: Path, files: Mapping[str, Any]) -> Iterator[str]:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif (size := file.stat().st_size) != expected["bytes"]:
            yield f"{name} has {size} bytes in the place of {expected['bytes']}"
        elif _sha256(file) != expected["sha256"]:
            yield f"{name} was changed (its SHA-256 differs)"


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk; Windows cannot flush folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
