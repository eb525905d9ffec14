"""Predicted memory: formulas against models as they are made, and against what autograd keeps."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit import catalog, memory
from sftkit.errors import AdapterError, ModelError, SettingsError
from sftkit.memory import COMPONENTS, MemoryEstimate, estimate, passes_of
from sftkit.memory_formulas import ForwardPass, weight_bytes
from sftkit.memory_ladder import Plan, ladder, largest_that_fits, predict_minutes
from sftkit.memory_shapes import find_targets, read_shape
from sftkit.records import Step
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

SMALL = catalog.model_config(ModelSettings(name="smollm2-135m"))
ENCODER = catalog.model_config(ModelSettings(name="minilm-l6"))
TINY_BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 90, "max_position_embeddings": 64, "pad_token_id": 0,
    "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip


def plan(config: Any = SMALL, **changes: Any) -> Plan:
    """Make the plan of a small run; `changes` go to the settings they belong to."""
    parts: dict[str, Any] = {
        "model": ModelSettings(device="cpu"),
        "adapter": AdapterSettings(),
        "train": TrainSettings(max_tokens_per_batch=512),
    }
    for name, part in parts.items():
        own = {
            k: changes.pop(k)
            for k in list(changes)
            if hasattr(part, k) and k not in ("device", "dtype")
        }
        parts[name] = dataclasses.replace(part, **own)
    return Plan(config=config, **parts, **{"max_tokens": 128, "dtype": "bfloat16", **changes})


def megabytes(size: float) -> int:
    return round(size / 1e6)


# ---- the model's shape ----


@pytest.mark.parametrize("name", catalog.names("model"))
def test_a_stored_configuration_has_as_many_parameters_as_its_model(name):
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = catalog.model_config(ModelSettings(name=name))
    kind = AutoModel if config["model_type"] == "bert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.for_model(**config))
    assert read_shape(config).parameters == sum(p.numel() for p in model.parameters())


def test_the_weights_of_the_135m_model_are_those_measured():
    sizes = {
        "float32": plan(dtype="float32"),
        "bfloat16": plan(),
        "int8": plan(quantization="int8"),
        "nf4": plan(quantization="nf4"),
        "nf4 plain": plan(quantization="nf4", double_quantization=False),
    }
    weights = {name: one.estimate().components["weights"] for name, one in sizes.items()}
    # 28.3 million embeddings and 106.2 million weights that are quantized. NF4 was measured at
    # 110 MB without its scales, float32 at 538 and bfloat16 at 269 MB.
    assert {name: megabytes(size) for name, size in weights.items()} == {
        "float32": 538, "bfloat16": 269, "int8": 163, "nf4": 111, "nf4 plain": 116,
    }  # fmt: skip


def test_a_quantized_weight_takes_its_bits_and_its_share_of_the_scales():
    bits = {
        (name, twice): 8
        * weight_bytes(ModelSettings(quantization=name, double_quantization=twice), 2)
        for name in ("none", "int8", "nf4", "fp4")
        for twice in (True, False)
    }
    # 4 bits and 32/64; with double quantization 8/64 and 32/(64 × 256).
    assert bits == {
        ("none", True): 16, ("none", False): 16, ("int8", True): 8, ("int8", False): 8,
        ("nf4", True): 4.126953125, ("nf4", False): 4.5,
        ("fp4", True): 4.126953125, ("fp4", False): 4.5,
    }  # fmt: skip


def test_a_model_of_unknown_shape_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"'qwen' model is not predicted.*Did you mean 'qwen3' or"):
        read_shape({"model_type": "qwen"})
    with pytest.raises(ModelError, match="configuration of a llama model is incomplete"):
        read_shape({"model_type": "llama", "hidden_size": 64})


@pytest.mark.parametrize(
    "settings",
    [
        AdapterSettings(),
        AdapterSettings(target_modules="attention"),
        AdapterSettings(target_modules=("q_proj", "down_proj"), layers=(1, 1)),
        AdapterSettings(target_modules=r".*\.1\.mlp\..*"),
    ],
)
def test_targets_are_those_the_adapter_finds_on_the_model(settings, tiny_model):
    from sftkit import adapter_targets

    shape = read_shape(tiny_model.config.to_dict())
    found = [
        shape.path.format(block) + layer.name
        for block, layers in find_targets(shape, settings).items()
        for layer in layers
    ]
    assert found == adapter_targets.find_targets(tiny_model, settings)


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(AdapterError, match=r"'q_porj'.*Did you mean 'q_proj'"):
        plan(target_modules=("q_porj",)).estimate()


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "lora+", "ia3", "prompt", "freeze",
                                  "full"])  # fmt: skip
def test_trained_parameters_are_counted_as_the_attached_adapter_counts_them(kind, tiny_model):
    from sftkit.adapter import attach_adapter, count_parameters

    sizes: dict[str, Any] = {"freeze": {"last_blocks": 1}, "prompt": {"virtual_tokens": 4}}
    settings = AdapterSettings(kind=kind, **sizes.get(kind, {}))
    expected = estimate(
        tiny_model.config.to_dict(),
        model=ModelSettings(),
        adapter=settings,
        train=TrainSettings(),
    ).trainable
    assert expected == count_parameters(attach_adapter(tiny_model, settings)).trainable


@pytest.mark.parametrize("kind", ["lora", "ia3", "freeze", "full"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_fresh_head_is_counted_with_what_is_trained(kind, family, tiny_model):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from sftkit.adapter import attach_adapter, count_parameters

    said = TINY_BERT if family == "bert" else tiny_model.config.to_dict()
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(**{**said, "num_labels": 3})
    ).requires_grad_(False)
    blocks: dict[str, Any] = {"last_blocks": 1} if kind == "freeze" else {}
    settings = AdapterSettings(kind=kind, **blocks)
    expected = estimate(
        said,
        model=ModelSettings(),
        adapter=settings,
        train=TrainSettings(),
        task="classify",
        classes=3,
    ).trainable
    tuned = attach_adapter(model, settings, task_type="SEQ_CLS")
    assert expected == count_parameters(tuned).trainable


# ---- what autograd keeps ----


OFF = TrainSettings(max_tokens_per_batch=4 * 48, speed="off")


def kept_by_autograd(model: Any, run: Any, tokens: int = 4 * 48) -> int:
    """Sum the tensors a forward pass saves for the backward pass, each storage once."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Adapter weights, of rank 8, that were cast to 16 bits are counted with the adapter.
        is_weight = tensor.ndim == 2 and 8 in tensor.shape and tokens not in tensor.shape
        # Those squares are dora's identity matrices, gone when their layer is done.
        is_weight |= tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
        if storage.data_ptr() not in own and not is_weight:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(seen.values())


def check_decoder(dtype: str, attention: str, settings: AdapterSettings) -> None:
    """Compare predicted activations of a small decoder with what autograd keeps of its body."""
    import torch

    from sftkit.adapter import attach_adapter
    from sftkit.forward import precision_of

    model = make_model(vocab_size=300, layers=3).to(getattr(torch, dtype))
    model.config._attn_implementation = attention
    tuned = attach_adapter(model, settings).train()
    ids = torch.randint(0, 60, (4, 48))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def run() -> Any:
        with precision_of(tuned):
            if settings.kind == "prompt":
                return tuned(**inputs)
            base = tuned.get_base_model() if hasattr(tuned, "get_base_model") else tuned
            return base.model(**inputs)

    predicted = Plan(
        config=model.config.to_dict(),
        model=ModelSettings(attention=attention),  # type: ignore[arg-type]
        adapter=settings,
        train=OFF,
        max_tokens=48,
        dtype=dtype,
    ).estimate()
    assert predicted.heaviest == ForwardPass(rows=4, length=48, supervised=96)
    kept = kept_by_autograd(tuned, run)
    # Beside the blocks, the last norm and a little before them.
    parts = predicted.components
    assert parts["activations"] + parts["gradients"] == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_activations_of_a_decoder_are_what_autograd_keeps(attention, dtype, targets):
    check_decoder(dtype, attention, AdapterSettings(r=8, target_modules=targets))


@pytest.mark.parametrize(
    "settings",
    [
        AdapterSettings(r=8, kind="dora"),
        AdapterSettings(r=8, lora_dropout=0.1),
        AdapterSettings(r=8, layers=(1, 2)),
        AdapterSettings(kind="ia3"),
        AdapterSettings(kind="prompt", virtual_tokens=12),
        AdapterSettings(kind="freeze", last_blocks=1),
        AdapterSettings(kind="full"),
    ],
    ids=str,
)
def test_activations_of_every_method_are_what_autograd_keeps(settings):
    check_decoder("float32", "eager", settings)
    if settings.kind not in ("freeze", "full"):
        check_decoder("bfloat16", "eager", settings)


FASTER: dict[str, Any] = {
    "every layer": AdapterSettings(r=8),
    "two layers": AdapterSettings(r=8, target_modules=("q_proj", "v_proj")),
    "half a feed-forward part": AdapterSettings(
        r=8, target_modules=("q_proj", "up_proj", "down_proj")
    ),
    "dora": AdapterSettings(r=8, kind="dora"),
    "ia3": AdapterSettings(kind="ia3"),
    "dropout": AdapterSettings(r=8, lora_dropout=0.1),
    "last blocks": AdapterSettings(r=8, layers=(1, 2)),
}


def check_faster(
    settings: AdapterSettings, lengths: list[int], shared: int, dtype: str, attention: str
) -> None:
    """Compare predicted activations with what the faster parts of training keep."""
    import torch

    from sftkit import forward, packed, speed, speed_rules
    from sftkit.adapter import attach_adapter

    model = make_model(vocab_size=300, layers=3).to(getattr(torch, dtype))
    model.config._attn_implementation = attention
    tuned = attach_adapter(model, settings).train()
    ids = torch.randint(0, 60, (len(lengths), max(lengths)))
    ids[:, :shared] = ids[:1, :shared]
    ids[:, shared] = torch.arange(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()

    def run() -> Any:
        return forward.hidden_at(tuned, mask.bool(), input_ids=ids, attention_mask=mask)

    train = TrainSettings(max_tokens_per_batch=max(lengths) * len(lengths))
    (one,) = passes_of(lengths, lengths, train, shared=shared)
    with speed.fast_training(tuned, train):
        is_packed = packed.layout_for(model, ids, mask) is not None
        real = max(lengths) * len(lengths)
        if is_packed:
            real = speed_rules.round_up(sum(lengths) - (len(lengths) - 1) * shared)
        kept = kept_by_autograd(tuned, run, real)
    predicted = estimate(
        model.config.to_dict(),
        model=ModelSettings(attention=attention),  # type: ignore[arg-type]
        adapter=settings,
        train=train,
        passes=[one],
        dtype=dtype,
    ).components
    # The layout holds a mask, which autograd keeps only where it is used as it is.
    is_apart = is_packed and (attention, dtype) != ("sdpa", "float32")
    own = max(lengths) - shared
    layout = 4 * len(lengths) * own * (own + shared) if is_apart else 0
    expected = predicted["activations"] + predicted["gradients"] - layout
    assert expected == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("lengths", "shared"),
    [([48] * 4, 0), ([60, 31, 44, 52], 20), ([96], 0)],
    ids=["alike", "varied, beginning alike", "one row"],
)
def test_activations_of_faster_training_are_what_autograd_keeps(lengths, shared, dtype, attention):
    check_faster(FASTER["every layer"], lengths, shared, dtype, attention)


@pytest.mark.parametrize("name", FASTER)
def test_activations_of_methods_that_are_partly_faster_are_what_autograd_keeps(name):
    check_faster(FASTER[name], [60, 31, 44, 52], 20, "float32", "eager")
    check_faster(FASTER[name], [60, 31, 44, 52], 20, "bfloat16", "eager")


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_activations_of_an_encoder_are_what_autograd_keeps(dropout):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from sftkit.adapter import attach_adapter

    said = TINY_BERT | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**said)
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config).requires_grad_(False)
    settings = AdapterSettings(r=8)
    tuned = attach_adapter(model, settings, task_type="SEQ_CLS").train()
    ids = torch.randint(0, 60, (4, 48))
    predicted = Plan(
        config=said,
        model=ModelSettings(),
        adapter=settings,
        train=TrainSettings(max_tokens_per_batch=4 * 48),
        max_tokens=48,
        task="classify",
        dtype="float32",
    ).estimate()
    kept = kept_by_autograd(tuned, lambda: tuned(ids, attention_mask=torch.ones_like(ids)))
    # Beside the blocks, what lies before and behind them.
    parts = predicted.components
    assert parts["activations"] + parts["gradients"] == pytest.approx(kept, rel=0.05)
    assert predicted.trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def test_checkpointing_keeps_one_block_and_the_inputs_of_the_others():
    once, again = (
        sum(plan(activation_checkpointing=switch, speed="off").estimate().components[part]
            for part in ("activations", "gradients"))
        for switch in (False, True)
    )  # fmt: skip
    inputs = 30 * 512 * 576 * 2  # blocks × tokens × width × bytes
    assert again == pytest.approx(inputs + once / 30, abs=1)


def test_the_head_takes_as_many_rows_at_once_as_the_loop_gives_it():
    from sftkit import forward, memory_formulas
    from sftkit.evidence import perplexity

    assert memory_formulas.HEAD_ROWS == forward.HEAD_ROWS
    assert memory_formulas.SCORING_TOKENS == perplexity.TOKENS_PER_BATCH
    frozen, trained = (plan(dtype="float32", kind=kind).estimate() for kind in ("lora", "full"))
    # 128 rows of 49,152 logits, which turn into gradients, and what is kept of 256.
    assert frozen.components["logits"] == 128 * 49152 * 4 + 256 * 576 * 4
    assert trained.components["logits"] == 512 * 49152 * 8 + 256 * 576 * 4


# ---- properties ----

SIZES = st.integers(min_value=1, max_value=24)


def total(**changes: Any) -> int:
    return plan(**changes).estimate().total


@settings(max_examples=30)
@given(rows=SIZES, more=SIZES, length=st.sampled_from([16, 128, 500]))
def test_more_rows_or_longer_rows_never_take_less(rows, more, length):
    def at(rows: int, length: int) -> int:
        return total(max_tokens=length, max_tokens_per_batch=rows * length)

    assert at(rows, length) <= at(rows + more, length)
    assert at(rows, length) <= at(rows, length + more)


@given(
    low=st.integers(1, 64), more=st.integers(0, 64), kind=st.sampled_from(["lora", "dora", "lora+"])
)
def test_a_higher_rank_never_takes_less(low, more, kind):
    assert total(kind=kind, r=low) <= total(kind=kind, r=low + more)


@settings(max_examples=20)
@given(
    rows=SIZES,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    attention=st.sampled_from(["eager", "sdpa"]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_what_is_meant_to_save_memory_never_takes_more(rows, dtype, attention, device):
    same: dict[str, Any] = {
        "max_tokens_per_batch": rows * 128,
        "dtype": dtype,
        "attention": attention,
        "device": device,
    }
    before = plan(**same).estimate()
    for change in (
        {"activation_checkpointing": True},
        {"micro_batches": 2 if rows > 1 else 1},  # one row cannot be divided
        {"optimizer": "adamw-8bit"},
        {"optimizer": "sgd"},
    ):
        assert plan(**same, **change).estimate().total <= before.total, change
    # With fewer targets a gated feed-forward part is no single function, and keeps more.
    plain = plan(**same, speed="off").estimate().total
    assert plan(**same, speed="off", target_modules="attention").estimate().total <= plain
    nf4, int8 = (plan(**same, quantization=q).estimate() for q in ("nf4", "int8"))
    assert nf4.components["weights"] < int8.components["weights"] < before.components["weights"]


@given(rows=SIZES, quantization=st.sampled_from(["none", "int8", "nf4"]))
def test_the_parts_sum_to_the_total_inside_its_interval(rows, quantization):
    one = plan(max_tokens_per_batch=rows * 128, quantization=quantization).estimate()
    assert tuple(one.components) == tuple(COMPONENTS)
    assert sum(one.components.values()) == one.total
    assert 0 < one.low < one.total < one.high


# ---- passes, what fits, the ladder ----


def test_passes_are_those_the_loop_deals():
    train = TrainSettings(max_tokens_per_batch=32, micro_batches=2)
    # Batches of 32 tokens with padding: 8+8+8 and the 16s in pairs; each is dealt to two hands.
    passes = passes_of([8, 8, 8, 16, 16], [2, 2, 2, 5, 5], train)
    assert sorted((p.rows, p.length, p.supervised) for p in passes) == [
        (1, 8, 2), (1, 16, 5), (1, 16, 5), (2, 8, 4),
    ]  # fmt: skip


def test_the_heaviest_pass_of_real_lengths_decides():
    rows = ((128, 40),) * 3 + ((16, 4),) * 64
    assert plan(examples=rows, max_tokens_per_batch=256).estimate().heaviest == ForwardPass(
        rows=2, length=128, supervised=80
    )


@pytest.mark.parametrize("budget", [2e9, 5e9])
def test_the_largest_plan_fits_and_one_more_does_not(budget):
    fits = largest_that_fits(plan(), int(budget))
    at = fits.max_tokens_per_batch
    assert plan(max_tokens_per_batch=at).estimate().high <= budget
    assert plan(max_tokens_per_batch=at + 128).estimate().high > budget
    row = fits.max_tokens
    assert plan(max_tokens=row, max_tokens_per_batch=row).estimate().high <= budget
    assert plan(max_tokens=row + 1, max_tokens_per_batch=row + 1).estimate().high > budget


def test_nothing_fits_a_budget_below_the_program():
    fits = largest_that_fits(plan(), 10**8)
    assert (fits.fits, fits.max_tokens_per_batch, fits.max_tokens) == (False, 0, 0)
    with pytest.raises(SettingsError, match="budget of 0 bytes"):
        largest_that_fits(plan(), 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_rung_frees_what_the_changed_recipe_frees(device, tmp_path):
    from sftkit.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{name: x, data: {source: shop, max_tokens: 128}, train: {max_tokens_per_batch: 512}}",
        encoding="utf-8",
    )
    start = plan(device=device, max_tokens_per_batch=512, dtype=None)
    before = start.estimate().total
    rungs = ladder(start)
    assert len({rung.setting for rung in rungs}) == len(rungs) >= 8
    assert [r.freed for r in rungs] == sorted((r.freed for r in rungs), reverse=True)
    for rung in rungs:
        recipe = load_recipe(path, overrides=[rung.setting])
        changed = dataclasses.replace(
            start,
            model=recipe.model,
            adapter=recipe.adapter,
            train=recipe.train,
            max_tokens=recipe.data.max_tokens,
        )
        assert (rung.total, rung.freed) == (
            changed.estimate().total,
            before - changed.estimate().total,
        ), rung


def test_the_ladder_offers_no_quantization_to_methods_that_cannot_have_it():
    settings = {rung.setting for rung in ladder(plan(kind="full", dtype=None))}
    assert "adapter.kind=lora" in settings
    assert not any("quantization" in setting for setting in settings)


def test_minutes_are_extrapolated_from_the_steps_after_the_first():
    def step(number: int, tokens: int, seconds: float) -> Step:
        return Step(step=number, loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens=tokens,
                    seconds=seconds)  # fmt: skip

    # 10 s for the first 100 tokens, then 100 tokens a second: 10 + 9 s for 1,000 tokens.
    probed = [step(1, 100, 10.0), step(2, 200, 11.0), step(3, 300, 12.0)]
    assert predict_minutes(probed, 1000) == pytest.approx(19 / 60)
    assert predict_minutes(probed[:1], 1000) == pytest.approx(100 / 60)
    with pytest.raises(SettingsError, match="No step was timed"):
        predict_minutes([], 1000)


# ---- the dry run and the figure ----


def dry_run(capsys: Any, *words: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from sftkit.cli import app

    result = CliRunner().invoke(app, ["run", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


HUB = ("demo", "--dry-run", "--set", "model.name=qwen3-8b", "--set", "model.quantization=nf4",
       "--set", "model.device=cuda", "--set", "model.dtype=bfloat16")  # fmt: skip


def test_a_dry_run_of_a_hub_model_needs_no_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    code, text = dry_run(capsys, *HUB, "--format", "json")
    found = json.loads(text)
    (one,) = found["estimates"]
    assert (code, found["model"], found["data"], one["device"]) == (0, "qwen3-8b", None, "cuda")
    assert "qwen3-8b is not in the hub's cache here" in found["data_note"]
    # 6.9 billion weights in 4.13 bits, 1.2 billion of embeddings and head in 16.
    assert megabytes(one["components"]["weights"]) == 6073
    assert one["interval_source"] == "formula only, not measured here"
    (rungs,) = found["ladders"]
    assert rungs[0]["freed"] >= rungs[1]["freed"] > 0
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_everything_in_words(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    code, text = dry_run(capsys, *HUB)
    assert code == 0
    for words in ("qwen3-8b. Nothing was trained", "a CUDA GPU", "formula only", "Largest batch",
                  "--set train.activation_checkpointing=true", "assumed"):  # fmt: skip
        assert words in text


def test_a_dry_run_of_a_model_of_unknown_shape_still_counts_steps(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "num_channels": 1}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 8}}')
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{name: see, model: {{name: {tmp_path}, dtype: float32, device: cpu}}, "
        "data: {source: digits, task: image, limit: 200}, "
        "train: {max_tokens_per_batch: 512, examples_per_batch: 16, epochs: 2}}"
    )
    code, text = dry_run(capsys, str(recipe), "--dry-run", "--format", "json")
    found = json.loads(text)
    assert (code, found["estimates"], found["ladders"]) == (0, [], [])
    assert "memory of a 'resnet' model is not predicted" in found["memory_note"]
    data = found["data"]
    assert data["rows"] == data["tokens"] == data["supervised_tokens"] > 100
    assert data["run_tokens"] == 2 * data["rows"]
    assert data["steps"] == 2 * -(-data["rows"] // 16)
    assert "'resnet' model is not predicted" in dry_run(capsys, str(recipe), "--dry-run")[1]


def test_a_probe_without_a_dry_run_or_without_the_model_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match="add --dry-run"):
        dry_run(capsys, "demo", "--probe")
    with pytest.raises(ModelError, match="5 real steps, and qwen3-8b is not in the hub's cache"):
        dry_run(capsys, *HUB, "--probe")


def test_the_figure_says_parts_intervals_and_measurements_in_words():
    from sftkit.plots import alt_text
    from sftkit.plots_memory import plot_memory

    one = MemoryEstimate(
        device="cpu", dtype="float32",
        components=dict(zip(COMPONENTS, [400, 10, 20, 30, 240, 100, 60, 100, 40], strict=True)),
        total=1000, low=900, high=1100, heaviest=ForwardPass(rows=1, length=8, supervised=4),
        trainable=5, parameters=100, interval_source="a test",
    )  # fmt: skip
    one = dataclasses.replace(
        one,
        components={name: size * 10**6 for name, size in one.components.items()},
        total=10**9,
        low=9 * 10**8,
        high=11 * 10**8,
    )
    figure = plot_memory({"small": one}, measured={"small": 1.25e9})
    assert alt_text(figure) == (
        "Predicted peaks were 20 % off on average; 0 of 1 measured peaks lie in their interval. "
        "small: predicted 1.00 GB, measured 1.25 GB (interval 900 MB to 1.10 GB; program 100 MB, "
        "weights 400 MB, adapter, gradients, optimizer 60 MB, activations 240 MB, logits 100 MB, "
        "allocator, loading 100 MB)."
    )
    assert alt_text(plot_memory({"small": one})).startswith(
        "small needs 1.00 GB; its largest part is weights (40 %)."
    )
    with pytest.raises(SettingsError, match=r"measured peaks of \['other'\]"):
        plot_memory({"small": one}, measured={"other": 1.0})


# ---- against the machine ----


@pytest.mark.model
def test_two_measured_peaks_lie_in_their_intervals(checkout):
    benchmark = load_benchmark(checkout / "benchmarks" / "memory_error.py")
    names = ("bf16-96x4", "mini-fp32-192x6")
    jobs = [job for job in benchmark.HELD_OUT if job.name in names]
    measured = benchmark.measure_all(jobs, None)
    for job in jobs:
        found = benchmark.compare(job, measured[job.name])
        assert found["trainable_as_predicted"]
        assert found["inside"], found


def load_benchmark(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("memory_error", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["memory_error"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def test_memory_is_predicted_without_torch():
    import subprocess

    code = (
        "import sys; from sftkit import memory, memory_formulas, memory_ladder, memory_shapes; "
        "print(*sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(memory.__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.split() == []


# ---- what is refused or said beforehand ----


def test_weights_that_are_quantized_already_are_not_predicted_as_if_they_were_not():
    for said, form in (({"quant_method": "gptq", "bits": 4}, "gptq"), ({}, "an unnamed format")):
        with pytest.raises(ModelError, match=rf"already quantized \({form}\) is not predicted"):
            plan(SMALL | {"quantization_config": said}).estimate()


def test_a_smollm3_is_tied_where_its_configuration_does_not_say():
    config = {key: value for key, value in SMALL.items() if key != "tie_word_embeddings"}
    tied = {kind: read_shape(config | {"model_type": kind}).tied for kind in ("smollm3", "llama")}
    assert tied == {"smollm3": True, "llama": False}


def test_a_roberta_holds_two_tokens_fewer_than_its_positions():
    shapes = [read_shape(TINY_BERT | {"model_type": kind, "pad_token_id": 1,
                                      "max_position_embeddings": 514})
              for kind in ("bert", "roberta", "xlm-roberta")]  # fmt: skip
    assert [shape.longest for shape in shapes] == [514, 512, 512]
    assert len({shape.embeddings for shape in shapes}) == 1


def test_rows_beyond_the_positions_are_said_to_be_an_assumption():
    assert not any("positions" in text for text in plan(max_tokens=8192).estimate().assumed)
    (said,) = [text for text in plan(max_tokens=8200).estimate().assumed if "positions" in text]
    assert said.startswith("rows of 8200 tokens work, though the model has 8192 positions")


# ---- rungs that a recipe can take ----


def rungs_of(start: Plan, setting: str) -> list[Any]:
    return [rung for rung in ladder(start) if rung.setting.startswith(f"{setting}=")]


def test_the_rung_to_lora_keeps_the_type_and_the_adapter_s_own_settings():
    start = plan(kind="full", dtype="float32", max_tokens_per_batch=512)
    (rung,) = rungs_of(start, "adapter.kind")
    assert rung.total == plan(kind="lora", dtype="float32").estimate().total
    tried = plan(kind="full", dtype="float32", target_modules="attention")
    (rung,) = rungs_of(tried, "adapter.kind")
    assert rung.total == plan(dtype="float32", target_modules="attention").estimate().total


def test_no_rung_puts_the_batch_below_the_longest_row_of_the_settings():
    rows = ((100, 40),) * 16
    start = plan(examples=rows, max_tokens=100, max_tokens_per_batch=640)
    assert [rung.setting for rung in rungs_of(start, "train.max_tokens_per_batch")] == [
        "train.max_tokens_per_batch=320"
    ]
    limited = dataclasses.replace(start, row_limit=512)
    assert [rung.setting for rung in rungs_of(limited, "train.max_tokens_per_batch")] == [
        "train.max_tokens_per_batch=512"
    ]


def test_shorter_rows_are_offered_where_some_remain_with_how_many_are_lost():
    alike = plan(examples=((100, 40),) * 8, max_tokens=100)
    assert rungs_of(alike, "data.max_tokens") == []
    mixed = plan(examples=((100, 40),) * 8 + ((50, 9),) * 2, max_tokens=100)
    (rung,) = rungs_of(mixed, "data.max_tokens")
    assert (rung.setting, rung.cost) == ("data.max_tokens=50", "longer rows are refused: 8 of 10")


def test_a_change_within_the_error_of_predictions_is_not_advised():
    start = plan()
    all_changes = {rung.setting: rung.freed / start.estimate().total for rung in ladder(start)}
    advised = {rung.setting for rung in ladder(start, noticed=0.07)}
    assert advised == {setting for setting, share in all_changes.items() if share > 0.07}
    assert advised < set(all_changes)


def test_no_rung_is_offered_that_loading_or_the_method_refuses():
    from sftkit.dryrun import _ladder

    def offered(start: Plan) -> set[str]:
        settings = {rung.setting for rung in _ladder(start, noticed=0)}
        return {one for one in settings if one.startswith(("model.quan", "adapter.kind"))}

    narrow = SMALL | {"hidden_size": 96, "intermediate_size": 3072, "num_attention_heads": 3}
    # On a Mac there is no bitsandbytes; rows of 96 are read wrongly in 4 bits on a CPU.
    plain = plan(device="cuda", speed="off")
    assert offered(plain) == {"model.quantization=int8", "model.quantization=nf4"}
    assert offered(plan(device="mps")) == set()
    assert "model.quantization=nf4" not in offered(plan(narrow))
    frozen = plan(kind="freeze", dtype="float32", device="cuda")
    assert offered(frozen) == {"adapter.kind=lora"}
    two = dataclasses.replace(frozen.adapter, last_blocks=frozen.adapter.last_blocks + 1)
    assert offered(dataclasses.replace(frozen, adapter=two)) == set()  # last_blocks is no lora's


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.attention=flash_attention_2", "flash_attention_2 needs a CUDA GPU"),
        ("model.dtype=float16", "float16 cannot train on a CPU"),
    ],
)
def test_a_dry_run_refuses_what_loading_refuses_on_this_machine(
    change, words, capsys, tmp_path, monkeypatch
):
    import torch

    from sftkit.cli import start

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["sftkit", "run", "t4", "--dry-run", "--set", change])
    assert start() == 2
    assert words in capsys.readouterr().err


def test_a_dry_run_shows_a_ladder_for_every_device_it_estimates(capsys, tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    code, text = dry_run(capsys, "t4", "--dry-run")
    assert code == 0
    for device in ("the CPU", "a CUDA GPU"):
        assert f"What would free memory on {device}, most first:" in text


def test_a_probe_holds_the_base_as_the_run_does(folder, tmp_path, monkeypatch):
    from sftkit import adapter, model
    from sftkit.dryrun import look_ahead
    from sftkit.recipe import recipe_from_dict

    rows = [{"question": f"Box {place}?", "answer": "red"} for place in range(40)]
    seen: list[Any] = []
    attach, check = adapter.attach_adapter, model.check_trainable

    def attach_and_tell(base: Any, settings: Any, **options: Any) -> Any:
        seen.append((str(base.dtype), options["seed"]))
        return attach(base, settings, **options)

    def check_and_tell(base: Any) -> None:
        seen.append("checked")
        check(base)

    monkeypatch.setattr(adapter, "attach_adapter", attach_and_tell)
    monkeypatch.setattr(model, "check_trainable", check_and_tell)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = look_ahead(
        recipe_from_dict(
            {
                "name": "x",
                "model": {"name": str(folder), "device": "cpu", "dtype": "bfloat16"},
                "data": {"source": str(data)},
                "adapter": {"kind": "full"},
                "train": {"seed": 7},
                "evaluate": {"probes": [], "drift_passages": 0},
            }
        ),
        probe=True,
    )
    assert found.probe is not None
    assert seen == ["checked", ("torch.float32", 7)]


def test_the_help_of_run_names_every_bundled_recipe(checkout):
    from sftkit.cli import BUNDLED

    names = sorted(path.stem for path in (checkout / "sftkit" / "recipes").glob("*.yaml"))
    assert BUNDLED.split(", ") == names
    assert {"cpu", "t4", "24gb", "4gpu"} <= set(names)


def test_a_dry_run_into_a_folder_is_refused(capsys, tmp_path):
    with pytest.raises(SettingsError, match="writes nothing: leave --out away"):
        dry_run(capsys, "t4", "--dry-run", "--out", str(tmp_path / "out"))
