"""Kandinsky 5, for videos and for pictures. Text tokens attend to each other before."""

from __future__ import annotations

from typing import Any

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("visual_transformer_blocks.#.cross_attention", "to_key", "to_value"),),
    entry="text_embeddings.in_layer",
)


def makes_videos(net: Any) -> bool:
    """Video models take the visible parts of the latent as well, so more than its own channels."""
    width: int = net.visual_embeddings.in_layer.in_features
    return width > 64


FAMILY = CrossTransformer(
    name="kandinsky5",
    models="Kandinsky 5",
    classes=("Kandinsky5",),
    names=FileNames("kandinsky5", (OWN,), OWN),
    out="out_layer",
    heads="num_heads",
    geometry=lambda net: LatentGeometry(
        channels=16, pixels_per_cell=8, frames=4 if makes_videos(net) else 0, patch=2
    ),
    size=lambda net: 512 if makes_videos(net) else 1024,
)
