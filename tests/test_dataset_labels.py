"""Label quality: agreement by published examples, planted label errors, and missing packages."""

import itertools
import sys

import pytest
from datasets import Dataset

from sftkit.dataset.labels import (
    Agreement,
    LabelSuspect,
    find_label_suspects,
    judge,
    measure_agreement,
)
from sftkit.errors import DataError


def columns(**labels):
    return Dataset.from_dict(labels)


def cross_table(table, names):
    """Give two columns from counts: table[i][j] rows have names[i] in a and names[j] in b."""
    pairs = [
        (names[i], names[j])
        for i, row in enumerate(table)
        for j, count in enumerate(row)
        for _ in range(count)
    ]
    a, b = zip(*pairs, strict=True)
    return columns(a=list(a), b=list(b))


def test_kappa_of_the_example_of_cohen_1960():
    # Table 1, in hundredths. Observed 0.25 + 0.02 + 0.02 = 0.29; expected 0.5 x 0.4 + 0.3 x 0.3
    # + 0.2 x 0.3 = 0.35; (0.29 - 0.35) / (1 - 0.35) = -0.092.
    dataset = cross_table([[25, 13, 12], [12, 2, 16], [3, 15, 2]], "123")
    agreement = measure_agreement(dataset, ["a", "b"])
    assert agreement.kappas[("a", "b")] == pytest.approx((0.29 - 0.35) / 0.65)
    assert agreement.observed == pytest.approx(0.29)
    assert (agreement.rows, len(agreement.disagreements)) == (100, 71)


KRIPPENDORFF_2011 = {  # example C: twelve units, four observers, missing values
    "a": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "b": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "c": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "d": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_the_example_of_krippendorff_2011(level, alpha):
    agreement = measure_agreement(columns(**KRIPPENDORFF_2011), list("abcd"), level=level)
    assert agreement.alpha == pytest.approx(alpha, abs=0.0005)
    assert agreement.rows == 11  # the last unit has one label
    assert agreement.disagreements == (1, 5, 7)
    assert len(agreement.kappas) == 6


def test_alpha_of_two_observers_and_two_values_by_hand():
    # Krippendorff 2011, example A: 10 units, 4 disagreements, 14 zeros and 6 ones among 20 values:
    # 1 - (20 - 1) x 4 / (14 x 6) = 0.095.
    a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    agreement = measure_agreement(columns(a=a, b=b), ["a", "b"])
    assert agreement.alpha == pytest.approx(1 - 19 * 4 / 84)
    assert agreement.disagreements == (0, 2, 5, 8)
    assert str(agreement) == (
        "2 annotators, 10 rows with two labels or more, 60.0% of pairs equal; Krippendorff's "
        "alpha (nominal) is 0.095: too low to rely on these labels. Cohen's kappa is 0.091. "
        "They disagree on 4 rows."
    )


def test_words_in_order_are_ordinal_labels():
    numbers = columns(a=[0, 1, 2, 0, 1, 2], b=[0, 1, 2, 1, 1, 2])
    names = ["low", "middle", "high"]
    words = columns(**{key: [names[i] for i in numbers[key]] for key in "ab"})
    by_number = measure_agreement(numbers, ["a", "b"], level="ordinal").alpha
    assert measure_agreement(words, ["a", "b"], level="ordinal", order=names).alpha == by_number
    with pytest.raises(DataError, match="order lacks 'low'; give all labels, low to high"):
        measure_agreement(words, ["a", "b"], level="ordinal", order=["middle", "high"])
    with pytest.raises(DataError, match="level=interval needs numbers, got could not convert"):
        measure_agreement(words, ["a", "b"], level="interval")


def test_one_label_only_says_nothing_about_agreement():
    agreement = measure_agreement(columns(a=["x", "x"], b=["x", "x"]), ["a", "b"])
    assert (agreement.alpha, dict(agreement.kappas)) == (None, {("a", "b"): None})
    assert "alpha is not defined, because only one label was given" in str(agreement)


def test_perfect_agreement_is_one_and_unlabelled_rows_do_not_count():
    dataset = columns(a=["x", "y", "", None], b=["x", "y", "x", None])
    agreement = measure_agreement(dataset, ["a", "b"])
    assert agreement == Agreement(
        columns=("a", "b"), level="nominal", rows=2, observed=1.0, alpha=1.0,
        kappas=agreement.kappas, disagreements=(),
    )  # fmt: skip
    assert dict(agreement.kappas) == {("a", "b"): 1.0}


@pytest.mark.parametrize(
    ("alpha", "words"),
    [
        (0.8, "reliable"),
        (0.667, "enough for tentative conclusions only"),
        (0.66, "too low to rely on these labels"),
        (0.0, "no better than chance"),
        (-0.2, "no better than chance"),
    ],
)
def test_an_alpha_is_judged_by_the_usual_limits(alpha, words):
    assert judge(alpha) == words


@pytest.mark.parametrize(
    ("asked", "extra", "message"),
    [
        (["a"], {}, r"needs two columns of labels or more, got \['a'\]"),
        ("ab", {}, "needs two columns of labels or more, got 'ab'"),
        (["a", "bb"], {}, "no column 'bb'. Did you mean 'b'"),
        (["a", "c"], {}, "No row has a label in two of a, c"),
        (["a", "b"], {"level": "ordinary"}, "no level 'ordinary'. Did you mean 'ordinal'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(asked, extra, message):
    dataset = columns(a=["x", None], b=["y", "x"], c=[None, "x"])
    with pytest.raises(DataError, match=message):
        measure_agreement(dataset, asked, **extra)


def reviews(wrong=()):
    """Give 80 short reviews; those numbered in `wrong` bear the other label."""
    good = ["lovely", "excellent", "a joy to use", "would buy again", "superb"]
    bad = ["broken", "awful", "a waste of money", "sent it back", "dreadful"]
    things = ["lamp", "chair", "kettle", "clock", "desk", "phone", "bag", "pan"]
    made = [
        (f"The {thing} is {word}.", name)
        for words, name in ((good, "pos"), (bad, "neg"))
        for word, thing in itertools.product(words, things)
    ]
    other = {"pos": "neg", "neg": "pos"}
    labels = [other[name] if i in wrong else name for i, (_, name) in enumerate(made)]
    return columns(text=[text for text, _ in made], label=labels)


def test_planted_label_errors_are_found_and_sound_labels_raise_none():
    wrong = {3, 21, 44, 70}
    suspects = find_label_suspects(reviews(wrong))
    assert {suspect.row for suspect in suspects} == wrong
    first = suspects[0]
    assert first == LabelSuspect(
        row=first.row,
        given=reviews(wrong)[first.row]["label"],
        suggested=reviews()[first.row]["label"],
        confidence=first.confidence,
    )
    assert [s.confidence for s in suspects] == sorted(s.confidence for s in suspects)
    assert find_label_suspects(reviews()) == ()
    assert find_label_suspects(reviews(wrong)) == suspects


def test_probabilities_of_ones_own_model_may_be_given():
    dataset = columns(text=["a", "b", "c", "d", "e"], label=["x", "x", "y", "y", None])
    chances = [[0.9, 0.1], [0.05, 0.95], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]]
    (suspect,) = find_label_suspects(dataset, probabilities=chances)
    assert suspect == LabelSuspect(row=1, given="x", suggested="y", confidence=0.05)
    with pytest.raises(DataError, match=r"one column for each class, \(5, 2\), got \(4, 2\)"):
        find_label_suspects(dataset, probabilities=chances[:4])
    with pytest.raises(DataError, match="must be 0 or more and sum to 1 in every row"):
        find_label_suspects(dataset, probabilities=[[2, 3]] * 5)


def test_labels_that_cannot_be_judged_are_left_out_or_refused():
    dataset = reviews({3, 21, 44, 70})
    rare = columns(text=["odd", *dataset["text"]], label=["once", *dataset["label"]])
    assert {suspect.row for suspect in find_label_suspects(rare)} == {4, 22, 45, 71}
    with pytest.raises(DataError, match="two classes or more with 2 rows or more each, got 1 in"):
        find_label_suspects(columns(text=["a", "b", "c"], label=["x", "x", "y"]))
    with pytest.raises(DataError, match=r"no column 'labels'. Did you mean 'label'"):
        find_label_suspects(dataset, label="labels")
    with pytest.raises(DataError, match="The texts cannot be compared"):
        find_label_suspects(columns(text=[""] * 4, label=["x", "x", "y", "y"]))


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    command = r"python -m pip install -c constraints.txt -e '.\[labels\]'$"
    with pytest.raises(DataError, match=f"needs the package krippendorff, .* {command}"):
        measure_agreement(columns(a=["x"], b=["y"]), ["a", "b"])
    with pytest.raises(DataError, match=f"needs the package cleanlab, .* {command}"):
        find_label_suspects(reviews({3}))
