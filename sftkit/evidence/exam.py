"""The exam: everything that is asked of base and tuned model alike, and how the two compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sftkit import catalog
from sftkit.evidence.behaviour import Said
from sftkit.evidence.behaviour_chat import (
    BehaviourExam,
    ask_behaviour,
    compare_behaviour,
    make_behaviour_exam,
)
from sftkit.evidence.cache import cached_scores
from sftkit.evidence.calibration import calibrate_choices
from sftkit.evidence.choice import ChoiceScore
from sftkit.evidence.fairness import correct_for_number
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
from sftkit.evidence.prompting import make_baseline_tests
from sftkit.evidence.stereotypes import BiasTest, compare_bias, make_bias_test, score_bias
from sftkit.evidence.verdicts import decide
from sftkit.evidence_records import Checks
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
    bias: tuple[ChoiceScore, ...] = ()
    behaviour: tuple[Said, ...] = ()
    baselines: Mapping[str, LearningScores] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base and tuned model compared on an exam.

    Attributes:
        learned: What was learned.
        forgot: What was forgotten.
        verdicts: The same in words.
        answers: Every question with both models' answers.
        checks: What was tested beyond learning and forgetting.
    """

    learned: Learned
    forgot: Forgot
    verdicts: Verdicts
    answers: tuple[Answer, ...]
    checks: Checks = field(default_factory=Checks)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """All questions, put to base and tuned model alike."""

    learning: LearningTest
    forgetting: ForgettingTest
    settings: EvaluateSettings
    tokenizer: PreTrainedTokenizerBase
    bias: BiasTest = field(default_factory=BiasTest)
    behaviour: BehaviourExam = field(default_factory=BehaviourExam)
    baselines: Mapping[str, LearningTest] = field(default_factory=dict)

    def score(self, model: Any) -> Scores:
        """Put all questions to one model."""
        return Scores(
            learning=score_learning(model, self.tokenizer, self.learning, self.settings),
            forgetting=score_forgetting(model, self.forgetting),
            bias=score_bias(model, self.bias),
            behaviour=ask_behaviour(
                model,
                self.tokenizer,
                self.behaviour,
                max_new_tokens=self.settings.max_new_tokens,
            ),
        )

    def compare(self, before: Scores, after: Scores) -> Outcome:
        """Compare base and tuned model, question by question, and say what follows."""
        learned = compare_learning(
            self.learning,
            before.learning,
            after.learning,
            self.settings,
            baselines=before.baselines,
        )
        asked = {name: test.how for name, test in self.baselines.items()}
        learned = dataclasses.replace(learned, baselines=asked)
        forgot = compare_forgetting(
            self.forgetting, before.forgetting, after.forgetting, self.settings
        )
        return Outcome(
            learned=learned,
            forgot=forgot,
            verdicts=decide(learned, forgot, self.settings),
            answers=side_by_side(self.learning, before.learning, after.learning),
            checks=self._check(before, after),
        )

    def _check(self, before: Scores, after: Scores) -> Checks:
        """Measure behaviour, fairness and calibration, as far as they were asked for."""
        resamples, asked = self.settings.resamples, self.forgetting
        calibration = None
        if self.settings.calibration:
            calibration = calibrate_choices(
                asked.items,
                asked.names,
                before.forgetting.choices,
                after.forgetting.choices,
                resamples=resamples,
            )
        gaps = compare_bias(self.bias, before.bias, after.bias, resamples=resamples)
        return Checks(
            behaviour=compare_behaviour(self.behaviour, before.behaviour, after.behaviour),
            fairness=correct_for_number(gaps),
            calibration=calibration,
        )


def make_exam(
    splits: Splits,
    probes: Mapping[str, Sequence[ChoiceItem]],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    data: DataSettings,
    half: Literal["all", "report"] = "all",
    note: Callable[[str], None] = lambda text: None,
) -> Exam:
    """Prepare what is asked for the report.

    Args:
        splits: Their test and control rows are asked.
        probes: Questions per probe name.
        tokenizer: The model's tokenizer.
        settings: Which measures, and how many items.
        data: How conversations are encoded, as in training.
        half: "report" where a trial chose by the other half of the probes.
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
        forgetting=make_forgetting_test(probes, passages, tokenizer, settings, half=half),
        settings=settings,
        tokenizer=tokenizer,
        bias=make_bias_test(
            {name: catalog.bias_rows(name, progress=note) for name in settings.fairness},
            tokenizer,
            items=settings.items_per_probe,
        ),
        behaviour=make_behaviour_exam(
            settings.behaviour, splits.test, tokenizer, system=data.system
        ),
        baselines=make_baseline_tests(
            list(splits.test),
            list(splits.train) if "few-shot" in settings.baselines else [],
            tokenizer,
            settings,
            data,
        ),
    )


def make_trial(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    *,
    data: DataSettings,
    probes: Mapping[str, Sequence[ChoiceItem]] | None = None,
    passages: int = 20,
    note: Callable[[str], None] = lambda text: None,
) -> Exam:
    """Prepare a small exam to choose by: no row and no passage of it is asked for the report.

    Where it is given probes, the report has to be made with half="report", and says so.

    Args:
        splits: Their validation rows are asked.
        tokenizer: The model's tokenizer.
        settings: Those of the report; its passages come first in their file and are skipped.
        data: How conversations are encoded, as in training.
        probes: Questions per probe name, of which the choosing half is asked; None asks none.
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
        forgetting=make_forgetting_test(probes or {}, spare, tokenizer, settings, half="choose"),
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
    common = {
        "environment": dataclasses.replace(environment, seed=0, dtype_reason=""),
        "attention": unwrapped(model).config._attn_implementation,
        "max_new_tokens": exam.settings.max_new_tokens,
    }
    key = {
        **common,
        "learning": exam.learning,
        "forgetting": exam.forgetting,
        "bias": exam.bias,
        "behaviour": exam.behaviour.prompts,
    }
    scores = cached_scores(Scores, key, lambda: exam.score(model))

    def ask(test: LearningTest) -> LearningScores:
        return cached_scores(
            LearningScores,
            {**common, "learning": test},
            lambda: score_learning(model, exam.tokenizer, test, exam.settings),
        )

    asked = {name: ask(test) for name, test in exam.baselines.items()}
    return dataclasses.replace(scores, baselines=asked)
