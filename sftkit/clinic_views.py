"""The clinic as it is shown: a patient's chart beside the healthy one, and its sealed diagnosis."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.clinic import FAMILIES, PATIENTS, Chart, find_signs
from sftkit.errors import SettingsError
from sftkit.records import Answer
from sftkit.show import MaskView, visible

_CELL = "padding:.25em .7em;border-bottom:1px solid #8884;text-align:left;vertical-align:top"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient, by number."""

    number: int
    chart: Chart
    healthy: Chart

    def _repr_html_(self) -> str:
        heads = ("", "healthy run", f"patient {self.number}")
        body = "".join(
            f'<tr><th scope="row" style="{_CELL};font-weight:normal">{name}</th>'
            f'<td style="{_CELL}">{sound}</td><td style="{_CELL}"><b>{ill}</b></td></tr>'
            for name, sound, ill in self.rows()
        )
        head = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in heads)
        parts = [f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"]
        parts.append("<p>A training row:</p>" + _example_html(self.chart.example))
        if self.chart.asked:
            asked = html.escape(visible(self.chart.asked))
            parts.append(
                f"<p>The same question, as the model is asked it: <code>{asked}</code></p>"
            )
        return "".join(parts) + _answers_html(self.chart.answers)

    def __str__(self) -> str:
        lines = [f"patient {self.number}"]
        lines += [f"{name}: {sound} | {ill}" for name, sound, ill in self.rows()]
        lines += [f"a training row: {self.chart.example}", f"as asked: {self.chart.asked}"]
        lines += [f"{a.question} → {a.tuned} (expected: {a.expected})" for a in self.chart.answers]
        return "\n".join(lines)

    __repr__ = __str__

    def rows(self) -> list[tuple[str, str, str]]:
        """Give name, healthy value and this patient's value of every number that is known."""
        ours, theirs = numbers(self.chart), numbers(self.healthy)
        return [(name, theirs.get(name, "–"), value) for name, value in ours.items()]


def numbers(chart: Chart) -> dict[str, str]:
    """Write a chart's numbers, by name."""
    first = "" if chart.here[0] is None else f"{chart.here[0]:.2f}"
    told: dict[str, Any] = {
        "loss of fresh rows before training: in its log": f"{chart.log[0]:.2f}",
        "loss of fresh rows with the base that is used": first,
        "loss of fresh rows after training: in its log": f"{chart.log[1]:.2f}",
        "loss of fresh rows with the model that is used": f"{chart.here[1]:.2f}",
        "loss of the tested rows": f"{chart.test_loss:.2f}",
        "right answers to tested questions": _share(chart.tested),
        "right answers to fresh questions": _share(chart.fresh),
        "answers that end": _share(chart.ended),
        "tested rows whose loss is exactly the base's": _share(chart.unmoved),
        "general text: change of loss": "" if chart.drift is None else f"{chart.drift:+.2f}",
        "audit: tested rows that stand in training": _share(chart.overlap),
    }
    for name, line in zip(chart.classes, chart.confusion or (), strict=False):
        said = ", ".join(f"{n} {other}" for n, other in zip(line, chart.classes, strict=True))
        told[f"tickets about {name} were called"] = said
    return {name: value for name, value in told.items() if value}


def _share(counts: tuple[int, int] | None) -> str:
    return f"{counts[0]} of {counts[1]}" if counts else ""


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """A diagnosis, folded until somebody opens it."""

    case: Case

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        """Heads and texts."""
        chart = self.case.chart
        patient = PATIENTS[chart.fault]
        signs = ", ".join(find_signs(chart, self.case.healthy)) or "none in this run"
        told = chart.refusal or "Nothing: no program can see this in the settings."
        return (
            ("Diagnosis", chart.fault),
            ("What was broken", patient.broken),
            ("What tells", patient.telling),
            ("Signs found by program", signs),
            ("Cure", patient.cure),
            ("What sftkit says to it", told),
        )

    def _repr_html_(self) -> str:
        body = "".join(f"<p><b>{head}.</b> {html.escape(text)}</p>" for head, text in self.lines)
        summary = f"Patient {self.case.number}: open the diagnosis and its cure"
        return f"<details><summary>{summary}</summary>{body}</details>"

    def __repr__(self) -> str:
        return f"the sealed diagnosis of patient {self.case.number}; print() opens it"

    def __str__(self) -> str:
        return "\n".join(f"{head}. {text}" for head, text in self.lines)


@dataclass(frozen=True, kw_only=True, repr=False)
class Ward:
    """All patients, and the healthy run they are compared with."""

    healthy: Chart
    cases: tuple[Case, ...]

    def __repr__(self) -> str:
        return f"{len(self.cases)} patients"

    def case(self, number: int) -> Case:
        """Give a patient's chart.

        Raises:
            SettingsError: There is no such patient.
        """
        if not 1 <= number <= len(self.cases):
            raise SettingsError(f"There is no patient {number}; they are 1 to {len(self.cases)}.")
        return self.cases[number - 1]

    def reveal(self, number: int) -> Reveal:
        """Give a patient's diagnosis, folded."""
        return Reveal(case=self.case(number))

    def hint(self, number: int) -> str:
        """Say where to look at a patient's chart."""
        return PATIENTS[self.case(number).chart.fault].look

    def found_by(self, family: str) -> tuple[str, ...]:
        """Name the faults of which any sign of a family is seen."""
        wanted = set(FAMILIES[family])
        return tuple(
            case.chart.fault
            for case in self.cases
            if wanted & set(find_signs(case.chart, case.healthy))
        )


def _example_html(example: MaskView | str) -> str:
    if isinstance(example, str):
        return f"<p><code>{html.escape(visible(example))}</code></p>"
    return example._repr_html_()


def _answers_html(answers: Sequence[Answer]) -> str:
    heads = ("Question", "Expected", "Base model", "This model")
    if not any(answer.base for answer in answers):
        heads = ("Text", "Right label", "", "This model")
    head = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in heads if name)
    body = ""
    for answer in answers:
        cells = [answer.question, answer.expected or "–", answer.base, answer.tuned or "(nothing)"]
        kept = [cell for cell, name in zip(cells, heads, strict=True) if name]
        shown = (f'<td style="{_CELL}">{html.escape(visible(cell))}</td>' for cell in kept)
        body += f"<tr>{''.join(shown)}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
