"""The report in a real browser: nothing runs, nothing is fetched, nothing sticks out sideways."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_record import (  # type: ignore[import-not-found]
    HOSTILE,
    hostile_record,
    sample_record,
)

from sftkit.report.html import write_report

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser(tmp_path: Path):
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")

    def open_page(page: Path, *flags: str) -> str:
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    return open_page


class _Elements(HTMLParser):
    """What a page consists of, as the browser understood it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")


def _probe_page(report: Path, width: int) -> Path:
    """Frame the report at a width and let the frame's own script write what it measured."""
    page = report.with_name("probe.html")
    page.write_text(
        f"<iframe id=f src='{report.name}' style='width:{width}px;height:800px;border:0'></iframe>"
        "<p id=out></p><script>onload = () => { const d = document.getElementById('f')"
        ".contentDocument.documentElement; document.getElementById('out').textContent ="
        " 'sideways ' + (d.scrollWidth - d.clientWidth) + ' title ' + d.ownerDocument.title;};"
        "</script>",
        encoding="utf-8",
    )
    return page


@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_never_scrolls_sideways(browser, tmp_path: Path, width: int) -> None:
    report = write_report(sample_record(), tmp_path / "run")

    seen = browser(
        _probe_page(report, width),
        "--allow-file-access-from-files",
        "--dump-dom",
        "--virtual-time-budget=5000",
    )

    found = re.search(r"sideways (-?\d+) title", seen)
    assert found, seen[-500:]
    assert int(found[1]) <= 0


def test_hostile_text_neither_runs_nor_changes_the_page(browser, tmp_path: Path) -> None:
    for number, payload in enumerate(HOSTILE):
        report = write_report(hostile_record(payload), tmp_path / f"run-{number}")

        dom = browser(report, "--dump-dom")

        seen = _Elements()
        seen.feed(dom)
        assert seen.tags.count("img") == 5, payload  # the five figures and no other picture
        assert not {"script", "iframe", "svg", "a"} & set(seen.tags), payload
        assert not {name for name in seen.attributes if name.startswith("on")}, payload


def test_the_report_is_drawn(browser, tmp_path: Path) -> None:
    report = write_report(sample_record(), tmp_path / "run")
    picture = tmp_path / "report.png"

    browser(report, f"--screenshot={picture}", "--window-size=1280,2000")

    assert _png_size(picture) == (1280, 2000)
    assert picture.stat().st_size > 50_000  # a blank page is a tenth of that
