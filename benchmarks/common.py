"""What benchmarks share: where results are, tables of them, and methods by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.fitting import fit, fit_text
from comfyui_pure.pure_core.methods import METHODS, TEXT_METHODS
from comfyui_pure.pure_core.text import TextTask, repeated

from testbed.comfy.erasable import Captured
from testbed.world.measure import Rate, Scores, Trial

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

MOST_CELLS = max(method.cells for method in METHODS.values())
"""With these a capture serves every method."""

COUNTED = ("by name", "by description", "neighbours", "unlisted", "everything else")
"""Heads of a table's columns for `Scores`."""


def fit_method(
    method: str,
    captured: Callable[[], Captured],
    task: Callable[[], TextTask],
    settings: Mapping[str, Any],
) -> Eraser:
    """An eraser by any method, from what that method takes."""
    if method in TEXT_METHODS:
        given = task()
        if TEXT_METHODS[method].every_token:  # to the neighbours, as where no anchor is typed
            given = replace(given, anchor=repeated(given.empty, len(given.forget.prompts)))
        return fit_text(method, given, **settings)
    return fit(method, *captured(), **settings)


def scored(model: Any, trial: Trial, eraser: Eraser | None) -> Scores:
    """What the judge sees of a model with an eraser in it."""
    with model.erased(eraser) as sampler:
        return trial.score(sampler)


def summed(entries: Iterable[Mapping[str, Any]]) -> Scores:
    """The scores in entries of a ledger, together."""
    scores = (Scores(*(Rate(*each[name]) for name in Scores._fields)) for each in entries)
    return functools.reduce(Scores.__add__, scores)


def markdown(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
