"""The data benchmark plants what it says it plants, and counts pairs right."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from typing import Any

import pytest


@pytest.fixture
def bench(checkout, monkeypatch) -> Any:
    monkeypatch.syspath_prepend(checkout / "benchmarks")
    spec = importlib.util.spec_from_file_location(
        "data_speed", checkout / "benchmarks" / "data_speed.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "data_speed", module)
    spec.loader.exec_module(module)
    numbers = itertools.count()
    pool = [" ".join(f"word{next(numbers)}" for _ in range(7)) for _ in range(2000)]
    monkeypatch.setattr(module, "fragments", lambda: pool)
    return module


def test_planted_pairs_are_as_alike_as_they_are_said_to_be(bench, tmp_path):
    job = bench.Job(rows=1500, folder=str(tmp_path))
    planted = bench.make_rows(job)
    lines = job.file.read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["messages"] for line in lines]
    pairs = [(turn[0]["content"], turn[1]["content"]) for turn in turns]
    assert sum(planted.values()) == len(pairs) == 1500
    for kind, low, high in ((bench.EXACT, 1, 1), (bench.NEAR, 0.8, 1), (bench.HARD, 0.5, 0.7)):
        found = bench.planted_pairs(job, (kind,))
        assert len(found) == planted[bench.KINDS[kind]] > 10
        alike = [bench.similarity(pairs[one], pairs[other]) for one, other in found]
        assert low <= min(alike) <= max(alike) <= high
    texts = set(pairs)
    assert len(texts) == 1500 - planted["exact"]


def test_rows_follow_from_the_seed_alone(bench, tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        job = bench.Job(rows=200, seed=seed, folder=str(tmp_path / name))
        bench.make_rows(job)
        files.append(job.file.read_bytes())
    assert files[0] == files[1] != files[2]


def test_recall_and_precision_count_pairs(bench, monkeypatch):
    planted = {
        (bench.NEAR,): {(0, 1), (2, 3)},
        (bench.EXACT,): {(4, 5)},
        (bench.HARD,): {(6, 7)},
    }
    monkeypatch.setattr(bench, "planted_pairs", lambda job, kinds, below: planted[tuple(kinds)])
    judged = bench.judge([(0, 1), (5, 4), (6, 7, 8)], bench.Job())
    assert judged == {
        "pairs": 5,
        "recall_near": 0.5,
        "recall_exact": 1.0,
        "precision": 2 / 5,
        "hard_taken": 1,
        "hard_planted": 1,
    }


def test_shingles_are_three_words_in_a_row_with_marks_around(bench):
    assert bench.shingles("A b, C") == {
        ("", "", "a"), ("", "a", "b"), ("a", "b", "c"), ("b", "c", ""), ("c", "", ""),
    }  # fmt: skip
