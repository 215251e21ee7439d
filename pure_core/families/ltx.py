"""LTX-Video and LTX-2. Keys have a norm over all heads.

LTX-2 makes sound with the pictures. Its sites are those of the pictures, and it is captured
without sound, which it can do: an eraser is fitted on what pictures read. What the sound reads
(`audio_attn2`) stays as it is, so a concept's voice or noise is not erased.

Some versions have a gate for each head between attention and its output projection, and h is read
behind it. An E of one block a head gives E h there, too: a gate is a number for each head and
position, by which both sides are multiplied.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .site import LatentGeometry
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

ENTRY = "caption_projection.linear_1"
SITES = Pattern("transformer_blocks.#.attn2", "to_k", "to_v")
LIBRARY = Spelling((SITES,), mark="time_embed.linear.weight", entry=ENTRY)

AUDIO = "audio_adaln_single"
"""A module that only models with sound have."""


class Ltx(CrossTransformer):
    """The family. LTX-2 mixes a prompt's words in connectors of its own before the entry."""

    def edits_text(self, net: nn.Module) -> bool:
        return not hasattr(net, AUDIO)

    def text_width(self, net: nn.Module) -> int:
        model: Any = net
        if not hasattr(net, AUDIO):
            return super().text_width(net)
        both: int = model.cross_attention_dim + model.audio_cross_attention_dim
        one: int = model.caption_channels
        linear = not model.caption_proj_before_connector or model.caption_projection_first_linear
        return one if linear else both


FAMILY = Ltx(
    name="ltx",
    models="LTX-Video and LTX-2",
    classes=("LTXVModel",),
    names=FileNames(
        "ltx",
        (
            Spelling((SITES,), mark="patchify_proj.weight", entry=ENTRY),
            LIBRARY,
        ),
        LIBRARY,
    ),
    out="to_out",
    heads="heads",
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=32, frames=8),
    size=lambda net: 512,
)
