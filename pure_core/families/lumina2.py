"""Lumina 2 and Z-Image: one stream in all blocks, and a refiner of the text before.

Z-Image fills text and picture up with learned tokens. Lumina's queries share keys and values in
groups.
"""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

ENTRY = "cap_embedder.1"
OWN = Spelling(
    (Pattern("layers.#.attention", "qkv", "qkv", "groups"),),
    mark="cap_embedder.1.weight",
    entry=ENTRY,
)
PARTS = ("to_q", "to_k", "to_v")
Z_IMAGE = Spelling(
    (Pattern("layers.#.attention", "to_k", "to_v", parts=PARTS),),
    mark="cap_embedder.1.weight",
    entry=ENTRY,
)
LUMINA = Spelling(
    (Pattern("layers.#.attn", "to_k", "to_v", parts=PARTS),),
    mark="time_caption_embed.caption_embedder.1.weight",
    entry="time_caption_embed.caption_embedder.1",
    without="ref_image_patch_embedder.weight",  # OmniGen 2
)
"""What the diffusers library calls them."""

FAMILY = JointTransformer(
    name="lumina2",
    models="Lumina 2 and Z-Image",
    classes=("NextDiT",),
    names=FileNames("lumina2", (OWN, Z_IMAGE, LUMINA), LUMINA, (0,), (("cap_pad_token", Z_IMAGE),)),
    kinds=(Kind("layers.#.attention.out", "n_local_heads", "n_local_kv_heads"),),
    stream=Stream("context_refiner.-1", None, "layers.0"),
    norm="cap_embedder.0",
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
)
