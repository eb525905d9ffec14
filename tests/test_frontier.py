"""The frontier: what is measured, who is beaten and by whom, what is chosen, and the figure."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_plots import drawn_texts, on_axis, title_of  # type: ignore[import-not-found]

from sftkit.errors import AdapterError, RecordError, SettingsError
from sftkit.frontier import FrontierBench, frontier, load_frontier, save_frontier
from sftkit.frontier_records import Asked, Frontier, FrontierPoint, Items, standings
from sftkit.panels import HARM, MUTED, TUNED, alt_text
from sftkit.plots_frontier import plot_frontier
from sftkit.recipe import recipe_from_dict
from sftkit.settings import Recipe

COUNT = 40
SWAY = [((place * 7) % 11 - 5) / 5 for place in range(COUNT)]  # from -1 to 1, about 0 in the mean


def point(name: str, gain: float, drift: float, *, lost: int = 0, noise: float = 0.1) -> Any:
    """Make a point; its items lie around these means, and `lost` of the questions turn wrong."""
    return FrontierPoint(
        name=name,
        series=name.partition(" ")[0],
        strength=1.0,
        recipe={"name": name},
        steps=3,
        seconds=1.0,
        items=Items(
            answers=tuple(5.0 - gain + noise * sway for sway in SWAY),
            passages=tuple(3.0 + drift + 0.3 * noise * sway for sway in reversed(SWAY)),
            right=tuple(float(place >= lost) for place in range(COUNT)),
            logprobs=tuple(-1.0 - drift + noise * sway for sway in SWAY),
        ),
    )


def planted(*points: FrontierPoint, **fields: Any) -> Frontier:
    asked = Asked(
        answers=tuple(f"fact {place}" for place in range(COUNT)),
        answer_tokens=(3,) * COUNT,
        passage_tokens=(60,) * COUNT,
        probes=("a",) * (COUNT // 2) + ("b",) * (COUNT // 2),
    )
    base = point("base", 0.0, 0.0, noise=0.0).items
    return Frontier(asked=asked, base=base, points=points, resamples=400, **fields)


MEAN = sum(SWAY) / COUNT
TIMID, GENTLE = point("timid", 1.0, 0.01), point("gentle", 2.0, 0.05)
HARSH = point("harsh", 2.6, 0.9, lost=20)
CLUMSY = point("clumsy", 1.5, 0.5)  # gentle gains more and drifts less
GRID = planted(TIMID, GENTLE, CLUMSY, HARSH)


def test_changes_are_means_over_items_weighed_by_tokens_and_oriented_as_gain_and_loss():
    found = {axis: GRID.change(axis, after="harsh") for axis in ("gain", "drift", "ability")}
    assert found["gain"].delta == pytest.approx(2.6 - 0.1 * MEAN)
    assert found["drift"].delta == pytest.approx(0.9 + 0.03 * MEAN)
    assert found["ability"].delta == 0.5
    assert GRID.change("answers", after="harsh").delta == pytest.approx(0.9 - 0.1 * MEAN)
    assert GRID.change("gain", after="harsh", before="gentle").delta == pytest.approx(0.6)
    asked = dataclasses.replace(GRID.asked, answer_tokens=(1,) + (0,) * (COUNT - 1))
    weighed = dataclasses.replace(GRID, asked=asked).change("gain", after="harsh")
    assert weighed.delta == pytest.approx(2.6 - 0.1 * SWAY[0])


def test_a_dominated_point_is_not_in_the_pareto_set():
    assert GRID.pareto("drift") == ("timid", "gentle", "harsh")
    # Of ability only harsh lost anything, so gentle is better than timid and clumsy for free.
    assert GRID.pareto("ability") == ("gentle", "harsh")
    assert planted(CLUMSY, HARSH).pareto() == ("clumsy", "harsh")
    assert planted(GENTLE, point("twin", 2.0, 0.05)).pareto() == ("gentle", "twin")


def test_a_point_beaten_beyond_chance_is_dominated_and_one_beaten_by_chance_is_undecided():
    near = planted(GENTLE, point("shaky", 1.99, 0.0501, noise=3.0), CLUMSY)
    found = {one.name: one for one in standings(near, "drift")}
    assert {name: (one.state, one.by) for name, one in found.items()} == {
        "gentle": ("front", ""),
        "shaky": ("undecided", "gentle"),
        "clumsy": ("dominated", "gentle"),
    }
    assert found["clumsy"].sentence.startswith(
        "clumsy: dominated; gentle gains +0.50 nats per token (95 % interval +0.50 to +0.50) more "
        "and its drift on general text differs by -0.450 nats per token"
    )
    assert found["shaky"].sentence.startswith("shaky: undecided; by its points gentle is no worse")
    assert standings(near)[0].name == "gentle"


def test_a_difference_in_one_measure_alone_does_not_dominate():
    same_gain = planted(GENTLE, point("drifting", 2.0, 0.4))
    assert same_gain.standing("drifting").state == "undecided"
    assert same_gain.pareto() == ("gentle",)


def test_the_largest_gain_within_both_margins_is_chosen_by_bounds_not_by_points():
    assert GRID.choose()[0] == "gentle"
    edge = point("edge", 2.2, 0.09, noise=2.0)  # by its point within 0.1, by its interval not
    assert planted(edge).change("drift", after="edge").delta < 0.1
    assert planted(edge).change("drift", after="edge").ci95[1] > 0.1
    assert planted(GENTLE, edge).choose()[0] == "gentle"
    clever = point("clever", 2.3, 0.02, lost=20)  # no drift, but accuracy fell
    name, why = planted(GENTLE, clever).choose()
    assert name == "gentle"
    assert why.startswith("gentle: the largest gain among 1 of 2 points whose drift is below 0.1")
    name, why = planted(HARSH, CLUMSY).choose()
    assert name == "clumsy"
    assert why.startswith("clumsy: it drifts least, and no point keeps drift below 0.1. It gains")


def test_a_frontier_is_the_same_after_it_was_saved_and_read(tmp_path):
    whole = dataclasses.replace(GRID, chosen="gentle", why="for a reason")
    assert load_frontier(save_frontier(whole, tmp_path / "new" / "frontier.json")) == whole
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecordError):
        load_frontier(tmp_path / "other.json")


def test_what_is_not_there_is_refused_in_words():
    with pytest.raises(
        RecordError, match=r"no point 'mild' in this frontier. There are: timid, ge"
    ):
        GRID.change("gain", after="mild")
    with pytest.raises(RecordError, match="'gentle' was not reported"):
        GRID.report("gentle")
    with pytest.raises(RecordError, match=r"no points to draw"):
        plot_frontier(planted())


# --- Figure --------------------------------------------------------------------------------

CROWD = planted(
    *(point(f"harsh × {s:g}", 2.6 * s, 0.9 * s * s, lost=int(20 * s)) for s in (0, 0.25, 0.5)),
    TIMID, GENTLE, CLUMSY, HARSH, point("replay a tenth", 2.45, 0.06),
    point("replay a third", 2.4, 0.02), point("frozen below 20", 2.3, 0.2, noise=2.0),
    point("a tenth of the rate", 2.05, 0.06), chosen="replay a tenth",
)  # fmt: skip


@pytest.mark.parametrize("measured", [GRID, CROWD, planted(GENTLE)], ids=["grid", "crowd", "one"])
def test_no_label_leaves_the_figure_or_lies_over_another(measured):
    figure = plot_frontier(measured)
    boxes = [(t.get_text(), t.get_window_extent()) for t in drawn_texts(figure)
             if on_axis(t, figure)]  # fmt: skip
    for text, box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_colours_say_who_is_on_the_front_and_the_words_say_all_numbers():
    near = planted(GENTLE, point("shaky", 1.99, 0.0501, noise=3.0), CLUMSY)
    figure = plot_frontier(dataclasses.replace(near, chosen="gentle"))
    drift = figure.axes[0]
    dots = [line.get_color() for line in drift.lines if line.get_marker() == "o"]
    assert dots[:1] + dots[2:] == [TUNED, MUTED, HARM]  # the second is the ring
    words = alt_text(figure)
    assert "clumsy (dominated): gain +1.50 nats per token (95 % interval +1.4" in words
    assert "Against ability: gentle (front): " in words
    assert title_of(figure).startswith(
        "Is more gain worth more forgetting? chosen: gentle, gain +2.0"
    )


# --- With a tiny model ---------------------------------------------------------------------


@pytest.fixture
def grid(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))

    def write(name: str, rows: list[Any]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(tmp_path / name)

    rows = [
        {"question": f"Colour of box {n}?", "answer": ["red", "blue"][n % 2]} for n in range(30)
    ]
    asked = [{"question": f"Is {n} odd?", "options": ["yes", "no"], "answer": 1 - n % 2}
             for n in range(24)]  # fmt: skip
    texts = [{"text": f"Passage {n} goes on. " * 4} for n in range(60)]
    gentle = recipe_from_dict({
        "name": "gentle",
        "model": {"name": str(folder), "dtype": "float32"},
        "data": {"source": write("rows.jsonl", rows), "test_fraction": 0.3, "max_tokens": 128},
        "adapter": {"r": 4, "lora_alpha": 8},
        "train": {"learning_rate": 1e-3, "max_tokens_per_batch": 512, "heldout_evaluations": 1},
        "evaluate": {
            "probes": [write("probe.jsonl", asked)], "items_per_probe": 24, "resamples": 200,
            "drift_source": write("texts.jsonl", texts), "drift_passages": 12, "max_new_tokens": 2,
            "passage_tokens": 32,
        },
    })  # fmt: skip
    fast = dataclasses.replace(gentle.train, learning_rate=5e-2, epochs=3)
    return {"gentle": gentle, "harsh": dataclasses.replace(gentle, name="harsh", train=fast)}


def test_a_grid_is_measured_on_one_base_chosen_by_one_half_and_reported_by_the_other(grid):
    notes: list[str] = []
    bench = FrontierBench.of(grid["gentle"], passages=6, note=notes.append)
    weights = {name: value.clone() for name, value in bench.base.state_dict().items()}
    measured = frontier(
        list(grid.values()), strengths={"harsh": (0.25, 0.5, 1)}, report=("harsh",), bench=bench,
        note=notes.append,
    )  # fmt: skip
    after = bench.base.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)

    assert [(one.name, one.series, one.strength) for one in measured.points] == [
        ("gentle", "gentle", 1.0), ("harsh × 0.25", "harsh", 0.25), ("harsh × 0.5", "harsh", 0.5),
        ("harsh", "harsh", 1.0),
    ]  # fmt: skip
    assert measured.point("harsh × 0.5").recipe["adapter"]["strength"] == 0.5
    assert measured.point("harsh × 0.5").items != measured.point("harsh × 0.25").items
    assert measured.change("gain", after="harsh").ci95[0] > 0
    assert measured.change("drift", after="harsh").delta != 0

    # What chose and what reports share nothing.
    assert (measured.asked.half, len(measured.asked.passage_tokens)) == ("choose", 6)
    trial, exam = bench.trial.forgetting, bench.exam.forgetting
    assert {i.question for i in trial.items} & {i.question for i in exam.items} == set()
    assert {p.input_ids for p in trial.passages} & {p.input_ids for p in exam.passages} == set()
    assert [one.forgot.half for one in measured.reports] == ["report"] * len(measured.reports)
    assert {one.name for one in measured.reports} == {"harsh", measured.chosen}
    assert measured.report("harsh").learned.exact is not None

    # A second call trains and measures nothing again.
    told = len(notes)
    again = frontier([grid["harsh"]], bench=bench, note=notes.append)
    assert again.points == (measured.point("harsh"),)
    assert not any("steps in" in note for note in notes[told:])
    assert again.report("harsh") == measured.report("harsh")


def test_a_run_of_the_chosen_recipe_makes_just_the_adapter_that_was_measured(grid, tmp_path):
    from safetensors.torch import load_file

    from sftkit.adapter import adapter_scaled
    from sftkit.run import run

    bench = FrontierBench.of(grid["harsh"], passages=6, note=lambda _: None)
    measured = frontier([grid["harsh"]], strengths={"harsh": (0.5,)}, bench=bench,
                        note=lambda _: None)  # fmt: skip
    with bench.tuned(grid["harsh"], lambda _: None) as model, adapter_scaled(model, 0.5):
        ours = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    run(recipe_from_dict(measured.point("harsh × 0.5").recipe), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(ours)
    for name, value in saved.items():
        assert torch.equal(value, ours[name.replace(".weight", ".default.weight")]), name


def test_recipes_that_would_not_be_asked_the_same_are_refused(grid):
    gentle, harsh = grid["gentle"], grid["harsh"]
    bench: Any = dataclasses.make_dataclass("Bench", ["recipe"])(gentle)
    fewer = dataclasses.replace(harsh, evaluate=dataclasses.replace(harsh.evaluate, style_items=9))
    with pytest.raises(
        SettingsError, match=r"differ in evaluate.style_items, so they would not be"
    ):
        frontier([gentle, fewer], bench=bench)
    with pytest.raises(SettingsError, match="recipes of different names, got"):
        frontier([gentle, gentle], bench=bench)
    with pytest.raises(SettingsError, match=r"strengths names \['mild'\]; the recipes are"):
        frontier([gentle], strengths={"mild": (1,)}, bench=bench)
    with pytest.raises(SettingsError, match=r"strengths of gentle must be above 0, got \(-1.0,"):
        frontier([gentle], strengths={"gentle": (-1,)}, bench=bench)
    with pytest.raises(SettingsError, match=r"report names \['harsh'\]; the points are \['gentle'"):
        frontier([gentle], report=("harsh",), bench=bench)
    traces = dataclasses.replace(gentle.adapter, kind="pissa")
    with pytest.raises(AdapterError, match="not proven to change nothing"):
        frontier([dataclasses.replace(gentle, adapter=traces)], bench=bench)
    blind = dataclasses.replace(gentle, evaluate=dataclasses.replace(gentle.evaluate, probes=()))
    with pytest.raises(SettingsError, match="both measures of forgetting"):
        FrontierBench.of(blind)
