"""Mochi. Every block has two streams; the text's is narrower than the picture's."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling((Pattern("blocks.#.attn", "qkv_y", "qkv_y", "thirds"),), entry="t5_yproj")

FAMILY = JointTransformer(
    name="mochi",
    models="Mochi",
    classes=("AsymmDiTJoint",),
    names=FileNames("mochi", (OWN,)),
    kinds=(Kind("blocks.#.attn.proj_x", "num_heads"),),
    masks="same",
    geometry=lambda net: LatentGeometry(channels=12, pixels_per_cell=8, frames=6, patch=2),
    size=lambda net: 480,
)
