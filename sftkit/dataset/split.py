"""Divide examples into what trains, what chooses and what reports; mix in replayed ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError, near_names
from sftkit.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Examples, divided.

    Attributes:
        train: What is learned from.
        validation: What chooses (learning curve, early looks).
        test: What reports; read once, at the end.
        control: What is tested and never trained; may be empty.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    control: Dataset

    def counts(self) -> dict[str, int]:
        """Count the rows of each split."""
        return {name: len(part) for name, part in vars(self).items()}

    def group_counts(self) -> dict[str, int]:
        """Count the groups of each split."""
        return {name: len(set(part["group"])) for name, part in vars(self).items()}


def split_dataset(dataset: Dataset, settings: DataSettings) -> Splits:
    """Divide a dataset by its split column, or by group.

    Without a split column, a hash of seed and group alone decides where a group goes. So every
    group is whole in one split, and adding or removing rows moves no other group.
    With a split column that names no validation rows, `validation_fraction` of the groups in train
    become them, by the same hash.

    Args:
        dataset: Rows with id, messages and group; a column `split` when `split_by` is set.
        settings: Split column, fractions and seed.

    Returns:
        The splits; control is empty unless the split column names it.

    Raises:
        DataError: No such split column, an unknown split, or a split without rows.
    """
    return take_splits(mark_splits(dataset, settings), settings)


def mark_splits(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Write into a column `split` where `split_dataset` would put every row."""
    names = (
        _named_splits(dataset, settings) if settings.split_by else _drawn_splits(dataset, settings)
    )
    if "split" in dataset.column_names:
        dataset = dataset.remove_columns("split")
    return dataset.add_column("split", names)


def take_splits(marked: Dataset, settings: DataSettings) -> Splits:
    """Divide a dataset by its column `split`.

    Raises:
        DataError: A split other than control has no rows.
    """
    positions: dict[str, list[int]] = {"train": [], "validation": [], "test": [], "control": []}
    for position, name in enumerate(marked["split"]):
        positions[name].append(position)
    empty = [name for name in ("train", "validation", "test") if not positions[name]]
    if empty:
        raise DataError(_explain_empty(marked, settings, empty))
    return Splits(**{name: marked.select(chosen) for name, chosen in positions.items()})


def _named_splits(dataset: Dataset, settings: DataSettings) -> list[str]:
    column = "split" if "split" in dataset.column_names else settings.split_by or ""
    if column not in dataset.column_names:
        raise DataError(
            f"split_by={column!r}: the dataset has no such column."
            f"{near_names(column, dataset.column_names)}"
        )
    names = [str(name) for name in dataset[column]]
    unknown = sorted(set(names) - {"train", "validation", "test", "control"})
    if unknown:
        raise DataError(
            f"split_by={settings.split_by}: unknown split {', '.join(map(repr, unknown[:3]))}. Use "
            "train, validation, test or control."
        )
    if "validation" in names:
        return names
    share = settings.validation_fraction
    drawn = [draw_share(settings.seed, group) < share for group in dataset["group"]]
    pairs = zip(names, drawn, strict=True)
    return ["validation" if name == "train" and taken else name for name, taken in pairs]


def _drawn_splits(dataset: Dataset, settings: DataSettings) -> list[str]:
    to_test = settings.test_fraction
    to_validation = to_test + settings.validation_fraction

    def choose(group: str) -> str:
        share = draw_share(settings.seed, group)
        return "test" if share < to_test else "validation" if share < to_validation else "train"

    chosen = {group: choose(group) for group in set(dataset["group"])}
    return [chosen[group] for group in dataset["group"]]


def draw_share(seed: int, key: str) -> float:
    """Draw a number in [0, 1) that depends on nothing but the seed and the key."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _explain_empty(dataset: Dataset, settings: DataSettings, empty: list[str]) -> str:
    missing = " and ".join(empty)
    if settings.split_by:
        return (
            f"The column {settings.split_by!r} leaves no rows for {missing}. Each of train, "
            "validation and test needs some."
        )
    return (
        f"{len(dataset)} rows in {len(set(dataset['group']))} groups leave none for {missing} "
        f"(test_fraction={settings.test_fraction:g}, validation_fraction="
        f"{settings.validation_fraction:g}, seed={settings.seed}). Take more groups (limit), a "
        "larger fraction, or another seed."
    )


def fingerprint(dataset: Dataset) -> str:
    """Compute one hash over all rows in canonical form; where they were read from does not count.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for row in dataset:
        content = {key: value for key, value in row.items() if key != "place"}
        line = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def mix_replay(train: Dataset, replay: Dataset, share: float, seed: int) -> Dataset:
    """Mix general examples into the training set, so that less is forgotten.

    Args:
        train: What is to be learned.
        replay: General examples to draw from.
        share: Share of replayed rows among all rows of the result, in [0, 1).
        seed: Seed of the choice.

    Returns:
        The training rows, then the replayed ones, with a column `replayed`.

    Raises:
        DataError: There are too few rows to draw from.
    """
    import datasets

    if not 0 <= share < 1:
        raise DataError(f"share must be in [0, 1), got {share}.")
    wanted = round(len(train) * share / (1 - share))
    if wanted > len(replay):
        most = len(replay) / (len(train) + len(replay))
        raise DataError(
            f"replay_share={share:g} beside {len(train)} training rows needs {wanted} rows to "
            f"replay, but there are {len(replay)}. Lower replay_share to {most:.2f} or give more."
        )
    ids = list(replay["id"])
    order = sorted(range(len(ids)), key=lambda i: (draw_share(seed, str(ids[i])), i))
    chosen = replay.select(sorted(order[:wanted]))
    own = _columns(train, train.column_names)
    added = _columns(chosen, train.column_names)
    added["group"] = [f"replay:{group}" for group in added["group"]]
    if "split" in own:
        added["split"] = ["train"] * wanted
    features = train.features.copy()
    features["replayed"] = datasets.Value("bool")
    rows = {key: [*own[key], *added[key]] for key in own}
    rows["replayed"] = [False] * len(train) + [True] * wanted
    return datasets.Dataset.from_dict(rows, features=features)


def _columns(dataset: Dataset, names: Iterable[str]) -> dict[str, list[Any]]:
    have = set(dataset.column_names)
    return {n: list(dataset[n]) if n in have else [None] * len(dataset) for n in names}
