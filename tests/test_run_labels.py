"""A whole run on labels, numbers and images, with tiny models from folders."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sftkit.errors import DataError, SettingsError, TrainError
from sftkit.evidence.label_scores import make_label_measure
from sftkit.heads import save_image_form
from sftkit.labelled import ImageForm, LabelledText, Targets
from sftkit.objectives import make_objective
from sftkit.prepare_labels import prepare_labels, texts_of
from sftkit.recipe import load_recipe, recipe_from_dict
from sftkit.records import RunRecord, load_run
from sftkit.run import find_recipe, run
from sftkit.run_labels import _refuse_too_long, make_baselines
from sftkit.settings import ObjectiveSettings
from tests.conftest import make_tokenizer
from tests.test_heads import make_base, make_labelled

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def rows() -> list[dict[str, Any]]:
    made = []
    for number in range(120):
        is_tree = number % 2 == 0
        kind = "lives in trees" if is_tree else "swims in lakes"
        text = f"{SCRIPT + ' ' if number < 2 else ''}{kind} {number}"
        made.append(
            {
                "text": text,
                "label": "tree" if is_tree else "fish",
                "score": (10.0 if is_tree else 2.0) + number % 3,
                "group": f"g{number}",
            }
        )
    return made


def recipe(folder: Path, task: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """Write rows and a tiny BERT into a folder, and give a recipe for them."""
    model = folder / "model"
    if not model.exists():
        make_base("bert").save_pretrained(model)
        make_tokenizer().save_pretrained(model)
    column = "score" if task == "regress" else "label"
    data = folder / f"{task}.jsonl"
    kept = [{name: row[name] for name in ("text", column, "group")} for row in rows()]
    data.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    whole: dict[str, Any] = {
        "name": "woods",
        "model": {"name": str(model), "dtype": "float32"},
        "data": {
            "source": str(data),
            "task": task,
            "max_tokens": 64,
            "test_fraction": 0.3,
            "validation_fraction": 0.2,
        },
        "adapter": {"r": 4, "lora_alpha": 8},
        "train": {"epochs": 10, "learning_rate": 1e-2, "max_tokens_per_batch": 256},
        "evaluate": {"resamples": 200},
    }
    for name, changes in sections.items():
        whole[name] = {**whole.get(name, {}), **changes}
    return whole


def carry_out(folder: Path, task: str, **sections: dict[str, Any]) -> tuple[RunRecord, Path]:
    record = run(recipe_from_dict(recipe(folder, task, **sections)), folder / "out")
    return record, folder / "out"


def test_a_classifier_run_writes_its_whole_folder_and_the_record_reads_back(tmp_path):
    record, out = carry_out(tmp_path, "classify")

    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter",
        "metrics.jsonl",
        "plots",
        "predictions.jsonl",
        "recipe.yaml",
        "report.html",
        "run.json",
        "targets.json",
    ]
    assert load_run(out) == record
    assert load_recipe(out / "recipe.yaml").data.task == "classify"
    report = record.learned.labels
    assert report is not None
    assert report.classes == ("fish", "tree")
    assert [system.name for system in report.systems] == ["tuned", "majority", "tf-idf"]
    accuracy = report.tuned.measure("accuracy").value
    assert accuracy is not None
    assert accuracy > 0.9
    names = ("knowledge", "style", "ability", "drift")
    assert {name: getattr(record.verdicts, name).state for name in names} == {
        "knowledge": "undecided",  # TF-IDF makes no mistake here, and the model next to none
        "style": "unmeasured",
        "ability": "unmeasured",
        "drift": "unmeasured",
    }
    assert "What the base forgot was not measured." in record.verdicts.summary


def test_predictions_of_all_test_rows_are_written(tmp_path):
    record, out = carry_out(tmp_path, "classify")

    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [json.loads(line) for line in lines]
    assert len(predictions) == record.data.counts["test"]
    first = predictions[0]
    assert sorted(first) == [
        "baseline", "group", "predicted", "row", "scores", "target", "text",
    ]  # fmt: skip
    assert sum(first["scores"].values()) == pytest.approx(1.0)
    assert first["predicted"] == max(first["scores"], key=first["scores"].get)
    report = record.learned.labels
    assert report is not None
    right = sum(one["target"] == one["predicted"] for one in predictions)
    assert right / len(predictions) == pytest.approx(report.tuned.measure("accuracy").value)


def test_metrics_are_measured_while_training_and_early_stopping_looks_at_any_of_them(tmp_path):
    train = {
        "heldout_evaluations": 8,
        "epochs": 12,
        "early_stopping": "macro_f1",
        "early_stopping_patience": 2,
    }
    record, _ = carry_out(tmp_path, "classify", train=train)

    measured = [step for step in record.training.steps if step.heldout_loss is not None]
    assert set(measured[0].metrics) == {"accuracy", "macro_f1", "mcc", "auroc", "auprc"}
    assert len(record.training.steps) < record.preflight.steps  # it stopped before its end
    best = max(step.metrics["macro_f1"] for step in measured)
    kept = next(step for step in measured if step.step == record.training.kept_step)
    assert kept.metrics["macro_f1"] == best


def test_a_regression_speaks_in_the_units_of_the_data(tmp_path):
    record, out = carry_out(tmp_path, "regress", objective={"loss": "huber"})

    targets = json.loads((out / "targets.json").read_text(encoding="utf-8"))
    assert targets["task"] == "regress"
    assert 5 < targets["mean"] < 9
    report = record.learned.labels
    assert report is not None
    assert [system.name for system in report.systems] == ["tuned", "mean", "tf-idf"]
    assert all(2 <= true <= 12 for true, _ in report.points)
    mae = report.tuned.measure("mae").value
    assert mae is not None
    assert mae < 3
    page = (out / "report.html").read_text(encoding="utf-8")
    steps = record.training.steps
    held = [step.heldout_loss for step in steps if step.heldout_loss is not None]
    start = record.training.heldout_start
    said = f"from {start:.2f} to {held[-1]:.2f} huber in {len(steps)} steps."
    (alt,) = (alt for alt in re.findall(r'alt="([^"]*)"', page) if "huber" in alt)
    assert alt.startswith(f"Held-out loss fell {said}")


def test_an_image_run_goes_the_same_way(tmp_path):
    form = ImageForm(size=16)
    model = tmp_path / "model"
    make_base("resnet").save_pretrained(model)
    save_image_form(form, model)
    whole = recipe(
        tmp_path,
        "image",
        data={"source": "digits", "limit": 240},
        adapter={"r": 4, "target_modules": "convolution"},
        train={"examples_per_batch": 32},
    )
    record = run(recipe_from_dict(whole), tmp_path / "out")

    report = record.learned.labels
    assert report is not None
    assert report.task == "image"
    assert [system.name for system in report.systems] == ["tuned", "majority", "linear"]
    targets = json.loads((tmp_path / "out" / "targets.json").read_text(encoding="utf-8"))
    assert targets["image"] == {"size": 16, "mean": [0.5], "spread": [0.5], "crop": 1.0}
    assert record.preflight.example_tokens == ()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "images/s" in page


def test_the_page_and_the_card_say_what_the_run_was(tmp_path):
    record, out = carry_out(tmp_path, "classify")

    page = (out / "report.html").read_text(encoding="utf-8")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    for words in ("macro-F1", "tf-idf", "95 % intervals", "unmeasured"):
        assert words in page
    assert "AutoModelForSequenceClassification" in card
    assert "num_labels=2" in card
    assert "| macro-F1 |" in card
    assert record.verdicts.knowledge.sentence.split(":")[0] in page


def test_without_a_baseline_only_the_majority_stands_beside(tmp_path):
    record, _ = carry_out(tmp_path, "classify", evaluate={"baseline": "none"})
    report = record.learned.labels
    assert report is not None
    assert [system.name for system in report.systems] == ["tuned", "majority"]


def test_rows_too_long_are_left_out_and_counted(tmp_path):
    record, out = carry_out(tmp_path, "classify", data={"max_tokens": 17})
    assert record.preflight.refused_rows > 0
    assert "exceed max_tokens=17" in record.preflight.refused[0].reason
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) < record.data.counts["test"]
    report = record.learned.labels
    assert report is not None
    assert any("left out" in note for note in report.notes)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"replay": "boolq"}}, "data.replay='boolq' is for conversations"),
        ({"data": {"system": "Be brief."}}, "data.system='Be brief.' is for conversations"),
        ({"adapter": {"strength": 0.5}}, "adapter.strength=0.5 turns an adapter down"),
        ({"evaluate": {"adapter_scale": 0.5}}, "evaluate.adapter_scale=0.5 turns"),
    ],
)
def test_settings_that_mean_nothing_with_labels_are_refused_in_words(tmp_path, sections, words):
    with pytest.raises(SettingsError) as caught:
        run(recipe_from_dict(recipe(tmp_path, "classify", **sections)), tmp_path / "out")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"max_tokens": 15}, "No training row could be encoded"),
        ({"max_tokens": 200}, "reads at most 64. Set data.max_tokens: 64"),
    ],
)
def test_rows_that_fit_no_model_are_refused_before_training(tmp_path, data, words):
    whole = recipe(tmp_path, "classify", data=data)
    if data["max_tokens"] > 64:
        source = Path(whole["data"]["source"])
        longer = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        longer[0]["text"] *= 4
        source.write_text("".join(json.dumps(row) + "\n" for row in longer), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        run(recipe_from_dict(whole), tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out" / "adapter").exists()


def test_conversations_are_refused_where_labels_are_wanted(tmp_path):
    with pytest.raises(DataError, match="which are for chat and not to classify"):
        run(
            recipe_from_dict(recipe(tmp_path, "classify", data={"source": "shop"})),
            tmp_path / "out",
        )


def test_the_bundled_recipe_is_checked_and_asks_for_labels():
    bundled = find_recipe("privacy")
    assert (bundled.data.task, bundled.data.source, bundled.model.name) == (
        "classify",
        "privacy-qa",
        "minilm-l6",
    )
    assert dataclasses.asdict(bundled.objective)["loss"] == "auto"


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_texts_are_cut_into_pairs_that_the_encoder_reads_as_two(task, tmp_path):
    whole = recipe(tmp_path, task)
    plain, cut = (
        prepare_labels(
            recipe_from_dict({**whole, "data": {**whole["data"], **more}}),
            tokenizer=make_tokenizer(),
        )
        for more in ({}, {"pair_at": " in "})
    )
    tokenizer = make_tokenizer()
    rows_read = plain.splits.train
    for before, after in zip(plain.train, cut.train, strict=True):
        text = rows_read["text"][before.row]
        assert before.input_ids == tuple(tokenizer(text)["input_ids"])
        assert after.input_ids == tuple(tokenizer(*text.split(" in ", 1))["input_ids"])
        assert (before.target, before.row, before.group) == (after.target, after.row, after.group)
    assert texts_of(rows_read, plain.train) == texts_of(cut.splits.train, cut.train)


def test_a_text_that_cannot_be_cut_into_a_pair_is_refused_with_its_place(tmp_path):
    whole = recipe(tmp_path, "classify", data={"pair_at": "lakes"})
    with pytest.raises(DataError, match=r"classify.jsonl:1: data.pair_at='lakes' does not cut"):
        prepare_labels(recipe_from_dict(whole), tokenizer=make_tokenizer())


def test_only_texts_with_labels_or_scores_are_cut_into_pairs():
    for data in ({"task": "chat"}, {"task": "image"}, {"task": "classify", "pair_at": ""}):
        with pytest.raises(SettingsError, match=r"data\.pair_at"):
            recipe_from_dict({"name": "x", "data": {"source": "shop", "pair_at": " in ", **data}})


def test_a_run_on_pairs_says_in_its_folder_where_it_cut_them(tmp_path):
    record, out = carry_out(tmp_path, "classify", data={"pair_at": " in "})
    assert record.learned.labels is not None
    assert json.loads((out / "targets.json").read_text(encoding="utf-8"))["pair_at"] == " in "


def test_the_majority_is_that_of_the_rows_before_they_were_balanced(tmp_path):
    whole = recipe(tmp_path, "classify", data={"balance_by": "label"})
    whole["evaluate"]["baseline"] = "none"
    source = Path(whole["data"]["source"])
    lines = source.read_text(encoding="utf-8").splitlines()
    kept = [line for n, line in enumerate(lines) if n % 2 == 0 or n % 8 == 1]
    source.write_text("\n".join(kept) + "\n", encoding="utf-8")
    chosen = recipe_from_dict(whole)
    data = prepare_labels(chosen, tokenizer=make_tokenizer())
    labels = data.splits.train["label"]
    shares = [labels.count(label) / len(labels) for label in ("fish", "tree")]
    assert shares[0] < 0.3
    assert len(data.train) > len(labels)  # fish were repeated
    (majority,) = make_baselines(chosen, data)
    assert majority.test[0].tolist() == pytest.approx(shares)


@pytest.mark.parametrize(("length", "fits"), [(18, True), (19, False), (20, False)])
def test_a_roberta_has_fewer_places_than_its_configuration_says(length, fits):
    import transformers

    tf: Any = transformers
    config = tf.RobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    base = tf.RobertaForSequenceClassification(config)
    example = LabelledText(input_ids=(5,) * length, target=0, row=0)
    data: Any = SimpleNamespace(train=(example,), validation=(), test=())
    if fits:
        _refuse_too_long(base, data)
        base(input_ids=torch.tensor([example.input_ids]))
        return
    with pytest.raises(DataError, match=r"reads at most 18\. Set data\.max_tokens: 18;"):
        _refuse_too_long(base, data)


@pytest.mark.parametrize(("task", "bad"), [("classify", "nan"), ("regress", "inf")])
def test_answers_that_are_not_finite_stop_the_measure_in_words(task, bad):
    net = make_labelled(("a", "b") if task == "classify" else ("score",))
    net.classifier.bias.data.fill_(float(bad))
    examples = [LabelledText(input_ids=(5, 6), target=n % 2, row=n) for n in range(4)]
    targets = Targets(labels=("a", "b")) if task == "classify" else Targets()
    objective = make_objective(task, ObjectiveSettings())
    measure = make_label_measure(net, examples, targets, objective, task)
    assert measure is not None
    with pytest.raises(TrainError, match="answers to 4 of 4 validation examples are not finite"):
        measure()


@pytest.mark.parametrize("same", [True, False])
def test_the_run_says_whether_the_head_is_the_checkpoints_own(tmp_path, capsys, same):
    whole = recipe(tmp_path, "classify", train={"max_steps": 1})
    names = ("fish", "tree") if same else ("NEGATIVE", "POSITIVE")
    make_labelled(names).save_pretrained(whole["model"]["name"])
    run(recipe_from_dict(whole), tmp_path / "out")
    told = capsys.readouterr()
    assert ("the head is the checkpoint's own for these labels" in told.out + told.err) is same
    assert ("the head is fresh (seed 0)" in told.out + told.err) is not same
