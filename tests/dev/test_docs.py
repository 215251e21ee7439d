"""The documentation: what it points at exists, its example runs, and its words are plain."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.console import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
LINES = 170

WITHOUT_ZERO = re.compile(r"(?<![\w.\d)\]*/}])\.\d")

DIALECT = (
    "anew",
    "so many by so many",
    "leave away",
    "left away",
    "and alike",
    "keeps neighbours alike",
    "nobody",
    "are told",
    "as told",
    "whole way",
    "way to the neighbours",
    "stands left",
    "stand left",
)
"""Not the English of this field; `docs/` and tooltips say it in other words."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchor_names(page: Path) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def shown_texts(file: Path) -> Iterator[str]:
    """The texts in a module of the nodes, without docstrings and formats of numbers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            hidden.add(id(node.value))
        elif isinstance(node, ast.FormattedValue) and node.format_spec:
            hidden.update(map(id, ast.walk(node.format_spec)))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in hidden
        ):
            yield node.value


@pytest.mark.parametrize("page", [page for page in DOCS if "test_" in page.read_text()], ids=name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page.read_text(encoding="utf-8")))
    assert named <= defined, sorted(named - defined)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchor_names(target), link


def test_the_readme_is_short_and_says_first_how_to_begin() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    begin = "\n".join(lines[:30])
    assert "python3 dev.py demo" in begin and "python3 dev.py test" in begin


@pytest.mark.parametrize("page", [*PAGES, *HELP], ids=name)
def test_numbers_begin_with_a_digit(page: Path) -> None:
    assert WITHOUT_ZERO.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("number", [".5", "of .5", "(.91–1)", "| .3 |", "±.1", "–.95"])
def test_a_number_without_its_zero_is_found(number: str) -> None:
    assert WITHOUT_ZERO.search(number)


@pytest.mark.parametrize("page", [*PAGES, *HELP], ids=name)
def test_pages_are_in_plain_words(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert [word for word in DIALECT if word in text.lower()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").rglob("*.py")), ids=name)
def test_the_nodes_texts_are_in_plain_words(file: Path) -> None:
    texts = " ".join(shown_texts(file)).lower()
    assert [word for word in DIALECT if word in texts] == []
    assert WITHOUT_ZERO.findall(texts) == []


def test_the_example_in_python_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'Van Gogh'")
