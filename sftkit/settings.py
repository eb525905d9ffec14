"""Settings: frozen, keyword-only, checked where they are born; recipes in YAML.

A recipe is the whole description of a run. Every default of the kit lives here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sftkit.errors import SettingsError, near_names

Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["cosine", "linear", "constant"]
RowFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt-completion", "question-answer",
    "text-label", "text-score", "image-label",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which base model, and how its weights are held.

    Attributes:
        name: A catalog name, a hub id, a folder, or a path that ends in .gguf.
        revision: Commit or tag of a hub model; None takes the default branch.
        quantization: none, int8 (LLM.int8) or nf4 (4 bit with double quantization); bitsandbytes.
        dtype: Type of the unquantized weights and of the compute. auto times one matrix
            product per type and takes bfloat16 only where it is not slower than float32.
        device: auto, cpu, cuda or mps.
        attention: Attention implementation passed to transformers; auto takes eager on a CPU
            (faster than sdpa at short lengths there) and sdpa elsewhere.
    """

    name: str = "smollm2-135m"
    revision: str | None = None
    quantization: Quantization = "none"
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"

    def __post_init__(self) -> None:
        """Refuse an empty name."""
        _check(self, (bool(self.name.strip()), "name", "must not be empty"))


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which examples, and how they are divided.

    Attributes:
        source: A catalog name, a file (.jsonl, .json, .csv) or a hub dataset id.
        task: What is learned. This version trains chat.
        format: How rows are to be understood; None finds out by looking at them.
        columns: Which column plays which part, where the guess is wrong, e.g. {question: Frage}.
        encoding: How the file's bytes are to be read, e.g. cp1252; None takes UTF-8.
        where: Keep only rows whose column has one of these values, e.g. {aspect: [description]}.
        limit: Keep at most this many rows, taken as whole groups; None keeps all.
        split_by: Column that already says train, validation, test (or control) per row.
            None divides by `group_by` instead.
        group_by: Column whose values stay together in one split; None groups by question, and id
            divides single rows.
        stratify_by: Column of which every value keeps its share in each split, to within one.
        time_by: Column of times; the newest rows are the test, the next newest validation.
        time_cuts: The moments from which rows are validation and test, as [2024-01-31,
            2024-05-31]; None finds them by the fractions, and newer rows then move them.
        validation_fraction: Share of groups used to choose (learning curve, early looks).
        test_fraction: Share of groups read once, at the end, for the report.
        balance_by: Column whose values are balanced in the training rows; None balances nothing.
        balance: over repeats rows of the rarer values, under leaves rows of the others out.
        max_tokens: Longest example in tokens; longer ones are refused, never cut.
        system: System prompt put before every conversation; None leaves it to the template.
        replay: General text mixed into training, so that less is forgotten: a catalog name (of
            conversations, or of passages, which are learned from whole) or a file; None mixes in
            nothing.
        replay_share: Share of all training examples that are replayed ones.
        replay_unit: What the share counts: rows, or tokens, which weigh long rows as they train.
        faulty_rows: refuse stops at the first audit error; drop leaves those rows out and says so.
        seed: Seed of the division and of the choice of replayed rows.
    """

    source: str
    task: Literal["chat"] = "chat"
    format: RowFormat | None = None
    columns: Mapping[str, str] | None = None
    encoding: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = None
    split_by: str | None = None
    group_by: str | None = None
    stratify_by: str | None = None
    time_by: str | None = None
    time_cuts: tuple[str, ...] | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.15
    balance_by: str | None = None
    balance: Literal["over", "under"] = "over"
    max_tokens: int = 512
    system: str | None = None
    replay: str | None = None
    replay_share: float = 0.25
    replay_unit: Literal["rows", "tokens"] = "rows"
    faulty_rows: Literal["refuse", "drop"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse divisions that leave nothing to train on."""
        together = self.validation_fraction + self.test_fraction
        _check(
            self,
            (bool(self.source.strip()), "source", "must not be empty"),
            (self.limit is None or self.limit >= 1, "limit", "must be 1 or more"),
            (0 < self.validation_fraction < 1, "validation_fraction", "must be in (0, 1)"),
            (0 < self.test_fraction < 1, "test_fraction", "must be in (0, 1)"),
            (
                together < 1,
                "test_fraction",
                "and validation_fraction must leave something to train on (sum below 1)",
            ),
            (self.max_tokens >= 8, "max_tokens", "must be 8 or more"),
            (0 <= self.replay_share < 1, "replay_share", "must be in [0, 1)"),
            *self._division_rules(),
        )

    def _division_rules(self) -> Iterator[tuple[bool, str, str]]:
        """Give the rules on what cannot divide rows together."""
        for name in ("stratify_by", "time_by"):
            rule = "cannot be used with split_by, which already says where every row goes"
            yield not (getattr(self, name) and self.split_by), name, rule
        for name in ("stratify_by", "group_by"):
            rule = "cannot be used with time_by: time alone decides where a row goes"
            yield not (getattr(self, name) and self.time_by), name, rule
        cuts = self.time_cuts
        if cuts is not None:
            yield bool(self.time_by), "time_cuts", "needs time_by, the column they cut"
            rule = "must be two moments, the earlier first, such as [2024-01-31, 2024-05-31]"
            yield _are_ascending_moments(cuts), "time_cuts", rule


def _are_ascending_moments(texts: Sequence[str]) -> bool:
    try:
        moments = [datetime.datetime.fromisoformat(text) for text in texts]
    except ValueError:
        return False
    zoned = [moment.replace(tzinfo=moment.tzinfo or datetime.UTC) for moment in moments]
    return len(zoned) == 2 and zoned[0] < zoned[1]


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Which low-rank updates to attach. Field names follow peft.LoraConfig.

    Attributes:
        kind: Adapter method. This version proves lora.
        r: Rank of each update; trainable parameters grow in proportion.
        lora_alpha: Numerator of the scale lora_alpha / r (Hu et al. 2021, section 4.1).
        lora_dropout: Probability of dropping an input of the update while training.
        target_modules: all-linear (every linear layer but the output head), one regular
            expression, or module names such as [q_proj, v_proj].
        layers: Which blocks get updates, as [first, last] counted from 0; None means all.
        strength: What the trained update is multiplied by before it is tested and saved. Below 1,
            less is forgotten and a little less is known; 1 leaves it as trained.
    """

    kind: Literal["lora"] = "lora"
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    layers: tuple[int, ...] | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        layers = self.layers
        _check(
            self,
            (self.r >= 1, "r", "must be 1 or more"),
            (self.lora_alpha > 0, "lora_alpha", "must be above 0"),
            (0 <= self.lora_dropout < 1, "lora_dropout", "must be in [0, 1)"),
            (bool(self.target_modules), "target_modules", "must name something"),
            (self.strength > 0, "strength", "must be above 0"),
            (
                layers is None or (len(layers) == 2 and 0 <= layers[0] <= layers[1]),
                "layers",
                "must be [first, last] with 0 <= first <= last",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the adapter is trained.

    Attributes:
        learning_rate: Peak rate of AdamW, after warm-up.
        epochs: Passes over the training examples.
        max_steps: Stop after this many optimizer steps; None runs all epochs.
        max_tokens_per_batch: Tokens, padding included, that one optimizer step may hold.
        micro_batches: Forward passes one step is divided into. More need less memory and give
            the same gradient, because the loss is normalised over the whole step.
        schedule: Shape of the decay after warm-up.
        warmup_fraction: Share of all steps in which the rate rises from 0.
        weight_decay: Decoupled weight decay of AdamW on the adapter's matrices.
        max_grad_norm: Gradients are scaled down to this norm.
        heldout_evaluations: How often the validation loss is measured, evenly over the run.
        seed: Seed of adapter weights, batch order and dropout.
    """

    learning_rate: float = 1e-3
    epochs: int = 1
    max_steps: int | None = None
    max_tokens_per_batch: int = 640
    micro_batches: int = 1
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    heldout_evaluations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        rate_fits = math.isfinite(self.learning_rate) and self.learning_rate > 0
        steps_fit = self.max_steps is None or self.max_steps >= 1
        _check(
            self,
            (rate_fits, "learning_rate", "must be a finite number above 0"),
            (self.epochs >= 1, "epochs", "must be 1 or more"),
            (steps_fit, "max_steps", "must be 1 or more"),
            (self.max_tokens_per_batch >= 8, "max_tokens_per_batch", "must be 8 or more"),
            (self.micro_batches >= 1, "micro_batches", "must be 1 or more"),
            (0 <= self.warmup_fraction < 1, "warmup_fraction", "must be in [0, 1)"),
            (self.weight_decay >= 0, "weight_decay", "must be 0 or more"),
            (self.max_grad_norm > 0, "max_grad_norm", "must be above 0"),
            (self.heldout_evaluations >= 1, "heldout_evaluations", "must be 1 or more"),
            (self.seed >= 0, "seed", "must be 0 or more"),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is measured before and after training.

    Attributes:
        knowledge: exact compares generated answers word for word; recognition ranks the right
            answer against three answers of other questions (for long answers); none measures no
            knowledge.
        knowledge_items: Test questions used for the knowledge measure, at most.
        max_new_tokens: Longest generated answer in tokens.
        probes: Multiple-choice sets, by catalog name, that measure lost ability.
        items_per_probe: Questions taken from each probe.
        drift_source: Catalog name of the general passages.
        drift_passages: General passages whose loss measures drift; 0 measures none.
        passage_tokens: Tokens of each passage that are scored.
        style_items: Test examples whose answer loss is measured, at most.
        drift_margin: Change of loss, nats per token, below which general text counts as unmoved.
        ability_margin: Loss of accuracy, as a share of 1, below which ability counts as kept.
        side_by_side: How many prompts are answered by both models for reading.
        resamples: Bootstrap resamples per interval.
        adapter_scale: Strength of the adapter while it is evaluated; 1 is as trained, 0 is off.
    """

    knowledge: Literal["exact", "recognition", "none"] = "exact"
    knowledge_items: int = 120
    max_new_tokens: int = 16
    probes: tuple[str, ...] = ("piqa", "openbookqa", "commonsenseqa")
    items_per_probe: int = 200
    drift_source: str = "boolq"
    drift_passages: int = 100
    passage_tokens: int = 128
    style_items: int = 120
    drift_margin: float = 0.1
    ability_margin: float = 0.05
    side_by_side: int = 6
    resamples: int = 4000
    adapter_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse measures that measure nothing."""
        counts = ("knowledge_items", "max_new_tokens", "items_per_probe", "style_items")
        sizes = ("drift_passages", "side_by_side", "adapter_scale")
        margins = ("drift_margin", "ability_margin")
        _check(
            self,
            *((getattr(self, name) >= 1, name, "must be 1 or more") for name in counts),
            *((getattr(self, name) >= 0, name, "must be 0 or more") for name in sizes),
            *((getattr(self, name) > 0, name, "must be above 0") for name in margins),
            (self.passage_tokens >= 8, "passage_tokens", "must be 8 or more"),
            (self.resamples >= 200, "resamples", "must be 200 or more"),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, described whole.

    Attributes:
        name: Short name of the run; letters, digits, dots, dashes and underscores.
        model: Base model settings.
        data: Data settings.
        adapter: Adapter settings.
        train: Training settings.
        evaluate: Evaluation settings.
    """

    name: str
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        """Refuse names that make bad folders, and combinations that cannot work."""
        faults = _impossible(self)
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is None:
            expected = "must be letters, digits, '.', '-' or '_'"
            faults.insert(0, f"Recipe.name {expected}, got {self.name!r}.")
        if faults:
            raise SettingsError("\n".join(faults))


def _impossible(recipe: Recipe) -> list[str]:
    """List combinations that are fine one by one and impossible together."""
    faults = []
    if recipe.model.quantization != "none" and recipe.model.device == "mps":
        faults.append(
            f"model.quantization={recipe.model.quantization} needs a CPU or CUDA device, got "
            "model.device=mps. Use quantization: none, or device: cpu."
        )
    if recipe.data.max_tokens > recipe.train.max_tokens_per_batch:
        faults.append(
            f"data.max_tokens={recipe.data.max_tokens} exceeds train.max_tokens_per_batch="
            f"{recipe.train.max_tokens_per_batch}: such an example fits into no batch. Raise "
            "max_tokens_per_batch or lower max_tokens."
        )
    if recipe.model.dtype == "float16" and recipe.model.device == "cpu":
        faults.append(
            "model.dtype=float16 on model.device=cpu cannot train stably. Use dtype: auto."
        )
    return faults


def recipe_from_dict(raw: Mapping[str, Any]) -> Recipe:
    """Build a recipe and report every fault of it at once.

    Args:
        raw: Nested mapping as read from YAML.

    Returns:
        The checked recipe.

    Raises:
        SettingsError: Unknown keys (with the nearest valid one), wrong types, values out of
            range and impossible combinations, one line each.
    """
    faults: list[str] = []
    recipe = _build(Recipe, raw, "", faults)
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise SettingsError(f"The recipe has {count}:\n{lines}")
    return typing.cast(Recipe, recipe)


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.field=value` overrides.

    Args:
        path: A YAML file.
        overrides: Strings such as "train.learning_rate=5e-4"; values are read as YAML.

    Returns:
        The checked recipe.

    Raises:
        SettingsError: The file is missing, is not YAML, or holds faults.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Cannot read the recipe {path}: {error}.") from error
    raw = parse_yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} must hold a mapping (name:, data:, ...), got {_kind(raw)}.")
    for override in overrides:
        _apply_override(raw, override)
    return recipe_from_dict(raw)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into plain mappings and lists, every field written out."""
    return typing.cast("dict[str, Any]", to_plain(recipe))


def yaml_text(recipe: Recipe) -> str:
    """Write a recipe as YAML with every default spelled out, so the text says all there is."""
    import yaml

    return str(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, *, where: str) -> Any:
    """Read YAML safely, with 1e-3 as a number (YAML 1.1 would read a string).

    Args:
        text: The document.
        where: Its name, for the error.

    Returns:
        Mappings, lists and scalars.

    Raises:
        SettingsError: The text is not YAML, or gives one key twice; the line is named.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader of our own, so that the resolver below stays ours alone."""

    def mapping_without_twins(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise SettingsError(f"{where} line {line}: the key {key!r} is given twice.")
        return loader.construct_mapping(node, deep=True)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    Loader.add_constructor("tag:yaml.org,2002:map", mapping_without_twins)
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise SettingsError(f"{where}{line} is not valid YAML: {problem}.") from error


def _check(settings: object, *rules: tuple[bool, str, str]) -> None:
    """Raise one SettingsError that names every broken rule (holds, field, what is expected)."""
    names = {name for holds, name, _ in rules if not holds}
    for info in dataclasses.fields(settings):  # type: ignore[arg-type]  # callers are dataclasses
        value = getattr(settings, info.name)
        if isinstance(value, float) and not math.isfinite(value) and info.name not in names:
            rules = (*rules, (False, info.name, "must be a finite number"))
    faults = [
        f"{type(settings).__name__}.{name} {expected}, got {getattr(settings, name)!r}."
        for holds, name, expected in rules
        if not holds
    ]
    if faults:
        raise SettingsError("\n".join(faults))


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set needs section.field=value, got {override!r}.")
    *sections, last = key.strip().split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"--set {override}: {section!r} is not a section.")
        place = inner
    place[last] = parse_yaml(value, where=f"--set {key}")


def _build(cls: Any, raw: object, path: str, faults: list[str]) -> Any:
    """Build one dataclass; collect faults instead of stopping at the first."""
    if not isinstance(raw, Mapping):
        faults.append(f"{path or 'the recipe'} must be a mapping, got {_kind(raw)}.")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unfit: list[str] = []  # fields given wrongly; their defaults must not be blamed in their place
    values: dict[str, Any] = {}
    for key, value in raw.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            faults.append(f"unknown key {where!r}.{near_names(str(key), fields)}")
        elif dataclasses.is_dataclass(hints[key]):
            known = len(faults)
            section = _build(hints[key], value, where, faults)
            unfit += [where] * (section is None)
            unfit += [fault.split(" ", 1)[0] for fault in faults[known:]]
            if section is not None:
                values[key] = section
        else:
            fits, converted = _fit(value, hints[key])
            if fits:
                values[key] = converted
            else:
                faults.append(f"{where} must be {_describe(hints[key])}, got {value!r}.")
                unfit.append(where)
    for name, info in fields.items():
        if name not in raw and _is_required(info):
            faults.append(f"{path + '.' if path else ''}{name} is missing.")
    required = {name for name, info in fields.items() if _is_required(info)}
    if not required <= set(values):
        return None
    try:  # with defaults in the place of wrong types, so that ranges are judged in the same pass
        return cls(**values)
    except SettingsError as error:
        lines = str(error).splitlines()
    prefix = f"{path}." if path else ""
    faults += [
        line.replace(f"{cls.__name__}.", prefix, 1)
        for line in lines
        if not any(place in line for place in unfit)
    ]
    bad = {line.removeprefix(f"{cls.__name__}.").split(" ", 1)[0] for line in lines}
    with contextlib.suppress(SettingsError, TypeError):  # without the fields that are out of range
        return cls(**{name: value for name, value in values.items() if name not in bad})
    return None


def _is_required(info: dataclasses.Field[Any]) -> bool:
    return info.default is dataclasses.MISSING and info.default_factory is dataclasses.MISSING


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:  # noqa: PLR0911  (one return per kind)
    """Say whether a YAML value fits a type, and give it in that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # YAML 1.1 reads `none` as a string but `off` as False; only the listed words count.
        return value in arguments and isinstance(value, str), value
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            fits, converted = _fit(value, option)
            if fits:
                return True, converted
        return False, value
    if hint is type(None):
        return value is None, None
    if hint is bool:
        return isinstance(value, bool), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number else value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is str:
        text = value.isoformat() if isinstance(value, datetime.date) else value  # YAML knows dates
        return isinstance(text, str), text
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, value
        fitted = [_fit(item, arguments[0]) for item in value]
        return all(fits for fits, _ in fitted), tuple(item for _, item in fitted)
    if origin is not None and issubclass(origin, Mapping):
        return _fit_mapping(value, lists=arguments[1] is not str)
    return False, value


def _fit_mapping(value: Any, *, lists: bool) -> tuple[bool, Any]:
    """Fit {text: text}; or, where lists are wanted, {column: value or [values]} to (values,)."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False, value
    if not lists:
        return all(isinstance(item, str) for item in value.values()), dict(value)
    listed = {k: tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in value.items()}
    fits = all(isinstance(item, str) for items in listed.values() for item in items)
    return fits, listed


def _describe(hint: Any) -> str:
    """Say in words what a type accepts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}s"
    if origin is not None and issubclass(origin, Mapping):
        pair = "text to text" if arguments[1] is str else "column to text values"
        return f"a mapping from {pair}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return words.get(hint, "null" if hint is type(None) else str(hint))


def _kind(value: object) -> str:
    names = {list: "a list", dict: "a mapping", str: "text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value
