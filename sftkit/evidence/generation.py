"""What the model writes: greedy answers that do not depend on what else is asked beside them.

Sums of floating-point numbers depend on the shape of the arrays they stand in, so a prompt answered
alone and in a batch could take different words. Here every batch has the same number of rows, and
the width of a row follows from its own prompt alone: what stands beside a prompt changes no shape,
and so no bit, wherever a machine computes the rows of a batch apart. `check_stability` finds out
whether it does.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit.evidence_records import Stability
from sftkit.forward import (
    adds_virtual_tokens,
    last_logits_only,
    precision_of,
    scoring,
    unwrapped,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_BATCH = 16
"""Rows of every batch. 32 took 1.7 times as long for one prompt, 8 took 1.1 times for 64 prompts
(SmolLM2-135M, float32, one core)."""
WIDTH_STEP = 16
"""Prompts are padded to a multiple of this many tokens, and by one at least."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One answer, as written.

    Attributes:
        text: Its words; control tokens left out.
        tokens: Tokens written, that which ends the turn left out.
        ended: Whether the model ended its turn; it ran into the longest allowed answer otherwise.
    """

    text: str
    tokens: int
    ended: bool


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> tuple[str, ...]:
    """Answer prompts greedily: the words of `write_answers`."""
    written = write_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        rows_per_batch=rows_per_batch,
    )
    return tuple(answer.text for answer in written)


def write_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> tuple[Written, ...]:
    """Answer prompts greedily, each as if nothing else was asked.

    Args:
        model: A causal model, with or without adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids up to where the assistant speaks, each shape (P,).
        max_new_tokens: Longest answer in tokens.
        rows_per_batch: Rows of every batch; the last prompts are repeated to fill one. Another
            number may give other bits.

    Returns:
        One answer per prompt, in the order given.
    """
    found: dict[int, Written] = {}
    for batch, tokens, ends, _ in _batches(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, rows_per_batch=rows_per_batch
    ):
        for row, ids in zip(batch, tokens, strict=False):
            stop = _stop(ids, ends)
            text = tokenizer.decode(ids[:stop], skip_special_tokens=True)
            found[row] = Written(text=str(text).strip(), tokens=stop, ended=stop < len(ids))
    return tuple(found[row] for row in range(len(prompts)))


def check_stability(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> Stability:
    """Answer prompts again in other company, in another order and in smaller batches, and compare.

    Args:
        model: A causal model, with or without adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids up to where the assistant speaks; a dozen are enough.
        max_new_tokens: Longest answer in tokens.
        seed: Seed of the other order.

    Returns:
        How many answers changed, and by how much the scores of their tokens did.
    """
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)  # noqa: S311  (an order, not a secret)

    def trace(places: Sequence[int], rows: int = ROWS_PER_BATCH) -> dict[int, _Trace]:
        asked = [prompts[place] for place in places]
        traces = _traces(model, tokenizer, asked, max_new_tokens, rows)
        return dict(zip(places, traces, strict=True))

    first = trace(range(len(prompts)))
    again = trace(order[0::2]) | trace(order[1::2])
    small = trace(order, ROWS_PER_BATCH // 2)
    base = unwrapped(model)
    kind = f"{str(base.dtype).removeprefix('torch.')}, {base.device.type}"
    changed, gap = _compare(first, again)
    small_changed, small_gap = _compare(first, small)
    found = Stability(
        answers=len(prompts),
        changed=changed,
        score_gap=gap,
        changed_in_smaller_batches=small_changed,
        score_gap_in_smaller_batches=small_gap,
        sentence="",
    )
    return dataclasses.replace(found, sentence=_in_words(found, kind))


_Trace = tuple[tuple[int, ...], tuple[float, ...]]
"""Tokens of one answer, its end included, and the score (logit) each was chosen with."""


def _traces(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    rows: int,
) -> list[_Trace]:
    found: dict[int, _Trace] = {}
    for batch, tokens, ends, scores in _batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        rows_per_batch=rows,
        keep_scores=True,
    ):
        for place, row in enumerate(batch):
            stop = min(_stop(tokens[place], ends) + 1, len(tokens[place]))
            told = tuple(scores[step][place] for step in range(stop))
            found[row] = (tuple(tokens[place][:stop]), told)
    return [found[row] for row in range(len(prompts))]


def _compare(first: dict[int, _Trace], again: dict[int, _Trace]) -> tuple[int, float]:
    changed, gap = 0, 0.0
    for row, (tokens, scores) in first.items():
        changed += tokens != again[row][0]
        for place, (one, other) in enumerate(zip(scores, again[row][1], strict=False)):
            gap = max(gap, abs(one - other))
            if tokens[place] != again[row][0][place]:
                break  # from here on, other words were read
    return changed, gap


def _in_words(found: Stability, kind: str) -> str:
    answers, changed, gap = found.answers, found.changed, found.score_gap
    small_changed, small_gap = found.changed_in_smaller_batches, found.score_gap_in_smaller_batches
    if not answers:
        return "No answer was asked for, so nothing is known of how stable answers are."
    if changed:
        first = (
            f"{changed} of {answers} answers changed in other company, with scores up to {gap:.2g} "
            f"apart ({kind}): here an answer depends on what is asked beside it. Compare only "
            "answers to the same list of prompts."
        )
    elif gap:
        first = (
            f"All {answers} answers are the same in other company, but their scores differ by up "
            f"to {gap:.2g} ({kind}): between two words that are as close, another could be taken."
        )
    else:
        first = f"All {answers} answers are the same to the bit in other company ({kind})."
    if small_changed:
        return f"{first} In batches of {ROWS_PER_BATCH // 2} rows {small_changed} are others."
    if small_gap:
        return (
            f"{first} In batches of {ROWS_PER_BATCH // 2} rows they are the same words, with "
            f"scores up to {small_gap:.2g} apart."
        )
    return f"{first} So they are in batches of {ROWS_PER_BATCH // 2} rows."


def _batches(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    rows_per_batch: int,
    keep_scores: bool = False,
) -> Iterator[tuple[list[int], list[list[int]], frozenset[int], list[list[float]]]]:
    """Give the rows of each batch, their new tokens, what ends a turn, and scores per step."""
    from sftkit.chat import end_tokens

    base = unwrapped(model)
    pad_id = base.config.pad_token_id or 0
    ends = end_tokens(tokenizer)
    by_width: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        # Behind virtual tokens padding would move the prompt away from them.
        width = len(prompt) if adds_virtual_tokens(model) else _width(len(prompt))
        by_width.setdefault(width, []).append(row)
    for width, rows in sorted(by_width.items()):
        for start in range(0, len(rows), rows_per_batch):
            batch = rows[start : start + rows_per_batch]
            filled = batch + batch[-1:] * (rows_per_batch - len(batch))
            ids, mask = _pad_left([prompts[row] for row in filled], pad_id, width)
            scores: list[list[float]] = []
            with (
                scoring(model),
                precision_of(model),
                last_logits_only(model),
                warnings.catch_warnings(),
            ):
                # Virtual tokens in front move every position; peft counts them, and says so.
                warnings.filterwarnings("ignore", message="Position ids are not supported")
                written = model.generate(
                    input_ids=ids.to(base.device),
                    attention_mask=mask.to(base.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=pad_id,
                    eos_token_id=sorted(ends),
                    logits_processor=[_keeper(scores)] if keep_scores else [],
                )
            yield batch, written[:, width:].tolist(), ends, scores


def _keeper(scores: list[list[float]]) -> Any:
    """Make a step of generation that changes nothing and keeps the score of the likeliest token."""

    def keep(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores.append(logits.amax(-1).tolist())
        return logits

    return keep


def _stop(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """Find the end of an answer; what follows is padding, whose id may be a word's."""
    return next((place for place, token in enumerate(tokens) if token in ends), len(tokens))


def _width(tokens: int) -> int:
    """Give the width of a prompt's row."""
    # By one at least: in a batch without padding the mask is left out, and attention differs.
    return (tokens // WIDTH_STEP + 1) * WIDTH_STEP


def _pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask
