"""How much of an eraser's change arrives: a short sampling of the concept's prompts."""

from __future__ import annotations

from contextlib import closing

import comfy.sample
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ....pure_core.arrival import ArrivalMeter, Values
from ....pure_core.eraser import Eraser
from ..conditioning import adapted, encode, encode_anchors, stack
from ..sites import Sites
from . import batches as batching
from .sampling import noise_levels, sampler_for, starting_noise


def arriving_shares(model: ModelPatcher, clip: CLIP, eraser: Eraser) -> dict[str, float]:
    """Layer -> share of the change that arrives: see `ArrivalMeter`.

    The concept's prompts run along the trajectory that the eraser was fitted on, from its first
    latent and without guidance. Layers by head are not measured: all of their change arrives.

    Raises:
        As `capture` does.
    """
    made, sites = eraser.provenance, Sites.of(model)
    layers = {name: layer for name, layer in eraser.layers.items() if not layer.by_head}
    if made.trajectory is None or eraser.space != "activations" or not layers:
        return {}
    trajectory = made.trajectory._replace(latents=1, cfg=1.0)
    encoded = [adapted(model, each) for each in encode_anchors(clip, made.forget, sites)]
    empty = adapted(model, encode(clip, ""))
    noise, sigmas = starting_noise(model, sites, trajectory), noise_levels(model, trajectory)
    most = batching.rows_per_call(model, noise, trajectory.cfg)
    batches = batching.batches(encoded, 1, max(1, most // 2))
    progress = comfy.utils.ProgressBar(len(batches) * trajectory.run_steps)
    places = {site.name: _place(sites, site.name) for site in sites.sites}
    missed: dict[str, list[float]] = {name: [] for name in layers}
    for batch in batches:
        own = noise[[row.latent for row in batch] * 2]
        texts = [encoded[row.anchor] for row in batch] * 2
        with closing(ArrivalMeter(layers, places, len(batch))) as meter:
            comfy.sample.sample_custom(
                model.clone(),
                own,
                trajectory.cfg,
                sampler_for(model, trajectory, batch * 2, noise),
                sigmas,
                stack(texts),
                stack([empty]),
                torch.zeros_like(own),
                callback=lambda *_: progress.update(1),
                disable_pbar=True,
                seed=trajectory.seed,
            )
        for name, share in meter.shares().items():
            missed[name] += [share] * len(batch)
    return {name: sum(found) / len(found) for name, found in missed.items() if found}


def _place(sites: Sites, name: str) -> Values:
    site = sites[name]
    module = sites.net.get_submodule
    return Values(module(site.values.module), site.values.start, module(site.out))
