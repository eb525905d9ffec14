"""The broken run with labels: an encoder that learned two topics, and whose classes are swapped."""

from __future__ import annotations

from typing import Any

from sftkit import catalog
from sftkit.clinic import HEALTHY, SWAPPED, Chart
from sftkit.clinic_bench import ADAPTER, ClinicSettings
from sftkit.records import Answer, TrainRecord


def run_labels(settings: ClinicSettings) -> tuple[Chart, Chart]:
    """Teach an encoder two topics of tickets; then use it as it is, and with its classes swapped.

    Returns:
        The healthy chart and the other.
    """
    from sftkit.adapter import attach_adapter
    from sftkit.evidence.label_scores import make_label_measure
    from sftkit.evidence.mutants import head_swapped
    from sftkit.heads import load_with_head
    from sftkit.labelled import collate_texts
    from sftkit.model import load_tokenizer
    from sftkit.objectives import make_objective
    from sftkit.prepare_labels import prepare_labels
    from sftkit.recipe import recipe_from_dict
    from sftkit.train import train

    recipe = recipe_from_dict(
        {
            "name": "clinic-labels",
            "model": {"name": settings.label_model, "dropout": 0.0},
            "data": {
                "source": "shop-tickets",
                "task": "classify",
                "where": {"label": ["damage", "delivery"]},
                "group_by": "customer",
                "validation_fraction": 0.25,
                "test_fraction": 0.25,
                "max_tokens": 64,
                "seed": settings.seed,
            },
            "train": {
                "learning_rate": 1e-3,
                "epochs": settings.ticket_epochs,
                "max_tokens_per_batch": 384,
                "heldout_evaluations": settings.measurements,
                "seed": settings.seed,
            },
        }
    )
    source = catalog.fetch_model(recipe.model)
    tokenizer = load_tokenizer(recipe.model, source=source)
    data = prepare_labels(recipe, tokenizer=tokenizer)
    base = load_with_head(
        recipe.model, "classify", data.targets, tokenizer=tokenizer, source=source,
        seed=settings.seed,
    )  # fmt: skip
    model = attach_adapter(base, ADAPTER, seed=settings.seed, task_type="SEQ_CLS")
    objective = make_objective("classify", recipe.objective)
    measure = make_label_measure(model, data.validation, data.targets, objective, "classify")
    record = train(
        model,
        data.train[: settings.tickets],
        recipe.train,
        objective=objective,
        collate=collate_texts,
        measure=measure,
    )
    healthy = _examine_labels(HEALTHY, model, record, data, measure)
    with head_swapped(model):
        return healthy, _examine_labels(SWAPPED, model, record, data, measure)


def _examine_labels(fault: str, model: Any, record: TrainRecord, data: Any, measure: Any) -> Chart:
    import numpy as np

    from sftkit.dataset.contamination import find_overlap
    from sftkit.evidence.label_scores import score_labels, true_values
    from sftkit.prepare_labels import texts_of

    names = data.targets.labels
    texts = texts_of(data.splits.test, data.test)
    true, scores = (
        true_values(data.test, data.targets),
        score_labels(model, data.test, data.targets),
    )
    said = scores.argmax(axis=1)
    trained = texts_of(data.balanced, data.train)
    overlap = find_overlap(trained, texts, kinds=("exact",))
    places = [int(np.flatnonzero(true == one)[0]) for one in range(len(names))]
    right = (int((said == true).sum()), len(true))
    held = [step.heldout_loss for step in record.steps if step.heldout_loss is not None]
    return Chart(
        fault=fault,
        steps=record.steps,
        log=(record.heldout_start or 0.0, held[-1]),
        here=(None, measure()["heldout_loss"]),
        example=f"{trained[0]}  →  {names[int(data.train[0].target)]}",
        answers=tuple(
            Answer(question=texts[p], expected=names[true[p]], base="", tuned=names[said[p]])
            for p in places
        ),
        tested=right,
        test_loss=float(-np.log(np.maximum(scores[np.arange(len(true)), true], 1e-12)).mean()),
        confusion=tuple(
            tuple(int(((true == t) & (said == s)).sum()) for s in range(len(names)))
            for t in range(len(names))
        ),
        classes=tuple(names),
        overlap=(len(overlap.rows), overlap.test_rows),
    )
