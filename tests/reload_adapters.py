"""Loads every saved adapter on a base of its own; started by test_adapter_model.py, a new process.

Arguments: folder of the adapters; count of threads, as its starter computes with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sftkit.adapter_files import load_adapter
from sftkit.catalog import fetch_model
from sftkit.model import load_model
from sftkit.settings import ModelSettings

MODEL = ModelSettings(name="smollm2-135m", dtype="float32", device="cpu")
IDS = torch.tensor(
    [[1, 4093, 198, 1780, 314, 260, 3575, 30], [1, 9690, 198, 2683, 359, 253, 5356, 2]]
)


def load_base() -> Any:
    """Load the real base model afresh."""
    return load_model(MODEL, dtype=torch.float32, source=fetch_model(MODEL))


def logits(model: Any) -> torch.Tensor:
    """Compute the logits of two fixed rows, shape (2, T, V); virtual tokens are left out."""
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits[:, -IDS.shape[1] :]).contiguous()


def main(folder: Path) -> None:
    """Write the logits of every adapter in the folder."""
    for at in sorted(path for path in folder.iterdir() if path.is_dir()):
        save_file({"logits": logits(load_adapter(load_base(), at))}, folder / f"{at.name}.again")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    main(Path(sys.argv[1]))
