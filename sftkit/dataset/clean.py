"""Clean a dataset into a new one, with a log that gives the reason for every change.

What one row says is repaired first (encoding, control characters and tokens, personal data), then
empty rows go, then rows that contradict each other, then copies. The dataset given is never
changed, and cleaning a cleaned dataset changes nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftkit.dataset.arrow_rows import make_folder
from sftkit.dataset.personal import KINDS, PersonalKind
from sftkit.dataset.repair import Repair, make_repair
from sftkit.dataset.repeats import Call, find_contradicted, find_copies, find_near_copies
from sftkit.dataset.texts import RowTexts
from sftkit.errors import DataError, SettingsError, near_names

if TYPE_CHECKING:
    from datasets import Dataset

Reason = Literal[
    "encoding", "control", "personal", "empty", "conflict", "exact duplicate", "near duplicate"
]
_BATCH = 1000
_EXCERPT = 160


@dataclass(frozen=True, kw_only=True)
class CleanSettings:
    """What cleaning does.

    Attributes:
        encoding: Repair text that was decoded wrongly (Ã© for é).
        control: Remove control characters, and control tokens of the model.
        personal: Kinds of personal data to mask (`personal.KINDS`). None by default: masking
            changes what is learned, and in technical texts an address is often the subject.
        empty: Drop rows without text, and conversations with no reply or an empty one.
        conflicts: What becomes of rows with the same text and different labels or scores: drop
            them all, keep them all, or keep those of the majority (none, when there is no single
            one). Conversations do not conflict: a question may have several good answers.
        duplicates: near drops exact and near duplicates, exact only exact ones, keep none.
        threshold: Least Jaccard similarity of near duplicates.
        seed: Seed of their hash functions.
    """

    encoding: bool = True
    control: bool = True
    personal: tuple[PersonalKind, ...] = ()
    empty: bool = True
    conflicts: Literal["drop", "keep", "majority"] = "drop"
    duplicates: Literal["near", "exact", "keep"] = "near"
    threshold: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if not 0 < self.threshold <= 1:
            raise SettingsError(
                f"CleanSettings.threshold must be above 0 and at most 1, got {self.threshold}."
            )
        if isinstance(self.personal, str):
            raise SettingsError(
                f"CleanSettings.personal takes several kinds, got {self.personal!r}. Write "
                f"({self.personal!r},)."
            )
        for name, given, valid in (
            ("conflicts", (self.conflicts,), ("drop", "keep", "majority")),
            ("duplicates", (self.duplicates,), ("near", "exact", "keep")),
            ("personal", self.personal, KINDS),
        ):
            for value in given:
                if value not in valid:
                    raise SettingsError(
                        f"CleanSettings.{name} does not know {value!r}.{near_names(value, valid)}"
                    )


@dataclass(frozen=True, kw_only=True)
class CleanStep:
    """What was done to one row, and why.

    Attributes:
        row: Position in the dataset that was given.
        id: The row's id, or empty.
        place: Where it was read from, or empty.
        action: dropped or changed.
        reason: The kind of reason.
        detail: The reason in words.
        before: Around the first change, what stood there. Empty for dropped rows, and where
            personal data was masked: the log must not hold what the data no longer does.
        after: Around the first change, what stands there now.
    """

    row: int
    id: str
    place: str
    action: Literal["dropped", "changed"]
    reason: Reason
    detail: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned dataset and how it came to be.

    Attributes:
        dataset: The new dataset, with the columns of the old.
        log: One step for each row dropped and each reason for which a row was changed, by row.
        rows_before: Rows of the dataset that was given.
    """

    dataset: Dataset
    log: tuple[CleanStep, ...]
    rows_before: int

    @property
    def counts(self) -> dict[str, int]:
        """Count the rows by what was done and why, e.g. {"dropped: empty": 3}."""
        steps = {(step.row, step.action, step.reason) for step in self.log}
        return dict(sorted(Counter(f"{action}: {why}" for _, action, why in steps).items()))

    def __str__(self) -> str:
        done = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        return f"{self.rows_before:,} rows in, {len(self.dataset):,} out; {done or 'no change'}."

    def write(self, folder: str | Path, *, format: Literal["jsonl", "parquet"] = "jsonl") -> Path:
        """Write the data, the log (changes.jsonl) and the counts (summary.json) to a new folder.

        The folder appears whole or not at all.

        Args:
            folder: A folder that does not exist or is empty.
            format: data.jsonl, which any editor opens, or data.parquet (needed for images).

        Returns:
            The data file.

        Raises:
            DataError: The folder holds something (nothing is ever overwritten), cannot be
                written, or the rows have images and are to be JSONL.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(
                f"{folder} exists and is not an empty folder. Cleaned data is written to a new "
                "folder, so that nothing is overwritten: give another name."
            )
        if format not in ("jsonl", "parquet"):
            raise DataError(f"format must be jsonl or parquet, got {format!r}.")
        if format == "jsonl" and "image" in self.dataset.column_names:
            raise DataError("Images cannot be written as JSONL. Use format='parquet'.")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".clean-") as draft:
                self._write_files(Path(draft), format)
                folder.mkdir(exist_ok=True)
                for path in sorted(Path(draft).iterdir()):
                    path.replace(folder / path.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror or error}.") from error
        return folder / f"data.{format}"

    def _write_files(self, folder: Path, format: str) -> None:
        data = folder / f"data.{format}"
        if format == "parquet":
            self.dataset.to_parquet(str(data))
        else:
            _write_lines(data, self.dataset.with_format(None))
        _write_lines(folder / "changes.jsonl", (asdict(step) for step in self.log))
        summary = {
            "rows_before": self.rows_before,
            "rows_after": len(self.dataset),
            "counts": self.counts,
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def clean_dataset(
    dataset: Dataset, settings: CleanSettings | None = None, *, tokenizer: Any = None
) -> Cleaned:
    """Clean a dataset into a new one.

    Copies: of rows that say the same the first stays; of rows with a label only those with the
    same label are copies, and a conversation is compared whole. Every near duplicate that is
    dropped was compared with a row that stays. Where a column split says what is tested, a
    tested row stays rather than its copy in train.

    Rows over the token limit are left alone, and so are malformed ones: `audit` names them.
    Rows are drawn in batches and written to a temporary Arrow file; memory grows with the
    number of changes.

    Args:
        dataset: Rows with messages or text, and id, place, label, score, split where known.
        settings: What to do; None takes the defaults.
        tokenizer: The model's, for its control tokens; None takes the usual form <|…|>.

    Returns:
        The new dataset and the log.

    Raises:
        DataError: The rows have neither messages nor text.
    """
    settings = settings or CleanSettings()
    rows = _Rows(dataset)
    log: list[CleanStep] = []
    written = _repair_rows(dataset, make_repair(settings, tokenizer), rows, log)
    left: Sequence[int] = range(len(written))
    stages: list[tuple[Reason, Callable[[Dataset, Call], Mapping[int, str]]]] = []
    if settings.empty:
        stages.append(("empty", lambda part, call: _find_empty(part)))
    if (policy := settings.conflicts) != "keep":
        stages.append(("conflict", lambda part, call: find_contradicted(part, policy)))
    if settings.duplicates != "keep":
        stages.append(("exact duplicate", find_copies))
    if settings.duplicates == "near":
        stages.append(
            (
                "near duplicate",
                lambda part, call: find_near_copies(part, call, settings.threshold, settings.seed),
            )
        )
    for reason, find in stages:
        part = written if len(left) == len(written) else written.select(left)
        if dropped := find(part, partial(rows.call, left)):
            log.extend(rows.drop(reason, {left[row]: why for row, why in dropped.items()}))
            left = [position for row, position in enumerate(left) if row not in dropped]
    cleaned = written if len(left) == len(written) else written.select(left)
    log.sort(key=lambda step: step.row)  # stable: the reasons of a row stay in order
    return Cleaned(dataset=cleaned, log=tuple(log), rows_before=len(dataset))


class _Rows:
    """Ids and places of the rows that were given, for the log."""

    def __init__(self, dataset: Dataset) -> None:
        plain = dataset.with_format(None)
        self._columns = [
            plain[name] if name in plain.column_names else None for name in ("id", "place")
        ]

    def name(self, positions: Sequence[int]) -> list[tuple[str, str]]:
        """Give id and place of rows, empty where unknown."""
        drawn = [
            [""] * len(positions) if column is None else column[list(positions)]
            for column in self._columns
        ]
        return [(str(i or ""), str(place or "")) for i, place in zip(*drawn, strict=True)]

    def call(self, left: Sequence[int], numbers: Sequence[int]) -> list[str]:
        """Name in a sentence rows by their numbers among those left."""
        positions = [left[number] for number in numbers]
        return [
            place or (f"the row with id {name}" if name else f"row {position + 1}")
            for position, (name, place) in zip(positions, self.name(positions), strict=True)
        ]

    def drop(self, reason: Reason, dropped: Mapping[int, str]) -> Iterator[CleanStep]:
        """Give one step for each dropped row."""
        positions = list(dropped)
        for position, (name, place) in zip(positions, self.name(positions), strict=True):
            yield CleanStep(
                row=position,
                id=name,
                place=place,
                action="dropped",
                reason=reason,
                detail=dropped[position],
            )


# ---- what one row says ----


def _repair_rows(dataset: Dataset, repair: Repair, rows: _Rows, log: list[CleanStep]) -> Dataset:
    """Write all rows, repaired, into a temporary Arrow file that goes when Python ends."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    column = next((name for name in ("messages", "text") if name in dataset.column_names), None)
    if column is None or not len(dataset):
        return dataset
    path = str(make_folder() / "clean.arrow")
    tables = dataset.with_format("arrow")
    with ArrowWriter(path=path, features=dataset.features) as writer:
        for start in range(0, len(dataset), _BATCH):
            table: pa.Table = tables[start : start + _BATCH]
            values = table[column].to_pylist()
            changes = {}
            for offset, value in enumerate(values):
                values[offset], steps = _repair_value(value, repair)
                if steps:
                    changes[start + offset] = steps
            if changes:
                place = table.column_names.index(column)
                field = table.schema.field(column)
                table = table.set_column(place, field, pa.array(values, type=field.type))
                log.extend(_change_steps(changes, rows))
            writer.write_table(table)
        writer.finalize()
    return Dataset.from_file(path)


def _repair_value(value: Any, repair: Repair) -> tuple[Any, dict[str, tuple[str, str, str]]]:
    """Repair a text or the texts of all turns; by reason: detail, text before, text after."""
    if isinstance(value, str):
        repaired, done = repair(value)
        return repaired, {why: (what, value, repaired) for why, what in done.items()}
    if not isinstance(value, list):
        return value, {}
    turns = list(value)
    steps: dict[str, tuple[str, str, str]] = {}
    for number, turn in enumerate(turns):
        said = turn.get("content") if isinstance(turn, Mapping) else None
        if isinstance(said, str):
            repaired, done = repair(said)
            turns[number] = {**turn, "content": repaired}
            for why, what in done.items():
                steps.setdefault(why, (what, said, repaired))
    return turns, steps


def _change_steps(
    changes: Mapping[int, Mapping[str, tuple[str, str, str]]], rows: _Rows
) -> Iterator[CleanStep]:
    verbs = {"encoding": "repaired", "control": "removed", "personal": "masked"}
    names = rows.name(list(changes))
    for (position, steps), (name, place) in zip(changes.items(), names, strict=True):
        for why, (what, before, after) in steps.items():
            shown = ("", "") if "personal" in steps else _excerpts(before, after)
            yield CleanStep(
                row=position,
                id=name,
                place=place,
                action="changed",
                reason=why,  # type: ignore[arg-type]
                detail=f"{verbs[why]} {what}",
                before=shown[0],
                after=shown[1],
            )


def _excerpts(before: str, after: str) -> tuple[str, str]:
    pairs = enumerate(zip(before, after, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(0, first - _EXCERPT // 4)
    return before[start : start + _EXCERPT], after[start : start + _EXCERPT]


def _find_empty(dataset: Dataset) -> dict[int, str]:
    conversations = "messages" in dataset.column_names
    values = dataset.with_format(None)["messages"] if conversations else RowTexts(dataset)
    found: dict[int, str] = {}
    for start in range(0, len(values), _BATCH):
        for position, value in enumerate(values[start : start + _BATCH], start):
            why = _say_empty(value) if conversations else "" if value.strip() else "no text"
            if why:
                found[position] = why
    return found


def _say_empty(messages: Any) -> str:
    if not messages:
        return "no messages"
    replies = [turn.get("content") or "" for turn in messages if turn.get("role") == "assistant"]
    if not replies:
        return "no reply"
    return "" if all(reply.strip() for reply in replies) else "an empty reply"


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
