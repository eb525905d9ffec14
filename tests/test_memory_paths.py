"""Predicted memory follows the path that training takes, and a budget what there is for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import make_model  # type: ignore[import-not-found]
from typer.testing import CliRunner

from sftkit import catalog, held_memory
from sftkit.memory import passes_of, per_process, shared_beginning
from sftkit.memory_activations import Activations, Rows
from sftkit.memory_formulas import ForwardPass, Held
from sftkit.memory_ladder import Plan, ladder
from sftkit.memory_shapes import read_shape
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings

SMALL = catalog.model_config(ModelSettings(name="smollm2-135m"))
GB = 10**9


def activations(
    config: Any = SMALL,
    model: ModelSettings | None = None,
    adapter: AdapterSettings | None = None,
    train: TrainSettings | None = None,
    task: Any = "chat",
) -> Activations:
    """Give the activations of a small run on a CPU."""
    return Held(
        read_shape(config), model or ModelSettings(), adapter or AdapterSettings(),
        train or TrainSettings(), task, 2, "cpu", 4,
    ).activations  # fmt: skip


# ---- fast or plain? ----


@pytest.mark.parametrize(
    ("adapter", "train"),
    [
        ({}, {}),
        ({"kind": "lora+"}, {}),
        ({"kind": "dora"}, {}),
        ({"kind": "ia3"}, {}),
        ({"kind": "prompt"}, {}),
        ({"lora_dropout": 0.1}, {}),
        ({}, {"neftune_alpha": 5.0}),
        ({}, {"speed": "off"}),
    ],
    ids=str,
)
def test_the_plan_takes_the_path_that_training_takes(adapter, train):
    from peft.tuners.lora.layer import Linear

    from sftkit import packed, speed
    from sftkit.adapter import attach_adapter

    model = make_model(vocab_size=300, layers=2)
    settings, training = AdapterSettings(**adapter), TrainSettings(**train)
    tuned = attach_adapter(model, settings).train()
    with speed.fast_training(tuned, training):
        packs = str(model.config._attn_implementation).startswith(packed.NAME)
        fast = [module for module in tuned.modules() if "forward" in vars(module)]
        fuses = any(isinstance(module, Linear) for module in fast)
    planned = activations(model.config.to_dict(), adapter=settings, train=training)
    assert (planned.packs, planned.fuses) == (packs, fuses)


def test_what_cannot_be_packed_or_fused_is_planned_on_the_plain_path():
    planned = {
        "labels": activations(task="classify"),
        "a trained head": activations(adapter=AdapterSettings(kind="full")),
        "several devices": activations(model=ModelSettings(device_map="auto")),
        "the model's dropout": activations(model=ModelSettings(dropout=0.1)),
        "soft caps": activations(SMALL | {"attn_logit_softcapping": 50.0}),
        "nf4": activations(model=ModelSettings(quantization="nf4")),
    }
    assert {name: (one.packs, one.fuses) for name, one in planned.items()} == {
        "labels": (False, True),
        "a trained head": (False, False),
        "several devices": (False, True),
        "the model's dropout": (False, True),
        "soft caps": (False, True),
        "nf4": (True, False),
    }


def test_packed_rows_have_no_padding_and_their_beginning_once():
    one = ForwardPass(rows=4, length=60, supervised=9, padding=53, shared=20)
    # 240 tokens, 53 of them padding, 3 × 20 repeated: 127, and one spare.
    assert activations().lay_out(one) == Rows(rows=4, tokens=128, span=40, shared=20, packed=True)
    off = activations(train=TrainSettings(speed="off"))
    assert off.lay_out(one) == Rows(rows=4, tokens=240, span=60)
    narrow = SMALL | {"model_type": "mistral", "sliding_window": 59}
    assert activations(narrow).lay_out(one) == off.lay_out(one)
    idle = SMALL | {"model_type": "qwen2", "sliding_window": 59, "use_sliding_window": False}
    assert activations(idle).lay_out(one).packed


def test_a_pass_knows_its_padding_and_the_beginning_its_rows_share():
    train = TrainSettings(max_tokens_per_batch=64)
    assert passes_of([8, 16, 11], [2, 5, 3], train, shared=9) == [
        ForwardPass(rows=3, length=16, supervised=10, padding=13, shared=7)
    ]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(1, 2, 3, 4), (1, 2, 3, 9, 9)], 3),
        ([(1, 2, 3, 4), (1, 2, 3)], 2),  # each row keeps a token of its own
        ([(1, 2), (5, 2)], 0),
        ([], 0),
    ],
)
def test_a_shared_beginning_is_what_all_rows_begin_with(rows, shared):
    assert shared_beginning(rows) == shared


def plan(**changes: Any) -> Plan:
    """Make the plan of a small run."""
    train = TrainSettings(max_tokens_per_batch=1024, speed=changes.pop("speed", "auto"))
    own: dict[str, Any] = {"model": ModelSettings(device="cpu"), "adapter": AdapterSettings()}
    own |= {"train": train, "max_tokens": 128, "dtype": "bfloat16"}
    return Plan(config=SMALL, **{**own, **changes})


def test_a_shared_beginning_and_the_faster_path_take_less():
    alone, together = plan().estimate(), plan(shared=100).estimate()
    assert together.total < alone.total < plan(speed="off").estimate().total
    offered = {rung.setting: rung.total for rung in ladder(plan(speed="off"))}
    assert offered["train.speed=auto"] == alone.total
    assert "train.speed=auto" not in {rung.setting for rung in ladder(plan())}


def test_processes_that_split_the_model_are_planned_on_the_plain_path():
    split = plan(processes=2, strategy="fsdp").estimate()
    whole = plan(processes=2, speed="off").estimate()
    assert split == per_process(whole, strategy="fsdp", processes=2)
    assert (whole.heaviest.rows, plan(speed="off").estimate().heaviest.rows) == (4, 8)
    assert plan(processes=2).estimate().total < plan().estimate().total


# ---- what there is ----


def write_group(folder: Path, **files: str) -> None:
    """Write the files of a control group; `_` in names stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n", encoding="utf-8")


def free_in(system: Path, groups: str, monkeypatch: Any) -> int:
    """Give free bytes where the machine has 64 GB available and its groups are as written."""
    (system / "proc/self").mkdir(parents=True, exist_ok=True)
    (system / "proc/self/cgroup").write_text(groups, encoding="utf-8")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    return held_memory.free_bytes(system)


def test_a_container_s_limit_is_what_there_is(tmp_path, monkeypatch):
    top = tmp_path / "sys/fs/cgroup"
    write_group(top, memory_max=str(8 * GB), memory_current=str(3 * GB))
    assert free_in(tmp_path, "0::/\n", monkeypatch) == 5 * GB
    # Pages of files that were not used lately are given back first.
    write_group(top, memory_stat=f"anon 9\ninactive_file {GB}")
    assert free_in(tmp_path, "0::/\n", monkeypatch) == 6 * GB
    write_group(top, memory_max="max")
    assert free_in(tmp_path, "0::/\n", monkeypatch) == 64 * GB


def test_the_tightest_of_nested_limits_holds(tmp_path, monkeypatch):
    top = tmp_path / "sys/fs/cgroup"
    write_group(top / "pod", memory_max=str(4 * GB), memory_current=str(GB))
    write_group(top / "pod/box", memory_max=str(9 * GB), memory_current=str(GB))
    assert free_in(tmp_path, "0::/pod/box\n", monkeypatch) == 3 * GB
    write_group(top / "pod", memory_current=str(5 * GB))
    assert free_in(tmp_path, "0::/pod/box\n", monkeypatch) == 0


def test_the_first_version_of_control_groups_is_read_too(tmp_path, monkeypatch):
    top = tmp_path / "sys/fs/cgroup/memory"
    groups = "9:name=systemd:/\n4:memory:/docker/abc\n3:cpu:/\n0::/\n"
    used = {"memory_usage_in_bytes": str(2 * GB), "memory_stat": f"total_inactive_file {GB}"}
    # In a container the group itself is mounted as the top.
    write_group(top, memory_limit_in_bytes=str(6 * GB), **used)
    assert free_in(tmp_path, groups, monkeypatch) == 5 * GB
    write_group(top, memory_limit_in_bytes=str(2**63 - 4096), **used)
    assert free_in(tmp_path, groups, monkeypatch) == 64 * GB


def test_without_control_groups_the_machine_s_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    assert held_memory.free_bytes(tmp_path) == 64 * GB


def test_a_dry_run_shares_the_machine_s_memory_among_its_processes(tmp_path, folder, monkeypatch):
    from sftkit.cli import app

    monkeypatch.setattr("sftkit.dryrun.free_bytes", lambda: 8 * GB)
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"Box {n}?", "answer": "red"} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    model = f"{{name: {folder}, dtype: float32, device: cpu}}"
    path.write_text(f"name: any\nmodel: {model}\ndata: {{source: {data}}}\n", encoding="utf-8")

    def look(*options: str) -> dict[str, Any]:
        words = ["run", str(path), "--dry-run", "--format", "json", *options]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    one, four = look(), look("--processes", "4")
    apart = look("--processes", "4", "--machines", "2", "--main-address", "192.0.2.1:29500")
    budgets = [[fits["budget"] for fits in found["fits"]] for found in (one, four, apart)]
    assert budgets == [[8 * GB], [2 * GB], [4 * GB]]
    assert [found["processes"] for found in (one, four, apart)] == [1, 4, 2]
    heaviest = [found["estimates"][0]["heaviest"]["rows"] for found in (one, four)]
    assert heaviest[1] == -(-heaviest[0] // 4)

    said = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--processes", "4"]).stdout
    total = four["estimates"][0]["total"]
    assert f"one of 4 processes on this machine. On the CPU they take {4 * total / 1e9:.2f} GB" in (
        said
    )
    assert "With 2.00 GB on the CPU for each of 4 processes this plan fits." in said


def test_a_changed_plan_keeps_its_processes():
    start = plan(processes=2)
    rung = next(r for r in ladder(start) if r.setting == "adapter.r=8")
    halved = dataclasses.replace(start, adapter=AdapterSettings(r=8))
    assert rung.total == halved.estimate().total
