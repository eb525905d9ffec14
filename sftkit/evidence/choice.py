"""Multiple choice: which continuation of a prompt does the model hold most likely?

All options of a question share its prompt, so they are scored in one row: the prompt once, then
every option side by side, each attending to the prompt and to itself only. The plain way, a row per
option, stays here as its twin; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit.evidence.perplexity import batches_by_length, score_examples
from sftkit.forward import adds_virtual_tokens, logits_at, scoring, unwrapped
from sftkit.records import IGNORE, ChoiceItem, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and its possible continuations, as token ids.

    Attributes:
        prefix: Ids of the shared prompt, shape (P,).
        options: Ids of each option, each shape (O,).
        characters: Length of each option in characters, for ranking.
    """

    prefix: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    characters: tuple[int, ...]

    @property
    def width(self) -> int:
        """Tokens of the row in which all options stand side by side."""
        return len(self.prefix) + sum(len(option) for option in self.options)


@dataclass(frozen=True, kw_only=True)
class ChoiceScore:
    """Scores of one question's options.

    Attributes:
        logprobs: Summed log-probability of each option, nats.
        tokens: Tokens of each option.
        characters: Characters of each option.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]

    @property
    def picked(self) -> int:
        """The option with the highest log-probability per character."""
        ranks = [value / n for value, n in zip(self.logprobs, self.characters, strict=True)]
        return ranks.index(max(ranks))

    def per_token(self, option: int) -> float:
        """Log-probability of one option, nats per token."""
        return self.logprobs[option] / self.tokens[option]


def encode_choices(
    items: Sequence[ChoiceItem], tokenizer: PreTrainedTokenizerBase
) -> tuple[Prompt, ...]:
    """Write questions the usual way: `Question: ...`, `Answer:`, then ` option`; no chat template.

    Args:
        items: Questions with their options.
        tokenizer: The model's tokenizer.
    """
    prompts = []
    for item in items:
        text = f"Question: {item.question}\nAnswer:"
        prefix = _ids(tokenizer, text)
        options = [_ids(tokenizer, f"{text} {option}")[len(prefix) :] for option in item.options]
        prompts.append(
            Prompt(
                prefix=tuple(prefix),
                options=tuple(tuple(option) for option in options),
                characters=tuple(len(option) for option in item.options),
            )
        )
    return tuple(prompts)


def score_choices(model: Any, prompts: Sequence[Prompt]) -> tuple[ChoiceScore, ...]:
    """Score every option of every prompt.

    Args:
        model: A causal model, with or without adapter.
        prompts: From `encode_choices`.

    Returns:
        One score per prompt, in the order given.
    """
    if not takes_own_mask(model):
        return score_choices_plainly(model, prompts)
    scores: dict[int, ChoiceScore] = {}
    with scoring(model):
        for batch in batches_by_length([prompt.width for prompt in prompts]):
            rows = [prompts[row] for row in batch]
            scores.update(zip(batch, _score_side_by_side(model, rows), strict=True))
    return tuple(scores[row] for row in range(len(prompts)))


def score_choices_plainly(model: Any, prompts: Sequence[Prompt]) -> tuple[ChoiceScore, ...]:
    """Score with one row per option: slower, and right for every model."""
    rows = [
        Encoded(input_ids=prompt.prefix + option, labels=(IGNORE,) * len(prompt.prefix) + option)
        for prompt in prompts
        for option in prompt.options
    ]
    losses = iter(score_examples(model, rows))
    return tuple(_score(prompt, [-next(losses).nats for _ in prompt.options]) for prompt in prompts)


def takes_own_mask(model: Any) -> bool:
    """Say whether a model accepts a mask of our own making, shape (B, 1, T, T)."""
    implementation = unwrapped(model).config._attn_implementation
    return implementation in ("eager", "sdpa") and not adds_virtual_tokens(model)


def _score_side_by_side(model: Any, prompts: Sequence[Prompt]) -> list[ChoiceScore]:
    base = unwrapped(model)
    width = max(prompt.width for prompt in prompts)
    shape = (len(prompts), width)
    ids = torch.full(shape, base.config.pad_token_id or 0)
    positions = torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(prompts), 1, 1)
    chosen = torch.zeros(shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        length = len(prompt.prefix)
        ids[row, :length] = torch.tensor(prompt.prefix)
        positions[row, :length] = torch.arange(length)
        sees[row, :length, :length] = torch.ones(length, length).tril().bool()
        chosen[row, length - 1] = True
        start = length
        for option in prompt.options:
            size = len(option)
            stop = start + size
            ids[row, start:stop] = torch.tensor(option)
            positions[row, start:stop] = torch.arange(length, length + size)
            sees[row, start:stop, :length] = True
            sees[row, start:stop, start:stop] = torch.ones(size, size).tril().bool()
            chosen[row, start : stop - 1] = True
            start = stop
    bias = torch.zeros(sees.shape, dtype=base.dtype)
    bias.masked_fill_(~sees, torch.finfo(base.dtype).min)
    device = base.device
    logits = logits_at(
        model,
        chosen.to(device),
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        attention_mask=bias[:, None].to(device),
    )
    logprobs = torch.log_softmax(logits, dim=-1)
    place = 0
    scores = []
    for prompt in prompts:
        after_prefix = place
        place += 1
        sums = []
        for option in prompt.options:
            sources = [after_prefix, *range(place, place + len(option) - 1)]
            sums.append(float(logprobs[sources, list(option)].double().sum()))
            place += len(option) - 1
        scores.append(_score(prompt, sums))
    return scores


def _score(prompt: Prompt, sums: Sequence[float]) -> ChoiceScore:
    return ChoiceScore(
        logprobs=tuple(sums),
        tokens=tuple(len(option) for option in prompt.options),
        characters=prompt.characters,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    coded: Any = tokenizer(text, add_special_tokens=False)
    return list(coded["input_ids"])
