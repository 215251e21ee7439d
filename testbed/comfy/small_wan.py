"""What a person chooses to run the template in Wan's layout with the small Wan of real pictures."""

from __future__ import annotations

from typing import Any

from testbed.pictures.expand import NAMES
from testbed.pictures.narrow import CFG, SHIFT, STEPS

TEMPLATE = "Erase a concept from Wan"
SIZE = 64

LOADERS: dict[str, dict[str, Any]] = {
    "UNETLoader": {"unet_name": NAMES["diffusion model"]},
    "CLIPLoader": {"clip_name": NAMES["text encoder"], "type": "sd3"},
    "VAELoader": {"vae_name": NAMES["autoencoder"]},
}
"""Widgets of the three loaders, in the order of a checkpoint loader's outputs."""

SETTINGS: dict[str, dict[str, Any]] = {
    **LOADERS,
    "ModelSamplingSD3": {"shift": SHIFT},
    "EmptyHunyuanLatentVideo": {"width": SIZE, "height": SIZE},
    "KSampler": {"steps": STEPS, "cfg": CFG, "sampler_name": "euler"},
}
"""All widgets that differ from the template, by type of node; its note says the same."""
