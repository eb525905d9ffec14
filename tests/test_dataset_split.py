"""Splitting: disjoint, complete, by group, stratum and time; fixed by seed and by content."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.dataset.moments import find_time_cuts, read_times
from sftkit.dataset.read import read_dataset
from sftkit.dataset.split import draw_share, fingerprint, mark_splits, split_dataset
from sftkit.dataset.strata import divide_strata
from sftkit.errors import DataError
from sftkit.settings import DataSettings

NAMES = ("train", "validation", "test", "control")


def make_dataset(groups, **columns):
    """One row for each group named; further columns as lists."""
    groups = list(groups)
    turns = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "answer"}]
        for n in range(len(groups))
    ]
    places = [f"x.csv:{number}" for number in range(2, len(groups) + 2)]
    ids = [f"r{number}" for number in range(len(groups))]
    return datasets.Dataset.from_dict(
        {"id": ids, "messages": turns, "group": groups, "place": places, **columns}
    )


def where_groups_went(splits):
    return {group: name for name in NAMES for group in getattr(splits, name)["group"]}


def splits_of(dataset, asked):
    return list(mark_splits(dataset, asked)["split"])


SETTINGS = DataSettings(source="x", validation_fraction=0.25, test_fraction=0.25)
FORTY = [f"g{n}" for n in range(40)]
FRACTIONS = st.tuples(st.integers(1, 45), st.integers(1, 45)).map(
    lambda f: (f[0] / 100, f[1] / 100)
)


# ---- what every division promises ----


@settings(max_examples=60)
@given(
    by=st.sampled_from(["group_by", "stratify_by", "both", "time_by", "split_by"]),
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    seed=st.integers(0, 5),
)
def test_every_row_is_in_exactly_one_split_however_rows_are_divided(by, groups, seed):
    said = [NAMES[group % 4] for group in groups]
    days = [f"2024-01-{group + 1:02}" for group in groups]
    kinds = [f"k{group % 3}" for group in groups]
    dataset = make_dataset([f"g{n}" for n in groups], day=days, kind=kinds, said=said)
    ways: dict[str, Any] = {
        "group_by": {"group_by": "group"},
        "stratify_by": {"stratify_by": "kind"},
        "both": {"group_by": "group", "stratify_by": "kind"},
        "time_by": {"time_by": "day"},
        "split_by": {"split_by": "said"},
    }
    asked = DataSettings(source="x", seed=seed, **ways[by])

    marked = mark_splits(dataset, asked)

    assert list(marked["id"]) == list(dataset["id"])
    assert set(marked["split"]) <= set(NAMES)
    if {"train", "validation", "test"} <= set(marked["split"]):
        splits = split_dataset(dataset, asked)
        ids = [i for name in NAMES for i in getattr(splits, name)["id"]]
        assert sorted(ids) == sorted(dataset["id"])  # each row once
        assert splits.counts() == {name: list(marked["split"]).count(name) for name in NAMES}


# ---- by group ----


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=40, max_size=60),
    seed=st.integers(0, 5),
    more=st.integers(0, 30),
)
def test_groups_stay_whole_and_never_move_when_rows_are_added(sizes, seed, more):
    asked = DataSettings(source="x", validation_fraction=0.25, test_fraction=0.25, seed=seed)
    groups = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    splits = split_dataset(make_dataset(groups), asked)
    went = where_groups_went(splits)
    for name in NAMES:
        assert {went[group] for group in getattr(splits, name)["group"]} <= {name}
    longer = [f"new{n}" for n in range(more)] + groups[::-1]  # in front, and turned round
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


@pytest.mark.parametrize("columns", [{}, {"stratify_by": "kind"}])
def test_another_seed_divides_otherwise(columns):
    dataset = make_dataset(FORTY, kind=["a"] * 40)
    one, same, other = (
        splits_of(dataset, DataSettings(source="x", seed=seed, **columns)) for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_the_draw_of_a_group_never_changes():
    # printf '0\na' | sha256sum begins with 0d3b..., and 0x0d3b / 0x10000 is 0.0517
    assert [round(draw_share(0, key), 4) for key in ("a", "b")] == [0.0517, 0.2428]


# ---- stratified ----


@settings(max_examples=60)
@given(
    strata=st.lists(st.sampled_from("aaaabbc"), max_size=120),
    fractions=FRACTIONS,
    seed=st.integers(0, 5),
)
def test_every_stratum_is_within_one_row_of_its_exact_share(strata, fractions, seed):
    to_validation, to_test = fractions
    asked = DataSettings(
        source="x",
        stratify_by="kind",
        validation_fraction=to_validation,
        test_fraction=to_test,
        seed=seed,
    )
    dataset = make_dataset([f"g{n}" for n in range(len(strata))], kind=strata)

    placed = list(zip(strata, splits_of(dataset, asked), strict=True))

    shares = {"train": 1 - to_validation - to_test, "validation": to_validation, "test": to_test}
    for kind in set(strata):
        rows = strata.count(kind)
        for name, share in shares.items():
            assert abs(placed.count((kind, name)) - rows * share) < 1 + 1e-9


@settings(max_examples=40)
@given(
    strata=st.lists(st.sampled_from("aaab"), max_size=60),
    more=st.lists(st.sampled_from("abc"), max_size=60),
    fractions=FRACTIONS,
    seed=st.integers(0, 5),
)
def test_appended_rows_move_no_row_of_any_stratum(strata, more, fractions, seed):
    asked = DataSettings(
        source="x",
        stratify_by="kind",
        validation_fraction=fractions[0],
        test_fraction=fractions[1],
        seed=seed,
    )
    every = strata + more
    longer = make_dataset([f"g{n}" for n in range(len(every))], kind=every)

    before = splits_of(longer.select(range(len(strata))), asked)

    assert splits_of(longer, asked)[: len(strata)] == before


@settings(max_examples=60)
@given(
    groups=st.lists(st.integers(0, 25), max_size=80),
    more=st.lists(st.integers(0, 40), max_size=40),
    seed=st.integers(0, 5),
)
def test_stratified_groups_stay_whole_within_one_group_and_where_they_were(groups, more, seed):
    asked = DataSettings(
        source="x",
        stratify_by="kind",
        group_by="group",
        validation_fraction=0.2,
        test_fraction=0.3,
        seed=seed,
    )
    every = groups + more  # some of them further rows of groups that were there
    longer = make_dataset([f"g{n}" for n in every], kind=[f"k{n % 2}" for n in every])
    placed = splits_of(longer, asked)

    assert splits_of(longer.select(range(len(groups))), asked) == placed[: len(groups)]
    went = set(zip(every, placed, strict=True))
    assert len(went) == len(set(every))  # one split for each group
    for kind in (0, 1):
        ours = [name for group, name in went if group % 2 == kind]
        for name, share in {"train": 0.5, "validation": 0.2, "test": 0.3}.items():
            assert abs(ours.count(name) - len(ours) * share) < 1 + 1e-9


def test_the_exact_share_holds_after_every_single_row():
    parts = np.array(
        divide_strata([0] * 200, np.random.default_rng(0).random(200), (0.75, 0.1, 0.15))
    )
    assert "".join(map(str, parts[20:40])).count("2") == 3  # whole again after every 20 rows
    for part, share in enumerate((0.75, 0.1, 0.15)):
        exact = share * np.arange(1, 201)
        assert (np.abs((parts == part).cumsum() - exact) < 1).all()


def test_rare_strata_reach_every_split_in_the_right_share():
    # Rounded to the nearest row, a stratum of one or two would never be tested.
    alone = np.bincount(
        divide_strata(np.arange(6000), np.random.default_rng(1).random(6000), (0.75, 0.1, 0.15))
    )
    assert alone.tolist() == pytest.approx([4500, 600, 900], abs=100)  # 3 standard deviations
    pairs = np.bincount(
        divide_strata(
            np.arange(6000) % 3000, np.random.default_rng(2).random(6000), (0.75, 0.1, 0.15)
        )
    )
    assert pairs.tolist() == pytest.approx([4500, 600, 900], abs=100)


def test_the_rhythm_of_a_file_shows_in_no_split():
    # Four phrasings in turn, and a quarter is tested: taking every fourth row would test one only.
    dataset = make_dataset(
        [f"g{n}" for n in range(400)], kind=["a"] * 400, phrasing=list("1234") * 100
    )
    asked = DataSettings(source="x", stratify_by="kind", test_fraction=0.25)
    tested = list(split_dataset(dataset, asked).test["phrasing"])
    assert len(tested) == 100
    assert all(15 <= tested.count(phrasing) <= 35 for phrasing in "1234")


def test_shares_of_many_digits_are_exact_too():
    shares = (0.7, 0.123456, 0.176544)
    parts = np.array(divide_strata([0] * 30_000, np.random.default_rng(0).random(30_000), shares))
    for part, share in enumerate(shares):
        assert abs((parts == part).sum() - share * 30_000) < 1


def test_rows_of_one_question_are_one_group_also_where_their_labels_differ():
    dataset = make_dataset(["same", "same", *FORTY], kind=["a", "b", *["a"] * 40])
    placed = splits_of(dataset, DataSettings(source="x", stratify_by="kind"))
    assert placed[0] == placed[1]


# ---- by time ----

DAYS = [f"2024-05-{day:02}" for day in (1, 9, 3, 7, 5, 2, 8, 4, 6, 10)]
BY_TIME = DataSettings(source="x", time_by="day", validation_fraction=0.2, test_fraction=0.2)


def test_the_newest_rows_are_tested_and_the_next_newest_choose():
    dataset = make_dataset(FORTY[:10], day=DAYS)
    splits = split_dataset(dataset, BY_TIME)
    assert sorted(splits.test["day"]) == ["2024-05-09", "2024-05-10"]
    assert sorted(splits.validation["day"]) == ["2024-05-07", "2024-05-08"]
    assert splits.counts()["train"] == 6
    assert find_time_cuts(dataset, BY_TIME) == (
        "2024-05-07T00:00:00.000000Z",
        "2024-05-09T00:00:00.000000Z",
    )


def test_rows_of_one_moment_stay_together():
    years = ["2019"] * 5 + ["2020"] * 2 + ["2021"] * 3
    assert splits_of(make_dataset(FORTY[:10], day=years), BY_TIME) == (
        ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    )


@settings(max_examples=40)
@given(days=st.lists(st.integers(1, 28), min_size=1, max_size=50), seed=st.integers(0, 3))
def test_nothing_older_is_tested_than_what_trains_or_chooses(days, seed):
    texts = [f"2024-02-{day:02}" for day in days]
    dataset = make_dataset([f"g{n}" for n in range(len(days))], day=texts)
    rank = {"train": 0, "validation": 1, "test": 2}
    placed = [rank[name] for name in splits_of(dataset, BY_TIME)]
    in_time = [place for _, place in sorted(zip(days, placed, strict=True))]
    assert in_time == sorted(in_time)
    assert len(set(zip(days, placed, strict=True))) == len(set(days))  # ties stay together


@settings(max_examples=25)
@given(more=st.lists(st.integers(11, 28), max_size=20))
def test_fixed_cuts_keep_every_row_where_it_is_when_newer_ones_arrive(more):
    asked = DataSettings(source="x", time_by="day", time_cuts=("2024-05-07", "2024-05-09"))
    days = DAYS + [f"2024-05-{day}" for day in more]
    dataset = make_dataset([f"g{n}" for n in range(len(days))], day=days)
    first = splits_of(make_dataset(FORTY[:10], day=DAYS), BY_TIME)
    assert splits_of(dataset, asked) == first + ["test"] * len(more)


def test_times_are_read_in_their_zone_and_as_unix_seconds_or_milliseconds():
    zoned = ["2024-05-31T10:00+02:00", "2024-05-31 08:00", "20240531T08Z"]
    assert len(set(read_times(make_dataset(FORTY[:3], day=zoned), "day"))) == 1
    unix = ["1717142400", "1717142400000", "1717142400.5"]  # date -d @1717142400
    times = read_times(make_dataset(FORTY[:3], day=unix), "day")
    assert [str(time) for time in times] == [
        "2024-05-31T08:00:00.000000",
        "2024-05-31T08:00:00.000000",
        "2024-05-31T08:00:00.500000",
    ]


def test_times_that_cannot_be_read_are_refused_with_their_places():
    days = ["2024-05-31", "03/04/2024", "", None, "soon", "2024-13-01"]
    with pytest.raises(
        DataError,
        match=r"time_by=day: 5 of 6 rows .*: x\.csv:3, x\.csv:4, x\.csv:5 \(the first has "
        r"'03/04/2024'\)\. Write times as 2024-05-31",
    ):
        split_dataset(make_dataset(FORTY[:6], day=days), BY_TIME)


# ---- by a column ----


def test_a_split_column_decides_where_it_is_given():
    said = ["train"] * 5 + ["validation", "test", "test", "control"]
    asked = DataSettings(source="x", split_by="said")
    splits = split_dataset(make_dataset(["a"] * 5 + ["a", "b", "c", "d"], said=said), asked)
    assert splits.counts() == {"train": 5, "validation": 1, "test": 2, "control": 1}
    assert splits.group_counts() == {"train": 1, "validation": 1, "test": 2, "control": 1}


def test_the_shops_own_column_divides_it():
    asked = DataSettings(source="shop", split_by="split")
    splits = split_dataset(read_dataset("shop", split_by="split"), asked)
    assert splits.counts() == {"train": 256, "validation": 32, "test": 64, "control": 32}
    assert splits.group_counts() == {"train": 32, "validation": 32, "test": 32, "control": 16}


def test_without_named_validation_rows_groups_of_train_are_taken():
    part = ["train"] * 30 + ["test"] * 10
    asked = DataSettings(source="x", split_by="split", validation_fraction=0.25)
    splits = split_dataset(make_dataset(FORTY, split=part), asked)
    assert splits.counts()["test"] == 10
    assert 0 < splits.counts()["validation"] < 30
    assert set(splits.validation["group"]) <= set(FORTY[:30])


# ---- refused ----


@pytest.mark.parametrize(
    ("dataset", "asked", "words"),
    [
        (make_dataset(["a", "b"]), SETTINGS, r"2 rows in 2 groups leave none for"),
        (make_dataset([]), SETTINGS, r"0 rows in 0 groups leave none for train and validation"),
        (
            make_dataset(["a", "b"], split=["train", "validation"]),
            DataSettings(source="x", split_by="split"),
            "'split' leaves no rows for test",
        ),
        (
            make_dataset(["a"], split=["moon"]),
            DataSettings(source="x", split_by="split"),
            "unknown split 'moon'",
        ),
        (make_dataset(["a"]), DataSettings(source="x", split_by="gruop"), "Did you mean 'group'"),
        (
            make_dataset(["a"], label=["x"]),
            DataSettings(source="x", stratify_by="lable"),
            "stratify_by='lable': the dataset has no such column. Did you mean 'label'",
        ),
        (
            make_dataset(["a"], day=["2024"]),
            DataSettings(source="x", time_by="date"),
            "time_by='date': the dataset has no such column",
        ),
        (make_dataset([], day=[]), BY_TIME, "time_by=day: there are no rows to divide"),
        (
            make_dataset(FORTY, day=["2024"] * 40),
            BY_TIME,
            "40 rows with 1 different values of 'day' leave none for .*larger fractions",
        ),
        (
            make_dataset(["a", "b", "b", "a"], kind=["x", "x", "y", "x"]),
            DataSettings(source="x", group_by="group", stratify_by="kind"),
            r"contradict each other: 1 of 2 groups .* 'x' and 'y' at x\.csv:3, x\.csv:4\. A group",
        ),
    ],
)
def test_a_division_that_cannot_be_is_refused_in_words(dataset, asked, words):
    with pytest.raises(DataError, match=words):
        split_dataset(dataset, asked)


@pytest.mark.parametrize(
    ("column", "mark", "none"),
    [("augmented", "typos of r3", ""), ("repeated", True, False), ("replayed", "True", "False")],
)
def test_rows_made_for_training_are_refused_in_every_other_split(column, mark, none):
    said = ["train", "train", "validation", "test"]
    asked = DataSettings(source="x", split_by="said")

    def divide(*marks):
        return split_dataset(make_dataset("abcd", said=said, **{column: list(marks)}), asked)

    assert divide(none, mark, none, none).counts()["train"] == 2
    for marks in ((none, none, mark, none), (mark, none, none, mark)):
        with pytest.raises(DataError, match=rf"1 {column} rows would stand in .*: x\.csv:[45]\. "):
            divide(*marks)


def test_a_training_row_made_from_a_test_row_is_refused():
    said = ["train", "train", "validation", "test"]
    dataset = make_dataset(["a", "d", "c", "d"], said=said, augmented=["", "typos of r3", "", ""])
    with pytest.raises(DataError, match=r"1 augmented rows of train come from .*: x\.csv:3\. "):
        split_dataset(dataset, DataSettings(source="x", split_by="said"))


# ---- the fingerprint ----


def test_a_fingerprint_follows_the_rows_and_not_their_place():
    one = make_dataset(["a", "b"])
    moved = one.remove_columns("place").add_column("place", ["elsewhere"] * 2)
    assert fingerprint(one) == fingerprint(moved)
    assert fingerprint(one).startswith("sha256:")
    assert fingerprint(one) != fingerprint(one.select([1, 0]))
    assert fingerprint(one) != fingerprint(make_dataset(["a", "c"]))
    assert fingerprint(one) != fingerprint(make_dataset(["a", "bb"]).select([0]))


def test_a_fingerprint_does_not_depend_on_how_arrow_lays_rows_out():
    whole = make_dataset(FORTY, kind=[None, "", "x", "yy"] * 10)
    pieces = datasets.concatenate_datasets([whole.select(range(7)), whole.select(range(7, 40))])
    turned = whole.select(range(39, -1, -1)).select(range(39, -1, -1))
    other_order = whole.select_columns(sorted(whole.column_names))
    large = whole.cast_column("kind", datasets.Value("large_string"))
    prints = {fingerprint(dataset) for dataset in (whole, pieces, turned, other_order, large)}
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"kind": ["ab", "c"]}, {"kind": ["a", "bc"]}),
        ({"kind": [None, "c"]}, {"kind": ["", "c"]}),
        ({"n": [1, None]}, {"n": [1, 0]}),
        ({"n": [1.5, 2.0]}, {"n": [1.5, 2.5]}),
        ({"b": [True, False]}, {"b": [True, True]}),
        ({"kind": ["a", "b"]}, {"other": ["a", "b"]}),
        ({"m": [[{"role": "a"}], []]}, {"m": [[], [{"role": "a"}]]}),
    ],
)
def test_a_fingerprint_tells_contents_apart(one, other):
    prints = [fingerprint(datasets.Dataset.from_dict(columns)) for columns in (one, other)]
    assert prints[0] != prints[1]


def test_the_fingerprint_of_an_image_is_its_content_and_not_its_path(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})

    def of(*images):
        table = pa.table({"image": pa.array(images, kind)})
        return fingerprint(datasets.Dataset(table))

    (tmp_path / "cat.png").write_bytes(b"cat")
    inside = {"bytes": b"cat", "path": None}
    beside = {"bytes": None, "path": str(tmp_path / "cat.png")}
    assert of(inside) == of(beside)
    assert of(inside) != of({"bytes": b"dog", "path": None})


def test_group_by_rules_also_where_reading_did_not_group_by_it():
    customers = [f"c{n % 12}" for n in range(40)]
    dataset = make_dataset(FORTY, customer=customers)
    asked = DataSettings(
        source="x", group_by="customer", test_fraction=0.3, validation_fraction=0.3
    )

    splits = split_dataset(dataset, asked)

    parts = [set(part["customer"]) for part in (splits.train, splits.validation, splits.test)]
    assert (sum(map(len, parts)), set(splits.train["group"])) == (12, parts[0])
    with pytest.raises(DataError, match=r"group_by='custmer'.*Did you mean 'customer'"):
        split_dataset(dataset, DataSettings(source="x", group_by="custmer"))


def test_a_row_without_a_value_to_group_by_keeps_its_own_group():
    dataset = make_dataset(["g1", "g2", "g3"], customer=["c1", None, ""])

    marked = mark_splits(dataset, DataSettings(source="x", group_by="customer"))

    assert list(marked["group"]) == ["c1", "g2", "g3"]


def test_the_column_that_was_named_decides_and_not_another_split(tmp_path):
    parts = ["train", "dev", "test", "train"]
    dataset = make_dataset(["a", "b", "c", "d"], split=["test"] * 4, fold=parts)

    marked = mark_splits(dataset, DataSettings(source="x", split_by="fold"))

    assert list(marked["split"]) == ["train", "validation", "test", "train"]
    with pytest.raises(DataError, match="split_by='nonsense'"):
        mark_splits(dataset, DataSettings(source="x", split_by="nonsense"))
