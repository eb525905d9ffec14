"""The files around the package agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from sftkit.cli import app


def _project(checkout: Path) -> dict[str, Any]:
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _name(requirement: str) -> str:
    return re.split(r"[<>=\[ ]", requirement, maxsplit=1)[0].lower()


def test_every_dependency_is_pinned_in_the_constraints(checkout: Path) -> None:
    project = _project(checkout)
    text = (checkout / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]

    missing = {_name(one) for one in wanted} - pinned - {"sftkit-notebooks"}

    assert missing == set()


def test_the_conda_environment_installs_this_checkout_with_its_python(checkout: Path) -> None:
    environment = yaml.safe_load((checkout / "environment.yml").read_text(encoding="utf-8"))
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))

    assert f"python{_project(checkout)['requires-python']}" in conda
    assert pip == ["-c constraints.txt", "-e .[notebooks]"]


def test_no_text_tells_a_reader_to_install_the_other_package(checkout: Path) -> None:
    texts = [
        *checkout.glob("*.md"),
        *checkout.glob("notebooks/src/*.py"),
        *checkout.glob("sftkit/*.py"),
    ]

    guilty = [
        path.name
        for path in texts
        if re.search(r"pip install\s+(-U\s+)?sftkit(\s|`|$)", path.read_text(encoding="utf-8"))
    ]

    assert guilty == []


def test_every_verb_is_in_the_readme(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    called = {command.callback for command in app.registered_commands if command.callback}
    verbs = {verb.__name__ for verb in called}

    assert {verb for verb in verbs if f"`sftkit {verb}" not in readme} == set()


def test_the_package_index_name_is_said_where_people_install(checkout: Path) -> None:
    assert "sftkit-notebooks" in (checkout / "README.md").read_text(encoding="utf-8")
    assert _project(checkout)["name"] == "sftkit-notebooks"
