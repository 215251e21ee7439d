"""HiDream-I1. Its text is three things: T5, Llama's last layer, and in every block another layer of
Llama. They come behind the picture, and Llama's tokens are new in every block.

Methods on the text would edit one of these maps and leave the others.
"""

from __future__ import annotations

from typing import Any

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (
        Pattern("double_stream_blocks.#.block.attn1", "to_k_t", "to_v_t"),
        Pattern("single_stream_blocks.#.block.attn1", "to_k", "to_v"),
    )
)


def t5_width(net: Any) -> int:
    width: int = net.caption_projection[-1].linear.in_features
    return width


FAMILY = JointTransformer(
    name="hidream",
    models="HiDream-I1",
    classes=("HiDreamImageTransformer2DModel",),
    names=FileNames("hidream", (OWN,), OWN, shared=(1,)),
    kinds=(
        Kind("double_stream_blocks.#.block.attn1.to_out", "heads"),
        Kind("single_stream_blocks.#.block.attn1.to_out", "heads"),
    ),
    stream=Stream("double_stream_blocks.-1", 0, "single_stream_blocks.0", "picture"),
    other_texts=("conditioning_llama3",),
    reads=t5_width,
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, patch=2),
    size=lambda net: 1024,
    blocks={"all": "", "double": "double_stream", "single": "single_stream"},
)
