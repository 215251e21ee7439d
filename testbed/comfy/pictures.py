"""The two models of real pictures in this ComfyUI process, loaded as stock nodes do.

`dev.py` puts their files where the loaders look.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.host.conditioning import Encoded, encode, stack

import comfy.sample
import nodes
from testbed.pictures.expand import FILES
from testbed.pictures.narrow import CFG, SHIFT, STEPS

SIDE, BATCH = 8, 32
"""Of a latent; pictures a call of the sampler."""


class _Loaded:
    """A model with its text encoder and autoencoder, and how to sample it."""

    model: Any
    clip: Any
    vae: Any
    shape: tuple[int, ...]
    scheduler: str

    def __init__(self) -> None:
        self._encode = lru_cache(maxsize=4096)(lambda text: encode(self.clip, text))

    def encode(self, text: str) -> Encoded:
        """The prompt's conditioning, remembered."""
        return self._encode(text)

    def latents(self, texts: list[str], model: Any = None, seed: int = 0) -> Tensor:
        """Latents by the stock sampler, a different prompt in every batch row."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(texts), *self.shape, generator=generator)
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            own = noise[start : start + len(batch)]
            parts.append(
                comfy.sample.sample(
                    model or self.model,
                    own,
                    STEPS,
                    CFG,
                    "euler",
                    self.scheduler,
                    stack([self.encode(text) for text in batch]),
                    stack([self.encode("")]),
                    torch.zeros_like(own),
                    disable_pbar=True,
                    seed=seed,
                )
            )
        return torch.cat(parts)

    def pictures(self, texts: list[str], model: Any = None, seed: int = 0) -> Tensor:
        """Pictures (b, 3, 64, 64) in [0, 1]."""
        decoded = self.vae.decode(self.latents(texts, model, seed))
        # a video autoencoder gives (b, frames, h, w, 3)
        decoded = decoded.reshape(len(texts), *decoded.shape[-3:])
        return decoded.permute(0, 3, 1, 2).float().clamp(0, 1).cpu()


class Sd15(_Loaded):
    """The SD 1.5 layout by CheckpointLoaderSimple."""

    shape, scheduler = (4, SIDE, SIDE), "normal"

    def __init__(self) -> None:
        super().__init__()
        loader = nodes.CheckpointLoaderSimple()
        self.model, self.clip, self.vae = loader.load_checkpoint(_name("checkpoint"))[:3]


class WanPictures(_Loaded):
    """The Wan 2.1 layout by UNETLoader, ModelSamplingSD3, CLIPLoader and VAELoader."""

    shape, scheduler = (16, 1, SIDE, SIDE), "simple"

    def __init__(self) -> None:
        super().__init__()
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        (model,) = nodes.UNETLoader().load_unet(_name("diffusion model"), "default")
        (self.model,) = ModelSamplingSD3().patch(model, SHIFT)
        (self.clip,) = nodes.CLIPLoader().load_clip(_name("text encoder"), "sd3")
        (self.vae,) = nodes.VAELoader().load_vae(_name("autoencoder"))


def _name(part: str) -> str:
    return FILES[part].rsplit("/", maxsplit=1)[-1]
