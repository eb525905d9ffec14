"""Say what is wrong with a dataset: all faults in one pass, each with places and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.faults import FaultLog, raise_on_errors
from sftkit.dataset.formats import convert_table
from sftkit.dataset.read import read_table
from sftkit.errors import DataError
from sftkit.records import Finding, Refused, Severity

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Audit", "audit_dataset", "audit_file", "audit_rows", "drop_faulty", "raise_on_errors"]

Row = Mapping[str, Any]
_LIKE_CONTROL = re.compile(r"<\|[A-Za-z0-9_ ]{2,30}\|>")
"""What control tokens look like in most chat models, for audits without a tokenizer."""
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found.

    Attributes:
        source: What was audited.
        row_count: Rows looked at.
        findings: One for each kind of fault, by code.
        rows_by_code: Positions of all rows concerned (a finding names three).
    """

    source: str
    row_count: int
    findings: tuple[Finding, ...]
    rows_by_code: Mapping[str, tuple[int, ...]]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make training wrong."""
        return tuple(f for f in self.findings if f.severity == "error")


def audit_file(path: str | Path, *, special_tokens: Iterable[str] | None = None) -> Audit:
    """Audit a file (or any other source that `read_dataset` takes).

    Args:
        path: The file.
        special_tokens: Control tokens of the model; None looks for the usual form <|…|>.

    Returns:
        Everything found, faults of the file and of its rows together.

    Raises:
        DataError: There is no such file, or its kind is not read.
    """
    table = read_table(path)
    rows = convert_table(table)
    return audit_rows(rows, source=table.name, special_tokens=special_tokens, log=table.log)


def audit_dataset(
    dataset: Dataset,
    tokenizer: Any = None,
    probes: Iterable[str] = (),
    *,
    group_by: str | None = None,
    source: str = "the dataset",
) -> Audit:
    """Audit a dataset that `read_dataset` gave.

    Args:
        dataset: Rows with canonical columns.
        tokenizer: The model's; its special tokens must not stand in the text.
        probes: Questions of the probes; none of them may be trained on.
        group_by: The column that was promised to stay together; groups that cross splits are
            then a warning, and information otherwise.
        source: What to call it.

    Returns:
        Everything found.
    """
    return audit_rows(
        list(dataset),
        source=source,
        special_tokens=None if tokenizer is None else control_tokens(tokenizer),
        probes=probes,
        group_by=group_by,
    )


def control_tokens(tokenizer: Any) -> set[str]:
    """List the tokens that are commands to the model, as text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {str(token) for token in added if getattr(token, "special", False)}
    return special | set(getattr(tokenizer, "all_special_tokens", ()))


def audit_rows(
    rows: Sequence[Row],
    *,
    source: str = "the dataset",
    special_tokens: Iterable[str] | None = None,
    probes: Iterable[str] = (),
    group_by: str | None = None,
    log: FaultLog | None = None,
) -> Audit:
    """Audit canonical rows; the work behind `audit_file` and `audit_dataset`.

    Args:
        rows: Mappings with messages, and id, group, split, place where known.
        source: What to call them.
        special_tokens: Control tokens of the model; None looks for the usual form <|…|>.
        probes: Questions that must not stand in the training rows.
        group_by: See `audit_dataset`.
        log: Faults found while reading, to be reported together with these.

    Returns:
        Everything found.
    """
    log = log if log is not None else FaultLog()
    find_token = _token_finder(special_tokens)
    for position, row in enumerate(rows):
        place = str(row.get("place") or f"row {position + 1}")
        for code, of, detail in _row_faults(row.get("messages")):
            log.add(code, place, row=position, of=of, detail=detail)
        for text in _texts(row):
            if token := find_token(text):
                severity: Severity | None = "warning" if special_tokens is None else None
                log.add("D31", place, row=position, of="messages", detail=token, severity=severity)
            if _INVISIBLE.search(text):
                log.add("D14", place, row=position, of="messages")
    _find_repeats(rows, log)
    _find_leaks(rows, tuple(probes), log)
    _find_split_groups(rows, group_by, log)
    return Audit(
        source=source,
        row_count=len(rows),
        findings=log.findings(),
        rows_by_code=log.rows_by_code(),
    )


def drop_faulty(dataset: Dataset, audit: Audit) -> tuple[Dataset, tuple[Refused, ...]]:
    """Leave out the rows that have an error.

    Args:
        dataset: The audited dataset.
        audit: What `audit_dataset` said about it.

    Returns:
        The other rows, and which were left out and why.

    Raises:
        DataError: An error concerns no single row, or no row would be left.
    """
    if audit.row_count != len(dataset):
        raise DataError(f"The audit saw {audit.row_count} rows, the dataset has {len(dataset)}.")
    reasons: dict[int, list[str]] = {}
    for code in dict.fromkeys(finding.code for finding in audit.errors):
        concerned = audit.rows_by_code.get(code, ())
        if not concerned:
            raise_on_errors(audit.findings, source=audit.source)
        for position in concerned:
            reasons.setdefault(position, []).append(code)
    kept = [position for position in range(len(dataset)) if position not in reasons]
    if not kept:
        raise_on_errors(audit.findings, source=f"Nothing is left to train on: {audit.source}")
    dropped = tuple(
        Refused(row=position, reason=f"audit: {', '.join(codes)}")
        for position, codes in sorted(reasons.items())
    )
    return dataset.select(kept), dropped


# ---- one row ----


def _row_faults(messages: Any) -> Iterator[tuple[str, str, str]]:
    """Give (code, part of the row, detail) for each fault of one conversation."""
    if not isinstance(messages, list):
        yield "D19", "messages", _kind(messages)
        return
    if not all(isinstance(turn, Mapping) for turn in messages):
        number, turn = next((n, t) for n, t in enumerate(messages, 1) if not isinstance(t, Mapping))
        yield "D19", "messages", f"turn {number} is {_kind(turn)}"
        return
    for number, turn in enumerate(messages, start=1):
        yield from _turn_faults(number, turn)
    roles = [turn.get("role") for turn in messages]
    if "assistant" not in roles:
        yield "D25", "messages", "no assistant turn"
    elif all(role in _ROLES for role in roles) and (fault := _order_fault(roles)):
        yield "D24", "messages", fault


def _turn_faults(number: int, turn: Row) -> Iterator[tuple[str, str, str]]:
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        yield "D21", "role", f"{role!r} in turn {number}"
    if isinstance(content, list | Mapping):
        yield "D26", "content", f"turn {number}"
    elif not isinstance(content, str):
        yield "D20", "content", f"turn {number} is {_kind(content)}"
    elif role == "assistant" and not content.strip():
        yield "D23", "content", ""


def _order_fault(roles: Sequence[Any]) -> str:
    """Say where the order of known roles breaks; nothing when it does not."""
    before = "start"
    may_follow = {
        "start": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
    for number, role in enumerate(roles, start=1):
        if role not in may_follow[before]:
            after = "stands first" if before == "start" else f"follows {before}"
            return f"{role} {after} in turn {number}"
        before = role
    return ""


def _texts(row: Row) -> Iterator[str]:
    messages = row.get("messages")
    for turn in messages if isinstance(messages, list) else ():
        if isinstance(turn, Mapping) and isinstance(turn.get("content"), str):
            yield turn["content"]


def _token_finder(tokens: Iterable[str] | None) -> Callable[[str], str]:
    """Give a function that finds the first control token in a text."""
    if tokens is None:
        pattern = _LIKE_CONTROL
    else:
        known = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
        if not known:
            return lambda text: ""
        pattern = re.compile("|".join(map(re.escape, known)))

    def find(text: str) -> str:
        found = pattern.search(text)
        return found[0] if found else ""

    return find


def _kind(value: Any) -> str:
    names = {type(None): "nothing", str: "a text", list: "a list", bool: "true or false"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else "a number")


# ---- rows together ----


def _place(rows: Sequence[Row], position: int) -> str:
    return str(rows[position].get("place") or f"row {position + 1}")


def _find_repeats(rows: Sequence[Row], log: FaultLog) -> None:
    seen: set[tuple[tuple[str, str], ...]] = set()
    ids: set[str] = set()
    for position, row in enumerate(rows):
        messages = row.get("messages")
        if isinstance(messages, list) and all(isinstance(turn, Mapping) for turn in messages):
            said = tuple(
                (str(turn.get("role")), " ".join(str(turn.get("content")).split()))
                for turn in messages
            )
            if said and said in seen:
                log.add("D33", _place(rows, position), row=position, of="messages")
            seen.add(said)
        name = row.get("id")
        if name is not None and name in ids:
            message = "{rows} with an id that an earlier row has, the first {detail}"
            place = _place(rows, position)
            log.add("D33", place, row=position, of="id", detail=repr(name), message=message)
        ids.add(str(name))


def normalise(text: str) -> str:
    """Bring a text to the form in which two count as the same: case, spacing, last mark."""
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def _find_leaks(rows: Sequence[Row], probes: Sequence[str], log: FaultLog) -> None:
    """Look for training rows that ask what a test row or a probe asks."""
    tested: dict[str, int] = {}
    for position, row in enumerate(rows):
        if row.get("split") == "test" and (asked := _asked(row)):
            tested.setdefault(asked, position)
    probed = {normalise(question) for question in probes}
    for position, row in enumerate(rows):
        if row.get("split") in ("test", "validation", "control") or not (asked := _asked(row)):
            continue
        place = _place(rows, position)
        if asked in tested:
            detail = f"the test row at {_place(rows, tested[asked])}"
            log.add("D34", place, row=position, of="messages", detail=detail)
        if asked in probed:
            log.add("D34", place, row=position, of="probes", detail="a probe")


def _asked(row: Row) -> str:
    """Give everything before the last reply, normalised; with the reply if that says too little."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        return ""
    replies = [i for i, turn in enumerate(messages) if turn.get("role") == "assistant"]
    if not replies:
        return ""
    before = [normalise(str(turn.get("content"))) for turn in messages[: replies[-1]]]
    # "Hello" may open any number of different conversations.
    if len(" ".join(before).split()) < 4:
        before.append(normalise(str(messages[replies[-1]].get("content"))))
    return "\n".join(before)


def _find_split_groups(rows: Sequence[Row], group_by: str | None, log: FaultLog) -> None:
    splits: dict[str, set[str]] = {}
    for row in rows:
        if row.get("split") and row.get("group"):
            splits.setdefault(str(row["group"]), set()).add(str(row["split"]))
    for position, row in enumerate(rows):
        found = splits.get(str(row.get("group")), set())
        if len(found) > 1:
            detail = f"{row['group']!r} in {' and '.join(sorted(found))}"
            severity: Severity = "information" if group_by is None else "warning"
            place = _place(rows, position)
            log.add(
                "D38", place, row=position, of=group_by or "group", detail=detail, severity=severity
            )
