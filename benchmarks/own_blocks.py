"""Erasing in the text's own blocks, before it meets the picture.

Where a joint model's layers share weights between text and picture, its text could be edited before
that: behind the map by which it enters, or where it reads itself. There a row is one token of a
prompt at one time, not what the picture reads. Ridge is fitted on these rows. Targets are in the
same space: for a token of a forget prompt the mean of the retain prompts' tokens at the same place,
counted from the end token, at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import LayerEraser
from comfyui_pure.pure_core.methods.least_squares import DAMPING, KEEP, least_squares_factors
from comfyui_pure.pure_core.methods.ridge import OVERSHOOT
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.narrow import NarrowJointModel
from testbed.comfy.erasable import TRAJECTORY, anchors_of
from testbed.pictures.narrow import flow_sigmas
from testbed.world.measure import Sampler, Trial


class Place(NamedTuple):
    """Where E acts: on what a module gives, or on what it takes."""

    module: str
    on_input: bool = False


TEXT, ENTRY = "before the text's entry", "the text's entry"
REFINER, STREAM = "the refiner's values", "behind the refiner"
PLACES: dict[str, dict[str, tuple[Place, ...]]] = {
    "sd3": {
        ENTRY: (Place("context_embedder"),),
        TEXT: (Place("context_embedder", on_input=True),),
    },
    "hunyuan_video": {
        ENTRY: (Place("txt_in.input_embedder"),),
        TEXT: (Place("txt_in.input_embedder", on_input=True),),
        # what a projection takes is what attention mixed of the values, so E on it is E on them
        REFINER: tuple(Place(f"txt_in.blocks.{i}.proj", on_input=True) for i in range(2)),
        STREAM: (Place("txt_in"),),
    },
}
"""Family -> name -> where. E folds into weights everywhere but behind the refiner."""

TEXT_READERS = {"sd3": "context_embedder", "hunyuan_video": "txt_in"}


@contextmanager
def acting(model: NarrowJointModel, layers: dict[Place, LayerEraser]) -> Iterator[Sampler]:
    """Draws with E at each place, for as long as the block runs."""
    with ExitStack() as hooks:
        for place, layer in layers.items():
            hooks.callback(at(model, place, layer.scaled(1.0)).remove)
        yield model.pictures


def at(
    model: NarrowJointModel, place: Place, act: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Let `act` see what passes at a place, or put something else there."""
    module: nn.Module = model.model.transformer.get_submodule(place.module)
    if place.on_input:
        return module.register_forward_pre_hook(lambda _, given: act(given[0]))
    return module.register_forward_hook(lambda _, given, out: act(out))


def fitted(model: NarrowJointModel, trial: Trial, where: str) -> dict[Place, LayerEraser]:
    """Ridge at its default settings, on the tokens of the concept's prompts."""
    places = PLACES[str(model.identity.family)][where]
    forget, retain = (tokens(model, each, places) for each in anchors_of(trial))
    layers = {}
    for place in places:
        rows, targets = [], []
        kept = retain[place]
        for prompt in forget[place]:
            for back in range(1, prompt.shape[1] + 1):
                same = [each[:, -back] for each in kept if each.shape[1] >= back]
                rows.append(prompt[:, -back])
                targets.append(torch.stack(same).mean(0) if same else prompt[:, -back])
        left, right = least_squares_factors(
            torch.cat(rows),
            torch.cat(targets),
            torch.cat([each.flatten(0, 1) for each in kept]),
            float(KEEP.default),
            float(DAMPING.default),
            1,
        )
        layers[place] = LayerEraser((float(OVERSHOOT.default) * left).float(), right.float())
    return layers


@torch.no_grad()
def tokens(
    model: NarrowJointModel, anchors: AnchorSet, places: tuple[Place, ...]
) -> dict[Place, list[Tensor]]:
    """For each place, of every prompt (times, tokens, d): its words and its end, float64."""
    found: dict[Place, list[Tensor]] = {place: [] for place in places}

    def keep(place: Place, out: Tensor) -> None:
        found[place].append(out.double())

    vectors = model.vectors(anchors)
    times = 1000 * flow_sigmas(TRAJECTORY.steps)[: TRAJECTORY.run_steps]
    reader = model.model.transformer.get_submodule(TEXT_READERS[str(model.identity.family)])
    with ExitStack() as hooks:
        for place in places:
            hooks.callback(at(model, place, partial(keep, place)).remove)
        for prompt in vectors.vectors:
            context = prompt.float().expand(len(times), -1, -1)
            reader(context, times) if reader is not entry(model) else reader(context)
    return {
        place: [
            rows[:, vectors.start : end + 1] for rows, end in zip(each, vectors.ends, strict=True)
        ]
        for place, each in found.items()
    }


def entry(model: NarrowJointModel) -> nn.Module:
    """The map by which text enters."""
    return model.model.transformer.get_submodule(model.entry)
