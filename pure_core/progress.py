"""How long work tells whoever waits for it, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""How much is done, and of how much. May raise to stop: nothing is left behind then."""


def no_progress(done: int, total: int) -> None:
    """Nobody is watching."""
