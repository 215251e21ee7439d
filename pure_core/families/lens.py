"""Lens. Every block has two streams. It reads several layers of its text encoder, each with a norm
of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .joint import JointTransformer, Kind
from .site import LatentGeometry
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("transformer_blocks.#.attn", "txt_qkv", "txt_qkv", "thirds"),), entry="txt_in"
)


def normed(net: Any, vectors: Tensor) -> Tensor:
    norms = net.txt_norm if isinstance(net.txt_norm, nn.ModuleList) else [net.txt_norm]
    parts = vectors.chunk(len(norms), dim=-1)
    return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1)


FAMILY = JointTransformer(
    name="lens",
    models="Lens",
    classes=("LensTransformer2DModel",),
    names=FileNames("lens", (OWN,)),
    kinds=(Kind("transformer_blocks.#.attn.to_out.0", "heads"),),
    entering=normed,
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=16),
    size=lambda net: 1024,
)
