"""The state of training: into a checkpoint, out of one, and out of the loop when asked to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from sftkit.checkpoint import Checkpoint, checkpoints, newest_checkpoint, save_checkpoint
from sftkit.errors import CheckpointError, StoppedError
from sftkit.processes import Processes, is_launched
from sftkit.records import Step, from_json
from sftkit.regularise import BestWeights, trained_parameters
from sftkit.settings import TrainSettings, to_plain


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a run keeps its checkpoints, and what they depend on.

    Attributes:
        folder: The run's folder of checkpoints.
        fingerprints: What the next step depends on, by name (checkpoint.refuse_changes).
        resume: Whether to go on from the newest checkpoint, if there is one.
        allow_changes: Fingerprints that may differ from those of the checkpoint.
        how_to_resume: What to do to go on, for the message of a stop.
        note: Told what was found and saved.
    """

    folder: Path
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    allow_changes: Collection[str] = ()
    how_to_resume: str = "Start it again with resume."
    note: Callable[[str], None] = print


@dataclass
class Progress:
    """What training has done so far.

    Attributes:
        steps: Every step that was done.
        heldout_start: Validation loss before the first.
        tokens: Tokens processed.
        weight: Summed weight of the examples.
        seconds: Training seconds.
        micro_batches: Forward passes per step and process, as they are now.
        activation_checkpointing: Whether activations are computed twice, as it is now.
        events: What happened, in words.
    """

    steps: list[Step] = field(default_factory=list)
    heldout_start: float | None = None
    tokens: int = 0
    weight: float = 0.0
    seconds: float = 0.0
    micro_batches: int = 1
    activation_checkpointing: bool = False
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that changes from step to step, where it lives."""

    model: Any
    optimizer: Any
    best: BestWeights | None
    together: Processes
    progress: Progress

    def tell(self, words: str, keeping: Keeping | None) -> None:
        """Take down what happened, and say it."""
        self.progress.events.append(words)
        if keeping and self.together.is_main:
            keeping.note(words)

    def keep(
        self, keeping: Keeping | None, settings: TrainSettings, stop: StopButton, *, steps: int
    ) -> None:
        """After a step: write a checkpoint if one is due, and end the run if somebody asked.

        Raises:
            StoppedError: Somebody asked, in whichever process.
        """
        step = len(self.progress.steps)
        is_due = settings.save_every is not None and step % settings.save_every == 0
        is_asked = self.together.any(stop.asked_by is not None)
        is_saved = False
        if keeping and (is_due or is_asked):
            is_saved = self.save(keeping, settings.keep_last)
        if is_asked:
            stop.raise_stopped(step, steps, _what_is_saved(keeping, is_saved=is_saved))

    def save(self, keeping: Keeping, keep_last: int) -> bool:
        """Write a checkpoint and say whether it could be; a full disk is told, not raised.

        All processes call it, the first one writes; the others give it their random states.
        """
        optimizer, plain = pack_optimizer(self.optimizer)
        tensors: dict[str, Mapping[str, torch.Tensor]] = {
            "weights": trained_parameters(self.model),
            "optimizer": optimizer,
            "random": {
                f"{process}.{name}": states
                for name, own in random_states().items()
                for process, states in enumerate(self.together.gather(own))
            },
        }
        progress: dict[str, Any] = {"optimizer": plain, "done": to_plain(self.progress)}
        if self.best is not None:
            tensors["best"], progress["best"] = self.best.state()
        if self.together.accelerator.scaler is not None:
            progress["scaler"] = self.together.accelerator.scaler.state_dict()
        checkpoint = Checkpoint(step=len(self.progress.steps), tensors=tensors, progress=progress)

        def write() -> bytes:
            try:
                save_checkpoint(
                    keeping.folder,
                    checkpoint,
                    fingerprints=keeping.fingerprints,
                    keep_last=keep_last,
                )
            except CheckpointError as error:
                keeping.note(str(error))
                return b""
            return b"saved"

        return bool(self.together.from_first(write))

    def restore(self, keeping: Keeping) -> bool:
        """Take up the newest whole checkpoint, if there is one and resuming was asked for.

        Raises:
            CheckpointError: It is of another run or does not fit this model and optimizer; or a
                new run was to begin where another one's checkpoints are.
        """
        said: list[str] = []

        def note(words: str) -> None:  # damaged checkpoints, changes that were allowed
            said.append(words)
            keeping.note(words)

        checkpoint = _find(dataclasses.replace(keeping, note=note), self.together)
        if checkpoint is None:
            return False
        tensors, progress = checkpoint.tensors, checkpoint.progress
        weights = trained_parameters(self.model)
        if set(weights) != set(tensors["weights"]):
            raise CheckpointError("The checkpoint's weights are not those of this model's adapter.")
        with torch.no_grad():
            for name, values in tensors["weights"].items():
                weights[name].copy_(values)
        unpack_optimizer(self.optimizer, tensors["optimizer"], progress["optimizer"])
        if self.best is not None and "best" in progress:
            self.best.take(tensors.get("best", {}), progress["best"])
        scaler = self.together.accelerator.scaler
        if scaler is not None and "scaler" in progress:
            scaler.load_state_dict(progress["scaler"])
        vars(self.progress).update(progress["done"])
        steps = [from_json(Step, json.dumps(step)) for step in progress["done"]["steps"]]
        self.progress.steps = steps
        self.progress.events.extend(said)
        by = _set_random(tensors["random"], self.together.index)
        words = f"went on after step {checkpoint.step} from {keeping.folder}"
        if by != self.together.count:
            words += (
                f", saved by {by} of the {self.together.count} processes there are now: losses go "
                "on the same up to rounding, dropout does not"
            )
        self.tell(words, keeping)
        return True


def _what_is_saved(keeping: Keeping | None, *, is_saved: bool) -> str:
    if keeping and is_saved:
        return f"everything is saved. {keeping.how_to_resume}"
    earlier = checkpoints(keeping.folder) if keeping else []
    if keeping and earlier:
        return f"it is not saved, step {earlier[0][0]} is. {keeping.how_to_resume}"
    return "it is not saved."


def _find(keeping: Keeping, together: Processes) -> Checkpoint | None:
    """Let the first process find and verify the newest checkpoint, and give it to all.

    Machines need no shared disk for that.
    """
    found: list[Checkpoint] = []

    def plain() -> bytes:
        if not keeping.resume and any(keeping.folder.glob("step-*")):
            raise CheckpointError(
                f"{keeping.folder} already holds checkpoints of a run. Resume it, or start in "
                "another folder."
            )
        checkpoint = keeping.resume and newest_checkpoint(
            keeping.folder,
            fingerprints=keeping.fingerprints,
            allow_changes=keeping.allow_changes,
            note=keeping.note,
        )
        if not checkpoint:
            return b""
        found.append(checkpoint)
        groups = list(checkpoint.tensors)
        return json.dumps(
            {"step": checkpoint.step, "progress": checkpoint.progress, "groups": groups}
        ).encode()

    told = together.from_first(plain)
    if not told or together.count == 1:
        return found[0] if found else None

    def tensors() -> bytes:
        return safetensors.torch.save(
            {
                f"{group}/{name}": tensor
                for group, held in found[0].tensors.items()
                for name, tensor in held.items()
            }
        )

    about = json.loads(told)
    flat = safetensors.torch.load(together.from_first(tensors))
    held: dict[str, dict[str, torch.Tensor]] = {group: {} for group in about["groups"]}
    for key, tensor in flat.items():
        group, name = key.split("/", 1)
        held[group][name] = tensor
    return Checkpoint(step=about["step"], tensors=held, progress=about["progress"])


def pack_optimizer(optimizer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Take an optimizer's state apart: tensors as "0.exp_avg", plain values beside them."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}

    def take(value: Any, *path: str) -> None:
        if isinstance(value, dict):  # bitsandbytes keeps its 8-bit state in one of its own
            for name, inner in value.items():
                take(inner, *path, str(name))
        elif isinstance(value, torch.Tensor):
            tensors[".".join(path)] = value
        else:
            plain[".".join(path)] = value

    take(optimizer.state_dict()["state"])
    return tensors, plain


def unpack_optimizer(
    optimizer: Any, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Give an optimizer the state that `pack_optimizer` took apart."""
    state: dict[Any, Any] = {}
    for key, value in {**tensors, **plain}.items():
        place, *path, last = key.split(".")
        into = state.setdefault(int(place), {})
        for name in path:
            into = into.setdefault(name, {})
        into[last] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class StopButton:
    """Whether somebody asked the run to stop: Ctrl-C, a notebook's stop button, or SIGTERM.

    The step at work is finished first. Asked a second time, Python stops at once as it always does.
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None

    def _ask(self, number: int, _: Any) -> None:
        if self.asked_by is not None:
            if is_launched():  # one stop comes by several ways; the launch itself ends who lingers
                return
            raise KeyboardInterrupt
        self.asked_by = signal.Signals(number).name

    @contextlib.contextmanager
    def watched(self) -> Iterator[StopButton]:
        """Listen while inside; signals reach a program's main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_stopped(self, step: int, steps: int, saved: str) -> None:
        """End the run in words.

        Args:
            step: The last step that was done.
            steps: All steps of the run.
            saved: What is saved, and how to go on.

        Raises:
            StoppedError: Always.
        """
        by = self.asked_by or "another process was asked"
        raise StoppedError(f"Stopped after step {step} of {steps} ({by}); {saved}")


def random_states() -> dict[str, torch.Tensor]:
    """Give the states of this process's random generators, as tensors on the CPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random(states: Mapping[str, torch.Tensor], process: int) -> int:
    """Set this process's generators, where the checkpoint knows it; say how many it knows."""
    if f"{process}.cpu" in states:
        torch.set_rng_state(states[f"{process}.cpu"])
    if torch.cuda.is_available() and f"{process}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{process}.cuda"])
    return sum(name.endswith(".cpu") for name in states)
