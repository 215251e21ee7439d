"""PixArt alpha and sigma. Keys have no norm, so keys can be edited as exactly as values."""

from __future__ import annotations

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

LEAST = 264
"""Pixels, below which the model divides by zero."""

ENTRY = "y_embedder.y_proj.fc1"

FAMILY = CrossTransformer(
    name="pixart",
    models="PixArt alpha and sigma",
    classes=("PixArt", "PixArtMS"),
    names=FileNames(
        "pixart",
        (
            Spelling(
                (Pattern("blocks.#.cross_attn", "kv_linear", "kv_linear", "halves"),), entry=ENTRY
            ),
            Spelling(
                (Pattern("transformer_blocks.#.attn2", "to_k", "to_v", parts=("to_k", "to_v")),),
                mark="pos_embed.proj.weight",
                entry="caption_projection.linear_1",
            ),
        ),
    ),
    out="proj",
    heads="num_heads",
    geometry=lambda net: LatentGeometry(channels=4, pixels_per_cell=8, patch=2, least_pixels=LEAST),
    size=lambda net: 1024,
    keys_are_linear=True,
)
