"""LTX-Video. Keys have a norm over all heads."""

from __future__ import annotations

from .site import LatentGeometry
from .transformer import Transformer
from .transformer_file import FileNames, Spelling

ENTRY = "caption_projection.linear_1"
LIBRARY = Spelling(
    "transformer_blocks.#.attn2", "to_k", "to_v", mark="time_embed.linear.weight", entry=ENTRY
)

FAMILY = Transformer(
    name="ltx",
    models="LTX-Video",
    classes=("LTXVModel",),
    names=FileNames(
        "ltx",
        (
            Spelling(
                "transformer_blocks.#.attn2",
                "to_k",
                "to_v",
                mark="patchify_proj.weight",
                entry=ENTRY,
            ),
            LIBRARY,
        ),
        LIBRARY,
    ),
    out="to_out",
    heads="heads",
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=32, frames=8),
    size=lambda net: 512,
)
