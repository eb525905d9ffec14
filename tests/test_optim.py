"""Optimizers by name: each trains, gets its own settings, and is refused where it cannot work."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
import torch

from sftkit.adapter import attach_adapter
from sftkit.dryrun import look_ahead
from sftkit.errors import TrainError
from sftkit.objectives import chat_loss
from sftkit.optim import make_optimizer, parameter_groups, rate_scales, refuse_optimizer
from sftkit.run import run
from sftkit.settings import (
    AdapterSettings,
    DataSettings,
    ModelSettings,
    OptimizerName,
    Recipe,
    TrainSettings,
)
from sftkit.train import train
from tests.test_train import WHOLE, make_examples, make_tuned

NAMES = typing.get_args(OptimizerName)
HERE = [name for name in NAMES if "paged" not in name]


@pytest.mark.parametrize("name", HERE)
def test_every_optimizer_lowers_the_loss(name):
    # Plain descent needs a larger rate than the optimizers that divide by the gradient's size.
    rate = 0.3 if name == "sgd" else 1e-2
    settings = dataclasses.replace(WHOLE, optimizer=name, learning_rate=rate, epochs=12)
    record = train(make_tuned(), make_examples(), settings, objective=chat_loss)
    assert record.steps[-1].loss < record.steps[0].loss - 0.1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", "torch.optim.adamw.AdamW"),
        ("adam", "torch.optim.adam.Adam"),
        ("sgd", "torch.optim.sgd.SGD"),
        ("adafactor", "transformers.optimization.Adafactor"),
        ("adamw-8bit", "bitsandbytes.optim.adamw.AdamW8bit"),
    ],
)
def test_a_name_stands_for_one_class(name, kind):
    made = type(make_optimizer(make_tuned(), TrainSettings(optimizer=name)))
    assert f"{made.__module__}.{made.__name__}" == kind


def test_rates_betas_momentum_and_decay_reach_the_optimizer():
    model = make_tuned()
    settings = TrainSettings(learning_rate=0.2, betas=(0.8, 0.95), weight_decay=0.1)
    for name in ("adamw", "adam", "adamw-8bit"):
        groups = make_optimizer(model, dataclasses.replace(settings, optimizer=name)).param_groups
        assert [(g["lr"], tuple(g["betas"]), g["weight_decay"]) for g in groups] == [
            (0.2, (0.8, 0.95), 0.1)
        ]
    settings = dataclasses.replace(settings, optimizer="sgd", momentum=0.7)
    assert [g["momentum"] for g in make_optimizer(model, settings).param_groups] == [0.7]


def test_weight_decay_leaves_vectors_alone():
    model = torch.nn.Linear(3, 2)
    groups = parameter_groups(model, TrainSettings(weight_decay=0.1, learning_rate=0.5))
    assert [(len(g["params"]), g["params"][0].ndim, g["weight_decay"]) for g in groups] == [
        (1, 2, 0.1),
        (1, 1, 0.0),
    ]


def test_lora_plus_trains_b_at_its_multiple_of_the_rate_through_the_whole_schedule():
    adapter = AdapterSettings(kind="lora+", lora_plus_ratio=8.0)
    assert rate_scales(adapter) == {"lora_B": 8.0, "lora_embedding_B": 8.0}
    assert rate_scales(AdapterSettings()) == {}

    def first_moves(scales: dict[str, float]) -> dict[str, float]:
        model = make_tuned()
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        settings = dataclasses.replace(WHOLE, max_steps=1, learning_rate=1e-3, warmup_fraction=0.0)
        train(model, make_examples(), settings, objective=chat_loss, rate_scales=scales)
        after = dict(model.named_parameters())
        return {n: float((after[n].detach() - before[n]).abs().max()) for n in before}

    plain, plus = first_moves({}), first_moves(rate_scales(adapter))
    for name, move in plain.items():  # Adam's first step is the rate itself, whatever the gradient
        factor = 8.0 if "lora_B" in name else 1.0
        assert plus[name] == pytest.approx(factor * move, rel=1e-3), name


@pytest.mark.parametrize(
    ("name", "device", "instead"),
    [
        ("adamw-paged", "cpu", "Use optimizer: adamw."),
        ("adamw-paged-8bit", "cpu", "Use optimizer: adamw-8bit."),
        ("adamw-paged-8bit", "mps", "Use optimizer: adamw."),
        ("adamw-8bit", "mps", "Use optimizer: adamw."),
    ],
)
def test_an_optimizer_that_cannot_work_is_refused_with_one_that_can(name, device, instead):
    with pytest.raises(TrainError) as caught:
        refuse_optimizer(name, device)
    assert f"train.optimizer={name}" in str(caught.value)
    assert f"got {device}. {instead}" in str(caught.value)


def test_on_cuda_no_optimizer_is_refused_and_elsewhere_only_those_of_bitsandbytes():
    def refused(device: str) -> set[str]:
        names = set()
        for name in NAMES:
            try:
                refuse_optimizer(name, device)
            except TrainError:
                names.add(name)
        return names

    paged = {"adamw-paged", "adamw-paged-8bit"}
    assert refused("cuda") == set()
    assert refused("cpu") == paged
    assert refused("mps") == paged | {"adamw-8bit"}


def test_a_paged_optimizer_is_refused_before_the_first_step_on_a_cpu():
    settings = dataclasses.replace(WHOLE, optimizer="adamw-paged")
    seen: list[Any] = []
    with pytest.raises(TrainError, match="needs a CUDA device, got cpu"):
        train(
            make_tuned(), make_examples(), settings, objective=chat_loss,
            on_step=lambda step, _: seen.append(step),
        )  # fmt: skip
    assert seen == []


@pytest.mark.parametrize("is_dry", [False, True])
def test_a_run_and_a_dry_run_refuse_an_optimizer_before_weights_are_read(is_dry, tmp_path):
    # The weights hold nothing that could be read.
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "num_channels": 1}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 8}}')
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    recipe = Recipe(
        name="see",
        model=ModelSettings(name=str(tmp_path), dtype="float32", device="cpu"),
        data=DataSettings(source="digits", task="image", limit=200),
        train=TrainSettings(optimizer="adamw-paged"),
    )
    with pytest.raises(TrainError, match=r"train\.optimizer=adamw-paged moves its state"):
        look_ahead(recipe) if is_dry else run(recipe, tmp_path / "out")


def test_the_groups_of_a_real_adapter_hold_every_trained_parameter_once(tiny_model):
    model = attach_adapter(tiny_model, AdapterSettings(r=4))
    groups = parameter_groups(model, TrainSettings(), rate_scales={"lora_B": 16.0})
    held = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trained)
    assert [group["rate_scale"] for group in groups] == [1.0, 16.0]


@pytest.mark.parametrize(("kind", "part"), [("ia3", "ia3_l"), ("dora", "magnitude")])
def test_weight_decay_leaves_vectors_alone_whatever_their_shape(kind, part, tiny_model):
    model = attach_adapter(tiny_model, AdapterSettings(kind=kind))
    vectors = {id(p) for name, p in model.named_parameters() if part in name}
    assert vectors
    for group in parameter_groups(model, TrainSettings(weight_decay=0.1)):
        held = {id(p) for p in group["params"]}
        assert group["weight_decay"] == 0.0 or not held & vectors
