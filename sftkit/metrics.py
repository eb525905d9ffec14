"""metrics.jsonl: one line per optimizer step, whole or not there, however the run ended."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from sftkit.errors import RecordError
from sftkit.records import Step, from_json
from sftkit.settings import to_plain


def read_metrics(path: str | Path) -> tuple[Step, ...]:
    """Read the steps a run has written, also while it trains or after it was killed.

    Args:
        path: A metrics.jsonl.

    Returns:
        Its steps in order, from 1. A last line that was cut off is left out.

    Raises:
        RecordError: The file cannot be read, or a line is not the step that belongs there.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]  # what has no line end was cut off
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}).") from error
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            steps.append(_step_of(line, number))
        except RecordError as error:
            raise RecordError(f"{path} line {number}: {error}") from error
    return tuple(steps)


@contextlib.contextmanager
def write_metrics(
    path: str | Path, *, note: Callable[[str], None] = print
) -> Iterator[Callable[[Step], None]]:
    """Keep metrics.jsonl while a run goes on; inside, hand every step to the function it gives.

    A resumed run hands over the steps of its checkpoint again: they are recognised and stay where
    they are. From the first step that differs on, what an earlier attempt had written is cut off.
    Nothing is ever written a second time, so there is no moment at which a kill could lose it; and
    until the first step nothing is touched, so a resume that is refused leaves the file as it was.

    Args:
        path: The file; made at the first step. Only the run's first process may write.
        note: Told once if the disk is full. Training goes on, and the lines that are missing are
            written as soon as there is room.
    """
    writer = _Writer(Path(path), note)
    try:
        yield writer.take
        writer.finish()
    finally:
        writer.close()


def step_speeds(steps: Sequence[Step]) -> list[float]:
    """Give every step's own tokens per second; steps themselves count from the start."""
    speeds = []
    tokens, seconds = 0, 0.0
    for step in steps:
        passed = step.seconds - seconds
        speeds.append((step.tokens - tokens) / passed if passed > 0 else 0.0)
        tokens, seconds = step.tokens, step.seconds
    return speeds


class _Writer:
    """An open metrics.jsonl: how many of its bytes hold, and which lines still wait."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path = path
        self._note = note
        self._file: BinaryIO | None = None
        self._earlier: deque[bytes] = deque()  # lines of an earlier attempt, not yet confirmed
        self._waiting: deque[bytes] = deque()  # lines that are not yet in the file
        self._size = 0  # bytes at the start of the file that hold
        self._is_clean = False  # whether the file ends there
        self._was_told = False

    def take(self, step: Step) -> None:
        """Write one step, unless it stands there already."""
        self._waiting.append(json.dumps(to_plain(step)).encode() + b"\n")
        try:
            file = self._file or self._open()
            while self._waiting and self._earlier and self._earlier[0] == self._waiting[0]:
                self._size += len(self._earlier.popleft())
                self._waiting.popleft()
            if self._waiting:
                self._write(file)
        except OSError as error:
            if not self._was_told:
                self._was_told = True
                self._note(
                    f"{self._path} could not be written from step {step.step} on "
                    f"({error.strerror}). Training goes on; its lines are written when there is "
                    "room."
                )

    def finish(self) -> None:
        """Leave nothing behind that is not of this run, and nothing out."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # was told
                self._write(self._file)

    def close(self) -> None:
        """Close the file; harmless when it was never opened."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> BinaryIO:
        self._path.touch()
        # What does not hold needs no check here: it is no line of this run, and is cut off.
        self._earlier = deque(self._path.read_bytes().splitlines(keepends=True))
        # Unbuffered: a line is the system's as soon as it is written, and outlives a kill.
        self._file = self._path.open("r+b", buffering=0)
        return self._file

    def _write(self, file: BinaryIO) -> None:
        if not self._is_clean:
            file.truncate(self._size)
            self._earlier.clear()
            self._is_clean = True
        while self._waiting:
            line = self._waiting[0]
            file.seek(self._size)
            self._is_clean = False
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            self._is_clean = True
            self._size += len(self._waiting.popleft())


def _step_of(line: bytes, number: int) -> Step:
    try:
        step = from_json(Step, line.decode())
    except (ValueError, OverflowError, RecursionError) as error:
        raise RecordError(f"Not a step: {error}.") from error
    if step.step != number:
        raise RecordError(f"Step {step.step} stands where step {number} belongs.")
    return step
