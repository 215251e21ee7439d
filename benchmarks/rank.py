"""What limiting an eraser's rank costs, on development concepts of the narrow form.

    python3 dev.py run benchmarks/rank.py

One concept of each kind alone, and ten characters at once, by every method that can have a high
rank, unlimited and at some limits: the same eraser each time, limited after its fit. Results are
kept as they come (`rank.jsonl`), so an interrupted run goes on; `rank.md` is the table. The small
model's layers have 96 channels that are not zero, those of models that people use 320 to 2,048.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.concepts import anchors_for
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit

from benchmarks.common import MOST_CELLS, RESULTS, markdown
from benchmarks.narrow import NarrowUNet
from testbed.comfy.erasable import TRAJECTORY
from testbed.world.measure import DRAWN, RETAINED, Rate, Scores, Trial
from testbed.world.prompts import name_of, neighbour_prompts, others, unrelated_prompts
from testbed.world.vocabulary import DEVELOPMENT

METHODS = ("pure", "ridge", "mosaic")
LIMITS = (0, 48, 32, 16, 8, 4)
"""Directions a layer, or in each head of a method that is fitted head by head; 0 for all."""

FIELDS = ("concepts", "method", "max_rank")
MANY = 10


class Task(NamedTuple):
    """Concepts that are erased together, and the trials that count what came of it."""

    trials: tuple[Trial, ...]
    kept: tuple[str, ...]

    def eraser(self, model: NarrowUNet, method: str) -> Eraser:
        """All of them in one fit, by the method's defaults."""
        kind = self.trials[0].kind
        erased = "\n".join(name_of(kind, trial.concept) for trial in self.trials)
        kept = "\n".join(name_of(kind, name) for name in self.kept)
        wanted = TRAJECTORY._replace(cells=MOST_CELLS)
        return fit(
            method, *(model.captured(each, wanted) for each in anchors_for(erased, kind, kept)[:2])
        )


def tasks(concepts: int, count: int) -> Iterator[Task]:
    """One concept of every kind alone, or the first characters together."""
    if concepts == 1:
        for kind, (concept, *_) in DEVELOPMENT.items():
            trial = DRAWN.trial(kind, concept, count)._replace(unlisted_neighbours=[])
            yield Task((trial,), tuple(trial.listed()))
        return
    erased = DEVELOPMENT["character"][:concepts]
    kept = [name for name in others("character", erased[0]) if name not in erased][:RETAINED]
    each = -(-3 * count // concepts)
    trials = [
        DRAWN.trial("character", concept, each)._replace(
            neighbours=[], unlisted_neighbours=[], everything_else=[]
        )
        for concept in erased
    ]
    trials[0] = trials[0]._replace(
        neighbours=neighbour_prompts("character", kept, 3 * count),
        everything_else=unrelated_prompts("character", 3 * count),
    )
    yield Task(tuple(trials), tuple(kept))


def score(model: NarrowUNet, trials: Sequence[Trial], eraser: Eraser | None) -> Scores:
    """What the judge sees, over all trials."""
    with model.erased(eraser) as sampler:
        return functools.reduce(Scores.__add__, (trial.score(sampler) for trial in trials))


def table(ledger: Ledger) -> str:
    """One row for each entry."""
    rows = []
    for (concepts, method, limit), entry in ledger.items():
        scores = Scores(*(Rate(*entry[name]) for name in Scores._fields))
        four = scores.four()
        mean = f"{scores.harmonic_mean:.3f}"
        ranks = "–".join(map(str, entry["ranks"]))
        rows.append((concepts, method, limit or "all", ranks, *four, mean))
    heads = ("by name", "by description", "neighbours", "everything else", "harmonic mean")
    return markdown(("concepts", "method", "max_rank", "ranks", *heads), rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=8, help="prompts for each number and concept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger, model = Ledger(args.out / "rank.jsonl", FIELDS), NarrowUNet()
    for concepts in (1, MANY):
        every = list(tasks(concepts, args.count))
        for method in METHODS:
            wanted = [(concepts, method, limit) for limit in LIMITS]
            if all(key in ledger for key in wanted):
                continue
            fitted = [task.eraser(model, method) for task in every]
            for key in wanted:
                if key in ledger:
                    continue
                erasers = [each.limited(key[-1]) if key[-1] else each for each in fitted]
                if erasers == fitted and wanted[0] in ledger:  # the limit changes nothing
                    ledger.add(key, ledger[wanted[0]])
                    continue
                pairs = zip(every, erasers, strict=True)
                scores = [score(model, task.trials, eraser) for task, eraser in pairs]
                total = functools.reduce(Scores.__add__, scores)
                ranks = [rank for each in erasers for rank in each.ranks.values()]
                ledger.add(key, {**total._asdict(), "ranks": [min(ranks), max(ranks)]})
                print(*key, *total, f"{total.harmonic_mean:.3f}", flush=True)
    text = table(ledger)
    (args.out / "rank.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
