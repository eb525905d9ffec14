"""Ways of holding a model, compared: costs with intervals, agreement, rounding, and the figures."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from sftkit.errors import SettingsError, SftkitError
from sftkit.holdings import (
    Holding,
    agreement_of,
    cost_of,
    rounding_errors,
    try_holding,
)
from sftkit.model import load_model
from sftkit.panels import alt_text
from sftkit.plots_holdings import plot_holdings, plot_levels
from sftkit.run import find_recipe
from sftkit.settings import ModelSettings

EXACT = Holding(
    weight_bytes=500_000_000,
    peak_bytes=2_000_000_000,
    load_s=1.0,
    step_s=2.0,
    lengths=((4, 2),),
    losses=((30.0, 10), (10.0, 10), (60.0, 20)),
    next_tokens=(1, 2, 3, 4),
    answers=("a", "b"),
)
ROUGH = dataclasses.replace(
    EXACT,
    weight_bytes=100_000_000,
    losses=((31.0, 10), (11.0, 10), (62.0, 20)),
    next_tokens=(1, 2, 3, 5),
    answers=("a", "c"),
)


def test_the_cost_is_the_change_of_loss_per_token_passage_by_passage():
    cost = cost_of(ROUGH, EXACT)
    assert (cost.before, cost.after, cost.tokens) == (2.5, 2.6, 40)
    assert math.isclose(cost.delta, 0.1)
    assert all(math.isclose(end, 0.1) for end in cost.ci95)  # every passage lost the same


def test_agreement_counts_equal_tokens_and_equal_answers():
    assert agreement_of(ROUGH, EXACT) == (0.75, 0.5)
    assert agreement_of(EXACT, EXACT) == (1.0, 1.0)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_rounding_errors_are_those_of_the_quantized_layers(folder, quantization):
    held = ModelSettings(name=str(folder), device="cpu", dtype="float32")
    exact = load_model(held)
    quantized = load_model(dataclasses.replace(held, quantization=quantization))
    errors = rounding_errors(quantized, exact)
    assert len(errors) == 14  # seven linear layers in each of two blocks; the head is left alone
    name = "model.layers.1.mlp.up_proj"
    original = load_file(folder / "model.safetensors")[f"{name}.weight"]
    ids = torch.eye(64).unsqueeze(0)
    with torch.no_grad():  # what the layer computes with, column by column
        used = quantized.get_submodule(name)(ids)[0].T
    error = float((used - original).norm() / original.norm())
    assert errors[name] == pytest.approx(error, rel=0.25 if quantization == "int8" else 1e-5)
    low, high = (0.001, 0.02) if quantization == "int8" else (0.02, 0.15)
    assert low < min(errors.values())
    assert max(errors.values()) < high


def test_the_figure_says_size_cost_and_agreement():
    said = alt_text(plot_holdings({"fp32": EXACT, "nf4": ROUGH}, reference="fp32"))
    assert said == (
        "nf4 takes 100 of 500 MB, for +0.10 nats per token. nf4: weights 100 MB, loss +0.100 "
        "(95 % interval +0.100 to +0.100), 75.0 % of next tokens and 50 % of answers as fp32."
    )


def test_a_figure_without_its_reference_is_refused():
    with pytest.raises(SettingsError, match="compares others with 'fp32', got nf4"):
        plot_holdings({"nf4": ROUGH}, reference="fp32")


def test_the_figure_of_levels_counts_what_lies_in_the_middle():
    said = alt_text(plot_levels([-1.0, -0.2, 0.1, 0.4], [-1.0, 0.0, 0.3, 1.0]))
    assert said == (
        "2 of 4 levels lie between \N{MINUS SIGN}0.5 and 0.5, as 75 % of the weights do. Levels: "
        "-1.00, 0.00, 0.30, 1.00."
    )


def test_a_process_that_fails_says_its_last_words(tmp_path):
    recipe = find_recipe("cpu", overrides=[f"model.name={tmp_path}"])
    with pytest.raises(SftkitError, match=r"^cpu: the process ended with .* is not a model folder"):
        try_holding(recipe)


@pytest.mark.model
def test_a_holding_is_tried_in_a_process_of_its_own(folder):
    changes = [
        f"model.name={folder}", "model.dtype=float32", "model.quantization=none",
        "model.device=cpu", "data.max_tokens=400", "train.max_tokens_per_batch=800",
        "train.max_steps=2", "evaluate.drift_passages=3", "evaluate.passage_tokens=16",
    ]  # fmt: skip
    found = try_holding(find_recipe("cpu", overrides=changes))
    assert found.weight_bytes == load_model(
        ModelSettings(name=str(folder), device="cpu", dtype="float32")
    ).get_memory_footprint()  # fmt: skip
    assert [tokens for _, tokens in found.losses] == [15, 15, 15]
    assert len(found.next_tokens) == 45
    assert len(found.answers) == 16
    assert 0.2e9 < found.peak_bytes < 2e9
