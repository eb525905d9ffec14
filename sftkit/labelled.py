"""Texts and images with one target each: rows to numbers, and numbers to padded batches.

What a target stands for is fixed by the training rows alone: the list of classes, or the mean and
spread of the scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sftkit.errors import DataError, EncodeError, near_names
from sftkit.records import Refused
from sftkit.settings import ObjectiveSettings, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

SECOND_TEXT = "text_pair"
"""Column of a second text, such as the passage beside a question (transformers' own name)."""
_COLUMN: Mapping[Task, str] = {"classify": "label", "image": "label", "regress": "score"}


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """A text, or a pair of texts, as token ids with one target.

    Attributes:
        input_ids: Token ids, the tokenizer's own special tokens included, shape (T,).
        target: Number of the class, or the standardised score.
        row: Row number in the dataset it came from.
        group: What must stay in one split.
        weight: What it counts in the loss; 0 teaches nothing.
        token_types: Which text each token belongs to, shape (T,); empty where the model's
            tokenizer does not tell texts apart so.
    """

    input_ids: tuple[int, ...]
    target: float
    row: int
    group: str = ""
    weight: float = 1.0
    token_types: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens, T."""
        return len(self.input_ids)

    def silenced(self) -> LabelledText:
        """Give the same text, teaching nothing."""
        return dataclasses.replace(self, weight=0.0)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image as numbers, with its class.

    Attributes:
        pixels: Scaled as the model expects it, float32, shape (C, H, W).
        target: Number of the class.
        row: Row number in the dataset it came from.
        group: What must stay in one split.
        weight: What it counts in the loss; 0 teaches nothing.
    """

    pixels: NDArray[np.float32]
    target: float
    row: int
    group: str = ""
    weight: float = 1.0

    @property
    def length(self) -> int:
        """An image counts as one token."""
        return 1

    def silenced(self) -> LabelledImage:
        """Give the same image, teaching nothing."""
        return dataclasses.replace(self, weight=0.0)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What targets stand for: classes by number, or scores in units of their spread.

    Attributes:
        labels: Names of the classes in order; empty for scores.
        mean: Mean of the training scores.
        spread: Their standard deviation, with n in the divisor.
    """

    labels: tuple[str, ...] = ()
    mean: float = 0.0
    spread: float = 1.0

    def number(self, value: Any) -> float:
        """Give the target of a label or score.

        Raises:
            DataError: A label that no training row has, or no number.
        """
        if not self.labels:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"the score is {value!r}, not a finite number")
            return (float(value) - self.mean) / self.spread
        try:
            return self.labels.index(str(value))
        except ValueError:
            shown = ", ".join(self.labels[:8]) + (" ..." if len(self.labels) > 8 else "")
            raise DataError(
                f"no training row has the label {value!r}, so it cannot be learned; they have "
                f"{shown}.{near_names(str(value), self.labels)}"
            ) from None

    def scores(self, targets: Any) -> NDArray[np.float64]:
        """Turn standardised targets or outputs back into scores, in the data's own units."""
        return np.asarray(targets, dtype=np.float64) * self.spread + self.mean


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """How an image becomes numbers.

    Attributes:
        size: Height and width in pixels.
        mean: Subtracted from each channel (of values in 0..1), shape (C,): 1 for grey, 3 for red,
            green, blue.
        spread: Each channel is then divided by this, shape (C,).
        crop: Share of the height and width that is kept, from the middle.
    """

    size: int
    mean: tuple[float, ...] = (0.5,)
    spread: tuple[float, ...] = (0.5,)
    crop: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Encoded rows, and what could not be encoded.

    Attributes:
        examples: Encoded rows in their order.
        refused: Rows that could not be encoded, and why.
    """

    examples: tuple[LabelledText, ...] | tuple[LabelledImage, ...]
    refused: tuple[Refused, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)


def fit_targets(rows: Iterable[Mapping[str, Any]], task: Task) -> Targets:
    """Fix from training rows what targets stand for.

    Args:
        rows: Training rows with label, or with score for regress.
        task: classify, image or regress.

    Returns:
        Classes in the order of their names (of numbers, in the order of their values), or mean
        and spread of the scores.

    Raises:
        DataError: Rows of another task, fewer than two classes, or scores not finite or all equal.
    """
    values, faults = [], []
    for number, row in enumerate(rows):
        value = row.get(_column_of(row, task))
        values.append(value)
        if task == "regress" and isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{_place_of(row, number)}: the score is {value!r}, not a finite number")
    if faults:
        raise DataError("\n".join([*faults[:20], *(["..."] if len(faults) > 20 else [])]))
    if task == "regress":
        scores = np.array([v for v in values if isinstance(v, int | float)], dtype=np.float64)
        spread = float(scores.std()) if len(scores) else 0.0
        if not spread > 0:
            raise DataError(
                f"{len(scores)} training scores are all the same, so there is nothing to predict. "
                "Regression needs scores that differ."
            )
        return Targets(mean=float(scores.mean()), spread=spread)
    labels = sorted({str(v) for v in values if v is not None}, key=_by_value)
    if len(labels) < 2:
        raise DataError(
            f"The training rows have {len(labels)} label ({', '.join(labels)}); a classifier needs "
            "two or more. Check data.columns, or the division of the rows."
        )
    return Targets(labels=tuple(labels))


def encode_labelled(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    targets: Targets,
    *,
    max_tokens: int,
) -> LabelledSet:
    """Encode texts with their targets.

    Args:
        rows: Rows with text, and label or score as the targets want; a column `text_pair` holds
            the second text of a pair.
        tokenizer: The model's tokenizer; its own special tokens frame text and pair.
        targets: What the numbers stand for, from `fit_targets`.
        max_tokens: Longest text in tokens. Longer ones are refused, never cut: what decides the
            label may stand at the end.

    Returns:
        What could be encoded, and the rows that could not, with reasons.

    Raises:
        DataError: A row has a label that no training row has, or no usable score.
    """
    task: Task = "classify" if targets.labels else "regress"
    typed = "token_type_ids" in tokenizer.model_input_names
    examples, refused = [], []
    for number, row in enumerate(rows):
        first, second = row.get("text"), row.get(SECOND_TEXT)
        target = _target(targets, row, task, number)
        if not isinstance(first, str) or not first.strip():
            refused.append(Refused(row=number, reason=f"row {number}: there is no text"))
            continue
        if second is not None and not isinstance(second, str):
            reason = f"row {number}: {SECOND_TEXT} is {second!r}, not a text"
            refused.append(Refused(row=number, reason=reason))
            continue
        # A "[SEP]" that stands in a text is words; only the tokenizer itself puts control tokens.
        coded = tokenizer(first, second, split_special_tokens=True, verbose=False)
        ids = tuple(coded["input_ids"])
        if len(ids) > max_tokens:
            reason = (
                f"row {number}: {len(ids)} tokens exceed max_tokens={max_tokens}. Raise "
                f"data.max_tokens to {len(ids)}, or shorten the text; it is not cut."
            )
            refused.append(Refused(row=number, reason=reason))
            continue
        kinds = tuple(coded["token_type_ids"]) if typed and "token_type_ids" in coded else ()
        examples.append(
            LabelledText(
                input_ids=ids,
                target=target,
                row=number,
                group=_group_of(row, number),
                token_types=kinds,
            )
        )
    return LabelledSet(examples=tuple(examples), refused=tuple(refused))


def encode_images(
    rows: Iterable[Mapping[str, Any]], targets: Targets, form: ImageForm
) -> LabelledSet:
    """Turn images into numbers with their classes.

    Args:
        rows: Rows with image (a PIL image, as `read_dataset` gives it) and label.
        targets: What the numbers stand for.
        form: Size and scale that the model expects.

    Returns:
        What could be encoded, and the rows without an image.

    Raises:
        DataError: A row has a label that no training row has.
    """
    examples, refused = [], []
    for number, row in enumerate(rows):
        target = _target(targets, row, "image", number)
        if row.get("image") is None:
            refused.append(Refused(row=number, reason=f"row {number}: there is no image"))
            continue
        pixels, group = image_pixels(row["image"], form), _group_of(row, number)
        examples.append(LabelledImage(pixels=pixels, target=target, row=number, group=group))
    return LabelledSet(examples=tuple(examples), refused=tuple(refused))


def image_pixels(image: Any, form: ImageForm) -> NDArray[np.float32]:
    """Scale one PIL image to the form a model expects, shape (C, size, size)."""
    from PIL import Image

    grey = len(form.mean) == 1
    whole = round(form.size / form.crop)
    resized = image.convert("L" if grey else "RGB").resize((whole, whole), Image.Resampling.BICUBIC)
    edge = (whole - form.size) // 2
    values = np.asarray(resized.crop((edge, edge, edge + form.size, edge + form.size)), np.float32)
    channels = values[None] if grey else values.transpose(2, 0, 1)
    mean, spread = (np.asarray(x, np.float32)[:, None, None] for x in (form.mean, form.spread))
    scaled: NDArray[np.float32] = (channels / 255.0 - mean) / spread
    return np.ascontiguousarray(scaled, dtype=np.float32)


def weigh_examples(
    examples: Sequence[Any], targets: Targets, settings: ObjectiveSettings
) -> tuple[Any, ...]:
    """Give training examples the weight of their class.

    Args:
        examples: Training examples.
        targets: Their classes.
        settings: balanced weighs a class of n_c among N rows by N / (classes with rows × n_c), so
            the mean weight is 1 (King and Zeng 2001); none leaves all as they are.
    """
    if settings.class_weights == "none" or not targets.labels:
        return tuple(examples)
    counts = Counter(int(example.target) for example in examples)
    share = len(examples) / len(counts)
    return tuple(
        dataclasses.replace(example, weight=share / counts[int(example.target)])
        for example in examples
    )


def collate_texts(
    examples: Sequence[LabelledText], *, pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pad texts on the right; the attention mask follows from lengths, never from token ids.

    Args:
        examples: B texts.
        pad_id: The model's padding token. A decoder goes by this id and not by the mask: it reads
            its answer at the last other token, so no other id will do.
        device: Where the tensors go.

    Returns:
        input_ids, attention_mask and, where texts have them, token_type_ids of shape (B, T);
        targets and weights of shape (B,).
    """
    shape = (len(examples), max(example.length for example in examples))
    batch = {"input_ids": torch.full(shape, pad_id), "attention_mask": torch.zeros(shape).long()}
    typed = any(example.token_types for example in examples)
    if typed:
        batch["token_type_ids"] = torch.zeros(shape).long()
    for row, example in enumerate(examples):
        batch["input_ids"][row, : example.length] = torch.tensor(example.input_ids)
        batch["attention_mask"][row, : example.length] = 1
        if typed:
            batch["token_type_ids"][row, : example.length] = torch.tensor(example.token_types)
    batch |= _targets_and_weights(examples)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def collate_images(
    examples: Sequence[LabelledImage], *, pad_id: int = 0, device: torch.device
) -> dict[str, torch.Tensor]:
    """Stack images of one size.

    Args:
        examples: B images.
        pad_id: Not used; the loop gives it to every collate.
        device: Where the tensors go.

    Returns:
        pixel_values of shape (B, C, H, W); targets and weights of shape (B,).

    Raises:
        EncodeError: The images differ in shape.
    """
    shapes = {example.pixels.shape for example in examples}
    if len(shapes) > 1:
        raise EncodeError(
            f"Images of one batch have shapes {sorted(shapes)}. Encode all with one ImageForm."
        )
    pixels = torch.from_numpy(np.stack([example.pixels for example in examples]))
    batch = {"pixel_values": pixels, **_targets_and_weights(examples)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _targets_and_weights(
    examples: Sequence[LabelledText] | Sequence[LabelledImage],
) -> dict[str, torch.Tensor]:
    return {
        "targets": torch.tensor([float(example.target) for example in examples]),
        "weights": torch.tensor([float(example.weight) for example in examples]),
    }


def _column_of(row: Mapping[str, Any], task: Task) -> str:
    column = _COLUMN[task]
    if column not in row:
        raise DataError(
            f"data.task={task} needs a column {column}, and the rows have "
            f"{', '.join(sorted(row))}. Set data.task to what the rows hold, or data.columns."
        )
    return column


def _target(targets: Targets, row: Mapping[str, Any], task: Task, number: int) -> float:
    try:
        return targets.number(row.get(_column_of(row, task)))
    except DataError as error:
        raise DataError(f"{_place_of(row, number)}: {error}") from None


def _place_of(row: Mapping[str, Any], number: int) -> str:
    return str(row.get("place") or f"row {number}")


def _group_of(row: Mapping[str, Any], number: int) -> str:
    """Give a row's group; a row without one is its own."""
    return str(number if row.get("group") in (None, "") else row["group"])


def _by_value(label: str) -> tuple[int, float, str]:
    try:
        value = float(label)
    except ValueError:
        return (1, 0.0, label)
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)
