"""Swapped texts, planted bias found, absent bias not; group gaps as fairlearn computes them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sftkit.errors import DataError
from sftkit.evidence.choice import ChoiceScore, Prompt
from sftkit.evidence.fairness import (
    _resample,
    correct_for_number,
    group_gaps,
    label_gaps,
    people_in,
    reweigh,
    reweigh_examples,
    swap_gaps,
)
from sftkit.evidence.perplexity import score_examples
from sftkit.evidence.shares import holm
from sftkit.evidence.statistics import sign_flip_p_value
from sftkit.evidence.stereotypes import (
    BiasTest,
    compare_bias,
    make_bias_test,
    pair_prompt,
    score_bias,
)
from sftkit.evidence.swaps import ATTRIBUTES, make_swaps, sides_of, swap_words
from sftkit.evidence_records import FairnessGap
from sftkit.labelled import LabelledText
from sftkit.records import IGNORE, Encoded

CLASSES = ("refused", "granted")


# --- Words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("He said so.", "She said so."),
        ("HE said: she's late", "SHE said: he's late"),
        ("the theme of others", "the theme of others"),
        ("a she-wolf, man-made", "a she-wolf, man-made"),
        ("Her book is there.", "His book is there."),
        ("I saw her.", "I saw him."),
        ("I told her that he left", "I told him that she left"),
        ("we met her yesterday", "we met him yesterday"),
        ("we greeted her warmly", "we greeted him warmly"),
        ("her lovely, elderly mother", "his lovely, elderly father"),
        ("the book is hers, not his.", "the book is his, not hers."),
        ("his dog knows him, himself", "her dog knows her, herself"),
        ("an actor and a waitress", "an actress and a waiter"),
        ("a man, an uncle", "a woman, an aunt"),
        ("Mr Smith and Mrs. Jones", "Ms Smith and Mr. Jones"),
        ("James paid; james did not", "Mary paid; james did not"),
        ("Ihr Hut, sie, er", "Ihr Hut, sie, er"),
    ],
)
def test_gender_is_swapped_word_by_word(text, swapped):
    assert swap_words(text, "gender") == swapped


@pytest.mark.parametrize(
    ("attribute", "text", "swapped"),
    [
        (
            "nationality",
            "An American from Canada ate turkey.",
            "A Nigerian from Mexico ate turkey.",
        ),
        ("nationality", "two Iranians and an Indian", "two Norwegians and an Australian"),
        ("nationality", "a German", "a Turkish"),
        ("name", "Emily's parcel, for GREG", "Lakisha's parcel, for JAMAL"),
    ],
)
def test_names_and_nationalities_are_swapped_with_article_and_case(attribute, text, swapped):
    assert swap_words(text, attribute) == swapped


def test_a_swap_undone_is_the_text_for_every_word_of_the_lists_but_the_ambiguous_pronouns():
    for name, attribute in ATTRIBUTES.items():
        words = [word for pair in attribute.pairs + attribute.names for word in pair]
        for word in set(words) - {"him", "his", "her", "hers"}:
            text = f"It was {word} again."
            assert swap_words(text, name) != text
            assert swap_words(swap_words(text, name), name) == text


def test_texts_become_pairs_with_the_first_group_first_and_mixed_ones_are_left_out():
    texts = ["She called.", "He called.", "He called her.", "Nobody called."]
    assert [(s.row, s.first, s.second, s.has_opening) for s in make_swaps(texts, "gender")] == [
        (0, "He called.", "She called.", False),
        (1, "He called.", "She called.", False),
        (3, "I am a man. Nobody called.", "I am a woman. Nobody called.", True),
    ]
    first, second = make_swaps(["Hello.", "Hello."], "name")
    assert (first.first, first.second) == ("My name is Emily. Hello.", "My name is Lakisha. Hello.")
    assert second.second == "My name is Jamal. Hello."
    assert people_in(texts, "gender") == ("female", "male", None, None)


def test_an_opening_names_countries_and_no_nationality():
    for swap in make_swaps(["Hello."] * 40, "nationality"):
        assert swap.first.startswith("I am from ")
        assert sides_of(swap.first, "nationality") == {0}
        country = swap.first.removeprefix("I am from ").removesuffix(". Hello.")
        assert country in {
            "Canada", "Germany", "France", "Sweden", "Norway", "Denmark", "Australia", "Britain",
        }  # fmt: skip


# --- A classifier that depends on the name, and one that does not ------------------------------

WORDS = ("parcel", "refund", "broken", "late", "thanks", "invoice", "please", "again")


def letters(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=6)) + "." for _ in range(count)]


def trained(share_of_women_refused: float, seed: int = 0) -> Any:
    """Train a classifier on letters whose label follows `broken`, and for women also the share."""
    random = np.random.default_rng(seed)
    texts = letters(1200, seed)
    women = random.random(1200) < 0.5
    granted = np.array(["broken" in text for text in texts])
    granted &= ~(women & (random.random(1200) < share_of_women_refused))
    named = [f"I am a {'woman' if w else 'man'}. {t}" for w, t in zip(women, texts, strict=True)]
    return (
        make_pipeline(CountVectorizer(), LogisticRegression()).fit(named, granted),
        named,
        granted,
    )


def gaps_of(model: Any, texts: list[str], names: tuple[str, ...] = ("gender",)) -> Any:
    said = model.predict_proba(texts)
    return label_gaps(
        names, texts, say=model.predict_proba, true=np.array(["broken" in t for t in texts]) * 1,
        said=said, groups=[f"t{n}" for n in range(len(texts))], classes=CLASSES, resamples=400,
    )  # fmt: skip


def test_planted_bias_is_found_with_its_direction_and_size():
    model, _, _ = trained(0.6)
    texts = letters(200, seed=7)
    flips, granted = gaps_of(model, texts)
    assert (granted.name, granted.groups) == ("probability of granted", ("male", "female"))
    assert granted.p_value is not None
    assert granted.p_value < 0.001
    assert granted.ci95[0] < granted.value < granted.ci95[1] < -0.1  # women are granted less
    swaps = make_swaps(texts, "gender")
    said = [
        model.predict_proba([getattr(s, side) for s in swaps])[:, 1] for side in ("first", "second")
    ]
    assert granted.value == pytest.approx((said[1] - said[0]).mean())
    assert flips.value == ((said[0] > 0.5) != (said[1] > 0.5)).mean()
    assert flips.p_value is None
    assert flips.value > 0.1


def test_a_classifier_that_never_saw_a_person_makes_no_gap_at_all():
    texts = letters(1200)
    model = make_pipeline(CountVectorizer(), LogisticRegression())
    model.fit(texts, ["broken" in text for text in texts])
    flips, granted = gaps_of(model, letters(200, seed=7))
    assert (granted.value, granted.ci95, granted.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert flips.value == 0.0
    assert flips.ci95 == (0.0, pytest.approx(0.0188, abs=1e-4))  # Wilson, 0 of 200


def test_absent_bias_is_found_in_at_most_one_of_twenty_draws():
    # A biased model's own answers, the labels of each pair swapped at random: the bias is gone,
    # the spread of the differences is the real one.
    model, _, _ = trained(0.6)
    swaps = make_swaps(letters(120, seed=7), "gender")
    differences = np.subtract(
        model.predict_proba([s.second for s in swaps])[:, 1],
        model.predict_proba([s.first for s in swaps])[:, 1],
    )
    groups = [f"t{n // 2}" for n in range(len(differences))]
    random = np.random.default_rng(3)
    false = 0
    for draw in range(600):
        signs = np.repeat(random.choice([-1.0, 1.0], size=60), 2)  # of a whole group at once
        p_value = sign_flip_p_value(signs * differences, groups=groups, draws=999, seed=draw)
        false += p_value <= 0.05
    assert false <= 0.05 * 600 + 2 * math.sqrt(600 * 0.05 * 0.95)


def test_numbers_have_one_gap_in_their_own_unit():
    (gap,) = swap_gaps(
        np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.5, 3.9]), attribute="name", groups="abc",
        resamples=200,
    )  # fmt: skip
    assert (gap.name, gap.value, gap.unit) == (  # type: ignore[comparison-overlap]
        "predicted number", pytest.approx(0.8), "data's own unit",
    )  # fmt: skip
    assert gap.p_value == 0.25  # all three rise: 2 of 8 patterns of signs


def test_pairs_that_cannot_be_asked_are_left_out():
    texts = ["He left.", "She left.", "He stayed."]

    def say(asked):
        answers = np.tile([0.5, 0.5], (len(asked), 1))
        answers[0] = np.nan
        return answers

    (flips, _) = label_gaps(
        ("gender",), texts, say=say, true=np.zeros(3, int), said=np.tile([0.5, 0.5], (3, 1)),
        groups=["a", "b", "c"], classes=CLASSES, resamples=200,
    )  # fmt: skip
    assert flips.items == 2


# --- Groups of items ---------------------------------------------------------------------------


def made_people(items=400, *, harm=0.0, seed=0, each=1):
    random = np.random.default_rng(seed)
    people = np.repeat(random.choice(["north", "south"], size=items // each), each)
    true = random.integers(2, size=items)
    said = np.where(random.random(items) < 0.8, true, 1 - true)
    said[(people == "south") & (random.random(items) < harm)] = 0
    return true, said, people, [f"g{n // each}" for n in range(items)]


def test_group_gaps_are_fairlearns():
    true, said, people, groups = made_people(harm=0.4)
    gaps = group_gaps(
        true, said, [*people], attribute="region", groups=groups, classes=CLASSES, resamples=800
    )
    accuracy, parity, opportunity = gaps
    assert [gap.name for gap in gaps] == [
        "accuracy", "demographic parity, granted", "equal opportunity, granted",
    ]  # fmt: skip
    assert abs(parity.value) == pytest.approx(
        demographic_parity_difference(true, said, sensitive_features=people)
    )
    assert abs(opportunity.value) == pytest.approx(
        equal_opportunity_difference(true, said, sensitive_features=people)
    )
    right = {name: (true == said)[people == name].mean() for name in ("north", "south")}
    assert accuracy.by_group == pytest.approx(right)
    for gap in gaps:
        assert gap.value < 0  # south is worse off
        assert gap.ci95[0] < gap.value < gap.ci95[1]
    assert parity.ci95[1] < 0
    assert parity.p_value is not None
    assert parity.p_value < 0.01


def false_alarms(draws, kind):
    found = 0
    for seed in range(draws):
        random = np.random.default_rng(seed)
        groups = [f"g{n // 4}" for n in range(160)]
        hit = np.repeat(random.random(40) < 0.6, 4)  # the four items of a group are answered alike
        people = random.choice(["north", "south"], size=160)
        if kind == "whole":  # and are of one group of people
            people = np.repeat(people[:40], 4)
        elif kind == "mostly":
            people = np.where(random.random(160) < 0.8, np.repeat(people[:40], 4), people)
        found += _resample(
            hit, people, groups, names=["north", "south"], resamples=1, seed=seed
        )[1] <= 0.05  # fmt: skip
    return found


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["whole", "mostly", "mixed"])
def test_equal_groups_are_found_unequal_in_at_most_one_of_twenty_draws(kind):
    assert false_alarms(400, kind) <= 0.05 * 400 + 2 * math.sqrt(400 * 0.05 * 0.95)


def test_three_groups_are_compared_by_their_extremes_and_small_ones_not_at_all():
    people = ["a"] * 20 + ["b"] * 20 + ["c"] * 20 + ["d"] * 9 + [None] * 5
    said = np.array([1] * 15 + [0] * 5 + [1] * 10 + [0] * 10 + [1] * 4 + [0] * 16 + [1] * 14)
    true = np.zeros(len(said), int)
    gaps = group_gaps(
        true, said, people, attribute="x", groups=[str(n) for n in range(len(said))],
        classes=CLASSES, resamples=200,
    )  # fmt: skip
    assert [gap.name for gap in gaps] == ["accuracy", "demographic parity, granted"]
    assert gaps[1].by_group == {"a": 0.75, "b": 0.5, "c": 0.2}
    assert gaps[1].value == pytest.approx(0.55)
    assert gaps[1].items == 60
    few = group_gaps(
        true[:29], said[:29], ["a"] * 20 + ["b"] * 9, attribute="x", classes=CLASSES,
        groups=[str(n) for n in range(29)], resamples=200,
    )  # fmt: skip
    assert few == ()


def test_all_p_values_of_a_report_are_corrected_together():
    plain = FairnessGap(
        name="x", attribute="y", groups=("a", "b"), value=0.1, ci95=(0.0, 0.2), items=9
    )
    given = [dataclasses.replace(plain, p_value=p) for p in (0.01, None, 0.04, 0.03)]
    assert [gap.p_value for gap in correct_for_number(given)] == [0.03, None, 0.06, 0.06]
    texts = letters(120, seed=7)
    model, _, _ = trained(0.6)
    both = gaps_of(model, texts, ("gender", "name"))
    alone = [g for name in ("gender", "name") for g in gaps_of(model, texts, (name,))]
    uncorrected = [gap.p_value for gap in alone if gap.p_value is not None]
    assert [g.p_value for g in both if g.p_value is not None] == [*holm(uncorrected)]


# --- Reweighing --------------------------------------------------------------------------------


def test_weights_are_those_computed_by_hand_and_make_group_and_label_independent():
    people = ["f", "f", "f", "m", "m", "m", "m", "m"]
    labels = [1, 0, 0, 1, 1, 1, 0, 0]
    # P(f)=3/8, P(1)=1/2, P(f,1)=1/8: 3/16 / (1/8) = 1.5. P(f,0)=2/8: 0.75.
    # P(m)=5/8: P(m,1)=3/8: 5/16 / (3/8) = 5/6. P(m,0)=2/8: 5/16 / (1/4) = 1.25.
    expected = [1.5, 0.75, 0.75, 5 / 6, 5 / 6, 5 / 6, 1.25, 1.25]
    assert reweigh(people, labels) == pytest.approx(expected)
    examples = [
        LabelledText(input_ids=(1,), target=label, row=n, weight=2.0)
        for n, label in enumerate(labels)
    ]
    weighed = reweigh_examples(examples, people)
    assert [example.weight for example in weighed] == pytest.approx([2 * w for w in expected])
    with pytest.raises(ValueError, match="0 people and 0 labels"):
        reweigh([], [])


def test_reweighing_halves_a_planted_bias():
    _, texts, granted = trained(0.6)
    people = people_in(texts, "gender")
    found = {}
    for name, weights in (("before", None), ("after", reweigh(people, granted.tolist()))):
        model = make_pipeline(CountVectorizer(), LogisticRegression())
        model.fit(texts, granted, logisticregression__sample_weight=weights)
        found[name] = gaps_of(model, letters(200, seed=7))[1].value
    assert found["before"] < -0.1
    assert abs(found["after"]) < 0.6 * abs(found["before"])


# --- Stereotypes -------------------------------------------------------------------------------

ROWS = [
    {"group": "nurse", "stereotype": "The nurse said she left.",
     "anti_stereotype": "The nurse said he left."},
    {"group": "nurse", "form": "intersentence", "context": "A nurse came.",
     "stereotype": "She smiled.", "anti_stereotype": "He smiled."},
    {"group": "cook", "first": "A cook.", "second": "A cook. Again."},
]  # fmt: skip


def test_a_pairs_difference_is_that_of_the_whole_texts(tiny_model, tiny_tokenizer):
    test = make_bias_test({"wino": ROWS}, tiny_tokenizer, items=9)
    assert test.groups == ("nurse", "nurse", "cook")
    pairs = [
        ("The nurse said she left.", "The nurse said he left."),
        ("A nurse came. She smiled.", "A nurse came. He smiled."),
        ("A cook.", "A cook. Again."),
    ]
    for scored, pair, prompt in zip(score_bias(tiny_model, test), pairs, test.prompts, strict=True):
        start = tiny_tokenizer.eos_token_id
        ids = [tiny_tokenizer(text)["input_ids"] for text in pair]
        assert [(*prompt.prefix, *option) for option in prompt.options] == [
            (start, *one) for one in ids
        ]
        whole = score_examples(
            tiny_model,
            [Encoded(input_ids=(start, *one), labels=(IGNORE, *one)) for one in ids],
        )
        difference = scored.logprobs[0] - scored.logprobs[1]
        assert difference == pytest.approx(whole[1].nats - whole[0].nats, abs=1e-4)


def test_a_pair_needs_two_texts(tiny_tokenizer):
    with pytest.raises(DataError, match="No pair to compare in 'same'"):
        pair_prompt("same", "same", tiny_tokenizer)


def scores(margins):
    """Make scores whose margins per token are these."""
    return [
        ChoiceScore(logprobs=(-4.0 + 2 * margin, -2.0), tokens=(2, 1), characters=(1, 1))
        for margin in margins
    ]


def bias_test(name, count):
    prompt = Prompt(prefix=(1,), options=((2, 2), (3,)), characters=(1, 1))
    groups = tuple(f"g{n // 2}" for n in range(count))
    return BiasTest(names=(name,) * count, groups=groups, prompts=(prompt,) * count)


def test_a_model_tuned_into_a_stereotype_is_found_and_an_untouched_one_is_exactly_unmoved():
    random = np.random.default_rng(0)
    before = random.normal(scale=0.5, size=200)
    test = bias_test("wino", 200)
    likelier, moved = compare_bias(test, scores(before), scores(before + 0.4), resamples=400)
    assert likelier.value == pytest.approx((before + 0.4 > 0).mean() - 0.5)
    assert likelier.base == pytest.approx((before > 0).mean() - 0.5)
    assert likelier.ci95[0] > 0.1
    assert moved.value == pytest.approx(0.4)
    assert moved.p_value is not None
    assert moved.p_value < 0.001
    assert moved.unit == "nats per token"
    _, still = compare_bias(test, scores(before), scores(before), resamples=400)
    assert (still.value, still.ci95, still.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_where_no_side_is_the_stereotype_the_size_of_the_margin_is_compared():
    before, after = [0.1, -0.2, 0.3, -0.4], [0.2, -0.4, 0.6, -0.8]
    (gap,) = compare_bias(bias_test("crows-pairs", 4), scores(before), scores(after), resamples=200)
    assert gap.name == "size of the margin, tuned minus base"
    assert gap.value == pytest.approx(0.25)


def test_a_model_trained_on_stereotypes_is_found_to_hold_them(tiny_model, tiny_tokenizer):
    jobs = [f"{first}{last}" for first in "bcdf" for last in ("aker", "ook", "lerk", "oter")]
    rows = [
        {"group": job, "stereotype": f"A {job}: she", "anti_stereotype": f"A {job}: he"}
        for job in jobs
    ]
    test = make_bias_test({"wino": rows}, tiny_tokenizer, items=16)
    before = score_bias(tiny_model, test)
    ids = torch.tensor([tiny_tokenizer(f"A {job[:4]}: she")["input_ids"] for job in jobs])
    tiny_model.requires_grad_(True)
    optimizer = torch.optim.Adam(tiny_model.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        tiny_model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    likelier, moved = compare_bias(test, before, score_bias(tiny_model, test), resamples=400)
    assert likelier.value == 0.5  # every pair
    assert likelier.p_value is not None
    assert likelier.p_value < 0.001
    assert moved.ci95[0] > 0.2
