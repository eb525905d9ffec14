"""Two processes train as one does: same gradients, same losses, same adapter, in both of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftkit.objectives import chat_loss
from sftkit.train import train
from tests.test_train import make_examples, make_tuned
from tests.two_processes import WAYS, train_one_way
from tests.two_processes_trouble import SETTINGS, STOP_AFTER

Tensors = dict[str, torch.Tensor]
CHECKOUT = Path(__file__).resolve().parent.parent
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
pytestmark = pytest.mark.timeout(240)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_two_processes(module: str, folder: Path) -> None:
    """Start a module twice, on the loopback device; fail unless both end well in time."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *("-m", module, str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
    started = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that ending it ends its two children, and nothing else
    )
    try:
        output, _ = started.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"two processes did not end within 200 s:\n{started.communicate()[0][-3000:]}")
    assert started.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tensors, Tensors]]:
    """Train in two processes, once for all tests below."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes("tests.two_processes", folder)
    return [
        (load_file(folder / f"way-{place}-process-0"), load_file(folder / f"way-{place}-process-1"))
        for place in range(len(WAYS))
    ]


def furthest(first: Tensors, second: Tensors, kind: str) -> float:
    names = [name for name in first if name.startswith(kind)]
    assert names
    assert sorted(first) == sorted(second)
    return max(float((first[name] - second[name]).abs().max()) for name in names)


EVERY_WAY = pytest.mark.parametrize(
    "place",
    range(len(WAYS)),
    ids=[f"{kind}, {rows} rows, {micro} micro-batches" for kind, rows, micro in WAYS],
)


@EVERY_WAY
@pytest.mark.parametrize("kind", ["gradient", "weight", "losses"])
def test_both_processes_hold_the_same(results, place, kind):
    first, second = results[place]
    assert furthest(first, second, kind) == 0.0


@EVERY_WAY
def test_two_processes_reach_what_one_reaches(results, place):
    alone = train_one_way(*WAYS[place])
    together, _ = results[place]
    assert furthest(alone, together, "gradient") < 1e-6
    # Adam divides by the size of a gradient, and so makes more of the last bits of a small one.
    assert furthest(alone, together, "weight") < 1e-5
    # Each process packs its own rows, so sums come in another order, and Adam carries that on.
    assert furthest(alone, together, "losses") < 5e-6


@EVERY_WAY
def test_something_was_learned_from_gradients_that_are_not_zero(results, place):
    together, _ = results[place]
    largest = max(float(t.abs().max()) for n, t in together.items() if n.startswith("gradient"))
    assert largest > 1e-4  # prompt tuning moves the tiny model little
    assert together["losses"][-1] < together["losses"][0] - 1e-4


# ---- when one of two processes is in trouble ----


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Go through all troubles in two processes; give what each of them saw."""
    folder = tmp_path_factory.mktemp("trouble")
    in_two_processes("tests.two_processes_trouble", folder)
    first, second = (json.loads((folder / f"trouble-{n}.json").read_text()) for n in range(2))
    return first, second


def test_memory_that_runs_out_in_one_process_halves_the_micro_batch_in_both(trouble):
    record = train(make_tuned(), make_examples(), SETTINGS, objective=chat_loss)
    alone = [step.loss for step in record.steps]
    for seen in trouble:
        assert seen["short"] == pytest.approx(alone, abs=1e-5)
        (event,) = seen["events"]
        assert event.startswith("memory ran out in step 1: 2 micro-batches from here on")


def test_a_stop_asked_of_one_process_ends_both_after_the_same_step(trouble):
    where = f"Stopped after step {STOP_AFTER} of 6"
    assert trouble[0]["stopped"].startswith(f"{where} (another process was asked); everything is")
    assert trouble[1]["stopped"].startswith(f"{where} (SIGTERM); everything is saved")


def test_two_processes_without_a_shared_disk_go_on_bit_for_bit(trouble):
    assert trouble[0]["resumed"] == trouble[0]["whole"] == trouble[1]["resumed"]
