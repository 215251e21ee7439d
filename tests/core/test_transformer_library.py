"""Transformers of the diffusers library: erased in its own files, and LoRAs that it loads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Kandinsky5Transformer3DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn

from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import ModelFileError
from pure_core.export import Source, export_checkpoint, lora_tensors
from pure_core.export.lora import DIFFUSERS
from pure_core.families import model_in_file
from tests.core.test_eraser import provenance

TEXT = 16


def wan() -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        ffn_dim=32,
        text_dim=TEXT,
        freq_dim=16,
        in_channels=4,
        out_channels=4,
    )


def ltx() -> nn.Module:
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT,
    )


def kandinsky() -> nn.Module:
    return Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )


def pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
        sample_size=8,
    )


BUILT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "wan": (wan, 2),
    "ltx": (ltx, 2),
    "kandinsky5": (kandinsky, 1),
    "pixart": (pixart, 2),
}
"""Family -> a small random model of the library, and its heads."""


def erased(family: str, folder: Path) -> tuple[nn.Module, Path, Eraser]:
    """A model, its file and an eraser by head for it."""
    torch.manual_seed(0)
    build, heads = BUILT[family]
    net, path = build(), folder / "source.safetensors"
    save_file(net.state_dict(), path)
    shapes = {name: tuple(each.shape) for name, each in net.state_dict().items()}
    return net, path, any_eraser(family, model_in_file(shapes, "it").widths(), heads)


def any_eraser(family: str, widths: dict[str, int], heads: int) -> Eraser:
    layers = {
        name: LayerEraser(
            torch.randn(heads, d // heads, 2), torch.randn(heads, 2, d // heads) / d**0.5
        )
        for name, d in widths.items()
    }
    made = provenance("keys and values")
    return Eraser(layers, replace(made, model=replace(made.model, family=family)))


def edited(net: nn.Module, eraser: Eraser, module: Callable[[str, str], str]) -> nn.Module:
    """The network with the formula applied to keys and values."""
    twin = copy.deepcopy(net)
    for site, layer in eraser.layers.items():
        for role in ("keys", "values"):
            linear: Any = twin.get_submodule(module(site, role))
            linear.weight.data = layer.P @ linear.weight.data
            if linear.bias is not None:
                linear.bias.data = layer.P @ linear.bias.data
    return twin


def module_of(family: str) -> Callable[[str, str], str]:
    """A site's name as ComfyUI has it, and a role -> the library's module."""

    def find(site: str, role: str) -> str:
        if family == "kandinsky5":
            return f"{site}.to_{'key' if role == 'keys' else 'value'}"
        path = site.replace("cross_attn", "attn2")
        if family == "pixart":
            path = f"transformer_{path}"
        return f"{path}.to_{role[0]}"

    return find


@pytest.mark.parametrize("family", BUILT)
def test_its_files_are_erased_under_their_own_names(family, tmp_path):
    net, path, eraser = erased(family, tmp_path)
    export_checkpoint(path, tmp_path / "erased.safetensors", [eraser], any_source=True)
    expected = edited(net, eraser, module_of(family)).state_dict()
    found = load_file(tmp_path / "erased.safetensors")
    assert found.keys() == expected.keys()
    for name, each in found.items():
        assert torch.allclose(each, expected[name], atol=1e-5), name


@pytest.mark.parametrize("family", [name for name in BUILT if name != "pixart"])
def test_it_loads_the_lora_with_biases(family, tmp_path):
    net, path, eraser = erased(family, tmp_path)
    source = Source.open(path, [eraser], any_source=True)
    state = lora_tensors(source.model, [eraser], source, form=DIFFUSERS)
    biased = {name for name in state if name.endswith("lora_B.bias")}
    assert len(biased) == 2 * len(eraser.layers)
    expected = edited(net, eraser, module_of(family))
    net.load_lora_adapter(state, prefix="transformer")
    net.fuse_lora()
    for site in eraser.layers:
        for role in ("keys", "values"):
            name = module_of(family)(site, role)
            one, other = net.get_submodule(name), expected.get_submodule(name)
            assert torch.allclose(one.weight, other.weight, atol=1e-5)
            assert torch.allclose(one(torch.zeros(1, one.in_features)), other.bias, atol=1e-5)


def test_where_it_has_no_loader_that_is_said(tmp_path):
    _, path, eraser = erased("pixart", tmp_path)
    source = Source.open(path, [eraser], any_source=True)
    with pytest.raises(ModelFileError, match="write one for ComfyUI"):
        lora_tensors(source.model, [eraser], source, form=DIFFUSERS)
