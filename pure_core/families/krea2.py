"""Krea 2: one stream in all blocks. Queries share keys and values in groups.

Behind attention comes a gate for every channel, so h is read before it. The text is a stack of its
encoder's layers, which a transformer of its own mixes before they enter.
"""

from __future__ import annotations

from typing import Any

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling((Pattern("blocks.#.attn", "wk", "wv"),), mark="txtmlp.1.weight", entry="txtmlp.1")


def stacked(net: Any) -> int:
    width: int = net.txtlayers * net.txtdim
    return width


FAMILY = JointTransformer(
    name="krea2",
    models="Krea 2",
    classes=("SingleStreamDiT",),
    names=FileNames("krea2", (OWN,), shared=(0,)),
    kinds=(Kind("blocks.#.attn.wo", "heads", "kvheads"),),
    stream=Stream("txtmlp", None, "blocks.0"),
    reads=stacked,
    mixes_text=True,
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, one_frame=True, patch=2),
    size=lambda net: 1024,
)
