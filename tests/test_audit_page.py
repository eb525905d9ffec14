"""An audit as people see it: the terminal's text, the notebook's view, the browser's page."""

import json
import re
from array import array
from html.parser import HTMLParser
from typing import Any

import pytest

from sftkit.audit_page import audit_fragment, audit_html, audit_json, audit_text, headline
from sftkit.dataset.audit import audit_file, audit_rows
from sftkit.dataset.facts import AuditFacts, bin_values
from sftkit.plots_data import plot_labels, plot_lengths, plot_repeats, plot_scores

PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "</title></head><body onload=alert(1)>",
    "<!-- --><iframe src=//evil.example></iframe>",
    "\u202egnp.exe\u2066",
    "\x1b[2J\x07\x00",
    "{{ 7*7 }}{% raw %}",
    "$a_{$ \\(x\\)",
    "W" * 3000,
]
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "div", "h1", "h2", "p", "table", "thead",
    "tbody", "br", "tr", "th", "td", "span", "figure", "figcaption", "svg", "rect", "line", "text",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "scope", "viewbox", "role",
    "aria-label", "tabindex", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "fill", "stroke",
    "stroke-width", "stroke-dasharray", "opacity", "text-anchor",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects tags, attributes and texts as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def labelled(count=3, **extra):
    return [
        {"text": f"Order {n} was late again", "label": "ab"[n % 2], **extra} for n in range(count)
    ]


SINKS = {
    "text": lambda bad: [*labelled(), {"text": bad, "label": "a"}, {"text": bad, "label": "b"}],
    "label": lambda bad: (
        labelled()
        + [{"text": "Order 1 was late again", "label": bad + "2"}]
        + [{"text": f"The {n} is {bad} here", "label": bad} for n in range(6)]
    ),
    "split": lambda bad: [
        {"text": "So", "label": "a", "split": bad, "group": "1"},
        {"text": "Go", "label": "b", "split": "train", "group": "1"},
    ],
    "group": lambda bad: [
        {"text": "So", "label": "a", "split": "test", "group": bad},
        {"text": "Go", "label": "b", "split": "train", "group": bad},
    ],
    "id": lambda bad: labelled(id=bad),
    "place": lambda bad: [{"text": "", "label": "a", "place": bad}],
    "role": lambda bad: [{"messages": [{"role": bad, "content": "x"}]}],
    "score": lambda bad: [{"text": "a", "score": bad}, {"text": "b", "score": 1.0}],
}


@pytest.mark.parametrize("bad", PAYLOADS, ids=range(len(PAYLOADS)))
@pytest.mark.parametrize("sink", SINKS)
def test_no_text_of_a_stranger_becomes_markup(sink, bad):
    audit = audit_rows(SINKS[sink](bad), source=bad)
    for page in (audit_html(audit), audit_fragment(audit)):
        seen = read(page)
        assert seen.tags <= ALLOWED
        assert seen.attributes <= ATTRIBUTES
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    text = audit_text(audit)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert json.loads(audit_json(audit))["rows"] == audit.row_count


@pytest.mark.parametrize("bad", [bad for bad in PAYLOADS if "/" not in bad and "\x00" not in bad])
def test_a_hostile_file_with_hostile_columns_is_shown_as_text(bad, tmp_path):
    path = tmp_path / (bad[:60] + ".jsonl")
    rows = [{"question": f"What is {n}?", "answer": "NA", bad: 10**30} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    seen = read(audit_html(audit_file(path)))
    assert seen.tags <= ALLOWED
    assert seen.attributes <= ATTRIBUTES


def test_the_page_runs_and_loads_nothing():
    page = audit_html(audit_rows(labelled()))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert not re.search(r"<script|javascript:|src=|href=|url\(|@import", page)
    assert page.endswith("</html>\n")


def test_a_notebook_does_not_typeset_dollar_signs_in_it():
    assert 'class="sftkit-audit tex2jax_ignore mathjax_ignore"' in audit_rows([])._repr_html_()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "No errors in 0 rows"),
        (labelled(1), "No errors in 1 row"),
        ([{"text": "", "label": "a"}, {"text": "x", "label": None}], "2 errors in 2 rows"),
        (
            [{"text": "x", "label": "a"}, {"text": "x", "label": "a"}, {"text": "y", "label": ""}],
            "2 errors, 1 warning in 3 rows",
        ),
    ],
)
def test_the_verdict_comes_first(rows, words):
    audit = audit_rows(rows, task="classify")
    assert headline(audit) == words
    assert audit_text(audit).startswith(f"the dataset: {words}\n")
    assert f"<h2>{words}</h2>" in audit._repr_html_()


def test_the_terminal_shows_the_worst_first_and_ends_in_plain_words():
    rows: list[dict[str, Any]] = [
        {"text": "So it is", "label": "a", "place": "a.csv:2"},
        {"text": "So it is", "label": "a", "place": "a.csv:3"},
        {"text": "It is not", "label": "b", "place": "a.csv:4"},
        {"text": "Why not?", "label": None, "place": "a.csv:5"},
    ]
    assert str(audit_rows(rows, source="a.csv")) == (
        "a.csv: 1 error, 1 warning in 4 rows\n"
        "texts with labels.\n"
        "\n"
        "error    D12 a.csv:5 · label · 1 row without a label\n"
        "         → Fill it in, or delete the row: there is nothing to learn in it.\n"
        "\n"
        "warning  D33 a.csv:3 · text · an earlier row repeated, case and spacing aside, in 1 row; "
        "the first is a.csv:2\n"
        "         → Delete the copies, unless they are meant to count more.\n"
        "\n"
        "Training on these rows would go wrong: mend the errors first. The audit changes nothing "
        "in the file.\n"
    )


def test_json_has_rows_and_findings():
    plain = json.loads(audit_json(audit_rows([{"text": "x", "label": None}])))
    assert list(plain) == ["rows", "findings", "seen_as", "facts"]
    assert plain["rows"] == 1
    assert plain["findings"] == [
        {
            "code": "D12",
            "severity": "error",
            "where": ["row 1"],
            "field": "label",
            "count": 1,
            "message": "1 row without a label",
            "fix": "Fill it in, or delete the row: there is nothing to learn in it.",
        }
    ]


def test_the_figures_say_their_numbers_in_words():
    rows = labelled(6) + labelled(1)
    page = audit_rows(rows).facts
    assert (page.exact_repeats, page.near_repeats, dict(page.labels)) == (1, 0, {"a": 4, "b": 3})
    html = audit_fragment(audit_rows(rows))
    labels = re.findall(r'role="img" aria-label="([^"]+)"', html)
    assert labels == [
        "Longest row 5 words, median 5. Histogram of row lengths in words; median 5, longest 5.",
        "2 classes, the largest 1.3 times the smallest. Rows per class: a: 4, b: 3.",
        "1 exact, 0 near duplicates. 6 of 7 rows are different from all before.",
    ]


# ---- facts and figures ----


def test_lengths_fall_into_bins_that_end_at_round_numbers():
    found = bin_values(array("i", [1, 3, 99, 480]), "words")
    assert found is not None
    assert found.edges[:3] == (0.0, 20.0, 40.0)
    assert found.edges[-1] == 500.0
    assert (found.counts[0], found.counts[4], found.counts[-1]) == (2, 1, 1)
    assert (sum(found.counts), found.median, found.largest) == (4, 51.0, 480.0)


def test_a_bin_ends_just_above_the_limit():
    found = bin_values(array("i", [1, 100, 101, 130]), "tokens", limit=100)
    assert found is not None
    assert 100.5 in found.edges
    above = [n for start, n in zip(found.edges, found.counts, strict=False) if start > 100]
    assert sum(above) == 2


FACTS = AuditFacts(
    rows=1000,
    task="classify",
    lengths=bin_values(array("i", range(1000)), "tokens", limit=900),
    limit=900,
    over_limit=99,
    scores=bin_values(array("d", [1.0, 2.0, 5.0]), "score"),
    labels={"returns $a_{$": 700, "delivery": 300},
    label_kinds=2,
    exact_repeats=218,
    near_repeats=43,
)


@pytest.mark.parametrize(
    ("draw", "title"),
    [
        (plot_lengths, "99 rows exceed the limit of 900 tokens"),
        (plot_labels, "2 classes, the largest 2.3 times the smallest"),
        (plot_repeats, "218 exact, 43 near duplicates"),
        (plot_scores, "Scores: half are 2 or less, the highest is 5"),
    ],
)
def test_a_figure_says_its_finding_as_title_and_alt_text(draw, title):
    from sftkit.panels import alt_text, to_png

    figure = draw(FACTS)
    assert " ".join(figure.get_suptitle().split()) == title
    assert alt_text(figure).startswith(title)
    assert to_png(figure, dpi=50).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [plot_lengths, plot_labels, plot_scores])
def test_a_figure_without_its_facts_is_refused_in_words(draw):
    from sftkit.errors import DataError

    with pytest.raises(DataError, match=r"The audit (measured|saw) no"):
        draw(AuditFacts(rows=3, task="image"))
