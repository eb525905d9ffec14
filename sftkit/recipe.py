"""Recipes in YAML and in plain mappings: read, judged whole, changed by overrides, written out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from sftkit.errors import SettingsError, near_names
from sftkit.settings import Recipe, to_plain

Settings = TypeVar("Settings")


def recipe_from_dict(raw: Mapping[str, Any]) -> Recipe:
    """Build a recipe and report every fault of it at once.

    Args:
        raw: Nested mapping as read from YAML.

    Returns:
        The checked recipe.

    Raises:
        SettingsError: Unknown keys (with the nearest valid one), wrong types, values out of
            range and impossible combinations, one line each.
    """
    faults: list[str] = []
    recipe = _build(Recipe, raw, "", faults)
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise SettingsError(f"The recipe has {count}:\n{lines}")
    return typing.cast(Recipe, recipe)


def fit_settings(cls: type[Settings], raw: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Build one settings class from a mapping, strictly, as recipes are.

    Args:
        cls: A frozen dataclass of settings.
        raw: Mapping as read from YAML.

    Returns:
        The settings, and every fault as one line; with faults, the settings are not to be used.
    """
    faults: list[str] = []
    return _build(cls, raw, "", faults), faults


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.field=value` overrides.

    Args:
        path: A YAML file. Paths in it that begin with ./ or ../ are taken from its own folder,
            all others from where one stands.
        overrides: Strings such as "train.learning_rate=5e-4"; values are read as YAML.

    Returns:
        The checked recipe.

    Raises:
        SettingsError: The file is missing, is not YAML, or holds faults.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Cannot read the recipe {path}: {error}.") from error
    raw = parse_yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} must hold a mapping (name:, data:, ...), got {_kind(raw)}.")
    _find_beside(raw, path)
    for override in overrides:
        apply_override(raw, override)
    return recipe_from_dict(raw)


_PATHS = (
    ("data", "source"), ("data", "replay"), ("model", "name"),
    ("evaluate", "behaviour"), ("evaluate", "drift_source"),
)  # fmt: skip


def _find_beside(raw: dict[Any, Any], path: Path) -> None:
    """Take paths that begin with ./ or ../ from the recipe's own folder, wherever one stands."""
    for section, key in _PATHS:
        part = raw.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, str) and value.startswith(("./", "../")):
            found = Path(os.path.abspath(path.parent / value))  # noqa: PTH100  (links stay)
            # Within reach of where one stands it stays short, and a record names no home folder.
            is_below = found.is_relative_to(Path.cwd())
            raw[section][key] = found.relative_to(Path.cwd()).as_posix() if is_below else str(found)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into plain mappings and lists, every field written out."""
    return typing.cast("dict[str, Any]", to_plain(recipe))


def yaml_text(recipe: Recipe) -> str:
    """Write a recipe as YAML with every default spelled out, so the text says all there is."""
    import yaml

    return str(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML safely, with 1e-3 as a number (YAML 1.1 would read a string).

    Args:
        text: The document.
        where: Its name, for the error.

    Returns:
        Mappings, lists and scalars.

    Raises:
        SettingsError: The text is not YAML, or gives one key twice; the line is named.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader of our own, so that the resolver below stays ours alone."""

    def mapping_without_twins(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise SettingsError(f"{where} line {line}: the key {key!r} is given twice.")
        return loader.construct_mapping(node, deep=True)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    Loader.add_constructor("tag:yaml.org,2002:map", mapping_without_twins)
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise SettingsError(f"{where}{line} is not valid YAML: {problem}.") from error
    except RecursionError as error:
        raise SettingsError(f"{where} is nested too deeply.") from error
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        # What a tag or a look promises and a value does not keep: 2024-13-45, 0b_, !!bool x.
        raise SettingsError(
            f"{where} holds a value that is not what it looks like ({type(error).__name__}: "
            f"{error}). Put it in quotes."
        ) from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Put one `section.field=value` into a mapping as read from YAML.

    Raises:
        SettingsError: It is none.
    """
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set needs section.field=value, got {override!r}.")
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"--set {override}: {section!r} is not a section.")
        place = inner
    place[last] = parse_yaml(value, where=f"--set {key}")


def _build(cls: Any, raw: object, path: str, faults: list[str]) -> Any:
    """Build one dataclass; collect faults instead of stopping at the first."""
    if not isinstance(raw, Mapping):
        faults.append(f"{path or 'the recipe'} must be a mapping, got {_kind(raw)}.")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unfit: list[str] = []  # fields given wrongly; their defaults must not be blamed in their place
    values: dict[str, Any] = {}
    for key, value in raw.items():
        spelled = key if isinstance(key, str) else _shown(key)
        where = f"{path}.{spelled}" if path else spelled
        if key not in fields:
            faults.append(f"unknown key {where!r}.{near_names(spelled, fields)}")
        elif dataclasses.is_dataclass(hints[key]):
            known = len(faults)
            section = _build(hints[key], value, where, faults)
            unfit += [where] * (section is None)
            unfit += [fault.split(" ", 1)[0] for fault in faults[known:]]
            if section is not None:
                values[key] = section
        else:
            fits, converted = _fit(value, hints[key])
            if fits:
                values[key] = converted
            else:
                faults.append(f"{where} must be {_describe(hints[key])}, got {_shown(value)}.")
                unfit.append(where)
    for name, info in fields.items():
        if name not in raw and _is_required(info):
            faults.append(f"{path + '.' if path else ''}{name} is missing.")
    required = {name for name, info in fields.items() if _is_required(info)}
    if not required <= set(values):
        return None
    try:  # with defaults in the place of wrong types, so that ranges are judged in the same pass
        return cls(**values)
    except SettingsError as error:
        lines = str(error).splitlines()
    prefix = f"{path}." if path else ""
    faults += [
        line.replace(f"{cls.__name__}.", prefix, 1)
        for line in lines
        if not any(place in line for place in unfit)
    ]
    bad = {line.removeprefix(f"{cls.__name__}.").split(" ", 1)[0] for line in lines}
    with contextlib.suppress(SettingsError, TypeError):  # without the fields that are out of range
        return cls(**{name: value for name, value in values.items() if name not in bad})
    return None


def _is_required(info: dataclasses.Field[Any]) -> bool:
    return info.default is dataclasses.MISSING and info.default_factory is dataclasses.MISSING


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:  # noqa: PLR0911, PLR0912  (one per kind)
    """Say whether a YAML value fits a type, and give it in that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # YAML 1.1 reads `none` as a string but `off` as False; only the listed words count.
        return value in arguments and isinstance(value, str), value
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            fits, converted = _fit(value, option)
            if fits:
                return True, converted
        return False, value
    if hint is type(None):
        return value is None, None
    if hint is bool:
        return isinstance(value, bool), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            return number, float(value) if number else value
        except OverflowError:  # a whole number past 1e308
            return False, value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is str:
        text = value.isoformat() if isinstance(value, datetime.date) else value  # YAML knows dates
        return isinstance(text, str), text
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, value
        fitted = [_fit(item, arguments[0]) for item in value]
        return all(fits for fits, _ in fitted), tuple(item for _, item in fitted)
    if origin is not None and issubclass(origin, Mapping):
        return _fit_mapping(value, of=arguments[1])
    return False, value


def _fit_mapping(value: Any, *, of: Any) -> tuple[bool, Any]:
    """Fit {text: text}, {name: anything}, or {column: value or [values]} to (values,)."""
    if not isinstance(value, Mapping):
        return False, value
    if of is str:  # YAML reads the GPU of {0: 10GB} as a number
        value = {str(key) if type(key) is int else key: item for key, item in value.items()}
    if not all(isinstance(key, str) for key in value):
        return False, value
    if of is Any:
        return True, dict(value)
    if of is str:
        return all(isinstance(item, str) for item in value.values()), dict(value)
    listed = {k: tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in value.items()}
    fits = all(isinstance(item, str) for items in listed.values() for item in items)
    return fits, listed


def _describe(hint: Any) -> str:
    """Say in words what a type accepts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is tuple:
        of = _describe(arguments[0])
        return f"a list, each {of}" if of.startswith("one of") else f"a list of {of}s"
    if origin is not None and issubclass(origin, Mapping):
        if arguments[1] is Any:
            return "a mapping of names to values"
        pair = "text to text" if arguments[1] is str else "column to text values"
        return f"a mapping from {pair}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return words.get(hint, "null" if hint is type(None) else str(hint))


def _shown(value: object) -> str:
    """Write a value for a message; of a large one the beginning, and of aliases no expansion."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    short.maxlist = short.maxtuple = short.maxdict = 10
    short.maxlevel = 3
    try:
        return short.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number too long to write"


def _kind(value: object) -> str:
    names = {list: "a list", dict: "a mapping", str: "text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
