"""Short trainings from one start, and the figures of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sftkit.chat import encode_chat
from sftkit.errors import AdapterError, MemoryRanOutError
from sftkit.objectives import chat_loss
from sftkit.settings import AdapterSettings, TrainSettings
from sftkit.sweep import compare_runs, sweep_rates, try_settings
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
LORA = AdapterSettings(r=4, lora_alpha=8)
TRAINING = TrainSettings(
    learning_rate=2e-2, max_tokens_per_batch=400, epochs=6, schedule="constant",
    heldout_evaluations=3,
)  # fmt: skip


def rows(answer: str) -> list[Any]:
    """Make four conversations with one answer, each a group of its own."""
    made = []
    for number in range(4):
        turns = [
            {"role": "user", "content": f"Is {number} a lamp?"},
            {"role": "assistant", "content": answer},
        ]
        encoded = encode_chat(turns, TOKENIZER, max_tokens=200, row=number)
        made.append(dataclasses.replace(encoded, group=f"fact {number}"))
    return made


def base() -> Any:
    return make_model(vocab_size=len(TOKENIZER))


def test_every_training_starts_from_the_same_base_and_leaves_it_as_it_was():
    model = base()
    notes: list[str] = []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trials = {
        "one": (LORA, TRAINING),
        "dropout": (dataclasses.replace(LORA, lora_dropout=0.3), TRAINING),
        "again": (LORA, TRAINING),
    }
    results = try_settings(model, trials, rows("AAAA"), rows("AAAB"), note=notes.append)
    assert _timeless(results["one"]) == _timeless(results["again"])
    assert _timeless(results["one"]) != _timeless(results["dropout"])
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [note.split(":")[0] for note in notes] == list(trials)


def _timeless(run: Any) -> Any:
    return [(step.loss, step.heldout_loss) for step in run.steps], run.kept


def test_what_is_measured_belongs_to_the_weights_that_were_kept():
    model = base()
    stopping = dataclasses.replace(
        TRAINING, heldout_evaluations=6, early_stopping="heldout_loss", early_stopping_patience=2
    )
    # What is held out contradicts what is trained: some of it helps, and then all of it harms.
    runs = try_settings(
        model, {"whole": (LORA, TRAINING), "stopped": (LORA, stopping)},
        rows("AAAA"), rows("AABB"), note=lambda _: None,
    )  # fmt: skip
    stopped, whole = runs["stopped"], runs["whole"]
    assert stopped.record is not None
    assert whole.record is not None
    by_step = {step.step: step.heldout_loss for step in stopped.steps}
    by_step[0] = stopped.record.heldout_start
    kept = by_step[stopped.record.kept_step]
    assert stopped.heldout is not None
    assert stopped.heldout.after == pytest.approx(kept, abs=1e-12)
    assert kept == min(value for value in by_step.values() if value is not None)
    assert len(stopped.steps) < len(whole.steps)
    difference = compare_runs(whole, stopped, rows("AABB"))
    assert difference is not None
    assert difference.delta == pytest.approx(stopped.heldout.after - whole.heldout.after)  # type: ignore[union-attr]
    assert difference.delta < 0
    assert (difference.items, difference.groups) == (4, 4)


def test_a_sweep_goes_up_from_the_lowest_rate_and_a_broken_training_is_a_result():
    def broken(model: Any, batch: Any) -> Any:
        summed, weight = chat_loss(model, batch)
        return summed * (float("nan") if broken.calls > 1 else 1.0), weight  # type: ignore[attr-defined]

    sweep = sweep_rates(
        base(), (1e-1, 1e-4, 1e-2, 1e-2), rows("AAAA"), rows("AAAA"), adapter=LORA,
        settings=TRAINING, note=lambda _: None,
    )  # fmt: skip
    assert list(sweep) == [1e-4, 1e-2, 1e-1]
    assert [run.settings.learning_rate for run in sweep.values()] == [1e-4, 1e-2, 1e-1]
    losses = [run.heldout.after for run in sweep.values() if run.heldout]
    assert losses[1] < losses[0]

    seen = []

    def counted(model: Any, batch: Any) -> Any:
        seen.append(0)
        broken.calls = len(seen)  # type: ignore[attr-defined]
        return broken(model, batch)

    notes: list[str] = []
    model = base()
    results = try_settings(
        model, {"broken": (LORA, TRAINING)}, rows("AAAA"), rows("AAAA"), objective=counted,
        note=notes.append,
    )  # fmt: skip
    run = results["broken"]
    assert (len(run.steps), run.heldout, run.record, run.kept) == (1, None, None, ())
    assert run.stopped.startswith("The loss of step 2 is nan")
    assert notes == [f"broken: {run.stopped}"]
    assert compare_runs(run, run, rows("AAAA")) is None
    assert not hasattr(model, "peft_config")


def test_memory_that_runs_out_is_no_result_and_the_base_is_freed_all_the_same():
    def no_room(model: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = base()
    with pytest.raises(MemoryRanOutError):
        try_settings(
            model, {"x": (LORA, TRAINING)}, rows("AAAA"), rows("AAAA"), objective=no_room
        )  # fmt: skip
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("kind", ["pissa", "dora", "prompt", "full"])
def test_an_adapter_that_would_leave_traces_is_refused_before_anything_is_trained(kind):
    with pytest.raises(AdapterError, match=f"adapter.kind={kind} .* Use lora, rslora"):
        try_settings(
            None, {"x": (AdapterSettings(kind=kind), TRAINING)}, rows("AAAA"), rows("AAAA")
        )
