"""Gain against forgetting over a small grid of recipes: which of them is no other better than?

All points are measured by what may choose (validation rows, the choosing half of every probe,
passages of their own). What is reported is asked of the chosen point and of points that were named
beforehand, by the other half, and never decides anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.errors import SettingsError
from sftkit.frontier_records import Asked, Frontier, FrontierPoint, FrontierReport, Items
from sftkit.prepare import PreparedData, prepare_data
from sftkit.recipe import recipe_to_dict
from sftkit.settings import Recipe, to_plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.evidence.exam import Exam, Scores
    from sftkit.records import ChoiceItem, Environment

Note = Callable[[str], None]
PASSAGES = 40
"""General passages that may choose; those of the report come first in their file."""


@dataclass(frozen=True, kw_only=True)
class FrontierBench:
    """One base model with its two exams, and what was trained on it: nothing is done twice."""

    recipe: Recipe
    base: Any
    tokenizer: PreTrainedTokenizerBase
    probes: Mapping[str, Sequence[ChoiceItem]]
    trial: Exam
    exam: Exam
    environment: Environment
    trained: dict[str, tuple[dict[str, Any], int, float]] = field(default_factory=dict)
    scored: dict[tuple[str, float], Scores] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        *,
        passages: int = PASSAGES,
        like: FrontierBench | None = None,
        note: Note = print,
    ) -> FrontierBench:
        """Load what a recipe names, and prepare both exams.

        Args:
            recipe: Any of the recipes that are to be tried: they agree in all that is asked.
            passages: General passages that may choose.
            like: A bench with the same model settings, whose base is used again.
            note: Told what is slow.

        Raises:
            SettingsError: The task is not chat, nothing would measure forgetting, or the model
                settings are others.
        """
        from sftkit import loading, model
        from sftkit.environment import describe_environment
        from sftkit.evidence.exam import make_exam, make_trial
        from sftkit.run import agree_on_dtype

        settings = recipe.evaluate
        if recipe.data.task != "chat" or not (settings.probes and settings.drift_passages):
            raise SettingsError(
                "A frontier needs data.task=chat and both measures of forgetting: "
                f"evaluate.probes and evaluate.drift_passages. Given: task {recipe.data.task}, "
                f"{len(settings.probes)} probes, {settings.drift_passages} passages."
            )
        if like is not None and like.recipe.model != recipe.model:
            raise SettingsError(
                f"like= holds model {like.recipe.model.name} with other settings than recipe "
                f"{recipe.name} asks for ({recipe.model.name}). Leave it out to load another base."
            )
        source = catalog.fetch_model(recipe.model, progress=note)
        choice = agree_on_dtype(recipe.model)
        device = model.pick_device(recipe.model)
        loading.check_model(recipe.model, device, choice.dtype)
        tokenizer = model.load_tokenizer(recipe.model, source=source)
        probes = {
            name: catalog.probe_items(name, settings.items_per_probe, progress=note)
            for name in settings.probes
        }
        data = _prepare(recipe, tokenizer, probes, passages=passages)
        base = (
            like.base
            if like is not None
            else model.load_model(recipe.model, dtype=choice.dtype, source=source)
        )
        model.check_trainable(base)
        quick = dataclasses.replace(
            settings, knowledge="none", baselines=(), fairness=(), behaviour="", calibration=False
        )
        asked: dict[str, Any] = {"data": recipe.data, "probes": probes, "tokenizer": tokenizer}
        return cls(
            recipe=recipe,
            base=base,
            tokenizer=tokenizer,
            probes=probes,
            trial=make_trial(data.splits, settings=quick, passages=passages, note=note, **asked),
            exam=make_exam(data.splits, settings=settings, half="report", note=note, **asked),
            environment=describe_environment(recipe, base, source, choice),
        )

    def base_scores(self, exam: Exam) -> Scores:
        """Score the base model, or take its scores from the cache."""
        from sftkit.evidence.exam import score_base

        return score_base(self.base, exam, self.environment)

    @contextlib.contextmanager
    def tuned(self, recipe: Recipe, note: Note) -> Iterator[Any]:
        """Attach a recipe's adapter, trained now or before, and take it off in the end."""
        from sftkit import adapter, train
        from sftkit.objectives import make_objective
        from sftkit.optim import rate_scales
        from sftkit.regularise import trained_parameters
        from sftkit.run import make_measure

        key, kept = _key(recipe), self.trained.get(_key(recipe))
        model = adapter.attach_adapter(self.base, recipe.adapter, seed=recipe.train.seed)
        try:
            if kept is None:
                passages = len(self.trial.forgetting.passages)
                data = _prepare(recipe, self.tokenizer, self.probes, passages=passages)
                train.refuse_if_nothing_to_learn(model, data.train)
                clock = time.perf_counter()
                record = train.train(
                    model,
                    data.train,
                    recipe.train,
                    objective=make_objective("chat", recipe.objective),
                    measure=make_measure(model, data.validation)
                    if recipe.train.early_stopping
                    else None,  # the trial asks the same rows afterwards
                    rate_scales=rate_scales(recipe.adapter),
                )
                seconds = time.perf_counter() - clock
                weights = {
                    name: value.detach().clone()
                    for name, value in trained_parameters(model).items()
                }
                self.trained[key] = (weights, len(record.steps), seconds)
                note(f"{recipe.name}: {len(record.steps)} steps in {seconds:.0f} s")
            else:
                _put_back(model, kept[0])
            yield model
        finally:
            adapter.take_apart(self.base)

    def score(self, recipe: Recipe, strengths: Sequence[float], note: Note) -> list[Scores]:
        """Put what may choose to one trained adapter at several strengths."""
        from sftkit.adapter import adapter_scaled

        key = _key(recipe)
        missing = [one for one in strengths if (key, one) not in self.scored]
        if missing:
            with self.tuned(recipe, note) as model:
                for strength in missing:
                    with adapter_scaled(model, strength):
                        self.scored[key, strength] = self.trial.score(model)
        return [self.scored[key, strength] for strength in strengths]

    def report(self, recipe: Recipe, strength: float, note: Note) -> FrontierReport:
        """Put what reports to one trained adapter at one strength."""
        from sftkit.adapter import adapter_scaled

        before = self.base_scores(self.exam)
        with self.tuned(recipe, note) as model, adapter_scaled(model, strength):
            after = self.exam.score(model)
        outcome = self.exam.compare(before, after)
        return FrontierReport(
            name=_name(recipe, strength),
            learned=outcome.learned,
            forgot=outcome.forgot,
            verdicts=outcome.verdicts,
        )


def frontier(
    recipes: Sequence[Recipe],
    *,
    strengths: Mapping[str, Sequence[float]] | None = None,
    report: Sequence[str] = (),
    bench: FrontierBench | None = None,
    note: Note = print,
) -> Frontier:
    """Train every recipe, measure gain against forgetting, choose one point, and report on it.

    Each training goes through the stages of `run`. The base is loaded once: every adapter is taken
    off again.

    Args:
        recipes: What is tried. They may differ in adapter, training and replay, and in nothing
            that decides what is asked.
        strengths: By a recipe's name, at which strengths its adapter is measured after training;
            the others at 1, as trained.
        report: Names of points that are reported whatever is chosen.
        bench: A bench of earlier calls, whose trainings and measurements are taken over.
        note: Told of each training and each report.

    Raises:
        SettingsError: Recipes that are not asked the same, names that do not fit.
        AdapterError: An adapter could not be taken off again without a trace, or not be scaled.
    """
    grid = _check_grid(recipes, strengths or {}, report)
    bench = bench or FrontierBench.of(recipes[0], note=note)
    for recipe in recipes:
        _refuse_other_questions(recipe, bench.recipe)
    base = bench.base_scores(bench.trial)
    points: list[FrontierPoint] = []
    where: dict[str, tuple[Recipe, float]] = {}
    for recipe, wanted in grid:
        for strength, scores in zip(wanted, bench.score(recipe, wanted, note), strict=True):
            whole = recipe.adapter.strength * strength
            adapter = dataclasses.replace(recipe.adapter, strength=whole)
            _, steps, seconds = bench.trained[_key(recipe)]
            point = FrontierPoint(
                name=_name(recipe, strength),
                series=recipe.name,
                strength=whole,
                recipe=recipe_to_dict(dataclasses.replace(recipe, adapter=adapter)),
                steps=steps,
                seconds=seconds,
                items=_items(bench.trial, scores),
            )
            points.append(point)
            where[point.name] = (recipe, strength)
    measured = Frontier(
        asked=_asked(bench.trial, base),
        base=_items(bench.trial, base),
        points=tuple(points),
        drift_margin=bench.recipe.evaluate.drift_margin,
        ability_margin=bench.recipe.evaluate.ability_margin,
        resamples=bench.recipe.evaluate.resamples,
    )
    chosen, why = measured.choose()
    reports = []
    for name in dict.fromkeys((*report, chosen)):
        reports.append(bench.report(*where[name], note))
        note(f"{name}, reported: {reports[-1].verdicts.summary}")
    return dataclasses.replace(measured, chosen=chosen, why=why, reports=tuple(reports))


def save_frontier(measured: Frontier, path: str | Path) -> Path:
    """Write a frontier as JSON; secrets found in its texts are blacked out."""
    from sftkit.records import to_json
    from sftkit.report.redact import redact_record

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(redact_record(measured)), encoding="utf-8")
    return path


def load_frontier(path: str | Path) -> Frontier:
    """Read a frontier back.

    Raises:
        RecordError: The file is no frontier.
        OSError: It cannot be read.
    """
    from sftkit.records import from_json

    return from_json(Frontier, Path(path).read_text(encoding="utf-8"))


def _prepare(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Sequence[ChoiceItem]],
    *,
    passages: int,
) -> PreparedData:
    """Prepare a recipe's examples; no passage that chooses or reports is replayed."""
    kept_apart = recipe.evaluate.drift_passages + passages
    evaluate = dataclasses.replace(recipe.evaluate, drift_passages=kept_apart)
    return prepare_data(dataclasses.replace(recipe, evaluate=evaluate), tokenizer, probes)


def _check_grid(
    recipes: Sequence[Recipe], strengths: Mapping[str, Sequence[float]], report: Sequence[str]
) -> list[tuple[Recipe, tuple[float, ...]]]:
    """Pair every recipe with its strengths, and refuse names that do not fit."""
    from sftkit.sweep import refuse_if_it_leaves_traces

    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) < len(names):
        raise SettingsError(f"A frontier needs recipes of different names, got {names}.")
    if unknown := sorted(set(strengths) - set(names)):
        raise SettingsError(f"strengths names {unknown}; the recipes are {names}.")
    grid = []
    for recipe in recipes:
        refuse_if_it_leaves_traces(recipe.adapter)
        wanted = tuple(dict.fromkeys(float(one) for one in strengths.get(recipe.name, (1.0,))))
        if not wanted or min(wanted) <= 0:
            raise SettingsError(
                f"strengths of {recipe.name} must be above 0, got {wanted}. At 0 it is the base, "
                "which is measured anyway."
            )
        grid.append((recipe, wanted))
    points = [_name(recipe, strength) for recipe, wanted in grid for strength in wanted]
    if unknown := sorted(set(report) - set(points)):
        raise SettingsError(f"report names {unknown}; the points are {points}.")
    return grid


def _refuse_other_questions(recipe: Recipe, first: Recipe) -> None:
    """Refuse a recipe whose points could not be compared with those of another."""

    def fixed(one: Recipe) -> dict[str, Any]:
        free = ("replay", "replay_share", "replay_unit", "balance", "balance_by")
        data = {name: value for name, value in to_plain(one.data).items() if name not in free}
        return {"model": to_plain(one.model), "data": data, "evaluate": to_plain(one.evaluate)}

    ours, theirs = fixed(recipe), fixed(first)
    unlike = [
        f"{part}.{name}"
        for part in ours
        for name in ours[part]
        if ours[part][name] != theirs[part][name]
    ]
    if unlike:
        raise SettingsError(
            f"Recipe {recipe.name} and {first.name} differ in {', '.join(unlike)}, so they would "
            "not be asked the same. Recipes of a frontier differ in adapter, objective, train, and "
            "in data.replay and data.balance."
        )


def _key(recipe: Recipe) -> str:
    """Name all that a training depends on, within one bench."""
    adapter = dataclasses.replace(recipe.adapter, strength=1.0)
    parts = {"data": recipe.data, "adapter": adapter, "train": recipe.train}
    return json.dumps(to_plain({**parts, "objective": recipe.objective}), sort_keys=True)


def _name(recipe: Recipe, strength: float) -> str:
    return recipe.name if strength == 1 else f"{recipe.name} × {strength:g}"


def _put_back(model: Any, weights: Mapping[str, Any]) -> None:
    import torch

    from sftkit.regularise import trained_parameters

    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(weights[name])


def _asked(trial: Exam, scores: Scores) -> Asked:
    learning, forgetting = trial.learning, trial.forgetting
    return Asked(
        answers=tuple(one.group or str(place) for place, one in enumerate(learning.heldout)),
        answer_tokens=tuple(one.tokens for one in scores.learning.heldout),
        passage_tokens=tuple(one.tokens for one in scores.forgetting.passages),
        probes=forgetting.names,
        half=forgetting.half,
    )


def _items(trial: Exam, scores: Scores) -> Items:
    asked = list(zip(trial.forgetting.items, scores.forgetting.choices, strict=True))
    return Items(
        answers=tuple(one.mean for one in scores.learning.heldout),
        passages=tuple(one.mean for one in scores.forgetting.passages),
        right=tuple(float(score.picked == item.answer) for item, score in asked),
        logprobs=tuple(score.per_token(item.answer) for item, score in asked),
    )
