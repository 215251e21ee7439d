"""An erasure as a LoRA: the change of every weight has low rank, so two thin factors hold it all.

E W - W = -s L (R W), which is the LoRA with up = -L, down = R W, at strength s.
In text space it is W E - W = -s (W L) R, with up = -W L, down = R.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from ..eraser import SPACES, Eraser, LayerEraser, product, require_same_widths
from ..errors import EraserError, require_one_of
from ..families import ROLES, FileRows, ModelFile, Role
from ..files.atomic import atomic_file
from .source import require_suffix, roles_of, writing

LORA_DTYPES = {"float32": torch.float32, "float16": torch.float16}

COMFYUI, DIFFUSERS = "ComfyUI and kohya", "diffusers"

LORA_FORMS = (COMFYUI, DIFFUSERS)
"""Whose names a LoRA's tensors have. Of U-Nets the library reads the first as well."""


class Weights(Protocol):
    """The weights that a LoRA is to change."""

    def weight(self, site: str, role: Role) -> Tensor:
        """Keys or values of a site, (d, in)."""

    def bias(self, site: str, role: Role) -> Tensor | None:
        """Their bias (d,), if they have one."""


def lora_tensors(
    model: ModelFile,
    erasers: Sequence[Eraser],
    weights: Weights,
    dtype: torch.dtype = torch.float32,
    form: str = COMFYUI,
) -> dict[str, Tensor]:
    """The LoRA's tensors, exact except for the rounding to `dtype`.

    The rank is the eraser's, of all heads together. Loaded at strength s on the same weights it is
    E_s W; of several erasers it holds the product, each at its own strength.

    Args:
        model: The names of the model's weights.
        form: One of `LORA_FORMS`.

    Returns:
        `<name>.lora_up.weight` (d, r), `<name>.lora_down.weight` (r, in) and `<name>.alpha`, the
        same for all, for every weight that changes: W gains (alpha / r) up down. Where keys or
        values are rows of a larger weight, the other rows of `lora_up` are zero and parts of one
        weight lie one after the other. A bias gains `<name>.diff_b`. In the form for diffusers
        they are `<name>.lora_B.weight`, `<name>.lora_A.weight` and `<name>.lora_B.bias`, without
        alpha.

    Raises:
        EraserError: no erasers or nothing to change, an eraser of another architecture, or
            numbers that `dtype` cannot hold.
        ModelFileError: diffusers loads no LoRA into such a model.
    """
    require_one_of("form", form, LORA_FORMS)
    for eraser in erasers:
        require_same_widths(eraser.widths, model.widths(text=eraser.space == "text"))
    layers = dict.fromkeys([*([model.entry] if model.entry else []), *model.sites])
    products = {
        (site, role): found
        for site in layers
        for role in ROLES
        if (found := _products(erasers, site, role, model))
    }
    if not products:
        raise EraserError("The erasers change nothing (strength or rank 0): there is no LoRA.")
    changes: dict[str, _Change] = {}
    for (site, role), found in products.items():
        rows = model.library_lora_rows if form == DIFFUSERS else model.lora_rows
        place, bias = rows(site, role), weights.bias(site, role)
        up, down = _factors(found, weights.weight(site, role))
        change = changes.setdefault(place.tensor, _Change())
        change.add(place, up, down, sum(each.total_rank for each in found))
        if bias is not None and any(each.space == "activations" for each in found):
            change.add_bias(place, _changed(found, bias))
    named = _for_diffusers if form == DIFFUSERS else _for_comfyui
    return {
        name: each if name.endswith(".alpha") else _rounded(each, dtype, name)
        for name, each in named(changes).items()
    }


def _for_comfyui(changes: Mapping[str, _Change]) -> dict[str, Tensor]:
    """Loaders scale by alpha / r. One alpha for all, because diffusers mixes up several."""
    alpha = max(change.rank for change in changes.values())
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        up, down = change.factors
        tensors[f"{name}.lora_up.weight"] = up * (up.shape[1] / alpha)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
        if change.bias is not None:
            tensors[f"{name}.diff_b"] = change.bias
    return tensors


def _for_diffusers(changes: Mapping[str, _Change]) -> dict[str, Tensor]:
    """The library scales by 1 where no alpha is given."""
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"] = change.factors
        if change.bias is not None:
            tensors[f"{name}.lora_B.bias"] = change.bias
    return tensors


class _Change:
    """What is added to one weight and its bias."""

    def __init__(self) -> None:
        self.ups: list[Tensor] = []
        self.downs: list[Tensor] = []
        self.rank = 0
        self.bias: Tensor | None = None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Up (out, r) and down (r, in)."""
        return torch.cat(self.ups, dim=1), torch.cat(self.downs)

    def add(self, place: FileRows, up: Tensor, down: Tensor, rank: int) -> None:
        whole = up.new_zeros(place.total, up.shape[1])
        whole.narrow(0, place.start, place.count).copy_(up)
        self.ups.append(whole)
        self.downs.append(down)
        self.rank += rank

    def add_bias(self, place: FileRows, change: Tensor) -> None:
        if self.bias is None:
            self.bias = change.new_zeros(place.total)
        self.bias.narrow(0, place.start, place.count).add_(change)


def export_lora(
    target: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a LoRA file, complete or not at all.

    Raises:
        ModelFileError: the target exists, ends otherwise than in .safetensors or cannot be
            written.
    """
    target = Path(target)
    require_suffix(target)
    with writing(target), atomic_file(target) as file:
        file.write(save(dict(tensors), metadata=dict(metadata)))


def _products(
    erasers: Sequence[Eraser], site: str, role: Role, model: ModelFile
) -> list[LayerEraser]:
    """All erasers of one weight, first to last, as one for each space that changes anything."""
    layers = [
        eraser.layers[site].to("cpu", torch.float64).scaled(eraser.strength)
        for eraser in erasers
        if site in eraser.layers and role in roles_of(eraser, site, model)
    ]
    by_space = [[each for each in layers if each.space == space] for space in SPACES]
    products = [product(each) for each in by_space if each]
    return [each for each in products if each.rank]


def _changed(products: Sequence[LayerEraser], bias: Tensor) -> Tensor:
    """What all products add to a bias (d,), float64."""
    wide = bias.to("cpu", torch.float64)
    edited = wide
    for each in products:
        edited = each.edit_weight(edited)
    return edited - wide


def _factors(products: Sequence[LayerEraser], weight: Tensor) -> tuple[Tensor, Tensor]:
    """up D and D^-1 down in float64, for the change of a weight (d, in) by all products.

    Sides multiply from left and right, so their order does not matter, and the change of both,
    E W M - W = (E - I) W M + W (M - I), is made of the changes of each. D makes both factors of
    a direction equally large, so that float16 can hold them; its entries are powers of two, which
    round nothing.
    """
    wide = weight.to("cpu", torch.float64)
    ups, downs = [], []
    for each in reversed(products):  # the text's first
        up, down = each.change(wide)
        ups.append(up)
        downs.append(down)
        wide = wide + up @ down
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    if up.shape[1] > up.shape[0]:
        up, down = torch.eye(len(up), dtype=up.dtype), up @ down
    sizes = down.norm(dim=1) / up.norm(dim=0)
    usable = torch.isfinite(sizes) & (sizes > 0)
    scale = torch.where(usable, sizes, torch.ones_like(sizes)).sqrt().log2().round().exp2()
    return up * scale, down / scale[:, None]


def _rounded(factor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    rounded = factor.to(dtype).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        raise EraserError(
            f"{name} has numbers that {dtype} cannot hold. Lower the strength, or choose float32 "
            "if it is not chosen."
        )
    return rounded
