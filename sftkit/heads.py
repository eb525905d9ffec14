"""Base models with a head: classes or a number for a text, classes for an image."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftkit.adapter_targets import head_names
from sftkit.catalog import ModelSource, fetch_model
from sftkit.errors import ModelError
from sftkit.labelled import ImageForm, Targets
from sftkit.model import load_as
from sftkit.settings import ModelSettings, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NO_CLASSES = re.compile(r"(Model|ForMaskedLM|ForCausalLM|ForPreTraining)$")
"""Forms of a checkpoint that no head for classes was trained in."""


def load_with_head(
    settings: ModelSettings,
    task: Task,
    targets: Targets,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    source: ModelSource | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a base model, frozen, with a head for the targets.

    A checkpoint that was trained on the very same labels keeps its head (see `keeps_head`).
    Otherwise the head is fresh: it starts from random weights, which are the same for the same
    seed, and until it is trained it knows nothing. A BERT's pooler stays as the files have it.
    Every other weight must come from the model's files.

    Args:
        settings: Which model, and how its weights are held; see `model.load_model`.
        task: classify, regress or image.
        targets: The classes, or the scale of the scores.
        tokenizer: Says which token pads, where a decoder's configuration does not.
        dtype: Type already picked; None picks it here.
        source: Where the model lies, if already fetched.
        seed: Seed of the head's first weights.

    Returns:
        The model in evaluation mode, its head in float32; nothing requires a gradient yet.

    Raises:
        FetchError: The model cannot be had.
        ModelError: It has no form with such a head, weights beside the head are missing, or a
            decoder has no padding token.
    """
    source = source or fetch_model(settings)
    kind, config = _kind_and_config(source, task)
    heads = _heads_of(kind, config, source)
    torch.manual_seed(seed)
    with _quietly():
        model = load_as(
            kind, settings, dtype=dtype, source=source, heads=heads, **head_options(task, targets)
        )
    text = model.config.get_text_config()
    if task != "image" and getattr(text, "pad_token_id", None) is None:
        text.pad_token_id = _padding(tokenizer, source)
    for name in heads:
        model.get_submodule(name).float()  # over a 16-bit base; `forward` computes in 16 bits
    if _has_other_head(config, task, targets):
        torch.manual_seed(seed)
        body = f"{model.base_model_prefix}."
        for name in heads:
            if not name.startswith(body):
                _forget(model.get_submodule(name))
    return model


def keeps_head(source: ModelSource, task: Task, targets: Targets) -> bool:
    """Tell whether `load_with_head` keeps the head of a checkpoint.

    It does where the checkpoint has a head for the task, and its own labels are the targets'
    labels in the same order. Scores have no labels, so a head for scores is always fresh.

    Raises:
        ModelError: The model's configuration cannot be read.
    """
    return _has_same_labels(_kind_and_config(source, task)[1], task, targets)


def head_options(task: Task, targets: Targets) -> dict[str, Any]:
    """Give the settings of a transformers configuration that make a head for the targets."""
    if task == "regress":
        return {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}
    return {
        "id2label": dict(enumerate(targets.labels)),
        "label2id": {label: number for number, label in enumerate(targets.labels)},
        "ignore_mismatched_sizes": True,  # a head for other classes makes room
    }


def load_image_form(settings: ModelSettings, *, source: ModelSource | None = None) -> ImageForm:
    """Read from a model's files how it wants its images.

    Raises:
        ModelError: They do not say it.
    """
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin

    source = source or fetch_model(settings)
    try:
        # Its settings alone: a processor of transformers may need torchvision.
        said, _ = ImageProcessingMixin.get_image_processor_dict(
            source.path, revision=source.revision
        )
        channels = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        ).num_channels
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{source.name!r} does not say how it wants its images: {error}. It needs a "
            "preprocessor_config.json."
        ) from error
    return image_form(said, channels=channels)


def image_form(said: dict[str, Any], *, channels: int) -> ImageForm:
    """Read an image processor's settings.

    Args:
        said: As in preprocessor_config.json.
        channels: Channels that the model takes.

    Returns:
        The form. A size given as shortest edge is that of a square; a crop share counts for sizes
        below 384 pixels, as in ConvNeXT's processor, which ResNet uses.
    """
    size = said.get("size", 224)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    crop = float(said.get("crop_pct") or 1.0) if size < 384 else 1.0
    scaled = said.get("do_normalize", True)
    mean = tuple(said.get("image_mean") or (0.5,)) if scaled else (0.0,)
    spread = tuple(said.get("image_std") or (0.5,)) if scaled else (1.0,)
    return ImageForm(
        size=int(size),
        mean=mean if len(mean) == channels else mean[:1] * channels,
        spread=spread if len(spread) == channels else spread[:1] * channels,
        crop=crop,
    )


def save_image_form(form: ImageForm, folder: str | Path) -> Path:
    """Write the form where `load_image_form` and transformers look for it."""
    path = Path(folder) / "preprocessor_config.json"
    said = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": form.size},
        "crop_pct": form.crop,
        "image_mean": list(form.mean),
        "image_std": list(form.spread),
    }
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return path


def _kind_and_config(source: ModelSource, task: Task) -> tuple[Any, Any]:
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    kind = (
        AutoModelForImageClassification if task == "image" else AutoModelForSequenceClassification
    )
    try:
        config = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.name!r} cannot be read: {error}") from error
    return kind, config


def _has_same_labels(config: Any, task: Task, targets: Targets) -> bool:
    form = "ForImageClassification" if task == "image" else "ForSequenceClassification"
    if not targets.labels or not any(name.endswith(form) for name in config.architectures or ()):
        return False
    own = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    return own == targets.labels


def _has_other_head(config: Any, task: Task, targets: Targets) -> bool:
    """Tell whether the files may hold a head that was trained for something else."""
    forms = config.architectures or ("",)
    return not (
        all(_NO_CLASSES.search(name) for name in forms) or _has_same_labels(config, task, targets)
    )


def _forget(head: torch.nn.Module) -> None:
    for module in head.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def _heads_of(kind: Any, config: Any, source: ModelSource) -> list[str]:
    """Find the head's modules without making a single weight."""
    try:
        with torch.device("meta"):
            return head_names(kind.from_config(config))
    except ValueError as error:  # transformers lists every architecture it knows; ours is shorter
        what = "images" if "ImageClassification" in kind.__name__ else "texts"
        raise ModelError(
            f"{source.name!r} is a {config.model_type} model, of which transformers has no form "
            f"that classifies {what}. Use an encoder such as BERT or a decoder for texts, a ResNet "
            "or ViT for images."
        ) from error


def _padding(tokenizer: PreTrainedTokenizerBase | None, source: ModelSource) -> int:
    """Choose the padding token: a decoder reads its answer at the last token that is not it."""
    for name in ("pad_token_id", "eos_token_id"):
        number = getattr(tokenizer, name, None)
        if isinstance(number, int):
            return number
    raise ModelError(
        f"{source.name!r} has no padding token, so texts of different length cannot share a batch. "
        "Give its tokenizer to load_with_head, with a pad_token or eos_token."
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from reporting the fresh head as a fault; missing weights still raise."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
