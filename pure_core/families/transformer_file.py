"""Transformers in files: the same sites by the names that files of different origin give them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import ModelFileError
from .site import FileRows, Role

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.", "")
"""What files put before the names of a diffusion model's tensors, the longest first."""


class Spelling(NamedTuple):
    """How files of one origin name a family's sites."""

    site: str
    """A site with `#` for a number and `*` for a word before it: 'blocks.#.cross_attn'."""

    keys: str
    values: str
    """Linear modules in it. If both are the same, its rows are those of the keys and then those of
    the values."""

    mark: str = ""
    """Another tensor of such files, where several families name their sites alike."""

    entry: str = ""
    """The map through which all text enters, empty if there is none."""

    @property
    def fused(self) -> bool:
        return self.keys == self.values

    def module(self, role: Role) -> str:
        """The keys' or the values'."""
        return self.keys if role == "keys" else self.values

    def places(self, name: str) -> tuple[str, ...] | None:
        """The words and numbers of a site of this spelling in a tensor's name; None for others."""
        pattern = re.escape(f"{self.site}.{self.values}.weight")
        pattern = pattern.replace(r"\#", r"(\d+)").replace("#", r"(\d+)").replace(r"\*", r"(\w*)")
        found = re.fullmatch(pattern, name)
        return found.groups() if found else None

    def named(self, places: Sequence[str]) -> str:
        """The site's name for such words and numbers."""
        rest = list(places)
        return re.sub(r"[#*]", lambda _: rest.pop(0), self.site)


class FileNames(NamedTuple):
    """The names of a family of transformers."""

    family: str

    spellings: tuple[Spelling, ...]
    """The first is ComfyUI's own."""

    library: Spelling | None = None
    """That of the diffusers library, None if it loads no LoRA into it."""


def transformer_in_file(
    names: FileNames, shapes: Mapping[str, tuple[int, ...]]
) -> TransformerFile | None:
    """The transformer of a family among a file's tensors, or None."""
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
        for spelling in names.spellings:
            if spelling.mark and spelling.mark not in inside:
                continue
            found = {name: places for name in inside if (places := spelling.places(name))}
            if found:
                own = names.spellings[0]
                sites = {own.named(each): spelling.named(each) for each in found.values()}
                return TransformerFile(names, spelling, prefix, inside, sites)
    return None


@dataclass(frozen=True)
class TransformerFile:
    """A transformer in a file."""

    names: FileNames

    spelling: Spelling
    """The file's."""

    prefix: str

    shapes: dict[str, tuple[int, ...]]
    """Tensor name without the prefix -> shape."""

    in_this_file: dict[str, str]
    """Site, named as ComfyUI's modules are -> its name in this file."""

    @property
    def family(self) -> str:
        return self.names.family

    @cached_property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.in_this_file)

    @property
    def entry(self) -> str | None:
        own, here = self.names.spellings[0].entry, self.spelling.entry
        return own if own and f"{here}.weight" in self.shapes else None

    def widths(self, text: bool = False) -> dict[str, int]:
        if text and self.entry is not None:
            return {self.entry: self._shape(self.entry, "keys", "weight", 2)[1]}
        if text:
            return {site: self._shape(site, "keys", "weight", 2)[1] for site in self.sites}
        return {site: self.weight(site, "values").count for site in self.sites}

    def weight(self, site: str, role: Role) -> FileRows:
        return self._rows(site, role, "weight", 2)

    def bias(self, site: str, role: Role) -> FileRows | None:
        if self._name(site, role, "bias") not in self.shapes:
            return None
        return self._rows(site, role, "bias", 1)

    def lora_rows(self, site: str, role: Role) -> FileRows:
        own = self.names.spellings[0]
        path = site if site == self.entry else f"{site}.{own.module(role)}"
        module = f"lora_unet_{path}".replace(".", "_")
        d = self.weight(site, role).count
        if not own.fused or site == self.entry:
            return FileRows(module, 0, d, d)
        return FileRows(module, 0 if role == "keys" else d, d, 2 * d)

    def library_lora_rows(self, site: str, role: Role) -> FileRows:
        library = self.names.library
        if library is None:
            raise ModelFileError(
                "The diffusers library loads no LoRA into such a model: write one for ComfyUI."
            )
        own, d = self.names.spellings[0], self.weight(site, role).count
        if site == self.entry:
            return FileRows(f"transformer.{library.entry}", 0, d, d)
        places = own.places(f"{site}.{own.values}.weight")
        assert places is not None  # sites are named by it
        return FileRows(f"transformer.{library.named(places)}.{library.module(role)}", 0, d, d)

    def diffusers_name(self, key: str) -> str:
        raise ModelFileError(
            "Transformers are not written as diffusers folders: export a checkpoint, or a LoRA in "
            "the form for diffusers."
        )

    def diffusers_config(self) -> dict[str, Any]:
        self.diffusers_name("")
        raise AssertionError

    def _fused(self, site: str) -> bool:
        return self.spelling.fused and site != self.entry

    def _name(self, site: str, role: Role, end: str) -> str:
        if site == self.entry:
            return f"{self.spelling.entry}.{end}"
        return f"{self.in_this_file[site]}.{self.spelling.module(role)}.{end}"

    def _shape(self, site: str, role: Role, end: str, axes: int) -> tuple[int, ...]:
        name = self._name(site, role, end)
        if name not in self.shapes:
            raise ModelFileError(
                f"The file has no tensor '{self.prefix}{name}', which was to be edited."
            )
        fused = self._fused(site)
        if len(shape := self.shapes[name]) != axes or (fused and shape[0] % 2):
            raise ModelFileError(
                f"The file's tensor '{self.prefix}{name}' is not what attention has there: "
                f"expected {axes} axes{', the first even' if fused else ''}, got "
                f"the shape {shape}."
            )
        return shape

    def _rows(self, site: str, role: Role, end: str, axes: int) -> FileRows:
        total = self._shape(site, role, end, axes)[0]
        name = self.prefix + self._name(site, role, end)
        if not self._fused(site):
            return FileRows(name, 0, total, total)
        half = total // 2
        return FileRows(name, 0 if role == "keys" else half, half, total)
