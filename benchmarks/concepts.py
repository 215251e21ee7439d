"""Erases many concepts of the shipped model at once, in ComfyUI, and lets the judge count.

    python3 dev.py run benchmarks/concepts.py -- --out benchmarks/results

1, 3, 10 and all characters but nine, then all concepts of every kind but some, which are the
neighbours: joint and in sequence, by every method with the nodes' defaults. A joint eraser is
made a second time from the erasers in reversed order, and the largest difference between the two
is written beside it. Results are kept as they come (`concepts.csv`), so an interrupted run goes
on; `concepts.md` is the table.
"""

from __future__ import annotations

import argparse
import csv
import functools
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import Fitting
from comfyui_pure.nodes.host.capture import capture
from comfyui_pure.nodes.host.patch import AS_FITTED, patch
from comfyui_pure.nodes.prompts import anchors
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.combine import combine
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.methods import METHODS as METHOD_TABLE
from comfyui_pure.pure_core.methods import fit

from testbed.comfy.shipped import TRAJECTORY, Shipped
from testbed.world.judge import read
from testbed.world.measure import Rate, Sampler
from testbed.world.prompts import (
    Prompt,
    concept_prompts,
    name_of,
    neighbour_prompts,
    unrelated_prompts,
)
from testbed.world.vocabulary import DEVELOPMENT, HELD_OUT

ROOT = Path(__file__).resolve().parent.parent
SPLITS = {"development": DEVELOPMENT, "held-out": HELD_OUT}
METHODS, MODES = ("pure", "ridge", "mosaic"), ("joint", "in sequence")
KEPT = {"character": 9, "object": 4, "style": 3, "unsafe content": 1}
"""Concepts of each kind that are kept, the last of their list."""
NUMBERS = ("by name", "by description", "neighbours", "everything else")
KEY = ("what", "concepts", "method", "mode")
FITTED = ("ranks", "seconds", "order")
FIELDS = (*KEY, *(f"{number} {part}" for number in NUMBERS for part in ("hits", "of")), *FITTED)

CELLS = METHOD_TABLE["mosaic"].cells

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
    own = [("character", name) for name in SPLITS[split]["character"]]
    own = [concept for concept in own if concept not in kept["character"]]
    for count in (1, 3, 10):
        yield Task(f"{split} characters", tuple(own[:count]), tuple(kept["character"]))
    rest = {kind: [(kind, n) for n in every[kind] if (kind, n) not in kept[kind]] for kind in every}
    yield Task("all characters", tuple(rest["character"]), tuple(kept["character"]))
    erased, kept_all = (tuple(chain.from_iterable(each.values())) for each in (rest, kept))
    yield Task("all kinds", erased, kept_all)


class Captures:
    """Activations of concepts, captured once each."""

    def __init__(self, shipped: Shipped) -> None:
        self._shipped = shipped
        self._of = functools.cache(self._capture)

    def _capture(self, concept: Concept) -> Activations:
        kind, name = concept
        prompts = anchors(name_of(kind, name), kind, "").forget
        return capture(self._shipped.model, self._shipped.clip, prompts, TRAJECTORY, CELLS)

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


class Table:
    """Rows by task, method and mode, kept in a CSV file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if file.exists():
            for row in csv.DictReader(file.open(encoding="utf-8")):
                self.rows[tuple(row[name] for name in KEY)] = row

    def add(self, key: tuple[str, ...], rates: Sequence[Rate], fitted: Sequence[str]) -> None:
        """Keep one more row."""
        counts = [str(number) for rate in rates for number in rate]
        row = dict(zip(FIELDS, [*key, *counts, *fitted], strict=True))
        self.rows[key] = row
        fresh = not self.file.exists()
        with self.file.open("a", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, FIELDS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def markdown(self) -> str:
        """All rows with Wilson intervals."""
        heads = ("erased", "method", *NUMBERS, "ranks", "seconds to fit", "other order")
        lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for row in self.rows.values():
            rates = [Rate(int(row[f"{n} hits"]), int(row[f"{n} of"])) for n in NUMBERS]
            method = f"{row['method']}, {row['mode']}" if row["mode"] else row["method"]
            cells = [str(rate) if rate.total else "–" for rate in rates]
            cells += [row[name] or "–" for name in FITTED]
            lines.append(f"| {row['concepts']} of {row['what']} | {method} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def run(shipped: Shipped, table: Table, task: Task, count: int) -> None:
    """Fill the rows of one task that the table does not have yet."""
    captures, prompts = Captures(shipped), task.prompts(count)
    kinds = {kind for kind, _ in task.erased}
    label = (task.what, str(len(task.erased)))
    wanted = [(*label, "unedited", "")]
    modes = MODES if len(task.erased) > 1 else ("",)
    wanted += [(*label, method, mode) for method in METHODS for mode in modes]
    wanted = [key for key in wanted if key not in table.rows]
    for key in wanted:
        model, fitted = shipped.model, ["", "", ""]
        if key[2] != "unedited":
            retain = captures.together(task.kept)
            concepts = captures.each(task.erased)
            started = time.monotonic()
            settings = Fitting()._asdict()
            erasers = [fit(key[2], each, retain, **settings) for each in concepts]
            eraser = combine(erasers, key[3], retain) if key[3] else erasers[0]
            ranks = eraser.ranks.values()
            fitted = [f"{min(ranks)} to {max(ranks)}", f"{time.monotonic() - started:.1f}", ""]
            if key[3]:
                turned = combine(erasers[::-1], key[3], retain)
                fitted[2] = f"{largest_difference(eraser, turned):.2g}"
            model = patch(shipped.model, eraser, 1.0, AS_FITTED)
        rates = score(prompts, kinds, functools.partial(shipped.pictures, model=model))
        table.add(key, rates, fitted)
        print(*key, *rates, *fitted, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concepts", choices=SPLITS, default="held-out")
    parser.add_argument("--count", type=int, default=40, help="prompts for each number")
    parser.add_argument("--number", type=int, help="only the tasks of so many concepts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table, shipped = Table(args.out / "concepts.csv"), Shipped()
    for task in tasks(args.concepts):
        if args.number not in (None, len(task.erased)):
            continue
        run(shipped, table, task, args.count)
        (args.out / "concepts.md").write_text(table.markdown(), encoding="utf-8")
    print(table.markdown())


if __name__ == "__main__":
    main()
