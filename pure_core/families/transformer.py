"""Transformers, whose sites are told by the names of their modules.

A family of them is data: what the parts of an attention are called, in the model and in files.
`CrossTransformer` is for those with a cross-attention of its own, apart from the attention among
picture tokens; `joint.py` for the others. Behind the keys most have a norm, so the values are what
is edited (`Family.keys_are_linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from .site import LatentGeometry, Listener, Masks, Role, Rows, Site, Stream, listen_to_outputs
from .transformer_file import FileNames, TransformerFile, rows_in, transformer_in_file

Of = Callable[[Any], int]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """See `Family`."""

    name: str
    models: str

    classes: tuple[str, ...]
    """Names of ComfyUI's classes of the diffusion model."""

    names: FileNames
    """The first spelling also tells the sites among the model's modules."""

    geometry: Callable[[Any], LatentGeometry]
    """Of a model."""

    size: Of
    """Usual width and height of pictures of a model, in pixels."""

    keys_are_linear: bool = False

    other_texts: tuple[str, ...] = ()

    masks: Masks = "each"
    """See `Family`."""

    reads: Of | None = None
    """Numbers in a vector of the text encoder, where they are not those that the entry takes."""

    norm: str = ""
    """Path of a norm that the text encoder's vectors pass right before the entry."""

    entering: Callable[[Any, Tensor], Tensor] | None = None
    """Where it is more than a norm: a model and vectors (B, T, D) -> what the entry takes."""

    blocks: Mapping[str, str] = field(default_factory=lambda: {"all": ""})

    stream: Stream | None = field(default=None, init=False)

    def shares(self, site: str) -> bool:
        own = self.names.spellings[0].patterns
        shared = (own[kind] for kind in self.names.shared)
        return any(each.places(f"{site}.{each.values}.weight") is not None for each in shared)

    def has(self, net: nn.Module) -> bool:
        known = any(each.__name__ in self.classes for each in type(net).__mro__)
        return known and bool(self.sites(net))

    def sites(self, net: nn.Module) -> list[Site]:
        own = self.names.spellings[0].patterns
        return [
            self.site(net, path, kind, places)
            for path, _ in net.named_modules()
            for kind, pattern in enumerate(own)
            if (places := pattern.places(f"{path}.{pattern.values}.weight"))
        ]

    def site(self, net: nn.Module, path: str, kind: int, places: Sequence[str]) -> Site:
        """The site at a path, of a kind among those of the spelling."""
        raise NotImplementedError

    def rows(self, net: nn.Module, path: str, kind: int, role: Role) -> Rows:
        """Its keys or values."""
        pattern = self.names.spellings[0].patterns[kind]
        module = f"{path}.{pattern.module(role)}"
        linear: Any = net.get_submodule(module)
        total = linear.out_features
        start, count = rows_in(pattern.layout, role, total, linear.in_features)
        return Rows(module, start, count, total, linear.bias is not None)

    def listen(
        self, net: nn.Module, sites: Sequence[Site], listener: Listener, options: dict[str, Any]
    ) -> Callable[[], None]:
        return listen_to_outputs(net, sites, listener)

    def latent(self, net: nn.Module) -> LatentGeometry:
        return self.geometry(net)

    def usual_size(self, net: nn.Module, predicts_velocity: bool) -> int:
        return self.size(net)

    def text_width(self, net: nn.Module) -> int:
        if self.reads is not None:
            return self.reads(net)
        entry = self.text_entry(net)
        if entry is None:
            return self.sites(net)[0].text_width
        linear: Any = net.get_submodule(entry.module)
        width: int = linear.in_features
        return width

    def edits_text(self, net: nn.Module) -> bool:
        return not self.other_texts

    def guides_itself(self, net: nn.Module) -> bool:
        parameters = getattr(net, "params", None)
        return bool(getattr(parameters, "guidance_embed", False))

    def before_entry(self, net: nn.Module) -> Callable[[Tensor], Tensor] | None:
        if self.entering is not None:
            return partial(self.entering, net)
        return dict(net.named_modules()).get(self.norm) if self.norm else None

    def text_entry(self, net: nn.Module) -> Rows | None:
        entry = self.names.spellings[0].entry
        if not entry or entry not in dict(net.named_modules()):
            return None
        linear: Any = net.get_submodule(entry)
        rows = linear.out_features
        return Rows(entry, 0, rows, rows, linear.bias is not None)

    def short_name(self, site: str) -> str:
        """'blocks.4.cross_attn' as 'block 4'."""
        path = site.rpartition(".")[0]
        return (
            path.replace("_transformer_", " ").replace("blocks.", "block ").replace("_", " ")[-18:]
        )

    def in_file(self, shapes: Mapping[str, tuple[int, ...]]) -> TransformerFile | None:
        return transformer_in_file(self.names, shapes)


@dataclass(frozen=True, kw_only=True)
class CrossTransformer(Transformer):
    """With a cross-attention in every block."""

    out: str
    """In an attention, the module whose input is h."""

    heads: str
    """In an attention, the attribute that counts heads."""

    rows_axis: int = 0
    """See `Site`."""

    beside: str = ""
    """In an attention, the values of something else whose part comes on top of the text's."""

    def site(self, net: nn.Module, path: str, kind: int, places: Sequence[str]) -> Site:
        attention: Any = net.get_submodule(path)
        values = self.rows(net, path, kind, "values")
        reader: Any = net.get_submodule(values.module)
        heads = getattr(attention, self.heads)
        return Site(
            name=path,
            part="text" if self.beside and hasattr(attention, self.beside) else "cross",
            out=f"{path}.{self.out}",
            keys=self.rows(net, path, kind, "keys"),
            values=values,
            heads=heads,
            value_heads=heads,
            head_dim=values.count // heads,
            text_width=reader.in_features,
            rows_axis=self.rows_axis,
        )
