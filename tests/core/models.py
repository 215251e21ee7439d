"""Erasers for a small U-Net file, and what they make of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from pure_core.anchors import AnchorSet
from pure_core.eraser import Edit, Eraser, LayerEraser, Provenance, Space
from pure_core.export import Source
from pure_core.families import ROLES, ModelFile, model_in_file
from pure_core.files.safetensors_file import SafetensorsFile
from pure_core.model_identity import ModelIdentity
from pure_core.sketch import sketch


def model_in(path: Path) -> ModelFile:
    shapes = {name: entry.shape for name, entry in SafetensorsFile.open(path).entries.items()}
    return model_in_file(shapes, path.name)


def make_eraser(
    path: Path, seed: int = 0, edit: Edit = "keys and values", space: Space = "activations"
) -> Eraser:
    """Random factors of ranks 2 to 4; the eraser says it was fitted on that file."""
    model = model_in(path)
    random = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    sketches = {site: sketch(tensors[model.weight(site, "values").tensor]) for site in model.sites}
    return Eraser(
        {
            name: LayerEraser(
                torch.randn(d, 2 + index % 3, generator=random) / d**0.5,
                torch.randn(2 + index % 3, d, generator=random) / d**0.5,
                space=space,
            )
            for index, (name, d) in enumerate(model.widths(text=space == "text").items())
        },
        Provenance(
            method="random",
            settings={"seed": seed},
            forget=AnchorSet.phrased(["a dog"], ["{}", "a photo of {}"]),
            retain=AnchorSet.phrased(["a cat"], ["{}"]),
            edit=edit,
            model=ModelIdentity(path.name, model.family, "abc", "float32", sketches),
            created="2026-01-31",
            plugin_version="0.1.0",
        ),
    )


def expected(path: Path, erasers: Sequence[Eraser]) -> dict[str, torch.Tensor]:
    """The edited weights in float64, by dense matrices."""
    source = Source.open(path, erasers, any_source=True)
    weights = {}
    for site in source.model.sites:
        for role in ROLES:
            weight = source.weight(site, role).double()
            for eraser in erasers:
                factors = eraser.layers[site]
                if role in eraser.roles:
                    change = factors.proj_left.double() @ factors.proj_right.double()
                    if factors.space == "text":
                        weight = weight - eraser.strength * weight @ change
                    else:
                        weight = weight - eraser.strength * change @ weight
            weights[source.model.weight(site, role).tensor] = weight
    return weights


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata, by the library alone."""
    with safe_open(path, framework="pt") as file:
        return load(path.read_bytes()), file.metadata()
