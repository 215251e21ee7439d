"""Transformers in the sizes that were released, with random weights.

Sizes are those that ComfyUI finds in the files (comfy/model_detection.py). Where it leaves one to
the file's metadata, it is from the model's public configuration. Of some that are too large for
usual memories there is a form with all widths and fewer blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from comfy.model_patcher import ModelPatcher
from testbed.comfy.joint import FLUX, IDS, QWEN, Z_IMAGE, sd3_net
from testbed.comfy.transformers import COSMOS_1, COSMOS_2, CPU, KANDINSKY, PIXART, WAN, Kind, built

POOL = 2**24 - 3
"""Random numbers that all weights are cut from; an odd number, so that no two rows are alike."""


def _ids(tokens: int) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda random: {
        "t5xxl_ids": torch.randint(0, 32128, (tokens,), generator=random),
        "t5xxl_weights": torch.ones(tokens),
    }


def _pooled(random: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": torch.randn(1, 768, generator=random)}


def _long_pooled(random: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": torch.randn(1, 2048, generator=random)}


def _mt5(random: torch.Generator) -> dict[str, Any]:
    return {
        "attention_mask": (torch.arange(77) < 20).long()[None],
        "conditioning_mt5xl": torch.randn(1, 256, 2048, generator=random),
        "attention_mask_mt5xl": (torch.arange(256) < 30).long()[None],
    }


def _mask(_: torch.Generator) -> dict[str, Any]:
    return {"attention_mask": (torch.arange(128) < 20).long()[None]}


def _raw(_: torch.Generator) -> dict[str, Any]:
    return {"unprocessed_ltxav_embeds": True}


def _wan(config: str, sites: int, size: int, **net: Any) -> Kind:
    whole = {**WAN, "freq_dim": 256, "text_dim": 4096, **net}
    return Kind("wan", config, whole, sites, size, width=4096, tokens=512)


WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
WAN_5B = {
    "dim": 3072,
    "ffn_dim": 14336,
    "num_heads": 24,
    "num_layers": 30,
    "in_dim": 48,
    "out_dim": 48,
}
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}


def _cosmos(family: str, config: str, sites: int, **net: Any) -> Kind:
    of_family = COSMOS_1 if family == "cosmos1" else COSMOS_2
    whole = {**of_family, "adaln_lora_dim": 256, "crossattn_emb_channels": 1024, **net}
    return Kind(family, config, {**whole, "num_blocks": sites}, sites, 128, width=1024, tokens=512)


COSMOS_7B = {"model_channels": 4096, "num_heads": 32, "rope_t_extrapolation_ratio": 2.0}
COSMOS_2B = {"model_channels": 2048, "num_heads": 16}
COSMOS_14B = {"model_channels": 5120, "num_heads": 40}
COSMOS_1_14B = COSMOS_14B | {
    f"{ratio}_{axis}_extrapolation_ratio": 2.0 for ratio in ("rope", "extra") for axis in "hwt"
}


def _pixart(name: str, interpolation: int, micro_condition: bool, length: int) -> Kind:
    net = {
        **PIXART,
        "image_model": f"pixart_{name.lower()}",
        "num_heads": 16,
        "hidden_size": 1152,
        "depth": 28,
        "caption_channels": 4096,
        "input_size": 128,
        "pe_interpolation": interpolation,
        "model_max_length": length,
        "micro_condition": micro_condition,
    }
    return Kind("pixart", f"PixArt{name}", net, 28, 272, width=4096, tokens=20)


def _ltx(layers: int, head_dim: int) -> Kind:
    net = {
        "image_model": "ltxv",
        "num_layers": layers,
        "attention_head_dim": head_dim,
        "cross_attention_dim": 32 * head_dim,
    }
    return Kind("ltx", "LTXV", net, layers, 256, width=4096, tokens=128, beside=_mask)


def _ltx_2() -> Kind:
    net = {
        "image_model": "ltxav",
        "num_layers": 48,
        "attention_head_dim": 128,
        "cross_attention_dim": 4096,
        "use_middle_indices_grid": True,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "rope_type": "split",
        "frequencies_precision": "float64",
    }
    return Kind("ltx", "LTXAV", net, 48, 256, width=3840, tokens=128, beside=_raw)


def _kandinsky(config: str, sites: int, **net: Any) -> Kind:
    whole = {
        **KANDINSKY,
        "in_text_dim": 3584,
        "in_text_dim2": 768,
        "num_text_blocks": 2,
        "num_visual_blocks": sites,
        "time_dim": 512,
        "axes_dims": (32, 48, 48),
        "visual_embed_dim": 132,
        **net,
    }
    return Kind("kandinsky5", config, whole, sites, 128, width=3584, tokens=64, beside=_pooled)


KANDINSKY_2B = {"model_dim": 1792, "ff_dim": 7168, "axes_dims": (16, 24, 24)}
KANDINSKY_6B = {
    "model_dim": 2560,
    "ff_dim": 10240,
    "visual_embed_dim": 64,
    "rope_scale_factor": (1.0, 1.0, 1.0),
}
KANDINSKY_19B = {"model_dim": 4096, "ff_dim": 16384, "time_dim": 1024, "num_text_blocks": 4}

FLUX_12B = {
    **FLUX,
    "axes_dim": [16, 56, 56],
    "num_heads": 24,
    "hidden_size": 3072,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "depth": 19,
    "depth_single_blocks": 38,
    "yak_mlp": False,
    "txt_norm": False,
}
Z_IMAGE_6B = {
    **Z_IMAGE,
    "dim": 3840,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "ffn_dim_multiplier": 8 / 3,
    "multiple_of": 256,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_refiner_layers": 2,
}
QWEN_20B = {
    **QWEN,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
    "num_layers": 60,
}
KREA_12B = {
    "image_model": "krea2",
    "features": 6144,
    "channels": 16,
    "patch": 2,
    "layers": 28,
    "heads": 48,
    "kvheads": 12,
    "txtlayers": 12,
    "txtdim": 2560,
}
SD35_MEDIUM = {
    **sd3_net(24),
    "adm_in_channels": 2048,
    "num_patches": 384**2,
    "pos_embed_max_size": 384,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
    "qk_norm": "rms",
    "x_block_self_attn_layers": list(range(13)),
}


RELEASES = {
    "SD 3.5 Medium 2.5B": Kind(
        "sd3", "SD3", SD35_MEDIUM, 24, 128, width=4096, tokens=77, beside=_long_pooled
    ),
    "Z-Image 6B": Kind("lumina2", "ZImage", Z_IMAGE_6B, 30, 128, width=2560, tokens=40),
    "Flux.1 dev 12B": Kind(
        "flux",
        "Flux",
        FLUX_12B,
        57,
        128,
        width=4096,
        tokens=256,
        newer=(*IDS, "yak_mlp", "txt_norm"),
        beside=_pooled,
    ),
    "Krea 2 12B": Kind("krea2", "Krea2", KREA_12B, 28, 128, width=12 * 2560, tokens=40),
    "Qwen-Image 20B": Kind("qwen_image", "QwenImage", QWEN_20B, 60, 128, width=3584, tokens=40),
    "Wan 2.1 T2V 1.3B": _wan("WAN21_T2V", 30, 128, **WAN_1_3B),
    "Wan 2.1 VACE 1.3B": _wan(
        "WAN21_Vace", 45, 128, **WAN_1_3B, model_type="vace", vace_layers=15, vace_in_dim=96
    ),
    "Wan 2.1 Fun InP 1.3B": _wan("WAN21_I2V", 30, 128, **WAN_1_3B, model_type="i2v", in_dim=36),
    "Wan 2.2 TI2V 5B": _wan("WAN22_T2V", 30, 256, **WAN_5B),
    "Wan 2.1 T2V 14B": _wan("WAN21_T2V", 40, 128, **WAN_14B),
    "Cosmos 1 7B": _cosmos("cosmos1", "CosmosT2V", 28, **COSMOS_7B),
    "Cosmos 1 14B": _cosmos("cosmos1", "CosmosT2V", 36, **COSMOS_1_14B),
    "Cosmos-Predict2 2B": _cosmos("cosmos2", "CosmosT2IPredict2", 28, **COSMOS_2B),
    "Cosmos-Predict2 14B": _cosmos("cosmos2", "CosmosT2IPredict2", 36, **COSMOS_14B),
    "Anima 2B": _cosmos("cosmos2", "Anima", 28, **COSMOS_2B, image_model="anima")._replace(
        tokens=20, beside=_ids(24)
    ),
    "PixArt alpha 0.6B": _pixart("Alpha", 2, True, 120),
    "PixArt sigma 0.6B": _pixart("Sigma", 2, False, 300),
    "HunyuanDiT 1.2 1.5B": Kind(
        "hunyuan_dit",
        "HunyuanDiT",
        {"image_model": "hydit", "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637},
        40,
        128,
        width=1024,
        tokens=77,
        beside=_mt5,
    ),
    "LTX-Video 2B": _ltx(28, 64),
    "LTX-Video 13B": _ltx(48, 128),
    "LTX-2 19B": _ltx_2(),
    "Kandinsky 5 Lite video 2B": _kandinsky("Kandinsky5", 32, **KANDINSKY_2B),
    "Kandinsky 5 Lite image 6B": _kandinsky("Kandinsky5Image", 50, **KANDINSKY_6B),
    "Kandinsky 5 Pro video 19B": _kandinsky("Kandinsky5", 60, **KANDINSKY_19B),
}
"""As people name them -> what they are. Wan 2.2's 14B models are of the sizes of Wan 2.1's."""


def _cut(name: str, blocks: int) -> tuple[str, Kind]:
    """A release with fewer blocks, under a name that says so."""
    whole = RELEASES[name]
    counts = ("num_layers", "num_blocks", "n_layers", "layers", "depth", "depth_single_blocks")
    net = {
        key: value * blocks // whole.sites if key in counts else value
        for key, value in whole.net.items()
    }
    return f"{name}, {blocks} of {whole.sites} blocks", whole._replace(net=net, sites=blocks)


MODELS = RELEASES | dict(
    _cut(*each)
    for each in (
        ("Wan 2.1 T2V 14B", 6),
        ("Cosmos 1 7B", 8),
        ("LTX-2 19B", 12),
        ("Z-Image 6B", 10),
        ("Flux.1 dev 12B", 12),
        ("Krea 2 12B", 6),
        ("Qwen-Image 20B", 8),
    )
)
"""All that there is in full width."""


def weighs(name: str, dtype: torch.dtype) -> tuple[int, int]:
    """Parameters of a release, and the bytes they take; none is made."""
    net = built(MODELS[name], dtype, device=torch.device("meta")).diffusion_model
    every = list(net.parameters())
    return sum(each.numel() for each in every), sum(each.nbytes for each in every)


@torch.no_grad()
def full_size(name: str, dtype: torch.dtype, computed_in: torch.dtype | None) -> ModelPatcher:
    """A release with random weights on the CPU."""
    model = built(MODELS[name], dtype, computed_in)
    fill(model.diffusion_model)
    return ModelPatcher(model, CPU, CPU)


@torch.no_grad()
def fill(net: torch.nn.Module) -> None:
    """Weights that keep numbers at their size and norms near one, with no copy of a weight."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    start = 0
    for name, each in net.named_parameters():
        norm = each.ndim < 2 and "norm" in name.lower()
        scale = each[0].numel() ** -0.5 if each.ndim >= 2 else 0.1
        flat, done = each.view(-1), 0
        while done < len(flat):
            part = pool[start : start + len(flat) - done]
            flat[done : done + len(part)] = part * scale + norm
            done, start = done + len(part), (start + len(part)) % POOL
