"""An erasure as a LoRA: the change of every weight has low rank, so two thin factors hold it all.

E W - W = -s L (R W), which is the LoRA with up = -L, down = R W, at strength s; on the side of the
text W E - W = -s (W L) R, with up = -W L, down = R.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..atomic import atomic_file
from ..eraser import SIDES, LayerEraser, product, require_same_widths
from ..errors import EraserError
from .provenance import Step
from .source import require_suffix, writing
from .unet import UNetKeys

LORA_DTYPES = {"float32": torch.float32, "float16": torch.float16}

WeightOf = Callable[[str, str], Tensor]
"""Layer and projection -> the weight (d, in) that the LoRA is to change."""


def lora_tensors(
    keys: UNetKeys, steps: Sequence[Step], weight_of: WeightOf, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The LoRA's tensors under kohya's names, exact but for the rounding to `dtype`.

    The rank is the eraser's. Loaded at strength s on the same weights it is E_s W; of several
    erasers it holds the product, each at its own strength.

    Returns:
        `<name>.lora_up.weight` (d, r), `<name>.lora_down.weight` (r, in) and `<name>.alpha`, the
        same for all, for every weight that changes: W gains (alpha / r) up down.

    Raises:
        EraserError: no erasers or nothing to change, an eraser of another architecture, or
            numbers that `dtype` cannot hold.
    """
    for step in steps:
        require_same_widths(step.eraser.widths, keys.widths(step.eraser.side))
    products = {
        (layer, projection): found
        for layer in keys.layers
        for projection in ("to_k", "to_v")
        if (found := _products(steps, layer, projection))
    }
    if not products:
        raise EraserError("The erasers change nothing (strength or rank 0): there is no LoRA.")
    # Loaders scale by alpha / r. One alpha for all, because diffusers mixes up several.
    alpha = max(sum(each.rank for each in found) for found in products.values())
    tensors: dict[str, Tensor] = {}
    for (layer, projection), found in products.items():
        up, down = _factors(found, weight_of(layer, projection))
        module = f"{keys.diffusers_layer(layer)}.{projection}"
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{name}.lora_up.weight"] = _rounded(up * (up.shape[1] / alpha), dtype, name)
        tensors[f"{name}.lora_down.weight"] = _rounded(down, dtype, name)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


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


def _products(steps: Sequence[Step], layer: str, projection: str) -> list[LayerEraser]:
    """All erasers of one weight, first to last, as one for each side that changes anything."""
    erasers = [
        step.eraser.layers[layer].to("cpu", torch.float64).scaled(step.strength)
        for step in steps
        if projection in step.projections
    ]
    by_side = [[each for each in erasers if each.side == side] for side in SIDES]
    products = [product(each) for each in by_side if each]
    return [each for each in products if each.rank]


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
