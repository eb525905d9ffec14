"""A recipe with labels or numbers to a finished run: the stages of `run`, with a head and targets.

The loop, the record and the folder are those of every run. What differs is the evidence: metrics on
test items beside those of a linear model, which a fine-tune has to beat.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit import catalog
from sftkit.check_labels import check_labels, plan_label_behaviour
from sftkit.environment import describe_environment, run_fingerprints
from sftkit.errors import DataError, SettingsError
from sftkit.evidence import baselines
from sftkit.evidence.exam import Outcome
from sftkit.evidence.labels import evaluate_labels, judge_labels
from sftkit.prepare_labels import PreparedLabels, prepare_labels, refuse_chat_settings, texts_of
from sftkit.processes import is_main
from sftkit.records import Forgot, Learned, Preflight, RunRecord, Verdict, Verdicts
from sftkit.run import agree_on_dtype, train_adapter
from sftkit.run_folder import Stopwatch, make_record
from sftkit.settings import Recipe, to_plain

if TYPE_CHECKING:
    from sftkit.evidence.baselines import Baseline
    from sftkit.label_records import LabelReport
    from sftkit.labelled import ImageForm
    from sftkit.progress import Watcher

LINEAR_PIXELS = 16
"""Height and width to which images are averaged for the linear baseline."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was predicted for one test row.

    Attributes:
        row: Row number in the test split.
        group: Its group.
        text: Its text; empty for an image.
        target: The right label or number.
        predicted: The tuned model's.
        baseline: The linear baseline's; empty where none was trained.
        scores: Probability of each label; empty for numbers.
    """

    row: int
    group: str
    text: str
    target: str | float
    predicted: str | float
    baseline: str | float
    scores: Mapping[str, float] = field(default_factory=dict)


def carry_out_labels(
    recipe: Recipe,
    folder: Path,
    watcher: Watcher,
    *,
    resume: bool = False,
    allow_changes: Collection[str] = (),
) -> tuple[RunRecord, tuple[Prediction, ...]] | None:
    """Go through all stages in order; see `run.run` and, for other processes, `run.take_part`."""
    from sftkit import adapter, adapter_kinds, heads, loading, model, objectives, optim, train
    from sftkit.evidence.label_scores import make_label_measure, score_labels, true_values
    from sftkit.labelled import collate_images, collate_texts

    note, clock, task = watcher.note, Stopwatch(), recipe.data.task
    if task == "chat":
        raise SettingsError("data.task=chat has no labels. Use run.run, which takes every task.")
    is_image = task == "image"
    task_type = None if is_image else "SEQ_CLS"
    refuse_chat_settings(recipe)
    kind = adapter_kinds.check_kind(
        recipe.adapter, quantization=recipe.model.quantization, task_type=task_type
    )
    source = catalog.fetch_model(recipe.model, progress=note)
    choice = agree_on_dtype(adapter_kinds.model_for(kind, recipe.model))
    device = model.pick_device(recipe.model)
    optim.refuse_optimizer(recipe.train.optimizer, device.type)
    loading.check_model(recipe.model, device, choice.dtype)
    tokenizer = None if is_image else model.load_tokenizer(recipe.model, source=source)
    form = heads.load_image_form(recipe.model, source=source) if is_image else None
    data = prepare_labels(recipe, tokenizer=tokenizer, form=form, note=note)
    clock.done("data")
    others, plans = (
        (make_baselines(recipe, data), plan_label_behaviour(recipe, data, tokenizer))
        if is_main()
        else ((), ())
    )
    clock.done("baselines")

    base = heads.load_with_head(
        recipe.model,
        task,
        data.targets,
        tokenizer=tokenizer,
        dtype=choice.dtype,
        source=source,
        seed=recipe.train.seed,
    )
    model.check_trainable(base)
    environment = describe_environment(recipe, base, source, choice)
    _refuse_too_long(base, data)
    tuned = adapter.attach_adapter(
        base, recipe.adapter, seed=recipe.train.seed, task_type=task_type
    )
    preflight = make_label_preflight(recipe, data, tokenizer)
    kept = heads.keeps_head(source, task, data.targets)
    head = (
        "the head is the checkpoint's own for these labels"
        if kept
        else f"the head is fresh (seed {recipe.train.seed})"
    )
    _tell(preflight, data, str(adapter.count_parameters(tuned)), head, note)
    train.refuse_if_nothing_to_learn(tuned, data.train)
    _write_targets(recipe, data, form, folder)
    clock.done("model")

    objective = objectives.make_objective(task, recipe.objective)
    training = train_adapter(
        recipe,
        tuned,
        data.train,
        folder,
        watcher,
        objective=objective,
        measure=make_label_measure(tuned, data.validation, data.targets, objective, task),
        fingerprints=run_fingerprints(recipe, environment, data.facts, tokenizer),
        resume=resume,
        allow_changes=allow_changes,
        base_fingerprint=source.fingerprint,
        collate=collate_images if is_image else collate_texts,
    )
    clock.done("training")
    if not is_main():
        return None

    note("measuring the tuned model")
    true = true_values(data.test, data.targets)
    said = score_labels(tuned, data.test, data.targets)
    clock.done("tuned measured")
    texts = None if is_image else texts_of(data.splits.test, data.test)
    report = evaluate_labels(
        true,
        said,
        task=task,
        groups=[example.group for example in data.test],
        classes=data.targets.labels,
        baselines={other.name: other.test for other in others},
        resamples=recipe.evaluate.resamples,
        texts=texts,
        rows=[example.row for example in data.test],
    )
    left_out = len(data.splits.test) - len(data.test)
    if left_out:
        words = f"{left_out} test rows were left out because they could not be encoded."
        report = dataclasses.replace(report, notes=(*report.notes, words))
    outcome = Outcome(
        learned=Learned(labels=report),
        forgot=Forgot(),
        verdicts=label_verdicts(report),
        answers=(),
        checks=check_labels(
            recipe, data, tuned, tokenizer, true=true, said=said, texts=texts, plans=plans
        ),
    )
    record = make_record(
        recipe,
        data,
        outcome,
        preflight=preflight,
        training=training,
        environment=environment,
        choice=choice,
        clock=clock,
    )
    return record, list_predictions(data, true, said, others, texts)


def make_baselines(recipe: Recipe, data: PreparedLabels) -> tuple[Baseline, ...]:
    """Train what the fine-tune has to beat.

    Returns:
        The majority class or the mean of the training rows as they were before any balancing; and,
        unless `evaluate.baseline` is none, a linear model on TF-IDF weights, or for images on
        pixels averaged to 16×16.
    """
    from sftkit.evidence.label_scores import true_values

    task, targets = recipe.data.task, data.targets
    given = data.splits.train["score" if task == "regress" else "label"]
    numbers = [targets.number(value) for value in given if value is not None]
    wanted = [true_values(part, targets) for part in (data.train, data.validation)]
    options: dict[str, Any] = {"task": task, "classes": len(targets.labels)}
    constant = baselines.constant_baseline(
        numbers if targets.labels else targets.scores(numbers),  # of no row that is repeated
        validation=len(data.validation),
        test=len(data.test),
        **options,
    )
    if recipe.evaluate.baseline == "none":
        return (constant,)
    options |= {"class_weights": recipe.objective.class_weights, "seed": recipe.train.seed}
    parts = (data.train, data.validation, data.test)
    if task == "image":
        pixels = [_small_pixels(part) for part in parts]
        return constant, baselines.linear_baseline(pixels, (wanted[0], wanted[1]), **options)
    rows = (data.balanced, data.splits.validation, data.splits.test)
    texts = [texts_of(of, part) for of, part in zip(rows, parts, strict=True)]
    try:
        return constant, baselines.tfidf_baseline(
            (texts[0], wanted[0]), (texts[1], wanted[1]), texts[2], **options
        )
    except ValueError as error:  # such as texts that share no word
        raise DataError(
            f"No TF-IDF baseline can be trained on these texts: {error} Set evaluate.baseline: "
            "none, and say in the report that there was none."
        ) from error


def label_verdicts(report: LabelReport) -> Verdicts:
    """Write the verdicts of a run on labels: whether it beats its baseline, and what is unknown.

    What the base forgot is not looked for: with a head instead of its own output, or none, it
    neither answers questions nor predicts text.
    """
    beats = judge_labels(report)
    nothing = "a model with a head for labels"

    def unmeasured(sentence: str) -> Verdict:
        return Verdict(state="unmeasured", sentence=sentence)

    return Verdicts(
        knowledge=beats,
        style=unmeasured("Labels have no wording, so no style was measured."),
        ability=unmeasured(f"No ability probe was run: {nothing} answers no questions."),
        drift=unmeasured(f"Drift on general text was not measured: {nothing} predicts no text."),
        summary=f"{beats.sentence} What the base forgot was not measured.",
    )


def make_label_preflight(recipe: Recipe, data: PreparedLabels, tokenizer: Any) -> Preflight:
    """Say what the run would do, before its first step.

    Every example teaches one label, so it counts as one supervised token; an image counts as one
    token in all.
    """
    from sftkit.show import token_texts
    from sftkit.train import plan_steps

    lengths = [example.length for example in data.train]
    first = data.train[0]
    shown = token_texts(first.input_ids, tokenizer) if tokenizer is not None else ()
    return Preflight(
        rows=len(lengths),
        replayed=0,
        tokens=sum(lengths),
        supervised_tokens=len(lengths),
        steps=len(plan_steps(lengths, recipe.train)),
        longest=max(lengths),
        refused=data.refused[:20],
        refused_rows=len(data.refused),
        example_tokens=shown,
        example_supervised=(False,) * len(shown),
    )


def list_predictions(
    data: PreparedLabels,
    true: np.ndarray,
    said: np.ndarray,
    others: Sequence[Baseline],
    texts: Sequence[str] | None,
) -> tuple[Prediction, ...]:
    """Write down what was predicted for every test row."""
    labels = data.targets.labels

    def word(value: Any) -> str | float:
        return labels[int(value)] if labels else float(value)

    def best(scores: np.ndarray) -> np.ndarray:
        return scores.argmax(axis=1) if labels else scores

    linear = best(others[-1].test) if len(others) > 1 else None
    predicted = best(said)
    return tuple(
        Prediction(
            row=example.row,
            group=example.group,
            text=texts[place] if texts is not None else "",
            target=word(true[place]),
            predicted=word(predicted[place]),
            baseline="" if linear is None else word(linear[place]),
            scores=dict(zip(labels, map(float, said[place]), strict=True)) if labels else {},
        )
        for place, example in enumerate(data.test)
    )


def _refuse_too_long(base: Any, data: PreparedLabels) -> None:
    """Refuse texts that have more tokens than the model has places for."""
    most = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if most is not None:
        most -= _places_for_padding(base)
    longest = max(e.length for part in (data.train, data.validation, data.test) for e in part)
    if most is not None and longest > most:
        raise DataError(
            f"The longest text has {longest} tokens, and {type(base).__name__} reads at most "
            f"{most}. Set data.max_tokens: {most}; longer rows are then left out and counted."
        )


def _places_for_padding(base: Any) -> int:
    """Count the positions that no text can take: RoBERTa numbers its own from padding_idx + 1."""
    for name, module in base.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


def _small_pixels(images: Sequence[Any]) -> np.ndarray:
    """Average images to at most 16×16, shape (N, C × 256)."""
    import torch

    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    if pixels.shape[-1] > LINEAR_PIXELS:
        pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, LINEAR_PIXELS)
    return pixels.flatten(1).numpy()


def _write_targets(
    recipe: Recipe, data: PreparedLabels, form: ImageForm | None, folder: Path
) -> None:
    """Write what the outputs stand for, without which nobody could use the adapter."""
    if not is_main():
        return
    from sftkit.report.redact import redact_record

    said = {
        "task": recipe.data.task,
        **to_plain(data.targets),
        **({"image": to_plain(form)} if form is not None else {}),
        **({"pair_at": recipe.data.pair_at} if recipe.data.pair_at else {}),
    }
    path = folder / "targets.json"
    text = json.dumps(redact_record(said), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _tell(
    preflight: Preflight,
    data: PreparedLabels,
    parameters: str,
    head: str,
    note: Callable[[str], None],
) -> None:
    for finding in data.findings:
        note(str(finding))
    targets = data.targets
    if targets.labels:
        named = ", ".join(targets.labels[:8]) + (" ..." if len(targets.labels) > 8 else "")
        meaning = f"{len(targets.labels)} classes: {named}"
    else:
        meaning = f"scores of mean {targets.mean:.4g} and standard deviation {targets.spread:.4g}"
    note(f"{meaning}; {head} and is trained in full")
    sizes = f", {preflight.tokens} tokens per epoch" if preflight.example_tokens else " (images)"
    note(f"{preflight.rows} training examples{sizes}; {preflight.refused_rows} rows refused")
    for refusal in preflight.refused[:3]:
        note(f"refused: {refusal.reason}")
    if data.left_out:
        note(f"{data.left_out} rows of validation and test were left out for the same reasons")
    note(f"{parameters}; training for {preflight.steps} steps")
