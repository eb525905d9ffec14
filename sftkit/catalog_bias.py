"""The catalog's bias sets: sentences that differ in the people they speak of."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from sftkit.catalog_questions import question_form
from sftkit.catalog_rows import Row, json_lines

_UNKNOWN = {
    "can't answer", "cannot answer", "can't be determined", "cannot be determined", "unknown",
    "undetermined", "not known", "not answerable", "not enough info", "not enough information",
}  # fmt: skip
"""The ten ways in which BBQ words the option that nothing is known."""


def stereoset_rows(path: Path) -> list[Row]:
    """Give three continuations of one context: stereotype, anti-stereotype and unrelated.

    In the form `intrasentence` each is the whole sentence (the context shows the gap as BLANK), in
    `intersentence` each is the sentence after the context. Groups are the people spoken of.
    """
    return [
        {
            "id": f"stereoset-{number}",
            "group": row["target"].strip().casefold(),
            "bias_type": row["bias_type"],
            "form": row["type"],
            "context": row["context"].strip(),
            "stereotype": row["stereotype"].strip(),
            "anti_stereotype": row["anti-stereotype"].strip(),
            "unrelated": row["unrelated"].strip(),
        }
        for number, row in enumerate(json_lines(path), start=1)
    ]


def wino_rows(path: Path) -> list[Row]:
    """Give a sentence with the pronoun that fits an occupation's stereotype, and with the other.

    Groups are the occupations that the pronoun refers to. A sentence that stands twice is left out
    the second time.
    """
    rows: dict[str, Row] = {}
    for number, row in enumerate(json_lines(path), start=1):
        pronouns = re.findall(r"^[AB]\. (\w+)$", row["options"], flags=re.MULTILINE)
        usual = row["pro_stereotyped"]
        (other,) = (word for word in pronouns if word != usual)
        # A reflexive in brackets belongs to the pronoun: both sentences must agree with it.
        marked = re.findall(r"\[(?!MASK)([^\]]+)\]", row["text"])
        referent = next(words for words in marked if words not in ("himself", "herself"))
        rows.setdefault(
            row["text"].strip(),
            {
                "id": f"wino-{number}",
                "group": re.sub(r"^(the|an?) ", "", referent.strip().casefold()),
                "bias_type": "occupation and gender",
                "stereotype": _with_pronoun(row["text"], usual),
                "anti_stereotype": _with_pronoun(row["text"], other),
                "stereotype_pronoun": usual,
                "anti_stereotype_pronoun": other,
            },
        )
    return list(rows.values())


def _with_pronoun(text: str, pronoun: str) -> str:
    reflexive = "himself" if pronoun in ("he", "his", "him") else "herself"
    text = re.sub(r"\[(himself|herself)\]", reflexive, text.replace("[MASK]", pronoun))
    return " ".join(re.sub(r"\[([^\]]+)\]", r"\1", text).split())


def crows_rows(path: Path) -> list[Row]:
    """Give one sentence about two groups of people.

    The file does not say which of the two is the stereotype, so the columns are `first` and
    `second`, in its order. A pair that stands twice is left out the second time.
    """
    rows: dict[tuple[str, str], Row] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            words = (row["mask1"].strip(), row["mask2"].strip())
            pair = [" ".join(row["sentence"].replace("[MASK]", w).split()) for w in words]
            rows.setdefault(
                (question_form(pair[0]), question_form(pair[1])),
                {
                    "id": f"crows-{row['']}",
                    "group": question_form(row["sentence"]),
                    "bias_type": row["bias_type"],
                    "first": pair[0],
                    "second": pair[1],
                    "first_words": words[0],
                    "second_words": words[1],
                },
            )
    return list(rows.values())


def bbq_rows(path: Path) -> list[Row]:
    """Give a question about two people, with three options of which one is that nothing is known.

    Where that option is the right one, the condition is `ambiguous`: any other choice was guessed
    from what the people are. Else it is `stated`: the passage holds the answer. Groups are the
    passages. A question that stands twice is left out the second time, whatever its options.
    """
    rows: dict[tuple[str, str], Row] = {}
    for number, row in enumerate(json_lines(path), start=1):
        question = row["question"].split("\n")[0].strip()
        passage = row["passage"].strip()
        options = [line.split(". ", 1)[1].strip() for line in row["options"].splitlines()]
        unknown = [i for i, text in enumerate(options) if text.casefold() in _UNKNOWN]
        answer = options.index(row["answer"][0].strip())
        rows.setdefault(
            (question_form(passage), question_form(question)),
            {
                "id": f"bbq-{number}",
                "group": question_form(passage),
                "passage": passage,
                "question": question,
                "options": options,
                "answer": answer,
                "unknown": unknown[0],
                "condition": "ambiguous" if answer == unknown[0] else "stated",
            },
        )
    return list(rows.values())
