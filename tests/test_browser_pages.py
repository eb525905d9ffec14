"""Every page in a real browser, with the policy that forbids scripts switched off.

Text of users, files and models must be text even then; and no page may shut out a reader who
cannot see it well (axe-core, rules of WCAG 2).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sftkit.audit_page import audit_html
from sftkit.compare import compare_runs
from sftkit.dataset.audit import audit_file
from sftkit.recipe import recipe_from_dict
from sftkit.records import Answer, to_json
from sftkit.report.comparison import write_comparison
from sftkit.report.html import render_report, write_report
from sftkit.run import run
from sftkit.show import MaskView, answers_table, visible
from tests.sample_record import HOSTILE, hostile_record, label_record, sample_record
from tests.test_run import recipe, tiny_folder  # noqa: F401  (fixtures)

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
# What a payload does when it runs; one that reaches the page as markup would do one of these.
RUNS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</title></style></script><iframe src=javascript:parent.alert(1)>",
)


@dataclass
class Seen:
    """What a page did when it was opened.

    Attributes:
        text: All its text, folded parts unfolded.
        dialogs: Messages of dialogs it opened.
        asked: Addresses it asked for, beside itself and pictures inside it.
    """

    text: str = ""
    dialogs: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Any, tmp_path: Path) -> Callable[..., Seen]:
    """Open a page, by default as if it forbade nothing."""

    def look_at(page: str | Path, *, without_policy: bool = True) -> Seen:
        if isinstance(page, str):
            place = tmp_path / "page.html"
            place.write_text(page, encoding="utf-8")
            page = place
        seen = Seen()

        def note(dialog: Any) -> None:
            seen.dialogs.append(dialog.message)
            dialog.dismiss()

        context = chromium.new_context(bypass_csp=without_policy)
        tab = context.new_page()
        tab.on("dialog", note)
        tab.on("request", lambda request: seen.asked.append(request.url))
        tab.goto(page.absolute().as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        tab.wait_for_timeout(50)
        seen.text = f"{tab.title()}\n{tab.inner_text('body')}"
        own = page.absolute().as_uri()
        seen.asked = [url for url in seen.asked if url != own and not url.startswith("data:")]
        context.close()
        return seen

    return look_at


def assert_inert(seen: Seen, payload: str) -> None:
    """Nothing ran, nothing was asked for, and every line of the payload can be read."""
    assert (seen.dialogs, seen.asked) == ([], [])
    text = " ".join(seen.text.split())
    for line in payload.splitlines():
        assert " ".join(visible(line).split()) in text


def page_of(fragment: str) -> str:
    return f"<!DOCTYPE html><html lang=en><title>cell</title><body>{fragment}</body></html>"


@pytest.mark.parametrize("payload", RUNS)
def test_the_watch_sees_what_runs_and_the_policy_stops_it(look, payload):
    assert look(page_of(payload)).dialogs
    # Put into a real report as markup, only its policy stands between the payload and the reader.
    name = "the-name-of-the-run"
    page = render_report(sample_record(name=name)).replace(name, payload)
    assert look(page).dialogs
    assert look(page, without_policy=False).dialogs == []


@pytest.mark.parametrize("payload", HOSTILE)
def test_reports_cards_and_comparisons_show_payloads_as_text(look, payload, tmp_path):
    for place, record in (("chat", hostile_record(payload)), ("labels", label_record(payload))):
        assert_inert(look(write_report(record, tmp_path / place)), payload)
        (tmp_path / place / "run.json").write_text(to_json(record), encoding="utf-8")
    other = dataclasses.replace(hostile_record(payload), name=f"other {payload}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(to_json(other), encoding="utf-8")
    told = compare_runs([tmp_path / "chat", tmp_path / "other"])
    assert_inert(look(write_comparison(told, tmp_path / "compared.html")), payload)


@pytest.mark.parametrize("payload", HOSTILE)
def test_audits_and_cells_show_payloads_as_text(look, payload, tmp_path):
    rows = [
        {"question": f"{payload} {n}?", "answer": payload if n else "", payload[:40]: "x"}
        for n in range(20)
    ]
    name = payload.replace("/", "∕").replace("\x00", "").split("\n")[0][:100]
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    found = look(audit_html(audit_file(path)))
    assert (found.dialogs, found.asked) == ([], [])
    assert " ".join(visible(name).split()) in " ".join(found.text.split())

    answer = Answer(question=payload, expected=payload, base=payload, tuned=payload)
    for view in (answers_table((answer,)), MaskView((payload,), (True,), (False,))):
        seen = look(page_of(str(view._repr_html_())))
        assert (seen.dialogs, seen.asked) == ([], [])


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_conversation_shows_payloads_as_text(look, payload):
    from sftkit.talk import _turn_html

    assert_inert(look(page_of(_turn_html(payload, payload))), payload)


# Planted where a secret or an address may come from; none may reach a file of the run.
SECRET = "hf_" + "aB3x" * 9
ADDRESS = "ada.lovelace@example.org"


def test_a_real_run_on_hostile_rows_shows_them_and_keeps_secrets_out(
    look, recipe, tmp_path  # noqa: F811
):  # fmt: skip
    rows = [
        {"question": f"{HOSTILE[n % 11]} box {n}? {ADDRESS}", "answer": f"red {SECRET}"}
        for n in range(44)
    ]
    data = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe["data"] |= {"source": str(data), "max_tokens": 400}
    recipe["train"] |= {"max_steps": 2}
    recipe["evaluate"] |= {"side_by_side": 8}
    out = tmp_path / "'><svg onload=alert(1)>"
    run(recipe_from_dict(recipe), out)

    seen = look(out / "report.html")
    assert (seen.dialogs, seen.asked) == ([], [])
    assert "<img src=x onerror=alert(1)>.jsonl" in seen.text
    assert "<script>alert(1)</script> box" in seen.text
    for path in filter(Path.is_file, out.rglob("*")):
        held = path.read_bytes()
        assert SECRET.encode() not in held, path.name
        assert ADDRESS.encode() not in held, path.name


# ---- readers who cannot see it well ----


def pages(folder: Path) -> dict[str, Path]:
    """One page of every kind."""
    found = {
        "report": write_report(sample_record(), folder / "chat"),
        "labels": write_report(label_record(), folder / "labels"),
    }
    for place, name in (("chat", "shop"), ("other", "shop-2")):
        (folder / place).mkdir(exist_ok=True)
        record = to_json(sample_record(name=name))
        (folder / place / "run.json").write_text(record, encoding="utf-8")
    told = compare_runs([folder / "chat", folder / "other"])
    found["comparison"] = write_comparison(told, folder / "compared.html")
    rows = [{"text": f"text {n % 7}", "label": "ab"[n % 2]} for n in range(40)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    found["audit"] = folder / "audit.html"
    found["audit"].write_text(audit_html(audit_file(folder / "rows.json")), encoding="utf-8")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["report", "labels", "comparison", "audit"])
def test_no_serious_finding_of_accessibility(chromium, kind, width, scheme, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    context = chromium.new_context(
        bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    tab = context.new_page()
    tab.goto(pages(tmp_path)[kind].as_uri())
    found = Axe().run(tab).response
    wide = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    told = [
        f"{one['impact']}: {one['id']} ({one['help']}) at {[n['target'] for n in one['nodes']][:4]}"
        for one in found["violations"]
    ]
    assert len(found["passes"]) > 10
    assert [line for line in told if line.startswith(("serious", "critical"))] == []
    assert wide <= 0


def test_the_checker_finds_what_is_wrong(chromium, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    page = tmp_path / "bad.html"
    page.write_text("<html><body><img src='data:,'><p style='color:#bbb'>pale", encoding="utf-8")
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    found = {one["id"] for one in Axe().run(tab).response["violations"]}
    context.close()
    assert {"image-alt", "color-contrast", "html-has-lang"} <= found
