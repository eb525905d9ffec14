"""The page of audit codes says something about every code, and about no other."""

import re

from sftkit.dataset.faults import FAULTS


def page(checkout):
    return (checkout / "docs" / "audit-codes.md").read_text(encoding="utf-8")


def test_every_code_has_its_heading_in_order_and_no_other_has_one(checkout):
    headings = re.findall(r"^## (D\d\d) \S", page(checkout), flags=re.MULTILINE)
    assert headings == sorted(FAULTS)


def test_every_code_says_what_to_do(checkout):
    parts = re.split(r"^## ", page(checkout), flags=re.MULTILINE)[1:]
    silent = [part[:3] for part in parts if "**What to do:**" not in part]
    assert silent == []


def test_every_link_within_the_page_leads_to_a_heading(checkout):
    text = page(checkout)
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set()
