"""Processes and machines that are really started: equal losses, stops, kills, a link that drops.

Two machines are two network namespaces with an address each, joined by a virtual cable.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sftkit.checkpoint import load_checkpoint
from sftkit.errors import ProcessError
from sftkit.launch import launch
from sftkit.progress import SilentWatcher
from sftkit.recipe import recipe_from_dict
from sftkit.records import load_run
from sftkit.run import run
from tests.launch_study import (
    STEPS,
    WAIT_S,
    Study,
    family,
    furthest,
    losses_of,
    make_study,
    started,
    steps_done,
    wait_until,
    workers,
)
from tests.test_run_labels import recipe as label_recipe

pytestmark = [pytest.mark.faults, pytest.mark.timeout(500)]
PORT = "29651"
STEP_WAIT_S = 5
"""How long processes wait for each other in these tests."""
TOLD_WITHIN_S = STEP_WAIT_S + 30
"""From the moment a link drops until both sides have said so and ended, on a busy machine."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def alone(study: Study) -> list[float]:
    """The losses of one process that was not launched at all."""
    out = study.folder / "alone"
    with started(study, "--out", str(out), log=study.folder / "alone.log") as process:
        assert process.wait(WAIT_S) == 0, (study.folder / "alone.log").read_text()
    return losses_of(out)


class Onlooker:
    """A watcher that looks at the processes while they train."""

    def __init__(self, at_step: int, act: Any) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []
        self._at_step, self._act = at_step, act

    def on_step(self, step: Any, total_steps: int) -> None:
        self.steps.append(step.step)
        if step.step == self._at_step:
            self._act(workers(os.getpid()))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        pass


def assert_whole_checkpoint(out: Path) -> int:
    newest = max((out / "checkpoints").glob("step-*"))
    checkpoint, _ = load_checkpoint(newest)
    return checkpoint.step


# ---- one machine ----


def test_two_processes_are_two_and_train_as_one_does(
    study: Study, alone: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(study.folder / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen: dict[str, psutil.Process] = {}
    watcher = Onlooker(3, seen.update)

    record = launch(study.recipe(), processes=2, out=tmp_path / "out", watcher=watcher)

    assert sorted(seen) == ["0", "1"]
    assert record == load_run(tmp_path / "out")
    assert record is not None
    assert record.environment.processes == 2
    assert furthest([step.loss for step in record.training.steps], alone) < 1e-5
    assert watcher.steps == list(range(1, STEPS + 1))
    first = load_run(study.folder / "alone")
    assert record.preflight == first.preflight
    assert record.data == first.data
    assert record.recipe == first.recipe
    assert record.verdicts.knowledge.state == first.verdicts.knowledge.state
    assert family(os.getpid()) == []


def test_two_processes_train_a_classifier_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Every process drops other inputs, so only a model without dropout trains the same.
    model, training = {"device": "cpu", "dropout": 0.0}, {"epochs": 2, "learning_rate": 1e-3}
    recipe = recipe_from_dict(label_recipe(tmp_path, "classify", model=model, train=training))

    together = launch(recipe, processes=2, out=tmp_path / "two", watcher=SilentWatcher())
    alone = run(recipe, tmp_path / "one", watcher=SilentWatcher())

    assert together is not None
    losses = [[step.loss for step in record.training.steps] for record in (together, alone)]
    assert furthest(*losses) < 1e-5
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("two", "one")]
    assert files[0] == files[1]


def test_a_killed_process_is_named_and_none_is_left(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(study.folder / "cache"))
    watcher = Onlooker(12, lambda found: found["1"].kill())

    with pytest.raises(ProcessError, match=r"Process 1 of 2 ended without a word.*--resume"):
        launch(study.recipe(), processes=2, out=tmp_path / "out", watcher=watcher)

    assert family(os.getpid()) == []
    assert assert_whole_checkpoint(tmp_path / "out") >= 10


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),  # as Slurm does when the time is up
        (signal.SIGKILL, False),
    ],
)
def test_a_stop_in_the_middle_leaves_no_process_and_the_run_goes_on(
    study: Study, alone: list[float], tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with started(study, "--out", str(out), "--processes", "2", log=log) as process:
        wait_until(lambda: steps_done(out) >= 8)
        children = family(process.pid)
        assert len(children) == 3  # two, and torchrun
        for child in children if to_all else ():
            child.send_signal(number)
        process.send_signal(number)
        process.wait(60)
        # A killed parent can tell nobody: its children notice, save and end by themselves.
        _gone, left = psutil.wait_procs(children, timeout=60)
        assert left == []
    if number is not signal.SIGKILL:
        assert process.returncode == 130
        assert f"({number.name}); everything is saved. Go on with: sftkit run" in log.read_text()
    assert 8 <= assert_whole_checkpoint(out) < STEPS

    options = ("--out", str(out), "--resume", "--processes", "2")
    with started(study, *options, log=log) as process:
        assert process.wait(WAIT_S) == 0, log.read_text()
    assert furthest(losses_of(out), alone) < 1e-5


def test_the_stop_button_of_a_notebook_stops_both_processes_and_the_kernel_lives_on(
    study: Study, tmp_path: Path
) -> None:
    from jupyter_client.manager import start_new_kernel

    out = tmp_path / "out"
    code = (
        "from sftkit.launch import launch\n"
        "from sftkit.recipe import load_recipe\n"
        f"launch(load_recipe({str(study.recipe_file)!r}), processes=2, out={str(out)!r})\n"
    )
    manager, client = start_new_kernel(env=study.environment(), cwd=str(tmp_path))
    try:
        request = client.execute(code)
        wait_until(lambda: steps_done(out) >= 8)
        children = [one for one in family(os.getpid()) if "sftkit.worker" in one.cmdline()]
        assert len(children) == 3  # two, and torchrun
        manager.interrupt_kernel()  # as JupyterLab's button does
        reply = client.get_shell_msg(timeout=60)
        while reply["parent_header"]["msg_id"] != request:
            reply = client.get_shell_msg(timeout=60)
        assert reply["content"]["ename"] == "StoppedError"
        assert "(SIGINT); everything is saved" in reply["content"]["evalue"]
        _gone, left = psutil.wait_procs(children, timeout=30)
        assert left == []
        assert client.execute_interactive("1 + 1", timeout=30)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert 8 <= assert_whole_checkpoint(out) < STEPS


# ---- two machines ----


class Machines:
    """Two network namespaces and the cable between them."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._names = [f"sftkit{os.getpid()}{letter}" for letter in "ab"]
        self.address = f"10.231.77.1:{PORT}"

    def make(self) -> None:
        first, second = self._names
        ip("netns", "add", first)
        ip("netns", "add", second)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "cable", "netns", second)
        for place, name in enumerate(self._names, start=1):
            ip("-n", name, "address", "add", f"10.231.77.{place}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")

    def remove(self) -> None:
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)

    def plug(self, state: str) -> None:
        ip("-n", self._names[0], "link", "set", "cable", state)

    @contextlib.contextmanager
    def run(
        self, out: Path, *more: str, recipes: tuple[Study, Study] | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Start the study on both, one process each; the second writes to a folder of its own."""
        studies = recipes or (self._study, self._study)
        with contextlib.ExitStack() as stack:
            yield tuple(  # type: ignore[misc]
                stack.enter_context(
                    started(
                        studies[rank],
                        *("--out", str(out if rank == 0 else out / "other")),
                        *("--processes", "2", "--machines", "2", "--machine-rank", str(rank)),
                        *("--main-address", self.address, *more),
                        log=self.log(out, rank),
                        before=("ip", "netns", "exec", self._names[rank]),
                        SFTKIT_STEP_WAIT_S=str(STEP_WAIT_S),
                    )
                )
                for rank in range(2)
            )

    @staticmethod
    def log(out: Path, rank: int) -> Path:
        return out.with_name(f"{out.name}-machine-{rank}.log")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def machines(study: Study) -> Iterator[Machines]:
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        pytest.skip("two machines are made of Linux network namespaces, with the `ip` command")
    made = Machines(study)
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.remove()


def test_two_machines_train_as_one_process_does(
    machines: Machines, alone: list[float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with machines.run(out) as (first, second):
        assert first.wait(WAIT_S) == 0, machines.log(out, 0).read_text()
        assert second.wait(30) == 0, machines.log(out, 1).read_text()
    assert furthest(losses_of(out), alone) < 1e-5
    record = load_run(out)
    assert record.environment.processes == 2
    assert not (out / "other").exists()
    assert "the record is on the first machine" in machines.log(out, 1).read_text()


def test_a_link_that_drops_is_told_and_the_run_goes_on_with_one_machine_then_two(
    machines: Machines, study: Study, alone: list[float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with machines.run(out) as both:
        wait_until(lambda: steps_done(out) >= 8)
        children = [child for process in both for child in family(process.pid)]
        machines.plug("down")
        dropped = time.monotonic()
        for rank, process in enumerate(both):
            assert process.wait(TOLD_WITHIN_S) == 2
            words = machines.log(out, rank).read_text()
            assert f"Process {rank} of 2 lost another one" in words
            assert f"did not answer within {STEP_WAIT_S} s" in words
            assert "--resume" in words
        took = time.monotonic() - dropped
        print(f"both machines had ended in words {took:.1f} s after the link dropped")
        assert took < TOLD_WITHIN_S
        _gone, left = psutil.wait_procs(children, timeout=10)
        assert left == []
    assert assert_whole_checkpoint(out) >= 5

    done = steps_done(out)
    log = tmp_path / "log"
    options = ("--out", str(out), "--resume")
    with started(study, *options, log=log) as process:  # one machine, one process
        wait_until(lambda: steps_done(out) >= done + 8)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    assert done < assert_whole_checkpoint(out) < STEPS

    machines.plug("up")
    with machines.run(out, "--resume") as (first, second):
        assert first.wait(WAIT_S) == 0, machines.log(out, 0).read_text()
        assert second.wait(30) == 0, machines.log(out, 1).read_text()
    assert furthest(losses_of(out), alone) < 1e-5
    told = load_run(out).training.events
    assert [words.split(" from ")[0].split(" after")[0] for words in told] == ["went on"] * 2


def test_machines_with_other_rows_are_refused_in_words(
    machines: Machines, study: Study, tmp_path: Path
) -> None:
    elsewhere = make_study(tmp_path / "elsewhere")
    rows = elsewhere.folder / "colours.jsonl"
    rows.write_text(rows.read_text().replace("lime", "navy"), encoding="utf-8")
    text = study.recipe_file.read_text().replace(str(study.folder / "colours"), str(rows)[:-6])
    elsewhere.recipe_file.write_text(text, encoding="utf-8")
    out = tmp_path / "out"

    with machines.run(out, recipes=(study, elsewhere)) as both:
        for process in both:
            assert process.wait(WAIT_S) == 2
    words = [machines.log(out, rank).read_text() for rank in range(2)]
    assert any("they differ in data.source, the rows." in one for one in words), words
    assert not (out / "checkpoints").exists()
