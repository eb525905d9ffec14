"""A recipe to a finished run: the only place that composes stages."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.errors import DataError, SettingsError
from sftkit.evidence.cache import cached_scores
from sftkit.evidence.forgetting import (
    ForgettingScores,
    compare_forgetting,
    make_forgetting_test,
    score_forgetting,
)
from sftkit.evidence.learning import (
    LearningScores,
    compare_learning,
    heldout_examples,
    make_learning_test,
    score_learning,
    side_by_side,
)
from sftkit.records import (
    Answer,
    Cost,
    DataFacts,
    Encoded,
    Environment,
    Finding,
    Preflight,
    Refused,
    RunRecord,
    Step,
    to_json,
)
from sftkit.settings import Recipe, load_recipe, recipe_to_dict, save_recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.split import Splits
    from sftkit.progress import Watcher

PACKAGES = (
    "sftkit-notebooks",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "numpy",
)
HELDOUT_CURVE_ITEMS = 48
"""Validation examples measured at each point of the learning curve."""


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A recipe's examples: audited, divided, encoded.

    Attributes:
        splits: Rows per split.
        train: Encoded training examples, replayed ones included.
        replayed: How many of these are replayed ones.
        validation: Encoded validation examples.
        refused: Training rows that could not be encoded.
        findings: What the audit found.
        facts: Origin, counts and licence.
    """

    splits: Splits
    train: tuple[Encoded, ...]
    replayed: int
    validation: tuple[Encoded, ...]
    refused: tuple[Refused, ...]
    findings: tuple[Finding, ...]
    facts: DataFacts


@dataclass
class Stopwatch:
    """Seconds per stage of one run."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)
    stages: dict[str, float] = field(default_factory=dict)

    def done(self, stage: str) -> None:
        """Book the time since the last stage."""
        self.stages[stage] = self.total - sum(self.stages.values())

    @property
    def total(self) -> float:
        """Seconds since the start, wall clock."""
        return time.perf_counter() - self.started

    @property
    def cpu(self) -> float:
        """CPU seconds of this process since the start, all threads together."""
        return time.process_time() - self.cpu_started


def run(recipe: Recipe, out: str | Path, *, watcher: Watcher | None = None) -> RunRecord:
    """Fine-tune as a recipe says, test the result, and write the run's folder.

    Args:
        recipe: What to do.
        out: Folder for adapter, record, report and plots; made if missing.
        watcher: Is told notes and steps; None chooses one for the place it runs in.

    Returns:
        The record, as written to `run.json`.

    Raises:
        SftkitError: Anything that makes the run impossible, before the first step where it can
            be seen there.
    """
    from sftkit import adapter, model, objectives, train
    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.evidence.verdicts import decide
    from sftkit.progress import make_watcher, peak_memory_bytes
    from sftkit.report.html import write_report

    folder = _own_folder(out)
    watcher = watcher or make_watcher()
    note = watcher.note
    clock = Stopwatch()

    source = catalog.fetch_model(recipe.model, progress=note)
    choice = model.pick_dtype(recipe.model)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    data = prepare_data(recipe, tokenizer, note=note)
    clock.done("data")

    base = model.load_model(recipe.model, dtype=choice.dtype, source=source)
    tuned = adapter.attach_adapter(base, recipe.adapter, seed=recipe.train.seed)
    preflight = make_preflight(recipe, data, tokenizer)
    _tell_preflight(preflight, str(adapter.count_parameters(tuned)), data.findings, note)
    train.refuse_if_nothing_to_learn(tuned, data.train)
    clock.done("model")

    settings = recipe.evaluate
    learning = make_learning_test(
        list(data.splits.test),
        list(data.splits.control),
        tokenizer,
        settings,
        max_tokens=recipe.data.max_tokens,
        system=recipe.data.system,
        seed=recipe.data.seed,
    )
    forgetting = make_forgetting_test(
        {
            name: catalog.probe_items(name, settings.items_per_probe, progress=note)
            for name in settings.probes
        },
        catalog.passages("boolq", settings.drift_passages, progress=note)
        if settings.drift_passages
        else [],
        tokenizer,
        settings,
    )
    key = {
        "base": source.fingerprint,
        "dtype": choice.name,
        "quantization": recipe.model.quantization,
        "attention": base.config._attn_implementation,
        "device": describe_device(base.device),
        "threads": _threads(),
        "versions": _versions(),
    }
    note("measuring the base model")
    with adapter.adapter_off(tuned):
        learned_before = cached_scores(
            LearningScores,
            {**key, "test": learning, "new_tokens": settings.max_new_tokens},
            lambda: score_learning(tuned, tokenizer, learning, settings),
        )
        forgot_before = cached_scores(
            ForgettingScores,
            {**key, "test": forgetting},
            lambda: score_forgetting(tuned, forgetting),
        )
    clock.done("base measured")

    note(f"training for {preflight.steps} steps")
    curve = heldout_examples(data.validation, at_most=HELDOUT_CURVE_ITEMS)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:

        def on_step(step: Step, total: int) -> None:
            metrics.write(" ".join(to_json(step).split()) + "\n")
            metrics.flush()
            watcher.on_step(step, total)

        training = train.train(
            tuned,
            data.train,
            recipe.train,
            objective=objectives.chat_loss,
            heldout_loss=(lambda: mean_loss(score_examples(tuned, curve))) if curve else None,
            on_step=on_step,
        )
    watcher.close()
    adapter.save_adapter(tuned, folder / "adapter")
    clock.done("training")

    note("measuring the tuned model")
    with adapter.adapter_scaled(tuned, settings.adapter_scale):
        learned_after = score_learning(tuned, tokenizer, learning, settings)
        forgot_after = score_forgetting(tuned, forgetting)
    learned = compare_learning(learning, learned_before, learned_after, settings)
    forgot = compare_forgetting(forgetting, forgot_before, forgot_after, settings)
    answers = side_by_side(learning, learned_before, learned_after)
    clock.done("tuned measured")

    record = RunRecord(
        name=recipe.name,
        date=datetime.date.today().isoformat(),
        recipe=recipe_to_dict(recipe),
        learned=learned,
        forgot=forgot,
        verdicts=decide(learned, forgot, settings),
        answers=_for_reading(answers, settings.side_by_side),
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
        environment=Environment(
            versions=_versions(),
            device=describe_device(base.device),
            dtype=choice.name,
            quantization=recipe.model.quantization,
            seed=recipe.train.seed,
            processes=1,
            base=f"{source.name}: {source.title}" if source.title else source.name,
            base_fingerprint=source.fingerprint,
            dtype_reason=choice.reason,
        ),
        data=data.facts,
    )
    save_recipe(recipe, folder / "recipe.yaml")
    _write_lines(folder / "answers.jsonl", answers)
    write_report(record, folder)
    note(f"report: {folder / 'report.html'}")
    return record


def prepare_data(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> PreparedData:
    """Read, audit, divide and encode a recipe's examples.

    Args:
        recipe: Its data settings decide.
        tokenizer: The model's tokenizer.
        note: Told what is slow and what was left out.

    Raises:
        DataError: Errors in the data, all of one pass; or nothing is left to train on.
    """
    from sftkit.chat import encode_rows
    from sftkit.dataset import audit, read, split

    settings = recipe.data
    dataset = read.read_dataset(
        settings.source,
        where=settings.where,
        limit=settings.limit,
        group_by=settings.group_by,
        split_by=settings.split_by,
    )
    found = audit.audit_dataset(dataset, tokenizer=tokenizer)
    if settings.faulty_rows == "drop":
        dataset, dropped = audit.drop_faulty(dataset, found)
        if dropped:
            note(f"{len(dropped)} rows with errors were left out (data.faulty_rows: drop)")
    else:
        audit.raise_on_errors(found.findings)
    splits = split.split_dataset(dataset, settings)
    overlap = audit.audit_splits(splits)
    audit.raise_on_errors(overlap.findings)
    findings = (*found.findings, *overlap.findings)

    encoded = encode_rows(
        splits.train, tokenizer, max_tokens=settings.max_tokens, system=settings.system
    )
    examples = list(encoded.examples)
    replayed: tuple[Encoded, ...] = ()
    if settings.replay is not None:
        general = encode_rows(
            read.read_dataset(settings.replay),
            tokenizer,
            max_tokens=settings.max_tokens,
            system=settings.system,
        ).examples
        replayed = tuple(
            split.pick_replay(
                general, beside=len(examples), share=settings.replay_share, seed=settings.seed
            )
        )
    validation = encode_rows(
        splits.validation, tokenizer, max_tokens=settings.max_tokens, system=settings.system
    ).examples
    if not examples:
        reasons = "; ".join(refusal.reason for refusal in encoded.refused[:3])
        raise DataError(f"No training row could be encoded: {reasons}", findings)
    by_split = {name: rows for name, rows in splits.named().items() if len(rows)}
    terms = catalog.entry(settings.source) if settings.source in catalog.names() else None
    return PreparedData(
        splits=splits,
        train=(*examples, *replayed),
        replayed=len(replayed),
        validation=validation,
        refused=encoded.refused,
        findings=findings,
        facts=DataFacts(
            source=settings.source,
            fingerprint=split.fingerprint(dataset),
            counts={name: len(rows) for name, rows in by_split.items()},
            groups={name: len(set(rows["group"])) for name, rows in by_split.items()},
            licence=terms.licence if terms else "not stated",
            notice=terms.notice if terms else "",
            findings=findings,
        ),
    )


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
        example_tokens=token_texts(example.input_ids, tokenizer),
        example_supervised=tuple(label >= 0 for label in example.labels),
    )


def find_recipe(name: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by the name of a bundled one, or by its path.

    Raises:
        SettingsError: There is no such recipe, or it holds faults.
    """
    bundled = Path(__file__).parent / "recipes"
    inside = bundled / f"{name}.yaml"
    path = inside if inside.is_file() and not Path(name).is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in bundled.glob("*.yaml")))
        raise SettingsError(f"There is no recipe {name!r}. Bundled: {names}; or give a .yaml file.")
    return load_recipe(path, overrides=overrides)


def describe_device(device: torch.device) -> str:
    """Name the processor or GPU in words, without the machine's own name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {_threads()} threads, {platform.machine()} {capability}"


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
        f"{len(preflight.refused)} rows refused; {preflight.steps} steps"
    )
    for refusal in preflight.refused[:3]:
        note(f"refused: {refusal.reason}")
    note(parameters)


def _for_reading(answers: Sequence[Answer], count: int) -> tuple[Answer, ...]:
    """Take a fixed choice of answers, not a flattering one: evenly spaced, a third of them control."""
    test = [answer for answer in answers if answer.split == "test"]
    control = [answer for answer in answers if answer.split == "control"]
    of_control = min(len(control), count // 3)
    return (*_evenly(test, count - of_control), *_evenly(control, of_control))


def _evenly(answers: Sequence[Answer], count: int) -> list[Answer]:
    count = min(count, len(answers))
    return [answers[place * len(answers) // count] for place in range(count)]


def _write_lines(path: Path, records: Sequence[Any]) -> None:
    from sftkit.report.redact import redact
    from sftkit.settings import to_plain

    lines = (json.dumps(to_plain(record), ensure_ascii=False) for record in records)
    path.write_text(redact("\n".join(lines)) + "\n", encoding="utf-8")


def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _threads() -> int:
    import torch

    return torch.get_num_threads()
