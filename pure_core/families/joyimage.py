"""JoyImage. Every block has two streams."""

from __future__ import annotations

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("double_blocks.#.attn", "txt_attn_qkv", "txt_attn_qkv", "thirds"),),
    entry="condition_embedder.text_embedder.linear_1",
)

FAMILY = JointTransformer(
    name="joyimage",
    models="JoyImage",
    classes=("JoyImageTransformer3DModel",),
    names=FileNames("joyimage", (OWN,)),
    kinds=(Kind("double_blocks.#.attn.img_attn_proj", "num_attention_heads"),),
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, frames=4, patch=2),
    size=lambda net: 1024,
)
