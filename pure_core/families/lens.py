"""Lens. Every block has two streams. It reads several layers of its text encoder, each with a norm
of its own, so methods on the text cannot be fitted on vectors that are not those of its entry.
"""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("transformer_blocks.#.attn", "txt_qkv", "txt_qkv", "thirds"),), entry="txt_in"
)

FAMILY = JointTransformer(
    name="lens",
    models="Lens",
    classes=("LensTransformer2DModel",),
    names=FileNames("lens", (OWN,)),
    kinds=(Kind("transformer_blocks.#.attn.to_out.0", "heads"),),
    mixes_text=True,
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=16),
    size=lambda net: 1024,
)
