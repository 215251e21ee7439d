"""Wan 2.1, Wan 2.2 and their variants.

Text passes `text_embedding` before the sites read it. Keys have a norm over all heads. Models that
also read pictures have keys and values of their own for these (`k_img`, `v_img`), whose part of h
comes on top of the text's; without a picture they are not used, and they are not edited.
"""

from __future__ import annotations

from typing import Any

from .site import LatentGeometry
from .transformer import Transformer
from .transformer_file import FileNames, Spelling

LIBRARY = Spelling(
    "*blocks.#.attn2", "to_k", "to_v", mark="condition_embedder.text_embedder.linear_1.weight"
)

SMALL_WIDTH, SMALL_SIZE, SIZE, LARGE_SIZE = 512, 64, 480, 704
"""Pixels. Models of so few channels are the small one of this project; Wan 2.2 5B has larger
cells and pictures."""

FIVE_BILLION_CHANNELS = 48


def geometry(net: Any) -> LatentGeometry:
    if net.out_dim == FIVE_BILLION_CHANNELS:
        return LatentGeometry(channels=48, pixels_per_cell=16, frames=True, patch=2)
    return LatentGeometry(channels=16, pixels_per_cell=8, frames=True, patch=2)


def size(net: Any) -> int:
    if net.dim <= SMALL_WIDTH:
        return SMALL_SIZE
    return LARGE_SIZE if net.out_dim == FIVE_BILLION_CHANNELS else SIZE


FAMILY = Transformer(
    name="wan",
    models="Wan 2.1 and 2.2",
    classes=("WanModel",),
    names=FileNames("wan", (Spelling("*blocks.#.cross_attn", "k", "v"), LIBRARY), LIBRARY),
    out="o",
    heads="num_heads",
    geometry=geometry,
    size=size,
    entry="text_embedding.0",
)
