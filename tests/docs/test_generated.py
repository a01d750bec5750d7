"""What is made from code says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.cli.docs import doc_texts
from launcher.errors import CATALOGUE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["docs/errors.md", "docs/cli.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == doc_texts()[name], "run `make goldens`"


def test_every_code_that_is_raised_is_in_the_catalogue_and_every_code_in_it_is_raised() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "launcher").rglob("*.py") if path.name != "errors.py"}
    used = {code for text in sources.values() for code in re.findall(r'"(E\d{3})"', text)}
    assert used - set(CATALOGUE) <= {"E350"}  # only the border between errors and warnings of lint
    assert set(CATALOGUE) - used == set(), "codes that nothing raises"


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
