"""ComfyUI's progress bar."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

from ...pure_core.progress import Progress

STEPS = 1000
"""Of the bar, whatever it is told of."""


def progress() -> Progress:
    """A fresh bar for the node that runs; being told, it raises when the person has cancelled."""
    bar = comfy.utils.ProgressBar(STEPS)

    def update(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(STEPS * done // max(1, total), STEPS)

    return update
