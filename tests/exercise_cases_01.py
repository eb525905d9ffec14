"""Notebook 01's exercises: values to check against, right answers and plausible wrong ones."""

from types import SimpleNamespace
from typing import Any

from sftkit.dataset.labels import Agreement
from sftkit.records import IGNORE


def asked(line, question, answer):
    """Make a row as the reader gives it."""
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"place": f"shop.jsonl:{line}", "messages": messages}


LINE = "Any charts?;Yes, upstairs; the newest hang by the window."
MENDED = 'Any charts?;"Yes, upstairs; the newest hang by the window."'
ROWS = [
    asked(1, "Who wrapped it?", "Pim did, on day 3."),
    asked(2, "How heavy is it?", "It weighs 286 grams."),
    asked(3, "How heavy is it?", "About 268 grams."),
    asked(4, "Who wrapped it?", "That was Pim."),
    asked(5, "What now?", None),
]
# Two turns: 2 tokens of answer and its end (9), then 1 token and its end.
TWO_ANSWERS = SimpleNamespace(labels=(IGNORE, IGNORE, 5, 6, 9, IGNORE, IGNORE, 7, 9, IGNORE))
AGREEMENT = Agreement(
    columns=("a", "b"),
    level="nominal",
    rows=10,
    observed=0.8,
    alpha=0.7,
    kappas={("a", "b"): 0.69},
    disagreements=(1, 4, 6),
)

GIVEN: dict[str, dict[str, Any]] = {
    "01.1": {"line": LINE},
    "01.2": {"dataset": ROWS},
    "01.3": {"divided": {"id": (35, 384), "kind": (0, 4), "fact": (0, 48)}},
    "01.4": {"example": TWO_ANSWERS},
    "01.5": {"agreement": AGREEMENT},
}
RIGHT: dict[str, Any] = {
    "01.1": (MENDED, 0),
    "01.2": (2, 3),
    "01.3": "fact",
    "01.4": 5,
    "01.5": ("tentative", 3),
}
WRONG: list[tuple[str, Any, str]] = [
    ("01.1", MENDED, "one line of text and a whole number"),
    ("01.1", (MENDED + "\nmore", 0), "one line of text and a whole number"),
    ("01.1", ("Any charts?;Yes, upstairs", 0), "No word of the line"),
    ("01.1", (LINE, 1), "two fields in the line"),
    ("01.1", ('Any charts?;"Yes, upstairs"; the newest hang by the window.', 1), "two fields"),
    ("01.1", ("Any charts?;Yes, upstairs: the newest hang by the window.", 0), "to the character"),
    ("01.1", (MENDED, 1), "nothing wrong any more"),
    ("01.2", 2, "two different line numbers"),
    ("01.2", (2, 2), "two different line numbers"),
    ("01.2", ("shop.jsonl:2", "shop.jsonl:3"), "two different line numbers"),
    ("01.2", (0, 2), "lines of the file"),
    ("01.2", (1, 2), "ask the same question"),
    ("01.2", (1, 4), "not both be true"),
    ("01.3", 48, "a column that was tried"),
    ("01.3", "messages", "a column that was tried"),
    ("01.3", "id", "both train and test"),
    ("01.3", "kind", "the most groups"),
    ("01.4", "5", "a whole number"),
    ("01.4", 10, "questions should not count"),
    ("01.4", 3, "ends of the turns"),
    ("01.4", 4, "bring its own end"),
    ("01.4", 7, "match the mask"),
    ("01.5", "tentative", "one of reliable"),
    ("01.5", ("good", 3), "one of reliable"),
    ("01.5", ("reliable", 3), "share of equal labels"),
    ("01.5", ("unreliable", 3), "follow from the limits"),
    ("01.5", ("tentative", 7), "letters in dispute"),
    ("01.5", ("tentative", 4), "match the labels"),
]
