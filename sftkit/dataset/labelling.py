"""A small notebook widget that shows rows one by one and writes labels to a new file.

Every label is one line of JSON, appended and written through to the disk when its button is
pressed, so a kernel that dies loses none that was shown as written. Opening the same file again
goes on where it stopped.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.dataset.sketches import hash_text
from sftkit.dataset.texts import RowTexts, transcript
from sftkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_LABELS = 30
_LONGEST_SHOWN = 20_000
_BEGINNING = '{"row": '
"""How every line begins; what begins so and is no JSON was cut off."""


class LabelFile:
    """The labels given so far, and the JSONL file they stand in.

    Each line holds row, id, key (a hash of the row's text, by which a file is known to belong to
    this dataset) and label; label is null where the row was skipped, and "undo": true takes the
    row's line back. The last line of a row counts.
    """

    def __init__(self, path: str | Path, dataset: Dataset) -> None:
        """Open a file of labels, or start one.

        Raises:
            DataError: The file holds something else, or labels of other rows.
        """
        self.path = Path(path)
        self._texts = RowTexts(dataset, transcript)
        self._ids = dataset.with_format(None)["id"] if "id" in dataset.column_names else None
        self._given: dict[int, str | None] = {}
        self._order: list[int] = []
        self._ended = True
        if self.path.exists():
            self._read()

    @property
    def labels(self) -> dict[int, str]:
        """The labels given, by row; skipped rows are not among them."""
        return {row: label for row, label in sorted(self._given.items()) if label is not None}

    def __contains__(self, row: int) -> bool:
        return row in self._given

    def text(self, row: int) -> str:
        """Give the text of a row."""
        return self._texts[row]

    def write(self, row: int, label: str | None) -> None:
        """Write a row's label, or None where it was skipped."""
        self._append({"row": row, "id": self._id(row), "key": self._key(row), "label": label})
        self._note(row, label)

    def undo(self) -> int | None:
        """Take back the label written last; gives its row, or None when there is none."""
        if not self._order:
            return None
        row = self._order[-1]
        self._append({"row": row, "id": self._id(row), "key": self._key(row), "undo": True})
        self._forget(row)
        return row

    def _note(self, row: int, label: str | None) -> None:
        self._forget(row)
        self._given[row] = label
        self._order.append(row)

    def _forget(self, row: int) -> None:
        if self._given.pop(row, self) is not self:
            self._order.remove(row)

    def _id(self, row: int) -> str:
        return "" if self._ids is None else str(self._ids[row] or "")

    def _key(self, row: int) -> str:
        return f"{hash_text(self._texts[row]):016x}"

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        if not self._ended:  # a line that a crash cut off stays, and is read over
            line, self._ended = "\n" + line, True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror or error}). The label was not "
                "saved: give another path or make room."
            ) from error

    def _read(self) -> None:
        try:
            # A crash may cut a line within a character.
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read as labels: {error}.") from error
        self._ended = not text or text.endswith("\n")
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                self._read_line(line, number)

    def _read_line(self, line: str, number: int) -> None:
        try:
            entry = json.loads(line)
            row, key = entry["row"], entry["key"]
            label = entry.get("label")
            well = type(row) is int and (label is None or isinstance(label, str))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if line.startswith(_BEGINNING) or _BEGINNING.startswith(line):
                return  # cut off by a crash: this one label is asked for again
            well = False
        if not well:
            raise DataError(
                f"{self.path}:{number} is no label. Labels are written to a new file of their "
                "own: give another path."
            )
        if not 0 <= row < len(self._texts) or key != self._key(row):
            raise DataError(
                f"{self.path}:{number} labels a row that this dataset does not have. Was the "
                "file begun with other data? Give another path, or that dataset."
            )
        if entry.get("undo"):
            self._forget(row)
        else:
            self._note(row, label)


class LabellingWidget:
    """Shows rows with buttons for labels, skip and undo; what is pressed is written at once.

    Displays itself as the last value of a cell.

    Attributes:
        file: The labels given so far; `file.labels` is a dict by row.
        widget: The ipywidgets box.
    """

    def __init__(self, file: LabelFile, rows: Sequence[int], labels: Sequence[str]) -> None:
        """Put the pieces together; `label_rows` is the way in."""
        import ipywidgets

        self.file = file
        self._rows = tuple(rows)
        self._shown: int | None = None
        self._text = ipywidgets.HTML()
        self._progress = ipywidgets.HTML()
        self.buttons = {label: ipywidgets.Button(description=label) for label in labels}
        for label, button in self.buttons.items():
            button.tooltip = f"Label this row {label}"
            button.on_click(lambda _, label=label: self._press(label))
        self.skip = ipywidgets.Button(description="Skip", icon="forward")
        self.skip.on_click(lambda _: self._press(None))
        self.undo = ipywidgets.Button(description="Undo", icon="undo")
        self.undo.on_click(lambda _: self._take_back())
        choices = ipywidgets.Box(
            list(self.buttons.values()), layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        rest = ipywidgets.HBox([self.skip, self.undo])
        self.widget = ipywidgets.VBox([self._progress, self._text, choices, rest])
        self._show_next()

    @property
    def shown(self) -> int | None:
        """The row that is shown, or None when all are done."""
        return self._shown

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        done = sum(row in self.file for row in self._rows)
        labels = self.file.labels
        skipped = done - sum(row in labels for row in self._rows)
        words = f"{done:,} of {len(self._rows):,} done"
        return f"{words}, {skipped:,} of them skipped" if skipped else words

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    def _press(self, label: str | None) -> None:
        if self._shown is None:
            return
        try:
            self.file.write(self._shown, label)
        except DataError as error:
            self._progress.value = f"<b>{html.escape(str(error))}</b>"
            return
        self._show_next()

    def _take_back(self) -> None:
        try:
            row = self.file.undo()
        except DataError as error:
            self._progress.value = f"<b>{html.escape(str(error))}</b>"
            return
        if row is not None:
            self._show(row if row in self._rows else None)

    def _show_next(self) -> None:
        self._show(next((row for row in self._rows if row not in self.file), None))

    def _show(self, row: int | None) -> None:
        self._shown = row
        self._progress.value = html.escape(f"{self.progress} → {self.file.path}")
        for button in (*self.buttons.values(), self.skip):
            button.disabled = row is None
        if row is None:
            self._text.value = "<i>All rows are done.</i>"
            return
        text = self.file.text(row)
        if len(text) > _LONGEST_SHOWN:
            text = f"{text[:_LONGEST_SHOWN]} … ({len(text) - _LONGEST_SHOWN:,} characters more)"
        # Text of a dataset is never markup: a script in it is shown, not run.
        shown = html.escape(text)
        self._text.value = (
            f"<b>Row {row + 1}</b><pre style='white-space:pre-wrap;max-height:24em;overflow:auto;"
            f"border:1px solid #999;padding:0.6em'>{shown}</pre>"
        )


def label_rows(
    dataset: Dataset,
    labels: Iterable[str],
    path: str | Path,
    *,
    rows: Iterable[int] | None = None,
    label: str = "label",
) -> LabellingWidget:
    """Show rows for labelling in a notebook.

    Args:
        dataset: Rows with text or messages.
        labels: The labels to choose from, one button each.
        path: The JSONL file that labels are written to; if it was begun before, labelling goes
            on. It is never the data itself.
        rows: Positions of the rows to show, e.g. of suspects; None shows those without a label.
        label: The column that says which have one.

    Returns:
        The widget; `widget.file.labels` are the labels given so far.

    Raises:
        DataError: No labels, too many, a row that is not there, nothing to show, a file that
            holds something else, or ipywidgets is not installed.
    """
    choices = tuple(dict.fromkeys(labels))
    if isinstance(labels, str) or not 1 <= len(choices) <= _MOST_LABELS:
        raise DataError(
            f"Give 1 to {_MOST_LABELS} labels to choose from, got "
            f"{repr(labels) if isinstance(labels, str) else len(choices)}."
        )
    if any(not isinstance(choice, str) or not choice.strip() for choice in choices):
        raise DataError(f"Labels must be texts that are not empty, got {choices!r}.")
    chosen = _unlabelled(dataset, label) if rows is None else list(dict.fromkeys(rows))
    if "image" in dataset.column_names:
        raise DataError("Images cannot be shown here yet: give rows with text or messages.")
    for row in chosen:
        if not 0 <= row < len(dataset):
            raise DataError(f"There is no row {row}: the dataset has {len(dataset)}, from 0 on.")
    if not chosen:
        raise DataError(f"No row to show: all {len(dataset)} have a {label}. Give rows=[…].")
    try:
        import ipywidgets  # noqa: F401
    except ImportError as error:
        raise DataError(
            "Labelling needs ipywidgets, which is not installed. Run: python -m pip install -c "
            "constraints.txt -e '.[notebooks]'"
        ) from error
    return LabellingWidget(LabelFile(path, dataset), chosen, choices)


def _unlabelled(dataset: Dataset, label: str) -> list[int]:
    if label not in dataset.column_names:
        return list(range(len(dataset)))
    given = dataset.with_format(None)[label]
    return [row for row, value in enumerate(given) if value is None or value == ""]
