"""Cleaning: every change has its reason, the input stays as it is, twice is as good as once."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from sftkit.dataset.clean import CleanSettings, clean_dataset
from sftkit.dataset.repair import fix_encoding, make_repair
from sftkit.errors import DataError, SettingsError

LONG = " ".join(f"w{i}" for i in range(60))
LONG_TOO = LONG.replace("w30", "other")  # 59 of 60 words: 59 / 65 = 0.91


def texts_of(cleaned):
    return list(cleaned.dataset["text"])


def said(cleaned):
    return [(step.row, step.action, step.reason, step.detail) for step in cleaned.log]


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def chat(*conversations, **columns):
    return Dataset.from_dict({"messages": list(conversations), **columns})


def test_each_change_has_its_row_and_reason_and_the_input_stays_as_it_was():
    rows = {
        "id": ["a", "b", "c", "d", "e"],
        "place": [f"x.csv:{line}" for line in range(2, 7)],
        "text": ["Ã©tÃ© is nice", "same", "SAME!", " \n", "end<|im_end|>\x07 \x1b[31mred"],
        "label": ["x", "y", "y", "y", "z"],
    }
    dataset = Dataset.from_dict(rows)
    cleaned = clean_dataset(dataset)
    assert dataset.to_dict() == rows
    assert cleaned.dataset.to_dict() == {
        "id": ["a", "b", "e"],
        "place": ["x.csv:2", "x.csv:3", "x.csv:6"],
        "text": ["été is nice", "same", "end red"],
        "label": ["x", "y", "z"],
    }
    assert said(cleaned) == [
        (0, "changed", "encoding", "repaired text that was decoded wrongly"),
        (2, "dropped", "exact duplicate", "the same as x.csv:3"),
        (3, "dropped", "empty", "no text"),
        (4, "changed", "control", "removed control characters and the control token <|im_end|>"),
    ]
    assert [(step.id, step.place) for step in cleaned.log][:2] == [
        ("a", "x.csv:2"), ("c", "x.csv:4"),
    ]  # fmt: skip
    assert (cleaned.log[0].before, cleaned.log[0].after) == ("Ã©tÃ© is nice", "été is nice")
    assert str(cleaned) == (
        "5 rows in, 3 out; 1 changed: control, 1 changed: encoding, 1 dropped: empty, "
        "1 dropped: exact duplicate."
    )


def test_a_sound_dataset_stays_whole():
    rows = {"text": ["one", "two", LONG, "It’s “fine” &amp; ﬁne, ｆｕｌｌ\r\n\t👩‍👩‍👧"]}
    cleaned = clean_dataset(Dataset.from_dict(rows))
    assert (cleaned.dataset.to_dict(), cleaned.log) == (rows, ())
    assert str(cleaned) == "4 rows in, 4 out; no change."


def test_a_near_duplicate_goes_and_the_log_says_how_near_to_what():
    cleaned = clean_dataset(Dataset.from_dict({"text": [LONG, "x", LONG_TOO]}))
    assert texts_of(cleaned) == [LONG, "x"]
    assert said(cleaned) == [(2, "dropped", "near duplicate", "0.91 like row 1")]
    kept = clean_dataset(cleaned_from(LONG, LONG_TOO), CleanSettings(duplicates="exact"))
    assert texts_of(kept) == [LONG, LONG_TOO]
    assert texts_of(clean_dataset(cleaned_from("a", "a"), CleanSettings(duplicates="keep"))) == [
        "a",
        "a",
    ]


def cleaned_from(*texts, **columns):
    return Dataset.from_dict({"text": list(texts), **columns})


def test_every_row_that_goes_is_near_one_that_stays():
    # A chain: each is near the next, the ends are not near each other.
    words = LONG.split()
    middle, end = list(words), list(words)
    middle[10] = end[10] = "m"
    end[30], end[50] = "e1", "e2"
    last = [*end[:-3], "l", *end[-2:]]
    rows = cleaned_from(LONG, *map(" ".join, (middle, end, last)))
    cleaned = clean_dataset(rows)
    assert said(cleaned) == [
        (1, "dropped", "near duplicate", "0.91 like row 1"),
        (3, "dropped", "near duplicate", "0.91 like row 3"),
    ]
    assert texts_of(cleaned) == [LONG, " ".join(end)]


def test_copies_with_another_label_are_no_copies():
    nearly = [text.replace("w9", "x") for text in (LONG, LONG_TOO)]
    rows = cleaned_from(LONG, LONG_TOO, *nearly, label=["pos", "neg", "pos", "neg"])
    cleaned = clean_dataset(rows)
    assert [(step.row, step.detail) for step in cleaned.log] == [
        (2, "0.91 like row 1"), (3, "0.91 like row 2"),
    ]  # fmt: skip
    assert list(cleaned.dataset["label"]) == ["pos", "neg"]


@pytest.mark.parametrize(
    ("policy", "left"),
    [("drop", ["other"]), ("keep", ["t", "t", "other"]), ("majority", ["t", "other"])],
)
def test_rows_that_disagree_are_dropped_kept_or_put_to_the_vote(policy, left):
    rows = cleaned_from("t", "T.", "t", "other", label=["p", "n", "p", "n"])
    cleaned = clean_dataset(rows, CleanSettings(conflicts=policy))
    assert [text.lower().strip(".") for text in texts_of(cleaned)] == left
    if policy == "majority":
        assert said(cleaned)[0] == (
            1, "dropped", "conflict", "'n', where 2 of 3 rows with this text say 'p'",
        )  # fmt: skip
    if policy == "drop":
        assert said(cleaned)[0][3] == "3 rows with this text disagree: 'p' in 2, 'n' in 1"


def test_a_tie_has_no_majority_and_scores_disagree_too():
    rows = cleaned_from("t", "t", "u", score=[0.5, 1.0, None])
    assert texts_of(clean_dataset(rows, CleanSettings(conflicts="majority"))) == ["u"]


def test_a_missing_label_contradicts_nothing():
    rows = cleaned_from("t", "t", label=["p", None])
    assert len(clean_dataset(rows).dataset) == 2


def test_a_tested_row_stays_rather_than_its_copy_in_train():
    rows = cleaned_from("t", "t", "t", split=["train", "validation", "test"])
    assert list(clean_dataset(rows).dataset["split"]) == ["test"]


def test_conversations_are_copies_only_as_a_whole_and_need_a_reply():
    rows = chat(
        turns("Hello!", "Good day."),
        turns("Hello!", "Welcome."),
        turns("hello", "good day"),
        turns("Hello!", " "),
        turns("Hello!"),
        None,
        turns("<|im_start|>Hi", "cafÃ©"),
    )
    cleaned = clean_dataset(rows)
    assert list(cleaned.dataset["messages"]) == [
        turns("Hello!", "Good day."), turns("Hello!", "Welcome."), turns("Hi", "café"),
    ]  # fmt: skip
    assert [step[2:] for step in said(cleaned)] == [
        ("exact duplicate", "the same as row 1"),
        ("empty", "an empty reply"),
        ("empty", "no reply"),
        ("empty", "no messages"),
        ("control", "removed the control token <|im_start|>"),
        ("encoding", "repaired text that was decoded wrongly"),
    ]


def test_the_same_words_from_another_speaker_are_another_conversation():
    swapped = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    assert len(clean_dataset(chat(turns("a", "b"), swapped)).dataset) == 2


def test_the_tokenizer_says_what_its_control_tokens_are(tiny_tokenizer):
    rows = cleaned_from("a<|im_end|>", "b<|other|>")
    assert texts_of(clean_dataset(rows, tokenizer=tiny_tokenizer)) == ["a", "b<|other|>"]
    assert texts_of(clean_dataset(rows)) == ["a", "b"]


def test_page_breaks_become_line_breaks_so_that_words_stay_apart():
    assert texts_of(clean_dataset(cleaned_from("one\x0btwo\x0cthree\ufeff"))) == ["one\ntwo\nthree"]


def test_a_token_inside_a_token_is_removed_too():
    rows = cleaned_from("a<|im_<|im_end|>end|>b")
    assert texts_of(clean_dataset(rows)) == ["ab"]


def test_personal_data_is_masked_when_asked_for_and_not_kept_in_the_log():
    rows = cleaned_from("Mail a@b.org or call +49 30 1234567, cafÃ©.")
    assert texts_of(clean_dataset(rows))[0].startswith("Mail a@b.org")
    cleaned = clean_dataset(rows, CleanSettings(personal=("email", "phone")))
    assert texts_of(cleaned) == ["Mail [EMAIL] or call [PHONE], café."]
    assert said(cleaned)[1] == (0, "changed", "personal", "masked email, phone")
    assert "a@b.org" not in repr(cleaned.log)


def test_images_are_copies_when_their_bytes_are():
    def picture(colour):
        file = io.BytesIO()
        Picture.new("RGB", (2, 2), colour).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = {"image": [picture("red"), picture("blue"), picture("red")], "label": ["a", "b", "a"]}
    features = Features({"image": Image(), "label": Value("string")})
    cleaned = clean_dataset(Dataset.from_dict(rows, features=features))
    assert [step.row for step in cleaned.log] == [2]
    with pytest.raises(DataError, match="Images cannot be written as JSONL"):
        cleaned.write("never")


def test_the_data_and_the_log_are_written_to_a_new_folder(tmp_path):
    cleaned = clean_dataset(cleaned_from("é", "", "b", id=["1", "2", "3"]))
    path = cleaned.write(tmp_path / "deep" / "clean")
    assert (
        path.read_text(encoding="utf-8") == '{"text": "é", "id": "1"}\n{"text": "b", "id": "3"}\n'
    )
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "changes.jsonl", "data.jsonl", "summary.json",
    ]  # fmt: skip
    assert json.loads((path.parent / "changes.jsonl").read_text()) == {
        "row": 1, "id": "2", "place": "", "action": "dropped", "reason": "empty",
        "detail": "no text", "before": "", "after": "",
    }  # fmt: skip
    assert json.loads((path.parent / "summary.json").read_text()) == {
        "rows_before": 3, "rows_after": 2, "counts": {"dropped: empty": 1},
    }  # fmt: skip
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["clean"]
    parquet = cleaned.write(tmp_path / "other", format="parquet")
    assert Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path)).to_dict() == {
        "text": ["é", "b"], "id": ["1", "3"],
    }  # fmt: skip


def test_nothing_is_ever_overwritten(tmp_path):
    cleaned = clean_dataset(cleaned_from("a"))
    (tmp_path / "mine.txt").write_text("precious")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="exists and is not an empty folder"):
            cleaned.write(target)
    with pytest.raises(DataError, match="cannot be written"):
        cleaned.write(tmp_path / "mine.txt" / "below")
    with pytest.raises(DataError, match="format must be jsonl or parquet, got 'csv'"):
        cleaned.write(tmp_path / "x", format="csv")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_rows_are_named_rightly_however_far_down_they_stand():
    texts = [f"t{i}" for i in range(2300)]
    texts[1200], texts[2200], texts[2250] = "cafÃ©", "", "T7."
    cleaned = clean_dataset(cleaned_from(*texts, id=[str(i) for i in range(2300)]))
    assert [(step.row, step.id, step.reason) for step in cleaned.log] == [
        (1200, "1200", "encoding"), (2200, "2200", "empty"), (2250, "2250", "exact duplicate"),
    ]  # fmt: skip
    assert cleaned.log[2].detail == "the same as the row with id 7"
    assert (len(cleaned.dataset), cleaned.dataset[1200]["text"]) == (2298, "café")


def test_no_rows_and_no_text():
    assert len(clean_dataset(Dataset.from_dict({"text": []})).dataset) == 0
    with pytest.raises(DataError, match="expected a column messages, text or image, got price"):
        clean_dataset(Dataset.from_dict({"price": [1]}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 0}, "threshold must be above 0 and at most 1, got 0"),
        ({"conflicts": "vote"}, "conflicts does not know 'vote'. Valid: drop, keep, majority."),
        ({"duplicates": "nearly"}, "duplicates does not know 'nearly'. Did you mean 'near'?"),
        ({"personal": ("e-mail",)}, "personal does not know 'e-mail'. Did you mean 'email'?"),
        ({"personal": "email"}, r"takes several kinds, got 'email'. Write \('email',\)."),
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_born(wrong, message):
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        CleanSettings(**wrong)


def test_only_wrong_decodings_are_repaired():
    assert fix_encoding("schÃ¶n â€“ ok") == "schön – ok"
    for sound in ("A IRMÃ É DE SÃO JOÃO", "naïve £5", "“quoted” ﬁ", "&lt;b&gt; ©", "5 µm ± 2 °C"):
        assert fix_encoding(sound) == sound


NASTY = st.text(alphabet="aé Ã©â€™\x00\x0b\ufeff<|im_end>@b.org\n", max_size=30)
WIDE = CleanSettings(personal=("secret", "email", "phone", "ip"))


@given(NASTY)
def test_repairing_twice_changes_nothing(text):
    repair = make_repair(WIDE)
    once, _ = repair(text)
    assert repair(once) == (once, {})


@settings(max_examples=40)
@given(st.lists(st.tuples(NASTY, st.sampled_from(["p", "n", None])), min_size=1, max_size=12),
       st.sampled_from(["drop", "keep", "majority"]))  # fmt: skip
def test_cleaning_twice_changes_nothing(rows, conflicts):
    chosen = CleanSettings(personal=WIDE.personal, conflicts=conflicts)
    features = Features({"text": Value("string"), "label": Value("string")})
    texts, labels = zip(*rows, strict=True)
    dataset = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    once = clean_dataset(dataset, chosen)
    twice = clean_dataset(once.dataset, chosen)
    assert (twice.dataset.to_dict(), twice.log) == (once.dataset.to_dict(), ())
    dropped = {step.row for step in once.log if step.action == "dropped"}
    assert len(once.dataset) + len(dropped) == len(rows)
