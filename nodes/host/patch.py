"""Putting an eraser into a model as a weight patch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...pure_core.eraser import PROJECTIONS, Eraser, LayerEraser
from .layers import (
    Layer,
    ModelError,
    cross_attention_layers,
    family,
    require_plain_weights,
    widths,
)

AS_FITTED = "as fitted"

EDITS = (AS_FITTED, *PROJECTIONS)
"""What `PURE_Patch` may be asked to edit."""


class EraserAdapter(WeightAdapterBase):
    """W <- W - strength L (R W), on top of every patch that comes before it.

    ComfyUI hands `calculate_weight` the weight with all earlier patches applied, so with a LoRA
    upstream the result is E (W + dW), in every way of loading the model. 0.30 rebuilds adapters
    from `loaded_keys` and `weights` after moving the weights: nothing else may be kept.
    """

    name = "pure_eraser"

    def __init__(self, loaded_keys: set[str], weights: list[Tensor]) -> None:
        """`weights` are L (d, r) and R (r, d)."""
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(  # noqa: PLR0917 (ComfyUI's signature)
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Edit `weight` (d, in) in place: it may be a view into a larger one."""
        return weight.copy_(LayerEraser(*self.weights).edit_weight(weight, strength))


def patch(model: ModelPatcher, eraser: Eraser, strength: float, edit: str) -> ModelPatcher:
    """A clone of the model with the concept erased. The model itself stays as it is.

    Args:
        strength: 1 erases as fitted, 0 changes nothing at all, below 0 amplifies.
        edit: One of `EDITS`.

    Raises:
        ModelError: an eraser of another architecture, or quantised weights.
    """
    layers = cross_attention_layers(model)
    require_same_architecture(model, layers, eraser)
    require_plain_weights(layers)
    patched = model.clone()
    if strength == 0:
        return patched
    projections = PROJECTIONS[eraser.provenance.edit if edit == AS_FITTED else edit]
    adapters = {}
    for layer in layers:
        factors = eraser.layers[layer.name].to("cpu", torch.float32)
        if factors.rank == 0:
            continue  # the identity
        for projection in projections:
            key = layer.key(projection)
            adapters[key] = EraserAdapter({key}, [factors.proj_left, factors.proj_right])
    _log_order(patched, adapters)
    refused = adapters.keys() - set(patched.add_patches(adapters, strength))
    if refused:
        raise ModelError(
            f"model: {len(refused)} of {len(adapters)} cross-attention weights cannot be patched, "
            f"for example {min(refused)}. Connect the model as its loader gives it."
        )
    return patched


def require_same_architecture(model: ModelPatcher, layers: list[Layer], eraser: Eraser) -> None:
    """Raise ModelError if the eraser has other layers than the model; warn of another family."""
    here, fitted = widths(layers), eraser.widths
    if here != fitted:
        raise ModelError(
            f"eraser: it was fitted on another architecture, {_describe(fitted)} of "
            f"{eraser.provenance.source_name}; the model is {family(model)} with "
            f"{_describe(here)}. Use an eraser made for this architecture, or fit one."
        )
    if family(model) not in eraser.provenance.source_name:
        logging.warning(
            "PURE: the eraser was fitted on %s and is applied to a model of family %s. Erasers "
            "carry over to fine-tunes; between families that only look alike they do not.",
            eraser.provenance.source_name,
            family(model),
        )


def _describe(layers: dict[str, int]) -> str:
    return f"{len(layers)} layers of widths {', '.join(map(str, sorted(set(layers.values()))))}"


def _log_order(model: ModelPatcher, adapters: dict[str, EraserAdapter]) -> None:
    """What was patched before is erased as well; what comes after is not."""
    before = sum(key in model.patches for key in adapters)
    logging.info(
        "PURE: erasing in %d weights, %d of them with earlier patches (LoRA or others), which "
        "are erased too. Patches added after this node are not: put it last.",
        len(adapters),
        before,
    )
