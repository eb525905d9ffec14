"""The catalog's classification sets: a text or an image, and the class it belongs to."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from xml.etree import ElementTree  # only ever reads files whose SHA-256 was checked

from sftkit.catalog_questions import numbered_contexts, question_form
from sftkit.catalog_rows import Row, json_lines


def privacy_rows(path: Path) -> list[Row]:
    """Give a question beside one passage of a privacy policy: does the passage bear on it?

    Groups hold all pairs of one question, so that test questions are unseen.
    """
    words = {"True": "relevant", "False": "irrelevant"}
    groups: dict[str, int] = {}
    rows = []
    for number, row in enumerate(json_lines(path), start=1):
        question, passage = row["question"].strip(), row["context"].strip()
        group = groups.setdefault(question_form(question), len(groups) + 1)
        rows.append(
            {
                "id": f"privacy-{number}",
                "text": f"Question: {question}\nPolicy: {passage}",
                "label": words[row["answer"]],
                "group": f"question-{group}",
            }
        )
    return rows


def pubmedqa_rows(path: Path) -> list[Row]:
    """Give a research question with its abstract (its conclusion left out): yes, no or maybe."""
    return [
        {
            "id": f"pubmedqa-{number}",
            "text": f"{row['question'].strip()}\n{' '.join(numbered_contexts(row['passage']))}",
            "label": row["answer"],
            "group": f"pubmedqa-{number}",
        }
        for number, row in enumerate(json_lines(path), start=1)
    ]


def icd10_rows(path: Path) -> list[Row]:
    """Give each distinct diagnosis title with its chapter's name.

    A title that stands again deeper in the tree, in the same words, is left out. Groups are the
    categories of three characters: titles of one category differ by a word or two.
    """
    rows: dict[str, Row] = {}
    for chapter in _chapters(path):
        name = _child_text(chapter, "desc")
        for diagnosis in chapter.iter("diag"):
            code, title = _child_text(diagnosis, "name"), _child_text(diagnosis, "desc")
            rows.setdefault(
                question_form(title),
                {
                    "id": code,
                    "text": title,
                    "label": re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)$", "", name),
                    "group": code.split(".")[0],
                    "chapter": _child_text(chapter, "name"),
                },
            )
    return list(rows.values())


def _chapters(path: Path) -> list[ElementTree.Element]:
    return ElementTree.parse(path).getroot().findall("chapter")  # noqa: S314  (hash-checked)


def _child_text(element: ElementTree.Element, tag: str) -> str:
    return " ".join((element.findtext(tag) or "").split())


def ticket_rows(path: Path) -> list[Row]:
    """Give the shop's support tickets: text and topic, grouped by customer.

    Sentiment, urgency (0 to 10), the signs it was counted from, the date and two annotators'
    topics stay beside them as columns.
    """
    rows = []
    for ticket in json_lines(path):
        columns = {key: value for key, value in ticket.items() if key not in ("ticket", "topic")}
        columns["signs"] = " ".join(ticket["signs"])
        head = {"id": ticket["ticket"], "text": ticket["text"], "label": ticket["topic"]}
        rows.append({**head, "group": ticket["customer"], **columns})
    return rows


def digits_rows(path: Path) -> list[Row]:
    """Give handwritten digits as PNG images of 8×8 grey pixels with the digit as label.

    The file counts the inked dots of each 4×4 block, 0 to 16; here 16 is white on black.
    """
    from PIL import Image

    rows = []
    with gzip.open(path, "rt", encoding="ascii") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            *dots, digit = (int(float(value)) for value in line)
            png = io.BytesIO()
            pixels = bytes(round(count * 255 / 16) for count in dots)
            Image.frombytes("L", (8, 8), pixels).save(png, "PNG")
            rows.append(
                {
                    "id": f"digit-{number}",
                    "image": {"bytes": png.getvalue(), "path": None},
                    "label": str(digit),
                    "group": f"digit-{number}",
                }
            )
    return rows
