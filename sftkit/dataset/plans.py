"""Which format a table has and which column plays which role: guessed, or as the user says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sftkit.dataset.column_words import (
    ANSWER_WORDS,
    LABEL_WORDS,
    QUESTION_WORDS,
    SCORE_WORDS,
    TEXT_WORDS,
)
from sftkit.dataset.roles import (
    TURN_NAMES,
    Columns,
    find_image,
    find_role,
    find_turns,
    free_texts,
    only_name,
    usable_columns,
)
from sftkit.errors import DataError, near_names

Task = Literal["chat", "classify", "regress", "image"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write examples: the task it is for, and the roles its columns play."""

    task: Task
    roles: tuple[str, ...]


FORMATS: Mapping[str, Format] = {
    "messages": Format(task="chat", roles=("messages",)),
    "sharegpt": Format(task="chat", roles=("messages",)),
    "alpaca": Format(task="chat", roles=("question", "answer")),
    "prompt-completion": Format(task="chat", roles=("question", "answer")),
    "question-answer": Format(task="chat", roles=("question", "answer")),
    "text-label": Format(task="classify", roles=("text", "label")),
    "text-score": Format(task="regress", roles=("text", "score")),
    "image-label": Format(task="image", roles=("image", "label")),
}
_ROLES = (
    *("messages", "question", "input", "answer", "system"),
    *("text", "label", "score", "image", "id", "group"),
)
_ALIASES = {
    **dict.fromkeys(("conversations", "conversation"), "messages"),
    **dict.fromkeys(("prompt", "instruction"), "question"),
    **dict.fromkeys(("completion", "response", "output"), "answer"),
    "class": "label",
}
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "chosen"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("user", "assistant"),
)


_SAY_COLUMNS = (
    'Say what the columns are, with columns={"question": …, "answer": …}, {"text": …, '
    '"label": …} or {"text": …, "score": …} (--column question=…).'
)
_SAY_IMAGES = (
    "Put the images into one folder for each label, or say "
    'columns={"image": …, "label": …} (--column image=…).'
)
_FOR_NUMBERS = "For a table of numbers take scikit-learn or gradient boosting; they will do better."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a table is to be read.

    Attributes:
        format: A name of `FORMATS`.
        task: What can be learned from it.
        columns: Column of each role.
        seen_as: The format in words.
        is_news: Whether the user should be told; the canonical form is none.
    """

    format: str
    task: Task
    columns: Mapping[str, str]
    seen_as: str
    is_news: bool = True


@dataclass(frozen=True)
class NoPlan:
    """Why nothing can be learned from a table as it is, and what to do."""

    reason: str
    fix: str = _SAY_COLUMNS


def plan_by_rows(found: Columns, task: Task | None) -> Plan | NoPlan:
    """Choose a plan by what the first rows show."""
    if task == "image" or (task is None and find_image(found) and not find_turns(found)):
        return _plan_images(found)
    if task in (None, "chat"):
        column = find_turns(found)
        is_named = column is not None and column.name.strip().casefold() in TURN_NAMES
        first, second = _plan_turns(found), _plan_known_pair(found)
        plan = (first or second) if is_named else (second or first)
        if plan is not None:
            return plan
    if found and not any(c.is_text or c.turns or c.coded for c in found.values() if c.count):
        filled = [c for c in found.values() if c.count]
        if filled and all(c.is_numeric for c in filled):
            return _only_numbers(found)
    if task == "chat":
        return _plan_pair(found) or _plan_label_as_answer(found) or _nothing(found)
    if task in ("classify", "regress"):
        return _plan_target(found, task)
    return _plan_open(found)


def _plan_open(found: Columns) -> Plan | NoPlan:
    """Choose between pairs and labelled texts where no name is known."""
    usable = usable_columns(found)
    asks = [c for c in usable if c.is_named(QUESTION_WORDS)]
    answers = [c for c in usable if c.is_named(ANSWER_WORDS)]
    if len(asks) == 1 and len(answers) == 1 and asks != answers:
        return _pair_plan(found, asks[0].name, answers[0].name)
    free = free_texts(found)
    named = [c for c in usable if c.is_named(LABEL_WORDS | SCORE_WORDS) and c not in free]
    targets = [c for c in usable if c not in free and (c.is_label or c.is_numeric)]
    if len(free) == 2 and not named:
        questions = [c for c in free if c.asks > 0.5]
        if not targets or len(questions) == 1 or asks or answers:
            plan = _plan_pair(found)
            return plan or _nothing(found)
    if len(free) > 1 and not any(c.is_named(TEXT_WORDS) for c in free):
        return NoPlan(
            f"no conversation in the columns {_list(found)} that is plain: any of "
            f"{_list([c.name for c in free])} could be the text, question or answer"
        )
    if free or len(targets) > 1:
        return _plan_target(found, None)
    return _nothing(found)


def _nothing(found: Columns) -> NoPlan:
    needs = "; ".join(" + ".join(pair) for pair in (("messages",), *_PAIRS[:4], ("text", "label")))
    reason = f"no conversation in the columns {_list(found)}, and no text with a label or score"
    # Numbers beside short words, such as measurements of flowers and their kind.
    numbers = any(c.is_numeric for c in usable_columns(found))
    if numbers and not any(c.is_text and c.spaced > 0.5 for c in found.values()):
        return NoPlan(reason, f"{_FOR_NUMBERS} If a column does hold text: {_SAY_COLUMNS}")
    return NoPlan(f"{reason}. Expected for example one of: {needs}")


def _only_numbers(found: Columns) -> NoPlan:
    return NoPlan(
        f"only numbers in the columns {_list(found)}: no conversation, text or image to learn "
        "from. This kit fine-tunes models of text and images",
        _FOR_NUMBERS,
    )


def _list(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:8])
    return f"{shown} …" if len(names) > 8 else shown


# ---- conversations ----


def _plan_turns(found: Columns) -> Plan | None:
    column = find_turns(found)
    if column is None:
        return None
    name = column.name.strip().casefold()
    senders = column.senders > 0.5 or (name != "messages" and not column.turns and not column.coded)
    words = "ShareGPT (from and value)" if senders else "messages"
    if column.coded > 0.5:
        words = f"messages, written as text in the column {column.name!r}"
    elif name not in TURN_NAMES:
        words = f"{words} in the column {column.name!r}"
    return Plan(
        format="sharegpt" if senders else "messages",
        task="chat",
        columns={"messages": column.name},
        seen_as=words,
        is_news=words != "messages" or name != "messages",
    )


def _plan_known_pair(found: Columns) -> Plan | None:
    by_key = {name.strip().casefold(): name for name in found}
    if "instruction" in by_key and "output" in by_key:
        columns = {"question": by_key["instruction"], "answer": by_key["output"]}
        columns |= {role: by_key[role] for role in ("input", "system") if role in by_key}
        words = "Alpaca (instruction, input, output)"
        return Plan(format="alpaca", task="chat", columns=columns, seen_as=words)
    for question, answer in _PAIRS:
        if question in by_key and answer in by_key:
            return _pair_plan(found, by_key[question], by_key[answer], is_known=True)
    return None


def _pair_plan(found: Columns, question: str, answer: str, *, is_known: bool = False) -> Plan:
    columns = {"question": question, "answer": answer}
    system = next((name for name in found if name.strip().casefold() == "system"), None)
    if system is not None:
        columns["system"] = system
    words = f"question column {question!r}, answer column {answer!r}"
    if is_known:
        words = f"{question.strip().casefold()} and {answer.strip().casefold()} columns"
    unused = [c.name for c in free_texts(found) if c.name not in columns.values()]
    if unused:
        words += f" (not used: {_list(unused)})"
    kind = "prompt-completion" if question.strip().casefold() == "prompt" else "question-answer"
    return Plan(format=kind, task="chat", columns=columns, seen_as=words)


def _plan_pair(found: Columns) -> Plan | None:
    question = find_role("question", found, ())
    answer = question and find_role("answer", found, (question,))
    return _pair_plan(found, question, answer) if question and answer else None


def _plan_label_as_answer(found: Columns) -> Plan | None:
    plan = _plan_target(found, "classify")
    if isinstance(plan, NoPlan):
        return None
    return _pair_plan(found, plan.columns["text"], plan.columns["label"])


# ---- texts and images with a label or score ----


def _plan_target(found: Columns, task: Task | None) -> Plan | NoPlan:
    """Choose text and label or score; several that would do are not chosen from."""
    turns, text = find_turns(found), find_role("text", found, ())
    if turns is not None and task is not None:
        return NoPlan(
            f"conversations in the column {turns.name!r}, which are for chat and not to {task}",
            f"Leave the task out, or name the columns. {_SAY_COLUMNS}",
        )
    if text is None:
        return _nothing(found)
    roles = {"classify": ("label",), "regress": ("score",)}.get(str(task), ("label", "score"))
    for role in roles:
        target = find_role(role, found, (text,), is_asked=task is not None)
        if target is not None:
            kind = "text-label" if role == "label" else "text-score"
            words = f"text column {text!r}, {role} column {target!r}"
            hints = LABEL_WORDS | SCORE_WORDS
            hinted = [c.name for c in usable_columns(found) if c.is_named(hints)]
            if unused := [name for name in hinted if name not in (text, target)]:
                words += f" (not used: {_list(unused)})"
            return Plan(
                format=kind,
                task=FORMATS[kind].task,
                columns={"text": text, role: target},
                seen_as=words,
            )
    others = [
        c.name for c in usable_columns(found) if c.name != text and (c.is_label or c.is_numeric)
    ]
    if task == "regress":
        return NoPlan(
            f"text in the column {text!r}, but no column of numbers that is plainly the score",
            'Name it, with columns={"score": …} (--column score=…), or take another task.',
        )
    if others:
        return NoPlan(
            f"text in the column {text!r}, but no conversation, and any of {_list(others)} could "
            "be the label or score"
        )
    return NoPlan(
        f"no conversation in the columns {_list(found)}: text in {text!r}, but neither an answer "
        "nor a label nor a score"
    )


def _plan_images(found: Columns) -> Plan | NoPlan:
    column = find_image(found)
    if column is None:
        return NoPlan(f"no column of images among {_list(found)}", _SAY_IMAGES)
    label = find_role("label", found, (column.name,))
    if label is None:
        return NoPlan(
            f"images in the column {column.name!r}, but no label",
            _SAY_IMAGES,
        )
    words = f"image column {column.name!r}, label column {label!r}"
    return Plan(
        format="image-label",
        task="image",
        columns={"image": column.name, "label": label},
        seen_as=words,
    )


# ---- what the user says ----


def plan_by_request(
    found: Columns,
    task: Task | None,
    format: str | None,
    columns: Mapping[str, str],
    name: str,
) -> Plan | NoPlan:
    """Follow what the user says; guess only the roles that are left.

    Raises:
        DataError: A role or column that does not exist, or words that contradict each other.
    """
    given = _check_columns(found, columns, name)
    extra = {role: column for role, column in given.items() if role in ("id", "group")}
    if format is None and given == extra:
        plan = plan_by_rows(found, task)
        if isinstance(plan, NoPlan):
            return plan
        columns = {**plan.columns, **extra}
        return Plan(
            format=plan.format,
            task=plan.task,
            columns=columns,
            seen_as=plan.seen_as,
            is_news=plan.is_news,
        )
    kind = format or _format_of(given, task)
    wanted = FORMATS[kind]
    if task is not None and wanted.task != task:
        raise DataError(
            f"task={task!r} does not go with {f'format={kind!r}' if format else 'these columns'}, "
            f"which is for {wanted.task}. Leave one of them out."
        )
    filled = dict(given)
    if format == "alpaca" and not given:
        known = _plan_known_pair(found)
        filled |= known.columns if known else {}
    for role in wanted.roles:
        if role not in filled:
            column = find_role(role, found, tuple(filled.values())) or _last_left(
                found, filled, role
            )
            if column is None:
                raise DataError(
                    f"{name}: no column is plainly the {role} that format {kind!r} needs. Say "
                    f'which with columns={{"{role}": …}}; the columns are {_list(found)}.'
                )
            filled[role] = column
    for role in ("system", "input") if wanted.task == "chat" else ():
        lone = [name for name in found if name.strip().casefold() == role]
        if role not in filled and lone and (role == "system" or kind == "alpaca"):
            filled[role] = lone[0]
    shown = [role for role in filled if role not in ("id", "group")]
    words = ", ".join(f"{role} column {filled[role]!r}" for role in shown)
    if "messages" in filled:
        words = f"{'ShareGPT' if kind == 'sharegpt' else 'messages'} in {filled['messages']!r}"
    return Plan(format=kind, task=wanted.task, columns=filled, seen_as=words)


def _last_left(found: Columns, filled: Mapping[str, str], role: str) -> str | None:
    """Give the one column that is left, where the user named all others."""
    if role in ("messages", "image"):
        return None
    return only_name([c for c in usable_columns(found) if c.name not in filled.values()])


def _check_columns(found: Columns, columns: Mapping[str, str], name: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for said, column in columns.items():
        role = _ALIASES.get(said, said)
        if role not in _ROLES:
            raise DataError(f"columns: {said!r} is no role.{near_names(str(said), _ROLES)}")
        if column not in found:
            raise DataError(
                f"columns: {said}={column!r}: {name} has no such column."
                f"{near_names(str(column), [str(key) for key in found])}"
            )
        given[role] = column
    return given


def _format_of(given: Mapping[str, str], task: Task | None) -> str:
    if "messages" in given:
        return "messages"
    if "image" in given or task == "image":
        return "image-label"
    if "score" in given or task == "regress":
        return "text-score"
    if "text" in given or "label" in given or task == "classify":
        return "text-label"
    return "question-answer"
