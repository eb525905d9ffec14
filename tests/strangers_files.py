"""Twelve files as strangers have them: names, formats, tasks, encodings and languages differ."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = 60
_THINGS = ("lamp", "globe", "map", "lantern", "compass")
_TONES = {
    "praise": ("I love my {thing}.", "The {thing} works well, thank you.", "A fine {thing}!"),
    "complaint": ("The {thing} broke.", "My {thing} came late again.", "This {thing} is bad."),
    "question": ("What does the {thing} cost?", "Is the {thing} blue?", "Where is my {thing}?"),
}


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """One file, and what is right to guess about it.

    Attributes:
        write: Writes it into a folder and gives its path.
        task: What can be learned from it; None where the right answer is a refusal.
        columns: The right columns.
        told: Words that stand in a note, a reason or the refusal.
    """

    write: Callable[[Path], Path]
    task: str | None
    columns: Mapping[str, str]
    told: str = ""


def _letters() -> list[tuple[str, str]]:
    dice = random.Random(3)
    found = []
    for number in range(ROWS * 2):
        tone = dice.choice(list(_TONES))
        text = dice.choice(_TONES[tone]).format(thing=dice.choice(_THINGS))
        found.append((f"{text} (letter {number})", tone))
    return found


def _csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]], **how: Any) -> Path:
    encoding, delimiter = how.get("encoding", "utf-8"), how.get("delimiter", ",")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(list(header))
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _german(folder: Path) -> Path:
    rows = [(f"Was kostet die Lampe Nummer {n}?", f"{n + 3} Kronen für Sie") for n in range(ROWS)]
    return _csv(folder / "fragen.csv", ("Frage", "Antwort"), rows, encoding="cp1252", delimiter=";")


def _messages(folder: Path) -> Path:
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"How many stars has chart {n}?"},
                {"role": "assistant", "content": f"{n * 7} stars"},
            ]
        }
        for n in range(ROWS)
    )
    return _lines(folder / "chat.jsonl", rows)


def _sharegpt(folder: Path) -> Path:
    rows = [
        {
            "id": f"c{n}",
            "conversations": [
                {"from": "human", "value": f"Who mends map {n}?"},
                {"from": "gpt", "value": f"Master number {n % 7}."},
            ],
        }
        for n in range(ROWS)
    ]
    path = folder / "export.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def _alpaca(folder: Path) -> Path:
    rows = (
        {
            "instruction": "Translate into French.",
            "input": f"the map number {n}",
            "output": f"la carte numéro {n}",
        }
        for n in range(ROWS)
    )
    return _lines(folder / "alpaca.jsonl", rows)


def _prompts(folder: Path) -> Path:
    rows = (
        {"prompt": f"The fee of service {n} is", "completion": f" {n + 11} crowns."}
        for n in range(ROWS)
    )
    return _lines(folder / "prompts.jsonl.gz", rows)


def _tickets(folder: Path) -> Path:
    rows = [(n, text, tone) for n, (text, tone) in enumerate(_letters())]
    return _csv(folder / "tickets.tsv", ("ticket_id", "body", "category"), rows, delimiter="\t")


def _reviews(folder: Path) -> Path:
    dice = random.Random(5)
    levels = {"praise": 4.2, "question": 3.0, "complaint": 1.4}
    rows = [(text, round(levels[tone] + dice.random(), 2)) for text, tone in _letters()]
    return _csv(folder / "reviews.csv", ("review", "rating"), rows)


def _parquet(folder: Path) -> Path:
    import pandas as pd

    letters = _letters()
    frame = pd.DataFrame(
        {
            "sentence": [text for text, _ in letters],
            "split": ["test" if n % 5 == 0 else "train" for n in range(len(letters))],
            "sentiment": [tone for _, tone in letters],
        }
    )
    path = folder / "letters.parquet"
    frame.to_parquet(path)
    return path


def _excel_text(folder: Path) -> Path:
    rows = [(f"Quel est le prix de la lampe {n} ?", f"{n + 3} couronnes") for n in range(ROWS)]
    return _csv(
        folder / "faq.txt.csv", ("question", "réponse"), rows, encoding="utf-16", delimiter="\t"
    )


def _japanese(folder: Path) -> Path:
    rows = (
        {"質問": f"ランプ{n}番はいくらですか？", "回答": f"{n + 3}クローネです。"}
        for n in range(ROWS)
    )
    return _lines(folder / "faq_ja.jsonl", rows)


def _folder(folder: Path) -> Path:
    for number, (text, tone) in enumerate(_letters()):
        place = folder / "letters" / tone
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder / "letters"


def _numbers(folder: Path) -> Path:
    rows = [(n * 1.5, n * n + 0.25, n / 7) for n in range(ROWS)]
    return _csv(folder / "sensor.csv", ("voltage", "current", "torque"), rows)


_PAIR = {"question": "prompt", "answer": "completion"}
STRANGERS: Mapping[str, Stranger] = {
    "German headings, semicolons, cp1252": Stranger(
        write=_german, task="chat", columns={"question": "Frage", "answer": "Antwort"},
        told="cp1252",
    ),
    "messages in JSON Lines": Stranger(
        write=_messages, task="chat", columns={"messages": "messages"}
    ),
    "ShareGPT in one JSON list": Stranger(
        write=_sharegpt, task="chat", columns={"messages": "conversations"}
    ),
    "Alpaca with an input": Stranger(
        write=_alpaca, task="chat",
        columns={"question": "instruction", "input": "input", "answer": "output"},
    ),
    "prompt and completion, gzip": Stranger(write=_prompts, task="chat", columns=_PAIR),
    "tickets with tabs": Stranger(
        write=_tickets, task="classify", columns={"text": "body", "label": "category"},
        told="every label in its share",
    ),
    "reviews with a number": Stranger(
        write=_reviews, task="regress", columns={"text": "review", "score": "rating"}
    ),
    "Parquet with its own split": Stranger(
        write=_parquet, task="classify", columns={"text": "sentence", "label": "sentiment"},
        told="as the column split says",
    ),
    "French, UTF-16 as Excel writes it": Stranger(
        write=_excel_text, task="chat", columns={"question": "question", "answer": "réponse"},
        told="utf-16",
    ),
    "Japanese": Stranger(
        write=_japanese, task="chat", columns={"question": "質問", "answer": "回答"},
        told="not in Latin script",
    ),
    "a folder of texts by label": Stranger(
        write=_folder, task="classify", columns={"text": "text", "label": "label"}
    ),
    "a table of numbers": Stranger(
        write=_numbers, task=None, columns={}, told="scikit-learn"
    ),
}  # fmt: skip
