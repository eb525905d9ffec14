"""What a run would do and take, without doing it: no weights are read, no hub is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit import catalog
from sftkit.errors import AdapterError, ModelError
from sftkit.held_memory import free_bytes
from sftkit.launch_config import LaunchPlan
from sftkit.memory import MemoryEstimate, shared_beginning
from sftkit.memory_formulas import Device
from sftkit.memory_ladder import (
    NOTICED,
    PROBE_STEPS,
    Fits,
    Plan,
    Rung,
    ladder,
    largest_that_fits,
    predict_minutes,
)
from sftkit.settings import ModelSettings, Recipe

CARDS = (16, 24, 40, 80)  # sizes of usual GPUs in GB (1e9 bytes)


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The training examples of a run.

    Attributes:
        rows: Training examples.
        refused: Rows left out because they could not be encoded.
        tokens: Tokens per epoch.
        supervised_tokens: Tokens per epoch that are learned from; rows for other tasks than chat.
        longest: Tokens of the longest example.
        steps: Optimizer steps of the whole run.
        run_tokens: Tokens of the whole run.
    """

    rows: int
    refused: int
    tokens: int
    supervised_tokens: int
    longest: int
    steps: int
    run_tokens: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few real steps took.

    Attributes:
        steps: Steps that were run, with an adapter that was thrown away.
        minutes: Predicted minutes of training, without evaluation.
        peak_bytes: Most memory this process has held so far.
    """

    steps: int
    minutes: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        name: Name of the recipe.
        model: Name of the base model.
        data: Its training examples; None if they could not be had here.
        data_note: Why not, in words.
        estimates: Predicted peak per device; the first is the one the run would take. Empty for
            models whose memory is not predicted.
        memory_note: Why it is not, in words.
        fits: The largest plans that fit each device: its free bytes where it is here (a share of
            them for each process, where all take them from the machine's memory), else those of
            the smallest usual GPU that holds the plan (the largest, if none does).
        ladders: What each change would free on each device, most first.
        processes: Processes on this machine; every estimate is that of one of them.
        probe: What a few real steps took, if they were asked for.
    """

    name: str
    model: str
    data: DataPlan | None
    data_note: str
    estimates: tuple[MemoryEstimate, ...]
    memory_note: str
    fits: tuple[Fits, ...]
    ladders: tuple[tuple[Rung, ...], ...]
    processes: int = 1
    probe: Probe | None = None


@dataclass(frozen=True)
class _Known:
    """What could be read of a run's data: encoded training examples, and what they stand for."""

    examples: Sequence[Any]
    refused: int
    source: catalog.ModelSource
    tokenizer: Any
    targets: Any = None


def look_ahead(
    recipe: Recipe,
    *,
    probe: bool = False,
    note: Callable[[str], None] = lambda line: None,
    launch: LaunchPlan | None = None,
) -> DryRun:
    """Say what a run would do and how much memory it would take.

    Args:
        recipe: What would be done.
        probe: Whether to load the model and time a few steps, so that minutes can be predicted.
        note: Told what is slow or left out.
        launch: The processes it would be started on; None is one.

    Raises:
        SftkitError: The recipe cannot work: unknown model, adapter or targets; faulty data; a
            probe of a model or data that are not here.
    """
    from sftkit.adapter_kinds import check_kind
    from sftkit.loading import check_loading, has_device, make_case
    from sftkit.optim import refuse_optimizer
    from sftkit.trackers import refuse_trackers

    refuse_trackers(recipe.train)
    config = catalog.model_config(recipe.model)
    task_type = _task_type(recipe.data.task)
    check_kind(recipe.adapter, quantization=recipe.model.quantization, task_type=task_type)
    devices = _devices(recipe)
    if has_device(recipe.model):
        check_loading(make_case(recipe.model, config, *devices[0]))
        refuse_optimizer(recipe.train.optimizer, devices[0][0])
    missing = _missing(recipe)
    known = None if missing else _read(recipe, note)
    launch = launch or LaunchPlan(processes=1)
    plans, memory_note = _plans(recipe, config, known, devices, launch)
    if probe and known is None:
        raise ModelError(f"A probe runs {PROBE_STEPS} real steps, and {missing}.")
    estimates = tuple(plan.estimate() for plan in plans)
    budgets = [_budget(one, launch.per_machine) for one in estimates]
    return DryRun(
        name=recipe.name,
        model=recipe.model.name,
        data=_data_plan(recipe, known) if known else None,
        data_note=f"The data were not read: {missing}." if missing else "",
        estimates=estimates,
        memory_note=memory_note,
        fits=tuple(map(largest_that_fits, plans, budgets)),
        ladders=tuple(map(_ladder, plans)),
        processes=launch.per_machine,
        probe=_probe(recipe, known) if probe and known else None,
    )


def _task_type(task: str) -> str | None:
    return {"chat": "CAUSAL_LM", "image": None}.get(task, "SEQ_CLS")


# ---- data ----


def _missing(recipe: Recipe) -> str:
    """Say what of model and data is not on this machine; nothing is fetched for a look."""
    absent = []
    try:
        _source(recipe.model)
    except ModelError as error:
        absent.append(str(error))
    for name in filter(None, (recipe.data.source, recipe.data.replay)):
        is_here = Path(name).expanduser().exists()
        if name in catalog.names():
            is_here = catalog.is_cached(catalog.entry(name))
        if not is_here:
            absent.append(f"{name} is not in the cache here")
    return " and ".join(absent)


def _source(settings: ModelSettings) -> catalog.ModelSource:
    """Find a model's files on this machine, without a download."""
    name = settings.name.strip()
    if name in catalog.names("model"):
        found = catalog.entry(name)
        if found.hub is None and not catalog.is_cached(found):
            raise ModelError(f"{name} is not in the cache here")
    source = catalog.fetch_model(settings)
    if not source.fingerprint.startswith("hub:"):
        return source
    from sftkit.catalog_hub import hub_folder

    folder = hub_folder(source.path, source.revision, download=False)
    if folder is None:
        raise ModelError(f"{name} is not in the hub's cache here")
    return dataclasses.replace(source, path=str(folder), revision=None)


def _read(recipe: Recipe, note: Callable[[str], None]) -> _Known:
    """Read and encode the training examples as the run would."""
    from sftkit.model import load_tokenizer

    source, task = _source(recipe.model), recipe.data.task
    tokenizer = None if task == "image" else load_tokenizer(recipe.model, source=source)
    if task == "chat" and tokenizer is not None:
        from sftkit.prepare import prepare_data

        data = prepare_data(recipe, tokenizer, {}, note=note)
        return _Known(data.train, data.refused_rows, source, tokenizer)
    from sftkit.heads import load_image_form
    from sftkit.prepare_labels import prepare_labels

    form = load_image_form(recipe.model, source=source) if task == "image" else None
    labels = prepare_labels(recipe, tokenizer=tokenizer, form=form, note=note)
    return _Known(labels.train, len(labels.refused), source, tokenizer, labels.targets)


def _data_plan(recipe: Recipe, known: _Known) -> DataPlan:
    from sftkit.train import plan_steps

    lengths = [example.length for example in known.examples]
    steps = plan_steps(lengths, recipe.train)
    return DataPlan(
        rows=len(lengths),
        refused=known.refused,
        tokens=sum(lengths),
        supervised_tokens=round(sum(example.weight for example in known.examples)),
        longest=max(lengths),
        steps=len(steps),
        run_tokens=sum(lengths[row] for batch in steps for row in batch),
    )


# ---- memory ----


def _plans(
    recipe: Recipe,
    config: dict[str, Any],
    known: _Known | None,
    devices: Sequence[tuple[Device, str | None]],
    launch: LaunchPlan,
) -> tuple[list[Plan], str]:
    """Give the plan on every device that is asked about, the run's own first."""
    examples, shared = None, 0
    longest = recipe.data.max_tokens
    if known is not None:
        examples = tuple((example.length, round(example.weight)) for example in known.examples)
        longest = max(length for length, _ in examples)
        if recipe.data.task == "chat":
            shared = shared_beginning(example.input_ids for example in known.examples)
    plans = []
    for device, dtype in devices:
        plan = Plan(
            config=config,
            model=recipe.model,
            adapter=recipe.adapter,
            train=recipe.train,
            max_tokens=longest,
            task=recipe.data.task,
            classes=(len(known.targets.labels) or 1) if known and known.targets else 2,
            device=device,
            dtype=dtype,
            examples=examples,
            row_limit=recipe.data.max_tokens,
            shared=shared,
            processes=launch.processes,
            strategy=launch.strategy,
        )
        try:
            plan.estimate()
        except ModelError as error:
            return [], str(error)
        plans.append(plan)
    return plans, ""


def _devices(recipe: Recipe) -> list[tuple[Device, str | None]]:
    """List devices with the type they would compute in; a GPU that is not here comes last."""
    from sftkit.adapter_kinds import find_kind, model_for
    from sftkit.loading import has_device
    from sftkit.model import pick_device, pick_dtype

    wanted = recipe.model.device
    asked = None if recipe.model.dtype == "auto" else recipe.model.dtype
    if not has_device(recipe.model):
        return [(wanted, asked)]  # type: ignore[list-item]  # neither auto nor cpu
    device: Device = pick_device(recipe.model).type  # type: ignore[assignment]
    held = model_for(find_kind(recipe.adapter.kind), recipe.model)
    here: list[tuple[Device, str | None]] = [(device, pick_dtype(held).name)]
    other: list[tuple[Device, str | None]] = [("cuda", asked)]
    return here + (other if device == "cpu" and wanted == "auto" else [])


def _faults(plan: Plan) -> set[str]:
    """Say in words what loading and the method have against a plan."""
    from sftkit.adapter_kinds import check_kind
    from sftkit.loading import loading_faults, make_case

    task_type = _task_type(plan.task)
    faults = loading_faults(make_case(plan.model, plan.config, plan.device, plan.dtype))
    try:
        check_kind(plan.adapter, quantization=plan.model.quantization, task_type=task_type)
    except AdapterError as error:
        faults.append(str(error))
    return set(faults)


def _ladder(plan: Plan, *, noticed: float = NOTICED) -> tuple[Rung, ...]:
    """Offer only what loading and the method do not refuse, and what frees a noticeable share."""
    return ladder(plan, allows=lambda changed: _faults(changed) <= _faults(plan), noticed=noticed)


def _budget(one: MemoryEstimate, processes: int) -> int:
    """Give the bytes there are for each process on this machine.

    On CUDA every process has a GPU of its own: the free bytes of the first one here, or the size
    of the smallest usual one that holds an estimate. Elsewhere all share the machine's memory.
    """
    import torch

    if one.device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    if one.device != "cuda":
        return free_bytes() // processes
    return next((card for card in CARDS if one.high <= card * 10**9), CARDS[-1]) * 10**9


# ---- a few real steps ----


def _probe(recipe: Recipe, known: _Known) -> Probe:
    """Load the model, train a few steps with an adapter that is thrown away, and time them."""
    from sftkit import adapter, adapter_kinds, model, objectives, optim, train
    from sftkit.progress import peak_memory_bytes

    options: dict[str, Any] = {}
    kind = adapter_kinds.find_kind(recipe.adapter.kind)
    dtype = model.pick_dtype(adapter_kinds.model_for(kind, recipe.model)).dtype
    if recipe.data.task == "chat":
        base = model.load_model(recipe.model, dtype=dtype, source=known.source)
    else:
        from sftkit import heads, labelled

        images = recipe.data.task == "image"
        options["collate"] = labelled.collate_images if images else labelled.collate_texts
        base = heads.load_with_head(
            recipe.model,
            recipe.data.task,
            known.targets,
            tokenizer=known.tokenizer,
            dtype=dtype,
            source=known.source,
            seed=recipe.train.seed,
        )
    model.check_trainable(base)
    tuned = adapter.attach_adapter(
        base, recipe.adapter, seed=recipe.train.seed, task_type=_task_type(recipe.data.task)
    )
    settings = dataclasses.replace(recipe.train, max_steps=PROBE_STEPS, early_stopping=None)
    record = train.train(
        tuned,
        known.examples,
        settings,
        objective=objectives.make_objective(recipe.data.task, recipe.objective),
        rate_scales=optim.rate_scales(recipe.adapter),
        **options,
    )
    return Probe(
        steps=len(record.steps),
        minutes=predict_minutes(record.steps, _data_plan(recipe, known).run_tokens),
        peak_bytes=peak_memory_bytes(),
    )
