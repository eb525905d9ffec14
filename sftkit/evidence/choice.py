"""Multiple choice: which continuation of a prompt does the model hold most likely?

All options of a question are scored in one row: the prompt once, then a tree of the options, whose
branches part where the options do. Each token attends to those it follows in its own option, and a
last token, after which nothing is asked, is left out. The plain way, a row per option, stays here
as its twin; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftkit.evidence.perplexity import batches_by_length, score_examples
from sftkit.forward import adds_virtual_tokens, logprobs_at, scoring, unwrapped
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


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """A prompt and its options as one row of tokens, common beginnings once.

    Attributes:
        tokens: Token ids, those of the prompt first, shape (N,).
        parents: The token each one follows, as a place in the row; -1 for the first.
        depths: How many tokens each one follows: its position for the model.
        sources: For each option the places whose logits predict its tokens.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]


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

    An item with a prompt of its own is written as that prompt, its joint, and the option.

    Args:
        items: Questions with their options.
        tokenizer: The model's tokenizer.
    """
    prompts = []
    for item in items:
        text = f"Question: {item.question}\nAnswer:" if item.prompt is None else item.prompt
        prefix = _ids(tokenizer, text)
        whole = [_ids(tokenizer, f"{text}{item.joint}{option}") for option in item.options]
        options = [ids[len(prefix) :] for ids in whole]
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
        trees = [grow_tree(prompt) for prompt in prompts]
        for batch in batches_by_length([len(tree.tokens) for tree in trees]):
            rows = [(prompts[row], trees[row]) for row in batch]
            scores.update(zip(batch, _score_trees(model, rows), strict=True))
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


def grow_tree(prompt: Prompt) -> TokenTree:
    """Lay out a prompt and its options in one row."""
    length = len(prompt.prefix)
    tokens, parents = list(prompt.prefix), list(range(-1, length - 1))
    depths = list(range(length))
    branches: dict[tuple[int, int], int] = {}
    sources = []
    for option in prompt.options:
        place, path = length - 1, [length - 1]
        for token in option[:-1]:
            if (place, token) not in branches:
                branches[place, token] = len(tokens)
                tokens.append(token)
                parents.append(place)
                depths.append(depths[place] + 1)
            place = branches[place, token]
            path.append(place)
        sources.append(tuple(path))
    return TokenTree(
        tokens=tuple(tokens), parents=tuple(parents), depths=tuple(depths), sources=tuple(sources)
    )


def _score_trees(model: Any, rows: Sequence[tuple[Prompt, TokenTree]]) -> list[ChoiceScore]:
    base = unwrapped(model)
    shape = (len(rows), max(len(tree.tokens) for _, tree in rows))
    ids = np.full(shape, base.config.pad_token_id or 0)
    positions = np.zeros(shape, dtype=np.int64)
    sees = np.tile(np.eye(shape[1], dtype=bool), (len(rows), 1, 1))
    chosen = np.zeros(shape, dtype=bool)
    for row, (_, tree) in enumerate(rows):
        size = len(tree.tokens)
        ids[row, :size] = tree.tokens
        positions[row, :size] = tree.depths
        for place in range(1, size):
            sees[row, place] |= sees[row, tree.parents[place]]
        chosen[row, [place for path in tree.sources for place in path]] = True
    number = chosen.cumsum().reshape(shape) - 1
    places = [
        number[row, list(path)] for row, (_, tree) in enumerate(rows) for path in tree.sources
    ]
    targets = [option for prompt, _ in rows for option in prompt.options]
    mask = torch.zeros((len(rows), 1, shape[1], shape[1]), dtype=base.dtype)
    mask.masked_fill_(torch.from_numpy(~sees)[:, None], torch.finfo(base.dtype).min)
    found = logprobs_at(
        model,
        torch.from_numpy(chosen).to(base.device),
        torch.from_numpy(np.concatenate(places)).to(base.device),
        torch.tensor([token for option in targets for token in option], device=base.device),
        input_ids=torch.from_numpy(ids).to(base.device),
        position_ids=torch.from_numpy(positions).to(base.device),
        attention_mask=mask.to(base.device),
    )
    sums = iter([float(part.sum()) for part in found.double().cpu().split([*map(len, targets)])])
    return [_score(prompt, [next(sums) for _ in prompt.options]) for prompt, _ in rows]


def _score(prompt: Prompt, sums: Sequence[float]) -> ChoiceScore:
    return ChoiceScore(
        logprobs=tuple(sums),
        tokens=tuple(len(option) for option in prompt.options),
        characters=prompt.characters,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    coded: Any = tokenizer(text, add_special_tokens=False)
    return list(coded["input_ids"])
