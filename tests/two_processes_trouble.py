"""Two processes in trouble, for test_processes.py: one runs out of memory, one is asked to stop.

Argument: folder for the results. Started by the test, once per process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")

import torch  # noqa: E402

from sftkit.errors import StoppedError  # noqa: E402
from sftkit.objectives import chat_loss  # noqa: E402
from sftkit.records import Step, TrainRecord  # noqa: E402
from sftkit.settings import TrainSettings  # noqa: E402
from sftkit.train import train  # noqa: E402
from sftkit.train_state import Keeping  # noqa: E402
from tests.test_train import make_examples, make_tuned  # noqa: E402

SETTINGS = TrainSettings(max_tokens_per_batch=1000, epochs=6, learning_rate=1e-2)
STOP_AFTER = 3


def run_out_of_memory(process: int) -> TrainRecord:
    """Train where the second process alone has room for two rows at a time."""

    def objective(tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        if process == 1 and batch["input_ids"].shape[0] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return chat_loss(tuned, batch)

    return train(make_tuned(), make_examples(), SETTINGS, objective=objective)


def stop_and_go_on(process: int, folder: Path) -> tuple[str, TrainRecord]:
    """Ask the second process alone to stop, in its fourth step; then go on in both."""
    settings = dataclasses.replace(SETTINGS, save_every=1)
    calls = iter(range(100))

    def objective(tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        if process == 1 and next(calls) == STOP_AFTER - 1:
            signal.raise_signal(signal.SIGTERM)
        return chat_loss(tuned, batch)

    def keeping(**more: Any) -> Keeping:
        # The second process has another disk: what it goes on from came over the network.
        return Keeping(folder=folder / f"disk-{process}", note=lambda _: None, **more)

    def dropping() -> Any:
        return make_tuned(lora_dropout=0.1)

    try:
        train(dropping(), make_examples(), settings, objective=objective, keeping=keeping())
    except StoppedError as error:
        words = str(error)
    record = train(
        dropping(), make_examples(), settings, objective=chat_loss, keeping=keeping(resume=True)
    )
    return words, record


def plain(steps: tuple[Step, ...]) -> list[float]:
    """Give the losses of steps."""
    return [step.loss for step in steps]


def main(folder: Path) -> None:
    """Go through all of it, and write down what this process saw."""
    torch.set_num_threads(1)
    process = int(os.environ["RANK"])
    short = run_out_of_memory(process)
    words, resumed = stop_and_go_on(process, folder)
    whole = train(make_tuned(lora_dropout=0.1), make_examples(), SETTINGS, objective=chat_loss)
    seen = {
        "short": plain(short.steps),
        "events": short.events,
        "stopped": words,
        "resumed": plain(resumed.steps),
        "whole": plain(whole.steps),
    }
    (folder / f"trouble-{process}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
