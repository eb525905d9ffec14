"""Which layers of a model an adapter changes, and which parts of a model are its head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit.errors import AdapterError, near_names
from sftkit.settings import AdapterSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WORDS = ("all-linear", "attention")


def find_targets(model: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """List the full names of the layers that an adapter would change.

    all-linear and attention mean linear layers; convolutions are found by name or pattern. The
    head is never a target (see `head_names`).

    Args:
        model: The base model.
        settings: `target_modules` and `layers` decide.

    Returns:
        Names such as model.layers.0.self_attn.q_proj, in the model's order.

    Raises:
        AdapterError: Nothing matches; near names are listed.
    """
    wanted = settings.target_modules
    if not isinstance(wanted, str) and len(wanted) == 1 and wanted[0] in _WORDS:
        wanted = wanted[0]  # a word in brackets is the word
    if isinstance(wanted, str):
        try:
            re.compile(wanted)
        except re.error as error:
            raise AdapterError(
                f"adapter.target_modules {wanted!r} is no regular expression: {error}."
            ) from error
    layers = _layers(model)
    linear = [name for name, module in layers.items() if is_linear(module)]
    candidates = linear if wanted in _WORDS else list(layers)
    chosen = [name for name in candidates if _matches(name, wanted)]
    unmatched = [
        target
        for target in ((wanted,) if isinstance(wanted, str) else wanted)
        if not any(_matches(name, target if target == wanted else (target,)) for name in candidates)
    ]
    if unmatched:
        sorts = "linear layer" if len(linear) == len(layers) else "linear layer or convolution"
        last_names = {name.rsplit(".", 1)[-1] for name in layers}
        raise AdapterError(
            f"adapter.target_modules {unmatched[0]!r} matches no {sorts} of "
            f"{type(model).__name__}.{near_names(unmatched[0], last_names | set(_WORDS))}"
        )
    if settings.layers is None:
        return chosen
    first, last = settings.layers
    inside = [name for name in chosen if (n := _block(name)) is not None and first <= n <= last]
    blocks = [n for name in layers if (n := _block(name)) is not None]
    if not blocks or last > max(blocks):
        raise AdapterError(
            f"adapter.layers={list(settings.layers)} lies outside the model, whose blocks are 0 to "
            f"{max(blocks, default=0)}."
        )
    if not inside:
        held = sorted({n for name in chosen if (n := _block(name)) is not None})
        raise AdapterError(
            f"adapter.layers={list(settings.layers)} holds none of the layers that "
            f"adapter.target_modules {settings.target_modules!r} matches; they are in "
            f"{'blocks ' + ', '.join(map(str, held)) if held else 'no block'}. Change one of both."
        )
    return inside


def inner_feedforward(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """List the targets whose input ia3 scales: the second layer of each feed-forward part.

    Its input is the inner activation (Liu et al. 2022, section 3.3). It is known by giving fewer
    values than it takes, outside of attention.
    """
    modules = dict(model.named_modules())

    def narrows(module: Any) -> bool:
        taken, given = module.weight.shape if _is_conv1d(module) else (
            getattr(module, "in_features", 0), getattr(module, "out_features", 0)
        )  # fmt: skip
        return int(taken) > int(given)

    return [name for name in targets if not _in_attention(name) and narrows(modules[name])]


def head_names(model: PreTrainedModel) -> list[str]:
    """List the modules behind a model's body: its output head, and a BERT's pooler.

    The pooler counts as head because it feeds nothing else: checkpoints lack it, or hold one that
    was trained for another end. Both are small; with labels both are trained in full.
    """
    prefix = model.base_model_prefix
    body = getattr(model, prefix, None) if prefix else None
    if body is None or body is model:
        return []
    names = [
        name for name, child in model.named_children() if name != prefix and _has_weights(child)
    ]
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, torch.nn.Module) and _has_weights(pooler):
        names.insert(0, f"{prefix}.pooler")
    return names


def last_parameters(model: PreTrainedModel, blocks: int) -> list[str]:
    """List the parameters of the last blocks and of all that comes behind them.

    Args:
        model: The base model.
        blocks: How many of its numbered blocks (stages of a ResNet).

    Returns:
        Parameter names. A head that is tied to the input embeddings brings them along.

    Raises:
        AdapterError: The model has fewer blocks.
    """
    numbers = {n for name, _ in model.named_parameters() if (n := _block(name)) is not None}
    if blocks > len(numbers):
        raise AdapterError(
            f"adapter.last_blocks={blocks}, but {type(model).__name__} has {len(numbers)} blocks."
        )
    first = sorted(numbers)[-blocks]
    head = model.get_output_embeddings()
    tied = getattr(head, "weight", None)
    before = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) or "embed" in name.lower()
        for parameter in module.parameters()
    }
    chosen = []
    for name, parameter in model.named_parameters():
        block = _block(name)
        behind = block >= first if block is not None else id(parameter) not in before
        if behind or parameter is tied:
            chosen.append(name)
    return chosen


def is_linear(module: torch.nn.Module) -> bool:
    """Say that a module is a linear layer by whatever name."""
    # bitsandbytes' layers are nn.Linear too; GPT-2's Conv1D is linear by another name.
    return isinstance(module, torch.nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Name all linear layers and convolutions but the head's."""
    head = model.get_output_embeddings()
    behind = tuple(f"{name}." for name in head_names(model))
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        name: module
        for name, module in model.named_modules()
        if (is_linear(module) or isinstance(module, kinds))
        and module is not head
        and not f"{name}.".startswith(behind or "\0")
    }


def _has_weights(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _in_attention(name: str) -> bool:
    parts: Iterator[str] = iter(name.lower().split(".")[:-1])
    return any("attn" in part or "attention" in part for part in parts)


def _matches(name: str, target: str | tuple[str, ...]) -> bool:
    if target == "all-linear":
        return True
    if target == "attention":
        return _in_attention(name)
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None or name.rsplit(".", 1)[-1] == target
    return any(name == part or name.endswith(f".{part}") for part in target)


def _block(name: str) -> int | None:
    """Number of the block a layer is in: the first number in its name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
