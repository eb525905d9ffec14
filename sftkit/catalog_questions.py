"""Questions: items of probes, questions with their answers, and files of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from sftkit.catalog_rows import Row, conversation, json_lines
from sftkit.errors import FetchError
from sftkit.records import ChoiceItem

_FAULTS_SHOWN = 5
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


# ---- files of one's own ----


def is_own_file(name: str) -> bool:
    """Say whether a name is meant as the path of a file, not as a name of the catalog."""
    return bool(Path(name).suffix) or len(Path(name).parts) > 1


def own_items(path: Path) -> list[ChoiceItem]:
    """Read one's own probe: JSON Lines with `question`, `options` (a list) and `answer`.

    The answer is the right option's words, or its position from 0. A repeated question is left out.

    Raises:
        FetchError: The file cannot be read, or lines of it are no questions: all are named.
    """
    items: dict[tuple[str, tuple[str, ...]], ChoiceItem] = {}
    faults = []
    for number, row in _own_rows(path):
        item = own_item(row)
        if isinstance(item, str):
            faults.append(f"line {number}: {item}")
        else:
            items.setdefault((item.question, item.options), item)
    _refuse_faults(path, faults, '{"question": "…", "options": ["…", "…"], "answer": 0}')
    if not items:
        raise FetchError(f"{path} holds no question.")
    return list(items.values())


def own_item(row: Any) -> ChoiceItem | str:
    """Turn one row into a question; or say what is wrong with it."""
    if not isinstance(row, dict):
        return row if isinstance(row, str) else f"expected an object, got {_shown(row)}"
    question, options, answer = (row.get(name) for name in ("question", "options", "answer"))
    if not isinstance(question, str) or not question.strip():
        return f"question must be text, got {_shown(question)}"
    if not isinstance(options, list) or not all(isinstance(o, str) and o.strip() for o in options):
        return f"options must be a list of texts, got {_shown(options)}"
    words = [option.strip() for option in options]
    if len(words) < 2 or len(set(words)) < len(words):
        return f"options must be two or more, all different, got {_shown(options)}"
    if isinstance(answer, str) and answer.strip() in words:
        answer = words.index(answer.strip())
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(words):
        return (
            f"answer must be one of the options or a position from 0 to {len(words) - 1}, got "
            f"{_shown(answer)}"
        )
    return ChoiceItem(question=question.strip(), options=tuple(words), answer=answer)


def own_passages(path: Path) -> list[str]:
    """Read one's own general text: JSON Lines with `text`, or a text's paragraphs, each once.

    Raises:
        FetchError: The file cannot be read, or lines of it hold no text: all are named.
    """
    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        paragraphs = re.split(r"\n\s*\n", _own_text(path))
        found = [text.strip() for text in paragraphs if text.strip()]
    else:
        rows = list(_own_rows(path))
        texts = [row.get("text") if isinstance(row, dict) else None for _, row in rows]
        found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
        faults = [
            f"line {number}: "
            + (row if isinstance(row, str) else f"expected text under `text`, got {_shown(row)}")
            for (number, row), text in zip(rows, texts, strict=True)
            if not isinstance(text, str) or not text.strip()
        ]
        _refuse_faults(path, faults, '{"text": "…"}')
    if not found:
        raise FetchError(f"{path} holds no text. Expected paragraphs between empty lines.")
    return list(dict.fromkeys(found))


def _own_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Give every line that is not empty with its number; for one that is no JSON, the fault."""
    for number, line in enumerate(_own_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON: {error}"
            else:
                yield number, [row] if isinstance(row, str) else row  # a str would be a fault


def _own_text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FetchError(f"{path} line {line}: not UTF-8. Save the file as UTF-8.") from error


def _refuse_faults(path: Path, faults: Sequence[str], expected: str) -> None:
    if faults:
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise FetchError(
            f"{path} has {len(faults)} faulty lines: {'; '.join(faults[:_FAULTS_SHOWN])}{more}. "
            f"Expected one object a line, as {expected}."
        )


def _shown(value: Any) -> str:
    return shorten(repr(value), 60, placeholder="…")
