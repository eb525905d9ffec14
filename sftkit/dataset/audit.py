"""Say what is wrong with a dataset: all faults in one pass, each with places and a remedy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sftkit.dataset import across, label_checks
from sftkit.dataset.digest import RowDigest
from sftkit.dataset.facts import AuditFacts, gather_facts
from sftkit.dataset.faults import FaultLog, raise_on_errors
from sftkit.dataset.read import (
    need_seen_column,
    note_columns,
    open_source,
    set_groups,
    write_rows,
)
from sftkit.dataset.row_checks import check_row, token_finder
from sftkit.dataset.sketches import normalise
from sftkit.dataset.texts import RowTexts, question_text
from sftkit.dataset.token_checks import (
    TokenFacts,
    check_template,
    check_text_lengths,
    check_tokens,
    control_tokens,
)
from sftkit.errors import DataError
from sftkit.records import Finding, Refused, Severity
from sftkit.settings import DataSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.plans import Task

__all__ = [
    "Audit",
    "AuditFacts",
    "audit_dataset",
    "audit_file",
    "audit_rows",
    "control_tokens",
    "drop_faulty",
    "normalise",
    "raise_on_errors",
]

Row = Mapping[str, Any]
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found. It shows itself in a notebook.

    Attributes:
        source: What was audited.
        row_count: Rows looked at.
        findings: One for each kind of fault, by code.
        rows_by_code: Positions of all rows concerned (a finding names three).
        error_rows: The same for findings of severity error only.
        facts: What the dataset looks like beside its faults.
    """

    source: str
    row_count: int
    findings: tuple[Finding, ...]
    rows_by_code: Mapping[str, tuple[int, ...]]
    error_rows: Mapping[str, tuple[int, ...]]
    facts: AuditFacts

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make training wrong."""
        return tuple(f for f in self.findings if f.severity == "error")

    def __str__(self) -> str:
        from sftkit.audit_page import audit_text

        return audit_text(self)

    def _repr_html_(self) -> str:
        from sftkit.audit_page import audit_fragment

        return audit_fragment(self)


def audit_file(
    path: Any,
    *,
    task: Task | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int | None = None,
    system: str | None = None,
    probes: Iterable[str] = (),
    group_by: str | None = None,
) -> Audit:
    """Audit a file (or any other source that `read_dataset` takes), in one pass over it.

    Memory stays bounded: rows stream into a temporary Arrow file, and about a hundred bytes of
    each are remembered for the checks across rows.

    Args:
        path: The source.
        task: chat, classify, regress or image; None finds out.
        format: How conversations or labels are written; None finds out.
        columns: Which column is what, where the guess is wrong: {"question": "Frage"}.
        encoding: Of a text file; None expects UTF-8.
        tokenizer: The model's. With it lengths are counted in tokens, and the chat template is
            looked at.
        max_tokens: Longest row that is trained on; None takes the default of a recipe.
        system: System prompt that will be put first in training.
        probes: Questions of the probes; none of them may be trained on.
        group_by: See `audit_dataset`.

    Returns:
        Everything found, faults of the file and of its rows together.

    Raises:
        DataError: There is no such source, or its kind is not read.
    """
    found = open_source(path, task=task, format=format, columns=columns, encoding=encoding)
    check = _Pass(found.task, found.name, found.log, tokenizer)
    seen: dict[str, None] = {}
    rows = note_columns(found.rows, seen)
    if group_by is not None:
        rows = set_groups(rows, group_by)
    dataset = write_rows(map(check.look_at, rows), found.task)
    if group_by is not None:
        need_seen_column(seen, group_by, "group_by", found.name)
    return check.finish(
        dataset,
        probes=probes,
        group_by=group_by,
        seen_as=found.seen_as,
        max_tokens=max_tokens or DataSettings.max_tokens,
        system=system,
    )


def audit_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    probes: Iterable[str] = (),
    *,
    group_by: str | None = None,
    source: str = "the dataset",
    max_tokens: int | None = None,
    system: str | None = None,
) -> Audit:
    """Audit a dataset that `read_dataset` gave.

    Args:
        dataset: Rows with canonical columns.
        tokenizer: The model's; its special tokens must not stand in the text.
        probes: Questions of the probes; none of them may be trained on.
        group_by: The column that was promised to stay together; groups that cross splits are
            then a warning, and information otherwise.
        source: What to call it.
        max_tokens: Longest row that is trained on; with it and a tokenizer, rows are encoded to
            find those that are too long or teach nothing. None leaves that out.
        system: System prompt that will be put first in training.

    Returns:
        Everything found.
    """
    check = _Pass(_task_of(dataset.column_names), source, FaultLog(), tokenizer)
    for row in _undecoded(dataset):
        check.look_at(row)
    return check.finish(
        dataset, probes=probes, group_by=group_by, max_tokens=max_tokens, system=system
    )


def audit_rows(
    rows: Iterable[Row],
    *,
    source: str = "the dataset",
    task: str | None = None,
    special_tokens: Iterable[str] | None = None,
    probes: Iterable[str] = (),
    group_by: str | None = None,
    log: FaultLog | None = None,
) -> Audit:
    """Audit canonical rows with raw values, such as an iterator gives once.

    Their texts are kept in memory; `audit_file` and `audit_dataset` do without.

    Args:
        rows: Mappings with messages, text and label, or text and score; and id, group, split,
            place where known.
        source: What to call them.
        task: chat, classify, regress or image; None tells it from the first row.
        special_tokens: Control tokens of the model; None looks for the usual form <|…|>.
        probes: Questions that must not stand in the training rows.
        group_by: See `audit_dataset`.
        log: Faults found while reading, to be reported together with these.

    Returns:
        Everything found.
    """
    drawn = iter(rows)
    first = next(drawn, None)
    task = task or _task_of(first or ())
    check = _Pass(task, source, log or FaultLog(), special_tokens=special_tokens)
    for row in () if first is None else itertools.chain([first], drawn):
        check.look_at(row, keep=True)
    return check.finish(None, probes=probes, group_by=group_by)


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
        concerned = audit.error_rows.get(code, ())
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


class _Pass:
    """One pass over rows: checks each as it goes by, and compares them at the end."""

    def __init__(
        self,
        task: str,
        source: str,
        log: FaultLog,
        tokenizer: Any = None,
        *,
        special_tokens: Iterable[str] | None = None,
    ) -> None:
        if tokenizer is not None:
            special_tokens = control_tokens(tokenizer)
        self.source, self.log, self.tokenizer = source, log, tokenizer
        self.find_token = token_finder(special_tokens)
        self.token_severity: Severity | None = "warning" if special_tokens is None else None
        self.digest = RowDigest(task)
        self.texts: list[str] = []
        self.asked: list[str] = []

    def look_at(self, row: AnyRow, *, keep: bool = False) -> AnyRow:
        """Check one row and remember it; give it back as it is.

        Args:
            row: A canonical row with raw values.
            keep: Whether to keep its text, for want of a dataset to draw it from.
        """
        digest, position = self.digest, self.digest.count
        place = str(row.get("place") or f"row {position + 1}")
        check_row(
            row,
            position,
            place,
            self.log,
            task=digest.task,
            find_token=self.find_token,
            token_severity=self.token_severity,
        )
        text = digest.add(row, place)
        if keep:
            self.texts.append(text)
            self.asked.append(question_text(row) if text else "")
        return row

    def finish(
        self,
        dataset: Dataset | None,
        *,
        probes: Iterable[str],
        group_by: str | None,
        seen_as: str = "",
        max_tokens: int | None = None,
        system: str | None = None,
    ) -> Audit:
        """Compare the rows, and gather everything that was found.

        Args:
            dataset: The rows that went by; None if their texts were kept.
            probes: See `audit_dataset`.
            group_by: See `audit_dataset`.
            seen_as: How the source was understood.
            max_tokens: See `audit_dataset`.
            system: See `audit_dataset`.
        """
        digest, log = self.digest, self.log
        exact, near, tokens = 0, None, None
        if digest.count:
            exact = across.find_repeats(digest, log)
            near = self._compare(dataset, tuple(probes))
            across.find_split_groups(digest, group_by, log)
            if digest.task != "chat":
                label_checks.find_mixed_kinds(digest, log)
                label_checks.find_missing_classes(digest, log)
                if digest.task != "regress":
                    label_checks.find_twin_spellings(digest, log)
            label_checks.find_conflicts(digest, log)
            if dataset is not None and self.tokenizer is not None and max_tokens is not None:
                tokens = self._count_tokens(dataset, max_tokens, system)
        return Audit(
            source=self.source,
            row_count=digest.count,
            findings=log.findings(),
            rows_by_code=log.rows_by_code(),
            error_rows=log.rows_by_code("error"),
            facts=gather_facts(
                digest,
                seen_as=seen_as,
                token_lengths=tokens.lengths if tokens else None,
                over_limit=tokens.over_limit if tokens else 0,
                max_tokens=max_tokens,
                exact=exact,
                near=near,
            ),
        )

    def _compare(self, dataset: Dataset | None, probes: Sequence[str]) -> int | None:
        """Look for near repeats, leaks and stated labels; give the number of near repeats."""
        digest, log = self.digest, self.log
        if digest.task == "image":
            across.find_leaks(digest, probes, log)
            return None
        texts: Sequence[str] = self.texts if dataset is None else RowTexts(dataset)
        asked: Sequence[str] = self.asked if dataset is None else RowTexts(dataset, question_text)

        def select(rows: list[int]) -> Any:
            return [asked[row] for row in rows] if dataset is None else dataset.select(rows)

        across.find_leaks(digest, probes, log, select=select)
        if digest.task != "regress":
            label_checks.find_stated_labels(digest, asked, log)
        return across.find_near_repeats(digest, texts, log)

    def _count_tokens(
        self, dataset: Dataset, max_tokens: int, system: str | None
    ) -> TokenFacts | None:
        digest, log, tokenizer = self.digest, self.log, self.tokenizer
        if digest.task == "image":
            return None
        if digest.task != "chat":
            return check_text_lengths(dataset, digest, tokenizer, max_tokens, log)
        if not check_template(dataset, digest, tokenizer, log, system=system):
            return None
        faulty = {row for rows in log.rows_by_code("error").values() for row in rows}
        return check_tokens(
            dataset, digest, tokenizer, max_tokens, log, faulty=faulty, system=system
        )


def _undecoded(dataset: Dataset) -> Dataset:
    """Give images as they lie in their files: the audit compares bytes, not pixels."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _task_of(columns: Iterable[str]) -> str:
    """Tell what rows are for from their columns; rows with neither are for chat, and faulty."""
    named = set(columns)
    if "messages" in named:
        return "chat"
    if "image" in named:
        return "image"
    return ("regress" if "score" in named else "classify") if "text" in named else "chat"
