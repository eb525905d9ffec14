"""Columns of a dataset, and rows put below others, without a Python list of rows."""

import datasets
import pyarrow as pa
import pytest

from sftkit.dataset.columns import (
    append_rows,
    encode_column,
    find_made_rows,
    name_places,
    read_column,
    with_column,
)

ROWS = datasets.Dataset.from_dict({"id": ["a", "b", None, "a"], "n": [1, 2, 3, 4]})


def test_values_are_numbered_as_they_appear_and_a_missing_one_is_empty():
    codes, values = encode_column(ROWS, "id")
    assert (codes.tolist(), values) == ([0, 1, 2, 0], ["a", "b", ""])
    codes, values = encode_column(ROWS.select([3, 1]), "n")
    assert (codes.tolist(), values) == ([0, 1], ["4", "2"])


@pytest.mark.parametrize("picked", [[3, 1, 1], [], range(1, 3)])
def test_a_column_of_picked_rows_is_theirs(picked):
    assert read_column(ROWS.select(picked), "n").to_pylist() == list(ROWS.select(picked)["n"])


@pytest.mark.parametrize("count", [3, 4001, 100_001])
def test_a_column_is_added_to_picked_rows_without_losing_their_kinds(count, capfd):
    table = pa.table({"image": pa.array([{"bytes": b"x", "path": None}] * (count + 1))})
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "kind": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset(table.append_column("kind", pa.array([0] + [1] * count))).cast(features)
    capfd.readouterr()
    picked = rows.select([*range(count, 1, -1), 0])  # turned round, and without one
    more = with_column(picked, "more", pa.array(range(count)))
    assert more.features == {**features, "more": datasets.Value("int64")}
    assert more.remove_columns("more")[count - 2 :] == picked[count - 2 :]
    assert list(more["more"]) == list(range(count))
    assert capfd.readouterr().err == ""  # no progress bar


def test_appended_rows_lack_what_is_not_given_and_bear_a_mark(capfd):
    capfd.readouterr()
    both = append_rows(ROWS, {"id": ["c"]}, {"made": (False, [True])})
    assert both[3:] == {"id": ["a", "c"], "n": [4, None], "made": [False, True]}
    thrice = append_rows(both, {"id": ["d"], "n": pa.array([7])}, {"made": (False, [True])})
    assert list(thrice["made"]) == [False] * 4 + [True, True]
    assert thrice[5] == {"id": "d", "n": 7, "made": True}
    assert capfd.readouterr().err == ""  # no progress bar


def test_marks_count_as_such_after_a_way_through_a_file():
    marks = ["typos of r1", "", None, "False", "no", "True", "0"]
    rows = datasets.Dataset.from_dict({"augmented": marks})
    expected = [True, False, False, False, False, True, False]
    assert find_made_rows(rows, "augmented").tolist() == expected
    assert find_made_rows(rows, "replayed").tolist() == [False] * 7


def test_three_places_are_named_at_most():
    assert name_places(ROWS, [0, 2]) == "row 1, row 3"
    placed = ROWS.add_column("place", [f"x:{n}" for n in range(4)])
    assert name_places(placed, [0, 1, 2, 3]) == "x:0, x:1, x:2"
