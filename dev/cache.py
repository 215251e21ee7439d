"""Where downloads and environments live: outside the checkout, shared by all checkouts.

Each entry's folder carries a hash of what it was made from, so a changed pin makes a new entry and
two checkouts never rebuild each other's. An entry counts once its stamp is there; a build that was
interrupted leaves none and starts again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.console import say

STAMP = ".complete"


def cache_folder() -> Path:
    """`PURE_CACHE`, else `XDG_CACHE_HOME/comfyui-pure`, else `~/.cache/comfyui-pure`."""
    if chosen := os.environ.get("PURE_CACHE"):
        folder = Path(chosen).expanduser().absolute()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(base) / "comfyui-pure"
    else:
        folder = Path.home() / ".cache" / "comfyui-pure"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: str | Path) -> str:
    """Ten hexadecimal digits that change when a text, or the content of a file, changes."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:10]


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The finished cache entry `name`, made by `build(folder)` the first time."""
    folder = cache_folder() / name
    if (folder / STAMP).is_file():
        return folder
    with locked(cache_folder() / "build.lock"):
        if (folder / STAMP).is_file():  # another run finished it meanwhile
            return folder
        started = time.monotonic()
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        build(folder)
        (folder / STAMP).touch()
        say(f"{name} ready in {time.monotonic() - started:.0f} s")
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file against other runs of the tool; released when this process ends."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            file.write("\n")
            file.flush()
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another run that prepares the same cache")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
