"""What 1 to 100 concepts cost at the size of Stable Diffusion 1.5 and SDXL, with made-up rows.

    python3 dev.py run benchmarks/scale.py -- --size "SD 1.5" --size SDXL

Rows are as many as the nodes' defaults capture (90 a concept, 810 to keep) and as wide as the
model's layers. Fitting all concepts at once, combining 100 erasers in sequence, and applying the
result to every key and value are timed for 1, 10, 30 and 100 concepts, each in a process of its
own so that its peak memory is its own. Writes `scale.jsonl` as it goes, and `scale.md`. In
sequence, only combining is timed; the erasers were fitted one by one and limited to 16 directions
before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.combine import combine
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.evaluation.ledger import Ledger
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.trajectory import Trajectory

from benchmarks.common import RESULTS, ROOT, markdown
from testbed.comfy.families import FAMILIES, build

MADE_UP = ModelIdentity("made up")
SIZES = ("SD 1.5", "SDXL")
COUNTS = (1, 10, 30, 100)
WAYS = ("at once", "in sequence")
METHODS = ("pure", "ridge")
BUDGET = 64
"""Directions a layer in the limited form."""
PROMPTS, RETAINED = 6, 54
FIELDS = ("size", "method", "way", "concepts")
SECONDS = ("fit s", "apply s", "limit s")
MEGABYTES = ("peak MB", "rows MB", "eraser MB", "limited MB")
HEADS = (
    "size",
    "method",
    "fitted",
    "concepts",
    "ranks",
    "fit or combine, s",
    "apply, s",
    f"limit to {BUDGET}, s",
    "memory beyond the rows, MB",
    "rows captured, MB",
    "eraser, MB",
    f"limited to {BUDGET}, MB",
)


def widths(size: str) -> dict[str, int]:
    """Layer -> d, of the real architecture."""
    unet = build(size, torch.device("meta"))
    found = {
        name: module.to_v.weight.shape[0]
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    }
    assert found
    return found


def rows(prompts: int, d: int, seed: int) -> Tensor:
    """A shared mean, something of the prompts' own and directions that fall off, as layers have."""
    random, shared = (torch.Generator().manual_seed(each) for each in (seed, 0))
    mean = torch.randn(d, generator=shared)
    decay = torch.arange(1, d + 1).float() ** -1.0
    count = prompts * Trajectory().latents * Trajectory().run_steps
    own = torch.randn(d, generator=random) * 0.5
    order = torch.randperm(d, generator=random)
    return 2 * mean + own + 3 * torch.randn(count, d, generator=random) * decay[order]


def anchors(concept: int, count: int) -> AnchorSet:
    """Of one concept."""
    return AnchorSet.written([[f"{concept} {i}" for i in range(count)]])


def made_up(sizes: dict[str, int], prompts: int, seed: int) -> Activations:
    """Activations of one concept."""
    found = {name: rows(prompts, d, seed + 1000 * i) for i, (name, d) in enumerate(sizes.items())}
    return Activations(found, anchors(seed, prompts), Trajectory(), MADE_UP)


def concepts(sizes: dict[str, int], count: int) -> Activations:
    """Activations of several concepts."""
    found = {
        name: torch.cat([rows(PROMPTS, d, 1 + each + 1000 * i) for each in range(count)])
        for i, (name, d) in enumerate(sizes.items())
    }
    every = (anchors(each, PROMPTS) for each in range(1, count + 1))
    return Activations(found, sum(every, AnchorSet()), Trajectory(), MADE_UP)


def erasers(sizes: dict[str, int], count: int, method: str, retain: Activations) -> list[Eraser]:
    """One eraser for each concept, limited as people would who keep many."""
    return [
        fit(method, made_up(sizes, PROMPTS, 1 + each), retain).limited(16) for each in range(count)
    ]


def apply(eraser: Eraser, text: int) -> None:
    """Edit a weight of every layer, as patching does when the model is loaded."""
    for layer in eraser.layers.values():
        weight = torch.zeros(layer.width, text)
        for _ in eraser.roles:
            layer.edit_weight(weight)


def megabytes(eraser: Eraser) -> float:
    """Of all tensors, as a file holds them."""
    tensors = (
        each
        for layer in eraser.layers.values()
        for each in (layer.proj_left, layer.proj_right, layer.rows)
        if each is not None
    )
    return sum(each.nbytes for each in tensors) / 1e6


def peak() -> float:
    """The largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(size: str, method: str, way: str, count: int) -> dict[str, Any]:
    """One entry."""
    sizes = widths(size)
    retain = made_up(sizes, RETAINED, 0)
    given = erasers(sizes, count, method, retain) if way == "in sequence" else None
    forget = None if given else concepts(sizes, count)
    held = 0.0 if forget is None else sum(each.nbytes for each in forget.rows.values()) / 1e6
    before, started = peak(), time.monotonic()
    if given is None:
        eraser = fit(method, forget, retain)
    else:
        eraser = combine(given, "in sequence") if count > 1 else given[0]
    fitted, beyond = time.monotonic() - started, peak() - before
    started = time.monotonic()
    apply(eraser, FAMILIES[size].unet["context_dim"])
    applied = time.monotonic() - started
    started = time.monotonic()
    limited = eraser.limited(BUDGET)
    limiting = time.monotonic() - started
    ranks = eraser.ranks.values()
    return {
        "ranks": [min(ranks), max(ranks)],
        "fit s": round(fitted, 2),
        "apply s": round(applied, 2),
        "limit s": round(limiting, 2),
        "peak MB": round(beyond),
        "rows MB": round(held),
        "eraser MB": round(megabytes(eraser), 1),
        "limited MB": round(megabytes(limited), 1),
    }


def wanted(sizes: Sequence[str], counts: Sequence[int]) -> Iterator[tuple[str, str, str, int]]:
    """The keys of all entries."""
    for size in sizes:
        for method in METHODS:
            for way in WAYS:
                for count in counts:
                    yield size, method, way, count


def table(ledger: Ledger) -> str:
    """All entries, and how the time grows from 10 to 100 concepts.

    In sequence it is the time of combining alone: while ranks are below the widths it takes next
    to nothing, then it decomposes whole matrices.
    """
    rows = [
        (
            *key,
            " to ".join(map(str, entry["ranks"])),
            *(f"{entry[name]:.2f}" for name in SECONDS),
            *(entry[name] for name in MEGABYTES),
        )
        for key, entry in ledger.items()
    ]
    lines = [markdown(HEADS, rows), "From 10 to 100 concepts the time to fit or combine grows:", ""]
    for (size, method, way, count), entry in ledger.items():
        most = ledger.get((size, method, way, 100))
        if count == 10 and most is not None:
            grown = most["fit s"] / max(entry["fit s"], 1e-9)
            lines.append(f"- {size}, {method}, {way}: {grown:.1f} times")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line; with --row it measures one row in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--count", type=int, action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        size, method, way, count = args.row
        print(json.dumps(measure(size, method, way, int(count))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out / "scale.jsonl", FIELDS)
    for key in wanted(args.size or SIZES, args.count or COUNTS):
        if key in ledger:
            continue
        again = [sys.executable, str(ROOT / "dev" / "launch.py"), "script", __file__]
        ran = subprocess.run(
            [*again, "--row", *map(str, key)], stdout=subprocess.PIPE, text=True, check=True
        )
        entry = json.loads(ran.stdout.strip().splitlines()[-1])
        ledger.add(key, entry)
        print(*key, entry, flush=True)
    text = table(ledger)
    (args.out / "scale.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
