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

from tests.comfy.shipped import AS_FITTED, Fitting, Shipped, fit, patch
from tests.world.measure import Rate, Scores, Trial, model_rates
from tests.world.vocabulary import DEVELOPMENT, HELD_OUT

ROOT = Path(__file__).resolve().parent.parent

SPLITS = {"development": DEVELOPMENT, "held-out": HELD_OUT}
METHODS = ("unedited", "pure", "ridge")
FIELDS = ("split", "kind", "concept", "method", *(f"{n}_{p}" for n in Scores._fields for p in "hn"))
HEADS = ("by name", "name-free", "neighbours kept", "unseen neighbours", "everything else")


class Table:
    """Scores by concept and method, kept in a CSV file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.scores: dict[tuple[str, str, str, str], Scores] = {}
        if file.exists():
            for row in csv.DictReader(file.open(encoding="utf-8")):
                key = (row["split"], row["kind"], row["concept"], row["method"])
                rates = (Rate(int(row[f"{n}_h"]), int(row[f"{n}_n"])) for n in Scores._fields)
                self.scores[key] = Scores(*rates)

    def add(self, key: tuple[str, str, str, str], scores: Scores) -> None:
        """Keep one more row."""
        self.scores[key] = scores
        fresh = not self.file.exists()
        with self.file.open("a", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            if fresh:
                writer.writerow(FIELDS)
            writer.writerow([*key, *(number for rate in scores for number in rate)])

    def total(self, split: str, kind: str, method: str) -> Scores | None:
        """The scores of a kind's concepts added up."""
        found = [
            s for key, s in self.scores.items() if (key[0], key[1], key[3]) == (split, kind, method)
        ]
        return functools.reduce(Scores.__add__, found) if found else None

    def markdown(self, split: str) -> str:
        """One row per kind and method."""
        lines = [f"| kind | model | {' | '.join(HEADS)} |", "| --- " * (2 + len(HEADS)) + "|"]
        for kind in SPLITS[split]:
            for method in METHODS:
                if scores := self.total(split, kind, method):
                    cells = (str(rate) if rate.total else "–" for rate in scores)
                    lines.append(f"| {kind} | {method} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def run(shipped: Shipped, table: Table, split: str, trials: Iterable[Trial]) -> None:
    """Fill the rows that the table does not have yet."""
    for trial in trials:
        keys = {method: (split, trial.kind, trial.concept, method) for method in METHODS}
        wanted = [method for method, key in keys.items() if key not in table.scores]
        if not wanted:
            continue
        started = time.monotonic()
        forget, retain = shipped.capture(trial)
        for method in wanted:
            model = shipped.model
            if method != "unedited":
                eraser = fit(method, forget, retain, **Fitting()._asdict())
                model = patch(model, eraser, 1.0, AS_FITTED)
            scores = trial.score(functools.partial(shipped.pictures, model=model))
            table.add(keys[method], scores)
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
