"""How peft is imported first: without torch's compiler, which costs every run a second."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_import() -> Iterator[None]:
    """Keep the first import of peft from loading torch's compiler.

    peft imports bitsandbytes where it is installed, and that wraps one small function (it
    dequantizes scales) in torch.compile, with which torch loads its whole compiler: 0.95 s and
    43 MB. The function gives the same values as it is. On a
    machine with CUDA it stays compiled. Where a quantized base was loaded before,
    nothing is left to spare.
    """
    import torch

    if "bitsandbytes" in sys.modules or torch.cuda.is_available():
        yield
        return
    compiled = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda given: given)  # type: ignore
    try:
        yield
    finally:
        torch.compile = compiled
