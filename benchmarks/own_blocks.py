"""Erasing in the text's own blocks, before it meets the picture.

Where a joint model's layers share weights between text and picture, its text could be edited before
that: behind the map by which it enters, or where it reads itself. There a row is one token of a
prompt at one time, not what the picture reads. This is token ridge on these rows, with targets at
the same place and time; in front of that map it is the method of the product itself.
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
from comfyui_pure.pure_core.methods.token_ridge import tokens_at_their_places
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


ENTRY = "behind the text's entry"
REFINER, STREAM = "the refiner's values", "behind the refiner"
PLACES: dict[str, dict[str, tuple[Place, ...]]] = {
    "sd3": {ENTRY: (Place("context_embedder"),)},
    "hunyuan_video": {
        ENTRY: (Place("txt_in.input_embedder"),),
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
    """Token ridge at its default settings, on what the concept's prompts are there."""
    places = PLACES[str(model.identity.family)][where]
    forget, retain = (tokens(model, each, places) for each in anchors_of(trial))
    layers = {}
    for place in places:
        times = list(zip(forget[place], retain[place], strict=True))
        left, right = least_squares_factors(
            torch.cat([rows for moved, _ in times for rows in moved]),
            torch.cat([tokens_at_their_places(*each) for each in times]),
            torch.cat([rows for _, kept in times for rows in kept]),
            float(KEEP.default),
            float(DAMPING.default),
            1,
        )
        layers[place] = LayerEraser((float(OVERSHOOT.default) * left).float(), right.float())
    return layers


@torch.no_grad()
def tokens(
    model: NarrowJointModel, anchors: AnchorSet, places: tuple[Place, ...]
) -> dict[Place, list[list[Tensor]]]:
    """For each place, at every time, of every prompt (k, d): its words and its end, float64."""
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
    read = [slice(vectors.start, end + 1) for end in vectors.ends]
    return {
        place: [
            [rows[now, words] for rows, words in zip(each, read, strict=True)]
            for now in range(len(times))
        ]
        for place, each in found.items()
    }


def entry(model: NarrowJointModel) -> nn.Module:
    """The map by which text enters."""
    return model.model.transformer.get_submodule(model.entry)
