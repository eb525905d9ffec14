"""A whole run: with a tiny model from a folder (unit tier), and with the real one (model tier)."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sftkit.errors import CheckpointError, DataError, SettingsError, StoppedError, TrainError
from sftkit.prepare import prepare_data
from sftkit.progress import SilentWatcher
from sftkit.recipe import load_recipe, recipe_from_dict, recipe_to_dict
from sftkit.records import load_run
from sftkit.run import find_recipe, run
from sftkit.settings import DataSettings, Recipe

COLOURS = ["red", "blue", "green", "pink", "grey", "gold", "teal", "plum", "rust", "lime"]
SCRIPT = "<script>alert('x')</script>"


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    folder = tmp_path / "tiny-model"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"Colour of {SCRIPT if place == 0 else f'box {place}'}?", "answer": colour}
        for place, colour in enumerate(COLOURS * 4)
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "colours",
        "model": {"name": str(tiny_folder), "dtype": "float32"},
        "data": {"source": str(data), "test_fraction": 0.3, "validation_fraction": 0.2},
        "adapter": {"r": 4, "lora_alpha": 8},
        "train": {"epochs": 2, "learning_rate": 1e-2, "max_tokens_per_batch": 512},
        "evaluate": {"probes": [], "drift_passages": 0, "max_new_tokens": 4, "resamples": 200},
    }


def test_a_run_writes_its_whole_folder_and_the_record_reads_back(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    record = run(recipe_from_dict(recipe), tmp_path / "out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter",
        "answers.jsonl",
        "metrics.jsonl",
        "plots",
        "recipe.yaml",
        "report.html",
        "run.json",
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "sftkit.json",
    ]
    assert load_run(tmp_path / "out") == record
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == recipe_from_dict(recipe)
    steps = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in steps] == [s.step for s in record.training.steps]
    assert record.learned.heldout_loss is not None
    assert record.learned.heldout_loss.delta < 0
    assert record.verdicts.drift.state == "unmeasured"


def test_a_script_in_a_dataset_row_stays_text_in_the_report(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    run(recipe_from_dict(recipe), tmp_path / "out")

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page.lower()


def test_a_zero_scaled_adapter_shows_exactly_zero_everywhere(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["evaluate"]["adapter_scale"] = 0.0

    record = run(recipe_from_dict(recipe), tmp_path / "out")

    loss = record.learned.heldout_loss
    exact = record.learned.exact
    assert loss is not None
    assert exact is not None
    assert (loss.delta, loss.ci95) == (0.0, (0.0, 0.0))
    assert (exact.delta, exact.ci95) == (0.0, (0.0, 0.0))
    assert record.verdicts.knowledge.state == "no"
    assert record.verdicts.style.state == "undecided"


def test_the_second_run_takes_the_base_scores_from_the_cache(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftkit.evidence.exam import Exam

    first = run(recipe_from_dict(recipe), tmp_path / "first")
    scored = []
    score = Exam.score

    def counted(self: Any, model: Any) -> Any:
        scored.append("scored")
        return score(self, model)

    monkeypatch.setattr(Exam, "score", counted)

    second = run(recipe_from_dict(recipe), tmp_path / "second")

    assert scored == ["scored"]  # the tuned model only
    assert second.learned == first.learned
    adapters = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("first", "second")
    ]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize(
    "adapter",
    [{"kind": "full"}, {"kind": "freeze", "last_blocks": 1}, {"kind": "pissa", "r": 4}],
    ids=lambda adapter: adapter["kind"],
)
def test_where_the_base_does_not_come_back_it_is_measured_before(
    recipe: dict[str, Any], tmp_path: Path, adapter: dict[str, Any]
) -> None:
    plain = run(recipe_from_dict(recipe), tmp_path / "lora")
    recipe["adapter"] = adapter
    recipe["train"]["max_steps"] = 2

    record = run(recipe_from_dict(recipe), tmp_path / "out")

    expected, found = plain.learned.heldout_loss, record.learned.heldout_loss
    assert expected is not None
    assert found is not None
    assert found.before == expected.before  # to the bit: the same base, scored before it changed
    assert found.after != found.before


def test_a_strength_that_means_nothing_to_the_method_is_refused_before_the_model_is_read(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["adapter"] = {"kind": "full"}
    recipe["evaluate"]["adapter_scale"] = 0.5
    recipe["model"]["name"] = "no-such-model"

    with pytest.raises(SettingsError, match="cannot be turned down"):
        run(recipe_from_dict(recipe), tmp_path / "out")


def test_label_smoothing_reaches_the_loss_of_a_chat_run(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    plain = run(recipe_from_dict(recipe), tmp_path / "plain")
    recipe["objective"] = {"label_smoothing": 0.3}

    record = run(recipe_from_dict(recipe), tmp_path / "out")

    assert record.training.steps[0].loss != plain.training.steps[0].loss
    assert record.training.heldout_start == plain.training.heldout_start  # measured unsmoothed


def test_a_stopped_run_goes_on_to_the_same_adapter_and_the_same_record(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    class StopsAfterTwo(SilentWatcher):
        def on_step(self, step: Any, total_steps: int) -> None:
            if step.step == 2:
                signal.raise_signal(signal.SIGINT)

    recipe["data"] |= {"max_tokens": 128}
    recipe["train"] |= {"max_tokens_per_batch": 256, "save_every": 1}
    plan = recipe_from_dict(recipe)
    whole = run(plan, tmp_path / "whole", watcher=SilentWatcher())
    with pytest.raises(
        StoppedError, match=r"everything is saved\. Go on with: sftkit run \S+recipe\.yaml --out"
    ):
        run(plan, tmp_path / "part", watcher=StopsAfterTwo())
    with pytest.raises(CheckpointError, match=r"already holds checkpoints of a run"):
        run(plan, tmp_path / "part", watcher=SilentWatcher())
    faster = recipe_from_dict({**recipe, "train": {**recipe["train"], "learning_rate": 0.5}})
    with pytest.raises(CheckpointError, match=r"train.learning_rate was 0.01 and is 0.5\."):
        run(faster, tmp_path / "part", resume=True, watcher=SilentWatcher())
    record = run(plan, tmp_path / "part", resume=True, watcher=SilentWatcher())

    assert [step.loss for step in record.training.steps] == [s.loss for s in whole.training.steps]
    assert record.learned == whole.learned
    adapters = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "part")
    ]
    assert adapters[0] == adapters[1]
    lines = (tmp_path / "part" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [
        step.step for step in whole.training.steps
    ]


def test_a_folder_that_holds_a_run_is_not_overwritten(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}", encoding="utf-8")

    with pytest.raises(SettingsError, match="already holds a run"):
        run(recipe_from_dict(recipe), tmp_path / "out")


def test_a_run_of_which_nothing_could_be_learned_never_starts(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["data"]["max_tokens"] = 16

    with pytest.raises((DataError, TrainError), match=r"exceed max_tokens=16"):
        run(recipe_from_dict(recipe), tmp_path / "out")


SAME: dict[str, Any] = {}
DATA_FIELDS: dict[
    str, tuple[dict[str, Any], Any, Any]
] = {  # field: what both have, the one value, the other
    "source": (SAME, "colours.jsonl", "other.jsonl"),
    "format": (SAME, None, "sharegpt"),
    "columns": (SAME, None, {"question": "topic"}),
    "encoding": (SAME, None, "utf-16"),
    "where": (SAME, {}, {"half": ["low"]}),
    "limit": (SAME, None, 30),
    "split_by": (SAME, None, "part"),
    "group_by": (SAME, None, "pair"),
    "stratify_by": (SAME, None, "half"),
    "time_by": (SAME, None, "day"),
    "time_cuts": ({"time_by": "day"}, None, ["2024-01-05", "2024-01-06"]),
    "validation_fraction": (SAME, 0.2, 0.4),
    "test_fraction": (SAME, 0.3, 0.4),
    "balance_by": (SAME, None, "topic"),
    "balance": ({"balance_by": "topic"}, "over", "under"),
    "max_tokens": (SAME, 512, 54),
    "system": (SAME, None, "Be brief."),
    "replay": (SAME, None, "other.jsonl"),
    "replay_share": ({"replay": "other.jsonl"}, 0.1, 0.3),
    "replay_unit": ({"replay": "other.jsonl"}, "rows", "tokens"),
    "faulty_rows": ({"source": "faulty.jsonl"}, "refuse", "drop"),
    "seed": (SAME, 0, 1),
}


def test_every_data_setting_is_in_the_walk_below() -> None:
    names = {info.name for info in dataclasses.fields(DataSettings)}
    # chat is one value of the first; the second is for labels (test_run_labels.py)
    assert names - set(DATA_FIELDS) == {"task", "pair_at"}


@pytest.mark.parametrize("field", DATA_FIELDS)
def test_every_data_setting_reaches_what_it_governs(
    field: str, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "question": f"What is the colour of box {place}?",
            "answer": colour,
            "topic": f"topic {place % 7}",
            "pair": str(place // 2),
            "half": "low" if place < 20 else "high",
            "day": f"2024-01-0{place % 7 + 1}",
            "part": ("train", "train", "validation", "test")[place % 4],
        }
        for place, colour in enumerate(COLOURS * 4)
    ]
    replies = [{**row, "answer": "A long and general answer."} for row in rows]
    for name, given in {
        "colours": rows,
        "other": replies,
        "faulty": [*rows, {**rows[0], "question": "What now?", "answer": ""}],
    }.items():
        text = "".join(json.dumps(row) + "\n" for row in given)
        Path(f"{name}.jsonl").write_text(text, encoding="utf-8")

    def outcome(value: Any) -> Any:
        extra, _, _ = DATA_FIELDS[field]
        fractions = {"validation_fraction": 0.2, "test_fraction": 0.3}
        data = {"source": "colours.jsonl", **fractions, **extra, field: value}
        recipe = recipe_from_dict({"name": "x", "data": data})
        try:
            prepared = prepare_data(recipe, tiny_tokenizer, {})
        except DataError as error:
            return str(error)
        ids = {name: list(part["id"]) for name, part in vars(prepared.splits).items()}
        return ids, [example.input_ids for example in prepared.train], prepared.replayed

    _, one, other = DATA_FIELDS[field]
    before, after = outcome(one), outcome(other)
    assert before == outcome(one)
    assert before != after
    refused = [isinstance(found, str) for found in (before, after)]
    expected = {"faulty_rows": [True, False]}
    unfit = {"format": [False, True], "encoding": [False, True]}
    assert refused == {**expected, **unfit}.get(field, [False, False])


def test_bundled_recipes_are_found_by_name_and_others_by_path(tmp_path: Path) -> None:
    assert find_recipe("demo").data.source == "shop"
    assert find_recipe("cwe", overrides=["train.max_steps=3"]).train.max_steps == 3
    with pytest.raises(SettingsError, match=r"Bundled: .*cwe, demo, privacy"):
        find_recipe("demoo")


@pytest.mark.model
def test_fifty_times_the_demos_rate_gets_another_verdict_than_a_gentle_rate(tmp_path: Path) -> None:
    def short(rate: float) -> Recipe:
        return find_recipe(
            "demo",
            overrides=[
                f"train.learning_rate={rate}",
                "train.max_steps=8",
                "train.heldout_evaluations=1",
                "evaluate.items_per_probe=4",
                "evaluate.drift_passages=12",
                "evaluate.passage_tokens=64",
                "evaluate.knowledge=none",
                "evaluate.style_items=8",
            ],
        )

    # The gentle one is far below the demo's own rate: 8 steps at that rate already drift.
    gentle = run(short(2e-5), tmp_path / "gentle")
    harsh = run(short(50 * 1e-3), tmp_path / "harsh")

    assert gentle.verdicts.drift.state == "kept"
    assert harsh.verdicts.drift.state == "lost"
    assert gentle.verdicts.summary != harsh.verdicts.summary
    assert harsh.forgot.drift is not None
    assert f"{harsh.forgot.drift.delta:+.3f}" in harsh.verdicts.drift.sentence.replace("−", "-")


def test_a_private_key_that_was_cut_off_leaves_the_answers_readable(tmp_path: Path) -> None:
    from sample_record import sample_record  # type: ignore[import-not-found]

    from sftkit.records import Answer
    from sftkit.run import write_run

    cut = "-----BEGIN " + "PRIVATE KEY-----MIIEvQ"
    answers = [
        Answer(question="key?", expected="no", base=cut, tuned="no"),
        *sample_record().answers,
    ]
    run_record = dataclasses.replace(sample_record(), recipe=recipe_to_dict(find_recipe("demo")))

    write_run(run_record, answers, tmp_path)

    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert (first["base"], first["tuned"]) == ("[redacted]", "no")
