"""Capturing activations: run a short sampling and read every site on the way.

PURE (arXiv 2605.25765), step 1: at every cross-attention layer and step, the post-attention
activation h = softmax(Q K^T / sqrt(d_head)) V, averaged over the spatial positions. The listeners
exist only while a batch is being sampled: all clones of a MODEL share its modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ....pure_core.activations import ActivationCollector, Activations
from ....pure_core.anchors import AnchorSet
from ....pure_core.concepts import Anchors
from ....pure_core.model_identity import ModelIdentity
from ....pure_core.trajectory import Trajectory
from ..conditioning import Encoded, adapted, encode, encode_anchors
from ..identity import identity
from ..sites import Sites
from . import batches as batching
from .error import CaptureError
from .grid import Grid
from .recorder import Recorder, recording
from .sampling import for_model, noise_levels, sample, starting_noise

MOST_MEMORY = 2 << 30
"""Bytes of rows that capturing both sides may take."""


def capture(
    model: ModelPatcher, clip: CLIP, anchors: AnchorSet, trajectory: Trajectory
) -> Activations:
    """Capture every site for every anchor, latent and step.

    The starting latent j depends on the seed and j alone, so all anchors start from the same
    noise and a row does not depend on which rows it was sampled with.

    Raises:
        CaptureError, TrajectoryError: no prompts, settings out of range, invalid numbers in the
            model, or sites whose activations did not come by.
        ModelError: a model of no known family, or no text encoder or that of another model.
        PromptError: a concept or a textual inversion of which the text encoder reads nothing.
        InterruptProcessingException: the person cancelled.
    """
    if not anchors:
        raise CaptureError(
            "prompts: expected at least one line, got none. If this is the retain side of a "
            "concept without neighbours, connect only forget to the fit."
        )
    sites = Sites.of(model)
    trajectory = for_model(trajectory, model, sites)
    encoded = encode_anchors(clip, anchors, sites)
    made = identity(model, sites, clip)
    return capture_encoded(model, encoded, encode(clip, ""), anchors, trajectory, made)


def capture_encoded(
    model: ModelPatcher,
    encoded: Sequence[Encoded],
    empty: Encoded,
    anchors: AnchorSet,
    trajectory: Trajectory,
    made: ModelIdentity,
) -> Activations:
    """The same with prompts that are encoded already, one for each anchor, and an empty one.

    Raises:
        As `capture` does.
    """
    sites = Sites.of(model)
    trajectory = for_model(trajectory, model, sites)
    collector = ActivationCollector(sites.widths(), anchors, trajectory, made, sites.heads())
    encoded, empty = [adapted(model, each) for each in encoded], adapted(model, empty)
    noise = starting_noise(model, sites, trajectory)
    sigmas = noise_levels(model, trajectory)
    most = batching.rows_per_call(model, noise, trajectory.cfg)
    batches = batching.batches(encoded, trajectory.latents, most)
    progress = comfy.utils.ProgressBar(len(batches) * trajectory.run_steps)
    height, width = noise.shape[-2:]
    patch = sites.family.latent(sites.net).patch_frames
    frames = -(-noise.shape[2] // patch) if noise.ndim == 5 else 1
    grid = Grid(trajectory.cells, (height, width), frames)

    def advance(*_: object) -> None:
        progress.update(1)

    for batch in batches:
        recorder = Recorder(sites, sigmas[:-1].tolist(), len(batch), grid)
        with recording(recorder, model) as recorded:
            sample(recorded, trajectory, batch, noise, encoded, empty, sigmas, advance)
        anchor_index = torch.tensor([row.anchor for row in batch])
        latent_index = torch.tensor([row.latent for row in batch])
        for (site, step), pooled in recorder.finish().items():
            means = pooled.means if trajectory.cells > 1 else None
            collector.add_rows(site, step, anchor_index, latent_index, pooled.cells, means)
    return collector.finish()


class Captured(NamedTuple):
    """All sides of an erasure; None for one that it does not have."""

    forget: Activations
    retain: Activations | None
    replacement: Activations | None = None

    def pooled(self) -> Captured:
        """All averaged over the whole picture."""
        return Captured(
            self.forget.pooled(),
            self.retain and self.retain.pooled(),
            self.replacement and self.replacement.pooled(),
        )

    def size(self) -> int:
        """Bytes of rows."""
        sides = [side for side in self if side is not None]
        return sum(rows.nbytes for side in sides for rows in side.rows.values())


def capture_both(
    model: ModelPatcher, clip: CLIP, anchors: Anchors, trajectory: Trajectory
) -> Captured:
    """Capture forget and retain anchors, and a replacement's, in one run.

    That takes fewer model calls and shows one progress bar. The trajectory's cells are lowered
    where the rows would not fit into `MOST_MEMORY`.

    Raises:
        As `capture` does.
    """
    every = anchors.forget + anchors.retain + anchors.replacement
    sites = Sites.of(model)
    cells = trajectory.cells
    while (
        cells > 1 and _row_bytes(sites, len(every), trajectory._replace(cells=cells)) > MOST_MEMORY
    ):
        cells //= 2
    together = capture(model, clip, every, trajectory._replace(cells=cells))
    forget, others = together.split(len(anchors.forget))
    if others is None or not anchors.retain:
        return Captured(forget, None, others)
    return Captured(forget, *others.split(len(anchors.retain)))


def _row_bytes(sites: Sites, anchors: int, trajectory: Trajectory) -> int:
    """What the rows of all sites take."""
    return 4 * sum(sites.widths().values()) * anchors * trajectory.rows_per_anchor
