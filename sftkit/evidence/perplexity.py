"""Loss on given text: the answers of held-out examples, and general passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.forward import answer_losses, collate, scoring, unwrapped
from sftkit.records import IGNORE, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_PER_BATCH = 512
"""Tokens scored at once, padding included; bounds the memory of the logits."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """Loss of one text.

    Attributes:
        nats: Cross-entropy summed over its scored tokens.
        tokens: Scored tokens.
    """

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


def score_examples(model: Any, examples: Sequence[Encoded]) -> tuple[TokenLoss, ...]:
    """Score the supervised tokens of every example.

    The composition of batches depends on the lengths alone, so the same examples give the same
    bits for base and tuned model.

    Args:
        model: A causal model, with or without adapter.
        examples: Encoded conversations or passages.

    Returns:
        One loss per example, in the order given.
    """
    base = unwrapped(model)
    pad_id = base.config.pad_token_id or 0
    scores: dict[int, TokenLoss] = {}
    with scoring(model):
        for batch in batches_by_length([len(example.input_ids) for example in examples]):
            inputs = collate([examples[row] for row in batch], pad_id=pad_id, device=base.device)
            losses, rows = answer_losses(model, inputs)
            for place, row in enumerate(batch):
                own = losses[rows == place]
                scores[row] = TokenLoss(nats=float(own.double().sum()), tokens=own.numel())
    return tuple(scores[row] for row in range(len(examples)))


def mean_loss(scores: Sequence[TokenLoss]) -> float:
    """Return the token-weighted mean in nats per token."""
    return sum(score.nats for score in scores) / sum(score.tokens for score in scores)


def encode_passages(
    passages: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[Encoded, ...]:
    """Encode general text, every token but the first scored; text without two tokens is left out.

    Args:
        passages: Plain text.
        tokenizer: The model's tokenizer; no template and no control tokens are added.
        max_tokens: Each passage is scored on its first tokens up to this many.
    """
    encoded = []
    for number, passage in enumerate(passages):
        coded: Any = tokenizer(passage, add_special_tokens=False)
        ids = tuple(coded["input_ids"][:max_tokens])
        if len(ids) < 2:
            continue
        encoded.append(
            Encoded(
                input_ids=ids,
                labels=(IGNORE, *ids[1:]),
                row=number,
                group=str(number),
                end_of_turn=False,
            )
        )
    return tuple(encoded)


def batches_by_length(
    lengths: Sequence[int], *, max_tokens: int = TOKENS_PER_BATCH
) -> list[list[int]]:
    """Cut rows, sorted by length, into batches that fill a token budget."""
    from sftkit.batching import fill_batches

    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return fill_batches(order, lengths, max_tokens=max_tokens)
