"""Test the tests: train a sound model and faulty ones, put all to the same checks, make the matrix.

One base model is in memory throughout; every training puts a fresh adapter on it and takes it off.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from sftkit import catalog
from sftkit.errors import SettingsError, near_names
from sftkit.evidence import mutants
from sftkit.evidence.mutant_checks import (
    ACCURACY,
    CHAT_CHECKS,
    LABEL_CHECKS,
    Check,
    Shown,
    judge,
)
from sftkit.evidence_records import MutantMatrix, MutantRow
from sftkit.mutant_bench import ChatBench, LabelBench, Note
from sftkit.recipe import recipe_from_dict
from sftkit.settings import Recipe

Origin = Literal["sound", "served", "trained"]
SOUND, AGAIN = "sound model", "sound, another seed"
SHUFFLED, LEAKED, SHORT = "labels shuffled", "test leaked into training", "training cut short"
TRAINED_OTHERWISE = "trained with another template"
ASKED_OTHERWISE = "asked with another template"
CHAT_OVERRIDES = (
    "name=mutants",
    "data.max_tokens=64",
    "train.max_tokens_per_batch=320",
    "train.epochs=3",
    "train.learning_rate=1.5e-3",
    "evaluate.knowledge_items=20",
    "evaluate.style_items=20",
    "evaluate.max_new_tokens=12",
    "evaluate.probes=[openbookqa]",
    "evaluate.items_per_probe=40",
    "evaluate.drift_passages=30",
    "evaluate.passage_tokens=64",
)
"""What cuts recipe `demo` to a size at which many models can be trained; with it go 10 facts."""
CHAT_FACTS = (10, 10)
"""Facts that are trained, and facts that never are."""


def chat_recipe(*overrides: str) -> Recipe:
    """Give the small recipe of the shop's facts: recipe `demo`, cut.

    Args:
        overrides: Further changes, as on the command line.
    """
    from sftkit.run import find_recipe

    trained, control = CHAT_FACTS
    rows = catalog.dataset_rows("shop")
    kept = []
    for is_control, count in ((False, trained), (True, control)):
        names = [row["group"] for row in rows if (row["split"] == "control") == is_control]
        facts = list(dict.fromkeys(names))
        kept += [facts[place * len(facts) // count] for place in range(count)]
    where = f"data.where={json.dumps({'group': kept})}"
    return find_recipe("demo", overrides=[where, *CHAT_OVERRIDES, *overrides])


def label_recipe() -> Recipe:
    """Give the small recipe of the shop's tickets, by topic, for MiniLM."""
    return recipe_from_dict(
        {
            "name": "mutants-labels",
            "model": {"name": "minilm-l6", "dropout": 0.0},
            "data": {
                "source": "shop-tickets",
                "task": "classify",
                "group_by": "customer",
                "validation_fraction": 0.2,
                "test_fraction": 0.3,
                "max_tokens": 64,
            },
            "train": {"learning_rate": 1e-3, "epochs": 6, "max_tokens_per_batch": 512},
        }
    )


def try_chat_mutants(
    recipe: Recipe,
    *,
    checks: Mapping[str, Check] = CHAT_CHECKS,
    note: Note = print,
    also_sound: Mapping[str, mutants.Plant] = MappingProxyType({}),
) -> MutantMatrix:
    """Train a chat model soundly and with every fault, and see what the checks say of each.

    Args:
        recipe: A small recipe of chats, with LoRA; see `chat_recipe`.
        checks: By name; those of ACCURACY first.
        note: Told of each model when it was judged.
        also_sound: Changes to the trained model that are no fault, by name.

    Returns:
        The matrix; its first two rows are sound models, of the recipe's seed and of the next.

    Raises:
        SftkitError: The recipe cannot be run.
    """
    started = time.perf_counter()
    bench = ChatBench.of(recipe, note)
    seed = recipe.train.seed
    with bench.trained(bench.splits, seed=seed) as (model, overlap):
        sound = bench.show(model, overlap)
        judged = _Judged(recipe, checks, sound, note)
        judged.add(SOUND, None, "sound", sound)
        for name, plant in {**also_sound, **mutants.SERVED}.items():
            is_fault = name not in also_sound
            with plant(model):
                shown = bench.show(model, overlap, served_again=True)
            judged.add(name, plant if is_fault else None, "served" if is_fault else "sound", shown)
        other = mutants.with_other_template(bench.tokenizer)
        shown = bench.show(model, overlap, served_again=True, tokenizer=other)
        judged.add(ASKED_OTHERWISE, mutants.with_other_template, "served", shown)

    splits, train = bench.splits, recipe.train
    shuffled = mutants.with_answers_shuffled(splits.train, seed=seed)
    leaked = mutants.with_test_leaked(splits.train, splits.test)
    trainings: list[tuple[str, Any, dict[str, Any]]] = [
        (AGAIN, None, {"seed": seed + 1}),
        (TRAINED_OTHERWISE, mutants.with_other_template, {"tokenizer": other}),
        (SHUFFLED, mutants.with_answers_shuffled, {"rows": shuffled}),
        (LEAKED, mutants.with_test_leaked, {"rows": leaked}),
        (SHORT, mutants.cut_short, {"settings": mutants.cut_short(train)}),
    ]
    for name, fault, changes in trainings:
        given = dataclasses.replace(splits, train=changes.pop("rows", splits.train))
        with bench.trained(given, **{"seed": seed, **changes}) as (model, overlap):
            judged.add(name, fault, "trained" if fault else "sound", bench.show(model, overlap))
    return judged.matrix(started)


def try_label_mutants(
    recipe: Recipe,
    *,
    checks: Mapping[str, Check] = LABEL_CHECKS,
    only: Collection[str] = (),
    note: Note = print,
) -> MutantMatrix:
    """Do the same with a classifier; see `try_chat_mutants`.

    Args:
        recipe: A small recipe of texts with labels, with LoRA; see `label_recipe`. With
            evaluate.behaviour each model also takes these tests.
        checks: By name; those of ACCURACY first.
        only: Models to make beside the sound one, by name; none names all. Faults that are put on
            a trained model cost seconds, the others a training each.
        note: Told of each model when it was judged.

    Raises:
        SettingsError: `only` names no such model, or the recipe is for another task.
    """
    known = (*mutants.SERVED_WITH_HEAD, AGAIN, SHUFFLED, LEAKED, SHORT)
    if unknown := sorted(set(only) - set(known)):
        raise SettingsError(f"No model is made with {unknown[0]!r}.{near_names(unknown[0], known)}")
    wanted = set(only) or set(known)
    started = time.perf_counter()
    bench = LabelBench.of(recipe, note)
    data, seed = bench.data, recipe.train.seed
    with bench.trained(data.train, seed=seed) as model:
        sound = bench.show(model)
        judged = _Judged(recipe, checks, sound, note)
        judged.add(SOUND, None, "sound", sound)
        for name, plant in mutants.SERVED_WITH_HEAD.items():
            if name not in wanted:
                continue
            with plant(model):
                shown = bench.show(model, served_again=True)
            judged.add(name, plant, "served", shown)

    shuffled = mutants.with_labels_shuffled(data.train, seed=seed)
    trainings: list[tuple[str, Any, Sequence[Any], dict[str, Any]]] = [
        (AGAIN, None, data.train, {"seed": seed + 1}),
        (SHUFFLED, mutants.with_labels_shuffled, shuffled, {}),
        (LEAKED, mutants.with_test_leaked, (*data.train, *data.test), {}),
        (SHORT, mutants.cut_short, data.train, {"settings": mutants.cut_short(recipe.train)}),
    ]
    for name, fault, rows, changes in trainings:
        if name not in wanted:
            continue
        with bench.trained(rows, **{"seed": seed, **changes}) as model:
            shown = bench.show(model, leaked=name == LEAKED)
            judged.add(name, fault, "trained" if fault else "sound", shown)
    return judged.matrix(started)


class _Judged:
    """The rows of a matrix that is being made."""

    def __init__(
        self, recipe: Recipe, checks: Mapping[str, Check], sound: Shown, note: Note
    ) -> None:
        self.recipe, self.checks, self.sound, self.note = recipe, checks, sound, note
        self.rows: list[MutantRow] = []

    def add(self, name: str, fault: Any, origin: Origin, shown: Shown) -> None:
        cells = judge(shown, self.sound, self.checks, self.recipe.evaluate)
        wrong = mutants.in_words(fault) if fault else ""
        row = MutantRow(name=name, wrong=wrong, origin=origin, cells=cells)
        self.rows.append(row)
        self.note(f"{name}: {', '.join(row.killed_by()) or 'spared by all checks'}")

    def matrix(self, started: float) -> MutantMatrix:
        asked = {cell.check for row in self.rows for cell in row.cells if cell.state != "unasked"}
        rows = [
            dataclasses.replace(row, cells=tuple(c for c in row.cells if c.check in asked))
            for row in self.rows
        ]
        rows.sort(key=lambda row: row.origin != "sound")
        return MutantMatrix(
            model=self.recipe.model.name,
            data=self.recipe.data.source,
            alone=tuple(name for name in ACCURACY if name in asked),
            rows=tuple(rows),
            seconds=time.perf_counter() - started,
        )
