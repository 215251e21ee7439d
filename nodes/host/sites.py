"""The sites of the model in hand, and the names and values of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...pure_core.errors import PureError
from ...pure_core.families import ROLES, Family, Role, Rows, Site, family_of, known_models

PREFIX = "diffusion_model."

PatchKey = str | tuple[str, tuple[int, int, int]]
"""A weight as `ModelPatcher.add_patches` names it: all of it, or (axis, start, length) of it."""


class ModelError(PureError):
    """The model cannot be used for what was asked."""


@dataclass(frozen=True)
class Sites:
    """Where a model reads text."""

    family: Family
    net: nn.Module
    """The diffusion model."""

    sites: tuple[Site, ...]
    """In the order of the model's modules."""

    @classmethod
    def of(cls, model: ModelPatcher) -> Sites:
        """Find them.

        Raises:
            ModelError: the model is of no family that is known.
        """
        net = model.model.diffusion_model
        family = family_of(net)
        if family is None:
            raise ModelError(
                f"model: {architecture(model)} is not supported yet. Expected one of: "
                f"{known_models()}. CONTRIBUTING.md says how to add a family."
            )
        return cls(family, net, tuple(family.sites(net)))

    def widths(self, text: bool = False) -> dict[str, int]:
        """Site -> d, or the width of the text that it reads.

        Where all text enters through one map, that map stands for all sites that read it.
        """
        if text and self.entry is not None:
            entry: Any = self.net.get_submodule(self.entry.module)
            return {self.entry.module: entry.in_features}
        return {site.name: site.text_width if text else site.width for site in self.sites}

    @cached_property
    def entry(self) -> Rows | None:
        """Where all text enters: see `Family.text_entry`."""
        return self.family.text_entry(self.net)

    def rows(self, name: str, roles: Sequence[Role]) -> list[Rows]:
        """What an eraser's layer edits: a site's keys and values, or the text's entry."""
        if self.entry is not None and name == self.entry.module:
            return [self.entry]
        return [self[name].rows(role) for role in roles]

    def heads(self) -> dict[str, int]:
        """Site -> heads side by side in its h."""
        return {site.name: site.value_heads for site in self.sites}

    def require_text_width(self, width: int) -> None:
        """Raise ModelError if the layers do not read text vectors of this width."""
        wanted = self.family.text_width(self.net)
        if width != wanted:
            raise ModelError(
                f"clip: its vectors have {width} numbers and the model reads {wanted}. Connect the "
                "text encoder that belongs to the model."
            )

    def require_edits_text(self) -> None:
        """Raise ModelError if methods on the text do not reach all that the sites read."""
        if not self.family.edits_text(self.net):
            raise ModelError(
                f"model: methods on the text cannot edit {type(self.net).__name__}, in which text "
                "of several encoders is read side by side, or one text by picture and sound apart. "
                "Use PURE Capture and PURE Fit."
            )

    def __getitem__(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def require_plain_weights(self) -> None:
        """Raise ModelError if the projections are quantised, so that no patch can be exact."""
        every = [site.rows(role) for site in self.sites for role in ROLES]
        for rows in [*every, *([self.entry] if self.entry else [])]:
            weight = getattr(self.net.get_submodule(rows.module), "weight", None)
            if not is_plain(weight):
                kind = type(weight).__name__
                dtype = getattr(weight, "dtype", "an unknown type")
                raise ModelError(
                    f"model: the weights are quantised (layer {rows.module} holds {kind} of "
                    f"{dtype}), which cannot be edited exactly. Load the full-precision model "
                    "instead, and quantise after erasing."
                )


def is_plain(weight: Any) -> bool:
    """Whether a weight holds its numbers as they are, in floating point."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()


def patch_keys(rows: Rows, text: bool = False) -> list[PatchKey]:
    """The weight and, if it has one, the bias of some rows, which edits of the text leave alone."""
    names = [f"{PREFIX}{rows.module}.weight"]
    if rows.bias and not text:
        names.append(f"{PREFIX}{rows.module}.bias")
    return [name if rows.whole else (name, (0, rows.start, rows.count)) for name in names]


def tensor_of(key: PatchKey) -> str:
    """The name of the whole tensor that a key belongs to."""
    return key if isinstance(key, str) else key[0]


@torch.no_grad()
def effective_tensor(model: ModelPatcher, name: str) -> Tensor:
    """A whole weight or bias with every patch upstream, float32, by ComfyUI's arithmetic."""
    (weight, convert), *patches = model.get_key_patches(name)[name]
    copied = weight.to("cpu", torch.float32, copy=True)
    whole: Tensor = comfy.lora.calculate_weight(patches, convert(copied, inplace=True), name)
    return whole


class EffectiveWeights:
    """The keys and values of a model with every patch upstream: see `pure_core.export.lora`."""

    def __init__(self, model: ModelPatcher, sites: Sites) -> None:
        self.model, self.sites = model, sites

    def weight(self, site: str, role: Role) -> Tensor:
        """(d, in), float32."""
        (rows,) = self.sites.rows(site, [role])
        return rows.of(effective_tensor(self.model, f"{PREFIX}{rows.module}.weight"))

    def bias(self, site: str, role: Role) -> Tensor | None:
        """(d,), float32, if there is one."""
        (rows,) = self.sites.rows(site, [role])
        if not rows.bias:
            return None
        return rows.of(effective_tensor(self.model, f"{PREFIX}{rows.module}.bias"))


def architecture(model: ModelPatcher) -> str:
    """ComfyUI's name of the architecture, for example SD15 or SDXL."""
    return type(model.model.model_config).__name__


def display_name(model: ModelPatcher) -> str:
    """The model's name for people: its file where ComfyUI remembers it, and its architecture."""
    recipe = getattr(model, "cached_patcher_init", None)
    source = recipe[1][0] if recipe else None
    if not isinstance(source, str):
        return architecture(model)
    return f"{Path(source).name} ({architecture(model)})"
