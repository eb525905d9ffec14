"""The faults a dataset can have: stable codes, severities, words, and a log that collects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sftkit.errors import DataError
from sftkit.records import Finding, Severity


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        severity: How bad it is, unless the finder says otherwise.
        message: What was found; {rows} becomes "1 row" or "5 rows", {detail} the first detail.
        fix: What to do about it.
    """

    severity: Severity
    message: str
    fix: str


FAULTS: Mapping[str, Fault] = {
    "D01": Fault(
        severity="error",
        message="not UTF-8 at byte {detail}",
        fix="Save the file again as UTF-8.",
    ),
    "D02": Fault(
        severity="error",
        message="begins with a UTF-16 byte-order mark",
        fix="Save the file again as UTF-8.",
    ),
    "D03": Fault(
        severity="information",
        message="begins with a UTF-8 byte-order mark, which was skipped",
        fix="Nothing has to be done.",
    ),
    "D04": Fault(
        severity="error",
        message="{rows} with more fields than the header: the first has {detail}",
        fix="Put fields that hold commas into double quotes.",
    ),
    "D05": Fault(
        severity="error",
        message="{rows} with fewer fields than the header: the first lacks {detail}",
        fix="Complete the row, or write an empty field for what is missing.",
    ),
    "D06": Fault(
        severity="error",
        message="the quote opened on line {detail} never closes",
        fix='Close it, and double quotes inside a field ("").',
    ),
    "D07": Fault(
        severity="error",
        message="one column only; the delimiter looks like {detail}",
        fix="Save the file with commas (or name a file with tabs .tsv).",
    ),
    "D08": Fault(
        severity="error",
        message="column {detail} stands twice in the header",
        fix="Rename or delete one of them.",
    ),
    "D09": Fault(
        severity="error", message="the file is empty", fix="Check the path or the export."
    ),
    "D10": Fault(
        severity="error",
        message="0 rows: there is nothing after the header",
        fix="Check the export.",
    ),
    "D14": Fault(
        severity="warning",
        message="control characters in {rows}",
        fix="Remove them; a tokenizer turns each into noise.",
    ),
    "D15": Fault(
        severity="error",
        message="{rows} not readable as JSON; the first: {detail}",
        fix="Complete or delete the line (a partial download is often cut off at its end).",
    ),
    "D16": Fault(
        severity="error",
        message="{rows} with one key given twice: the first {detail}",
        fix="Keep one of the two values.",
    ),
    "D17": Fault(
        severity="error",
        message="{rows} with half a character (a lone surrogate such as {detail})",
        fix="Write the whole character, or remove it.",
    ),
    "D19": Fault(
        severity="error",
        message="{rows} whose messages are no list of turns; the first: {detail}",
        fix='Write messages as a list of {{"role": …, "content": …}}.',
    ),
    "D20": Fault(
        severity="error",
        message="{rows} with a turn that has no text; the first: {detail}",
        fix="Write the text, or delete the row.",
    ),
    "D21": Fault(
        severity="error",
        message="unknown role in {rows}; the first: {detail}",
        fix="Use system, user, assistant or tool.",
    ),
    "D22": Fault(
        severity="information",
        message="seen as {detail} and converted to messages",
        fix="Nothing has to be done if that is right.",
    ),
    "D23": Fault(
        severity="error",
        message="empty reply in {rows}",
        fix="Write the reply or delete the row: training on it teaches silence.",
    ),
    "D24": Fault(
        severity="error",
        message="roles do not alternate in {rows}; the first: {detail}",
        fix="Begin with user (a system turn may stand before it), then assistant and user in turn.",
    ),
    "D25": Fault(
        severity="error",
        message="nothing to learn in {rows}: {detail}",
        fix="Add the reply that is to be learned, or delete the row.",
    ),
    "D26": Fault(
        severity="error",
        message="{rows} with content in several parts; the first: {detail}",
        fix="This kit trains on text only: write the content as one text.",
    ),
    "D31": Fault(
        severity="error",
        message="a control token of the model in {rows}; the first: {detail}",
        fix="Remove it: inside text it would become a command to the model.",
    ),
    "D33": Fault(
        severity="warning",
        message="word-for-word repeats of an earlier row in {rows}",
        fix="Delete the copies, unless they are meant to count more.",
    ),
    "D34": Fault(
        severity="error",
        message="in train, {rows} with the question of {detail}: scores would be invalid",
        fix="Delete these rows from train.",
    ),
    "D38": Fault(
        severity="warning",
        message="groups that stand in more than one split, with {rows}; the first: {detail}",
        fix="Keep a group in one split, or expect a score for known groups only.",
    ),
}


@dataclass
class _Entry:
    places: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    detail: str = ""
    severity: Severity = "error"
    message: str = ""


class FaultLog:
    """Collects faults row by row; gives one finding for each code and field."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Entry] = {}

    def add(
        self,
        code: str,
        place: str,
        *,
        row: int | None = None,
        of: str = "",
        detail: str = "",
        severity: Severity | None = None,
        message: str | None = None,
    ) -> None:
        """Note one occurrence.

        Args:
            code: Stable code, e.g. D23.
            place: file:line or row number.
            row: Position of the row, so that it can be dropped; None for a fault of the whole file.
            of: Column or part of the row it concerns.
            detail: Fills {detail} of the message; the first one counts.
            severity: Overrides the usual one.
            message: Overrides the usual one.
        """
        fault = FAULTS[code]
        entry = self._entries.get((code, of))
        if entry is None:
            entry = _Entry(detail=detail, severity=severity or fault.severity)
            entry.message = message or fault.message
            self._entries[(code, of)] = entry
        if row is None:
            entry.places.append(place)
        elif not entry.rows or entry.rows[-1] != row:  # one row counts once
            entry.places.append(place)
            entry.rows.append(row)

    def findings(self) -> tuple[Finding, ...]:
        """Give all findings, by code."""
        return tuple(
            Finding(
                code=code,
                severity=entry.severity,
                where=tuple(entry.places[:3]),
                field=of,
                count=len(entry.places),
                message=entry.message.format(
                    rows=_count_rows(len(entry.places)), detail=entry.detail
                ),
                fix=FAULTS[code].fix.format(),
            )
            for (code, of), entry in sorted(self._entries.items())
        )

    def rows_by_code(self) -> dict[str, tuple[int, ...]]:
        """Give, for each code, the positions of all its rows."""
        found: dict[str, set[int]] = {}
        for (code, _), entry in self._entries.items():
            found.setdefault(code, set()).update(entry.rows)
        return {code: tuple(sorted(rows)) for code, rows in sorted(found.items())}


def _count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def raise_on_errors(findings: Iterable[Finding], *, source: str = "The dataset") -> None:
    """Raise one error that lists every finding of severity error.

    Raises:
        DataError: There is one; it carries all findings, warnings too.
    """
    findings = tuple(findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        count = f"{len(errors)} fault{'s' if len(errors) > 1 else ''}"
        lines = "\n".join(f"  - {finding}" for finding in errors)
        raise DataError(f"{source} has {count}:\n{lines}", findings)
