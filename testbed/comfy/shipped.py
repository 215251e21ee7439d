"""The shipped model in this ComfyUI process: load it as stock nodes do and sample many prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.nodes.defaults import METHOD
from comfyui_pure.nodes.host.capture import capture_both
from comfyui_pure.nodes.host.conditioning import Encoded, encode, stack
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.concepts import Anchors, anchors_for
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.fitting import fit
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.text import TextTask
from comfyui_pure.pure_core.trajectory import Trajectory

import comfy.sample
import nodes
from testbed.world.measure import Sampler, Trial
from testbed.world.prompts import ANCHORS, name_of

SIZE = 64
TRAJECTORY = Trajectory(width=SIZE, height=SIZE)
STEPS, CFG, BATCH = 20, 4.0, 32


class Captured(NamedTuple):
    """What methods that work on activations are fitted on."""

    forget: Activations
    retain: Activations


class Shipped:
    """What `CheckpointLoaderSimple` gives for the shipped checkpoint."""

    def __init__(self) -> None:
        name = Path(os.environ["PURE_CHECKPOINT"]).name
        self.model, self.clip, self.vae = nodes.CheckpointLoaderSimple().load_checkpoint(name)[:3]
        self._encode = lru_cache(maxsize=4096)(lambda text: encode(self.clip, text))

    def encode(self, text: str) -> Encoded:
        """The prompt's conditioning, remembered."""
        return self._encode(text)

    def latents(self, texts: list[str], model: Any = None, seed: int = 0) -> Tensor:
        """Latents (b, 4, 8, 8) by the stock sampler, a different prompt in every batch row."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(texts), 4, SIZE // 8, SIZE // 8, generator=generator)
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
                    "normal",
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
        latents = self.latents(texts, model, seed)
        return self.vae.decode(latents).permute(0, 3, 1, 2).float().clamp(0, 1).cpu()

    def capture(
        self,
        trial: Trial,
        cells: int = METHODS[METHOD].cells,
        trajectory: Trajectory = TRAJECTORY,
    ) -> Captured:
        """Activations for a trial's concept, as `PURE_EraseConcept` takes them."""
        wanted = trajectory._replace(cells=cells)
        forget, retain = capture_both(self.model, self.clip, anchors_of(trial), wanted)
        assert retain is not None
        return Captured(forget, retain)

    def text_task(self, trial: Trial) -> TextTask:
        """What `PURE_FitText` fits on for the trial's concept."""
        return text_task(self.model, self.clip, *anchors_of(trial), fallbacks_of(trial))

    def erase(self, trial: Trial, trajectory: Trajectory = TRAJECTORY) -> tuple[Any, Eraser]:
        """The model without the trial's concept, by the nodes' default method and settings."""
        eraser = fit(METHOD, *self.capture(trial, trajectory=trajectory))
        return patch(self.model, eraser).model, eraser

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        """Draws with the eraser applied as fitted."""
        model = self.model if eraser is None else patch(self.model, eraser).model
        yield partial(self.pictures, model=model)


def anchors_of(trial: Trial) -> Anchors:
    """The anchors that `PURE_EraseConcept` writes for the trial's concept."""
    neighbours = "\n".join(name_of(trial.kind, each) for each in trial.neighbour_names())
    return anchors_for(name_of(trial.kind, trial.concept), trial.kind, neighbours)


def fallbacks_of(trial: Trial) -> tuple[str, ...]:
    """For every forget prompt the same about the kind's plainest word."""
    return anchors_for(ANCHORS[trial.kind], trial.kind, "").forget.prompts
