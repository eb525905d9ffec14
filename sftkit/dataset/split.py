"""Divide examples into what trains, what chooses and what reports, fixed by seed and content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.columns import (
    MADE,
    encode_column,
    find_made_rows,
    name_places,
    need_column,
    read_column,
    with_column,
)
from sftkit.dataset.folders import SPLIT_WORDS
from sftkit.dataset.moments import divide_by_time
from sftkit.dataset.strata import divide_strata
from sftkit.errors import DataError
from sftkit.settings import DataSettings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

SPLITS = ("train", "validation", "test", "control")
_TRAIN, _VALIDATION, _TEST, _CONTROL = range(4)


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
        return {
            name: len(read_column(part, "group").unique()) if len(part) else 0
            for name, part in vars(self).items()
        }


def split_dataset(dataset: Dataset, settings: DataSettings) -> Splits:
    """Divide a dataset in one of four ways.

    - By group (the default): a hash of seed and group alone decides. Every group is whole in one
      split; no row that is added, removed or moved changes where another group goes. Without
      `group_by` a group is what asks the same question; `group_by: id` divides single rows. The
      fractions are met on average: of n groups about fraction * n, give or take a root of that.
    - Stratified (`stratify_by`): in every stratum, each split is within one group (one row, where
      every row is its own group) of its exact fraction, also when the stratum has two rows. Rows
      that are appended move none that were there; rows put in between may move later ones of
      their stratum. With `group_by`, the rows of a group must be of one stratum.
    - By time (`time_by`): the newest rows are test, the next newest validation. Rows of one moment
      stay together; groups do not.
    - By a column that says it (`split_by`). If it names no validation rows, `validation_fraction`
      of the groups in train become them, by the hash.

    Args:
        dataset: Rows with a column group, and those that the settings name.
        settings: How to divide, fractions and seed.

    Returns:
        The splits; control is empty unless the split column names it.

    Raises:
        DataError: A column that is not there, an unknown split or time, a split without rows, or
            rows made for training that would stand in another split.
    """
    return take_splits(mark_splits(dataset, settings), settings)


def mark_splits(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Write into a column `split` where `split_dataset` would put every row."""
    import pyarrow as pa

    dataset = _with_groups(dataset, settings)
    if settings.split_by:
        places = _named_splits(dataset, settings)
    elif settings.time_by:
        places = divide_by_time(dataset, settings)
    elif settings.stratify_by:
        places = _stratified_splits(dataset, settings)
    else:
        places = _drawn_splits(dataset, settings)
    if "split" in dataset.column_names:
        dataset = dataset.remove_columns("split")
    return with_column(dataset, "split", pa.array(SPLITS).take(pa.array(places)))


def _with_groups(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Let `group_by` rule where reading has not grouped by it; rows without a value keep theirs."""
    import pyarrow.compute as pc

    if settings.group_by in (None, "group"):
        return dataset
    column = str(settings.group_by)
    need_column(dataset, column, "group_by")
    groups = read_column(dataset, "group")
    asked = read_column(dataset, column).cast(groups.type)
    wanted = pc.if_else(pc.equal(pc.fill_null(asked, ""), ""), groups, asked)
    if pc.all(pc.equal(wanted, groups)).as_py() is not False:
        return dataset
    return with_column(dataset.remove_columns("group"), "group", wanted)


def take_splits(marked: Dataset, settings: DataSettings) -> Splits:
    """Divide a dataset by its column `split`.

    Raises:
        DataError: A split other than control has no rows, or rows that were augmented, repeated
            or replayed stand, or come from rows that stand, outside train.
    """
    import numpy as np

    codes, names = encode_column(marked, "split")
    parts = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
    empty = [name for name in SPLITS[:3] if name not in parts]
    if empty:
        raise DataError(_explain_empty(marked, settings, empty))
    _keep_made_rows_in_train(marked, codes == names.index("train"))
    return Splits(**{name: marked.select(parts.get(name, ())) for name in SPLITS})


def _keep_made_rows_in_train(marked: Dataset, trains: np.ndarray) -> None:
    """Refuse rows made for training in other splits, and made from rows of other splits."""
    import numpy as np

    for column in MADE:
        made = find_made_rows(marked, column)
        outside = np.flatnonzero(made & ~trains)
        if len(outside):
            raise DataError(
                f"{len(outside)} {column} rows would stand in validation or test: "
                f"{name_places(marked, outside)}. A score on them says nothing. Divide first, "
                "and change splits.train alone."
            )
        if not made.any():
            continue
        groups, _ = encode_column(marked, "group")
        leaked = np.flatnonzero(made & np.isin(groups, groups[~trains]))
        if len(leaked):
            raise DataError(
                f"{len(leaked)} {column} rows of train come from groups of validation or test: "
                f"{name_places(marked, leaked)}. Divide first, and change splits.train alone."
            )


def _named_splits(dataset: Dataset, settings: DataSettings) -> np.ndarray:
    import numpy as np

    column = settings.split_by or ""
    need_column(dataset, column, "split_by")
    codes, names = encode_column(dataset, column)
    names = [SPLIT_WORDS.get(name.strip().lower(), name) for name in names]
    unknown = sorted(set(names) - set(SPLITS))
    if unknown:
        raise DataError(
            f"split_by={settings.split_by}: unknown split {', '.join(map(repr, unknown[:3]))}. Use "
            "train, validation, test or control."
        )
    places = np.array([SPLITS.index(name) for name in names], dtype=np.int8)[codes]
    if "validation" in names:
        return places
    groups, draws = _draw_groups(dataset, settings)
    drawn = (draws < settings.validation_fraction)[groups]
    return np.where((places == _TRAIN) & drawn, _VALIDATION, places)


def _drawn_splits(dataset: Dataset, settings: DataSettings) -> np.ndarray:
    import numpy as np

    groups, draws = _draw_groups(dataset, settings)
    to_test = settings.test_fraction
    to_validation = to_test + settings.validation_fraction
    chosen = np.where(draws < to_validation, _VALIDATION, _TRAIN)
    return np.where(draws < to_test, _TEST, chosen)[groups]


def _stratified_splits(dataset: Dataset, settings: DataSettings) -> np.ndarray:
    import numpy as np

    column = settings.stratify_by or ""
    need_column(dataset, column, "stratify_by")
    groups, draws = _draw_groups(dataset, settings)
    strata, names = encode_column(dataset, column)
    first = np.unique(groups, return_index=True)[1]  # groups are numbered as they appear
    mixed = np.flatnonzero(strata != strata[first][groups])
    if settings.group_by and len(mixed):
        row = int(mixed[0])
        have = sorted({names[strata[row]], names[strata[first[groups[row]]]]})
        count = len(np.unique(groups[mixed]))
        raise DataError(
            f"stratify_by={column} and group_by={settings.group_by} contradict each other: {count} "
            f"of {len(first)} groups have rows of several strata, such as {have[0]!r} and "
            f"{have[1]!r} at {name_places(dataset, [int(first[groups[row]]), row])}. A group that "
            "is kept whole cannot be divided by stratum. Leave out one of the two."
        )
    to_validation, to_test = settings.validation_fraction, settings.test_fraction
    shares = (1 - to_validation - to_test, to_validation, to_test)
    parts = divide_strata(strata[first], draws, shares)
    return np.array(parts, dtype=np.int8)[groups]


def _draw_groups(dataset: Dataset, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Number the groups as they appear, shape (rows,), and draw for each, shape (groups,)."""
    import numpy as np

    groups, keys = encode_column(dataset, "group")
    seed = settings.seed
    return groups, np.fromiter((draw_share(seed, key) for key in keys), float, len(keys))


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
    shares = (
        f"test_fraction={settings.test_fraction:g}, validation_fraction="
        f"{settings.validation_fraction:g}"
    )
    if settings.time_by:
        moments = len(read_column(dataset, settings.time_by).unique())
        by = f"time_cuts={list(settings.time_cuts)}" if settings.time_cuts else shares
        return (
            f"{len(dataset)} rows with {moments} different values of {settings.time_by!r} leave "
            f"none for {missing} ({by}). Take more rows, other cuts or larger fractions."
        )
    groups = len(read_column(dataset, "group").unique())
    return (
        f"{len(dataset)} rows in {groups} groups leave none for {missing} ({shares}, seed="
        f"{settings.seed}). Take more groups (limit), a larger fraction, or another seed."
    )


ROWS_HASHED_TOGETHER = 10_000


def fingerprint(dataset: Dataset) -> str:
    """Compute one hash over all rows in canonical form; where they were read from does not count.

    Neither do the order of the columns and how Arrow happens to store them.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    columns = sorted(set(dataset.column_names) - {"place"})
    digest = hashlib.sha256("\n".join(columns).encode())
    rows = dataset.select_columns(columns).with_format("arrow")
    # Always the same portions, since a portion's values are hashed column by column.
    for portion in rows.iter(ROWS_HASHED_TOGETHER):
        for column in columns:
            values = portion[column].combine_chunks()
            for part in _canonical_parts(values):
                digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _canonical_parts(values: pa.Array) -> Iterable[Any]:
    """Give the bytes that say what an Arrow array holds, however it is laid out."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        yield from _canonical_parts(values.storage)
    elif pa.types.is_struct(kind):
        yield values.is_valid().to_numpy(zero_copy_only=False).tobytes()
        fields = dict(zip([field.name for field in kind], values.flatten(), strict=True))
        if set(fields) == {"bytes", "path"}:  # an image; where its file lies does not count
            yield from _image_parts(values)
            return
        for name in sorted(fields):
            yield name.encode()
            yield from _canonical_parts(fields[name])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield _lengths(pc.list_value_length(values))
        yield from _canonical_parts(values.flatten())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        yield values.is_valid().to_numpy(zero_copy_only=False).tobytes()
        numbers = values.fill_null(False if pa.types.is_boolean(kind) else 0)
        yield np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False)).tobytes()
    else:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        texts = values.cast(pa.large_binary() if binary else pa.large_string())
        yield _lengths(pc.binary_length(texts))
        filled = texts.fill_null(b"" if binary else "")
        offsets = np.frombuffer(filled.buffers()[1], dtype=np.int64)
        start, stop = (int(offsets[filled.offset + end]) for end in (0, len(filled)))
        if stop > start:
            yield memoryview(filled.buffers()[2])[start:stop]


def _image_parts(images: pa.Array) -> Iterable[bytes]:
    for image in images:
        item = image.as_py() or {}
        content = item.get("bytes")
        if content is None and item.get("path"):
            content = Path(item["path"]).read_bytes()
        yield len(content or b"").to_bytes(8, "big")
        yield content or b""


def _lengths(lengths: pa.Array) -> bytes:
    import pyarrow as pa

    whole = lengths.cast(pa.int64()).fill_null(-1)
    return bytes(whole.to_numpy(zero_copy_only=False).tobytes())
