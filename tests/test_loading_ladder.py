"""The ladder of models: pinned, described without a hub, and recipes that fit their machines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sftkit import catalog, catalog_hub
from sftkit.catalog import fetch_model, model_config
from sftkit.errors import FetchError
from sftkit.memory import estimate
from sftkit.run import find_recipe
from sftkit.settings import ModelSettings
from sftkit.weights import lean_folder
from tests.conftest import make_model, make_tokenizer

PARAMETERS = {  # as published
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen3-0.6b": 596_049_920,
    "smollm2-1.7b": 1_711_376_384,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}
ON_THE_HUB = [name for name in PARAMETERS if name != "smollm2-135m"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_stored_configuration_describes_a_model_of_the_published_size(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model_config(ModelSettings(name=name))
    kind = config.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_hub_model_of_the_catalog_is_pinned(name):
    entry = catalog.entry(name)
    source = fetch_model(ModelSettings(name=name))
    assert (source.name, source.path, source.revision) == (name, entry.hub, entry.revision)
    assert source.fingerprint == f"hub:{entry.hub}@{entry.revision}"
    assert source.title == entry.title
    other = fetch_model(ModelSettings(name=name, revision="main"))
    assert other.fingerprint == f"hub:{entry.hub}@main"


def test_a_folder_gives_its_own_configuration(folder):
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert model_config(ModelSettings(name=str(folder))) == said


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_configuration_that_is_none_is_refused_in_words(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(FetchError, match=r"config\.json (must hold a mapping|cannot be read as J)"):
        model_config(ModelSettings(name=str(folder)))


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_hub_model_nobody_described_is_refused_with_what_would_help(no_hub):
    with pytest.raises(FetchError, match=r"configuration of 'a/b' is not known here: .* folder wi"):
        model_config(ModelSettings(name="a/b"))


def test_the_hub_s_own_cache_is_read(no_hub):
    place = no_hub / "models--a--b" / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    (place / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (no_hub / "models--a--b" / "refs").mkdir()
    (no_hub / "models--a--b" / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    assert catalog_hub.hub_folder("a/b", None, download=False) == place
    assert catalog_hub.hub_config("a/b", None) == {"model_type": "llama"}


def test_fetching_without_a_hub_says_what_to_do(no_hub):
    assert not catalog.is_cached(catalog.entry("qwen3-8b"))
    with pytest.raises(FetchError) as caught:
        catalog.fetch("qwen3-8b")
    assert str(caught.value).startswith("Qwen/Qwen3-8B cannot be downloaded from huggingface.co (")
    assert str(caught.value).endswith("Without a hub there is smollm2-135m.")


@pytest.mark.parametrize(
    ("recipe", "device", "gigabytes"),
    [("cpu", "cpu", 4), ("t4", "cuda", 15), ("24gb", "cuda", 23), ("4gpu", "cuda", 23)],
)
def test_a_recipe_of_the_ladder_is_predicted_to_fit_its_machine(recipe, device, gigabytes):
    plan = find_recipe(recipe)
    found = estimate(
        model_config(plan.model), model=plan.model, adapter=plan.adapter, train=plan.train,
        max_tokens=plan.data.max_tokens, device=device, dtype="bfloat16",
    )  # fmt: skip
    print(f"{recipe}: {found.total / 1e9:.1f} GB, at most {found.high / 1e9:.1f}")
    assert found.high < gigabytes * 1e9


def test_recipes_that_nobody_ran_say_so():
    folder = catalog.bundled_folder().parent / "sftkit" / "recipes"
    said = {path.stem: "NOT RUN HERE" in path.read_text("utf-8") for path in folder.iterdir()}
    assert [name for name, unrun in sorted(said.items()) if unrun] == ["24gb", "4gpu", "t4"]


@pytest.mark.hub
def test_the_smallest_hub_model_downloads_and_matches_its_stored_configuration():
    if os.environ["HF_HUB_OFFLINE"] != "0":  # tests/conftest.py sets it
        pytest.skip("the hub is off in tests; set HF_HUB_OFFLINE=0 where it is reached")
    folder = catalog.fetch("smollm2-360m")
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = model_config(ModelSettings(name="smollm2-360m"))
    assert {key: said.get(key) for key in stored} == stored


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_the_stored_configuration_of_a_wheel_s_model_is_that_of_its_files(name):
    said = catalog_hub.read_config(catalog.fetch(name) / "config.json")
    stored = model_config(ModelSettings(name=name))
    assert {key: said.get(key) for key in stored} == stored


def test_the_tiny_model_s_tokenizer_is_no_part_of_its_16_bit_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path))
    make_model(vocab_size=258).save_pretrained(tmp_path / "models" / "m")
    make_tokenizer().save_pretrained(tmp_path / "models" / "m")
    copy = Path(
        lean_folder(fetch_model(ModelSettings(name=str(tmp_path / "models" / "m"))), torch.bfloat16)
    )
    names = sorted(path.name for path in copy.iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]
