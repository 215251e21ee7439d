"""Erasing where text and picture share one attention: on what E is fitted, and where it acts.

    python3 dev.py run benchmarks/joint.py -- --model sd3
    python3 dev.py run benchmarks/joint.py -- --model hunyuan
    python3 dev.py run benchmarks/joint.py -- --model hunyuan --sweep

On the narrow forms of the two small models of real pictures that have such attentions. E is fitted
on h_txt, the part of what the picture reads that comes from the text; on all of h; or on h_txt with
h - h_txt, the part that comes from the picture, among what is kept. It acts in blocks of two
streams (*joint*), in blocks where text and picture share their weights (*shared*), or in both; and
in shared ones in the weights, on both kinds of tokens, or while sampling, on the text's alone. Kept
as they come (`joint-NAME.jsonl`), so an interrupted run goes on; the table has the same name.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.activations import neighbour_means
from comfyui_pure.pure_core.eraser import AT_SHARED, Eraser, LayerEraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import BY_HEAD, TOGETHER, fit
from comfyui_pure.pure_core.methods.least_squares import DAMPING, KEEP, least_squares_factors
from comfyui_pure.pure_core.methods.ridge import OVERSHOOT
from comfyui_pure.pure_core.methods.rows import scaled_rows

from benchmarks.common import (
    COUNTED,
    MOST_CELLS,
    RESULTS,
    fit_method,
    markdown,
    scored,
    summed,
)
from benchmarks.models import MODELS
from benchmarks.narrow import NarrowJointModel
from benchmarks.own_blocks import PLACES, acting, fitted
from testbed.comfy.erasable import Captured
from testbed.pictures.narrow import Part
from testbed.world.measure import Scores, Trial

FIELDS = ("kind", "concept", "method", "heads", "settings", "fitted on", "sites", "shared")

TEXT, BOTH, KEEPING = "h_txt", "h", "h_txt, keeping h - h_txt"
TOKENS = "tokens"

JOINT, SHARED, ALL, ENTRY = "joint", "shared", "all", "the text's entry"

AUTHORS = "authors' range"
SETTINGS: dict[str, dict[str, float]] = {
    "defaults": {},
    AUTHORS: {"forget_energy": 0.99, "retain_energy": 0.7},
}
ALONE = {
    f"{energy:g}, nothing retained": {"forget_energy": energy}
    for energy in (0.5, 0.7, 0.9, 0.95, 0.99)
}
"""The authors' sweep on FLUX: nothing is retained."""


class Way(NamedTuple):
    """How a concept is erased."""

    method: str
    heads: str = "-"
    settings: str = "defaults"
    fitted_on: str = "-"
    sites: str = "-"
    shared: str = "-"


UNEDITED = Way("unedited", settings="-")

FITS = (
    ("ridge", BY_HEAD, "defaults"),
    ("pure", TOGETHER, AUTHORS),
    ("mosaic", BY_HEAD, "defaults"),
    ("ridge", TOGETHER, "defaults"),
    ("pure", TOGETHER, "defaults"),
    ("pure", BY_HEAD, AUTHORS),
)
AT_ENTRY = ("calibrated tokens", "token ridge", "uce", "rece", "speed", "oce", "cure")


def ways(model: NarrowJointModel) -> Iterator[Way]:
    """All that are compared on a model, those that matter most first."""
    yield UNEDITED
    for fit_by in FITS:
        yield Way(*fit_by, TEXT, JOINT)
        for sites in (ALL, SHARED) if model.shared else ():
            yield Way(*fit_by, TEXT, sites, "while sampling")
            yield Way(*fit_by, BOTH, sites, "in the weights")
            yield Way(*fit_by, TEXT, sites, "in the weights")
            for shared in ("in the weights", "while sampling") if fit_by == FITS[0] else ():
                yield Way(*fit_by, KEEPING, sites, shared)
        yield Way(*fit_by, BOTH, JOINT)
    for method in AT_ENTRY:
        yield Way(method, sites=ENTRY)
    yield from in_text(model)


def in_text(model: NarrowJointModel) -> Iterator[Way]:
    """Ridge on the text's tokens, behind the entry and before they meet the picture."""
    for where in PLACES[str(model.identity.family)]:
        yield Way("ridge", TOGETHER, "defaults", TOKENS, where)


def reported(model: NarrowJointModel) -> Iterator[Way]:
    """Those of which a number on held-out concepts is reported."""
    yield UNEDITED
    ridge, *others = (
        FITS[0],
        ("pure", TOGETHER, AUTHORS),
        ("pure", BY_HEAD, AUTHORS),
        ("mosaic", BY_HEAD, "defaults"),
    )
    if model.shared:
        for sites in (ALL, SHARED):
            yield Way(*ridge, TEXT, sites, "while sampling")
            yield Way(*ridge, TEXT, sites, "in the weights")
        yield Way(*ridge, BOTH, ALL, "in the weights")
        yield Way(*ridge, KEEPING, ALL, "in the weights")
        for fit_by in others:
            yield Way(*fit_by, TEXT, ALL, "while sampling")
            yield Way(*fit_by, BOTH, ALL, "in the weights")
    yield Way(*ridge, TEXT, JOINT)
    if not model.shared:
        yield Way(*ridge, BOTH, JOINT)
        for fit_by in others:
            yield Way(*fit_by, TEXT, JOINT)
            yield Way(*fit_by, BOTH, JOINT)
    for method in AT_ENTRY:
        yield Way(method, sites=ENTRY)
    yield from in_text(model)


def swept(model: NarrowJointModel) -> Iterator[Way]:
    """PURE without retained prompts, as its authors sweep it, and an edit of the text."""
    yield UNEDITED
    sites, shared = (ALL, "while sampling") if model.shared else (JOINT, "-")
    for settings in ALONE:
        yield Way("pure", TOGETHER, settings, TEXT, sites, shared)
    yield Way("uce", sites=ENTRY)


class Bench:
    """A model, and what was captured of it."""

    def __init__(self, model: NarrowJointModel) -> None:
        self.model = model
        self._hearing = functools.cache(model.hearing)

    def captured(self, trial: Trial, part: Part = "text") -> Captured:
        """The activations of one part of h."""
        return self._hearing(part).capture(trial, MOST_CELLS)

    def eraser(self, trial: Trial, way: Way) -> Eraser:
        """The eraser of a trial's concept, of the layers that are meant."""
        if way.fitted_on == "-":
            captured = functools.partial(self.captured, trial)
            return fit_method(way.method, captured, lambda: self.model.text_task(trial), {})
        own = self.captured(trial, "both" if way.fitted_on == BOTH else "text")
        retain = None if way.settings in ALONE else own.retain
        settings = (SETTINGS | ALONE)[way.settings]
        eraser = fit(way.method, own.forget, retain, heads=way.heads, **settings)
        layers = {}
        for name, layer in eraser.layers.items():
            shared = self.model.shares(name)
            if way.sites == ALL or shared == (way.sites == SHARED):
                with_pictures = shared and way.fitted_on == KEEPING
                pictures = self.captured(trial, "picture") if with_pictures else None
                layers[name] = keeping(name, own, pictures) if pictures else layer
        return replace(eraser, layers=layers)

    def scores(self, trial: Trial, way: Way) -> Scores:
        """What the judge sees."""
        if way.fitted_on == TOKENS:
            with acting(self.model, fitted(self.model, trial, way.sites)) as sampler:
                return trial.score(sampler)
        eraser = None if way == UNEDITED else self.eraser(trial, way)
        if way.shared in AT_SHARED:
            self.model.at_shared = way.shared
        return scored(self.model, trial, eraser)


def keeping(name: str, text: Captured, pictures: Captured) -> LayerEraser:
    """Ridge head by head, as by default, to which what pictures put in is also to be kept."""
    blocks = []
    for head in range(text.forget.heads[name]):
        forget, retain, *seen = (each.pooled().head(name, head) for each in (*text, *pictures))
        left, right = least_squares_factors(
            forget.rows[name].double(),
            neighbour_means(forget, retain, name),
            torch.cat([each.rows[name].double() for each in (retain, *seen)]),
            float(KEEP.default),
            float(DAMPING.default),
            1,
        )
        blocks.append(LayerEraser((float(OVERSHOOT.default) * left).float(), right.float()))
    return LayerEraser.of_heads(blocks, scaled_rows(text.forget.pooled().rows[name]))


def table(ledger: Ledger) -> str:
    """A row for each way, over all concepts."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for (_, _, *way), entry in ledger.items():
        found.setdefault(tuple(way), []).append(entry)
    rows = []
    for way, entries in found.items():
        scores = summed(entries)
        rows.append((*way, len(entries), *scores, f"{scores.harmonic_mean:.3f}"))
    return markdown((*FIELDS[2:], "concepts", *COUNTED, "H"), rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("sd3", "hunyuan"), default="hunyuan")
    parser.add_argument("--split", choices=("development", "held-out"), default="development")
    parser.add_argument("--sweep", action="store_true", help="the authors' sweep instead")
    parser.add_argument("--in-text", action="store_true", help="only the text's own blocks")
    parser.add_argument("--concepts", type=int, default=1, help="of each kind")
    parser.add_argument("--count", type=int, default=12, help="prompts for each number and concept")
    parser.add_argument("--kind", action="append", help="only this kind; can be given again")
    parser.add_argument("--most", type=int, default=99, help="ways")
    parser.add_argument("--method", action="append", help="only this one; can be given again")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    world, load, _ = MODELS[args.model]
    stem = f"joint-{args.model}" + (f"-{args.split}" if args.split != "development" else "")
    file, bench = args.out / f"{stem}.jsonl", Bench(load())
    ledger = Ledger(file, FIELDS)
    usual = ways if args.split == "development" else reported
    every = (swept if args.sweep else in_text if args.in_text else usual)(bench.model)
    tried = [way for way in every if way.method in (args.method or [way.method])][: args.most]
    for kind, names in world.splits[args.split].items():
        for concept in names[: args.concepts] if kind in (args.kind or [kind]) else ():
            trial = world.trial(kind, concept, args.count)
            for way in tried:
                key = (kind, concept, *way)
                if key not in ledger:
                    scores = bench.scores(trial, way)
                    ledger.add(key, scores._asdict())
                    print(*key, *scores, flush=True)
    text = table(ledger)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
