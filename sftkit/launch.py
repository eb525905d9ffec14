"""Start a run on many processes or machines, from a notebook's cell or a shell, and follow it.

The processes are always fresh ones, started by Accelerate: never forks of this one, which may have
used CUDA already. Here they are given their recipe as a file, shown as they go, stopped when this
one is asked to stop, and none is left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sftkit import catalog, errors
from sftkit.errors import ProcessError, SettingsError, SftkitError, StoppedError, TrainError
from sftkit.launch_config import (
    UNTESTED,
    LaunchPlan,
    Strategy,
    config_text,
    launch_command,
    launch_environment,
    launch_text,
    missing_here,
    plan_launch,
)
from sftkit.recipe import yaml_text
from sftkit.records import RunRecord, Step, from_json, load_run
from sftkit.settings import Recipe, loss_unit
from sftkit.worker import EVENTS

if TYPE_CHECKING:
    from sftkit.progress import Watcher

STOP_WAIT_S = 120
"""Seconds the processes have to finish their step, save and end when asked to stop."""
END_WAIT_S = 10.0
"""Seconds that torchrun has to end after its processes have, and killed processes to be gone."""
_LOOK_EVERY_S = 0.1


def launch(
    recipe: Recipe,
    *,
    processes: int,
    out: str | Path,
    resume: bool = False,
    allow_changes: Collection[str] = (),
    machines: int = 1,
    machine_rank: int = 0,
    main_address: str | None = None,
    strategy: Strategy = "ddp",
    watcher: Watcher | None = None,
) -> RunRecord | None:
    """Do what `run.run` does on many processes; from a notebook's cell as from a shell.

    A stop (a notebook's stop button, Ctrl-C, SIGTERM) is handed on: the processes finish their
    step, save and end. Asked a second time, they are ended at once.

    Args:
        recipe: What to do.
        processes: Processes on all machines together; on CUDA each has a GPU of its own.
        out: The run's folder, on the first machine. No shared disk is needed.
        resume: Go on from the newest whole checkpoint in `out`, if there is one.
        allow_changes: What may differ from when the run began, by the names a refusal gives.
        machines: How many machines; launch is called on each.
        machine_rank: Number of this machine, from 0.
        main_address: HOST:PORT of the first machine, the same on all; needed with several.
        strategy: What is divided among the processes.
        watcher: Is told notes and steps; None chooses one for the place it runs in.

    Returns:
        The record, as read from the run's folder; None on a machine that is not the first, where
        nothing is written.

    Raises:
        SettingsError: The launch cannot work, here or anywhere; nothing was started.
        StoppedError: Somebody asked for it; everything is saved.
        SftkitError: What made a process fail, in its own words.
    """
    from sftkit.progress import make_watcher

    plan = plan_launch(
        recipe,
        processes=processes,
        machines=machines,
        machine_rank=machine_rank,
        main_address=main_address,
        strategy=strategy,
    )
    _refuse_to_start(plan)
    unit = loss_unit(recipe.data.task, recipe.objective.loss)
    with (
        contextlib.closing(watcher or make_watcher(unit=unit)) as watching,
        tempfile.TemporaryDirectory(prefix="sftkit-launch-") as place,
    ):
        watching.note(f"Starting {launch_text(plan)}")
        _fetch_once(recipe, watching.note)
        folder = Path(place)
        (folder / "recipe.yaml").write_text(yaml_text(recipe), encoding="utf-8")
        (folder / "accelerate.yaml").write_text(config_text(plan, recipe), encoding="utf-8")
        rest = [
            "--told",
            place,
            "--stop-wait-s",
            str(STOP_WAIT_S),
            *(["--resume"] if resume else []),
        ]
        rest += [part for name in allow_changes for part in ("--allow-changes", name)]
        command = launch_command(
            plan,
            config=folder / "accelerate.yaml",
            recipe=folder / "recipe.yaml",
            out=out,
            rest=rest,
        )
        with _started(command, plan, folder) as group:
            asked_by = _follow(group, watching)
        _raise_what_happened(group, asked_by=asked_by, out=out)
    return load_run(out) if machine_rank == 0 else None


def _refuse_to_start(plan: LaunchPlan) -> None:
    """Refuse what this machine cannot do, before anything starts."""
    lacks = missing_here(plan)
    if plan.strategy != "ddp":
        lacks.append(
            f"{plan.strategy} is {UNTESTED}. Its configuration is written out and checked "
            "(--dry-run), but sftkit does not start it. Use ddp."
        )
    if plan.machines > 1 and plan.machine_rank == 0:
        lacks += _address_faults(str(plan.main_address))
    if lacks:
        lines = "\n".join(f"  - {words}" for words in lacks)
        raise SettingsError(f"This machine cannot start that:\n{lines}")


def _address_faults(address: str) -> Iterator[str]:
    """Say why the first machine cannot be met at an address."""
    import socket

    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as trying:
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trying.bind(where)
    except OSError as error:
        yield (
            f"The first machine cannot listen at main_address={address}: {error.strerror}. Give an "
            "address of this machine and a free port."
        )


def _fetch_once(recipe: Recipe, note: Callable[[str], None]) -> None:
    """Bring model and named data into the cache, so that not every process fetches them."""
    catalog.fetch_model(recipe.model, progress=note)
    data, measured = recipe.data, recipe.evaluate
    for name in (data.source, data.replay, *measured.probes):
        if name is not None and name in catalog.names():
            catalog.fetch(name, progress=note)


@dataclass
class _Group:
    """This machine's processes, and the folder they leave their words in."""

    plan: LaunchPlan
    folder: Path
    torchrun: subprocess.Popen[bytes]
    events: IO[bytes]
    ranks: range = field(init=False)

    def __post_init__(self) -> None:
        first = self.plan.machine_rank * self.plan.per_machine
        self.ranks = range(first, first + self.plan.per_machine)

    def words(self, kind: str) -> dict[int, dict[str, Any]]:
        """Read what processes left, by their number: began or ended."""
        paths = {rank: self.folder / f"{kind}-{rank}.json" for rank in self.ranks}
        return {
            rank: json.loads(path.read_text(encoding="utf-8"))
            for rank, path in paths.items()
            if path.exists()
        }

    def alive(self) -> list[Any]:
        """Give the processes that are still there, as psutil's; torchrun itself not counted."""
        import psutil

        found = {}
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.torchrun.pid).children(recursive=True)
            found = {child.pid: child for child in children}
        for began in self.words("began").values():  # also those that torchrun left behind
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(began["pid"])
                if str(self.folder) in process.cmdline():  # no other has this folder's name
                    found.setdefault(process.pid, process)
        return [one for one in found.values() if one.status() != psutil.STATUS_ZOMBIE]

    def let_go(self) -> None:
        """Close the standard input that processes take their parent's life from."""
        if self.torchrun.stdin is not None:
            self.torchrun.stdin.close()

    def tail(self, lines: int = 15) -> str:
        """Give the last lines that were printed before torchrun began to speak of the failure."""
        text = (self.folder / "output.log").read_text(encoding="utf-8", errors="replace")
        said = [line for line in text.splitlines() if line.strip()]
        ours = list(itertools.takewhile(lambda line: "distributed/elastic" not in line, said))
        return "\n".join((ours or said)[-lines:])


@contextlib.contextmanager
def _started(command: list[str], plan: LaunchPlan, folder: Path) -> Iterator[_Group]:
    """Start this machine's processes; whatever happens inside, none is left at the end."""
    (folder / EVENTS).touch()
    with (
        (folder / "output.log").open("wb") as output,
        (folder / EVENTS).open("rb") as events,
    ):
        torchrun = subprocess.Popen(  # noqa: S603  (our own command)
            command,
            env=launch_environment(plan, stop_wait_s=STOP_WAIT_S),
            stdin=subprocess.PIPE,  # never written to: it ends when this process does
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is handed on
        )
        group = _Group(plan=plan, folder=folder, torchrun=torchrun, events=events)
        try:
            yield group
        finally:
            _end_all(group)


def _end_all(group: _Group) -> None:
    """End whatever is left of a launch."""
    import psutil

    left = group.alive()
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    group.let_go()
    try:
        group.torchrun.wait(END_WAIT_S if left else 0.5)
    except subprocess.TimeoutExpired:
        group.torchrun.kill()
        group.torchrun.wait(END_WAIT_S)
    psutil.wait_procs([*left, *group.alive()], timeout=END_WAIT_S)


def _follow(group: _Group, watcher: Watcher) -> str | None:
    """Show the run until it has ended, and hand on a stop.

    Returns:
        The signal that asked for a stop, if one did.
    """
    from sftkit.train_state import StopButton

    def look_until(moment: float) -> None:
        _show(group.events, watcher)
        time.sleep(min(_LOOK_EVERY_S, max(0.0, moment - time.monotonic())))

    with StopButton().watched() as stop:
        until = patience = float("inf")
        while group.torchrun.poll() is None and time.monotonic() < min(until, patience):
            look_until(until)
            if stop.asked_by is not None and until == float("inf"):
                has_begun = bool(group.words("began"))
                until = time.monotonic() + (STOP_WAIT_S if has_begun else 0) + END_WAIT_S
                watcher.note(f"{stop.asked_by}: the processes finish their step, save and end")
                group.torchrun.send_signal(signal.Signals[stop.asked_by])
            ended = group.words("ended").values()
            if patience == float("inf") and len(ended) == len(group.ranks):
                # torchrun also waits for the other machines, and a link may be down.
                is_lost = any(end["error"] == ProcessError.__name__ for end in ended)
                patience = time.monotonic() + (1.0 if is_lost else END_WAIT_S)
        if group.torchrun.poll() is not None and group.alive():
            # It was ended first, as by a signal to all at once. Its processes save and end.
            group.let_go()
            until = time.monotonic() + STOP_WAIT_S
            while group.alive() and time.monotonic() < until:
                look_until(until)
        _show(group.events, watcher)
        return stop.asked_by


def _show(events: IO[bytes], watcher: Watcher) -> None:
    """Pass on what the first process has told since the last look."""
    while line := events.readline():
        if not line.endswith(b"\n"):  # half written: read again at the next look
            events.seek(-len(line), os.SEEK_CUR)
            return
        event = json.loads(line)
        if "step" in event:
            watcher.on_step(from_json(Step, json.dumps(event["step"])), event["total"])
        else:
            watcher.note(event["note"])


def _raise_what_happened(group: _Group, *, asked_by: str | None, out: str | Path) -> None:
    """Tell a failure in the words of the process that had it, not of those that lost it.

    Raises:
        SftkitError: If the run did not come to its end.
    """
    began, ended = group.words("began"), group.words("ended")
    failed = {rank: end for rank, end in ended.items() if end["error"] is not None}
    silent = [rank for rank in began if rank not in ended]
    lost = {rank: end for rank, end in failed.items() if end["error"] == ProcessError.__name__}
    # A process that torchrun ended, because another had failed, says it was stopped as well.
    ended_along = {
        rank for rank, end in failed.items() if end.get("is_outside") and asked_by is None
    }
    failed = {rank: end for rank, end in failed.items() if rank not in ended_along}
    is_stop = {rank for rank, end in failed.items() if end["error"] == StoppedError.__name__}
    if len(ended) == len(group.ranks) and not failed and not ended_along:
        return
    if is_stop:
        raise StoppedError(failed[min(is_stop)]["message"])
    for rank, end in failed.items():
        if rank not in lost:
            raise _as_error(rank, end, group)
    if asked_by is not None:
        raise StoppedError(
            f"Stopped before training ({asked_by}); nothing new was saved. Go on from the newest "
            f"checkpoint, if there is one: sftkit run RECIPE --out {out} --resume"
        )
    advice = " ".join(end["message"] for end in list(lost.values())[:1])
    if silent:
        which = ", ".join(map(str, silent))
        raise ProcessError(
            f"Process {which} of {group.plan.processes} ended without a word: it was killed, "
            f"perhaps because memory ran out. {advice}".rstrip()
        )
    if advice:
        raise ProcessError(advice)
    if ended_along:
        raise StoppedError(ended[min(ended_along)]["message"])
    raise TrainError(f"The processes could not be started. The last words:\n{group.tail()}")


def _as_error(rank: int, end: dict[str, Any], group: _Group) -> SftkitError:
    """Make the error that a process raised."""
    if end.get("is_foreign"):
        return TrainError(
            f"Process {rank} of {group.plan.processes} failed: {end['error']}: {end['message']}\n"
            f"{group.tail()}"
        )
    kind = getattr(errors, end["error"], TrainError)
    return kind(end["message"]) if issubclass(kind, SftkitError) else TrainError(end["message"])
