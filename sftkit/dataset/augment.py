"""Make further training rows: misspelled, phrased otherwise, or answered by the base model itself.

A made row is marked in the column `augmented` with the method and the id of the row it was made
from, and keeps that row's group. Only training rows are taken, and the division into splits
refuses marked rows anywhere but in train. Answers are never changed: what is learned stays right.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.columns import append_rows, find_made_rows, need_train
from sftkit.dataset.split import draw_share
from sftkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Table = Mapping[str, Sequence[str]]
Change = Callable[[str, int], str]
"""Changes a text; the number is the seed of this one text."""

BLANK = "{question}"
_SPARED = (
    r"<\|[^<>|\s]{1,40}\|>",  # control tokens of most chat models
    r"</?(?:s|think|tool_call|start_of_turn|end_of_turn)>",
    r"\[/?INST\]",
    r"(?:https?://|www\.)\S+",
    r"[\w.+-]+@[\w-]+\.[\w.-]+",
)
_NUMBER = r"[+-]?\d[\d.,:/'’-]*%?"


def load_table(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read which characters stand for which, from a JSON file such as nlpaug's.

    Args:
        path: A JSON object from a character to one or more others.

    Raises:
        DataError: No such file, or none of this form.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The table {path} cannot be read: {error}.") from error
    table = {}
    for key, values in raw.items() if isinstance(raw, dict) else ():
        listed = values if isinstance(values, list | str) else [values]
        # One entry of nlpaug's English keyboard has a blank too many.
        table[key] = tuple(v.strip() if isinstance(v, str) else v for v in listed)
    characters = [item for key, values in table.items() for item in (key, *values)]
    if not characters or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise DataError(
            f"The table {path} must map single characters to lists of single characters, such "
            'as {"o": ["0", "p"]}.'
        )
    return table


def mirror_table(table: Table) -> dict[str, tuple[str, ...]]:
    """Let confusions work both ways: if 0 is read as O, then O is read as 0."""
    both: dict[str, list[str]] = {key: list(values) for key, values in table.items()}
    for key, values in table.items():
        for value in values:
            both.setdefault(value, []).append(key)
    return {key: tuple(dict.fromkeys(values)) for key, values in both.items()}


def confuse_characters(
    text: str,
    table: Table,
    *,
    rate: float,
    seed: int,
    keep_numbers: bool = True,
    control_tokens: Iterable[str] = (),
) -> str:
    """Replace characters by ones a table confuses them with: typing or reading errors.

    Upper case stays upper case. Control tokens, links and mail addresses stay as they are.

    Args:
        text: Any text.
        table: From a character to those it may become; lower case serves for upper case too.
        rate: Chance of each character that the table knows, in [0, 1].
        seed: Same seed, same errors.
        keep_numbers: Whether no digit may be changed, and none may come of a letter.
        control_tokens: Further texts that must stay whole, such as the tokenizer's own.

    Raises:
        DataError: The rate is out of range.
    """

    def confuse(character: str, draw: random.Random) -> str:
        options = _options(character, table)
        if keep_numbers:
            options = [option for option in options if not option.isdigit()]
        return draw.choice(options) if options else character

    spared = _spared(control_tokens, numbers=keep_numbers)
    return _change_characters(text, confuse, rate=rate, seed=seed, spared=spared)


def change_case(
    text: str,
    *,
    rate: float,
    seed: int,
    control_tokens: Iterable[str] = (),
) -> str:
    """Write letters in the other case, each with the same chance; otherwise as above.

    Letters without another case of one character, such as ß, stay.

    Raises:
        DataError: The rate is out of range.
    """

    def swap(character: str, draw: random.Random) -> str:
        other = character.swapcase()
        return other if len(other) == 1 and other.swapcase() == character else character

    return _change_characters(text, swap, rate=rate, seed=seed, spared=_spared(control_tokens))


def add_noisy_rows(
    train: Dataset, change: Change, *, method: str, share: float, seed: int = 0
) -> Dataset:
    """Add copies of training rows in which what the user says is changed.

    Args:
        train: Training rows with `messages` (the user's turns are changed, nothing else) or with
            `text` (and a label or score, which stays).
        change: Changes a text, such as `lambda text, seed: confuse_characters(text, table,
            rate=0.05, seed=seed)`.
        method: What to call the change in the column `augmented`, e.g. typos.
        share: Share of the rows that get a copy, in [0, 1]. Rows that were made themselves get
            none, and neither do those the change leaves as they are.
        seed: Seed of which rows, and of each row's change.

    Returns:
        The training rows, then the made ones, with a column `augmented`.

    Raises:
        DataError: Rows that do not train, or a share out of range.
    """
    if not 0 <= share <= 1:
        raise DataError(f"share must be in [0, 1], got {share}.")

    def vary(row: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
        if draw_share(seed, f"{method}\n{name}") < share:
            yield _change_user(row, lambda text: change(text, _own_seed(seed, method, name, text)))

    return _add_made_rows(train, method, vary)


def add_phrasings(
    train: Dataset, templates: Sequence[str], *, per_row: int = 1, seed: int = 0
) -> Dataset:
    """Add copies of training rows whose first question is put in other words around it.

    Args:
        train: Training rows with `messages` or `text`.
        templates: Texts with {question} in them once, e.g. "Could you tell me: {question}".
        per_row: Copies per row, each with another template.
        seed: Seed of which templates a row gets.

    Returns:
        The training rows, then the made ones, with a column `augmented`.

    Raises:
        DataError: Rows that do not train, a template without its blank, or too few templates.
    """
    faulty = [template for template in templates if template.count(BLANK) != 1]
    if faulty:
        raise DataError(f"A template needs {BLANK} in it exactly once, got {faulty[0]!r}.")
    if not 1 <= per_row <= len(set(templates)):
        raise DataError(
            f"per_row={per_row} needs as many different templates, got {len(set(templates))}."
        )
    distinct = list(dict.fromkeys(templates))

    def vary(row: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
        draw = random.Random(_own_seed(seed, "template", name))  # noqa: S311  (not for secrets)
        for template in draw.sample(distinct, per_row):
            yield _change_user(row, partial(_fill, template), only_first=True)

    return _add_made_rows(train, "template", vary)


def generate_replay(
    prompts: Sequence[str], generate: Callable[[list[str]], Sequence[str | None]]
) -> Dataset:
    """Let the base model answer general prompts, so that it keeps saying what it could say.

    Give the result to `mix_replay`. The answers are the model's own, right or wrong: they hold it
    where it was and teach nothing new (after Huang et al. 2024, "Mitigating Catastrophic
    Forgetting in Large Language Models with Self-Synthesized Rehearsal").

    Args:
        prompts: General questions and requests; none of those that will measure forgetting.
        generate: Gives an answer for each prompt, from the base model without its adapter; None
            where the model did not come to an end, because a cut answer would teach to stop
            anywhere.

    Returns:
        Conversations of one question and one answer, in the order of the prompts, with columns id,
        messages, group, place and augmented. Prompts that came twice, and prompts without an
        answer, are left out.

    Raises:
        DataError: No prompts, not one answer for each, or only empty ones.
    """
    import datasets

    asked = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not asked:
        raise DataError("There are no prompts to answer. Give general questions or requests.")
    answers = list(generate(asked))
    if len(answers) != len(asked):
        raise DataError(f"generate gave {len(answers)} answers to {len(asked)} prompts.")
    rows = [
        {
            "id": f"generated-{number}",
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ],
            "group": f"generated-{number}",
            "place": f"prompt {number}",
            "augmented": "generated",
        }
        for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True), start=1)
        if answer and answer.strip()
    ]
    if not rows:
        raise DataError(f"None of {len(asked)} prompts was answered to the end. Allow more tokens.")
    return datasets.Dataset.from_list(rows)


def _options(character: str, table: Table) -> list[str]:
    if character in table:
        options = list(table[character])
    elif character.lower() in table:
        options = [option.upper() for option in table[character.lower()]]
    else:
        return []
    return [option for option in options if len(option) == 1 and option != character]


def _spared(control_tokens: Iterable[str], *, numbers: bool = False) -> str:
    """Give a pattern of what must stay whole; longer tokens first, as one may begin another."""
    tokens = sorted((re.escape(token) for token in control_tokens if token), key=len, reverse=True)
    return "|".join((*tokens, *_SPARED, *((_NUMBER,) if numbers else ())))


def _change_characters(
    text: str, change: Callable[[str, random.Random], str], *, rate: float, seed: int, spared: str
) -> str:
    if not 0 <= rate <= 1:
        raise DataError(f"rate must be in [0, 1], got {rate}.")
    draw = random.Random(seed)  # noqa: S311  (not for secrets)
    pieces = re.split(f"({spared})", text)
    for place in range(0, len(pieces), 2):  # every second piece is a spared one
        pieces[place] = "".join(
            change(character, draw) if draw.random() < rate else character
            for character in pieces[place]
        )
    return "".join(pieces)


def _fill(template: str, text: str) -> str:
    return template.replace(BLANK, text)


def _own_seed(seed: int, *keys: str) -> int:
    return int(draw_share(seed, "\n".join(keys)) * 2**53)


def _change_user(
    row: Mapping[str, Any], change: Callable[[str], str], *, only_first: bool = False
) -> dict[str, Any]:
    """Change what the user says in a row: the text, or the user's turns."""
    if "messages" not in row:
        return {**row, "text": change(row["text"] or "")}
    turns = [dict(turn) for turn in row["messages"] or ()]
    for turn in [turn for turn in turns if turn["role"] == "user"][: 1 if only_first else None]:
        turn["content"] = change(turn["content"] or "")
    return {**row, "messages": turns}


def _add_made_rows(
    train: Dataset, method: str, vary: Callable[[Mapping[str, Any], str], Iterator[dict[str, Any]]]
) -> Dataset:
    """Add what `vary` makes of each row; nothing is made of made rows, or of no change."""
    need_train(train)
    said = next((name for name in ("messages", "text") if name in train.column_names), None)
    if said is None:
        raise DataError("Only rows with messages or text can be augmented.")
    made_before = find_made_rows(train, "augmented") | find_made_rows(train, "repeated")
    columns: dict[str, list[Any]] = {name: [] for name in train.column_names}
    marks = []
    for position, row in enumerate(train):
        if made_before[position]:
            continue
        name = str(row.get("id") or position)
        copies = [copy for copy in vary(row, name) if copy[said] != row[said]]
        for number, copy in enumerate(copies, start=1):
            copy["id"] = f"{name}~{method}" + (f"-{number}" if len(copies) > 1 else "")
            for column, values in columns.items():
                values.append(copy[column])
            marks.append(f"{method} of {name}")
    return append_rows(train, columns, {"augmented": ("", marks)})
