"""Every problem that the doctor knows is found when it is there, and comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sftkit import doctor
from sftkit.cli import start
from sftkit.doctor import Sign, examine, known_good, signs_text


def only(part: Any) -> Sign:
    (sign,) = part()
    return sign


def test_the_tested_versions_are_those_of_the_constraints(checkout):
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if "==" in line and not line.startswith("#")]
    assert len(known_good()) == len(pins)
    assert f"torch=={known_good()['torch']}" in pins


def test_the_constraints_travel_with_an_installed_package(checkout):
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["constraints.txt"] == "sftkit/bundled/constraints.txt"


def test_a_missing_an_old_and_another_version_are_told_apart(monkeypatch):
    real = importlib.metadata.version
    made = {"peft": "0.1.0", "rich": "99.0"}

    def version(name: str) -> str:
        if name == "jinja2":
            raise importlib.metadata.PackageNotFoundError(name)
        return made.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    signs = {sign.part: sign for sign in doctor._packages() if sign.state != "ok"}
    assert signs["peft"].said == "0.1.0, and >=0.18 is needed"
    assert signs["peft"].remedy.startswith(f"python -m pip install 'peft=={known_good()['peft']}'")
    assert (signs["jinja2"].state, signs["jinja2"].said) == ("problem", "not installed")
    assert signs["packages"].state == "note"
    assert f"rich 99.0 (tested: {known_good()['rich']})" in signs["packages"].said


def test_a_package_that_is_loaded_is_only_replaced_with_a_fresh_start(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    signs = {sign.part: sign for sign in doctor._packages()}
    assert "start Python (or the notebook's kernel) again" in signs["typer"].remedy


def test_the_namesake_is_a_problem(monkeypatch):
    assert list(doctor._namesake()) == []
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: SimpleNamespace())
    sign = only(doctor._namesake)
    assert (sign.state, "pip uninstall sftkit" in sign.remedy) == ("problem", True)


def test_a_driver_that_torch_cannot_use_is_a_problem(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(doctor._gpu).state == "note"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    sign = only(doctor._gpu)
    assert (sign.state, "pytorch.org" in sign.remedy) == ("problem", True)


def test_quantized_layers_that_do_not_compute_are_a_problem(monkeypatch):
    import bitsandbytes as bnb

    assert [sign.state for sign in doctor._numbers()] == ["ok", "ok"]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this processor")

    monkeypatch.setattr(bnb.nn, "Linear4bit", broken)
    sign = list(doctor._numbers())[1]
    assert sign.state == "problem"
    assert "no kernel for this processor" in sign.said
    assert "leave model.quantization at none" in sign.remedy


def test_too_little_memory_or_disk_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "not" / "there"))
    assert only(doctor._disk).state == "ok"
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert (only(doctor._disk).state, "SFTKIT_CACHE" in only(doctor._disk).remedy) == (
        "problem",
        True,
    )
    memory = SimpleNamespace(available=1e9, total=8e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert only(doctor._memory).said == "1.0 of 8.0 GB free"
    assert only(doctor._memory).state == "problem"


def test_without_jupyter_and_with_a_foreign_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    assert only(doctor._notebook).state == "ok"
    foreign = SimpleNamespace(argv=["/opt/other/bin/python", "-m", "ipykernel"])
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {"other": "/x"})
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: foreign)
    sign = only(doctor._notebook)
    assert (sign.state, "ipykernel install --user" in sign.remedy) == ("problem", True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert only(doctor._notebook).state == "note"


def test_the_cache_is_listed_by_name_and_size(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    assert "sftkit fetch" in only(doctor._cache).remedy
    (tmp_path / "models" / "tiny-0123").mkdir(parents=True)
    (tmp_path / "models" / "tiny-0123" / "weights").write_bytes(b"x" * 2_000_000)
    assert only(doctor._cache).said == "tiny (2 MB)"


def test_a_hub_that_never_answers_costs_three_seconds_at_most(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(doctor, "HUB", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(doctor, "WAIT_S", 0.2)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        sign = only(doctor._hub)
    assert (sign.state, "does not answer" in sign.said) == ("note", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(doctor._hub).said == "switched off by HF_HUB_OFFLINE"


def test_problems_come_last_and_are_counted():
    signs = (
        Sign(part="a", state="problem", said="broken", remedy="mend it"),
        Sign(part="b", state="ok", said="fine"),
    )
    assert signs_text(signs) == (
        "ok      b: fine\nPROBLEM a: broken\n        → mend it\n1 problem."
    )
    assert signs_text(signs[1:]).endswith("Nothing stands in the way.")


@pytest.mark.parametrize(("problem", "code"), [(False, 0), (True, 1)])
def test_the_command_line_prints_json_and_ends_with_1_where_something_will_fail(
    problem, code, monkeypatch, capsys
):
    state: doctor.State = "problem" if problem else "ok"
    told = (Sign(part="disk", state=state, said="full", remedy="free some"),)
    monkeypatch.setattr(doctor, "examine", lambda *, reach_hub: told)
    monkeypatch.setattr("sys.argv", ["sftkit", "doctor", "--offline", "--format", "json"])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == code
    assert json.loads(capsys.readouterr().out)[0]["state"] == state


def test_this_machine_is_examined_whole():
    parts = {sign.part for sign in examine(reach_hub=False)}
    assert {"python", "torch", "gpu", "numbers", "memory", "disk", "notebook", "cache"} <= parts


@pytest.mark.model
def test_the_selftest_trains_saves_and_reloads_in_each_type(monkeypatch):
    from sftkit import selftest

    monkeypatch.setattr(selftest, "kinds", lambda: [("bfloat16", "none"), ("bfloat16", "nf4")])
    trials = selftest.selftest(steps=10)
    assert [trial.fault for trial in trials] == ["", ""]
    assert all(trial.parity == 0 for trial in trials)
    told = json.loads(selftest.selftest_json(trials))
    assert set(told) == {"device", "gpus", "versions", "peak_memory_gb", "trials"}
    assert "/" not in json.dumps(told["trials"])


@pytest.mark.model
def test_the_selftest_notices_an_adapter_that_was_not_saved(monkeypatch):
    from sftkit import adapter_files, selftest

    monkeypatch.setattr(selftest, "kinds", lambda: [("bfloat16", "none")])
    monkeypatch.setattr(adapter_files, "load_adapter", lambda base, folder, **_: base)
    (trial,) = selftest.selftest(steps=4)
    assert "the saved adapter answers otherwise" in trial.fault
