"""Transformers in files: the same sites by the names that files of different origin give them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from ..errors import ModelFileError
from .site import FileRows, Role

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "net.", "model.", "")
"""What files put before the names of a diffusion model's tensors, the longest first."""


Layout = Literal["apart", "halves", "thirds", "first", "groups"]
"""How keys and values lie in a linear map. apart: each is a map of its own. halves: keys, then
values. thirds: queries, keys, values. first: the same, each as many rows as the map has columns,
and then other things. groups: queries, as many rows as columns, then fewer keys and as many
values."""


def rows_in(layout: Layout, role: Role, total: int, into: int) -> tuple[int, int]:
    """Where keys or values start in a map of `total` rows and `into` columns, and how many rows."""
    values = role == "values"
    if layout == "apart":
        return 0, total
    if layout == "halves":
        return values * (total // 2), total // 2
    if layout == "groups":
        each = (total - into) // 2
        return into + values * each, each
    each = total // 3 if layout == "thirds" else into
    return (1 + values) * each, each


_HOLDS: dict[Layout, str] = {
    "apart": "keys or values",
    "halves": "keys and values",
    "thirds": "queries, keys and values",
    "first": "queries, keys and values of its width",
    "groups": "queries of its width, keys and values",
}


def _fits(layout: Layout, total: int, into: int) -> bool:
    """Whether a map of so many rows and columns is laid out like this."""
    if layout == "first":
        return total >= 3 * into
    if layout == "groups":
        return total > into and (total - into) % 2 == 0
    return total % {"apart": 1, "halves": 2, "thirds": 3}[layout] == 0


class Pattern(NamedTuple):
    """How files of one origin name one kind of site."""

    site: str
    """With `#` for a number and `*` for a word before it: 'blocks.#.cross_attn'."""

    keys: str
    values: str
    """Linear modules in it, the same where both are rows of one map."""

    layout: Layout = "apart"

    parts: tuple[str, ...] = ()
    """Where files have maps apart that are one in ComfyUI: its parts, in their order."""

    @property
    def fused(self) -> bool:
        return self.keys == self.values

    def module(self, role: Role) -> str:
        """The keys' or the values'."""
        return self.keys if role == "keys" else self.values

    def places(self, name: str) -> tuple[str, ...] | None:
        """The words and numbers of a site of this kind in a tensor's name; None for others."""
        pattern = re.escape(f"{self.site}.{self.values}.weight")
        pattern = pattern.replace(r"\#", r"(\d+)").replace("#", r"(\d+)").replace(r"\*", r"(\w*)")
        found = re.fullmatch(pattern, name)
        return found.groups() if found else None

    def named(self, places: Sequence[str]) -> str:
        """The site's name for such words and numbers."""
        return filled(self.site, places)


def filled(pattern: str, places: Sequence[str]) -> str:
    """A pattern with words and numbers put in."""
    rest = list(places)
    return re.sub(r"[#*]", lambda _: rest.pop(0), pattern)


class Spelling(NamedTuple):
    """How files of one origin name a family's sites."""

    patterns: tuple[Pattern, ...]
    """One for each kind of site, in the same order in all spellings."""

    mark: str = ""
    """Another tensor of such files, where several families name their sites alike."""

    entry: str = ""
    """The map through which all text enters, empty if there is none."""

    without: str = ""
    """A tensor that such files have not, where a mark of their own is missing."""

    def marks(self, tensors: Mapping[str, Any]) -> bool:
        """Whether these may be such a file's tensors, by the marks."""
        return (not self.mark or self.mark in tensors) and self.without not in tensors

    def found(self, name: str) -> tuple[int, tuple[str, ...]] | None:
        """Of a tensor with a site's values: the kind of the site, and its words and numbers."""
        for kind, pattern in enumerate(self.patterns):
            places = pattern.places(name)
            if places is not None:
                return kind, places
        return None


class FileNames(NamedTuple):
    """The names of a family of transformers."""

    family: str

    spellings: tuple[Spelling, ...]
    """The first is ComfyUI's own."""

    library: Spelling | None = None
    """That of the diffusers library, None if it loads no LoRA into it."""

    shared: tuple[int, ...] = ()
    """Kinds of sites, by their number in a spelling, whose projections text and picture share."""

    libraries: tuple[tuple[str, Spelling], ...] = ()
    """Where the library names some models of a family otherwise: a tensor that ComfyUI's or the
    library's files of these have -> the spelling."""


def transformer_in_file(
    names: FileNames, shapes: Mapping[str, tuple[int, ...]]
) -> TransformerFile | None:
    """The transformer of a family among a file's tensors, or None."""
    own = names.spellings[0].patterns
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
        for spelling in names.spellings:
            if not spelling.marks(inside):
                continue
            found = [each for name in inside if (each := spelling.found(name))]
            if found:
                sites = {own[kind].named(at): _Place(kind, at) for kind, at in found}
                return TransformerFile(names, spelling, prefix, inside, sites)
    return None


class _Place(NamedTuple):
    """Which site it is."""

    kind: int
    at: tuple[str, ...]


def _lora_name(module: str) -> str:
    return f"lora_unet_{module}".replace(".", "_")


@dataclass(frozen=True)
class TransformerFile:
    """A transformer in a file."""

    names: FileNames

    spelling: Spelling
    """The file's."""

    prefix: str

    shapes: dict[str, tuple[int, ...]]
    """Tensor name without the prefix -> shape."""

    in_this_file: dict[str, _Place]
    """Site, named as ComfyUI's modules are -> its place."""

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

    def shares(self, site: str) -> bool:
        return site != self.entry and self.in_this_file[site].kind in self.names.shared

    def widths(self, text: bool = False) -> dict[str, int]:
        if text:
            sites = self.sites if self.entry is None else (self.entry,)
            return {site: self._shape(self._name(site, "keys", "weight"), 2)[1] for site in sites}
        return {site: self.weight(site, "values").count for site in self.sites}

    def weight(self, site: str, role: Role) -> FileRows:
        return self._rows(site, role, "weight", 2)

    def bias(self, site: str, role: Role) -> FileRows | None:
        if self._name(site, role, "bias") not in self.shapes:
            return None
        return self._rows(site, role, "bias", 1)

    @cached_property
    def library(self) -> Spelling | None:
        """How the diffusers library names this model's sites, None if it loads no LoRA into it."""
        for mark, spelling in self.names.libraries:
            if mark in self.shapes:
                return spelling
        return self.names.library

    def lora_rows(self, site: str, role: Role) -> FileRows:
        if site == self.entry:
            rows = self.weight(site, role)
            return FileRows(_lora_name(site), rows.start, rows.count, rows.total)
        own, here = (self._pattern(each, site) for each in (self.names.spellings[0], self.spelling))
        name = _lora_name(f"{site}.{own.module(role)}")
        if here.fused or not own.fused:
            rows = self.weight(site, role)
            return FileRows(name, rows.start, rows.count, rows.total)
        path = here.named(self.in_this_file[site].at)
        counts = {part: self._shape(f"{path}.{part}.weight", 2)[0] for part in here.parts}
        start = sum(counts[part] for part in here.parts[: here.parts.index(here.module(role))])
        return FileRows(name, start, counts[here.module(role)], sum(counts.values()))

    def library_lora_rows(self, site: str, role: Role) -> FileRows:
        library = self.library
        if library is None:
            raise ModelFileError(
                "The diffusers library loads no LoRA into such a model: write one for ComfyUI."
            )
        count = self.weight(site, role).count
        if site == self.entry:
            return FileRows(f"transformer.{library.entry}", 0, count, count)
        pattern = self._pattern(library, site)
        path = f"{pattern.named(self.in_this_file[site].at)}.{pattern.module(role)}"
        if pattern.fused:
            return replace(self.weight(site, role), tensor=f"transformer.{path}")
        return FileRows(f"transformer.{path}", 0, count, count)

    def diffusers_name(self, key: str) -> str:
        raise ModelFileError(
            "Transformers are not written as diffusers folders: export a checkpoint, or a LoRA in "
            "the form for diffusers."
        )

    def diffusers_config(self) -> dict[str, Any]:
        self.diffusers_name("")
        raise AssertionError

    def _pattern(self, spelling: Spelling, site: str) -> Pattern:
        return spelling.patterns[self.in_this_file[site].kind]

    def _name(self, site: str, role: Role, end: str) -> str:
        if site == self.entry:
            return f"{self.spelling.entry}.{end}"
        pattern = self._pattern(self.spelling, site)
        return f"{pattern.named(self.in_this_file[site].at)}.{pattern.module(role)}.{end}"

    def _shape(self, name: str, axes: int) -> tuple[int, ...]:
        if name not in self.shapes:
            raise ModelFileError(
                f"The file has no tensor '{self.prefix}{name}', which was to be edited."
            )
        if len(shape := self.shapes[name]) != axes:
            raise ModelFileError(
                f"The file's tensor '{self.prefix}{name}' is not what attention has there: "
                f"expected {axes} axes, got the shape {shape}."
            )
        return shape

    def _rows(self, site: str, role: Role, end: str, axes: int) -> FileRows:
        name = self._name(site, role, end)
        total = self._shape(name, axes)[0]
        if site == self.entry:
            return FileRows(self.prefix + name, 0, total, total)
        layout = self._pattern(self.spelling, site).layout
        rows, into = self._shape(self._name(site, role, "weight"), 2)
        start, count = rows_in(layout, role, rows, into)
        if total != rows or not _fits(layout, rows, into):
            raise ModelFileError(
                f"The file's tensor '{self.prefix}{name}' is not what attention has there: its "
                f"shape {self.shapes[name]} cannot hold {_HOLDS[layout]}."
            )
        return FileRows(self.prefix + name, start, count, total)
