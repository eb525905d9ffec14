"""The tester's entrance: any adapter, or whole model, put through the exam that a run goes through.

Nothing is trained. The base model is measured first and alone; then the adapter is put on it, or,
for a whole model, the base is let go and the other one is loaded. So base and tuned are never two
models in memory.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.candidate import NO_DATA, Candidate, open_candidate, own_template, plan_evaluation
from sftkit.errors import SettingsError
from sftkit.evidence.exam import Exam, Scores, make_exam, score_base
from sftkit.prepare import PreparedData, audited_splits, data_facts
from sftkit.records import DataFacts, Environment, Preflight, RunRecord, TrainRecord
from sftkit.run_folder import Stopwatch, full_disk_in_words, make_record, write_run
from sftkit.settings import ModelSettings, Recipe
from sftkit.trouble import memory_in_words
from sftkit.wheels import hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.model import DtypeChoice
    from sftkit.progress import Watcher

Note = Callable[[str], None]


def evaluate_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    data: str | None = None,
    recipe: Recipe | None = None,
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> RunRecord:
    """Test an adapter trained anywhere, or a whole model, and write a run's folder.

    Args:
        adapter: A folder as peft, TRL, Unsloth or sftkit writes it; or a folder with a whole model,
            such as a merged one.
        out: Folder for record, report and model card.
        base: The base model: catalog name, folder or hub id. None takes the recipe's, or the one
            that adapter_config.json names.
        data: Test rows: anything `read_dataset` reads. Where they have a column split, its test and
            control rows are taken. None takes the recipe's test rows; without a recipe, only
            forgetting is measured.
        recipe: What is measured, how the base is held and how conversations are encoded.
        overrides: Changes of single settings, such as "evaluate.items_per_probe=50".
        watcher: Is told what goes on; None chooses one for the place it runs in.

    Returns:
        The record, as written to `run.json`. Its training has no steps.

    Raises:
        SftkitError: It cannot be tested, told as early as it can be seen.
    """
    from sftkit.progress import make_watcher

    candidate = open_candidate(adapter)
    plan = plan_evaluation(candidate, base=base, data=data, recipe=recipe, overrides=overrides)
    folder = _own_folder(out, candidate)
    divided = data is None and recipe is not None
    with memory_in_words("loading or measuring"), full_disk_in_words(folder):
        note = (watcher or make_watcher()).note
        record, answers = _measure(candidate, plan, note, divided=divided)
        write_run(record, answers, folder)
    note(f"report: {folder / 'report.html'}")
    return record


def _own_folder(out: str | Path, candidate: Candidate) -> Path:
    folder = Path(out)
    if (folder / "run.json").exists():
        raise SettingsError(f"{folder} already holds a run. Choose another --out, or remove it.")
    if folder.resolve() == candidate.folder.resolve():
        raise SettingsError(
            f"{folder} is what is tested, and its README.md would be overwritten. Choose another "
            "--out."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _measure(
    candidate: Candidate, recipe: Recipe, note: Note, *, divided: bool
) -> tuple[RunRecord, Sequence[Any]]:
    """Go through all stages of a run but training."""
    from sftkit import loading, model
    from sftkit.environment import describe_environment
    from sftkit.run import agree_on_dtype

    clock, settings = Stopwatch(), recipe.evaluate
    source = catalog.fetch_model(recipe.model, progress=note)
    choice = agree_on_dtype(recipe.model)
    loading.check_model(recipe.model, model.pick_device(recipe.model), choice.dtype)
    tokenizer = model.load_tokenizer(recipe.model, source=source)
    if candidate.whole:
        _check_whole(candidate, recipe, tokenizer)
    events = _take_template(candidate, tokenizer)
    probes = {
        name: catalog.probe_items(name, settings.items_per_probe, progress=note)
        for name in settings.probes
    }
    questions = [item.question for items in probes.values() for item in items]
    data = _test_rows(recipe, tokenizer, questions, note, divided=divided)
    exam = make_exam(data.splits, probes, tokenizer, settings, data=recipe.data, note=note)
    clock.done("data")

    base = model.load_model(recipe.model, dtype=choice.dtype, source=source)
    environment = describe_environment(recipe, base, source, choice)
    note("measuring the base model")
    before = score_base(base, exam, environment)
    clock.done("base measured")
    note("measuring the tuned model")
    if candidate.whole:
        parameters = _parameters(base)
        del base
        after, kind = _score_whole(candidate, recipe.model, choice, exam), "a whole model"
        added = 0
    else:
        after, kind, added, parameters = _score_adapted(candidate, base, exam, environment)
    clock.done("tuned measured")
    for event in (events := [*_origin(candidate, kind, environment, divided=divided), *events]):
        note(event)
    outcome = exam.compare(before, after)
    record = make_record(
        recipe,
        data,
        outcome,
        preflight=_nothing_trained(),
        training=TrainRecord(
            steps=(), heldout_start=None, kept_step=0, tokens=0, supervised_tokens=0, seconds=0.0,
            trainable_parameters=added, total_parameters=parameters, events=tuple(events),
        ),
        environment=environment,
        choice=choice,
        clock=clock,
    )  # fmt: skip
    return record, outcome.answers


def _score_adapted(
    candidate: Candidate, base: Any, exam: Exam, environment: Environment
) -> tuple[Scores, str, int, int]:
    """Score the base with its adapter; also give the method, and parameters: its own and all."""
    from sftkit import adapter, adapter_files, adapter_kinds

    own = _parameters(base)
    fingerprint = environment.base_fingerprint
    tuned = adapter_files.load_adapter(base, candidate.folder, base_fingerprint=fingerprint)
    kind = adapter_kinds.kind_of(tuned).name
    with adapter.adapter_scaled(tuned, exam.settings.adapter_scale):
        after = exam.score(tuned)
    total = _parameters(tuned)
    return after, f"an adapter of kind {kind}", total - own, total


def _score_whole(
    candidate: Candidate, base: ModelSettings, choice: DtypeChoice, exam: Exam
) -> Scores:
    """Score a whole model, once the base is gone."""
    import torch

    from sftkit import model

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    settings = _model_of(candidate, base)
    return exam.score(model.load_model(settings, dtype=choice.dtype))


def _model_of(candidate: Candidate, base: ModelSettings) -> ModelSettings:
    """Hold a whole model as its base is held."""
    return dataclasses.replace(base, name=str(candidate.folder), revision=None)


def _check_whole(candidate: Candidate, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a whole model that cannot be compared with its base, before either is loaded."""
    from sftkit import model

    if recipe.evaluate.adapter_scale != 1:
        raise SettingsError("evaluate.adapter_scale is for adapters; a whole model has no scale.")
    if not any((candidate.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return
    own = model.load_tokenizer(_model_of(candidate, recipe.model))
    if own.get_vocab() != tokenizer.get_vocab():
        raise SettingsError(
            f"{candidate.folder} divides text into other tokens than its base "
            f"{recipe.model.name!r}, so their losses per token cannot be compared. Give the base "
            "it was made from."
        )


def _parameters(model: Any) -> int:
    from sftkit.adapter import count_parameters

    return count_parameters(model).total


def _take_template(candidate: Candidate, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Ask both models by the chat template beside the adapter, where it has one of its own."""
    template = own_template(candidate.folder)
    if template is None or template == tokenizer.chat_template:
        return []
    tokenizer.chat_template = template
    return [
        "Both models were asked by the chat template in the adapter's folder, which differs from "
        "the base model's."
    ]


def _test_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    note: Note,
    *,
    divided: bool,
) -> PreparedData:
    """Read what is tested: the recipe's test rows, or the rows of a file."""
    from datasets import Dataset

    from sftkit.dataset.split import Splits

    if recipe.data.source == NO_DATA:
        nothing = Dataset.from_list([])
        facts = DataFacts(
            source=NO_DATA, fingerprint="", counts={}, groups={}, licence="not stated", notice=""
        )
        splits = Splits(train=nothing, validation=nothing, test=nothing, control=nothing)
        return _prepared(splits, facts)
    if divided:
        dataset, splits, findings = audited_splits(recipe.data, tokenizer, questions, note=note)
    else:
        dataset, splits, findings = _only_tested(recipe, tokenizer, note)
    return _prepared(splits, data_facts(recipe.data, dataset, splits, findings))


def _only_tested(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, note: Note
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Read rows of which none trains: all are tested, or those of the splits test and control."""
    import pyarrow as pa

    from sftkit.dataset import audit, read, split
    from sftkit.dataset.columns import with_column
    from sftkit.dataset.folders import SPLIT_WORDS

    settings = recipe.data
    dataset = read.read_dataset(
        settings.source,
        task="chat",
        format=settings.format,
        columns=settings.columns,
        encoding=settings.encoding,
        where=settings.where,
        limit=settings.limit,
        group_by=settings.group_by,
    )
    parts = ["test"] * len(dataset)
    if "split" in dataset.column_names:
        said = [SPLIT_WORDS.get(str(word).strip().lower(), "") for word in dataset["split"]]
        if "test" in said:
            kept = [row for row, word in enumerate(said) if word in ("test", "control")]
            note(f"{len(kept)} of {len(dataset)} rows are tested: those of test and control")
            dataset, parts = dataset.select(kept), [said[row] for row in kept]
        dataset = dataset.remove_columns("split")
    marked = with_column(dataset, "split", pa.array(parts))
    found = audit.audit_dataset(
        marked, tokenizer, group_by=settings.group_by, source=settings.source
    )
    if settings.faulty_rows == "drop":
        marked, dropped = audit.drop_faulty(marked, found)
        if dropped:
            note(f"{len(dropped)} rows with errors were left out (data.faulty_rows: drop)")
    else:
        audit.raise_on_errors(found.findings, source=settings.source)
    where = marked["split"]
    of = {name: [row for row, part in enumerate(where) if part == name] for name in split.SPLITS}
    splits = split.Splits(**{name: marked.select(rows) for name, rows in of.items()})
    return dataset, splits, found.findings


def _prepared(splits: Any, facts: DataFacts) -> PreparedData:
    return PreparedData(
        splits=splits,
        train=(),
        replayed=0,
        validation=(),
        refused=(),
        refused_rows=0,
        findings=facts.findings,
        facts=facts,
    )


def _origin(
    candidate: Candidate, kind: str, environment: Environment, *, divided: bool
) -> list[str]:
    """Say what is known of where it was trained, and what is not."""
    weights = candidate.weights
    if candidate.whole:
        fingerprint = catalog.fingerprint_folder(candidate.folder)
    else:
        fingerprint = f"sha256:{hash_file(weights)}"
    said = [f"Trained elsewhere: {kind}, {candidate.folder.resolve().name}, weights {fingerprint}."]
    made_for = str(candidate.about.get("base_fingerprint") or "")
    if made_for and made_for == environment.base_fingerprint:
        said.append("It says that it was made for exactly these base weights.")
    elif not candidate.whole:
        said.append(
            "It does not say for which base weights it was made, so only names and shapes of its "
            "weights were compared with the base's."
        )
    overlap = (
        "What it was trained on is not known, so no overlap with the test rows was looked for."
    )
    if divided:
        overlap = (
            "That it was trained on the training rows of the recipe, and on no others, is taken on "
            "trust; tested rows were looked for among those."
        )
    return [*said, overlap]


def _nothing_trained() -> Preflight:
    return Preflight(
        rows=0,
        replayed=0,
        tokens=0,
        supervised_tokens=0,
        steps=0,
        longest=0,
        refused=(),
        refused_rows=0,
        example_tokens=(),
        example_supervised=(),
    )
