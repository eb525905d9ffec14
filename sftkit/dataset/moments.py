"""Division by time: the newest rows report, the next newest choose, the older ones train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.dataset.columns import name_places, need_column, read_column
from sftkit.errors import DataError
from sftkit.settings import DataSettings

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


def divide_by_time(dataset: Dataset, settings: DataSettings) -> np.ndarray:
    """Say for each row whether it trains (0), chooses (1) or reports (2), shape (rows,).

    Rows of one moment stay together, so a part's share is as near to what was asked for as that
    allows. New rows are newer rows: they take over the test split, and what was tested before
    may be trained on. `time_cuts` fixes the two moments, and then no row ever moves.

    Raises:
        DataError: No rows, no such column, or rows whose time cannot be read.
    """
    import numpy as np

    times = read_times(dataset, settings.time_by or "")
    cuts = settings.time_cuts or find_time_cuts(dataset, settings)
    moments = np.array([_moment(cut) for cut in cuts], dtype="datetime64[us]")
    return np.searchsorted(moments, times, side="right").astype(np.int8)


def find_time_cuts(dataset: Dataset, settings: DataSettings) -> tuple[str, ...]:
    """Find the moments from which rows choose and from which they report, as ISO 8601 in UTC.

    Put into the settings as `time_cuts`, they divide these rows as the fractions do, and keep
    every row where it is when newer ones arrive.

    Raises:
        DataError: No rows, no such column, or rows whose time cannot be read.
    """
    import numpy as np

    times = read_times(dataset, settings.time_by or "")
    if not len(times):
        raise DataError(f"time_by={settings.time_by}: there are no rows to divide.")
    moments, counts = np.unique(times, return_counts=True)
    older = np.cumsum(counts) - counts  # rows older than each moment
    to_test = len(times) * (1 - settings.test_fraction)
    to_validation = to_test - len(times) * settings.validation_fraction
    report = int(np.abs(older - to_test).argmin())
    choose = int(np.abs(older[: report + 1] - to_validation).argmin())
    return tuple(str(moments[place]) + "Z" for place in (choose, report))


def read_times(dataset: Dataset, column: str) -> np.ndarray:
    """Read a column of times, shape (rows,), in UTC and to the microsecond.

    Taken are ISO 8601 (2024, 2024-05-31, 2024-05-31T10:00+02:00) and, if all rows have them, Unix
    times in seconds or milliseconds. A time without a zone counts as UTC.

    Raises:
        DataError: No such column, or rows whose time cannot be read. Day and month are not
            guessed: 03/04/2024 is refused.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    need_column(dataset, column, "time_by")
    texts = pd.Series(read_column(dataset, column).cast(pa.string()).to_numpy(), dtype=object)
    if len(texts) and texts.str.fullmatch(r"\d{9,10}(\.\d+)?|\d{12,13}").eq(True).all():
        numbers = texts.astype(float)
        seconds = numbers.where(numbers < 1e11, numbers / 1e3)
        return np.asarray((seconds * 1e6).round().astype("int64")).astype("datetime64[us]")
    times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    unread = np.flatnonzero(times.isna())
    if len(unread):
        given = texts[unread[0]]
        raise DataError(
            f"time_by={column}: {len(unread)} of {len(texts)} rows have no time that can be read: "
            f"{name_places(dataset, unread)} (the first has {given!r}). Write times as "
            "2024-05-31 or 2024-05-31T10:00:00."
        )
    return np.asarray(times.dt.tz_localize(None)).astype("datetime64[us]")


def _moment(text: str) -> np.datetime64:
    import numpy as np
    import pandas as pd

    stamp = pd.Timestamp(text)
    stamp = stamp.tz_convert(None) if stamp.tzinfo else stamp
    return np.datetime64(stamp, "us")
