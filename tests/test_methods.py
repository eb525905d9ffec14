"""Several methods on one task, and the figures of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sftkit.adapter_kinds import KINDS
from sftkit.chat import encode_chat
from sftkit.errors import AdapterError
from sftkit.evidence_records import Change
from sftkit.methods import Trial, try_methods
from sftkit.panels import alt_text
from sftkit.plots_adapters import plot_methods, plot_rank_and_alpha
from sftkit.settings import AdapterSettings, TrainSettings
from tests.conftest import make_model, make_tokenizer

TOKENIZER = make_tokenizer()
TRAINING = TrainSettings(max_tokens_per_batch=400, max_steps=2, epochs=2)


def load_base() -> Any:
    return make_model(vocab_size=len(TOKENIZER))


def examples() -> list[Any]:
    rows = [
        [{"role": "user", "content": f"Is {n} a lamp?"}, {"role": "assistant", "content": "AAAA"}]
        for n in range(4)
    ]
    return [encode_chat(row, TOKENIZER, max_tokens=200) for row in rows]


def test_every_method_is_measured_on_a_base_of_its_own():
    kept: dict[str, str] = {}
    notes: list[str] = []
    trials = {name: (AdapterSettings(kind=name), 1e-3) for name in ("lora", "pissa", "full")}
    trials["quicker"] = (AdapterSettings(kind="lora+", lora_plus_ratio=50.0), 1e-3)
    results = try_methods(
        trials, load_base, examples(), examples(), TRAINING, note=notes.append,
        keep=lambda name, model: kept.update({name: type(model).__name__}),
    )  # fmt: skip
    assert kept == {
        "lora": "PeftModelForCausalLM",
        "pissa": "PeftModelForCausalLM",
        "full": "LlamaForCausalLM",
        "quicker": "PeftModelForCausalLM",
    }
    assert [note.split(":")[0] for note in notes] == list(trials)
    assert {name: trial.kind for name, trial in results.items()} == {
        "lora": "lora", "pissa": "pissa", "full": "full", "quicker": "lora+"
    }  # fmt: skip
    assert len({trial.heldout.before for trial in results.values()}) == 1  # the same base
    assert all(trial.heldout.delta < 0 for trial in results.values())
    assert results["quicker"].heldout.delta < results["lora"].heldout.delta  # B learned faster
    for name, trial in results.items():
        allowed = KINDS[trial.kind].fresh_change
        assert allowed is not None
        assert trial.fresh_change <= allowed, name
    off = {name: trial.off_change for name, trial in results.items()}
    assert (off["lora"], off["quicker"], off["full"]) == (0.0, 0.0, None)
    assert off["pissa"] is not None
    assert off["pissa"] > 0.01


def test_a_method_that_cannot_be_tried_is_refused():
    with pytest.raises(AdapterError, match=r"There is no adapter\.kind 'qlora'"):
        try_methods(
            {"qlora": (AdapterSettings(kind="qlora"), 1e-3)}, load_base, examples(), examples(),
            TRAINING,
        )  # fmt: skip


def made_up(delta: float, ci95: tuple[float, float], share: float) -> Trial:
    change = Change(before=4.0, after=4.0 + delta, delta=delta, ci95=ci95, items=8, groups=4)
    return Trial(
        kind="lora", learning_rate=1e-3, trainable=int(1e6 * share), share=share, heldout=change,
        train_s=1.0, attach_s=0.0, extra_bytes=0, fresh_change=0.0, off_change=0.0,
    )  # fmt: skip


def test_the_figure_of_methods_says_who_gained_most_and_who_trained_least():
    figure = plot_methods(
        {
            "lora": made_up(-1.5, (-2.0, -1.0), 0.02),
            "full": made_up(-1.9, (-2.4, -1.4), 1.0),
            "prompt": made_up(0.1, (-0.1, 0.3), 0.0001),
        }
    )
    title = (
        "full lowered the loss most (−1.90 nats per token); prompt trained least (0.01 % of all "
        "parameters)"
    )
    assert alt_text(figure).startswith(title)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prompt", "lora", "full"]
    zero = [line for line in axes.lines if list(np.asarray(line.get_xdata())) == [0, 0]]
    assert len(zero) == 1


def test_the_figure_of_rank_and_alpha_names_what_was_enough_and_what_was_fastest():
    figure = plot_rank_and_alpha(
        {1: [1.0, 0.8, 0.7], 2: [1.0, 0.3, 0.01], 4: [1.0, 0.2, 0.0]},
        {1: [1.0, 0.9, 0.5], 8: [1.0, 0.2, 0.1]},
        true_rank=2,
    )
    assert alt_text(figure).startswith(
        "Rank sets how much can be learned (enough here: 2); alpha sets how fast (fastest here: 8)"
    )
