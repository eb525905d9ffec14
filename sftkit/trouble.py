"""What can go wrong in a training step: memory runs out, the loss is no number, the loss jumps."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Sequence

from sftkit.errors import MemoryRanOutError, TrainError
from sftkit.records import Example, Step
from sftkit.settings import TrainSettings

SPIKE_STEPS = 50
"""Steps before this one that say what is usual."""
SPIKE_STEPS_AT_LEAST = 10
SPIKE_DEVIATIONS = 8.0
"""Robust standard deviations above the median from which on a loss is reported."""
SPIKE_RATIO = 1.5
"""It must also be this many times the median: a flat curve has next to no deviation."""
MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation, for normal values (Rousseeuw and Croux 1993)."""
_WORDS_FOR_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch's allocator on CPUs
    "not enough memory",
    "bad_alloc",  # C++ below torch
    "failed to allocate",
    "could not create a memory",  # oneDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on any device."""
    import torch  # late: who only asks for words should not wait for it

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in _WORDS_FOR_NO_MEMORY
    )


@contextlib.contextmanager
def memory_in_words(what: str) -> Iterator[None]:
    """Say in words that memory ran out where nothing can be cut smaller.

    Args:
        what: What is done inside, such as "measuring".

    Raises:
        MemoryRanOutError: Memory ran out inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise MemoryRanOutError(
            f"Memory ran out while {what}: {said}. "
            "sftkit run RECIPE --dry-run predicts the peak and says what would free most."
        ) from error


def halve(micro_batches: int, rows: int, processes: int) -> int | None:
    """Cut a step into twice as many micro-batches.

    Args:
        micro_batches: Forward passes per process of the step that did not fit.
        rows: Examples of the step.
        processes: Processes that share it.

    Returns:
        Micro-batches to try; None if each already holds a single example.
    """
    return 2 * micro_batches if micro_batches * processes < rows else None


def free_memory() -> None:
    """Give back what a failed step left in torch's caches."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def does_not_fit(batch: Sequence[Example], micro_batches: int, *, twice: bool) -> MemoryRanOutError:
    """Make the error for a step that does not fit, however it is cut."""
    longest = max(batch, key=lambda example: example.length)
    again = " and activations computed twice" if twice else ""
    return MemoryRanOutError(
        f"Memory ran out with micro-batches of one example (train.micro_batches={micro_batches})"
        f"{again}. The longest example of the step has {longest.length} tokens (row "
        f"{longest.row}). Take a lower data.max_tokens, a quantized base (model.quantization: nf4) "
        "or a smaller model; sftkit run RECIPE --dry-run says what each would free."
    )


def stop_unless_finite(
    what: str, value: float, number: int, batch: Sequence[Example], settings: TrainSettings
) -> None:
    """Stop when a loss or a gradient is no number, before the optimizer moves a weight.

    Raises:
        TrainError: With the row ids of the batch.
    """
    if not math.isfinite(value):
        raise TrainError(
            f"The {what} of step {number} is {value}, so training stopped before the adapter "
            f"changed. Rows of the batch: {rows_of(batch)}. Usual "
            f"causes: learning_rate too high (here {settings.learning_rate:g}) or float16 overflow."
        )


def spike_in(steps: Sequence[Step], loss: float, batch: Sequence[Example]) -> str | None:
    """Say in words that a loss is far above those before it.

    Args:
        steps: The steps before.
        loss: The step's loss.
        batch: The step's examples, named in the words.

    Returns:
        The words; None if the loss is usual, or too few steps say what usual is.
    """
    before = [step.loss for step in steps[-SPIKE_STEPS:]]
    if len(before) < SPIKE_STEPS_AT_LEAST:
        return None
    median = statistics.median(before)
    deviation = MAD_TO_SD * statistics.median(abs(value - median) for value in before)
    if loss <= max(median + SPIKE_DEVIATIONS * deviation, SPIKE_RATIO * median):
        return None
    return (
        f"the loss of step {steps[-1].step + 1} jumped to {loss:.3f}; the median of the "
        f"{len(before)} steps before is {median:.3f}. Rows of the batch: {rows_of(batch)}"
    )


def rows_of(examples: Sequence[Example]) -> str:
    """Write the row numbers of examples: the first twenty, and how many more."""
    rows = sorted(example.row for example in examples)
    more = f" and {len(rows) - 20} more" if len(rows) > 20 else ""
    return f"{rows[:20]}{more}"
