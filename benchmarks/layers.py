"""In which layers to erase: one alone, all but one, and what pictures of some prompts choose.

    python3 dev.py run benchmarks/layers.py
    python3 dev.py run benchmarks/layers.py -- --model wan --limit 1

Development concepts of every kind, fitted with the nodes' defaults, on the small models' narrow
forms. The layers are chosen as `PURE_LayerSweep` does, from latents of half of the anchors; the
same numbers are then taken on the other half, and the judge counts on prompts of its own. Beside
it, as many layers by `contribution` of `PURE_Patch`. Results are kept as they come
(`layers.jsonl`), so an interrupted run goes on; `layers.md` is the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.families import family_named
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.layer_sweep import (
    Latents,
    LayerSweep,
    Measured,
    Ruler,
    Unit,
    sweep,
    units,
    words,
)
from comfyui_pure.pure_core.selection import select

from benchmarks.common import RESULTS, markdown, scored, summed
from benchmarks.models import MODELS
from testbed.comfy.erasable import METHOD, TRAJECTORY, anchors_of
from testbed.world.measure import Trial

FIELDS = ("model", "kind", "concept", "erased")
TESTED = ("narrow", "pictures", "wan")
SHARE = 0.9
NEIGHBOURS = 3
"""Prompts of neighbours in each half, as many as the concept has."""

UNEDITED, ALL, CHOSEN, STRONGEST = "unedited", "all layers", "chosen by pictures", "contribution"
SWEEP = "sweep"
"""The entry that holds latents' numbers; all others hold the judge's."""

COUNTED = ("by name", "by description", "neighbours", "everything else")


class Half:
    """Half of the anchors of a concept and of its neighbours."""

    def __init__(self, model: Any, trial: Trial, number: int) -> None:
        forget, retain = (each.prompts[number::2] for each in anchors_of(trial))
        self.model, self.concept = model, list(forget)
        self.neighbours = list(retain[:: max(1, len(retain) // NEIGHBOURS)])[:NEIGHBOURS]

    def sample(self, eraser: Eraser | None) -> Latents:
        """Finished latents, from a noise of its own for every prompt."""
        texts = self.concept + self.neighbours
        noise = self.model.noise(len(texts), TRAJECTORY.seed)
        with self.model.erased(eraser):
            whole = TRAJECTORY._replace(run_steps=TRAJECTORY.steps)
            latents = self.model.sample(texts, noise, whole)
        return Latents(*latents.split([len(self.concept), len(self.neighbours)]))


class Task:
    """One concept in one model."""

    def __init__(self, model: Any, trial: Trial) -> None:
        self.model, self.trial = model, trial

    @cached_property
    def eraser(self) -> Eraser:
        """By the nodes' defaults."""
        return fit(METHOD, *self.model.capture(self.trial))

    @cached_property
    def units(self) -> list[Unit]:
        """Its layers."""
        family = family_named(self.eraser.provenance.model.family)
        return units(list(self.eraser.layers), family, "layer")

    def sampled(self, half: Half, layers: str | None) -> Latents:
        """Half of the anchors with the eraser in some layers."""
        return half.sample(None if layers is None else select(self.eraser, layers))

    def swept(self, half: Half) -> LayerSweep:
        """What the node finds from half of the anchors."""
        return sweep(self.units, lambda layers: self.sampled(half, layers), SHARE)

    def transferred(self, chosen: LayerSweep, other: Half) -> Measured:
        """What a choice does on the other half."""
        ruler = Ruler.of(self.sampled(other, None), self.sampled(other, ""))
        return ruler.measure(self.sampled(other, chosen.layers))

    def strongest(self, count: int) -> str:
        """So many layers that do most to the forget rows."""
        shares = self.eraser.provenance.contribution
        return ", ".join(sorted(shares, key=lambda name: -shares[name])[:count])


def places(found: Sequence[Unit]) -> Iterator[tuple[str, str]]:
    """One layer alone, and all but one: name and words."""
    for unit in found:
        yield f"only {unit.label}", unit.word
        yield f"without {unit.label}", words([each for each in found if each != unit])


def measure(ledger: Ledger, name: str, model: Any, trial: Trial) -> None:
    """Add what the ledger does not have of one concept."""
    key, task = (name, trial.kind, trial.concept), Task(model, trial)
    if (*key, SWEEP) not in ledger:
        one, other = (Half(model, trial, number) for number in (0, 1))
        first = task.swept(one)
        entry = {
            "layers": first.layers,
            "count": len(first.chosen),
            "of": len(task.units),
            "strongest": task.strongest(len(first.chosen)),
            "here": first.found,
            "elsewhere": task.transferred(first, other),
            "whole": first.whole,
            "alone": {each.unit.label: each.alone for each in first.swept},
            "without": {each.unit.label: each.without for each in first.swept},
        }
        ledger.add((*key, SWEEP), entry)
        print(*key, SWEEP, entry, flush=True)
    found = ledger[(*key, SWEEP)]
    wanted: dict[str, str | None] = {UNEDITED: None, ALL: "", CHOSEN: found["layers"]}
    wanted |= {STRONGEST: found["strongest"], **dict(places(task.units))}
    known: dict[str | None, dict[str, Any]] = {}
    for erased, layers in wanted.items():
        if (*key, erased) in ledger:
            continue
        if layers not in known:
            eraser = None if layers is None else select(task.eraser, layers)
            known[layers] = scored(model, trial, eraser)._asdict()
        ledger.add((*key, erased), known[layers])
        print(*key, erased, known[layers], flush=True)


def whole(ledger: Ledger, name: str) -> list[tuple[str, str]]:
    """Kinds and concepts of a model of which all is measured."""
    found: dict[tuple[str, str], set[str]] = {}
    for model, kind, concept, erased in ledger:
        if model == name:
            found.setdefault((str(kind), str(concept)), set()).add(str(erased))
    return [
        key
        for key, erased in found.items()
        if {UNEDITED, ALL, CHOSEN, STRONGEST} <= erased
        and len(erased) == 5 + 2 * int(ledger[(name, *key, SWEEP)]["of"])
    ]


def table(ledger: Ledger) -> str:
    """A part for each model."""
    parts = []
    for name in TESTED:
        concepts = whole(ledger, name)
        if not concepts:
            continue
        erased = [key[-1] for key in ledger if key[:3] == (name, *concepts[0]) and key[-1] != SWEEP]
        rows = []
        for each in erased:
            total = summed(ledger[(name, *concept, each)] for concept in concepts)
            mean = "" if each == UNEDITED else f"{total.harmonic_mean:.3f}"
            rows.append((each, *total.four(), mean))
        parts.append(f"## {MODELS[name].words}: {len(concepts)} concepts\n\n")
        parts.append(markdown(("erased in", *COUNTED, "harmonic mean"), rows) + "\n")
        parts.append(choices([ledger[(name, *concept, SWEEP)] for concept in concepts]) + "\n")
    return "".join(parts).rstrip() + "\n"


def choices(sweeps: Sequence[dict[str, Any]]) -> str:
    """In words, what half of the prompts chose, and what that does on the other half."""
    here, there = ([Measured(*each[at]) for each in sweeps] for at in ("here", "elsewhere"))
    counts = [each["count"] for each in sweeps]
    kept = sum(each.share >= SHARE - 0.05 for each in there)
    return (
        f"Chosen for a share of {SHARE:.0%}: {min(counts)} to {max(counts)} of {sweeps[0]['of']} "
        f"layers, {statistics.mean(counts):.1f} on average. Share of the whole change on the "
        f"prompts that chose {_mean(here):.2f}, on the others {_mean(there):.2f}, there at least "
        f"{SHARE - 0.05:.2f} for {kept} of {len(sweeps)} concepts (least "
        f"{min(each.share for each in there):.2f}).\n"
    )


def _mean(measured: Sequence[Measured]) -> float:
    return statistics.mean(each.share for each in measured)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=TESTED, help="all by default")
    parser.add_argument("--limit", type=int, default=2, help="concepts of each kind")
    parser.add_argument("--count", type=int, default=8, help="prompts for each number")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "layers.jsonl", FIELDS)
    models = {name: MODELS[name].load() for name in args.model or TESTED}
    for number in range(args.limit):
        for name, model in models.items():
            world = MODELS[name].world
            for kind, concepts in world.splits["development"].items():
                for concept in concepts[number : number + 1]:
                    trial = world.trial(kind, concept, args.count)
                    with torch.no_grad():
                        measure(ledger, name, model, trial._replace(unlisted_neighbours=[]))
    text = table(ledger)
    (args.out / "layers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
