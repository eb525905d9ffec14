"""A tiny real study for tests that launch processes: a model's folder, rows, and a recipe."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sftkit.recipe import recipe_from_dict, yaml_text
from sftkit.settings import Recipe
from tests.conftest import make_model, make_tokenizer

CHECKOUT = Path(__file__).resolve().parent.parent
COLOURS = ["red", "blue", "green", "pink", "grey", "gold", "teal", "plum", "rust", "lime"]
STEPS = 120
WAIT_S = 120.0
"""Nothing here takes longer, on a machine that is busy with other tests."""


@dataclass(frozen=True)
class Study:
    """One recipe, in a folder of its own."""

    folder: Path

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    def recipe(self) -> Recipe:
        from sftkit.recipe import load_recipe

        return load_recipe(self.recipe_file)

    def environment(self, **more: str) -> dict[str, str]:
        """What a process of a test is started with."""
        return {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "SFTKIT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **more,
        }


def make_study(folder: Path) -> Study:
    """Make the model, 40 rows, and a recipe of 120 steps with a checkpoint every fifth."""
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    rows = [
        {"question": f"Colour of box {place}?", "answer": colour}
        for place, colour in enumerate(COLOURS * 4)
    ]
    data = folder / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "name": "colours",
        "model": {"name": str(folder / "tiny"), "dtype": "float32", "device": "cpu"},
        "data": {
            "source": str(data),
            "test_fraction": 0.3,
            "validation_fraction": 0.2,
            "max_tokens": 256,
        },
        "adapter": {"r": 4, "lora_alpha": 8},
        "train": {
            "epochs": 40,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "max_tokens_per_batch": 256,
            "save_every": 5,
        },
        "evaluate": {"probes": [], "drift_passages": 0, "max_new_tokens": 4, "resamples": 200},
    }
    (folder / "recipe.yaml").write_text(yaml_text(recipe_from_dict(recipe)), encoding="utf-8")
    return Study(folder)


@contextlib.contextmanager
def started(
    study: Study, *arguments: str, log: Path, before: tuple[str, ...] = (), **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `sftkit run` on the study; at the end neither it nor a child of it is left."""
    code = "import sys, sftkit_entry; sys.exit(sftkit_entry.main())"
    command = [*before, sys.executable, "-c", code, "run", str(study.recipe_file), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=study.environment(**more),
            cwd=study.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for left in family(process.pid):
                with contextlib.suppress(psutil.Error):
                    left.kill()
            process.kill()
            process.wait(30)


def family(pid: int) -> list[psutil.Process]:
    """Give all children of a process, and theirs."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def workers(pid: int) -> dict[str, psutil.Process]:
    """Give the processes that train, by their rank."""
    found = {}
    for child in family(pid):
        with contextlib.suppress(psutil.Error):
            if "sftkit.worker" in child.cmdline() and "RANK" in child.environ():
                found[child.environ()["RANK"]] = child
    return found


def wait_until(is_so: Callable[[], bool], *, within_s: float = WAIT_S) -> None:
    """Wait for something, and not for long."""
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until, f"not so within {within_s:g} s"
        time.sleep(0.01)


def steps_done(out: Path) -> int:
    """Count the steps a run has written so far."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses_of(out: Path) -> list[float]:
    """Read the loss of every step."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def furthest(first: list[float], second: list[float]) -> float:
    """Give the largest difference at any step."""
    assert len(first) == len(second)
    return max(abs(one - other) for one, other in zip(first, second, strict=True))
