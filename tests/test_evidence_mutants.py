"""Planted faults do what they say and go without a trace; each check kills and spares."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sftkit.adapter import adapter_off, attach_adapter
from sftkit.chat import encode_prompt, encode_rows
from sftkit.dataset.contamination import Overlap
from sftkit.errors import AdapterError, DataError, RecordError, SettingsError
from sftkit.evidence import mutants
from sftkit.evidence.calibration import Answered, measure_calibration
from sftkit.evidence.labels import evaluate_labels
from sftkit.evidence.mutant_checks import CHAT_CHECKS, LABEL_CHECKS, Predicted, Shown, judge
from sftkit.evidence_records import (
    BehaviourResult,
    Checks,
    MutantCell,
    MutantMatrix,
    MutantRow,
)
from sftkit.labelled import LabelledText
from sftkit.mutant_runs import chat_recipe, label_recipe, try_chat_mutants, try_label_mutants
from sftkit.panels import alt_text, to_png
from sftkit.plots_mutants import matrix_in_words, plot_mutants
from sftkit.recipe import recipe_from_dict
from sftkit.records import Verdict, Verdicts
from sftkit.settings import AdapterSettings, EvaluateSettings, TrainSettings
from tests.conftest import make_model
from tests.test_heads import make_labelled
from tests.test_run import recipe, tiny_folder
from tests.test_run_labels import recipe as woods

__all__ = ["recipe", "tiny_folder"]  # fixtures

IDS = torch.arange(12)[None]


def with_updates(base: Any, task_type: str = "CAUSAL_LM") -> Any:
    """Attach an adapter whose B matrices are as if trained."""
    model = attach_adapter(base, AdapterSettings(r=2, lora_alpha=4), task_type=task_type)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture
def chat_model() -> Any:
    return with_updates(make_model(vocab_size=260, layers=3))


@pytest.fixture
def classifier() -> Any:
    return with_updates(make_labelled(("a", "b", "c")), task_type="SEQ_CLS")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=IDS).logits).clone()


def b_matrices(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_B" in n}


# --- Faults of a trained model ----------------------------------------------------------------


@pytest.mark.parametrize("name", mutants.SERVED_WITH_HEAD)
@pytest.mark.parametrize("kind", ["chat", "labels"])
def test_a_fault_changes_what_is_said_and_goes_without_a_trace(name, kind, request):
    model = request.getfixturevalue("chat_model" if kind == "chat" else "classifier")
    if name not in mutants.SERVED and kind == "chat":
        pytest.skip("a chat model has no head for classes")
    before, weights = logits(model), {n: p.clone() for n, p in model.named_parameters()}

    with mutants.SERVED_WITH_HEAD[name](model):
        assert not torch.equal(logits(model), before)

    assert torch.equal(logits(model), before)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not [n for n, m in model.named_modules() if "forward" in vars(m)]


@pytest.mark.parametrize("name", mutants.SERVED_WITH_HEAD)
def test_a_fault_goes_where_asking_fails_too(name, classifier):
    before = logits(classifier)
    with pytest.raises(KeyError), mutants.SERVED_WITH_HEAD[name](classifier):
        raise KeyError("asking failed")
    assert torch.equal(logits(classifier), before)


def test_a_zeroed_adapter_leaves_the_base(chat_model):
    with adapter_off(chat_model):
        base = logits(chat_model)
    with mutants.adapter_zeroed(chat_model):
        assert torch.equal(logits(chat_model), base)


def test_a_zeroed_adapter_leaves_the_trained_head_of_a_classifier(classifier):
    head = classifier.base_model.model.classifier.modules_to_save["default"].weight
    before = head.detach().clone()
    with mutants.adapter_zeroed(classifier):
        assert torch.equal(head, before)
        assert all(not value.any() for value in b_matrices(classifier).values())


def test_scaling_multiplies_every_update(chat_model):
    before = b_matrices(chat_model)
    with mutants.adapter_scaled_up(chat_model):
        scaled = b_matrices(chat_model)
    assert all(torch.equal(scaled[name], 4 * value) for name, value in before.items())


def test_exactly_the_adapter_of_the_middle_block_is_dropped(chat_model):
    before = b_matrices(chat_model)
    with mutants.block_dropped(chat_model):
        during = b_matrices(chat_model)
    gone = {name for name, value in during.items() if not value.any()}
    assert gone == {name for name in before if ".layers.1." in name}
    assert all(torch.equal(during[name], before[name]) for name in before if name not in gone)
    with pytest.raises(AdapterError, match="No adapter is in block 7; there are blocks: 0 to 2"):
        mutants.block_dropped(chat_model, block=7).__enter__()


def test_rounded_weights_are_merged_and_have_one_step_per_matrix(chat_model):
    layer = chat_model.base_model.model.model.layers[0].self_attn.q_proj
    whole = layer.base_layer.weight + layer.get_delta_weight("default")
    step = whole.abs().max() / 7
    given = torch.eye(32)
    with mutants.weights_rounded(chat_model), torch.no_grad():
        weight = layer(given).T
    assert torch.allclose(weight, (whole / step).round() * step, atol=1e-6)
    assert 2 < len(torch.unique((weight / step.detach()).round())) <= 15


def test_more_bits_come_nearer_to_the_merged_weights(chat_model):
    before = logits(chat_model)
    gaps = []
    for bits in (4, 8):
        with mutants.weights_rounded(chat_model, bits=bits):
            gaps.append(float((logits(chat_model) - before).abs().max()))
    assert gaps[1] < gaps[0] / 4


def test_two_outputs_of_the_head_change_places(classifier):
    before = logits(classifier)
    with mutants.head_swapped(classifier, classes=(0, 2)):
        torch.testing.assert_close(logits(classifier), before[:, [2, 1, 0]])
    with pytest.raises(AdapterError, match="No trained head has outputs 0 and 3"):
        mutants.head_swapped(classifier, classes=(0, 3)).__enter__()


def test_float32_and_back_loses_no_bit():
    base = make_model(vocab_size=260).to(torch.bfloat16)
    model = with_updates(base)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    with mutants.computed_in_float32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], p) and after[n].dtype == p.dtype for n, p in weights.items())


@pytest.mark.parametrize("plant", mutants.SERVED.values())
def test_a_model_without_an_adapter_is_refused(plant):
    with pytest.raises(AdapterError, match="LoRA adapter"):
        plant(make_model(vocab_size=260)).__enter__()


# --- Faults of a training ---------------------------------------------------------------------


def chats(*answers: str) -> Dataset:
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"Question {place}?"},
                    {"role": "assistant", "content": answer},
                ],
                "group": f"g{place}",
            }
            for place, answer in enumerate(answers)
        ]
    )


def answers_of(rows: Dataset) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def test_shuffled_answers_are_all_kept_and_none_is_right():
    rows = chats("a", "a", "b", "b", "c", "c", "d")
    mixed = mutants.with_answers_shuffled(rows, seed=3)
    assert sorted(answers_of(mixed)) == sorted(answers_of(rows))
    assert not [1 for a, b in zip(answers_of(rows), answers_of(mixed), strict=True) if a == b]
    questions = [[row["messages"][0] for row in table] for table in (rows, mixed)]
    assert questions[0] == questions[1]
    with pytest.raises(DataError, match="same answer"):
        mutants.with_answers_shuffled(chats("a", "a"))


def test_shuffled_labels_keep_their_shares_and_leave_no_text_its_own():
    examples = [LabelledText(input_ids=(1,), target=float(n % 3), row=n) for n in range(9)]
    mixed = mutants.with_labels_shuffled(examples, seed=0)
    assert [example.row for example in mixed] == list(range(9))
    assert sorted(example.target for example in mixed) == sorted(e.target for e in examples)
    assert not [1 for a, b in zip(examples, mixed, strict=True) if a.target == b.target]


def test_a_leak_puts_every_tested_row_behind_the_training_rows():
    train, test = chats("a", "b"), chats("c")
    assert answers_of(mutants.with_test_leaked(train, test)) == ["a", "b", "c"]


def test_a_training_that_is_cut_short_keeps_all_other_settings():
    settings = TrainSettings(epochs=4, seed=7)
    assert mutants.cut_short(settings) == dataclasses.replace(settings, max_steps=3)


def test_another_template_writes_otherwise_and_still_ends_its_turns(tiny_tokenizer):
    other = mutants.with_other_template(tiny_tokenizer)
    asked = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    text = tiny_tokenizer.decode(encode_prompt(asked, other))
    assert text == "### User:\nHi\n### Assistant:\n"
    assert "<|im_start|>" in tiny_tokenizer.decode(encode_prompt(asked, tiny_tokenizer))
    encoded = encode_rows(chats("a"), other, max_tokens=200)
    assert not encoded.refused
    assert [t for t in encoded.examples[0].labels if t >= 0][-1] == tiny_tokenizer.eos_token_id


def test_every_fault_says_in_its_first_line_what_is_wrong():
    faults: tuple[Any, ...] = (
        *mutants.SERVED_WITH_HEAD.values(),
        mutants.with_other_template,
        mutants.cut_short,
    )
    words = [mutants.in_words(fault) for fault in faults]
    assert words[0] == "The adapter does nothing"
    assert len(set(words)) == len(words)
    assert all(words)


# --- Checks -----------------------------------------------------------------------------------

SETTINGS = EvaluateSettings(resamples=200)
NO_OVERLAP = Overlap(
    train_name="train",
    test_name="test",
    train_rows=9,
    test_rows=20,
    matches={"exact": {}, "near": {}},
)
PASSED = Verdict(state="yes", sentence="yes")
KEPT = Verdict(state="kept", sentence="kept")
VERDICTS = Verdicts(knowledge=PASSED, style=PASSED, ability=KEPT, drift=KEPT, summary="")
SOUND = Shown(
    right=[1.0] * 18 + [0.0] * 2,
    before=[0.0] * 20,
    said=[f"answer {n}" for n in range(20)],
    groups=[f"g{n}" for n in range(20)],
    losses=[0.1 + 0.01 * n for n in range(20)],
    weights=[3.0] * 20,
    loss_groups=[f"g{n}" for n in range(20)],
    overlap=NO_OVERLAP,
    served_again=True,
    ended=[1.0] * 20,
    verdicts=VERDICTS,
    checks=Checks(
        behaviour=(
            BehaviourResult(
                name="typos",
                capability="robustness",
                kind="invariance",
                cases=20,
                failures=1,
                ci95=(0.01, 0.24),
                allowed=0.1,
            ),
        )
    ),
)
LOST = Verdict(state="lost", sentence="lost")
OPEN = Verdict(state="undecided", sentence="undecided")
FAULTY: dict[str, dict[str, Any]] = {
    "accuracy against base": {"right": [0.0] * 19 + [1.0]},
    "accuracy against reference": {"right": [1.0] * 10 + [0.0] * 10},
    "knowledge": {"verdicts": dataclasses.replace(VERDICTS, knowledge=OPEN)},
    "style": {"verdicts": dataclasses.replace(VERDICTS, style=OPEN)},
    "drift": {"verdicts": dataclasses.replace(VERDICTS, drift=LOST)},
    "ability": {"verdicts": dataclasses.replace(VERDICTS, ability=LOST)},
    "stopping": {"ended": [0.0] * 8 + [1.0] * 12},
    "loss against reference": {"losses": [0.4 + 0.01 * n for n in range(20)]},
    "losses on record": {"losses": [0.2, *SOUND.losses[1:]]},
    "answers on record": {"said": ["other"] * 5 + list(SOUND.said[5:])},
    "contamination": {
        "overlap": dataclasses.replace(NO_OVERLAP, matches={"exact": {}, "near": {3: 5}})
    },
    "behaviour": {
        "checks": Checks(
            behaviour=(
                dataclasses.replace(SOUND.checks.behaviour[0], failures=10, ci95=(0.3, 0.7)),
            )
        )
    },
}


def test_a_behaviour_test_that_the_reference_fails_as_well_tells_nothing_about_a_fault():
    failing = dataclasses.replace(SOUND, **FAULTY["behaviour"])
    assert states(failing, CHAT_CHECKS, SOUND)["behaviour"] == "killed"
    assert states(failing, CHAT_CHECKS, failing)["behaviour"] == "spared"


def states(shown: Shown, checks: Any, reference: Shown) -> dict[str, str]:
    return {c.check: c.state for c in judge(shown, reference, checks, SETTINGS)}


def test_every_check_of_chats_has_a_faulty_case():
    assert set(FAULTY) == set(CHAT_CHECKS)


def test_a_sound_chat_model_is_spared_by_every_check():
    assert states(SOUND, CHAT_CHECKS, SOUND) == dict.fromkeys(CHAT_CHECKS, "spared")


@pytest.mark.parametrize("name", FAULTY)
def test_a_check_of_chats_kills_its_faulty_case(name):
    shown = dataclasses.replace(SOUND, **FAULTY[name])
    assert states(shown, CHAT_CHECKS, SOUND)[name] == "killed"
    assert not [n for n, s in states(shown, CHAT_CHECKS, SOUND).items() if s == "killed"][2:]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("accuracy against reference", {"right": [1.0] * 16 + [0.0] * 4}),
        ("drift", {"verdicts": dataclasses.replace(VERDICTS, drift=OPEN)}),
        ("stopping", {"ended": [0.0] + [1.0] * 19}),
        ("loss against reference", {"losses": [value + 0.05 for value in SOUND.losses]}),
        ("losses on record", {"losses": [value + 0.0009 for value in SOUND.losses]}),
        (
            "losses on record",
            {"losses": [value + 0.04 for value in SOUND.losses], "dtype": "bfloat16"},
        ),
        ("answers on record", {"said": ["other", *SOUND.said[1:]]}),
    ],
)
def test_a_check_spares_what_its_number_cannot_show_to_be_worse(name, change):
    shown = dataclasses.replace(SOUND, **change)
    assert states(shown, CHAT_CHECKS, SOUND)[name] == "spared"


def test_losses_have_to_come_out_again_and_more_closely_in_the_same_type():
    moved = {"losses": [SOUND.losses[0] + 0.002, *SOUND.losses[1:]]}
    far = {"losses": [SOUND.losses[0] + 0.06, *SOUND.losses[1:]], "dtype": "bfloat16"}
    for change in (moved, far):
        shown = dataclasses.replace(SOUND, **change)
        assert states(shown, CHAT_CHECKS, SOUND)["losses on record"] == "killed"


def test_only_a_copy_of_the_reference_is_held_to_its_record():
    other = dataclasses.replace(SOUND, served_again=False, losses=[9.0] * 20, said=["x"] * 20)
    found = states(other, CHAT_CHECKS, SOUND)
    assert {name for name, state in found.items() if state == "unasked"} == {
        "losses on record",
        "answers on record",
    }


CLASSES = ("a", "b", "c")
TRUE = np.arange(60) % 3
GROUPS = tuple(f"g{n}" for n in range(60))


def labelled(said: np.ndarray, *, confidence: float = 0.9) -> Shown:
    """Make what a classifier shows that says so on test and validation alike."""
    scores = np.full((60, 3), (1 - confidence) / 2)
    scores[np.arange(60), said] = confidence
    flat = np.full((60, 3), 1 / 3)
    flat[:, 0] += 1e-6
    report = evaluate_labels(
        TRUE, scores, task="classify", groups=GROUPS, classes=CLASSES,
        baselines={"tf-idf": flat}, resamples=200,
    )  # fmt: skip
    answered = Answered(probabilities=scores, targets=TRUE, groups=GROUPS)
    return Shown(
        right=(said == TRUE).astype(float).tolist(),
        before=(TRUE == 0).astype(float).tolist(),
        said=[CLASSES[place] for place in said],
        groups=GROUPS,
        losses=(-np.log(scores[np.arange(60), TRUE])).tolist(),
        weights=[1.0] * 60,
        loss_groups=GROUPS,
        overlap=NO_OVERLAP,
        served_again=True,
        predicted=Predicted(
            report=report,
            true=TRUE.tolist(),
            said=said.tolist(),
            validation_true=TRUE.tolist(),
            validation_said=said.tolist(),
        ),
        checks=Checks(calibration=measure_calibration(answered, resamples=200)),
    )


MOSTLY = np.where(np.arange(60) % 10 == 0, (TRUE + 1) % 3, TRUE)
GOOD = labelled(MOSTLY)
SWAPPED = labelled(np.array([1, 0, 2])[MOSTLY])
WORSE = labelled(np.where(np.arange(60) % 10 < 7, 0, TRUE))


def test_a_sound_classifier_is_spared_by_every_check():
    wanted = dict.fromkeys(LABEL_CHECKS, "spared") | {"behaviour": "unasked"}
    assert states(GOOD, LABEL_CHECKS, GOOD) == wanted


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("accuracy against base", SWAPPED),
        ("accuracy against reference", SWAPPED),
        ("macro-F1 against baseline", labelled(np.zeros(60, dtype=int))),
        ("calibration", WORSE),
        ("confusion", SWAPPED),
        ("label order", SWAPPED),
        ("loss against reference", SWAPPED),
        ("losses on record", SWAPPED),
        ("answers on record", SWAPPED),
        ("contamination", dataclasses.replace(GOOD, **FAULTY["contamination"])),
        ("behaviour", dataclasses.replace(GOOD, **FAULTY["behaviour"])),
    ],
)
def test_a_check_of_classifiers_kills_its_faulty_case(name, shown):
    assert states(shown, LABEL_CHECKS, GOOD)[name] == "killed"


def test_a_weak_classifier_is_not_told_that_its_labels_are_in_another_order():
    found = states(WORSE, LABEL_CHECKS, GOOD)
    assert found["label order"] == "spared"


# --- Whole matrices ---------------------------------------------------------------------------

MATRIX = MutantMatrix(
    model="tiny",
    data="colours",
    alone=("accuracy",),
    rows=(
        MutantRow(
            name="sound model",
            wrong="",
            origin="sound",
            cells=(
                MutantCell(check="accuracy", state="spared", said="9 of 9"),
                MutantCell(check="drift", state="spared", said="kept"),
            ),
        ),
        MutantRow(
            name="leaked",
            wrong="The test leaked",
            origin="trained",
            cells=(
                MutantCell(check="accuracy", state="spared", said="9 of 9"),
                MutantCell(check="drift", state="killed", said="lost"),
            ),
        ),
    ),
)


def test_a_matrix_says_what_accuracy_alone_misses():
    assert MATRIX.checks == ("accuracy", "drift")
    assert MATRIX.killed() == ("leaked",)
    assert MATRIX.killed_by_accuracy() == ()
    assert MATRIX.false_alarms == ()
    alarm = dataclasses.replace(MATRIX.rows[1], name="sound too", origin="sound")
    assert dataclasses.replace(MATRIX, rows=(alarm,)).false_alarms == ("sound too: drift",)
    assert matrix_in_words(MATRIX) == (
        "tiny: the suite kills 1 of 1 planted faults, accuracy alone 0; the sound model passes"
    )


def test_the_figure_says_who_refused_what():
    figure = plot_mutants(MATRIX)
    assert alt_text(figure).endswith("Refused by: sound model: no check; leaked: drift.")
    assert to_png(figure).startswith(b"\x89PNG")
    with pytest.raises(RecordError, match="no rows"):
        plot_mutants(dataclasses.replace(MATRIX, rows=()))


def test_a_tiny_chat_model_goes_through_all_faults_with_one_base(recipe):
    told: list[str] = []
    changes = {"adapter": {"r": 2, "lora_alpha": 4}, "train": {**recipe["train"], "epochs": 1}}
    matrix = try_chat_mutants(recipe_from_dict({**recipe, **changes}), note=told.append)

    assert [row.origin for row in matrix.rows] == ["sound"] * 2 + ["served"] * 5 + ["trained"] * 4
    rows = {row.name: row for row in matrix.rows}
    assert "contamination" in rows["test leaked into training"].killed_by()
    assert "contamination" not in rows["sound model"].killed_by()
    records = {r.name: r.cells[matrix.checks.index("losses on record")].state for r in matrix.rows}
    assert records["adapter scaled ×4"] == "killed"
    assert records["sound, another seed"] == "unasked"
    assert len(told) >= len(matrix.rows)
    with pytest.raises(SettingsError, match="try_chat_mutants"):
        try_chat_mutants(label_recipe())


def test_a_tiny_classifier_goes_through_all_faults_with_one_base(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    given = woods(tmp_path, "classify", train={"epochs": 2})
    matrix = try_label_mutants(recipe_from_dict(given), note=lambda text: None)

    assert [row.origin for row in matrix.rows] == ["sound"] * 2 + ["served"] * 5 + ["trained"] * 3
    rows = {row.name: row for row in matrix.rows}
    assert "contamination" in rows["test leaked into training"].killed_by()
    assert "losses on record" in rows["adapter scaled ×4"].killed_by()
    assert "contamination" not in rows["sound model"].killed_by()
    with pytest.raises(SettingsError, match="try_label_mutants"):
        try_label_mutants(chat_recipe())


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_the_saved_matrices_kill_every_fault_spare_the_sound_and_show_what_accuracy_misses(
    name, checkout: Path
):
    saved = json.loads((checkout / "benchmarks/results/mutants.json").read_text("utf-8"))
    matrix = saved["matrices"][name]
    alone = set(matrix["alone"])
    killers = {
        row["name"]: {c["check"] for c in row["cells"] if c["state"] == "killed"}
        for row in matrix["rows"]
        if row["origin"] != "sound"
    }
    assert [row["name"] for row in matrix["rows"] if row["origin"] == "sound"] != []
    assert not [
        c for r in matrix["rows"] if r["origin"] == "sound" for c in r["cells"]
        if c["state"] == "killed"
    ]  # fmt: skip
    assert [fault for fault, checks in killers.items() if not checks] == []
    assert 0 < sum(bool(checks & alone) for checks in killers.values()) < len(killers)


def test_only_the_named_faults_are_planted_and_behaviour_tests_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    tests = tmp_path / "tests.yaml"
    tests.write_text(
        "task: classify\ntests: [{name: Same, kind: invariance, rows: test, change: case, "
        "expect: {same: true}}]",
        encoding="utf-8",
    )
    given = woods(tmp_path, "classify", train={"epochs": 1}, evaluate={"behaviour": str(tests)})
    small = recipe_from_dict(given)
    wanted = ["two classes swapped", "adapter zeroed"]
    matrix = try_label_mutants(small, only=wanted, note=lambda text: None)

    assert [row.name for row in matrix.rows] == ["sound model", *reversed(wanted)]
    assert matrix.checks[-1] == "behaviour"
    with pytest.raises(SettingsError, match="Did you mean 'adapter zeroed'"):
        try_label_mutants(small, only=["adapter zero"])
