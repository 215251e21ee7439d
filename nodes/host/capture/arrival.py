"""How much of an eraser's change arrives: a short sampling of the concept's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ....pure_core.arrival import ArrivalMeter, Values
from ....pure_core.eraser import Eraser
from ....pure_core.families import Site
from ..conditioning import Encoded, adapted, encode, encode_anchors
from ..sites import Sites
from . import batches as batching
from .sampling import noise_levels, sample, starting_noise


def arriving_shares(model: ModelPatcher, clip: CLIP, eraser: Eraser) -> dict[str, float]:
    """Layer -> share of the change that arrives: see `ArrivalMeter`.

    The concept's prompts run along the trajectory that the eraser was fitted on, from its first
    latent and without guidance. Layers by head are not measured: all of their change arrives.

    Raises:
        As `capture` does.
    """
    if not eraser.provenance.trajectory or eraser.space != "activations":
        return {}
    encoded = encode_anchors(clip, eraser.provenance.forget, Sites.of(model))
    return arriving_encoded(model, encoded, encode(clip, ""), eraser)


def arriving_encoded(
    model: ModelPatcher, encoded: Sequence[Encoded], empty: Encoded, eraser: Eraser
) -> dict[str, float]:
    """The same with prompts that are encoded already, and an empty one."""
    made, sites = eraser.provenance, Sites.of(model)
    places = {site.name: _place(sites, site) for site in sites.sites if site.part == "cross"}
    layers = {
        name: layer for name, layer in eraser.layers.items() if name in places and not layer.by_head
    }
    if made.trajectory is None or not layers:
        return {}
    trajectory = made.trajectory._replace(latents=1, cfg=1.0)
    encoded, empty = [adapted(model, each) for each in encoded], adapted(model, empty)
    noise, sigmas = starting_noise(model, sites, trajectory), noise_levels(model, trajectory)
    most = batching.rows_per_call(model, noise, trajectory.cfg)
    batches = batching.batches(encoded, 1, max(1, most // 2))
    progress = comfy.utils.ProgressBar(len(batches) * trajectory.run_steps)
    missed: dict[str, list[float]] = {name: [] for name in layers}

    def advance(*_: object) -> None:
        progress.update(1)

    for batch in batches:
        with closing(ArrivalMeter(layers, places, len(batch))) as meter:
            sample(model.clone(), trajectory, batch * 2, noise, encoded, empty, sigmas, advance)
        for name, share in meter.shares().items():
            missed[name] += [share] * len(batch)
    return {name: sum(found) / len(found) for name, found in missed.items() if found}


def _place(sites: Sites, site: Site) -> Values:
    module, values = sites.net.get_submodule, site.values
    return Values(module(values.module), values.start, module(site.out), site.rows_axis)
