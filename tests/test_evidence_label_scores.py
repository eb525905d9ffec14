"""What a model with a head says of examples: in their order, in the data's units, measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from sftkit.evidence.label_scores import make_label_measure, score_labels, true_values
from sftkit.labelled import LabelledText, Targets, collate_texts
from sftkit.objectives import make_objective, outputs_of
from sftkit.settings import ObjectiveSettings
from tests.test_objectives import CPU, images, make_encoder, make_resnet, texts

CLASSES = Targets(labels=("a", "b", "c"))


def one_by_one(model, examples):
    with torch.no_grad():
        each = [outputs_of(model, collate_texts([e], pad_id=0, device=CPU)) for e in examples]
    return torch.cat(each)


def test_probabilities_come_in_the_order_of_the_examples_whatever_their_length():
    model, examples = make_encoder(), list(reversed(texts()))
    expected = functional.softmax(one_by_one(model, examples), dim=-1)
    scores = score_labels(model, examples, CLASSES)
    assert scores.shape == (8, 3)
    assert np.allclose(scores, expected, atol=1e-6)
    assert np.allclose(scores.sum(axis=1), 1.0)


def test_numbers_come_in_the_units_of_the_data():
    model, examples = make_encoder(labels=1), texts()
    scores = score_labels(model, examples, Targets(mean=100.0, spread=20.0))
    assert np.allclose(scores, 100 + 20 * one_by_one(model, examples)[:, 0].numpy(), atol=1e-4)
    true = true_values(
        [LabelledText(input_ids=(1,), target=-1.5, row=0)], Targets(mean=100.0, spread=20.0)
    )
    assert true.tolist() == [70.0]


def test_images_are_scored_too_and_the_model_stays_in_its_mode():
    model = make_resnet().train()
    scores = score_labels(model, images(), CLASSES)
    assert scores.shape == (8, 3)
    assert model.training
    assert true_values(images(), CLASSES).tolist() == [0, 2, 1, 1, 2, 0, 0, 2]


def test_the_measure_of_a_classifier_holds_its_loss_and_every_metric():
    model = make_encoder()
    examples = [LabelledText(input_ids=e.input_ids, target=e.target, row=e.row) for e in texts()]
    objective = make_objective("classify", ObjectiveSettings())
    measure = make_label_measure(model, examples, CLASSES, objective, "classify")
    assert measure is not None
    found = measure()
    logits = one_by_one(model, examples)
    wanted = torch.tensor([int(e.target) for e in examples])
    assert found["heldout_loss"] == pytest.approx(
        float(functional.cross_entropy(logits, wanted)), rel=1e-5
    )
    assert found["accuracy"] == float((logits.argmax(-1) == wanted).float().mean())
    assert list(found) == ["heldout_loss", "accuracy", "macro_f1", "mcc", "auroc", "auprc"]


def test_a_metric_that_is_not_defined_is_left_out():
    objective = make_objective("classify", ObjectiveSettings())
    of_one_class = [e for e in texts() if e.target == 2]
    measure = make_label_measure(make_encoder(), of_one_class, CLASSES, objective, "classify")
    assert measure is not None
    assert set(measure()) == {"heldout_loss", "accuracy", "macro_f1", "mcc"}


def test_without_validation_examples_nothing_is_measured():
    objective = make_objective("classify", ObjectiveSettings())
    assert make_label_measure(make_encoder(), [], CLASSES, objective, "classify") is None
