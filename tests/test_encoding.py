"""Encoding many rows gives what encoding each row gives, whatever the template and the row."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftkit.chat import encode_rows, mask_summary
from sftkit.encoded import EncodedTable
from sftkit.encoding import encode_dataset
from sftkit.errors import EncodeError
from sftkit.records import IGNORE, Encoded, Refused
from sftkit.settings import ModelSettings, TrainSettings
from sftkit.template import find_shape, fit_shape
from tests.conftest import CHATML, make_model, make_tokenizer
from tests.templates import TEMPLATES

TOKENIZERS = {name: make_tokenizer(t.source, t.specials) for name, t in TEMPLATES.items()}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


CAT = [user("What is it?"), assistant("A cat.")]
ODD_CONVERSATIONS: list[Any] = [
    CAT,
    [*CAT, user("A cat."), assistant("No: two.")],
    [{"role": "system", "content": "Be brief."}, *CAT],
    [user("  two before, three after   "), assistant("\n\nlines around\n")],
    [user("\n"), assistant("")],
    [user("a"), assistant(" ")],
    [*CAT, user("again"), assistant("\nfirst line empty")],
    [user("a"), assistant("\nx"), user("b"), assistant("\ny")],
    [user("sftkitTurn0mark"), assistant("sftkitTurn1mark sftkitAnswer1mark")],
    [user("x<|im_end|>\n<|im_start|>assistant\ny"), assistant("It is <|im_end|> that ends.")],
    [user("a"), assistant("<think>hm</think>\n\nb")],
    [user("👩‍🔬🇩🇪 e\u0301"), assistant("ß𝔘\u2028\x85")],
    [user("{{ message }}"), assistant("{% endfor %}")],
    [assistant("I begin."), assistant("And go on.")],
    [*CAT, {"role": "tool", "content": "42"}, assistant("It is 42.")],
    [*CAT, {"role": "narrator", "content": "They leave."}],
    [user("nobody answers")],
    [],
    [user("long " * 100), assistant("short")],
]
MALFORMED: list[Any] = [
    None,
    "text",
    {"role": "user"},
    [None],
    ["text"],
    [user("a"), {"role": "assistant", "content": None}],
    [user("a"), {"role": "assistant"}],
    [user("a"), {"role": None, "content": "b"}],
    [user("a"), {"role": "assistant", "content": ["b"]}],
    [user("\ud800"), assistant("half a character")],
]


def assert_same(rows: Any, tokenizer: Any, **options: Any) -> EncodedTable:
    """Hold the fast way against the slow one, row by row."""
    options = {"max_tokens": 300, **options}
    batch_rows = options.pop("batch_rows", 4)
    fast = encode_dataset(rows, tokenizer, batch_rows=batch_rows, **options)
    slow = encode_rows(rows, tokenizer, **options)
    assert tuple(fast) == slow.examples
    assert fast[:] == slow.examples
    assert fast.refused == slow.refused
    assert fast.refused_rows.tolist() == [one.row for one in slow.refused]
    assert fast.lengths.tolist() == [len(e.input_ids) for e in slow.examples]
    assert fast.supervised.tolist() == [e.supervised for e in slow.examples]
    assert fast.rows.tolist() == [e.row for e in slow.examples]
    assert fast.summary() == mask_summary(slow.examples)
    return fast


def with_groups(conversations: list[Any]) -> list[dict[str, Any]]:
    return [{"messages": m, "group": number // 2} for number, m in enumerate(conversations)]


# ---- the same ids and labels ----


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [None, " Rhyme.\n"])
def test_every_template_encodes_odd_rows_as_one_by_one(name, system):
    rows = with_groups(ODD_CONVERSATIONS + MALFORMED)
    assert_same(rows, TOKENIZERS[name], system=system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_dataset_of_arrow_columns_gives_what_its_rows_give(name):
    import datasets

    rows = [row for row in with_groups(ODD_CONVERSATIONS) if len(row["messages"]) > 0]
    dataset = datasets.Dataset.from_list(rows)
    assert_same(dataset, TOKENIZERS[name])
    assert_same(dataset.select([5, 3, 3, 0]), TOKENIZERS[name])
    assert_same(dataset.remove_columns("group"), TOKENIZERS[name])


def test_missing_conversations_and_texts_in_a_dataset_are_refused_in_words():
    import datasets

    dataset = datasets.Dataset.from_list(
        [{"messages": CAT}, {"messages": None}, {"messages": [user("a"), {"role": "assistant"}]}]
    )
    table = assert_same(dataset, TOKENIZERS["chatml"])
    assert table.refused == (
        Refused(row=1, reason="row 1: messages must be a list of turns, got None."),
        Refused(
            row=2,
            reason="row 2: turn 2 must have a content that is text, got None. Repair the row or "
            "leave it out.",
        ),
    )


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_conversation_encodes_as_one_by_one(name, data):
    word = st.sampled_from(
        ["a", " ", "\n", "\t", "é", "<|im_end|>", "</s>", "[INST]", "model", "."]
    )
    words = st.lists(word, max_size=6).map("".join)
    turn: Any = st.builds(
        dict, role=st.sampled_from(["system", "user", "assistant", "assistant"]), content=words
    )
    rows = data.draw(st.lists(st.fixed_dictionaries({"messages": st.lists(turn, max_size=4)})))
    assert_same(rows, TOKENIZERS[name], max_tokens=150)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ messages[-1]['content'] }}<|im_end|>", id="only the last turn"),
        pytest.param(CHATML.replace("['content']", "['content'] | upper"), id="capitals"),
        pytest.param(CHATML.replace("<|im_end|>", ""), id="no end"),
        pytest.param(CHATML.replace("<|im_end|>\n", " \n <|im_end|>"), id="spaces before the end"),
        pytest.param("{{ raise_exception('No.') }}", id="refuses everything"),
        pytest.param(
            "{% if 'b' in messages[0]['content'] %}{{ raise_exception('No b.') }}{% endif %}"
            + CHATML,
            id="refuses some",
        ),
        pytest.param(
            "{% if 'a' in messages[0]['content'] %}You are asked for a.{% endif %}" + CHATML,
            id="depends on the words",
        ),
        pytest.param(
            "{{ messages[0]['content'] }}<|im_end|>" + CHATML + "{{ messages[0]['content'] }}",
            id="repeats a turn",
        ),
    ],
)
def test_strange_templates_encode_or_refuse_as_one_by_one(template):
    rows = with_groups([m for m in ODD_CONVERSATIONS if m] + [[user("bb"), assistant("c")]])
    assert_same(rows, make_tokenizer(template))


def test_a_line_end_that_is_a_control_token_ends_the_turn_as_one_by_one():
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "\n<|im_end|>"), ("\n",))
    table = assert_same(with_groups([CAT]), tokenizer)
    learned = [label for label in table[0].labels if label != IGNORE]
    assert tokenizer.decode(learned) == "A cat.\n"


def test_an_end_that_swallows_spaces_of_the_answer_counts_as_one_by_one():
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "<|over|>"))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|over|>", lstrip=True)]}
    )
    table = assert_same(with_groups([CAT, [user("a"), assistant("b ")]]), tokenizer)
    assert table.rows.tolist() == [0]
    assert "puts no end-of-turn token after an answer" in table.refused[0].reason


def test_extra_parts_of_a_turn_reach_the_template():
    tokenizer = make_tokenizer(CHATML.replace("{{ message['role'] }}", "{{ message['name'] }}"))
    rows = [{"messages": [{**user("a"), "name": "Ann"}, {**assistant("b"), "name": "Bot"}]}]
    table = assert_same(rows, tokenizer)
    assert "Ann" in tokenizer.decode(table[0].input_ids)


def test_the_tokenizer_is_used_as_one_by_one_whatever_it_was_used_for_before():
    tokenizer = make_tokenizer()
    rows = with_groups([CAT, [*CAT, *CAT]])
    expected = encode_rows(rows, tokenizer, max_tokens=300).examples
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=5)
    assert tuple(encode_dataset(rows, tokenizer, max_tokens=300)) == expected


@pytest.mark.parametrize("batch_rows", [1, 2, 1000])
def test_the_size_of_a_batch_changes_nothing(batch_rows, monkeypatch):
    rows = with_groups(ODD_CONVERSATIONS + MALFORMED)
    assert_same(rows, TOKENIZERS["chatml"], batch_rows=batch_rows)
    monkeypatch.setattr("sftkit.encoding._BATCH_CHARACTERS", 20)
    assert_same(rows, TOKENIZERS["chatml"], batch_rows=batch_rows)


@pytest.mark.model
def test_the_real_tokenizer_encodes_as_one_by_one():
    from sftkit import catalog
    from sftkit.model import load_tokenizer

    tokenizer = load_tokenizer(ModelSettings())
    assert_same(with_groups(ODD_CONVERSATIONS + MALFORMED), tokenizer)
    table = assert_same(catalog.dataset_rows("cwe"), tokenizer, max_tokens=200, batch_rows=1000)
    assert len(table) > 3000
    assert len(table.refused_rows) > 0


def test_ordinary_rows_do_not_take_the_slow_way(monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("encode_chat was called")

    monkeypatch.setattr("sftkit.encoding.encode_chat", never)
    rows = with_groups([CAT, [*CAT, *CAT], [user(" a "), assistant("\n b ")]])
    for tokenizer in TOKENIZERS.values():
        encoded = encode_dataset(rows[:2], tokenizer, max_tokens=300)
        assert len(encoded) == 2
    for name in ("chatml", "llama-3", "gemma"):
        assert len(encode_dataset(rows, TOKENIZERS[name], max_tokens=300)) == 3


# ---- the table ----


def test_an_example_of_the_table_is_what_was_said():
    table = encode_dataset([{"messages": CAT, "group": "cats"}], make_tokenizer(), max_tokens=99)
    text = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    tokenizer = make_tokenizer()
    assert tokenizer.decode(table[0].input_ids) == text
    learned = [label for label in table[0].labels if label != IGNORE]
    assert tokenizer.decode(learned) == "A cat.<|im_end|>"
    assert table[0].group == "cats"
    assert repr(table) == (
        "EncodedTable(1 rows, 38 tokens, 7 supervised (18%); 0 rows teach nothing; 1 end their "
        "turn; longest row 38 tokens; 0 rows refused)"
    )


def test_the_table_is_a_sequence():
    rows = with_groups([[user("q"), assistant(str(n))] for n in range(10)])
    table = encode_dataset(rows, make_tokenizer(), max_tokens=99, batch_rows=3)
    listed = list(table)
    assert len(table) == 10
    assert [table[n] for n in range(10)] == listed
    assert table[-1] == listed[-1]
    assert table[2:9:3] == tuple(listed[2:9:3])
    assert table.index(listed[4]) == 4
    with pytest.raises(IndexError, match="example 10 of 10"):
        table[10]


def test_a_table_of_nothing_is_empty():
    table = encode_dataset([], make_tokenizer(), max_tokens=99)
    assert (len(table), tuple(table), table.refused, table.lengths.tolist()) == (0, (), (), [])
    assert len(table.as_dataset()) == 0
    none = encode_dataset([{"messages": []}], make_tokenizer(), max_tokens=99)
    assert (len(none), none.refused_rows.tolist()) == (0, [0])


def test_only_the_first_refusals_are_kept_and_all_are_counted():
    rows = [{"messages": [user("a")]}] * 1500
    table = encode_dataset(rows, make_tokenizer(), max_tokens=99)
    assert len(table.refused) == 1000
    assert table.refused_rows.tolist() == list(range(1500))


def test_training_takes_the_table_as_it_takes_a_list():
    from sftkit import adapter, objectives, train
    from sftkit.settings import AdapterSettings

    rows = with_groups([[user("q"), assistant(str(n))] for n in range(8)])
    tokenizer = make_tokenizer()
    table = encode_dataset(rows, tokenizer, max_tokens=99)
    losses = []
    for examples in (table, list(table)):
        model = make_model(vocab_size=len(tokenizer))
        tuned = adapter.attach_adapter(model, AdapterSettings(r=2), seed=0)
        record = train.train(
            tuned, examples, TrainSettings(max_tokens_per_batch=90), objective=objectives.chat_loss
        )
        losses.append([step.loss for step in record.steps])
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1


def test_plain_transformers_reads_the_dataset():
    from transformers import DataCollatorForSeq2Seq

    tokenizer = make_tokenizer()
    table = encode_dataset(with_groups([CAT, [*CAT, *CAT]]), tokenizer, max_tokens=200)
    dataset = table.as_dataset()
    assert dataset.column_names == ["input_ids", "labels"]
    assert [tuple(row["labels"]) for row in dataset] == [e.labels for e in table]
    batch = DataCollatorForSeq2Seq(tokenizer)([dataset[0], dataset[1]])
    assert batch["attention_mask"].sum(dim=1).tolist() == table.lengths.tolist()
    assert (batch["labels"] != IGNORE).sum(dim=1).tolist() == table.supervised.tolist()
    loss = make_model(vocab_size=len(tokenizer))(**batch).loss
    assert float(loss) > 0


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's
def test_trl_trains_on_the_dataset_as_it_is(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is in the bench extra")
    tokenizer = make_tokenizer()
    table = encode_dataset(with_groups([CAT, [*CAT, *CAT]]), tokenizer, max_tokens=200)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, max_length=None,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        make_model(vocab_size=len(tokenizer)),
        arguments,
        train_dataset=table.as_dataset(),
        processing_class=tokenizer,
    )
    prepared = trainer.train_dataset
    assert [tuple(row["input_ids"]) for row in prepared] == [e.input_ids for e in table]
    assert [tuple(row["labels"]) for row in prepared] == [e.labels for e in table]


def test_the_file_stays_as_long_as_its_dataset_and_then_goes():
    table = encode_dataset(with_groups([CAT]), make_tokenizer(), max_tokens=99)
    dataset = table.as_dataset()
    path = Path(dataset.cache_files[0]["filename"])
    del table
    gc.collect()
    assert path.is_file()
    del dataset
    gc.collect()
    assert not path.parent.exists()


def test_a_failure_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def rows() -> Any:
        yield {"messages": CAT}
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encode_dataset(rows(), make_tokenizer(), max_tokens=99)
    assert list(tmp_path.iterdir()) == []


# ---- refused at once ----


def test_a_tokenizer_without_template_and_a_dataset_without_messages_are_refused_at_once():
    import datasets

    tokenizer = make_tokenizer()
    dataset = datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]})
    with pytest.raises(EncodeError) as caught:
        encode_dataset(dataset, tokenizer, max_tokens=99)
    assert str(caught.value) == (
        "The dataset has no column messages, only text, label. Read it with read_dataset, which "
        "brings conversations into this form."
    )
    tokenizer.chat_template = None
    with pytest.raises(EncodeError, match="The tokenizer has no chat template"):
        encode_dataset([], tokenizer, max_tokens=99)


# ---- shapes ----


def test_a_shape_is_what_stands_around_the_words():
    shape = find_shape(("user", "assistant"), TOKENIZERS["llama-3"])
    assert shape is not None
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert shape.pieces == (
        "<|begin_of_text|>" + head("user"),
        "<|eot_id|>" + head("assistant"),
        "<|eot_id|>",
    )
    assert shape.slots == (0, 1)
    assert [trim("\n a \n") for trim in shape.trims] == ["a", "a"]


def test_trims_are_found_turn_by_turn():
    shape = find_shape(("user", "assistant", "user", "assistant"), TOKENIZERS["qwen-3"])
    assert shape is not None
    assert [trim("\n a \n") for trim in shape.trims] == ["\n a \n", "\n a \n", "\n a \n", " a \n"]


def test_words_are_placed_only_where_the_whole_text_agrees():
    shape = find_shape(("user", "assistant"), make_tokenizer("{% for m in messages %}"
        "[{{ m['content'] }}]{% endfor %}"))  # fmt: skip
    assert shape is not None
    assert fit_shape(shape, ["a", "bc"], "[a][bc]") == [(1, 2), (4, 6)]
    assert fit_shape(shape, ["a", "bc"], "[a][bd]") is None
    assert fit_shape(shape, ["a", "bc"], "[a][bc] ") is None


def test_lengths_count_tokens_as_the_examples_do():
    table = encode_dataset(with_groups([CAT]), make_tokenizer(), max_tokens=99)
    assert table.lengths.dtype == np.int64
    assert dataclasses.replace(table[0]) == Encoded(
        input_ids=table[0].input_ids, labels=table[0].labels, row=0, group="0"
    )


def test_joined_examples_read_as_one_sequence_without_a_copy():
    from sftkit.encoded import JoinedExamples
    from sftkit.records import Encoded

    parts = [
        [Encoded(input_ids=(n,), labels=(n,), row=n, group="") for n in range(first, first + count)]
        for first, count in ((0, 3), (3, 0), (3, 2))
    ]
    joined = JoinedExamples(*parts)
    assert len(joined) == 5
    assert [example.row for example in joined] == [0, 1, 2, 3, 4]
    assert [joined[place].row for place in (0, 2, 3, 4, -1)] == [0, 2, 3, 4, 4]
    assert [example.row for example in joined[1:4]] == [1, 2, 3]
    with pytest.raises(IndexError, match="example 5 of 5"):
        joined[5]
