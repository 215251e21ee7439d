"""Krea 2: one stream in all blocks. Queries share keys and values in groups.

Behind attention comes a gate for every channel, so h is read before it. The text is a stack of its
encoder's layers, which a transformer of its own mixes before they enter. It knows neither picture
nor time, so methods on the text are fitted on what it gives.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from .joint import JointTransformer, Kind
from .site import LatentGeometry, Stream
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling((Pattern("blocks.#.attn", "wk", "wv"),), mark="txtmlp.1.weight", entry="txtmlp.1")


def stacked(net: Any) -> int:
    width: int = net.txtlayers * net.txtdim
    return width


def mixed(net: Any, vectors: Tensor) -> Tensor:
    stack = rearrange(vectors, "b t (layer d) -> b t layer d", layer=net.txtlayers)
    normed: Tensor = net.txtmlp[0](net.txtfusion(stack, mask=None))
    return normed


FAMILY = JointTransformer(
    name="krea2",
    models="Krea 2",
    classes=("SingleStreamDiT",),
    names=FileNames("krea2", (OWN,), shared=(0,)),
    kinds=(Kind("blocks.#.attn.wo", "heads", "kvheads"),),
    stream=Stream("txtmlp", None, "blocks.0"),
    reads=stacked,
    entering=mixed,
    geometry=lambda net: LatentGeometry(channels=16, pixels_per_cell=8, one_frame=True, patch=2),
    size=lambda net: 1024,
)
