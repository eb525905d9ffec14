"""What test_faults_run.py carries out in processes of their own, so that it can really end them.

`python -m tests.faults_child` imports everything once, then forks a child for each line of JSON it
reads: a case. The child tells what it does on standard output, a line of JSON each, and is ended
by SIGALRM if nothing else ends it. See tests/faults_processes.py for the other end.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")

import accelerate  # noqa: E402, F401
import peft  # noqa: E402, F401
import torch  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402, F401

from sftkit import cli  # noqa: E402
from sftkit.adapter import attach_adapter  # noqa: E402
from sftkit.adapter_files import save_adapter  # noqa: E402
from sftkit.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from sftkit.errors import MemoryRanOutError, StoppedError  # noqa: E402
from sftkit.objectives import chat_loss  # noqa: E402
from sftkit.settings import AdapterSettings, TrainSettings  # noqa: E402
from sftkit.train import train  # noqa: E402
from sftkit.train_state import Keeping  # noqa: E402
from tests.conftest import make_model  # noqa: E402
from tests.test_train import ANSWERS, TOKENIZER, make_examples  # noqa: E402

LONGEST_S = 120
TOLD_ON = os.dup(1)


def tell(**words: Any) -> None:
    """Write one line; short enough to be written whole or not at all."""
    os.write(TOLD_ON, (json.dumps(words) + "\n").encode())


def train_tiny(
    *,
    kind: str,
    settings: dict[str, Any],
    out: str,
    folder: str | None = None,
    resume: bool = False,
    pause_at: int | None = None,
    width: int = 32,
    layers: int = 2,
    repeat: int = 1,
    chance: bool = True,
    spare_bytes: int | None = None,
) -> None:
    """Train the tiny model; wait after a step to be ended or told to go on.

    Args:
        kind: Of adapter.
        settings: For TrainSettings.
        out: Folder for the adapter.
        folder: Of checkpoints.
        resume: Whether to go on from them.
        pause_at: The step after which to wait for a line.
        width: Of the model.
        layers: Of the model.
        repeat: How often the answers are repeated, up to 150 tokens.
        chance: Whether there is dropout.
        spare_bytes: Memory it may take beside what it has when training begins.
    """
    base = make_model(vocab_size=len(TOKENIZER), width=width, layers=layers)
    for module in base.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1 * chance
    adapter: dict[str, Any] = {"lora_dropout": 0.1 * chance, "r": 4} if kind == "lora" else {}
    model = attach_adapter(base, AdapterSettings(kind=kind, **adapter))

    def on_step(step: Any, _: int) -> None:
        tell(step=step.step, clock=time.monotonic())
        if step.step == pause_at:
            sys.stdin.readline()

    held = _address_space("VmSize")
    if spare_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (held + spare_bytes, resource.RLIM_INFINITY))
    keeping = None
    if folder is not None:
        keeping = Keeping(folder=Path(folder), resume=resume, note=lambda text: tell(note=text))
    try:
        record = train(
            model,
            make_examples([(answer * repeat)[:150] for answer in ANSWERS]),
            TrainSettings(**settings),
            objective=chat_loss,
            keeping=keeping,
            on_step=on_step,
        )
    except (StoppedError, MemoryRanOutError) as error:
        tell(raised=str(error))
        return
    save_adapter(model, out)
    (weights,) = Path(out).glob("*.safetensors")
    tell(
        losses=[step.loss.hex() for step in record.steps],
        weights=hashlib.sha256(weights.read_bytes()).hexdigest(),
        events=record.events,
        spared_bytes=_address_space("VmPeak") - held,
    )


def _address_space(which: str) -> int:
    """Give the bytes of address space this process has (VmSize) or had at most (VmPeak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


def save_until(*, folder: str, step: int, at: int) -> None:
    """Save a checkpoint, and end this process before its file operation number `at`."""
    seen = 0

    def before_each(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not event.startswith(("open", "os.", "shutil.", "tempfile.")):
            return
        if event == "open" and not str(arguments[0]).startswith(folder):
            return
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint = small_checkpoint(step)
    sys.addaudithook(before_each)
    save_checkpoint(folder, checkpoint, fingerprints={}, keep_last=1)
    tell(operations=seen)


def small_checkpoint(step: int) -> Checkpoint:
    """Make a checkpoint of two small tensors that depend on the step."""
    tensors = {
        "weights": {"a": torch.full((3,), float(step))},
        "random": {"cpu": torch.arange(step)},
    }
    return Checkpoint(step=step, tensors=tensors, progress={"done": step})


def command(*, words: list[str]) -> None:
    """Run the command line, as `sftkit` does."""
    sys.argv = ["sftkit", *words]
    sys.exit(cli.start())


CASES = {case.__name__: case for case in (train_tiny, save_until, command)}


def carry_out(case: dict[str, Any]) -> None:
    """Carry out one case in this process, and end it."""
    # Whoever was started in the background may ignore Ctrl-C, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(LONGEST_S)
    tell(pid=os.getpid())
    code = 1
    try:
        CASES[case.pop("do")](**case)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Fork a child for each line, and say how it ended."""
    os.dup2(2, 1)  # what libraries print is not ours to tell
    torch.set_num_threads(1)
    tell(threads=len(list(Path("/proc/self/task").iterdir())))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            carry_out(json.loads(line))
        _, status = os.waitpid(child, 0)
        tell(ended=os.waitstatus_to_exitcode(status))
    os._exit(0)  # taking torch apart would take seconds


if __name__ == "__main__":
    main()
