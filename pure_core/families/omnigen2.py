"""OmniGen 2: one stream in all blocks. Queries share keys and values in groups."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("layers.#.attn", "to_k", "to_v"),),
    mark="ref_image_patch_embedder.weight",
    entry="time_caption_embed.caption_embedder.1",
)

FAMILY = JointTransformer(
    name="omnigen2",
    models="OmniGen 2",
    classes=("OmniGen2Transformer2DModel",),
    names=FileNames("omnigen2", (OWN,), shared=(0,)),
    kinds=(Kind("layers.#.attn.to_out.0", "heads", "kv_heads"),),
    stream=Stream("context_refiner.-1", None, "layers.0"),
    norm="time_caption_embed.caption_embedder.0",
    masks="same",
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
)
