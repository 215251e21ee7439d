"""Sampling pictures with an eraser in some of its layers at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ....pure_core.anchors import AnchorSet
from ....pure_core.eraser import Eraser
from ....pure_core.errors import EraserError
from ....pure_core.layer_sweep import (
    By,
    Latents,
    LayerSweep,
    least_runs,
    sweep,
    units,
)
from ....pure_core.selection import select
from ....pure_core.trajectory import Trajectory
from ..conditioning import Encoded, adapted, encode, encode_anchors
from ..patch import patch, require_same_architecture
from ..sites import Sites
from . import batches as batching
from .error import CaptureError
from .sampling import for_model, noise_levels, sample, starting_noise


class Pair(NamedTuple):
    """The first prompt's latent of each side, (1, ...)."""

    concept: Tensor
    neighbour: Tensor | None
    """None if there are no neighbours."""


@dataclass(frozen=True)
class SweptModel:
    """What was found in a model, and what of it can be looked at."""

    found: LayerSweep

    pairs: dict[str | None, Pair]
    """What was erased, as `Sample` has it -> the first latents."""


def sweep_layers(
    model: ModelPatcher,
    clip: CLIP,
    eraser: Eraser,
    concept: AnchorSet,
    neighbours: AnchorSet,
    trajectory: Trajectory,
    by: By,
    share: float,
) -> SweptModel:
    """Find the fewest layers that do this share: see `pure_core.layer_sweep`.

    The model stays as it is: every run is a clone with the eraser patched into some layers.

    Args:
        neighbours: May be empty.
        trajectory: Its steps are all run. Prompt i starts from noise i, whatever is erased.

    Raises:
        EraserError: as `sweep` does, or the eraser edits the text where it enters the model.
        ModelError: an eraser of another architecture, quantised weights, or as `capture` does.
        CaptureError, TrajectoryError: no prompts of the concept, or settings out of range.
        InterruptProcessingException: the person cancelled.
    """
    if not concept:
        raise CaptureError(
            "concept_prompts: expected at least one line, got none, and the eraser names no "
            "prompts. Type some that show the concept."
        )
    encoded = encode_anchors(clip, concept + neighbours, Sites.of(model))
    sides = encoded[: len(concept)], encoded[len(concept) :]
    return sweep_encoded(model, *sides, encode(clip, ""), eraser, trajectory, by, share)


def sweep_encoded(
    model: ModelPatcher,
    concept: Sequence[Encoded],
    neighbours: Sequence[Encoded],
    empty: Encoded,
    eraser: Eraser,
    trajectory: Trajectory,
    by: By,
    share: float,
) -> SweptModel:
    """The same with prompts that are encoded already, and an empty one.

    Raises:
        As `sweep_layers` does.
    """
    sites = Sites.of(model)
    require_same_architecture(model, sites, eraser)
    sites.require_plain_weights()
    found = units(changed_layers(sites, eraser), sites.family, by)
    every = _Sampler(model, [*concept, *neighbours], empty, trajectory, least_runs(len(found)))
    pairs: dict[str | None, Pair] = {}

    def sampled(layers: str | None) -> Latents:
        erased = model if layers is None else patch(model, select(eraser, layers)).model
        both = every.latents(erased)
        rows = Latents(both[: len(concept)], both[len(concept) :])
        pairs[layers] = Pair(rows.concept[:1], rows.neighbours[:1] if neighbours else None)
        return rows

    return SweptModel(sweep(found, sampled, share), pairs)


def changed_layers(sites: Sites, eraser: Eraser) -> list[str]:
    """The layers that the eraser changes, in the order of the model.

    Raises:
        EraserError: it edits the text where it enters the model, before all layers.
    """
    if sites.entry is not None and sites.entry.module in eraser.layers:
        raise EraserError(
            "eraser: it changes the text where it enters the model, before all layers, so there "
            "are none to choose between. Use an eraser from PURE Fit or PURE Erase Concept."
        )
    left = eraser.shared == "left alone"
    return [
        name
        for name in (site.name for site in sites.sites)
        if eraser.layers[name].rank and not (left and sites.family.shares(name))
    ]


class _Sampler:
    """The same prompts from the same noises, again and again."""

    def __init__(
        self,
        model: ModelPatcher,
        encoded: Sequence[Encoded],
        empty: Encoded,
        trajectory: Trajectory,
        runs: int,
    ) -> None:
        """`runs` is how often at least it will be asked."""
        sites = Sites.of(model)
        trajectory = trajectory._replace(latents=len(encoded), run_steps=trajectory.steps)
        self.trajectory = for_model(trajectory, model, sites)
        self.encoded = [adapted(model, each) for each in encoded]
        self.empty = adapted(model, empty)
        self.noise = starting_noise(model, sites, self.trajectory)
        self.sigmas = noise_levels(model, self.trajectory)
        most = batching.rows_per_call(model, self.noise, self.trajectory.cfg)
        self.batches = [
            [row._replace(latent=row.anchor) for row in batch]
            for batch in batching.batches(self.encoded, 1, most)
        ]
        self.done, self.steps_a_run = 0, len(self.batches) * self.trajectory.steps
        self.expected = runs * self.steps_a_run
        self.bar = comfy.utils.ProgressBar(self.expected)
        logging.info(
            "PURE: sweeping layers samples %d pictures %d times or a little more, %d pictures of "
            "%d steps in all.",
            len(encoded),
            runs,
            runs * len(encoded),
            self.trajectory.steps,
        )

    def latents(self, model: ModelPatcher) -> Tensor:
        """All prompts by a clone of the model, in their order; float32 on the CPU."""
        self.expected = max(self.expected, self.done + self.steps_a_run)
        kept: list[Tensor] = [self.noise[:0]] * len(self.encoded)
        for batch in self.batches:
            drawn = sample(
                model,
                self.trajectory,
                batch,
                self.noise,
                self.encoded,
                self.empty,
                self.sigmas,
                self._advance,
            )
            for row, latent in zip(batch, drawn.float().cpu(), strict=True):
                kept[row.anchor] = latent
        return torch.stack(kept)

    def _advance(self, *_: object) -> None:
        self.done += 1
        self.bar.update_absolute(self.done, self.expected)


def some(anchors: AnchorSet, count: int) -> AnchorSet:
    """At most so many, spread evenly over all."""
    if len(anchors) <= count:
        return anchors
    return AnchorSet(tuple(anchors[len(anchors) * number // count] for number in range(count)))
