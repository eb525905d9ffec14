"""What the base model can do when it is only asked better: baselines a fine-tune has to beat."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftkit.errors import SettingsError
from sftkit.evidence.learning import LearningTest, Rows, Turns, make_learning_test
from sftkit.settings import DataSettings, EvaluateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_baseline_tests(
    test: Rows,
    train: Rows,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    data: DataSettings,
) -> dict[str, LearningTest]:
    """Prepare the test's questions once more, asked as each baseline asks them.

    Args:
        test: The rows that are asked of base and tuned model.
        train: Training rows, which examples are drawn from.
        tokenizer: The model's tokenizer.
        settings: Which baselines, how many examples, which system prompt.
        data: How conversations are encoded, as in training, and the seed of the draw.

    Returns:
        Per baseline a test of the same questions in the same order. Control rows are not asked,
        and the loss of held-out answers is not measured.

    Raises:
        SettingsError: There are too few groups of training rows to draw examples from.
    """
    tests: dict[str, LearningTest] = {}
    for name in settings.baselines:
        shots = _draw_shots(train, settings, data) if name == "few-shot" else []

        def lead_in(turns: Turns, group: str, shots: Sequence[_Shot] = shots) -> Turns:
            return _show_first(shots, turns, group, settings.few_shot)

        made = make_learning_test(
            test,
            [],
            tokenizer,
            settings,
            max_tokens=data.max_tokens,
            system=data.system if name == "few-shot" else settings.system_prompt,
            seed=data.seed,
            lead_in=lead_in,
        )
        how = (
            f"the base model, shown {settings.few_shot} training examples as earlier turns (drawn "
            f"with seed {data.seed}, none of the group that is asked about)"
            if name == "few-shot"
            else f"the base model with the system prompt {settings.system_prompt!r}"
        )
        tests[name] = dataclasses.replace(made, heldout=(), heldout_texts=(), how=how)
    return tests


_Shot = tuple[str, Turns]
"""Group of a training row, and its turns."""


def _draw_shots(train: Rows, settings: EvaluateSettings, data: DataSettings) -> list[_Shot]:
    """Draw one row of each of several groups, one more than are shown to any question."""
    needed = settings.few_shot + 1
    order = list(range(len(train)))
    random.Random(data.seed).shuffle(order)  # noqa: S311  (a choice of examples, not a secret)
    shots: dict[str, Turns] = {}
    for place in order:
        if len(shots) == needed:
            break
        row: Mapping[str, Any] = train[place]
        turns = [dict(turn) for turn in row["messages"] if turn["role"] != "system"]
        shots.setdefault(str(row["group"]), turns)
    if len(shots) < needed:
        raise SettingsError(
            f"evaluate.baselines: few-shot with few_shot={settings.few_shot} needs training rows "
            f"of {needed} groups, so that no question is shown its own; there are {len(shots)}. "
            "Lower few_shot, or leave few-shot out."
        )
    return list(shots.items())


def _show_first(shots: Sequence[_Shot], turns: Turns, group: str, count: int) -> Turns:
    """Put examples of other groups behind a system prompt and before the question."""
    chosen = [before for other, before in shots if other != group][:count]
    shown = [turn for before in chosen for turn in before]
    start = 1 if turns and turns[0]["role"] == "system" else 0
    return [*turns[:start], *shown, *turns[start:]]
