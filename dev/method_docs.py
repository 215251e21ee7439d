"""The parts of the docs that methods declare themselves: tables of settings, presets and papers.

They are between `<!-- methods: NAME -->` and `<!-- /methods -->`. `python3 dev.py docs` writes
them, and `tests/dev/test_method_docs.py` fails while a page says something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from dev.console import ROOT, say
from pure_core.methods import (
    METHODS,
    TEXT_METHODS,
    ActivationMethod,
    Method,
    Setting,
    TextMethod,
)
from pure_core.methods.method import number

PAGES = ("web/docs/PURE_Fit.md", "web/docs/PURE_FitText.md", "docs/methods.md")

_BLOCK = re.compile(r"(<!-- methods: ([\w ]+) -->\n)(.*?)(<!-- /methods -->)", re.DOTALL)


def settings(methods: Mapping[str, Method]) -> str:
    """A row for every setting, with the methods that use it, its range and default."""
    users: dict[Setting, list[str]] = {}
    for method in methods.values():
        for each in method.settings:
            users.setdefault(each, []).append(f"*{method.name}*")
    rows = []
    for each, names in users.items():
        folded = " Advanced." if each.advanced else ""
        allowed = f"{each.range[0].upper()}{each.range[1:]}, default {number(each.default)}."
        rows.append((f"`{each.name}`", ", ".join(names), f"{each.help} {allowed}{folded}"))
    return _table(("setting", "of", "what it does"), rows)


def presets(methods: Mapping[str, Method]) -> str:
    """A row for every preset, with the settings that it stands for."""
    rows = [
        (
            f"*{method.name}: {name}*",
            ", ".join(f"`{each}` {number(value)}" for each, value in values.items()),
        )
        for method in methods.values()
        for name, values in method.presets.items()
    ]
    return _table(("preset", "settings"), rows)


def overview(methods: Mapping[str, ActivationMethod | TextMethod]) -> str:
    """A row for every method: what it does, what it edits and where it is from."""
    rows = []
    for method in methods.values():
        space = "`W E`" if _multiplies_text(method) else "`E W`"
        needs = "needed" if method.needs_retain else "optional"
        rows.append((f"*{method.name}*", method.summary, method.edit, space, needs, method.source))
    return _table(("method", "what it does", "edits", "as", "retain", "source"), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "activation settings": partial(settings, METHODS),
    "activation presets": partial(presets, METHODS),
    "text settings": partial(settings, TEXT_METHODS),
    "text presets": partial(presets, TEXT_METHODS),
    "text overview": partial(overview, TEXT_METHODS),
    "overview": partial(overview, {**METHODS, **TEXT_METHODS}),
}


def renewed(page: str) -> str:
    """A page's text with its blocks as the methods declare them now."""
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}{block[4]}", page)


def blocks_of(page: str) -> list[str]:
    """The names of a page's blocks."""
    return [found[2] for found in _BLOCK.finditer(page)]


def write(root: Path = ROOT) -> list[str]:
    """Renew all pages; the names of those that were not up to date."""
    changed = []
    for name in PAGES:
        before = (root / name).read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            (root / name).write_text(after, encoding="utf-8", newline="\n")
            changed.append(name)
    return changed


def _multiplies_text(method: Method) -> bool:
    if not isinstance(method, TextMethod):
        return False
    return method.solve is not None or method.space == "text"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    say(f"written: {', '.join(write()) or 'nothing, all pages are up to date'}")
