"""Putting an eraser into a model as a weight patch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.float
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...pure_core.eraser import AT_SHARED, EDITS, AtShared, Edit, Eraser, LayerEraser, Space
from ...pure_core.errors import require_one_of
from .sites import (
    PREFIX,
    ModelError,
    PatchKey,
    Sites,
    architecture,
    effective_tensor,
    patch_keys,
    tensor_of,
)
from .while_sampling import erase_while_sampling

AS_FITTED = "as fitted"

CHOICES = (AS_FITTED, *EDITS)
"""What `PURE_Patch` and the saving nodes may be asked to edit."""

USUAL = "usual"

SHARED_CHOICES = (USUAL, *AT_SHARED)
"""What they may be asked to do where text and picture share their projections."""

ROUNDING_SAMPLES = 8
"""Weights on which rounding is measured."""

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
    space: Space = "activations"

    def __init__(self, loaded_keys: set[str], weights: list[Tensor]) -> None:
        """`weights` are L (d, r) and R (r, d)."""
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
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
        """Edit `weight` (d, in), or a bias (d,), in place: it may be a view into a larger one."""
        return weight.copy_(self.factors.edit_weight(weight, strength))

    @property
    def factors(self) -> LayerEraser:
        """What it multiplies with."""
        left, right = self.weights
        return LayerEraser(left, right, space=self.space)


class TextEraserAdapter(EraserAdapter):
    """W <- W - strength (W L) R: the same in text space."""

    space = "text"


@dataclass(frozen=True)
class Patched:
    """A model with an eraser in it."""

    model: ModelPatcher
    """A clone; the model that came in stays as it is."""

    summary: str
    """What was patched, on top of what, and what rounding loses."""


def chosen_edit(edit: str) -> Edit | None:
    """What the widget `edit` says: None for what the eraser says itself.

    Raises:
        PureError: a choice that there is not.
    """
    require_one_of("edit", edit, CHOICES)
    return next((each for each in EDITS if each == edit), None)


def chosen_at_shared(shared: str) -> AtShared | None:
    """What the widget `shared` says: None for the usual.

    Raises:
        PureError: a choice that there is not.
    """
    require_one_of("shared", shared, SHARED_CHOICES)
    return next((each for each in AT_SHARED if each == shared), None)


def patch(model: ModelPatcher, eraser: Eraser) -> Patched:
    """A clone of the model with the concept erased, at the eraser's strength.

    Raises:
        ModelError: an eraser of another architecture, or quantised weights.
    """
    sites = Sites.of(model)
    require_same_architecture(model, sites, eraser)
    sites.require_plain_weights()
    adapters, shared = _adapters(sites, eraser), _at_shared(sites, eraser)
    patched = model.clone()
    if eraser.strength == 0 or not (adapters or shared.layers):
        return Patched(patched, _nothing(eraser, shared))
    if shared.layers:
        erase_while_sampling(patched, sites, shared.layers)
    refused = adapters.keys() - set(patched.add_patches(adapters, eraser.strength))
    if refused:
        raise ModelError(
            f"model: {len(refused)} of {len(adapters)} cross-attention weights cannot be patched, "
            f"for example {min(map(tensor_of, refused))}. Connect the model as its loader gives it."
        )
    before = sum(tensor_of(key) in model.patches for key in adapters)
    _log(model, eraser, len(adapters), before)
    return Patched(patched, _summary(model, eraser, adapters, before, shared))


@dataclass(frozen=True)
class _Shared:
    """What becomes of the sites whose projections text and picture share."""

    layers: dict[str, LayerEraser]
    """Those that are erased while sampling, at the eraser's strength."""

    summary: str

    left: int = 0
    """How many that the eraser would change are left alone."""


def _at_shared(sites: Sites, eraser: Eraser) -> _Shared:
    every = {name: layer for name, layer in eraser.layers.items() if sites.family.shares(name)}
    if not every:
        return _Shared({}, "")
    how = eraser.shared
    start = f"In {len(every)} of {len(eraser.layers)} layers text and picture share their weights: "
    if how == "left alone":
        left = sum(layer.rank > 0 for layer in every.values())
        return _Shared({}, f"{start}they are left alone.", left)
    if how == "in the weights":
        return _Shared({}, f"{start}the weights are edited, for both.")
    if eraser.roles != ("values",):
        raise ModelError(
            f"edit: expected 'values', got '{eraser.edited}'. While sampling the text's values are "
            "erased, not its keys; for both choose to edit shared layers in the weights."
        )
    layers = {
        name: layer.to("cpu", torch.float32).scaled(eraser.strength)
        for name, layer in every.items()
        if layer.rank
    }
    return _Shared(layers, f"{start}the text's values are erased while sampling.")


def _nothing(eraser: Eraser, shared: _Shared) -> str:
    if eraser.strength == 0:
        return "Nothing is changed: the strength is 0."
    if shared.left:
        return f"Nothing is changed. {shared.summary}"
    return "Nothing is changed: the eraser has no direction in the chosen layers (rank 0)."


def _summary(
    model: ModelPatcher,
    eraser: Eraser,
    adapters: dict[PatchKey, EraserAdapter],
    before: int,
    shared: _Shared,
) -> str:
    layers = [layer for layer in eraser.layers.values() if layer.rank]
    ranks = [layer.rank for layer in layers]
    patched = len(layers) - (len(shared.layers) if shared.layers else shared.left)
    span = f"ranks {min(ranks)} to {max(ranks)}"
    if adapters:
        changed = (
            f"Patched {len(adapters)} weights in {patched} of {len(eraser.layers)} layers at "
            f"strength {eraser.strength:g}, {span}. {before} of these weights were patched before "
            "(LoRA, merge or eraser), which is erased too. What patches them later is not erased: "
            "put this last."
        )
    else:
        changed = f"Erases at strength {eraser.strength:g}, {span}; no weight is changed."
    lines = [
        changed,
        BYPASS if model.injections else "",
        shared.summary,
        rounding(model, adapters, eraser.strength) if adapters else "",
    ]
    return " ".join(line for line in lines if line)


def _adapters(sites: Sites, eraser: Eraser) -> dict[PatchKey, EraserAdapter]:
    """Weight key -> its adapter. Layers of rank 0 are the identity and have none."""
    on_text = eraser.space == "text"
    adapter = TextEraserAdapter if on_text else EraserAdapter
    adapters: dict[PatchKey, EraserAdapter] = {}
    for name, factors in eraser.to("cpu", torch.float32).layers.items():
        if sites.family.shares(name) and eraser.shared != "in the weights":
            continue
        for rows in sites.rows(name, eraser.roles) if factors.rank else ():
            for key in patch_keys(rows, on_text):
                weights = [factors.proj_left, factors.proj_right]
                adapters[key] = adapter({tensor_of(key)}, weights)
    return adapters


def rounding(model: ModelPatcher, adapters: dict[PatchKey, EraserAdapter], strength: float) -> str:
    """How much of the change is lost when the model's weights are stored in few bits.

    Measured on a few weights, with the rounding that ComfyUI stores them with.
    """
    state = model.get_key_patches(PREFIX)
    keys = sorted(adapters, key=str)
    keys = keys[:: max(1, len(keys) // ROUNDING_SAMPLES)][:ROUNDING_SAMPLES]
    dtypes = {state[tensor_of(key)][0][0].dtype for key in keys}
    if dtypes == {torch.float32}:
        return ""
    lost, changed = 0.0, 0.0
    for key in keys:
        name = tensor_of(key)
        weight = effective_tensor(model, name)
        if not isinstance(key, str):
            weight = weight.narrow(*key[1])
        edited = adapters[key].factors.edit_weight(weight, strength)
        stored = comfy.float.stochastic_rounding(edited, state[name][0][0].dtype, seed=0)
        lost += float((stored.float() - edited).square().sum())
        changed += float((edited - weight).square().sum())
    names = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
    share = (lost / max(changed, 1e-30)) ** 0.5
    return f"The weights are {names}: rounding moves them by {share:.2%} of what erasing changes."


def require_same_architecture(model: ModelPatcher, sites: Sites, eraser: Eraser) -> None:
    """Raise ModelError if the eraser has other layers, or other heads, than the model."""
    on_text = eraser.space == "text"
    here, fitted = sites.widths(on_text), eraser.widths
    if here == fitted and eraser.provenance.model.family == sites.family.name:
        if on_text and sites.entry is not None:
            _require_both(eraser)
        _require_same_heads(sites, eraser)
    else:
        raise ModelError(
            f"eraser: it was fitted on another architecture, {_described(fitted)} of "
            f"{eraser.provenance.model.name}; the model is {architecture(model)} with "
            f"{_described(here)}. Use an eraser made for this architecture, or fit one."
        )


def _require_both(eraser: Eraser) -> None:
    if eraser.edited != "keys and values":
        raise ModelError(
            f"edit: expected '{AS_FITTED}' or 'keys and values', got '{eraser.edited}'. This "
            "eraser changes the text where it enters the model, so keys and values change together."
        )


def _require_same_heads(sites: Sites, eraser: Eraser) -> None:
    here = sites.heads()
    for name, heads in eraser.heads.items():
        if heads != here[name]:
            raise ModelError(
                f"eraser: it was made for {heads} heads in layer {name}, the model has "
                f"{here[name]}. Use an eraser made for this architecture, or fit one."
            )


def _log(model: ModelPatcher, eraser: Eraser, weights: int, before: int) -> None:
    logging.info(
        "PURE: erasing in %d weights, %d of them with earlier patches (LoRA or others), which "
        "are erased too. Patches added after this node are not: put it last.",
        weights,
        before,
    )
    if architecture(model) not in eraser.provenance.model.name:
        logging.warning(
            "PURE: the eraser was fitted on %s and is applied to a model of type %s. Erasers "
            "carry over to fine-tunes; between types that only look similar they do not.",
            eraser.provenance.model.name,
            architecture(model),
        )


def _described(layers: dict[str, int]) -> str:
    return f"{len(layers)} layers of widths {', '.join(map(str, sorted(set(layers.values()))))}"
