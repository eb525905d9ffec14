"""Every field of every settings class, changed: what it governs is no longer the same.

One table per class: field -> (what both sides have, the one value, the other). A field that is in
no table fails the first test. `DataSettings` has its walk in test_run.py, over a whole division.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit import model as loading
from sftkit.adapter import attach_adapter, weaken_adapter
from sftkit.errors import SftkitError
from sftkit.evidence.generation import write_answers
from sftkit.objectives import chat_loss, make_objective
from sftkit.optim import rate_scales
from sftkit.progress import make_watcher
from sftkit.recipe import recipe_from_dict
from sftkit.run import run
from sftkit.settings import (
    AdapterSettings,
    DataSettings,
    EvaluateSettings,
    ModelSettings,
    ObjectiveSettings,
    TrainSettings,
)
from sftkit.train import train
from sftkit.train_state import Keeping
from tests.conftest import make_model
from tests.test_run import DATA_FIELDS
from tests.test_train import TOKENIZER, make_examples, weights_of

Walk = dict[str, tuple[dict[str, Any], Any, Any]]
SAME: dict[str, Any] = {}
FIRST = {"heldout_evaluations": 6, "early_stopping": "heldout_loss"}

TRAIN: Walk = {
    "optimizer": (SAME, "adamw", "adafactor"),
    "learning_rate": (SAME, 1e-2, 1e-3),
    "momentum": ({"optimizer": "sgd"}, 0.9, 0.1),
    "betas": (SAME, (0.9, 0.999), (0.5, 0.9)),
    "epochs": (SAME, 6, 3),
    "max_steps": (SAME, None, 2),
    "max_tokens_per_batch": (SAME, 1000, 200),
    "examples_per_batch": (SAME, None, 3),
    "micro_batches": (SAME, 1, 2),
    "activation_checkpointing": (SAME, False, True),
    "schedule": (SAME, "cosine", "constant"),
    "warmup_fraction": (SAME, 0.0, 0.5),
    "weight_decay": (SAME, 0.0, 0.5),
    "max_grad_norm": ({"optimizer": "sgd"}, 1.0, 0.01),
    "neftune_alpha": (SAME, 0.0, 5.0),
    "heldout_evaluations": (SAME, 1, 3),
    "early_stopping": ({"heldout_evaluations": 6}, None, "heldout_loss"),
    "early_stopping_patience": (FIRST, 1, 3),
    "save_every": (SAME, None, 2),
    "keep_last": ({"save_every": 1}, 2, 3),
    "trackers": (SAME, "none", "tensorboard"),  # test_trackers.py runs with each
    "speed": (SAME, "auto", "off"),
    "seed": ({"max_tokens_per_batch": 200}, 0, 1),
}

ADAPTER: Walk = {
    "kind": (SAME, "lora", "ia3"),
    "r": (SAME, 4, 8),
    "lora_alpha": (SAME, 8, 32),
    "lora_dropout": (SAME, 0.0, 0.5),
    "target_modules": (SAME, "all-linear", "attention"),
    "layers": (SAME, None, (0, 0)),
    "strength": (SAME, 1.0, 0.5),
    "lora_plus_ratio": ({"kind": "lora+"}, 1.0, 16.0),
    "virtual_tokens": ({"kind": "prompt"}, 2, 4),
    "last_blocks": ({"kind": "freeze"}, 1, 2),
    "options": (SAME, {}, {"use_rslora": True}),
}

OBJECTIVE: Walk = {
    "loss": (SAME, "cross-entropy", "focal"),
    "label_smoothing": (SAME, 0.0, 0.1),
    "class_weights": (SAME, "none", "balanced"),
    "focal_gamma": ({"loss": "focal"}, 2.0, 0.5),
    "huber_delta": ({"loss": "huber"}, 1.0, 0.1),
}

MODEL: Walk = {
    "name": (SAME, "tiny", "other"),
    "revision": (SAME, None, "v1"),
    "quantization": (SAME, "none", "nf4"),
    "double_quantization": ({"quantization": "nf4"}, True, False),
    "dtype": (SAME, "float32", "bfloat16"),
    "device": (SAME, "cpu", "cuda"),
    "device_map": (SAME, None, "auto"),
    "max_memory": ({"device_map": "auto"}, {"cpu": "2GB"}, {"cpu": "1GB"}),
    "offload_folder": ({"device_map": "auto", "max_memory": {"cpu": "1GB"}}, None, "offload"),
    "attention": (SAME, "eager", "sdpa"),
    "dropout": (SAME, None, 0.25),
}

EVALUATE: Walk = {
    "knowledge": (SAME, "exact", "recognition"),
    "knowledge_items": (SAME, 12, 5),
    "max_new_tokens": (SAME, 4, 8),
    "probes": (SAME, (), ("openbookqa",)),
    "items_per_probe": ({"probes": ("openbookqa",)}, 4, 6),
    "drift_source": ({"drift_passages": 4}, "boolq", "chitchat"),
    "drift_passages": (SAME, 4, 6),
    "passage_tokens": ({"drift_passages": 4}, 16, 24),
    "style_items": (SAME, 12, 5),
    "drift_margin": ({"drift_passages": 12}, 0.1, 1e-9),
    "ability_margin": ({"probes": ("openbookqa",), "items_per_probe": 60}, 0.05, 0.9),
    "side_by_side": (SAME, 6, 3),
    "baselines": (SAME, (), ("few-shot",)),
    "few_shot": ({"baselines": ("few-shot",)}, 1, 2),
    "system_prompt": ({"baselines": ("system",)}, "Be brief.", "Say it twice."),
    "resamples": (SAME, 200, 400),
    "adapter_scale": (SAME, 1.0, 0.5),
    "baseline": ({"task": "classify"}, "tfidf", "none"),
    "behaviour": (SAME, "", "shop-chat"),  # test_evidence_behaviour.py runs one of labels
    "fairness": ({"items_per_probe": 6}, (), ("wino",)),  # test_check_labels.py runs each of labels
    "calibration": ({"probes": ("openbookqa",), "items_per_probe": 60}, False, True),
}


@pytest.mark.parametrize(
    ("settings", "walk", "elsewhere"),
    [
        (TrainSettings, TRAIN, set()),
        (AdapterSettings, ADAPTER, set()),
        (ObjectiveSettings, OBJECTIVE, set()),
        (ModelSettings, MODEL, set()),
        (EvaluateSettings, EVALUATE, set()),
        (DataSettings, DATA_FIELDS, {"task", "pair_at"}),  # test_run_labels.py runs each
    ],
)
def test_every_field_is_in_a_walk(settings: Any, walk: Walk, elsewhere: set[str]) -> None:
    names = {info.name for info in dataclasses.fields(settings)}
    assert names == set(walk) | elsewhere


def trained(settings: TrainSettings, adapter: AdapterSettings) -> Any:
    """Train the tiny model; give all that can be seen of it, the work done included."""
    folder = Path(tempfile.mkdtemp()) / "checkpoints"
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), adapter, seed=settings.seed)
    rising = itertools.count(1)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    layers = (model.get_base_model() if hasattr(model, "get_base_model") else model).model.layers
    layers[0].self_attn.register_forward_hook(count)
    record = train(
        model,
        make_examples(),
        settings,
        objective=chat_loss,
        measure=lambda: {"heldout_loss": float(next(rising))},
        rate_scales=rate_scales(adapter),
        keeping=Keeping(folder=folder),
    )
    kept = sorted(path.name for path in folder.glob("*"))
    weaken_adapter(model, adapter.strength)
    steps = [dataclasses.replace(step, seconds=0.0, memory_bytes=0) for step in record.steps]
    weights = {name: values.tolist() for name, values in weights_of(model).items()}
    return steps, record.kept_step, passes, weights, kept


@pytest.mark.parametrize("field", [name for name in TRAIN if name != "trackers"])
def test_every_training_setting_reaches_what_it_governs(field: str) -> None:
    both, one, other = TRAIN[field]
    shared = {"max_tokens_per_batch": 1000, "epochs": 6, "learning_rate": 1e-2, **both}

    def outcome(value: Any) -> Any:
        return trained(TrainSettings(**{**shared, field: value}), AdapterSettings(r=4))

    assert outcome(one) == outcome(one)
    assert outcome(one) != outcome(other)


@pytest.mark.parametrize("field", ADAPTER)
def test_every_adapter_setting_reaches_what_it_governs(field: str) -> None:
    both, one, other = ADAPTER[field]
    settings = TrainSettings(max_tokens_per_batch=1000, epochs=2, learning_rate=1e-2)

    def outcome(value: Any) -> Any:
        return trained(settings, AdapterSettings(**{**both, field: value}))

    assert outcome(one) == outcome(one)
    assert outcome(one) != outcome(other)


class Fixed(torch.nn.Module):
    """A model whose answers are given: the loss is then a function of the settings alone."""

    config = type("Config", (), {"pad_token_id": 0})()
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = torch.nn.Parameter(outputs)

    def forward(self, **_: Any) -> Any:
        return type("Output", (), {"logits": self.outputs})()


@pytest.mark.parametrize("field", [name for name in OBJECTIVE if name != "class_weights"])
def test_every_setting_of_the_loss_reaches_it(field: str) -> None:
    both, one, other = OBJECTIVE[field]
    is_number = both.get("loss") == "huber"
    outputs = torch.tensor([[3.0], [-2.0]] if is_number else [[2.0, -1.0], [0.5, 1.0]])
    batch = {
        "input_ids": torch.ones(2, 3, dtype=torch.long),
        "attention_mask": torch.ones(2, 3, dtype=torch.long),
        "targets": torch.tensor([0.0, 1.0]),
        "weights": torch.ones(2),
    }

    def outcome(value: Any) -> float:
        settings = ObjectiveSettings(**{**both, field: value})
        objective = make_objective("regress" if is_number else "classify", settings)
        return float(objective(Fixed(outputs), batch)[0].detach())

    assert outcome(one) == outcome(one)
    assert outcome(one) != outcome(other)


@pytest.mark.parametrize("field", [name for name in MODEL if name not in ("name", "revision")])
def test_every_model_setting_reaches_the_call_that_loads(
    field: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    given: list[Any] = []

    def watched(*args: Any, **options: Any) -> Any:
        quantization = options.get("quantization_config")
        plain = quantization.to_dict() if quantization is not None else None
        given.append({**options, "quantization_config": plain})
        return load(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    both, one, other = MODEL[field]

    def outcome(value: Any) -> Any:
        settings = ModelSettings(**{"name": str(folder), "device": "cpu", **both, field: value})
        given.clear()
        try:
            loading.load_model(settings)
        except SftkitError as error:  # a device that is not here
            return str(error)
        return {name: str(option) for name, option in given[0].items()}

    assert outcome(one) == outcome(one)
    assert outcome(one) != outcome(other)


def test_name_and_revision_say_what_is_loaded(folder: Path) -> None:
    from sftkit.catalog import fetch_model

    assert fetch_model(ModelSettings(name=str(folder))).path == str(folder)
    pinned = fetch_model(ModelSettings(name="someone/model", revision="v1"))
    assert (pinned.path, pinned.revision) == ("someone/model", "v1")


@pytest.fixture
def tiny_recipe(tmp_path: Path, folder: Path) -> dict[str, Any]:
    """A recipe over forty short questions, and a stand-in for what the catalog gives."""
    rows = [
        {"question": f"Colour of box {place}?", "answer": f"Colour {place % 7}."}
        for place in range(40)
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "colours",
        "model": {"name": str(folder), "dtype": "float32"},
        "data": {"source": str(data), "test_fraction": 0.4, "validation_fraction": 0.2},
        "adapter": {"r": 4},
        "train": {"epochs": 1, "learning_rate": 1e-2, "max_tokens_per_batch": 512},
        "evaluate": {
            "probes": [], "drift_passages": 0, "max_new_tokens": 4, "resamples": 200,
            "knowledge_items": 12, "style_items": 12,
        },
    }  # fmt: skip


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give probes and passages without the wheels they come from."""
    from sftkit import catalog
    from sftkit.records import ChoiceItem

    def probe_items(name: str, items: int, **_: Any) -> list[ChoiceItem]:
        return [
            ChoiceItem(question=f"{name} {place}?", options=("yes", "no"), answer=place % 2)
            for place in range(items)
        ]

    def passages(name: str, items: int | None = None, **_: Any) -> list[str]:
        return [f"{name} says that {place} comes after {place - 1}. " * 3 for place in range(40)][
            :items
        ]

    def bias_rows(name: str, **_: Any) -> list[dict[str, Any]]:
        pairs = [(f"A {job} and her.", f"A {job} and him.") for job in ("cook", "maid", "smith")]
        return [{"group": one, "stereotype": one, "anti_stereotype": other} for one, other in pairs]

    monkeypatch.setattr(catalog, "bias_rows", bias_rows)
    monkeypatch.setattr(catalog, "probe_items", probe_items)
    monkeypatch.setattr(catalog, "passages", passages)


@pytest.mark.parametrize("field", [name for name in EVALUATE if name != "baseline"])
def test_every_setting_of_the_evaluation_reaches_what_it_governs(
    field: str, tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    stand_in(monkeypatch)
    monkeypatch.setattr("sftkit.run.write_run", lambda *_: None)  # drawing takes most of the time
    longest: list[int] = []  # the tiny model ends its turn at once, whatever it may write

    def watched(*args: Any, max_new_tokens: int, **options: Any) -> Any:
        longest.append(max_new_tokens)
        return write_answers(*args, max_new_tokens=max_new_tokens, **options)

    monkeypatch.setattr("sftkit.evidence.learning.write_answers", watched)
    both, one, other = EVALUATE[field]
    number = itertools.count()

    def outcome(value: Any) -> Any:
        evaluate = {**tiny_recipe["evaluate"], **both, field: value}
        recipe = recipe_from_dict({**tiny_recipe, "evaluate": evaluate})
        out = tmp_path / f"out-{next(number)}"
        record = run(recipe, out, watcher=make_watcher("silent"))
        found = (record.learned, record.forgot, record.verdicts, record.answers, record.checks)
        return *found, longest[-1]

    first = outcome(one)
    if both is SAME:
        assert first == outcome(one)
    assert first != outcome(other)
