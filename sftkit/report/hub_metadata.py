"""The front matter of a model card: what the hub needs to file an adapter, and may others use it.

Licences are compared in words, never decided: what is not stated or does not fit together is
flagged, so that somebody looks before the adapter is shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sftkit import catalog
from sftkit.evidence_records import Change
from sftkit.records import RunRecord
from sftkit.show import visible

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
HUB_ID = re.compile(r"(?:^|[\s(])([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?=$|[\s),:])")
_DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILE = re.compile(r"\.(?:jsonl?|csv|tsv|txt|parquet|xlsx|gz|zst|arrow)$", re.IGNORECASE)
_FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-3.0")
_SHARE_ALIKE = ("cc-by-sa-4.0", "cc-by-sa-3.0")
_NON_COMMERCIAL = ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-3.0")
_KNOWN = (*_NON_COMMERCIAL, *_SHARE_ALIKE, *_FREE)
_TASKS = {"classify": "text-classification", "regress": "text-classification",
          "image": "image-classification"}  # fmt: skip


def one_line(text: str) -> str:
    """Join lines and make control codes visible."""
    return " ".join(visible(text.replace("\n", " ")).split())


def base_model(record: RunRecord) -> str:
    """Name the base model for the hub's metadata.

    Returns:
        A hub id where the record names one, else the catalog name, else nothing.
    """
    named = HUB_ID.search(record.environment.base)
    return named.group(1) if named else catalog_name(record)


def catalog_name(record: RunRecord) -> str:
    """Give the short name of the base, or nothing where it is none."""
    name = record.environment.base.split(":")[0].split(" ")[0]
    return name if _NAME.fullmatch(name) else ""


def front_matter(record: RunRecord) -> str:
    """Write the metadata block that begins a card."""
    import yaml

    source, base = record.data.source, base_model(record)
    meta: dict[str, object] = {"library_name": "peft"}
    if base:
        meta = {"base_model": base, "base_model_relation": "adapter", **meta}
    if not record.training.steps:  # trained elsewhere, perhaps as a whole model
        meta = {"base_model": base} if base else {}
    known, stated = shared_licence(record)
    meta |= {"license": known} if known else {"license": "other", "license_name": stated}
    if _DATASET.fullmatch(source) and not _FILE.search(source):
        meta["datasets"] = [source]
    meta["tags"] = ["lora", "sftkit"] if record.training.steps else ["sftkit"]
    if results := list(_results(record)):
        meta["model-index"] = [{"name": _safe_name(record.name, "adapter"), "results": results}]
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=False)}---\n"


# ---- licences ----


def licence_id(text: str) -> str:
    """Give the hub's identifier of a licence that is stated in words; empty if it is none we know.

    Only the beginning counts, which is the set's own: "CC BY 4.0 …; shipped inside X (MIT)".
    """
    words = re.split(r"[;,(]| according| at its| or later", text.strip(), maxsplit=1)[0]
    told = re.sub(r"[\s_]+", "-", words.strip().lower()).removesuffix("-international")
    told = told.removesuffix("-license").removesuffix("-licence")
    told = {"cc0": "cc0-1.0", "apache-license-2.0": "apache-2.0", "bsd": "bsd-3-clause"}.get(
        told, told
    )
    return told if told in _KNOWN else ""


def shared_licence(record: RunRecord) -> tuple[str, str]:
    """Say under which licence an adapter would come, and what its parts state.

    Returns:
        The identifier of the narrowest licence of base and data, empty unless both are known and
        fit together; and what both state, in one line.
    """
    data, base = one_line(record.data.licence) or "not stated", base_licence(record)
    ids = [licence_id(data), licence_id(base)] if base else [licence_id(data)]
    stated = data if not base or base == data else f"data: {data}; base: {base}"
    if not all(ids) or licence_notes(record, only_conflicts=True):
        return "", stated
    return min(ids, key=_KNOWN.index), stated


def base_licence(record: RunRecord) -> str:
    """Tell the licence of a base model of the catalog; of another one nothing is known."""
    name = catalog_name(record)
    return catalog.entry(name).licence if name in catalog.names("model") else ""


def licence_notes(record: RunRecord, *, only_conflicts: bool = False) -> list[str]:
    """Flag what somebody has to look at before the adapter is shared.

    Args:
        record: The run.
        only_conflicts: Leave out what fits, but asks for something.
    """
    data, base = licence_id(record.data.licence), licence_id(base_licence(record))
    found, asks = [], []
    if not data:
        stated = one_line(record.data.licence) or "not stated"
        found.append(f"The licence of the data is none of the usual ones ({stated}): read it.")
    if not base_licence(record):
        asks.append("The licence of the base model is not in the catalog: read its own card.")
    kinds = {name: _kind(one) for name, one in (("data", data), ("base model", base)) if one}
    for name, kind in kinds.items():
        if kind == "non-commercial":
            asks.append(f"The {name} may not be used commercially, so neither may the adapter.")
        elif kind == "share-alike":
            asks.append(f"What is made from the {name} may have to be shared under its licence.")
    if set(kinds.values()) == {"non-commercial", "share-alike"}:
        found.append(
            f"The licences of data ({data}) and base model ({base}) do not fit together: one asks "
            "to share alike, the other forbids commercial use."
        )
    return found if only_conflicts else [*found, *asks]


def _kind(licence: str) -> str:
    if licence in _NON_COMMERCIAL:
        return "non-commercial"
    return "share-alike" if licence in _SHARE_ALIKE else "free"


# ---- results ----


def _safe_name(text: str, otherwise: str) -> str:
    """Give a name that the hub can file; a path or what else a user wrote is none."""
    is_name = _NAME.fullmatch(text) or _DATASET.fullmatch(text)
    return text if is_name and not _FILE.search(text) else otherwise


def _results(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Give every measured value of the tuned model as the hub lists results."""
    learned, forgot = record.learned, record.forgot
    source = record.data.source
    own = {"name": _safe_name(source, "own data"), "type": _safe_name(source, "own"),
           "split": "test"}  # fmt: skip
    task = _TASKS.get(str(record.recipe.get("data", {}).get("task")), "text-generation")

    def result(where: dict[str, str], kind: str, name: str, value: float) -> dict[str, Any]:
        metric = {"type": kind, "value": round(float(value), 4), "name": name}
        return {"task": {"type": task}, "dataset": dict(where), "metrics": [metric]}

    if learned.labels is not None:
        for measure in learned.labels.tuned.measures:
            if measure.value is not None:
                yield result(own, measure.name, measure.name.replace("_", " "), measure.value)
    taken: tuple[tuple[str, str, Change | None], ...] = (
        ("exact_match", "exact answers on unseen phrasings", learned.exact),
        ("accuracy", "right answer ranked first of four", learned.recognition),
        ("loss", "loss on test answers, nats per token", learned.heldout_loss),
    )
    for kind, name, change in taken:
        if change is not None:
            yield result(own, kind, name, change.after)
    for probe in forgot.probes:
        where = {"name": (name := _safe_name(probe.name, "own probe")), "type": name}
        yield result(where, "accuracy", "accuracy, zero-shot", probe.after)
