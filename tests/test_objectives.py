"""Losses: each against torch's own or a worked number, and the same however a step is divided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from sftkit import forward
from sftkit.adapter import attach_adapter
from sftkit.errors import SettingsError
from sftkit.labelled import LabelledImage, LabelledText, collate_images, collate_texts
from sftkit.objectives import chat_loss, focal_losses, make_objective
from sftkit.records import IGNORE, Encoded
from sftkit.settings import AdapterSettings, ObjectiveSettings, TrainSettings
from sftkit.train import train
from tests.conftest import make_model

CPU = torch.device("cpu")
TARGETS = (0, 2, 1, 1, 2, 0, 0, 2)
WEIGHTS = (1.0, 2.5, 0.5, 1.0, 3.0, 1.0, 0.25, 1.0)


def make_encoder(labels: int = 3) -> Any:
    import transformers

    torch.manual_seed(0)
    tf: Any = transformers
    config = tf.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,  # dropout draws anew in every micro-batch
        attention_probs_dropout_prob=0.0,
        num_labels=labels,
    )
    return tf.BertForSequenceClassification(config).requires_grad_(False).eval()


def make_resnet() -> Any:
    import transformers

    torch.manual_seed(0)
    tf: Any = transformers
    config = tf.ResNetConfig(
        num_channels=1,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
    )
    return tf.ResNetForImageClassification(config).requires_grad_(False).eval()


def texts(targets: tuple[float, ...] = TARGETS) -> list[LabelledText]:
    return [
        LabelledText(
            input_ids=tuple(range(5 + row, 9 + 2 * row)), target=target, row=row, weight=weight
        )
        for row, (target, weight) in enumerate(zip(targets, WEIGHTS, strict=True))
    ]


def images() -> list[LabelledImage]:
    torch.manual_seed(3)
    return [
        LabelledImage(pixels=torch.randn(1, 16, 16).numpy(), target=target, row=row, weight=weight)
        for row, (target, weight) in enumerate(zip(TARGETS, WEIGHTS, strict=True))
    ]


def by_torch(model: Any, examples: list[LabelledText], loss: Any) -> torch.Tensor:
    """Compute one loss per example, text by text, without any padding."""
    rows = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits
        rows.append(loss(logits, torch.tensor([float(example.target)])))
    return torch.cat(rows)


def summed(task: Any, model: Any, examples: list[Any], **settings: Any) -> tuple[float, float]:
    collate = collate_images if task == "image" else collate_texts
    batch = collate(examples, pad_id=0, device=CPU)
    with torch.no_grad():
        total, weight = make_objective(task, ObjectiveSettings(**settings))(model, batch)
    return float(total), weight


# ---- chat ----


def conversations() -> list[Encoded]:
    return [
        Encoded(
            input_ids=tuple(range(10, 16 + row)),
            labels=(IGNORE, IGNORE, *range(12, 16 + row)),
            row=row,
            group="",
        )
        for row in range(4)
    ]


def test_without_smoothing_the_chat_loss_is_bit_for_bit_the_one_of_before(tiny_model):
    batch = forward.collate(conversations(), pad_id=256, device=CPU)
    plain, count = chat_loss(tiny_model, batch)
    smooth, same = make_objective("chat", ObjectiveSettings())(tiny_model, batch)
    assert torch.equal(plain, smooth)
    assert count == same == 4 + 5 + 6 + 7


def test_a_smoothed_chat_loss_is_torchs_own(tiny_model):
    examples = conversations()
    batch = forward.collate(examples, pad_id=256, device=CPU)
    total, _ = make_objective("chat", ObjectiveSettings(label_smoothing=0.2))(tiny_model, batch)
    expected = 0.0
    for example in examples:
        logits = tiny_model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        expected += functional.cross_entropy(
            logits,
            torch.tensor(example.labels[1:]),
            ignore_index=IGNORE,
            label_smoothing=0.2,
            reduction="sum",
        ).item()
    assert float(total) == pytest.approx(expected, rel=1e-5)


# ---- classes ----


def test_classification_is_torchs_cross_entropy_with_weights():
    model, examples = make_encoder(), texts()
    each = by_torch(model, examples, lambda x, y: functional.cross_entropy(x, y.long()).view(1))
    total, weight = summed("classify", model, examples)
    assert weight == sum(WEIGHTS)
    assert total == pytest.approx(float((each * torch.tensor(WEIGHTS)).sum()), rel=1e-5)


def test_weights_of_classes_are_those_of_torch_when_every_example_has_its_classes_weight():
    model = make_encoder()
    of_class = torch.tensor([0.5, 2.0, 1.25])
    examples = [
        LabelledText(
            input_ids=e.input_ids, target=e.target, row=e.row, weight=float(of_class[int(e.target)])
        )
        for e in texts()
    ]
    total, weight = summed("classify", model, examples)
    batch = collate_texts(examples, pad_id=0, device=CPU)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = functional.cross_entropy(logits, torch.tensor(TARGETS), weight=of_class)
    assert total / weight == pytest.approx(float(expected), rel=1e-5)


def test_smoothed_classes_are_torchs():
    model, examples = make_encoder(), texts()
    each = by_torch(
        model,
        examples,
        lambda x, y: functional.cross_entropy(x, y.long(), label_smoothing=0.1).view(1),
    )
    total, _ = summed("classify", model, examples, label_smoothing=0.1)
    assert total == pytest.approx(float((each * torch.tensor(WEIGHTS)).sum()), rel=1e-5)


def test_the_focal_loss_of_a_worked_example():
    # Right class at probability 0.9 and 0.5: (1 - p)^2 · -ln p.
    logits = torch.tensor([[math.log(0.9), math.log(0.1)], [0.0, 0.0]])
    losses = focal_losses(logits, torch.tensor([0, 1]), gamma=2.0)
    expected = [0.1**2 * -math.log(0.9), 0.5**2 * -math.log(0.5)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy():
    examples = texts()
    plain = summed("classify", make_encoder(), examples)
    assert summed("classify", make_encoder(), examples, loss="focal", focal_gamma=0.0) == plain
    assert summed("classify", make_encoder(), examples, loss="focal", focal_gamma=1.0)[0] < plain[0]


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_a_finite_slope_where_the_model_is_sure(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    focal_losses(logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0].tolist() == [0.0, 0.0]  # right and sure: nothing to learn
    assert logits.grad[1].tolist() == [-1.0, 1.0]  # wrong and sure: all of cross-entropy


# ---- numbers ----


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, functional.mse_loss),
        ({"loss": "mse"}, functional.mse_loss),
        (
            {"loss": "huber", "huber_delta": 0.3},
            lambda x, y: functional.huber_loss(x, y, delta=0.3),
        ),
    ],
)
def test_regression_is_torchs_own_loss(settings, expected):
    model = make_encoder(labels=1)
    examples = texts((-1.5, 0.25, 0.0, 2.0, -0.5, 1.0, 0.75, -2.0))
    each = by_torch(model, examples, lambda x, y: expected(x[:, 0], y).view(1))
    total, weight = summed("regress", model, examples, **settings)
    assert weight == sum(WEIGHTS)
    assert total == pytest.approx(float((each * torch.tensor(WEIGHTS)).sum()), rel=1e-5)


# ---- images ----


def test_images_are_classified_by_the_same_cross_entropy():
    model, examples = make_resnet(), images()
    batch = collate_images(examples, device=CPU)
    logits = model(pixel_values=batch["pixel_values"]).logits
    each = functional.cross_entropy(logits, torch.tensor(TARGETS), reduction="none")
    total, weight = summed("image", model, examples)
    assert weight == sum(WEIGHTS)
    assert total == pytest.approx(float((each * torch.tensor(WEIGHTS)).sum()), rel=1e-5)


# ---- one step, however it is divided ----

CASES = [
    ("chat", {}),
    ("chat", {"label_smoothing": 0.1}),
    ("classify", {}),
    ("classify", {"label_smoothing": 0.1}),
    ("classify", {"loss": "focal"}),
    ("regress", {}),
    ("regress", {"loss": "huber", "huber_delta": 0.5}),
    ("image", {}),
    ("image", {"loss": "focal"}),
]


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_one_micro_batch_of_eight_is_eight_of_one(task, settings):
    def trained(micro_batches: int) -> tuple[list[float], torch.Tensor]:
        made: dict[str, Any] = {
            "chat": lambda: (
                make_model(vocab_size=258),
                conversations() * 2,
                forward.collate,
                "CAUSAL_LM",
            ),
            "classify": lambda: (make_encoder(), texts(), collate_texts, "SEQ_CLS"),
            "regress": lambda: (make_encoder(labels=1), texts(), collate_texts, "SEQ_CLS"),
            "image": lambda: (make_resnet(), images(), collate_images, None),
        }
        model, examples, collate, kind = made[task]()
        target = "convolution" if task == "image" else "all-linear"
        tuned = attach_adapter(model, AdapterSettings(r=2, target_modules=target), task_type=kind)
        steps = TrainSettings(
            micro_batches=micro_batches, epochs=3, max_tokens_per_batch=640, learning_rate=1e-2
        )
        record = train(
            tuned,
            examples,
            steps,
            objective=make_objective(task, ObjectiveSettings(**settings)),
            collate=collate,
        )
        weights = [p.detach().flatten() for p in tuned.parameters() if p.requires_grad]
        return [step.loss for step in record.steps], torch.cat(weights)

    whole, first = trained(1)
    parts, second = trained(8)
    assert len(whole) == 3
    assert parts == pytest.approx(whole, rel=1e-4)
    assert torch.allclose(first, second, atol=2e-4)


@pytest.mark.parametrize("task", ["classify", "regress", "image"])
def test_an_example_of_weight_zero_teaches_nothing(task):
    model = {"image": make_resnet, "classify": make_encoder}.get(task, lambda: make_encoder(1))()
    examples: list[Any] = images() if task == "image" else list(texts())
    silent = [*examples[:4], *(example.silenced() for example in examples[4:])]
    total, weight = summed(task, model, silent)
    alone, same = summed(task, model, examples[:4])
    assert total == pytest.approx(alone, rel=1e-5)
    assert weight == same


def test_a_fresh_adapter_around_the_model_changes_no_loss():
    examples = texts()
    plain = summed("classify", make_encoder(), examples)
    wrapped = attach_adapter(make_encoder(), AdapterSettings(r=2), task_type="SEQ_CLS")
    assert summed("classify", wrapped, examples) == plain


def test_a_loss_that_does_not_fit_its_task_is_refused_with_those_that_do():
    with pytest.raises(SettingsError) as caught:
        make_objective("regress", ObjectiveSettings(loss="focal"))
    assert str(caught.value) == (
        "objective.loss=focal does not fit data.task=regress. Use auto, or one of mse, huber."
    )
