"""ERNIE-Image: one stream in all blocks, picture before text.

Its attentions are out of reach for others' attention functions, so an attention is run once more
with the picture's values zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .joint import JointTransformer, Kind, TextPlace, others
from .site import Hook, LatentGeometry, Listener, Site, Stream, run_again_before
from .transformer_file import FileNames, Pattern, Spelling

OWN = Spelling(
    (Pattern("layers.#.self_attention", "to_k", "to_v"),),
    mark="text_proj.weight",
    entry="text_proj",
)


class Ernie(JointTransformer):
    """The family."""

    def listen(
        self, net: nn.Module, sites: Sequence[Site], listener: Listener, options: dict[str, Any]
    ) -> Callable[[], None]:
        assert self.stream is not None
        place = TextPlace()
        with ExitStack() as stops:
            stops.callback(place.watch(net, self.stream))
            for site in sites:
                stops.callback(listen_to_text_part(net, site, place, listener))
            return stops.pop_all().close


def listen_to_text_part(
    net: nn.Module, site: Site, place: TextPlace, listener: Listener
) -> Callable[[], None]:
    """Before every run, run the attention once more with the picture's values zero."""
    values, out = (net.get_submodule(path) for path in (site.values.module, site.out))

    def hooks(args: tuple[Any, ...]) -> Sequence[Hook]:
        rows = listener.rows(site.name, len(args[0]))
        text = place.among(args[0].shape[1])
        if rows is None or text is None:
            return ()

        def zero(_module: nn.Module, _inputs: Any, made: Tensor) -> Tensor:
            only = made.new_zeros(made.shape)
            only[:, text] = made[:, text]
            return only

        def hear(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h = inputs[0][rows]
            listener.hear(site.name, h[:, others(text, h.shape[1])])

        return ((values, zero, False), (out, hear, True))

    return run_again_before(net.get_submodule(site.name), hooks)


FAMILY = Ernie(
    name="ernie",
    models="ERNIE-Image",
    classes=("ErnieImageModel",),
    names=FileNames("ernie", (OWN,), OWN, shared=(0,)),
    kinds=(Kind("layers.#.self_attention.to_out.0", "heads"),),
    stream=Stream("text_proj", None, "layers.0"),
    geometry=lambda net: LatentGeometry(channels=128, pixels_per_cell=16),
    size=lambda net: 1024,
)
