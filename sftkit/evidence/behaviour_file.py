"""Behaviour tests in YAML: read strictly, judged whole, every fault with its line.

A file says for which task it is, and lists tests; the fields of a test are those of
`behaviour_tests.BehaviourTest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.catalog import bundled_folder
from sftkit.errors import SettingsError, near_names
from sftkit.evidence.behaviour_tests import BehaviourTest, FileTask, expectation_faults
from sftkit.recipe import fit_settings, parse_yaml

MOST_BYTES = 256_000
MOST_TESTS = 200


@dataclass(frozen=True, kw_only=True)
class BehaviourFile:
    """All tests of a file.

    Attributes:
        task: Kind of model they are for.
        tests: The tests, in order.
        where: The file's name.
    """

    task: FileTask
    tests: tuple[BehaviourTest, ...]
    where: str


def bundled_tests() -> tuple[str, ...]:
    """List the names of the bundled files."""
    return tuple(sorted(path.stem for path in (bundled_folder() / "behaviour").glob("*.yaml")))


def read_behaviour(name: str) -> BehaviourFile:
    """Read a file of behaviour tests.

    Args:
        name: The name of a bundled one, or a path.

    Raises:
        SettingsError: There is no such file, it is no YAML, or it holds faults: all of them, with
            their lines.
    """
    bundled = name in bundled_tests()
    path = bundled_folder() / "behaviour" / f"{name}.yaml" if bundled else Path(name)
    try:
        if not path.is_file():
            near = near_names(name, bundled_tests())
            raise SettingsError(f"There is no file of behaviour tests {name!r}.{near}")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SettingsError(
                f"{path} has {size:,} bytes; a file of behaviour tests may have {MOST_BYTES:,}."
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # also a name with a null character
        raise SettingsError(f"Cannot read the behaviour tests {name!r}: {error}.") from error
    return parse_behaviour(text, where=name if bundled else path.name)


def read_for_task(name: str, task: str) -> BehaviourFile:
    """Read a file of behaviour tests and refuse one that is for another task.

    Raises:
        SettingsError: As `read_behaviour`; or the task is another one.
    """
    given = read_behaviour(name)
    if given.task != task:
        raise SettingsError(
            f"The behaviour tests {given.where} are for task {given.task}, and data.task is {task}."
        )
    return given


def parse_behaviour(text: str, *, where: str) -> BehaviourFile:
    """Read behaviour tests from YAML.

    Args:
        text: The document.
        where: Its name, for errors.

    Raises:
        SettingsError: It is no YAML, or holds faults: all of them, with their lines.
    """
    raw = parse_yaml(text, where=where)
    if not isinstance(raw, dict) or not isinstance(raw.get("tests"), list):
        raise SettingsError(f"{where} must hold task: and a list tests:, each with name and kind.")
    faults = [
        f"unknown key {_named(key)}.{near_names(_named(key), ('task', 'tests', 'about'))}"
        for key in raw
        if key not in ("task", "tests", "about")
    ]
    task = raw.get("task")
    if task not in ("chat", "classify", "regress"):
        faults.append(f"task must be one of chat, classify, regress, got {_named(task)}.")
    if not 1 <= len(raw["tests"]) <= MOST_TESTS:
        faults.append(f"tests must list 1 to {MOST_TESTS} tests, got {len(raw['tests'])}.")
    lines = _Lines(text)
    tests: list[BehaviourTest] = []
    for place, given in enumerate(raw["tests"][:MOST_TESTS]):
        test, found = _read_test(given, task)
        title = given.get("name") if isinstance(given, dict) else None
        called = f"test {title!r:.60}" if isinstance(title, str) else f"test {place + 1}"
        if test is not None and any(test.name == other.name for other in tests):
            found.append("name is that of an earlier test; give each its own.")
        faults += [f"line {lines.of(place, fault)}, {called}: {fault}" for fault in found]
        tests += [test] if test is not None else []
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise SettingsError(f"{where} has {count}:\n" + "\n".join(f"  - {f}" for f in faults))
    kind: Any = task
    return BehaviourFile(task=kind, tests=tuple(tests), where=where)


def _read_test(given: object, task: object) -> tuple[BehaviourTest | None, list[str]]:
    if not isinstance(given, dict):
        return None, ["a test must be a mapping with name, kind and expect."]
    test, faults = fit_settings(BehaviourTest, given)
    if faults:
        return None, faults
    return test, list(expectation_faults(test, str(task)))


class _Lines:
    """Where each test and each of its keys stands in the document."""

    def __init__(self, text: str) -> None:
        import yaml

        self.tests: list[tuple[int, dict[str, int]]] = []
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            if key.value == "tests" and isinstance(value, yaml.SequenceNode):
                self.tests = [(_line(node), dict(_key_lines(node, ""))) for node in value.value]

    def of(self, place: int, fault: str) -> int:
        """Give the line of what a fault names; the test's own where it names no key of it."""
        if place >= len(self.tests):  # the list came in by a merge key
            return 1
        start, keys = self.tests[place]
        for word in re.findall(r"[\w.{}-]+", fault):
            if (name := word.strip(".{}")) in keys:
                return keys[name]
        return start


def _named(value: object) -> str:
    """Write a value for a message: a text as it is, of anything else the kind."""
    return f"{value!r:.80}" if isinstance(value, str) else f"a {type(value).__name__}"


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _key_lines(node: Any, path: str) -> Iterator[tuple[str, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            yield f"{path}{key.value}", _line(key)
            if not path:
                yield from _key_lines(value, f"{key.value}.")
