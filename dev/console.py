"""What the tool says, and how it starts other programs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev.processes import started

ROOT = Path(__file__).resolve().parent.parent


class SetupError(RuntimeError):
    """Something on this machine keeps the tool from going on; the message says what to do."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[dev] {text}", flush=True)


def run(
    command: Sequence[str | Path],
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> None:
    """Run a command to its end, its output shown; raise SetupError naming `what` if it fails."""
    words = [str(word) for word in command]
    with started(words, cwd, merged(env)) as process:
        status = process.wait()
    if status != 0:
        raise SetupError(f"{what} failed (exit {status}): {shlex.join(words)}")


def output(command: Sequence[str | Path], what: str, env: Mapping[str, str] | None = None) -> str:
    """What a command prints, stripped; raise SetupError with its error output if it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, env=merged(env), cwd=ROOT, check=False, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise SetupError(f"{what} failed: {shlex.join(words)}\n{result.stderr.strip()}")
    return result.stdout.strip()


def link_to_checkout(link: Path, checkout: Path = ROOT) -> None:
    """Make `link` lead to this checkout."""
    if link.is_symlink() and link.resolve() == checkout:
        return
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(checkout, target_is_directory=True)
    except OSError as error:
        raise SetupError(
            f"cannot link {link} to {checkout}: {error}. On Windows switch on developer mode."
        ) from error


def merged(env: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment with `env` laid over it; progress is never held back."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}


def fail(error: Exception) -> int:
    """Report an error that ends the tool; the exit status."""
    print(f"[dev] error: {error}", file=sys.stderr, flush=True)
    return 1
