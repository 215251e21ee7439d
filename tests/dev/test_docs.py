"""What the documentation points at exists."""

import re

import pytest

from dev.console import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page) -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    named = re.findall(r"\b(test_\w+)\b(?!\.py)", page.read_text(encoding="utf-8"))
    assert named and set(named) <= defined, sorted(set(named) - defined)
