"""What 1 to 100 concepts cost at the size of Stable Diffusion 1.5 and SDXL, with made-up rows.

    python3 dev.py run benchmarks/scale.py -- --size "SD 1.5" --size SDXL

Rows are as many as the nodes' defaults capture (90 a concept, 810 to keep) and as wide as the
model's layers. Fitting all concepts at once, combining 100 erasers in sequence, and applying the
result to every key and value are timed for 1, 10, 30 and 100 concepts, each in a process of its
own so that its peak memory is its own. Writes `scale.csv` as it goes, and `scale.md`. In sequence,
only combining is timed; the erasers were fitted one by one and limited to 16 directions before.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import Fitting, Trajectory
from comfyui_pure.pure_core.activations import Activations, CaptureSettings
from comfyui_pure.pure_core.combine import combine
from comfyui_pure.pure_core.eraser import PROJECTIONS, Eraser
from comfyui_pure.pure_core.methods import fit

from testbed.comfy.families import FAMILIES, build

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("SD 1.5", "SDXL")
COUNTS = (1, 10, 30, 100)
WAYS = ("at once", "in sequence")
METHODS = ("pure", "ridge")
BUDGET = 64
"""Directions a layer in the limited form."""
PROMPTS, RETAINED = 6, 54
KEY = ("size", "method", "way", "concepts")
TAKEN = ("ranks", "fit s", "apply s", "limit s", "peak MB", "rows MB", "eraser MB", "limited MB")
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


def settings() -> CaptureSettings:
    return CaptureSettings(**Trajectory()._asdict(), source_name="made up", source_fingerprint="0")


def rows(prompts: int, d: int, seed: int) -> Tensor:
    """A shared mean, something of the prompts' own and directions that fall off, as layers have."""
    random, shared = (torch.Generator().manual_seed(each) for each in (seed, 0))
    mean = torch.randn(d, generator=shared)
    decay = torch.arange(1, d + 1).float() ** -1.0
    count = prompts * Trajectory().latents * Trajectory().run_steps
    own = torch.randn(d, generator=random) * 0.5
    order = torch.randperm(d, generator=random)
    return 2 * mean + own + 3 * torch.randn(count, d, generator=random) * decay[order]


def made_up(sizes: dict[str, int], prompts: int, seed: int) -> Activations:
    """Activations of one concept."""
    found = {name: rows(prompts, d, seed + 1000 * i) for i, (name, d) in enumerate(sizes.items())}
    return Activations(found, tuple(f"{seed} {i}" for i in range(prompts)), settings())


def concepts(sizes: dict[str, int], count: int) -> Activations:
    """Activations of several concepts."""
    found = {
        name: torch.cat([rows(PROMPTS, d, 1 + each + 1000 * i) for each in range(count)])
        for i, (name, d) in enumerate(sizes.items())
    }
    prompts = tuple(f"{each} {i}" for each in range(1, count + 1) for i in range(PROMPTS))
    return Activations(found, prompts, settings(), (PROMPTS,) * count)


def erasers(sizes: dict[str, int], count: int, method: str, retain: Activations) -> list[Eraser]:
    """One eraser for each concept, limited as people would who keep many."""
    return [
        fit(method, made_up(sizes, PROMPTS, 1 + each), retain, **Fitting()._asdict()).limited(16)
        for each in range(count)
    ]


def apply(eraser: Eraser, text: int) -> None:
    """Edit a weight of every layer, as patching does when the model is loaded."""
    for layer in eraser.layers.values():
        weight = torch.zeros(layer.width, text)
        for _ in PROJECTIONS[eraser.provenance.edit]:
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


def measure(size: str, method: str, way: str, count: int) -> list[str]:
    """One row of the table."""
    sizes = widths(size)
    retain = made_up(sizes, RETAINED, 0)
    given = erasers(sizes, count, method, retain) if way == "in sequence" else None
    forget = None if given else concepts(sizes, count)
    held = 0.0 if forget is None else sum(each.nbytes for each in forget.rows.values()) / 1e6
    before, started = peak(), time.monotonic()
    if given is None:
        eraser = fit(method, forget, retain, **Fitting()._asdict())
    else:
        eraser = combine(given, "in sequence") if count > 1 else given[0]
    fitted, beyond = time.monotonic() - started, peak() - before
    started = time.monotonic()
    apply(eraser, FAMILIES[size].unet["context_dim"])
    applied = time.monotonic() - started
    started = time.monotonic()
    limited = eraser.limited(BUDGET)
    ranks = eraser.ranks.values()
    return [
        f"{min(ranks)} to {max(ranks)}",
        f"{fitted:.2f}",
        f"{applied:.2f}",
        f"{time.monotonic() - started:.2f}",
        f"{beyond:.0f}",
        f"{held:.0f}",
        f"{megabytes(eraser):.1f}",
        f"{megabytes(limited):.1f}",
    ]


def missing(file: Path, sizes: list[str], counts: list[int]) -> Iterator[tuple[str, ...]]:
    """The rows that the file does not have yet."""
    done = set()
    if file.exists():
        done = {tuple(row[:4]) for row in csv.reader(file.open(encoding="utf-8"))}
    for size in sizes:
        for method in METHODS:
            for way in WAYS:
                for count in counts:
                    if (key := (size, method, way, str(count))) not in done:
                        yield key


def markdown(file: Path) -> str:
    """The table, and how the time grows from 10 to 100 concepts.

    In sequence it is the time of combining alone: while ranks are below the widths it takes next
    to nothing, then it decomposes whole matrices.
    """
    table = list(csv.DictReader(file.open(encoding="utf-8")))
    lines = ["| " + " | ".join(HEADS) + " |", "| --- " * len(HEADS) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in table]
    lines += ["", "From 10 to 100 concepts the time to fit or combine grows:", ""]
    seconds = {tuple(row[name] for name in KEY): float(row["fit s"]) for row in table}
    for (size, method, way, count), least in seconds.items():
        most = seconds.get((size, method, way, "100"))
        if count == "10" and most is not None:
            lines.append(f"- {size}, {method}, {way}: {most / max(least, 1e-9):.1f} times")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line; with --row it measures one row in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--count", type=int, action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        size, method, way, count = args.row
        print(*measure(size, method, way, int(count)), sep="\t")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "scale.csv"
    for key in missing(file, args.size or list(SIZES), args.count or list(COUNTS)):
        again = [sys.executable, str(ROOT / "dev" / "launch.py"), "script", __file__]
        ran = subprocess.run([*again, "--row", *key], stdout=subprocess.PIPE, text=True, check=True)
        taken = ran.stdout.strip().splitlines()[-1].split("\t")
        fresh = not file.exists()
        with file.open("a", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            if fresh:
                writer.writerow([*KEY, *TAKEN])
            writer.writerow([*key, *taken])
        print(*key, *taken, flush=True)
    text = markdown(file)
    (args.out / "scale.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
