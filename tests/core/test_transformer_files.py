"""Transformers in files: sites found in every spelling, and what LoRAs of them are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import ModelFileError
from pure_core.export.lora import COMFYUI, DIFFUSERS, lora_tensors
from pure_core.families import ROLES, FileRows
from pure_core.families.transformer_file import (
    PREFIXES,
    FileNames,
    Spelling,
    transformer_in_file,
)
from tests.core.test_eraser import provenance

D, TEXT = 8, 6
OWN = Spelling("*blocks.#.cross", "kv", "kv")
LIBRARY = Spelling("*stack.#.attn2", "to_k", "to_v", mark="embed.weight")
NAMES = FileNames("made up", (OWN, LIBRARY), LIBRARY)


def fused(prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"x.weight": (3,)}
    for block in ("blocks.0", "blocks.11", "more_blocks.0"):
        shapes[f"{prefix}{block}.cross.kv.weight"] = (2 * D, TEXT)
        shapes[f"{prefix}{block}.cross.kv.bias"] = (2 * D,)
    return shapes


def apart() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (3,)}
    for name in ("to_k", "to_v"):
        shapes[f"stack.0.attn2.{name}.weight"] = (D, TEXT)
    return shapes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_fused_rows_are_found_below_every_prefix(prefix):
    model = transformer_in_file(NAMES, fused(prefix))
    assert model is not None and (model.family, model.prefix) == ("made up", prefix)
    assert model.sites == ("blocks.0.cross", "blocks.11.cross", "more_blocks.0.cross")
    assert model.widths() == dict.fromkeys(model.sites, D)
    assert model.widths(text=True) == dict.fromkeys(model.sites, TEXT)
    name = f"{prefix}blocks.11.cross.kv.weight"
    assert model.weight("blocks.11.cross", "keys") == FileRows(name, 0, D, 2 * D)
    assert model.weight("blocks.11.cross", "values") == FileRows(name, D, D, 2 * D)
    bias = f"{prefix}blocks.11.cross.kv.bias"
    assert model.bias("blocks.11.cross", "values") == FileRows(bias, D, D, 2 * D)


def test_another_spelling_gives_the_same_names():
    model = transformer_in_file(NAMES, apart())
    assert model is not None and model.sites == ("blocks.0.cross",)
    place = model.weight("blocks.0.cross", "values")
    assert place == FileRows("stack.0.attn2.to_v.weight", 0, D, D)
    assert model.bias("blocks.0.cross", "values") is None
    assert model.lora_rows("blocks.0.cross", "values") == FileRows(
        "lora_unet_blocks_0_cross_kv", D, D, 2 * D
    )
    library = FileRows("transformer.stack.0.attn2.to_v", 0, D, D)
    assert model.library_lora_rows("blocks.0.cross", "values") == library
    without_mark = {name: shape for name, shape in apart().items() if name != "embed.weight"}
    assert transformer_in_file(NAMES, without_mark) is None


def test_damaged_files_are_refused():
    shapes = fused()
    odd = transformer_in_file(NAMES, shapes | {"blocks.0.cross.kv.weight": (2 * D + 1, TEXT)})
    with pytest.raises(ModelFileError, match="the first even, got the shape"):
        odd.weight("blocks.0.cross", "values")
    flat = transformer_in_file(NAMES, shapes | {"blocks.0.cross.kv.weight": (2 * D,)})
    with pytest.raises(ModelFileError, match="expected 2 axes"):
        flat.widths()
    shapes = apart()
    del shapes["stack.0.attn2.to_k.weight"]
    with pytest.raises(ModelFileError, match=r"has no tensor 'stack.0.attn2.to_k.weight'"):
        transformer_in_file(NAMES, shapes).weight("blocks.0.cross", "keys")
    with pytest.raises(ModelFileError, match="not written as diffusers folders"):
        transformer_in_file(NAMES, fused()).diffusers_config()
    nowhere = transformer_in_file(NAMES._replace(library=None), fused())
    with pytest.raises(ModelFileError, match="diffusers library loads no LoRA"):
        nowhere.library_lora_rows("blocks.0.cross", "values")


class Weights:
    """Random weights and biases."""

    def __init__(self, model) -> None:
        random = torch.Generator().manual_seed(0)
        places = [(site, role) for site in model.sites for role in ROLES]
        self.weights = {each: torch.randn(D, TEXT, generator=random) for each in places}
        self.biases = {each: torch.randn(D, generator=random) for each in places}

    def weight(self, site: str, role: str) -> Tensor:
        return self.weights[site, role]

    def bias(self, site: str, role: str) -> Tensor:
        return self.biases[site, role]


@pytest.mark.parametrize("form", [COMFYUI, DIFFUSERS])
def test_a_lora_changes_weight_and_bias_as_the_eraser_does(form):
    model = transformer_in_file(NAMES, fused())
    weights = Weights(model)
    random = torch.Generator().manual_seed(1)
    layers = {
        site: LayerEraser(
            torch.randn(2, 4, 3, generator=random), torch.randn(2, 3, 4, generator=random)
        )
        for site in model.sites
    }
    eraser = Eraser(layers, provenance("keys and values")).applied(0.5)
    tensors = lora_tensors(model, [eraser], weights, form=form)
    for (site, role), weight in weights.weights.items():
        layer = layers[site].scaled(0.5)
        if form == COMFYUI:
            name, start = f"lora_unet_{site}.kv".replace(".", "_"), D * (role == "values")
            up, down = (tensors[f"{name}.lora_{part}.weight"] for part in ("up", "down"))
            change = (up @ down * tensors[f"{name}.alpha"] / len(down))[start : start + D]
            bias = tensors[f"{name}.diff_b"][start : start + D]
        else:
            block = site.replace("blocks", "stack").replace("cross", "attn2")
            name = f"transformer.{block}.to_{role[0]}"
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            bias = tensors[f"{name}.lora_B.bias"]
        assert torch.allclose(weight + change, layer.P @ weight, atol=1e-5)
        before = weights.biases[site, role]
        assert torch.allclose(before + bias, layer.P @ before, atol=1e-5)
