"""HunyuanVideo 1 and 1.5 and HunyuanImage 2.1: Flux's blocks, with a refiner of the text before.

Text and picture stand in another order in the two versions of ComfyUI. Keys have a norm and a
rotation. HunyuanVideo's pooled vector (`vector_in`) passes by all attention.
"""

from __future__ import annotations

from typing import Any

from .flux import DOUBLE, KINDS, OWN, SINGLE, STREAM
from .joint import JointTransformer
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

ENTRY = "txt_in.input_embedder"
MARK = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
SMALL_WIDTH, SMALL_SIZE, SIZE, IMAGE_SIZE = 256, 64, 512, 2048
"""Pixels. Models of so few channels are the small one of this project."""

ORIGINAL = Spelling(
    (
        Pattern(DOUBLE, "txt_attn_qkv", "txt_attn_qkv", "thirds"),
        Pattern(SINGLE, "linear1", "linear1", "first"),
    ),
    mark=MARK,
    entry=ENTRY,
)


def makes_pictures(net: Any) -> bool:
    return len(net.patch_size) == 2


def geometry(net: Any) -> LatentGeometry:
    if makes_pictures(net):
        return LatentGeometry(channels=64, pixels_per_cell=32, patch=net.patch_size[-1])
    cell = 16 if net.out_channels == 32 else 8
    return LatentGeometry(
        channels=net.out_channels, pixels_per_cell=cell, frames=4, patch=net.patch_size[-1]
    )


def size(net: Any) -> int:
    if net.hidden_size <= SMALL_WIDTH:
        return SMALL_SIZE
    return IMAGE_SIZE if makes_pictures(net) else SIZE


FAMILY = JointTransformer(
    name="hunyuan_video",
    models="HunyuanVideo and HunyuanImage 2.1",
    classes=("HunyuanVideo",),
    names=FileNames(
        "hunyuan_video", (Spelling(OWN, mark=MARK, entry=ENTRY), ORIGINAL), shared=(1,)
    ),
    kinds=KINDS,
    stream=STREAM,
    masks="alone",
    geometry=geometry,
    size=size,
    blocks={"all": "", "double": "double_blocks", "single": "single_blocks"},
)
