"""Ideogram 4: one stream in all blocks."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("layers.#.attention", "qkv", "qkv", "thirds"),),
    mark="llm_cond_proj.weight",
    entry="llm_cond_proj",
)

FAMILY = JointTransformer(
    name="ideogram4",
    models="Ideogram 4",
    classes=("Ideogram4Transformer",),
    names=FileNames("ideogram4", (OWN,), shared=(0,)),
    kinds=(Kind("layers.#.attention.o", "num_heads"),),
    stream=Stream("llm_cond_proj", None, "layers.0", moved=True),
    norm="llm_cond_norm",
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=16),
    size=lambda net: 1024,
)
