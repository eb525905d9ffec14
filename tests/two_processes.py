"""Trains the tiny model in every way test_processes.py compares; started by it, once per process.

Argument: folder for the results, one file per way and process.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

from sftkit.adapter import attach_adapter  # noqa: E402
from sftkit.adapter_kinds import find_kind  # noqa: E402
from sftkit.chat import encode_chat  # noqa: E402
from sftkit.objectives import chat_loss  # noqa: E402
from sftkit.records import Encoded  # noqa: E402
from sftkit.settings import AdapterSettings, TrainSettings  # noqa: E402
from sftkit.train import train  # noqa: E402
from tests.conftest import make_model, make_tokenizer  # noqa: E402

# Adapter, rows in the one step, micro-batches. Five rows: one process gets three, the other two.
# One row: one process gets none. Two micro-batches of three rows: one of four hands is empty.
WAYS = (
    *(("lora", 5, 1), ("lora", 1, 1), ("lora", 3, 2), ("prompt", 5, 1), ("prompt", 1, 1)),
    *((kind, 3, 1) for kind in ("rslora", "dora", "pissa", "ia3", "freeze", "full")),
)
ANSWERS = ("A cat.", "Two.", "Blue, mostly.", "No", "Seven days")
TOKENIZER = make_tokenizer()


def train_one_way(kind: str, rows: int, micro_batches: int) -> dict[str, torch.Tensor]:
    """Train four steps; return the losses, the first gradients and the last weights."""
    model = _make_tuned(kind)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    settings = TrainSettings(
        max_tokens_per_batch=1000, epochs=4, learning_rate=1e-2, micro_batches=micro_batches
    )
    with _first_gradients(trained) as gradients:
        record = train(model, _make_examples(rows), settings, objective=chat_loss)
    losses = torch.tensor([step.loss for step in record.steps], dtype=torch.float64)
    weights = {f"weight {name}": p.detach().clone() for name, p in trained.items()}
    return {"losses": losses, **gradients, **weights}


@contextmanager
def _first_gradients(trained: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the gradients the optimizer is given in its first step."""
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        for name, parameter in trained.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            kept.setdefault(f"gradient {name}", gradient.detach().clone())

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _make_tuned(kind: str) -> Any:
    fields = find_kind(kind).fields
    size: dict[str, Any] = {"r": 4} if "r" in fields else {}
    size |= {"virtual_tokens": 5} if "virtual_tokens" in fields else {}
    settings = AdapterSettings(kind=kind, **size)
    return attach_adapter(make_model(vocab_size=len(TOKENIZER)), settings)


def _make_examples(rows: int) -> list[Encoded]:
    conversations = [
        [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": answer},
        ]
        for number, answer in enumerate(ANSWERS[:rows])
    ]
    return [encode_chat(messages, TOKENIZER, max_tokens=200) for messages in conversations]


def main(folder: Path) -> None:
    """Train every way and write the results of this process."""
    torch.set_num_threads(1)
    for place, way in enumerate(WAYS):
        save_file(train_one_way(*way), folder / f"way-{place}-process-{os.environ['RANK']}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
