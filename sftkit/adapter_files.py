"""Save, load, switch and merge adapters: standard PEFT folders, checked before peft sees them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sftkit import adapter_kinds
from sftkit.adapter import is_quantized, own_weights, quiet, take_apart
from sftkit.adapter_kinds import KINDS, AdapterKind, kind_of
from sftkit.errors import AdapterError, near_names

ABOUT = "sftkit.json"
"""Beside a saved adapter: its kind, and the fingerprint of the base it was made for."""
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TRAINED = "trained_weights.safetensors"
"""What freeze and full save; they are no adapters of peft."""


def hash_weights(folder: str | Path) -> str:
    """Give the SHA-256 of a saved adapter's weights; its other files name versions and times."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def save_adapter(model: Any, folder: str | Path, *, base_fingerprint: str = "") -> Path:
    """Write a standard PEFT adapter folder, and beside it what base it belongs to.

    Of several adapters it is the active one (see `switch_adapter`), whatever it is called.
    freeze and full are no adapters of peft: they write the weights that were trained.

    Args:
        model: A model with an adapter.
        folder: Where to; made if missing.
        base_fingerprint: The base's, as in `ModelSource.fingerprint`; empty if not known.

    Returns:
        The folder.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = kind_of(model)
    about: dict[str, Any] = {"kind": kind.name, "base_fingerprint": base_fingerprint}
    if kind.peft_type is None:
        about["trained"] = sorted(model.sftkit_trained[1])
        parameters = dict(model.named_parameters())
        tensors = {n: parameters[n].detach().contiguous() for n in model.sftkit_trained[1]}
        save_file(tensors, folder / TRAINED)
    else:
        _save_active(model, folder)
        _forget_place(folder / CONFIG)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return folder


def load_adapter(
    model: Any, folder: str | Path, *, name: str = "default", base_fingerprint: str = ""
) -> Any:
    """Put a saved adapter on its base model, alone or beside others.

    Args:
        model: The base model; or a model with adapters, which then gets one more and uses it.
        folder: As `save_adapter` or peft wrote it.
        name: What the adapter is called on this model (see `switch_adapter`).
        base_fingerprint: The base's, as in `ModelSource.fingerprint`; compared if both are known.

    Returns:
        The model with its adapter, frozen and ready to answer.

    Raises:
        AdapterError: The folder is no adapter, is damaged, holds pickled weights only, asks for
            foreign code or files, or was made for another base.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    about = read_about(folder)
    _compare_bases(str(about.get("base_fingerprint", "")), base_fingerprint, folder)
    if (folder / TRAINED).is_file():
        return _load_own_weights(model, folder, about)
    check_adapter_folder(folder)
    loaded = getattr(model, "peft_config", {})
    if name in loaded:
        raise AdapterError(f"The model already carries an adapter named {name!r}. Choose another.")
    if not name.strip() or "." in name or hasattr(torch.nn.ModuleDict(), name):
        raise AdapterError(
            f"An adapter cannot be named {name!r}: torch uses that itself, or takes it apart at "
            "the dot. Choose another name."
        )
    if loaded and not all(_row(model, other).off_equals_base for other in loaded):
        raise AdapterError(
            f"The base under {kind_of(model).name} is no longer as it was loaded, so a second "
            "adapter would not answer as it does alone. Load the base afresh."
        )
    fits = f"{folder} does not fit {type(model).__name__}"
    try:
        with quiet(), _as_it_was(model, name):
            stored = _shapes(folder)
            attached = _put_empty(model, folder, name, stored, fits)
            attached.load_adapter(str(folder), adapter_name=name)
    except SafetensorError as error:
        raise AdapterError(f"{folder}/{WEIGHTS} is damaged: {error}") from error
    except (
        ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, OSError,
    ) as error:  # fmt: skip
        raise AdapterError(f"{fits}: {error}") from error
    switch_adapter(attached, name)
    return attached.eval()


def switch_adapter(model: Any, name: str) -> None:
    """Let a model with several adapters answer with one of them.

    Raises:
        AdapterError: It carries none of that name.
    """
    names = getattr(model, "peft_config", {})
    if name not in names:
        raise AdapterError(f"The model carries no adapter {name!r}.{near_names(name, names)}")
    model.set_adapter(name)
    model.requires_grad_(False)


def merge_adapter(model: Any) -> Any:
    """Make the update part of the base's weights, so that no adapter is left.

    In float32 the merged model answers as before to within 1e-4; in 16 bits the merged weights
    are rounded once more.

    Args:
        model: A model with an adapter; it is used up.

    Returns:
        The plain model of transformers.

    Raises:
        AdapterError: The method cannot become part of the weights, or the base is quantized.
    """
    kind = kind_of(model)
    if kind.peft_type is None:
        return model  # what was trained is the base itself
    if not kind.mergeable:
        reason = "its tokens stand in front of the text"
        if not kind.proven:
            reason = "it is passed through to peft, and merging was not proven here"
        raise AdapterError(f"An adapter of kind {kind.name} cannot be merged: {reason}.")
    base = model.get_base_model()
    if is_quantized(base):
        raise AdapterError(
            "The base is quantized, and an update merged into so few bits would be rounded away in "
            "part. Load the base with quantization: none, put the saved adapter on it "
            "(load_adapter), and merge there."
        )
    return model.merge_and_unload(safe_merge=True).eval()


def _load_own_weights(model: Any, folder: Path, about: Mapping[str, Any]) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = str(about.get("kind"))
    kind = adapter_kinds.KINDS.get(name)
    if kind is None or kind.peft_type is not None:
        raise AdapterError(f"{folder}/{ABOUT} names no method that trains whole weights: {name!r}.")
    if getattr(model, "peft_config", None) or hasattr(model, "sftkit_trained"):
        raise AdapterError(f"Weights of {name} replace the base's own. Load the base afresh.")
    try:
        tensors = load_file(folder / TRAINED)
    except SafetensorError as error:
        raise AdapterError(f"{folder}/{TRAINED} is damaged: {error}") from error
    shapes = {n: tuple(parameter.shape) for n, parameter in model.named_parameters()}
    astray = [n for n, tensor in tensors.items() if shapes.get(n) != tuple(tensor.shape)]
    if astray or not tensors:
        raise AdapterError(
            f"{folder} does not fit {type(model).__name__}: {len(astray)} of its weights have no "
            f"place there{', such as ' + astray[0] if astray else ''}. Use the base model it was "
            "made for."
        )
    missing = sorted(set(about.get("trained") or ()) - set(tensors))
    if missing:
        raise AdapterError(
            f"{folder}/{TRAINED} is not whole: {len(missing)} of the weights that {ABOUT} lists "
            f"are missing, such as {missing[0]}. Save or copy it again."
        )
    model = own_weights(model, kind, list(tensors), trained=False)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in tensors:
                parameter.copy_(tensors[parameter_name])
    return model


def _row(model: Any, name: str) -> AdapterKind:
    was = model.active_adapter
    model.active_adapter = name
    try:
        return kind_of(model)
    finally:
        model.active_adapter = was


def read_about(folder: Path) -> dict[str, Any]:
    """Read what stands beside an adapter; folders that others wrote have nothing there."""
    path = folder / ABOUT
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise AdapterError(f"{path} must hold an object, with kind and base_fingerprint.")
    return about


def _forget_place(path: Path) -> None:
    """Leave the name of a base that lies on this machine, and not where it lies."""
    config = json.loads(path.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path") or ""
    if base and (Path(base).is_absolute() or Path(base).exists()):
        config["base_model_name_or_path"] = Path(base).name
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _compare_bases(made_for: str, given: str, folder: Path) -> None:
    same_sort = made_for.partition(":")[0] == given.partition(":")[0]
    if made_for and given and same_sort and made_for != given:
        raise AdapterError(
            f"{folder} was made for another base: its fingerprint is {made_for}, this base's is "
            f"{given}. Use the base model it was made for."
        )


def check_adapter_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder that is no adapter, or that peft must not be given.

    Returns:
        Its configuration, as peft writes it.

    Raises:
        AdapterError: The folder is no adapter, holds pickled weights only, or asks for foreign code
            or files.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} is no adapter folder: {path.name} is missing.")
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder} holds no {WEIGHTS}. Pickled weights (.bin, .pt) can run any "
            "code when opened and are refused; save the adapter again as safetensors."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} must hold an object, as peft writes it.")
    faults = _configuration_faults(config)
    if faults:
        raise AdapterError(f"{path} is refused: " + "; ".join(faults) + ".")
    return config


def _configuration_faults(config: dict[str, Any]) -> list[str]:
    """List what must not stand in an adapter_config.json, before peft sees it."""
    registry = adapter_kinds.registry()
    peft_type = str(config.get("peft_type"))
    if peft_type not in registry:
        return [f"peft_type {peft_type!r} is no method of the peft installed here"]
    known = {info.name for info in dataclasses.fields(registry[peft_type])}
    version = config.get("peft_version")
    written = f" (written by peft {version})" if isinstance(version, str) else ""
    faults = [
        f"the field {name!r} is none of peft's {peft_type}{written}"
        for name in config
        if name not in known
    ]
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library", "") if isinstance(mapping, dict) else ""
    from_transformers = str(library or "").startswith("transformers.")
    for name in sorted(adapter_kinds.UNSAFE & set(config)):
        harmless = (
            name in ("revision", "megatron_core")
            or (name == "auto_mapping" and from_transformers)
            or (name, config[name]) == ("shadow_model", "mirror")
        )  # a small copy of the base
        if config[name] not in (None, {}) and not harmless:
            faults.append(f"the field {name!r} would load code or files of its own choosing")
    if peft_type == "XLORA":
        faults.append("XLORA loads other adapters by their paths")
    return faults


def _save_active(model: Any, folder: Path) -> None:
    """Write the active adapter at the root, where peft keeps a folder for each other name."""
    name = model.active_adapter
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        model.save_pretrained(
            aside, safe_serialization=True, save_embedding_layers=False, selected_adapters=[name]
        )
        written = Path(aside) if name == "default" else Path(aside) / name
        for file in (WEIGHTS, CONFIG):  # and not peft's empty card; the run's card is ours
            (written / file).replace(folder / file)


@contextlib.contextmanager
def _as_it_was(model: Any, name: str) -> Iterator[None]:
    """Leave no trace of an adapter whose loading fails."""
    before = model.active_adapter if getattr(model, "peft_config", None) else None
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            yield
    except BaseException:
        if before is None:
            take_apart(model)
        else:
            if name in model.peft_config:
                model.delete_adapter(name)
            model.set_adapter(before)
        for parameter in frozen:
            parameter.requires_grad_(False)
        raise


def _put_empty(
    model: Any, folder: Path, name: str, stored: Mapping[str, tuple[int, ...]], fits: str
) -> Any:
    """Put the adapter of a folder on a model without its weights, if those have a place there.

    peft copies whatever a file names into the model, weights of the base included; so names and
    shapes are compared before it opens the file.
    """
    from peft import PeftConfig
    from peft.utils import get_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    harmless = config
    moves_base = not adapter_kinds.stays_beside(config.to_dict())
    if moves_base and hasattr(config, "init_lora_weights"):
        # First weights may be taken out of the base: compare before they are.
        harmless = copy.copy(config)
        harmless.init_lora_weights = True
    attached = _put(model, harmless, name)
    wanted = get_peft_model_state_dict(attached, adapter_name=name, save_embedding_layers=False)
    shapes = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    same_shapes = str(config.peft_type.value) in {row.peft_type for row in KINDS.values()}
    astray = sorted(
        key
        for key in stored.keys() | shapes.keys()
        if key not in stored
        or key not in shapes
        or (same_shapes and stored[key] != shapes[key])  # others may shrink in training
    )
    if astray:
        raise AdapterError(
            f"{fits}: {len(astray)} of its weights have no place there or are missing, such as "
            f"{astray[0]}. Use the base model it was made for (see adapter_config.json)."
        )
    if harmless is config:
        return attached
    if attached is model:
        model.delete_adapter(name)
    else:
        take_apart(model)
    return _put(model, config, name)


def _put(model: Any, config: Any, name: str) -> Any:
    """Add an adapter with weights of no meaning yet."""
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel

    if getattr(model, "peft_config", None):
        model.add_adapter(name, config)
        return model
    wrapper = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    return wrapper(model, config, adapter_name=name)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of stored weights, and no weight."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
