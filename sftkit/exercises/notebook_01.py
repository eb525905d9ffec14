"""The exercises of notebook 01."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sftkit.errors import SftkitError
from sftkit.exercises.terms import Exercise, Property, is_whole
from sftkit.records import IGNORE


@dataclass(frozen=True, kw_only=True)
class _Line:
    line: str
    question: str
    answer: str


def _line(given: Mapping[str, Any]) -> _Line:
    line = str(given["line"])
    question, found, answer = line.partition(";")
    if not found or ";" not in answer:
        raise SftkitError(
            f"The line {line!r} has no semicolon too many. Take the fourth line of the export."
        )
    return _Line(line=line, question=question, answer=answer)


def _fields(text: str) -> list[str]:
    """Read one line as a reader of semicolon-separated files does."""
    (fields,) = csv.reader([text], delimiter=";", strict=True)
    return fields


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@dataclass(frozen=True, kw_only=True)
class _Contradictions:
    lines: frozenset[int]
    same_question: frozenset[frozenset[int]]
    contradicting: frozenset[frozenset[int]]


def _contradictions(given: Mapping[str, Any]) -> _Contradictions:
    """Pair the rows that ask the same, and of these the ones whose replies hold other numbers."""
    replies: dict[str, list[tuple[int, str]]] = {}
    lines = set()
    for row in given["dataset"]:
        line = int(str(row["place"]).rpartition(":")[2])
        lines.add(line)
        said = {turn["role"]: turn["content"] or "" for turn in row["messages"] or ()}
        if "user" in said and "assistant" in said:
            replies.setdefault(said["user"], []).append((line, said["assistant"]))
    same, other = set(), set()
    for rows in replies.values():
        for (one, first), (two, second) in combinations(rows, 2):
            numbers = [set(re.findall(r"\d+", text)) for text in (first, second)]
            same.add(frozenset({one, two}))
            if all(numbers) and numbers[0].isdisjoint(numbers[1]):
                other.add(frozenset({one, two}))
    if not other:
        raise SftkitError("No two rows of this dataset contradict each other. Hand in the raw one.")
    return _Contradictions(
        lines=frozenset(lines), same_question=frozenset(same), contradicting=frozenset(other)
    )


@dataclass(frozen=True, kw_only=True)
class _Divisions:
    shared: Mapping[str, int]
    groups: Mapping[str, int]

    @property
    def tight(self) -> set[str]:
        """Columns by which no fact stands in both train and test."""
        return {column for column, facts in self.shared.items() if facts == 0}


def _divisions(given: Mapping[str, Any]) -> _Divisions:
    pairs = {str(name): (int(pair[0]), int(pair[1])) for name, pair in given["divided"].items()}
    found = _Divisions(
        shared={name: shared for name, (shared, _) in pairs.items()},
        groups={name: groups for name, (_, groups) in pairs.items()},
    )
    if not found.tight:
        raise SftkitError("Every column leaks here. Measure 'group' as well.")
    return found


@dataclass(frozen=True, kw_only=True)
class _Turns:
    total: int
    supervised: int
    words: int
    turns: int


def _turns(given: Mapping[str, Any]) -> _Turns:
    labels = [int(label) for label in given["example"].labels]
    learned = [label != IGNORE for label in labels]
    starts = sum(
        now and not before for before, now in zip([False, *learned], learned, strict=False)
    )
    if starts < 2:
        raise SftkitError("This example has one answer. Encode the conversation with two.")
    return _Turns(
        total=len(labels), supervised=sum(learned), words=sum(learned) - starts, turns=starts
    )


_RATINGS = ("reliable", "tentative", "unreliable")


@dataclass(frozen=True, kw_only=True)
class _Rating:
    word: str
    open_rows: int
    agreed_rows: int
    rows: int
    observed: float


def _rating(given: Mapping[str, Any]) -> _Rating:
    agreement = given["agreement"]
    if agreement.alpha is None:
        raise SftkitError("Only one label was ever given, so nothing can be said about agreement.")
    reached = (agreement.alpha >= 0.8) + (agreement.alpha >= 0.667)
    return _Rating(
        word=_RATINGS[2 - reached],
        open_rows=len(agreement.disagreements),
        agreed_rows=agreement.rows - len(agreement.disagreements),
        rows=agreement.rows,
        observed=agreement.observed,
    )


EXERCISES = (
    Exercise(
        id="01.1",
        asks="(mended, errors_left): the line as it should stand, and errors in the mended file",
        given=("line",),
        facts=_line,
        properties=(
            Property(
                says="The answer should be one line of text and a whole number.",
                holds=lambda a, _: (
                    len(a) == 2
                    and isinstance(a[0], str)
                    and len(a[0].splitlines()) == 1
                    and is_whole(a[1])
                ),
                hint="First the line, without a line break at its end, then how many errors the "
                "audit still finds.",
            ),
            Property(
                says="No word of the line should be lost.",
                holds=lambda a, f: _words(a[0]) == _words(f.line),
                hint="The line says the right thing; only its form is wrong. Add, do not delete.",
            ),
            Property(
                says="A reader should find two fields in the line.",
                holds=lambda a, _: len(_fields(a[0])) == 2,
                hint="The answer holds a semicolon, and a semicolon is what divides fields here. "
                "What keeps a field together? The audit's remedy says it.",
            ),
            Property(
                says="Both fields should say what they said, to the character.",
                holds=lambda a, f: _fields(a[0]) == [f.question, f.answer],
                hint="Leave the text as it is, its own semicolon too, and set quotes only around "
                "the whole answer.",
            ),
            Property(
                says="The audit should find nothing wrong any more.",
                holds=lambda a, _: a[1] == 0,
                hint="Count `.errors` of `audit_with(mended)`, not all findings.",
            ),
        ),
        deepens="Nothing else was changed. That is what a repair should look like: the smallest "
        "one that makes the file say what its writer meant.",
    ),
    Exercise(
        id="01.2",
        asks="(one, two): line numbers of two rows that contradict each other",
        given=("dataset",),
        facts=_contradictions,
        properties=(
            Property(
                says="The answer should be two different line numbers.",
                holds=lambda a, _: len(set(a)) == len(a) == 2 and all(is_whole(n) for n in a),
                hint="Hand in a pair of whole numbers, such as (3, 7).",
            ),
            Property(
                says="Both numbers should be lines of the file.",
                holds=lambda a, f: set(a) <= f.lines,
                hint="Lines are counted from 1, as in the places that the audit names.",
            ),
            Property(
                says="Both rows should ask the same question.",
                holds=lambda a, f: frozenset(a) in f.same_question,
                hint="Look for questions that come twice; finding D37 names where they are.",
            ),
            Property(
                says="The two replies should not both be true.",
                holds=lambda a, f: frozenset(a) in f.contradicting,
                hint="These two say the same in other words, or one says less. Look for two "
                "numbers that cannot both be right.",
            ),
        ),
        deepens="No program can know which of the two is right. Somebody who knows the shop must "
        "decide, and until then the model learns both.",
    ),
    Exercise(
        id="01.3",
        asks="the column by which to group, so that no fact is in both train and test",
        given=("divided",),
        facts=_divisions,
        properties=(
            Property(
                says="The answer should be the name of a column that was tried.",
                holds=lambda a, f: isinstance(a, str) and a in f.shared,
                hint="Hand in one of the keys of `divided`, in quotes.",
            ),
            Property(
                says="No fact should stand in both train and test.",
                holds=lambda a, f: a in f.tight,
                hint="By this column, other phrasings of tested facts are trained on. The first "
                "number counts the facts in both.",
            ),
            Property(
                says="Of the columns that do not leak, it should leave the most groups.",
                holds=lambda a, f: f.groups[a] == max(f.groups[name] for name in f.tight),
                hint="This column does not leak, but it makes so few groups that the test is about "
                "very few kinds of things. Is there a finer column?",
            ),
        ),
        deepens="Ask in what a new question will be new: a phrasing, a fact, a customer, a year. "
        "That is the column to group by.",
    ),
    Exercise(
        id="01.4",
        asks="how many tokens of the conversation with two answers are learned from",
        given=("example",),
        facts=_turns,
        properties=(
            Property(
                says="The answer should be a whole number.",
                holds=lambda a, _: is_whole(a),
                hint="Add up the tokens that would be coloured.",
            ),
            Property(
                says="The questions should not count.",
                holds=lambda a, f: a != f.total,
                hint="That is every token of the conversation. Which of them would be coloured?",
            ),
            Property(
                says="The ends of the turns should count.",
                holds=lambda a, f: a != f.words,
                hint="You added the tokens of the answers. What follows each answer, and must be "
                "learned?",
            ),
            Property(
                says="Every answer should bring its own end.",
                holds=lambda a, f: not f.words < a < f.supervised,
                hint="One end was counted. How many answers are there?",
            ),
            Property(
                says="The number should match the mask.",
                holds=lambda a, f: a == f.supervised,
                hint="The two answers have as many tokens as `pieces` says, and each is followed "
                "by the token that ends its turn.",
            ),
        ),
        deepens="Both answers are learned from, the first one too: in a conversation of ten turns "
        "the model is taught ten times.",
    ),
    Exercise(
        id="01.5",
        asks="(word, letters): reliable, tentative or unreliable; letters a third person must read",
        given=("agreement",),
        facts=_rating,
        properties=(
            Property(
                says="The answer should be one of reliable, tentative, unreliable; and a number.",
                holds=lambda a, _: (
                    len(a) == 2 and a[0].strip().lower() in _RATINGS and is_whole(a[1])
                ),
                hint="First the word, in quotes, then how many letters.",
            ),
            Property(
                says="The word should not be judged by the share of equal labels.",
                holds=lambda a, f: (
                    a[0].strip().lower() == f.word
                    or a[0].strip().lower() != "reliable"
                    or f.observed < 0.667
                ),
                hint="Two people who label at random also agree now and then. Which number leaves "
                "that part out?",
            ),
            Property(
                says="The word should follow from the limits.",
                holds=lambda a, f: a[0].strip().lower() == f.word,
                hint="0.8 or more is reliable; from 0.667 on, tentative conclusions are allowed.",
            ),
            Property(
                says="The number should be of the letters in dispute.",
                holds=lambda a, f: a[1] not in (f.rows, f.agreed_rows) or a[1] == f.open_rows,
                hint="Where both said the same, nobody has to read again.",
            ),
            Property(
                says="The number should match the labels.",
                holds=lambda a, f: a[1] == f.open_rows,
                hint="`agreement.disagreements` lists the rows with more than one label.",
            ),
        ),
        deepens="A score above what two people reach with each other is no better model: it has "
        "learned one person's habits. The labels are the ceiling.",
    ),
)
