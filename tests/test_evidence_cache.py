"""Base scores are computed once per question asked, and again when anything changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftkit.evidence import cache
from sftkit.evidence.cache import cached_scores
from sftkit.evidence.choice import ChoiceScore
from sftkit.evidence.forgetting import ForgettingScores
from sftkit.evidence.generation import Written
from sftkit.evidence.learning import LearningScores
from sftkit.evidence.perplexity import TokenLoss
from sftkit.records import ChoiceItem

SCORES = ForgettingScores(
    choices=(ChoiceScore(logprobs=(-1.5, -2.0), tokens=(1, 2), characters=(3, 4)),),
    passages=(TokenLoss(nats=0.1, tokens=7),),
)
OTHER = ForgettingScores(choices=(), passages=())
KEY = {"base": "sha256:1", "test": ChoiceItem(question="q", options=("a", "b"), answer=0)}


class Counter:
    """Computes scores and counts how often it was asked to."""

    def __init__(self, scores: ForgettingScores = SCORES) -> None:
        self.calls = 0
        self.scores = scores

    def __call__(self) -> ForgettingScores:
        self.calls += 1
        return self.scores


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores"


def test_the_second_time_nothing_is_computed_and_the_scores_are_equal(folder):
    first, second = Counter(), Counter(OTHER)
    assert cached_scores(ForgettingScores, KEY, first) == SCORES
    assert cached_scores(ForgettingScores, KEY, second) == SCORES
    assert (first.calls, second.calls) == (1, 0)
    assert [path.suffix for path in folder.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    [
        {"base": "sha256:2"},
        {"test": ChoiceItem(question="q", options=("a", "b"), answer=1)},
        {"threads": 2},
    ],
)
def test_a_changed_key_is_computed_anew(change):
    cached_scores(ForgettingScores, KEY, Counter())
    anew = Counter(OTHER)
    assert cached_scores(ForgettingScores, {**KEY, **change}, anew) == OTHER
    assert anew.calls == 1


def test_the_order_of_a_key_means_nothing():
    cached_scores(ForgettingScores, KEY, Counter())
    again = Counter()
    cached_scores(ForgettingScores, dict(reversed(list(KEY.items()))), again)
    assert again.calls == 0


def test_a_new_version_of_the_scorer_forgets_older_scores(monkeypatch):
    cached_scores(ForgettingScores, KEY, Counter())
    monkeypatch.setattr(cache, "SCORER_VERSION", cache.SCORER_VERSION + 1)
    anew = Counter()
    cached_scores(ForgettingScores, KEY, anew)
    assert anew.calls == 1


def test_two_kinds_of_scores_under_one_key_do_not_meet():
    cached_scores(ForgettingScores, KEY, Counter())
    said = (Written(text="yes", tokens=1, ended=True),)
    learning = LearningScores(heldout=(), answers=said, recognition=())
    assert cached_scores(LearningScores, KEY, lambda: learning) == learning


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b'{"choices": []}', b'{"choices": [], "passages": [{"nats": NaN}]}'],
)
def test_a_damaged_file_is_computed_anew_and_written_again(folder, damage):
    cached_scores(ForgettingScores, KEY, Counter())
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    anew, after = Counter(), Counter()
    assert cached_scores(ForgettingScores, KEY, anew) == SCORES
    assert cached_scores(ForgettingScores, KEY, after) == SCORES
    assert (anew.calls, after.calls) == (1, 0)


def test_a_cache_that_cannot_be_written_is_only_slower(folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the cache folder should be", encoding="utf-8")
    assert cached_scores(ForgettingScores, KEY, Counter()) == SCORES


def test_a_measurement_that_was_stopped_leaves_nothing_behind(folder):
    def stop() -> ForgettingScores:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_scores(ForgettingScores, KEY, stop)
    assert not folder.exists()
