"""Several runs side by side: every difference is named, and what it did has its interval."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sftkit.compare import (
    NOT_SET,
    Comparison,
    Difference,
    Point,
    compare_runs,
    find_differences,
)
from sftkit.errors import RecordError
from sftkit.evidence_records import Drift
from sftkit.panels import alt_text
from sftkit.plots_compare import compared_in_words, plot_compared, point_in_words
from sftkit.recipe import recipe_to_dict
from sftkit.records import Finding, RunRecord, to_json
from sftkit.report.comparison import render_comparison
from sftkit.settings import AdapterSettings, Recipe
from tests.sample_record import (
    FORGOT,
    HOSTILE,
    RECIPE,
    hostile_record,
    label_record,
    sample_record,
    unmeasured_record,
)
from tests.test_report import check_inert


def write(folder: Path, run: RunRecord) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(to_json(run), encoding="utf-8")
    return folder


def compared(tmp_path: Path, *runs: RunRecord) -> Comparison:
    return compare_runs([write(tmp_path / f"run{n}", run) for n, run in enumerate(runs)])


def with_recipe(recipe: Recipe, **changes: Any) -> RunRecord:
    return sample_record(recipe=recipe_to_dict(recipe), **changes)


def drifted(by: float) -> RunRecord:
    drift = Drift(
        before=3.2, after=3.24 + by, delta=0.04 + by, ci95=(0.03 + by, 0.05 + by),
        passages=100, tokens=11840,
    )  # fmt: skip
    return sample_record(forgot=dataclasses.replace(FORGOT, drift=drift))


def test_every_setting_that_differs_is_named_with_both_values_and_nothing_else():
    other = dataclasses.replace(
        RECIPE,
        name="shop-small",
        adapter=AdapterSettings(r=4),
        train=dataclasses.replace(RECIPE.train, learning_rate=5e-4),
        data=dataclasses.replace(RECIPE.data, replay=None),
    )
    found = find_differences([with_recipe(RECIPE), with_recipe(other)])
    assert found == (
        Difference(part="recipe", place="name", values=("shop", "shop-small")),
        Difference(part="recipe", place="data.replay", values=("smoltalk-mini", "none")),
        Difference(part="recipe", place="adapter.r", values=("16", "4")),
        Difference(part="recipe", place="train.learning_rate", values=("0.002", "0.0005")),
    )


def test_a_difference_anywhere_in_a_recipe_is_found():
    """Each plain setting is changed once, by itself."""
    base = recipe_to_dict(RECIPE)
    places = [
        (section, key)
        for section, below in base.items()
        if isinstance(below, dict)
        for key in below
    ]
    assert len(places) > 50
    for section, key in places:
        changed = base | {section: {**base[section], key: "another one"}}
        (found,) = find_differences([sample_record(recipe=base), sample_record(recipe=changed)])
        assert found.place == f"{section}.{key}" or found.place.startswith(f"{section}.{key}.")
        assert found.values[1] in {"another one", NOT_SET}


def test_versions_devices_rows_and_findings_of_the_audit_are_compared_and_timings_are_not():
    run = sample_record()
    environment = dataclasses.replace(
        run.environment,
        versions={**run.environment.versions, "peft": "0.0.1"},
        device="another processor",
        dtype_reason="bfloat16 took 12 ms this time",
    )
    finding = Finding(
        code="D07", severity="warning", where=("row 3",), field="answer", count=4,
        message="4 empty answers", fix="Remove them.",
    )  # fmt: skip
    data = dataclasses.replace(run.data, fingerprint="sha256:other", findings=(finding,))
    found = find_differences([run, dataclasses.replace(run, environment=environment, data=data)])
    places = {one.place: one.values for one in found}
    assert places["fingerprint"] == (run.data.fingerprint, "sha256:other")
    assert places["findings.D07 answer"][1] == "warning: 4 empty answers"
    assert places["versions.peft"][1] == "0.0.1"
    assert places["device"][1] == "another processor"
    assert not any("reason" in place for place in places)


def test_a_change_beyond_both_intervals_is_called_worse_and_its_mirror_better(tmp_path):
    there = compared(tmp_path / "there", drifted(0.0), drifted(0.3))
    back = compared(tmp_path / "back", drifted(0.3), drifted(0.0))
    (drift,) = [step for step in there.steps if step.name == "drift"]
    assert (drift.run, drift.unit, drift.state) == ("B", "nats per token", "worse")
    assert drift.counted == "100 passages, from the two intervals"
    assert drift.change.value == pytest.approx(0.3)
    assert drift.change.ci95 == pytest.approx((0.28, 0.32))
    assert [step.state for step in back.steps if step.name == "drift"] == ["better"]
    assert compared_in_words(there) == "B against A: drift worse"
    assert compared_in_words(back) == "B against A: drift better"


def test_a_fall_of_knowledge_is_written_below_zero(tmp_path):
    run = sample_record()
    assert run.learned.exact is not None
    fell = dataclasses.replace(run.learned.exact, after=0.25, delta=0.25, ci95=(0.15, 0.35))
    worse = dataclasses.replace(run, learned=dataclasses.replace(run.learned, exact=fell))
    (step,) = [s for s in compared(tmp_path, run, worse).steps if s.name == "knowledge"]
    assert step.state == "worse"
    assert step.change.value == pytest.approx(-0.625)
    assert step.change.ci95 == pytest.approx((0.15 - 0.958, 0.35 - 0.778))


def test_a_change_that_the_intervals_cannot_tell_is_undecided(tmp_path):
    found = compared(tmp_path, drifted(0.0), drifted(0.015))
    assert {step.state for step in found.steps} == {"undecided"}
    assert compared_in_words(found) == "B against A: no difference shown"


def test_runs_that_measured_different_things_are_not_held_against_each_other(tmp_path):
    run = sample_record()
    environment = dataclasses.replace(run.environment, base_fingerprint="sha256:another")
    found = compared(tmp_path, run, dataclasses.replace(run, environment=environment))
    assert found.steps == ()
    assert found.comparable == ("differs: the base model.",)
    assert "they measured different things" in render_comparison(found)


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_or_too_many_runs_are_refused(count, tmp_path):
    with pytest.raises(RecordError, match=f"Compare 2 to 8 runs at a time; {count} were given"):
        compared(tmp_path, *[sample_record()] * count)


def test_classifiers_are_compared_by_their_metrics(tmp_path):
    run = label_record()
    found = compared(tmp_path, run, run)
    names = {outcome.name for outcome in found.outcomes}
    assert {"accuracy", "macro f1"} <= names
    assert [step.state for step in found.steps if step.name == "labels"] == ["undecided"]
    labels = run.learned.labels
    assert labels is not None
    measured = labels.tuned.measure("accuracy")
    assert measured.value is not None
    said = point_in_words(Point(value=measured.value, ci95=measured.ci95), "", is_change=False)
    assert said in render_comparison(found)


def test_the_page_holds_every_number_and_the_figure_its_words(tmp_path):
    found = compared(tmp_path, drifted(0.0), drifted(0.3), unmeasured_record())
    page = render_comparison(found)
    assert "+0.300 nats per token [+0.280 to +0.320]" in page
    assert "not measured" in page
    assert "<script" not in page
    words = alt_text(plot_compared(found))
    for outcome in found.outcomes:
        assert outcome.name in words
        for point in outcome.points:
            said = point_in_words(point, outcome.unit, is_change=outcome.is_change)
            assert said in page
    assert plot_compared(found).get_suptitle().replace("\n", " ") == compared_in_words(found)


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_text_stays_text_in_a_comparison(payload, tmp_path):
    plain = check_inert(render_comparison(compared(tmp_path / "a", *[sample_record()] * 2)))
    told = compared(tmp_path / "b", *[hostile_record(payload)] * 2)
    page = check_inert(render_comparison(told))
    kept = {name for name, _ in plain.tags}
    assert {name for name, _ in page.tags} <= kept
    first_word = payload.split()[0] if payload[0] != "\x1b" else "␛[31mred␛[0m"
    assert first_word in page.words


def test_a_planted_token_and_address_are_in_no_comparison(tmp_path):
    secret = "hf_" + "Ab3" * 12
    run = sample_record(name=f"by ada@example.org with {secret}")
    page = render_comparison(compared(tmp_path, run, sample_record()))
    assert secret not in page
    assert "ada@example.org" not in page


def test_the_command_line_compares_in_html_and_json(tmp_path, monkeypatch, capsys):
    from sftkit.cli import start

    one, other = write(tmp_path / "a", drifted(0.0)), write(tmp_path / "b", drifted(0.3))
    page = tmp_path / "both.html"
    command = ["sftkit", "report", str(one), str(other), "--out", str(page), "--format", "json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["letters"] == ["A", "B"]
    assert said["records"]["A"]["name"] == drifted(0.0).name
    assert [step["state"] for step in said["steps"] if step["name"] == "drift"] == ["worse"]
    assert "drift worse" in page.read_text(encoding="utf-8")
