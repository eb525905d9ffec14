"""One forward pass: rows to tensors, the precision it runs in, the output head where it is needed.

Training and every scorer go through here, so what is measured is what was trained.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit import packed
from sftkit.records import IGNORE, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]
HEAD_ROWS = 128
"""Positions whose logits are in memory at a time, in training."""
SPARE_ROWS = 16
"""Rows of hidden states are padded to a multiple of it in front of the head."""
HEAD_SCALE = 4096.0
CACHED_NUMBERS = 1 << 18
"""Logits that are worked on at a time: 1 MB in float32. 128 rows of SmolLM2 are 25 MB."""
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Fields of configurations that say what is done to logits after the head."""
_STANDS_ALONE: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


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


def logprobs_at(
    model: Any,
    chosen: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """Compute log-probabilities of given tokens, several of them at one position if wanted.

    Args:
        model: A causal model, bare or wrapped by peft or Accelerate.
        chosen: True where logits are needed, shape (B, T).
        places: For each token the position it follows, as its number among the chosen, shape (M,).
        targets: The tokens, shape (M,).
        inputs: Tensors for the model's forward, input_ids of shape (B, T) among them.

    Returns:
        Log-probabilities in nats, shape (M,), float32.
    """
    if not _head_stands_alone(model):
        return torch.log_softmax(logits_at(model, chosen, **inputs), dim=-1)[places, targets]
    hidden = hidden_at(model, chosen, **inputs)
    found = torch.zeros(len(places), dtype=torch.float32, device=hidden.device)
    with precision_of(model):
        for start in range(0, len(hidden), HEAD_ROWS):
            logits = _logits_of(output_head(model), hidden[start : start + HEAD_ROWS])
            first = torch.zeros(len(logits), dtype=torch.long, device=hidden.device)
            sums = _losses_of(logits, first, 0.0) + logits[:, 0].float()  # log of summed exp
            here = (places >= start) & (places < start + HEAD_ROWS)
            rows = places[here] - start
            found[here] = logits[rows, targets[here]].float() - sums[rows]
    return found


def answer_losses(
    model: Any, batch: Batch, *, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of every supervised token.

    Args:
        model: A causal model.
        batch: From `collate`; labels of shape (B, T), not shifted.
        label_smoothing: Share of each target that is spread evenly over the vocabulary.

    Returns:
        Losses in nats, shape (N,), and the row each belongs to, shape (N,). N is the count of
        supervised tokens, except a first token, which nothing predicts.
    """
    labels = batch["labels"]
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    chosen = targets != IGNORE
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = chosen.nonzero()[:, 0]

    if not _head_stands_alone(model):
        logits = logits_at(model, chosen, **inputs)
        losses = torch.nn.functional.cross_entropy(
            logits, targets[chosen], reduction="none", label_smoothing=label_smoothing
        )
        return losses, rows
    hidden = hidden_at(model, chosen, **inputs)
    with precision_of(model):
        head = output_head(model)
        if torch.is_grad_enabled() and hidden.requires_grad:
            return _LossesInParts.apply(hidden, targets[chosen], head, label_smoothing), rows
        parts = zip(hidden.split(HEAD_ROWS), targets[chosen].split(HEAD_ROWS), strict=True)
        found = [_losses_of(_logits_of(head, part), want, label_smoothing) for part, want in parts]
        return torch.cat([hidden.new_zeros(0, dtype=torch.float32), *found]), rows


def hidden_at(model: Any, chosen: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Run the model's own forward and give what its output head is fed at chosen positions.

    In a training with `speed` the rows are packed: without padding, a shared beginning once.

    Args:
        model: A causal model, bare or wrapped by peft or Accelerate.
        chosen: True where wanted, shape (B, T).
        inputs: Tensors for the model's forward, input_ids of shape (B, T) among them.

    Returns:
        Hidden states of shape (N, D), N the count of chosen positions in row order.
    """
    kept: list[torch.Tensor] = []
    layout = None
    if inputs.keys() == {"input_ids", "attention_mask"}:
        layout = packed.layout_for(unwrapped(model), **inputs)

    def keep_chosen(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if layout is None:
            kept.append(given[0][:, -chosen.shape[1] :][chosen])
        else:
            kept.append(given[0][0].index_select(0, layout.places[chosen]))
        return (given[0][:, :0], *given[1:])  # the head itself has nothing to do

    hook = output_head(model).register_forward_pre_hook(keep_chosen)
    try:
        with precision_of(model):
            given = inputs if layout is None else packed.inputs_of(layout)
            model(**given, use_cache=False)
    finally:
        hook.remove()
    return kept[0]


class _LossesInParts(torch.autograd.Function):
    """Losses of hidden states, a few rows of logits at a time.

    A row's gradient needs no other row, so it is computed with the row's logits, and only the
    gradient by the hidden state is kept: (N, D) numbers in the place of several times (N, V). The
    arithmetic is that of computing all logits at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: torch.nn.Module,
        label_smoothing: float,
    ) -> torch.Tensor:
        losses, gradients = [], []
        parts = zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True)
        for given, wanted in parts:
            with torch.enable_grad():
                part = given.detach().requires_grad_()
                logits = _logits_of(head, part)
            into = logits.detach()
            losses.append(_losses_of(into, wanted, label_smoothing, into_gradients=True))
            (gradient,) = torch.autograd.grad(logits, part, into)
            gradients.append(gradient.float() / HEAD_SCALE)
        ctx.save_for_backward(torch.cat(gradients) if gradients else hidden.float())
        ctx.dtype = hidden.dtype
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, of_losses: torch.Tensor) -> Any:
        (gradients,) = ctx.saved_tensors
        return (of_losses[:, None] * gradients).to(ctx.dtype), None, None, None


def _logits_of(head: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Put rows (n, D) through the head, padded to one of few counts (`speed_rules.round_up`)."""
    spare = -len(hidden) % SPARE_ROWS
    logits: torch.Tensor = head(torch.nn.functional.pad(hidden, (0, 0, 0, spare)))
    return logits[: len(hidden)]


def _losses_of(
    logits: torch.Tensor,
    targets: torch.Tensor,
    label_smoothing: float,
    *,
    into_gradients: bool = False,
) -> torch.Tensor:
    """Compute cross-entropies (n,) of logits (n, V) in float32.

    On a CPU a few rows at a time, so that they stay in its cache from the maximum to the gradient.

    Args:
        logits: Logits.
        targets: The right columns, shape (n,).
        label_smoothing: As in `answer_losses`.
        into_gradients: Replace the logits by HEAD_SCALE times the gradient of their row's loss,
            the chances less the target. The scale keeps small ones in float16; it is a power of
            two, so it changes nothing.
    """
    wide_enough = max(1, CACHED_NUMBERS // logits.shape[-1])
    at_once = wide_enough if logits.device.type == "cpu" else max(1, len(logits))
    losses = [logits.new_zeros(0, dtype=torch.float32)]
    for some, wanted in zip(logits.split(at_once), targets[:, None].split(at_once), strict=True):
        chances = some.to(torch.float32, copy=True)
        chances -= chances.amax(-1, keepdim=True)
        loss = (label_smoothing - 1.0) * chances.gather(1, wanted)
        if label_smoothing:
            loss -= label_smoothing * chances.mean(-1, keepdim=True)
        sums = chances.exp_().sum(-1, keepdim=True)
        losses.append((loss + sums.log())[:, 0])
        if into_gradients:
            chances *= HEAD_SCALE / sums
            if label_smoothing:
                chances -= HEAD_SCALE * label_smoothing / logits.shape[-1]
            less = torch.full_like(loss, HEAD_SCALE * (label_smoothing - 1.0))
            some.copy_(chances.scatter_add_(1, wanted, less))
    return torch.cat(losses)


def _head_stands_alone(model: Any) -> bool:
    """Say whether logits are what the frozen head gives: some models scale or cap them after it.

    Found out once per model, by putting one token through both.
    """
    head = output_head(model)
    if any(parameter.requires_grad for parameter in head.parameters()):
        return False
    base = unwrapped(model)
    config = base.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1.0) for name in _AFTER_HEAD):
        return False
    if head not in _STANDS_ALONE:
        one = torch.zeros((1, 1), dtype=torch.long, device=base.device)
        fed: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
        try:
            with scoring(base), precision_of(base):
                logits = base(input_ids=one, use_cache=False).logits
                _STANDS_ALONE[head] = torch.allclose(logits, head(fed[0]), rtol=1e-2, atol=1e-2)
        finally:
            hook.remove()
    return _STANDS_ALONE[head]


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

    # Layers of some methods, such as ia3, cast nothing and have no such switch.
    casts = any(hasattr(layer, "cast_input_dtype_enabled") for layer in model.modules())
    if casts and unwrapped(model).dtype in (torch.bfloat16, torch.float16):
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
