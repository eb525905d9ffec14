"""Does training work on this machine, in every type of numbers it has? Two minutes, one answer.

Twenty steps in each type and quantization, with the adapter saved, read back on a fresh base, and
compared. What it prints names no file and no folder, so that it can be pasted anywhere.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit import adapter, adapter_files, model
from sftkit.catalog import fetch_model
from sftkit.chat import encode_rows
from sftkit.dataset.read import read_dataset
from sftkit.environment import describe_device, versions
from sftkit.errors import SftkitError
from sftkit.forward import collate
from sftkit.objectives import chat_loss
from sftkit.progress import peak_memory_bytes
from sftkit.report.redact import redact
from sftkit.settings import AdapterSettings, ModelSettings, TrainSettings
from sftkit.train import train

MODEL = "smollm2-135m"
STEPS = 20
_TOKENS = 64  # a step; enough to see the loss fall
_SAME = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}
"""Largest difference of a logit of one model loaded twice, by type. On 2 CPU cores it was 0 in all
four; GPUs may add in another order."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One type of numbers, tried.

    Attributes:
        dtype: Type of weights and compute.
        quantization: none, int8 or nf4.
        loss: First and last training loss, nats per token; each the mean of five steps.
        parity: Largest difference of a logit between the trained model and the saved adapter on a
            fresh base.
        seconds: From loading to parity.
        fault: What went wrong; empty if nothing did.
    """

    dtype: str
    quantization: str
    loss: tuple[float, float] | None = None
    parity: float | None = None
    seconds: float = 0.0
    fault: str = ""


def selftest(*, name: str = MODEL, steps: int = STEPS) -> tuple[Trial, ...]:
    """Train, save, reload and compare, once for each type that this machine has.

    Args:
        name: The model.
        steps: Optimizer steps of each training.
    """
    trials = []
    for dtype, quantization in kinds():
        started = time.perf_counter()
        trial = Trial(dtype=dtype, quantization=quantization)
        try:
            trial = _try(trial, name, steps)
        except (SftkitError, RuntimeError, ValueError) as error:
            trial = dataclasses.replace(trial, fault=redact(f"{type(error).__name__}: {error}"))
        gc.collect()
        trials.append(dataclasses.replace(trial, seconds=round(time.perf_counter() - started, 1)))
    return tuple(trials)


def kinds() -> list[tuple[str, str]]:
    """List the types and quantizations to try on this machine."""
    import torch

    if torch.cuda.is_available():
        half = "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"
        return [("float32", "none"), (half, "none"), (half, "int8"), (half, "nf4")]
    if torch.backends.mps.is_available():
        return [("float32", "none"), ("bfloat16", "none")]
    held = model.pick_dtype(ModelSettings(name=MODEL)).name  # what quantized layers compute in
    return [("float32", "none"), ("bfloat16", "none"), (held, "int8"), (held, "nf4")]


def _try(trial: Trial, name: str, steps: int) -> Trial:
    settings = ModelSettings(name=name, dtype=trial.dtype, quantization=trial.quantization)  # type: ignore[arg-type]
    source = fetch_model(settings)
    tokenizer = model.load_tokenizer(settings, source=source)
    rows = read_dataset("shop").select(range(64))
    examples = encode_rows(rows, tokenizer, max_tokens=96).examples
    tuned = adapter.attach_adapter(
        model.load_model(settings, source=source), AdapterSettings(), seed=0
    )
    how = TrainSettings(
        learning_rate=2e-3, epochs=steps, max_steps=steps, max_tokens_per_batch=_TOKENS,
        heldout_evaluations=1,
    )  # fmt: skip
    record = train(tuned, examples, how, objective=chat_loss)
    losses = [step.loss for step in record.steps]
    first, last = (sum(part) / len(part) for part in (losses[:5], losses[-5:]))
    tuned.eval()
    with tempfile.TemporaryDirectory(prefix="sftkit-selftest-") as folder:
        place = Path(folder) / "adapter"
        adapter_files.save_adapter(tuned, place, base_fingerprint=source.fingerprint)
        said = _logits(tuned, examples[:2])
        del tuned
        gc.collect()
        fresh = adapter_files.load_adapter(
            model.load_model(settings, source=source), place, base_fingerprint=source.fingerprint
        )
        parity = float((_logits(fresh, examples[:2]) - said).abs().max())
    faults = []
    if not last < first:
        faults.append(f"the loss did not fall ({first:.2f} to {last:.2f})")
    if not parity <= _SAME[trial.dtype]:
        faults.append(f"the saved adapter answers otherwise (logits differ by {parity:.2g})")
    return dataclasses.replace(
        trial, loss=(round(first, 4), round(last, 4)), parity=parity, fault="; ".join(faults)
    )


def _logits(tuned: Any, examples: Any) -> Any:
    import torch

    batch = collate(examples, pad_id=0, device=tuned.device)
    batch.pop("labels")
    with torch.inference_mode():
        return tuned(**batch).logits.float().cpu()


def selftest_json(trials: tuple[Trial, ...]) -> str:
    """Write the result, with what the machine is, as JSON to paste into a report of a fault."""
    import torch

    device = model.pick_device(ModelSettings(name=MODEL))
    told = {
        "device": describe_device(device),
        "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "versions": dict(versions()),
        "peak_memory_gb": round(peak_memory_bytes() / 1e9, 2),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    return redact(json.dumps(told, indent=1, ensure_ascii=False))
