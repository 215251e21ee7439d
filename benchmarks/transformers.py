"""Every transformer that PURE serves, small and with random weights: how exact each step is.

    python3 dev.py run --comfy 0.30.0 benchmarks/transformers.py

All models are built by ComfyUI's own classes with the parts of the full size and few channels, in
float32 on one CPU thread. Rows go to transformers.jsonl one by one; those that are there are not
run again, with `--again` they are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from testbed.comfy import inprocess

inprocess.enter()

from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import EffectiveWeights, Sites
from comfyui_pure.pure_core.eraser import IN_FILES, Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import BY_HEAD, fit, fit_text

from benchmarks.common import RESULTS, markdown
from testbed.comfy.erasers import random_eraser
from testbed.comfy.transformer_measures import (
    batch_sizes,
    captured,
    exported,
    hooks,
    in_float64,
    lora_error,
    made_up,
    relative,
    runs,
    sampled,
    weights,
)
from testbed.comfy.transformers import ALL, encoded, no_such, transformer

VERSION = os.environ["PURE_COMFY_VERSION"]
PROMPTS = 3

LEGEND = """Small transformers with random weights, made by ComfyUI's own classes, float32 on a
CPU. Figures are relative errors, in the norm over all numbers, and the worst over what is named.
*h*: the recorded rows against the same attention in float64, all sites. *Clip*: the same for a clip
of three latent frames, `-` for models that make pictures. *E h*: rows of a model that is patched
with a random eraser of two directions a head on its values against E times the rows before, first
and last site, each patched alone. *Without bias*: the same if E were left off the biases, `-` where
there are none. *Alone*: rows of prompts that ran together, in calls of so many rows, against each
alone. *Text*: what methods on the text edit, and how exactly it is W E. *Fit, patch, sample*: ridge
head by head on three prompts, in the weights. *Export*: what is sampled with the checkpoint that
was exported with this eraser and loaded again, against the patched model. *LoRA*: its edited
weights and biases in
the stock loader against the patch's, at strength 1 and 0.5: not bit for bit, because a loader
multiplies the two factors of a LoRA as a whole and then adds, while the patch multiplies head by
head. Cosmos 1 is not exact after *export* in ComfyUI 0.3.75, because there its output depends on
where weights lie in memory. *Afterwards*: whether all weights are bit for bit as before, and no
hook is left; that it is so after an error and after a cancel in the middle is tested
(tests/comfy/test_transformers.py). What a ComfyUI does not have is left out.

"""


class Wanted(NamedTuple):
    kind: str
    ComfyUI: str


"""A row that is to be there."""


class Row:
    """One kind of transformer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = transformer(name)
        self.sites = Sites.of(self.model)
        self.geometry = self.sites.family.latent(self.sites.net)
        self.prompts = encoded(name, PROMPTS + 1)

    @cached_property
    def eraser(self) -> Eraser:
        """Fitted head by head on its prompts; what files can hold."""
        every = captured(self.name, self.model, self.prompts, run_steps=2, latents=3)
        return fit("ridge", *every.split(1), heads=BY_HEAD).applied(at_shared=IN_FILES)

    @cached_property
    def erased(self) -> torch.Tensor:
        """What the patched model draws."""
        return sampled(self.name, patch(self.model, self.eraser).model)

    def measured(self) -> dict[str, str]:
        """All its cells."""
        start, before = time.perf_counter(), weights(self.model)
        steps: dict[str, Callable[[], str]] = {
            "h": lambda: _figure(self.h(1)),
            "clip": self.clip,
            "E h": lambda: _figure(self.e_h(biases=True)),
            "without bias": self.without_bias,
            "alone": self.alone,
            "text": self.text,
            "fit, patch, sample": self.whole_way,
            "export": self.export,
            "LoRA": self.lora,
        }
        first = self.sites.sites[0]
        cells = {
            "family": self.sites.family.name,
            "sites": str(len(self.sites.sites)),
            "part": first.part,
            "edited by pure": "keys and values" if self.sites.family.keys_are_linear else "values",
        }
        for step, measure in steps.items():
            cells[step] = measure()
        self.model.unpatch_model()
        after = weights(self.model)
        same = all(torch.equal(before[name], after[name]) for name in before)
        cells["afterwards"] = "as before" if same and not hooks(self.model) else "CHANGED"
        cells["seconds"] = f"{time.perf_counter() - start:.1f}"
        return cells

    def h(self, length: int) -> float:
        with in_float64(self.model) as expected:
            rows = captured(self.name, self.model, self.prompts, length=length).rows
        worst = 0.0
        for site in self.sites.sites:
            calls = expected[site.name][:: runs(site)]
            means = torch.cat([h.mean(1 - site.rows_axis) for h in calls])
            worst = max(worst, relative(rows[site.name], means))
        return worst

    def clip(self) -> str:
        frames = self.geometry.frames
        return _figure(self.h(1 + 2 * frames)) if frames else "-"

    def e_h(self, biases: bool) -> float:
        eraser = random_eraser(self.model, "values", rank=2, by_head=True)
        before, worst = captured(self.name, self.model, self.prompts), 0.0
        for site in (self.sites.sites[0], self.sites.sites[-1]):
            with _only(self.model, eraser, site.name, biases) as patched:
                after = captured(self.name, patched, self.prompts).rows[site.name]
            wanted = eraser.layers[site.name](before.rows[site.name])
            worst = max(worst, relative(after, wanted.double()))
        return worst

    def without_bias(self) -> str:
        biased = any(site.values.bias for site in self.sites.sites)
        return _figure(self.e_h(biases=False)) if biased else "-"

    def alone(self) -> str:
        change = {"run_steps": 2, "cells": 2, "cfg": 4.0}
        with batch_sizes(self.model) as sizes:
            together = captured(self.name, self.model, self.prompts, **change)
        *given, empty = self.prompts
        worst, rows_of_a_call = 0.0, max(sizes)
        for number, prompt in enumerate(given):
            rows = captured(self.name, self.model, [prompt, empty], **change).rows
            for site, alone in rows.items():
                part = together.grid(site)[number].flatten(0, 1)
                worst = max(worst, relative(part, alone.double()))
        return f"{_figure(worst)} ({rows_of_a_call} rows)"

    def text(self) -> str:
        if not self.sites.family.edits_text(self.sites.net):
            return "refused"
        eraser = fit_text("uce", made_up(self.name, self.model))
        patched, worst = patch(self.model, eraser).model, 0.0
        one, other = (EffectiveWeights(each, self.sites) for each in (self.model, patched))
        for layer, factors in eraser.layers.items():
            wanted = one.weight(layer, "values").double() @ factors.to(torch.float64).P
            worst = max(worst, relative(other.weight(layer, "values"), wanted))
        where = "every site" if self.sites.entry is None else f"`{self.sites.entry.module}`"
        return f"{where} {_figure(worst)}"

    def whole_way(self) -> str:
        if not bool(torch.isfinite(self.erased).all()):
            return "NOT FINITE"
        plain = sampled(self.name, self.model)
        return f"changes {_figure(relative(self.erased, plain.double()))}"

    def export(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            again = exported(self.name, self.model, self.eraser, Path(folder)).model
        return _figure(relative(sampled(self.name, again), self.erased.double()))

    def lora(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return _figure(lora_error(self.model, self.eraser, Path(folder)))


@contextmanager
def _only(model: ModelPatcher, eraser: Eraser, site: str, biases: bool) -> Iterator[ModelPatcher]:
    """The model with one site erased, with or without its bias."""
    layers = {name: layer.scaled(name == site) for name, layer in eraser.layers.items()}
    patched = patch(model, replace(eraser, layers=layers)).model
    if not biases:
        patched.patches = {k: v for k, v in patched.patches.items() if not k.endswith(".bias")}
    yield patched


def _figure(error: float) -> str:
    return f"{error:.1e}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=ALL, action="append")
    parser.add_argument("--again", action="store_true", help="run rows that are there as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "transformers.jsonl", Wanted._fields)
    for name in args.kind or ALL:
        wanted = Wanted(name, VERSION)
        if args.again or wanted not in ledger:
            missing = no_such(name)
            ledger.add(wanted, {"family": missing} if missing else Row(name).measured())
            print(*wanted, ledger[wanted], flush=True)
    (args.out / "transformers.md").write_text(readable(ledger), encoding="utf-8")


def readable(ledger: Ledger) -> str:
    """What the columns say, and the table, without what a version does not have."""
    kinds = list(ALL)
    keys = sorted(ledger, key=lambda key: (key[1], kinds.index(key[0])))
    rows = [(key, ledger[key]) for key in keys if "h" in ledger[key]]
    columns = [name for name in rows[0][1] if name != "seconds"]
    table = ([*key, *(row[column] for column in columns)] for key, row in rows)
    return LEGEND + markdown([*Wanted._fields, *columns], table)


if __name__ == "__main__":
    main()
