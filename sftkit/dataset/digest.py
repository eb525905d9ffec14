"""What is remembered of each row while it streams by, so that rows can be compared afterwards.

About a hundred bytes a row: hashes and codes in arrays, never the texts themselves.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftkit.dataset.folders import SPLIT_WORDS
from sftkit.dataset.row_checks import MISSING, as_number, label_kind
from sftkit.dataset.sketches import hash_text, normalise
from sftkit.dataset.texts import question_text, whole_text

NONE = 0
"""The code, or the hash, of a value that is not there."""
_SHORT_REPLY = 60
"""Characters up to which a reply may be the name of a class (yes, no, refund …)."""
_MOST_REPLIES = 1000
"""Different short replies that are remembered; with more of them, replies are no classes."""


_GROUP_NAME = re.compile(
    r"(patient|subject|person|participant|user|customer|client|author|speaker|family|household"
    r"|document|doc|article|session|conversation|thread|study)(_?(id|no|nr|number|key|name))?",
    re.IGNORECASE,
)
"""Columns whose rows hang together wherever they appear; a split should not divide them."""
_MOST_GROUPS = 3


class Names:
    """Numbers different texts from 1 in order of appearance; 0 is none.

    Attributes:
        texts: All texts; the one with number n stands at n - 1.
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self.texts: list[str] = []

    def code(self, text: str | None) -> int:
        """Give the number of a text, a new one if it is new."""
        if text is None:
            return NONE
        code = self._codes.get(text)
        if code is None:
            self.texts.append(text)
            code = self._codes[text] = len(self.texts)
        return code

    def find(self, text: str) -> int:
        """Give the number of a text that may never have appeared; 0 then."""
        return self._codes.get(text, NONE)


class Places:
    """Places such as train.csv:17, kept as a name and a number."""

    def __init__(self) -> None:
        self._stems = Names()
        self._stem = array("i")
        self._number = array("q")

    def add(self, place: str) -> None:
        """Remember the place of the next row."""
        digits = len(place)
        while digits and "0" <= place[digits - 1] <= "9" and len(place) - digits < 15:
            digits -= 1
        # A leading zero would be lost in a number.
        if digits == len(place) or (place[digits] == "0" and digits + 1 < len(place)):
            self._stem.append(-self._stems.code(place))
            self._number.append(0)
        else:
            self._stem.append(self._stems.code(place[:digits]))
            self._number.append(int(place[digits:]))

    def __getitem__(self, position: int) -> str:
        stem = self._stem[position]
        name = self._stems.texts[abs(stem) - 1]
        return name if stem < 0 else f"{name}{self._number[position]}"


class RowDigest:
    """Collects what checks across rows need, row by row.

    Attributes:
        count: Rows so far.
        whole: Hash of all a row says, its label too; NONE for a row that says nothing.
        asked: Hash of what is asked: `texts.question_text`, normalised; of an image its bytes.
        opening: Hash of the first thing the user says, normalised; what a probe may have asked.
        identity: Hash of the id.
        label: Number of the label's text in `labels`; of a short last reply in chat.
        kind: What kind of value the label or score is, a position in KINDS; empty for chat.
        score: Score of a regression, NaN where there is none; empty otherwise.
        group: Number of the group's name in `groups`, for rows with a split.
        split: Number of the split in `splits`.
        likely_groups: The same as `groups` and `group` for columns named like a grouping.
        words: Length of the row in words.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.count = 0
        self.places = Places()
        self.labels, self.splits, self.groups = Names(), Names(), Names()
        self.whole, self.asked, self.opening, self.identity = (array("Q") for _ in range(4))
        self.label, self.words, self.group = (array("i") for _ in range(3))
        self.kind, self.split = array("b"), array("h")
        self.likely_groups: dict[str, tuple[Names, array[int]]] = {}
        self.score = array("d")

    def add(self, row: Mapping[str, Any], place: str) -> str:
        """Remember one canonical row with raw values; give back all it says as one text."""
        self.count += 1
        self.places.add(place)
        text = self._add_text(row)
        self.identity.append(hash_text(_as_text(row.get("id")) or ""))
        said = _as_text(row.get("split"))
        split = SPLIT_WORDS.get(said.strip().lower(), said) if said else None
        self.split.append(min(self.splits.code(split), 2**15 - 1))
        group = None if split is None else _as_text(row.get("group")) or None
        self.group.append(self.groups.code(group))
        if split is not None:
            self._add_likely_groups(row)
        return text

    def _add_likely_groups(self, row: Mapping[str, Any]) -> None:
        """Remember columns that by their name hold together what belongs together."""
        if not self.likely_groups and self.count == 1:
            columns = [c for c in row if isinstance(c, str) and _GROUP_NAME.fullmatch(c)]
            self.likely_groups = {c: (Names(), array("i")) for c in columns[:_MOST_GROUPS]}
        for column, (names, codes) in self.likely_groups.items():
            codes.extend([NONE] * (self.count - 1 - len(codes)))
            codes.append(names.code(_as_text(row.get(column)) or None))

    def _add_text(self, row: Mapping[str, Any]) -> str:
        """Hash what a row says and what it asks, normalised, and count its words."""
        if self.task == "chat":
            messages: Any = row.get("messages")
            if not _is_spoken(messages):
                self.whole.append(NONE)
                self.asked.append(NONE)
                self.opening.append(NONE)
                self.label.append(NONE)
                self.words.append(0)
                return ""
            text = whole_text(row)
            self.whole.append(hash_text(text))
            self.asked.append(hash_text(question_text(row)))
            opens = (turn["content"] for turn in messages if turn.get("role") == "user")
            self.opening.append(hash_text(normalise(next(opens, ""))))
            self.words.append(len(text.split()) - len(messages))  # without the name of the role
            last = messages[-1]
            self._add_reply(last["content"].strip() if last.get("role") == "assistant" else "")
            return text
        target = self._add_target(row)
        if self.task == "image":
            content = _image_hash(row.get("image"))
            self.asked.append(content)
            self.whole.append(hash_text(f"{content} {target}") if content else NONE)
            self.words.append(0)
            return ""
        said = row.get("text")
        text = said if isinstance(said, str) else ""
        plain = normalise(text)
        self.asked.append(hash_text(plain))
        self.whole.append(hash_text(f"{plain}\n{target}") if plain else NONE)
        self.words.append(len(text.split()))
        return text

    def _add_reply(self, reply: str) -> None:
        known = self.labels.find(reply)
        if not known and 0 < len(reply) <= _SHORT_REPLY and len(self.labels.texts) < _MOST_REPLIES:
            known = self.labels.code(reply)
        self.label.append(known)

    def _add_target(self, row: Mapping[str, Any]) -> str:
        """Remember a label or score; give it back as text."""
        value = row.get("score" if self.task == "regress" else "label")
        kind = label_kind(value)
        self.kind.append(kind)
        name = "" if kind == MISSING else str(value).strip()
        if self.task == "regress":
            number = as_number(value)
            self.score.append(float("nan") if number is None else number)
        else:
            self.label.append(self.labels.code(name or None))
        return name


def _is_spoken(messages: Any) -> bool:
    """Say whether every turn of a conversation has a text."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            (type(turn) is dict or isinstance(turn, Mapping))  # the first is a hundred times faster
            and isinstance(turn.get("content"), str)
            for turn in messages
        )
    )


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _image_hash(image: Any) -> int:
    """Hash an image's bytes as they lie in the row or in its file, undecoded."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str | Path):
        try:
            image = Path(image).read_bytes()
        except OSError:
            return NONE
    elif hasattr(image, "tobytes"):
        image = repr(getattr(image, "size", "")).encode() + image.tobytes()
    if not isinstance(image, bytes) or not image:
        return NONE
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little") or 1
