"""The models of real pictures in this ComfyUI process, loaded as stock nodes do.

`dev.py` puts their files where the loaders look.
"""

from __future__ import annotations

from testbed.comfy import inprocess

inprocess.enter()

from comfy_extras.nodes_model_advanced import ModelSamplingSD3

import nodes
from testbed.comfy.erasable import Erasable
from testbed.pictures.expand import NAMES
from testbed.pictures.narrow import CFG, SHIFT


class Sd15(Erasable):
    """The SD 1.5 layout by CheckpointLoaderSimple."""

    shape, cfg, scheduler = (4, 8, 8), CFG, "normal"

    def __init__(self) -> None:
        super().__init__(*nodes.CheckpointLoaderSimple().load_checkpoint(NAMES["checkpoint"])[:3])


class WanPictures(Erasable):
    """The Wan 2.1 layout by UNETLoader, ModelSamplingSD3, CLIPLoader and VAELoader."""

    shape, cfg, scheduler = (16, 1, 8, 8), CFG, "simple"

    def __init__(self) -> None:
        (model,) = nodes.UNETLoader().load_unet(NAMES["diffusion model"], "default")
        (model,) = ModelSamplingSD3().patch(model, SHIFT)
        (clip,) = nodes.CLIPLoader().load_clip(NAMES["text encoder"], "sd3")
        (vae,) = nodes.VAELoader().load_vae(NAMES["autoencoder"])
        super().__init__(model, clip, vae)


class SD3Pictures(Erasable):
    """The SD3 layout by CheckpointLoaderSimple, whose shift is the model's own."""

    shape, cfg, scheduler = (16, 8, 8), CFG, "simple"

    def __init__(self) -> None:
        super().__init__(*nodes.CheckpointLoaderSimple().load_checkpoint(NAMES["sd3"])[:3])


class HunyuanPictures(Erasable):
    """The HunyuanVideo layout by UNETLoader, ModelSamplingSD3, CLIPLoader and VAELoader."""

    shape, cfg, scheduler = (16, 1, 8, 8), CFG, "simple"

    def __init__(self) -> None:
        (model,) = nodes.UNETLoader().load_unet(NAMES["hunyuan"], "default")
        (model,) = ModelSamplingSD3().patch(model, SHIFT)
        (clip,) = nodes.CLIPLoader().load_clip(NAMES["text encoder"], "stable_diffusion")
        (vae,) = nodes.VAELoader().load_vae(NAMES["hunyuan autoencoder"])
        super().__init__(model, clip, vae)
