"""GGUF to safetensors, for files that nobody vouches for.

A 49-byte GGUF file can keep a reader busy for ever. So the header is walked here first, with every
count held against the bytes that are left, and the conversion itself runs in a subprocess with
limits on time and memory: `python -m sftkit.gguf_convert SOURCE TARGET MEMORY_BYTES CPU_S`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

from sftkit.errors import FetchError
from sftkit.wheels import redact

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each fixed-size value type (GGUF specification, gguf_metadata_value_type)."""
_STRING, _ARRAY = 8, 9
_LEAST_BYTES = {**_SCALAR_BYTES, _STRING: 8, _ARRAY: 12}
_NAME_BYTES = 1 << 16
_DEEPEST = 4


def check_gguf(path: Path) -> None:
    """Walk a GGUF header and refuse what cannot be one.

    The walk takes at most one step per few bytes of the file, whatever the counts in it claim.

    Args:
        path: The file.

    Raises:
        FetchError: Not GGUF, a version nobody reads, cut off, or counts that cannot be true.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            _walk_header(file, size)
    except OSError as error:
        raise FetchError(f"{path} cannot be read ({error.strerror}).") from error
    except _HeaderError as error:
        raise FetchError(
            f"{path.name} ({size:,} bytes) is not a whole GGUF model: {error}. Download it again "
            "and compare its size with the one its publisher tells."
        ) from None


class _HeaderError(Exception):
    """What is wrong with the header."""


def _walk_header(file: BinaryIO, size: int) -> None:
    if file.read(4) != b"GGUF":
        raise _HeaderError("it does not begin with the letters GGUF")
    (version,) = _numbers(file, "<I")
    if version not in (2, 3):
        raise _HeaderError(f"version {version} is unknown (2 and 3 are read)")
    tensors, pairs = _numbers(file, "<QQ")
    # The shortest tensor entry has 8 + 4 + 4 + 8 bytes, the shortest pair 8 + 4 + 1.
    if tensors * 24 + pairs * 13 > size:
        raise _HeaderError(f"{tensors:,} tensors and {pairs:,} values cannot fit into it")
    for _ in range(pairs):
        _skip_text(file, size, longest=_NAME_BYTES)
        (kind,) = _numbers(file, "<I")
        _skip_value(file, size, kind, depth=0)
    if tensors == 0:
        raise _HeaderError("it holds no tensors")
    for _ in range(tensors):
        _skip_text(file, size, longest=_NAME_BYTES)
        (dimensions,) = _numbers(file, "<I")
        if dimensions > 8:
            raise _HeaderError(f"a tensor with {dimensions} dimensions")
        *_, offset = _numbers(file, f"<{dimensions}QIQ")
        if offset > size:
            raise _HeaderError("a tensor lies beyond the end of the file")


def _numbers(file: BinaryIO, layout: str) -> tuple[int, ...]:
    wanted = struct.calcsize(layout)
    data = file.read(wanted)
    if len(data) < wanted:
        raise _HeaderError("it ends inside its header")
    return struct.unpack(layout, data)


def _skip(file: BinaryIO, size: int, count: int) -> None:
    if count > size - file.tell():
        raise _HeaderError(f"a value of {count:,} bytes cannot fit into it")
    file.seek(count, os.SEEK_CUR)


def _skip_text(file: BinaryIO, size: int, *, longest: int | None = None) -> None:
    (length,) = _numbers(file, "<Q")
    if longest is not None and length > longest:
        raise _HeaderError(f"a name of {length:,} bytes")
    _skip(file, size, length)


def _skip_value(file: BinaryIO, size: int, kind: int, *, depth: int) -> None:
    if kind in _SCALAR_BYTES:
        _skip(file, size, _SCALAR_BYTES[kind])
    elif kind == _STRING:
        _skip_text(file, size)
    elif kind == _ARRAY and depth < _DEEPEST:
        inner, count = _numbers(file, "<IQ")
        if inner not in _LEAST_BYTES:
            raise _HeaderError(f"value type {inner} is unknown")
        if count * _LEAST_BYTES[inner] > size - file.tell():
            raise _HeaderError(f"a list of {count:,} values cannot fit into it")
        if inner in _SCALAR_BYTES:
            _skip(file, size, count * _SCALAR_BYTES[inner])
        else:
            for _ in range(count):
                _skip_value(file, size, inner, depth=depth + 1)
    else:
        raise _HeaderError(f"value type {kind} is unknown, or lists are nested too deep")


def convert_gguf(
    source: Path, target: Path, *, wait_s: float, memory_bytes: int | None = None
) -> None:
    """Convert a GGUF model to an fp32 safetensors folder with its tokenizer and chat template.

    Args:
        source: The GGUF file.
        target: An empty folder.
        wait_s: The subprocess is ended after so many seconds.
        memory_bytes: Most memory the subprocess may take, where the system can limit it; None
            takes 4 GiB and 40 times the file (2-bit weights grow 16-fold, and are held twice).

    Raises:
        FetchError: The file is refused, takes too long or too much, or transformers cannot read it.
    """
    check_gguf(source)
    memory = memory_bytes or (4 << 30) + 40 * source.stat().st_size
    command = [sys.executable, "-m", "sftkit.gguf_convert", str(source.resolve())]
    command += [str(target.resolve()), str(memory), str(int(wait_s) + 1)]
    try:
        done = subprocess.run(  # noqa: S603  (our own module on a file)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=wait_s,
            env=_child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"Reading {source.name} took longer than {wait_s:g} s and was stopped. If you trust "
            "it, convert it elsewhere and give the folder with the safetensors instead."
        ) from None
    if done.returncode != 0 or not list(target.glob("*.safetensors")):
        raise FetchError(f"{source.name} could not be converted: {_reason(done, memory)}")


def _child_environment() -> dict[str, str]:
    """Let the child find this package, and give it no network and no hub token."""
    environment = {key: value for key, value in os.environ.items() if "TOKEN" not in key.upper()}
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def _reason(done: subprocess.CompletedProcess[str], memory: int) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {done.returncode}"
    short = ("MemoryError", "allocate memory", "bad_alloc", "failed to map", "alloc_cpu")
    if any(word in done.stderr for word in short) or done.returncode < 0:
        return (
            f"it needed more than the {memory / 1e9:.2f} GB it may take, or crashed "
            f"({redact(last)[:200]}). Use a model published as safetensors."
        )
    return redact(last)[:400]


def main() -> None:
    """Convert, inside the subprocess."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    _limit(memory_bytes=int(sys.argv[3]), cpu_s=int(sys.argv[4]))

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # transformers keeps the mark of the quantized file and would refuse to save.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    with contextlib.suppress(AttributeError):
        del model.quantization_method
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _limit(*, memory_bytes: int, cpu_s: int) -> None:
    """Limit this process where the system can (Linux, macOS in part; not Windows)."""
    try:
        import resource
    except ImportError:
        return
    # RLIMIT_DATA counts what is written; RLIMIT_AS would count a GPU build's mapped libraries.
    limits = {"RLIMIT_DATA": memory_bytes, "RLIMIT_CPU": cpu_s * (os.cpu_count() or 1)}
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (allowed, hard))


if __name__ == "__main__":
    main()
