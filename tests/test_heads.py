"""Fresh heads on every kind of base: loaded, adapted, trained, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sftkit.adapter import attach_adapter, count_parameters
from sftkit.adapter_files import load_adapter, save_adapter
from sftkit.catalog import fetch_model
from sftkit.errors import ModelError
from sftkit.evidence.label_scores import score_labels
from sftkit.heads import (
    image_form,
    keeps_head,
    load_image_form,
    load_with_head,
    save_image_form,
)
from sftkit.labelled import (
    ImageForm,
    LabelledImage,
    Targets,
    collate_images,
    collate_texts,
    encode_labelled,
    fit_targets,
)
from sftkit.objectives import make_objective, outputs_of
from sftkit.settings import AdapterSettings, ModelSettings, ObjectiveSettings, TrainSettings
from sftkit.speed import can_pack
from sftkit.train import train
from tests.conftest import make_tokenizer

CPU = torch.device("cpu")
YES_NO = Targets(labels=("no", "yes"))
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
TEXT_KINDS = ("bert", "distilbert", "modernbert", "llama")
IMAGE_KINDS = ("resnet", "vit")


def make_base(kind: str) -> Any:
    """Make a tiny base model without any head for labels."""
    import transformers

    tf: Any = transformers

    torch.manual_seed(0)
    words: dict[str, Any] = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 64}
    if kind == "bert":
        return tf.BertModel(tf.BertConfig(**SMALL, **words))
    if kind == "distilbert":
        return tf.DistilBertModel(
            tf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **words)
        )
    if kind == "modernbert":
        ids: dict[str, Any] = dict.fromkeys(
            ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1
        )
        return tf.ModernBertModel(tf.ModernBertConfig(**SMALL, **words, **ids, pad_token_id=0))
    if kind == "llama":  # with no padding token, as most decoders
        return tf.LlamaForCausalLM(
            tf.LlamaConfig(**SMALL, **words, bos_token_id=None, eos_token_id=256)
        )
    if kind == "resnet":
        config = tf.ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
            layer_type="basic", num_labels=5,
        )  # fmt: skip
        return tf.ResNetForImageClassification(config)
    config = tf.ViTConfig(**SMALL, image_size=16, patch_size=4, num_channels=1, num_labels=5)
    return tf.ViTForImageClassification(config)


def make_labelled(names: tuple[str, ...], kind: str = "bert") -> Any:
    """Make a tiny model whose head was trained on these labels."""
    import transformers

    tf: Any = transformers
    config = make_base(kind).config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    if kind == "bert":
        return tf.BertForSequenceClassification(config)
    return tf.ResNetForImageClassification(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved base of every kind."""
    made = {}
    for kind in (*TEXT_KINDS, *IMAGE_KINDS):
        made[kind] = tmp_path_factory.mktemp(kind)
        make_base(kind).save_pretrained(made[kind])
    return made


def load(folder: Path, task: Any, targets: Targets = YES_NO, **options: Any) -> Any:
    return load_with_head(
        ModelSettings(name=str(folder), **options.pop("settings", {})),
        task,
        targets,
        tokenizer=make_tokenizer(),
        dtype=torch.float32,
        **options,
    )


def texts(task: Any) -> tuple[list[Any], Targets]:
    rows = [
        {
            "text": ("yes indeed " if number % 2 else "no, never ") + "and more " * (number % 4),
            "label": "yes" if number % 2 else "no",
            "score": 3.0 + number % 2,
        }
        for number in range(24)
    ]
    targets = fit_targets(rows, task)
    return list(encode_labelled(rows, make_tokenizer(), targets, max_tokens=64).examples), targets


def images() -> tuple[list[LabelledImage], Targets]:
    torch.manual_seed(5)
    made = []
    for number in range(24):
        pixels = 0.3 * torch.randn(1, 16, 16)
        pixels[:, :8] += float(number % 2) * 2 - 1  # the upper half is light or dark
        made.append(LabelledImage(pixels=pixels.numpy(), target=number % 2, row=number))
    return made, YES_NO


def tensors(examples: list[Any], model: Any) -> dict[str, torch.Tensor]:
    collate = collate_images if isinstance(examples[0], LabelledImage) else collate_texts
    pad_id = getattr(model.config, "pad_token_id", None) or 0
    return collate(examples, pad_id=pad_id, device=CPU)


def outputs(model: Any, examples: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return outputs_of(model, tensors(examples, model))


CASES = [
    *((kind, task) for kind in TEXT_KINDS for task in ("classify", "regress")),
    *((kind, "image") for kind in IMAGE_KINDS),
]


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_a_head_and_an_adapter_train_through_the_loop_and_come_back_from_disk(
    folders, tmp_path, kind, task
):
    examples, targets = images() if task == "image" else texts(task)
    where = "convolution" if kind == "resnet" else "all-linear"
    tuned = attach_adapter(
        load(folders[kind], task, targets),
        AdapterSettings(r=4, target_modules=where),
        task_type=None if task == "image" else "SEQ_CLS",
    )
    record = train(
        tuned,
        examples,
        TrainSettings(learning_rate=1e-2, epochs=8, max_tokens_per_batch=256, examples_per_batch=8),
        objective=make_objective(task, ObjectiveSettings()),
        collate=collate_images if task == "image" else collate_texts,
    )
    assert record.steps[-1].loss < 0.5 * record.steps[0].loss
    save_adapter(tuned, tmp_path / "adapter")
    again = load_adapter(
        load(folders[kind], task, targets, seed=9), tmp_path / "adapter"
    )  # another fresh head, which the saved one must replace
    assert torch.equal(outputs(again, examples), outputs(tuned, examples))


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_padding_on_the_right_changes_no_output(folders, kind):
    model = load(folders[kind], "classify")
    examples, _ = texts("classify")
    together = outputs(model, examples[:8])
    alone = torch.cat([outputs(model, [example]) for example in examples[:8]])
    assert len({example.length for example in examples[:8]}) > 1
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_decoder_takes_its_padding_token_from_the_tokenizer(folders):
    assert load(folders["llama"], "classify").config.pad_token_id == 256
    with pytest.raises(ModelError, match="has no padding token, so texts of different length"):
        load_with_head(
            ModelSettings(name=str(folders["llama"])), "classify", YES_NO, dtype=torch.float32
        )


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_the_same_seed_makes_the_same_fresh_head(folders, kind):
    task = "image" if kind == "resnet" else "classify"
    examples = images()[0] if kind == "resnet" else texts("classify")[0]
    first, same, other = (
        outputs(load(folders[kind], task, seed=seed), examples[:4]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("kind", "task"), [("bert", "classify"), ("resnet", "image")])
@pytest.mark.parametrize(
    ("names", "kept"),
    [(("no", "yes"), True), (("yes", "no"), False), (("NEGATIVE", "POSITIVE"), False)],
)
def test_a_head_is_kept_only_where_it_was_trained_on_the_same_labels(
    tmp_path, kind, task, names, kept
):
    own = make_labelled(names, kind)
    own.save_pretrained(tmp_path)
    source = fetch_model(ModelSettings(name=str(tmp_path)))
    assert keeps_head(source, task, YES_NO) is kept
    first, same, other = (load(tmp_path, task, seed=seed) for seed in (1, 1, 2))
    heads = [next(iter(model.classifier.parameters())) for model in (own, first, same, other)]
    assert torch.equal(heads[0], heads[1]) is kept
    assert torch.equal(heads[1], heads[2])
    assert torch.equal(heads[1], heads[3]) is kept
    assert first.config.id2label == {0: "no", 1: "yes"}


def test_a_head_for_scores_is_always_fresh(tmp_path):
    own = make_labelled(("LABEL_0",))
    own.save_pretrained(tmp_path)
    scale = Targets(mean=3.0, spread=2.0)
    assert not keeps_head(fetch_model(ModelSettings(name=str(tmp_path))), "regress", scale)
    model = load(tmp_path, "regress", scale)
    assert model.classifier.weight.shape == own.classifier.weight.shape
    assert not torch.equal(model.classifier.weight, own.classifier.weight)


def test_a_model_of_several_parts_pads_with_the_token_its_pooling_looks_for(tmp_path):
    import transformers

    tf: Any = transformers
    words = {**SMALL, "hidden_size": 32, "vocab_size": len(make_tokenizer()), "head_dim": 16}
    seen = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text = {**words, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": None}
    config = tf.Gemma3Config(text_config=text, vision_config=seen)
    tf.Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    model = load(tmp_path, "classify")
    examples, targets = texts("classify")
    alone = np.concatenate([score_labels(model, [example], targets) for example in examples[:8]])
    assert len({example.length for example in examples[:8]}) > 1
    assert np.allclose(score_labels(model, examples[:8], targets), alone, atol=1e-5)

    given = set()

    def collate(examples: Any, *, pad_id: int, device: torch.device) -> Any:
        given.add(pad_id)
        return collate_texts(examples, pad_id=pad_id, device=device)

    train(
        model.requires_grad_(True),
        examples,
        TrainSettings(max_steps=1),
        objective=make_objective("classify", ObjectiveSettings()),
        collate=collate,
    )
    assert given == {256}


def test_classes_are_named_in_the_models_configuration(folders):
    model = load(folders["resnet"], "image", Targets(labels=("3", "5", "7")))
    assert model.config.id2label == {0: "3", 1: "5", 2: "7"}
    assert outputs(model, images()[0][:2]).shape == (2, 3)


def test_nothing_is_said_of_the_fresh_head_as_of_a_fault(folders, caplog, capsys):
    load(folders["bert"], "classify")
    assert "newly initialized" not in caplog.text + capsys.readouterr().err


def test_a_missing_weight_beside_the_head_is_an_error(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["bert"] / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as bert\.encoder\.layer"):
        load(tmp_path, "classify")


def test_a_model_without_such_a_form_is_refused_in_words(folders):
    with pytest.raises(ModelError, match="is a resnet model, of which transformers has no form"):
        load(folders["resnet"], "classify")
    with pytest.raises(ModelError, match="that classifies images"):
        load(folders["llama"], "image")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_keeps_its_head_in_float32_and_trains(folders, quantization):
    examples, _ = texts("classify")
    model = load(folders["bert"], "classify", settings={"quantization": quantization})
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if name in ("classifier", "bert.pooler.dense", "bert.encoder.layer.0.output.dense")
    }
    quantized = "Linear4bit" if quantization == "nf4" else "Linear8bitLt"
    assert kinds == {
        "bert.encoder.layer.0.output.dense": quantized,
        "bert.pooler.dense": "Linear",
        "classifier": "Linear",
    }
    tuned = attach_adapter(model, AdapterSettings(r=4), task_type="SEQ_CLS")
    record = train(
        tuned,
        examples,
        TrainSettings(learning_rate=1e-2, epochs=8, max_tokens_per_batch=256),
        objective=make_objective("classify", ObjectiveSettings()),
        collate=collate_texts,
    )
    assert record.steps[-1].loss < 0.5 * record.steps[0].loss


def test_the_head_is_trained_in_float32_over_a_bfloat16_base(folders):
    model: Any = load_with_head(
        ModelSettings(name=str(folders["bert"])), "classify", YES_NO, dtype=torch.bfloat16
    )
    tuned = attach_adapter(model, AdapterSettings(r=2), task_type="SEQ_CLS")
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert outputs(tuned, texts("classify")[0][:2]).dtype == torch.float32
    counted = count_parameters(tuned)
    assert counted.trainable < counted.total


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_labels_train_in_bfloat16_as_without_faster_parts(folders, name):
    examples, targets = texts("classify")

    def losses(speed: Any) -> torch.Tensor:
        model = load_with_head(
            ModelSettings(name=str(folders[name])), "classify", targets,
            tokenizer=make_tokenizer(), dtype=torch.bfloat16,
        )  # fmt: skip
        assert not can_pack(model)
        record = train(
            attach_adapter(model, AdapterSettings(r=4), task_type="SEQ_CLS"),
            examples,
            TrainSettings(learning_rate=1e-2, epochs=4, max_tokens_per_batch=256, speed=speed),
            objective=make_objective("classify", ObjectiveSettings()),
            collate=collate_texts,
        )
        return torch.tensor([step.loss for step in record.steps])

    plain, fast = losses("off"), losses("auto")
    assert plain[-1] < 0.95 * plain[0]
    assert float((fast - plain).abs().max()) < 0.02


# ---- images as a model wants them ----


def test_resnets_own_image_settings_are_read():
    # As microsoft/resnet-18 has them.
    said = {
        "crop_pct": 0.875,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": 224,
    }
    assert image_form(said, channels=3) == ImageForm(
        size=224, mean=(0.485, 0.456, 0.406), spread=(0.229, 0.224, 0.225), crop=0.875
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"height": 32, "width": 32}}, ImageForm(size=32)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.9}, ImageForm(size=384)),
        ({"do_normalize": False}, ImageForm(size=224, mean=(0.0,), spread=(1.0,))),
    ],
)
def test_other_ways_of_writing_image_settings_are_read(said, expected):
    assert image_form(said, channels=1) == expected


def test_an_image_form_comes_back_from_a_models_folder(folders, tmp_path):
    form = ImageForm(size=16, mean=(0.25,), spread=(0.5,))
    (tmp_path / "config.json").write_text((folders["resnet"] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(
        (folders["resnet"] / "model.safetensors").read_bytes()
    )
    settings = ModelSettings(name=str(tmp_path))
    with pytest.raises(ModelError, match=r"needs a preprocessor_config\.json"):
        load_image_form(settings)
    written = save_image_form(form, tmp_path)
    assert json.loads(written.read_text())["crop_pct"] == 1.0
    assert load_image_form(settings) == form
