"""What can be wrong with the labels of a dataset as a whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftkit.dataset import row_checks as kinds
from sftkit.dataset.digest import NONE, RowDigest
from sftkit.dataset.facts import say_count
from sftkit.dataset.faults import FaultLog
from sftkit.records import Severity

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEW = 0.1
"""Share of rows below which another way of writing labels looks like a slip."""
_STATED = 0.5
"""Share of rows that must hold their own label. Topics name themselves in a part of their texts
("sport" in 10 to 30 %); a label that was left in the prompt stands in nearly all."""
_OVER_CHANCE = 2.0
"""How much more often than other rows hold it: prompts that list all choices hold every label."""
_LEAST_ROWS = 5
"""Fewer rows hold their label by chance."""
_LOOKED_AT = 20_000
"""Rows that decide whether labels are stated; a share of one half is then sure to a percent."""
_MOST_LABELS = 500
_EXPECTED = 5.0
"""Rows a class should have in a split before its absence is no accident (the usual least expected
count of a chi-squared test)."""


def find_mixed_kinds(digest: RowDigest, log: FaultLog) -> None:
    """Log labels written in more than one way: words and numbers, true/false, lists.

    In a typed source a word among numbers is an error. In a table of texts, numbers and words
    may both be names of classes, so a few of one kind are a warning, many information.
    """
    import numpy as np

    kind = np.asarray(digest.kind)
    if digest.task == "regress":
        return  # a score that is no number is a fault of its row
    counts = {k: int((kind == k).sum()) for k in range(1, len(kinds.KINDS))}
    found = sorted((k for k, count in counts.items() if count), key=lambda k: -counts[k])
    if len(found) < 2 and counts[kinds.NESTED] == 0:
        return
    detail = " and ".join(f"{kinds.KINDS[k]} in {say_count(counts[k], 'row')}" for k in found)
    severity: Severity = "error"
    if set(found) == {kinds.WORD, kinds.NUMERAL}:
        severity = "warning" if counts[found[-1]] < _FEW * sum(counts.values()) else "information"
    elif set(found) <= {kinds.NUMERAL, kinds.WHOLE, kinds.DECIMAL}:
        severity = "warning"
    usual = found[0] if len(found) > 1 else None
    for row in np.flatnonzero((kind != usual) & (kind != kinds.MISSING)).tolist():
        place = digest.places[row]
        log.add("D18", place, row=row, of="label", detail=detail, severity=severity)


def find_twin_spellings(digest: RowDigest, log: FaultLog) -> None:
    """Log labels that differ from a more frequent one in case only; each would be a class."""
    import numpy as np

    label = np.asarray(digest.label)
    counts = np.bincount(label, minlength=len(digest.labels.texts) + 1)
    usual: dict[str, int] = {}
    for code in (np.argsort(-counts[1:], kind="stable") + 1).tolist():
        usual.setdefault(digest.labels.texts[code - 1].casefold(), code)
    first = set(usual.values())
    twins = [code for code in range(1, len(counts)) if code not in first]
    for row in np.flatnonzero(np.isin(label, twins)).tolist() if twins else ():
        said = digest.labels.texts[label[row] - 1]
        other = digest.labels.texts[usual[said.casefold()] - 1]
        log.add(
            "D18",
            digest.places[row],
            row=row,
            of="spelling",
            detail=f"{kinds.shown(said)} beside {kinds.shown(other)}",
            severity="warning",
            message="labels that differ in case only, in {rows}; the first: {detail}",
            fix="Write all of them in one way: each spelling would be a class of its own.",
        )


def find_missing_classes(digest: RowDigest, log: FaultLog) -> None:
    """Log a dataset with one class only, and classes that a split lacks."""
    import numpy as np

    if digest.task == "regress":
        scores = np.asarray(digest.score)
        values = np.unique(scores[~np.isnan(scores)])
        if len(values) == 1 and digest.count > 1:
            message = "every score is {detail}: there is nothing to tell apart"
            fix = "Add rows with other scores."
            detail = f"{values[0]:g}"
            log.add("D36", digest.places[0], of="score", detail=detail, message=message, fix=fix)
        return
    label, split = np.asarray(digest.label), np.asarray(digest.split)
    labelled = np.flatnonzero(label != NONE)
    if len(digest.labels.texts) == 1 and len(labelled) > 1:
        place = digest.places[int(labelled[0])]
        log.add("D36", place, of="label", detail=kinds.shown(digest.labels.texts[0]))
    marked = (label != NONE) & (split != NONE)
    missing = []
    for code in range(1, len(digest.splits.texts) + 1):
        here = label[marked & (split == code)]
        if not len(here):
            continue
        share = len(here) / int(marked.sum())
        for absent in np.setdiff1d(label[marked], here).tolist():
            rows = np.flatnonzero(marked & (label == absent))
            name = digest.splits.texts[code - 1]
            if name == "train" or len(rows) * share >= _EXPECTED:
                missing.append((int(rows[0]), digest.labels.texts[absent - 1], name))
    for row, text, name in sorted(missing):
        message = "classes missing from a split: {detail}"
        if len(missing) > 1:
            message += f" and {len(missing) - 1} more"
        fix = "Split again, stratified by label, so that every split holds every class."
        log.add(
            "D36",
            digest.places[row],
            of="split",
            detail=f"{kinds.shown(text)} is not in {name}",
            severity="warning",
            message=message,
            fix=fix,
        )


def find_conflicts(digest: RowDigest, log: FaultLog) -> None:
    """Log rows whose text stands elsewhere with another label.

    In chat a question may have several good replies: that is information.
    """
    import numpy as np

    asked = np.asarray(digest.asked)
    target: NDArray[Any]
    if digest.task == "chat":
        of, target = "messages", np.asarray(digest.whole)
    elif digest.task == "regress":
        of, target = "score", np.nan_to_num(np.asarray(digest.score), nan=0.0)
        asked = np.where(np.isnan(np.asarray(digest.score)), NONE, asked)
    else:
        of, target = "label", np.asarray(digest.label)
        asked = np.where(target == NONE, NONE, asked)
    known = np.flatnonzero(asked != NONE)
    order = known[np.lexsort((target[known], asked[known]))]
    changes = (np.diff(asked[order]) == 0) & (np.diff(target[order]) != 0)
    texts = np.unique(asked[order[1:][changes]])
    rows = np.flatnonzero(np.isin(asked, texts) & (asked != NONE))
    if not len(rows):
        return
    first = rows[0]
    same = np.flatnonzero(asked == asked[first])
    other = same[target[same] != target[first]][0]
    severity: Severity | None = None
    fix = None
    place = digest.places[int(other)]
    if digest.task == "chat":
        count = say_count(len(texts), "question")
        message = f"{count} with more than one reply, in {{rows}}; the first again at {{detail}}"
        severity, detail = "information", place
        fix = "Nothing has to be done if each reply is a good one."
    else:
        what = "image" if digest.task == "image" else "text"
        fix = f"Decide on one {of} for each {what}, or delete these rows."
        count = say_count(len(texts), what)
        message = f"{count} with more than one {of}, in {{rows}}; the first: {{detail}}"
        detail = f"{_said(digest, first)} here, {_said(digest, other)} at {place}"
    for row in rows.tolist():
        place = digest.places[row]
        log.add(
            "D37", place, row=row, of=of, detail=detail, severity=severity, message=message, fix=fix
        )


def find_stated_labels(digest: RowDigest, texts: Sequence[str], log: FaultLog) -> None:
    """Log rows whose own label stands as a word in their text, if that is more than chance.

    Args:
        digest: All rows.
        texts: What stands before the label or the reply, one for each row.
        log: Takes the findings.
    """
    import numpy as np

    label = np.asarray(digest.label)
    names = digest.labels.texts
    labelled = np.flatnonzero(label != NONE)
    if not 2 <= len(names) <= _MOST_LABELS or len(labelled) < _LEAST_ROWS:
        return
    # Replies are classes when nearly all are short and each comes back several times.
    if digest.task == "chat" and (
        len(labelled) < 0.9 * digest.count or len(labelled) < 5 * len(names)
    ):
        return
    look = labelled[:: -(-len(labelled) // _LOOKED_AT)]
    find = _label_finder(names)
    own, others, rows_of = (
        np.zeros(len(names) + 1),
        np.zeros(len(names) + 1),
        np.bincount(label[look], minlength=len(names) + 1),
    )
    for row, text in zip(look.tolist(), _draw(texts, look), strict=True):
        for code in find(text):
            (own if code == label[row] else others)[code] += 1
    stated = own.sum() / len(look)
    rate = others / np.maximum(len(look) - rows_of, 1)  # how often other rows hold each label
    chance = float((rate * rows_of).sum() / len(look))
    if stated < _STATED or stated < _OVER_CHANCE * chance or own.sum() < _LEAST_ROWS:
        return
    of = "messages" if digest.task == "chat" else "text"
    detail = f"{stated:.0%} of rows; other rows hold the same words in {chance:.0%}"
    for start in range(0, len(labelled), 1000):
        rows = labelled[start : start + 1000]
        for row, text in zip(rows.tolist(), _draw(texts, rows), strict=True):
            if label[row] in find(text):
                log.add("D35", digest.places[row], row=row, of=of, detail=detail)


def _label_finder(names: Sequence[str]) -> Any:
    """Give a function that finds which labels stand in a text as whole words."""
    folded: dict[str, int] = {}
    for code, name in enumerate(names, start=1):
        folded.setdefault(" ".join(name.casefold().split()), code)
    ordered = sorted(folded, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)")

    def find(text: str) -> set[int]:
        return {folded[word] for word in pattern.findall(" ".join(text.casefold().split()))}

    return find


def _draw(texts: Sequence[str], rows: NDArray[Any]) -> Sequence[str]:
    if isinstance(texts, list):
        return [texts[row] for row in rows.tolist()]
    drawn: Any = texts
    return list(drawn[rows.tolist()])


def _said(digest: RowDigest, row: Any) -> str:
    if digest.task == "regress":
        return f"{digest.score[row]:g}"
    return kinds.shown(digest.labels.texts[digest.label[row] - 1])
