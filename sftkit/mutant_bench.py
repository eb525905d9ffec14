"""What every model of a mutant matrix is trained and asked with: one base model, one exam.

A training puts a fresh adapter on the base and takes it off in the end, so there is never a second
base model in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit import catalog
from sftkit.errors import SettingsError
from sftkit.evidence.mutant_checks import Predicted, Shown
from sftkit.forward import unwrapped
from sftkit.settings import Recipe, TrainSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.contamination import Overlap
    from sftkit.dataset.split import Splits
    from sftkit.evidence.behaviour_cases import Plan
    from sftkit.evidence.exam import Exam, Scores
    from sftkit.prepare_labels import PreparedLabels

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ChatBench:
    """A base model, its data, and the exam that every model takes."""

    recipe: Recipe
    base: Any
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    splits: Splits
    exam: Exam
    before: Scores

    @classmethod
    def of(cls, recipe: Recipe, note: Note) -> ChatBench:
        """Load what the recipe names, and put the exam to the base model."""
        from sftkit import model, prepare
        from sftkit.evidence.exam import make_exam
        from sftkit.run import agree_on_dtype

        if recipe.data.task != "chat":
            raise SettingsError("try_chat_mutants takes data.task=chat; see try_label_mutants.")
        settings = recipe.evaluate
        source = catalog.fetch_model(recipe.model, progress=note)
        tokenizer = model.load_tokenizer(recipe.model, source=source)
        probes = {
            name: catalog.probe_items(name, settings.items_per_probe, progress=note)
            for name in settings.probes
        }
        dataset, splits, _ = prepare.audited_splits(recipe.data, tokenizer, note=note)
        dtype = agree_on_dtype(recipe.model).dtype
        base = model.load_model(recipe.model, dtype=dtype, source=source)
        exam = make_exam(splits, probes, tokenizer, settings, data=recipe.data, note=note)
        return cls(
            recipe=recipe,
            base=base,
            tokenizer=tokenizer,
            dataset=dataset,
            splits=splits,
            exam=exam,
            before=exam.score(base),
        )

    @contextlib.contextmanager
    def trained(
        self,
        splits: Splits,
        *,
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: TrainSettings | None = None,
    ) -> Iterator[tuple[Any, Overlap]]:
        """Train a fresh adapter, and say which tested rows it was trained on."""
        from sftkit import objectives, prepare
        from sftkit.dataset.contamination import find_overlap

        recipe = self.recipe
        data = prepare.encode_splits(recipe, self.dataset, splits, tokenizer or self.tokenizer)
        objective = objectives.make_objective("chat", recipe.objective)
        train = dataclasses.replace(settings or recipe.train, seed=seed)
        with _trained(self.base, recipe, data.train, train, objective=objective) as model:
            yield model, find_overlap(splits.train, splits.test, kinds=("exact", "near"))

    def show(
        self,
        model: Any,
        overlap: Overlap,
        *,
        served_again: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Shown:
        """Put the exam to a model; with another tokenizer, its questions are written otherwise."""
        from sftkit.evidence.learning import make_learning_test
        from sftkit.records import is_exact

        exam, data = self.exam, self.recipe.data
        if tokenizer is not None:
            learning = make_learning_test(
                list(self.splits.test),
                list(self.splits.control),
                tokenizer,
                self.recipe.evaluate,
                max_tokens=data.max_tokens,
                system=data.system,
                seed=data.seed,
            )
            exam = dataclasses.replace(exam, learning=learning)
        after = exam.score(model)
        outcome = exam.compare(self.before, after)
        test = exam.learning
        asked = [place for place, split in enumerate(test.splits) if split == "test"]

        def rights(scores: Scores) -> list[float]:
            said = scores.learning.answers
            return [float(is_exact(said[place].text, test.expected[place])) for place in asked]

        return Shown(
            right=rights(after),
            before=rights(self.before),
            said=[answer.text for answer in after.learning.answers],
            groups=[test.groups[place] for place in asked],
            losses=[loss.mean for loss in after.learning.heldout],
            weights=[float(loss.tokens) for loss in after.learning.heldout],
            loss_groups=[example.group for example in test.heldout],
            overlap=overlap,
            served_again=served_again,
            dtype=str(unwrapped(model).dtype).removeprefix("torch."),
            ended=[float(answer.ended) for answer in after.learning.answers],
            verdicts=outcome.verdicts,
            checks=outcome.checks,
        )


@dataclass(frozen=True, kw_only=True)
class LabelBench:
    """A base model with a head, its data, and what it has to beat."""

    recipe: Recipe
    base: Any
    tokenizer: PreTrainedTokenizerBase
    data: PreparedLabels
    baselines: Mapping[str, np.ndarray]
    plans: tuple[Plan, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, note: Note) -> LabelBench:
        """Load what the recipe names, and train the baselines."""
        from sftkit import heads, model
        from sftkit.check_labels import plan_label_behaviour
        from sftkit.prepare_labels import prepare_labels
        from sftkit.run import agree_on_dtype
        from sftkit.run_labels import make_baselines

        if recipe.data.task != "classify":
            raise SettingsError("try_label_mutants takes data.task=classify.")
        source = catalog.fetch_model(recipe.model, progress=note)
        tokenizer = model.load_tokenizer(recipe.model, source=source)
        data = prepare_labels(recipe, tokenizer=tokenizer, note=note)
        plans = plan_label_behaviour(recipe, data, tokenizer)
        base = heads.load_with_head(
            recipe.model,
            recipe.data.task,
            data.targets,
            tokenizer=tokenizer,
            dtype=agree_on_dtype(recipe.model).dtype,
            source=source,
            seed=recipe.train.seed,
        )
        baselines = {one.name: one.test for one in make_baselines(recipe, data)}
        return cls(
            recipe=recipe,
            base=base,
            tokenizer=tokenizer,
            data=data,
            baselines=baselines,
            plans=plans,
        )

    @contextlib.contextmanager
    def trained(
        self, examples: Sequence[Any], *, seed: int, settings: TrainSettings | None = None
    ) -> Iterator[Any]:
        """Train a fresh adapter and head."""
        from sftkit import objectives
        from sftkit.labelled import collate_texts

        recipe = self.recipe
        with _trained(
            self.base,
            recipe,
            examples,
            dataclasses.replace(settings or recipe.train, seed=seed),
            objective=objectives.make_objective(recipe.data.task, recipe.objective),
            task_type="SEQ_CLS",
            collate=collate_texts,
        ) as model:
            yield model

    def show(self, model: Any, *, served_again: bool = False, leaked: bool = False) -> Shown:
        """Ask a classifier about the test and validation items."""
        from sftkit.check_labels import check_labels
        from sftkit.dataset.contamination import find_overlap
        from sftkit.evidence.calibration import Answered, measure_calibration
        from sftkit.evidence.label_scores import score_labels, true_values
        from sftkit.evidence.labels import evaluate_labels
        from sftkit.prepare_labels import texts_of

        data, settings = self.data, self.recipe.evaluate
        true, held_true = (true_values(part, data.targets) for part in (data.test, data.validation))
        said, held = (score_labels(model, p, data.targets) for p in (data.test, data.validation))
        groups = tuple(example.group for example in data.test)
        names = data.targets.labels
        report = evaluate_labels(
            true,
            said,
            task="classify",
            groups=groups,
            classes=names,
            baselines=self.baselines,
            resamples=settings.resamples,
        )
        calibration = measure_calibration(
            Answered(probabilities=said, targets=true, groups=groups), resamples=settings.resamples
        )
        tested = texts_of(data.splits.test, data.test)
        checks = check_labels(
            self.recipe,
            data,
            model,
            self.tokenizer,
            true=true,
            said=said,
            texts=tested,
            plans=self.plans,
        )
        trained = texts_of(data.balanced, data.train) + (tested if leaked else [])
        rows = np.arange(len(true))
        return Shown(
            right=(said.argmax(axis=1) == true).astype(float).tolist(),
            before=(self.baselines["tf-idf"].argmax(axis=1) == true).astype(float).tolist(),
            said=[names[place] for place in said.argmax(axis=1)],
            groups=groups,
            losses=(-np.log(np.maximum(said[rows, true], 1e-12))).tolist(),
            weights=[1.0] * len(rows),
            loss_groups=groups,
            overlap=find_overlap(trained, tested, kinds=("exact", "near")),
            served_again=served_again,
            predicted=Predicted(
                report=report,
                true=true.tolist(),
                said=said.argmax(axis=1).tolist(),
                validation_true=held_true.tolist(),
                validation_said=held.argmax(axis=1).tolist(),
            ),
            checks=dataclasses.replace(checks, calibration=calibration),
        )


@contextlib.contextmanager
def _trained(
    base: Any,
    recipe: Recipe,
    examples: Sequence[Any],
    settings: TrainSettings,
    *,
    task_type: str = "CAUSAL_LM",
    **options: Any,
) -> Iterator[Any]:
    """Put a fresh adapter on the base, train it, and take it off in the end."""
    from sftkit import adapter, optim
    from sftkit.train import train

    model = adapter.attach_adapter(base, recipe.adapter, seed=settings.seed, task_type=task_type)
    try:
        scales = optim.rate_scales(recipe.adapter)
        train(model, examples, settings, rate_scales=scales, **options)
        yield model
    finally:
        adapter.take_apart(base)
