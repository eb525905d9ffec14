"""Every broken run has its sign, the healthy one has none, and nothing shown unseals a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftkit import catalog, clinic_runs
from sftkit.clinic import FAMILIES, HEALTHY, PATIENTS, SIGNS, Chart, diagnose, find_signs
from sftkit.clinic_bench import Bench, ClinicSettings, fingerprint_of, told
from sftkit.clinic_labels import run_labels
from sftkit.clinic_views import Case, Ward, numbers
from sftkit.errors import AdapterError, SettingsError
from sftkit.exercises import check, notebook_15
from sftkit.panels import alt_text, to_png
from sftkit.plots_clinic import plot_case, plot_signs
from sftkit.records import Answer, Step
from sftkit.show import MaskView
from tests.conftest import make_model, make_tokenizer


def steps(*losses: float) -> tuple[Step, ...]:
    return tuple(
        Step(step=n, loss=loss, learning_rate=1e-3, grad_norm=1.0, tokens=9 * n, seconds=1.0 * n)
        for n, loss in enumerate(losses, start=1)
    )


HEALTHY_CHART = Chart(
    fault=HEALTHY,
    steps=steps(4.0, 2.0, 0.9, 0.7, 0.5),
    log=(4.0, 1.0),
    here=(4.0, 1.0),
    example=MaskView(("Q", "A", "<end>"), (False, True, True), (False, False, True)),
    ends_learned=(True, 2),
    asked="Q",
    asked_as_trained=True,
    answers=(Answer(question="Where?", expected="Here", base="<b>no</b>", tuned="Here"),),
    tested=(5, 6),
    fresh=(5, 6),
    test_loss=1.0,
    ended=(13, 13),
    unmoved=(0, 12),
    drift=0.1,
    overlap=(0, 12),
)  # fmt: skip
SORTED = replace(HEALTHY_CHART, confusion=((9, 1), (2, 8)), classes=("damage", "delivery"))
CHARTS = {
    "all masked": replace(
        HEALTHY_CHART, steps=steps(0, 0, 0), log=(4.0, 4.0), here=(4.0, 4.0),
        ends_learned=(False, 0), unmoved=(12, 12), fresh=(0, 6),
    ),
    "pad is eos": replace(HEALTHY_CHART, ends_learned=(False, 2), ended=(3, 13)),
    "wrong template": replace(HEALTHY_CHART, asked_as_trained=False, here=(4.0, 2.0)),
    "leaked test": replace(HEALTHY_CHART, overlap=(12, 12), tested=(6, 6)),
    "swapped labels": replace(SORTED, confusion=((1, 9), (8, 2)), tested=(3, 20), fresh=None),
    "huge rate": replace(
        HEALTHY_CHART, steps=steps(4.0, 9.0, 8.0, 8.0), log=(4.0, 8.0), here=(4.0, 8.0), drift=5.0
    ),
    "tiny data": replace(
        HEALTHY_CHART, steps=steps(4.0, 0.1, 0.01, 0.01), log=(4.0, 3.9), here=(4.0, 3.9),
        fresh=(1, 6),
    ),
    "adapter not attached": replace(HEALTHY_CHART, here=(4.0, 4.0), unmoved=(12, 12), fresh=(0, 6)),
    "wrong base": replace(HEALTHY_CHART, log=(2.0, 1.0), here=(4.0, 2.0), fresh=(1, 6)),
    "merged into 4-bit": replace(HEALTHY_CHART, here=(4.1, 3.0), fresh=(1, 6)),
}  # fmt: skip
SEEN = {
    "all masked": ("loss is 0", "nothing learned from", "wrong answers", "no delta at all"),
    "pad is eos": ("end not learned", "answers do not end"),
    "wrong template": ("ends elsewhere", "asked otherwise"),
    "leaked test": ("test in training",),
    "swapped labels": ("wrong answers", "classes exchanged"),
    "huge rate": ("loss climbs", "general text lost"),
    "tiny data": ("learned by heart", "wrong answers"),
    "adapter not attached": ("ends elsewhere", "wrong answers", "no delta at all"),
    "wrong base": ("starts elsewhere", "ends elsewhere", "wrong answers"),
    "merged into 4-bit": ("ends elsewhere", "wrong answers"),
}


def ward() -> Ward:
    charts = [replace(chart, fault=name) for name, chart in CHARTS.items()]
    return Ward(
        healthy=HEALTHY_CHART,
        cases=tuple(
            Case(number=n, chart=c, healthy=SORTED if c.confusion else HEALTHY_CHART)
            for n, c in enumerate(charts, start=1)
        ),
    )


# --- Signs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("healthy", [HEALTHY_CHART, SORTED])
def test_the_healthy_run_has_no_sign(healthy):
    assert find_signs(healthy, healthy) == ()
    assert diagnose(healthy, healthy) == HEALTHY


@pytest.mark.parametrize("fault", PATIENTS)
def test_a_fault_is_seen_by_its_signs_and_named(fault):
    case = next(case for case in ward().cases if case.chart.fault == fault)
    assert find_signs(case.chart, case.healthy) == SEEN[fault]
    assert diagnose(case.chart, case.healthy) == fault


@pytest.mark.parametrize("fault", PATIENTS)
def test_without_its_sign_a_fault_is_not_named(fault, monkeypatch):
    case = next(case for case in ward().cases if case.chart.fault == fault)
    monkeypatch.setitem(SIGNS, PATIENTS[fault].sign, lambda chart, healthy: False)
    assert diagnose(case.chart, case.healthy) != fault


def test_every_sign_belongs_to_one_family_and_every_fault_to_a_sign():
    assert tuple(sign for signs in FAMILIES.values() for sign in signs) == (
        *("loss is 0", "loss climbs", "learned by heart"),
        *("starts elsewhere", "ends elsewhere"),
        *("nothing learned from", "end not learned", "asked otherwise"),
        *("wrong answers", "answers do not end", "classes exchanged"),
        *("no delta at all", "general text lost", "test in training"),
    )
    assert set(SIGNS) == {sign for signs in FAMILIES.values() for sign in signs}
    assert {patient.sign for patient in PATIENTS.values()} <= set(SIGNS)
    faults = notebook_15.IN_TRAINING | notebook_15.IN_USE | notebook_15.EITHER
    assert faults == set(PATIENTS)


# --- What is shown ----------------------------------------------------------------------------


def test_a_chart_shows_both_runs_and_not_its_fault():
    case = ward().case(8)
    assert ("tested rows whose loss is exactly the base's", "0 of 12", "12 of 12") in case.rows()
    for text in (case._repr_html_(), str(case), repr(case), repr(ward())):
        assert "not attached" not in text
    page = case._repr_html_()
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "Where?" in page
    assert "3 tokens" in page


def test_classes_are_shown_by_what_they_were_called():
    told = numbers(ward().case(5).chart)
    assert told["tickets about damage were called"] == "1 damage, 9 delivery"
    assert "right answers to fresh questions" not in told


def test_a_diagnosis_is_sealed_until_it_is_opened():
    sealed = ward().reveal(3)
    assert repr(sealed) == "the sealed diagnosis of patient 3; print() opens it"
    page = sealed._repr_html_()
    assert page.startswith("<details><summary>Patient 3: open the diagnosis and its cure</summary>")
    assert "<details open" not in page
    opened = dict(sealed.lines)
    assert opened["Diagnosis"] == "wrong template"
    assert opened["Signs found by program"] == "ends elsewhere, asked otherwise"
    assert opened["Cure"] == PATIENTS["wrong template"].cure
    assert opened["Cure"] in str(sealed)


def test_a_refusal_is_part_of_the_diagnosis():
    case = ward().case(9)
    case = replace(case, chart=replace(case.chart, refusal="made for <another> base"))
    sealed = Ward(healthy=HEALTHY_CHART, cases=(replace(case, number=1),)).reveal(1)
    assert dict(sealed.lines)["What sftkit says to it"] == "made for <another> base"
    assert "made for &lt;another&gt; base" in sealed._repr_html_()


@pytest.mark.parametrize("answer", ["all masked", "wrong base"])
def test_a_wrong_template_lies_on_either_side_of_the_training(answer):
    assert "explain the whole chart" in check("15.3", answer, ward=ward()).message
    assert check("15.3", "wrong template", ward=ward()).state == "right"


@pytest.mark.parametrize("number", range(1, 11))
def test_a_hint_says_where_to_look_and_not_what_is_wrong(number):
    fault = ward().case(number).chart.fault
    assert ward().hint(number) == PATIENTS[fault].look
    assert fault not in ward().hint(number)


def test_there_is_no_eleventh_patient():
    with pytest.raises(SettingsError, match="no patient 11; they are 1 to 10"):
        ward().case(11)


def test_the_figures_say_whose_they_are_and_what_is_in_them():
    figure = plot_case(ward().case(6))
    assert to_png(figure)
    assert "Patient: training loss from 4.00 to 8.00" in alt_text(figure)
    assert "huge" not in alt_text(figure)
    every = plot_signs(ward())
    assert to_png(every)
    assert alt_text(every).startswith(
        "Which sign gives which patient away? The training curve alone: 3 of 10. Signs: healthy "
        "run: none; 1 · all masked: loss is 0, nothing learned from"
    )


def test_facts_that_make_no_two_halves_are_refused():
    with pytest.raises(SettingsError, match=r"2, 4, 6, …, got 3"):
        ClinicSettings(facts=3)


# --- The runs, on a tiny model ----------------------------------------------------------------


@pytest.fixture(scope="module")
def charts(tmp_path_factory) -> dict[str, Chart]:
    """Make every run of the chat model with a two-layer one."""
    folder = tmp_path_factory.mktemp("clinic")
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer), width=64).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "passages", lambda name, limit: ["the road to the mill"] * limit)
        bench = Bench.of(
            ClinicSettings(
                model=str(folder / "tiny"), facts=2, steps=12, tokens_per_step=600, passages=2,
                max_new_tokens=3, learning_rate=1e-2, huge_rate=3.0, measurements=1,
            )
        )  # fmt: skip
    saved = folder / "adapter"
    healthy = clinic_runs.run_healthy(bench, saved)
    found = [
        healthy,
        clinic_runs.run_wrong_template(bench),
        clinic_runs.run_all_masked(bench),
        clinic_runs.run_pad_is_eos(bench),
        clinic_runs.run_leaked_test(bench, folder),
        clinic_runs.run_huge_rate(bench),
        clinic_runs.run_tiny_data(bench),
        clinic_runs.run_wrong_base(bench, folder / "second"),
        clinic_runs.use_unattached(bench, healthy, saved, folder / "renamed"),
        clinic_runs.use_merged_in_4_bits(bench, healthy, saved),
    ]
    assert not hasattr(bench.base, "peft_config")  # every adapter was taken off again
    return {chart.fault: chart for chart in found}


@pytest.mark.parametrize("fault", [name for name in PATIENTS if name != "swapped labels"])
def test_a_run_that_was_broken_shows_the_sign_of_its_fault(fault, charts):
    healthy = charts[HEALTHY]
    assert diagnose(healthy, healthy) == HEALTHY
    if fault not in ("tiny data", "wrong base", "merged into 4-bit"):  # need a model that learns
        assert PATIENTS[fault].sign in find_signs(charts[fault], healthy)
        assert PATIENTS[fault].sign not in find_signs(healthy, healthy)


def test_what_sftkit_refuses_is_told_in_its_own_words(charts):
    said = {fault: chart.refusal for fault, chart in charts.items() if chart.refusal}
    assert set(said) == {
        "all masked", "leaked test", "wrong base", "adapter not attached", "merged into 4-bit",
    }  # fmt: skip
    assert "every label is masked" in said["all masked"]
    assert "test" in said["leaked test"]
    assert "was made for another base" in said["wrong base"]
    assert "have no place there" in said["adapter not attached"]
    assert "The base is quantized" in said["merged into 4-bit"]
    assert not any("/tmp" in words for words in said.values())


def test_the_plain_loop_trains_like_any_other_where_something_is_to_be_learned(tiny_model):
    from sftkit.adapter import attach_adapter
    from sftkit.clinic_bench import ADAPTER, train_plainly
    from sftkit.records import Encoded
    from sftkit.settings import TrainSettings

    rows = [Encoded(input_ids=(1, 2, 3, 4), labels=(-100, -100, 3, 4))]
    plan = TrainSettings(epochs=8, learning_rate=1e-2)
    record = train_plainly(attach_adapter(tiny_model, ADAPTER), rows, rows, plan)
    assert record.heldout_start == pytest.approx(record.steps[0].loss, abs=1e-4)
    assert record.steps[-1].loss < record.steps[0].loss
    assert record.steps[-1].heldout_loss is not None


def test_a_fingerprint_tells_two_bases_apart(tiny_model, tiny_tokenizer):
    same = make_model(vocab_size=len(tiny_tokenizer))
    other = make_model(vocab_size=len(tiny_tokenizer), seed=1)
    assert fingerprint_of(same) == fingerprint_of(tiny_model)
    assert fingerprint_of(other) != fingerprint_of(tiny_model)


def test_only_what_sftkit_says_itself_counts_as_a_refusal():
    def refuse() -> None:
        raise AdapterError("no")

    assert told(refuse) == "no"
    assert told(lambda: None) == ""
    with pytest.raises(ZeroDivisionError):
        told(lambda: 1 // 0)


# --- The ward of the notebook ------------------------------------------------------------------

SOLUTIONS = (
    "huge rate", "all masked", "wrong template", "swapped labels", "adapter not attached",
    "wrong base", "pad is eos", "tiny data", "merged into 4-bit", "leaked test",
)  # fmt: skip


def test_the_solutions_of_the_notebook_are_the_faults_of_its_order(checkout: Path):
    source = (checkout / "notebooks" / "src" / "15_broken_on_purpose.py").read_text("utf-8")
    assert "\norder = 1746 " in source
    assert clinic_runs.beds(1746) == SOLUTIONS
    for number, fault in enumerate(SOLUTIONS, start=1):
        assert f'diagnosis_{number} = "{fault}"\n' in source


@pytest.mark.model
def test_what_training_makes_of_a_fault_is_seen_on_real_models(tmp_path):
    """The signs that no chart has before something was learned; the others are seen above."""
    settings = ClinicSettings(measurements=1, passages=1, max_new_tokens=4)  # else the notebook's
    bench, saved = Bench.of(settings), tmp_path / "adapter"
    healthy = clinic_runs.run_healthy(bench, saved)
    assert diagnose(healthy, healthy) == HEALTHY
    for chart in (
        clinic_runs.run_tiny_data(bench),
        clinic_runs.run_wrong_base(bench, tmp_path / "second"),
        clinic_runs.use_merged_in_4_bits(bench, healthy, saved),
    ):
        assert diagnose(chart, healthy) == chart.fault
    sorted_well, swapped = run_labels(settings)
    assert diagnose(sorted_well, sorted_well) == HEALTHY
    assert diagnose(swapped, sorted_well) == "swapped labels"
