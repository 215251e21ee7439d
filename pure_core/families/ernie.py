"""ERNIE-Image: one stream in all blocks, picture before text.

Its attentions are out of reach for others' attention functions, so an attention is run once more
with the picture's values zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .joint import JointTransformer, Kind, TextPlace
from .site import LatentGeometry, Listener, Site, Stream
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
    attention = net.get_submodule(site.name)
    running = False

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal running
        rows = None if running else listener.rows(site.name, len(args[0]))
        text = place.among(args[0].shape[1])
        if rows is None or text is None:
            return

        def zero(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
            only = out.new_zeros(out.shape)
            only[:, text] = out[:, text]
            return only

        def hear(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h = inputs[0][rows]
            listener.hear(site.name, h[:, : text.start] if text.start else h[:, text.stop :])

        running = True
        hooks = (
            net.get_submodule(site.values.module).register_forward_hook(zero),
            net.get_submodule(site.out).register_forward_pre_hook(hear),
        )
        try:
            module(*args, **kwargs)
        finally:
            running = False
            for hook in hooks:
                hook.remove()

    stop: Callable[[], None] = attention.register_forward_pre_hook(run, with_kwargs=True).remove
    return stop


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
