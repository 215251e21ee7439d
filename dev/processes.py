"""Programs that end with us: whatever is started here is ended on every way out."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 10
"""Seconds that a program gets to end by itself."""

_running: set[subprocess.Popen[Any]] = set()


@contextmanager
def started(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str], **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Run a program; when the block is left in any way, it is ended with all that it started.

    On POSIX it leads a process group of its own, which is what is ended. Ctrl-C in a terminal
    therefore reaches this program alone, which then leaves the block.
    """
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words, cwd=cwd, env=dict(env), start_new_session=os.name == "posix", **options
    )
    _running.add(process)
    try:
        yield process
    finally:
        end(process)
        _running.discard(process)


def end(process: subprocess.Popen[Any]) -> None:
    """End a program that `started` started, and what it left running."""
    _signal(process, signal.SIGTERM)
    try:
        process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def end_all() -> None:
    """End every program that is running, for example from a thread of its own."""
    for process in list(_running):
        end(process)


def _signal(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        if os.name == "posix":
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.terminate()
