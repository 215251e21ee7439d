"""CogVideoX: one set of projections in all blocks."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("blocks.#", "k", "v"),),
    mark="patch_embed.text_proj.weight",
    entry="patch_embed.text_proj",
)

FAMILY = JointTransformer(
    name="cogvideox",
    models="CogVideoX",
    classes=("CogVideoXTransformer3DModel",),
    names=FileNames("cogvideox", (OWN,), shared=(0,)),
    kinds=(Kind("blocks.#.attn_out", "num_heads"),),
    stream=Stream("blocks.0.norm1", 1, "blocks.0.v"),
    geometry=lambda net: LatentGeometry(
        channels=16, pixels_per_cell=8, frames=4, patch=2, patch_frames=net.patch_size_t or 1
    ),
    size=lambda net: 480,
)
