"""What the model writes: greedy answers, and whether they say the right thing word for word."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sftkit.forward import last_logits_only, precision_of, scoring, unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_BATCH = 32


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> tuple[str, ...]:
    """Answer prompts greedily.

    Prompts of similar length share a batch, whose composition depends on the prompts alone, so
    base and tuned model are asked under the same conditions.

    Args:
        model: A causal model, with or without adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids up to where the assistant speaks, each shape (P,).
        max_new_tokens: Longest answer in tokens.

    Returns:
        One text per prompt, control tokens left out, in the order given.
    """
    from sftkit.chat import end_tokens

    base = unwrapped(model)
    pad_id = base.config.pad_token_id or 0
    ends = sorted(end_tokens(tokenizer))
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    answers: dict[int, str] = {}
    with (
        scoring(model),
        precision_of(model),
        last_logits_only(model),
        warnings.catch_warnings(),
    ):
        # Virtual tokens in front move every position; peft then counts them itself, and says so.
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        for start in range(0, len(order), ROWS_PER_BATCH):
            batch = order[start : start + ROWS_PER_BATCH]
            ids, mask = _pad_left([prompts[row] for row in batch], pad_id)
            written = model.generate(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad_id,
                eos_token_id=ends,
            )
            for row, tokens in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                # What follows the end is padding, whose id may be a word's in some vocabularies.
                stop = next((p for p, token in enumerate(tokens) if token in ends), len(tokens))
                text = tokenizer.decode(tokens[:stop], skip_special_tokens=True)
                answers[row] = str(text).strip()
    return tuple(answers[row] for row in range(len(prompts)))


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
