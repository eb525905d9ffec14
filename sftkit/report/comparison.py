"""The report of several runs: one HTML file without scripts that says what differs and what it did.

It is drawn from a comparison alone. All text in it is escaped, made visible and redacted, as in the
report of one run.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.panels import alt_text, to_png
from sftkit.plots_compare import compared_in_words, plot_compared, point_in_words
from sftkit.report.html import CONTENT_SECURITY_POLICY, Picture, make_template, page_style
from sftkit.report.redact import redact_record

if TYPE_CHECKING:
    from jinja2 import Template

    from sftkit.compare import Comparison, Outcome, Point, Step


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write a comparison as one HTML file.

    Returns:
        Its path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_comparison(comparison), encoding="utf-8")
    return path


def render_comparison(comparison: Comparison) -> str:
    """Render a comparison as one HTML document."""
    comparison = redact_record(comparison)
    measured = any(sum(p is not None for p in one.points) > 1 for one in comparison.outcomes)
    picture = None
    if measured:
        figure = plot_compared(comparison)
        picture = Picture("comparison", to_png(figure), alt_text(figure))
    return _template().render(
        policy=CONTENT_SECURITY_POLICY,
        style=page_style(),
        title=compared_in_words(comparison),
        first=comparison.letters[0],
        runs=list(zip(comparison.letters, comparison.records, strict=True)),
        comparable=list(zip(comparison.letters[1:], comparison.comparable, strict=True)),
        steps=comparison.steps,
        picture=picture,
        differences=comparison.differences,
        outcomes=comparison.outcomes,
        costs=_costs(comparison),
    )


def _costs(comparison: Comparison) -> list[tuple[str, list[str]]]:
    costs = [record.cost for record in comparison.records]
    return [
        ("training", [f"{cost.train_s:,.0f} s" for cost in costs]),
        ("speed of training", [f"{cost.tokens_per_s:,.0f} tokens/s" for cost in costs]),
        ("peak memory", [f"{cost.peak_bytes / 1e9:.2f} GB" for cost in costs]),
    ]


def _point_words(point: Point | None, outcome: Outcome) -> str:
    return point_in_words(point, outcome.unit, is_change=outcome.is_change)


def _step_words(step: Step) -> str:
    factor = 100.0 if step.unit == "points" else 1.0
    low, high = step.change.ci95 or (step.change.value, step.change.value)
    scaled = dataclasses.replace(
        step.change, value=factor * step.change.value, ci95=(factor * low, factor * high)
    )
    return point_in_words(scaled, step.unit, is_change=True)


@cache
def _template() -> Template:
    more: dict[str, Any] = {"point_words": _point_words, "step_words": _step_words}
    return make_template("comparison.html.jinja", filters=more)
