"""Trackers: TensorBoard, trackio, W&B and MLflow are told the steps of a run, through Accelerate.

Accelerate's own tracker classes do the work. They are used without an `Accelerator`, because
`Accelerator.log` lets one tracker's failure stop the others and the run.

Nothing leaves the machine by default. TensorBoard, W&B (offline) and MLflow write below the run's
`trackers` folder; trackio keeps all projects in its own place (TRACKIO_DIR). Whoever wants a
server says so with the tracker's own environment variables: WANDB_MODE=online,
MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftkit.errors import SettingsError, near_names
from sftkit.metrics import step_speeds
from sftkit.records import Step
from sftkit.report.redact import redact, redact_record
from sftkit.settings import Recipe, TrainSettings, to_plain


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One tracker.

    Attributes:
        module: What has to be importable.
        install: What to install, as pip is told.
        environment: Variables that keep it quiet and at home, where the user has not set them.
        start: Makes Accelerate's tracker, of a project, a run's name and a folder.
        look: How to look at what was written, with {folder} and {project}.
    """

    module: str
    install: str
    environment: Mapping[str, str] = field(default_factory=dict)
    start: Callable[[str, str, Path], Any]
    look: str


def _start_tensorboard(project: str, run: str, folder: Path) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # A resumed run tells all its steps again; what the killed one wrote is then out of date.
    return TensorBoardTracker(project, folder, purge_step=1)


def _start_trackio(project: str, run: str, folder: Path) -> Any:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(project, name=run, embed=False, auto_log_cpu=False, auto_log_gpu=False)


def _start_wandb(project: str, run: str, folder: Path) -> Any:
    import wandb
    from accelerate.tracking import WandBTracker

    # Only what it is told: not the host, the user, the command line, the code or what is printed.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="-",
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    mode = os.environ.get("WANDB_MODE", "offline")
    return WandBTracker(project, name=run, dir=folder, mode=mode, settings=settings)


def _start_mlflow(project: str, run: str, folder: Path) -> Any:
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(folder.resolve().as_uri())
    tags = {"mlflow.user": "", "mlflow.source.name": "sftkit"}
    return MLflowTracker(project, run_name=run, tags=tags)


KINDS: Mapping[str, _Kind] = {
    "tensorboard": _Kind(
        module="tensorboard",
        install="tensorboard",
        start=_start_tensorboard,
        look="tensorboard --logdir {folder}",
    ),
    "trackio": _Kind(
        module="trackio",
        install='"trackio>=0.43"',
        environment={"HF_HUB_DISABLE_TELEMETRY": "1"},
        start=_start_trackio,
        look="trackio show --project {project}",
    ),
    "wandb": _Kind(
        module="wandb",
        install="wandb",
        environment={"WANDB_ERROR_REPORTING": "false"},
        start=_start_wandb,
        look="wandb sync {folder}/wandb/offline-run-*  (this sends it to W&B)",
    ),
    "mlflow": _Kind(
        module="mlflow",
        install="mlflow-skinny",
        environment={"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"},
        start=_start_mlflow,
        look="MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}",
    ),
}


def tracker_names(settings: TrainSettings) -> tuple[str, ...]:
    """List the trackers a run is to have; none for the word none."""
    given = settings.trackers
    names = (given,) if isinstance(given, str) else given
    return () if names == ("none",) else tuple(dict.fromkeys(names))


def refuse_trackers(settings: TrainSettings) -> None:
    """Stop before anything is computed when a tracker is unknown or not installed.

    Raises:
        SettingsError: With everything that is to be installed, as one command.
    """
    names = tracker_names(settings)
    for name in names:
        if name not in KINDS:
            raise SettingsError(f"There is no tracker {name!r}.{near_names(name, KINDS)}")
    missing = [name for name in names if importlib.util.find_spec(KINDS[name].module) is None]
    if missing:
        needed = " ".join(KINDS[name].install for name in missing)
        raise SettingsError(
            f"train.trackers={', '.join(missing)}: not installed. Run: pip install {needed}  "
            "(or set train.trackers=none; metrics.jsonl holds every step in any case)."
        )


@contextlib.contextmanager
def track_steps(
    recipe: Recipe, folder: str | Path, *, note: Callable[[str], None] = print
) -> Iterator[Callable[[Step], None]]:
    """Keep a run's trackers; inside, hand every step to the function it gives.

    They start with the first step, which only the run's first process is told. A tracker that
    fails is left out from then on, in words; training goes on. A resumed run tells its steps from
    the first one on: TensorBoard replaces the earlier curve, the others begin a new run.

    Args:
        recipe: Its trackers, its name as their project, and all its settings, without secrets.
        folder: The run's folder; its name is the run's name.
        note: Told where each tracker writes, and once of a failure.
    """
    folder = Path(folder)
    running: dict[str, Any] = {}
    steps: list[Step] = []

    def attempt(name: str, act: Callable[[], Any]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what they print is said by `note`
                act()
        except Exception as error:  # whatever a tracker raises, the run goes on
            running.pop(name, None)
            said = redact(f"{type(error).__name__}: {error}").splitlines()[0]
            note(f"{name} failed and is told nothing more ({said}); training goes on.")

    def start(name: str) -> None:
        kind = KINDS[name]
        place = folder / "trackers" / name
        place.mkdir(parents=True, exist_ok=True)
        for variable, value in kind.environment.items():
            os.environ.setdefault(variable, value)
        tracker = kind.start(recipe.name, folder.resolve().name, place)
        tracker.start()
        tracker.store_init_configuration(flat_settings(recipe))
        running[name] = tracker
        note(f"{name}: {kind.look.format(folder=place, project=recipe.name)}")

    def tell(step: Step) -> None:
        if not steps:
            for name in tracker_names(recipe.train):
                attempt(name, functools.partial(start, name))
        steps[:] = [*steps[-1:], step]
        values = step_values(steps)
        for name, tracker in list(running.items()):
            attempt(name, functools.partial(tracker.log, values, step=step.step))

    try:
        yield tell
    finally:
        for name, tracker in list(running.items()):
            attempt(name, tracker.finish)


def step_values(steps: list[Step]) -> dict[str, float]:
    """Give what trackers are told of the last step, by the names that metrics.jsonl uses.

    Args:
        steps: The step, with the one before it where there is one.
    """
    step = steps[-1]
    values = {
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens": step.tokens,
        "tokens_per_s": step_speeds(steps)[-1],
        "memory_bytes": step.memory_bytes,
        **step.metrics,
    }
    return values if step.heldout_loss is None else {**values, "heldout_loss": step.heldout_loss}


def flat_settings(recipe: Recipe) -> dict[str, str | float]:
    """Give every setting as one flat value, such as train.learning_rate, without secrets."""
    flat: dict[str, str | float] = {}
    for section, values in to_plain(redact_record(recipe)).items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for name, value in pairs:
            key = f"{section}.{name}" if name else section
            flat[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
