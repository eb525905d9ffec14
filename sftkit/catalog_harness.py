"""Tasks of lm-evaluation-harness as probes, by the harness's name for them.

The harness says what is asked and what is right; sftkit scores it, base and tuned model alike.
"""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path
from typing import Any

from sftkit.errors import FetchError
from sftkit.records import ChoiceItem

PREFIX = "harness:"
INSTALL = "python -m pip install -c constraints.txt -e '.[harness]'"


def harness_items(
    name: str, limit: int | None = None, *, folder: Path | None = None
) -> list[ChoiceItem]:
    """Give the questions of one task, without examples before them, in the order of its data.

    Args:
        name: `harness:` and the name of a multiple-choice task, as harness:arc_easy.
        limit: First so many questions; None gives all.
        folder: Task files of one's own to look in, in place of those of the harness. They may run
            code: only files that you would run belong there. No recipe reaches this.

    Raises:
        FetchError: The harness is not installed, has no such task, the task is of another kind, or
            its data cannot be had.
    """
    task_name = name.removeprefix(PREFIX)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise FetchError(
            f"{name}: lm-evaluation-harness is not installed. Run: {INSTALL}"
        ) from error
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if task_name not in manager.all_subtasks:
        raise FetchError(_no_such_task(task_name, manager))
    try:
        task = manager.load([task_name])["tasks"][task_name]
        rows = list(islice(task.eval_docs, limit))
    except (OSError, ValueError, ImportError) as error:
        raise FetchError(f"{name}: its data cannot be had: {error}") from error
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        raise FetchError(
            f"{name}: answered by {task.OUTPUT_TYPE.replace('_', ' ')}. Only one prompt with "
            "several answers to choose from can be a probe."
        )
    return [_item(task, row) for row in rows]


def _item(task: Any, row: Any) -> ChoiceItem:
    text = str(task.fewshot_context(row, num_fewshot=0))
    prompt = text.rstrip()
    options = tuple(str(option) for option in task.doc_to_choice(row))
    right = task.doc_to_target(row)
    return ChoiceItem(
        question=prompt,
        options=options,
        answer=right if isinstance(right, int) else options.index(str(right)),
        prompt=prompt,
        joint=text[len(prompt) :] + task.config.target_delimiter,
    )


def _no_such_task(name: str, manager: Any) -> str:
    if name in manager.all_groups or name in manager.all_tags:
        return f"{PREFIX}{name} is a group of tasks. Name its tasks one by one."
    near = difflib.get_close_matches(name, manager.all_subtasks)
    return f"lm-evaluation-harness has no task {name!r}." + (
        f" Near it: {', '.join(near)}." if near else ""
    )
