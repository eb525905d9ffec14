"""What learns a stranger's rows: a model that fits the machine, settings for a first run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit import catalog
from sftkit.errors import ModelError, SftkitError
from sftkit.memory import in_gigabytes
from sftkit.memory_ladder import Plan
from sftkit.settings import (
    AdapterSettings,
    DataSettings,
    EvaluateSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
)

if TYPE_CHECKING:
    from sftkit.memory_formulas import Device

SMALL_CHAT, SMALL_ENCODER = "smollm2-135m", "minilm-l6"
_SHORT_ANSWER = 8  # words; longer ones are hardly ever met word for word
_SHARE_OF_MEMORY = 0.9
# A fresh head needs steps: on 474 letters of seven topics MiniLM was right in 47 % after 51 steps
# and in 76 % after 190, counting words in 51 %.
_STEPS = {"cpu": 150, "cuda": 1000, "mps": 300}
"""Steps of a first run: on 2 cores 150 steps of 640 tokens take about 6 minutes (SmolLM2-135M)."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a model has to fit on.

    Attributes:
        device: cpu, cuda or mps.
        free: Bytes it can take.
    """

    device: Device
    free: int


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of rows in words.

    Attributes:
        median: Of a row.
        most: 99 of 100 rows have no more.
        answer: Median of the answers.
        foreign: Share of letters in another script than Latin.
    """

    median: float
    most: int
    answer: float
    foreign: float

    @classmethod
    def nothing(cls) -> Lengths:
        """Where rows have no words, or were not read."""
        return cls(median=0, most=0, answer=0, foreign=0)


def this_machine() -> Machine:
    """Look at the device a model would live on, and the memory that is free there."""
    import torch

    from sftkit.held_memory import free_bytes
    from sftkit.model import pick_device

    device: Device = pick_device(ModelSettings(name=SMALL_CHAT)).type  # type: ignore[assignment]
    free = int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_bytes()
    return Machine(device=device, free=free)


def pick_model(
    task: str, machine: Machine, asked: str | None = None, max_tokens: int = 512
) -> tuple[ModelSettings, str]:
    """Choose a model that fits, and say why.

    On a CPU the small models that need no hub; on a GPU the largest of the catalog whose predicted
    peak leaves a tenth of the memory free, unquantized before 4 bits.

    Args:
        task: Task of the recipe.
        machine: What it has to fit on.
        asked: The user's choice.
        max_tokens: Longest row.

    Raises:
        ModelError: None fits, or images came without a model.
    """
    if asked is not None:
        return ModelSettings(name=asked), f"{asked}, as asked for"
    if task == "image":
        raise ModelError(
            "Images need a model of images, and the catalog has none. Say one: --model "
            "microsoft/resnet-18 (from the hub), or the folder of one."
        )
    if task != "chat":
        return _fitting(SMALL_ENCODER, task, machine, max_tokens)
    on_hub = [one for one in catalog.entries() if one.kind == "model" and one.hub is not None]
    by_size = sorted(on_hub, key=lambda one: -one.bytes)
    for entry in by_size if machine.device == "cuda" else ():
        for quantization in ("none", "nf4"):
            settings = ModelSettings(name=entry.name, quantization=quantization)
            peak = _peak(settings, task, machine, max_tokens)
            if peak is not None and peak <= machine.free * _SHARE_OF_MEMORY:
                return settings, _fits(settings, peak, machine)
    return _fitting(SMALL_CHAT, task, machine, max_tokens)


def _fitting(name: str, task: str, machine: Machine, max_tokens: int) -> tuple[ModelSettings, str]:
    settings = ModelSettings(name=name)
    peak = _peak(settings, task, machine, max_tokens)
    if peak is not None and peak > machine.free:
        raise ModelError(
            f"{name} would take {in_gigabytes(peak)} and {in_gigabytes(machine.free)} are free. "
            "Close other programs, or say another model: --model NAME."
        )
    return settings, _fits(settings, peak, machine)


def _peak(settings: ModelSettings, task: str, machine: Machine, max_tokens: int) -> int | None:
    """Predict the upper end of a run's peak, in bytes; None where the shape is not known."""
    data = DataSettings(source="x", task=task, max_tokens=max_tokens)  # type: ignore[arg-type]
    recipe = make_recipe("peak", data, settings, machine, words=Lengths.nothing(), rows=1)
    try:
        config = catalog.model_config(settings)
    except SftkitError:
        return None
    plan = Plan(
        config=config,
        model=settings,
        adapter=recipe.adapter,
        train=recipe.train,
        max_tokens=max_tokens,
        task=recipe.data.task,
        device=machine.device,
        dtype="float32" if machine.device == "cpu" else None,
    )
    try:
        return plan.estimate().high
    except ModelError:
        return None


def _fits(settings: ModelSettings, peak: int | None, machine: Machine) -> str:
    kind = "" if settings.quantization == "none" else f" in {settings.quantization}"
    if peak is None:
        return f"{settings.name}{kind}; its memory cannot be predicted"
    return (
        f"{settings.name}{kind}, predicted to take {in_gigabytes(peak)} at most of the "
        f"{in_gigabytes(machine.free)} that are free on this {machine.device.upper()}"
    )


def make_recipe(
    name: str,
    data: DataSettings,
    model: ModelSettings,
    machine: Machine,
    *,
    words: Lengths,
    rows: int,
) -> Recipe:
    """Choose settings for a first run.

    Args:
        name: Of the recipe.
        data: What is learned.
        model: What learns it.
        machine: Where.
        words: Lengths of the rows.
        rows: Training rows.
    """
    is_small, is_chat = machine.device != "cuda", data.task == "chat"
    batch = max((640 if is_chat else 1024) if is_small else 4096, data.max_tokens)
    tokens = max(words.median * 1.6 + (24 if is_chat else 4), 8)
    steps = math.ceil(rows * tokens / batch)
    wanted, most_epochs = (60, 4) if is_chat else (200, 15)
    epochs = min(most_epochs, max(1, math.ceil(wanted / max(steps, 1))))
    most = _STEPS[machine.device] * (1 if is_chat else 3)
    rate = 5e-4 if not is_chat else 1e-3 if model.name == SMALL_CHAT else 2e-4
    train = TrainSettings(
        learning_rate=rate,
        epochs=epochs,
        max_steps=most if steps * epochs > most else None,
        max_tokens_per_batch=batch,
        micro_batches=2 if is_chat else 1,
        examples_per_batch=16 if data.task == "image" else None,
        heldout_evaluations=4,
        weight_decay=0.0 if is_chat else 0.01,
    )
    if is_chat:
        data = dataclasses.replace(data, replay="boolq", replay_share=0.15)
        short = words.answer <= _SHORT_ANSWER
        evaluate = EvaluateSettings(
            knowledge="exact" if short else "recognition",
            knowledge_items=60,
            max_new_tokens=24 if short else 64,
            items_per_probe=60 if is_small else 200,
            drift_passages=60 if is_small else 100,
            style_items=80,
            behaviour="./behaviour.yaml",
        )
    else:
        behaviour = "" if data.task == "image" else "./behaviour.yaml"
        evaluate = EvaluateSettings(behaviour=behaviour)
    return Recipe(
        name=name,
        model=model,
        data=data,
        adapter=AdapterSettings(kind="lora", r=16, lora_alpha=32, target_modules="all-linear"),
        train=train,
        evaluate=evaluate,
    )
