"""Recipes: what is refused, in which words, and what survives a round trip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from sftkit.errors import SettingsError
from sftkit.recipe import (
    load_recipe,
    parse_yaml,
    recipe_from_dict,
    recipe_to_dict,
    yaml_text,
)
from sftkit.settings import (
    AdapterSettings,
    DataSettings,
    EvaluateSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
)

RECIPES = sorted((Path(__file__).resolve().parent.parent / "sftkit" / "recipes").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(raw: Mapping[str, object]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        recipe_from_dict(raw)
    return str(caught.value).splitlines()


def test_a_short_recipe_gets_every_default():
    recipe = recipe_from_dict({"name": "mine", "data": {"source": "my.csv"}})
    assert recipe == Recipe(name="mine", data=DataSettings(source="my.csv"))


def test_all_faults_of_a_recipe_are_told_together_each_with_its_place():
    assert faults_of(
        {
            "name": "my run",
            "model": {"name": "smollm2-135m", "quantisation": "nf4"},
            "data": {"source": "cwe", "limit": 0},
            "adapter": {"r": "sixteen"},
            "train": {"learning_rat": 1e-3, "epochs": 2.5, "seed": -1},
            "evalute": {},
        }
    ) == [
        "The recipe has 8 faults:",
        "  - unknown key 'model.quantisation'. Did you mean 'quantization' or "
        "'double_quantization'?",
        "  - data.limit must be 1 or more, got 0.",
        "  - adapter.r must be whole number, got 'sixteen'.",
        "  - unknown key 'train.learning_rat'. Did you mean 'learning_rate'?",
        "  - train.epochs must be whole number, got 2.5.",
        "  - train.seed must be 0 or more, got -1.",
        "  - unknown key 'evalute'. Did you mean 'evaluate'?",
        "  - name must be letters, digits, '.', '-' or '_', got 'my run'.",
    ]


def test_impossible_combinations_are_told_beside_other_faults():
    assert faults_of(
        {
            "name": "x",
            "model": {"quantization": "nf4", "device": "mps"},
            "data": {"source": "cwe", "limits": 3, "max_tokens": 1024},
            "train": {"epochs": 0},
        }
    ) == [
        "The recipe has 4 faults:",
        "  - unknown key 'data.limits'. Did you mean 'limit'?",
        "  - train.epochs must be 1 or more, got 0.",
        "  - model.quantization=nf4 needs a CPU or CUDA device, got model.device=mps. "
        "Use quantization: none, or device: cpu.",
        "  - data.max_tokens=1024 exceeds train.max_tokens_per_batch=640: such an example fits "
        "into no batch. Raise max_tokens_per_batch or lower max_tokens.",
    ]


@pytest.mark.parametrize(
    ("train", "fault"),
    [
        (
            {"max_tokens_per_batch": 2048, "epoch": 1},
            "unknown key 'train.epoch'. Did you mean 'epochs'?",
        ),
        (
            {"max_tokens_per_batch": 2048, "epochs": 0},
            "train.epochs must be 1 or more, got 0.",
        ),
        (
            {"max_tokens_per_batch": "2048"},
            "train.max_tokens_per_batch must be whole number, got '2048'.",
        ),
    ],
)
def test_a_default_is_not_blamed_where_another_value_was_given(train, fault):
    # 1024 fits into the batch that was asked for, not into the default of 640.
    raw = {"name": "x", "data": {"source": "cwe", "max_tokens": 1024}, "train": train}
    assert faults_of(raw) == ["The recipe has 1 fault:", f"  - {fault}"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            {"split_by": "part", "stratify_by": "label"},
            "data.stratify_by cannot be used with split_by, which already says where every row "
            "goes, got 'label'.",
        ),
        (
            {"split_by": "part", "time_by": "date"},
            "data.time_by cannot be used with split_by, which already says where every row goes, "
            "got 'date'.",
        ),
        (
            {"time_by": "date", "group_by": "user"},
            "data.group_by cannot be used with time_by: time alone decides where a row goes, "
            "got 'user'.",
        ),
        (
            {"time_cuts": ["2024-01-31", "2024-05-31"]},
            "data.time_cuts needs time_by, the column they cut, got ('2024-01-31', '2024-05-31').",
        ),
        (
            {"time_by": "date", "time_cuts": ["2024-05-31", "2024-01-31T10:00Z"]},
            "data.time_cuts must be two moments, the earlier first, such as [2024-01-31, "
            "2024-05-31], got ('2024-05-31', '2024-01-31T10:00Z').",
        ),
        (
            {"time_by": "date", "time_cuts": ["soon", "later"]},
            "data.time_cuts must be two moments, the earlier first, such as [2024-01-31, "
            "2024-05-31], got ('soon', 'later').",
        ),
        (
            {"columns": {"question": 3}},
            "data.columns must be a mapping from text to text or null, got {'question': 3}.",
        ),
    ],
)
def test_divisions_that_contradict_each_other_are_told(given, fault):
    raw = {"name": "x", "data": {"source": "s", **given}}
    assert faults_of(raw) == ["The recipe has 1 fault:", f"  - {fault}"]


def test_a_date_may_be_written_in_yaml_without_quotes(tmp_path):
    path = write(
        tmp_path,
        "name: x\ndata: {source: s, time_by: day, time_cuts: [2024-01-31, 2024-05-31T10:00:00Z]}\n",
    )
    assert load_recipe(path).data.time_cuts == ("2024-01-31", "2024-05-31T10:00:00+00:00")


def test_the_columns_of_a_file_are_named_in_a_recipe_and_written_back(tmp_path):
    data = DataSettings(source="s", columns={"question": "Frage"}, format="question-answer")
    recipe = Recipe(name="x", data=data)
    assert load_recipe(write(tmp_path, yaml_text(recipe))) == recipe


def test_float16_on_a_cpu_is_impossible():
    raw = {
        "name": "x",
        "model": {"dtype": "float16", "device": "cpu"},
        "data": {"source": "cwe"},
    }
    assert faults_of(raw) == [
        "The recipe has 1 fault:",
        "  - model.dtype=float16 on model.device=cpu cannot train stably. Use dtype: auto.",
    ]


def test_a_key_near_nothing_gets_the_list_of_valid_ones():
    assert faults_of({"name": "x", "data": {"source": "cwe"}, "zzz": 1})[1] == (
        "  - unknown key 'zzz'. Valid: adapter, data, evaluate, model, name, objective, train."
    )


def test_missing_required_fields_are_named():
    assert faults_of({"data": {}}) == [
        "The recipe has 2 faults:",
        "  - data.source is missing.",
        "  - name is missing.",
    ]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate must be number, got 'fast'."),
        ({"train": {"learning_rate": True}}, "train.learning_rate must be number, got True."),
        ({"train": {"epochs": True}}, "train.epochs must be whole number, got True."),
        (
            {"train": {"max_steps": "all"}},
            "train.max_steps must be whole number or null, got 'all'.",
        ),
        (
            {"model": {"quantization": "int4"}},
            "model.quantization must be one of none, int8, nf4, fp4, got 'int4'.",
        ),
        ({"train": [1]}, "train must be a mapping, got a list."),
        ({"evaluate": None}, "evaluate must be a mapping, got nothing."),
        (
            {"evaluate": {"probes": "piqa"}},
            "evaluate.probes must be a list of texts, got 'piqa'.",
        ),
        (
            {"adapter": {"layers": [0, "last"]}},
            "adapter.layers must be a list of whole numbers or null, got [0, 'last'].",
        ),
        (
            {"adapter": {"layers": [3, 1]}},
            "adapter.layers must be [first, last] with 0 <= first <= last, got (3, 1).",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_words(section, expected):
    raw = {"name": "x", "data": {"source": "cwe"}, **section}
    assert faults_of(raw) == ["The recipe has 1 fault:", f"  - {expected}"]


def test_a_whole_number_is_taken_where_a_number_is_wanted():
    recipe = recipe_from_dict({"name": "x", "data": {"source": "s"}, "train": {"learning_rate": 1}})
    assert repr(recipe.train.learning_rate) == "1.0"


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.e-3", "+1e-03", ".1e-2", "0.001"])
def test_an_exponent_without_a_point_is_a_number(written):
    assert parse_yaml(f"rate: {written}", where="here") == {"rate": 0.001}


def test_a_word_that_looks_a_little_like_a_number_stays_text():
    read = parse_yaml("[e3, 1e, 1e3x, '1e-3']", where="here")
    assert read == ["e3", "1e", "1e3x", "1e-3"]


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "name: x\ndata: {source: s}\ntrain:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(SettingsError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path} line 5: the key 'epochs' is given twice."


def test_text_that_is_not_yaml_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "name: x\ndata: {source: s\n")
    with pytest.raises(SettingsError, match=r"recipe\.yaml line \d is not valid YAML: "):
        load_recipe(path)


def test_yaml_cannot_make_python_objects(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path, f"name: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_recipe(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing"), ("- a\n", "a list"), ("just words\n", "text")]
)
def test_a_recipe_must_be_a_mapping(tmp_path, text, kind):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path} must hold a mapping (name:, data:, ...), got {kind}."


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"Cannot read the recipe .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path):
    path = write(tmp_path, "name: x\ndata: {source: s, limit: 5}\ntrain: {epochs: 3}\n")
    recipe = load_recipe(
        path,
        overrides=[
            "train.learning_rate=5e-4",
            "data.limit=null",
            "evaluate.probes=[piqa]",
            "data.system=a=b",
        ],
    )
    assert recipe == Recipe(
        name="x",
        data=DataSettings(source="s", limit=None, system="a=b"),
        train=TrainSettings(epochs=3, learning_rate=0.0005),
        evaluate=EvaluateSettings(probes=("piqa",)),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set needs section.field=value, got 'train.epochs'."),
        ("=3", "--set needs section.field=value, got '=3'."),
        ("name.first=a", "--set name.first=a: 'name' is not a section."),
        ("train.epoks=3", "unknown key 'train.epoks'. Did you mean 'epochs'?"),
        ("train.epochs=many", "train.epochs must be whole number, got 'many'."),
    ],
)
def test_a_wrong_override_is_refused_like_a_wrong_line(tmp_path, override, message):
    path = write(tmp_path, "name: x\ndata: {source: s}\n")
    with pytest.raises(SettingsError) as caught:
        load_recipe(path, overrides=[override])
    assert message in str(caught.value)


def test_a_written_recipe_reads_back_equal(tmp_path):
    recipe = Recipe(
        name="round.trip-1",
        model=ModelSettings(name="café", revision="main", quantization="nf4"),
        data=DataSettings(source="s", where={"kind": ("a", "b")}, system="Say “yes”.\nOr: no."),
        adapter=AdapterSettings(target_modules=("q_proj", "v_proj"), layers=(0, 3)),
        train=TrainSettings(learning_rate=1e-5, max_steps=7),
        evaluate=EvaluateSettings(probes=(), adapter_scale=0.0),
    )
    assert load_recipe(write(tmp_path, yaml_text(recipe))) == recipe
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_a_written_recipe_spells_out_every_field():
    text = yaml_text(Recipe(name="x", data=DataSettings(source="s")))
    raw = parse_yaml(text, where="written")
    for section, cls in {
        "model": ModelSettings,
        "data": DataSettings,
        "adapter": AdapterSettings,
        "train": TrainSettings,
        "evaluate": EvaluateSettings,
    }.items():
        assert list(raw[section]) == [info.name for info in dataclasses.fields(cls)]


def test_one_value_in_where_stands_for_a_list_of_one():
    recipe = recipe_from_dict({"name": "x", "data": {"source": "s", "where": {"aspect": "fix"}}})
    assert recipe.data.where == {"aspect": ("fix",)}


SECTIONS = (ModelSettings, DataSettings, AdapterSettings, TrainSettings, EvaluateSettings)
FLOATS = [
    (section, info.name)
    for section in SECTIONS
    for info in dataclasses.fields(section)
    if info.type == "float"
]


@pytest.mark.parametrize(("section", "name"), FLOATS)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_setting_takes_a_number_that_is_not_finite(section, name, value):
    # Such a number would train for minutes and then not fit into run.json.
    needed = {"source": "s"} if section is DataSettings else {}
    with pytest.raises(SettingsError, match=rf"^{section.__name__}\.{name} must be .*, got "):
        section(**needed, **{name: value})


def test_settings_cannot_be_changed_after_they_were_checked():
    settings = TrainSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 0  # type: ignore[misc]


@pytest.mark.parametrize("cls", [*SECTIONS, Recipe])
def test_every_field_is_documented_under_its_own_name(cls):
    documented = cls.__doc__.split("Attributes:")[1]
    names = [info.name for info in dataclasses.fields(cls)]
    assert [name for name in names if f"\n        {name}: " not in documented] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_bundled_recipe_loads_and_bears_its_files_name(path):
    assert load_recipe(path).name == path.stem


def test_there_are_bundled_recipes():
    assert {"demo", "cwe"} <= {path.stem for path in RECIPES}


def test_a_gpu_s_number_is_a_name_in_max_memory_as_yaml_writes_it(tmp_path):
    path = write(
        tmp_path,
        "name: x\ndata: {source: s}\nmodel: {device_map: auto, max_memory: {0: 10GB, cpu: 30GB}}\n",
    )
    assert load_recipe(path).model.max_memory == {"0": "10GB", "cpu": "30GB"}
