"""Texts and images with targets: what the numbers stand for, and how they become batches."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from sftkit.errors import DataError, EncodeError
from sftkit.labelled import (
    ImageForm,
    LabelledImage,
    LabelledText,
    Targets,
    collate_images,
    collate_texts,
    encode_images,
    encode_labelled,
    fit_targets,
    image_pixels,
    weigh_examples,
)
from sftkit.records import Refused
from sftkit.settings import ObjectiveSettings

CPU = torch.device("cpu")
PETS = Targets(labels=("cat", "dog"))


@pytest.fixture
def wordpiece() -> Any:
    """BERT's kind of tokenizer: [CLS] text [SEP] pair [SEP], types 0 and 1."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sat", "[", "]"]
    words += ["sep", "##a"]
    tokenizer: Any = transformers
    return tokenizer.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


# ---- what targets stand for ----


def test_classes_are_the_training_rows_labels_in_order():
    rows = [{"label": label} for label in ("dog", "cat", "dog", "10", "9")]
    assert fit_targets(rows, "classify").labels == ("9", "10", "cat", "dog")


def test_scores_are_standardised_by_the_training_rows_and_put_back():
    rows = [{"score": score} for score in (10.0, 14.0, 10.0, 14.0)]
    targets = fit_targets(rows, "regress")
    assert targets == Targets(mean=12.0, spread=2.0)
    assert [targets.number(score) for score in (10.0, 12.0, 15.0)] == [-1.0, 0.0, 1.5]
    assert targets.scores([-1.0, 0.0, 1.5]).tolist() == [10.0, 12.0, 15.0]


@pytest.mark.parametrize(
    ("rows", "task", "words"),
    [
        ([{"label": "cat"}, {"label": "cat"}], "classify", "have 1 label (cat)"),
        ([{"score": 2.0}, {"score": 2.0}], "regress", "2 training scores are all the same"),
        ([{"score": 1.0}, {"score": float("nan")}], "regress", "row 1: the score is nan, not"),
        (
            [{"score": 1.0, "place": "a.csv line 2"}, {"score": 2.0}, {"score": -float("inf")}],
            "regress",
            "row 2: the score is -inf, not a finite number",
        ),
        (
            [{"score": float("inf"), "place": "a.csv line 2"}, {"score": 2.0}],
            "regress",
            "a.csv line 2: the score is inf, not a finite number",
        ),
        ([], "regress", "0 training scores"),
        ([{"messages": []}], "classify", "data.task=classify needs a column label"),
        ([{"text": "a", "label": "b"}], "regress", "data.task=regress needs a column score"),
    ],
)
def test_rows_that_fix_no_targets_are_refused_in_words(rows, task, words):
    with pytest.raises(DataError) as caught:
        fit_targets(rows, task)
    assert words in str(caught.value)


def test_a_label_that_no_training_row_has_is_refused_with_its_place(wordpiece):
    rows = [{"text": "a cat", "label": "cats", "place": "pets.csv line 7"}]
    with pytest.raises(DataError) as caught:
        encode_labelled(rows, wordpiece, PETS, max_tokens=16)
    assert str(caught.value) == (
        "pets.csv line 7: no training row has the label 'cats', so it cannot be learned; they have "
        "cat, dog. Did you mean 'cat'?"
    )


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), "3"])
def test_a_score_that_is_no_number_is_refused_with_its_place(wordpiece, score):
    with pytest.raises(DataError, match=r"row 0: the score is .*, not a finite number"):
        encode_labelled([{"text": "a", "score": score}], wordpiece, Targets(), max_tokens=16)


# ---- texts ----


def test_a_text_is_framed_by_the_tokenizers_own_tokens(wordpiece):
    rows = [{"text": "A cat", "label": "dog", "group": "g"}]
    (example,) = encode_labelled(rows, wordpiece, PETS, max_tokens=16).examples
    assert example == LabelledText(
        input_ids=(2, 5, 6, 3), target=1, row=0, group="g", token_types=(0, 0, 0, 0)
    )
    assert (example.length, example.weight) == (4, 1.0)
    assert example.silenced() == LabelledText(
        input_ids=(2, 5, 6, 3), target=1, row=0, group="g", weight=0.0, token_types=(0, 0, 0, 0)
    )


def test_a_pair_of_texts_is_told_apart_by_the_tokenizer(wordpiece):
    rows = [{"text": "a cat", "text_pair": "sat", "label": "cat"}]
    (example,) = encode_labelled(rows, wordpiece, PETS, max_tokens=16).examples
    assert isinstance(example, LabelledText)
    assert example.input_ids == (2, 5, 6, 3, 8, 3)
    assert example.token_types == (0, 0, 0, 0, 1, 1)


def test_a_control_token_that_stands_in_a_text_is_words(wordpiece):
    rows = [{"text": "a [SEP] cat", "label": "cat"}]
    (example,) = encode_labelled(rows, wordpiece, PETS, max_tokens=16).examples
    assert isinstance(example, LabelledText)
    assert example.input_ids == (2, 5, 9, 11, 10, 6, 3)  # [ sep ] and not the token [SEP]


def test_what_is_too_long_or_empty_is_refused_and_never_cut(wordpiece):
    rows: list[dict[str, Any]] = [
        {"text": "a cat sat", "label": "cat"},
        {"text": "a", "label": "dog"},
        {"text": "  ", "label": "dog"},
        {"text": None, "label": "dog"},
    ]
    encoded = encode_labelled(rows, wordpiece, PETS, max_tokens=4)
    assert [example.row for example in encoded.examples] == [1]
    assert encoded.refused == (
        Refused(
            row=0,
            reason="row 0: 5 tokens exceed max_tokens=4. Raise data.max_tokens to 5, or shorten "
            "the text; it is not cut.",
        ),
        Refused(row=2, reason="row 2: there is no text"),
        Refused(row=3, reason="row 3: there is no text"),
    )


def test_a_second_text_that_is_no_string_is_refused_in_words(wordpiece):
    rows: list[dict[str, Any]] = [
        {"text": "a", "text_pair": 3, "label": "cat"},
        {"text": "a", "text_pair": None, "label": "cat"},
    ]
    encoded = encode_labelled(rows, wordpiece, PETS, max_tokens=16)
    assert encoded.refused == (Refused(row=0, reason="row 0: text_pair is 3, not a text"),)
    assert [e.row for e in encoded.examples] == [1]


@pytest.mark.parametrize(("group", "kept"), [(None, "0"), ("", "0"), (0, "0"), (7, "7")])
def test_a_row_without_a_group_is_its_own(wordpiece, group, kept):
    rows = [
        {"text": "a", "label": "cat", "group": group, "image": image([[0]])},
        {"text": "a", "label": "cat", "group": None, "image": image([[0]])},
    ]
    texts = encode_labelled(rows, wordpiece, PETS, max_tokens=16).examples
    images = encode_images(rows, PETS, ImageForm(size=1)).examples
    assert [e.group for e in texts] == [e.group for e in images] == [kept, "1"]


def test_the_mask_follows_lengths_even_where_the_text_ends_in_the_padding_token():
    short = LabelledText(input_ids=(7, 0), target=1, row=0, weight=0.5)
    long = LabelledText(input_ids=(7, 8, 9), target=0, row=1)
    batch = collate_texts([short, long], pad_id=0, device=CPU)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 0, 0], [7, 8, 9]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "targets": [1.0, 0.0],
        "weights": [0.5, 1.0],
    }


def test_token_types_travel_with_the_batch_where_there_are_any():
    pair = LabelledText(input_ids=(2, 5, 3, 6, 3), target=0, row=0, token_types=(0, 0, 0, 1, 1))
    single = LabelledText(input_ids=(2, 5, 3), target=0, row=1, token_types=(0, 0, 0))
    batch = collate_texts([pair, single], pad_id=0, device=CPU)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


# ---- weights ----


def test_balanced_weights_make_every_class_count_the_same_and_one_on_average():
    rows = [LabelledText(input_ids=(1,), target=t, row=r) for r, t in enumerate((0, 0, 0, 1))]
    settings = ObjectiveSettings(class_weights="balanced")
    weights = [e.weight for e in weigh_examples(rows, PETS, settings)]
    assert weights == [4 / 6, 4 / 6, 4 / 6, 4 / 2]
    assert sum(weights) == 4
    assert weigh_examples(rows, PETS, ObjectiveSettings()) == tuple(rows)


def test_weights_average_one_even_where_a_class_lost_all_its_rows():
    rows = [LabelledText(input_ids=(1,), target=t, row=r) for r, t in enumerate((0, 0, 0, 1))]
    three = Targets(labels=("cat", "dog", "newt"))
    weighed = weigh_examples(rows, three, ObjectiveSettings(class_weights="balanced"))
    assert [e.weight for e in weighed] == [4 / 6, 4 / 6, 4 / 6, 4 / 2]


# ---- images ----


def image(pixels: list[list[int]], mode: str = "L") -> Any:
    from PIL import Image

    made = Image.fromarray(np.array(pixels, dtype=np.uint8)).convert(mode)
    stored = io.BytesIO()
    made.save(stored, "PNG")
    return Image.open(io.BytesIO(stored.getvalue()))


def test_pixels_are_scaled_as_the_form_says():
    form = ImageForm(size=2, mean=(0.5,), spread=(0.25,))
    pixels = image_pixels(image([[0, 255], [255, 0]]), form)
    assert pixels.shape == (1, 2, 2)
    assert pixels.dtype == np.float32
    assert pixels.tolist() == [[[-2.0, 2.0], [2.0, -2.0]]]


def test_a_grey_image_becomes_three_channels_where_the_model_wants_them():
    form = ImageForm(size=2, mean=(0.0, 0.5, 1.0), spread=(1.0, 0.5, 1.0))
    pixels = image_pixels(image([[0, 255], [255, 0]]), form)
    assert pixels.tolist() == [
        [[0.0, 1.0], [1.0, 0.0]],
        [[-1.0, 1.0], [1.0, -1.0]],
        [[-1.0, 0.0], [0.0, -1.0]],
    ]


def test_a_crop_keeps_the_middle():
    frame = [[0] * 4, [0, 255, 255, 0], [0, 255, 255, 0], [0] * 4]
    form = ImageForm(size=2, mean=(0.0,), spread=(1.0,), crop=0.5)
    assert image_pixels(image(frame), form).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_images_become_a_batch_with_their_classes():
    rows = [
        {"image": image([[0, 255], [255, 0]]), "label": "dog", "group": "i-1"},
        {"image": image([[255, 0], [0, 255]]), "label": "cat"},
    ]
    encoded = encode_images(rows, PETS, ImageForm(size=2, mean=(0.0,), spread=(1.0,)))
    images = [e for e in encoded.examples if isinstance(e, LabelledImage)]
    batch = collate_images(images, device=CPU)
    assert batch["pixel_values"].tolist() == [
        [[[0.0, 1.0], [1.0, 0.0]]],
        [[[1.0, 0.0], [0.0, 1.0]]],
    ]
    assert batch["targets"].tolist() == [1.0, 0.0]
    assert batch["weights"].tolist() == [1.0, 1.0]
    assert [(e.row, e.group, e.length) for e in encoded.examples] == [(0, "i-1", 1), (1, "1", 1)]


def test_a_missing_image_is_refused_in_words():
    rows: list[dict[str, Any]] = [
        {"image": None, "label": "dog"},
        {"label": "dog"},
        {"image": image([[255]]), "label": "cat"},
    ]
    encoded = encode_images(rows, PETS, ImageForm(size=1))
    assert encoded.refused == (
        Refused(row=0, reason="row 0: there is no image"),
        Refused(row=1, reason="row 1: there is no image"),
    )
    assert [e.row for e in encoded.examples] == [2]


def test_images_of_two_shapes_share_no_batch():
    two = [
        LabelledImage(pixels=np.zeros((1, size, size), np.float32), target=0, row=size)
        for size in (2, 3)
    ]
    with pytest.raises(EncodeError, match=r"shapes \[\(1, 2, 2\), \(1, 3, 3\)\]"):
        collate_images(two, device=CPU)


def test_the_bundled_digits_become_pixels():
    from sftkit.dataset.read import read_dataset

    rows = read_dataset("digits", task="image", limit=30)
    targets = fit_targets(rows, "image")
    encoded = encode_images(rows, targets, ImageForm(size=8))
    assert targets.labels == tuple("0123456789")
    assert {e.pixels.shape for e in encoded.examples if isinstance(e, LabelledImage)} == {(1, 8, 8)}
    low = min(float(e.pixels.min()) for e in encoded.examples if isinstance(e, LabelledImage))
    assert low == -1.0
