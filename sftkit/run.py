"""A recipe to a finished run: where stages are put together (the data half is `prepare`)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.environment import FINGERPRINTS, describe_environment, run_fingerprints
from sftkit.errors import SettingsError
from sftkit.evidence.behaviour_file import read_for_task
from sftkit.evidence.exam import make_exam, score_base
from sftkit.evidence.learning import heldout_examples
from sftkit.meeting import found_by_first, meet
from sftkit.metrics import write_metrics
from sftkit.prepare import PreparedData, prepare_data
from sftkit.processes import is_main, process_count
from sftkit.recipe import load_recipe
from sftkit.records import (
    Answer,
    Encoded,
    Example,
    Finding,
    Preflight,
    RunRecord,
    Step,
    TrainRecord,
)
from sftkit.run_folder import (
    RECIPE,
    Stopwatch,
    full_disk_in_words,
    make_record,
    write_recipe,
    write_run,
)
from sftkit.settings import ModelSettings, Recipe, loss_unit
from sftkit.trackers import refuse_trackers, track_steps
from sftkit.trouble import memory_in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.model import DtypeChoice
    from sftkit.objectives import Objective
    from sftkit.progress import Watcher

HELDOUT_CURVE_ITEMS = 32
"""Validation examples measured at each point of the learning curve."""


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    allow_changes: Collection[str] = (),
    watcher: Watcher | None = None,
) -> RunRecord:
    """Fine-tune as a recipe says, test the result, and write the run's folder.

    Args:
        recipe: What to do.
        out: Folder for adapter, record, report and plots; made if missing.
        resume: Go on from the newest whole checkpoint in `out`, if there is one.
        allow_changes: What may differ from when the run began, by the names a refusal gives.
        watcher: Is told notes and steps; None chooses one for the place it runs in.

    Returns:
        The record, as written to `run.json`.

    Raises:
        SftkitError: Anything that makes the run impossible, told as early as it can be seen.
    """
    from sftkit.progress import make_watcher

    if not is_main():
        raise SettingsError(
            "This process is not the first of its run. Start several with sftkit.launch or "
            "`sftkit run RECIPE --processes N`."
        )
    refuse_trackers(recipe.train)
    if recipe.evaluate.behaviour:  # told before anything is loaded
        read_for_task(recipe.evaluate.behaviour, recipe.data.task)
    folder = _own_folder(out, recipe)
    unit = loss_unit(recipe.data.task, recipe.objective.loss)
    with contextlib.closing(watcher or make_watcher(unit=unit)) as watching:
        # In training, micro-batches halve first, and checkpoints are told and left out.
        with memory_in_words("loading or measuring"), full_disk_in_words(folder):
            done = _stages(recipe)(
                recipe, folder, watching, resume=resume, allow_changes=allow_changes
            )
            assert done is not None  # noqa: S101  (the first process measures)
            record, answers = done
            write_run(record, answers, folder)
        watching.note(f"report: {folder / 'report.html'}")
    return record


def take_part(
    recipe: Recipe, out: str | Path, *, resume: bool = False, allow_changes: Collection[str] = ()
) -> None:
    """Do what a process that is not the first does of a run: prepare, load and train.

    It measures, shows and writes nothing; the arguments are those of `run`.

    Raises:
        SftkitError: As `run`; or the processes would not train the same.
    """
    from sftkit.progress import SilentWatcher

    options = {"resume": resume, "allow_changes": allow_changes}
    _stages(recipe)(recipe, Path(out), SilentWatcher(), **options)


def _stages(recipe: Recipe) -> Callable[..., tuple[RunRecord, Sequence[Any]] | None]:
    """Give the function that goes through all stages of the recipe's task."""
    if recipe.data.task == "chat":
        return _carry_out
    from sftkit.run_labels import carry_out_labels

    return carry_out_labels


def agree_on_dtype(settings: ModelSettings) -> DtypeChoice:
    """Pick the type of compute; of several processes the first one's timing decides for all."""
    from sftkit.model import pick_dtype

    picked: list[DtypeChoice] = []

    def pick() -> str:
        picked.append(pick_dtype(settings))
        return picked[0].name

    name = found_by_first("dtype", pick)
    return picked[0] if picked else pick_dtype(dataclasses.replace(settings, dtype=name))  # type: ignore[arg-type]


def _carry_out(
    recipe: Recipe,
    folder: Path,
    watcher: Watcher,
    *,
    resume: bool,
    allow_changes: Collection[str],
) -> tuple[RunRecord, tuple[Answer, ...]] | None:
    """Go through all stages in order; a process that is not the first ends after training."""
    from sftkit import adapter, adapter_kinds, loading, model, objectives, optim, train

    settings, note, clock = recipe.evaluate, watcher.note, Stopwatch()
    kind = adapter_kinds.check_kind(recipe.adapter, quantization=recipe.model.quantization)
    if settings.adapter_scale != 1 and not kind.scalable:
        raise SettingsError(
            f"evaluate.adapter_scale={settings.adapter_scale:g}: "
            f"{adapter_kinds.why_not_scalable(kind)}"
        )
    source = catalog.fetch_model(recipe.model, progress=note)
    choice = agree_on_dtype(adapter_kinds.model_for(kind, recipe.model))
    device = model.pick_device(recipe.model)
    optim.refuse_optimizer(recipe.train.optimizer, device.type)
    loading.check_model(recipe.model, device, choice.dtype)
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
    exam = before = None
    if is_main():
        exam = make_exam(data.splits, probes, tokenizer, settings, data=recipe.data, note=note)
    if exam and not adapter_kinds.off_equals_base(recipe.adapter):
        # With this method the base does not come back, so it is measured while it is there.
        note("measuring the base model")
        before = score_base(base, exam, environment)
        clock.done("base measured")
    tuned = adapter.attach_adapter(base, recipe.adapter, seed=recipe.train.seed)
    preflight = make_preflight(recipe, data, tokenizer)
    _tell_preflight(preflight, str(adapter.count_parameters(tuned)), data.findings, note)
    train.refuse_if_nothing_to_learn(tuned, data.train)
    clock.done("model")

    if exam and before is None:
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
        allow_changes=allow_changes,
        base_fingerprint=source.fingerprint,
    )
    clock.done("training")
    if exam is None or before is None:
        return None

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
    allow_changes: Collection[str] = (),
    base_fingerprint: str,
    **options: Any,
) -> TrainRecord:
    """Train, write metrics.jsonl and tell trackers on the way, and save the adapter.

    A process that is not the first trains, and writes nothing.

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
        allow_changes: Fingerprints that may differ from those of the checkpoint.
        base_fingerprint: The base's, which is saved beside the adapter.
        options: Passed on to `train.train`, such as collate.
    """
    from sftkit import adapter, adapter_files, optim, train
    from sftkit.forward import unwrapped
    from sftkit.train_state import Keeping

    meet(fingerprints, device=unwrapped(tuned).device.type)
    with (
        write_metrics(folder / "metrics.jsonl", note=watcher.note) as write,
        (
            track_steps(recipe, folder, note=watcher.note)
            if is_main()
            else contextlib.nullcontext(lambda step: None)
        ) as track,
    ):

        def on_step(step: Step, total: int) -> None:
            write(step)
            track(step)
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
                allow_changes=allow_changes,
                how_to_resume=_how_to_resume(folder),
                note=watcher.note,
            ),
            on_step=on_step,
            **options,
        )
    if is_main():
        adapter.weaken_adapter(tuned, recipe.adapter.strength)
        adapter_files.save_adapter(tuned, folder / "adapter", base_fingerprint=base_fingerprint)
        kept = {name: print for name, print in fingerprints.items() if name in FINGERPRINTS}
        kept["the adapter"] = adapter_files.hash_weights(folder / "adapter")
        training = dataclasses.replace(training, fingerprints=kept)
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


def _own_folder(out: str | Path, recipe: Recipe) -> Path:
    """Make the run's folder, and put the recipe into it: going on takes it from there."""
    folder = Path(out)
    if (folder / "run.json").exists():
        raise SettingsError(f"{folder} already holds a run. Choose another --out, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        if not (folder / RECIPE).exists():
            write_recipe(recipe, folder)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _how_to_resume(folder: Path) -> str:
    import shlex

    processes = f" --processes {process_count()}" if process_count() > 1 else ""
    recipe, out = (shlex.quote(str(path)) for path in (folder / RECIPE, folder))
    return f"Go on with: sftkit run {recipe} --out {out} --resume{processes}"


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
