"""Near duplicates: what counts as one, that none is missed, and that time stays linear."""

import itertools
import random
import time

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sftkit.dataset.near import (
    find_exact_duplicates,
    find_near_duplicates,
    find_near_matches,
    jaccard,
    normalise,
    split_words,
)
from sftkit.dataset.sketches import Bands, plan_bands, set_jaccard
from sftkit.dataset.texts import RowTexts, question_text, spoken_text, whole_text
from sftkit.errors import DataError


def make_texts(count, *, words=60, vocabulary=5000, seed=0):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(vocabulary)}" for _ in range(words)) for _ in range(count)]


def change_words(text, count, *, seed=0):
    """Replace `count` words, none next to another, by words that stand nowhere else."""
    words = text.split()
    for number in range(count):
        words[5 + 10 * number] = f"new{seed}x{number}"
    return " ".join(words)


def one_changed(words, place):
    said = [f"w{i}" for i in range(words)]
    return " ".join(said), " ".join([*said[:place], "other", *said[place + 1 :]])


@pytest.mark.parametrize("place", [0, 1, 12, 23, 24])
def test_one_changed_word_of_25_is_near_wherever_it_stands(place):
    # (25 - 1) / (25 + 5) = 0.8
    one, other = one_changed(25, place)
    assert jaccard(one, other) == 0.8
    assert find_near_duplicates([one, other]) == ((0, 1),)


def test_one_changed_word_of_24_is_not_near():
    one, other = one_changed(24, 7)
    assert jaccard(one, other) == 23 / 29
    assert find_near_duplicates([one, other]) == ()


def test_in_short_texts_a_changed_word_changes_the_meaning_and_form_does_not():
    texts = [
        "What is the capital of France?",
        "What is the capital of Spain?",
        "what is  the Capital of France",
        "What is 7 + 5?",
        "What is 7 - 5?",
        "Great \U0001f44d",
        "Great \U0001f44e",
        "法国的首都是哪里?",
        "法国的首都是哪里",
        "西班牙的首都是哪里",
    ]
    assert find_near_duplicates(texts) == ((0, 2), (7, 8))


def test_texts_without_a_word_are_duplicates_of_nothing():
    assert find_near_duplicates(["", "", "...", "...", "?!"]) == ()
    assert find_exact_duplicates(["", "", " . ", "."]) == ()
    assert find_near_duplicates([]) == ()
    assert find_near_matches([], ["a"]) == {}
    assert find_near_matches(["", "a"], ["", "a"]) == {1: 1}


def test_exact_duplicates_are_the_same_but_for_case_spacing_and_outer_marks():
    texts = ["Caf\u00e9 open?", "tea", "cafe\u0301  OPEN", "coffee", "TEA!", "tea, hot"]
    assert find_exact_duplicates(texts) == ((0, 2), (1, 4))
    assert normalise(" Is it\tOPEN? ") == "is it open"


def test_words_are_case_folded_and_free_of_punctuation():
    said = "“Don't,” she said: E-mail me_now! x=1 你好 ไทย"
    assert split_words(said) == [
        "don", "t", "she", "said", "e", "-", "mail", "me_now", "x", "=", "1", "你", "好",
        "ไ", "ท", "ย",
    ]  # fmt: skip


def test_planted_near_duplicates_are_found_and_nothing_else():
    texts = make_texts(2000)
    # Two changed words of 60 leave 56 / 68 = 0.82; three leave 53 / 71 = 0.75.
    near = [change_words(text, 2, seed=1) for text in texts[:500]]
    far = [change_words(text, 3, seed=2) for text in texts[1000:1500]]
    assert round(jaccard(texts[0], near[0]), 2) == 0.82
    assert round(jaccard(texts[1000], far[0]), 2) == 0.75
    found = find_near_duplicates([*texts, *near, *far])
    planted = {(i, 2000 + i) for i in range(500)}
    assert set(found) <= planted
    assert len(found) >= 0.98 * len(planted)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_bands_bring_together_pairs_at_exactly_the_threshold(threshold):
    bands = plan_bands(threshold)
    assert 1 - (1 - threshold**bands.rows) ** bands.count >= 0.995
    assert bands.rows * bands.count <= 128


def test_the_usual_threshold_takes_21_bands_of_6():
    assert plan_bands(0.8) == Bands(count=21, rows=6)


def test_every_link_is_verified_whatever_the_bands_propose():
    # A family: each text differs from each other one in 1 to 7 of 40 words.
    base = [f"w{i}" for i in range(40)]
    draw = random.Random(3)
    texts = []
    for number in range(40):
        words = list(base)
        for place in draw.sample(range(40), number % 4 + 1):
            words[place] = f"x{number}y{place}"
        texts.append(" ".join(words))
    linked = {
        pair for pair in itertools.combinations(range(40), 2)
        if jaccard(texts[pair[0]], texts[pair[1]]) >= 0.8
    }  # fmt: skip
    clusters = find_near_duplicates(texts)
    of = {row: number for number, cluster in enumerate(clusters) for row in cluster}
    for cluster in clusters:
        assert all(any(set(p) <= set(cluster) and row in p for p in linked) for row in cluster)
    assert all(of.get(one) == of.get(other) is not None for one, other in linked)
    assert 1 <= len(linked) < 200


def test_the_same_texts_give_the_same_clusters_and_a_column_gives_those_of_a_list():
    texts = make_texts(300)
    texts += [change_words(text, 1, seed=4) for text in texts[:100]]
    expected = find_near_duplicates(texts, seed=1)
    assert len(expected) == 100
    assert find_near_duplicates(texts, seed=1) == expected
    assert find_near_duplicates(Dataset.from_dict({"text": texts})["text"], seed=1) == expected
    assert find_near_duplicates(RowTexts(Dataset.from_dict({"text": texts}))) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["the same words again and again"] * 20_000,
        [f"{' '.join(f'w{i}' for i in range(60))} {n}" for n in range(3000)],
    ],
    ids=["one text", "one template"],
)
def test_a_crowd_of_copies_is_one_cluster_in_linear_time(texts):
    start = time.process_time()
    assert find_near_duplicates(texts) == (tuple(range(len(texts))),)
    # All pairs of the template would be 4,500,000 comparisons, a minute of them.
    assert time.process_time() - start < 20


def test_in_a_crowd_that_is_almost_near_each_text_is_compared_a_limited_number_of_times(
    monkeypatch,
):
    # 23 / 29 = 0.79 for every pair: all 499,500 pairs are proposed, none is near.
    base = [f"w{i}" for i in range(24)]
    texts = [" ".join([*base[:12], f"n{n}", *base[13:]]) for n in range(1000)]
    compared = []

    def count(one, other):
        compared.append(set_jaccard(one, other))
        return compared[-1]

    monkeypatch.setattr("sftkit.dataset.near.set_jaccard", count)
    assert find_near_duplicates(texts) == ()
    assert set(compared) == {23 / 29}
    # 24 failures each; pairs that were under way when the limit was reached come on top.
    assert 1000 < len(compared) < 40_000


def test_matches_are_looked_up_among_others():
    others = make_texts(3000)
    texts = [
        change_words(others[2500], 1),
        "nothing like it",
        others[7],
        change_words(others[9], 3),
    ]
    assert find_near_matches(texts, others) == {0: 2500, 2: 7}


def test_a_match_is_the_first_of_several():
    text = make_texts(1)[0]
    assert find_near_matches([text, text], ["x", change_words(text, 1), text]) == {0: 1, 1: 1}


@given(st.lists(st.text(alphabet="ab \n.", max_size=12), max_size=20))
def test_clusters_are_disjoint_ascending_and_hold_every_exact_copy(texts):
    clusters = find_near_duplicates(texts)
    rows = [row for cluster in clusters for row in cluster]
    assert len(rows) == len(set(rows))
    assert all(list(cluster) == sorted(cluster) and len(cluster) > 1 for cluster in clusters)
    for one, other in itertools.combinations(range(len(texts)), 2):
        if split_words(texts[one]) and split_words(texts[one]) == split_words(texts[other]):
            assert any({one, other} <= set(cluster) for cluster in clusters)


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(DataError, match=r"^threshold must be above 0 and at most 1, got "):
        find_near_duplicates(["a"], threshold=threshold)


CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where does the tram stop?"},
        {"role": "assistant", "content": "At the bridge."},
        {"role": "user", "content": "And on Sundays?"},
        {"role": "assistant", "content": "Nowhere."},
    ]
}


def test_a_conversation_as_one_text():
    assert whole_text(CHAT) == (
        "system: be brief\nuser: where does the tram stop\nassistant: at the bridge\n"
        "user: and on sundays\nassistant: nowhere"
    )
    assert spoken_text(CHAT) == (
        "Where does the tram stop?\nAt the bridge.\nAnd on Sundays?\nNowhere."
    )
    assert question_text(CHAT) == "where does the tram stop\nat the bridge\nand on sundays"
    assert [say({"text": "plain"}) for say in (whole_text, spoken_text, question_text)] == [
        "plain"
    ] * 3


def test_a_greeting_is_no_question_without_its_reply():
    turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good day."}]
    assert question_text({"messages": turns}) == "hello\ngood day"
    assert question_text({"messages": None}) == ""


def test_rows_are_drawn_as_texts_by_place_slice_and_list():
    texts = RowTexts(Dataset.from_dict({"text": ["a", None, "c"]}))
    assert (texts[2], texts[0:2], texts[[2, 0]], list(texts)) == (
        "c", ["a", ""], ["c", "a"], ["a", "", "c"],
    )  # fmt: skip
    with pytest.raises(DataError, match="expected a column messages, text or image, got price"):
        RowTexts(Dataset.from_dict({"price": [1]}))
