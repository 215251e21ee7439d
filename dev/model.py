"""The shipped model: the compact weights in `testbed/world/`, expanded to an SD1.5 checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

from dev.cache import digest, locked
from dev.console import ROOT, run, say

WORLD = ROOT / "testbed" / "world"
WEIGHTS = WORLD / "weights"


def shipped_checkpoint(python: Path, folder: Path) -> Path | None:
    """The expanded checkpoint (about 340 MB) in `folder`, written when its sources changed.

    None, with a word about it, while the weights or their expander are missing.
    """
    code = sorted(WORLD.glob("*.py"))
    weights = sorted(path for path in WEIGHTS.glob("*") if path.is_file())
    if WORLD / "expand.py" not in code or not weights:
        say("no shipped model: testbed/world/ holds no expand.py or no weights/")
        return None
    sources = [*code, *weights]
    names = "\n".join(path.name for path in sources)
    target = folder / f"pure-world-{digest(names, *sources)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "model.lock"):
        if not target.is_file():
            started = time.monotonic()
            run([python, "-m", "testbed.world.expand", target], "writing the shipped model")
            for older in folder.glob("pure-world-*.safetensors"):
                if older != target:
                    older.unlink()
            say(f"{target.name} written in {time.monotonic() - started:.0f} s")
    return target
