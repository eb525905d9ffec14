"""What each process of a launched run carries out: `python -m sftkit.worker`, under torchrun.

The first process does the whole run; the others take part in its training. Where `launch` started
them, they leave files for it: the steps and notes of the first, and of each how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError, StoppedError
from sftkit.processes import is_main, local_index, process_index
from sftkit.settings import to_plain

if TYPE_CHECKING:
    from sftkit.records import Step

EVENTS = "events.jsonl"
"""The first process's steps and notes, one JSON object a line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out this process's part of a run.

    Returns:
        0 if it went well or was stopped as asked; 1 if it failed, so that torchrun ends the others.
    """
    given = _parser().parse_args(arguments)
    folder = Path(given.told) if given.told else None
    if folder is not None:
        _write(folder / f"began-{process_index()}.json", {"pid": os.getpid()})
        _end_with_parent(given.stop_wait_s)
    _heed_signals()
    end: dict[str, Any] = {"error": None}
    try:
        _work(given, folder)
    except KeyboardInterrupt:
        words = (
            "Stopped outside of training; nothing new was saved. Go on from the newest checkpoint, "
            f"if there is one: sftkit run RECIPE --out {given.out} --resume"
        )
        end = {"error": StoppedError.__name__, "message": words, "is_outside": True}
    except SftkitError as error:
        end = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # told by whoever started this, with its trace
        end = {"error": type(error).__name__, "message": str(error), "is_foreign": True}
        traceback.print_exc()
    _tell_end(end, folder)
    return 0 if end["error"] in (None, StoppedError.__name__) else 1


def _work(given: argparse.Namespace, folder: Path | None) -> None:
    """Run, or take part in the run of the first process."""
    import torch

    from sftkit.progress import make_watcher
    from sftkit.recipe import load_recipe
    from sftkit.run import run, take_part

    recipe = load_recipe(given.recipe)
    if recipe.model.device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(local_index())
    options: dict[str, Any] = {"resume": given.resume, "allow_changes": given.allow_changes or []}
    try:
        if is_main():
            watcher = Teller(folder / EVENTS) if folder is not None else make_watcher("plain")
            run(recipe, given.out, watcher=watcher, **options)
        else:
            take_part(recipe, given.out, **options)
    finally:
        # What is left is to say how it ended; torchrun may already be ending all for the failure.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Teller:
    """A watcher that writes what it is told to a file, for the process that started this one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def on_step(self, step: Step, total_steps: int) -> None:
        """Write a step."""
        self._tell({"step": to_plain(step), "total": total_steps})

    def note(self, text: str) -> None:
        """Write a line of words."""
        self._tell({"note": text})

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        self._file.close()

    def _tell(self, event: dict[str, Any]) -> None:
        if not self._file.closed:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


def _heed_signals() -> None:
    """Say what a stop means outside of the training steps, where it saves and ends."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        # A process that only waits for the first one has nothing to tell: it ends at once, also
        # from inside of a wait that Python cannot interrupt.
        signal.signal(number, stop if is_main() else signal.SIG_DFL)


def _end_with_parent(stop_wait_s: float) -> None:
    """Stop as if asked when the process that started the run is gone, however it ended.

    It holds the other end of this process's standard input, which ends with it.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(stop_wait_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell_end(end: dict[str, Any], folder: Path | None) -> None:
    if end["error"] is not None:
        from sftkit.meeting import tell_failure

        tell_failure(end["message"])
        if folder is None:
            sys.stderr.write(f"Process {process_index()}: {end['error']}: {end['message']}\n")
    if folder is not None:
        _write(folder / f"ended-{process_index()}.json", end)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    workplace = path.with_suffix(".writing")
    workplace.write_text(json.dumps(content), encoding="utf-8")
    workplace.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sftkit.worker", description=__doc__)
    parser.add_argument("recipe", help="A recipe file.")
    parser.add_argument("--out", required=True, help="The run's folder.")
    parser.add_argument("--resume", action="store_true", help="Go on from the newest checkpoint.")
    parser.add_argument("--allow-changes", action="append", help="What may differ since then.")
    parser.add_argument("--told", help="Folder for steps and ends; by default they are printed.")
    parser.add_argument("--stop-wait-s", type=float, default=60, help="Time to save and end.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
