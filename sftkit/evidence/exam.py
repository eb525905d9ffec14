"""The exam: everything that is asked of base and tuned model alike, and how the two compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.evidence.cache import cached_scores
from sftkit.evidence.forgetting import (
    ForgettingScores,
    ForgettingTest,
    compare_forgetting,
    make_forgetting_test,
    score_forgetting,
)
from sftkit.evidence.learning import (
    LearningScores,
    LearningTest,
    compare_learning,
    make_learning_test,
    score_learning,
    side_by_side,
)
from sftkit.evidence.verdicts import decide
from sftkit.forward import unwrapped
from sftkit.records import Answer, ChoiceItem, Environment, Forgot, Learned, Verdicts
from sftkit.settings import DataSettings, EvaluateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.split import Splits


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One model's results on an exam."""

    learning: LearningScores
    forgetting: ForgettingScores


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base and tuned model compared on an exam.

    Attributes:
        learned: What was learned.
        forgot: What was forgotten.
        verdicts: The same in words.
        answers: Every question with both models' answers.
    """

    learned: Learned
    forgot: Forgot
    verdicts: Verdicts
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """All questions, put to base and tuned model alike."""

    learning: LearningTest
    forgetting: ForgettingTest
    settings: EvaluateSettings
    tokenizer: PreTrainedTokenizerBase

    def score(self, model: Any) -> Scores:
        """Put all questions to one model."""
        return Scores(
            learning=score_learning(model, self.tokenizer, self.learning, self.settings),
            forgetting=score_forgetting(model, self.forgetting),
        )

    def compare(self, before: Scores, after: Scores) -> Outcome:
        """Compare base and tuned model, question by question, and say what follows."""
        learned = compare_learning(self.learning, before.learning, after.learning, self.settings)
        forgot = compare_forgetting(
            self.forgetting, before.forgetting, after.forgetting, self.settings
        )
        return Outcome(
            learned=learned,
            forgot=forgot,
            verdicts=decide(learned, forgot, self.settings),
            answers=side_by_side(self.learning, before.learning, after.learning),
        )


def make_exam(
    splits: Splits,
    probes: Mapping[str, Sequence[ChoiceItem]],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    data: DataSettings,
    note: Callable[[str], None] = lambda text: None,
) -> Exam:
    """Prepare what is asked for the report.

    Args:
        splits: Their test and control rows are asked.
        probes: Questions per probe name.
        tokenizer: The model's tokenizer.
        settings: Which measures, and how many items.
        data: How conversations are encoded, as in training.
        note: Told what is slow.
    """
    wanted = settings.drift_passages
    passages = catalog.passages(settings.drift_source, wanted, progress=note) if wanted else []
    return Exam(
        learning=make_learning_test(
            list(splits.test),
            list(splits.control),
            tokenizer,
            settings,
            max_tokens=data.max_tokens,
            system=data.system,
            seed=data.seed,
        ),
        forgetting=make_forgetting_test(probes, passages, tokenizer, settings),
        settings=settings,
        tokenizer=tokenizer,
    )


def make_trial(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    data: DataSettings,
    passages: int = 20,
    note: Callable[[str], None] = lambda text: None,
) -> Exam:
    """Prepare a small exam to choose by: no row and no passage of it is asked for the report.

    Args:
        splits: Their validation rows are asked.
        tokenizer: The model's tokenizer.
        settings: Those of the report; its passages come first in their file and are skipped.
        data: How conversations are encoded, as in training.
        passages: General passages, at most.
        note: Told what is slow.
    """
    reported = settings.drift_passages
    spare = catalog.passages(settings.drift_source, reported + passages, progress=note)[reported:]
    return Exam(
        learning=make_learning_test(
            list(splits.validation),
            [],
            tokenizer,
            settings,
            max_tokens=data.max_tokens,
            system=data.system,
            seed=data.seed,
        ),
        forgetting=make_forgetting_test({}, spare, tokenizer, settings),
        settings=settings,
        tokenizer=tokenizer,
    )


def score_base(model: Any, exam: Exam, environment: Environment) -> Scores:
    """Score the base model, or take its scores from the cache.

    Args:
        model: The base model, or a tuned one whose adapter is switched off.
        exam: The questions.
        environment: Everything else the numbers depend on.
    """
    key = {
        "environment": dataclasses.replace(environment, seed=0, dtype_reason=""),
        "attention": unwrapped(model).config._attn_implementation,
        "learning": exam.learning,
        "forgetting": exam.forgetting,
        "max_new_tokens": exam.settings.max_new_tokens,
    }
    return cached_scores(Scores, key, lambda: exam.score(model))
