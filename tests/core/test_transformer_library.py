"""Transformers of the diffusers library: erased in its own files, and LoRAs that it loads."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    Kandinsky5Transformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from torch import nn

from pure_core.eraser import Edit, Eraser, LayerEraser
from pure_core.errors import ModelFileError
from pure_core.export import Source, export_checkpoint, lora_tensors
from pure_core.export.lora import DIFFUSERS
from pure_core.families import model_in_file
from pure_core.files.eraser import load_eraser, save_eraser
from tests.core.test_cli import run
from tests.core.test_eraser import provenance

TEXT = 16


def wan(kind: type[nn.Module] = WanTransformer3DModel, **change: Any) -> nn.Module:
    return kind(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        ffn_dim=32,
        text_dim=TEXT,
        freq_dim=16,
        in_channels=4,
        out_channels=4,
        **change,
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


def ltx2() -> nn.Module:
    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        caption_channels=TEXT,
    )


def cosmos(embedding: str | None) -> nn.Module:
    return CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        text_embed_dim=TEXT,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        extra_pos_embed_type=embedding,
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


def hunyuan_dit() -> nn.Module:
    return HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=TEXT,
        cross_attention_dim_t5=8,
        pooled_projection_dim=16,
        text_len=4,
        text_len_t5=4,
    )


SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
BLOCKS = {"num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 4, 4)}


def sd3() -> nn.Module:
    return SD3Transformer2DModel(
        **SMALL,
        out_channels=4,
        sample_size=8,
        num_layers=3,
        joint_attention_dim=TEXT,
        caption_projection_dim=24,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )


def flux(kind: type[nn.Module] = FluxTransformer2DModel, **change: Any) -> nn.Module:
    return kind(**SMALL, **BLOCKS, joint_attention_dim=TEXT, **change)


def flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )


def lumina2() -> nn.Module:
    return Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(2, 2, 2),
        axes_lens=(16, 8, 8),
        cap_feat_dim=TEXT,
    )


def qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        **SMALL,
        out_channels=1,
        num_layers=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 4),
    )


def auraflow() -> nn.Module:
    return AuraFlowTransformer2DModel(
        **SMALL,
        out_channels=4,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=24,
        pos_embed_max_size=64,
    )


def hidream() -> nn.Module:
    return HiDreamImageTransformer2DModel(
        **SMALL,
        **BLOCKS,
        patch_size=2,
        out_channels=4,
        caption_channels=[TEXT, TEXT],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )


def z_image() -> nn.Module:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[4, 4, 4],
        axes_lens=[64, 8, 8],
    )


class Built(NamedTuple):
    """A small random model of the library."""

    family: str
    build: Callable[[], nn.Module]
    heads: int = 2

    values: tuple[tuple[str, str], ...] = ()
    """Where text and picture share an attention, whose values alone are edited: a site as ComfyUI
    names it, with the number in brackets, and the library's module."""


FUSED = "to_qkv_mlp_proj"
"""Of Flux.2: queries, keys, values and what goes into the MLP."""

ADDED, ALONE = r"{}_blocks.\1.attn.add_v_proj", r"single_transformer_blocks.\1.attn.to_v"
FLUX = (
    (r"double_blocks.(\d).txt_attn", ADDED.format("transformer")),
    (r"single_blocks.(\d)", ALONE),
)
BUILT = {
    "Wan": Built("wan", wan),
    "Wan I2V": Built("wan", partial(wan, image_dim=8, added_kv_proj_dim=24)),
    "Wan VACE": Built(
        "wan", partial(wan, WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=6)
    ),
    "Cosmos 1": Built("cosmos1", partial(cosmos, "learnable")),
    "Cosmos-Predict2": Built("cosmos2", partial(cosmos, None)),
    "LTX-Video": Built("ltx", ltx),
    "LTX-2": Built("ltx", ltx2),
    "Kandinsky 5": Built("kandinsky5", kandinsky, heads=1),
    "PixArt": Built("pixart", pixart),
    "HunyuanDiT": Built("hunyuan_dit", hunyuan_dit),
    "SD3": Built(
        "sd3", sd3, values=((r"joint_blocks.(\d).context_block.attn", ADDED.format("transformer")),)
    ),
    "Flux": Built("flux", partial(flux, pooled_projection_dim=8), values=FLUX),
    "Chroma": Built(
        "flux",
        partial(
            flux,
            ChromaTransformer2DModel,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        values=FLUX,
    ),
    "Flux.2": Built(
        "flux",
        flux2,
        values=(FLUX[0], (FLUX[1][0], rf"single_transformer_blocks.\1.attn.{FUSED}")),
    ),
    "Lumina 2": Built(
        "lumina2", lumina2, values=((r"layers.(\d).attention", r"layers.\1.attn.to_v"),)
    ),
    "Qwen-Image": Built(
        "qwen_image", qwen, values=((r"transformer_blocks.(\d).attn", ADDED.format("transformer")),)
    ),
    "AuraFlow": Built(
        "auraflow",
        auraflow,
        values=(
            (r"double_layers.(\d).attn", ADDED.format("joint_transformer")),
            (r"single_layers.(\d).attn", ALONE),
        ),
    ),
    "HiDream": Built(
        "hidream",
        hidream,
        values=(
            (
                r"double_stream_blocks.(\d).block.attn1",
                r"double_stream_blocks.\1.block.attn1.to_v_t",
            ),
            (r"single_stream_blocks.(\d).block.attn1", r"single_stream_blocks.\1.block.attn1.to_v"),
        ),
    ),
    "Z-Image": Built("lumina2", z_image, values=((r"(layers.\d.attention)", r"\1.to_v"),)),
}
WITHOUT_LOADER = ("PixArt", "HunyuanDiT")
"""The library loads no LoRA into these."""


def erased(name: str, folder: Path) -> tuple[nn.Module, Path, Eraser]:
    """A model, its file and an eraser by head for it."""
    torch.manual_seed(0)
    family, build, heads, *_ = BUILT[name]
    net, path = build(), folder / "source.safetensors"
    save_file(net.state_dict(), path)
    shapes = {name: tuple(each.shape) for name, each in net.state_dict().items()}
    edit = "values" if BUILT[name].values else "keys and values"
    return net, path, any_eraser(family, model_in_file(shapes, "it").widths(), heads, edit)


def any_eraser(family: str, widths: dict[str, int], heads: int, edit: Edit) -> Eraser:
    layers = {
        name: LayerEraser(
            torch.randn(heads, d // heads, 2), torch.randn(heads, 2, d // heads) / d**0.5
        )
        for name, d in widths.items()
    }
    made = provenance(edit)
    return Eraser(layers, replace(made, model=replace(made.model, family=family)))


def edited(net: nn.Module, eraser: Eraser, module: Callable[[str, str], str]) -> nn.Module:
    """The network with the formula applied to keys and values."""
    twin = copy.deepcopy(net)
    for site, layer in eraser.layers.items():
        for role in eraser.roles:
            path = module(site, role)
            linear: Any = twin.get_submodule(path)
            d = linear.in_features
            rows = slice(2 * d, 3 * d) if path.endswith(FUSED) else slice(None)
            linear.weight.data[rows] = layer.P @ linear.weight.data[rows]
            if linear.bias is not None:
                linear.bias.data[rows] = layer.P @ linear.bias.data[rows]
    return twin


def module_of(name: str) -> Callable[[str, str], str]:
    """A site's name as ComfyUI has it, and a role -> the library's module."""

    def find(site: str, role: str) -> str:
        for pattern, module in BUILT[name].values:
            if found := re.fullmatch(pattern, site):
                return found.expand(module)
        if name == "Kandinsky 5":
            return f"{site}.to_{'key' if role == 'keys' else 'value'}"
        if "Wan" in name or name == "HunyuanDiT":
            return f"{site.replace('cross_attn', 'attn2')}.to_{role[0]}"
        number = re.search(r"\d+", site)
        assert number is not None
        return f"transformer_blocks.{number.group()}.attn2.to_{role[0]}"

    return find


@pytest.mark.parametrize("name", BUILT)
def test_its_files_are_erased_under_their_own_names(name, tmp_path):
    net, path, eraser = erased(name, tmp_path)
    export_checkpoint(path, tmp_path / "erased.safetensors", [eraser], any_source=True)
    expected = edited(net, eraser, module_of(name)).state_dict()
    found = load_file(tmp_path / "erased.safetensors")
    assert found.keys() == expected.keys()
    for tensor, each in found.items():
        assert torch.allclose(each, expected[tensor], atol=1e-5), tensor


@pytest.mark.parametrize("name", [each for each in BUILT if each not in WITHOUT_LOADER])
def test_it_loads_the_lora_with_biases(name, tmp_path):
    net, path, eraser = erased(name, tmp_path)
    source = Source.open(path, [eraser], any_source=True)
    state = lora_tensors(source.model, [eraser], source, form=DIFFUSERS)
    biased = {each for each in state if each.endswith("lora_B.bias")}
    module = module_of(name)
    linears = [net.get_submodule(module(s, r)) for s in eraser.layers for r in eraser.roles]
    assert len(biased) == sum(each.bias is not None for each in linears)
    expected = edited(net, eraser, module)
    net.load_lora_adapter(state, prefix="transformer")
    net.fuse_lora()
    for site in eraser.layers:
        for role in eraser.roles:
            path = module(site, role)
            one, other = net.get_submodule(path), expected.get_submodule(path)
            assert torch.allclose(one.weight, other.weight, atol=1e-5)
            if other.bias is not None:
                zero = torch.zeros(1, one.in_features)
                assert torch.allclose(one(zero), other.bias, atol=1e-5)


def test_the_command_line_takes_a_transformer_and_an_eraser_by_head(tmp_path):
    net, path, eraser = erased("Wan", tmp_path)
    one, both = tmp_path / "one.safetensors", tmp_path / "both.safetensors"
    save_eraser(eraser, one)
    target, lora = tmp_path / "erased.safetensors", tmp_path / "lora.safetensors"
    for words in (
        ("apply", path, one, "--any-source", "-o", target),
        ("lora", path, one, "--any-source", "--form", DIFFUSERS, "-o", lora),
        ("merge", one, one, "-o", both),
    ):
        done = run(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
    expected = edited(net, eraser, module_of("Wan")).state_dict()
    found = load_file(target)
    assert all(torch.allclose(found[name], each, atol=1e-5) for name, each in expected.items())
    source = Source.open(path, [eraser], any_source=True)
    wanted = lora_tensors(source.model, [eraser], source, form=DIFFUSERS)
    state = load_file(lora)
    assert state.keys() == wanted.keys() and any(name.endswith("bias") for name in state)
    assert all(torch.equal(state[name], each) for name, each in wanted.items())
    joined = load_eraser(both)
    assert joined.heads == eraser.heads
    for name, layer in joined.layers.items():
        single = eraser.layers[name].P
        assert torch.allclose(layer.P, single @ single, atol=1e-5)
    shown = run("inspect", one, target, lora)
    assert shown.returncode == 0 and shown.stdout.count("heads: each by itself") == 1
    refused = run("diffusers", path, one, "--any-source", "-o", tmp_path / "folder")
    assert refused.returncode == 1 and "not written as diffusers folders" in refused.stderr


@pytest.mark.parametrize("name", WITHOUT_LOADER)
def test_where_it_has_no_loader_that_is_said(name, tmp_path):
    net, path, eraser = erased(name, tmp_path)
    assert not hasattr(net, "load_lora_adapter")
    source = Source.open(path, [eraser], any_source=True)
    with pytest.raises(ModelFileError, match="write one for ComfyUI"):
        lora_tensors(source.model, [eraser], source, form=DIFFUSERS)
