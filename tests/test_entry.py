"""The command says plainly when another package named sftkit stands before ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sftkit

CHECKOUT = Path(__file__).resolve().parent.parent
EXPLANATION = (
    "Another package named `sftkit` (a web and database library) hides this one "
    "(sftkit-notebooks).\n"
    "Remove it with `python -m pip uninstall sftkit`, then install this one again from its "
    "checkout: `python -m pip install -e .`\n"
)
START = (
    "import sys, sftkit_entry; sys.argv = ['sftkit', '--version']; sys.exit(sftkit_entry.main())"
)


def start(*folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(folder) for folder in folders)
    return subprocess.run(
        [sys.executable, "-c", START],
        cwd=cwd, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("__version__ = '2.8.1'\n", id="another package"),
        pytest.param("from sftkit_missing import nothing\n", id="another package that is broken"),
        pytest.param("DISTRIBUTION = 'sftkit'\n", id="one that names itself"),
    ],
)
def test_another_package_of_that_name_is_told_from_ours(tmp_path, content):
    other = tmp_path / "other" / "sftkit"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text(content, encoding="utf-8")
    done = start(tmp_path / "other", CHECKOUT, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", EXPLANATION)


def test_ours_starts_the_command_line(tmp_path):
    done = start(CHECKOUT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == sftkit.__version__
