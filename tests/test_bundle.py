"""A bundle is whole or says what is not; pip and the catalog are stood in for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sftkit import bundle, catalog
from sftkit.bundle import demo_names, make_bundle, verify_bundle
from sftkit.cli import start
from sftkit.errors import FetchError


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stand in for pip: own wheel and one package, and what was asked."""
    asked: list[tuple[str, ...]] = []

    def carry_out(verb: str, *words: str) -> None:
        asked.append((verb, *words))
        place = Path(words[words.index("--dest" if verb == "download" else "--wheel-dir") + 1])
        name = "torch-1.0-py3-none-any.whl"
        if "--no-deps" in words:
            name = "sftkit_notebooks-0.1.0-py3-none-any.whl"
        (place / name).write_bytes(name.encode())

    monkeypatch.setattr(bundle, "_pip", carry_out)
    return asked


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for fetching: a file in the cache per name, and which were fetched."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("SFTKIT_CACHE", str(cache))
    fetched: list[str] = []

    def fetch(wanted: catalog.Entry, *, progress: Any = None) -> Path:
        fetched.append(wanted.name)
        folder = cache / "models" / wanted.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows.json").write_text(wanted.name, encoding="utf-8")
        return folder

    monkeypatch.setattr(catalog, "fetch_entry", fetch)
    return fetched


@pytest.fixture
def made(pip: Any, cached: Any, tmp_path: Path) -> Path:
    make_bundle(tmp_path / "room", ["medqa"])
    return tmp_path / "room"


def test_it_holds_packages_data_notebooks_and_how_to_use_them(made, cached):
    assert set(cached) == {*demo_names(), "medqa"}
    assert {"smollm2-135m", "shop", "boolq", "piqa"} <= set(demo_names())
    assert (made / "cache" / "models" / "medqa" / "rows.json").is_file()
    assert (made / "notebooks" / "00_start_here.ipynb").is_file()
    assert len(list((made / "wheels").glob("*.whl"))) == 2
    told = (made / "README.txt").read_text(encoding="utf-8")
    assert "--no-index --find-links wheels" in told
    listed = json.loads((made / "bundle.json").read_text(encoding="utf-8"))
    assert "wheels/torch-1.0-py3-none-any.whl" in listed["files"]
    assert str(made.parent) not in json.dumps(listed)
    assert verify_bundle(made) == ()


def test_what_is_made_beside_the_parts_is_no_fault(made):
    for name in (".venv/lib/x.py", "runs/demo/run.json", "cache/scores/base.json"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("x", encoding="utf-8")
    assert verify_bundle(made) == ()


def test_made_again_it_keeps_what_is_whole(made, pip, cached, tmp_path):
    kept = made / "cache" / "models" / "medqa" / "rows.json"
    before = kept.stat().st_mtime_ns
    (made / "wheels" / "sftkit_notebooks-0.0.9-py3-none-any.whl").write_bytes(b"old")
    make_bundle(made, ["medqa"])
    assert kept.stat().st_mtime_ns == before
    assert not list(made.glob("wheels/*0.0.9*"))
    assert verify_bundle(made) == ()


def test_platforms_are_asked_of_pip_and_wheels_only(pip, cached, tmp_path):
    done = make_bundle(tmp_path / "room", platforms=["win_amd64", "macosx_14_0_arm64"])
    assert done.platforms == ("win_amd64", "macosx_14_0_arm64")
    asked = [words for words in pip if words[0] == "download"]
    assert [words[words.index("--platform") + 1] for words in asked] == list(done.platforms)
    assert all("--only-binary=:all:" in words for words in asked)
    with pytest.raises(FetchError, match="write it as pip does"):
        make_bundle(tmp_path / "other", platforms=["--index-url=x"])


def test_an_unknown_name_is_refused_before_anything_is_done(pip, cached, tmp_path):
    with pytest.raises(FetchError, match="medqq"):
        make_bundle(tmp_path / "room", ["medqq"])
    assert pip == []
    assert not (tmp_path / "room").exists()


def change(made: Path) -> None:
    (made / "notebooks" / "00_start_here.ipynb").write_text("other", encoding="utf-8")


def swap_bytes(made: Path) -> None:
    path = made / "wheels" / "torch-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[::-1])


def lose(made: Path) -> None:
    (made / "README.txt").unlink()


def add(made: Path) -> None:
    (made / "wheels" / "evil.whl").write_bytes(b"x")


def link(made: Path) -> None:
    path = made / "constraints.txt"
    path.rename(made.parent / "constraints.txt")
    path.symlink_to(made.parent / "constraints.txt")


def link_folder(made: Path) -> None:
    (made / "cache" / "models").rename(made.parent / "elsewhere")
    (made / "cache" / "models").symlink_to(made.parent / "elsewhere")


def lead_out(made: Path) -> None:
    place = made / "bundle.json"
    listed = json.loads(place.read_text(encoding="utf-8"))
    listed["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}
    place.write_text(json.dumps(listed), encoding="utf-8")


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (change, "notebooks/00_start_here.ipynb: has 5 bytes instead of"),
        (swap_bytes, "wheels/torch-1.0-py3-none-any.whl: has another content"),
        (lose, "README.txt: is missing"),
        (add, "wheels/evil.whl: was not in the bundle"),
        (link, "constraints.txt: is a link"),
        (link_folder, "rows.json: is a link"),
        (lead_out, "../secret: leads out of the bundle"),
    ],
)
def test_what_was_lost_or_changed_is_named(do, told, made, monkeypatch, capsys):
    do(made)
    assert told in "\n".join(verify_bundle(made))
    monkeypatch.setattr("sys.argv", ["sftkit", "fetch", "--verify", str(made)])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 1
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"files": {"a": {"bytes": "1", "sha256": ""}}}'])
def test_a_damaged_or_missing_manifest_is_told(text, made):
    (made / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(FetchError, match="is damaged"):
        verify_bundle(made)
    (made / "bundle.json").unlink()
    with pytest.raises(FetchError, match="no whole bundle"):
        verify_bundle(made)


def test_pips_own_words_are_told_without_addresses(monkeypatch, cached, tmp_path):
    def fail(command: list[str], **_: Any) -> Any:
        words = "ERROR: No matching distribution at https://user:pw@mirror.example/simple"
        return subprocess.CompletedProcess(command, 1, "", words)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(FetchError, match="No matching distribution") as told:
        make_bundle(tmp_path / "room")
    assert "mirror.example" not in str(told.value)
    assert not (tmp_path / "room" / "bundle.json").exists()


def test_an_installed_package_says_that_a_checkout_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "site-packages" / "sftkit" / "x.py"))
    with pytest.raises(FetchError, match="clone the repository"):
        make_bundle(tmp_path / "room")
