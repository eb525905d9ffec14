"""Augmenting: noise, phrasings, the base model's own answers; marked, and never tested on."""

import json
import re

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit import catalog
from sftkit.dataset.augment import (
    add_noisy_rows,
    add_phrasings,
    change_case,
    confuse_characters,
    generate_replay,
    load_table,
    mirror_table,
)
from sftkit.dataset.balance import mix_replay
from sftkit.dataset.split import split_dataset
from sftkit.errors import DataError
from sftkit.settings import DataSettings

KEYS = {"a": ("q", "s", "1"), "e": ("w", "r"), "o": ("0", "p"), "1": ("2",), "/": ("-",)}
ALL_KEYS = {chr(c): ("#", "7", "x") for c in range(33, 127)}  # everything may go wrong


def make_rows(questions, **columns):
    """One conversation for each question, with a system prompt that no noise may touch."""
    turns = [
        [
            {"role": "system", "content": "be a aeo"},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "aeo"},
            {"role": "user", "content": "a?"},
            {"role": "assistant", "content": "oea"},
        ]
        for question in questions
    ]
    ids = [f"r{number}" for number in range(len(turns))]
    groups = [f"g{number}" for number in range(len(turns))]
    return datasets.Dataset.from_dict(
        {"id": ids, "messages": turns, "group": groups, "split": ["train"] * len(turns), **columns}
    )


def shout(text, seed):
    return text.upper()


# ---- noise in a text ----


def test_a_table_says_what_a_character_may_become():
    assert confuse_characters("ae", {"a": ("q",), "e": ("w",)}, rate=1, seed=0) == "qw"
    assert confuse_characters("AEI", {"a": ("q",), "e": ("w",)}, rate=1, seed=0) == "QWI"
    assert confuse_characters("ae", KEYS, rate=0, seed=0) == "ae"


def test_the_rate_is_the_share_of_the_characters_the_table_knows():
    changed = confuse_characters("a" * 10_000 + "z" * 10_000, KEYS, rate=0.1, seed=0)
    assert changed[10_000:] == "z" * 10_000
    assert changed[:10_000].count("a") == pytest.approx(9000, abs=90)  # 3 standard deviations


def test_the_same_seed_makes_the_same_errors():
    text = "a tale of one area over the ocean"
    one, same, other = (confuse_characters(text, KEYS, rate=0.5, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    "kept",
    [
        "<|im_start|>",
        "<|reserved_special_token_12|>",
        "[INST]",
        "</s>",
        "<start_of_turn>",
        "https://example.org/a?e=o#a",
        "www.example.org",
        "anna.o@example.org",
    ],
)
def test_control_tokens_links_and_addresses_stay_whole(kept):
    text = f"area {kept} area"
    for changed in (
        confuse_characters(text, ALL_KEYS, rate=1, seed=0, keep_numbers=False),
        change_case(text, rate=1, seed=0),
    ):
        before, inside, after = changed.partition(kept)
        assert inside == kept
        assert (before, after) != ("area ", " area")


def test_the_tokenizers_own_control_tokens_stay_whole_too():
    made = confuse_characters("a §end§ a", ALL_KEYS, rate=1, seed=0, control_tokens=["§e", "§end§"])
    assert made[1:-1] == " §end§ "


@given(text=st.text("ab01.,:/-% ", max_size=40), seed=st.integers(0, 20))
def test_numbers_are_neither_changed_nor_made(text, seed):
    changed = confuse_characters(text, ALL_KEYS, rate=0.7, seed=seed)
    assert re.findall(r"\d+", changed) == re.findall(r"\d+", text)


def test_numbers_are_changed_where_that_is_asked():
    assert confuse_characters("1", KEYS, rate=1, seed=0) == "1"
    assert confuse_characters("1", KEYS, rate=1, seed=0, keep_numbers=False) == "2"


@given(text=st.text(max_size=40), seed=st.integers(0, 20), rate=st.floats(0, 1))
def test_only_the_case_changes_where_the_case_changes(text, seed, rate):
    changed = change_case(text, rate=rate, seed=seed)
    assert len(changed) == len(text)
    pairs = zip(text, changed, strict=True)
    assert all(b in (a, a.swapcase()) for a, b in pairs)
    if rate == 1:
        assert change_case(changed, rate=1, seed=seed) == text


def test_case_noise_by_eye():
    assert change_case("Straße 7 µm", rate=1, seed=0) == "sTRAßE 7 µM"


@pytest.mark.parametrize("noise", [change_case, lambda t, **k: confuse_characters(t, KEYS, **k)])
def test_a_rate_out_of_range_is_refused(noise):
    with pytest.raises(DataError, match=r"rate must be in \[0, 1\], got 1\.5"):
        noise("a", rate=1.5, seed=0)


# ---- tables ----


def test_a_table_is_read_from_its_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"a": ["q", " s"], "%": "$"}), encoding="utf-8")
    assert load_table(path) == {"a": ("q", "s"), "%": ("$",)}
    assert mirror_table({"0": ("O", "D"), "D": ("0",)}) == {
        "0": ("O", "D"),
        "D": ("0",),
        "O": ("0",),
    }


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"ab": ["c"]}', '{"a": [1]}', '{"a": 1}', "{", "\xff"]
)
def test_a_file_that_is_no_table_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "keys.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"The table .*keys\.json (must map|cannot be read)"):
        load_table(path)


# ---- rows ----


def test_a_made_row_differs_in_what_the_user_says_and_nowhere_else():
    train = make_rows(["ae", "oo"], kind=["x", "y"])
    more = add_noisy_rows(train, shout, method="case", share=1)
    assert more.select(range(2)).remove_columns("augmented")[:] == train[:]
    assert more[3] == {
        "id": "r1~case",
        "messages": [
            {"role": "system", "content": "be a aeo"},
            {"role": "user", "content": "OO"},
            {"role": "assistant", "content": "aeo"},
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "oea"},
        ],
        "group": "g1",
        "split": "train",
        "kind": "y",
        "augmented": "case of r1",
    }
    assert list(more["augmented"]) == ["", "", "case of r0", "case of r1"]


def test_texts_with_a_label_are_augmented_and_keep_it():
    train = datasets.Dataset.from_dict(
        {"id": ["1"], "text": ["good"], "label": ["+"], "group": ["g"]}
    )
    more = add_noisy_rows(train, shout, method="case", share=1)
    assert more[1] == {
        "id": "1~case",
        "text": "GOOD",
        "label": "+",
        "group": "g",
        "augmented": "case of 1",
    }


def test_the_share_is_the_share_of_rows_that_get_a_copy():
    train = make_rows([f"question {number}" for number in range(400)])
    more = add_noisy_rows(train, shout, method="case", share=0.25)
    assert len(more) - 400 == pytest.approx(100, abs=26)  # 3 standard deviations
    assert list(add_noisy_rows(train, shout, method="case", share=0.25)["id"]) == list(more["id"])
    other = add_noisy_rows(train, shout, method="case", share=0.25, seed=1)
    assert list(other["id"]) != list(more["id"])
    with pytest.raises(DataError, match=r"share must be in \[0, 1\], got 2"):
        add_noisy_rows(train, shout, method="case", share=2)


def test_each_text_gets_a_seed_of_its_own():
    train = make_rows(["same", "same"])
    more = add_noisy_rows(train, lambda text, seed: f"{text} {seed}", method="x", share=1)
    made = [row["messages"][1]["content"] for row in more.select(range(2, 4))]
    assert made[0] != made[1]


def test_what_was_made_or_repeated_or_not_changed_gets_no_copy():
    train = make_rows(["AE", "b", "c"], repeated=[False, False, True])
    train = train.map(lambda row: {"messages": row["messages"][1:3]})
    once = add_noisy_rows(train, shout, method="case", share=1)
    assert list(once["id"]) == ["r0", "r1", "r2", "r1~case"]
    twice = add_noisy_rows(once, lambda text, seed: text + "!", method="mark", share=1)
    assert list(twice["augmented"]) == ["", "", "", "case of r1", "mark of r0", "mark of r1"]


def test_phrasings_wrap_the_first_question():
    templates = ["Say: {question}", "{question} Please.", "Hm. {question}"]
    more = add_phrasings(make_rows(["Why {so}?"]), templates, per_row=2)
    asked = [row["messages"][1]["content"] for row in more]
    assert asked[0] == "Why {so}?"
    assert len(set(asked)) == 3
    assert set(asked[1:]) <= {t.replace("{question}", "Why {so}?") for t in templates}
    assert [row["messages"][3]["content"] for row in more] == ["a?", "a?", "a?"]
    assert list(more["augmented"]) == ["", "template of r0", "template of r0"]
    assert list(more["id"]) == ["r0", "r0~template-1", "r0~template-2"]


@pytest.mark.parametrize(
    ("templates", "per_row", "words"),
    [
        (["Say it."], 1, r"needs \{question\} in it exactly once, got 'Say it\.'"),
        (["{question} {question}"], 1, "exactly once"),
        (["a {question}", "a {question}"], 2, "per_row=2 needs as many different templates, got 1"),
        ([], 1, "per_row=1 needs as many different templates, got 0"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(templates, per_row, words):
    with pytest.raises(DataError, match=words):
        add_phrasings(make_rows(["a"]), templates, per_row=per_row)


# ---- out of every test ----


@given(seed=st.integers(0, 20))
def test_no_augmented_row_reaches_validation_or_test(seed):
    rows = make_rows([f"question {number}" for number in range(60)]).remove_columns("split")
    asked = DataSettings(source="x", seed=seed, validation_fraction=0.2, test_fraction=0.2)
    splits = split_dataset(rows, asked)

    more = add_noisy_rows(splits.train, shout, method="case", share=1)

    assert len(more) == 2 * len(splits.train)
    assert set(more["split"]) == {"train"}
    for held_out in (splits.validation, splits.test):
        assert not set(more["group"]) & set(held_out["group"])
        with pytest.raises(DataError, match=r"rows do not train.*give splits\.train"):
            add_noisy_rows(held_out, shout, method="case", share=1)
    # And whoever augments first cannot divide afterwards.
    with pytest.raises(DataError, match="augmented rows would stand in validation or test"):
        split_dataset(add_noisy_rows(rows, shout, method="case", share=1), asked)


# ---- answers of the base model ----


def test_the_base_model_answers_what_will_be_replayed():
    def generate(prompts):
        assert prompts == ["Hi?", "Why?", "How?"]  # each once, none empty
        return ["Hello.", None, "  "]

    replay = generate_replay(["Hi?", "Why?", "Hi?", " ", "How?"], generate)
    assert replay[:] == {
        "id": ["generated-1"],
        "messages": [
            [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
        ],
        "group": ["generated-1"],
        "place": ["prompt 1"],
        "augmented": ["generated"],
    }
    mixed = mix_replay(make_rows(["a"]), replay, 0.5, seed=0)
    assert list(mixed["group"]) == ["g0", "replay:generated-1"]
    assert list(mixed["split"]) == ["train", "train"]


def test_a_real_model_can_be_the_one_that_answers(tiny_model, tiny_tokenizer):
    from sftkit.evidence.generation import generate_answers

    def generate(prompts):
        ids = [tiny_tokenizer(prompt)["input_ids"] for prompt in prompts]
        return generate_answers(tiny_model, tiny_tokenizer, ids, max_new_tokens=6)

    replay = generate_replay(["What is rain?", "What is snow?"], generate)
    assert [row["messages"][0]["content"] for row in replay] == ["What is rain?", "What is snow?"]
    # A tied model of random weights repeats the last character.
    assert [row["messages"][1]["content"] for row in replay] == ["??????", "??????"]


@pytest.mark.parametrize(
    ("prompts", "answers", "words"),
    [
        ([" "], [], "There are no prompts"),
        (["a", "b"], ["x"], "gave 1 answers to 2 prompts"),
        (["a", "b"], [None, ""], "None of 2 prompts was answered to the end"),
    ],
)
def test_replay_that_cannot_be_made_is_refused(prompts, answers, words):
    with pytest.raises(DataError, match=words):
        generate_replay(prompts, lambda asked: answers)


@pytest.mark.model
def test_the_tables_of_the_catalog_can_be_read():
    folder = catalog.fetch("typo-tables")
    tables = {path: load_table(path) for path in folder.rglob("*.json")}
    keys = next(
        table for path, table in tables.items() if path.parts[-2:] == ("keyboard", "en.json")
    )
    assert "s" in keys["a"]
    typed = confuse_characters("the weather is fine", keys, rate=0.5, seed=0)
    assert typed != "the weather is fine"
    assert len(typed) == len("the weather is fine")
