"""The catalog's questions: multiple-choice items of probes, and questions with their answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftkit.catalog_rows import Row, conversation, json_lines
from sftkit.errors import FetchError
from sftkit.records import ChoiceItem

_OPTION = re.compile(r"^([A-H])\.\s?(.*)$")


# ---- multiple choice ----


def choice_items(path: Path) -> list[ChoiceItem]:
    """Read multiple-choice rows: `question`, `options` ("A. …" lines) and `answer` ("B. …").

    A `passage` comes before its question. An item that repeats an earlier one, whichever option it
    names, is left out: it would count twice.

    Raises:
        FetchError: More than 1 in 100 rows do not parse; such rows are otherwise left out.
    """
    items: dict[tuple[str, tuple[str, ...]], ChoiceItem] = {}
    skipped = []
    total = 0
    for total, row in enumerate(json_lines(path), start=1):
        item = parse_choice(row)
        if item is None:
            skipped.append(total)
        else:
            items.setdefault((item.question, item.options), item)
    if len(skipped) * 100 > total - len(skipped):
        raise FetchError(
            f"{path.name}: {len(skipped)} of {total} rows are not multiple choice (first: "
            f"{skipped[:3]}). Expected options as lines 'A. …', one as answer."
        )
    return list(items.values())


def parse_choice(row: dict[str, Any]) -> ChoiceItem | None:
    """Parse one row; None when its options or its answer do not have the expected form."""
    options = _parse_options(str(row.get("options", "")))
    answer = _OPTION.match(str(row.get("answer", "")).strip())
    question = str(row.get("question", "")).strip()
    if len(options) < 2 or answer is None or not question:
        return None
    position = ord(answer[1]) - ord("A")
    if position >= len(options) or options[position] != answer[2].strip():
        return None
    if passage := str(row.get("passage", "")).strip():
        question = f"{passage}\n{question}"
    return ChoiceItem(question=question, options=tuple(options), answer=position)


def _parse_options(text: str) -> list[str]:
    """Read "A. …" lines; a line that does not continue the alphabet belongs to the one before."""
    options: list[str] = []
    for line in text.strip().splitlines():
        found = _OPTION.match(line.strip())
        if found and ord(found[1]) - ord("A") == len(options):
            options.append(found[2].strip())
        elif options:
            options[-1] += "\n" + line.strip()
    return options


def medqa_rows(path: Path) -> list[Row]:
    """Give each examination question with its options, answered by the right option's words.

    A quotation mark alone on a last line, which 52 rows carry, is no part of an option.
    """
    rows = []
    for number, row in enumerate(json_lines(path), start=1):
        options = re.sub(r'\n"\s*$', "", row["options"])
        item = parse_choice({**row, "options": options})
        if item is not None:
            lettered = "\n".join(f"{chr(65 + i)}. {text}" for i, text in enumerate(item.options))
            rows.append(
                {
                    "id": f"medqa-{number}",
                    "messages": conversation(
                        f"{item.question}\n{lettered}", item.options[item.answer]
                    ),
                    "group": f"medqa-{number}",
                    "letter": chr(65 + item.answer),
                }
            )
    return rows


# ---- question and answer ----


def faq_rows(path: Path) -> list[Row]:
    """Give each question on building rules with its first answer.

    Six questions come twice, with answers that differ in detail; the second is left out.
    """
    rows: dict[str, Row] = {}
    for row in json_lines(path):
        question, answer = row["q"].strip(), row["a"].strip()
        rows.setdefault(
            question_form(question),
            {
                "id": row["id"],
                "messages": conversation(question, answer),
                "group": row["id"],
                "category": row["category"],
                "names_publisher": "yes" if "zaragoza" in answer.casefold() else "no",
            },
        )
    return list(rows.values())


def fiqa_rows(path: Path) -> list[Row]:
    """Give each question on personal finance with its answer, as written on a forum."""
    return [
        {
            "id": f"fiqa-{number}",
            "messages": conversation(row["question"].strip(), row["answer"].strip()),
            "group": f"fiqa-{number}",
        }
        for number, row in enumerate(json_lines(path), start=1)
    ]


def question_form(text: str) -> str:
    """Bring a question to the form in which two count as one: case, spacing, last marks."""
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def numbered_contexts(text: str) -> Iterator[str]:
    """Give the paragraphs of "Context (1): …" lines without their marks."""
    for line in text.strip().splitlines():
        if line.strip():
            yield re.sub(r"^Context \(\d+\):\s*", "", line.strip())
