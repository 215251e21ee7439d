"""Cosmos 1. Its attentions work on (positions, rows, d)."""

from __future__ import annotations

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

LIBRARY = Spelling(
    (Pattern("transformer_blocks.#.attn2", "to_k", "to_v"),),
    mark="learnable_pos_embed.pos_emb_t",
)

FAMILY = CrossTransformer(
    name="cosmos1",
    models="Cosmos 1",
    classes=("GeneralDIT",),
    names=FileNames(
        "cosmos1",
        (
            Spelling((Pattern("blocks.block#.blocks.1.block.attn", "to_k.0", "to_v.0"),)),
            LIBRARY,
        ),
        LIBRARY,
    ),
    out="to_out",
    heads="heads",
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, frames=8, patch=2),
    size=lambda net: 704,
    rows_axis=1,
)
