"""Transformers in the sizes that were released, with random weights: capture, fit, patch, sample.

    python3 dev.py run --comfy 0.30.0 benchmarks/full_size.py

Without arguments it runs every release that fits into `--memory` in bfloat16. Each runs in a
process of its own, so that its memory is given back and its peaks are its own; they are read as
Linux counts them. Rows go to full_size.jsonl one by one; those that are there are not run again,
with `--again` they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from testbed.comfy import inprocess

inprocess.enter()

from comfy.model_management import load_models_gpu
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.files.eraser import save_eraser
from comfyui_pure.pure_core.fitting import BY_HEAD, fit
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.trajectory import Trajectory

from benchmarks.common import RESULTS, markdown
from testbed.comfy.full_size import MODELS, RELEASES, full_size, weighs
from testbed.comfy.transformer_measures import as_captured, captured, hooks, relative, sampled
from testbed.comfy.transformers import encodings, missing

VERSION = os.environ["PURE_COMFY_VERSION"]

TYPES = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "fp32": (torch.float32, None),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
}
"""What weights are kept in, and what they are computed in if that is another type."""

FORGET, RETAIN = 2, 2
RUN = {"run_steps": 2, "latents": 1}
TURNS = 2
DEFAULTS = Trajectory()
USUAL = {"forget": 6, "retain": 54}
"""Prompts of a concept and nine neighbours in the nodes' six phrasings."""

LEGEND = f"""Transformers in the sizes that were released, built by ComfyUI's own classes, with
random weights and made-up texts, on a CPU. Nothing here says how well anything is erased. *type*:
what weights are kept and computed in; fp8 is computed in bf16. *sites*: sites x heads x numbers of
a head. *text*: tokens x width. {FORGET} forget and {RETAIN} retain prompts were captured for
{RUN["run_steps"]} steps, fitted by *ridge* head by head, patched and sampled for a step.

*capture*: its processor time as a multiple of the same model calls with nothing attached, each the
least of {TURNS} runs in turns. *fit*, *patch*: processor time as multiples of one of these model
calls, which has {FORGET + RETAIN} rows. The fit is of {sum(USUAL.values())} made-up prompts with as
many rows as the nodes' defaults capture; patching includes loading the patched model. *GB*: the
most memory at a time beyond the loaded model and, in the fit, these rows; and its share of the
weights.

*E h*: how far the first site's rows of the patched model are from E times the rows before, as a
share of what E changes; rounding in the type is in it. *change*: relative difference of the
latents. *afterwards*: whether all weights are bit for bit as before, and no hook is left.

The machine has two cores, of which one thread of one was used while other programs ran. The seconds
of each stage are in full_size.jsonl: they are the processor's, and compare nothing but each other.

"""
LEFT_OUT = "Not run, with the size of their weights in bf16:"

SHOWN = ("calls", "capture", "fit", "patch")
"""Stages whose memory the table shows."""

MEMORY = 15.0
"""GB that a run may take unless it is told."""

BESIDE, PROGRAM = 1.1, 1.5
"""What a run takes at most: so many times its weights, and GB of the program."""


class Wanted(NamedTuple):
    model: str
    ComfyUI: str
    type: str


"""A row that is to be there."""


class Stage(NamedTuple):
    """What one step took."""

    seconds: float
    """Of the processor: other programs do not count."""

    peak: float
    """GB of the whole process, by `memory`."""


def measured(action: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, Stage]:
    """What an action gives, and what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is used now
    started = time.process_time()
    result = action(*given, **named)
    return result, Stage(time.process_time() - started, memory("VmHWM"))


def least(stages: list[Stage]) -> Stage:
    """The time that other programs disturbed least, and the highest peak."""
    return Stage(min(each.seconds for each in stages), max(each.peak for each in stages))


def memory(name: str) -> float:
    """GB of this process, as Linux names them: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{name}:"))


class Row:
    """One release in one type."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.release = name, MODELS[name]
        (self.model, building) = measured(full_size, name, *TYPES[kind])
        self.seconds = {"build": building.seconds}
        self.sites = Sites.of(self.model)
        self.prompts = encodings(self.release, FORGET + RETAIN + 1)
        self.weights = sum(each.nbytes for each in self.sites.net.parameters()) / 1e9

    def cells(self) -> dict[str, Any]:
        """What came out."""
        before = digests(self.model)
        load_models_gpu([self.model])
        plain = sampled(self.name, self.model, steps=1)
        loaded = memory("VmRSS")
        rows, first, stages = self.captured()
        eraser, stages["small fit"] = measured(fit, "ridge", *rows.split(FORGET), heads=BY_HEAD)
        patched, stages["patch"] = measured(self.patched, eraser)
        erased = sampled(self.name, patched, steps=1)
        miss = self.miss(eraser, patched, first)
        self.model.unpatch_model()
        same = digests(self.model) == before and not hooks(self.model)
        usual = [self.made_up(*side) for side in USUAL.items()]
        with_rows = memory("VmRSS")
        _, stages["fit"] = measured(fit, "ridge", *usual, heads=BY_HEAD)
        beyond = {name: stage.peak - loaded for name, stage in stages.items()}
        beyond["fit"] = stages["fit"].peak - with_rows
        finite = bool(torch.isfinite(plain).all()) and bool(torch.isfinite(erased).all())
        self.seconds |= {name: stage.seconds for name, stage in stages.items()}
        call = self.seconds["calls"] / RUN["run_steps"]
        site, ranks = self.sites.sites[0], eraser.ranks.values()
        return {
            "parameters": f"{sum(p.numel() for p in self.sites.net.parameters()) / 1e9:.2f} B",
            "weights GB": f"{self.weights:.1f}",
            "sites": f"{len(self.sites.sites)} x {site.value_heads} x {site.head_dim}",
            "pixels": self.release.size,
            "text": f"{self.release.tokens} x {self.release.width}",
            "capture": f"{self.seconds['capture'] / self.seconds['calls']:.2f}",
            "fit": f"{self.seconds['fit'] / call:.2f}",
            "patch": f"{self.seconds['patch'] / call:.2f}",
            **{f"{each} GB": self.share(beyond[each]) for each in SHOWN},
            "ranks": f"{min(ranks)}-{max(ranks)}",
            "eraser MB": f"{file_size(eraser) / 1e6:.1f}",
            "E h": f"{miss:.1e}",
            "change": f"{relative(erased, plain.double()):.1e}",
            "afterwards": "as before" if same else "CHANGED",
            "result": "ok" if finite else "FAIL not finite",
        } | {f"s {name}": f"{each:.2f}" for name, each in self.seconds.items()}

    def share(self, size: float) -> str:
        """GB, and which part of the weights that is."""
        return f"{size:.2f} ({size / self.weights:.0%})"

    def captured(self) -> tuple[Activations, torch.Tensor, dict[str, Stage]]:
        """Rows of all prompts, the first site's of the first step, and what that took.

        In turns with the same model calls without a capture.
        """
        calls, captures = [], []
        for _ in range(TURNS):
            calls.append(measured(as_captured, self.name, self.model, self.prompts, **RUN)[1])
            rows, stage = measured(captured, self.name, self.model, self.prompts, **RUN)
            captures.append(stage)
        expected = (FORGET + RETAIN) * RUN["run_steps"]
        for site in self.sites.sites:
            shape = tuple(rows.rows[site.name].shape)
            assert shape == (expected, site.width), (site.name, shape)
            assert rows.heads[site.name] == site.value_heads
        assert len(rows.rows) == len(self.sites.sites) == self.release.sites
        first = rows.grid(self.sites.sites[0].name)[:, 0, 0]
        return rows, first, {"calls": least(calls), "capture": least(captures)}

    def made_up(self, side: str, prompts: int) -> Activations:
        """As many rows as the nodes' defaults capture, with one strong mean and a tail."""
        random = torch.Generator().manual_seed(prompts)
        rows = {}
        for site, width in self.sites.widths().items():
            tail = torch.randn(prompts * DEFAULTS.rows_per_anchor, width, generator=random)
            rows[site] = width**-0.5 + 0.3 * tail / torch.arange(1, width + 1)
        anchors = AnchorSet.written([[f"{side} {number}"] for number in range(prompts)])
        made = ModelIdentity(self.name)
        return Activations(rows, anchors, DEFAULTS, made, heads=self.sites.heads())

    def patched(self, eraser: Eraser) -> ModelPatcher:
        """The erased model, loaded in place of the other."""
        made = patch(self.model, eraser)
        print(made.summary, flush=True)
        load_models_gpu([made.model])
        return made.model

    def miss(self, eraser: Eraser, patched: ModelPatcher, first: torch.Tensor) -> float:
        """How far the first site's rows are from E h, as a share of what E changes.

        No other site is before it, so that its input is that of the capture.
        """
        site = self.sites.sites[0].name
        after = captured(self.name, patched, self.prompts, **RUN | {"run_steps": 1}).rows[site]
        wanted = eraser.layers[site](first)
        return float((after - wanted).norm() / (wanted - first).norm())


def digests(model: ModelPatcher) -> dict[str, str]:
    """Of all bytes of every weight."""
    every = model.model.diffusion_model.state_dict().items()
    return {
        name: hashlib.sha256(each.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, each in every
    }


def file_size(eraser: Eraser) -> int:
    """Bytes of the eraser's file, as it is saved by default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "eraser.safetensors"
        save_eraser(eraser.without_rows(), path)
        return path.stat().st_size


def run_one(wanted: Wanted, target: Path) -> None:
    """One row, in this process; its cells go to `target`."""
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():  # as ComfyUI runs its nodes
            cells = Row(wanted.model, wanted.type).cells()
    except Exception as error:  # whatever it is, it is a result
        traceback.print_exc()
        cells = {"result": f"FAIL {error!r}"}
    target.write_text(json.dumps(cells))


def in_own_process(wanted: Wanted) -> dict[str, Any]:
    """A row's cells, from a copy of this process. One that dies is a failed row."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(target=run_one, args=(wanted, target))
        process.start()
        process.join()
        if target.exists():
            cells: dict[str, Any] = json.loads(target.read_text())
            return cells
    return {"result": f"FAIL the process ended with {process.exitcode}"}


def needs(wanted: Wanted) -> float:
    """GB that a run takes at most."""
    _, size = weighs(wanted.model, TYPES[wanted.type][0])
    return size / 1e9 * BESIDE + PROGRAM


def readable(ledger: Ledger) -> str:
    """What the columns say, the table, and what was too large."""
    names, types = list(MODELS), list(TYPES)
    keys = sorted(ledger, key=lambda key: (key[1], types.index(key[2]), names.index(key[0])))
    heads = list(dict.fromkeys(cell for key in keys for cell in ledger[key]))
    heads = [*(head for head in heads if not head.startswith("s ") and head != "result"), "result"]
    rows = ([*key, *(ledger[key].get(head, "") for head in heads)] for key in keys)
    run = {key[0] for key in keys}
    left = [name for name in RELEASES if name not in run and not missing(RELEASES[name])]
    sizes = [f"{name} ({weighs(name, torch.bfloat16)[1] / 1e9:.1f} GB)" for name in left]
    return f"{LEGEND}{markdown([*Wanted._fields, *heads], rows)}\n{LEFT_OUT} {', '.join(sizes)}.\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--type", choices=TYPES, action="append")
    parser.add_argument("--memory", type=float, default=MEMORY, help="GB that a run may take")
    parser.add_argument("--again", action="store_true", help="run rows that are there as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "full_size.jsonl", Wanted._fields)
    for kind in args.type or ["bf16"]:
        for name in args.model or MODELS:
            wanted = Wanted(name, VERSION, kind)
            if missing(MODELS[name]) or (wanted in ledger and not args.again):
                continue
            if needs(wanted) > args.memory:
                print(*wanted, f"needs {needs(wanted):.1f} GB", flush=True)
                continue
            ledger.add(wanted, in_own_process(wanted))
            print(*wanted, ledger[wanted], flush=True)
            (args.out / "full_size.md").write_text(readable(ledger), encoding="utf-8")


if __name__ == "__main__":
    main()
