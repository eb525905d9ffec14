"""Balancing: weights, repetition, temperature, and replay by share of rows or of tokens."""

from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.dataset.balance import (
    balance_rows,
    effective_weights,
    inverse_weights,
    mix_replay,
    over_sample,
    sample_sources,
    take_tokens,
    temperature_shares,
    under_sample,
)
from sftkit.dataset.split import split_dataset
from sftkit.errors import DataError
from sftkit.settings import DataSettings


def make_rows(topics, **columns):
    """One conversation for each topic named; further columns as lists."""
    topics = list(topics)
    turns = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}]
        for n in range(len(topics))
    ]
    ids = [f"r{number}" for number in range(len(topics))]
    groups = [f"g{number}" for number in range(len(topics))]
    return datasets.Dataset.from_dict(
        {"id": ids, "messages": turns, "group": groups, "topic": topics, **columns}
    )


# ---- weights ----


def test_inverse_weights_average_one_over_the_rows():
    weights = inverse_weights(["a"] * 6 + ["b"] * 2)
    assert weights == {"a": 8 / (2 * 6), "b": 8 / (2 * 2)}  # 0.667 and 2
    assert (6 * weights["a"] + 2 * weights["b"]) / 8 == 1


def test_effective_weights_follow_the_paper():
    # (1 - 0.5**1) / 0.5 = 1 effective row, (1 - 0.5**2) / 0.5 = 1.5; inverses 1 and 2/3; sum 2
    assert effective_weights(["a", "b", "b"], beta=0.5) == pytest.approx({"a": 1.2, "b": 0.8})


def test_beta_leads_from_equal_weights_to_the_inverse_frequency():
    labels = ["a"] * 30 + ["b"] * 10
    assert effective_weights(labels, beta=0) == {"a": 1, "b": 1}
    near_one = effective_weights(labels, beta=0.9999999)
    assert near_one["b"] / near_one["a"] == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inverse_weights([]), "no labels to weigh"),
        (lambda: effective_weights(["a"], beta=1.0), r"beta must be in \[0, 1\), got 1\.0"),
        (lambda: temperature_shares({"a": 1}, 0.5), "temperature must be 1 or more, got 0.5"),
        (lambda: temperature_shares({"a": 0}, 2), "Shares need rows"),
    ],
)
def test_weights_that_mean_nothing_are_refused(call, words):
    with pytest.raises(DataError, match=words):
        call()


# ---- repeating and leaving out ----


def test_over_sampling_repeats_the_rare_and_marks_the_repetitions():
    balanced = over_sample(make_rows("aaaaabb"), "topic")
    assert list(balanced["topic"]) == [*"aaaaabb", *"bbb"]  # the rows, then their repetitions
    assert list(balanced["repeated"]) == [False] * 7 + [True] * 3
    repeats = Counter(balanced["id"])
    assert sorted(repeats[name] for name in ("r5", "r6")) == [2, 3]  # as evenly as three can be
    assert list(over_sample(make_rows("aaaaabb"), "topic")["id"]) == list(balanced["id"])


def test_under_sampling_keeps_as_many_of_each_as_of_the_rarest():
    balanced = under_sample(make_rows("aaaaaabb"), "topic")
    assert list(balanced["topic"]) == [*"aabb"]
    assert not any(balanced["repeated"])
    kept = {tuple(under_sample(make_rows("aaaaaabb"), "topic", seed=s)["id"]) for s in range(8)}
    assert len(kept) > 1


@settings(max_examples=40)
@given(
    topics=st.lists(st.sampled_from("aaab"), min_size=1, max_size=40),
    seed=st.integers(0, 5),
    how=st.sampled_from([over_sample, under_sample]),
)
def test_after_balancing_all_values_are_equally_frequent(topics, seed, how):
    rows = make_rows(topics)
    balanced = how(rows, "topic", seed=seed)
    counts = Counter(topics)
    wanted = max(counts.values()) if how is over_sample else min(counts.values())
    assert Counter(balanced["topic"]) == dict.fromkeys(counts, wanted)
    assert sum(balanced["repeated"]) == len(balanced) - len(set(balanced["id"]))
    # With how often each row stands, no row of a value stands twice more than another.
    stands = Counter(balanced["id"])
    for topic in counts:
        times = [stands[f"r{n}"] for n, own in enumerate(topics) if own == topic]
        assert max(times) - min(times) <= 1


def test_rows_repeated_before_stay_marked():
    twice = over_sample(over_sample(make_rows("aab"), "topic"), "id")
    assert Counter(twice["repeated"]) == {False: 3, True: len(twice) - 3}


def test_a_temperature_flattens_shares():
    assert temperature_shares({"a": 90, "b": 10}, 1) == {"a": 0.9, "b": 0.1}
    # the square roots of 0.9 and 0.1 are as 3 to 1
    assert temperature_shares({"a": 90, "b": 10}, 2) == pytest.approx({"a": 0.75, "b": 0.25})
    assert temperature_shares({"a": 90, "b": 10}, 1e9) == pytest.approx({"a": 0.5, "b": 0.5})


def test_sources_are_mixed_in_flattened_shares():
    rows = make_rows("a" * 90 + "b" * 10)
    mixed = sample_sources(rows, "topic", temperature=2)
    assert Counter(mixed["topic"]) == {"a": 75, "b": 25}
    assert sum(mixed["repeated"]) == 15
    assert Counter(sample_sources(rows, "topic", temperature=2, rows=9)["topic"]) == {
        "a": 7,
        "b": 2,
    }


@pytest.mark.parametrize("how", [over_sample, under_sample])
def test_only_training_rows_are_balanced(how):
    rows = make_rows("abc", split=["train", "test", "train"], place=["x:1", "x:2", "x:3"])
    with pytest.raises(DataError, match=r"1 rows do not train: x:2\. .* give splits\.train"):
        how(rows, "topic")
    with pytest.raises(DataError, match=r"column='topci': .* Did you mean 'topic'"):
        how(make_rows("a"), "topci")


def test_repeated_rows_never_reach_a_test_split():
    repeated = over_sample(make_rows("aaab" * 30), "topic")
    with pytest.raises(DataError, match="repeated rows would stand in validation or test"):
        split_dataset(repeated, DataSettings(source="x"))


def test_the_settings_say_what_is_balanced_and_how():
    rows = make_rows("aaab")

    def asked(**given):
        return balance_rows(rows, DataSettings(source="x", **given))

    assert asked() is rows
    assert Counter(asked(balance_by="topic")["topic"]) == {"a": 3, "b": 3}
    assert Counter(asked(balance_by="topic", balance="under")["topic"]) == {"a": 1, "b": 1}


# ---- replay ----


def test_replayed_rows_are_a_share_of_all_rows():
    train = make_rows(["fee"] * 30, split=["train"] * 30, kind=["fee"] * 30)
    replay = make_rows(["chat"] * 40)
    mixed = mix_replay(train, replay, 0.25, seed=0)
    assert list(mixed["replayed"]) == [False] * 30 + [True] * 10  # 10 of 40
    assert mixed.select(range(30)).remove_columns("replayed")[:] == train[:]
    assert mixed[35]["group"].startswith("replay:g")
    assert mixed[35]["messages"] == replay[int(mixed[35]["id"][1:])]["messages"]
    assert (mixed[35]["split"], mixed[35]["kind"]) == ("train", None)
    assert len(set(mixed["id"][30:])) == 10
    again = mix_replay(train, replay, 0.25, seed=0)
    assert list(again["id"]) == list(mixed["id"])
    assert list(mix_replay(train, replay, 0.25, seed=1)["id"]) != list(mixed["id"])


def test_no_share_replays_nothing():
    mixed = mix_replay(make_rows("a"), make_rows("b"), 0, seed=0)
    assert list(mixed["replayed"]) == [False]


def test_too_few_rows_to_replay_are_refused_with_the_share_that_fits():
    with pytest.raises(DataError, match=r"needs 30 rows to replay, but there are 10.*to 0\.25"):
        mix_replay(make_rows("a" * 30), make_rows("b" * 10), 0.5, seed=0)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=60, max_size=60),
    share=st.sampled_from([0.1, 0.25, 0.5]),
    seed=st.integers(0, 5),
)
def test_a_share_of_tokens_is_met_to_within_half_a_row(lengths, share, seed):
    train = make_rows("a" * 10, tokens=[10] * 10)
    replay = make_rows("b" * 60, tokens=lengths)
    mixed = mix_replay(train, replay, share, seed, count_tokens=lambda row: row["tokens"])
    replayed = [row["tokens"] for row in mixed if row["replayed"]]
    wanted = round(100 * share / (1 - share))  # beside 10 rows of 10
    assert abs(sum(replayed) - wanted) <= max(lengths) / 2


def test_rows_that_could_not_be_encoded_are_not_replayed():
    replay = make_rows("b" * 4, tokens=[0, 50, 0, 50])
    train = make_rows("a", tokens=[100])
    mixed = mix_replay(train, replay, 0.5, 0, count_tokens=lambda row: row["tokens"])
    assert sorted(mixed["id"][1:]) == ["r1", "r3"]


def test_tokens_are_counted_only_as_far_as_needed():
    drawn = []

    def lengths():
        for length in (30, 30, 30, 30):
            drawn.append(length)
            yield length

    assert take_tokens(lengths(), 0.5, beside=55) == [0, 1]  # 60 is nearer to 55 than 30 is
    assert len(drawn) == 3


def test_too_few_tokens_to_replay_are_refused_with_the_share_that_fits():
    with pytest.raises(DataError, match=r"needs 100 tokens to replay, but there are 25.*to 0\.20"):
        take_tokens([10, 15], 0.5, beside=100)


def test_only_training_rows_are_mixed_with_replayed_ones():
    with pytest.raises(DataError, match="2 rows do not train"):
        mix_replay(make_rows("ab", split=["test", "validation"]), make_rows("c"), 0.5, 0)
    with pytest.raises(DataError, match=r"share must be in \[0, 1\), got 1"):
        mix_replay(make_rows("a"), make_rows("c"), 1, 0)
