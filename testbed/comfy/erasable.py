"""A model in this ComfyUI process: sample many prompts, erase a trial's concept, sample again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import METHOD
from comfyui_pure.nodes.host.capture import arriving_shares, capture_both
from comfyui_pure.nodes.host.conditioning import Encoded, encode, stack
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import Anchors, anchors_for
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.methods.captions import CAPTIONS
from comfyui_pure.pure_core.text import TextTask
from comfyui_pure.pure_core.trajectory import Trajectory

import comfy.sample
from testbed.world.measure import Sampler, Trial

SIZE = 64
"""Pixels, of every small model."""

TRAJECTORY = Trajectory(width=SIZE, height=SIZE)
STEPS, BATCH = 20, 32

CAPTIONS_SEED = 1000
"""Of captions, so that they are not those that pictures are judged by."""


class Captured(NamedTuple):
    """What methods that work on activations are fitted on."""

    forget: Activations
    retain: Activations


class Erasable:
    """A model with its text encoder and autoencoder, as stock loaders give them."""

    shape: tuple[int, ...]
    """Of the latent of one picture."""

    cfg: float
    scheduler: str

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.model, self.clip, self.vae = model, clip, vae
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
                    self.cfg,
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

    def capture(
        self,
        trial: Trial,
        cells: int = METHODS[METHOD].cells,
        trajectory: Trajectory = TRAJECTORY,
    ) -> Captured:
        """Activations for a trial's concept, as `PURE_EraseConcept` takes them."""
        wanted = trajectory._replace(cells=cells)
        forget, retain, _ = capture_both(self.model, self.clip, Anchors(*anchors_of(trial)), wanted)
        assert retain is not None
        return Captured(forget, retain)

    def text_task(self, trial: Trial) -> TextTask:
        """What `PURE_FitText` fits on for the trial's concept."""
        given = *anchors_of(trial), fallbacks_of(trial), captions_of(trial)
        return text_task(self.model, self.clip, *given)

    def arriving(self, eraser: Eraser) -> dict[str, float]:
        """The share of each layer's change that arrives, as `PURE_Fit` measures it."""
        return arriving_shares(self.model, self.clip, eraser)

    def erase(self, trial: Trial, trajectory: Trajectory = TRAJECTORY) -> tuple[Any, Eraser]:
        """The model without the trial's concept, by the nodes' default method and settings."""
        eraser = fit(METHOD, *self.capture(trial, trajectory=trajectory))
        return patch(self.model, eraser).model, eraser

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        """Draws with the eraser applied as fitted."""
        model = self.model if eraser is None else patch(self.model, eraser).model
        yield partial(self.pictures, model=model)


def anchors_of(trial: Trial) -> tuple[AnchorSet, AnchorSet]:
    """The anchors of concept and neighbours that `PURE_EraseConcept` writes for a trial."""
    anchors = anchors_for(trial.name, trial.kind, trial.listed_names())
    return anchors.forget, anchors.retain


def fallbacks_of(trial: Trial) -> tuple[str, ...]:
    """For every forget prompt the same about the plainest word for such a thing."""
    anchor = trial.world.prompts.anchor_of(trial.kind, trial.concept)
    return anchors_for(anchor, trial.kind, "").forget.prompts


def captions_of(trial: Trial) -> tuple[str, ...]:
    """Prompts of all sorts of the trial's world, as many as the plugin has captions of its own.

    Those are of words that a small world's text encoder does not know.
    """
    prompts = trial.world.prompts.everything_prompts(len(CAPTIONS), True, CAPTIONS_SEED)
    return tuple(prompt.text for prompt in prompts)
