"""Checkpoints: going on is bit-identical, damage is named, another run is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.checkpoint import (
    MANIFEST,
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from sftkit.errors import CheckpointError, StoppedError
from sftkit.objectives import chat_loss
from sftkit.optim import rate_scales
from sftkit.records import TrainRecord
from sftkit.settings import AdapterSettings, TrainSettings
from sftkit.train import train
from sftkit.train_state import Keeping
from tests.conftest import make_model
from tests.test_optim import HERE
from tests.test_train import TOKENIZER, furthest, make_examples, weights_of

# Two or three steps an epoch, and dropout, so that order and chance matter at every step.
SETTINGS = TrainSettings(max_tokens_per_batch=250, epochs=4, learning_rate=1e-2, save_every=1)
ADAPTER = AdapterSettings(r=4, lora_dropout=0.1)


def carry_out(
    folder: Path | None,
    *,
    settings: TrainSettings = SETTINGS,
    adapter: AdapterSettings = ADAPTER,
    stop_after: int | None = None,
    by: signal.Signals = signal.SIGINT,
    **keeping: Any,
) -> tuple[TrainRecord, dict[str, torch.Tensor]]:
    """Train the tiny model; the signal comes after a step, as from a stop button."""
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), adapter)
    told: list[str] = keeping.pop("told", [])
    falling = iter(range(99, 0, -1))

    def on_step(step: Any, _: int) -> None:
        if step.step == stop_after:
            signal.raise_signal(by)

    record = train(
        model,
        make_examples(),
        settings,
        objective=chat_loss,
        measure=lambda: {"heldout_loss": float(next(falling))},
        rate_scales=rate_scales(adapter),
        keeping=Keeping(folder=folder, note=told.append, **keeping) if folder else None,
        on_step=on_step,
    )
    return record, weights_of(model)


def losses(record: TrainRecord) -> list[float]:
    return [step.loss for step in record.steps]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["lora", "lora+", "full", "freeze", "prompt"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(by, kind, micro_batches, tmp_path):
    settings = dataclasses.replace(SETTINGS, micro_batches=micro_batches, save_every=None)
    adapter = AdapterSettings(kind=kind) if kind in ("full", "freeze", "prompt") else (
        dataclasses.replace(ADAPTER, kind=kind)
    )  # fmt: skip
    whole, weights = carry_out(None, settings=settings, adapter=adapter)
    with pytest.raises(StoppedError, match=rf"^Stopped after step 3 of \d+ \({by.name}\); every"):
        carry_out(tmp_path, settings=settings, adapter=adapter, stop_after=3, by=by)
    record, again = carry_out(tmp_path, settings=settings, adapter=adapter, resume=True)
    assert losses(record) == losses(whole)
    assert [s.learning_rate for s in record.steps] == [s.learning_rate for s in whole.steps]
    assert (record.tokens, record.supervised_tokens) == (whole.tokens, whole.supervised_tokens)
    assert furthest(again, weights) == 0.0


@pytest.mark.parametrize("name", HERE)
def test_every_optimizer_goes_on_from_its_own_state(name, tmp_path):
    settings = dataclasses.replace(SETTINGS, optimizer=name, save_every=None)
    whole, weights = carry_out(None, settings=settings)
    with pytest.raises(StoppedError):
        carry_out(tmp_path, settings=settings, stop_after=4)
    record, again = carry_out(tmp_path, settings=settings, resume=True)
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0


def test_the_message_of_a_stop_says_how_to_go_on(tmp_path):
    with pytest.raises(StoppedError, match=r"everything is saved\. Run it with --resume\.$"):
        carry_out(tmp_path, stop_after=2, how_to_resume="Run it with --resume.")
    with pytest.raises(StoppedError, match=r"\(SIGINT\); it is not saved\.$"):
        carry_out(None, stop_after=2)


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(step: Any, _: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), ADAPTER)
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    with pytest.raises(KeyboardInterrupt):
        train(model, make_examples(), SETTINGS, objective=chat_loss, on_step=twice)
    assert signal.getsignal(signal.SIGINT) == before


def test_resuming_in_an_empty_folder_begins(tmp_path):
    whole, weights = carry_out(None)
    record, again = carry_out(tmp_path, resume=True)
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0


def test_early_stopping_goes_on_with_the_best_weights_it_had(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, early_stopping="heldout_loss", heldout_evaluations=4, save_every=None
    )
    whole, weights = carry_out(None, settings=settings)
    with pytest.raises(StoppedError):
        carry_out(tmp_path, settings=settings, stop_after=4)
    checkpoint = newest_checkpoint(tmp_path, fingerprints={})
    assert checkpoint is not None
    assert checkpoint.progress["best"]["step"] > 0
    assert set(checkpoint.tensors["best"]) == set(weights)
    record, _ = carry_out(tmp_path, settings=settings, resume=True)
    assert losses(record) == losses(whole)


# ---- the folder ----


def test_checkpoints_come_every_so_many_steps_and_the_newest_are_kept(tmp_path):
    settings = dataclasses.replace(SETTINGS, save_every=2, keep_last=2)
    record, _ = carry_out(tmp_path, settings=settings)
    last = len(record.steps) // 2 * 2
    names = [f"step-{step:06d}" for step in (last - 2, last)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(path.name for path in (tmp_path / names[0]).iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "progress.json",
        "random.safetensors",
        "weights.safetensors",
    ]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 2 and 3."""
    with pytest.raises(StoppedError):
        carry_out(tmp_path / "kept", stop_after=3, fingerprints={"data": "a"})
    return tmp_path / "kept"


FILES = (
    "manifest.json", "optimizer.safetensors", "progress.json", "random.safetensors",
    "weights.safetensors",
)  # fmt: skip


def damage(path: Path, how: str) -> None:
    whole = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "one bit flipped"])
@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_file_is_found_named_and_gone_round(name, how, kept):
    damage(kept / "step-000003" / name, how)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(kept / "step-000003")
    assert name in str(caught.value)
    told: list[str] = []
    checkpoint = newest_checkpoint(kept, fingerprints={"data": "a"}, note=told.append)
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert [name in line and "Going back to the checkpoint before it" in line for line in told] == [
        True
    ]


def test_a_bit_flipped_anywhere_in_a_manifest_is_found(kept):
    path = kept / "step-000003" / MANIFEST
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 17):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        try:
            checkpoint, prints = load_checkpoint(kept / "step-000003")
        except CheckpointError:
            found += 1
        else:  # a blank that became another blank changes nothing that is said
            assert (checkpoint.step, prints) == (3, {"data": "a"})
    assert found > 0.8 * len(range(0, len(whole), 17))


def test_with_every_checkpoint_damaged_the_run_is_refused_and_nothing_begins_silently(kept):
    for path in kept.iterdir():
        damage(path / "weights.safetensors", "cut off")
    with pytest.raises(CheckpointError, match=r"^No checkpoint in .* is whole: step-000003 is dam"):
        newest_checkpoint(kept, fingerprints={"data": "a"})


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_is_removed(kept):
    shutil.copytree(kept / "step-000003", kept / ".writing-abc")
    checkpoint = newest_checkpoint(kept, fingerprints={"data": "a"})
    assert checkpoint is not None
    assert checkpoint.step == 3
    save_checkpoint(kept, dataclasses.replace(checkpoint, step=4), fingerprints={"data": "a"})
    assert sorted(path.name for path in kept.iterdir()) == ["step-000003", "step-000004"]


def test_another_run_is_refused_with_every_difference_named(kept):
    now = {"data": "b", "train.learning_rate": "0.1"}
    with pytest.raises(CheckpointError) as caught:
        newest_checkpoint(kept, fingerprints=now)
    assert str(caught.value) == (
        "This is not the run that was begun: data was a and is b; train.learning_rate was not "
        "there and is 0.1. Put it back, start in another folder, or name what may differ in "
        "allow_changes."
    )
    allowed = newest_checkpoint(kept, fingerprints=now, allow_changes=list(now))
    assert allowed is not None


def test_a_disk_that_takes_no_more_is_told_and_the_earlier_checkpoint_stays_whole(kept):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told: list[str] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk: no more bytes
    try:
        record, _ = carry_out(
            kept, resume=True, fingerprints={"data": "a"}, told=told,
            settings=dataclasses.replace(SETTINGS, max_steps=4),
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(record.steps) == 4  # training went on
    assert "could not be written" in told[-1]
    assert "File too large" in told[-1]
    assert sorted(path.name for path in kept.iterdir()) == ["step-000002", "step-000003"]
    assert load_checkpoint(kept / "step-000003")[0].step == 3


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path):
    tensors = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros((), dtype=torch.int64)},
        "random": {"cpu": torch.get_rng_state()},
    }
    checkpoint = Checkpoint(step=7, tensors=tensors, progress={"x": [1, 2.5, None]})
    path = save_checkpoint(tmp_path, checkpoint, fingerprints={"seed": "0"})
    again, prints = load_checkpoint(path)
    assert (again.step, again.progress, prints) == (7, {"x": [1, 2.5, None]}, {"seed": "0"})
    for group, held in tensors.items():
        assert sorted(again.tensors[group]) == sorted(held)
        for name, tensor in held.items():
            assert torch.equal(again.tensors[group][name], tensor)
    assert json.loads((path / MANIFEST).read_text())["step"] == 7


def test_the_checkpoint_just_written_is_never_pruned(kept):
    checkpoint, prints = load_checkpoint(kept / "step-000002")
    path = save_checkpoint(kept, checkpoint, fingerprints=prints, keep_last=1)
    assert [entry.name for entry in kept.iterdir()] == [path.name] == ["step-000002"]
    assert load_checkpoint(path)[0].step == 2


def test_a_new_run_does_not_begin_among_another_runs_checkpoints(kept):
    with pytest.raises(
        CheckpointError, match=r"already holds checkpoints of a run\. Resume it, or"
    ):
        carry_out(kept, fingerprints={"data": "a"})
    assert sorted(path.name for path in kept.iterdir()) == ["step-000002", "step-000003"]


def test_a_stop_in_the_last_step_is_a_stop(tmp_path):
    whole, _ = carry_out(None)
    last = len(whole.steps)
    with pytest.raises(StoppedError, match=rf"^Stopped after step {last} of {last}"):
        carry_out(tmp_path, stop_after=last)
    record, _ = carry_out(tmp_path, resume=True)
    assert losses(record) == losses(whole)


def test_a_stop_that_could_not_be_saved_does_not_say_it_was(kept):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(
            StoppedError, match=r"^Stopped after step 4 of .*it is not saved, step 3 is\."
        ):
            carry_out(kept, resume=True, fingerprints={"data": "a"}, stop_after=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(kept / "step-000003")[0].step == 3
