"""Which cross-attention layers a model has, and which model it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.model_patcher import ModelPatcher

from ...pure_core.eraser import Side
from ...pure_core.errors import PureError

PREFIX = "diffusion_model."


class ModelError(PureError):
    """The model cannot be used for what was asked."""


class Layer(NamedTuple):
    """One cross-attention layer of the model in hand."""

    name: str
    """Module path without 'diffusion_model.'."""

    module: CrossAttention

    @property
    def width(self) -> int:
        """d: heads x head dimension, the rows of W_K and W_V."""
        return self.module.heads * self.module.dim_head

    def key(self, projection: str) -> str:
        """Name of a weight in the model's state, for projection 'to_k' or 'to_v'."""
        return f"{PREFIX}{self.name}.{projection}.weight"


def cross_attention_layers(model: ModelPatcher) -> list[Layer]:
    """The layers in which text is read, in the order of the model's modules.

    Raises:
        ModelError: the model has none, for example because it joins text and image tokens.
    """
    unet = model.model.diffusion_model
    layers = [
        Layer(name, module)
        for name, module in unet.named_modules()
        if isinstance(module, CrossAttention) and _reads_text(name, module)
    ]
    if not layers:
        raise ModelError(
            f"model: {family(model)} has no separate cross-attention layers, which is where a "
            "concept is erased. Expected a U-Net model such as Stable Diffusion 1.x, 2.x or "
            "SDXL; models such as Flux or SD3 mix text and image in one attention."
        )
    return layers


def _reads_text(name: str, module: CrossAttention) -> bool:
    """Cross-attention is named attn2 in a block, or takes a context of another width."""
    return name.endswith("attn2") or module.to_k.in_features != module.to_q.in_features


def widths(layers: list[Layer], side: Side = "activations") -> dict[str, int]:
    """Layer name -> d, of the layer's outputs or of the text that it reads."""
    if side == "text":
        return {layer.name: layer.module.to_k.in_features for layer in layers}
    return {layer.name: layer.width for layer in layers}


def require_plain_weights(layers: list[Layer]) -> None:
    """Raise ModelError if the projections are quantised, so that no patch can be exact."""
    for layer in layers:
        weight = layer.module.to_v.weight
        plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
        if not plain or not weight.is_floating_point():
            raise ModelError(
                f"model: the weights are quantised (layer {layer.name} holds "
                f"{type(weight).__name__} of {weight.dtype}), which cannot be edited exactly. "
                "Load the full-precision model instead, and quantise after erasing."
            )


def family(model: ModelPatcher) -> str:
    """ComfyUI's name of the architecture, for example SD15 or SDXL."""
    return type(model.model.model_config).__name__


def display_name(model: ModelPatcher) -> str:
    """The model's name for people: its file where ComfyUI remembers it, and its family."""
    recipe = getattr(model, "cached_patcher_init", None)
    source = recipe[1][0] if recipe else None
    return f"{Path(source).name} ({family(model)})" if isinstance(source, str) else family(model)
