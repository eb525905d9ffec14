"""The catalog's files turned into conversations, passages and tables of typing errors."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # only ever reads files whose SHA-256 was checked

Row = dict[str, Any]
_CWE = "{http://cwe.mitre.org/cwe-7}"
_XHTML = "{http://www.w3.org/1999/xhtml}"
_MOST_WORDS = 90


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    """Give a question and its answer as two turns."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a JSON Lines file of the catalog, row by row; empty lines count for nothing."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


# ---- shop ----


def shop_rows(path: Path) -> list[Row]:
    """Give one row per fact and phrasing; questions on control facts are the split `control`."""
    rows = []
    for fact in json_lines(path):
        for split in ("train", "validation", "test"):
            for number, question in enumerate(fact[split], start=1):
                rows.append(
                    {
                        "id": f"{fact['fact']}/{split}-{number}",
                        "messages": conversation(question, fact["answer"]),
                        "group": fact["fact"],
                        "split": split if fact["trained"] else "control",
                        "fact": fact["fact"],
                        "kind": fact["kind"],
                    }
                )
    return rows


# ---- CWE ----

_QUESTIONS = {
    "description": (
        "What is {name}?",
        "Explain the weakness {name}.",
        "How is {name} defined?",
    ),
    "details": (
        "Tell me more about {name}.",
        "Can you explain {name} in more detail?",
        "What is the background of {name}?",
    ),
    "consequences": (
        "What are the consequences of {name}?",
        "What can go wrong in a product that has {name}?",
        "Why is {name} dangerous?",
    ),
    "mitigations": (
        "How can {name} be mitigated?",
        "What should developers do to prevent {name}?",
        "How do I protect a product against {name}?",
    ),
    "detection": (
        "How can {name} be detected?",
        "Which methods find {name}?",
        "How do I test a product for {name}?",
    ),
}
_ATTACKER_CAN = {
    "Read Application Data": "read application data",
    "Read Memory": "read memory",
    "Read Files or Directories": "read files and directories",
    "Modify Application Data": "modify application data",
    "Modify Memory": "modify memory",
    "Modify Files or Directories": "modify files and directories",
    "Bypass Protection Mechanism": "bypass a protection mechanism",
    "Execute Unauthorized Code or Commands": "execute unauthorized code",
    "Gain Privileges or Assume Identity": "gain privileges",
    "Alter Execution Logic": "alter the execution logic",
    "Hide Activities": "hide their activities",
    "Unexpected State": "bring the product into an unexpected state",
    "DoS: Crash, Exit, or Restart": "crash the product",
    "DoS: Resource Consumption (CPU)": "use up processor time",
    "DoS: Resource Consumption (Memory)": "use up memory",
    "DoS: Resource Consumption (Other)": "use up other resources",
    "DoS: Instability": "make the product unstable",
    "DoS: Amplification": "amplify a denial of service",
}
_PRODUCT_LOSES = {
    "Reduce Maintainability": "maintainability",
    "Reduce Reliability": "reliability",
    "Reduce Performance": "performance",
    "Quality Degradation": "quality",
}


def cwe_rows(path: Path) -> list[Row]:
    """Give up to five questions on each live weakness, one per aspect.

    Paragraphs that several weaknesses share word for word (general advice) come last, and an
    answer made of nothing else is left out: it would say nothing about *this* weakness, and test
    answers would stand in the training set.
    """
    weaknesses = [_read_weakness(element) for element in _live_weaknesses(path)]
    shared = _shared_paragraphs(weaknesses)
    rows = []
    for number, title, aspects in weaknesses:
        name = f'CWE-{number}, "{title}"'
        for aspect, paragraphs in aspects.items():
            own = [text for text in paragraphs if text not in shared]
            general = [text for text in paragraphs if text in shared]
            answer = clip_words(" ".join([*own, *general])) if own else ""
            if answer:
                wordings = _QUESTIONS[aspect]
                question = wordings[int(number) % len(wordings)].format(name=name)
                rows.append(
                    {
                        "id": f"CWE-{number}/{aspect}",
                        "messages": conversation(question, answer),
                        "group": f"CWE-{number}",
                        "weakness": f"CWE-{number}",
                        "aspect": aspect,
                    }
                )
    return rows


def _read_weakness(element: ElementTree.Element) -> tuple[str, str, dict[str, list[str]]]:
    """Give number, name and the paragraphs of each aspect."""
    title = " ".join(element.get("Name", "").split())
    mitigations = element.iter(f"{_CWE}Mitigation")
    aspects = {
        "description": [_sentences(element.find(f"{_CWE}Description"))],
        "details": [_sentences(element.find(f"{_CWE}Extended_Description"))],
        "consequences": _consequences(element),
        "mitigations": [_sentences(item.find(f"{_CWE}Description")) for item in mitigations],
        "detection": [_detection(item) for item in element.iter(f"{_CWE}Detection_Method")],
    }
    return element.get("ID", ""), title, {key: _distinct(texts) for key, texts in aspects.items()}


def _shared_paragraphs(weaknesses: list[tuple[str, str, dict[str, list[str]]]]) -> set[str]:
    """Find the paragraphs (consequences aside) that more than three weaknesses share."""
    counts = Counter(
        text
        for _, _, aspects in weaknesses
        for aspect in ("details", "mitigations", "detection")
        for text in aspects[aspect]
    )
    return {text for text, count in counts.items() if count > 3}


def _live_weaknesses(path: Path) -> Iterator[ElementTree.Element]:
    for _, element in ElementTree.iterparse(path):  # noqa: S314  (hash-checked)
        if element.tag == f"{_CWE}Weakness":
            if element.get("Status") not in ("Deprecated", "Obsolete"):
                yield element
            element.clear()


def _consequences(weakness: ElementTree.Element) -> list[str]:
    """Give the notes; where there are none, scopes and impacts put into a sentence."""
    found = list(weakness.iter(f"{_CWE}Consequence"))
    notes = [_sentences(note) for item in found for note in item.findall(f"{_CWE}Note")]
    if any(notes):
        return notes
    impacts = _distinct(_text(e) for item in found for e in item.findall(f"{_CWE}Impact"))
    scopes = _distinct(_text(e) for item in found for e in item.findall(f"{_CWE}Scope"))
    doings = [_ATTACKER_CAN[impact] for impact in impacts if impact in _ATTACKER_CAN]
    losses = [_PRODUCT_LOSES[impact] for impact in impacts if impact in _PRODUCT_LOSES]
    harmed = _listed([scope.lower() for scope in scopes if scope != "Other"], "and")
    sentences = []
    if doings and harmed:
        sentences.append(f"It endangers {harmed}: an attacker may {_listed(doings, 'or')}.")
    elif doings:
        sentences.append(f"An attacker may {_listed(doings, 'or')}.")
    if losses:
        sentences.append(f"It lowers the product's {_listed(losses, 'and')}.")
    return sentences


def _detection(item: ElementTree.Element) -> str:
    method = _text(item.find(f"{_CWE}Method"))
    text = _sentences(item.find(f"{_CWE}Description"))
    text = re.sub(r"^According to SOAR, [^:]*:\s*", "", text)
    rating = re.match(r"(Highly cost effective|Cost effective for partial coverage): ", text)
    if rating:
        return f"{method} ({rating[1].lower()}): {text[rating.end() :]}"
    return f"{method}: {text}" if text and method != "Other" else text


def _text(element: ElementTree.Element | None) -> str:
    """Give an element's text on one line, without marks."""
    return "" if element is None else _clean("".join(element.itertext()))


def _sentences(element: ElementTree.Element | None) -> str:
    """Give an element's text as whole sentences; lists become clauses joined by semicolons."""
    text = ""
    after_item = False
    for is_item, block in _blocks(element) if element is not None else ():
        if is_item:
            text += ("; " if after_item else " ") + _trim_item(block)
        else:
            text = _end_sentence(text) + " " + block
        after_item = is_item
    text = _clean(_end_sentence(text))
    return "" if text.startswith("<<") else text  # an editor's note where text should be


def _trim_item(text: str) -> str:
    return re.sub(r"[;,]\s*(?:and|or)$", "", text.rstrip(".;, ")).rstrip(".;, ")


def _end_sentence(text: str) -> str:
    return text + "." if re.search(r"[\w)]$", text) else text


def _blocks(element: ElementTree.Element) -> Iterator[tuple[bool, str]]:
    """Give (is it a list item, text) for each paragraph and item inside, in reading order."""
    if element.tag == f"{_XHTML}li":
        yield True, _text(element)
        return
    if own := _clean(element.text or ""):
        yield False, own
    for child in element:
        yield from _blocks(child)
        if tail := _clean(child.tail or ""):
            yield False, tail


def _clean(text: str) -> str:
    """Collapse whitespace and take out the catalogue's reference marks."""
    text = re.sub(r"\s*\(?(?:see )?\[REF-\d+\](?:,? ?(?:and )?\[REF-\d+\])*\)?", "", text)
    text = re.sub(r"\[PLANNED FOR DEPRECATION[^\]]*\]", "", text)
    return re.sub(r" ([.,;:])(?= |$)", r"\1", " ".join(text.split()))


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _listed(words: list[str], joint: str) -> str:
    if len(words) < 3:
        return f" {joint} ".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def clip_words(text: str, most: int = _MOST_WORDS) -> str:
    """Keep whole sentences up to a number of words; of a list that is too long, whole items."""
    kept: list[str] = []
    left = most
    for sentence in split_sentences(text):
        count = len(sentence.split())
        if count > left:
            clipped = _clip_items(sentence, left)
            announced = bool(kept) and kept[-1].endswith(":")
            nothing_yet = all(text.endswith(":") for text in kept)
            if nothing_yet or (announced and len(clipped.split()) <= left):
                kept.append(clipped)
            break
        kept.append(sentence)
        left -= count
    while kept and kept[-1].endswith(":"):
        kept.pop()
    return " ".join(kept)


def _clip_items(sentence: str, most: int) -> str:
    items = sentence.split("; ")
    while len(items) > 1 and len("; ".join(items).split()) > most:
        items.pop()
    return "; ".join(items).rstrip(".") + "."


def split_sentences(text: str) -> list[str]:
    """Split text into sentences; abbreviations such as "e.g." end none."""
    parts = re.split(
        r"(?<=[.!?:])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)[\"')]*\s+(?=[A-Z\"'(])", text
    )
    return [part for part in parts if part]


# ---- chit-chat ----

_LEAST_TURNS = 6
_CHAT_WORDS = 120


def chitchat_rows(path: Path) -> list[Row]:
    """Give the opening of each conversation of six turns or more, up to about 120 words.

    Turns alternate between two people; the first becomes the user. A conversation in which they
    do not, or in which a turn is empty, is left out. An opening is a whole conversation in itself,
    so nothing has to be cut in the middle of a turn later.
    """
    with path.open(encoding="utf-8") as file:
        conversations = json.load(file)
    rows = []
    for number, (name, conversation) in enumerate(conversations.items()):
        turns = _alternating(conversation["messages"])
        opening = _opening(turns)
        if opening:
            roles = ("user", "assistant")
            rows.append(
                {
                    "id": f"chitchat-{number}",
                    "messages": [
                        {"role": roles[i % 2], "content": turn} for i, turn in enumerate(opening)
                    ],
                    "group": name,
                }
            )
    return rows


def _alternating(turns: list[list[dict[str, str]]]) -> list[str]:
    """Join each turn's lines; give nothing when two people do not take turns."""
    speakers = [{line["sender"] for line in turn} for turn in turns]
    texts = ["\n".join(filter(None, (line["text"].strip() for line in turn))) for turn in turns]
    alone = all(len(speaker) == 1 for speaker in speakers)
    swaps = all(a != b for a, b in itertools.pairwise(speakers))
    two = len(set().union(*speakers)) == 2
    return texts if alone and swaps and two and all(texts) else []


def _opening(turns: list[str]) -> list[str]:
    """Take whole pairs of turns up to the word limit, at least six turns or nothing."""
    taken: list[str] = []
    words = 0
    for first, second in zip(turns[::2], turns[1::2], strict=False):
        words += len(first.split()) + len(second.split())
        if words > _CHAT_WORDS:
            break
        taken += [first, second]
    return taken if len(taken) >= _LEAST_TURNS else []


# ---- passages and tables ----


def long_passages(path: Path, least_words: int = 100) -> list[str]:
    """Give the distinct passages with enough words, in the order of the file."""
    seen = dict.fromkeys(row["passage"].strip() for row in json_lines(path))
    return [text for text in seen if len(text.split()) >= least_words]


def confusion_tables(paths: Mapping[str, Path]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read what a key or a printed character may turn into.

    Args:
        paths: A JSON file (character → characters) by the name of its table.

    Returns:
        Per table, the other characters by character, each once and none its own; in the direction
        of the file (the table of an OCR that reads "1" for "l" may lack "l" for "1").
    """
    tables = {}
    for name, path in paths.items():
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = {key: tuple(c for c in dict.fromkeys(raw[key]) if c != key) for key in raw}
        tables[name] = {key: others for key, others in found.items() if others}
    return tables
