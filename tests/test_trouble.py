"""Memory that runs out makes smaller micro-batches, not another run; jumps of the loss are told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sftkit.errors import MemoryRanOutError, TrainError
from sftkit.objectives import chat_loss
from sftkit.records import Step, TrainRecord
from sftkit.settings import TrainSettings
from sftkit.train import train
from sftkit.trouble import is_out_of_memory, memory_in_words, spike_in
from tests.test_train import make_examples, make_tuned

SETTINGS = TrainSettings(max_tokens_per_batch=1000, epochs=3, learning_rate=1e-2)


def train_with_room_for(
    rows: int, *, room_when_twice: int | None = None, **changes: Any
) -> tuple[TrainRecord, list[int]]:
    """Train on a machine whose memory takes so many rows at a time; give the sizes it took."""
    model = make_tuned()
    took: list[int] = []

    def objective(tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        size = batch["input_ids"].shape[0]
        room = room_when_twice if model.is_gradient_checkpointing else rows
        if size > (room if room is not None else rows):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        took.append(size)
        return chat_loss(tuned, batch)

    settings = dataclasses.replace(SETTINGS, **changes)
    return train(model, make_examples(), settings, objective=objective), took


def losses(record: TrainRecord) -> list[float]:
    return [step.loss for step in record.steps]


def test_the_micro_batch_halves_until_it_fits_and_the_losses_stay_the_same():
    whole, took_whole = train_with_room_for(100)
    halved, took = train_with_room_for(2)
    assert max(took_whole) == len(make_examples())
    assert max(took) <= 2
    assert losses(halved) == pytest.approx(losses(whole), abs=1e-6)
    assert whole.events == ()
    assert halved.events[0] == (
        "memory ran out in step 1: 2 micro-batches from here on, each half as large; batch and "
        "loss stay the same (train.micro_batches)"
    )
    assert len(halved.events) == len({*halved.events})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_after_single_examples_activations_are_computed_twice():
    whole, _ = train_with_room_for(100)
    eased, took = train_with_room_for(0, room_when_twice=1)
    assert {*took} == {1}
    assert eased.events[-1].endswith("which is slower (train.activation_checkpointing)")
    assert losses(eased) == pytest.approx(losses(whole), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_what_does_not_fit_however_it_is_cut_is_told_with_its_longest_row():
    longest = max(make_examples(), key=lambda example: example.length)
    with pytest.raises(MemoryRanOutError) as caught:
        train_with_room_for(0, room_when_twice=0)
    assert f"{longest.length} tokens (row {longest.row})" in str(caught.value)
    assert "activations computed twice" in str(caught.value)


def test_an_error_that_is_no_lack_of_memory_is_not_taken_for_one():
    def broken(*_: Any) -> tuple[torch.Tensor, float]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(make_tuned(), make_examples(), SETTINGS, objective=broken)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("expected scalar type Float"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_known_by_its_words(error, expected):
    assert is_out_of_memory(error) is expected


def test_torch_itself_says_it_in_these_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_memory_that_runs_out_elsewhere_is_told_in_words_and_other_errors_pass():
    with (
        pytest.raises(MemoryRanOutError, match=r"^Memory ran out while measuring: .*bad_alloc"),
        memory_in_words("measuring"),
    ):
        raise RuntimeError("std::bad_alloc")
    with pytest.raises(RuntimeError, match="shapes"), memory_in_words("measuring"):
        raise RuntimeError("shapes")


def test_memory_that_runs_out_for_the_optimizers_state_is_told_in_words():
    def no_room(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    handle = register_optimizer_step_pre_hook(no_room)
    try:
        with pytest.raises(MemoryRanOutError, match="while updating the weights"):
            train(make_tuned(), make_examples(), SETTINGS, objective=chat_loss)
    finally:
        handle.remove()


def steps_of(*values: float) -> list[Step]:
    return [
        Step(step=n, loss=v, learning_rate=0.1, grad_norm=1.0, tokens=n, seconds=float(n))
        for n, v in enumerate(values, start=1)
    ]


def test_a_jump_of_the_loss_is_told_with_the_rows_of_its_batch():
    usual = steps_of(*(2.0 + 0.01 * (n % 3) for n in range(20)))
    batch = make_examples()[:2]
    rows = sorted(example.row for example in batch)
    assert spike_in(usual, 4.0, batch) == (
        "the loss of step 21 jumped to 4.000; the median of the 20 steps before is 2.010. "
        f"Rows of the batch: {rows}"
    )
    assert spike_in(usual, 2.1, batch) is None  # far in deviations, yet not worth a word
    assert spike_in(usual[:9], 40.0, batch) is None  # too few steps say what is usual


def test_a_falling_loss_is_no_jump():
    falling = steps_of(*(4.0 / n for n in range(1, 40)))
    assert spike_in(falling, 4.0 / 40, make_examples()) is None


def test_a_jump_in_training_is_an_event_of_the_record():
    model, calls = make_tuned(), iter(range(10_000))

    def objective(tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        summed, weight = chat_loss(tuned, batch)
        return summed * (10 if next(calls) == 15 else 1), weight

    settings = dataclasses.replace(SETTINGS, epochs=20, learning_rate=1e-4)
    record = train(model, make_examples(), settings, objective=objective)
    (event,) = record.events
    assert event.startswith(f"the loss of step 16 jumped to {record.steps[15].loss:.3f}; the med")


def test_a_loss_that_is_no_number_still_stops_with_its_rows():
    def broken(tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        summed, weight = chat_loss(tuned, batch)
        return summed * float("nan"), weight

    with pytest.raises(TrainError, match=r"The loss of step 1 is nan.* Rows of the batch: \[0, 1"):
        train(make_tuned(), make_examples(), SETTINGS, objective=broken)
