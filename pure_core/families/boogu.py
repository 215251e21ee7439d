"""Boogu: some blocks of two streams, then of one. Queries share keys and values in groups."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (
        Pattern(
            "double_stream_layers.#.img_instruct_attn",
            "processor.instruct_to_k",
            "processor.instruct_to_v",
        ),
        Pattern("single_stream_layers.#.attn", "to_k", "to_v"),
    ),
    entry="time_caption_embed.caption_embedder.1",
)

FAMILY = JointTransformer(
    name="boogu",
    models="Boogu",
    classes=("BooguTransformer2DModel",),
    names=FileNames("boogu", (OWN,), shared=(1,)),
    kinds=(
        Kind(
            "double_stream_layers.#.img_instruct_attn.processor.img_out",
            "heads",
            "kv_heads",
        ),
        Kind("single_stream_layers.#.attn.to_out.0", "heads", "kv_heads"),
    ),
    stream=Stream("double_stream_layers.-1", 1, "single_stream_layers.0"),
    norm="time_caption_embed.caption_embedder.0",
    masks="same",
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
    blocks={"all": "", "double": "double_stream", "single": "single_stream"},
)
