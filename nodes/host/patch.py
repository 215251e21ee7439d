"""Putting an eraser into a model as a weight patch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.float
import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...pure_core.eraser import PROJECTIONS, Eraser, LayerEraser, Side
from ...pure_core.errors import require_one_of
from .layers import (
    PREFIX,
    Layer,
    ModelError,
    cross_attention_layers,
    family,
    require_plain_weights,
    widths,
)

AS_FITTED = "as fitted"

MEASURED = 8
"""Weights on which rounding is measured."""

EDITS = (AS_FITTED, *PROJECTIONS)
"""What `PURE_Patch` may be asked to edit."""


BYPASS = (
    "The model carries changes of what its layers put out (LoraLoaderBypass), which are not "
    "erased: use Load LoRA instead."
)
"""Said of models with injections, as ComfyUI calls them."""


class EraserAdapter(WeightAdapterBase):
    """W <- W - strength L (R W), on top of every patch that comes before it.

    ComfyUI hands `calculate_weight` the weight with all earlier patches applied, so with a LoRA
    upstream the result is E (W + dW), in every way of loading the model. 0.30 rebuilds adapters
    from `loaded_keys` and `weights` after moving the weights: nothing else may be kept.
    """

    name = "pure_eraser"
    side: Side = "activations"

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
        return weight.copy_(self.factors.edit_weight(weight, strength))

    @property
    def factors(self) -> LayerEraser:
        """What it multiplies with."""
        return LayerEraser(*self.weights, side=self.side)


class TextEraserAdapter(EraserAdapter):
    """W <- W - strength (W L) R: the same on the side of the text."""

    side = "text"


def patch(model: ModelPatcher, eraser: Eraser, strength: float, edit: str) -> ModelPatcher:
    """A clone of the model with the concept erased. The model itself stays as it is.

    Args:
        strength: 1 erases as fitted, 0 changes nothing at all, below 0 amplifies.
        edit: One of `EDITS`.

    Raises:
        ModelError: an eraser of another architecture, or quantised weights.
    """
    adapters = _adapters(model, eraser, edit)
    patched = model.clone()
    if strength == 0:
        return patched
    refused = adapters.keys() - set(patched.add_patches(adapters, strength))
    if refused:
        raise ModelError(
            f"model: {len(refused)} of {len(adapters)} cross-attention weights cannot be patched, "
            f"for example {min(refused)}. Connect the model as its loader gives it."
        )
    _log(model, eraser, adapters)
    return patched


def describe(model: ModelPatcher, eraser: Eraser, strength: float, edit: str) -> str:
    """What `patch` does to this model, in words: how much, on top of what, and what is lost.

    Raises:
        As `patch` does.
    """
    adapters = _adapters(model, eraser, edit)
    if strength == 0 or not adapters:
        return "Nothing is changed: the strength is 0 or no layer is chosen."
    layers = {key.rpartition(".to_")[0] for key in adapters}
    ranks = [each.weights[0].shape[1] for each in adapters.values()]
    before = _patched_before(model, adapters)
    lines = [
        f"Patched {len(adapters)} weights in {len(layers)} of {len(eraser.layers)} layers at "
        f"strength {strength:g}, ranks {min(ranks)} to {max(ranks)}.",
        f"{before} of these weights were patched before (LoRA, merge or eraser), which is erased "
        "too. What patches them later is not erased: put this last.",
        BYPASS if model.injections else "",
        rounding(model, adapters, strength),
    ]
    return " ".join(line for line in lines if line)


def _adapters(model: ModelPatcher, eraser: Eraser, edit: str) -> dict[str, EraserAdapter]:
    """Weight key -> its adapter. Layers of rank 0 are the identity and have none."""
    layers = cross_attention_layers(model)
    require_same_architecture(model, layers, eraser)
    require_plain_weights(layers)
    require_one_of("edit", edit, EDITS)
    projections = PROJECTIONS[eraser.provenance.edit if edit == AS_FITTED else edit]
    adapter = TextEraserAdapter if eraser.side == "text" else EraserAdapter
    adapters = {}
    on_cpu = eraser.to("cpu", torch.float32)
    for layer in layers:
        factors = on_cpu.layers[layer.name]
        for projection in projections if factors.rank else ():
            key = layer.key(projection)
            adapters[key] = adapter({key}, [factors.proj_left, factors.proj_right])
    return adapters


def rounding(model: ModelPatcher, adapters: dict[str, EraserAdapter], strength: float) -> str:
    """How much of the change is lost when the model's weights are stored in few bits.

    Measured on a few weights, with the rounding that ComfyUI stores them with.
    """
    state = model.get_key_patches(PREFIX)
    keys = sorted(adapters)[:: max(1, len(adapters) // MEASURED)][:MEASURED]
    dtypes = {state[key][0][0].dtype for key in keys}
    if dtypes == {torch.float32}:
        return ""
    lost, changed = 0.0, 0.0
    for key in keys:
        weight = effective_weight(model, key)
        edited = adapters[key].factors.edit_weight(weight, strength)
        stored = comfy.float.stochastic_rounding(edited, state[key][0][0].dtype, seed=0)
        lost += float((stored.float() - edited).square().sum())
        changed += float((edited - weight).square().sum())
    names = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
    share = (lost / max(changed, 1e-30)) ** 0.5
    return f"The weights are {names}: rounding moves them by {share:.2%} of what erasing changes."


@torch.no_grad()
def effective_weight(model: ModelPatcher, key: str) -> Tensor:
    """A weight (d, in) with every patch upstream applied, float32, by ComfyUI's arithmetic."""
    (weight, convert), *patches = model.get_key_patches(key)[key]
    copied = weight.to("cpu", torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, convert(copied, inplace=True), key)


def require_same_architecture(model: ModelPatcher, layers: list[Layer], eraser: Eraser) -> None:
    """Raise ModelError if the eraser has other layers than the model."""
    here, fitted = widths(layers, eraser.side), eraser.widths
    if here != fitted:
        raise ModelError(
            f"eraser: it was fitted on another architecture, {_describe(fitted)} of "
            f"{eraser.provenance.source_name}; the model is {family(model)} with "
            f"{_describe(here)}. Use an eraser made for this architecture, or fit one."
        )


def _patched_before(model: ModelPatcher, adapters: dict[str, EraserAdapter]) -> int:
    """How many of the weights have patches already, which are erased as well."""
    return sum(key in model.patches for key in adapters)


def _log(model: ModelPatcher, eraser: Eraser, adapters: dict[str, EraserAdapter]) -> None:
    logging.info(
        "PURE: erasing in %d weights, %d of them with earlier patches (LoRA or others), which "
        "are erased too. Patches added after this node are not: put it last.",
        len(adapters),
        _patched_before(model, adapters),
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
