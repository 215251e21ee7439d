"""Erasers for a small U-Net file, and what they make of its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from pure_core.eraser import Eraser, LayerEraser, Provenance, Side
from pure_core.export import Source, Step, UNetKeys
from pure_core.files.safetensors_file import SafetensorsFile
from pure_core.sketch import sketch


def make_eraser(
    path: Path, seed: int = 0, edit: str = "keys and values", side: Side = "activations"
) -> Eraser:
    """Random factors of ranks 2 to 4; the eraser says it was fitted on that file."""
    shapes = {name: entry.shape for name, entry in SafetensorsFile.open(path).entries.items()}
    keys = UNetKeys.find(shapes, path.name)
    random = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    return Eraser(
        {
            name: LayerEraser(
                torch.randn(d, 2 + index % 3, generator=random) / d**0.5,
                torch.randn(2 + index % 3, d, generator=random) / d**0.5,
                side=side,
            )
            for index, (name, d) in enumerate(keys.widths(side).items())
        },
        Provenance(
            method="random",
            settings={"seed": seed},
            forget=("a dog", "a photo of a dog"),
            retain=("a cat",),
            edit=edit,  # type: ignore[arg-type]
            source_name=path.name,
            source_fingerprint="abc",
            source_sketch={
                name: sketch(tensors[keys.weight(name, "to_v")]) for name in keys.layers
            },
            created="2026-01-31",
            plugin_version="0.1.0",
        ),
    )


def expected(path: Path, steps: list[Step]) -> dict[str, torch.Tensor]:
    """The edited weights in float64, by dense matrices."""
    source = Source.open(path, steps, any_source=True)
    weights = {}
    for layer in source.keys.layers:
        for projection in ("to_k", "to_v"):
            key = source.keys.weight(layer, projection)
            weight = source.weight(layer, projection).double()
            for step in steps:
                factors = step.eraser.layers[layer]
                if projection in step.projections:
                    change = factors.proj_left.double() @ factors.proj_right.double()
                    if factors.side == "text":
                        weight = weight - step.strength * weight @ change
                    else:
                        weight = weight - step.strength * change @ weight
            weights[key] = weight
    return weights


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata, by the library alone."""
    with safe_open(path, framework="pt") as file:
        return load(path.read_bytes()), file.metadata()
