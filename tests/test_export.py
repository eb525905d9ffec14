"""Exports answer like what was tested, and say so when they do not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sftkit import model
from sftkit.adapter import attach_adapter
from sftkit.adapter_files import load_adapter, save_adapter
from sftkit.catalog import fetch_model
from sftkit.cli import start
from sftkit.errors import AdapterError, ModelError, SftkitError
from sftkit.export import export_run, push_to_hub
from sftkit.gguf_write import QWEN2_RULE, write_gguf
from sftkit.parity import LIMITS, ParityLimits, Speaker, check_parity
from sftkit.recipe import recipe_to_dict
from sftkit.records import Answer, to_json
from sftkit.settings import AdapterSettings, DataSettings, ModelSettings, Recipe
from tests.conftest import CHATML, make_model
from tests.sample_record import label_record, sample_record

TALK = [
    [
        {"role": "user", "content": f"What does lamp number {n} cost at Dunnowick?"},
        {"role": "assistant", "content": f"{n + 3} crowns, and a lamp is a lamp."},
    ]
    for n in range(4)
]


def make_merging_tokenizer(rule: str = "") -> Any:
    """A byte-level BPE tokenizer with merges, as GGUF files carry them.

    Args:
        rule: Regular expression that cuts text before; GPT-2's if empty.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(rule), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|im_end|>", "<|im_start|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    core.train_from_iterator([turn["content"] for talk in TALK for turn in talk], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path) -> ModelSettings:
    tokenizer = make_merging_tokenizer()
    folder = tmp_path / "tiny"
    weights = make_model(vocab_size=len(tokenizer) + 3, width=64)
    weights.model.norm.weight.fill_(8.0)  # so that a rounded number shows in KL
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSettings(name=str(folder), dtype="float32")


def trained(base: ModelSettings, folder: Path, *, system: str | None = None, **how: Any) -> Path:
    """Make a finished run: an adapter that changes answers, and its record."""
    settings = AdapterSettings(r=4, **how)
    source = fetch_model(base)
    tuned = attach_adapter(model.load_model(base, source=source), settings, seed=0)
    torch.manual_seed(4)  # of an adapter without two tokens as likely as each other
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    save_adapter(tuned, folder / "adapter", base_fingerprint=source.fingerprint)
    recipe = Recipe(
        name="tiny-shop", model=base, adapter=settings,
        data=DataSettings(source="shop", split_by="split", system=system),
    )  # fmt: skip
    answers = tuple(
        Answer(question=talk[0]["content"], expected="", base="no", tuned=talk[1]["content"])
        for talk in TALK
    )
    run = sample_record(recipe=recipe_to_dict(recipe), answers=answers)
    environment = dataclasses.replace(run.environment, base_fingerprint=source.fingerprint)
    record = dataclasses.replace(run, environment=environment)
    (folder / "run.json").write_text(to_json(record), encoding="utf-8")
    return folder


@pytest.mark.parametrize("to", ["adapter", "merged", "gguf"])
def test_what_is_exported_answers_like_what_was_tested(to, base, tmp_path):
    found = export_run(trained(base, tmp_path / "run"), tmp_path / "out", to=to)
    assert found.parity.faults == ()
    assert found.parity.sentence.startswith("Answers like what was tested")
    assert (found.parity.prompts, found.parity.other_tokens) == (4, 0)
    assert found.parity.agreement >= 0.995
    names = {name for name, _ in found.files}
    wanted = {
        "adapter": {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"},
        "merged": {"config.json", "model.safetensors", "tokenizer.json"},
        "gguf": {"tiny-shop.f16.gguf", "Modelfile"},
    }
    assert wanted[to] | {"README.md", "parity.json"} <= names
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["places"] > 50
    assert not list(tmp_path.glob(".writing-*"))


def test_the_adapter_matters_so_parity_with_the_base_alone_fails(base, tmp_path):
    run = trained(base, tmp_path / "run")
    tokenizer = model.load_tokenizer(base)
    tuned = load_adapter(model.load_model(base), run / "adapter")
    alone = Speaker(model=model.load_model(base), tokenizer=tokenizer)
    found = check_parity(Speaker(model=tuned, tokenizer=tokenizer), alone, TALK, LIMITS["float32"])
    assert found.agreement < 0.9
    assert len(found.faults) == 3
    assert found.sentence.startswith("Does NOT answer alike")


def test_merged_weights_keep_tied_embeddings_and_no_trace_of_the_adapter(base, tmp_path):
    from safetensors import safe_open

    export_run(trained(base, tmp_path / "run"), tmp_path / "out", to="merged")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any("lora" in name for name in names)
    assert "lm_head.weight" not in names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


def test_merged_in_16_bits_is_held_to_the_limits_of_16_bits(base, tmp_path):
    run = trained(base, tmp_path / "run")
    found = export_run(run, tmp_path / "out", to="merged", precision="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert found.parity.max_logit > 1e-3


def test_a_swapped_template_is_flagged_with_its_first_other_token(base):
    tokenizer = model.load_tokenizer(base)
    other = model.load_tokenizer(base)
    other.chat_template = CHATML.replace("<|im_start|>{{ message['role'] }}\n", "### ")
    weights = model.load_model(base)
    found = check_parity(
        Speaker(model=weights, tokenizer=tokenizer),
        Speaker(model=weights, tokenizer=other),
        TALK,
        LIMITS["float32"],
    )
    assert found.other_tokens == 4
    assert found.agreement == 1.0
    assert found.first_other.startswith("token 0: '<|im_start|>")
    (fault,) = found.faults
    assert "template or tokenizer is not the one it was tested with" in fault


def test_a_system_prompt_that_is_lost_is_flagged(base, tmp_path):
    """The run's own prompt is part of every conversation that is compared."""
    run = trained(base, tmp_path / "run", system="Speak like a clerk.")
    with_it = export_run(run, tmp_path / "out", to="merged").parity
    run = trained(base, tmp_path / "again")
    without = export_run(run, tmp_path / "out2", to="merged").parity
    assert with_it.places > without.places


def test_not_a_number_is_beyond_every_limit(base):
    broken = model.load_model(base)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    tokenizer = model.load_tokenizer(base)
    sound = Speaker(model=model.load_model(base), tokenizer=tokenizer)
    served = Speaker(model=broken, tokenizer=tokenizer)
    assert len(check_parity(sound, served, TALK, LIMITS["q8_0"]).faults) >= 2


def test_no_conversation_is_no_parity(base):
    one = Speaker(model=model.load_model(base), tokenizer=model.load_tokenizer(base))
    with pytest.raises(ModelError, match="no conversation to compare"):
        check_parity(one, one, [], ParityLimits())


def test_a_merge_into_4_bits_is_refused_and_one_that_was_made_is_flagged(base, tmp_path):
    run = trained(base, tmp_path / "run")
    quantized = dataclasses.replace(base, quantization="nf4")
    held = load_adapter(model.load_model(quantized), run / "adapter")
    from sftkit.adapter_files import merge_adapter

    with pytest.raises(AdapterError, match="quantized"):
        merge_adapter(held)
    with pytest.warns(UserWarning, match="rounding errors"):
        merged = held.merge_and_unload()
    tokenizer = model.load_tokenizer(base)
    tuned = load_adapter(model.load_model(base), run / "adapter")
    found = check_parity(
        Speaker(model=tuned, tokenizer=tokenizer),
        Speaker(model=merged, tokenizer=tokenizer),
        TALK,
        LIMITS["float32"],
    )
    assert found.faults


def test_an_adapter_of_a_quantized_run_is_merged_into_the_unquantized_base(base, tmp_path):
    run = trained(dataclasses.replace(base, quantization="nf4"), tmp_path / "run")
    found = export_run(run, tmp_path / "out", to="merged")
    weights = model.load_model(ModelSettings(name=str(tmp_path / "out"), dtype="float32"))
    assert not getattr(weights, "is_quantized", False)
    assert found.parity.max_logit > 1e-3  # the tested base was rounded, and this one is not


def test_a_gguf_file_in_8_bits_is_smaller_and_within_its_limits(base, tmp_path):
    run = trained(base, tmp_path / "run")
    small = export_run(run, tmp_path / "q8", to="gguf", gguf="q8_0")
    large = export_run(run, tmp_path / "f16", to="gguf")
    assert small.parity.kl > large.parity.kl
    sizes = [dict(one.files)[next(n for n, _ in one.files if n.endswith("gguf"))]
             for one in (small, large)]  # fmt: skip
    assert sizes[0] < sizes[1]


def test_qwen2_with_biases_and_an_untied_head_survives_gguf(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_merging_tokenizer(QWEN2_RULE)
    torch.manual_seed(4)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    weights = Qwen2ForCausalLM(config).eval()
    torch.nn.init.constant_(weights.model.norm.weight, 8.0)
    for name, tensor in weights.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.2)
    path = write_gguf(weights, tokenizer, tmp_path / "tiny.gguf", kind="f16")
    settings = ModelSettings(name=str(path), dtype="float32")
    again = Speaker(model=model.load_model(settings), tokenizer=model.load_tokenizer(settings))
    tested = Speaker(model=weights, tokenizer=tokenizer)
    assert check_parity(tested, again, TALK, LIMITS["f16"]).faults == ()


def test_the_order_of_rows_for_llama_matters(tmp_path, base, monkeypatch):
    """Without it a file loads, speaks, and is wrong: parity sees that."""
    monkeypatch.setattr("sftkit.gguf_write._in_pairs", lambda weight, heads: weight)
    found = export_run(trained(base, tmp_path / "run"), tmp_path / "out", to="gguf")
    assert found.parity.faults


def test_other_architectures_and_tokenizers_are_refused_by_name(base, tmp_path):
    weights, tokenizer = model.load_model(base), make_merging_tokenizer()
    config: Any = weights.config
    config.model_type = "gpt_bigcode"
    with pytest.raises(ModelError, match=r"type 'gpt_bigcode' cannot be written .*llama, mistral"):
        write_gguf(weights, tokenizer, tmp_path / "x.gguf", kind="f16")
    weights = model.load_model(base)
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="would cut text into other tokens"):
        write_gguf(weights, tokenizer, tmp_path / "x.gguf", kind="f16")
    weights.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match="positions are scaled"):
        write_gguf(weights, make_merging_tokenizer(), tmp_path / "x.gguf", kind="f16")
    assert not list(tmp_path.glob("*.gguf"))


def test_numbers_too_large_for_16_bits_are_refused(base, tmp_path):
    weights = model.load_model(base)
    with torch.no_grad():
        weights.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match="too large for 16 bits"):
        write_gguf(weights, make_merging_tokenizer(), tmp_path / "x.gguf", kind="f16")
    assert not (tmp_path / "x.gguf").exists()


def test_rows_are_put_in_pairs_head_by_head():
    from sftkit.gguf_write import _in_pairs

    rows = np.arange(8.0).reshape(8, 1)
    assert _in_pairs(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_folder_in_use_a_classifier_and_a_model_from_elsewhere_are_refused(base, tmp_path):
    run = trained(base, tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ModelError, match="is there already"):
        export_run(run, tmp_path / "full")
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "run.json").write_text(to_json(label_record()), encoding="utf-8")
    with pytest.raises(SftkitError, match="its own head"):
        export_run(labels, tmp_path / "out")
    with pytest.raises(SftkitError):
        export_run(tmp_path / "nothing", tmp_path / "out")


def test_nothing_is_sent_that_holds_a_secret_and_a_dry_run_lists_what_would_be(base, tmp_path):
    out = export_run(trained(base, tmp_path / "run"), tmp_path / "out", to="adapter").folder
    lines = push_to_hub(out, "ada/shop", dry_run=True)
    assert [line.partition(" ")[0] for line in lines] == sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    )
    (out / "notes.md").write_text("token hf_" + "Ab3" * 12, encoding="utf-8")
    with pytest.raises(ModelError, match=r"notes\.md holds what looks like a secret"):
        push_to_hub(out, "ada/shop", dry_run=True)


@pytest.mark.hub
def test_a_folder_is_sent_to_the_hub(base, tmp_path):
    if os.environ["HF_HUB_OFFLINE"] != "0":  # tests/conftest.py sets it
        pytest.skip("the hub is off in tests; set HF_HUB_OFFLINE=0 and a token where it is reached")
    out = export_run(trained(base, tmp_path / "run"), tmp_path / "out", to="adapter").folder
    assert push_to_hub(out, "sftkit-tests/tiny-shop", dry_run=False)


def call(monkeypatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["sftkit", "export", *map(str, words)])
    try:
        return start()
    except SystemExit as ended:
        return int(ended.code or 0)


def test_the_command_line_exports_and_lints(base, tmp_path, monkeypatch, capsys):
    run = trained(base, tmp_path / "run")
    code = call(monkeypatch, run, "--to", "adapter", "--out", tmp_path / "a", "--check", "vllm")
    said = capsys.readouterr().out
    assert (code, "Answers like what was tested" in said) == (0, True)
    code = call(
        monkeypatch, run, "--to", "hub", "--repo", "ada/shop", "--dry-run",
        "--out", tmp_path / "b", "--format", "json",
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert any(line.startswith("README.md") for line in told["sent"])
    assert call(monkeypatch, run, "--to", "hub", "--out", tmp_path / "c") == 2


def test_an_export_that_answers_otherwise_ends_with_exit_code_1(
    base, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sftkit.gguf_write._in_pairs", lambda weight, heads: weight)
    run = trained(base, tmp_path / "run")
    assert call(monkeypatch, run, "--to", "gguf", "--out", tmp_path / "out") == 1
    assert "Does NOT answer alike" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8").count("NOT answer") == 1
