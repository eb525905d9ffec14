"""A recipe's labelled examples, from the source to numbers: read, audited, divided, encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.errors import DataError, SettingsError
from sftkit.labelled import (
    SECOND_TEXT,
    ImageForm,
    LabelledSet,
    Targets,
    encode_images,
    encode_labelled,
    fit_targets,
    weigh_examples,
)
from sftkit.prepare import audited_splits, data_facts
from sftkit.records import DataFacts, Finding, Refused
from sftkit.settings import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.dataset.split import Splits


@dataclass(frozen=True, kw_only=True)
class PreparedLabels:
    """A recipe's labelled examples: audited, divided, encoded.

    Attributes:
        splits: Rows per split.
        balanced: The training rows that the training examples were made from.
        targets: What the numbers stand for, fixed by the training rows.
        train: Training examples, with the weights of their classes.
        validation: Validation examples.
        test: Test examples.
        refused: Training rows that could not be encoded, and why.
        left_out: Rows of validation and test that could not be encoded.
        findings: What the audit found.
        facts: Origin, counts and licence.
    """

    splits: Splits
    balanced: Dataset
    targets: Targets
    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]
    refused: tuple[Refused, ...]
    left_out: int
    findings: tuple[Finding, ...]
    facts: DataFacts


def prepare_labels(
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    form: ImageForm | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> PreparedLabels:
    """Read, audit, divide and encode a recipe's labelled examples.

    Args:
        recipe: Its data and objective settings decide.
        tokenizer: The model's tokenizer, for texts.
        form: How the model wants images, for images.
        note: Told what was left out.

    Raises:
        SettingsError: Settings that mean nothing without conversations.
        DataError: Rows that do not fit the task, errors in the data, a label that no training row
            has, or nothing left to train or to test on.
    """
    from sftkit.dataset import balance

    settings = recipe.data
    refuse_chat_settings(recipe)
    dataset, splits, findings = audited_splits(settings, tokenizer, note=note)
    _refuse_unknown_columns(recipe, splits.test.column_names)
    targets = fit_targets(splits.train, settings.task)

    def encode(rows: Iterable[Mapping[str, Any]]) -> LabelledSet:
        if tokenizer is None:
            return encode_images(rows, targets, form or ImageForm(size=224))
        if settings.pair_at is not None:
            rows = cut_pairs(rows, settings.pair_at)
        return encode_labelled(rows, tokenizer, targets, max_tokens=settings.max_tokens)

    balanced = balance.balance_rows(splits.train, settings)
    trained = encode(balanced)
    held = [encode(rows) for rows in (splits.validation, splits.test)]
    empty = [
        (name, part)
        for name, part in zip(("training", "validation", "test"), (trained, *held), strict=True)
        if not len(part)
    ]
    if empty:
        name, part = empty[0]
        reasons = "; ".join(refusal.reason for refusal in part.refused[:3])
        raise DataError(f"No {name} row could be encoded: {reasons}", findings)
    if targets.labels and len({example.target for example in trained.examples}) < 2:
        raise DataError(
            f"{len(trained.refused)} training rows were refused, and all that are left have one "
            f"label. {trained.refused[0].reason}",
            findings,
        )
    return PreparedLabels(
        splits=splits,
        balanced=balanced,
        targets=targets,
        train=weigh_examples(trained.examples, targets, recipe.objective),
        validation=held[0].examples,
        test=held[1].examples,
        refused=trained.refused,
        left_out=sum(len(part.refused) for part in held),
        findings=findings,
        facts=data_facts(settings, dataset, splits, findings),
    )


def cut_pairs(rows: Iterable[Mapping[str, Any]], at: str) -> Iterator[dict[str, Any]]:
    """Cut each row's text into a pair at the first place where these words stand.

    Args:
        rows: Rows with text.
        at: The words between the two texts; they belong to neither.

    Yields:
        The rows, with the first text as `text` and the second as `text_pair`.

    Raises:
        DataError: The words do not stand in a text, or nothing stands before or after them.
    """
    for number, row in enumerate(rows):
        text = row.get("text")
        first, _, second = text.partition(at) if isinstance(text, str) else ("", "", "")
        if isinstance(text, str) and text.strip() and not (first.strip() and second.strip()):
            place = row.get("place") or f"row {number}"
            raise DataError(
                f"{place}: data.pair_at={at!r} does not cut the text into two: {text[:80]!r}. "
                "Every text needs these words, with something before and after them."
            )
        yield {**row, "text": first, SECOND_TEXT: second}


def people_columns(recipe: Recipe) -> list[str]:
    """List the columns that name groups of people, whose treatment is compared."""
    given = recipe.evaluate.fairness
    return [name.removeprefix("column:") for name in given if name.startswith("column:")]


def _refuse_unknown_columns(recipe: Recipe, have: Sequence[str]) -> None:
    missing = [name for name in people_columns(recipe) if name not in have]
    if missing:
        raise DataError(
            f"evaluate.fairness names the column {', '.join(missing)}, and the rows have "
            f"{', '.join(sorted(have))}."
        )


def refuse_chat_settings(recipe: Recipe) -> None:
    """Refuse settings that only conversations have.

    Raises:
        SettingsError: All of them, with what to do.
    """
    task = recipe.data.task
    faults = [
        f"data.{name}={value!r} is for conversations, and data.task is {task}. Leave it out."
        for name, value in (("replay", recipe.data.replay), ("system", recipe.data.system))
        if value
    ]
    for name, value in (
        ("adapter.strength", recipe.adapter.strength),
        ("evaluate.adapter_scale", recipe.evaluate.adapter_scale),
    ):
        if value != 1:
            faults.append(
                f"{name}={value:g} turns an adapter down, and with data.task={task} a head is "
                "trained beside it, which has no half strength. Use 1."
            )
    if faults:
        raise SettingsError("\n".join(faults))


def texts_of(rows: Dataset, examples: Sequence[Any]) -> list[str]:
    """Give the texts of examples as the model sees them, a pair on two lines."""
    chosen = rows.select([example.row for example in examples])
    columns = [chosen[name] for name in ("text", SECOND_TEXT) if name in chosen.column_names]
    return ["\n".join(filter(None, texts)) for texts in zip(*columns, strict=True)]
