"""What a run writes down: its record, and the folder with record, recipe, answers and report."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import TrainError
from sftkit.recipe import recipe_from_dict, recipe_to_dict, yaml_text
from sftkit.records import (
    Answer,
    Cost,
    Environment,
    Preflight,
    RunRecord,
    TrainRecord,
    to_json,
)
from sftkit.settings import Recipe, to_plain

if TYPE_CHECKING:
    from sftkit.evidence.exam import Outcome
    from sftkit.model import DtypeChoice
    from sftkit.prepare import PreparedData
    from sftkit.prepare_labels import PreparedLabels


RECIPE = "recipe.yaml"
"""The recipe's name in a run's folder."""


@contextlib.contextmanager
def full_disk_in_words(folder: Path) -> Iterator[None]:
    """Say what is left of a run when its disk takes no more.

    Raises:
        TrainError: With what is saved and what to do.
    """
    from safetensors import SafetensorError

    from sftkit.checkpoint import checkpoints

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) not in full and os.strerror(full[0]) not in str(error):
            raise
        saved = checkpoints(folder / "checkpoints")
        left = (
            f"Its record is written; sftkit report {folder} draws the rest"
            if (folder / "run.json").exists()
            else f"Step {saved[0][0]} is saved; go on from it with --resume"
            if saved
            else "No checkpoint was kept; train.save_every keeps them"
        )
        raise TrainError(
            f"The run had to end: no space is left where {folder} is. Free some. {left}."
        ) from error


@dataclass
class Stopwatch:
    """Seconds per stage of one run."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)
    stages: dict[str, float] = field(default_factory=dict)

    def done(self, stage: str) -> None:
        """Book the time since the last stage."""
        self.stages[stage] = self.total - sum(self.stages.values())

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Book the time inside; what passed since the last stage, such as reading, is left out."""
        self.started += self.total - sum(self.stages.values())
        yield
        self.done(stage)

    @property
    def total(self) -> float:
        """Seconds since the start, wall clock."""
        return time.perf_counter() - self.started

    @property
    def cpu(self) -> float:
        """CPU seconds of this process since the start, all threads together."""
        return time.process_time() - self.cpu_started


def make_record(
    recipe: Recipe,
    data: PreparedData | PreparedLabels,
    outcome: Outcome,
    *,
    preflight: Preflight,
    training: TrainRecord,
    environment: Environment,
    choice: DtypeChoice,
    clock: Stopwatch,
) -> RunRecord:
    """Write down everything a run measured; the time ends here."""
    from sftkit.progress import peak_memory_bytes

    return RunRecord(
        name=recipe.name,
        date=datetime.date.today().isoformat(),
        recipe=recipe_to_dict(recipe),
        learned=outcome.learned,
        forgot=outcome.forgot,
        verdicts=outcome.verdicts,
        answers=_for_reading(outcome.answers, recipe.evaluate.side_by_side),
        preflight=preflight,
        training=training,
        cost=Cost(
            train_s=training.seconds,
            total_s=clock.total,
            cpu_s=clock.cpu,
            tokens=training.tokens,
            tokens_per_s=training.tokens / training.seconds if training.seconds else 0.0,
            peak_bytes=peak_memory_bytes(),
            matmul_gflops=choice.gflops,
            stages_s=dict(clock.stages),
        ),
        environment=environment,
        data=data.facts,
        checks=outcome.checks,
    )


def write_recipe(recipe: Recipe, folder: str | Path) -> None:
    """Write a recipe into a run's folder; secrets in it are blacked out."""
    from sftkit.report.redact import redact

    (Path(folder) / RECIPE).write_text(redact(yaml_text(recipe)), encoding="utf-8")


def write_run(record: RunRecord, answers: Sequence[Any], folder: str | Path) -> None:
    """Write a run's folder: record, recipe, all answers, report, model card and plots.

    Secrets found in any text are blacked out first.

    Args:
        record: The run.
        answers: All answers, as records; of a run on labels, all predictions.
        folder: The run's folder.
    """
    from sftkit.report.html import write_report
    from sftkit.report.redact import redact_record

    folder = Path(folder)
    clean = redact_record(record)
    write_recipe(recipe_from_dict(record.recipe), folder)
    # Redacted before it is JSON: a key that was cut off would take the quotes after it along.
    lines = [json.dumps(to_plain(redact_record(one)), ensure_ascii=False) for one in answers]
    name = "answers.jsonl" if record.learned.labels is None else "predictions.jsonl"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    # A folder with a record is a run that is done: it is there whole, and late, or not at all.
    (folder / "run.json.part").write_text(to_json(clean), encoding="utf-8")
    (folder / "run.json.part").replace(folder / "run.json")
    write_report(clean, folder)


def _for_reading(answers: Sequence[Answer], count: int) -> tuple[Answer, ...]:
    """Take a fixed choice, not a flattering one: evenly spaced, a third of them control."""
    test = [answer for answer in answers if answer.split == "test"]
    control = [answer for answer in answers if answer.split == "control"]
    of_control = min(len(control), count // 3)
    return (*_evenly(test, count - of_control), *_evenly(control, of_control))


def _evenly(answers: Sequence[Answer], count: int) -> list[Answer]:
    count = min(count, len(answers))
    return [answers[place * len(answers) // count] for place in range(count)]
