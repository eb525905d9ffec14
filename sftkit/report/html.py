"""A run's report: one HTML file without scripts that answers "what was learned, what forgotten?".

The page is drawn from the record alone. All text in it is escaped by the template engine, made
visible where it would act on the display, and redacted.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import plots, plots_checks, plots_labels
from sftkit.panels import in_nats, in_points, interval, signed, tone
from sftkit.records import RunRecord, Verdict
from sftkit.report.card import render_card
from sftkit.report.redact import redact_record
from sftkit.settings import EvaluateSettings, loss_unit, to_plain
from sftkit.show import matches, show_example, visible

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from sftkit.label_records import LabelReport

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Picture:
    """One figure as a page embeds it."""

    name: str
    png: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def render_report(record: RunRecord, pictures: Mapping[str, Picture] | None = None) -> str:
    """Render the report of a run as one HTML document.

    Args:
        record: The run.
        pictures: Its figures, where they were drawn before; drawn here otherwise.
    """
    record = redact_record(record)
    return _render(record, pictures or draw_pictures(record))


def write_report(record: RunRecord, folder: str | Path) -> Path:
    """Write report.html, README.md (the model card) and plots/*.png into a run's folder.

    Returns:
        The path of report.html.
    """
    record = redact_record(record)
    folder = Path(folder)
    pictures = draw_pictures(record)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for picture in pictures.values():
        (folder / "plots" / f"{picture.name}.png").write_bytes(picture.png)
    alts = {picture.name: picture.alt for picture in pictures.values()}
    (folder / "README.md").write_text(render_card(record, alts), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(_render(record, pictures), encoding="utf-8")
    return path


def draw_pictures(record: RunRecord) -> dict[str, Picture]:
    """Draw the figures of a report, their texts redacted."""
    record = redact_record(record)
    if record.learned.labels is not None:
        return _as_pictures(_label_figures(record, record.learned.labels) | _check_figures(record))
    ability, drift = plots.margins(record)
    figures: dict[str, Figure] = {
        "overview": plots.plot_overview(record),
        "learned": plots.plot_learned(record.learned),
        "forgotten": plots.plot_forgot(record.forgot, ability_margin=ability, drift_margin=drift),
    }
    if record.training.steps:  # else it was trained elsewhere
        figures["training"] = plots.plot_training(record.training)
        figures["supervised"] = plots.plot_supervised_share(record.preflight)
    return _as_pictures(figures | _check_figures(record))


def _check_figures(record: RunRecord) -> dict[str, Figure]:
    """Draw what was tested beyond learning and forgetting; nothing where nothing was."""
    figures: dict[str, Figure] = {}
    calibration = record.checks.calibration
    if calibration is not None:
        figures["reliability"] = plots_checks.plot_reliability(calibration)
        figures["selective"] = plots_checks.plot_selective(calibration)
    if record.checks.behaviour:
        figures["behaviour"] = plots_checks.plot_behaviour(record.checks.behaviour)
    if record.checks.fairness:
        figures["fairness"] = plots_checks.plot_fairness(record.checks.fairness)
    return figures


def _label_figures(record: RunRecord, report: LabelReport) -> dict[str, Figure]:
    """Draw a run on labels: what it beats, each class or number, and the loss."""
    objective = record.recipe.get("objective")
    loss = objective.get("loss") if isinstance(objective, Mapping) else None
    unit = loss_unit(report.task, str(loss))
    figures = {
        "overview": plots_labels.plot_against_baselines(report),
        "training": plots.plot_training(record.training, unit=unit),
    }
    if report.task == "regress":
        return figures | {"predicted": plots_labels.plot_predicted(report)}
    figures["classes"] = plots_labels.plot_classes(report)
    figures["confusion"] = plots_labels.plot_confusion(report)
    if report.curve:
        figures["thresholds"] = plots_labels.plot_thresholds(report)
    return figures


def _as_pictures(figures: Mapping[str, Figure]) -> dict[str, Picture]:
    return {
        name: Picture(name, plots.to_png(figure), plots.alt_text(figure))
        for name, figure in figures.items()
    }


def _render(record: RunRecord, pictures: Mapping[str, Picture]) -> str:
    drift = record.forgot.drift
    fell = drift is not None and drift.delta < 0

    def verdict_tone(verdict: Verdict) -> str:
        return tone(verdict, fell=fell and verdict is record.verdicts.drift)

    evaluate = record.recipe.get("evaluate")
    scale = evaluate.get("adapter_scale", 1.0) if isinstance(evaluate, Mapping) else 1.0
    resamples = evaluate.get("resamples") if isinstance(evaluate, Mapping) else None
    return _template().render(
        policy=CONTENT_SECURITY_POLICY,
        style=page_style(),
        run=record,
        pictures=pictures,
        mask=show_example(record.preflight),
        recipe_yaml=recipe_yaml(record),
        tone=verdict_tone,
        sizes=_sizes(record),
        scale=scale,
        replays_drift_source=replays_drift_source(record),
        resamples=resamples or EvaluateSettings.resamples,
        titles=plots_labels.TITLES,
    )


def replays_drift_source(record: RunRecord) -> bool:
    """Say whether passages of the kind that measures drift were replayed in training."""
    data, evaluate = record.recipe.get("data"), record.recipe.get("evaluate")
    if not isinstance(data, Mapping) or not isinstance(evaluate, Mapping):
        return False
    return data.get("replay") is not None and data["replay"] == evaluate.get("drift_source")


def _sizes(record: RunRecord) -> list[str]:
    learned, forgot = record.learned, record.forgot
    named = (
        ("trained-fact questions", learned.exact),
        ("control questions", learned.control),
        ("ranked questions", learned.recognition),
        ("held-out answers", learned.heldout_loss),
        ("probe questions", forgot.overall),
    )
    sizes = [f"{measure.items} {name}" for name, measure in named if measure is not None]
    if learned.labels is not None:
        sizes = [f"{learned.labels.items} test items in {learned.labels.groups} groups"]
    return sizes + ([f"{forgot.drift.passages} general passages"] if forgot.drift else [])


def _visible_block(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))


def recipe_yaml(record: RunRecord) -> str:
    """Write the recipe of a run as YAML; where nothing was trained, what it was tested by."""
    import yaml

    recipe = to_plain(record.recipe)
    if not record.training.steps:
        kept = ("name", "model", "data", "evaluate")
        recipe = {name: recipe[name] for name in kept if name in recipe}
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


@cache
def _template() -> Template:
    return make_template("page.html.jinja")


@cache
def page_style() -> Markup:
    """Give the style sheet of all pages; it is ours and needs no escaping."""
    from markupsafe import Markup

    source = resources.files("sftkit.report").joinpath("style.css.jinja")
    return Markup(source.read_text(encoding="utf-8"))  # noqa: S704  (a file of the package)


def make_template(name: str, *, filters: Mapping[str, Any] | None = None) -> Template:
    """Read a page's template, with escaping on and undefined names refused.

    Args:
        name: A file beside this module.
        filters: More filters than those of every page, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "points": in_points,
        "nats": in_nats,
        "signed": signed,
        "interval": interval,
        "percent": lambda share: f"{100 * share:.1f} %",
        # In a block that keeps line breaks, the breaks speak for themselves.
        "visible": _visible_block,
        "visible_tokens": lambda text: visible(text, keep_newlines=True),
        "visible_line": visible,
        "measure": plots_labels.in_interval,
        "gap": plots_checks.gap_in_words,
        **(filters or {}),
    }
    environment.globals |= {"matches": matches}
    source = resources.files("sftkit.report").joinpath(name)
    return environment.from_string(source.read_text(encoding="utf-8"))
