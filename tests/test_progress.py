"""How a run is shown while it goes, in a terminal, a log and a notebook."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample_record import sample_record  # type: ignore[import-not-found]

from sftkit.errors import SettingsError
from sftkit.progress import (
    NotebookWatcher,
    PlainWatcher,
    SilentWatcher,
    TerminalWatcher,
    in_notebook,
    in_words,
    make_watcher,
    memory_bytes,
    peak_memory_bytes,
)
from sftkit.records import Step


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, *, heldout: float | None = None) -> Step:
    return Step(
        step=number, loss=2.0, learning_rate=1e-3, grad_norm=1.0, tokens=500 * number,
        seconds=2.0 * number, heldout_loss=heldout, memory_bytes=2_500_000_000,
    )  # fmt: skip


def test_a_log_gets_speed_loss_and_time_left_in_words():
    stream, clock = io.StringIO(), Clock()
    watcher = PlainWatcher(stream, clock=clock)
    watcher.note("training on cpu")
    for number in range(1, 4):
        clock.now = 30.0 * number
        watcher.on_step(step(number, heldout=1.5 if number == 2 else None), 3)
    assert stream.getvalue().splitlines() == [
        "training on cpu",
        "step 1/3 · loss 2.000 · 250 tokens/s · 2.5 GB",
        "step 2/3 · loss 2.000 · held-out 1.500 · 250 tokens/s · 30 s left · 2.5 GB",
        "step 3/3 · loss 2.000 · held-out 1.500 · 250 tokens/s · 2.5 GB",
    ]


@pytest.mark.parametrize("total", [1, 5, 12, 113, 2500])
def test_a_log_stays_short_however_long_the_run(total):
    stream = io.StringIO()
    watcher = PlainWatcher(stream)
    for number in range(1, total + 1):
        watcher.on_step(step(number), total)
    assert min(total, 10) <= len(stream.getvalue().splitlines()) <= 14


def test_time_left_of_a_resumed_run_counts_only_the_steps_it_saw():
    stream, clock = io.StringIO(), Clock()
    watcher = PlainWatcher(stream, clock=clock)
    for number, now in ((60, 0.0), (61, 10.0)):
        clock.now = now
        watcher.on_step(step(number, heldout=1.0), 67)
    assert "1 min 00 s left" in stream.getvalue().splitlines()[-1]


def test_a_terminal_gets_one_bar_with_notes_above_it():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=110, color_system=None)
    with contextlib.closing(TerminalWatcher(console)) as watcher:
        watcher.note("[not markup]")
        for number in range(1, 4):
            watcher.on_step(step(number, heldout=1.25 if number == 3 else None), 3)
    lines = [line for line in re.split(r"[\r\n]", screen.getvalue()) if "tokens/s" in line]
    assert "3/3" in lines[-1]
    assert "loss 2.000 · held-out 1.250 · 250 tokens/s" in lines[-1]
    assert screen.getvalue().startswith("[not markup]\n")
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_command_told_above_the_bar_is_not_broken_into_lines():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=40, color_system=None)
    with contextlib.closing(TerminalWatcher(console)) as watcher:
        watcher.note("Go on with: sftkit run RECIPE --out runs/a-long-name-of-a-run --resume")
    assert screen.getvalue().splitlines() == [
        "Go on with: sftkit run RECIPE --out runs/a-long-name-of-a-run --resume"
    ]


def test_what_happens_on_the_way_is_a_line_between_the_steps():
    stream = io.StringIO()
    watcher = PlainWatcher(stream, clock=Clock())
    watcher.on_step(step(1), 2)
    watcher.note("step 2: memory ran out; 2 micro-batches from here on")
    watcher.on_step(step(2), 2)
    assert stream.getvalue().splitlines() == [
        "step 1/2 · loss 2.000 · 250 tokens/s · 2.5 GB",
        "step 2: memory ran out; 2 micro-batches from here on",
        "step 2/2 · loss 2.000 · 250 tokens/s · 2.5 GB",
    ]


def test_an_interrupted_bar_gives_the_cursor_back():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=110, color_system=None)

    def train_until_interrupted() -> None:
        with contextlib.closing(TerminalWatcher(console)) as watcher:
            watcher.on_step(step(1), 9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_until_interrupted()
    assert screen.getvalue().endswith("\x1b[?25h")


class Shown:
    """Stands where a notebook's display is: keeps what is shown under each handle."""

    def __init__(self) -> None:
        self.outputs: list[list[Any]] = []

    def display(self, value, **_):
        self.outputs.append([value])
        return Handle(self.outputs[-1])


class Handle:
    def __init__(self, history: list[Any]) -> None:
        self.history = history

    def update(self, value, **_):
        self.history.append(value)


def test_a_notebook_redraws_at_most_once_a_second_and_ends_complete(monkeypatch):
    import IPython.display

    shown, clock = Shown(), Clock()
    monkeypatch.setattr(IPython.display, "display", shown.display)
    watcher = NotebookWatcher(heldout_start=3.0, clock=clock)
    for number in range(1, 31):
        clock.now = number / 10
        watcher.on_step(step(number, heldout=2.5 if number == 30 else None), 30)
    watcher.close()
    figures, lines = shown.outputs
    assert len(figures) == len(lines) == 4  # at 0.1, 1.1, 2.1 and 3.0 s
    assert (
        figures[-1].get_suptitle()
        == "Held-out loss fell from 3.00 to 2.50 nats per token in 30 steps."
    )
    assert "step 30/30 · loss 2.000 · held-out 2.500" in lines[-1]["text/plain"]


def test_an_interrupted_notebook_shows_the_last_step(monkeypatch):
    import IPython.display

    shown = Shown()
    monkeypatch.setattr(IPython.display, "display", shown.display)
    watcher = NotebookWatcher(clock=Clock())
    for number in (1, 2, 3):
        watcher.on_step(step(number), 30)
    watcher.close()
    assert "step 3/30" in shown.outputs[1][-1]["text/plain"]


LIVE = """
import sys; sys.path.insert(0, 'tests')
import warnings; warnings.simplefilter('error')
from sample_record import sample_record
from sftkit.progress import NotebookWatcher, make_watcher
watcher = make_watcher(heldout_start=3.39)
assert isinstance(watcher, NotebookWatcher)
seconds = iter(range(0, 10**9, 1000))
watcher._clock = lambda: next(seconds)  # every step is due
training = sample_record().training
for step in training.steps[::28]:
    watcher.on_step(step, len(training.steps))
watcher.note('micro-batches halved')
watcher.close()
"""
AFTER = """
from sftkit.plots import plot_learned
plot_learned(sample_record().learned)
"""


def execute(engine: str, book: Any, folder: Path) -> Any:
    """Run a notebook as a reader's tools do; give it executed."""
    import nbclient
    import nbformat

    if engine == "nbclient":
        nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
        return book
    nbformat.write(book, folder / "in.ipynb")
    command = [
        sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3",
        str(folder / "in.ipynb"), str(folder / "out.ipynb"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return nbformat.read(folder / "out.ipynb", as_version=4)


@pytest.mark.parametrize("engine", ["nbclient", "papermill"])
def test_a_kernel_leaves_one_final_figure_and_its_line(engine, tmp_path):
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in (LIVE, AFTER)]
    executed = execute(engine, nbformat.v4.new_notebook(cells=cells), tmp_path)
    live, line, note = executed.cells[0].outputs  # five drawings, one figure
    assert live.metadata["image/png"]["alt"].startswith("Held-out loss fell from 3.39 to")
    assert "image/png" in live.data
    assert line.data["text/plain"].startswith("step 113/113 · loss ")
    assert note.text == "micro-batches halved\n"
    assert len(nbformat.writes(executed)) < 400_000  # two figures as text
    assert [sorted(output.data) for output in executed.cells[1].outputs] == [
        ["image/png", "text/plain"]
    ]


def test_drawing_takes_a_twentieth_of_the_time_at_most(monkeypatch):
    import IPython.display

    clock, drawn = Clock(), []

    def display(value: Any, **_: Any) -> Any:
        drawn.append(clock.now)
        clock.now += 1.5  # a slow machine: three seconds for figure and line
        return type("Handle", (), {"update": lambda _, value, **__: display(value)})()

    monkeypatch.setattr(IPython.display, "display", display)
    watcher = NotebookWatcher(clock=clock)
    for number in range(1, 601):
        clock.now += 1.0
        watcher.on_step(step(number), 10_000)
    assert 1.5 * len(drawn) / clock.now <= 1 / 20


def test_without_a_terminal_or_notebook_lines_are_written(capsys):
    with contextlib.closing(make_watcher()) as watcher:
        assert isinstance(watcher, PlainWatcher)
        for one in sample_record().training.steps:
            watcher.on_step(one, 113)
    assert 10 <= len(capsys.readouterr().out.splitlines()) <= 20


def test_kinds_are_chosen_by_name_and_unknown_ones_refused(monkeypatch):
    assert isinstance(make_watcher("silent"), SilentWatcher)
    assert isinstance(make_watcher("notebook"), NotebookWatcher)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(make_watcher(), TerminalWatcher)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_watcher(), PlainWatcher)
    message = "There is no watcher 'loud'. Use auto, terminal, notebook, plain, silent."
    with pytest.raises(SettingsError, match=re.escape(message)):
        make_watcher("loud")  # type: ignore[arg-type]


def test_pytest_is_no_notebook():
    assert in_notebook() is False


def test_peak_memory_is_at_least_what_is_held_now_and_counts_what_was_freed():
    before = peak_memory_bytes()
    block = bytearray(b"x" * 150_000_000)
    assert len(block) == 150_000_000
    del block
    assert peak_memory_bytes() >= max(before, memory_bytes(), 150_000_000)
    assert peak_memory_bytes() < 64e9  # bytes, not KiB of bytes


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (72, "1 min 12 s"), (3700, "1 h 01 min")]
)
def test_seconds_are_said_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux forks a peak along")
def test_the_peak_of_a_process_does_not_begin_with_its_parent_s():
    block = bytearray(b"x" * 400_000_000)
    code = "from sftkit.progress import peak_memory_bytes; print(peak_memory_bytes())"
    # With a preexec_fn Python forks, and the parent's peak is the child's first ru_maxrss.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        preexec_fn=lambda: None,
    )  # fmt: skip
    assert 0 < int(done.stdout) < len(block)
