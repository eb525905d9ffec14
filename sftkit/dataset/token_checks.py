"""What only the model's tokenizer can tell: lengths in tokens, what would be learned, the template.

Everything is measured by encoding the rows as training would, not guessed from the template.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.dataset.digest import RowDigest
from sftkit.dataset.faults import FaultLog
from sftkit.errors import EncodeError
from sftkit.records import IGNORE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHOWN = 160
"""Characters of a template's system prompt that a message shows."""


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """Lengths in tokens.

    Attributes:
        lengths: Of every row that could be encoded.
        over_limit: Rows longer than the limit.
    """

    lengths: array[int]
    over_limit: int


def control_tokens(tokenizer: Any) -> set[str]:
    """List the tokens that are commands to the model, as text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {str(token) for token in added if getattr(token, "special", False)}
    return special | set(getattr(tokenizer, "all_special_tokens", ()))


def check_template(
    dataset: Dataset,
    digest: RowDigest,
    tokenizer: PreTrainedTokenizerBase,
    log: FaultLog,
    *,
    system: str | None = None,
) -> bool:
    """Log what the chat template does that nobody wrote, and where it keeps silent.

    Args:
        dataset: Conversations.
        digest: The same rows, for their places.
        tokenizer: The model's.
        log: Takes the findings.
        system: System prompt that will be put first.

    Returns:
        Whether conversations can be encoded with it.
    """
    from sftkit.chat import template_facts

    try:
        facts = template_facts(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise EncodeError("it is no fast tokenizer, so nobody knows where each token stands")
    except EncodeError as error:
        log.add(
            "D29",
            "the chat template",
            of="template",
            detail=str(error).rstrip("."),
            severity="error",
            message="no answer can be found in what the chat template writes: {detail}",
            fix="Use an instruction-tuned model, or set tokenizer.chat_template.",
        )
        return False
    if not facts.has_generation_marker:
        detail = "each answer is found by rendering its row again with marks in its place"
        log.add("D29", "the chat template", of="template", detail=detail)
    if facts.pad_is_eos:
        log.add("D30", "the tokenizer", of="tokenizer", detail=repr(tokenizer.pad_token))
    if facts.injected_system and system is None:
        shown = repr(facts.injected_system)
        detail = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
        for row, messages in enumerate(_column(dataset, "messages")):
            if messages and messages[0].get("role") != "system":
                log.add("D32", digest.places[row], row=row, of="template", detail=detail)
    return True


def check_tokens(
    dataset: Dataset,
    digest: RowDigest,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    log: FaultLog,
    *,
    faulty: Collection[int] = (),
    system: str | None = None,
) -> TokenFacts:
    """Log conversations that are too long or would teach nothing.

    Args:
        dataset: Conversations.
        digest: The same rows, for their places.
        tokenizer: The model's, with a chat template.
        max_tokens: Longest row that is trained on.
        log: Takes the findings.
        faulty: Rows that have an error already and need no second one.
        system: System prompt that will be put first.
    """
    import numpy as np

    from sftkit.encoding import encode_dataset

    # Nothing is too long here, so that lengths beyond the limit are measured too.
    table = encode_dataset(dataset, tokenizer, max_tokens=sys.maxsize, system=system)
    over = np.flatnonzero(table.lengths > max_tokens)
    lost = sum(_first_learned(table[int(place)].labels) >= max_tokens for place in over)
    detail = f"{max_tokens:,} tokens (the longest has {int(table.lengths.max(initial=0)):,})"
    detail += f"; cut there, {lost:,} would lose the whole answer" if lost else ""
    for place in over:
        row = int(table.rows[place])
        log.add("D27", digest.places[row], row=row, of="messages", detail=detail)
    refused = [one for one in table.refused if one.row not in faulty]
    for one in refused:
        detail = _reason(one.reason)
        fix = "Change the row or the chat template as this says, or leave the row out."
        log.add("D28", digest.places[one.row], row=one.row, of="messages", detail=detail, fix=fix)
    unlearned = np.flatnonzero(table.supervised == 0)
    for place in unlearned:
        row = int(table.rows[place])
        if row not in faulty:
            tokens = f"0 of {int(table.lengths[place]):,} tokens"
            log.add("D28", digest.places[row], row=row, of="messages", detail=tokens)
    kept = table.lengths <= max_tokens
    if digest.count and not table.supervised[kept].sum() and not refused and not len(unlearned):
        message = "nothing would be trained at all: 0 of {detail} tokens lie in rows that fit"
        fix = f"Raise max_tokens to {int(table.lengths.max(initial=0))}, or shorten the rows."
        fix = fix if len(table) else "Repair the rows that the other findings name."
        detail = f"{int(table.lengths.sum()):,}"
        log.add("D28", digest.places[0], of="dataset", detail=detail, message=message, fix=fix)
    lengths = array("i", [int(length) for length in table.lengths])
    return TokenFacts(lengths=lengths, over_limit=len(over))


def check_text_lengths(
    dataset: Dataset,
    digest: RowDigest,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    log: FaultLog,
) -> TokenFacts:
    """Log texts to be classified or scored that are too long."""
    lengths = array("i")
    for batch in dataset.select_columns(["text"]).iter(1000):
        texts = [text or "" for text in batch["text"]]
        coded: Any = tokenizer(texts, truncation=False, verbose=False)
        lengths.extend(map(len, coded["input_ids"]))
    over = [row for row, length in enumerate(lengths) if length > max_tokens]
    detail = f"{max_tokens:,} tokens (the longest has {max(lengths, default=0):,})"
    for row in over:
        log.add(
            "D27",
            digest.places[row],
            row=row,
            of="text",
            detail=detail,
            fix="Raise max_tokens, or shorten the texts: what stands beyond is not seen.",
        )
    return TokenFacts(lengths=lengths, over_limit=len(over))


def _first_learned(labels: Sequence[int]) -> int:
    return next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))


def _reason(reason: str) -> str:
    """Leave out of a refusal the row it names: the finding names its place already."""
    return reason.removeprefix("row ").lstrip("0123456789").removeprefix(": ").strip().rstrip(".")


def _column(dataset: Dataset, name: str) -> Any:
    for batch in dataset.select_columns([name]).iter(1000):
        yield from batch[name]
