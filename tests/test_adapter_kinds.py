"""Every row of the table of methods, held to what it says; and what is refused in words."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit.adapter import (
    adapter_off,
    adapter_scaled,
    attach_adapter,
    count_parameters,
    weaken_adapter,
)
from sftkit.adapter_files import load_adapter, merge_adapter, save_adapter
from sftkit.adapter_kinds import (
    KINDS,
    UNSAFE,
    check_kind,
    find_kind,
    kind_of,
    off_equals_base,
    registry,
)
from sftkit.adapter_targets import find_targets, head_names, inner_feedforward
from sftkit.errors import AdapterError
from sftkit.settings import AdapterSettings
from tests.conftest import make_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
PASSED = {
    "loha": {"r": 4},
    "lokr": {"r": 4},
    "vera": {"r": 4},
    "hra": {"r": 4},
    "oft": {"oft_block_size": 8},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
}
EVERY_KIND = pytest.mark.parametrize("name", KINDS)
SCALABLE = [name for name, kind in KINDS.items() if kind.scalable]


def fresh_base() -> Any:
    return make_model(vocab_size=258)


def settings_of(name: str) -> AdapterSettings:
    given: dict[str, Any] = {"kind": name}
    fields = find_kind(name).fields
    given |= {"r": 4} if "r" in fields else {}
    given |= {"virtual_tokens": 5} if "virtual_tokens" in fields else {}
    given |= {"last_blocks": 1} if "last_blocks" in fields else {}
    return AdapterSettings(**given, options=PASSED.get(name, {}))


def attached(name: str) -> Any:
    return attach_adapter(fresh_base(), settings_of(name))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits[:, -IDS.shape[1] :])


def trained(name: str) -> Any:
    """Train one step that is large enough to see."""
    model = attached(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):  # the first moves B only, as A's gradient is zero
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def refusal(quantization: str = "none", task_type: str | None = "CAUSAL_LM", **given: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        check_kind(AdapterSettings(**given), quantization=quantization, task_type=task_type)
    return str(caught.value)


# ---- every row ----


@EVERY_KIND
def test_a_fresh_adapter_changes_logits_no_more_than_its_row_says(name):
    change = furthest(logits(attached(name)), logits(fresh_base()))
    allowed = KINDS[name].fresh_change
    if allowed is None:
        assert change > 1e-3  # what is in front of the text is read
    else:
        assert change <= allowed


@EVERY_KIND
def test_training_moves_the_logits_and_off_is_the_base_or_is_refused(name):
    before = logits(fresh_base())
    model = trained(name)
    assert furthest(logits(model), before) > 1e-4
    assert off_equals_base(settings_of(name)) == kind_of(model).off_equals_base
    if KINDS[name].off_equals_base:
        with adapter_off(model):
            assert torch.equal(logits(model), before)
        assert not torch.equal(logits(model), before)
    else:
        with pytest.raises(AdapterError, match="does not bring the base back"), adapter_off(model):
            pass


def test_pissa_switched_off_is_not_the_base():
    before, model = logits(fresh_base()), attached("pissa")
    with model.disable_adapter():
        assert furthest(logits(model), before) > 1e-2


@EVERY_KIND
def test_what_is_saved_comes_back_and_answers_the_same(name, tmp_path):
    model = trained(name)
    folder = save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(fresh_base(), folder)
    assert torch.equal(logits(loaded), logits(model))
    assert (count_parameters(loaded).trainable, loaded.training) == (0, False)
    again = save_adapter(loaded, tmp_path / "again")
    for path in folder.glob("*.safetensors"):
        assert (again / path.name).read_bytes() == path.read_bytes()


@EVERY_KIND
def test_merging_keeps_every_answer_or_is_refused(name):
    model = trained(name)
    expected = logits(model)
    if not KINDS[name].mergeable:
        with pytest.raises(AdapterError, match="cannot be merged: its tokens stand in front"):
            merge_adapter(model)
        return
    merged = merge_adapter(model)
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert furthest(logits(merged), expected) <= 1e-4
    assert furthest(expected, logits(fresh_base())) > 1e-4


@pytest.mark.parametrize("name", SCALABLE)
def test_strength_runs_from_the_base_to_what_was_trained(name):
    before, model = logits(fresh_base()), trained(name)
    full = logits(model)
    with adapter_scaled(model, 0.0):
        assert torch.equal(logits(model), before)
    with adapter_scaled(model, 1e-4):
        assert 0 < furthest(logits(model), before) < 0.01 * furthest(full, before)
    with adapter_scaled(model, 0.5):
        half = logits(model)
    assert torch.equal(logits(model), full)
    assert 0 < furthest(half, before) < furthest(full, before)
    weaken_adapter(model, 0.5)
    assert torch.equal(logits(model), half)


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(SCALABLE)))
def test_where_half_a_strength_means_nothing_it_is_refused(name):
    model = attached(name)
    with pytest.raises(AdapterError, match="cannot be turned down"):
        weaken_adapter(model, 0.5)
    before = logits(fresh_base())
    if KINDS[name].off_equals_base:  # not half, but not at all
        with adapter_scaled(model, 0.0):
            assert torch.equal(logits(model), before)
    else:
        with pytest.raises(AdapterError, match="bring the base back"), adapter_scaled(model, 0.0):
            pass
    with adapter_scaled(model, 1.0):
        weaken_adapter(model, 1.0)
    assert "cannot be turned down" in refusal(kind=name, strength=0.5)


@pytest.mark.parametrize("name", PASSED)
def test_other_methods_of_peft_are_passed_through_and_claim_nothing(name, tmp_path):
    model = trained(name)
    kind = kind_of(model)
    assert (kind.name, kind.proven, kind.off_equals_base, kind.mergeable) == (name, *[False] * 3)
    loaded = load_adapter(fresh_base(), save_adapter(model, tmp_path / "adapter"))
    assert furthest(logits(loaded), logits(model)) < 1e-5
    with pytest.raises(AdapterError, match="not proven"):
        merge_adapter(model)
    with pytest.raises(AdapterError, match="not proven"), adapter_off(model):
        pass


# ---- what each trains ----


def test_each_kind_trains_what_it_names():
    counts = {name: count_parameters(attached(name)).trainable for name in KINDS}
    lora = 4096  # counted by hand in test_adapter
    sizes = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)  # dora: one per output of each layer
    vectors = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 64)  # ia3: down_proj by its input
    block = 32 * 32 * 2 + 16 * 32 * 2 + 3 * 64 * 32 + 2 * 32
    everything = 258 * 32 + 2 * block + 32
    assert counts == {
        "lora": lora,
        "rslora": lora,
        "dora": lora + sizes,
        "pissa": lora,
        "lora+": lora,
        "ia3": vectors,
        "prompt": 5 * 32,
        "freeze": 258 * 32 + block + 32,  # the head is tied to the embeddings, and brings them
        "full": everything,
    }


def test_freezing_leaves_untied_embeddings_and_early_blocks_alone():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    tuned = attach_adapter(model, AdapterSettings(kind="freeze", last_blocks=2))
    kept = {n for n, p in tuned.named_parameters() if not p.requires_grad}
    assert {name for name in kept if "layers" not in name} == {"model.embed_tokens.weight"}
    assert {name.split(".")[2] for name in kept if "layers" in name} == {"0"}
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}  # 16 bits lose small steps
    with pytest.raises(AdapterError, match=r"last_blocks=4, but LlamaForCausalLM has 3 blocks"):
        attach_adapter(LlamaForCausalLM(config), AdapterSettings(kind="freeze", last_blocks=4))


def test_settings_reach_the_configuration_of_each_method():
    def config(**given: Any) -> dict[str, Any]:
        made = attach_adapter(fresh_base(), AdapterSettings(**given)).peft_config["default"]
        return dict(made.to_dict())

    assert config(kind="rslora", r=4)["use_rslora"] is True
    assert config(kind="dora", r=4)["use_dora"] is True
    assert config(kind="pissa", r=4)["init_lora_weights"] == "pissa"
    assert config(kind="prompt", virtual_tokens=7)["num_virtual_tokens"] == 7
    assert config(kind="prompt")["prompt_tuning_init"] == "SAMPLE_VOCAB"
    assert config(kind="lora", r=4, options={"lora_bias": False})["lora_bias"] is False
    down = config(kind="ia3", layers=(1, 1))["feedforward_modules"]
    assert set(down) == {"model.layers.1.mlp.down_proj"}


def test_biases_and_starts_that_change_the_base_are_not_called_beside_it():
    for options in (
        {"bias": "all"}, {"init_lora_weights": "olora"}, {"layer_replication": [[0, 2], [1, 2]]},
    ):  # fmt: skip
        settings = AdapterSettings(r=4, options=options)
        assert not off_equals_base(settings)
        model = attach_adapter(fresh_base(), settings)
        with pytest.raises(AdapterError, match="does not bring the base back"), adapter_off(model):
            pass
    assert off_equals_base(AdapterSettings(options={"init_lora_weights": "gaussian"}))


def test_options_that_make_another_method_are_refused_where_that_would_be():
    pissa = {"init_lora_weights": "pissa"}
    assert refusal(quantization="nf4", options=pissa).startswith(
        "adapter.kind=lora with these options changes the base's own weights, which quantization="
    )
    tokens = {"trainable_token_indices": [1]}
    for options in (pissa, {"bias": "all"}, tokens, {"layer_replication": [[0, 2]]}):
        assert "cannot be turned down" in refusal(strength=0.5, options=options)
        assert check_kind(AdapterSettings(options=options)).scalable is False
    model = attach_adapter(fresh_base(), AdapterSettings(r=4, options=tokens))
    with pytest.raises(AdapterError, match="cannot be turned down"):
        weaken_adapter(model, 0.5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_an_update_of_embeddings_is_turned_down_too():
    from peft import LoraConfig, get_peft_model

    before = logits(fresh_base())
    model: Any = get_peft_model(fresh_base(), LoraConfig(r=4, target_modules=["embed_tokens"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    assert furthest(logits(model.eval()), before) > 1e-3
    with adapter_scaled(model, 1e-6):
        assert furthest(logits(model), before) < 1e-4


def test_options_name_modules_to_train_beside_the_fresh_head_and_not_instead_of_it():
    settings = AdapterSettings(r=4, options={"modules_to_save": ["embed_tokens"]})
    model = attach_adapter(tiny("llama"), settings, task_type="SEQ_CLS")
    named = list(model.peft_config["default"].modules_to_save)
    assert named[:2] == ["score", "embed_tokens"]  # peft adds its own names of heads
    trained_in_full = {
        name.split(".modules_to_save")[0].rsplit(".", 1)[-1]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "modules_to_save" in name
    }
    assert trained_in_full == {"score", "embed_tokens"}


def test_a_method_that_is_passed_through_acts_on_all_linear_layers_too():
    model = attached("loha")
    found = [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "hada_w1_a")
    ]
    assert found == find_targets(fresh_base(), AdapterSettings())
    # A place that is no linear layer is named to peft itself.
    assert find_kind("trainable_tokens").fields == frozenset()


def test_what_peft_refuses_leaves_the_model_as_it_was():
    model = tiny("resnet")
    before = [name for name, _ in model.named_modules()]
    settings = AdapterSettings(
        kind="lora", target_modules=("convolution",), options={"rank_pattern": {".*": -1}}
    )
    with pytest.raises(AdapterError, match="peft cannot put"):
        attach_adapter(model, settings, task_type=None)
    assert [name for name, _ in model.named_modules()] == before
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms if norm.train())
    attach_adapter(model, dataclasses.replace(settings, options={}), task_type=None)


# ---- refused before weights are read ----


def test_no_field_of_peft_that_names_files_or_models_is_reachable():
    words = ("path", "file", "model", "tokenizer", "adapters", "megatron", "arrow", "url", "dir")
    named = {
        info.name
        for config in registry().values()
        for info in dataclasses.fields(config)
        if any(word in info.name for word in words)
    }
    # Sizes and switches; the base's name is set here.
    harmless = {"use_trainable_adapters", "base_model_name_or_path"}
    assert named - harmless - UNSAFE == set()
    options = {"shadow_model": "evil/model"}
    assert "shadow_model would load code or files" in refusal(kind="shadow", options=options)


def test_an_unknown_method_is_refused_with_near_names():
    assert refusal(kind="lorra").startswith(
        "There is no adapter.kind 'lorra'. Did you mean 'lora' or"
    )
    assert "Did you mean 'prompt'" in refusal(kind="prompts")
    with pytest.raises(AdapterError, match="passed through"):
        find_kind("Q-LoRA")


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if not k.works_on_quantized])
def test_what_changes_the_base_is_refused_on_a_quantized_one(name):
    assert refusal(quantization="nf4", kind=name) == (
        f"adapter.kind={name} changes the base's own weights, which quantization=nf4 holds in too "
        "few bits for that. Use quantization: none, or one of lora, rslora, dora, lora+, ia3, "
        "prompt."
    )


CHANGED: dict[str, Any] = {
    "r": 4, "lora_alpha": 8, "lora_dropout": 0.5, "target_modules": "attention", "layers": (0, 1),
    "lora_plus_ratio": 4.0, "virtual_tokens": 3, "last_blocks": 1,
}  # fmt: skip


@EVERY_KIND
@pytest.mark.parametrize("field", CHANGED)
def test_a_setting_the_method_does_not_read_is_refused_and_not_ignored(name, field):
    settings: dict[str, Any] = {"kind": name, field: CHANGED[field]}
    if field in KINDS[name].fields:
        assert check_kind(AdapterSettings(**settings)) == KINDS[name]
    else:
        assert f"adapter.{field}={CHANGED[field]} means nothing to" in refusal(**settings)


def test_every_settings_field_belongs_to_some_method():
    fields = {info.name for info in dataclasses.fields(AdapterSettings)}
    read = set().union(*(kind.fields for kind in KINDS.values()))
    assert fields - {"kind", "strength", "options"} == read == set(CHANGED)


def test_options_are_held_against_peft_and_all_faults_are_named_at_once():
    assert refusal(options={"use_rslorra": True}) == (
        "adapter.options.use_rslorra is no field of peft's LORA. Did you mean "
        "'use_rslora' or 'use_qalora' or 'use_bdlora'?"
    )
    assert refusal(kind="loha", r=4).startswith("adapter.r=4 means nothing to adapter.kind=loha; ")
    assert check_kind(AdapterSettings(kind="loha", options={"r": 4})).proven is False
    both = refusal(kind="prompt", r=4, options={"tokenizer_kwargs": {"trust_remote_code": True}})
    assert both.count("\n") == 1
    assert both.endswith("tokenizer_kwargs would load code or files and is not reachable here.")
    assert "set by the kind" in refusal(options={"r": 4})
    assert "set by the kind" in refusal(kind="dora", options={"use_dora": False})
    assert "means nothing to adapter.kind=full" in refusal(kind="full", options={"r": 4})
    assert "needs data.task=chat" in refusal(kind="prompt", task_type="SEQ_CLS")


def test_a_value_that_peft_refuses_is_refused_in_our_words():
    settings = AdapterSettings(kind="adalora", options={"init_r": 4})
    with pytest.raises(AdapterError, match=r"^peft refuses adapter\.kind=adalora: .*total_step"):
        attach_adapter(fresh_base(), settings)


def test_our_own_methods_are_checked_without_torch():
    code = (
        "import sys\n"
        "from sftkit.adapter_kinds import KINDS, check_kind\n"
        "from sftkit.settings import AdapterSettings\n"
        "[check_kind(AdapterSettings(kind=name)) for name in KINDS]\n"
        "print(*sorted({'torch', 'peft'} & set(sys.modules)))"
    )
    checkout = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


# ---- other architectures ----


def tiny(architecture: str) -> Any:
    """Make a model of another family, a few thousand parameters large."""
    import transformers as t

    torch.manual_seed(0)
    small: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    words: dict[str, Any] = {"vocab_size": 50, "intermediate_size": 32, "num_labels": 3}
    labels: dict[str, Any] = {"num_labels": 4}
    make: dict[str, Any] = {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**small, **words)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=2, n_heads=2)
        ),
        "llama": lambda: t.LlamaForSequenceClassification(
            t.LlamaConfig(**small, **words, pad_token_id=0)
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(
                num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                layer_type="basic", **labels,
            )
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(
                **small, intermediate_size=32, image_size=8, patch_size=4, num_channels=1,
                **labels,
            )
        ),
    }  # fmt: skip
    return make[architecture]().requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("architecture", "heads", "attention", "linear"),
    [
        ("gpt2", ["lm_head"], ["attn.c_attn", "attn.c_proj"], 8),
        (
            "bert",
            ["bert.pooler", "classifier"],
            ["attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense"],
            12,
        ),
        (
            "distilbert",
            ["pre_classifier", "classifier"],
            ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
            12,
        ),
        (
            "llama",
            ["score"],
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
            14,
        ),
    ],
)  # fmt: skip
def test_attention_and_all_linear_fit_every_family_and_leave_out_the_head(
    architecture, heads, attention, linear
):
    model = tiny(architecture)
    assert head_names(model) == heads
    found = find_targets(model, AdapterSettings(target_modules="attention"))
    assert len(found) == 2 * len(attention)
    assert all(name.endswith(tuple(attention)) for name in found)
    everything = find_targets(model, AdapterSettings())
    assert len(everything) == linear
    assert not [name for name in everything if name.startswith(tuple(heads))]


def test_ia3_scales_the_inner_activation_of_feed_forward_layers_only():
    for architecture, expected in (("gpt2", "mlp.c_proj"), ("bert", "output.dense")):
        model = tiny(architecture)
        inner = inner_feedforward(model, find_targets(model, AdapterSettings()))
        assert len(inner) == 2
        assert all(name.endswith(expected) and "attention" not in name for name in inner)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "resnet", "vit"])
def test_with_labels_the_fresh_head_trains_in_full_and_is_saved(name, architecture, tmp_path):
    image = architecture in ("resnet", "vit")
    inputs = {"pixel_values": torch.randn(2, 1, 8, 8)} if image else {"input_ids": IDS}
    targets = ("convolution",) if architecture == "resnet" else "all-linear"
    settings = AdapterSettings(kind=name, target_modules=targets)
    model = attach_adapter(tiny(architecture), settings, task_type=None if image else "SEQ_CLS")
    heads = [n for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" in n]
    assert heads
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model(**inputs).logits.square().sum().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        base = tiny(architecture)(**inputs).logits
        with adapter_off(model):  # training left no trace in batch normalisation
            assert torch.equal(model(**inputs).logits, base)
        loaded = load_adapter(tiny(architecture), save_adapter(model, tmp_path / "adapter"))
        assert torch.equal(loaded(**inputs).logits, expected)
    assert furthest(expected, base) > 1e-3
    with pytest.raises(AdapterError, match="cannot be turned down"):
        weaken_adapter(model, 0.5)


def test_convolutions_are_found_by_name_or_pattern_only():
    model = tiny("resnet")
    named = find_targets(model, AdapterSettings(target_modules=("convolution",)))
    assert len(named) == len([m for m in model.modules() if isinstance(m, torch.nn.Conv2d)])
    staged = find_targets(model, AdapterSettings(target_modules=r".*stages\.1.*convolution"))
    assert staged == [name for name in named if "stages.1" in name]
    with pytest.raises(AdapterError, match="'all-linear' matches no linear layer or convolution"):
        find_targets(model, AdapterSettings())
    with pytest.raises(AdapterError, match="pissa takes linear layers only"):
        attach_adapter(
            model, AdapterSettings(kind="pissa", target_modules=("convolution",)), task_type=None
        )


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lora", "bfloat16"), ("freeze", "float32"), ("full", "float32")]
)
def test_a_base_whose_own_weights_are_trained_is_held_and_scored_in_float32(kind, dtype):
    from sftkit.adapter_kinds import find_kind, model_for
    from sftkit.settings import ModelSettings

    given = ModelSettings(name="x", dtype="bfloat16")
    held = model_for(find_kind(kind), given)
    assert held == dataclasses.replace(given, dtype=dtype)
