"""A run's model card: README.md with the hub's metadata and the measured verdicts.

Texts from data may hold markdown, HTML or YAML; here they are words and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sftkit.evidence_records import Change, Drift
from sftkit.label_records import LabelReport
from sftkit.panels import interval, signed
from sftkit.plots_labels import TITLES, in_interval
from sftkit.records import RunRecord
from sftkit.report.hub_metadata import (
    HUB_ID,
    catalog_name,
    front_matter,
    licence_notes,
    one_line,
)
from sftkit.report.redact import redact, redact_record
from sftkit.settings import to_plain

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$])")


def render_card(record: RunRecord, alts: Mapping[str, str] | None = None) -> str:
    """Write the model card of a run.

    Args:
        record: The run.
        alts: Alt text per picture in plots/, where pictures are there.
    """
    record = redact_record(record)
    parts = [
        front_matter(record),
        f"# {plain(record.name)}\n",
        f"**{plain(record.verdicts.summary)}**\n",
        _picture("overview", alts),
        _verdict_table(record),
        _measures(record),
        _picture("forgotten", alts),
        _loading(record),
        _origin(record),
        _limits(record),
        _recipe(record),
    ]
    return redact("\n".join(part for part in parts if part))


def plain(text: str) -> str:
    """Escape text from data for the middle of a line, so that markdown shows it as it is."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    line = _SPECIAL.sub(r"\\\1", line)
    # What is linked without any mark: addresses and e-mail.
    line = line.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"(?i)\b(www)\.", r"\1&#46;", line)


def _picture(name: str, alts: Mapping[str, str] | None) -> str:
    return f"![{plain(alts[name])}](plots/{name}.png)\n" if alts and name in alts else ""


def _verdict_table(record: RunRecord) -> str:
    verdicts = record.verdicts
    known = "knowledge" if record.learned.labels is None else "labels"
    rows = (
        ("Learned", known, verdicts.knowledge),
        ("Learned", "style", verdicts.style),
        ("Forgotten", "ability", verdicts.ability),
        ("Forgotten", "drift", verdicts.drift),
    )
    lines = [f"| {a} | {b} | {v.state} | {plain(v.sentence)} |" for a, b, v in rows]
    head = "## Verdicts\n\n| | measure | verdict | evidence |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n"


def _measures(record: RunRecord) -> str:
    learned, forgot = record.learned, record.forgot
    if learned.labels is not None:
        return _label_measures(learned.labels)
    lines: list[str] = []

    def share(name: str, change: Change | None) -> None:
        if change is not None:
            lines.append(
                f"| {name} | {100 * change.before:.1f} % | {100 * change.after:.1f} % "
                f"| {signed(100 * change.delta, 1)} points "
                f"| {interval(change.ci95, 100, 1)} | {change.items} |"
            )

    share("exact answers, trained facts", learned.exact)
    share("exact answers, control facts", learned.control)
    share("right answer ranked first", learned.recognition)
    if learned.heldout_loss is not None:
        lines.append(
            _nats_row("held-out answer loss", learned.heldout_loss, learned.heldout_loss.items)
        )
    lines += [
        f"| {plain(probe.name)} accuracy | {100 * probe.before:.1f} % "
        f"| {100 * probe.after:.1f} % | {signed(100 * probe.delta, 1)} points "
        f"| {interval(probe.ci95, 100, 1)} | {probe.items} |"
        for probe in forgot.probes
    ]
    if forgot.drift is not None:
        lines.append(_nats_row("loss on general text", forgot.drift, forgot.drift.passages))
    if not lines:
        return "## Measures\n\nNothing was measured.\n"
    head = "| measure | base | tuned | change | 95 % interval | n |\n|---|---|---|---|---|---|\n"
    return f"## Measures\n\n{head}" + "\n".join(lines) + "\n"


def _label_measures(report: LabelReport) -> str:
    """Write one row per metric, one column per system."""
    names = [plain(system.name) for system in report.systems]
    head = f"| metric | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    rows = [
        f"| {TITLES[row.name]} | "
        + " | ".join(plain(in_interval(system.measure(row.name))) for system in report.systems)
        + " |"
        for row in report.tuned.measures
    ]
    notes = "".join(f"\n{plain(note)}\n" for note in report.notes)
    return (
        f"## Measures\n\nOn {report.items:,} test items in {report.groups:,} groups, with 95 % "
        f"intervals.\n\n{head}" + "\n".join(rows) + f"\n{notes}"
    )


def _nats_row(name: str, change: Change | Drift, items: int) -> str:
    return (
        f"| {name}, nats per token | {change.before:.2f} | {change.after:.2f} "
        f"| {signed(change.delta, 2)} | {interval(change.ci95, 1, 2)} | {items} |"
    )


def _loading(record: RunRecord) -> str:
    if not record.training.steps:
        events = "".join(f"- {plain(event)}\n" for event in record.training.events)
        return f"## Where it was trained\n\n{events}"
    name = record.environment.base.split(": ")[0]
    folder, where = "FOLDER", "  # the folder that holds the base model"
    if HUB_ID.fullmatch(name):
        folder, where = name, ""
    elif catalog_name(record):
        where = f"  # the one that `sftkit fetch {catalog_name(record)}` prints"
    if record.learned.labels is not None:
        return _label_loading(record.learned.labels, folder, where)
    system = record.recipe.get("data", {}).get("system")
    spoken = (
        "the chat template's own system prompt"
        if system is None
        else f"the system prompt “{plain(system)}”"
        if system
        else "an empty system prompt"
    )
    return f"""## How to load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{folder}"{where}
base = AutoModelForCausalLM.from_pretrained(folder)
model = PeftModel.from_pretrained(base, "adapter")  # the folder beside this file
tokenizer = AutoTokenizer.from_pretrained(folder)
```

Conversations were written with the model's chat template and {spoken}; ask it the same way. The
measures hold for the base weights whose fingerprint stands below; another copy of the same
model (other precision, other quantization) may answer differently.
"""


def _label_loading(report: LabelReport, folder: str, where: str) -> str:
    kind = "ImageClassification" if report.task == "image" else "SequenceClassification"
    labels = max(len(report.classes), 1)
    problem = ', problem_type="regression"' if report.task == "regress" else ""
    said = {
        "regress": "The output is in standard deviations of the training scores: multiply it by "
        "`spread` and add `mean`, both in `targets.json`.",
        "image": "The outputs are the classes in the order of `targets.json`, which also says how "
        "images are scaled.",
    }.get(report.task, "The outputs are the classes in the order of `targets.json`.")
    return f"""## How to load it

```python
from peft import PeftModel
from transformers import AutoModelFor{kind}

folder = "{folder}"{where}
base = AutoModelFor{kind}.from_pretrained(
    folder, num_labels={labels}{problem}, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "adapter")  # the folder beside this file, with the head
```

{said} The fresh head that transformers reports is replaced by the trained one. The measures hold
for the base weights whose fingerprint stands below.
"""


def _origin(record: RunRecord) -> str:
    data, environment = record.data, record.environment
    role = "Training" if record.training.steps else "Test"
    counts = ", ".join(f"{plain(split)} {count}" for split, count in data.counts.items())
    lines = [
        "## Data and base model\n",
        f"- {role} data: {plain(data.source)} (rows: {counts}), licence {plain(data.licence)}.",
        f"- Notice: {plain(data.notice)}" if data.notice else "",
        f"- Data fingerprint: `{_code(data.fingerprint)}`",
        f"- Base model: {plain(environment.base)}, whose own licence applies as well.",
        f"- Base fingerprint: `{_code(environment.base_fingerprint)}`",
        *(f"- Before sharing: {plain(note)}" for note in licence_notes(record)),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _limits(record: RunRecord) -> str:
    seed = f"seed {record.environment.seed}" if record.training.steps else "not known here"
    return (
        "## Limits of the evidence\n\n"
        f"One training seed was seen ({seed}); another one gives other "
        "numbers, and the intervals do not cover that. Intervals are paired, 95 %, and resample "
        "whole groups. The full report is `report.html`; every number is in `run.json`.\n"
    )


def _recipe(record: RunRecord) -> str:
    import yaml

    verb = "run recipe.yaml" if record.training.steps else "evaluate ADAPTER --recipe recipe.yaml"
    text = yaml.safe_dump(to_plain(record.recipe), sort_keys=False, allow_unicode=False)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return (
        "## How to make it again\n\n`sftkit "
        f"{verb} --out DIR` with this recipe.yaml:\n\n"
        f"{fence}yaml\n{text}{fence}\n"
    )


def _code(text: str) -> str:
    """Keep only what may stand in inline code."""
    return re.sub(r"[^\w.-]", "", text)
