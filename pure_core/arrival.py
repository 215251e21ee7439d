"""How much of an eraser's change arrives in a model.

An E that mixes heads does not arrive as it was fitted: a value that E carries to another head is
weighted by that head's attention. This is measured while the model samples. Every row of a batch is
there twice, and in the second copy the values of one layer after the other are edited. What such a
layer puts out, h', is compared with E h of the first copy, and then replaced by h, so that no layer
sees what was edited before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .eraser import LayerEraser


class Values(NamedTuple):
    """Where a layer's values are made and its h is read."""

    projection: nn.Module
    """Puts out values (batch, tokens, ..), among other things maybe."""

    start: int
    """Of the values among what it puts out."""

    out: nn.Module
    """Takes h (batch, positions, d)."""

    axis: int = 0
    """Of the batch, in both."""


class ArrivalMeter:
    """Listens to a model until `close`; the first `rows` rows of every batch come a second time."""

    def __init__(
        self, layers: Mapping[str, LayerEraser], places: Mapping[str, Values], rows: int
    ) -> None:
        self.rows = rows
        self._missed = dict.fromkeys(layers, 0.0)
        self._changed = dict.fromkeys(layers, 0.0)
        self._hooks = ExitStack()
        for name, layer in layers.items():
            place = places[name]
            edit, compare = self._edit(layer, place), self._compare(name, layer, place.axis)
            self._hooks.callback(place.projection.register_forward_hook(edit).remove)
            self._hooks.callback(place.out.register_forward_pre_hook(compare).remove)

    def _edit(self, layer: LayerEraser, place: Values) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
            edited = out.clone(memory_format=torch.contiguous_format)
            whole = edited
            if edited.shape[place.axis] == 1:  # some models put all tokens in one row
                whole = edited.view(2 * self.rows, -1, edited.shape[-1])
            copies = whole.narrow(place.axis, self.rows, self.rows)
            copies = copies.narrow(-1, place.start, layer.width)
            copies.copy_(layer.to(out.device, out.dtype)(copies))
            return edited

        return hook

    def _compare(self, name: str, layer: LayerEraser, axis: int) -> Callable[..., tuple[Any, ...]]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            h = inputs[0]
            first, second = h.narrow(axis, 0, self.rows), h.narrow(axis, self.rows, self.rows)
            wanted = layer.to(h.device)(first.float())
            self._missed[name] += float((second.float() - wanted).square().sum())
            self._changed[name] += float((wanted - first.float()).square().sum())
            restored = h.clone()
            restored.narrow(axis, self.rows, self.rows).copy_(first)
            return (restored, *inputs[1:])

        return hook

    def close(self) -> None:
        """Stop listening."""
        self._hooks.close()

    def shares(self) -> dict[str, float]:
        """Layer -> 1 - |h' - E h| / |E h - h|, over all positions: 1 if all of the change arrives.

        Below 0 where more goes wrong than right. Layers that E does not change are left out.
        """
        return {
            name: 1 - (self._missed[name] / changed) ** 0.5
            for name, changed in self._changed.items()
            if changed > 0
        }
