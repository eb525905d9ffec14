"""metrics.jsonl: one whole line per step after kills, resumes and a full disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit.errors import RecordError
from sftkit.metrics import read_metrics, step_speeds, write_metrics
from sftkit.progress import SilentWatcher
from sftkit.recipe import recipe_from_dict
from sftkit.records import Step
from sftkit.run import run
from sftkit.settings import to_plain
from tests.conftest import make_model, make_tokenizer


def step(number: int, *, seconds: float | None = None) -> Step:
    return Step(
        step=number, loss=1 / number, learning_rate=1e-3, grad_norm=1.0, tokens=500 * number,
        seconds=2.0 * number if seconds is None else seconds, memory_bytes=10**9,
    )  # fmt: skip


STEPS = tuple(step(number) for number in range(1, 6))


def write(path: Path, *steps: Step) -> list[str]:
    told: list[str] = []
    with write_metrics(path, note=told.append) as take:
        for one in steps:
            take(one)
    return told


def test_every_step_is_one_line_that_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert write(path, *STEPS) == []
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [to_plain(one) for one in STEPS]
    assert read_metrics(path) == STEPS


def test_a_line_is_there_before_the_next_step_begins(tmp_path: Path) -> None:
    with write_metrics(tmp_path / "m") as take:
        for number in (1, 2):
            take(STEPS[number - 1])
            assert read_metrics(tmp_path / "m") == STEPS[:number]


@pytest.mark.parametrize("cut", [1, 40])
def test_a_last_line_that_was_cut_off_is_left_out_and_made_whole_by_a_resume(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *STEPS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_metrics(path) == STEPS[:4]
    write(path, *STEPS)
    assert read_metrics(path) == STEPS


def test_a_resumed_run_keeps_one_line_per_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *STEPS)
    again = [step(number, seconds=3.0 * number) for number in (4, 5, 6)]
    with write_metrics(path) as take:
        for one in STEPS[:3]:  # the checkpoint was of step 3
            take(one)
            assert read_metrics(path) == STEPS  # nothing is lost before something replaces it
        take(again[0])
        assert read_metrics(path) == (*STEPS[:3], again[0])
        for one in again[1:]:
            take(one)
    assert read_metrics(path) == (*STEPS[:3], *again)


def test_lines_that_a_crash_of_the_machine_swallowed_come_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *STEPS[:2])
    path.write_bytes(path.read_bytes() + b"\0" * 300 + b"\n")
    write(path, *STEPS)
    assert read_metrics(path) == STEPS


def test_a_run_that_never_takes_a_step_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *STEPS)
    with pytest.raises(ValueError, match="refused"), write_metrics(path):
        raise ValueError("refused")
    assert write(path) == []
    assert read_metrics(path) == STEPS


def test_another_run_in_the_same_folder_starts_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *STEPS)
    write(path, step(1, seconds=9.0))
    assert read_metrics(path) == (step(1, seconds=9.0),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}\n", r"line 2: Step: missing \['grad_norm', 'learning_rate', 'loss', "),
        (b"\xff\n", r"line 2: Not a step: 'utf-8' codec can't decode"),
        (b"\n", r"line 2: Not JSON at line 1"),
        (b"[" * 100_000 + b"\n", r"line 2: Not a step"),
        (json.dumps(to_plain(step(3))).encode() + b"\n", r"Step 3 stands where step 2 belongs"),
    ],
)
def test_a_line_in_the_middle_that_is_no_step_is_named(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, STEPS[0])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(RecordError, match=message):
        read_metrics(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"metrics\.jsonl cannot be read \(No such file"):
        read_metrics(tmp_path / "metrics.jsonl")


@given(data=st.binary(max_size=200))
def test_random_bytes_give_steps_or_our_own_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.jsonl"
    path.write_bytes(data + b"\n")
    with contextlib.suppress(RecordError):
        assert read_metrics(path) == ()


def test_a_record_written_before_memory_was_measured_can_be_read(tmp_path: Path) -> None:
    plain: dict[str, Any] = to_plain(STEPS[0])
    del plain["memory_bytes"]
    (tmp_path / "m").write_text(json.dumps(plain) + "\n", encoding="utf-8")
    assert read_metrics(tmp_path / "m") == (dataclasses.replace(STEPS[0], memory_bytes=0),)


def test_speed_is_each_step_s_own() -> None:
    slow = step(2, seconds=12.0)
    assert step_speeds([STEPS[0], slow, slow]) == [250.0, 50.0, 0.0]


PLAIN_STEP = """
from sftkit.records import Step

def step(number, seconds=0.0):
    return Step(step=number, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens=9, seconds=seconds)
"""

FULL_DISK = """
import json, resource, sys
from pathlib import Path
from sftkit.metrics import read_metrics, write_metrics

path, told, seen = Path(sys.argv[1]), [], []
with write_metrics(path, note=told.append) as take:
    for number in range(1, 61):
        if number == 20:  # the file may not grow, in the middle of a line
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, -1))
        if number == 40:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        take(step(number))
        seen.append(len(read_metrics(path)))
print(json.dumps([told, seen, [s.step for s in read_metrics(path)]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a file's size")
def test_a_full_disk_is_said_once_and_the_lines_come_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_STEP + FULL_DISK, str(path)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    told, seen, written = json.loads(done.stdout)
    assert told == [
        f"{path} could not be written from step 20 on (File too large). Training goes on; its "
        "lines are written when there is room."
    ]
    assert seen == [*range(1, 20), *[19] * 20, *range(40, 61)]
    assert written == list(range(1, 61))


KILLED = """
import sys, time
from sftkit.metrics import read_metrics, write_metrics

path, kept = sys.argv[1], int(sys.argv[2])
with write_metrics(path) as take:
    earlier = read_metrics(path)[:kept] if kept else ()
    print("ready", flush=True)
    for one in earlier:
        take(one)
    for number in range(kept + 1, 10**9):
        take(step(number, seconds=time.time()))
"""


@pytest.mark.faults
def test_twenty_kills_while_it_is_written_leave_whole_lines_without_gap_or_twin(
    tmp_path: Path,
) -> None:
    path, chance = tmp_path / "metrics.jsonl", random.Random(0)
    kept, torn = 0, 0
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", PLAIN_STEP + KILLED, str(path), str(kept)],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.1))
            child.send_signal(signal.SIGKILL)
        torn += not path.read_bytes().endswith(b"\n")
        steps = read_metrics(path)  # raises where a line is missing, twice there or not whole
        assert len(steps) >= kept
        kept = chance.randint(0, len(steps))  # the step of the newest checkpoint
    assert len(read_metrics(path)) > 0
    print(f"20 kills, {torn} torn last lines")


def test_a_run_that_broke_off_and_was_resumed_has_one_line_per_step(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [{"question": f"Box {n}?", "answer": f"Colour {n % 7}."} for n in range(40)]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = recipe_from_dict(
        {
            "name": "colours",
            "model": {"name": str(tmp_path / "tiny"), "dtype": "float32"},
            "data": {"source": str(data), "test_fraction": 0.3, "max_tokens": 128},
            "train": {"max_tokens_per_batch": 256, "save_every": 2},
            "evaluate": {"probes": [], "drift_passages": 0, "max_new_tokens": 4},
        }
    )

    class Breaks(SilentWatcher):
        def on_step(self, step: Step, total_steps: int) -> None:
            if step.step == 5:  # one step after the checkpoint of step 4
                raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        run(recipe, tmp_path / "out", watcher=Breaks())
    path = tmp_path / "out" / "metrics.jsonl"
    before = read_metrics(path)
    record = run(recipe, tmp_path / "out", resume=True, watcher=SilentWatcher())
    assert len(before) == 5
    assert read_metrics(path) == record.training.steps
    assert record.training.steps[:4] == before[:4]
    assert all(one.memory_bytes > 10_000_000 for one in record.training.steps)
