"""Runs whose recipe asks for fairness or calibration: record, report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_run_labels import recipe  # type: ignore[import-not-found]

from sftkit.check_labels import make_asker
from sftkit.errors import DataError, SettingsError
from sftkit.evidence.label_scores import score_labels
from sftkit.labelled import encode_labelled, fit_targets
from sftkit.recipe import recipe_from_dict
from sftkit.records import load_run
from sftkit.run import run
from sftkit.settings import DataSettings
from tests.conftest import make_tokenizer
from tests.test_heads import make_labelled


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def asked(folder: Path, task: str = "classify", **evaluate: Any) -> Any:
    whole = recipe(folder, task, train={"epochs": 3})
    whole["evaluate"] |= {"baseline": "none", **evaluate}
    source = Path(whole["data"]["source"])
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["region"] = "<i>north</i>" if number % 3 else "south"
        row["text"] = f"{('He', 'She')[number // 2 % 2]} {row['text']}"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return recipe_from_dict(whole)


def test_a_classifiers_gaps_and_calibration_are_in_its_record_and_its_report(tmp_path):
    record = run(
        asked(tmp_path, fairness=["gender", "column:region"], calibration=True), tmp_path / "out"
    )
    assert load_run(tmp_path / "out") == record
    named = [(gap.attribute, gap.name) for gap in record.checks.fairness]
    assert named[:3] == [
        ("gender", "predicted class changes"),
        ("gender", "probability of tree"),
        ("gender", "accuracy"),
    ]
    assert ("region", "accuracy") in named
    (accuracy,) = (g for g in record.checks.fairness if (g.attribute, g.name) == named[2])
    assert accuracy.groups == ("female", "male")
    report = record.learned.labels
    assert report is not None
    assert accuracy.items == report.items
    calibration = record.checks.calibration
    assert calibration is not None
    assert calibration.items == report.items
    assert calibration.validation_items == record.data.counts["validation"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<i>north</i>" not in page
    assert "&lt;i&gt;north&lt;/i&gt;" in page
    assert f"{calibration.ece:.3f}" in page
    plots = {path.stem for path in (tmp_path / "out" / "plots").iterdir()}
    assert {"reliability", "selective", "fairness"} <= plots


def test_a_regressions_gap_is_of_its_numbers(tmp_path):
    record = run(asked(tmp_path, "regress", fairness=["name"]), tmp_path / "out")
    (gap,) = record.checks.fairness
    assert (gap.attribute, gap.name, gap.unit) == ("name", "predicted number", "data's own unit")
    assert record.checks.calibration is None


@pytest.mark.parametrize(
    ("task", "evaluate", "words"),
    [
        ("classify", {"fairness": ["wino"]}, "evaluate.fairness=wino does not fit data.task=class"),
        ("classify", {"fairness": ["gander"]}, "Valid: gender, name, nationality, column:NAME."),
        ("regress", {"fairness": ["column:region"]}, "Valid: gender, name, nationality."),
        ("regress", {"calibration": True}, "needs classes, and data.task=regress has none"),
    ],
)
def test_checks_that_fit_no_task_are_refused(tmp_path, task, evaluate, words):
    with pytest.raises(SettingsError) as caught:
        asked(tmp_path, task, **evaluate)
    assert words in str(caught.value)


def test_a_chat_model_has_bias_sets_only_and_calibration_needs_probes():
    for evaluate, words in (
        ({"fairness": ["gender"]}, "Valid: stereoset, wino, crows-pairs."),
        ({"calibration": True, "probes": []}, "evaluate.calibration needs probes."),
    ):
        with pytest.raises(SettingsError) as caught:
            recipe_from_dict({"name": "x", "data": {"source": "shop"}, "evaluate": evaluate})
        assert words in str(caught.value)


def test_a_column_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="names the column country, and the rows have"):
        run(asked(tmp_path, fairness=["column:country"]), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize("pair_at", [None, " in "])
def test_any_text_is_asked_as_the_rows_of_the_data_are(pair_at):
    model, tokenizer = make_labelled(("fish", "tree")).eval(), make_tokenizer()
    texts = ["swims in lakes", "a much longer one that nests in trees and more", "is in"]
    targets = fit_targets([{"label": "fish"}, {"label": "tree"}], "classify")
    say = make_asker(
        model, tokenizer, targets, DataSettings(source="x", pair_at=pair_at, task="classify"),
        max_tokens=30,
    )  # fmt: skip
    rows: list[dict[str, Any]] = [{"text": texts[0], "label": "tree"}]
    if pair_at:
        rows = [{"text": "swims", "text_pair": "lakes", "label": "tree"}]
        texts[2] = "it is in it"
    examples = encode_labelled(rows, tokenizer, targets, max_tokens=30).examples
    answers = say(texts)
    assert answers[0] == pytest.approx(score_labels(model, examples, targets)[0])
    assert np.isnan(answers[1]).all()
    assert np.isfinite(answers[2]).all()
