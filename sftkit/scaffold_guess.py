"""From a stranger's file to a recipe: task, columns, division, model and settings, each guessed.

Every guess has its reason in words, so that a user can see it and say otherwise. What is guessed
is tried: the rows are read, audited and divided as a run would do it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.dataset.audit import Audit, audit_file
from sftkit.dataset.faults import raise_on_errors
from sftkit.dataset.folders import SPLIT_WORDS
from sftkit.dataset.read import open_source, read_dataset
from sftkit.errors import DataError
from sftkit.prepare import audited_splits
from sftkit.scaffold_settings import (
    SMALL_CHAT,
    SMALL_ENCODER,
    Lengths,
    Machine,
    make_recipe,
    pick_model,
    this_machine,
)
from sftkit.settings import (
    DataSettings,
    Recipe,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from sftkit.records import Finding

_FEW_ROWS = 12
_MOST_FAULTY = 0.5
_MOST_ALONE = 0.9  # share of groups among rows from which rows stand alone
_SAMPLE = 2000


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A recipe for a file, and why it is so.

    Attributes:
        recipe: What a run would do; `data.source` is the file as it was given.
        audit: What is in the file, and what is wrong with it.
        splits: Rows per split.
        examples: The first training rows, in canonical form.
        test_texts: Texts of the first test rows; of conversations the last question.
        reasons: What was guessed, and why, in order: (what, guess and reason).
        notes: What the user should know before the first run.
    """

    recipe: Recipe
    audit: Audit
    splits: Mapping[str, int]
    examples: tuple[Mapping[str, Any], ...]
    test_texts: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def guess_recipe(
    name: str,
    data: str | Path,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    model: str | None = None,
    machine: Machine | None = None,
) -> Guess:
    """Read and audit a file, and write down what a first run on it would be.

    Args:
        name: Of the recipe.
        data: A file, a folder, a catalog name or a hub id.
        task: chat, classify, regress or image; None takes what the rows are made for.
        columns: Column of each role, where the guess is wrong.
        encoding: Of a text file; None finds it out where the file is not UTF-8.
        model: A model's name; None takes one that fits.
        machine: What it has to fit on; None looks at this one.

    Raises:
        DataError: Nothing can be learned from it as it is, with what to do about it.
        ModelError: No model fits, or images came without a model.
    """
    source, notes = str(data), list[str]()
    given: dict[str, Any] = {"task": task, "columns": columns}
    audit = audit_file(source, **given, encoding=encoding)
    if encoding is None and (found := _other_encoding(audit)):
        encoding = found
        audit = audit_file(source, **given, encoding=encoding)
        notes.append(f"The file is not UTF-8; it was read as {encoding}. Check its accents.")
    plan = open_source(source, **given, encoding=encoding)
    if not plan.format:
        raise_on_errors(audit.findings, source=source)
        raise DataError(f"{source}: nothing to learn from was found. Look at it: sftkit audit FILE")
    kept = audit.row_count - len(_faulty_rows(audit))
    if audit.row_count and kept < audit.row_count * (1 - _MOST_FAULTY):
        raise_on_errors(audit.findings, source=source)
    if kept < _FEW_ROWS:
        raise DataError(
            f"{source}: {kept} good rows are too few to learn from and to test on. "
            f"Have {_FEW_ROWS} or more; 200 show something."
        )
    settings = DataSettings(
        source=source,
        task=plan.task,
        format=plan.format,  # type: ignore[arg-type]
        columns=dict(plan.columns) or None,
        encoding=encoding,
        faulty_rows="drop" if _faulty_rows(audit) else "refuse",
        test_fraction=0.3 if kept < 100 else 0.2 if kept < 200 else 0.15,
    )
    if settings.faulty_rows == "drop":
        notes.append(
            f"{len(_faulty_rows(audit)):,} of {audit.row_count:,} rows have errors and are left "
            f"out (data.faulty_rows: drop). Read them: sftkit audit {source}"
        )
    rows = read_dataset(
        source, task=plan.task, format=plan.format, columns=settings.columns, encoding=encoding
    )
    machine = machine or this_machine()
    words = _words(rows, plan.task)
    settings = dataclasses.replace(settings, max_tokens=_max_tokens(words, plan.task))
    chosen, why = pick_model(plan.task, machine, model, settings.max_tokens)
    settings, divided, why_divided = _divide(settings, rows, audit)
    counts = {part: len(getattr(divided, part)) for part in ("train", "validation", "test")}
    recipe = make_recipe(name, settings, chosen, machine, words=words, rows=counts["train"])
    notes += _remarks(recipe, words, counts, audit)
    shown = ", ".join(f"{role}: {column}" for role, column in plan.columns.items())
    reasons = [
        ("task", f"{plan.task}, because the rows were seen as {plan.seen_as or plan.format}"),
        ("columns", shown or "as they are named"),
        ("division", why_divided),
        ("model", why),
        ("length", f"{settings.max_tokens} tokens at most; longer rows are left out, never cut"),
        ("training", _in_words(recipe)),
    ]
    if encoding is not None:
        reasons.insert(1, ("encoding", encoding))
    examples = tuple(dict(row) for row in itertools.islice(divided.train, 8))
    return Guess(
        recipe=recipe,
        audit=audit,
        splits=counts,
        examples=examples,
        test_texts=tuple(_asked(row) for row in itertools.islice(divided.test, 100)),
        reasons=tuple(reasons),
        notes=tuple(notes),
    )


def _asked(row: Mapping[str, Any]) -> str:
    """Take the text a model is given."""
    if "messages" in row:
        asked = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
        return str(asked[-1]) if asked else ""
    return str(row.get("text") or "")


# ---- reading the file ----


def _other_encoding(audit: Audit) -> str | None:
    """Take the encoding that the audit's finding names."""
    pattern = re.compile(r"encoding='([\w-]+)'|begins with a (UTF-\d+) byte-order mark")
    for finding in audit.findings:
        if finding.code in ("D01", "D02") and (named := pattern.search(str(finding))):
            return (named[1] or named[2]).lower()
    return None


def _faulty_rows(audit: Audit) -> set[int]:
    return {row for rows in audit.error_rows.values() for row in rows}


def _words(rows: Dataset, task: str) -> Lengths:
    """Measure the first rows; nearly all of the longest ones are kept."""
    if task == "image" or not len(rows):
        return Lengths.nothing()
    lengths, answers, letters, foreign = list[int](), list[int](), 0, 0
    for row in itertools.islice(rows, _SAMPLE):
        texts = [turn["content"] for turn in row["messages"]] if task == "chat" else [row["text"]]
        # A script without spaces has about two characters to a word.
        lengths.append(sum(_count(text or "") for text in texts))
        answers.append(_count(texts[-1] or ""))
        joined = "".join(filter(None, texts))[:2000]
        letters += sum(char.isalpha() for char in joined)
        foreign += sum(char.isalpha() and ord(char) > 0x24F for char in joined)
    return Lengths(
        median=statistics.median(lengths),
        most=sorted(lengths)[int(0.99 * (len(lengths) - 1))],
        answer=statistics.median(answers),
        foreign=foreign / max(letters, 1),
    )


def _count(text: str) -> int:
    return max(len(text.split()), sum(ord(char) > 0x2E7F for char in text) // 2)


def _max_tokens(words: Lengths, task: str) -> int:
    """Give room for 99 of 100 rows: about 1.6 tokens a word, three where the script is foreign."""
    tokens = words.most * (1.6 + 2.4 * words.foreign) + (48 if task == "chat" else 8)
    return int(min(512, max(64, 32 * math.ceil(tokens / 32))))


def _divide(settings: DataSettings, rows: Dataset, audit: Audit) -> tuple[DataSettings, Any, str]:
    """Find a division that works: as the file says it, by label, or by question."""
    refused: DataError | None = None
    for trial, why in _divisions(settings, rows):
        try:
            _, splits, _ = audited_splits(trial, None)
        except DataError as error:
            refused = refused or error
            continue
        counts = [len(part) for part in (splits.train, splits.validation, splits.test)]
        if min(counts) >= 1 and counts[2] >= 2:
            said = ", ".join(
                f"{count:,} {part}"
                for count, part in zip(counts, ("train", "validation", "test"), strict=True)
            )
            return trial, splits, f"{why}: {said}"
    if refused is not None:
        raise refused
    raise DataError(
        f"{settings.source}: {audit.row_count} rows cannot be divided into train, validation and "
        "test rows. Have more rows, or rows of more questions."
    )


def _divisions(settings: DataSettings, rows: Dataset) -> Iterator[tuple[DataSettings, str]]:
    for column in (
        name for name in rows.column_names if name.lower() in ("split", "subset", "set")
    ):
        values = {str(value).strip().lower() for value in rows.unique(column)}
        if values <= set(SPLIT_WORDS) and {"train", "test"} <= {SPLIT_WORDS[v] for v in values}:
            yield (
                dataclasses.replace(settings, split_by=column),
                f"as the column {column} says",
            )
    # Rows that belong together, such as passages of one question, must not be on both sides.
    belongs = len(rows.unique("group")) < _MOST_ALONE * len(rows)
    if settings.task in ("classify", "image") and not belongs:
        yield (
            dataclasses.replace(settings, stratify_by="label"),
            "by chance, every label in its share",
        )
    what = "rows of one group" if belongs else "equal texts"
    what = "equal questions" if settings.task == "chat" else what
    yield settings, f"by chance, {what} together"
    larger = dataclasses.replace(settings, validation_fraction=0.2, test_fraction=0.25)
    yield larger, f"by chance, {what} together"


def _in_words(recipe: Recipe) -> str:
    train = recipe.train
    epochs = "1 epoch" if train.epochs == 1 else f"{train.epochs} epochs"
    said = f"{epochs} at a learning rate of {train.learning_rate:g}"
    if train.max_steps is not None:
        said += f", ended after {train.max_steps} steps so that a first run takes minutes"
    return said


def _remarks(
    recipe: Recipe, words: Lengths, counts: Mapping[str, int], audit: Audit
) -> Iterator[str]:
    if counts["test"] < 50:
        yield (
            f"{counts['test']} test rows show large effects only. The report says how small a "
            "change it could have seen."
        )
    if words.foreign > 0.3 and recipe.model.name in (SMALL_CHAT, SMALL_ENCODER):
        yield (
            f"Much of the text is not in Latin script, and {recipe.model.name} knows mostly "
            "English: it works as an exercise; for use take a model of that language (--model)."
        )
    if recipe.data.task == "chat" and recipe.evaluate.knowledge == "recognition":
        yield (
            "Answers are long, so knowledge is measured by recognising the right one among four "
            "(evaluate.knowledge: recognition)."
        )
    warnings = [f for f in audit.findings if f.severity == "warning"]
    if warnings:
        kinds = "1 kind" if len(warnings) == 1 else f"{len(warnings)} kinds"
        yield f"The audit warns of {kinds} of fault: {_listed(warnings)}."


def _listed(findings: list[Finding]) -> str:
    return ", ".join(f"{f.code} ({f.count:,} rows)" for f in findings[:6])


def relative_source(source: str, folder: Path) -> str:
    """Write a path so that a recipe in a folder finds it, also after both were moved together."""
    path = Path(source).expanduser()
    if not path.exists() or source in catalog.names():
        return source
    try:
        found = os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # another drive on Windows
        return str(path.resolve())
    found = found.replace(os.sep, "/")
    return found if found.startswith(".") else f"./{found}"
