"""Erasing while the model samples, where text and picture share weights.

There no edit of weights can change the text's values alone. So before every call of the model hooks
are put on the projections of its shared sites, which multiply the text's values by E, and after the
call they are taken away again. The model itself is never changed, and other clones of it see no
hook. It is one of ComfyUI's own wrappers around the model, beside those of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...pure_core.eraser import LayerEraser
from ...pure_core.families import Rows, Stream
from ...pure_core.families.joint import TextPlace
from .sites import ModelError, Sites

KEY = "pure_eraser"
"""Of the wrappers, as ComfyUI keeps them."""

Named = tuple[str, Tensor, Tensor]
"""A layer's name, its L and its R."""


class ErasingWhileSampling:
    """ComfyUI's wrapper of `apply_model`."""

    def __init__(
        self,
        factors: tuple[Named, ...],
        values: tuple[Rows, ...],
        stream: Stream,
    ) -> None:
        """The layers at the strength that is wanted, and which rows the values of each are.

        Models are told apart by what their wrappers were made with: see `identity.py`.
        """
        self.factors, self.values, self.stream = factors, values, stream
        self._on: dict[torch.device, list[LayerEraser]] = {}

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        net = executor.class_obj.diffusion_model
        place, edited = TextPlace(), Counter[int]()
        with ExitStack() as hooks:
            if hasattr(torch.compiler, "set_stance"):  # compiled code calls no hooks
                hooks.enter_context(torch.compiler.set_stance("force_eager"))
            hooks.callback(place.watch(net, self.stream))
            for number, rows in enumerate(self.values):
                projection = net.get_submodule(rows.module)
                edit = partial(self._edit, place, edited, number)
                hooks.callback(projection.register_forward_hook(edit).remove)
            out: Tensor = executor(*args, **kwargs)
        if place.passed and not edited:
            raise ModelError(
                "While sampling, the text was not found in the layers in which text and picture "
                "share weights, so nothing was erased there. Another patch changes the text or "
                "skips the first of these layers. Set `shared` of PURE Patch to 'in the weights', "
                "or take that patch away."
            )
        return out

    def _edit(
        self,
        place: TextPlace,
        edited: Counter[int],
        number: int,
        _module: nn.Module,
        _inputs: Any,
        out: Tensor,
    ) -> None:
        """Multiply the text's values among what a projection puts out by E, in place."""
        text = place.among(out.shape[1])
        if text is None:
            return
        edited[number] += 1
        rows = self.values[number]
        values = out[:, text, rows.start : rows.start + rows.count]
        values.copy_(self._layers(values.device)[number](values.float()))

    def _layers(self, device: torch.device) -> list[LayerEraser]:
        if device not in self._on:
            self._on[device] = [
                LayerEraser(left.to(device), right.to(device)) for _, left, right in self.factors
            ]
        return self._on[device]


def erase_while_sampling(
    model: ModelPatcher, sites: Sites, layers: Mapping[str, LayerEraser]
) -> None:
    """Add it to a clone of a model. Where several are added, they act one after the other.

    Args:
        layers: At the strength that is wanted, float32 on the CPU.
    """
    stream = sites.family.stream
    assert stream is not None  # there are shared sites
    erasing = ErasingWhileSampling(
        tuple((name, layer.proj_left, layer.proj_right) for name, layer in layers.items()),
        tuple(sites[name].values for name in layers),
        stream,
    )
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, erasing)
