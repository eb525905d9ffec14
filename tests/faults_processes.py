"""A Python of its own that forks a child for each case of tests/faults_child.py.

Importing torch takes seconds, forking a process that has done so takes none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent


class Interpreter:
    """One such Python, and the child it has at work.

    Args:
        place: Folder for what it writes to standard error.
        hash_seed: So that no two of them order their sets alike.
    """

    def __init__(self, place: Path, hash_seed: int) -> None:
        self.errors = place / f"stderr-{hash_seed}.txt"
        with self.errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults_child"],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )
        self.child = 0
        self.notes: list[str] = []

    def start(self, do: str, **arguments: Any) -> None:
        """Begin a case in a new child."""
        self.notes = []
        self._say(json.dumps({"do": do, **arguments}))
        self.child = self.hear("pid")["pid"]

    def hear(self, *names: str) -> dict[str, Any]:
        """Wait for a line that has any of the names; notes on the way are kept."""
        assert self._process.stdout is not None
        before = []
        for line in self._process.stdout:
            told = json.loads(line)
            before.append(str(told)[:500])
            if "note" in told:
                self.notes.append(told["note"])
            if any(name in told for name in names):
                return dict(told)
            assert "ended" not in told, f"{names} did not come: {before}\n{self.errors.read_text()}"
        raise AssertionError(f"the interpreter is gone: {self.errors.read_text()}")

    def hear_step(self, step: int) -> float:
        """Wait until a step is done; give the time at which it was."""
        while (told := self.hear("step"))["step"] < step:
            pass
        return float(told["clock"])

    def go_on(self) -> None:
        """Let a child that waits go on."""
        self._say("")

    def end(self, by: int) -> None:
        """Send the child a signal."""
        os.kill(self.child, by)

    def ended(self) -> int:
        """Wait for the child's end; give its exit code, or the signal that ended it as -number."""
        return int(self.hear("ended")["ended"])

    def carry_out(self, do: str, *names: str, **arguments: Any) -> dict[str, Any]:
        """Carry out a case to its end; give the line that has any of the names."""
        self.start(do, **arguments)
        told = self.hear(*names)
        assert self.ended() == 0, self.errors.read_text()
        return told

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
