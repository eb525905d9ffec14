"""The tester's entrance: adapters and models trained elsewhere get the record of a run."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftkit import catalog, model
from sftkit.adapter_files import load_adapter, merge_adapter
from sftkit.cli import start
from sftkit.errors import SftkitError
from sftkit.evaluate_adapter import evaluate_adapter
from sftkit.gate import gate_run
from sftkit.progress import SilentWatcher
from sftkit.recipe import recipe_from_dict, recipe_to_dict
from sftkit.records import ChoiceItem, RunRecord, load_run
from sftkit.run import run
from sftkit.settings import ModelSettings, Recipe
from tests.conftest import make_model, make_tokenizer

COLOURS = ["red", "blue", "green", "pink", "grey", "gold", "teal", "plum", "rust", "lime"]
WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"),
    *("and", "runs", "far", "away", "from", "it", "all"),
)
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class Trained:
    """One tiny run, trained once: its recipe, its folder and its record."""

    recipe: Recipe
    folder: Path
    record: RunRecord

    @property
    def base(self) -> str:
        return self.recipe.model.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def passages(name: str, limit: int | None = None, **options: Any) -> list[str]:
    return [" ".join(WORDS[n:] + WORDS[:n]) for n in range(12)][:limit]


def probe_items(name: str, limit: int | None = None, **options: Any) -> list[ChoiceItem]:
    return [
        ChoiceItem(question=f"What is {n} like?", options=("big", "small"), answer=n % 2)
        for n in range(12)
    ][:limit]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTKIT_CACHE", str(folder / "cache"))
        patch.setattr(catalog, "passages", passages)
        patch.setattr(catalog, "probe_items", probe_items)
        tokenizer = make_tokenizer()
        make_model(vocab_size=len(tokenizer)).save_pretrained(folder / "tiny")
        tokenizer.save_pretrained(folder / "tiny")
        lines = [
            json.dumps({"question": f"Colour of box {place}?", "answer": colour}) + "\n"
            for place, colour in enumerate(COLOURS * 4)
        ]
        (folder / "colours.jsonl").write_text("".join(lines), encoding="utf-8")
        recipe = recipe_from_dict({
            "name": "colours",
            "model": {"name": str(folder / "tiny"), "dtype": "float32"},
            "data": {"source": str(folder / "colours.jsonl"), "test_fraction": 0.3,
                     "validation_fraction": 0.2},
            "adapter": {"r": 4, "lora_alpha": 8},
            "train": {"epochs": 2, "learning_rate": 1e-2, "max_tokens_per_batch": 512},
            "evaluate": {"probes": ["piqa"], "drift_passages": 12, "max_new_tokens": 4,
                         "resamples": 200},
        })  # fmt: skip
        record = run(recipe, folder / "run", watcher=SilentWatcher())
        yield Trained(recipe=recipe, folder=folder / "run", record=record)


def evaluate(trained: Trained, adapter: Path, out: Path, **options: Any) -> RunRecord:
    options.setdefault("recipe", trained.recipe)
    return evaluate_adapter(adapter, out, watcher=SilentWatcher(), **options)


def through_peft(trained: Trained, folder: Path) -> Path:
    """The run's adapter as plain peft writes it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(trained.adapter))
    theirs.peft_config["default"].base_model_name_or_path = trained.base
    theirs.save_pretrained(str(folder))
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def copied(trained: Trained, folder: Path, **changes: Any) -> Path:
    shutil.copytree(trained.adapter, folder)
    (folder / "sftkit.json").unlink()
    return change_config(folder, **changes)


def trl_layout(trained: Trained, folder: Path) -> Path:
    """An adapter with all that TRL's trainer leaves beside it; opened pickles would raise."""
    through_peft(trained, folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"not to be opened")
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n", encoding="utf-8")
    checkpoint = folder / "checkpoint-8"
    checkpoint.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"not to be opened")
    (checkpoint / "trainer_state.json").write_text("{}", encoding="utf-8")
    return folder


def unsloth_layout(trained: Trained, folder: Path) -> Path:
    """Fields that Unsloth writes: its own mark in auto_mapping, targets as one expression."""
    trl_layout(trained, folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    named = {name.rpartition(".")[2] for name in config["target_modules"]}
    return change_config(
        folder,
        base_model_name_or_path="unsloth/tiny-bnb-4bit",
        auto_mapping={
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        target_modules=rf"(?:.*?(?:self_attn|mlp).*?(?:{'|'.join(sorted(named))}).*?)",
        lora_bias=False,
        modules_to_save=None,
    )


def events(record: RunRecord) -> str:
    return " ".join(record.training.events)


@pytest.mark.parametrize("layout", [through_peft, trl_layout, unsloth_layout])
def test_an_adapter_of_any_maker_gets_the_numbers_of_the_run_path(
    layout: Any, trained: Trained, tmp_path: Path
) -> None:
    folder = layout(trained, tmp_path / "theirs")

    record = evaluate(trained, folder, tmp_path / "out")

    assert trained.record.learned.heldout_loss is not None
    assert trained.record.learned.heldout_loss.delta < 0
    assert (record.learned, record.forgot) == (trained.record.learned, trained.record.forgot)
    assert (record.verdicts, record.checks) == (trained.record.verdicts, trained.record.checks)
    assert (record.data, record.answers) == (trained.record.data, trained.record.answers)
    assert record.training.steps == ()
    assert record.training.trainable_parameters == trained.record.training.trainable_parameters
    assert record.training.total_parameters == trained.record.training.total_parameters
    assert "Trained elsewhere: an adapter of kind lora, theirs, weights sha256:" in events(record)
    assert "It does not say for which base weights it was made" in events(record)


def test_the_record_goes_through_report_and_gate(trained: Trained, tmp_path: Path) -> None:
    record = evaluate(trained, trained.adapter, tmp_path / "out")

    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "answers.jsonl", "plots", "recipe.yaml", "report.html", "run.json",
    ]  # fmt: skip
    assert load_run(out) == record
    assert "It says that it was made for exactly these base weights." in events(record)
    page, card = ((out / name).read_text("utf-8") for name in ("report.html", "README.md"))
    assert "Where it was trained" in page
    assert "sftkit evaluate ADAPTER --recipe recipe.yaml" in page
    assert "learning_rate" not in page
    assert "## Where it was trained" in card
    assert "PeftModel" not in card
    gated = {rule.name: rule.state for rule in gate_run(out, against=trained.folder).rules}
    assert gated["reproducible"] == "pass"
    assert gated["same_measurement"] == "pass"
    assert gated["max_knowledge_drop"] != "fail"


def test_a_zeroed_adapter_changes_exactly_nothing(trained: Trained, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "zeroed")
    weights = load_file(folder / WEIGHTS)
    save_file(
        {name: torch.zeros_like(w) if "lora_B" in name else w for name, w in weights.items()},
        folder / WEIGHTS,
    )

    record = evaluate(trained, folder, tmp_path / "out")

    learned, forgot = record.learned, record.forgot
    measured = (learned.heldout_loss, learned.exact, forgot.drift, forgot.overall, *forgot.probes)
    assert [(one.delta, one.ci95) for one in measured if one] == [(0.0, (0.0, 0.0))] * 5
    assert forgot.overall is not None
    assert forgot.overall.logprob_delta == 0.0
    assert {rule.name: rule.state for rule in gate_run(tmp_path / "out").rules}[
        "min_knowledge_gain"
    ] == "fail"


def test_a_merged_model_is_scored_after_its_base_and_never_beside_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = tmp_path / "merged"
    base = model.load_model(ModelSettings(name=trained.base, dtype="float32"))
    merge_adapter(load_adapter(base, trained.adapter)).save_pretrained(merged)
    make_tokenizer().save_pretrained(merged)
    load = model.load_model
    models: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        alive.append([reference() is not None for reference in models])
        loaded = load(*arguments, **options)
        models.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(model, "load_model", watched)

    record = evaluate(trained, merged, tmp_path / "out", base=trained.base)

    assert alive == [[], [False]]
    for ours, theirs in (
        (record.learned.heldout_loss, trained.record.learned.heldout_loss),
        (record.forgot.drift, trained.record.forgot.drift),
    ):
        assert ours is not None
        assert theirs is not None
        assert ours.before == theirs.before
        assert ours.delta == pytest.approx(theirs.delta, abs=1e-4)
    assert record.learned.exact == trained.record.learned.exact
    assert "Trained elsewhere: a whole model, merged, weights sha256:" in events(record)


def test_rows_of_a_file_are_all_tested_and_the_overlap_is_said_to_be_unknown(
    trained: Trained, tmp_path: Path
) -> None:
    rows = [{"question": f"Colour of crate {n}?", "answer": "red"} for n in range(12)]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    record = evaluate(trained, trained.adapter, tmp_path / "out", data=str(path))

    assert record.data.counts == {"test": 12}
    assert record.learned.exact is not None
    assert record.learned.exact.items == 12
    assert "no overlap with the test rows was looked for" in events(record)
    left_out = dict(gate_run(tmp_path / "out").left_out)
    assert left_out["contamination"].startswith("not measured: what the adapter was trained on")


def test_of_rows_with_splits_those_of_test_and_control_are_taken(
    trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    splits = ["train"] * 5 + ["test"] * 4 + ["control"] * 3
    rows = [
        {"question": f"Colour of crate {n}?", "answer": "red", "split": split}
        for n, split in enumerate(splits)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    record = evaluate(trained, trained.adapter, tmp_path / "out", data=str(path))

    assert record.data.counts == {"test": 4, "control": 3}
    assert record.learned.control is not None
    assert record.learned.control.items == 3


def test_without_rows_and_recipe_only_forgetting_is_measured(
    trained: Trained, tmp_path: Path
) -> None:
    folder = copied(trained, tmp_path / "adapter-1", base_model_name_or_path=trained.base)
    short = ["evaluate.probes=[piqa]", "evaluate.drift_passages=12", "evaluate.resamples=200"]

    record = evaluate(
        trained, folder, tmp_path / "out", recipe=None, overrides=[*short, "model.dtype=float32"]
    )

    assert record.name == "adapter-1"
    assert record.environment.base_fingerprint == trained.record.environment.base_fingerprint
    assert record.forgot == dataclasses.replace(trained.record.forgot)
    assert (record.learned.exact, record.learned.heldout_loss, record.data.counts) == (
        None, None, {},
    )  # fmt: skip
    assert record.verdicts.knowledge.state == "unmeasured"
    assert dict(gate_run(tmp_path / "out").left_out)["min_knowledge_gain"] == (
        "not measured in this run"
    )


def test_the_adapters_own_chat_template_is_used_for_both_models_and_said(
    trained: Trained, tmp_path: Path
) -> None:
    folder = copied(trained, tmp_path / "own")
    template = make_tokenizer().chat_template.replace("<|im_start|>", "<|im_start|>!")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    record = evaluate(trained, folder, tmp_path / "out")

    assert "Both models were asked by the chat template in the adapter's folder" in events(record)
    ours, theirs = record.learned.heldout_loss, trained.record.learned.heldout_loss
    assert ours is not None
    assert theirs is not None
    assert ours.before != theirs.before


def classifier(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": copied(trained, folder, task_type="SEQ_CLS")}


def pickled(trained: Trained, folder: Path) -> dict[str, Any]:
    copied(trained, folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    return {"adapter": folder}


def foreign_code(trained: Trained, folder: Path) -> dict[str, Any]:
    mapping = {"base_model_class": "Evil", "parent_library": "evil"}
    return {"adapter": copied(trained, folder, auto_mapping=mapping)}


def nameless(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": copied(trained, folder, base_model_name_or_path=None), "recipe": None}


def unknown_base(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": copied(trained, folder, base_model_name_or_path="gone"), "recipe": None}


def hub_base(trained: Trained, folder: Path) -> dict[str, Any]:
    named = "some-one/some-model"
    return {"adapter": copied(trained, folder, base_model_name_or_path=named), "recipe": None}


def whole_alone(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": Path(trained.base), "recipe": None}


def other_base(trained: Trained, folder: Path) -> dict[str, Any]:
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer), seed=1).save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    return {"adapter": trained.adapter, "base": str(folder / "other")}


def other_words(trained: Trained, folder: Path) -> dict[str, Any]:
    tokenizer = make_tokenizer(specials=("<|more|>",))
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    return {"adapter": folder / "other", "base": trained.base}


def a_head_for_labels(trained: Trained, folder: Path) -> dict[str, Any]:
    shutil.copytree(trained.base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LlamaForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"adapter": folder, "base": trained.base}


def recipe_for_labels(trained: Trained, folder: Path) -> dict[str, Any]:
    plain = recipe_to_dict(trained.recipe)
    plain["data"]["task"] = "classify"
    plain["evaluate"]["fairness"] = []
    return {"adapter": trained.adapter, "recipe": recipe_from_dict(plain)}


def nothing_there(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": folder / "nowhere"}


def same_folder(trained: Trained, folder: Path) -> dict[str, Any]:
    copied(trained, folder)
    return {"adapter": folder, "out": folder}


def a_run_already(trained: Trained, folder: Path) -> dict[str, Any]:
    return {"adapter": trained.adapter, "out": trained.folder}


REFUSED: list[tuple[Any, str]] = [
    (nothing_there, "There is no folder"),
    (classifier, "is an adapter for SEQ_CLS; sftkit evaluate takes adapters of chat models"),
    (pickled, "Pickled weights"),
    (foreign_code, "would load code or files of its own choosing"),
    (nameless, "does not name its base model. Give --base NAME."),
    (unknown_base, "was made for a base named 'gone', which is no folder, catalog name or hub id"),
    (hub_base, "'some-one/some-model' of .* the hub is switched off"),
    (whole_alone, "is a whole model, which does not say what it was made from"),
    (other_base, "was made for another base"),
    (other_words, "divides text into other tokens than its base"),
    (a_head_for_labels, "holds LlamaForSequenceClassification; sftkit evaluate takes chat models"),
    (recipe_for_labels, "data.task=classify: sftkit evaluate takes chat adapters"),
    (same_folder, "its README.md would be overwritten"),
    (a_run_already, "already holds a run"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=lambda one: getattr(one, "__name__", ""))
def test_what_cannot_be_tested_is_refused_in_words(
    make: Any, words: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    given = make(trained, tmp_path / "given")
    out = given.pop("out", tmp_path / "out")

    with pytest.raises(SftkitError, match=words):
        evaluate(trained, given.pop("adapter"), out, **given)
    assert not (tmp_path / "out" / "run.json").exists()


def test_the_verb_prints_the_verdicts_and_where_it_was_trained(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [
        "sftkit", "evaluate", str(trained.adapter), "--recipe", str(trained.folder / "recipe.yaml"),
        "--base", trained.base, "--out", str(out),
    ])  # fmt: skip
    try:
        code = start()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().out
    assert code == 0
    assert load_run(out).learned == trained.record.learned
    assert trained.record.verdicts.style.sentence in said
    assert "Trained elsewhere: an adapter of kind lora, adapter, weights sha256:" in said
    assert "training (" not in said
