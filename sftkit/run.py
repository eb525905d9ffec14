"""A recipe to a finished run: where stages are put together (the data half is `prepare`)."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.environment import describe_environment, run_fingerprints
from sftkit.errors import SettingsError
from sftkit.evidence.exam import make_exam, score_base
from sftkit.evidence.learning import heldout_examples
from sftkit.prepare import PreparedData, prepare_data
from sftkit.recipe import load_recipe, recipe_from_dict, recipe_to_dict, yaml_text
from sftkit.records import (
    Answer,
    Cost,
    Encoded,
    Environment,
    Example,
    Finding,
    Preflight,
    RunRecord,
    Step,
    TrainRecord,
    to_json,
)
from sftkit.settings import Recipe, loss_unit, to_plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.evidence.exam import Outcome
    from sftkit.model import DtypeChoice
    from sftkit.objectives import Objective
    from sftkit.prepare_labels import PreparedLabels
    from sftkit.progress import Watcher

HELDOUT_CURVE_ITEMS = 32
"""Validation examples measured at each point of the learning curve."""


@dataclass
class Stopwatch:
    """Seconds per stage of one run."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)
    stages: dict[str, float] = field(default_factory=dict)

    def done(self, stage: str) -> None:
        """Book the time since the last stage."""
        self.stages[stage] = self.total - sum(self.stages.values())

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Book the time inside; what passed since the last stage, such as reading, is left out."""
        self.started += self.total - sum(self.stages.values())
        yield
        self.done(stage)

    @property
    def total(self) -> float:
        """Seconds since the start, wall clock."""
        return time.perf_counter() - self.started

    @property
    def cpu(self) -> float:
        """CPU seconds of this process since the start, all threads together."""
        return time.process_time() - self.cpu_started


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = False, watcher: Watcher | None = None
) -> RunRecord:
    """Fine-tune as a recipe says, test the result, and write the run's folder.

    Args:
        recipe: What to do.
        out: Folder for adapter, record, report and plots; made if missing.
        resume: Go on from the newest whole checkpoint in `out`, if there is one.
        watcher: Is told notes and steps; None chooses one for the place it runs in.

    Returns:
        The record, as written to `run.json`.

    Raises:
        SftkitError: Anything that makes the run impossible, told as early as it can be seen.
    """
    from sftkit.progress import make_watcher

    folder = _own_folder(out)
    unit = loss_unit(recipe.data.task, recipe.objective.loss)
    with contextlib.closing(watcher or make_watcher(unit=unit)) as watching:
        answers: Sequence[Any]
        if recipe.data.task == "chat":
            record, answers = _carry_out(recipe, folder, watching, resume=resume)
        else:
            from sftkit.run_labels import carry_out_labels

            record, answers = carry_out_labels(recipe, folder, watching, resume=resume)
        write_run(record, answers, folder)
        watching.note(f"report: {folder / 'report.html'}")
    return record


def _carry_out(
    recipe: Recipe, folder: Path, watcher: Watcher, *, resume: bool
) -> tuple[RunRecord, tuple[Answer, ...]]:
    """Go through all stages in order."""
    from sftkit import adapter, adapter_kinds, loading, model, objectives, train

    settings, note, clock = recipe.evaluate, watcher.note, Stopwatch()
    kind = adapter_kinds.check_kind(recipe.adapter, quantization=recipe.model.quantization)
    if settings.adapter_scale != 1 and not kind.scalable:
        raise SettingsError(
            f"evaluate.adapter_scale={settings.adapter_scale:g}: "
            f"{adapter_kinds.why_not_scalable(kind)}"
        )
    source = catalog.fetch_model(recipe.model, progress=note)
    choice = model.pick_dtype(adapter_kinds.model_for(kind, recipe.model))
    loading.check_model(recipe.model, model.pick_device(recipe.model), choice.dtype)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    probes = {
        name: catalog.probe_items(name, settings.items_per_probe, progress=note)
        for name in settings.probes
    }
    data = prepare_data(recipe, tokenizer, probes, note=note)
    clock.done("data")

    base = model.load_model(recipe.model, dtype=choice.dtype, source=source)
    model.check_trainable(base)
    environment = describe_environment(recipe, base, source, choice)
    exam = make_exam(data.splits, probes, tokenizer, settings, data=recipe.data, note=note)
    before = None
    if not adapter_kinds.off_equals_base(recipe.adapter):
        # With this method the base does not come back, so it is measured while it is there.
        note("measuring the base model")
        before = score_base(base, exam, environment)
        clock.done("base measured")
    tuned = adapter.attach_adapter(base, recipe.adapter, seed=recipe.train.seed)
    preflight = make_preflight(recipe, data, tokenizer)
    _tell_preflight(preflight, str(adapter.count_parameters(tuned)), data.findings, note)
    train.refuse_if_nothing_to_learn(tuned, data.train)
    clock.done("model")

    if before is None:
        note("measuring the base model")
        with adapter.adapter_off(tuned):
            before = score_base(tuned, exam, environment)
        clock.done("base measured")

    training = train_adapter(
        recipe,
        tuned,
        data.train,
        folder,
        watcher,
        objective=objectives.make_objective("chat", recipe.objective),
        measure=make_measure(tuned, data.validation),
        fingerprints=run_fingerprints(recipe, environment, data.facts, tokenizer),
        resume=resume,
        base_fingerprint=source.fingerprint,
    )
    clock.done("training")

    note("measuring the tuned model")
    with adapter.adapter_scaled(tuned, settings.adapter_scale):
        after = exam.score(tuned)
    outcome = exam.compare(before, after)
    clock.done("tuned measured")
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
    return record, outcome.answers


def train_adapter(
    recipe: Recipe,
    tuned: Any,
    examples: Sequence[Example],
    folder: Path,
    watcher: Watcher,
    *,
    objective: Objective,
    measure: Callable[[], Mapping[str, float]] | None,
    fingerprints: Mapping[str, str],
    resume: bool,
    base_fingerprint: str,
    **options: Any,
) -> TrainRecord:
    """Train, write metrics.jsonl on the way, and save the adapter.

    Args:
        recipe: Its training and adapter settings.
        tuned: The model with its adapter.
        examples: Training examples.
        folder: The run's folder.
        watcher: Is told every step.
        objective: The loss.
        measure: Measures validation examples.
        fingerprints: What a checkpoint has to agree with, from `run_fingerprints`.
        resume: Whether to go on from the newest checkpoint.
        base_fingerprint: The base's, which is saved beside the adapter.
        options: Passed on to `train.train`, such as collate.
    """
    from sftkit import adapter, adapter_files, optim, train
    from sftkit.train_state import Keeping

    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:

        def on_step(step: Step, total: int) -> None:
            metrics.write(json.dumps(to_plain(step)) + "\n")
            metrics.flush()
            watcher.on_step(step, total)

        training = train.train(
            tuned,
            examples,
            recipe.train,
            objective=objective,
            measure=measure,
            rate_scales=optim.rate_scales(recipe.adapter),
            keeping=Keeping(
                folder=folder / "checkpoints",
                fingerprints=fingerprints,
                resume=resume,
                how_to_resume=f"Go on with: sftkit run RECIPE --out {folder} --resume",
                note=watcher.note,
            ),
            on_step=on_step,
            **options,
        )
    adapter.weaken_adapter(tuned, recipe.adapter.strength)
    adapter_files.save_adapter(tuned, folder / "adapter", base_fingerprint=base_fingerprint)
    return training


def make_measure(
    model: Any, validation: Sequence[Encoded]
) -> Callable[[], dict[str, float]] | None:
    """Give the function that measures the points of the learning curve.

    Args:
        model: The model in training; it is measured as it stands at each call.
        validation: Validation examples, of which a fixed, evenly spaced part is measured.

    Returns:
        The function, which gives heldout_loss in nats per token; None if there is nothing to
        measure.
    """
    from sftkit.evidence.perplexity import mean_loss, score_examples

    curve = heldout_examples(validation, at_most=HELDOUT_CURVE_ITEMS)
    if not curve:
        return None
    return lambda: {"heldout_loss": mean_loss(score_examples(model, curve))}


def make_record(
    recipe: Recipe,
    data: PreparedData | PreparedLabels,
    outcome: Outcome,
    *,
    preflight: Preflight,
    training: TrainRecord,
    environment: Environment,
    choice: DtypeChoice,
    clock: Stopwatch,
) -> RunRecord:
    """Write down everything a run measured; the time ends here."""
    from sftkit.progress import peak_memory_bytes

    return RunRecord(
        name=recipe.name,
        date=datetime.date.today().isoformat(),
        recipe=recipe_to_dict(recipe),
        learned=outcome.learned,
        forgot=outcome.forgot,
        verdicts=outcome.verdicts,
        answers=_for_reading(outcome.answers, recipe.evaluate.side_by_side),
        preflight=preflight,
        training=training,
        cost=Cost(
            train_s=training.seconds,
            total_s=clock.total,
            cpu_s=clock.cpu,
            tokens=training.tokens,
            tokens_per_s=training.tokens / training.seconds,
            peak_bytes=peak_memory_bytes(),
            matmul_gflops=choice.gflops,
            stages_s=dict(clock.stages),
        ),
        environment=environment,
        data=data.facts,
    )


def write_run(record: RunRecord, answers: Sequence[Any], folder: str | Path) -> None:
    """Write a run's folder: record, recipe, all answers, report, model card and plots.

    Secrets found in any text are blacked out first.

    Args:
        record: The run.
        answers: All answers, as records; of a run on labels, all predictions.
        folder: The run's folder.
    """
    from sftkit.report.html import write_report
    from sftkit.report.redact import redact, redact_record

    folder = Path(folder)
    clean = redact_record(record)
    (folder / "run.json").write_text(to_json(clean), encoding="utf-8")
    recipe = yaml_text(recipe_from_dict(record.recipe))
    (folder / "recipe.yaml").write_text(redact(recipe), encoding="utf-8")
    # Redacted before it is JSON: a key that was cut off would take the quotes after it along.
    lines = [json.dumps(to_plain(redact_record(one)), ensure_ascii=False) for one in answers]
    name = "answers.jsonl" if record.learned.labels is None else "predictions.jsonl"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_report(clean, folder)


def make_preflight(
    recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerBase
) -> Preflight:
    """Say what the run would do, before its first step."""
    from sftkit.chat import mask_summary
    from sftkit.show import token_texts
    from sftkit.train import plan_steps

    summary = mask_summary(data.train)
    steps = plan_steps([len(example.input_ids) for example in data.train], recipe.train)
    example = data.train[0]
    return Preflight(
        rows=summary.rows,
        replayed=data.replayed,
        tokens=summary.tokens,
        supervised_tokens=summary.supervised,
        steps=len(steps),
        longest=summary.longest,
        refused=data.refused[:20],
        refused_rows=data.refused_rows,
        example_tokens=token_texts(example.input_ids, tokenizer),
        example_supervised=tuple(label >= 0 for label in example.labels),
    )


def find_recipe(name: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by the name of a bundled one, or by its path.

    Raises:
        SettingsError: There is no such recipe, or it holds faults.
    """
    bundled = Path(__file__).parent / "recipes"
    path = Path(name) if Path(name).is_file() else bundled / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in bundled.glob("*.yaml")))
        raise SettingsError(f"There is no recipe {name!r}. Bundled: {names}; or give a .yaml file.")
    return load_recipe(path, overrides=overrides)


def _own_folder(out: str | Path) -> Path:
    folder = Path(out)
    if (folder / "run.json").exists():
        raise SettingsError(f"{folder} already holds a run. Choose another --out, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _tell_preflight(
    preflight: Preflight,
    parameters: str,
    findings: Sequence[Finding],
    note: Callable[[str], None],
) -> None:
    from sftkit.show import show_example

    for finding in findings:
        note(str(finding))
    share = preflight.supervised_tokens / max(1, preflight.tokens)
    note(str(show_example(preflight)))
    note(
        f"{preflight.rows} rows ({preflight.replayed} replayed), {preflight.tokens} tokens per "
        f"epoch, {preflight.supervised_tokens} of them supervised ({share:.0%}); "
        f"{preflight.refused_rows} rows refused"
    )
    for refusal in preflight.refused[:3]:
        note(f"refused: {refusal.reason}")
    note(f"{parameters}; training for {preflight.steps} steps")


def _for_reading(answers: Sequence[Answer], count: int) -> tuple[Answer, ...]:
    """Take a fixed choice, not a flattering one: evenly spaced, a third of them control."""
    test = [answer for answer in answers if answer.split == "test"]
    control = [answer for answer in answers if answer.split == "control"]
    of_control = min(len(control), count // 3)
    return (*_evenly(test, count - of_control), *_evenly(control, of_control))


def _evenly(answers: Sequence[Answer], count: int) -> list[Answer]:
    count = min(count, len(answers))
    return [answers[place * len(answers) // count] for place in range(count)]
