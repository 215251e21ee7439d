"""The small model's narrow form under the plugin's methods, as `tests/comfy/shipped.py` has it in
ComfyUI.

It computes the same function as the checkpoint some ten times faster.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from testbed.comfy import inprocess
from testbed.world import narrow
from testbed.world.expand import INNER
from testbed.world.measure import Sampler, Trial
from testbed.world.networks import WIDE
from testbed.world.words import tokens

inprocess.enter()

from comfyui_pure.nodes.defaults import Trajectory
from comfyui_pure.pure_core.activations import Activations, CaptureSettings
from comfyui_pure.pure_core.eraser import Eraser, LayerEraser
from comfyui_pure.pure_core.text import TextModel, TextTask, TextVectors

from testbed.comfy.shipped import TRAJECTORY, Captured, anchors_of, fallbacks_of

WEIGHTS = Path(__file__).resolve().parent.parent / "testbed" / "world" / "weights"


class Narrow:
    """The narrow form, with what is asked of `Shipped`."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self.model = narrow.load(weights)
        self.captured = functools.cache(self._capture)

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        """Draws with the eraser applied as fitted, for as long as the block runs."""
        saved = []
        for name, layer in self.model.cross_attention().items() if eraser else ():
            factors = _narrowed(eraser.layers[name])
            for linear, part in ((layer.to_k, "keys"), (layer.to_v, "values")):
                if part in eraser.provenance.edit:
                    saved.append((linear, linear.weight))
                    edited = factors.edit_weight(linear.weight)
                    linear.weight = torch.nn.Parameter(edited, requires_grad=False)
        try:
            yield functools.partial(narrow.pictures, self.model)
        finally:
            for linear, weight in saved:
                linear.weight = weight

    def capture(
        self, trial: Trial, cells: int = 1, trajectory: Trajectory = TRAJECTORY
    ) -> Captured:
        """What `PURE_EraseConcept` captures for the trial's concept."""
        prompts = anchors_of(trial)
        return Captured(
            self.captured(prompts.forget, trajectory, cells),
            self.captured(prompts.retain, trajectory, cells),
        )

    def _capture(
        self, prompts: tuple[str, ...], trajectory: Trajectory, cells: int = 1
    ) -> Activations:
        """What `PURE_Capture` collects, in the wide layout."""
        generator = torch.Generator().manual_seed(trajectory.seed)
        noise = torch.randn(trajectory.latents, 4, 8, 8, generator=generator)
        texts = [prompt for prompt in prompts for _ in range(trajectory.latents)]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.model.cross_attention()}
        for start in range(0, len(texts), 60):
            batch = texts[start : start + 60]
            latents = noise[[i % trajectory.latents for i in range(start, start + len(batch))]]
            with narrow.recording(self.model, cells) as found:
                narrow.sample(
                    self.model,
                    batch,
                    latents,
                    steps=trajectory.steps,
                    cfg=trajectory.cfg,
                    run_steps=trajectory.run_steps,
                )
            for name, calls in found.items():
                parts[name].append(torch.stack([call[: len(batch)] for call in calls], dim=1))
        rows = {}
        for name, batches in parts.items():
            found = torch.cat(batches).flatten(0, 2)
            rows[name] = torch.zeros(len(found), WIDE)
            rows[name][:, INNER] = found
        settings = CaptureSettings(
            **trajectory._asdict(), cells=cells, source_name="narrow", source_fingerprint=""
        )
        return Activations(rows, prompts, settings)

    def text_task(self, trial: Trial) -> TextTask:
        """What `PURE_FitText` fits on for the trial's concept."""

        def weight_of(layer: str, projection: str) -> torch.Tensor:
            return getattr(self.model.cross_attention()[layer], projection).weight

        prompts = anchors_of(trial)
        return TextTask(
            forget=self.vectors(prompts.forget),
            anchor=self.vectors(fallbacks_of(trial)),
            retain=self.vectors(prompts.retain),
            empty=self.vectors(("",)),
            model=TextModel(tuple(self.model.cross_attention()), weight_of, "narrow", "", {}),
        )

    def vectors(self, prompts: tuple[str, ...]) -> TextVectors:
        """Prompts, encoded."""
        encoded = self.model.encode(list(prompts)).double()
        ends = tuple(len(tokens(prompt)) + 1 for prompt in prompts)
        return TextVectors(prompts, tuple(encoded), ends)


def _narrowed(layer: LayerEraser) -> LayerEraser:
    """The channels that the narrow model has, of an eraser fitted on wide rows."""
    if layer.width != WIDE:
        return layer
    return LayerEraser(layer.proj_left[INNER], layer.proj_right[:, INNER])
