"""Try several methods on one task: the same rows, steps and seed for each, one after the other."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.adapter_kinds import kind_of
from sftkit.evidence_records import Change
from sftkit.records import IGNORE, Encoded
from sftkit.settings import AdapterSettings, TrainSettings

if TYPE_CHECKING:
    import torch

    from sftkit.evidence.perplexity import TokenLoss

_CHECKED_ROWS = 4  # whose logits are compared between base and fresh or switched-off adapter


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one method did.

    Attributes:
        kind: The method.
        learning_rate: Its rate; B of lora+ learned at lora_plus_ratio times this.
        trainable: Trained parameters.
        share: Trained parameters, as a share of all.
        heldout: Loss of the held-out answers, nats per token, base against tuned.
        train_s: Seconds of training.
        attach_s: Seconds of attaching, which is long where weights are decomposed first.
        extra_bytes: Peak of memory while training, above what was held before it.
        fresh_change: Largest change of a logit by the fresh adapter.
        off_change: Largest difference of a logit between the base and the trained model with its
            adapter off; None where there is nothing to switch off.
    """

    kind: str
    learning_rate: float
    trainable: int
    share: float
    heldout: Change
    train_s: float
    attach_s: float
    extra_bytes: int
    fresh_change: float
    off_change: float | None


def try_methods(
    trials: Mapping[str, tuple[AdapterSettings, float]],
    load_base: Callable[[], Any],
    examples: Sequence[Encoded],
    heldout: Sequence[Encoded],
    train_settings: TrainSettings,
    *,
    note: Callable[[str], None] = print,
    keep: Callable[[str, Any], None] = lambda name, model: None,
) -> dict[str, Trial]:
    """Train every method on a base of its own and measure it on the same held-out answers.

    Args:
        trials: Method and learning rate, by a name to show.
        load_base: Loads the base afresh, frozen, on its device.
        examples: Training examples.
        heldout: Examples that are scored before and after.
        train_settings: How to train; the learning rate is each trial's own.
        note: Told of each trial when it is done.
        keep: Given each trained model before it is dropped.

    Returns:
        Results by name, in order.

    Raises:
        SftkitError: A method cannot be put on this base.
    """
    from sftkit.evidence.perplexity import score_examples

    results: dict[str, Trial] = {}
    start: _Start | None = None
    for name, (settings, rate) in trials.items():
        base = load_base()
        if start is None:  # every base is the same, so it is measured once
            losses = score_examples(base, heldout)
            start = _Start(losses=losses, logits=_logits(base, heldout))
        model, results[name] = _try_one(
            base,
            start,
            settings,
            train_settings=dataclasses.replace(train_settings, learning_rate=rate),
            examples=examples,
            heldout=heldout,
        )
        keep(name, model)
        del base, model
        _give_memory_back()
        note(f"{name}: {results[name].heldout.after:.3f} nats, {results[name].train_s:.0f} s")
    return results


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What the base does: the loss of each held-out answer, and some logits."""

    losses: Sequence[TokenLoss]
    logits: torch.Tensor


def _try_one(
    base: Any,
    start: _Start,
    settings: AdapterSettings,
    *,
    train_settings: TrainSettings,
    examples: Sequence[Encoded],
    heldout: Sequence[Encoded],
) -> tuple[Any, Trial]:
    import time

    from sftkit.adapter import attach_adapter, count_parameters
    from sftkit.evidence.perplexity import score_examples
    from sftkit.evidence.statistics import paired_change
    from sftkit.objectives import chat_loss
    from sftkit.optim import rate_scales
    from sftkit.train import train

    started = time.perf_counter()
    model = attach_adapter(base, settings, seed=train_settings.seed)
    attach_s = time.perf_counter() - started
    fresh_change = _furthest(_logits(model, heldout), start.logits)
    _give_memory_back()
    with _watched_memory(base) as extra:
        record = train(
            model,
            examples,
            train_settings,
            objective=chat_loss,
            rate_scales=rate_scales(settings),
        )
        extra_bytes = extra()  # before scoring takes its share
    after = score_examples(model, heldout)
    off_change = None
    if kind_of(model).peft_type is not None:
        with model.disable_adapter():  # for pissa too: here it is measured, not relied upon
            off_change = _furthest(_logits(model, heldout), start.logits)
    count = count_parameters(model)
    return model, Trial(
        kind=settings.kind,
        learning_rate=train_settings.learning_rate,
        trainable=count.trainable,
        share=count.share,
        heldout=paired_change(
            [one.mean for one in start.losses],
            [one.mean for one in after],
            groups=[example.group or str(place) for place, example in enumerate(heldout)],
            weights=[one.tokens for one in start.losses],
        ),
        train_s=record.seconds,
        attach_s=attach_s,
        extra_bytes=extra_bytes,
        fresh_change=fresh_change,
        off_change=off_change,
    )


def _logits(model: Any, examples: Sequence[Encoded]) -> torch.Tensor:
    """Compute the logits at the supervised positions of the first examples, shape (N, V)."""
    from sftkit.forward import collate, logits_at, scoring, unwrapped

    base = unwrapped(model)
    batch = collate(
        examples[:_CHECKED_ROWS], pad_id=base.config.pad_token_id or 0, device=base.device
    )
    chosen = batch.pop("labels") != IGNORE
    with scoring(model):
        return logits_at(model, chosen, **batch)


def _furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@contextlib.contextmanager
def _watched_memory(model: Any) -> Iterator[Callable[[], int]]:
    """Watch the peak of memory inside: on CUDA what torch counts, elsewhere the resident set."""
    from sftkit.progress import memory_bytes

    if model.device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - held
        return
    start = peak = memory_bytes()
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, memory_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak - start
    finally:
        is_over.set()
        watcher.join()


def _give_memory_back() -> None:
    """Return freed memory to the system, so that the next measurement starts low."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
