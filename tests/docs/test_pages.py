"""The pages hang together, and those made from the code are of this code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import PAGES
from tests.docs.generate import DOCS, make_anchor, make_commands_page, make_settings_page

README_WORDS = 1300
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read_prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def list_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE)
    return {make_anchor(heading.replace("`", "")) for heading in headings}


def test_the_settings_page_is_of_this_code() -> None:
    assert (DOCS / "settings.md").read_text("utf-8") == make_settings_page(), "run `make docs`"


def test_the_commands_page_is_of_this_code() -> None:
    assert (DOCS / "commands.md").read_text("utf-8") == make_commands_page(), "run `make docs`"


def test_every_setting_says_what_it_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", make_settings_page(), re.MULTILINE)
    assert len(rows) > 60
    assert [key for key, meaning in rows if len(meaning.strip()) < 10] == []


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(read_prose(page)) if "://" not in link]
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in list_anchors(target), f"{page.name}: {link}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", DOCS.glob("*.md"), ids=lambda page: page.name)
def test_a_page_says_first_what_it_is_for(page: Path) -> None:
    title, blank, purpose, end = page.read_text("utf-8").splitlines()[:4]
    assert title.startswith("# ")
    assert (blank, end) == ("", "")
    assert purpose.endswith(".")
