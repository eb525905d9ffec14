"""Many conversations to token ids and labels, fast and in bounded memory.

The ids and labels are those of `chat.encode_chat`, row by row. They are found faster: the template
renders a whole batch, a cached shape tells where the answers stand, batches are tokenised beside
the reading of the next, and everything lands in an Arrow file. A row that is out of the ordinary
goes through `encode_chat` itself.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.chat import TRIMS, encode_chat, end_tokens, too_long
from sftkit.encoded import EncodedTable
from sftkit.errors import EncodeError
from sftkit.records import IGNORE, Refused
from sftkit.template import ShapeCache, Span, fit_shape, with_system

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

REASONS_KEPT = 1000
# A batch of long conversations ends early: the tokenizer takes some 150 bytes a token.
_BATCH_CHARACTERS = 1_000_000


def encode_dataset(
    dataset: Dataset | Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    system: str | None = None,
    batch_rows: int = 1000,
) -> EncodedTable:
    """Encode every row that can be, and say why the others cannot.

    Ids and labels are those of `chat.encode_chat`. Memory does not grow with the rows but for a few
    numbers each: tokens go to a temporary Arrow file.

    Args:
        dataset: Rows with `messages` and, if known, `group`.
        tokenizer: A fast tokenizer with a chat template.
        max_tokens: Longest example in tokens; longer ones are refused, never cut.
        system: System prompt put first where there is none.
        batch_rows: Rows tokenised together, at most.

    Raises:
        EncodeError: The tokenizer is not a fast one, or has no chat template.
    """
    work = _Work(tokenizer=tokenizer, max_tokens=max_tokens, system=system)
    folder = Path(tempfile.mkdtemp(prefix="sftkit-encoded-"))
    try:
        path = folder / "encoded.arrow"
        supervised = work.write(path, _draw_batches(dataset, batch_rows))
        return EncodedTable(
            path, supervised=supervised, refused=work.refused, refused_rows=work.refused_rows
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


_Example = tuple[list[int], list[Span]]  # ids, and the tokens learned from as [first, last)


@dataclass
class _Batch:
    """Rows on their way: as read, as rendered, and where their answers stand."""

    first: int
    messages: list[Any]
    groups: list[str]
    texts: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # position in the batch of each text
    spans: list[list[Span]] = field(default_factory=list)


@dataclass
class _Work:
    """One pass over a dataset: what it needs at every row, and the rows it refused."""

    tokenizer: Any
    max_tokens: int
    system: str | None
    refused: list[Refused] = field(default_factory=list)
    refused_rows: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise EncodeError("A fast tokenizer is needed: only it tells where each token stands.")
        if not getattr(self.tokenizer, "chat_template", None):
            raise EncodeError(
                "The tokenizer has no chat template, so conversations cannot be written as text. "
                "Use an instruction-tuned model, or set tokenizer.chat_template."
            )
        # One call of the tokenizer's own sets its core as encode_chat uses it: nothing is cut,
        # padded or split.
        self.tokenizer("", add_special_tokens=False)
        self.core = self.tokenizer.backend_tokenizer
        self.ending = end_tokens(self.tokenizer)
        self.shapes = ShapeCache(self.tokenizer)

    def write(self, path: Path, batches: Iterable[_Batch]) -> NDArray[np.int64]:
        """Encode all batches into one file; return the supervised tokens of every example."""
        import pyarrow as pa

        schema = pa.schema(
            {
                "input_ids": pa.list_(pa.int32()),
                "labels": pa.list_(pa.int32()),
                "row": pa.int64(),
                "group": pa.string(),
            }
        )
        supervised = [np.zeros(0, np.int64)]
        with (
            ThreadPoolExecutor(1) as pool,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
        ):
            # While one batch is tokenised, without Python's lock, the next is rendered.
            for batch, coded in _one_ahead(map(self.submit, itertools.repeat(pool), batches)):
                columns, counts = self.finish(batch, coded)
                writer.write_batch(pa.record_batch(columns, schema=schema))
                supervised.append(counts)
        return np.concatenate(supervised)

    def submit(self, pool: ThreadPoolExecutor, batch: _Batch) -> tuple[_Batch, Future[list[Any]]]:
        """Render a batch and start to tokenise it."""
        self.render(batch)
        return batch, pool.submit(self.core.encode_batch, batch.texts, add_special_tokens=False)

    def render(self, batch: _Batch) -> None:
        """Render the ordinary rows of a batch and find their answers."""
        turns, places = [], []
        for place, messages in enumerate(batch.messages):
            if _is_plain(messages):
                turns.append(with_system(messages, self.system))
                places.append(place)
        for place, conversation, text in zip(places, turns, self._texts(turns), strict=True):
            spans = self._answers(conversation, text) if text is not None else None
            if text is not None and spans:
                batch.texts.append(text)
                batch.places.append(place)
                batch.spans.append(spans)

    def _texts(self, turns: list[Any]) -> list[str | None]:
        if not turns:
            return []
        render = self.tokenizer.apply_chat_template
        try:
            return list(render(turns, tokenize=False))
        except Exception:  # one conversation is refused: which one?
            texts: list[str | None] = []
            for conversation in turns:
                try:
                    texts.append(render(conversation, tokenize=False))
                except Exception:  # templates raise whatever their author chose
                    texts.append(None)
            return texts

    def _answers(self, turns: Sequence[Mapping[str, str]], text: str) -> list[Span] | None:
        """Give the characters of every answer, where encode_chat would find the same."""
        roles = [turn["role"] for turn in turns]
        shape = self.shapes.get(roles)
        if shape is None:
            return None
        contents = [turn["content"] for turn in turns]
        spans = fit_shape(shape, contents, text)
        if spans is None:
            return None
        answers = [
            (slot, span)
            for slot, span in zip(shape.slots, spans, strict=True)
            if roles[slot] == "assistant"
        ]
        said = [turn for turn, role in enumerate(roles) if role == "assistant"]
        if [slot for slot, _ in answers] != said:
            return None
        # encode_chat wants one way of trimming that holds for all answers.
        lengths = [stop - start for _, (start, stop) in answers]
        for trim in TRIMS:
            if [len(trim(contents[slot])) for slot in said] == lengths:
                return [span for _, span in answers]
        return None

    def finish(self, batch: _Batch, coded: list[Any]) -> tuple[list[Any], NDArray[np.int64]]:
        """Turn a tokenised batch into columns; count the supervised tokens of every example."""
        import pyarrow as pa

        quick = dict(
            zip(batch.places, zip(batch.texts, batch.spans, coded, strict=True), strict=True)
        )
        kept: list[int] = []
        examples: list[_Example] = []
        for place in range(len(batch.messages)):
            try:
                row = batch.first + place
                example = self._learn(*quick[place], row) if place in quick else None
                examples.append(example or self._encode_slowly(batch.messages[place], row))
                kept.append(place)
            except EncodeError as error:
                self.refused_rows.append(batch.first + place)
                if len(self.refused) < REASONS_KEPT:
                    self.refused.append(Refused(row=batch.first + place, reason=str(error)))
        offsets = np.cumsum([0, *(len(ids) for ids, _ in examples)], dtype=np.int32)
        total = int(offsets[-1])
        ids = np.fromiter(itertools.chain.from_iterable(e[0] for e in examples), np.int32, total)
        learned = _marked([runs for _, runs in examples], offsets)
        labels = np.where(learned, ids, np.int32(IGNORE))
        learned[offsets[:-1]] = False  # nothing predicts a first token
        counts = np.add.reduceat(learned, offsets[:-1], dtype=np.int64) if kept else offsets[:0]
        columns = [
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(offsets, labels),
            np.asarray(kept, dtype=np.int64) + batch.first,
            [batch.groups[place] for place in kept],
        ]
        return columns, np.asarray(counts, dtype=np.int64)

    def _learn(self, text: str, spans: Sequence[Span], encoding: Any, row: int) -> _Example | None:
        """Find the tokens of every answer and its end; None where that is not plain to see."""
        ids: list[int] = encoding.ids
        if len(ids) > self.max_tokens:
            raise EncodeError(too_long(row, len(ids), self.max_tokens))
        runs = []
        for start, stop in spans:
            after = stop
            while after < len(text) and text[after].isspace():
                after += 1
            first, last = encoding.char_to_token(start), encoding.char_to_token(after)
            if first is None or last is None or ids[last] not in self.ending:
                return None
            if encoding.token_to_chars(last)[0] < stop:
                return None
            if after > stop and not self.ending.isdisjoint(
                ids[encoding.char_to_token(stop) : last]
            ):
                return None
            runs.append((first, last + 1))
        return ids, runs

    def _encode_slowly(self, messages: Any, row: int) -> _Example:
        encoded = encode_chat(
            messages, self.tokenizer, max_tokens=self.max_tokens, system=self.system, row=row
        )
        learned = [place for place, label in enumerate(encoded.labels) if label != IGNORE]
        return list(encoded.input_ids), [(place, place + 1) for place in learned]


def _marked(runs: Sequence[Sequence[Span]], offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mark the tokens of all runs, which do not overlap, in the examples laid end to end."""
    change = np.zeros(int(offsets[-1]) + 1, np.int8)
    counts = [len(of_one) for of_one in runs]
    flat = np.array(list(itertools.chain.from_iterable(runs)), np.int64).reshape(-1, 2)
    flat += np.repeat(offsets[:-1].astype(np.int64), counts)[:, None]
    np.add.at(change, flat[:, 0], 1)
    np.add.at(change, flat[:, 1], -1)
    return np.cumsum(change[:-1], dtype=np.int8) > 0


def _is_plain(messages: Any) -> bool:
    """Say whether a row is a list of turns with role and text and nothing else, one an answer."""
    return (
        isinstance(messages, list)
        and all(
            type(turn) is dict
            and len(turn) == 2
            and isinstance(turn.get("role"), str)
            and isinstance(turn.get("content"), str)
            for turn in messages
        )
        and any(turn["role"] == "assistant" for turn in messages)
    )


def _one_ahead(
    started: Iterable[tuple[_Batch, Future[list[Any]]]],
) -> Iterator[tuple[_Batch, list[Any]]]:
    """Give each batch when the next one has been started."""
    before: tuple[_Batch, Future[list[Any]]] | None = None
    for each in started:
        if before is not None:
            yield _collect(*before)
        before = each
    if before is not None:
        yield _collect(*before)


def _collect(batch: _Batch, future: Future[list[Any]]) -> tuple[_Batch, list[Any]]:
    try:
        return batch, future.result()
    except Exception:  # one text is none: each row alone says which
        batch.texts, batch.places, batch.spans = [], [], []
        return batch, []


# ---- reading ----


def _draw_batches(dataset: Any, batch_rows: int) -> Iterator[_Batch]:
    """Read rows in batches, smaller ones where conversations are long."""
    first = 0
    for messages, groups in _read(dataset, batch_rows):
        start, characters = 0, 0
        for place, row in enumerate(messages):
            characters += _characters(row)
            if characters >= _BATCH_CHARACTERS or place + 1 == len(messages):
                part = slice(start, place + 1)
                named = (
                    groups[part] if groups is not None else range(first, first + place + 1)[part]
                )
                yield _Batch(first + start, messages[part], [str(group) for group in named])
                start, characters = place + 1, 0
        first += len(messages)


def _characters(messages: Any) -> int:
    try:
        return sum(len(turn["content"]) for turn in messages)
    except (TypeError, KeyError):  # malformed, and refused later
        return 0


def _read(dataset: Any, batch_rows: int) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Give conversations and groups batch by batch, from a dataset or from any rows."""
    if hasattr(dataset, "with_format"):
        if "messages" not in dataset.column_names:
            raise EncodeError(
                f"The dataset has no column messages, only {', '.join(dataset.column_names)}. "
                "Read it with read_dataset, which brings conversations into this form."
            )
        names = [name for name in ("messages", "group") if name in dataset.column_names]
        for table in dataset.with_format("arrow", columns=names).iter(batch_rows):
            groups = table["group"].to_pylist() if "group" in names else None
            yield _conversations(table["messages"].combine_chunks()), groups
        return
    rows = iter(dataset)
    number = 0
    while batch := list(itertools.islice(rows, batch_rows)):
        groups = [row.get("group", number + place) for place, row in enumerate(batch)]
        yield [row.get("messages") for row in batch], groups
        number += len(batch)


def _conversations(column: Any) -> list[Any]:
    """Turn a column of lists of structs of texts into Python; ten times as fast as to_pylist."""
    import pyarrow as pa

    kind = column.type
    plain = (
        isinstance(column, pa.ListArray | pa.LargeListArray)
        and pa.types.is_struct(kind.value_type)
        and kind.value_type.num_fields == 2
        and column.null_count == 0
        and (turns := column.flatten()).null_count == 0
    )
    if not plain:
        return list(column.to_pylist())
    one, other = (part.name for part in kind.value_type)
    first, second = (part.to_pylist() for part in turns.flatten())
    said = [{one: a, other: b} for a, b in zip(first, second, strict=True)]
    stops = np.cumsum(column.value_lengths().to_numpy()).tolist()
    return [said[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
