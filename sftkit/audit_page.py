"""An audit for people: a text for the terminal, a view for the notebook, a page for the browser.

The page has no script and loads nothing. Texts in it come from strangers' files (labels, column
names, file names, a template's prompt): each is escaped, and what would act on the display, such as
control codes and direction marks, is made visible instead.
"""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftkit.dataset.facts import say_count, say_labels, say_lengths, say_repeats
from sftkit.records import Finding
from sftkit.settings import to_plain
from sftkit.show import visible

if TYPE_CHECKING:
    from sftkit.dataset.audit import Audit
    from sftkit.dataset.facts import AuditFacts, Histogram

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
SEVERITIES = ("error", "warning", "information")
_LABELS_SHOWN = 6
_LABEL_WIDTH = 18
_LONGEST = 300
"""Characters of one text that are shown; a file may be named, or label its rows, with a novel."""
_WIDTH, _HEIGHT = 300, 132
_STYLE = """
.sftkit-audit{--blue:#0072b2;--orange:#c04a00;--grey:#8b9099;--rule:#8885;line-height:1.45;
 font-family:system-ui,sans-serif;font-size:14px;max-width:1120px;text-align:left}
.sftkit-audit h1,.sftkit-audit h2{font-size:1.5em;margin:.2em 0;line-height:1.25;text-align:left;
 overflow-wrap:anywhere}
.sftkit-audit p{margin:.3em 0;overflow-wrap:anywhere}
.sftkit-audit .soft{opacity:.8}
.sftkit-audit .figures{display:flex;flex-wrap:wrap;gap:18px 30px;margin:14px 0}
.sftkit-audit figure{margin:0;flex:0 1 300px;min-width:0}
.sftkit-audit figcaption{font-weight:600;font-size:13px;margin-bottom:4px;overflow-wrap:anywhere}
.sftkit-audit svg{display:block;width:100%;max-width:300px;height:auto;color:inherit}
.sftkit-audit svg text{font-size:11px;fill:currentColor}
.sftkit-audit .scroll{overflow-x:auto}
.sftkit-audit .scroll table{border-collapse:collapse;table-layout:auto;width:100%;font-size:13px;
 margin:6px 0}
.sftkit-audit .scroll th,.sftkit-audit .scroll td{text-align:left;vertical-align:top;
 padding:6px 10px 6px 0;border-bottom:1px solid var(--rule);overflow-wrap:anywhere;
 white-space:normal;background:none}
.sftkit-audit .scroll th,.sftkit-audit .scroll td.word{white-space:nowrap;overflow-wrap:normal}
.sftkit-audit td.where{min-width:11em;max-width:20em}
.sftkit-audit td.field{min-width:6em;max-width:12em}
.sftkit-audit td.what{min-width:15em}
.sftkit-audit .badge{color:#fff;border-radius:3px;padding:1px 7px;font-size:12px;font-weight:600}
.sftkit-audit .error{background:#b34400}
.sftkit-audit .warning{background:#7a5c00}
.sftkit-audit .information{background:#5a6470}
@media (prefers-color-scheme:dark){.sftkit-audit{--blue:#56b4e9;--orange:#f08a4b}}
"""
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0;padding:24px 28px;background:#fff;color:#1f2328}
.sftkit-audit{margin:0 auto}
@media (prefers-color-scheme:dark){body{background:#14171b;color:#e4e7eb}}
"""


def audit_html(audit: Audit) -> str:
    """Write an audit as one self-contained HTML page: no script, nothing loaded."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>Audit of {_safe(audit.source)}</title>\n"
        f"<style>{_PAGE_STYLE}</style></head>\n<body>\n{audit_fragment(audit, level=1)}\n"
        "</body></html>\n"
    )


def audit_fragment(audit: Audit, *, level: int = 2) -> str:
    """Write an audit as HTML to stand in a notebook or another page.

    Args:
        audit: What was found.
        level: Level of its heading.
    """
    facts = audit.facts
    lines = [
        # Notebooks would typeset what stands between dollar signs.
        '<div class="sftkit-audit tex2jax_ignore mathjax_ignore">',
        f"<style>{_STYLE}</style>",
        f"<h{level}>{_safe(headline(audit))}</h{level}>",
        f"<p>{_safe(_advice(audit))}</p>",
        f'<p class="soft">{_safe(audit.source)}: {_safe(_about(audit.facts))}</p>',
    ]
    figures = _figures(facts)
    if figures:
        lines.append(f'<div class="figures">{"".join(figures)}</div>')
    if audit.findings:
        heads = ("Severity", "Code", "Where", "Field", "What was found", "What to do")
        cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
        rows = "\n".join(_row(finding) for finding in by_severity(audit.findings))
        lines.append(
            '<div class="scroll" tabindex="0" role="group" aria-label="Findings">'
            f"<table><thead><tr>{cells}</tr></thead>\n<tbody>{rows}</tbody>"
            "</table></div>"
        )
    return "\n".join([*lines, "</div>"])


def audit_text(audit: Audit) -> str:
    """Write an audit for a terminal: the verdict, the worst findings first, what to do next."""
    width = max((len(finding.severity) for finding in audit.findings), default=0)
    lines = [visible(f"{audit.source}: {headline(audit)}"), visible(_about(audit.facts)), ""]
    for finding in by_severity(audit.findings):
        said = [f"{finding.code} {', '.join(_places(finding))}", finding.field, finding.message]
        lines.append(f"{finding.severity:<{width}}  {visible(' · '.join(filter(None, said)))}")
        lines += [f"{'':<{width}}  → {visible(finding.fix)}", ""]
    return "\n".join([*lines, _advice(audit), ""])


def audit_json(audit: Audit) -> str:
    """Write an audit as JSON: rows, findings, and what the source was seen as."""
    plain = {
        "rows": audit.row_count,
        "findings": to_plain(audit.findings),
        "seen_as": audit.facts.seen_as,
        "facts": to_plain(audit.facts),
    }
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # half characters as \\ud800


def headline(audit: Audit) -> str:
    """Say what was found in one line: "3 errors, 2 warnings in 1,204 rows"."""
    counts = [sum(f.severity == severity for f in audit.findings) for severity in SEVERITIES]
    parts = [say_count(counts[0], "error")] if counts[0] else ["no errors"]
    parts += [say_count(counts[1], "warning")] if counts[1] else []
    text = f"{', '.join(parts)} in {say_count(audit.row_count, 'row')}"
    return text[0].upper() + text[1:]


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Order findings: errors, warnings, information; by code within each."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _advice(audit: Audit) -> str:
    warnings = sum(finding.severity == "warning" for finding in audit.findings)
    if not audit.row_count:
        return "There is nothing to train on: see what the findings say about the source."
    if audit.errors:
        return (
            "Training on these rows would go wrong: mend the errors first. The audit changes "
            "nothing in the file."
        )
    if warnings:
        return f"Ready for training; {say_count(warnings, 'warning')} should be looked at first."
    return "Ready for training."


def _about(facts: AuditFacts) -> str:
    if not facts.rows:
        return "no row could be read."
    what = {
        "chat": "conversations",
        "classify": "texts with labels",
        "regress": "texts with scores",
        "image": "images with labels",
    }.get(facts.task, facts.task)
    parts = [what]
    parts += [f"seen as {facts.seen_as}"] if facts.seen_as not in ("", "messages") else []
    if facts.splits:
        parts.append(", ".join(f"{n:,} {name}" for name, n in facts.splits.items()))
    return "; ".join(parts) + "."


def _places(finding: Finding) -> list[str]:
    more = finding.count - len(finding.where)
    return [*finding.where, *([f"and {more:,} more"] if more > 0 else [])]


def _row(finding: Finding) -> str:
    places = "<br>".join(_safe(place, at_most=80) for place in _places(finding))
    badge = f'<span class="badge {finding.severity}">{finding.severity}</span>'
    return (
        f'<tr><td class="word">{badge}</td><td class="word">{_safe(finding.code)}</td>'
        f'<td class="where">{places}</td><td class="field">{_safe(finding.field)}</td>'
        f'<td class="what">{_safe(finding.message)}</td>'
        f'<td class="what">{_safe(finding.fix)}</td></tr>'
    )


# ---- figures ----


def _figures(facts: AuditFacts) -> list[str]:
    """Draw lengths, labels or scores, and repeats, each where there is something to show."""
    figures = []
    if facts.lengths is not None and facts.rows > 1:
        figures.append(_lengths(facts, facts.lengths))
    if facts.scores is not None and facts.rows > 1:
        title = f"Scores: half are {facts.scores.median:.3g} or less"
        figures.append(_figure(title, _histogram(facts.scores, None), title))
    if facts.labels:
        figures.append(_labels(facts))
    if facts.rows > 1:
        figures.append(_repeats(facts))
    return figures


def _lengths(facts: AuditFacts, lengths: Histogram) -> str:
    title = say_lengths(facts)
    words = (
        f"{title}. Histogram of row lengths in {lengths.unit}; median {lengths.median:,.0f}, "
        f"longest {lengths.largest:,.0f}."
    )
    return _figure(title, _histogram(lengths, facts.limit), words)


def _figure(title: str, svg: str, alt: str) -> str:
    return (
        f"<figure><figcaption>{_safe(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_safe(alt)}">{svg}</svg>'
        "</figure>"
    )


def _histogram(values: Histogram, limit: int | None) -> str:
    left, bottom, top = 2, _HEIGHT - 30, 14
    low = values.edges[0]
    high = max(values.edges[-1], float(limit or 0) * 1.04)
    tallest = max(values.counts)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - 2 * left)

    parts = []
    for start, stop, count in zip(values.edges, values.edges[1:], values.counts, strict=False):
        if count:
            tall = max(count / tallest * (bottom - top), 1.5)  # a single row stays visible
            color = "orange" if limit is not None and start > limit else "blue"
            parts.append(
                f'<rect x="{x(start):.1f}" y="{bottom - tall:.1f}" height="{tall:.1f}" '
                f'width="{max(x(stop) - x(start) - 1, 0.8):.1f}" fill="var(--{color})"/>'
            )
    parts.append(_rule(left, bottom, _WIDTH - left))
    ends = (f"{low:.3g}", f"{high:.3g}") if values.unit == "score" else ("0", f"{high:,.0f}")
    name = "score" if values.unit == "score" else f"{values.unit} in a row"
    parts.append(_word(left, bottom + 13, ends[0]))
    parts.append(_word(_WIDTH - left, bottom + 13, ends[1], anchor="end"))
    parts.append(_word(_WIDTH / 2, bottom + 26, name, anchor="middle"))
    parts.append(_word(left, top - 4, f"{say_count(tallest, 'row')} in the highest bar"))
    if limit is not None:
        at = x(limit)
        anchor = "end" if at > _WIDTH / 2 else "start"
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}" stroke="var(--orange)" '
            'stroke-width="1.5" stroke-dasharray="4 3"/>'
        )
        shift = -4 if anchor == "end" else 4
        parts.append(_word(at + shift, top + 10, f"limit {limit:,}", anchor=anchor))
    return "".join(parts)


def _labels(facts: AuditFacts) -> str:
    shown = list(facts.labels.items())[:_LABELS_SHOWN]
    more = facts.label_kinds - len(shown)
    bar, middle = 15, 128
    longest = max(count for _, count in shown)
    parts = []
    for row, (name, count) in enumerate(shown):
        y = 4 + row * (bar + 4)
        wide = max(count / longest * (_WIDTH - middle - 48), 1.5)
        parts.append(_word(middle - 6, y + 11, _short(name), anchor="end"))
        parts.append(
            f'<rect x="{middle}" y="{y}" width="{wide:.1f}" height="{bar}" fill="var(--blue)"/>'
        )
        parts.append(_word(middle + wide + 4, y + 11, f"{count:,}"))
    if more > 0:
        parts.append(_word(middle, 4 + len(shown) * (bar + 4) + 10, f"and {more:,} more"))
    title = say_labels(facts)
    words = ", ".join(f"{name}: {count:,}" for name, count in shown)
    return _figure(title, "".join(parts), f"{title}. Rows per class: {words}.")


def _repeats(facts: AuditFacts) -> str:
    near = facts.near_repeats or 0
    once = facts.rows - facts.exact_repeats - near
    parts, x = [], 2.0
    legend = (
        ("different from all before", once, "blue"),
        ("nearly the same as an earlier one", near, "grey"),
        ("exact copies of an earlier one", facts.exact_repeats, "orange"),
    )
    for row, (name, count, color) in enumerate(legend):
        wide = count / facts.rows * (_WIDTH - 4)
        wide = max(wide, 1.5) if count else 0.0
        parts.append(
            f'<rect x="{min(x, _WIDTH - 2 - wide):.1f}" y="14" width="{wide:.1f}" height="30" '
            f'fill="var(--{color})"/>'
        )
        x += wide
        y = 66 + 18 * row
        parts.append(f'<rect x="2" y="{y - 9}" width="10" height="10" fill="var(--{color})"/>')
        parts.append(_word(18, y, f"{name}: {say_count(count, 'row')}"))
    title = say_repeats(facts)
    words = f"{title}. {once:,} of {facts.rows:,} rows are different from all before."
    return _figure(title, "".join(parts), words)


def _rule(x1: float, y: float, x2: float) -> str:
    return f'<line x1="{x1}" x2="{x2}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".5"/>'


def _word(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_safe(text)}</text>'


def _short(text: str) -> str:
    """Cut a label to what fits beside its bar; wide characters count twice."""
    room, kept = _LABEL_WIDTH, ""
    for char in visible(text):
        room -= 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if room < 0:
            return kept[:-1] + "…"
        kept += char
    return kept


def _safe(text: str, *, at_most: int = _LONGEST) -> str:
    cut = text if len(text) <= at_most else text[:at_most] + "…"
    return html.escape(visible(cut))
