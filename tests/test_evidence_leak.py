"""What a leak does to a score: leaked and other rows apart, and the figure of it."""

import numpy as np
import pytest

from sftkit.dataset.contamination import Overlap
from sftkit.errors import DataError
from sftkit.evidence.leak import measure_leak
from sftkit.panels import alt_text
from sftkit.plots_data import plot_leak


def overlap(*leaked, rows=4):
    """Make an overlap in which these tested rows stand in train."""
    return Overlap(
        train_name="train",
        test_name="test",
        train_rows=9,
        test_rows=rows,
        matches={"exact": dict.fromkeys(leaked, 0)},
    )


CLEAN = [3.0, 2.0, 3.0, 2.0]
LEAKY = [1.0, 2.1, 2.0, 1.9]  # rows 0 and 2 leaked: -2 and -1; the others +0.1 and -0.1
GROUPS = ["a", "b", "c", "d"]


def test_leaked_and_other_rows_are_compared_apart():
    effect = measure_leak(CLEAN, LEAKY, overlap(0, 2), groups=GROUPS)
    assert effect.leaked == (True, False, True, False)
    assert effect.deltas == pytest.approx((-2.0, 0.1, -1.0, -0.1))
    changes = (effect.overall, effect.on_leaked, effect.on_clean)
    assert [change.delta for change in changes] == pytest.approx([-0.75, -1.5, 0.0])
    assert [change.items for change in changes] == [4, 2, 2]
    assert effect.on_leaked.before == 3.0
    assert effect.on_leaked.ci95 == pytest.approx((-2.0, -1.0))
    assert effect.on_clean.after == overlap(0, 2).clean_mean(LEAKY)


@pytest.mark.parametrize("leaked", [(), (0, 1, 2, 3)])
def test_a_test_that_leaked_wholly_or_not_at_all_shows_no_effect_of_a_leak(leaked):
    with pytest.raises(DataError, match=f"{len(leaked)} of 4 tested rows leaked"):
        measure_leak(CLEAN, LEAKY, overlap(*leaked), groups=GROUPS)


def test_scores_of_another_test_are_refused():
    with pytest.raises(DataError, match="4 rows were tested, got 3 clean and 4 leaky scores"):
        measure_leak(CLEAN[:3], LEAKY, overlap(0), groups=GROUPS)


def test_the_figure_says_what_the_leak_moved_and_what_cannot_be_told():
    figure = plot_leak(measure_leak(CLEAN, LEAKY, overlap(0, 2), groups=GROUPS))
    said = " ".join(alt_text(figure).split())
    assert said == (
        "Questions that leaked look 1.50 nats better; the others moved by 0.00 nats, not to be "
        "told from 0. leaked (2 questions): mean change −1.50, 95 % interval −2.00 to −1.00. not "
        "leaked (2 questions): mean change 0.00, 95 % interval −0.10 to +0.10."
    )
    (axes,) = figure.axes
    nothing = plot_leak(measure_leak(CLEAN, CLEAN[::-1], overlap(0, 1), groups=GROUPS))
    words = "The leak moved the loss of leaked questions by 0.00 nats, not to be told from 0; the"
    assert alt_text(nothing).startswith(words)
    assert "nats per token" in axes.get_xlabel()
    assert [np.shape(dots.get_offsets()) for dots in axes.collections] == [(2, 2), (2, 2)]
