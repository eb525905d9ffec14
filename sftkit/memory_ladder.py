"""What to do about memory: the largest plan that fits a budget, and what each change would free."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.errors import AdapterError, SettingsError
from sftkit.memory import MemoryEstimate, estimate, passes_of, per_process
from sftkit.memory_formulas import Device
from sftkit.memory_shapes import read_shape
from sftkit.records import Step
from sftkit.settings import AdapterSettings, ModelSettings, Task, TrainSettings

PROBE_STEPS = 5
"""Steps that are timed before minutes are predicted."""
NOTICED = 0.07
"""Share of the peak that a change has to free to be advised: one that frees less could as well free
nothing, by the largest error of the predictions (7.3 % of 40 configurations, `memory_error.py`)."""
_MOST_TOKENS = 1 << 20
_HAS_RANK = ("lora", "rslora", "dora", "lora+")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything an estimate depends on, so that a change of one part can be tried.

    Attributes:
        config: The model's config.json.
        model: How its weights are held.
        adapter: What is trained.
        train: Batch, optimizer, checkpointing.
        max_tokens: Longest row in tokens.
        supervised_share: Share of tokens that is supervised.
        task: Task of the recipe.
        classes: Classes of a labelled task.
        device: Where the model lives.
        dtype: Type of weights and compute; None as in `estimate`.
        examples: Length and supervised tokens of every example; None assumes batches filled with
            rows of `max_tokens`.
        row_limit: data.max_tokens of the recipe, below which no batch may fall; None is
            `max_tokens`.
        shared: Tokens that all rows begin with.
        processes: How many processes share a step; the estimate is that of one of them.
        strategy: What is divided among them.
    """

    config: Mapping[str, Any]
    model: ModelSettings
    adapter: AdapterSettings
    train: TrainSettings
    max_tokens: int = 512
    supervised_share: float = 0.5
    task: Task = "chat"
    classes: int = 2
    device: Device = "cpu"
    dtype: str | None = None
    examples: tuple[tuple[int, int], ...] | None = None
    row_limit: int | None = None
    shared: int = 0
    processes: int = 1
    strategy: str = "ddp"

    def estimate(self) -> MemoryEstimate:
        """Predict the peak of this plan."""
        values = {info.name: getattr(self, info.name) for info in dataclasses.fields(self)}
        config, examples = values.pop("config"), values.pop("examples")
        strategy = values.pop("strategy")
        del values["row_limit"]
        if strategy != "ddp":  # a model that is split takes the plain path
            values["train"] = dataclasses.replace(self.train, speed="off")
        if examples is not None:
            short = [one for one in examples if one[0] <= self.max_tokens]
            once = dataclasses.replace(self.train, epochs=1)
            lengths, supervised = [one[0] for one in short], [one[1] for one in short]
            passes = passes_of(
                lengths, supervised, once, shared=self.shared, processes=self.processes
            )
            values["passes"] = passes or None
        whole = estimate(config, **values)
        if strategy == "ddp":
            return whole
        return per_process(whole, strategy=strategy, processes=self.processes)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One change of the plan.

    Attributes:
        setting: What to change, as a recipe writes it: train.micro_batches=2.
        freed: Bytes that the peak falls by, above zero.
        total: The peak afterwards.
        cost: What it costs, in words.
    """

    setting: str
    freed: int
    total: int
    cost: str


@dataclass(frozen=True, kw_only=True)
class Fits:
    """The largest plans that stay within a budget, by the upper end of their interval.

    Attributes:
        budget: Bytes there are.
        fits: Whether the plan as it stands does.
        max_tokens_per_batch: Largest batch at the plan's own length, in tokens; 0 if not even one
            row fits.
        max_tokens: Longest row that fits alone in a forward pass; 0 if none does.
    """

    budget: int
    fits: bool
    max_tokens_per_batch: int
    max_tokens: int


def largest_that_fits(plan: Plan, budget: int) -> Fits:
    """Find the largest batch and the longest row that fit a budget.

    Args:
        plan: All else stays as it is, micro-batches among it.
        budget: Bytes there are.

    Raises:
        SettingsError: The budget is not above zero.
    """
    if budget <= 0:
        raise SettingsError(f"A budget of {budget} bytes holds nothing. Give bytes, such as 8e9.")
    longest = read_shape(plan.config).longest

    def with_rows(rows: int) -> Plan:
        train = dataclasses.replace(
            plan.train, max_tokens_per_batch=rows * plan.max_tokens, examples_per_batch=None
        )
        return dataclasses.replace(plan, train=train, examples=None)

    def with_length(tokens: int) -> Plan:
        train = dataclasses.replace(plan.train, max_tokens_per_batch=max(8, tokens))
        return dataclasses.replace(plan, train=train, max_tokens=tokens, examples=None)

    def fits(changed: Plan) -> bool:
        return changed.estimate().high <= budget

    most = _MOST_TOKENS // plan.max_tokens
    rows = _largest(lambda n: fits(with_rows(n)), most) if plan.max_tokens <= longest else 0
    return Fits(
        budget=budget,
        fits=fits(plan),
        max_tokens_per_batch=rows * plan.max_tokens,
        max_tokens=_largest(lambda n: fits(with_length(n)), longest),
    )


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Find the largest number from 1 to `most` that holds, by halving; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def ladder(
    plan: Plan,
    *,
    allows: Callable[[Plan], bool] = lambda changed: True,
    noticed: float = 0.0,
) -> tuple[Rung, ...]:
    """List the changes that could free memory, the one that frees most first.

    Args:
        plan: Where to start from.
        allows: Says whether a changed plan can be loaded and trained (dryrun asks the rules of
            loading and of methods, which need torch).
        noticed: Share of the plan's peak that a change has to free at least.

    Returns:
        Changes that apply to the plan and free so much, with the bytes each frees on its own.
    """
    before = plan.estimate()
    rungs = []
    for setting, cost, changed in _changes(plan, before):
        if not allows(changed):
            continue
        try:
            after = changed.estimate().total
        except AdapterError:  # a target this model does not have
            continue
        freed = before.total - after
        if freed > noticed * before.total:  # nothing else helps where loading is the peak
            rungs.append(Rung(setting=setting, freed=freed, total=after, cost=cost))
    return tuple(sorted(rungs, key=lambda rung: -rung.freed))


def _changes(plan: Plan, before: MemoryEstimate) -> Iterator[tuple[str, str, Plan]]:
    """Give each change that applies, as a recipe writes it, with its cost and its plan."""
    train, adapter = plan.train, plan.adapter
    lora = adapter.kind in _HAS_RANK
    rows = before.heaviest.rows
    if rows > 1:
        more = 2 * train.micro_batches
        yield (
            f"train.micro_batches={more}",
            "the same gradient; smaller products, so a little more time",
            _with(plan, "train", micro_batches=more),
        )
    if not train.activation_checkpointing:
        yield (
            "train.activation_checkpointing=true",
            "the same gradient; about a third more time",
            _with(plan, "train", activation_checkpointing=True),
        )
    if rows * train.micro_batches > 1:
        # Settings refuse batches below data.max_tokens, whatever the real rows are.
        half = max(plan.row_limit or plan.max_tokens, train.max_tokens_per_batch // 2)
        yield (
            f"train.max_tokens_per_batch={half}",
            "twice the steps, each on half the examples",
            _with(plan, "train", max_tokens_per_batch=half),
        )
    half, known = plan.max_tokens // 2, plan.examples
    lost = sum(length > half for length, _ in known or ())
    if plan.max_tokens >= 16 and (known is None or lost < len(known)):
        rows_lost = "" if known is None else f": {lost} of {len(known)}"
        yield (
            f"data.max_tokens={half}",
            f"longer rows are refused{rows_lost}",
            dataclasses.replace(plan, max_tokens=half, row_limit=half),
        )
    if plan.model.quantization == "none" and (lora or adapter.kind in ("ia3", "prompt")):
        for name, cost in (("int8", "a little quality"), ("nf4", "some quality")):
            yield (
                f"model.quantization={name}",
                f"{cost}, and time (measured in notebook 04)",
                _with(plan, "model", quantization=name),
            )
    if before.dtype == "float32" and adapter.kind not in ("freeze", "full"):
        yield (
            "model.dtype=bfloat16",
            "rounding; slow on processors without instructions for it",
            dataclasses.replace(_with(plan, "model", dtype="bfloat16"), dtype="bfloat16"),
        )
    if plan.model.attention in ("auto", "eager") and plan.device == "cpu":
        yield (
            "model.attention=sdpa",
            "slower at short lengths on a CPU",
            _with(plan, "model", attention="sdpa"),
        )
    if train.speed == "off" and plan.strategy == "ddp":
        yield (
            "train.speed=auto",
            "the same numbers but for rounding; less time",
            _with(plan, "train", speed="auto"),
        )
    if train.optimizer in ("adam", "adamw"):
        yield (
            "train.optimizer=adamw-8bit",
            "running means in 8 bits",
            _with(plan, "train", optimizer="adamw-8bit"),
        )
    yield from _changes_of_adapter(plan)


def _changes_of_adapter(plan: Plan) -> Iterator[tuple[str, str, Plan]]:
    """Give the changes of what is trained."""
    adapter, lora = plan.adapter, plan.adapter.kind in _HAS_RANK
    if lora and adapter.target_modules == "all-linear":
        yield (
            "adapter.target_modules=attention",
            "fewer layers learn",
            _with(plan, "adapter", target_modules="attention"),
        )
    if lora and adapter.r > 1:
        yield (
            f"adapter.r={adapter.r // 2}",
            "half the trained parameters",
            _with(plan, "adapter", r=adapter.r // 2),
        )
    if adapter.kind in ("freeze", "full"):
        yield (
            "adapter.kind=lora",
            "an adapter instead of the weights themselves",
            _with(plan, "adapter", kind="lora"),
        )


def _with(plan: Plan, part: str, **fields: Any) -> Plan:
    return dataclasses.replace(plan, **{part: dataclasses.replace(getattr(plan, part), **fields)})


def predict_minutes(probed: list[Step] | tuple[Step, ...], tokens: int) -> float:
    """Predict how long training takes from its first steps.

    Args:
        probed: Steps in order, as timed by the training loop; the first of several is left out,
            because it also builds what later steps use again.
        tokens: Tokens of the whole run, without padding.

    Returns:
        Minutes of training, without evaluation.

    Raises:
        SettingsError: No step was timed.
    """
    if not probed:
        raise SettingsError(f"No step was timed. Run {PROBE_STEPS} steps first.")
    first, last = probed[0], probed[-1]
    if len(probed) == 1:
        return tokens * last.seconds / last.tokens / 60
    per_token = (last.seconds - first.seconds) / (last.tokens - first.tokens)
    return (first.seconds + per_token * (tokens - first.tokens)) / 60
