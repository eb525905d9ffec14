"""What a launch is planned to be, what is refused before anything starts, how ends are told."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sftkit import launch as launching
from sftkit.cli import app
from sftkit.errors import AdapterError, ProcessError, SettingsError, StoppedError, TrainError
from sftkit.launch import launch
from sftkit.launch_config import (
    STRATEGIES,
    LaunchPlan,
    accelerate_config,
    config_text,
    dry_launch_text,
    launch_command,
    launch_environment,
    missing_here,
    network_interface,
    plan_launch,
)
from sftkit.meeting import found_by_first, meet
from sftkit.model import pick_device
from sftkit.progress import SilentWatcher
from sftkit.records import Step
from sftkit.settings import DataSettings, ModelSettings, Recipe
from sftkit.worker import EVENTS, Teller

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ADDRESS = "10.0.0.1:29500"


def make_recipe(**model: Any) -> Recipe:
    return Recipe(
        name="any",
        model=ModelSettings(**{"name": "smollm2-135m", "device": "cpu", **model}),
        data=DataSettings(source="facts"),
    )


@pytest.fixture(autouse=True)
def _no_thread_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


# ---- the plan ----


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        ({"processes": 0}, {}, "processes=0 and machines=1 must both be 1 or more."),
        (
            {"processes": 3, "machines": 2, "main_address": ADDRESS},
            {},
            "3 processes cannot be divided evenly among 2 machines.",
        ),
        (
            {"processes": 4, "machines": 2, "machine_rank": 2, "main_address": ADDRESS},
            {},
            "machine_rank=2 is none of the 2 machines: the first is 0, the last 1.",
        ),
        ({"processes": 2, "machines": 2}, {}, "give main_address=HOST:PORT of the first"),
        ({"processes": 2, "main_address": ADDRESS}, {}, "main_address is for several machines"),
        (
            {"processes": 2, "machines": 2, "main_address": "10.0.0.1"},
            {},
            "main_address='10.0.0.1' must be HOST:PORT, such as 10.0.0.1:29500.",
        ),
        ({"processes": 2, "strategy": "zero"}, {}, "There is no strategy 'zero'. Use ddp, fsdp"),
        ({"processes": 2}, {"device": "mps"}, "cannot share an Apple GPU"),
        ({"processes": 2}, {"device_map": "auto"}, "model.device_map='auto' spreads one copy"),
        ({"processes": 2, "strategy": "fsdp"}, {}, "fsdp needs CUDA GPUs, and model.device is cpu"),
        (
            {"processes": 2, "strategy": "deepspeed-zero3"},
            {"device": "auto", "quantization": "nf4"},
            "deepspeed-zero3 cannot split a base held in nf4. Use ddp",
        ),
    ],
)
def test_what_can_work_nowhere_is_refused_in_words(options, model, words):
    with pytest.raises(SettingsError, match="This launch cannot work") as refused:
        plan_launch(make_recipe(**model), **options)
    assert words in str(refused.value)


def test_all_faults_of_a_launch_are_told_at_once():
    with pytest.raises(SettingsError) as refused:
        plan_launch(make_recipe(), processes=3, machines=2, strategy="fsdp")
    assert str(refused.value).count("\n  - ") == 3


def test_threads_are_the_cores_divided_unless_somebody_chose(monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores
    assert plan_launch(make_recipe(), processes=1).threads == cores
    assert plan_launch(make_recipe(), processes=2).threads == max(1, cores // 2)
    assert plan_launch(make_recipe(), processes=64).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan_launch(make_recipe(), processes=2).threads == 3


def test_more_gpus_than_there_are_and_a_missing_deepspeed_are_named():
    there = torch.cuda.device_count()
    plan = plan_launch(make_recipe(device="cuda"), processes=there + 1)
    assert missing_here(plan)[0].startswith(
        f"{there + 1} processes need a GPU each, and this machine has {there}. Use "
    )
    plan = plan_launch(make_recipe(device="auto"), processes=2, strategy="deepspeed-zero2")
    if importlib.util.find_spec("deepspeed") is None:
        assert missing_here(plan)[-1].endswith("python -m pip install deepspeed")
    assert missing_here(plan_launch(make_recipe(), processes=64)) == []


# ---- Accelerate's configuration ----


def plan_of(strategy: str, device: str = "auto", machines: int = 2) -> tuple[LaunchPlan, Recipe]:
    recipe = make_recipe(device=device)
    options: dict[str, Any] = {"processes": 4, "machines": machines, "strategy": strategy}
    if machines > 1:
        options |= {"main_address": ADDRESS, "machine_rank": 1}
    return plan_launch(recipe, **options), recipe


def as_accelerate_reads(plan: LaunchPlan, recipe: Recipe, folder: Path) -> Any:
    """Read command and configuration with Accelerate's own parser and loader."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = folder / "accelerate.yaml"
    path.write_text(config_text(plan, recipe), encoding="utf-8")
    command = launch_command(plan, config=path, recipe="recipe.yaml", out="out", rest=["--resume"])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    given: argparse.Namespace = launch_command_parser().parse_args(command[3:])
    return _validate_launch_command(given)[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accelerate_reads_the_configuration_of_every_strategy(strategy, tmp_path):
    plan, recipe = plan_of(strategy, device="cuda")
    read = as_accelerate_reads(plan, recipe, tmp_path)
    assert (read.num_processes, read.num_machines, read.machine_rank) == (4, 2, 1)
    assert (read.main_process_ip, read.main_process_port) == ("10.0.0.1", 29500)
    assert (read.use_fsdp, read.use_deepspeed) == (strategy == "fsdp", "deepspeed" in strategy)
    assert read.multi_gpu == (strategy == "ddp")
    assert not read.use_cpu
    assert read.training_script_args == ["recipe.yaml", "--out", "out", "--resume"]


def test_cpu_processes_take_the_way_on_which_accelerate_starts_them_all(tmp_path):
    plan, recipe = plan_of("ddp", device="cpu", machines=1)
    read = as_accelerate_reads(plan, recipe, tmp_path)
    assert (read.multi_gpu, read.cpu, read.use_cpu, read.num_processes) == (True, False, True, 4)
    # Under the type with the fitting name, Accelerate would start one process whatever it is told.
    config = {**accelerate_config(plan, recipe), "distributed_type": "MULTI_CPU"}
    (tmp_path / "usual.yaml").write_text(json.dumps(config), encoding="utf-8")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    arguments = ["--config_file", str(tmp_path / "usual.yaml"), "script.py"]
    usual = _validate_launch_command(launch_command_parser().parse_args(arguments))[0]
    assert not any((usual.multi_gpu, usual.use_fsdp, usual.use_deepspeed, usual.tpu))


def test_accelerate_builds_its_fsdp_plugin_from_the_configuration(tmp_path, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    plan, recipe = plan_of("fsdp", machines=1)
    read = as_accelerate_reads(plan, recipe, tmp_path)
    for name, value in prepare_multi_gpu_env(read).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.activation_checkpointing


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_builds_its_plugin_from_the_configuration(stage, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed, and is not required")
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    plan, recipe = plan_of(f"deepspeed-zero{stage}", machines=1)
    read = as_accelerate_reads(plan, recipe, tmp_path)
    read.deepspeed_fields_from_accelerate_config = ""
    for name, value in prepare_deepspeed_cmd_env(read)[1].items():
        monkeypatch.setenv(name, value)
    assert DeepSpeedPlugin().zero_stage == stage


def test_processes_get_the_same_package_and_network_and_no_rank_of_ours(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine0")
    plan = plan_launch(make_recipe(), processes=2)
    found = launch_environment(plan, stop_wait_s=120)
    assert not {"RANK", "MASTER_PORT"} & set(found)
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(Path(launching.__file__).parents[1])
    assert found["GLOO_SOCKET_IFNAME"] == LOOPBACK
    assert found["NCCL_SOCKET_IFNAME"] == "mine0"
    assert found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"
    assert found["ACCELERATE_USE_CPU"] == "true"


def test_the_interface_is_the_one_that_reaches_the_first_machine():
    assert network_interface("127.0.0.1:29500") == LOOPBACK
    assert network_interface("no.such.host.invalid:29500") is None


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = ModelSettings(name="any", device="auto", quantization="nf4")
    assert pick_device(settings) == torch.device("cuda")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(pick_device(settings)) == "cuda:1"


# ---- the dry run ----


def test_a_dry_run_says_first_what_it_would_do_then_configuration_and_command():
    plan, recipe = plan_of("deepspeed-zero3", device="cuda")
    text = dry_launch_text(plan, recipe)
    words = (
        "Would start 2 processes on this machine with a GPU each, through Accelerate. "
        "deepspeed-zero3: every process holds a part of weights, gradients and optimizer.",
        "This is machine 1 of 2 (from 0), 4 processes in all; they meet at 10.0.0.1:29500",
        "untested here: no machine with several GPUs was there",
        "    zero_stage: 3",
        "-m accelerate.commands.launch --config_file accelerate.yaml",
        "-m sftkit.worker recipe.yaml --out runs/any",
    )
    places = [text.index(part) for part in words]
    assert places == sorted(places)


def test_the_command_line_looks_ahead_for_eight_gpus_on_two_machines(tmp_path, folder):
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"Box {n}?", "answer": "red"} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    model = f"{{name: {folder}, dtype: float32, device: cpu}}"
    path.write_text(f"name: any\nmodel: {model}\ndata: {{source: {data}}}\n", encoding="utf-8")
    options = ["run", str(path), "--dry-run", "--processes", "8", "--machines", "2"]
    options += ["--main-address", ADDRESS]

    said = CliRunner().invoke(app, options)
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("Would start 4 processes on this machine")
    assert "num_processes: 8" in said.stdout
    assert "Nothing was trained." in said.stdout

    found = json.loads(CliRunner().invoke(app, [*options, "--format", "json"]).stdout)
    assert found["launch"]["accelerate_config"]["num_machines"] == 2
    assert found["launch"]["missing_here"] == []


# ---- refused before anything starts ----


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("nothing_starts")
def test_strategies_that_nobody_ran_are_written_out_and_not_started(tmp_path):
    with pytest.raises(SettingsError, match=r"fsdp is untested here.*--dry-run.*Use ddp\."):
        launch(make_recipe(device="auto"), processes=2, out=tmp_path, strategy="fsdp")


@pytest.mark.usefixtures("nothing_starts")
def test_an_address_that_is_not_this_machines_or_taken_is_refused(tmp_path):
    options: dict[str, Any] = {"processes": 2, "machines": 2, "out": tmp_path}
    with pytest.raises(SettingsError, match=r"cannot listen at main_address=192\.0\.2\.1:29500"):
        launch(make_recipe(), main_address="192.0.2.1:29500", **options)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match="a free port"):
            launch(make_recipe(), main_address=f"127.0.0.1:{port}", **options)


def test_outside_of_a_launch_there_is_nobody_to_agree_with():
    assert found_by_first("dtype", lambda: "float32") == "float32"
    meet({"the rows": "abc"}, device="cpu")


# ---- what is told ----

STEP = Step(step=1, loss=2.5, learning_rate=1e-3, grad_norm=1.0, tokens=10, seconds=0.5)


class Listener(SilentWatcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_step(self, step: Step, total_steps: int) -> None:
        self.heard.append((step, total_steps))

    def note(self, text: str) -> None:
        self.heard.append(text)


def test_steps_and_notes_arrive_as_they_were_told_also_half_written_ones(tmp_path):
    teller, listener = Teller(tmp_path / EVENTS), Listener()
    with (tmp_path / EVENTS).open("rb") as events:
        teller.note("measuring ½")
        teller.on_step(STEP, 3)
        whole = (tmp_path / EVENTS).read_bytes()
        (tmp_path / EVENTS).write_bytes(whole[:-5])
        launching._show(events, listener)
        assert listener.heard == ["measuring ½"]
        (tmp_path / EVENTS).write_bytes(whole)
        launching._show(events, listener)
    assert listener.heard == ["measuring ½", (STEP, 3)]
    teller.close()
    teller.note("after the end")
    assert (tmp_path / EVENTS).read_bytes() == whole


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    plan = plan_launch(make_recipe(), processes=2)
    (tmp_path / "output.log").write_text(
        "Killed by a cat\nW1 torch/distributed/elastic: it failed\n"
    )
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    process.communicate(timeout=30)
    (tmp_path / EVENTS).touch()
    with (tmp_path / EVENTS).open("rb") as events:
        yield launching._Group(plan=plan, folder=tmp_path, torchrun=process, events=events)


def end(error: str | None, message: str = "", **more: Any) -> dict[str, Any]:
    return {"error": error, "message": message, **more}


LOST = end("ProcessError", "Process 0 of 2 lost another one. Go on with --resume")
OUTSIDE = end("StoppedError", "Stopped outside of training", is_outside=True)


@pytest.mark.parametrize(
    ("ends", "asked_by", "kind", "words"),
    [
        ((LOST, end("AdapterError", "no such layer")), None, AdapterError, "no such layer"),
        ((LOST, None), None, ProcessError, "Process 1 of 2 ended without a word.*Go on with"),
        ((OUTSIDE, None), None, ProcessError, "Process 1 of 2 ended without a word"),
        ((OUTSIDE, None), "SIGINT", StoppedError, "Stopped outside of training"),
        ((None, None), "SIGTERM", StoppedError, r"Stopped before training \(SIGTERM\)"),
        ((LOST, LOST), None, ProcessError, "lost another one"),
        ((OUTSIDE, OUTSIDE), None, StoppedError, "outside"),
        (
            (end("StoppedError", "Stopped after step 3 of 9"), None),
            None,
            StoppedError,
            "after step 3",
        ),
        (
            (LOST, end("KeyError", "'x'", is_foreign=True)),
            None,
            TrainError,
            "Process 1 of 2 failed: KeyError: 'x'\nKilled by a cat$",
        ),
    ],
)
def test_an_end_is_told_in_the_words_of_the_process_that_had_it(group, ends, asked_by, kind, words):
    for rank, one in enumerate(ends):
        (group.folder / f"began-{rank}.json").write_text('{"pid": 0}')
        if one is not None:
            (group.folder / f"ended-{rank}.json").write_text(json.dumps(one))
    with pytest.raises(kind, match=words):
        launching._raise_what_happened(group, asked_by=asked_by, out="out")


def test_processes_that_never_began_are_told_with_the_last_words(group):
    with pytest.raises(TrainError, match=r"could not be started.*\nKilled by a cat$"):
        launching._raise_what_happened(group, asked_by=None, out="out")


def test_a_good_end_raises_nothing(group):
    for rank in range(2):
        (group.folder / f"began-{rank}.json").write_text('{"pid": 0}')
        (group.folder / f"ended-{rank}.json").write_text('{"error": null}')
    launching._raise_what_happened(group, asked_by=None, out="out")
    assert dataclasses.asdict(group.plan)["processes"] == 2


def test_the_page_shows_the_configurations_that_are_written(checkout):
    page = (checkout / "docs" / "beyond-one-machine.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    recipe = make_recipe(device="cuda")
    written: dict[str, Any] = {}
    for strategy in STRATEGIES:
        plan = plan_launch(
            recipe, processes=8, machines=2, main_address="10.0.0.1:29500", strategy=strategy
        )
        written[strategy] = accelerate_config(plan, recipe)
    assert blocks == [
        written["ddp"],
        {"fsdp_config": written["fsdp"]["fsdp_config"]},
        *(
            {"deepspeed_config": written[f"deepspeed-zero{stage}"]["deepspeed_config"]}
            for stage in (2, 3)
        ),
    ]
