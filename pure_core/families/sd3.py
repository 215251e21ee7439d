"""Stable Diffusion 3 and 3.5. Every block has two streams.

Version 3 normalises no keys, but 3.5 does, so values are what is edited. The picture's own second
attention in some blocks of 3.5 medium is no site. The pooled vector (`y_embedder`) passes by all
attention.
"""

from __future__ import annotations

from typing import Any

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

SMALL_WIDTH, SMALL_SIZE, SIZE = 256, 64, 1024
"""Pixels. Models of so few channels are the small one of this project."""

ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
LIBRARY = Spelling(
    (Pattern("transformer_blocks.#.attn", "add_k_proj", "add_v_proj", parts=ADDED),),
    mark="time_text_embed.text_embedder.linear_1.weight",
    entry="context_embedder",
)


def size(net: Any) -> int:
    return SMALL_SIZE if net.hidden_size <= SMALL_WIDTH else SIZE


FAMILY = JointTransformer(
    name="sd3",
    models="Stable Diffusion 3 and 3.5",
    classes=("OpenAISignatureMMDITWrapper",),
    names=FileNames(
        "sd3",
        (
            Spelling(
                (Pattern("joint_blocks.#.context_block.attn", "qkv", "qkv", "thirds"),),
                entry="context_embedder",
            ),
            LIBRARY,
        ),
        LIBRARY,
    ),
    kinds=(Kind("joint_blocks.#.x_block.attn.proj", "num_heads"),),
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, patch=2),
    size=size,
)
