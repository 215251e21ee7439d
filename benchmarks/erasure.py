"""Erases concepts of the shipped model in ComfyUI by every method and lets the judge count.

    python3 dev.py run benchmarks/erasure.py               # full: two hours on two cores
    python3 dev.py run benchmarks/erasure.py -- --quick    # ten minutes

Every concept is captured once for each seed and erased by every method with the nodes' default
settings; each number is counted on its own prompts, the same for every method, and the unedited
model is the first row. Results are kept as they come (`erasure.csv`), seed by seed, so an
interrupted run goes on. `--narrow` measures on the model's narrow form, which computes the same
function ten times faster; `--unedited N` how well the unedited model draws what N prompts ask for.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import Fitting, TextFitting
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.methods import METHODS, fit
from comfyui_pure.pure_core.methods.by_text import TEXT_METHODS, fit_text
from comfyui_pure.pure_core.text import TextTask

from benchmarks.chart import draw_table
from benchmarks.narrow import Narrow
from testbed.comfy.shipped import Captured, Shipped
from testbed.world.measure import Rate, Scores, Trial, model_rates
from testbed.world.vocabulary import DEVELOPMENT, HELD_OUT

ROOT = Path(__file__).resolve().parent.parent

SPLITS = {"development": DEVELOPMENT, "held-out": HELD_OUT}
MODELS = ("unedited", *METHODS, *TEXT_METHODS)
KEY = ("model", "split", "kind", "concept", "method", "seed")
COSTS = ("capture_s", "fit_s", "rank")
FIELDS = (*KEY, *(f"{name}_{part}" for name in Scores._fields for part in "hn"), *COSTS)
MOST_CELLS = max(method.cells for method in METHODS.values())
HEADS = ("by name", "by description", "neighbours", "everything else")


class Result(NamedTuple):
    """What came of one concept, method and seed."""

    scores: Scores
    capture_s: float = 0.0
    """Seconds for capturing activations; 0 for methods that take none."""

    fit_s: float = 0.0
    """Seconds for fitting and applying."""

    rank: float = 0.0
    """Mean over layers."""


def fit_method(
    method: str,
    captured: Callable[[], Captured],
    task: Callable[[], TextTask],
    settings: Mapping[str, Any],
) -> Eraser:
    """An eraser by any method, from what that method takes."""
    if method in TEXT_METHODS:
        return fit_text(method, task(), **settings)
    return fit(method, *captured(), **settings)


class Table:
    """Results by key, kept in a CSV file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results: dict[tuple[str, ...], Result] = {}
        if file.exists():
            for row in csv.DictReader(file.open(encoding="utf-8")):
                rates = (Rate(int(row[f"{n}_h"]), int(row[f"{n}_n"])) for n in Scores._fields)
                costs = (float(row[name]) for name in COSTS)
                self.results[tuple(row[name] for name in KEY)] = Result(Scores(*rates), *costs)

    def add(self, key: tuple[str, ...], result: Result) -> None:
        """Keep one more row."""
        self.results[key] = result
        fresh = not self.file.exists()
        with self.file.open("a", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            if fresh:
                writer.writerow(FIELDS)
            counts = (number for rate in result.scores for number in rate)
            writer.writerow([*key, *counts, *(round(each, 2) for each in result[1:])])

    def of(self, model: str, split: str, kind: str | None, method: str) -> dict[str, list[Result]]:
        """Seed -> results of a kind's concepts, or of all kinds'."""
        found: dict[str, list[Result]] = {}
        for (own, its, where, _, by, seed), result in self.results.items():
            if (own, its, by) == (model, split, method) and kind in (None, where):
                found.setdefault(seed, []).append(result)
        return found

    def rows(
        self, model: str, split: str
    ) -> Iterable[tuple[str, str, Scores, list[float], Result]]:
        """Kind ('all' first), method, scores over all seeds, harmonic mean by seed, mean costs."""
        for kind in (None, *SPLITS[split]):
            for method in MODELS:
                by_seed = self.of(model, split, kind, method)
                if not by_seed:
                    continue
                every = [result for results in by_seed.values() for result in results]
                means = [_sum(results).harmonic_mean for results in by_seed.values()]
                costs = (statistics.fmean(r[i] for r in every) for i in range(1, 4))
                yield kind or "all", method, _sum(every), means, Result(_sum(every), *costs)

    def markdown(self, model: str, split: str) -> str:
        """One row per kind and method: rates with intervals, harmonic mean with its spread."""
        heads = (*HEADS, "harmonic mean", "by seed", "capture s", "fit and apply s", "rank")
        lines = [f"| kind | model | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
        for kind, method, scores, means, costs in self.rows(model, split):
            cells = [str(rate) for rate in four(scores)]
            spread = "–".join(f"{each:.2f}" for each in sorted({min(means), max(means)}))
            cells += [f"{scores.harmonic_mean:.3f}", spread]
            cells += [f"{costs.capture_s:.1f}", f"{costs.fit_s:.2f}", f"{costs.rank:.0f}"]
            lines.append(f"| {kind} | {method} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def four(scores: Scores) -> tuple[Rate, ...]:
    """The numbers of the table."""
    return scores.name, scores.free, scores.kept, scores.other


def _sum(results: Iterable[Result]) -> Scores:
    return functools.reduce(Scores.__add__, (result.scores for result in results))


def run(model: Any, table: Table, key: tuple[str, str], trial: Trial, seed: int) -> None:
    """Fill the rows of one concept and seed that the table does not have yet."""
    keys = {method: (*key, trial.kind, trial.concept, method, str(seed)) for method in MODELS}
    captured: list[Captured] = []
    took = 0.0

    def capture() -> Captured:
        nonlocal took
        if not captured:
            started = time.monotonic()
            captured.append(model.capture(trial, MOST_CELLS))
            took = time.monotonic() - started
        return captured[0]

    for method in MODELS:
        if keys[method] in table.results:
            continue
        eraser, fit_s = None, 0.0
        if method != "unedited":
            if method in METHODS:
                capture()
            settings = (TextFitting() if method in TEXT_METHODS else Fitting())._asdict()
            started = time.monotonic()
            task = functools.partial(model.text_task, trial)
            eraser = fit_method(method, capture, task, settings)
        with model.erased(eraser) as sampler:
            if eraser is not None:
                fit_s = time.monotonic() - started
            scores = trial.score(functools.partial(sampler, seed=seed))
        ranks = [] if eraser is None else list(eraser.ranks.values())
        result = Result(
            scores, took if method in METHODS else 0.0, fit_s, statistics.fmean(ranks or [0])
        )
        table.add(keys[method], result)
        print(*keys[method][2:], *four(scores), f"{scores.harmonic_mean:.3f}", flush=True)


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
    parser.add_argument("--limit", type=int, default=2, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=8, help="prompts for each number and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one concept of three kinds, one seed")
    parser.add_argument("--narrow", action="store_true", help="the model's narrow form")
    parser.add_argument("--unedited", type=int, help="measure the unedited model on N prompts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kinds = args.kind or list(DEVELOPMENT)
    if args.quick:
        kinds, args.limit, args.count, args.seeds = kinds[:3], 1, 5, 1
    if args.unedited:
        text = unedited(Shipped(), args.unedited)
        (args.out / "unedited.md").write_text(text, encoding="utf-8")
        print(text)
        return
    name = "narrow" if args.narrow else "comfyui"
    model = Narrow() if args.narrow else Shipped()
    table = Table(args.out / "erasure.csv")
    for seed, number in itertools.product(range(args.seeds), range(args.limit)):
        for kind in kinds:
            for concept in SPLITS[args.concepts][kind][number : number + 1]:
                trial = Trial.of(kind, concept, args.count, seed)._replace(unseen=[])
                run(model, table, (name, args.concepts), trial, seed)
    stem = f"{args.concepts}-narrow" if args.narrow else args.concepts
    text = table.markdown(name, args.concepts)
    (args.out / f"{stem}.md").write_text(text, encoding="utf-8")
    draw_table(args.out / f"{stem}.png", list(table.rows(name, args.concepts)))
    print(text)


if __name__ == "__main__":
    main()
