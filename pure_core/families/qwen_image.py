"""Qwen-Image, its editing and layered forms, and Mage-Flow. Every block has two streams."""

from __future__ import annotations

from typing import Any

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("transformer_blocks.#.attn", "add_k_proj", "add_v_proj"),),
    mark="txt_norm.weight",
    entry="txt_in",
)
MAGE_CHANNELS = 128


def geometry(net: Any) -> LatentGeometry:
    if net.in_channels == MAGE_CHANNELS:
        return LatentGeometry(channels=MAGE_CHANNELS, pixels_per_cell=16)
    return LatentGeometry(channels=16, pixels_per_cell=8, one_frame=True, patch=2)


FAMILY = JointTransformer(
    name="qwen_image",
    models="Qwen-Image and Mage-Flow",
    classes=("QwenImageTransformer2DModel", "MageFlowTransformer2DModel"),
    names=FileNames("qwen_image", (OWN,), OWN),
    kinds=(Kind("transformer_blocks.#.attn.to_out.0", "heads"),),
    norm="txt_norm",
    geometry=geometry,
    size=lambda net: 1024,
)
