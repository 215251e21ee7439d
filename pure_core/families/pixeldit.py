"""PixelDiT. Its blocks of patches have two streams, those of pixels read no text."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("patch_blocks.#.attn", "qkv_y", "qkv_y", "thirds"),), entry="y_embedder.proj"
)

FAMILY = JointTransformer(
    name="pixeldit",
    models="PixelDiT",
    classes=("PixDiT_T2I",),
    names=FileNames("pixeldit", (OWN,)),
    kinds=(Kind("patch_blocks.#.attn.proj_x", "num_heads"),),
    geometry=lambda net: LatentGeometry(channels=3, pixels_per_cell=1, patch=net.patch_size),
    size=lambda net: 1024,
)
