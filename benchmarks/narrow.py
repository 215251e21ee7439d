"""The narrow form of a small U-Net under the plugin's methods, as `testbed/comfy/erasable.py` has a
model in ComfyUI.

It computes the same function as the checkpoint some ten times faster.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from testbed.comfy import inprocess
from testbed.world import narrow
from testbed.world.expand import INNER
from testbed.world.measure import Sampler, Trial
from testbed.world.networks import HEADS, NARROW_HEAD, WIDE
from testbed.world.words import tokens

inprocess.enter()

from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.arrival import ArrivalMeter, Values
from comfyui_pure.pure_core.eraser import Eraser, LayerEraser
from comfyui_pure.pure_core.families import Role
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.text import TextModel, TextTask, TextVectors
from comfyui_pure.pure_core.trajectory import Trajectory

from testbed.comfy.erasable import METHOD, TRAJECTORY, Captured, anchors_of, fallbacks_of

IDENTITY = ModelIdentity("narrow")
WEIGHTS = Path(__file__).resolve().parent.parent / "testbed" / "world" / "weights"


class Narrow:
    """The drawn world's model or another of its class, with what is asked of an `Erasable`."""

    def __init__(self, model: narrow.NarrowModel | None = None, cfg: float = 4.0) -> None:
        self.model = model or narrow.load(WEIGHTS)
        self.pictures = functools.partial(narrow.pictures, self.model, cfg=cfg)
        self.captured = functools.lru_cache(maxsize=8)(self._capture)

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        """Draws with the eraser applied as fitted, for as long as the block runs."""
        saved = []
        for name, layer in self.model.cross_attention().items() if eraser else ():
            factors = _narrowed(eraser.layers[name])
            for role, linear in (("keys", layer.to_k), ("values", layer.to_v)):
                if role in eraser.roles:
                    saved.append((linear, linear.weight))
                    edited = factors.edit_weight(linear.weight, eraser.strength)
                    linear.weight = torch.nn.Parameter(edited, requires_grad=False)
        try:
            yield self.pictures
        finally:
            for linear, weight in saved:
                linear.weight = weight

    def capture(
        self,
        trial: Trial,
        cells: int = METHODS[METHOD].cells,
        trajectory: Trajectory = TRAJECTORY,
    ) -> Captured:
        """What `PURE_EraseConcept` captures for the trial's concept."""
        wanted = trajectory._replace(cells=cells)
        return Captured(*(self.captured(each, wanted) for each in anchors_of(trial)))

    def _capture(self, anchors: AnchorSet, trajectory: Trajectory) -> Activations:
        """What `PURE_Capture` collects, in the wide layout."""
        generator = torch.Generator().manual_seed(trajectory.seed)
        noise = torch.randn(trajectory.latents, 4, 8, 8, generator=generator)
        texts = [prompt for prompt in anchors.prompts for _ in range(trajectory.latents)]
        cells: dict[str, list[Tensor]] = {name: [] for name in self.model.cross_attention()}
        means: dict[str, list[Tensor]] = {name: [] for name in cells}
        for start in range(0, len(texts), 60):
            batch = texts[start : start + 60]
            latents = noise[[i % trajectory.latents for i in range(start, start + len(batch))]]
            with narrow.recording(self.model, trajectory.cells) as found:
                narrow.sample(
                    self.model,
                    batch,
                    latents,
                    steps=trajectory.steps,
                    cfg=trajectory.cfg,
                    run_steps=trajectory.run_steps,
                )
            for kept, calls in ((cells, found.cells), (means, found.means)):
                for name, own in calls.items():
                    kept[name].append(torch.stack([call[: len(batch)] for call in own], dim=1))
        rows = {name: _widened(torch.cat(parts).flatten(0, 2)) for name, parts in cells.items()}
        whole = {name: _widened(torch.cat(parts).flatten(0, 1)) for name, parts in means.items()}
        by_cells = trajectory.cells > 1
        return Activations(
            rows,
            anchors,
            trajectory,
            IDENTITY,
            whole if by_cells else None,
            dict.fromkeys(rows, HEADS),
        )

    def arriving(self, eraser: Eraser) -> dict[str, float]:
        """As `nodes/host/capture/arrival.py` measures it in ComfyUI."""
        prompts = list(eraser.provenance.forget.prompts)
        layers = {name: _narrowed(layer) for name, layer in eraser.layers.items()}
        places = {
            name: Values(attention.to_v, 0, attention.to_out)
            for name, attention in self.model.cross_attention().items()
        }
        generator = torch.Generator().manual_seed(TRAJECTORY.seed)
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        with closing(ArrivalMeter(layers, places, len(prompts))) as meter:
            narrow.sample(
                self.model,
                prompts * 2,
                noise.repeat(2 * len(prompts), 1, 1, 1),
                steps=TRAJECTORY.steps,
                cfg=1.0,
                run_steps=TRAJECTORY.run_steps,
            )
        return meter.shares()

    def text_task(self, trial: Trial) -> TextTask:
        """What `PURE_FitText` fits on for the trial's concept."""

        def weight_of(layer: str, role: Role) -> Tensor:
            module = self.model.cross_attention()[layer]
            return (module.to_k if role == "keys" else module.to_v).weight

        forget, retain = anchors_of(trial)
        return TextTask(
            forget=self.vectors(forget),
            anchor=self.vectors(AnchorSet.written([[each] for each in fallbacks_of(trial)])),
            retain=self.vectors(retain),
            empty=self.vectors(AnchorSet.written([[""]])),
            model=TextModel(tuple(self.model.cross_attention()), weight_of, IDENTITY),
        )

    def vectors(self, anchors: AnchorSet) -> TextVectors:
        """Prompts, encoded."""
        encoded = self.model.encode(list(anchors.prompts)).double()
        ends = tuple(len(tokens(prompt)) + 1 for prompt in anchors.prompts)
        return TextVectors(anchors, tuple(encoded), ends)


def _widened(rows: Tensor) -> Tensor:
    """Rows (n, d) at the places of the wide layout's channels."""
    wide = torch.zeros(len(rows), WIDE)
    wide[:, INNER] = rows
    return wide


def _narrowed(layer: LayerEraser) -> LayerEraser:
    """The channels that the narrow model has, of an eraser fitted on wide rows."""
    if layer.width != WIDE:
        return layer
    if layer.by_head:
        return LayerEraser(layer.proj_left[:, :NARROW_HEAD], layer.proj_right[..., :NARROW_HEAD])
    return LayerEraser(layer.proj_left[INNER], layer.proj_right[:, INNER])
