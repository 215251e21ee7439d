"""Captures that are remembered for as long as their model lives.

A person who tries strengths and methods runs PURE Erase Concept again and again on one model.
ComfyUI's cache can't serve the capture inside of it, and from 0.30 on drops what a run has not used
yet, so the last captures are kept here, on the CPU. They hold no reference to the model: when
ComfyUI lets go of it, they go too.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ....pure_core.concepts import Anchors
from ....pure_core.eraser import Eraser
from ....pure_core.trajectory import Trajectory
from ..identity import fingerprint
from . import run
from .arrival import arriving_shares
from .run import Captured

MOST = 2
"""Captures that are remembered for a model, the last one always, others if all fit into
`run.MOST_MEMORY`."""


class Remembered(NamedTuple):
    key: Hashable
    """Everything that the rows depend on but the cells."""

    asked: int
    """Cells that were asked for; memory may have allowed fewer."""

    captured: Captured


remembered: WeakKeyDictionary[ModelPatcher, list[Remembered]] = WeakKeyDictionary()


def remembered_capture(
    model: ModelPatcher, clip: CLIP, anchors: Anchors, trajectory: Trajectory
) -> Captured:
    """As `capture_both`, from memory if this model was captured in this way before.

    A capture by cells also serves for whole pictures, whose means it holds.

    Raises:
        As `capture` does; then nothing is remembered.
    """
    key = (fingerprint(model, clip), anchors, trajectory._replace(cells=1))
    entries = remembered.setdefault(model, [])
    for entry in entries:
        if entry.key == key and trajectory.cells in (1, entry.asked):
            return entry.captured if entry.asked == trajectory.cells else entry.captured.pooled()
    captured = run.capture_both(model, clip, anchors, trajectory)
    entries.insert(0, Remembered(key, trajectory.cells, captured))
    while len(entries) > MOST or (len(entries) > 1 and _size(entries) > run.MOST_MEMORY):
        entries.pop()
    return captured


measured: WeakKeyDictionary[ModelPatcher, dict[Hashable, dict[str, float]]] = WeakKeyDictionary()


def remembered_shares(model: ModelPatcher, clip: CLIP, eraser: Eraser) -> dict[str, float]:
    """As `arriving_shares`, from memory if these factors were measured in this model before.

    Raises:
        As `arriving_shares` does; then nothing is remembered.
    """
    known = measured.setdefault(model, {})
    key = (fingerprint(model, clip), eraser.fingerprint)
    if key not in known:
        known[key] = arriving_shares(model, clip, eraser)
    return known[key]


def _size(entries: list[Remembered]) -> int:
    return sum(entry.captured.size() for entry in entries)
