"""Erasers that tests make up, and what they do to a weight, by the formula."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Edit, Eraser, LayerEraser, Provenance
from comfyui_pure.pure_core.export import export_checkpoint
from comfyui_pure.pure_core.model_identity import ModelIdentity
from safetensors.torch import load_file, save_file

import comfy.sd
from comfy.model_patcher import ModelPatcher

ROUNDING = 2e-6
"""Largest difference of float32 arithmetic from float64, relative to the largest weight."""


def random_eraser(
    model: ModelPatcher,
    edit: Edit = "keys and values",
    rank: int = 5,
    seed: int = 0,
    by_head: bool = False,
) -> Eraser:
    generator = torch.Generator().manual_seed(seed)

    def factors(*blocks: int, d: int) -> LayerEraser:
        left = torch.randn(*blocks, d, rank, generator=generator) / d**0.5
        return LayerEraser(left, torch.randn(*blocks, rank, d, generator=generator) / d**0.5)

    layers = {
        site.name: factors(site.value_heads, d=site.head_dim) if by_head else factors(d=site.width)
        for site in Sites.of(model).sites
    }
    return Eraser(
        layers,
        Provenance(
            method="random",
            settings={},
            forget=AnchorSet.written([["a ball"]]),
            retain=AnchorSet(),
            edit=edit,
            model=ModelIdentity("test (SD15)", family=Sites.of(model).family.name, fingerprint="0"),
            created="2026-01-01",
            plugin_version="0",
        ),
    )


def dense(layer: LayerEraser, strength: float = 1.0) -> torch.Tensor:
    """E as a (d, d) float64 matrix."""
    identity = torch.eye(layer.width, dtype=torch.float64)
    whole = layer.dense()
    return identity - strength * whole.proj_left.double() @ whole.proj_right.double()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


class Pair(NamedTuple):
    """A U-Net as it is, and the same with an eraser multiplied into its file.

    Both files are float32: PURE Patch on the one and loading the other give the same bits, so that
    whatever is put around them has to give the same bits too.
    """

    path: Path
    model: ModelPatcher
    eraser: Eraser
    erased_path: Path
    erased: ModelPatcher

    def patched(self, model: ModelPatcher | None = None) -> ModelPatcher:
        """What PURE Patch makes of the U-Net, or of it with something around it."""
        return patch(model or self.model, self.eraser).model

    @classmethod
    def make(cls, checkpoint: Path, folder: Path) -> Pair:
        path, erased_path = folder / "unet.safetensors", folder / "erased.safetensors"
        tensors = load_file(checkpoint).items()
        unet = {name: t.float() for name, t in tensors if name.startswith("model.diffusion_model.")}
        save_file(unet, path)
        model = comfy.sd.load_diffusion_model(str(path))
        eraser = random_eraser(model)
        export_checkpoint(path, erased_path, [eraser], any_source=True)
        return cls(
            path, model, eraser, erased_path, comfy.sd.load_diffusion_model(str(erased_path))
        )
