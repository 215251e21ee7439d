"""Pages say of methods what the methods declare."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dev import method_docs
from dev.console import ROOT
from pure_core.methods import METHODS, TEXT_METHODS

EVERY = {**METHODS, **TEXT_METHODS}


@pytest.mark.parametrize("page", method_docs.PAGES)
def test_pages_are_as_the_methods_declare(page) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert method_docs.renewed(text) == text, "run: python3 dev.py docs"


def test_every_block_is_on_a_page() -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in method_docs.PAGES]
    found = [name for text in texts for name in method_docs.blocks_of(text)]
    assert sorted(found) == sorted(method_docs.BLOCKS)


def test_a_changed_setting_is_seen() -> None:
    page = ROOT / method_docs.PAGES[0]
    method = METHODS["leace"]
    (setting,) = method.settings
    other = replace(method, settings=(replace(setting, default=0.05),))
    table = method_docs.settings({**METHODS, "leace": other})
    assert "default 0.05" in table and table not in page.read_text(encoding="utf-8")


def test_tables_have_a_row_for_everything_declared() -> None:
    for methods in (METHODS, TEXT_METHODS):
        rows = method_docs.settings(methods).splitlines()[2:]
        named = {each.name for method in methods.values() for each in method.settings}
        assert len(rows) == len(named)
        assert {row.split("`")[1] for row in rows} == named
        count = sum(len(method.presets) for method in methods.values())
        assert len(method_docs.presets(methods).splitlines()) == count + 2
    for name, row in zip(EVERY, method_docs.overview(EVERY).splitlines()[2:], strict=True):
        assert row.startswith(f"| *{name}* |") and EVERY[name].source in row


def test_pages_are_written_where_they_differ(tmp_path) -> None:
    for page in method_docs.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(text.replace("| `reach` |", "| `range` |"), encoding="utf-8")
    assert method_docs.write(tmp_path) == [method_docs.PAGES[0]]
    assert method_docs.write(tmp_path) == []
    for page in method_docs.PAGES:
        assert (tmp_path / page).read_bytes() == (ROOT / page).read_bytes()
