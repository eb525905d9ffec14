"""Weigh, repeat, leave out and mix training rows, so that the common does not drown the rare.

Everything here changes training rows only. Rows that stand twice or come from elsewhere are
marked, and the division into splits refuses marked rows anywhere but in train.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftkit.dataset.columns import (
    append_rows,
    encode_column,
    find_made_rows,
    need_column,
    need_train,
    read_column,
    with_column,
)
from sftkit.dataset.split import draw_share
from sftkit.errors import DataError
from sftkit.settings import DataSettings

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


def inverse_weights(labels: Iterable[str]) -> dict[str, float]:
    """Weigh each class by the inverse of its frequency: rows / (classes * rows of the class).

    Returns:
        A weight per class; over all rows they average 1, so the loss keeps its size.

    Raises:
        DataError: There are no labels.
    """
    counts = _count(labels)
    rows = sum(counts.values())
    return {label: rows / (len(counts) * count) for label, count in counts.items()}


def effective_weights(labels: Iterable[str], *, beta: float = 0.999) -> dict[str, float]:
    """Weigh each class by the inverse of its effective number of rows, (1 - beta^n) / (1 - beta).

    The more rows a class has, the less a further one adds; so the common classes keep more weight
    than the inverse of the frequency leaves them (Cui et al. 2019, "Class-Balanced Loss").

    Args:
        labels: A label per row.
        beta: In [0, 1). At 0 all classes weigh the same; towards 1 it is the inverse frequency.

    Returns:
        A weight per class; they sum to the number of classes, as in the paper.

    Raises:
        DataError: There are no labels, or beta is out of range.
    """
    if not 0 <= beta < 1:
        raise DataError(f"beta must be in [0, 1), got {beta}.")
    raw = {label: (1 - beta) / (1 - beta**count) for label, count in _count(labels).items()}
    scale = len(raw) / sum(raw.values())
    return {label: weight * scale for label, weight in raw.items()}


def balance_rows(train: Dataset, settings: DataSettings) -> Dataset:
    """Repeat or leave out training rows as the settings say; without `balance_by`, neither.

    Raises:
        DataError: No such column, or rows that do not train.
    """
    if settings.balance_by is None:
        return train
    sample = over_sample if settings.balance == "over" else under_sample
    return sample(train, settings.balance_by, seed=settings.seed)


def over_sample(train: Dataset, column: str, *, seed: int = 0) -> Dataset:
    """Repeat rows until every value of a column has as many as the most frequent one.

    Each row of a value is repeated equally often, to within one.

    Args:
        train: Training rows.
        column: Whose values are balanced.
        seed: Seed of which rows are repeated once more.

    Returns:
        The training rows in their order, then the repetitions, with a column `repeated`.

    Raises:
        DataError: No such column, or rows that do not train.
    """
    return _resample(train, column, seed, lambda sizes: [max(sizes)] * len(sizes))


def under_sample(train: Dataset, column: str, *, seed: int = 0) -> Dataset:
    """Leave out rows until every value of a column has as few as the least frequent one.

    Args:
        train: Training rows.
        column: Whose values are balanced.
        seed: Seed of which rows stay.

    Returns:
        The rows that stay, in their order, with a column `repeated` (of none).

    Raises:
        DataError: No such column, or rows that do not train.
    """
    return _resample(train, column, seed, lambda sizes: [min(sizes)] * len(sizes))


def sample_sources(
    train: Dataset, column: str, *, temperature: float, rows: int | None = None, seed: int = 0
) -> Dataset:
    """Mix sources in shares between their sizes and equality.

    Args:
        train: Training rows of several sources.
        column: Column that names the source.
        temperature: See `temperature_shares`.
        rows: Rows of the result; None keeps their number.
        seed: Seed of which rows are left out or repeated.

    Returns:
        The rows that stay, in their order, then the repetitions, with a column `repeated`. Each
        source has its share to within one row.

    Raises:
        DataError: No such column, rows that do not train, or a temperature below 1.
    """

    def wanted(sizes: list[int]) -> list[int]:
        shares = temperature_shares(dict(enumerate(sizes)), temperature)
        return _apportion(list(shares.values()), sum(sizes) if rows is None else rows)

    return _resample(train, column, seed, wanted)


def temperature_shares(counts: Mapping[Any, int], temperature: float) -> dict[Any, float]:
    """Flatten shares: q_i ∝ p_i^(1 / temperature), p_i the share of source i.

    At 1 sources keep their shares; the higher the temperature, the more equal they become
    (Arivazhagan et al. 2019, "Massively Multilingual NMT in the Wild", with 5).

    Raises:
        DataError: No rows, or a temperature below 1.
    """
    if not temperature >= 1:
        raise DataError(f"temperature must be 1 or more, got {temperature}.")
    total = sum(counts.values())
    if not total or min(counts.values()) < 0:
        raise DataError(f"Shares need rows of some source, got {dict(counts)}.")
    flat = {name: (count / total) ** (1 / temperature) for name, count in counts.items()}
    return {name: share / sum(flat.values()) for name, share in flat.items()}


def mix_replay(
    train: Dataset,
    replay: Dataset,
    share: float,
    seed: int,
    *,
    count_tokens: Callable[[Mapping[str, Any]], int] | None = None,
) -> Dataset:
    """Mix general examples into the training set, so that less is forgotten.

    Args:
        train: What is to be learned.
        replay: General examples to draw from.
        share: Share of replayed rows among all rows of the result, in [0, 1).
        seed: Seed of the choice.
        count_tokens: Counts the tokens of a row. If given, the share is one of tokens, met to
            within half a row, and rows of 0 tokens are not replayed.

    Returns:
        The training rows, then the replayed ones, with a column `replayed`.

    Raises:
        DataError: There are too few rows to draw from, or rows that do not train.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not 0 <= share < 1:
        raise DataError(f"share must be in [0, 1), got {share}.")
    need_train(train)
    order = np.argsort(_draw_rows(replay, seed), kind="stable")
    if count_tokens is None:
        wanted = round(len(train) * share / (1 - share))
        _need_enough(share, "rows", len(train), wanted, len(replay))
        chosen = order[:wanted]
    else:
        own = sum(map(count_tokens, train))
        lengths = (count_tokens(replay[int(place)]) for place in order)
        chosen = order[take_tokens(lengths, share, beside=own)]
    rows = replay.select(np.sort(chosen))
    added: dict[str, Any] = {
        name: read_column(rows, name)
        for name in train.column_names
        if name in rows.column_names and name not in ("split", "replayed")
    }
    groups = added["group"].cast(pa.string())
    added["group"] = pc.binary_join_element_wise("replay", groups, ":")
    if "split" in train.column_names:
        added["split"] = ["train"] * len(rows)
    return append_rows(train, added, {"replayed": (False, [True] * len(rows))})


def take_tokens(lengths: Iterable[int], share: float, *, beside: int) -> list[int]:
    """Take items in order until their tokens are a share of all tokens, as nearly as can be.

    Args:
        lengths: Tokens of each item; drawn only as far as needed. Items of 0 tokens are skipped.
        share: Share of the taken tokens among all, in [0, 1).
        beside: Tokens that are there already.

    Returns:
        Positions of the items taken.

    Raises:
        DataError: All items together are too few.
    """
    wanted = round(beside * share / (1 - share))
    taken: list[int] = []
    total = longest = 0
    for position, length in enumerate(lengths):
        if 2 * (wanted - total) <= length:  # without it is as near as with it
            return taken
        longest = max(longest, length)
        if length:
            taken.append(position)
            total += length
    if 2 * (wanted - total) > longest:
        _need_enough(share, "tokens", beside, wanted, total)
    return taken


def _need_enough(share: float, unit: str, beside: int, wanted: int, have: int) -> None:
    if wanted > have:
        most = math.floor(100 * have / (beside + have)) / 100
        raise DataError(
            f"replay_share={share:g} beside {beside} training {unit} needs {wanted} {unit} to "
            f"replay, but there are {have}. Lower replay_share to {most:.2f} or give more."
        )


def _count(labels: Iterable[str]) -> Counter[str]:
    counts = Counter(labels)
    if not counts:
        raise DataError("There are no labels to weigh. Give one for each training row.")
    return counts


def _draw_rows(dataset: Dataset, seed: int) -> np.ndarray:
    """Draw a number in [0, 1) for each row, by its id where it has one."""
    import numpy as np

    ids: Iterator[Any] = iter(range(len(dataset)))
    if "id" in dataset.column_names:
        ids = (value.as_py() for value in read_column(dataset, "id"))
    return np.fromiter((draw_share(seed, str(name)) for name in ids), float, len(dataset))


def _resample(
    train: Dataset, column: str, seed: int, wanted: Callable[[list[int]], list[int]]
) -> Dataset:
    """Bring every value of a column to the number of rows that `wanted` says for its size."""
    import numpy as np
    import pyarrow as pa

    need_column(train, column, "column")
    need_train(train)
    if not len(train):
        raise DataError("There are no training rows to balance.")
    codes, _ = encode_column(train, column)
    sizes = np.bincount(codes)
    targets = np.array(wanted(sizes.tolist()))
    order = np.lexsort((_draw_rows(train, seed), codes))  # the rows of each value, shuffled
    rank = np.empty(len(train), dtype=np.int64)
    rank[order] = np.arange(len(train)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = targets[codes] // sizes[codes] + (rank < targets[codes] % sizes[codes])
    again = np.repeat(np.arange(len(train)), np.maximum(times - 1, 0))
    positions = np.concatenate([np.flatnonzero(times), again])
    repeated = find_made_rows(train, "repeated")[positions]
    repeated[len(positions) - len(again) :] = True
    chosen = train.select(positions)
    if "repeated" in chosen.column_names:
        chosen = chosen.remove_columns("repeated")
    return with_column(chosen, "repeated", pa.array(repeated))


def _apportion(shares: list[float], rows: int) -> list[int]:
    """Round shares of rows to whole numbers that sum to them (largest remainders)."""
    exact = [share * rows for share in shares]
    whole = [math.floor(number) for number in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for position in by_rest[: rows - sum(whole)]:
        whole[position] += 1
    return whole
