"""Transformers with a cross-attention of their own, apart from the attention among picture tokens.

A family of them is data: what the parts of such an attention are called, in the model and in files.
Where keys and values are one linear map, its first half are the keys. Behind the keys most have a
norm, so the values are what is edited (`Family.keys_are_linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .site import LatentGeometry, Listener, Role, Rows, Site, listen_to_output
from .transformer_file import FileNames, TransformerFile, transformer_in_file

Of = Callable[[Any], int]


@dataclass(frozen=True)
class Transformer:
    """See `Family`."""

    name: str
    models: str

    classes: tuple[str, ...]
    """Names of ComfyUI's classes of the diffusion model."""

    names: FileNames
    """The first spelling also tells the sites among the model's modules."""

    out: str
    """In an attention, the module whose input is h."""

    heads: str
    """In an attention, the attribute that counts heads."""

    geometry: Callable[[Any], LatentGeometry]
    """Of a model."""

    size: Of
    """Usual width and height of pictures of a model, in pixels."""

    keys_are_linear: bool = False

    other_texts: tuple[str, ...] = ()

    rows_axis: int = 0
    """See `Site`."""

    beside: str = ""
    """In an attention, the values of something else whose part comes on top of the text's."""

    blocks: Mapping[str, str] = field(default_factory=lambda: {"all": ""})

    def has(self, net: nn.Module) -> bool:
        known = any(each.__name__ in self.classes for each in type(net).__mro__)
        return known and bool(self.sites(net))

    def sites(self, net: nn.Module) -> list[Site]:
        own = self.names.spellings[0]
        return [
            self._site(net, path)
            for path, _ in net.named_modules()
            if own.places(f"{path}.{own.values}.weight")
        ]

    def _site(self, net: nn.Module, path: str) -> Site:
        attention: Any = net.get_submodule(path)
        keys, values = self._rows(net, path, "keys"), self._rows(net, path, "values")
        reader: Any = net.get_submodule(values.module)
        heads = getattr(attention, self.heads)
        return Site(
            name=path,
            part="text" if self.beside and hasattr(attention, self.beside) else "cross",
            out=f"{path}.{self.out}",
            keys=keys,
            values=values,
            heads=heads,
            value_heads=heads,
            head_dim=values.count // heads,
            text_width=reader.in_features,
            rows_axis=self.rows_axis,
        )

    def _rows(self, net: nn.Module, path: str, role: Role) -> Rows:
        own = self.names.spellings[0]
        module = f"{path}.{own.module(role)}"
        linear: Any = net.get_submodule(module)
        total, biased = linear.out_features, linear.bias is not None
        if not own.fused:
            return Rows(module, 0, total, total, biased)
        half = total // 2
        return Rows(module, 0 if role == "keys" else half, half, total, biased)

    def listen(self, net: nn.Module, site: Site, listener: Listener) -> Callable[[], None]:
        return listen_to_output(net, site, listener)

    def latent(self, net: nn.Module) -> LatentGeometry:
        return self.geometry(net)

    def usual_size(self, net: nn.Module, predicts_velocity: bool) -> int:
        return self.size(net)

    def text_width(self, net: nn.Module) -> int:
        entry = self.text_entry(net)
        if entry is None:
            return self.sites(net)[0].text_width
        linear: Any = net.get_submodule(entry.module)
        width: int = linear.in_features
        return width

    def edits_text(self, net: nn.Module) -> bool:
        return not self.other_texts

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
