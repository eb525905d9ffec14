"""Short trainings from one start: several rates, or several cures, on the same rows and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.adapter_kinds import check_kind
from sftkit.errors import AdapterError, MemoryRanOutError, StoppedError, TrainError
from sftkit.evidence_records import Change
from sftkit.records import Encoded, Step, TrainRecord
from sftkit.settings import AdapterSettings, TrainSettings

if TYPE_CHECKING:
    from sftkit.evidence.perplexity import TokenLoss
    from sftkit.train import Objective


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """What one short training did.

    Attributes:
        adapter: What was attached.
        settings: How it was trained.
        steps: Every step that was done.
        start: Loss of each held-out answer by the base model.
        kept: The same by the weights that were kept; empty if training stopped.
        heldout: The base against these weights, nats per token; None if training stopped.
        record: What training did; None if it stopped.
        stopped: Why training stopped before its end, in words; empty if it did not.
    """

    adapter: AdapterSettings
    settings: TrainSettings
    steps: tuple[Step, ...]
    start: tuple[TokenLoss, ...]
    kept: tuple[TokenLoss, ...]
    heldout: Change | None
    record: TrainRecord | None
    stopped: str = ""


def try_settings(
    base: Any,
    trials: Mapping[str, tuple[AdapterSettings, TrainSettings]],
    examples: Sequence[Encoded],
    heldout: Sequence[Encoded],
    *,
    objective: Objective | None = None,
    note: Callable[[str], None] = print,
) -> dict[str, ShortRun]:
    """Train a fresh adapter per trial, each on the same base, and measure the same answers.

    The base is loaded once: each adapter is taken off again, which leaves the base as it was. A
    training whose loss is no longer a number is a result, too.

    Args:
        base: The base model, frozen, without an adapter; it has none afterwards either.
        trials: Adapter and training settings, by a name to show.
        examples: Training examples.
        heldout: Examples that are measured before, `heldout_evaluations` times, and at the end.
        objective: The loss; None takes `objectives.chat_loss`.
        note: Told of each trial when it is done.

    Returns:
        Results by name, in order.

    Raises:
        AdapterError: An adapter could not be taken off again without a trace, or not attached.
        MemoryRanOutError: A step does not fit.
        StoppedError: Somebody asked for it.
    """
    from sftkit.evidence.perplexity import score_examples

    for adapter, _ in trials.values():
        refuse_if_it_leaves_traces(adapter)
    start = score_examples(base, heldout)
    results: dict[str, ShortRun] = {}
    for name, (adapter, settings) in trials.items():
        results[name] = run = _try_one(
            base, adapter, settings, examples, heldout, start=start, objective=objective
        )
        loss = run.stopped if run.heldout is None else f"held-out loss {run.heldout.after:.3f}"
        note(f"{name}: {loss}")
    return results


def sweep_rates(
    base: Any,
    rates: Sequence[float],
    examples: Sequence[Encoded],
    heldout: Sequence[Encoded],
    *,
    adapter: AdapterSettings,
    settings: TrainSettings,
    note: Callable[[str], None] = print,
) -> dict[float, ShortRun]:
    """Train shortly at each learning rate, from the same start.

    Args:
        base: The base model without an adapter.
        rates: Learning rates.
        examples: Training examples.
        heldout: Validation examples: a rate is chosen by them, so no test example belongs here.
        adapter: What is attached.
        settings: How to train; the learning rate is replaced.
        note: Told of each rate when it is done.

    Returns:
        Results by rate, the lowest first.

    Raises:
        AdapterError: The adapter could not be taken off again without a trace.
    """
    trials = {
        f"rate {rate:g}": (adapter, dataclasses.replace(settings, learning_rate=rate))
        for rate in sorted(set(rates))
    }
    results = try_settings(base, trials, examples, heldout, note=note)
    return {run.settings.learning_rate: run for run in results.values()}


def compare_runs(one: ShortRun, other: ShortRun, heldout: Sequence[Encoded]) -> Change | None:
    """Compare the kept weights of two runs, answer by answer; None if either stopped.

    Args:
        one: The run that stands as before.
        other: The run that stands as after.
        heldout: The examples that both were measured on.
    """
    return _change(one.kept, other.kept, heldout) if one.kept and other.kept else None


def _try_one(
    base: Any,
    adapter: AdapterSettings,
    settings: TrainSettings,
    examples: Sequence[Encoded],
    heldout: Sequence[Encoded],
    *,
    start: tuple[TokenLoss, ...],
    objective: Objective | None,
) -> ShortRun:
    from sftkit.adapter import attach_adapter, take_apart
    from sftkit.evidence.perplexity import mean_loss, score_examples
    from sftkit.objectives import chat_loss
    from sftkit.optim import rate_scales
    from sftkit.train import train

    model = attach_adapter(base, adapter, seed=settings.seed)
    scores: dict[int, tuple[TokenLoss, ...]] = {}  # by the count of steps before
    steps: list[Step] = []

    def measure() -> dict[str, float]:
        # A fresh adapter changes no logit, so the base's scores are its own.
        done = len(steps) + 1 if scores else 0
        scores[done] = score_examples(model, heldout) if scores else start
        return {"heldout_loss": mean_loss(scores[done])}

    record, stopped = None, ""
    try:
        record = train(
            model,
            examples,
            settings,
            objective=objective or chat_loss,
            measure=measure,
            rate_scales=rate_scales(adapter),
            on_step=lambda step, _: steps.append(step),
        )
    except (MemoryRanOutError, StoppedError):
        raise
    except TrainError as error:
        stopped = str(error)
    finally:
        take_apart(base)
    kept = scores[record.kept_step] if record else ()
    return ShortRun(
        adapter=adapter,
        settings=settings,
        steps=tuple(steps),
        start=start,
        kept=kept,
        heldout=_change(start, kept, heldout) if kept else None,
        record=record,
        stopped=stopped,
    )


def refuse_if_it_leaves_traces(adapter: AdapterSettings) -> None:
    """Refuse a method that is not proven to leave the base as it was when it is taken off.

    Raises:
        AdapterError: With the methods that can be used.
    """
    kind = check_kind(adapter)
    if kind.fresh_change != 0 or not kind.off_equals_base or adapter.options:
        raise AdapterError(
            f"adapter.kind={adapter.kind} with its options is not proven to change nothing while "
            "fresh and to leave the base as it was. Use lora, rslora, lora+ or ia3 here, or "
            "methods.try_methods, which loads the base for each trial."
        )


def _change(
    before: Sequence[TokenLoss], after: Sequence[TokenLoss], heldout: Sequence[Encoded]
) -> Change:
    from sftkit.evidence.statistics import paired_change

    return paired_change(
        [one.mean for one in before],
        [one.mean for one in after],
        groups=[example.group or str(place) for place, example in enumerate(heldout)],
        weights=[one.tokens for one in before],
    )
