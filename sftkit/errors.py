"""The error tree. Every message says what was given, what was expected and what to do.

SftkitError
├── SettingsError   a recipe or a setting that cannot work
├── FetchError      a model or dataset that could not be had
├── DataError       faults in a dataset; carries all findings of one pass
│   └── EncodeError a conversation that cannot become tokens and labels
├── ModelError      a base model that cannot be loaded as asked
├── AdapterError    an adapter that does not fit the model
├── TrainError      a run that cannot start, or had to stop
│   ├── CheckpointError  a checkpoint that cannot be written, read or gone on from
│   ├── MemoryRanOutError  a step that does not fit, however it is cut
│   ├── ProcessError     another process of the run that was lost
│   └── StoppedError     a run that was asked to stop, and did
└── RecordError     a run folder that cannot be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftkit.records import Finding


class SftkitError(Exception):
    """Base of all errors that sftkit raises on purpose."""


class SettingsError(SftkitError):
    """A recipe or a setting that cannot work."""


class FetchError(SftkitError):
    """A model or dataset that could not be had."""


class DataError(SftkitError):
    """Faults in a dataset.

    Attributes:
        findings: What the audit found, all faults of one pass.
    """

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class EncodeError(DataError):
    """A conversation that cannot become tokens and labels."""


class ModelError(SftkitError):
    """A base model that cannot be loaded as asked."""


class AdapterError(SftkitError):
    """An adapter that does not fit the model."""


class TrainError(SftkitError):
    """A run that cannot start, or had to stop."""


class CheckpointError(TrainError):
    """A checkpoint that cannot be written, read or gone on from."""


class StoppedError(TrainError):
    """A run that was asked to stop, and did; the message says whether it is saved."""


class MemoryRanOutError(TrainError):
    """A step that does not fit into memory, however it is cut."""


class ProcessError(TrainError):
    """Another process of the same run was lost."""


class RecordError(SftkitError):
    """A run folder that cannot be read."""


def near_names(given: str, valid: Iterable[str], *, at_most: int = 3) -> str:
    """Name the nearest valid spellings, as the tail of an error message.

    Args:
        given: What the user wrote.
        valid: What would have been accepted.
        at_most: How many near names to list.

    Returns:
        " Did you mean 'x' or 'y'?" or, when nothing is near, " Valid: a, b, c."
    """
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=at_most, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(name) for name in near) + "?"
    return " Valid: " + ", ".join(names) + "." if names else ""
