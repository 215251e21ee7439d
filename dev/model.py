"""The shipped models: compact weights in `testbed/`, expanded to files that stock loaders read."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from dev.cache import digest, locked
from dev.console import ROOT, run, say


@dataclass(frozen=True)
class World:
    """Small trained models and what draws them."""

    name: str
    """Begins the name of the folder that its files are written to."""

    folder: str
    """Holds the expander, `expand.py`, and the compact weights, `weights/`."""

    files: tuple[str, ...]
    """What the expander may write, below a models folder."""

    argument: str = "."
    """What the expander is given: a path below that models folder."""

    reads: tuple[str, ...] = ()
    """Further folders with code of the expander."""


DRAWN = World(
    name="pure-world",
    folder="testbed/world",
    files=("checkpoints/pure-world.safetensors",),
    argument="checkpoints/pure-world.safetensors",
)

PICTURES = World(
    name="pictures",
    folder="testbed/pictures",
    files=(
        "checkpoints/pictures-unet.safetensors",
        "diffusion_models/pictures-wan.safetensors",
        "text_encoders/pictures-clip-l.safetensors",
        "vae/pictures-wan-vae.safetensors",
        "checkpoints/pictures-sd3.safetensors",
        "diffusion_models/pictures-hunyuan.safetensors",
        "vae/pictures-hunyuan-vae.safetensors",
    ),
    reads=("testbed/world",),
)


def place_models(world: World, python: Path, folder: Path, models: Path) -> list[Path]:
    """Put a world's models where a ComfyUI finds them, without a second copy on disk.

    Those whose weights are missing are left out, with a word about it, and taken away if they were
    there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "model.lock"):
        there = []
        if written := expanded(world, python, folder):
            there = [file for file in world.files if (written / file).is_file()]
            for file in there:
                place(written / file, models / file)
    missing = [models / file for file in world.files if file not in there]
    for target in missing:
        target.unlink(missing_ok=True)
    if missing:
        names = ", ".join(target.name for target in missing)
        say(f"no {names}: {world.folder}/ holds no expand.py or not all weights")
    return [models / file for file in there]


def place(source: Path, target: Path) -> None:
    """Make a file the same as another; a running ComfyUI sees the old one or the new one."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError as error:
        say(f"copying the model, hard links do not work here ({error})")
        shutil.copyfile(source, partial)
    partial.replace(target)


def expanded(world: World, python: Path, folder: Path) -> Path | None:
    """A models folder in `folder` with the world's files, written when its sources changed.

    None while the weights or their expander are missing.
    """
    home = ROOT / world.folder
    code = [path for part in (world.folder, *world.reads) for path in (ROOT / part).glob("*.py")]
    weights = [path for path in (home / "weights").glob("*") if path.is_file()]
    if home / "expand.py" not in code or not weights:
        return None
    sources = sorted([*code, *weights])
    names = "\n".join(path.relative_to(ROOT).as_posix() for path in sources)
    target = folder / f"{world.name}-{digest(names, *sources)}"
    if target.is_dir():
        return target
    started = time.monotonic()
    partial = folder / f"{world.name}.partial"
    remove(partial)
    partial.mkdir()
    module = f"{world.folder.replace('/', '.')}.expand"
    what = "writing the shipped models"
    run([python, "-m", module, partial / world.argument], what, cwd=ROOT)
    partial.rename(target)
    for older in folder.glob(f"{world.name}-*"):
        if older != target:
            remove(older)
    say(f"{target.name} written in {time.monotonic() - started:.0f} s")
    return target


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
