"""The narrow forms of the small models under the plugin's methods, as `testbed/comfy/erasable.py`
has a model in ComfyUI.

They compute the same functions as the files that ComfyUI loads, some ten times faster.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from testbed.comfy import inprocess
from testbed.pictures import narrow as real
from testbed.pictures.hunyuan import HEADS as HUNYUAN_HEADS
from testbed.pictures.sd3 import HEADS as SD3_HEADS
from testbed.pictures.wan import HEADS as WAN_HEADS
from testbed.world import narrow
from testbed.world.expand import INNER
from testbed.world.measure import Sampler, Trial
from testbed.world.networks import HEADS, NARROW_HEAD, WIDE
from testbed.world.words import tokens

inprocess.enter()

from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.arrival import ArrivalMeter, Values
from comfyui_pure.pure_core.eraser import USUALLY, AtShared, Eraser, LayerEraser
from comfyui_pure.pure_core.families import Role
from comfyui_pure.pure_core.methods import METHODS
from comfyui_pure.pure_core.model_identity import ModelIdentity
from comfyui_pure.pure_core.text import TextModel, TextTask, TextVectors
from comfyui_pure.pure_core.trajectory import Trajectory

from testbed.comfy.erasable import (
    METHOD,
    TRAJECTORY,
    Captured,
    anchors_of,
    captions_of,
    fallbacks_of,
)

WEIGHTS = Path(__file__).resolve().parent.parent / "testbed" / "world" / "weights"
ENTRY = "text_embedding.0"
"""Where text enters Wan."""


class Layer(NamedTuple):
    """The projections of a cross-attention."""

    keys: nn.Linear
    values: nn.Linear
    out: nn.Linear


class Narrow:
    """A small model in its narrow form, with what is asked of an `Erasable`."""

    pictures: Sampler
    sampling: Callable[..., Tensor]
    """Runs the model along a schedule, given it, texts and noise."""

    recording: Callable[..., AbstractContextManager[narrow.Recorded]]
    """Collects activations for as long as its block runs, given the model and cells."""

    shape: tuple[int, ...]
    """Of one picture's latent."""

    heads: int
    identity: ModelIdentity

    def __init__(self, model: Any, layers: dict[str, Layer]) -> None:
        self.model, self.layers = model, layers
        self.captured = functools.lru_cache(maxsize=8)(self._capture)

    def sample(self, texts: list[str], noise: Tensor, trajectory: Trajectory) -> Tensor:
        """Run the model along a trajectory; conditional rows come first in a call."""
        return self.sampling(
            self.model,
            texts,
            noise,
            steps=trajectory.steps,
            cfg=trajectory.cfg,
            run_steps=trajectory.run_steps,
        )

    def widened(self, rows: Tensor) -> Tensor:
        """Rows (n, d) as the layers of the layout have them."""
        return rows

    def narrowed(self, layer: LayerEraser) -> LayerEraser:
        """The channels that the narrow model has, of an eraser fitted on rows of the layout."""
        return layer

    def edits(self, eraser: Eraser) -> Iterator[tuple[nn.Linear, LayerEraser]]:
        """The linear maps that an eraser edits, each with its factors."""
        for name, layer in eraser.layers.items():
            own = self.layers[name]
            for role in eraser.roles:
                yield (own.keys if role == "keys" else own.values), self.narrowed(layer)

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        """Draws with the eraser applied as fitted, for as long as the block runs."""
        saved = []
        for linear, layer in self.edits(eraser) if eraser else ():
            for part in ("weight", "bias"):
                whole = getattr(linear, part)
                if whole is None:
                    continue
                saved.append((linear, part, whole))
                edited = layer.edit_weight(whole, eraser.strength)
                setattr(linear, part, nn.Parameter(edited, requires_grad=False))
        try:
            yield self.pictures
        finally:
            for linear, part, whole in saved:
                setattr(linear, part, whole)

    def capture(
        self,
        trial: Trial,
        cells: int = METHODS[METHOD].cells,
        trajectory: Trajectory = TRAJECTORY,
    ) -> Captured:
        """What `PURE_EraseConcept` captures for the trial's concept."""
        wanted = trajectory._replace(cells=cells)
        return Captured(*(self.captured(each, wanted) for each in anchors_of(trial)))

    def noise(self, latents: int, seed: int) -> Tensor:
        """Starting latents."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(latents, *self.shape, generator=generator)

    def _capture(self, anchors: AnchorSet, trajectory: Trajectory) -> Activations:
        """What `PURE_Capture` collects."""
        noise = self.noise(trajectory.latents, trajectory.seed)
        texts = [prompt for prompt in anchors.prompts for _ in range(trajectory.latents)]
        cells: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        means: dict[str, list[Tensor]] = {name: [] for name in cells}
        for start in range(0, len(texts), 60):
            batch = texts[start : start + 60]
            latents = noise[[i % trajectory.latents for i in range(start, start + len(batch))]]
            with self.recording(self.model, trajectory.cells) as found:
                self.sample(batch, latents, trajectory)
            for kept, calls in ((cells, found.cells), (means, found.means)):
                for name, own in calls.items():
                    kept[name].append(torch.stack([call[: len(batch)] for call in own], dim=1))
        rows = {name: self.widened(torch.cat(each).flatten(0, 2)) for name, each in cells.items()}
        whole = {name: self.widened(torch.cat(each).flatten(0, 1)) for name, each in means.items()}
        by_cells = trajectory.cells > 1
        return Activations(
            rows,
            anchors,
            trajectory,
            self.identity,
            whole if by_cells else None,
            dict.fromkeys(rows, self.heads),
        )

    def arriving(self, eraser: Eraser) -> dict[str, float]:
        """As `nodes/host/capture/arrival.py` measures it in ComfyUI."""
        prompts = list(eraser.provenance.forget.prompts)
        layers = {name: self.narrowed(layer) for name, layer in eraser.layers.items()}
        places = {name: Values(layer.values, 0, layer.out) for name, layer in self.layers.items()}
        noise = self.noise(1, TRAJECTORY.seed).repeat(2 * len(prompts), 1, 1, 1)
        with closing(ArrivalMeter(layers, places, len(prompts))) as meter:
            self.sample(prompts * 2, noise, TRAJECTORY._replace(cfg=1.0))
        return meter.shares()

    def text_model(self) -> TextModel:
        """What methods by text edit, in text as wide as the narrow form has it."""
        raise NotImplementedError

    def text_task(self, trial: Trial) -> TextTask:
        """What `PURE_FitText` fits on for the trial's concept."""
        forget, retain = anchors_of(trial)
        return TextTask(
            forget=self.vectors(forget),
            anchor=self.vectors(AnchorSet.written([[each] for each in fallbacks_of(trial)])),
            retain=self.vectors(retain),
            empty=self.vectors(AnchorSet.written([[""]])),
            model=self.text_model(),
            ordinary=self.vectors(AnchorSet.written([[each] for each in captions_of(trial)])),
        )

    def vectors(self, anchors: AnchorSet) -> TextVectors:
        """Prompts, encoded."""
        encoded = self.model.encode(list(anchors.prompts)).double()
        ends = tuple(len(tokens(prompt)) + 1 for prompt in anchors.prompts)
        return TextVectors(anchors, tuple(encoded), ends)


class NarrowUNet(Narrow):
    """The SD 1.5 layout: of the drawn world, or another of its class."""

    shape, heads, identity = (4, 8, 8), HEADS, ModelIdentity("narrow")
    sampling, recording = staticmethod(narrow.sample), staticmethod(narrow.recording)

    def __init__(self, model: narrow.NarrowModel | None = None, cfg: float = 4.0) -> None:
        model = model or narrow.load(WEIGHTS)
        found = model.cross_attention().items()
        super().__init__(model, {name: Layer(at.to_k, at.to_v, at.to_out) for name, at in found})
        self.pictures = functools.partial(narrow.pictures, model, cfg=cfg)

    def widened(self, rows: Tensor) -> Tensor:
        wide = torch.zeros(len(rows), WIDE)
        wide[:, INNER] = rows
        return wide

    def narrowed(self, layer: LayerEraser) -> LayerEraser:
        if layer.width != WIDE:
            return layer
        if layer.by_head:
            left, right = layer.proj_left[:, :NARROW_HEAD], layer.proj_right[..., :NARROW_HEAD]
            return LayerEraser(left, right)
        return LayerEraser(layer.proj_left[INNER], layer.proj_right[:, INNER])

    def text_model(self) -> TextModel:
        def weight_of(layer: str, role: Role) -> Tensor:
            own = self.layers[layer]
            return (own.keys if role == "keys" else own.values).weight

        return TextModel(tuple(self.layers), weight_of, self.identity)


class NarrowWan(Narrow):
    """The Wan layout."""

    shape, heads, identity = (16, 8, 8), WAN_HEADS, ModelIdentity("narrow", family="wan")
    sampling = staticmethod(functools.partial(real.sample_wan, scheduler=TRAJECTORY.scheduler))
    recording = staticmethod(real.recording)

    def __init__(self) -> None:
        model = real.load_wan()
        found = model.cross_attention().items()
        super().__init__(model, {name: Layer(at.k, at.v, at.o) for name, at in found})
        self.pictures = functools.partial(real.wan_pictures, model)

    def edits(self, eraser: Eraser) -> Iterator[tuple[nn.Linear, LayerEraser]]:
        if eraser.space == "text":
            yield self.model.transformer.text_embedding[0], eraser.layers[ENTRY]
        else:
            yield from super().edits(eraser)

    def text_model(self) -> TextModel:
        entry = self.model.transformer.text_embedding[0]
        return TextModel((ENTRY,), lambda *_: entry.weight, self.identity, at_entry=True)


class NarrowJointModel(Narrow):
    """A layout whose text and picture share one attention.

    Values are edited where attention takes them, which is the same as editing rows and bias of what
    makes them.
    """

    shape = (16, 8, 8)
    sampling = staticmethod(functools.partial(real.sample_flow, scheduler=TRAJECTORY.scheduler))

    def __init__(
        self,
        model: real.NarrowJoint,
        family: str,
        heads: int,
        entry: str,
        shared: str = "",
    ) -> None:
        """`shared` begins the names of blocks whose text and picture share weights."""
        self.attentions = model.joint_attention()
        super().__init__(model, self.attentions)
        self.heads, self.identity = heads, ModelIdentity("narrow", family=family)
        self.entry, self.shared = entry, shared
        self.at_shared: AtShared = USUALLY
        self.part: real.Part = "text"
        self.pictures = functools.partial(real.flow_pictures, model)

    def recording(  # type: ignore[override]
        self, model: real.NarrowJoint, cells: int
    ) -> AbstractContextManager[narrow.Recorded]:
        return real.recording_joint(model, cells, self.part)

    def hearing(self, part: real.Part) -> NarrowJointModel:
        """The same, which captures another part of h."""
        other = copy.copy(self)
        other.part = part
        other.captured = functools.lru_cache(maxsize=8)(other._capture)
        return other

    def shares(self, name: str) -> bool:
        """Whether text and picture share their weights in this block."""
        return bool(self.shared) and name.startswith(self.shared)

    @contextmanager
    def erased(self, eraser: Eraser | None) -> Iterator[Sampler]:
        if eraser is None or eraser.space == "text":
            with super().erased(eraser) as sampler:
                yield sampler
            return
        with ExitStack() as hooks:
            for name, layer in eraser.layers.items():
                shared = self.shares(name)
                if layer.rank and not (shared and self.at_shared == "left alone"):
                    both = shared and self.at_shared == "in the weights"
                    edit = functools.partial(self._edit, layer, eraser, both)
                    hook = self.attentions[name].register_forward_pre_hook(edit)
                    hooks.callback(hook.remove)
            yield self.pictures

    def _edit(
        self, layer: LayerEraser, eraser: Eraser, both: bool, _module: Any, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Multiply values by E, and keys where they are edited."""
        q, k, v, text = inputs
        read = {"keys": k, "values": v}
        for role in eraser.roles:
            rows = rearrange(read[role], "b h t d -> b t (h d)").clone()
            tokens = slice(None) if both else slice(text)
            edited = layer.scaled(eraser.strength)(rows[:, tokens])
            rows[:, tokens] = edited
            read[role] = rearrange(rows, "b t (h d) -> b h t d", h=self.heads)
        return q, read["keys"], read["values"], text

    def edits(self, eraser: Eraser) -> Iterator[tuple[nn.Linear, LayerEraser]]:
        yield self.model.transformer.get_submodule(self.entry), eraser.layers[self.entry]

    def text_model(self) -> TextModel:
        entry = self.model.transformer.get_submodule(self.entry)
        return TextModel((self.entry,), lambda *_: entry.weight, self.identity, at_entry=True)


def narrow_sd3() -> NarrowJointModel:
    """The SD3 layout."""
    return NarrowJointModel(real.load_sd3(), "sd3", SD3_HEADS, "context_embedder")


def narrow_hunyuan() -> NarrowJointModel:
    """The HunyuanVideo layout."""
    entry, shared = "txt_in.input_embedder", "single_blocks."
    return NarrowJointModel(real.load_hunyuan(), "hunyuan_video", HUNYUAN_HEADS, entry, shared)
