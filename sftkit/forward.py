"""One forward pass: rows to tensors, the precision it runs in, the output head where it is needed.

Training and every scorer go through here, so what is measured is what was trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit.records import IGNORE, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


def collate(examples: Sequence[Encoded], *, pad_id: int, device: torch.device) -> Batch:
    """Pad examples on the right.

    Padding is masked by length, never by its token id: in many models the padding token is also
    the end of a turn, which must stay visible and supervised.

    Args:
        examples: B examples.
        pad_id: Any id; its value is never attended to or learned.
        device: Where the tensors go.

    Returns:
        input_ids, attention_mask and labels of shape (B, T), T the longest example.
    """
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORE)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
        mask[row, :length] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def logits_at(model: Any, chosen: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Run the model's own forward and compute logits only at chosen positions.

    A hook in front of the output head drops the positions nobody asked for; the vocabulary is
    often a fifth of a small model's work. The model's own forward runs, so wrappers that add
    virtual tokens or synchronise gradients keep working.

    Args:
        model: A causal model, bare or wrapped by peft or Accelerate.
        chosen: True where logits are wanted, shape (B, T). Logits at t predict token t + 1.
        inputs: Tensors for the model's forward, input_ids of shape (B, T) among them.

    Returns:
        Logits in float32, shape (N, V), N the count of chosen positions in row order.
    """
    head = output_head(model)
    length = chosen.shape[1]

    def keep_chosen(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        # Prompt tuning puts virtual tokens in front: real tokens are the last `length` ones.
        return (given[0][:, -length:][chosen], *given[1:])

    hook = head.register_forward_pre_hook(keep_chosen)
    try:
        with precision_of(model):
            output = model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return torch.as_tensor(output.logits).float()


def answer_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of every supervised token.

    Args:
        model: A causal model.
        batch: From `collate`; labels of shape (B, T), not shifted.

    Returns:
        Losses in nats, shape (N,), and the row each belongs to, shape (N,). N is the count of
        supervised tokens, except a first token, which nothing predicts.
    """
    labels = batch["labels"]
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    chosen = targets != IGNORE
    logits = logits_at(
        model, chosen, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    )
    losses = torch.nn.functional.cross_entropy(logits, targets[chosen], reduction="none")
    return losses, chosen.nonzero()[:, 0]


@contextlib.contextmanager
def precision_of(model: Any) -> Iterator[None]:
    """Compute in the base model's type: float32 plainly, 16-bit types by autocast.

    Adapters are held in float32 over a 16-bit base; autocast multiplies them in the base's type,
    which was 13 % faster than mixing types (2 cores, bfloat16, rank 8). peft would copy every
    layer's input to float32 first, only for autocast to copy it back: the numbers are the same
    without these copies, and training 700 tokens a step takes 0.14 GB less.
    """
    base = unwrapped(model)
    dtype, device = base.dtype, base.device.type
    if dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(device, dtype=dtype), without_input_copies(model):
            yield
    else:
        yield


@contextlib.contextmanager
def without_input_copies(model: Any) -> Iterator[None]:
    """Keep peft from casting the inputs of its layers, where autocast does it anyway."""
    from peft.helpers import disable_input_dtype_casting

    if unwrapped(model).dtype in (torch.bfloat16, torch.float16):
        with disable_input_dtype_casting(model):
            yield
    else:
        yield


@contextlib.contextmanager
def scoring(model: Any) -> Iterator[None]:
    """Score without dropout and without gradients; the model's mode is put back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def unwrapped(model: Any) -> PreTrainedModel:
    """Return the transformers model inside what peft and Accelerate put around it."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextlib.contextmanager
def last_logits_only(model: Any) -> Iterator[None]:
    """Compute logits for the last position of each row only, as generation needs.

    The slice is made contiguous: torch multiplies a strided one by a copy of the whole output
    matrix per row, which took 1.3 GB for 32 prompts of SmolLM2.
    """

    def keep_last(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0][:, -1:].contiguous(), *given[1:])

    hook = output_head(model).register_forward_pre_hook(keep_last)
    try:
        yield
    finally:
        hook.remove()


def adds_virtual_tokens(model: Any) -> bool:
    """Say whether an adapter puts tokens of its own in front, as prompt tuning does."""
    settings = getattr(model, "active_peft_config", None)
    return bool(getattr(settings, "is_prompt_learning", False))


def output_head(model: Any) -> torch.nn.Module:
    """Return the layer that turns hidden states into logits."""
    head = unwrapped(model).get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(unwrapped(model)).__name__} has no output head for text.")
    return head
