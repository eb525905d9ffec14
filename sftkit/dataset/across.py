"""What can be wrong between rows: repeats, test questions in train, groups in two splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.dataset.digest import NONE, RowDigest
from sftkit.dataset.faults import FaultLog
from sftkit.dataset.row_checks import shown
from sftkit.dataset.sketches import hash_text, normalise
from sftkit.records import Severity

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MADE_UP = re.compile(r"([a-z]-)?[0-9a-f]{12}")
"""Groups that reading named after the rows' own content; equal content is reported as such."""
NEAR = "near duplicates"
"""What stands as the field of a finding about rows that are almost the same."""


def find_repeats(digest: RowDigest, log: FaultLog) -> int:
    """Log rows that repeat an earlier one word for word, and ids given twice.

    Returns:
        How many rows are repeats.
    """
    of = {"chat": "messages", "image": "image"}.get(digest.task, "text")
    repeats, firsts = _repeats(digest.whole)
    for row, first in zip(repeats, firsts, strict=True):
        log.add("D33", digest.places[row], row=row, of=of, detail=digest.places[first])
    message = "{rows} with an id that an earlier row has; the first has that of {detail}"
    fix = "Give every row an id of its own, so that a finding can be traced to it."
    for row, first in zip(*_repeats(digest.identity), strict=True):
        earlier = digest.places[first]
        place = digest.places[row]
        log.add("D33", place, row=row, of="id", detail=earlier, message=message, fix=fix)
    return len(repeats)


def find_near_repeats(digest: RowDigest, texts: Sequence[str], log: FaultLog) -> int:
    """Log rows that are nearly the same as an earlier one, exact ones left out.

    It is information: paraphrases may be meant, and only a reader can tell.

    Returns:
        How many rows are near repeats.
    """
    from sftkit.dataset.near import find_near_duplicates

    left_out = set(_repeats(digest.whole)[0])
    if digest.task != "chat":  # the same text with another label is a conflict: find_conflicts
        left_out.update(_repeats(digest.asked)[0])
    near = {
        row: rows[0]
        for rows in find_near_duplicates(texts)
        for row in rows[1:]
        if row not in left_out
    }
    for row, first in sorted(near.items()):
        log.add(
            "D33",
            digest.places[row],
            row=row,
            of=NEAR,
            detail=digest.places[first],
            severity="information",
            message="{rows} nearly the same as an earlier row; the first is near {detail}",
            fix="Look at a few; delete them unless the variation is meant.",
        )
    return len(near)


def find_leaks(
    digest: RowDigest,
    probes: Sequence[str],
    log: FaultLog,
    *,
    select: Callable[[list[int]], Any] | None = None,
) -> None:
    """Log training rows that ask what a test row, a validation row or a probe asks.

    Args:
        digest: All rows.
        probes: Questions of the probes.
        log: Takes the findings.
        select: Gives rows by position as `find_overlap` takes them, to look for overlap that is
            not exact; None leaves that out.
    """
    import numpy as np

    asked, split = np.asarray(digest.asked), np.asarray(digest.split)
    held_out = [digest.splits.find(name) for name in ("test", "validation", "control")]
    train = ~np.isin(split, [code for code in held_out if code]) & (asked != NONE)
    _find_probes(digest, train, probes, log)
    _find_held_out(digest, train, "test", log)
    _find_held_out(digest, train, "validation", log)
    code = digest.splits.find("test")
    tested = np.flatnonzero((split == code) & (code != NONE) & ~np.isin(asked, asked[train]))
    if select is not None and len(tested) and train.any():
        _find_loose(digest, np.flatnonzero(train).tolist(), tested.tolist(), select, log)


def _find_probes(
    digest: RowDigest, train: NDArray[Any], probes: Sequence[str], log: FaultLog
) -> None:
    import numpy as np

    asked = np.asarray(digest.opening if digest.task == "chat" else digest.asked)
    probed = np.array([hash_text(normalise(question)) for question in probes], dtype=np.uint64)
    rows = np.flatnonzero(train & np.isin(asked, probed[probed != NONE]))
    held = int(np.isin(probed, asked[rows]).sum())
    for row in rows.tolist():
        message = (
            f"train holds {held:,} of {len(probed):,} probe questions ({held / len(probed):.1%}), "
            "in {rows}: scores would be invalid"
        )
        log.add("D34", digest.places[row], row=row, of="probes", message=message)


def _find_held_out(digest: RowDigest, train: NDArray[Any], name: str, log: FaultLog) -> None:
    """Log training rows with the question of a row in a split that must be unseen."""
    import numpy as np

    code = digest.splits.find(name)
    asked = np.asarray(digest.asked)
    tested = np.flatnonzero((np.asarray(digest.split) == code) & (asked != NONE))
    rows = np.flatnonzero(train & np.isin(asked, asked[tested]))
    if not code or not len(rows):
        return
    held = int(np.isin(asked[tested], asked[rows]).sum())
    first = int(tested[asked[tested] == asked[rows[0]]][0])
    field = {"chat": "messages", "image": "image"}.get(digest.task, "text")
    says = {"chat": "asks", "image": "shows"}.get(digest.task, "says")
    for row in rows.tolist():
        log.add(
            "D34",
            digest.places[row],
            row=row,
            of=field if name == "test" else name,
            detail=f"the {name} row at {digest.places[first]}",
            # A score on validation rows is reported nowhere; it only chooses.
            severity="error" if name == "test" else "warning",
            message=(
                f"train holds {held:,} of {len(tested):,} {name} rows ({held / len(tested):.1%}), "
                f"in {{rows}}; the first {says} the same as {{detail}}: scores would be invalid"
            ),
        )


def _find_loose(
    digest: RowDigest,
    train: list[int],
    tested: list[int],
    select: Callable[[list[int]], Any],
    log: FaultLog,
) -> None:
    """Log test rows that train holds almost: a warning where near, else information.

    Thirteen words in a row may be a citation that both rows need, so they are no warning.
    """
    from sftkit.dataset.contamination import find_overlap

    found = find_overlap(select(train), select(tested), kinds=("near", "13-gram")).matches
    near = found["near"]
    grams = {test: row for test, row in found["13-gram"].items() if test not in near}
    kinds: tuple[tuple[str, Mapping[int, int], Severity, str], ...] = (
        (NEAR, near, "warning", "are in train with few words changed"),
        ("13 words in a row", grams, "information", "share thirteen words in a row with train"),
    )
    for field, rows, severity, words in kinds:
        for test, row in rows.items():
            log.add(
                "D34",
                digest.places[tested[test]],
                row=tested[test],
                of=field,
                detail=digest.places[train[row]],
                severity=severity,
                message=(
                    f"{len(rows):,} of {len(tested):,} test rows ({len(rows) / len(tested):.1%}) "
                    f"{words}; the first stands at {{detail}}"
                ),
                fix="Look at a few, and report the score on the other test rows too.",
            )


def find_split_groups(digest: RowDigest, group_by: str | None, log: FaultLog) -> None:
    """Log the rows of groups that stand in more than one split.

    Args:
        digest: All rows.
        group_by: The column that was promised to stay together: a warning then. Where nothing
            was promised, groups are information; but a column that by its name holds people or
            documents (patient_id) is a warning.
        log: Takes the findings.
    """
    severity: Severity = "information" if group_by is None else "warning"
    field = group_by or "group"
    names = digest.groups.texts
    if group_by is not None or not any(map(_MADE_UP.fullmatch, names[:1])):
        _log_divided(digest, log, names=names, codes=digest.group, field=field, severity=severity)
    if group_by is None:
        for column, (known, numbers) in digest.likely_groups.items():
            _log_divided(
                digest, log, names=known.texts, codes=numbers, field=column, severity="warning"
            )


def _log_divided(
    digest: RowDigest,
    log: FaultLog,
    *,
    names: Sequence[str],
    codes: Sequence[int],
    field: str,
    severity: Severity,
) -> None:
    import numpy as np

    group = np.zeros(digest.count, dtype=np.int64)
    group[: len(codes)] = codes
    split = np.asarray(digest.split)
    pairs = np.unique(np.stack([group, split], axis=1)[(group != NONE) & (split != NONE)], axis=0)
    known, splits = np.unique(pairs[:, 0], return_counts=True)
    detail = ""
    for row in np.flatnonzero(np.isin(group, known[splits > 1])).tolist():
        if not detail:
            found = sorted(digest.splits.texts[s - 1] for s in pairs[pairs[:, 0] == group[row], 1])
            listed = ", ".join(found[:-1]) + f" and {found[-1]}"
            detail = f"{shown(names[group[row] - 1])} in {listed}"
        log.add("D38", digest.places[row], row=row, of=field, detail=detail, severity=severity)


def _repeats(hashes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Give the positions whose hash stands earlier too, and where it stands first; ascending."""
    import numpy as np

    values = np.asarray(hashes)
    if not len(values):
        return [], []
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    earliest = first[inverse]
    rows = np.flatnonzero((earliest != np.arange(len(values))) & (values != NONE))
    return rows.tolist(), earliest[rows].tolist()
