"""What a leak does to a score: the same test after training with and without its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.errors import DataError
from sftkit.evidence.statistics import paired_change
from sftkit.evidence_records import Change

if TYPE_CHECKING:
    from sftkit.dataset.contamination import Overlap


@dataclass(frozen=True, kw_only=True)
class LeakEffect:
    """The scores of one test after a clean and after a leaky training, compared.

    In each change, before is the clean training and after the leaky one.

    Attributes:
        deltas: leaky - clean, for each tested row.
        leaked: Which of these rows stood in the leaky training rows.
        overall: Over all tested rows: what would be reported.
        on_leaked: Over the rows that leaked.
        on_clean: Over the other rows: what the leaky training is worth on new questions.
    """

    deltas: tuple[float, ...]
    leaked: tuple[bool, ...]
    overall: Change
    on_leaked: Change
    on_clean: Change


def measure_leak(
    clean: Sequence[float],
    leaky: Sequence[float],
    overlap: Overlap,
    *,
    groups: Sequence[str],
    resamples: int = 4000,
) -> LeakEffect:
    """Compare the scores of a test after a clean and after a leaky training.

    Args:
        clean: One score for each tested row, such as its loss, after the clean training.
        leaky: The same after the leaky training.
        overlap: Which tested rows stood in the leaky training rows.
        groups: Group of each tested row; whole groups are resampled.
        resamples: Bootstrap draws per interval.

    Returns:
        The change by the leak, overall and for both kinds of row.

    Raises:
        DataError: There is not one score and group for each tested row, or rows of one kind are
            missing.
    """
    rows = overlap.test_rows
    if not len(clean) == len(leaky) == len(groups) == rows:
        raise DataError(
            f"{rows} rows were tested, got {len(clean)} clean and {len(leaky)} leaky scores and "
            f"{len(groups)} groups. Give one of each for every tested row."
        )
    if not overlap.rows or not overlap.clean_rows:
        raise DataError(
            f"{len(overlap.rows)} of {rows} tested rows leaked. To see what a leak does, some must "
            "have leaked and some must not."
        )

    def change(part: Sequence[int]) -> Change:
        return paired_change(
            [clean[row] for row in part],
            [leaky[row] for row in part],
            groups=[groups[row] for row in part],
            resamples=resamples,
        )

    concerned = set(overlap.rows)
    return LeakEffect(
        deltas=tuple(float(b) - float(a) for a, b in zip(clean, leaky, strict=True)),
        leaked=tuple(row in concerned for row in range(rows)),
        overall=change(range(rows)),
        on_leaked=change(overlap.rows),
        on_clean=change(overlap.clean_rows),
    )
