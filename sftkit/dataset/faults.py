"""The faults a dataset can have: stable codes, severities, words, and a log that collects them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sftkit.errors import DataError
from sftkit.records import Finding, Severity


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        severity: How bad it is, unless the finder says otherwise.
        message: What was found; {rows} becomes "1 row" or "5 rows", {texts} "1 text" or "5 texts",
            {detail} the first detail.
        fix: What to do about it.
    """

    severity: Severity
    message: str
    fix: str


FAULTS: Mapping[str, Fault] = {
    "D01": Fault(
        severity="error",
        message="not UTF-8 at byte {detail}",
        fix="Save the file again as UTF-8, or name its encoding (encoding=, --encoding).",
    ),
    "D02": Fault(
        severity="error",
        message="begins with a UTF-16 byte-order mark",
        fix="Save the file again as UTF-8, or name its encoding (encoding=, --encoding).",
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
        severity="warning",
        message="the delimiter looks like {detail} and the file was read so",
        fix="Nothing has to be done if that is right; else save the file with commas.",
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
    "D11": Fault(
        severity="information",
        message="{texts} such as {detail} that other tools read as missing; here text stays text",
        fix="Nothing has to be done if it is meant as text; leave the field empty if it is not.",
    ),
    "D12": Fault(
        severity="error",
        message="{rows} without a {detail}",
        fix="Fill it in, or delete the row: there is nothing to learn in it.",
    ),
    "D13": Fault(
        severity="warning",
        message="{rows} with a whole number over 64 bits, the first {detail}: other tools round it",
        fix='Put it into quotes ("…"), so that it is read as text.',
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
    "D18": Fault(
        severity="error",
        message="values of several kinds in one column: {detail}",
        fix="Write all of them in one way, all as words or all as numbers.",
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
    "D27": Fault(
        severity="warning",
        message="{rows} over {detail}",
        fix="Raise max_tokens, or shorten the rows: over-long rows are left out, never cut.",
    ),
    "D28": Fault(
        severity="error",
        message="nothing would be trained in {rows}: {detail}",
        fix="Write a reply with text in it, or delete the row.",
    ),
    "D29": Fault(
        severity="information",
        message="the chat template marks no answers (no generation block); {detail}",
        fix="Nothing has to be done; look at one row with show_mask to see what is learned.",
    ),
    "D30": Fault(
        severity="information",
        message="padding and end of text are one token, {detail}",
        fix="Nothing has to be done here; other trainers need a pad token of its own.",
    ),
    "D31": Fault(
        severity="error",
        message="a control token of the model in {rows}; the first: {detail}",
        fix="Remove it: inside text it would become a command to the model.",
    ),
    "D32": Fault(
        severity="information",
        message="the chat template adds to {rows} a system prompt nobody wrote: {detail}",
        fix="Keep it and use the model with it, or set system= to a prompt of your own.",
    ),
    "D33": Fault(
        severity="warning",
        message="an earlier row repeated, case and spacing aside, in {rows}; the first is {detail}",
        fix="Delete the copies, unless they are meant to count more.",
    ),
    "D34": Fault(
        severity="error",
        message="in train, {rows} with the question of {detail}: scores would be invalid",
        fix="Delete these rows from train.",
    ),
    "D35": Fault(
        severity="warning",
        message="the label stands in the text of {rows} ({detail})",
        fix="Take it out of the text, unless it will stand there in use too.",
    ),
    "D36": Fault(
        severity="error",
        message="one class only: every label is {detail}",
        fix="Add rows of the other classes: with one there is nothing to tell apart.",
    ),
    "D37": Fault(
        severity="warning",
        message="texts with more than one label, in {rows}; the first: {detail}",
        fix="Decide on one label for each text, or delete these rows.",
    ),
    "D38": Fault(
        severity="warning",
        message="groups that stand in more than one split, with {rows}; the first: {detail}",
        fix="Keep a group in one split, or expect a score for known groups only.",
    ),
}


_SHOWN = 3
"""Places a finding names; the count says how many there are."""


@dataclass
class _Entry:
    detail: str
    severity: Severity
    message: str
    fix: str
    count: int = 0
    places: list[str] = field(default_factory=list)
    # Eight bytes a row: a fault may concern each of a million rows.
    rows: array[int] = field(default_factory=lambda: array("q"))


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
        fix: str | None = None,
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
            fix: Overrides the usual one.
        """
        entry = self._entries.get((code, of))
        if entry is None:
            fault = FAULTS[code]
            entry = _Entry(
                detail, severity or fault.severity, message or fault.message, fix or fault.fix
            )
            self._entries[(code, of)] = entry
        if row is not None:
            if entry.rows and entry.rows[-1] == row:  # one row counts once
                return
            entry.rows.append(row)
        entry.count += 1
        if len(entry.places) < _SHOWN:
            entry.places.append(place)

    def findings(self) -> tuple[Finding, ...]:
        """Give all findings, by code."""
        return tuple(
            Finding(
                code=code,
                severity=entry.severity,
                where=tuple(entry.places),
                field=of,
                count=entry.count,
                message=entry.message.format(
                    rows=_count(entry.count, "row"),
                    texts=_count(entry.count, "text"),
                    detail=entry.detail,
                ),
                fix=entry.fix.format(),
            )
            for (code, of), entry in sorted(self._entries.items())
        )

    def rows_by_code(self, severity: Severity | None = None) -> dict[str, tuple[int, ...]]:
        """Give, for each code, the positions of all its rows.

        Args:
            severity: Only those of findings of this severity; None gives all.
        """
        found: dict[str, set[int]] = {}
        for (code, _), entry in self._entries.items():
            if severity in (None, entry.severity):
                found.setdefault(code, set()).update(entry.rows)
        return {code: tuple(sorted(rows)) for code, rows in sorted(found.items())}


def _count(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"


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
