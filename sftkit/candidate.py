"""What is tested where nothing is trained: an adapter or a whole model, and a recipe to test it by.

The folder is looked at before any model is loaded, because anybody may have written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit import catalog
from sftkit.adapter_kinds import KINDS
from sftkit.catalog_hub import hub_folder, read_config
from sftkit.errors import AdapterError, SettingsError
from sftkit.recipe import apply_override, recipe_from_dict, recipe_to_dict
from sftkit.settings import ModelSettings, Recipe

NO_DATA = "no data"
"""What the record names as source where no test rows were given."""
_MOST_TEMPLATE_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be tested.

    Attributes:
        folder: Where it lies.
        config: Its adapter_config.json; empty for weights that freeze or full trained, and for a
            whole model.
        about: What sftkit wrote beside it; empty where another tool wrote it.
        whole: Whether it is a whole model, and no adapter.
    """

    folder: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    whole: bool = False

    @property
    def weights(self) -> Path:
        """The file its weights are in; of a whole model its folder."""
        from sftkit.adapter_files import TRAINED, WEIGHTS

        if self.whole:
            return self.folder
        own = self.folder / TRAINED
        return own if own.is_file() else self.folder / WEIGHTS


def open_candidate(adapter: str | Path) -> Candidate:
    """Look at a folder, before any model is loaded.

    Raises:
        AdapterError: It is neither an adapter nor a whole model, or asks for foreign code or files.
        SettingsError: It is an adapter for another task than chat.
    """
    from sftkit.adapter_files import CONFIG, TRAINED, WEIGHTS, check_adapter_folder, read_about

    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise AdapterError(
            f"There is no folder {adapter}. Download the adapter, and give the folder that holds "
            f"{CONFIG} and {WEIGHTS}."
        )
    about = read_about(folder)
    if (folder / TRAINED).is_file():
        return Candidate(folder=folder, config={}, about=about)
    is_adapter = (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()
    if not is_adapter and (folder / "config.json").is_file():
        _refuse_classifier(folder, read_config(folder / "config.json"))
        return Candidate(folder=folder, config={}, about={}, whole=True)
    config = check_adapter_folder(folder)
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise SettingsError(
            f"{folder} is an adapter for {task}; sftkit evaluate takes adapters of chat models "
            "(CAUSAL_LM). For labels, sftkit run trains and tests in one."
        )
    return Candidate(folder=folder, config=config, about=about)


def _refuse_classifier(folder: Path, config: Mapping[str, Any]) -> None:
    kinds = config.get("architectures") or ()
    if kinds and not any("CausalLM" in str(kind) or "LMHead" in str(kind) for kind in kinds):
        raise SettingsError(
            f"{folder} holds {', '.join(map(str, kinds))}; sftkit evaluate takes chat models."
        )


def plan_evaluation(
    candidate: Candidate,
    *,
    base: str | None = None,
    data: str | None = None,
    recipe: Recipe | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Write down as a recipe what is measured; see `evaluate_adapter`.

    Raises:
        SettingsError: No base model is named or to be had, or a setting cannot work.
    """
    plain: dict[str, Any] = {} if recipe is None else recipe_to_dict(recipe)
    plain["name"] = name_of(candidate.folder)
    encoding = {
        key: plain["data"][key] for key in ("max_tokens", "system", "seed") if "data" in plain
    }
    if data is not None:
        plain["data"] = {"source": data, **encoding}
    elif recipe is None:
        plain["data"] = {"source": NO_DATA}
        plain["evaluate"] = {"knowledge": "none", "side_by_side": 0}
    named = base or ("" if recipe is None else recipe.model.name) or _named_base(candidate)
    plain["model"] = {**plain.get("model", {}), "name": named}
    if base is not None:
        plain["model"]["revision"] = None
    for override in overrides:
        apply_override(plain, override)
    if KINDS.get(str(candidate.about.get("kind")), KINDS["lora"]).peft_type is None:
        plain["model"]["dtype"] = "float32"  # as these weights were trained and are tested
    planned = recipe_from_dict(plain)
    if planned.data.task != "chat":
        raise SettingsError(
            f"data.task={planned.data.task}: sftkit evaluate takes chat adapters, and a recipe for "
            "chat. For labels, sftkit run trains and tests in one."
        )
    _refuse_out_of_reach(planned.model, candidate)
    return planned


def name_of(folder: Path) -> str:
    """Name the evaluation after its folder; checkpoint-100 and adapter say too little alone."""
    path = folder.resolve()
    generic = path.name == "adapter" or path.name.startswith("checkpoint")
    name = f"{path.parent.name}-{path.name}" if generic else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "adapter"


def _named_base(candidate: Candidate) -> str:
    """Give the base that an adapter names, if that says which model is meant.

    Raises:
        SettingsError: It names none.
    """
    where = candidate.folder
    if candidate.whole:
        raise SettingsError(
            f"{where} is a whole model, which does not say what it was made from. Give --base NAME."
        )
    named = candidate.config.get("base_model_name_or_path")
    name = named.strip() if isinstance(named, str) else ""
    if not name:
        raise SettingsError(f"{where} does not name its base model. Give --base NAME.")
    for entry in catalog.entries():
        ours = entry.kind == "model" and name in (entry.name, entry.hub)
        # In the cache, a catalog model's folder is its name and a hash.
        if ours or (entry.kind == "model" and re.fullmatch(f"{entry.name}-[0-9a-f]{{12}}", name)):
            return entry.name
    if "/" in name or Path(name).is_dir():
        return name
    raise SettingsError(
        f"{where} was made for a base named {name!r}, which is no folder, catalog name or hub id "
        "here. Give --base NAME."
    )


def _refuse_out_of_reach(model: ModelSettings, candidate: Candidate) -> None:
    """Refuse a hub id that could only be downloaded, where the hub is switched off."""
    from huggingface_hub import constants

    source = catalog.fetch_model(model)
    if not source.fingerprint.startswith("hub:") or not constants.HF_HUB_OFFLINE:
        return
    if hub_folder(source.path, source.revision, download=False) is None:
        raise SettingsError(
            f"The base model {model.name!r} of {candidate.folder} is no catalog name, no folder "
            "and not in the hub's cache here, and the hub is switched off (HF_HUB_OFFLINE). Give "
            f"--base with a folder that holds it, or one of {', '.join(catalog.names('model'))}, "
            "if the adapter was made for that."
        )


def own_template(folder: Path) -> str | None:
    """Read the chat template that lies in a folder, in either of the places tools write it to.

    Raises:
        AdapterError: A file of it is damaged.
    """
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file() or path.stat().st_size > _MOST_TEMPLATE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            template = json.loads(text).get("chat_template") if name.endswith("json") else text
        except (OSError, ValueError, AttributeError) as error:
            raise AdapterError(f"{path} cannot be read: {error}.") from error
        if isinstance(template, str) and template.strip():
            return template
    return None
