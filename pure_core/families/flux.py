"""Flux.1, Flux.2 and their relatives: blocks of two streams, then blocks of one.

Keys have a norm and a rotation. Flux.1's pooled vector (`vector_in`) passes by all attention.
"""

from __future__ import annotations

from typing import Any

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

DOUBLE, SINGLE = "double_blocks.#", "single_blocks.#"
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
BESIDE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")

OWN = (
    Pattern(f"{DOUBLE}.txt_attn", "qkv", "qkv", "thirds"),
    Pattern(SINGLE, "linear1", "linear1", "first"),
)
KINDS = (
    Kind(f"{DOUBLE}.img_attn.proj", "num_heads"),
    Kind(f"{SINGLE}.linear2", "num_heads"),
)
STREAM = Stream("double_blocks.-1", 1, "single_blocks.0")

LIBRARY = Spelling(
    (
        Pattern("transformer_blocks.#.attn", "add_k_proj", "add_v_proj", parts=ADDED),
        Pattern("single_transformer_blocks.#", "attn.to_k", "attn.to_v", parts=BESIDE),
    ),
    mark="x_embedder.weight",
    entry="context_embedder",
)

FUSED = "attn.to_qkv_mlp_proj"
LIBRARY_2 = Spelling(
    (
        Pattern("transformer_blocks.#.attn", "add_k_proj", "add_v_proj", parts=ADDED),
        Pattern("single_transformer_blocks.#", FUSED, FUSED, "first"),
    ),
    mark="double_stream_modulation_img.linear.weight",
    entry="context_embedder",
)
"""Of Flux.2."""

PIXEL_CHANNELS, FLUX_2_CHANNELS = 3, 128


def geometry(net: Any) -> LatentGeometry:
    if net.in_channels == PIXEL_CHANNELS:  # Chroma Radiance
        return LatentGeometry(channels=3, pixels_per_cell=1, patch=net.patch_size)
    if net.out_channels == FLUX_2_CHANNELS:
        return LatentGeometry(channels=FLUX_2_CHANNELS, pixels_per_cell=16)
    return LatentGeometry(channels=16, pixels_per_cell=8, patch=2)


FAMILY = JointTransformer(
    name="flux",
    models="Flux.1, Flux.2, Chroma, Ovis-Image and LongCat-Image",
    classes=("Flux", "Chroma"),
    names=FileNames(
        "flux",
        (
            Spelling(OWN, mark="txt_in.weight", entry="txt_in"),
            LIBRARY_2,
            LIBRARY,
        ),
        LIBRARY,
        shared=(1,),
        libraries=(
            ("double_stream_modulation_img.lin.weight", LIBRARY_2),
            (LIBRARY_2.mark, LIBRARY_2),
        ),
    ),
    kinds=KINDS,
    stream=STREAM,
    norm="txt_norm",
    geometry=geometry,
    size=lambda net: 1024,
    blocks={"all": "", "double": "double_blocks", "single": "single_blocks"},
)
