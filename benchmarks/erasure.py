"""Erases concepts of the shipped model in ComfyUI and lets the judge count.

    python3 dev.py run benchmarks/erasure.py -- --concepts held-out --out benchmarks/results

Every concept is captured once and erased by every method with the nodes' default settings; each
number is counted on its own prompts, the same for every method, and the unedited model is the
first row. Results are kept as they come (`erasure.csv`), so an interrupted run goes on. With
`--unedited N` it measures only how well the unedited model draws what N prompts ask for.
"""

from __future__ import annotations

import argparse
import csv
import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import Fitting
from comfyui_pure.nodes.host.patch import AS_FITTED, patch
from comfyui_pure.pure_core.methods import fit
from comfyui_pure.pure_core.report import FitReport

from tests.comfy.shipped import Shipped
from tests.world.measure import Rate, Scores, Trial, model_rates
from tests.world.vocabulary import DEVELOPMENT, HELD_OUT

ROOT = Path(__file__).resolve().parent.parent

SPLITS = {"development": DEVELOPMENT, "held-out": HELD_OUT}
METHODS = ("unedited", "pure", "ridge")
KEY = ("split", "kind", "concept", "method")
FIT = ("gap_closed", "mean_protected")
"""Of the fit report, averaged over layers: see `pure_core/report/numbers.py`."""
FIELDS = (*KEY, *(f"{name}_{part}" for name in Scores._fields for part in "hn"), *FIT)
HEADS = ("by name", "name-free", "neighbours kept", "unseen neighbours", "everything else")


class Result(NamedTuple):
    """What came of one concept and method."""

    scores: Scores
    gap_closed: float | None = None
    mean_protected: float | None = None


class Table:
    """Results by split, kind, concept and method, kept in a CSV file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results: dict[tuple[str, ...], Result] = {}
        if file.exists():
            for row in csv.DictReader(file.open(encoding="utf-8")):
                rates = (Rate(int(row[f"{n}_h"]), int(row[f"{n}_n"])) for n in Scores._fields)
                numbers = (float(row[name]) if row[name] else None for name in FIT)
                self.results[tuple(row[name] for name in KEY)] = Result(Scores(*rates), *numbers)

    def add(self, key: tuple[str, ...], result: Result) -> None:
        """Keep one more row."""
        self.results[key] = result
        fresh = not self.file.exists()
        with self.file.open("a", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            if fresh:
                writer.writerow(FIELDS)
            counts = (number for rate in result.scores for number in rate)
            fitted = ("" if each is None else round(each, 4) for each in result[1:])
            writer.writerow([*key, *counts, *fitted])

    def of(self, split: str, kind: str, method: str) -> list[Result]:
        """The results of a kind's concepts."""
        return [r for k, r in self.results.items() if (k[0], k[1], k[3]) == (split, kind, method)]

    def markdown(self, split: str) -> str:
        """One row per kind and method: rates with intervals, means of the fit report."""
        heads = (*HEADS, "gap closed", "mean protected")
        lines = [f"| kind | model | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
        for kind in SPLITS[split]:
            for method in METHODS:
                if results := self.of(split, kind, method):
                    total = functools.reduce(Scores.__add__, (r.scores for r in results))
                    cells = [str(rate) if rate.total else "–" for rate in total]
                    for index in range(1, 3):
                        numbers = [r[index] for r in results if r[index] is not None]
                        cells.append(f"{sum(numbers) / len(numbers):.2f}" if numbers else "–")
                    lines.append(f"| {kind} | {method} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def run(shipped: Shipped, table: Table, split: str, trials: Iterable[Trial]) -> None:
    """Fill the rows that the table does not have yet."""
    for trial in trials:
        keys = {method: (split, trial.kind, trial.concept, method) for method in METHODS}
        wanted = [method for method, key in keys.items() if key not in table.results]
        if not wanted:
            continue
        started = time.monotonic()
        forget, retain = shipped.capture(trial)
        for method in wanted:
            model, fitted = shipped.model, ()
            if method != "unedited":
                eraser = fit(method, forget, retain, **Fitting()._asdict())
                model = patch(model, eraser, 1.0, AS_FITTED)
                report = FitReport.of(eraser, forget, retain)
                fitted = (
                    report.mean(lambda layer: layer.gap_closed),
                    report.mean(lambda layer: layer.mean_protected),
                )
            scores = trial.score(functools.partial(shipped.pictures, model=model))
            table.add(keys[method], Result(scores, *fitted))
            print(f"{trial.kind:15} {trial.concept:10} {method:9}", *scores, flush=True)
        print(f"    {time.monotonic() - started:.0f} s", flush=True)


def unedited(shipped: Shipped, count: int) -> str:
    """How often the unedited model draws what it is asked for."""
    lines = ["| prompts | asked for | shown |", "| --- | --- | --- |"]
    for words, by_name in (("by name", True), ("name-free", False)):
        for attribute, rate in sorted(model_rates(shipped.pictures, count, by_name).items()):
            lines.append(f"| {words} | {attribute} | {rate} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concepts", choices=SPLITS, default="held-out")
    parser.add_argument("--kind", choices=DEVELOPMENT, action="append")
    parser.add_argument("--limit", type=int, default=8, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=24, help="prompts for each number")
    parser.add_argument("--unedited", type=int, help="measure the unedited model on N prompts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shipped = Shipped()
    if args.unedited:
        text = unedited(shipped, args.unedited)
        (args.out / "unedited.md").write_text(text, encoding="utf-8")
    else:
        table = Table(args.out / "erasure.csv")
        for kind in args.kind or DEVELOPMENT:
            concepts = SPLITS[args.concepts][kind][: args.limit]
            trials = (Trial.of(kind, concept, args.count) for concept in concepts)
            run(shipped, table, args.concepts, trials)
        text = table.markdown(args.concepts)
        (args.out / f"{args.concepts}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
