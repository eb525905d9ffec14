"""Contamination: planted overlaps are found by each measure, and clean rows stay clean."""

import pytest
from datasets import Dataset

from sftkit.dataset.contamination import compare_splits, find_overlap, take_clean_rows
from sftkit.errors import DataError

RUN = "the quick brown fox jumps over the lazy dog near the old mill"  # 13 words
LONG = " ".join(f"w{i}" for i in range(40))


def chat(*conversations):
    return Dataset.from_dict(
        {
            "messages": [
                [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
                for roles, said in (
                    (("system", "user", "assistant")[-len(c) :], c) for c in conversations
                )
            ]
        }
    )


def found(overlap):
    return {kind: dict(rows) for kind, rows in overlap.matches.items()}


def test_each_measure_finds_its_own_kind_and_names_a_training_row():
    train = ["nothing", "What is a tram?", f"And then {RUN} stood still.", LONG]
    test = [
        "what is a TRAM",
        f"They say {RUN.upper()}!",
        LONG.replace("w20", "other"),
        "What is a train?",
    ]
    overlap = find_overlap(train, test)
    assert found(overlap) == {"exact": {0: 1}, "13-gram": {1: 2, 2: 3}, "near": {0: 1, 2: 3}}
    assert (overlap.rows, overlap.clean_rows, overlap.share) == ((0, 1, 2), (3,), 0.75)
    assert str(overlap) == (
        "3 of 4 rows of test (75.0%) stand in train: 1 word for word, 2 with 13 words in a row, "
        "2 as near duplicates. Scores over them measure memory; 1 rows are clean."
    )


def test_twelve_words_in_a_row_are_not_thirteen():
    twelve = " ".join(RUN.split()[:12])
    assert find_overlap([f"a {RUN} b"], [f"x {twelve} y z"]).rows == ()
    assert find_overlap([f"a {RUN} b"], [f"x {RUN} y z"]).rows == (0,)
    assert find_overlap([RUN], [twelve]).rows == ()


def test_of_several_training_rows_the_first_is_named():
    other = " ".join(f"v{i}" for i in range(13))
    overlap = find_overlap(["x", f"{RUN} a", f"b {RUN}", f"{other} c"], [f"{other} {RUN}"])
    assert found(overlap)["13-gram"] == {0: 1}


@pytest.mark.parametrize(("rows", "concerned"), [(10, (0,)), (11, ())])
def test_a_phrase_in_more_than_ten_training_rows_is_a_common_one(rows, concerned):
    train = [f"{i} {RUN} {i}" for i in range(rows)]
    assert find_overlap(train, [f"x {RUN} y"], kinds=["13-gram"]).rows == concerned


def test_questions_count_and_system_turns_do_not():
    train = chat((RUN, "Where does the tram stop?", "At the bridge."))
    same_question = chat((RUN, "where does the tram stop", "Nowhere."))
    same_system = chat((RUN, "Where does the night bus stop?", "At the mill."))
    assert found(find_overlap(train, same_question)) == {
        "exact": {0: 0}, "13-gram": {}, "near": {0: 0},
    }  # fmt: skip
    assert find_overlap(train, same_system).rows == ()


def test_a_greeting_counts_with_its_reply():
    train = chat(("Hello!", "Good day."))
    assert find_overlap(train, chat(("Hello!", "Welcome."))).rows == ()
    assert find_overlap(train, chat(("hello", "good day"))).rows == (0,)


def test_a_reply_that_was_learned_counts_as_13_words_in_a_row():
    train = chat(("What stood there on that day?", RUN))
    test = chat(("Tell me a tale of long ago.", RUN))
    assert found(find_overlap(train, test)) == {"exact": {}, "13-gram": {0: 0}, "near": {}}


def test_probes_are_plain_questions():
    train = chat(("Where does the tram stop?", "At the bridge."))
    overlap = find_overlap(train, ["Where does the tram stop", "Why?"], names=("train", "piqa"))
    assert overlap.rows == (0,)
    assert str(overlap).startswith("1 of 2 rows of piqa (50.0%) stand in train: 1 word for word")


def test_no_overlap_is_said_in_words_with_what_was_looked_for():
    assert str(find_overlap(["a"], ["b"], kinds=["exact", "near"])) == (
        "None of the 1 rows of test stands in train (word for word or as near duplicates)."
    )
    assert find_overlap([], []).share == 0
    assert find_overlap(["", "..."], ["", "..."]).rows == ()


def test_the_clean_subset_and_its_score():
    test = Dataset.from_dict({"text": ["a b c", "d e f", "g h i"]})
    overlap = find_overlap(["A b c."], test)
    assert list(take_clean_rows(test, overlap)["text"]) == ["d e f", "g h i"]
    # All three: 2/3. Without the leaked row: 1/2.
    assert overlap.clean_mean([1, 1, 0]) == 0.5
    assert find_overlap(["a"], ["a"]).clean_mean([1]) is None
    with pytest.raises(DataError, match="3 rows were tested, got 2 scores"):
        overlap.clean_mean([1, 1])
    with pytest.raises(DataError, match="found for 3 rows, the dataset has 1"):
        take_clean_rows(test.select([0]), overlap)


def test_all_splits_and_probes_are_compared_in_one_call():
    splits = {
        "train": Dataset.from_dict({"text": ["a", "b", "c"]}),
        "validation": Dataset.from_dict({"text": ["b", "x"]}),
        "test": Dataset.from_dict({"text": ["c", "x"]}),
        "control": Dataset.from_dict({"text": []}),
    }
    overlaps = compare_splits(splits, {"piqa": ["z", "a"]})
    assert [(o.train_name, o.test_name, o.rows) for o in overlaps] == [
        ("train", "validation", (0,)),
        ("train", "test", (0,)),
        ("validation", "test", (1,)),
        ("train", "piqa", (1,)),
    ]


def test_what_cannot_be_compared_is_refused_in_words():
    with pytest.raises(DataError, match=r"no overlap of kind 'exakt'. Did you mean 'exact'"):
        find_overlap(["a"], ["b"], kinds=["exakt"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="a sequence of texts, got one text"):
        find_overlap("a", ["b"])
    with pytest.raises(DataError, match="expected a column messages, text or image, got price"):
        find_overlap(Dataset.from_dict({"price": [1]}), ["b"])
