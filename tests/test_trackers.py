"""Trackers: told every step, without secrets, on this machine, and never the end of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import socket
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sftkit import trackers
from sftkit.dryrun import look_ahead
from sftkit.errors import SettingsError
from sftkit.metrics import read_metrics
from sftkit.progress import SilentWatcher
from sftkit.recipe import recipe_from_dict, recipe_to_dict
from sftkit.records import Step
from sftkit.run import run
from sftkit.settings import DataSettings, Recipe, TrainSettings
from sftkit.trackers import flat_settings, refuse_trackers, track_steps, tracker_names
from tests.conftest import make_model, make_tokenizer

SECRET = "hf_" + "aB3" * 12
ALL = ("tensorboard", "trackio", "wandb", "mlflow")


def needs(name: str) -> Any:
    module = trackers.KINDS[name].module
    missing = importlib.util.find_spec(module) is None
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            missing, reason=f"needs pip install {trackers.KINDS[name].install}"
        ),
    )


def step(number: int) -> Step:
    return Step(
        step=number, loss=4.0 / number, learning_rate=1e-3, grad_norm=1.5, tokens=100 * number,
        seconds=0.5 * number, heldout_loss=0.625 if number == 3 else None, memory_bytes=10**9,
    )  # fmt: skip


def recipe(*names: str, loud: str = "") -> Recipe:
    given: Any = names or "none"
    return Recipe(
        name="shop",
        data=DataSettings(source="shop", system=loud or None),
        train=TrainSettings(trackers=given),
    )


@pytest.fixture(autouse=True)
def _one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing be sent anywhere, and keep what trackers keep elsewhere in a folder of ours."""
    from accelerate import PartialState

    PartialState(cpu=True)  # training makes it before the first step

    def refused(own: socket.socket, address: Any) -> None:
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", _only_here(socket.socket.connect, refused))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for kind in trackers.KINDS.values():
        for variable in kind.environment:
            monkeypatch.setenv(variable, kind.environment[variable])


def _only_here(connect: Any, refused: Any) -> Any:
    def watched(own: socket.socket, address: Any) -> Any:
        here = own.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        return connect(own, address) if here else refused(own, address)

    return watched


def told(folder: Path, plan: Recipe, *steps: Step) -> list[str]:
    notes: list[str] = []
    with track_steps(plan, folder, note=notes.append) as take:
        for one in steps:
            take(one)
    return notes


def scalars(folder: Path) -> Mapping[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "trackers" / "tensorboard" / "shop"))
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_tensorboard_reads_back_every_step(tmp_path: Path, name: str) -> None:
    notes = told(tmp_path, recipe(name), *map(step, range(1, 4)))
    assert notes == [f"tensorboard: tensorboard --logdir {tmp_path}/trackers/tensorboard"]
    assert scalars(tmp_path) == {
        "loss": [(1, 4.0), (2, 2.0), (3, pytest.approx(4 / 3))],
        "learning_rate": [(number, pytest.approx(1e-3)) for number in (1, 2, 3)],
        "grad_norm": [(number, 1.5) for number in (1, 2, 3)],
        "tokens": [(1, 100), (2, 200), (3, 300)],
        "tokens_per_s": [(number, 200.0) for number in (1, 2, 3)],
        "memory_bytes": [(number, 1e9) for number in (1, 2, 3)],
        "heldout_loss": [(3, 0.625)],
    }


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_a_resumed_run_is_one_curve_in_tensorboard(tmp_path: Path, name: str) -> None:
    told(tmp_path, recipe(name), *map(step, range(1, 8)))
    told(tmp_path, recipe(name), *map(step, range(1, 6)))  # resumed at 3, stopped again at 5
    assert [number for number, _ in scalars(tmp_path)["loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [needs("trackio")])
def test_trackio_keeps_every_step_in_its_own_place(tmp_path: Path, name: str) -> None:
    notes = told(tmp_path / "run-1", recipe(name), *map(step, range(1, 4)))
    assert notes == ["trackio: trackio show --project shop"]
    from trackio.utils import TRACKIO_DIR  # where it was first imported says which

    with sqlite3.connect(TRACKIO_DIR / "shop.db") as kept:
        rows = kept.execute("select run_name, step, metrics from metrics").fetchall()
    assert [(run_name, number) for run_name, number, _ in rows] == [
        ("run-1", 1), ("run-1", 2), ("run-1", 3),
    ]  # fmt: skip
    assert json.loads(rows[2][2]) == {**trackers.step_values([step(2), step(3)])}


@pytest.mark.parametrize("name", [needs("wandb")])
def test_wandb_is_offline_and_knows_the_steps_alone(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(socket, "gethostname", lambda: "quibble-machine")
    notes = told(tmp_path, recipe(name), *map(step, range(1, 4)))
    folder = tmp_path / "trackers" / "wandb"
    assert notes == [f"wandb: wandb sync {folder}/wandb/offline-run-*  (this sends it to W&B)"]
    wandb.teardown()  # the writer is a process of its own; here it is waited for
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    assert [part in content for part in (b"heldout_loss", b"0.625", b"train.learning_rate")] == [
        True, True, True,
    ]  # fmt: skip
    # Nothing is kept of the machine, the code and what is printed.
    assert b"quibble" not in content
    assert [path.name for path in folder.glob("wandb/offline-run-*/files/*")] == []


@pytest.mark.parametrize("name", [needs("mlflow")])
def test_mlflow_keeps_every_step_below_the_run(tmp_path: Path, name: str) -> None:
    notes = told(tmp_path / "run-1", recipe(name), *map(step, range(1, 4)))
    folder = tmp_path / "run-1" / "trackers" / "mlflow"
    look = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}"
    assert notes == [f"mlflow: {look}"]

    from mlflow import MlflowClient

    client = MlflowClient(folder.resolve().as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "shop"]
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 4.0), (2, 2.0), (3, 4 / 3)]
    assert found.data.params["train.trackers"] == "['mlflow']"
    assert (found.info.run_name, found.data.tags["mlflow.user"]) == ("run-1", "")


@pytest.mark.parametrize("name", [needs(name) for name in ALL])
def test_no_tracker_is_told_a_secret(tmp_path: Path, name: str) -> None:
    plan = recipe(name, loud=f"Use {SECRET} and /home/quibble/notes.")
    told(tmp_path, plan, step(1), step(2))
    places = [tmp_path]
    if name == "trackio":
        from trackio.utils import TRACKIO_DIR

        places.append(TRACKIO_DIR)
    elif name == "wandb":
        import wandb

        wandb.teardown()
    files = [path.read_bytes() for top in places for path in top.rglob("*") if path.is_file()]
    found = [word for word in (SECRET, "quibble", "[redacted]") if word.encode() in b"".join(files)]
    assert found == ["[redacted]"]


def test_settings_are_told_flat_and_redacted() -> None:
    flat = flat_settings(recipe("tensorboard", loud=SECRET))
    assert (flat["name"], flat["data.system"]) == ("shop", "[redacted]")
    assert (flat["train.learning_rate"], flat["train.trackers"]) == (1e-3, "['tensorboard']")
    assert {type(value) for value in flat.values()} <= {str, int, float, bool}


class Breaking:
    """A tracker that holds until step 3."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def start(self) -> None:
        print("* a banner")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        if step == 3:
            raise ConnectionError(f"no route with {SECRET}\nand more")
        self.steps.append(step)

    def finish(self) -> None:
        raise AssertionError("it was left out")


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, start: Any) -> None:
    kind = dataclasses.replace(trackers.KINDS[name], start=start, module="json")
    monkeypatch.setattr(trackers, "KINDS", {**trackers.KINDS, name: kind})


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = Breaking(), Breaking()
    monkeypatch.setattr(other, "log", lambda values, step: other.steps.append(step))
    monkeypatch.setattr(other, "finish", lambda: other.steps.append(-1))
    stand_in(monkeypatch, "wandb", lambda *_: one)
    stand_in(monkeypatch, "trackio", lambda *_: other)
    notes = told(tmp_path, recipe("wandb", "trackio"), *map(step, range(1, 6)))
    assert notes[2:] == [
        "wandb failed and is told nothing more (ConnectionError: no route with [redacted]); "
        "training goes on."
    ]
    assert (one.steps, other.steps) == ([1, 2], [1, 2, 3, 4, 5, -1])
    assert capsys.readouterr().out == ""  # --format json prints one record and nothing else


def test_a_tracker_that_cannot_start_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_login(*_: Any) -> Any:
        raise PermissionError("log in first")

    stand_in(monkeypatch, "wandb", no_login)
    assert told(tmp_path, recipe("wandb"), step(1), step(2)) == [
        "wandb failed and is told nothing more (PermissionError: log in first); training goes on."
    ]


def test_a_process_that_is_told_no_step_starts_no_tracker(tmp_path: Path) -> None:
    assert told(tmp_path, recipe("tensorboard")) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = (
        "train.trackers=tensorboard, trackio, mlflow: not installed. Run: pip install tensorboard "
        '"trackio>=0.43" mlflow-skinny  (or set train.trackers=none; metrics.jsonl holds every '
        "step in any case)."
    )
    plan = recipe("tensorboard", "trackio", "mlflow")
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
        refuse_trackers(plan.train)
    with pytest.raises(SettingsError, match=r"pip install tensorboard"):
        run(plan, tmp_path / "out", watcher=SilentWatcher())
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingsError, match=r"pip install tensorboard"):
        look_ahead(plan)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("none", ()),
        ("tensorboard", ("tensorboard",)),
        (["wandb", "mlflow", "wandb"], ("wandb", "mlflow")),
        ([], ()),
    ],
)
def test_a_recipe_names_none_one_or_several(given: Any, names: tuple[str, ...]) -> None:
    plan = recipe_from_dict({"name": "x", "data": {"source": "shop"}, "train": {"trackers": given}})
    assert tracker_names(plan.train) == names
    assert recipe_from_dict(recipe_to_dict(plan)) == plan


def test_an_unknown_tracker_is_refused() -> None:
    raw = {"name": "x", "data": {"source": "shop"}, "train": {"trackers": "tensorbord"}}
    with pytest.raises(
        SettingsError,
        match=re.escape(
            "train.trackers must be one of none, tensorboard, trackio, wandb, mlflow or a list, "
            "each one of tensorboard, trackio, wandb, mlflow, got 'tensorbord'."
        ),
    ):
        recipe_from_dict(raw)
    with pytest.raises(SettingsError, match=r"no tracker 'tensorbord'. Did you mean 'tensorboard'"):
        refuse_trackers(TrainSettings(trackers="tensorbord"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_the_setting_reaches_a_run_and_may_change_with_a_resume(tmp_path: Path, name: str) -> None:
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [{"question": f"Box {n}?", "answer": f"Colour {n % 7}."} for n in range(40)]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw = {
        "name": "shop",
        "model": {"name": str(tmp_path / "tiny"), "dtype": "float32"},
        "data": {"source": str(data), "test_fraction": 0.3, "max_tokens": 128},
        "train": {"max_tokens_per_batch": 256, "save_every": 2, "trackers": "none"},
        "evaluate": {"probes": [], "drift_passages": 0, "max_new_tokens": 4},
    }

    class Breaks(SilentWatcher):
        def on_step(self, step: Step, total_steps: int) -> None:
            if step.step == 3:
                raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        run(recipe_from_dict(raw), tmp_path / "out", watcher=Breaks())
    assert not (tmp_path / "out" / "trackers").exists()

    raw["train"]["trackers"] = name  # type: ignore[index]
    record = run(recipe_from_dict(raw), tmp_path / "out", resume=True, watcher=SilentWatcher())
    steps = record.training.steps
    found = scalars(tmp_path / "out")
    assert found["loss"] == [(one.step, pytest.approx(one.loss)) for one in steps]
    assert found["heldout_loss"] == [
        (one.step, pytest.approx(one.heldout_loss)) for one in steps if one.heldout_loss is not None
    ]
    assert read_metrics(tmp_path / "out" / "metrics.jsonl") == steps
