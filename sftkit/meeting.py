"""What launched processes tell each other before they train: over torchrun's store, not a group.

A group of processes is formed in one blocking call that nobody can leave and that names no reason.
The store is asked again and again instead, so a process that failed is named with its own words,
and a stop is heeded at once.
"""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from sftkit.errors import ProcessError, SettingsError
from sftkit.processes import STAGE_WAIT_S, process_count, process_index

_ASK_EVERY_S = 0.1


@functools.cache
def _store() -> Any:
    """Connect to the store that torchrun keeps for all processes of a run."""
    import torch

    wait = datetime.timedelta(seconds=STAGE_WAIT_S)
    store, _, _ = next(iter(torch.distributed.rendezvous("env://", timeout=wait)))
    return torch.distributed.PrefixStore("sftkit", store)


def found_by_first(name: str, find: Callable[[], str]) -> str:
    """Let the first process find something out; all go on with what it found.

    Args:
        name: What it is, in a word; different for everything that is found.
        find: Finds it; called in the first process alone.

    Raises:
        ProcessError: The first process is gone.
    """
    if process_count() == 1:
        return find()
    if process_index() == 0:
        found = find()
        _store().set(name, found)
        return found
    return _told(name, by=0)


def meet(fingerprints: Mapping[str, str], *, device: str) -> None:
    """Wait until every process is ready to train, refuse different things, and form the group.

    Args:
        fingerprints: What this process is about to train, by name.
        device: Type of the device it trains on.

    Raises:
        SettingsError: Another process would train something else, such as other rows.
        ProcessError: Another process failed before it was ready; with its words.
    """
    if process_count() == 1:
        return
    own = dict(fingerprints)
    _store().set(f"ready/{process_index()}", json.dumps(own))
    for other in range(process_count()):
        others = json.loads(_told(f"ready/{other}", by=other))
        names = sorted(n for n in own.keys() | others.keys() if own.get(n) != others.get(n))
        if names:
            raise SettingsError(
                f"Process {other} would not train what process {process_index()} does: they differ "
                f"in {', '.join(names)}. Give every machine the same recipe, data, base model and "
                "versions."
            )
    from accelerate import PartialState

    # Before anything else asks Accelerate: without cpu=True it takes CPU processes for single ones.
    PartialState(cpu=device == "cpu", timeout=datetime.timedelta(seconds=STAGE_WAIT_S))


def tell_failure(words: str) -> None:
    """Tell processes that wait for this one why it will not come."""
    if process_count() == 1:
        return
    try:
        _store().set(f"failed/{process_index()}", words)
    except RuntimeError:  # the store is gone, and so are those it would have told
        return


def _told(name: str, *, by: int) -> str:
    """Wait for what a process has to say."""
    try:
        store, until = _store(), time.monotonic() + STAGE_WAIT_S
        while not store.check([name]):
            if store.check([f"failed/{by}"]):
                words = store.get(f"failed/{by}").decode()
                raise ProcessError(f"Process {by} failed before training: {words}")
            if time.monotonic() > until:
                raise ProcessError(f"Process {by} was not ready within {STAGE_WAIT_S:g} s.")
            time.sleep(_ASK_EVERY_S)
        return str(store.get(name).decode())
    except RuntimeError as error:
        raise ProcessError(
            f"Process {process_index()} lost the first machine before training: {error}"
        ) from error
