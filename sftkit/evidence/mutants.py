"""Faults planted on purpose, to see which checks notice them: a check that spares all is no check.

Each fault is one that happens. Some are put on a trained model and taken off again, to the bit;
the others spoil what a training is given. The first line of a fault's docstring goes into tables.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit.errors import AdapterError, DataError
from sftkit.forward import unwrapped
from sftkit.settings import TrainSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.labelled import LabelledText

Plant = Callable[[Any], contextlib.AbstractContextManager[None]]
OTHER_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] %}"
    "### {{ message['role'].capitalize() }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Headlines instead of control tokens, as many published examples have them."""


# --- On a trained model, while it is asked ---------------------------------------------------


@contextlib.contextmanager
def adapter_zeroed(model: Any) -> Iterator[None]:
    """The adapter does nothing.

    It was saved before training, or its file names its weights otherwise than the model: they are
    left as they began, with a warning that scrolls by. The head of a classifier stays trained.

    Raises:
        AdapterError: The model has no LoRA adapter, of which this is told by the B matrices.
    """
    with _multiplied(_updates(model), 0.0):
        yield


@contextlib.contextmanager
def adapter_scaled_up(model: Any, *, factor: float = 4.0) -> Iterator[None]:
    """The adapter is several times too strong.

    lora_alpha is read from another file, alpha / r is mistaken for alpha / sqrt(r) (4 times at
    rank 16), or the update is merged twice.

    Raises:
        AdapterError: The model has no LoRA adapter.
    """
    with _multiplied(_updates(model), factor):
        yield


@contextlib.contextmanager
def block_dropped(model: Any, *, block: int | None = None) -> Iterator[None]:
    """The adapter of one block is missing.

    A file of several was not copied, or a conversion skipped a name it did not know.

    Args:
        model: A model with a LoRA adapter.
        block: Which one, counted from 0; None takes the one in the middle.

    Raises:
        AdapterError: The model has no LoRA adapter, or none in this block.
    """
    numbered: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in _updates(model).items():
        if found := re.search(r"\.(\d+)\.", name):
            numbered.setdefault(int(found[1]), []).append(parameter)
    if block is None:
        block = sorted(numbered)[len(numbered) // 2] if numbered else 0
    if block not in numbered:
        known = f"{min(numbered)} to {max(numbered)}" if numbered else "none"
        raise AdapterError(f"No adapter is in block {block}; there are blocks: {known}.")
    with _multiplied(dict(enumerate(numbered[block])), 0.0):
        yield


@contextlib.contextmanager
def weights_rounded(model: Any, *, bits: int = 4) -> Iterator[None]:
    """The merged weights are rounded to few bits, with one scale per matrix.

    The largest weight then sets the steps of all others, which mostly become 0 (careful methods
    have a scale for every 64 weights or so; Dettmers et al. 2023). What is held is what such a file
    holds, 8 bits per weight at most: there is no second model.

    Raises:
        AdapterError: The model has no linear layer with a LoRA adapter.
    """
    layers = [module for module in model.modules() if _is_linear(module)]
    if not layers:
        raise AdapterError("The model has no linear layer with a LoRA adapter to merge and round.")
    try:
        for layer in layers:
            layer.forward = _rounded_forward(layer, bits)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


@contextlib.contextmanager
def computed_in_float32(model: Any) -> Iterator[None]:
    """The same weights, computed in float32.

    No fault: it tells how far numbers move between machines that compute in other types. A base
    model in 16 bits is turned to float32 and back, which loses no bit.
    """
    base = unwrapped(model)
    types = [(parameter, parameter.dtype) for parameter in base.parameters()]
    try:
        for parameter, _ in types:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in types:
            parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def head_swapped(model: Any, *, classes: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Two outputs of the head have changed places.

    The labels are listed in another order where the model is used than where it was trained:
    by first appearance there, by the alphabet here.

    Args:
        model: A classifier with a trained head.
        classes: The outputs that change places.

    Raises:
        AdapterError: The model has no trained head with a row per class.
    """
    size = getattr(unwrapped(model).config, "num_labels", 0)
    rows = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name and len(parameter) == size
    ]
    if not rows or not all(0 <= place < size for place in classes):
        raise AdapterError(f"No trained head has outputs {classes[0]} and {classes[1]} to swap.")
    with _restored(rows), torch.no_grad():
        for parameter in rows:
            parameter[list(classes)] = parameter[list(reversed(classes))].clone()
        yield


# --- In what a training is given -------------------------------------------------------------


def with_other_template(
    tokenizer: PreTrainedTokenizerBase, template: str = OTHER_TEMPLATE
) -> PreTrainedTokenizerBase:
    """Training and use write conversations in two ways.

    A script has a template of its own, or the tokenizer of another model. Everything else of the
    tokenizer stays, and the one given is left as it is.
    """
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


def with_answers_shuffled(rows: Dataset, *, seed: int = 0) -> Dataset:
    """Answers belong to other questions.

    Two columns were sorted one without the other, or joined by a key that does not fit. Every
    answer is kept, and goes to a question whose right answer it is not, as far as there is one.

    Args:
        rows: Training rows with messages and group; the answer is the last turn.
        seed: Seed of the shuffle.
    """
    from datasets import Dataset as Rows

    table = rows.to_list()
    places = _moved([row["messages"][-1]["content"] for row in table], seed)
    answers = [table[place]["messages"][-1] for place in places]
    mixed = [
        {**row, "messages": [*row["messages"][:-1], answer]}
        for row, answer in zip(table, answers, strict=True)
    ]
    return Rows.from_list(mixed, features=rows.features)


def with_labels_shuffled(
    examples: Sequence[LabelledText], *, seed: int = 0
) -> tuple[LabelledText, ...]:
    """Labels belong to other texts.

    Two columns were sorted one without the other, or joined by a key that does not fit. The shares
    of the labels stay, and every text that can gets a label that is not its own.
    """
    places = _moved([example.target for example in examples], seed)
    targets = [examples[place].target for place in places]
    return tuple(
        dataclasses.replace(example, target=target)
        for example, target in zip(examples, targets, strict=True)
    )


def with_test_leaked(train: Dataset, test: Dataset) -> Dataset:
    """The test stands in the training rows.

    Files were joined before they were divided, or a public set holds the questions.
    """
    from datasets import concatenate_datasets

    kept = [name for name in train.column_names if name in test.column_names]
    return concatenate_datasets([train.select_columns(kept), test.select_columns(kept)])


def cut_short(settings: TrainSettings, *, steps: int = 3) -> TrainSettings:
    """Training ended after a few steps.

    max_steps of a first try was left in, or the machine was taken away and the checkpoint used.
    """
    return dataclasses.replace(settings, max_steps=steps)


def in_words(fault: Callable[..., Any]) -> str:
    """Say what is wrong: the first line of a fault's docstring."""
    return (fault.__doc__ or "").strip().splitlines()[0].rstrip(".")


SERVED: Mapping[str, Plant] = {
    "adapter zeroed": adapter_zeroed,
    "adapter scaled ×4": adapter_scaled_up,
    "one block's adapter dropped": block_dropped,
    "rounded to 4 bits": weights_rounded,
}
"""Faults of any adapter, put on while the model is asked."""
SERVED_WITH_HEAD: Mapping[str, Plant] = {**SERVED, "two classes swapped": head_swapped}
"""The same for a classifier."""


# --- Taking hold, and putting back -----------------------------------------------------------


@contextlib.contextmanager
def _multiplied(parameters: Mapping[Any, torch.nn.Parameter], factor: float) -> Iterator[None]:
    with _restored(list(parameters.values())), torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(factor)
        yield


@contextlib.contextmanager
def _restored(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Put the same bits back, whatever happens inside."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _updates(model: Any) -> dict[str, torch.nn.Parameter]:
    """Give the B matrices of a LoRA adapter: at 0 they change nothing."""
    found = {n: p for n, p in model.named_parameters() if re.search(r"\.lora_(embedding_)?B\.", n)}
    if not found:
        raise AdapterError(
            f"{type(model).__name__} has no LoRA adapter, in which faults are planted. Attach one "
            "with adapter.kind: lora."
        )
    return found


def _is_linear(module: torch.nn.Module) -> bool:
    layer = getattr(module, "base_layer", None)
    return isinstance(layer, torch.nn.Linear) and len(getattr(module, "lora_B", ())) > 0


def _rounded_forward(layer: Any, bits: int) -> Callable[..., torch.Tensor]:
    """Give a forward by the layer's merged weight, rounded to whole steps of one size."""
    base = layer.get_base_layer()
    with torch.no_grad():
        merged = base.weight.float()
        for name in layer.active_adapters:
            merged = merged + layer.get_delta_weight(name).float()
        step = merged.abs().max() / (2 ** (bits - 1) - 1)
        steps = (merged / step).round().to(torch.int8)

    def forward(given: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        weight = steps.to(base.weight.dtype) * step.to(base.weight.dtype)
        return torch.nn.functional.linear(given, weight, base.bias)

    return forward


def _moved(values: Sequence[object], seed: int) -> list[int]:
    """Order places anew so that, as far as can be, none keeps its own value.

    Equal values are put side by side in random order, and all are turned by the count of the most
    common one: no place then falls on an equal value unless that one fills half of all.
    """
    if len(set(map(str, values))) < 2:
        raise DataError("All training rows have the same answer, so shuffling would change none.")
    chance = random.Random(seed)  # noqa: S311  (a planted fault, not a secret)
    order = list(range(len(values)))
    chance.shuffle(order)
    order.sort(key=lambda place: str(values[place]))
    counts: dict[str, int] = {}
    for value in map(str, values):
        counts[value] = counts.get(value, 0) + 1
    turn = max(counts.values())
    taken = [0] * len(values)
    for position, place in enumerate(order):
        taken[place] = order[(position + turn) % len(order)]
    return taken
