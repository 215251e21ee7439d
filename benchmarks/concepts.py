"""Erases many concepts of the drawn world at once, in the narrow form, and lets the judge count.

    python3 dev.py run benchmarks/concepts.py -- --out benchmarks/results

1, 3, 10 and all characters but nine, then all concepts of every kind but some, which are the
neighbours: fitted at once, and fitted one by one and combined, joint and in sequence, by every
method with the nodes' defaults. A joint eraser is made a second time from the erasers in reversed
order, and the largest difference between the two is written beside it. Results are kept as they
come (`concepts.jsonl`), so an interrupted run goes on; `concepts.md` is the table.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.combine import MODES, combine
from comfyui_pure.pure_core.concepts import anchors_for
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit

from benchmarks.common import MOST_CELLS, RESULTS, markdown
from benchmarks.narrow import NarrowUNet
from testbed.comfy.erasable import TRAJECTORY
from testbed.world.judge import read
from testbed.world.measure import DRAWN, Rate, Sampler
from testbed.world.prompts import (
    Prompt,
    concept_prompts,
    name_of,
    neighbour_prompts,
    unrelated_prompts,
)
from testbed.world.vocabulary import DEVELOPMENT, HELD_OUT

METHODS = ("pure", "ridge", "mosaic")
KEPT = {"character": 9, "object": 4, "style": 3, "unsafe content": 1}
"""Concepts of each kind that are kept, the last of their list."""
AT_ONCE = "at once"
NUMBERS = ("by name", "by description", "neighbours", "everything else")
FIELDS = ("what", "concepts", "method", "mode")

Concept = tuple[str, str]
"""Kind and name."""


class Task(NamedTuple):
    """What is erased together, and what is kept."""

    what: str
    erased: tuple[Concept, ...]
    kept: tuple[Concept, ...]

    def prompts(self, count: int) -> list[list[Prompt]]:
        """Prompts for the numbers, spread over the concepts."""
        by_name = [self._of(self.erased, count, name) for name in (True, False)]
        kinds = list(dict.fromkeys(kind for kind, _ in self.kept))
        kept = [
            prompt
            for kind in kinds
            for prompt in neighbour_prompts(
                kind, [name for each, name in self.kept if each == kind], count // len(kinds)
            )
        ]
        other = unrelated_prompts("character", count) if kinds == ["character"] else []
        return [*by_name, kept, other]

    @staticmethod
    def _of(concepts: Sequence[Concept], count: int, by_name: bool) -> list[Prompt]:
        each = -(-count // len(concepts))
        found = [concept_prompts(kind, name, each, by_name) for kind, name in concepts]
        return [prompt for turn in zip(*found, strict=True) for prompt in turn][:count]


def tasks(split: str) -> Iterable[Task]:
    """Characters of a split by number, then everything there is but what is kept."""
    every = {kind: (*DEVELOPMENT[kind], *HELD_OUT[kind]) for kind in DEVELOPMENT}
    kept = {kind: [(kind, name) for name in every[kind][-KEPT[kind] :]] for kind in every}
    own = [("character", name) for name in DRAWN.splits[split]["character"]]
    own = [concept for concept in own if concept not in kept["character"]]
    for count in (1, 3, 10):
        yield Task(f"{split} characters", tuple(own[:count]), tuple(kept["character"]))
    rest = {kind: [(kind, n) for n in every[kind] if (kind, n) not in kept[kind]] for kind in every}
    yield Task("all characters", tuple(rest["character"]), tuple(kept["character"]))
    erased, kept_all = (tuple(chain.from_iterable(each.values())) for each in (rest, kept))
    yield Task("all kinds", erased, kept_all)


class Captures:
    """Activations of concepts, captured once each."""

    def __init__(self, model: NarrowUNet) -> None:
        self._model = model
        self._of = functools.cache(self._capture)

    def _capture(self, concept: Concept) -> Activations:
        kind, name = concept
        prompts = anchors_for(name_of(kind, name), kind, "").forget
        by_cells = TRAJECTORY._replace(cells=MOST_CELLS)
        return self._model.captured(prompts, by_cells)

    def each(self, concepts: Iterable[Concept]) -> list[Activations]:
        """The activations of every concept."""
        return [self._of(concept) for concept in concepts]

    def together(self, concepts: Iterable[Concept]) -> Activations:
        """The activations of all concepts as one."""
        first, *others = self.each(concepts)
        return first.concatenate(*others)


def largest_difference(one: Eraser, other: Eraser) -> float:
    """Over all entries of all layers' E."""
    return max(
        float((layer.P - other.layers[name].P).abs().max()) for name, layer in one.layers.items()
    )


def score(prompts: list[list[Prompt]], kinds: set[str], sampler: Sampler) -> list[Rate]:
    """How often the pictures show what was asked for, by number."""
    readings = iter(read(sampler([prompt.text for group in prompts for prompt in group])))
    rates = []
    for index, group in enumerate(prompts):
        rate = Rate(0, 0)
        for prompt in group:
            reading = next(readings)
            asked = [each for each in prompt.asks if index == 3 or each in kinds]
            asked = asked if index == 3 else asked[:1]
            rate += Rate(sum(prompt.met(reading, each) for each in asked), len(asked))
        rates.append(rate)
    return rates


def table(ledger: Ledger) -> str:
    """All entries, with Wilson intervals."""
    rows = []
    for (what, concepts, method, mode), entry in ledger.items():
        rates = [Rate(*entry[name]) for name in NUMBERS]
        cells = [str(rate) if rate.total else "–" for rate in rates]
        ranks = " to ".join(map(str, entry.get("ranks", []))) or "–"
        order = f"{entry['order']:g}" if "order" in entry else "–"
        named = f"{method}, {mode}" if mode else method
        rows.append(
            (f"{concepts} of {what}", named, *cells, ranks, entry.get("seconds", "–"), order)
        )
    heads = ("erased", "method", *NUMBERS, "ranks", "seconds to fit", "other order")
    return markdown(heads, rows)


def run(model: NarrowUNet, ledger: Ledger, task: Task, count: int) -> None:
    """Add what the ledger does not have yet of one task."""
    captures, prompts = Captures(model), task.prompts(count)
    kinds = {kind for kind, _ in task.erased}
    label = (task.what, len(task.erased))
    wanted = [(*label, "unedited", "")]
    modes = (AT_ONCE, *MODES) if len(task.erased) > 1 else (AT_ONCE,)
    wanted += [(*label, method, mode) for method in METHODS for mode in modes]
    for key in wanted:
        if key in ledger:
            continue
        *_, method, mode = key
        eraser, fitted = None, {}
        if method != "unedited":
            retain = captures.together(task.kept)
            concepts = captures.each(task.erased)
            if mode == AT_ONCE:
                concepts = [captures.together(task.erased)]
            started = time.monotonic()
            erasers = [fit(method, each, retain) for each in concepts]
            eraser = erasers[0] if mode == AT_ONCE else combine(erasers, mode, retain)
            ranks = eraser.ranks.values()
            fitted["ranks"] = [min(ranks), max(ranks)]
            fitted["seconds"] = round(time.monotonic() - started, 1)
            if mode != AT_ONCE:
                turned = combine(erasers[::-1], mode, retain)
                fitted["order"] = float(f"{largest_difference(eraser, turned):.2g}")
        with model.erased(eraser) as sampler:
            rates = score(prompts, kinds, sampler)
        ledger.add(key, {**dict(zip(NUMBERS, rates, strict=True)), **fitted})
        print(*key, *rates, fitted, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concepts", choices=DRAWN.splits, default="held-out")
    parser.add_argument("--count", type=int, default=40, help="prompts for each number")
    parser.add_argument("--number", type=int, help="only the tasks of so many concepts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger, model = Ledger(args.out / "concepts.jsonl", FIELDS), NarrowUNet()
    for task in tasks(args.concepts):
        if args.number not in (None, len(task.erased)):
            continue
        run(model, ledger, task, args.count)
        (args.out / "concepts.md").write_text(table(ledger), encoding="utf-8")
    print(table(ledger))


if __name__ == "__main__":
    main()
