"""Splitting: whole groups, fixed by seed and content; replay by share."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.dataset.read import read_dataset, rows_to_dataset
from sftkit.dataset.split import draw_share, fingerprint, mix_replay, split_dataset
from sftkit.errors import DataError
from sftkit.settings import DataSettings

NAMES = ("train", "validation", "test", "control")


def make_dataset(groups, **columns):
    """One row for each group named; further columns as lists."""
    rows = []
    for number, group in enumerate(groups):
        messages = [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": "answer"},
        ]
        extra = {key: values[number] for key, values in columns.items()}
        row = {"id": f"r{number}", "messages": messages, "group": group, "place": f"row {number}"}
        rows.append(row | extra)
    return rows_to_dataset(rows)


def where_groups_went(splits):
    return {group: name for name in NAMES for group in getattr(splits, name)["group"]}


SETTINGS = DataSettings(source="x", validation_fraction=0.25, test_fraction=0.25)
FORTY = [f"g{n}" for n in range(40)]


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=40, max_size=60),
    seed=st.integers(0, 5),
    more=st.integers(0, 30),
)
def test_groups_stay_whole_and_never_move_when_rows_are_added(sizes, seed, more):
    asked = DataSettings(source="x", validation_fraction=0.25, test_fraction=0.25, seed=seed)
    groups = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    splits = split_dataset(make_dataset(groups), asked)
    ids = [i for name in NAMES for i in getattr(splits, name)["id"]]
    assert sorted(ids) == sorted(f"r{n}" for n in range(len(groups)))  # each row once
    went = where_groups_went(splits)
    for name in NAMES:
        assert {went[group] for group in getattr(splits, name)["group"]} <= {name}
    longer = [f"new{n}" for n in range(more)] + groups[::-1]
    after = where_groups_went(split_dataset(make_dataset(longer), asked))
    assert {group: after[group] for group in went} == went


def test_the_fractions_are_met_on_many_groups():
    splits = split_dataset(make_dataset([f"g{n}" for n in range(4000)]), SETTINGS)
    assert splits.counts()["test"] == pytest.approx(1000, abs=90)  # 3 standard deviations
    assert splits.counts()["validation"] == pytest.approx(1000, abs=90)
    assert splits.counts()["control"] == 0


def test_a_larger_validation_share_takes_from_train_only():
    few = split_dataset(make_dataset(FORTY), SETTINGS)
    more = split_dataset(
        make_dataset(FORTY), DataSettings(source="x", validation_fraction=0.5, test_fraction=0.25)
    )
    assert list(few.test["group"]) == list(more.test["group"])
    assert set(few.validation["group"]) < set(more.validation["group"])


def test_another_seed_divides_otherwise():
    other = DataSettings(source="x", validation_fraction=0.25, test_fraction=0.25, seed=1)
    dataset = make_dataset(FORTY)
    assert where_groups_went(split_dataset(dataset, SETTINGS)) != where_groups_went(
        split_dataset(dataset, other)
    )


def test_the_draw_of_a_group_never_changes():
    # printf '0\na' | sha256sum begins with 0d3b..., and 0x0d3b / 0x10000 is 0.0517
    assert [round(draw_share(0, key), 4) for key in ("a", "b")] == [0.0517, 0.2428]


def test_a_split_column_decides_where_it_is_given():
    splits = split_dataset(
        read_dataset("shop", split_by="split"), DataSettings(source="shop", split_by="split")
    )
    assert splits.counts() == {"train": 256, "validation": 32, "test": 64, "control": 32}
    assert splits.group_counts() == {"train": 32, "validation": 32, "test": 32, "control": 16}


def test_without_named_validation_rows_groups_of_train_are_taken():
    part = ["train"] * 30 + ["test"] * 10
    asked = DataSettings(source="x", split_by="split", validation_fraction=0.25)
    splits = split_dataset(make_dataset(FORTY, split=part), asked)
    assert splits.counts()["test"] == 10
    assert 0 < splits.counts()["validation"] < 30
    assert set(splits.validation["group"]) <= set(FORTY[:30])


@pytest.mark.parametrize(
    ("dataset", "asked", "words"),
    [
        (make_dataset(["a", "b"]), SETTINGS, r"2 rows in 2 groups leave none for"),
        (
            make_dataset(["a", "b"], split=["train", "validation"]),
            DataSettings(source="x", split_by="split"),
            "'split' leaves no rows for test",
        ),
        (
            make_dataset(["a"], split=["holdout"]),
            DataSettings(source="x", split_by="split"),
            "unknown split 'holdout'",
        ),
        (make_dataset(["a"]), DataSettings(source="x", split_by="gruop"), "Did you mean 'group'"),
    ],
)
def test_a_division_that_cannot_be_is_refused_in_words(dataset, asked, words):
    with pytest.raises(DataError, match=words):
        split_dataset(dataset, asked)


def test_a_fingerprint_follows_the_rows_and_not_their_place():
    one = make_dataset(["a", "b"])
    moved = rows_to_dataset([row | {"place": "elsewhere"} for row in one])
    assert fingerprint(one) == fingerprint(moved)
    assert fingerprint(one) != fingerprint(one.select([1, 0]))
    assert fingerprint(one) != fingerprint(make_dataset(["a", "c"]))


def test_replayed_rows_are_a_share_of_all_rows():
    train = make_dataset(FORTY[:30], split=["train"] * 30, kind=["fee"] * 30)
    replay = make_dataset(FORTY)
    mixed = mix_replay(train, replay, 0.25, seed=0)
    assert list(mixed["replayed"]) == [False] * 30 + [True] * 10  # 10 of 40
    assert list(mixed["id"][:30]) == list(train["id"])
    assert mixed[35]["group"].startswith("replay:g")
    assert (mixed[35]["split"], mixed[35]["kind"]) == ("train", None)
    assert len(set(mixed["id"][30:])) == 10
    again = mix_replay(train, replay, 0.25, seed=0)
    assert list(again["id"]) == list(mixed["id"])
    assert list(mix_replay(train, replay, 0.25, seed=1)["id"]) != list(mixed["id"])


def test_no_share_replays_nothing():
    mixed = mix_replay(make_dataset(["a"]), make_dataset(["b"]), 0, seed=0)
    assert list(mixed["replayed"]) == [False]


def test_too_few_rows_to_replay_are_refused_with_the_share_that_fits():
    with pytest.raises(DataError, match=r"needs 30 rows to replay, but there are 10.*to 0\.25"):
        mix_replay(make_dataset(FORTY[:30]), make_dataset(FORTY[:10]), 0.5, seed=0)
