"""Everything that may happen to a run: kills, a full disk, damage, changes, no memory, no number.

Each test is a row, or a part of one, of the table in tests/faults_table.py, whose counts are
printed at the end. Runs are really ended by signals from outside, in processes of their own.
"""

# ruff: noqa: F811  (fixtures of another module)
from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sftkit import cli
from sftkit.adapter import attach_adapter
from sftkit.adapter_files import save_adapter
from sftkit.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from sftkit.errors import CheckpointError, StoppedError, TrainError
from sftkit.objectives import chat_loss
from sftkit.progress import SilentWatcher
from sftkit.recipe import recipe_from_dict, yaml_text
from sftkit.run import run
from sftkit.settings import TrainSettings
from sftkit.train import plan_steps, train
from sftkit.train_state import Keeping
from tests.conftest import make_model, make_tokenizer
from tests.faults_child import small_checkpoint
from tests.faults_processes import Interpreter
from tests.faults_table import ROWS
from tests.test_audit_checks import (
    test_no_set_of_the_catalog_raises_an_alarm,
    test_our_own_sets_raise_no_alarm,
)
from tests.test_audit_faults import (
    test_a_fault_is_named_with_place_count_and_remedy,
    test_a_sound_file_of_a_stranger_raises_no_alarm,
)
from tests.test_checkpoint import ADAPTER, SETTINGS, carry_out, losses
from tests.test_dataset_audit import test_real_sets_raise_no_alarm_with_the_real_tokenizer
from tests.test_readers_fuzz import (
    test_any_bytes_raise_only_our_errors,
    test_any_json_raises_only_our_errors,
)
from tests.test_run import recipe, tiny_folder  # noqa: F401  (fixtures)
from tests.test_train import TOKENIZER, furthest, make_examples, weights_of

SHOWN_FROM_ELSEWHERE = (  # rows of the table that other modules test; run once, see faults_table
    test_a_fault_is_named_with_place_count_and_remedy,
    test_a_sound_file_of_a_stranger_raises_no_alarm,
    test_any_bytes_raise_only_our_errors,
    test_any_json_raises_only_our_errors,
    test_no_set_of_the_catalog_raises_an_alarm,
    test_our_own_sets_raise_no_alarm,
    test_real_sets_raise_no_alarm_with_the_real_tokenizer,
)
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="forks and mounts as Linux does"),
]


def test_every_row_of_the_table_has_its_tests():
    named = {name for _, names in ROWS.values() for name in names}
    assert named - set(globals()) == set()


@dataclasses.dataclass(frozen=True)
class Interpreters:
    """Three Pythons: what is begun in one is gone on with in another."""

    undisturbed: Interpreter
    ended: Interpreter
    resumed: Interpreter


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreters]:
    place = tmp_path_factory.mktemp("pythons")
    all_three = [Interpreter(place, hash_seed) for hash_seed in (1, 2, 3)]
    try:
        for python in all_three:
            assert python.hear("threads") == {"threads": 1}  # a fork takes one thread along
        yield Interpreters(*all_three)
    finally:
        for python in all_three:
            python.close()


@pytest.fixture(scope="module")
def whole_runs() -> dict[Any, Any]:
    """Undisturbed runs by what they were."""
    return {}


# ---- ended by a signal ----

# Three steps an epoch; noise on embeddings and dropout, so that chance matters at every step.
PLAN: dict[str, Any] = {
    "max_tokens_per_batch": 150,
    "epochs": 3,
    "learning_rate": 1e-2,
    "neftune_alpha": 5.0,
}
MID_EPOCH, EPOCH_END = 5, 6


def test_the_chosen_steps_are_the_middle_and_the_end_of_an_epoch():
    lengths = [example.length for example in make_examples()]
    ends = [
        len(plan_steps(lengths, TrainSettings(**{**PLAN, "epochs": epochs}))) for epochs in (1, 2)
    ]
    assert ends[0] < MID_EPOCH < ends[1] == EPOCH_END


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [MID_EPOCH, EPOCH_END], ids=["mid-epoch", "epoch-end"])
def test_a_run_ended_by_a_signal_goes_on_bit_identically(
    micro_batches, kind, by, at, pythons, whole_runs, tmp_path
):
    plan = {**PLAN, "micro_batches": micro_batches}
    if (micro_batches, kind) not in whole_runs:
        whole_runs[micro_batches, kind] = pythons.undisturbed.carry_out(
            "train_tiny", "losses", kind=kind, settings=plan, out=str(tmp_path / "whole")
        )
    whole = whole_runs[micro_batches, kind]
    # Who is killed saves nothing more: the newest checkpoint is that of the step before.
    killed = by == signal.SIGKILL
    plan |= {"save_every": 1 if killed else None}
    same: dict[str, Any] = {"kind": kind, "settings": plan, "folder": str(tmp_path / "kept")}

    pythons.ended.start(
        "train_tiny", **same, out=str(tmp_path / "never"), pause_at=at + 1 if killed else at
    )
    pythons.ended.hear_step(at + 1 if killed else at)
    pythons.ended.end(by)
    if not killed:
        pythons.ended.go_on()
        said = pythons.ended.hear("raised")["raised"]
        assert re.match(rf"Stopped after step {at} of 9 \({by.name}\); everything is saved", said)
    assert pythons.ended.ended() == (-by if killed else 0)

    again = pythons.resumed.carry_out(
        "train_tiny", "losses", **same, out=str(tmp_path / "again"), resume=True
    )
    assert f"after step {at} " in pythons.resumed.notes[-1]
    assert len(whole["losses"]) == 9
    assert again["losses"] == whole["losses"]
    assert again["weights"] == whole["weights"]


# ---- killed while saving ----

BIG: dict[str, Any] = {"epochs": 4, "max_tokens_per_batch": 150, "save_every": 1}
"""Of a model so wide that a save takes longer than a step."""
WIDE: dict[str, Any] = {"kind": "full", "settings": BIG, "width": 192}
WITHIN_A_SAVE: list[bool] = []


@pytest.mark.parametrize("moment", range(20))
def test_a_kill_at_a_random_moment_of_saving_leaves_a_good_checkpoint(
    moment, pythons, whole_runs, tmp_path
):
    if "wide" not in whole_runs:
        python = pythons.undisturbed
        python.start("train_tiny", **WIDE, out=str(tmp_path), folder=str(tmp_path / "wide"))
        first, last = python.hear_step(3), python.hear_step(11)
        step_s = (last - first) / 8
        whole_runs["wide"] = step_s, python.hear("losses")
        assert python.ended() == 0
    step_s, whole = whole_runs["wide"]
    kept = tmp_path / "kept"

    pythons.ended.start("train_tiny", **WIDE, out=str(tmp_path / "never"), folder=str(kept))
    pythons.ended.hear_step(3)
    signal.sigtimedwait([], random.Random(moment).uniform(0, 3 * step_s))
    pythons.ended.end(signal.SIGKILL)
    assert pythons.ended.ended() == -signal.SIGKILL
    WITHIN_A_SAVE.append(any(kept.glob(".writing-*")))

    again = pythons.resumed.carry_out(
        "train_tiny", "losses", **WIDE, out=str(tmp_path / "again"), folder=str(kept), resume=True
    )
    step = re.search(r"after step (\d+) ", pythons.resumed.notes[-1])
    assert step is not None
    assert 2 <= int(step[1]) <= 11
    assert again["losses"] == whole["losses"]
    assert again["weights"] == whole["weights"]
    assert not any(kept.glob(".writing-*"))


def test_many_of_those_kills_hit_the_inside_of_a_save():
    """How many depends on the disk and on what else runs (6 were seen); 3 are too many for luck."""
    if len(WITHIN_A_SAVE) < 20:
        pytest.skip("the kills were not all run")
    assert sum(WITHIN_A_SAVE) >= 3


def test_a_kill_before_any_file_operation_of_a_save_leaves_a_good_checkpoint(pythons, tmp_path):
    folder = tmp_path / "kept"
    found = []
    for at in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(folder, small_checkpoint(1), fingerprints={})
        pythons.ended.start("save_until", folder=str(folder), step=2, at=at)
        told = pythons.ended.hear("operations", "ended")
        checkpoint = newest_checkpoint(folder, fingerprints={})
        assert checkpoint is not None
        expected = small_checkpoint(checkpoint.step)
        assert checkpoint.progress == expected.progress
        assert torch.equal(checkpoint.tensors["weights"]["a"], expected.tensors["weights"]["a"])
        found.append(checkpoint.step)
        if "operations" in told:
            assert pythons.ended.ended() == 0
            break
        assert told == {"ended": -signal.SIGKILL}
    assert told == {"operations": len(found) - 1}
    assert found == sorted(found)  # the old one until the new one is there, then the new one
    assert found.count(1) >= 10
    assert found.count(2) >= 5


# ---- damage ----


def damaged(whole: bytes, how: str) -> Iterator[bytes]:
    """Give what may be left of a file."""
    if how == "empty":
        yield b""
    if how == "truncated":
        yield from (whole[: len(whole) // 2], whole[:-1])
    if how == "bit-flipped":
        for place in (0, len(whole) // 2, len(whole) - 1):
            changed = bytearray(whole)
            changed[place] ^= 1
            yield bytes(changed)


STOPPING = dataclasses.replace(
    SETTINGS, early_stopping="heldout_loss", early_stopping_patience=9, heldout_evaluations=4
)
FILES = [
    "best.safetensors", "manifest.json", "optimizer.safetensors", "progress.json",
    "random.safetensors", "weights.safetensors",
]  # fmt: skip


@pytest.fixture(scope="module")
def with_best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run that keeps its best weights, of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("best") / "kept"
    with pytest.raises(StoppedError):
        carry_out(folder, settings=STOPPING, stop_after=5)
    assert sorted(path.name for path in (folder / "step-000005").iterdir()) == FILES
    return folder


@pytest.mark.parametrize("how", ["missing", "truncated", "bit-flipped", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_file_of_a_checkpoint_is_named(name, how, with_best, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(with_best, kept)
    file = kept / "step-000005" / name
    whole = file.read_bytes()
    file.unlink()
    contents: list[bytes | None] = [None] if how == "missing" else [*damaged(whole, how)]
    for content in contents:
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(kept / "step-000005")
        assert name in str(caught.value)
        assert "step-000005" in str(caught.value)
        told: list[str] = []
        checkpoint = newest_checkpoint(kept, fingerprints={}, note=told.append)
        assert checkpoint is not None
        assert checkpoint.step == 4
        assert len(told) == 1
        assert re.search(rf"{name}.* Going back to the checkpoint before it", told[0])


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_weights(tmp_path):
    whole, weights = carry_out(None)
    with pytest.raises(StoppedError):
        carry_out(tmp_path, stop_after=5)
    (tmp_path / "step-000005" / "optimizer.safetensors").unlink()
    told: list[str] = []
    record, again = carry_out(tmp_path, resume=True, told=told)
    assert "step-000005 is damaged: optimizer.safetensors is missing" in told[0]
    assert "after step 4 " in told[1]
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0


# ---- another run ----


class StopsAfter(SilentWatcher):
    """Presses the stop button after a step, and takes down what is said."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.notes = step, list[str]()

    def on_step(self, step: Any, total_steps: int) -> None:
        """Press."""
        if step.step == self.step:
            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        """Take down."""
        self.notes.append(text)


def change_rows(plain: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    path = Path(plain["data"]["source"])
    path.write_text(path.read_text().replace("lime", "mint"), encoding="utf-8")


def change_base(plain: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    other = make_model(vocab_size=len(make_tokenizer()), seed=1)
    other.save_pretrained(plain["model"]["name"])


def change_template(plain: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    tokenizer.save_pretrained(plain["model"]["name"])


def change_version(plain: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    patch.setattr(
        importlib.metadata, "version", lambda name: "0.0.1" if name == "peft" else version(name)
    )


def change_setting(name: str, value: Any) -> Any:
    def change(plain: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        plain["train"][name] = value

    return change


CHANGES = {  # what is changed: how, and the names it goes by
    "data": (change_rows, ["the rows"]),
    "learning rate": (change_setting("learning_rate", 0.02), ["train.learning_rate"]),
    "batch": (change_setting("max_tokens_per_batch", 200), ["train.max_tokens_per_batch"]),
    "seed": (change_setting("seed", 7), ["train.seed"]),
    "base": (change_base, ["the base model"]),
    "template": (change_template, ["the base model", "the chat template"]),
    "library version": (change_version, ["version of peft"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_run_is_refused_in_words_and_let_through_by_name(
    what, recipe, tmp_path, monkeypatch
):
    recipe["data"] |= {"max_tokens": 128}
    recipe["train"] |= {"max_tokens_per_batch": 256}
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="everything is saved"):
        run(recipe_from_dict(recipe), out, watcher=StopsAfter(2))
    begun = load_checkpoint(out / "checkpoints" / "step-000002")[0].progress["done"]["steps"]
    change, names = CHANGES[what]
    change(recipe, monkeypatch)
    changed = recipe_from_dict(recipe)

    with pytest.raises(CheckpointError) as caught:
        run(changed, out, resume=True, watcher=StopsAfter())
    said = str(caught.value)
    assert said.startswith("This is not the run that was begun: ")
    assert said.endswith("start in another folder, or name what may differ in allow_changes.")
    assert re.findall(r"(?:begun: |; )(.+?) was .+? and is ", said) == names

    for name in names:  # each has to be named
        some = [other for other in names if other != name]
        with pytest.raises(CheckpointError, match=f"begun: {name} was "):
            run(changed, out, resume=True, allow_changes=some, watcher=StopsAfter())
    watcher = StopsAfter()
    record = run(changed, out, resume=True, allow_changes=names, watcher=watcher)
    told = [line for line in watcher.notes if line.startswith("Going on although ")]
    assert [line.split(" was ")[0].removeprefix("Going on although ") for line in told] == names
    assert [step.loss for step in record.training.steps[:2]] == [step["loss"] for step in begun]
    assert len(record.training.steps) > 2


def test_a_name_that_nothing_has_is_no_permission(tmp_path):
    with pytest.raises(StoppedError):
        carry_out(tmp_path, stop_after=3, fingerprints={"train.seed": "0"})
    with pytest.raises(CheckpointError, match=r"'train.sed'. Did you mean 'train.seed'\?$"):
        newest_checkpoint(tmp_path, fingerprints={"train.seed": "0"}, allow_changes=["train.sed"])


# ---- from the command line ----


@pytest.fixture
def recipe_file(recipe: dict[str, Any], tmp_path: Path) -> Path:
    recipe["data"] |= {"max_tokens": 128}
    recipe["train"] |= {"max_tokens_per_batch": 128, "epochs": 8}
    recipe["adapter"]["lora_dropout"] = 0.1
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_text(recipe_from_dict(recipe)), encoding="utf-8")
    return path


def adapter_in(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_resuming_from_the_command_line_begins_in_a_new_or_empty_folder_and_goes_on_in_another(
    recipe_file, tmp_path, pythons
):
    (tmp_path / "empty").mkdir()
    for folder in ("new", "empty"):
        words = ["run", str(recipe_file), "--out", str(tmp_path / folder), "--resume"]
        pythons.undisturbed.start("command", words=words)
        assert pythons.undisturbed.ended() == 0, pythons.undisturbed.errors.read_text()
    assert adapter_in(tmp_path / "new") == adapter_in(tmp_path / "empty")

    words = ["run", str(recipe_file), "--out", str(tmp_path / "stopped")]
    pythons.ended.start("command", words=words)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        signal.sigtimedwait([], 0.002)
    pythons.ended.end(signal.SIGINT)
    assert pythons.ended.ended() == 130
    said = re.findall(r"Stopped after step .*", pythons.ended.errors.read_text())[-1]
    assert re.search(r"\(SIGINT\); everything is saved\. .*--resume", said)

    pythons.resumed.start("command", words=[*words, "--resume"])
    assert pythons.resumed.ended() == 0, pythons.resumed.errors.read_text()
    assert adapter_in(tmp_path / "stopped") == adapter_in(tmp_path / "new")


def test_changes_are_allowed_from_the_command_line(recipe_file, tmp_path, monkeypatch, capsys):
    def start(*words: str) -> int:
        given = ["sftkit", "run", str(recipe_file), "--format", "json", *words]
        monkeypatch.setattr(sys, "argv", given)
        try:
            return cli.start()
        except SystemExit as error:
            return int(error.code or 0)

    out = str(tmp_path / "out")
    with pytest.raises(StoppedError):
        run(recipe_from_dict(plain_recipe(recipe_file)), out, watcher=StopsAfter(2))
    settings = ("--set", "train.learning_rate=1e-3", "--set", "train.seed=1")
    slower = ("--out", out, "--resume", *settings)
    assert start(*slower, "--allow-changes", "train.seed") == 2
    assert capsys.readouterr().err.startswith(
        "CheckpointError: This is not the run that was begun: train.learning_rate was 0.01 and is "
        "0.001. Put it back"
    )
    allowed = ("--allow-changes", "train.seed", "--allow-changes", "train.learning_rate")
    assert start(*slower, *allowed) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["train"]["learning_rate"] == 0.001
    assert start("--allow-changes", "train.seed") == 2
    assert "add --resume" in capsys.readouterr().err


def plain_recipe(path: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


# ---- a full disk ----

DISK_BYTES = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte, all its own."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system can be mounted by root alone ({error})")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=20)


def fill(disk: Path, *, but: int = 0) -> None:
    """Leave so many bytes free."""
    free = shutil.disk_usage(disk).free
    with (disk / "ballast").open("ab") as file:
        file.write(bytes(max(0, free - but)))


def test_a_disk_that_fills_up_within_a_save_leaves_the_earlier_checkpoint_whole(disk, tmp_path):
    carry_out(tmp_path / "kept", settings=dataclasses.replace(SETTINGS, max_steps=2))
    checkpoint, prints = load_checkpoint(tmp_path / "kept" / "step-000001")
    kept = disk / "kept"
    first = save_checkpoint(kept, checkpoint, fingerprints=prints)
    bytes_of = {path.name: path.read_bytes() for path in first.iterdir()}
    size = sum(-(-len(content) // 4096) * 4096 for content in bytes_of.values())
    later = dataclasses.replace(checkpoint, step=2)
    failed = 0
    for free in range(0, size, 4096):
        fill(disk, but=free)
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(kept, later, fingerprints=prints)
        assert "No space left on device" in str(caught.value)
        assert "Earlier checkpoints are whole" in str(caught.value)
        assert [path.name for path in kept.iterdir()] == ["step-000001"]
        assert {path.name: path.read_bytes() for path in first.iterdir()} == bytes_of
        (disk / "ballast").unlink()
        failed += 1
    assert failed >= 10
    save_checkpoint(kept, later, fingerprints=prints)
    assert load_checkpoint(kept / "step-000002")[0].step == 2


def train_on(
    disk: Path, told: list[str], *, full: range, stop_after: int | None = None, **keeping: Any
) -> Any:
    """Train with a checkpoint at every step; the disk is full while some of them are done."""
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), ADAPTER)

    def on_step(step: Any, _: int) -> None:
        (disk / "ballast").unlink(missing_ok=True)
        if step.step in full:
            fill(disk)
        if step.step == stop_after:
            signal.raise_signal(signal.SIGINT)

    record = train(
        model,
        make_examples(),
        SETTINGS,
        objective=chat_loss,
        keeping=Keeping(folder=disk / "kept", note=told.append, **keeping),
        on_step=on_step,
    )
    return record, weights_of(model)


def test_training_goes_on_while_the_disk_is_full_and_saves_again_when_it_is_not(disk):
    whole, weights = carry_out(None)
    told: list[str] = []
    record, again = train_on(disk, told, full=range(3, 6))
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0
    said = [re.match(r"The checkpoint of step (\d) could not be written", line) for line in told]
    assert [match and match[1] for match in said] == ["3", "4", "5"]
    assert all("No space left on device" in line for line in told)
    assert sorted(path.name for path in (disk / "kept").iterdir()) == ["step-000007", "step-000008"]


def test_a_stop_with_a_full_disk_says_what_is_saved_and_what_is_not(disk):
    whole, weights = carry_out(None)
    told: list[str] = []
    with pytest.raises(StoppedError) as caught:
        train_on(disk, told, full=range(3, 9), stop_after=4)
    said = str(caught.value)
    assert said.startswith("Stopped after step 4 of 8 (SIGINT); it is not saved")
    assert "step 2" in said  # the newest one that is
    assert load_checkpoint(disk / "kept" / "step-000002")[0].step == 2
    (disk / "ballast").unlink()
    record, again = train_on(disk, told, full=range(0), resume=True)
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0


def test_a_whole_run_on_a_disk_that_fills_up_goes_on_and_says_so(recipe, disk):
    class Fills(StopsAfter):
        def on_step(self, step: Any, total_steps: int) -> None:
            """Leave nothing from step 3 until step 50, for dozens of lines of metrics."""
            if step.step == 3:
                fill(disk)
            if step.step == 50:
                (disk / "ballast").unlink()

    recipe["data"] |= {"max_tokens": 128}
    recipe["train"] |= {"max_tokens_per_batch": 128, "epochs": 8, "save_every": 1, "keep_last": 1}
    plan = recipe_from_dict(recipe)
    whole = run(plan, disk.parent / "whole", watcher=StopsAfter())
    watcher = Fills()
    record = run(plan, disk / "out", watcher=watcher)
    assert [step.loss for step in record.training.steps] == [
        step.loss for step in whole.training.steps
    ]
    assert any("could not be written" in line for line in watcher.notes)
    assert adapter_in(disk / "out") == adapter_in(disk.parent / "whole")


@pytest.mark.parametrize("when", ["the adapter is saved", "the record is written"])
def test_a_run_that_cannot_write_its_end_says_what_is_saved_and_goes_on_from_it(when, recipe, disk):
    class Fills(StopsAfter):
        def on_step(self, step: Any, total_steps: int) -> None:
            """Leave nothing before the last step."""
            if when == "the adapter is saved" and step.step == total_steps - 1:
                fill(disk)

        def note(self, text: str) -> None:
            """Leave nothing once the adapter is saved."""
            if when == "the record is written" and text == "measuring the tuned model":
                fill(disk)

    recipe["train"] |= {"save_every": 1, "keep_last": 1}
    plan = recipe_from_dict(recipe)
    whole = run(plan, disk.parent / "whole", watcher=StopsAfter())
    last = len(whole.training.steps) - (2 if when == "the adapter is saved" else 0)
    with pytest.raises(TrainError) as caught:
        run(plan, disk / "out", watcher=Fills())
    assert str(caught.value) == (
        f"The run had to end: no space is left where {disk / 'out'} is. Free some. Step {last} is "
        "saved; go on from it with --resume."
    )
    assert not (disk / "out" / "run.json").exists()
    (disk / "ballast").unlink()
    record = run(plan, disk / "out", resume=True, watcher=StopsAfter())
    assert record.learned == whole.learned
    assert adapter_in(disk / "out") == adapter_in(disk.parent / "whole")


# ---- no number, nothing to learn ----


def train_until(folder: Path, *, at: int, what: str, told: list[str]) -> Any:
    """Train on an objective that is no number at a step."""
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), ADAPTER)
    batches = []

    def objective(tuned: Any, batch: Any) -> Any:
        total, weight = chat_loss(tuned, batch)
        batches.append(batch)
        if len(batches) != at:
            return total, weight
        if what == "gradient":  # of a root at zero: the loss is a number, its slope is none
            (first, *_) = (p for p in tuned.parameters() if p.requires_grad)
            return total + torch.sqrt(first.sum() * 0.0), weight
        return total * float(what), weight

    with pytest.raises(TrainError) as caught:
        train(
            model, make_examples(), SETTINGS, objective=objective,
            keeping=Keeping(folder=folder, note=told.append),
        )  # fmt: skip
    return str(caught.value)


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_loss_that_is_no_number_stops_with_its_rows_and_the_checkpoint_is_good(what, tmp_path):
    whole, weights = carry_out(None)
    said = train_until(tmp_path, at=4, what=what, told=[])
    lengths = [example.length for example in make_examples()]
    rows = sorted(plan_steps(lengths, SETTINGS)[3])
    value = {"nan": "loss of step 4 is nan", "inf": "loss of step 4 is inf"}
    assert value.get(what, "gradient of step 4 is nan") in said
    assert f"Rows of the batch: {rows}." in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    record, again = carry_out(tmp_path, resume=True)  # now with an objective that is sound
    assert losses(record) == losses(whole)
    assert furthest(again, weights) == 0.0


@pytest.mark.parametrize(
    "masked",
    [
        pytest.param(range(8), id="all"),
        pytest.param((2, 5), id="some"),
    ],
)
def test_masked_labels_stop_before_the_first_step_and_touch_no_checkpoint(masked, tmp_path):
    with pytest.raises(StoppedError):
        carry_out(tmp_path, stop_after=3)
    examples = [
        example.silenced() if row in masked else example
        for row, example in enumerate(make_examples())
    ]
    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), ADAPTER)
    with pytest.raises(TrainError) as caught:
        train(
            model, examples, SETTINGS, objective=chat_loss,
            keeping=Keeping(folder=tmp_path, resume=True),
        )  # fmt: skip
    assert f"rows {[*masked]}" in str(caught.value)
    checkpoint = newest_checkpoint(tmp_path, fingerprints={})
    assert checkpoint is not None
    assert checkpoint.step == 3


# ---- the best, and the last few ----


def test_the_best_weights_and_the_last_checkpoints_survive_a_resume(tmp_path):
    settings = TrainSettings(
        max_tokens_per_batch=250, epochs=12, learning_rate=0.03, warmup_fraction=0.0,
        schedule="constant", early_stopping="heldout_loss", early_stopping_patience=4,
        heldout_evaluations=24, save_every=1, keep_last=3,
    )  # fmt: skip
    model, record = train_measured(settings, tmp_path / "whole")
    assert 0 < record.kept_step < len(record.steps) < 24  # the best came early, and it stopped
    stop_after = record.kept_step + 2
    with pytest.raises(StoppedError):
        train_measured(settings, tmp_path / "part", stop_after=stop_after)
    names = [f"step-{step:06d}" for step in range(stop_after - 2, stop_after + 1)]
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == names
    best = load_checkpoint(tmp_path / "part" / names[-1])[0]
    assert best.progress["best"]["step"] == record.kept_step

    again, resumed = train_measured(settings, tmp_path / "part", resume=True)
    assert (resumed.kept_step, losses(resumed)) == (record.kept_step, losses(record))
    assert furthest(weights_of(again), weights_of(model)) == 0.0
    last = len(record.steps)
    names = [f"step-{step:06d}" for step in range(last - 2, last + 1)]
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == names
    for folder, of in (("first", model), ("second", again)):
        save_adapter(of, tmp_path / folder)
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


def train_measured(
    settings: TrainSettings, folder: Path, *, stop_after: int | None = None, resume: bool = False
) -> Any:
    """Train with a real measurement: the loss on answers that are not trained on."""
    from sftkit.evidence.perplexity import mean_loss, score_examples

    model = attach_adapter(make_model(vocab_size=len(TOKENIZER)), ADAPTER)
    heldout = make_examples(["Eight.", "In a park", "Nobody"])

    def on_step(step: Any, _: int) -> None:
        if step.step == stop_after:
            signal.raise_signal(signal.SIGTERM)

    record = train(
        model,
        make_examples(),
        settings,
        objective=chat_loss,
        measure=lambda: {"heldout_loss": mean_loss(score_examples(model, heldout))},
        keeping=Keeping(folder=folder, resume=resume, note=lambda text: None),
        on_step=on_step,
    )
    return model, record


# ---- out of memory ----

# One step holds all eight rows of about 180 tokens, so that it can be cut three times.
LONG: dict[str, Any] = {"max_tokens_per_batch": 10_000, "epochs": 3, "learning_rate": 1e-3}
# Eight layers: what is computed twice must save far more than the noise of the allocator.
WIDE_AND_LONG: dict[str, Any] = {
    "kind": "lora", "width": 256, "layers": 8, "repeat": 150, "chance": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def needs(pythons: Interpreters, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What the run needs by micro-batches (0: eight, and activations twice), without a limit."""
    place = tmp_path_factory.mktemp("needs")
    plans: dict[int, dict[str, Any]] = {n: {"micro_batches": n} for n in (1, 2, 8)}
    plans[0] = {"micro_batches": 8, "activation_checkpointing": True}
    found = {
        name: pythons.undisturbed.carry_out(
            "train_tiny", "losses", **WIDE_AND_LONG, settings={**LONG, **plan}, out=str(place)
        )
        for name, plan in plans.items()
    }
    order = [found[name]["spared_bytes"] for name in (1, 2, 8, 0)]
    assert order == sorted(order, reverse=True)
    return found


def spare(needs: dict[Any, Any], least: int, less: int, share: float = 0.3) -> int:
    """Give a limit between two needs, nearer the smaller: not every step needs the peak."""
    most, little = needs[least]["spared_bytes"], needs[less]["spared_bytes"]
    return int(little + (most - little) * share)


HALVED = "memory ran out in step 1: {} micro-batches from here on"


def test_where_memory_runs_out_micro_batches_halve_and_losses_stay(pythons, needs, tmp_path):
    same: dict[str, Any] = {**WIDE_AND_LONG, "folder": str(tmp_path / "kept"), "settings": LONG}
    pythons.ended.start(
        "train_tiny", **same, out=str(tmp_path / "a"), pause_at=2, spare_bytes=spare(needs, 1, 2)
    )
    pythons.ended.hear_step(2)
    assert [note.split(",")[0] for note in pythons.ended.notes] == [HALVED.format(2)]
    pythons.ended.end(signal.SIGTERM)
    pythons.ended.go_on()
    assert "Stopped after step 2 of 3" in pythons.ended.hear("raised")["raised"]
    assert pythons.ended.ended() == 0
    # The one that goes on has memory enough, and still cuts its steps as those before were cut.
    again = pythons.resumed.carry_out(
        "train_tiny", "losses", **same, out=str(tmp_path / "b"), resume=True
    )
    assert again["losses"] == needs[2]["losses"]
    assert again["weights"] == needs[2]["weights"]
    assert [event.split(",")[0].split(" from /")[0] for event in again["events"]] == [
        HALVED.format(2), "went on after step 2",
    ]  # fmt: skip
    whole = [float.fromhex(loss) for loss in needs[1]["losses"]]
    assert [float.fromhex(loss) for loss in again["losses"]] == pytest.approx(whole, abs=1e-5)


def test_where_single_examples_do_not_fit_activations_are_computed_twice(pythons, needs, tmp_path):
    # What an allocator holds back differs from process to process: limits are tried upwards until
    # the run ends, and it has to be one at which activations are computed twice.
    for share in (0.2, 0.4, 0.6, 0.8):
        done = pythons.ended.carry_out(
            "train_tiny", "losses", "raised", **WIDE_AND_LONG, settings=LONG,
            out=str(tmp_path / str(share)), spare_bytes=spare(needs, 8, 0, share),
        )  # fmt: skip
        if "losses" in done:
            break
    *halved, twice = done["events"]
    assert [event.split(",")[0] for event in halved] == [HALVED.format(n) for n in (2, 4, 8)]
    assert "activations are computed twice from here on" in twice
    assert done["losses"] == needs[0]["losses"]
    assert done["weights"] == needs[0]["weights"]
    whole = [float.fromhex(loss) for loss in needs[1]["losses"]]
    assert [float.fromhex(loss) for loss in done["losses"]] == pytest.approx(whole, abs=1e-5)


def test_where_nothing_fits_the_run_says_what_would(pythons, needs, tmp_path):
    told = pythons.ended.carry_out(
        "train_tiny", "raised", **WIDE_AND_LONG, settings=LONG, out=str(tmp_path),
        spare_bytes=needs[0]["spared_bytes"] // 2,
    )  # fmt: skip
    assert re.match(
        r"Memory ran out with micro-batches of one example .*The longest example of the step has "
        r"181 tokens \(row 0\)\. Take a lower data\.max_tokens, a quantized base",
        told["raised"],
    )
