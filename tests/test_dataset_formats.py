"""Formats: found by content, said in words, overridden on request; nothing unclear is guessed."""

import datasets
import pytest

from sftkit.dataset.files import open_table
from sftkit.dataset.formats import convert_table
from sftkit.errors import DataError

TURNS = [{"role": "user", "content": "Hours?"}, {"role": "assistant", "content": "9 to 5"}]
SENT = [{"from": "human", "value": "Hours?"}, {"from": "gpt", "value": "9 to 5"}]


def convert(rows, **options):
    converted = convert_table(open_table(rows), **options)
    return converted, list(converted.rows)


def many(count=24, **values):
    """Make rows; a value is a function of the row's number."""
    return [{name: make(n) for name, make in values.items()} for n in range(count)]


def words(n):
    return f"this is the long text of the row with number {n}"


# ---- conversations ----


@pytest.mark.parametrize(
    ("row", "seen_as"),
    [
        ({"messages": TURNS}, "messages"),
        ({"conversations": SENT}, "ShareGPT (from and value)"),
        ({"dialog": TURNS}, "messages in the column 'dialog'"),
        ({"dialog": SENT}, "ShareGPT (from and value) in the column 'dialog'"),
        ({"instruction": "Hours?", "output": "9 to 5"}, "Alpaca (instruction, input, output)"),
        ({"Prompt": "Hours?", "Completion": "9 to 5"}, "prompt and completion columns"),
        ({"prompt": "Hours?", "chosen": "9 to 5", "rejected": "x"}, "prompt and chosen columns"),
        ({"query": "Hours?", "response": "9 to 5"}, "query and response columns"),
        (
            {"conv": '[{"role": "user", "content": "Hours?"}, '
             '{"role": "assistant", "content": "9 to 5"}]'},
            "messages, written as text in the column 'conv'",
        ),
        ({"messages": str(TURNS)}, "messages, written as text in the column 'messages'"),
    ],
)  # fmt: skip
def test_a_conversation_is_found_however_it_is_written(row, seen_as):
    converted, (given,) = convert([row])
    assert (converted.task, given["messages"]) == ("chat", TURNS)
    assert converted.seen_as.split(" (not used")[0] == seen_as


def test_plain_messages_are_nothing_to_tell_and_all_else_is():
    for rows, codes in [([{"messages": TURNS}], []), ([{"dialog": SENT}], ["D22"])]:
        converted, _ = convert(rows)
        assert [finding.code for finding in converted.log.findings()] == codes


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Frage", "Antwort"),
        ("pregunta", "respuesta"),
        ("问题", "答案"),
        ("問題", "答案"),
        ("вопрос", "ответ"),
        ("customer_question", "our reply"),
    ],
)
def test_question_and_answer_are_found_by_name_in_many_languages(question, answer):
    rows = [{answer: "from nine to five", "nr": n, question: f"when, number {n}"} for n in range(9)]
    rows = [row | {"topic": "time"} for row in rows]
    converted, given = convert(rows)
    assert converted.seen_as == f"question column {question!r}, answer column {answer!r}"
    assert given[3]["messages"][0]["content"] == "when, number 3"
    assert (given[3]["nr"], given[3]["topic"]) == ("3", "time")


def test_of_two_unknown_columns_the_one_that_asks_is_the_question():
    converted, rows = convert(many(b=words, a=lambda n: f"Where is the door {n}?"))
    assert converted.seen_as == "question column 'a', answer column 'b'"
    assert rows[0]["messages"] == [
        {"role": "user", "content": "Where is the door 0?"},
        {"role": "assistant", "content": words(0)},
    ]
    (finding,) = converted.log.findings()
    assert (finding.code, finding.severity) == ("D22", "information")
    assert "say columns=" in finding.fix


def test_of_two_unknown_columns_that_do_not_ask_the_first_is_the_question():
    converted, _ = convert(many(x=words, y=lambda n: f"another long text, the {n}th"))
    assert converted.seen_as == "question column 'x', answer column 'y'"


def test_a_text_that_is_not_used_is_named():
    rows = many(question=words, context=lambda n: f"some long context {n}", answer=words)
    assert convert(rows)[0].seen_as == "question and answer columns (not used: context)"


def test_a_system_column_becomes_the_first_turn():
    system = {"role": "system", "content": "Be brief."}
    for row in ({"prompt": "Hours?", "completion": "9 to 5"}, {"conversations": SENT}):
        _, (given,) = convert([row | {"system": "Be brief."}])
        assert given["messages"] == [system, *TURNS]


def test_a_chosen_reply_that_is_a_whole_conversation_is_taken_whole():
    _, (given,) = convert([{"prompt": "Hours?", "chosen": TURNS, "rejected": TURNS[:1]}])
    assert given["messages"] == TURNS


# ---- labels and scores ----


@pytest.mark.parametrize(
    ("values", "task", "seen_as"),
    [
        ({"satz": words, "art": lambda n: "ab"[n % 2]}, "classify", "label column 'art'"),
        ({"review": words, "stars": lambda n: n % 5 + 1}, "classify", "label column 'stars'"),
        ({"review": words, "good": lambda n: n % 2 == 0}, "classify", "label column 'good'"),
        ({"text": words, "label": lambda n: f"c{n}"}, "classify", "label column 'label'"),
        ({"text": words, "label": lambda n: n % 2 / 1}, "classify", "label column 'label'"),
        ({"text": words, "label": lambda n: None}, "classify", "label column 'label'"),
        ({"text": lambda n: "same", "label": lambda n: "ab"[n % 2]}, "classify", "'label'"),
        ({"text": words, "label": lambda n: "pos"}, "classify", "label column 'label'"),
        ({"text": words, "label": lambda n: n if n % 3 else "x"}, "classify", "'label'"),
        ({"text": words, "x": lambda n: n / 7}, "regress", "score column 'x'"),
        ({"text": words, "x": lambda n: str(n * n)}, "regress", "score column 'x'"),
        ({"nr": lambda n: n, "text": words, "score": lambda n: n / 2}, "regress", "'score'"),
        ({"id": lambda n: n, "t": words, "k": lambda n: "ab"[n % 2]}, "classify", "'k'"),
    ],
)
def test_a_text_with_a_label_or_score_is_found_whatever_its_columns_are_called(
    values, task, seen_as
):
    converted, given = convert(many(**values))
    assert converted.task == task
    assert seen_as in converted.seen_as
    assert len(given) == 24
    assert {"text", "label" if task == "classify" else "score"} < set(given[0])


def test_labels_are_passed_on_as_they_were_given():
    rows = [{"text": words(n), "label": v} for n, v in enumerate([1, "1", None, float("nan"), ""])]
    assert [row["label"] for row in convert(rows)[1]] == [1, "1", None, None, ""]


def test_of_several_labels_the_first_is_taken_and_the_others_are_named():
    rows = many(text=words, topic=lambda n: "ab"[n % 2], sentiment=lambda n: "xyz"[n % 3])
    converted, given = convert(rows)
    assert converted.seen_as == "text column 'text', label column 'topic' (not used: sentiment)"
    assert given[1]["sentiment"] == "y"


def test_a_column_that_is_not_used_does_not_take_the_place_of_a_canonical_one():
    rows = many(text=words, label=lambda n: "ab"[n % 2], stars=lambda n: n % 3)
    _, given = convert(rows, columns={"label": "stars"})
    assert (given[1]["label"], given[1]["label_given"]) == (1, "b")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a": lambda n: n, "b": lambda n: n / 3}, "only numbers in the columns a, b"),
        ({"a": str, "b": lambda n: "2.5"}, "only numbers in the columns a, b"),
        ({"text": words}, "neither an answer nor a label nor a score"),
        ({"name": words, "age": lambda n: n}, "no conversation in the columns name, age"),
        (
            {"t": words, "k": lambda n: "ab"[n % 2], "l": lambda n: "xy"[n % 2]},
            "any of k, l could be the label",
        ),
        (
            {"t": words, "u": lambda n: words(-n), "k": lambda n: "ab"[n % 2]},
            "any of t, u could be the text, question or answer",
        ),
    ],
)
def test_what_is_not_plain_is_refused_with_a_remedy(values, said):
    converted, rows = convert(many(**values))
    assert rows == []
    (finding,) = converted.log.findings()
    assert (finding.code, finding.severity, finding.where) == ("D25", "error", ("row 1",))
    assert said in finding.message
    assert finding.fix.endswith(".")


def test_a_refused_table_still_tells_what_is_wrong_with_its_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3,4,5\n", encoding="utf-8")
    converted = convert_table(open_table(path))
    assert list(converted.rows) == []
    assert [finding.code for finding in converted.log.findings()] == ["D04", "D25"]


# ---- what the user says ----

PAIRS = many(a=words, b=lambda n: f"another text, number {n}", k=lambda n: "xy"[n % 2])


@pytest.mark.parametrize(
    ("options", "task", "seen_as"),
    [
        ({"columns": {"question": "b", "answer": "a"}}, "chat", "question column 'b'"),
        ({"columns": {"prompt": "b", "response": "k"}}, "chat", "answer column 'k'"),
        ({"columns": {"text": "b", "label": "k"}}, "classify", "text column 'b', label column 'k'"),
        ({"columns": {"text": "b"}}, "classify", "text column 'b', label column 'k'"),
        ({"columns": {"text": "b"}, "task": "classify"}, "classify", "label column 'k'"),
        ({"format": "question-answer"}, "chat", "question column 'a', answer column 'b'"),
        ({"task": "chat"}, "chat", "question column 'a', answer column 'b'"),
        ({"columns": {"text": "a", "score": "k"}}, "regress", "score column 'k'"),
    ],
)
def test_what_the_user_says_decides(options, task, seen_as):
    converted, rows = convert(PAIRS, **options)
    assert converted.task == task
    assert seen_as in converted.seen_as
    assert len(rows) == 24


def test_whole_numbers_are_labels_unless_scores_are_asked_for():
    rows = many(review=words, stars=lambda n: n % 5 + 1)
    assert convert(rows)[0].task == "classify"
    for options in ({"task": "regress"}, {"format": "text-score"}):
        converted, given = convert(rows, **options)
        assert (converted.task, given[1]["score"]) == ("regress", 2)


def test_id_and_group_can_be_named_alone():
    rows = [{"nr": 7, "shop": "x", "question": "a?", "answer": "b"}]
    _, (given,) = convert(rows, columns={"id": "nr", "group": "shop"})
    assert (given["id"], given["group"]) == ("7", "x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "clasify"}, "task='clasify' is no task. Did you mean 'classify'"),
        ({"format": "sharegtp"}, "format='sharegtp' is no format. Did you mean 'sharegpt'"),
        ({"columns": {"quest": "a"}}, "'quest' is no role. Did you mean 'question'"),
        ({"columns": {"question": "aa"}}, "no such column. Did you mean 'a'"),
        ({"format": "text-label", "task": "chat"}, "task='chat' does not go with format="),
        ({"columns": {"label": "k"}, "task": "chat"}, "does not go with these columns"),
        ({"format": "messages"}, "no column is plainly the messages"),
        ({"format": "image-label"}, "no column is plainly the image"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(options, said):
    with pytest.raises(DataError, match=said):
        convert(PAIRS, **options)


def test_canonical_rows_keep_their_ids_groups_splits_and_plain_columns():
    row = {"id": 3, "messages": TURNS, "group": "g", "split": "test", "deep": [1], "n": 1.5}
    _, (given,) = convert([row | {"place": "elsewhere"}])
    assert given == {
        "id": "3",
        "messages": TURNS,
        "group": "g",
        "place": "row 1",
        "split": "test",
        "n": "1.5",
    }


def test_a_dataset_that_was_read_reads_back_equal():
    from sftkit.dataset.read import read_dataset

    once = read_dataset(many(question=words, answer=words, topic=lambda n: "ab"[n % 2]))
    twice = read_dataset(once)
    assert isinstance(twice, datasets.Dataset)
    assert twice.remove_columns("place").to_list() == once.remove_columns("place").to_list()
