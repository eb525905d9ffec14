"""How a run is shown as it goes: a bar in a terminal, a live figure in a notebook, else lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TextIO

from sftkit.errors import SettingsError
from sftkit.held_memory import memory_bytes, peak_memory_bytes
from sftkit.records import Step, TrainRecord

__all__ = [
    "Kind",
    "NotebookWatcher",
    "Pace",
    "PlainWatcher",
    "SilentWatcher",
    "TerminalWatcher",
    "Watcher",
    "in_notebook",
    "in_words",
    "make_watcher",
    "memory_bytes",
    "peak_memory_bytes",
]

Kind = Literal["auto", "terminal", "notebook", "plain", "silent"]
PLAIN_LINES = 12
"""Lines a run of any length prints when there is no terminal; held-out losses add a few."""
REDRAW_S = 1.0
"""A live figure is redrawn at most this often, and for at most a twentieth of the time."""


class Watcher(Protocol):
    """What a run reports to. `on_step` and `note` are plain callables: pass either alone.

    `with contextlib.closing(make_watcher()) as watcher:` leaves all tidy, also after an error.
    """

    def on_step(self, step: Step, total_steps: int) -> None:
        """Take one finished optimizer step of `total_steps`."""

    def note(self, text: str) -> None:
        """Take one line of words about the run."""

    def close(self) -> None:
        """Leave the terminal or notebook tidy; harmless when called twice."""


def make_watcher(
    kind: Kind = "auto", *, heldout_start: float | None = None, unit: str = "nats per token"
) -> Watcher:
    """Choose how to show a run.

    Args:
        kind: auto takes a live figure in a notebook, a bar in a terminal, and lines elsewhere.
        heldout_start: Held-out loss before the first step, where it is known.
        unit: What the loss is counted in.

    Raises:
        SettingsError: There is no such kind.
    """
    if kind == "auto":
        # A dumb terminal (an editor's, some CI's) cannot redraw a line.
        redraws = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        kind = "notebook" if in_notebook() else "terminal" if redraws else "plain"
    makers: dict[str, Callable[[], Watcher]] = {
        "terminal": TerminalWatcher,
        "notebook": lambda: NotebookWatcher(heldout_start=heldout_start, unit=unit),
        "plain": PlainWatcher,
        "silent": SilentWatcher,
    }
    if kind not in makers:
        raise SettingsError(f"There is no watcher {kind!r}. Use auto, {', '.join(makers)}.")
    return makers[kind]()


class SilentWatcher:
    """Shows nothing."""

    def on_step(self, step: Step, total_steps: int) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is held."""


class PlainWatcher:
    """Writes a dozen lines per run, whatever its length; for logs and pipes."""

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._pace = Pace(clock)

    def on_step(self, step: Step, total_steps: int) -> None:
        """Write a line at the first and last step, at each held-out loss, and in between."""
        self._pace.count(step)
        every = max(-(-total_steps // PLAIN_LINES), 1)
        due = step.step % every == 0 or step.step in (1, total_steps)
        if due or step.heldout_loss is not None:
            self.note(f"step {step.step}/{total_steps} · {self._pace.words(step, total_steps)}")

    def note(self, text: str) -> None:
        """Write one line."""
        # sys.stdout is looked up late: notebooks and tests replace it.
        print(text, file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class TerminalWatcher:
    """A progress bar with loss, held-out loss, tokens/s, time left and memory."""

    def __init__(self, console: Any = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = console or Console(highlight=False)
        self._pace = Pace(clock)
        self._bar: Any = None
        self._task: Any = None

    def on_step(self, step: Step, total_steps: int) -> None:
        """Move the bar."""
        self._pace.count(step)
        if self._bar is None:
            self._start(total_steps)
        words = self._pace.words(step, total_steps)
        self._bar.update(self._task, completed=step.step, total=total_steps, words=words)
        self._bar.refresh()
        if step.step >= total_steps:
            self.close()

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        # Not wrapped: a command in it is there to be copied.
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and leave it standing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self, total_steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # No refresh thread: the cores belong to the training.
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20, complete_style="blue", finished_style="blue"),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            auto_refresh=False,
        )
        self._bar.start()
        self._task = self._bar.add_task("train", total=total_steps, words="")


class NotebookWatcher:
    """Live curves in a notebook: losses, learning rate, speed, memory.

    One figure and one line are replaced as the run goes on, and stay as the cell's output; under
    papermill and nbclient too.
    """

    def __init__(
        self,
        *,
        heldout_start: float | None = None,
        unit: str = "nats per token",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = heldout_start
        self._unit = unit
        self._clock = clock
        self._pace = Pace(clock)
        self._steps: list[Step] = []
        self._total = 0
        self._handles: tuple[Any, Any] | None = None
        self._drawn_at = -float("inf")
        self._wait_s = REDRAW_S
        self._drawn_steps = 0

    def on_step(self, step: Step, total_steps: int) -> None:
        """Take the step; redraw if the last drawing is old enough or the run is over."""
        self._pace.count(step)
        self._steps.append(step)
        self._total = total_steps
        if self._clock() - self._drawn_at >= self._wait_s or step.step >= total_steps:
            self._draw()

    def note(self, text: str) -> None:
        """Print one line below the figure."""
        print(text)  # noqa: T201

    def close(self) -> None:
        """Draw what has not been drawn yet, as after an interrupt."""
        if self._steps and self._drawn_steps < len(self._steps):
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        from sftkit.plots import plot_training

        began = self._clock()
        last = self._steps[-1]
        figure = plot_training(
            _so_far(self._steps, self._start), total_steps=self._total, unit=self._unit
        )
        words = f"step {last.step}/{self._total} · {self._pace.words(last, self._total)}"
        line = {"text/plain": words}
        if self._handles is None:
            self._handles = (
                display(figure, display_id=True),
                display(line, raw=True, display_id=True),
            )
        else:
            self._handles[0].update(figure)
            self._handles[1].update(line, raw=True)
        self._drawn_at = self._clock()
        self._wait_s = max(REDRAW_S, 20 * (self._drawn_at - began))
        self._drawn_steps = len(self._steps)


class Pace:
    """Speed and time left, from the steps seen so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._heldout: float | None = None

    def count(self, step: Step) -> None:
        """Take one step."""
        if self._first is None:
            # The first step's own time is not seen here, so the clock starts as it ends.
            self._first = (step.step, self._clock())
        if step.heldout_loss is not None:
            self._heldout = step.heldout_loss

    def seconds_left(self, step: Step, total_steps: int) -> float | None:
        """Wall-clock seconds to go, held-out evaluations included; None after one step."""
        if self._first is None or step.step <= self._first[0]:
            return None
        first, began = self._first
        return (self._clock() - began) / (step.step - first) * (total_steps - step.step)

    def words(self, step: Step, total_steps: int) -> str:
        """Loss, held-out loss, speed, time left and memory in one line."""
        left = self.seconds_left(step, total_steps)
        speed = step.tokens / step.seconds if step.seconds > 0 else 0.0
        parts = [
            f"loss {step.loss:.3f}",
            f"held-out {self._heldout:.3f}" if self._heldout is not None else "",
            f"{speed:,.0f} tokens/s",
            f"{in_words(left)} left" if left and step.step < total_steps else "",
            f"{step.memory_bytes / 1e9:.1f} GB" if step.memory_bytes else "",
        ]
        return " · ".join(part for part in parts if part)


def in_words(seconds: float) -> str:
    """Write seconds as a reader would say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def in_notebook() -> bool:
    """Say whether a notebook kernel (Jupyter, Colab, VS Code) runs this process."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    # A kernel's shell has a `kernel`; IPython in a terminal has none.
    return getattr(shell, "kernel", None) is not None


def _so_far(steps: list[Step], heldout_start: float | None) -> TrainRecord:
    last = steps[-1]
    return TrainRecord(
        steps=tuple(steps),
        heldout_start=heldout_start,
        kept_step=last.step,
        tokens=last.tokens,
        supervised_tokens=0,
        seconds=last.seconds,
        trainable_parameters=0,
        total_parameters=0,
    )
