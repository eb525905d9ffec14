"""A recipe's examples, from the source to token ids: read, audited, divided, encoded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit import catalog
from sftkit.encoded import JoinedExamples
from sftkit.errors import DataError, EncodeError
from sftkit.records import ChoiceItem, DataFacts, Encoded, Finding, Refused
from sftkit.settings import DataSettings, Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.split import Splits
    from sftkit.encoded import EncodedTable


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A recipe's examples: audited, divided, encoded.

    Attributes:
        splits: Rows per split.
        train: Encoded training examples, replayed ones included.
        replayed: How many of these are replayed ones.
        validation: Encoded validation examples.
        refused: Training rows that could not be encoded, and why: the first thousand.
        refused_rows: All training rows that could not be encoded.
        findings: What the audit found.
        facts: Origin, counts and licence.
    """

    splits: Splits
    train: Sequence[Encoded]
    replayed: int
    validation: Sequence[Encoded]
    refused: tuple[Refused, ...]
    refused_rows: int
    findings: tuple[Finding, ...]
    facts: DataFacts


def prepare_data(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    probes: Mapping[str, Sequence[ChoiceItem]],
    *,
    note: Callable[[str], None] = lambda text: None,
) -> PreparedData:
    """Read, audit, divide and encode a recipe's examples.

    Args:
        recipe: Its data settings decide.
        tokenizer: The model's tokenizer.
        probes: Questions per probe; none of them may stand in the training rows.
        note: Told what is slow and what was left out.

    Raises:
        DataError: Errors in the data, all of one pass; or nothing is left to train on.
    """
    questions = [item.question for items in probes.values() for item in items]
    dataset, splits, findings = audited_splits(recipe.data, tokenizer, questions, note=note)
    return encode_splits(recipe, dataset, splits, tokenizer, findings=findings)


def audited_splits(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Sequence[str] = (),
    *,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Dataset, Splits, tuple[Finding, ...]]:
    """Read, audit and divide examples of any task.

    Args:
        settings: Which examples.
        tokenizer: The model's tokenizer; None for images.
        questions: None of these may stand in the training rows.
        note: Told what was left out.

    Returns:
        The rows as read, the same rows divided, and what the audit found.

    Raises:
        DataError: Rows that do not fit the task, or errors in the data, all of one pass.
    """
    from sftkit.dataset import audit, read, split

    dataset = read.read_dataset(
        settings.source,
        task=settings.task,
        format=settings.format,
        columns=settings.columns,
        encoding=settings.encoding,
        where=settings.where,
        limit=settings.limit,
        group_by=settings.group_by,
        split_by=settings.split_by,
    )
    marked = split.mark_splits(dataset, settings)
    found = audit.audit_dataset(
        marked,
        tokenizer,
        questions,
        group_by=settings.group_by,
        source=settings.source,
    )
    if settings.faulty_rows == "drop":
        marked, dropped = audit.drop_faulty(marked, found)
        if dropped:
            note(f"{len(dropped)} rows with errors were left out (data.faulty_rows: drop)")
    else:
        audit.raise_on_errors(found.findings, source=settings.source)
    return dataset, split.take_splits(marked, settings), found.findings


def encode_splits(
    recipe: Recipe,
    dataset: Dataset,
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    *,
    findings: Sequence[Finding] = (),
) -> PreparedData:
    """Mix in replayed examples, encode what trains and what chooses, and keep the facts.

    Args:
        recipe: Its data settings decide.
        dataset: The rows as read, for their fingerprint.
        splits: The same rows, divided.
        tokenizer: The model's tokenizer.
        findings: What the audit found.

    Raises:
        DataError: No training row could be encoded.
    """
    from sftkit.dataset import balance
    from sftkit.encoding import encode_dataset

    settings = recipe.data

    def encode(rows: Dataset) -> EncodedTable:
        return encode_dataset(
            rows, tokenizer, max_tokens=settings.max_tokens, system=settings.system
        )

    own = balance.balance_rows(splits.train, settings)
    replays_passages = settings.replay in catalog.names("passages")
    replays_rows = settings.replay is not None and not replays_passages
    training = replay_rows(own, tokenizer, settings) if replays_rows else own
    encoded = encode(training)
    if not len(encoded):
        reasons = "; ".join(refusal.reason for refusal in encoded.refused[:3])
        raise DataError(f"No training row could be encoded: {reasons}", tuple(findings))
    replayed = replay_passages(recipe, encoded, tokenizer) if replays_passages else ()
    return PreparedData(
        splits=splits,
        train=JoinedExamples(encoded, replayed) if replayed else encoded,
        replayed=len(training) - len(own) + len(replayed),
        validation=encode(splits.validation),
        refused=encoded.refused,
        refused_rows=len(encoded.refused_rows),
        findings=tuple(findings),
        facts=data_facts(settings, dataset, splits, findings),
    )


def data_facts(
    settings: DataSettings, dataset: Dataset, splits: Splits, findings: Sequence[Finding]
) -> DataFacts:
    """Write down where the data came from, how it was divided, and its terms."""
    from sftkit.dataset import split

    terms = catalog.entry(settings.source) if settings.source in catalog.names() else None
    return DataFacts(
        source=settings.source,
        fingerprint=split.fingerprint(dataset),
        counts={name: count for name, count in splits.counts().items() if count},
        groups={name: count for name, count in splits.group_counts().items() if count},
        licence=terms.licence if terms else "not stated",
        notice=terms.notice if terms else "",
        findings=tuple(findings),
    )


def replay_rows(
    train: Dataset, tokenizer: PreTrainedTokenizerBase, settings: DataSettings
) -> Dataset:
    """Mix general conversations into the training rows, by the share the settings say.

    Raises:
        DataError: There are too few conversations for the share.
    """
    from sftkit.chat import encode_chat
    from sftkit.dataset import balance, read

    def count_tokens(row: Mapping[str, Any]) -> int:
        turns, most = row["messages"], settings.max_tokens
        try:
            encoded = encode_chat(turns, tokenizer, max_tokens=most, system=settings.system)
        except EncodeError:
            return 0
        return len(encoded.input_ids)

    return balance.mix_replay(
        train,
        read.read_dataset(settings.replay or ""),
        settings.replay_share,
        settings.seed,
        count_tokens=count_tokens if settings.replay_unit == "tokens" else None,
    )


def replay_passages(
    recipe: Recipe, beside: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase
) -> tuple[Encoded, ...]:
    """Encode the passages that are replayed beside training examples."""
    from sftkit.evidence.perplexity import encode_passages

    @functools.cache  # a share of tokens asks for the length of what is then encoded
    def encode(text: str) -> tuple[Encoded, ...]:
        return encode_passages([text], tokenizer, max_tokens=recipe.data.max_tokens)

    def count_tokens(text: str) -> int:
        return sum(example.length for example in encode(text))

    if recipe.data.replay_unit == "rows":
        texts = replayed_passages(recipe, len(beside))
    else:
        tokens = sum(example.length for example in beside)
        texts = replayed_passages(recipe, tokens, count_tokens=count_tokens)
    return tuple(
        dataclasses.replace(example, row=number, group=str(number))
        for number, text in enumerate(texts)
        for example in encode(text)
    )


def replayed_passages(
    recipe: Recipe, beside: int, *, count_tokens: Callable[[str], int] | None = None
) -> list[str]:
    """Choose passages to replay: never one of those that measure drift.

    Args:
        recipe: Its data settings name the passages and their share.
        beside: Training examples they are mixed with; their tokens if `count_tokens` is given.
        count_tokens: Counts a passage's tokens, for a share of tokens.

    Raises:
        DataError: There are too few passages for the share.
    """
    from sftkit.dataset.balance import take_tokens

    settings, tested = recipe.data, recipe.evaluate
    measured = set(catalog.passages(tested.drift_source, tested.drift_passages))
    free = [text for text in catalog.passages(settings.replay or "") if text not in measured]
    # From the end, so that a larger drift measurement does not change what is replayed.
    if count_tokens is not None:
        lengths = map(count_tokens, reversed(free))
        taken = take_tokens(lengths, settings.replay_share, beside=beside)
        return [free[-1 - place] for place in reversed(taken)]
    wanted = round(beside * settings.replay_share / (1 - settings.replay_share))
    if wanted > len(free):
        raise DataError(
            f"replay_share={settings.replay_share:g} beside {beside} examples needs {wanted} "
            f"passages of {settings.replay}, and {len(free)} are free. Lower data.replay_share."
        )
    return free[len(free) - wanted :]
