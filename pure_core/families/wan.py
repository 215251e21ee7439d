"""Wan 2.1, Wan 2.2 and their variants.

Text passes `text_embedding` before the sites read it. Keys have a norm over all heads. Models that
also read pictures have keys and values of their own for these (`k_img`, `v_img`), which are not
edited. What they put out comes on top of the text's part, so there h is the text's part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .site import LatentGeometry, Listener, Site, run_again_before
from .transformer import CrossTransformer
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling((Pattern("*blocks.#.cross_attn", "k", "v"),), entry="text_embedding.0")
LIBRARY = Spelling(
    (Pattern("*blocks.#.attn2", "to_k", "to_v"),),
    mark="condition_embedder.text_embedder.linear_1.weight",
    entry="condition_embedder.text_embedder.linear_1",
)

PICTURES = "v_img"
"""Values of pictures, in models that read them."""

SMALL_WIDTH, SMALL_SIZE, SIZE, LARGE_SIZE = 512, 64, 480, 704
"""Pixels. Models of so few channels are the small one of this project; Wan 2.2 5B has larger
cells and pictures."""

FIVE_BILLION_CHANNELS = 48

FRAMES = 4
"""That become one cell of a latent."""


def geometry(net: Any) -> LatentGeometry:
    if net.out_dim == FIVE_BILLION_CHANNELS:
        return LatentGeometry(channels=48, pixels_per_cell=16, frames=FRAMES, patch=2)
    return LatentGeometry(channels=16, pixels_per_cell=8, frames=FRAMES, patch=2)


def size(net: Any) -> int:
    if net.dim <= SMALL_WIDTH:
        return SMALL_SIZE
    return LARGE_SIZE if net.out_dim == FIVE_BILLION_CHANNELS else SIZE


class Wan(CrossTransformer):
    """The family, with a listener for models that read pictures as well."""

    def listen(
        self, net: nn.Module, sites: Sequence[Site], listener: Listener, options: dict[str, Any]
    ) -> Callable[[], None]:
        with ExitStack() as stops:
            cross = [site for site in sites if site.part == "cross"]
            stops.callback(super().listen(net, cross, listener, options))
            for site in sites:
                if site.part == "text":
                    stops.callback(listen_to_text_part(net, site, listener))
            return stops.pop_all().close


def listen_to_text_part(net: nn.Module, site: Site, listener: Listener) -> Callable[[], None]:
    """Before every run, run the attention once more with the pictures' values zero.

    The output is linear in the values, so what is left is the text's part.
    """
    attention: Any = net.get_submodule(site.name)

    def zero(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return torch.zeros_like(out)

    def hear(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = listener.rows(site.name, len(inputs[0]))
        if rows is not None:
            listener.hear(site.name, inputs[0][rows])

    again = ((getattr(attention, PICTURES), zero, False), (attention.o, hear, True))
    return run_again_before(attention, lambda _: again)


FAMILY = Wan(
    name="wan",
    models="Wan 2.1 and 2.2",
    classes=("WanModel",),
    names=FileNames("wan", (OWN, LIBRARY), LIBRARY),
    out="o",
    heads="num_heads",
    geometry=geometry,
    size=size,
    beside=PICTURES,
)
