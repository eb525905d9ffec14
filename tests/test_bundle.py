"""A bundle is whole or says what is not; an index of tiny wheels stands in for pip's."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sftkit import bundle, bundle_wheels, catalog
from sftkit.bundle import demo_names, make_bundle
from sftkit.bundle_check import verify_bundle
from sftkit.bundle_wheels import PYTHON, read_target
from sftkit.cli import start
from sftkit.errors import FetchError

OWN = "sftkit_notebooks-0.1.0-py3-none-any.whl"
CP = f"cp{PYTHON[0]}{PYTHON[1]}"
LINUX, LATER, WINDOWS = "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "win_amd64"
# What requires what. As with the real ones: jupyterlab asks for winpty on Windows alone.
INDEX = {
    OWN: ["torch>=2.8", "jupyterlab; extra == 'notebooks'", "ruff; extra == 'test'"],
    f"torch-2.13.0+cpu-{CP}-{CP}-linux_x86_64.whl": ["numpy"],
    f"torch-2.13.0-{CP}-{CP}-{LATER}.whl": ["numpy", "nvidia; sys_platform == 'linux'"],
    f"torch-2.13.0-{CP}-{CP}-{WINDOWS}.whl": ["numpy"],
    f"torch-2.13.0-{CP}-none-macosx_11_0_arm64.whl": ["numpy"],
    f"torch-2.14.0-{CP}-{CP}-{WINDOWS}.whl": ["numpy", "not-to-be-had"],
    f"numpy-2.0.0-{CP}-{CP}-{LINUX}.whl": [],
    f"numpy-2.0.0-{CP}-{CP}-{WINDOWS}.whl": [],
    f"numpy-2.0.0-{CP}-{CP}-macosx_14_0_arm64.whl": [],
    f"numpy-2.0.0-{CP}-{CP}-macosx_15_0_arm64.whl": [],
    "nvidia-1.0-py3-none-manylinux2014_x86_64.whl": [],
    "jupyterlab-4.3-py3-none-any.whl": [
        "pywinpty>=1.1; os_name == 'nt'",
        "ptyprocess; os_name != 'nt'",
    ],
    f"pywinpty-3.1-{CP}-{CP}-{WINDOWS}.whl": [],
    "ptyprocess-0.7-py2.py3-none-any.whl": [],
}  # fmt: skip
COMMON = {OWN, "jupyterlab-4.3-py3-none-any.whl"}


def write_wheel(path: Path, requires: list[str]) -> None:
    name, version = path.name.split("-")[:2]
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stand in for pip: give the wheels of INDEX that fit the platforms; keep what was asked."""
    checkout = tmp_path / "checkout"
    for name in ("00_start_here.ipynb", "build.py", "solutions/00_start_here.ipynb"):
        (checkout / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / "notebooks" / name).write_text(name, encoding="utf-8")
    constraints = "# The known-good set.\ntorch==2.13.0\nnumpy==2.0.0\nruff==1.0\n"
    (checkout / "constraints.txt").write_text(constraints, encoding="utf-8")
    monkeypatch.setattr(bundle, "_checkout", lambda: checkout)
    asked: list[tuple[str, ...]] = []

    def carry_out(verb: str, *words: str) -> None:
        asked.append((verb, *words))
        place = Path(words[words.index("--dest" if verb == "download" else "--wheel-dir") + 1])
        fits = {words[i + 1] for i, word in enumerate(words) if word == "--platform"}
        fits |= {"any"} if fits else {"any", "linux_x86_64", LINUX}
        names = {re.split(r"[=<>]", word)[0] for word in words}
        for wheel, requires in INDEX.items():
            name, platform = wheel.split("-")[0], wheel.removesuffix(".whl").split("-")[-1]
            wanted = name in names or (verb == "wheel" and ("--no-deps" not in words))
            if "--constraint" not in words:  # sftkit's own
                wanted = wheel == OWN
            if wanted and platform in fits:
                write_wheel(place / wheel, requires)

    def list_this_machine() -> list[Any]:
        from packaging.tags import compatible_tags, cpython_tags

        names = ["linux_x86_64", LINUX]
        return [*cpython_tags(PYTHON, platforms=names), *compatible_tags(PYTHON, CP, names)]

    monkeypatch.setattr(bundle_wheels, "run_pip", carry_out)
    monkeypatch.setattr("packaging.tags.sys_tags", list_this_machine)
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
        (folder / ".bf16").mkdir(parents=True, exist_ok=True)
        (folder / "rows.json").write_text(wanted.name, encoding="utf-8")
        (folder / ".bf16" / "copy").write_text("made again at need", encoding="utf-8")
        return folder

    monkeypatch.setattr(catalog, "fetch_entry", fetch)
    return fetched


@pytest.fixture
def made(pip: Any, cached: Any, tmp_path: Path) -> Path:
    make_bundle(tmp_path / "room", ["medqa"])
    return tmp_path / "room"


def wheels_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "wheels").iterdir()}


def test_it_holds_packages_data_notebooks_and_how_to_use_them(made, cached):
    assert set(cached) == {*demo_names(), "medqa"}
    assert {"smollm2-135m", "shop", "boolq", "piqa"} <= set(demo_names())
    assert [p.name for p in (made / "cache" / "models" / "medqa").iterdir()] == ["rows.json"]
    notebooks = {p.relative_to(made).as_posix() for p in made.glob("notebooks/**/*.*")}
    assert notebooks == {"notebooks/00_start_here.ipynb", "notebooks/solutions/00_start_here.ipynb"}
    assert wheels_in(made) == COMMON | {
        f"torch-2.13.0+cpu-{CP}-{CP}-linux_x86_64.whl",
        f"numpy-2.0.0-{CP}-{CP}-{LINUX}.whl",
        "ptyprocess-0.7-py2.py3-none-any.whl",
    }
    assert verify_bundle(made) == ()


def test_the_manifest_names_every_file_and_nothing_of_this_machine(made):
    text = (made / "bundle.json").read_text(encoding="utf-8")
    listed = json.loads(text)
    there = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert set(listed["files"]) == there - {"bundle.json"}
    assert listed["files"]["cache/models/medqa/rows.json"] == {
        "bytes": 5,
        "sha256": "c6a9517619666612213023ed4c9654734451e1895047cded55db910173ffa423",
    }
    assert listed["versions"]["torch"] == ["2.13.0+cpu"]
    assert not [place for place in (str(made.parent), str(Path.home()), "://") if place in text]


def test_the_readme_says_how_to_install_without_an_index(made):
    told = (made / "README.txt").read_text(encoding="utf-8")
    install = (
        "-m pip install --no-index --find-links wheels -c constraints.txt "
        '"sftkit-notebooks[notebooks]"'
    )
    assert f"  python {install}\n" in told
    assert f"  .venv\\Scripts\\python {install}\n" in told
    assert 'export SFTKIT_CACHE="$PWD/cache"' in told
    assert '$env:SFTKIT_CACHE = "$PWD\\cache"' in told
    assert f"python{PYTHON[0]}.{PYTHON[1]} -m venv" in told


def test_made_again_it_keeps_what_is_whole_and_asks_for_nothing(made, pip):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*rows.json")}
    manifest = (made / "bundle.json").read_bytes()
    (made / "wheels" / "sftkit_notebooks-0.0.9-py3-none-any.whl").write_bytes(b"old")
    pip.clear()
    make_bundle(made, ["medqa"])
    assert [words[:2] for words in pip] == [("wheel", "--no-deps")]  # sftkit's own
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*rows.json")} == before
    assert re.sub(rb'"sha256": "\w+"', b"", (made / "bundle.json").read_bytes()) == re.sub(
        rb'"sha256": "\w+"', b"", manifest
    )
    assert verify_bundle(made) == ()


@pytest.mark.parametrize("kept", [True, False], ids=["with its manifest", "stopped before it"])
def test_made_again_what_was_damaged_is_fetched_again(kept, made, pip):
    wheel = made / "wheels" / f"numpy-2.0.0-{CP}-{CP}-{LINUX}.whl"
    rows = made / "cache" / "models" / "medqa" / "rows.json"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-7])
    rows.write_text("medqb", encoding="utf-8")  # as long as before
    if not kept:
        (made / "bundle.json").unlink()
    make_bundle(made, ["medqa"])
    assert wheel.stat().st_size == len(whole)
    assert rows.read_text(encoding="utf-8") == "medqa"
    assert verify_bundle(made) == ()


def test_what_is_not_asked_for_any_more_is_removed(made):
    make_bundle(made)
    assert not (made / "cache" / "models" / "medqa").exists()
    assert verify_bundle(made) == ()


# --- Other machines --------------------------------------------------------------------------


def test_another_platform_is_asked_for_what_it_needs_and_not_for_what_this_one_does(
    pip, cached, tmp_path
):
    done = make_bundle(tmp_path / "room", platforms=["win_amd64"])
    assert done.platforms == ("win_amd64",)
    assert wheels_in(tmp_path / "room") == COMMON | {
        f"torch-2.13.0-{CP}-{CP}-{WINDOWS}.whl",
        f"numpy-2.0.0-{CP}-{CP}-{WINDOWS}.whl",
        f"pywinpty-3.1-{CP}-{CP}-{WINDOWS}.whl",
    }
    asked = [words for words in pip if words[0] == "download"]
    assert all("--only-binary=:all:" in words and "--no-deps" in words for words in asked)


def test_linux_takes_wheels_for_its_own_and_every_older_glibc(pip, cached, tmp_path):
    make_bundle(tmp_path / "room", platforms=[LATER])
    assert wheels_in(tmp_path / "room") == COMMON | {
        f"torch-2.13.0+cpu-{CP}-{CP}-linux_x86_64.whl",
        f"numpy-2.0.0-{CP}-{CP}-{LINUX}.whl",
        "ptyprocess-0.7-py2.py3-none-any.whl",
    }


def test_several_platforms_lie_in_one_bundle(pip, cached, tmp_path):
    make_bundle(tmp_path / "room", platforms=["macosx_14_0_arm64", "win_amd64"])
    held = wheels_in(tmp_path / "room")
    assert f"torch-2.13.0-{CP}-none-macosx_11_0_arm64.whl" in held
    assert f"numpy-2.0.0-{CP}-{CP}-macosx_14_0_arm64.whl" in held
    assert f"numpy-2.0.0-{CP}-{CP}-macosx_15_0_arm64.whl" not in held
    assert {f"pywinpty-3.1-{CP}-{CP}-{WINDOWS}.whl", "ptyprocess-0.7-py2.py3-none-any.whl"} <= held
    assert verify_bundle(tmp_path / "room") == ()


def test_a_package_that_a_platform_cannot_have_is_named(pip, cached, tmp_path, monkeypatch):
    monkeypatch.delitem(INDEX, f"pywinpty-3.1-{CP}-{CP}-{WINDOWS}.whl")
    with pytest.raises(FetchError, match=r"no wheel for win_amd64 of: pywinpty>=1\.1"):
        make_bundle(tmp_path / "room", platforms=["win_amd64"])
    assert not (tmp_path / "room" / "bundle.json").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("win_amd64", ("win32", "Windows", "nt", "AMD64")),
        ("macosx_14_0_arm64", ("darwin", "Darwin", "posix", "arm64")),
        ("manylinux_2_28_aarch64", ("linux", "Linux", "posix", "aarch64")),
    ],
)
def test_a_platform_gives_its_own_answers(name, said):
    asked = ("sys_platform", "platform_system", "os_name", "platform_machine")
    assert tuple(read_target(name).answers[key] for key in asked) == said


@pytest.mark.parametrize("name", ["--index-url=x", "windows", "linux_x86_64", "win_amd64 "])
def test_a_platform_of_another_form_is_refused_before_anything_is_done(name, pip, cached, tmp_path):
    with pytest.raises(FetchError, match="Write it as pip does"):
        make_bundle(tmp_path / "room", platforms=["win_amd64", name])
    assert pip == []
    assert not (tmp_path / "room").exists()


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"), [("medqq", "medqa"), ("qwen3-0.6b", "comes from the hub")]
)
def test_a_name_that_cannot_be_bundled_is_refused_before_anything_is_done(
    name, told, pip, cached, tmp_path
):
    with pytest.raises(FetchError, match=told):
        make_bundle(tmp_path / "room", [name])
    assert pip == []
    assert not (tmp_path / "room").exists()


def test_a_folder_with_other_things_is_left_as_it_is(pip, cached, tmp_path):
    (tmp_path / "home" / "wheels").mkdir(parents=True)
    (tmp_path / "home" / "thesis.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "home" / "wheels" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FetchError, match=r"holds other things: thesis\.txt"):
        make_bundle(tmp_path / "home")
    assert (tmp_path / "home" / "wheels" / "mine.txt").is_file()


def test_a_folder_with_links_is_left_as_it_is(made, pip):
    (made.parent / "elsewhere").mkdir()
    (made / "wheels").rename(made.parent / "wheels")
    (made / "wheels").symlink_to(made.parent / "elsewhere")
    with pytest.raises(FetchError, match="holds links: wheels"):
        make_bundle(made)
    assert list((made.parent / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["00_start_here.ipynb", "mine.ipynb", "runs/demo/run.json"])
def test_notebooks_that_somebody_worked_on_are_left_as_they_are(name, made, pip):
    (made / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
    (made / "notebooks" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(FetchError, match=f"holds work of yours: notebooks/{name}"):
        make_bundle(made)
    assert (made / "notebooks" / name).read_text(encoding="utf-8") == "mine"
    assert (made / "bundle.json").is_file()


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


# --- Whether it is whole ---------------------------------------------------------------------


def test_what_using_it_makes_is_no_fault(made):
    for name in (
        ".venv/lib/x.py",
        "runs/demo/run.json",
        "cache/scores/base.json",
        "cache/models/medqa/.fingerprint",
        "notebooks/.ipynb_checkpoints/00.ipynb",
        "notebooks/._00_start_here.ipynb",
    ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("x", encoding="utf-8")
    (made / ".venv" / "python").symlink_to("/usr/bin/python3")
    assert verify_bundle(made) == ()


def change(made: Path) -> None:
    (made / "notebooks" / "00_start_here.ipynb").write_text("other", encoding="utf-8")


def swap_bytes(made: Path) -> None:
    path = made / "wheels" / OWN
    path.write_bytes(path.read_bytes()[::-1])


def lose(made: Path) -> None:
    (made / "README.txt").unlink()


def add(made: Path) -> None:
    (made / "wheels" / "evil.whl").write_bytes(b"x")


def add_beside(made: Path) -> None:
    (made / "pip.py").write_text("x", encoding="utf-8")


def add_with_escapes(made: Path) -> None:
    (made / "cache" / "\x1b[2Jx").write_text("x", encoding="utf-8")


def link(made: Path) -> None:
    path = made / "constraints.txt"
    path.rename(made.parent / "constraints.txt")
    path.symlink_to(made.parent / "constraints.txt")


def link_folder(made: Path) -> None:
    (made / "cache" / "models").rename(made.parent / "elsewhere")
    (made / "cache" / "models").symlink_to(made.parent / "elsewhere")


def list_also(made: Path, name: str) -> None:
    place = made / "bundle.json"
    listed = json.loads(place.read_text(encoding="utf-8"))
    listed["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    place.write_text(json.dumps(listed), encoding="utf-8")


def lead_up(made: Path) -> None:
    (made.parent / "secret").write_text("x", encoding="utf-8")
    list_also(made, "../secret")


def lead_away(made: Path) -> None:
    list_also(made, "/etc/hostname")


def lead_to_a_drive(made: Path) -> None:
    list_also(made, "C:\\secret")


@pytest.mark.parametrize(
    ("do", "told"),
    [
        (change, "notebooks/00_start_here.ipynb: has 5 bytes instead of"),
        (swap_bytes, f"wheels/{OWN}: has another content"),
        (lose, "README.txt: is missing"),
        (add, "wheels/evil.whl: was not in the bundle"),
        (add_beside, "pip.py: was not in the bundle"),
        (add_with_escapes, r"'cache/\x1b[2Jx: was not in the bundle'"),
        (link, "constraints.txt: is a link"),
        (link_folder, "cache/models/medqa/rows.json: is a link"),
        (lead_up, "../secret: leads out of the bundle"),
        (lead_away, "/etc/hostname: leads out of the bundle"),
        (lead_to_a_drive, "C:\\secret: leads out of the bundle"),
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


def test_the_verdict_can_be_read_by_a_program(made, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sftkit", "fetch", "--verify", str(made), "--format", "json"])
    for code, faults in ((0, []), (1, ["README.txt: is missing"])):
        with pytest.raises(SystemExit) as ended:
            start()
        assert ended.value.code == code
        assert json.loads(capsys.readouterr().out) == {"whole": not faults, "faults": faults}
        (made / "README.txt").unlink(missing_ok=True)


def test_making_and_verifying_are_asked_for_one_at_a_time(tmp_path, monkeypatch, capsys):
    words = ["--bundle", str(tmp_path / "a"), "--verify", str(tmp_path / "a")]
    monkeypatch.setattr("sys.argv", ["sftkit", "fetch", *words])
    assert start() == 2
    assert "one of --bundle and --verify" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"files": {"a": {"bytes": "1", "sha256": ""}}}'])
def test_a_damaged_or_missing_manifest_is_told(text, made):
    (made / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(FetchError, match="is damaged"):
        verify_bundle(made)
    (made / "bundle.json").unlink()
    with pytest.raises(FetchError, match="no whole bundle"):
        verify_bundle(made)
