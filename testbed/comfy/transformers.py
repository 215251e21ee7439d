"""Every transformer family, small and with random weights.

All is built by ComfyUI's own classes, with the same parts as the full size and few channels. The
text is made up as the vectors that an encoder would give: what a text encoder does is not at stake.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from comfyui_pure.nodes.host.conditioning import Encoded

import comfy.sd
import comfy.supported_models
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from testbed.comfy.joint import JOINT, KREA_TEXT, POOLED
from testbed.comfy.kind import TEXT, TOKENS, Kind

CPU = torch.device("cpu")
OLD = os.environ["PURE_COMFY_VERSION"] == "0.3.75"


COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "crossattn_emb_channels": TEXT,
    "rope_t_extrapolation_ratio": 1.0,
}
COSMOS_1 = {
    **COSMOS,
    "image_model": "cosmos",
    "model_channels": 96,
    "num_heads": 3,
    "block_config": "FA-CA-MLP",
    "pos_emb_learnable": False,
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
}
COSMOS_2 = {
    **COSMOS,
    "image_model": "cosmos_predict2",
    "model_channels": 64,
    "num_heads": 2,
    "pos_emb_learnable": True,
    "min_fps": 1,
    "max_fps": 30,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "out_dim": 16,
    "in_dim": 16,
    "num_heads": 2,
    "ffn_dim": 128,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 32,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "text_dim": TEXT,
}
HUNYUAN_DIT = {
    "image_model": "hydit",
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "text_states_dim": TEXT,
    "text_states_dim_t5": 40,
    "text_len": TOKENS,
    "text_len_t5": 9,
    "mlp_ratio": 4.0,
}
PIXART = {
    "num_heads": 2,
    "patch_size": 2,
    "hidden_size": 64,
    "in_channels": 4,
    "depth": 2,
    "caption_channels": TEXT,
    "input_size": 8,
    "pe_interpolation": 1,
}
KANDINSKY = {
    "image_model": "kandinsky5",
    "model_dim": 64,
    "axes_dims": (8, 12, 12),
    "time_dim": 32,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "in_text_dim": TEXT,
    "in_text_dim2": 40,
}


def _mt5(random: torch.Generator) -> dict[str, Any]:
    return {
        "attention_mask": torch.ones(1, TOKENS),
        "conditioning_mt5xl": torch.randn(1, 9, 40, generator=random),
        "attention_mask_mt5xl": torch.ones(1, 9),
    }


def _t5_ids(random: torch.Generator) -> dict[str, Any]:
    length = int(torch.randint(5, 12, (), generator=random))
    return {
        "t5xxl_ids": torch.randint(0, 100, (length,), generator=random),
        "t5xxl_weights": torch.ones(length),
    }


def _pooled(random: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": torch.randn(1, 40, generator=random)}


def _mask(random: torch.Generator) -> dict[str, Any]:
    used = int(torch.randint(3, TOKENS + 1, (), generator=random))
    return {"attention_mask": (torch.arange(TOKENS) < used).long()[None]}


KINDS = {
    "Wan 2.1 T2V": Kind("wan", "WAN21_T2V", WAN, 2),
    "Wan 2.1 I2V": Kind("wan", "WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, 2),
    "Wan 2.1 VACE": Kind(
        "wan",
        "WAN21_Vace",
        {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        3,
    ),
    "Wan 2.2 5B": Kind("wan", "WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, 2, 128),
    "Cosmos 1": Kind("cosmos1", "CosmosT2V", COSMOS_1, 2),
    "Cosmos-Predict2": Kind("cosmos2", "CosmosT2IPredict2", COSMOS_2, 2),
    "Anima": Kind(
        "cosmos2",
        "Anima",
        {**COSMOS_2, "image_model": "anima", "crossattn_emb_channels": 1024},
        2,
        width=1024,
        beside=_t5_ids,
    ),
    "PixArt alpha": Kind(
        "pixart",
        "PixArtAlpha",
        {
            **PIXART,
            "hidden_size": 96,
            "image_model": "pixart_alpha",
            "model_max_length": 120,
            "micro_condition": True,
        },
        2,
        288,
    ),
    "PixArt sigma": Kind(
        "pixart",
        "PixArtSigma",
        {
            **PIXART,
            "image_model": "pixart_sigma",
            "model_max_length": 300,
            "micro_condition": False,
        },
        2,
        288,
    ),
    "HunyuanDiT": Kind("hunyuan_dit", "HunyuanDiT", HUNYUAN_DIT, 4, beside=_mt5),
    "LTX-Video": Kind(
        "ltx",
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "cross_attention_dim": 48,
            "caption_channels": TEXT,
            "in_channels": 128,
        },
        2,
        128,
        beside=_mask,
    ),
    "LTX-2": Kind(
        "ltx",
        "LTXAV",
        {
            "image_model": "ltxav",
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "audio_attention_head_dim": 12,
            "audio_num_attention_heads": 2,
            "cross_attention_dim": 48,
            "audio_cross_attention_dim": 24,
            "caption_channels": TEXT,
            "in_channels": 128,
            "apply_gated_attention": True,
            "connector_attention_head_dim": 24,
            "connector_num_attention_heads": 2,
            "connector_num_layers": 1,
        },
        2,
        128,
        beside=lambda _: {"unprocessed_ltxav_embeds": True},
    ),
    "Kandinsky 5 video": Kind(
        "kandinsky5", "Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, 2, beside=_pooled
    ),
    "Kandinsky 5 image": Kind(
        "kandinsky5", "Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}, 2, beside=_pooled
    ),
}


VARIANTS = {
    f"Wan {name}": Kind("wan", config, {**WAN, "model_type": kind, **change}, 2)
    for name, config, kind, change in (
        ("2.1 Fun Control", "WAN21_FunControl2V", "i2v", {"in_dim": 48}),
        ("2.1 Camera", "WAN21_Camera", "camera", {"in_dim": 32}),
        ("2.2 Camera", "WAN22_Camera", "camera_2.2", {"in_dim": 36}),
        ("2.1 HuMo", "WAN21_HuMo", "humo", {"in_dim": 36}),
        ("2.2 S2V", "WAN22_S2V", "s2v", {"audio_inject_layers": [0]}),
        ("2.2 Animate", "WAN22_Animate", "animate", {"in_dim": 36}),
        ("2.1 SCAIL", "WAN21_SCAIL", "scail", {"in_dim": 20}),
        ("2.2 Dancer", "WAN22_WanDancer", "wandancer", {"in_dim": 36}),
        ("2.1 SCAIL 2", "WAN21_SCAIL2", "scail2", {"in_dim": 20}),
        ("2.1 Causal", "WAN21_CausalAR_T2V", "t2v", {"causal_ar": True}),
        ("2.1 FlowRVS", "WAN21_FlowRVS", "flow_rvs", {}),
    )
} | {
    "Cosmos 1 from a picture": Kind("cosmos1", "CosmosI2V", {**COSMOS_1, "in_channels": 17}, 2),
    "Cosmos-Predict2 from a picture": Kind(
        "cosmos2", "CosmosI2VPredict2", {**COSMOS_2, "in_channels": 17}, 2
    ),
    "HunyuanDiT 1.1": Kind(
        "hunyuan_dit",
        "HunyuanDiT1",
        {**HUNYUAN_DIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        4,
        beside=_mt5,
    ),
}
"""Further kinds, which differ in what else they read."""

CROSS = KINDS | VARIANTS
"""All with a cross-attention."""

ALL = CROSS | JOINT


def no_such(name: str) -> str:
    """Why a kind is left out in this ComfyUI; empty if it is not."""
    return missing(ALL[name])


def missing(kind: Kind) -> str:
    """The same of a kind in hand."""
    known = hasattr(comfy.supported_models, kind.config) and not (kind.new and OLD)
    return "" if known else f"this ComfyUI has no {kind.config}"


TEXT_KEYS = (
    "text_dim",
    "caption_channels",
    "in_text_dim",
    "text_states_dim",
    "crossattn_emb_channels",
)
"""What the families call the width of text vectors."""


@torch.no_grad()
def transformer(name: str, seed: int = 0, text: int | None = None) -> ModelPatcher:
    """One of `ALL`, float32 on the CPU, reading text vectors of so many numbers."""
    kind = ALL[name]
    widths = {key: text for key in TEXT_KEYS if text is not None and key in kind.net}
    model = built(kind, torch.float32, **widths)
    if kind.config == "Anima":
        del model.diffusion_model.llm_adapter.blocks[1:]  # it has one size only
    randomise(model.diffusion_model, seed)
    return ModelPatcher(model, CPU, CPU)


def built(
    kind: Kind,
    dtype: torch.dtype,
    computed_in: torch.dtype | None = None,
    device: torch.device = CPU,
    **change: Any,
) -> BaseModel:
    """The model as ComfyUI makes it before it loads weights: they hold whatever was in memory."""
    net = {**kind.net, **change, "dtype": dtype}
    if OLD:
        net = {name: each for name, each in net.items() if name not in kind.newer}
    config = getattr(comfy.supported_models, kind.config)(dict(net))
    own = {name: net[name] for name in config.unet_extra_config if name in net}
    config.unet_config |= own  # what there is one size of
    config.set_inference_dtype(dtype, computed_in)
    return config.get_model({}, "", device=device)


@torch.no_grad()
def randomise(net: torch.nn.Module, seed: int) -> None:
    """Weights that keep numbers at their size, and norms near one."""
    random = torch.Generator().manual_seed(seed)
    for name, each in net.named_parameters():
        drawn = torch.randn(each.shape, generator=random)
        if each.ndim >= 2:
            each.copy_(1.5 * drawn / max(1, each[0].numel()) ** 0.5)
        elif "norm" in name.lower():
            each.copy_(1 + 0.3 * drawn)
        else:
            each.copy_(0.3 * drawn)
    for name, each in net.named_buffers():
        if name.endswith("pos_embed"):
            each.copy_(0.3 * torch.randn(each.shape, generator=random))


def encoded(name: str, prompts: int, seed: int = 0) -> list[Encoded]:
    """As many made-up encodings, as the kind's text encoder shapes them."""
    return encodings(ALL[name], prompts, seed)


def encodings(kind: Kind, prompts: int, seed: int = 0) -> list[Encoded]:
    """The same of a kind in hand."""
    random = torch.Generator().manual_seed(seed)
    return [
        Encoded(torch.randn(1, kind.tokens, kind.width, generator=random), kind.beside(random))
        for _ in range(prompts)
    ]


class Encoder(NamedTuple):
    """A text encoder, with its own tokenizers."""

    module: str
    """In `comfy.text_encoders`."""

    tokenizer: str
    parts: Mapping[str, Mapping[str, int]]
    """Configuration of each part that is given few channels, as ComfyUI calls them."""

    filled: tuple[str, ...]
    """What gets weights; nothing reads a vision tower."""

    make: str = "te"  # codespell:ignore te
    """In the module, gives the class."""


QWEN = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
T5 = {"d_model": TEXT, "d_ff": 64, "d_kv": 12, "num_heads": 4, "num_layers": 2}
CLIP_L = {
    "hidden_size": POOLED,
    "projection_dim": POOLED,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
ENCODERS = {
    "pixart": Encoder(
        "pixart_t5", "PixArtTokenizer", {"t5xxl": T5}, ("t5xxl.transformer",), "pixart_te"
    ),
    "flux": Encoder(
        "flux",
        "FluxTokenizer",
        {"t5xxl": T5, "clip_l": CLIP_L},
        ("t5xxl.transformer", "clip_l.transformer"),
        "flux_clip",
    ),
    "kandinsky5": Encoder(
        "kandinsky5",
        "Kandinsky5TokenizerImage",
        {"qwen25_7b": QWEN | {"hidden_size": TEXT}},
        ("qwen25_7b.transformer.model", "clip_l"),
    ),
    "cosmos2": Encoder(
        "anima", "AnimaTokenizer", {"qwen3_06b": QWEN}, ("qwen3_06b.transformer.model",)
    ),
    "lumina2": Encoder(
        "z_image",
        "ZImageTokenizer",
        {"qwen3_4b": QWEN | {"hidden_size": TEXT, "num_hidden_layers": 3}},
        ("qwen3_4b.transformer.model",),
    ),
    "hunyuan_video": Encoder(
        "hunyuan_video",
        "HunyuanVideoTokenizer",
        {
            "llama": QWEN | {"hidden_size": TEXT, "vocab_size": 128320, "num_hidden_layers": 5},
            "clip_l": CLIP_L,
        },
        ("llama.transformer", "clip_l.transformer"),
        "hunyuan_video_clip",
    ),
    "omnigen2": Encoder(
        "omnigen2",
        "Omnigen2Tokenizer",
        {"qwen25_3b": QWEN | {"hidden_size": TEXT}},
        ("qwen25_3b.transformer.model",),
    ),
    "krea2": Encoder(
        "krea2",
        "Krea2Tokenizer",
        {"qwen3vl_4b": QWEN | {"hidden_size": KREA_TEXT, "num_hidden_layers": 36}},
        ("qwen3vl_4b.transformer.model",),
    ),
}
"""By family: of Cosmos 2 that of Anima, of Lumina 2 that of Z-Image."""


def small_encoder(name: str) -> comfy.sd.CLIP:
    """The text encoder of one of `ALL`, few channels wide."""
    about = ENCODERS[ALL[name].family]
    module = importlib.import_module(f"comfy.text_encoders.{about.module}")
    target = ClipTarget(getattr(module, about.tokenizer), getattr(module, about.make)())
    small = {f"{part}_model_config": dict(config) for part, config in about.parts.items()}
    clip = comfy.sd.CLIP(target, model_options={**small, "dtype": torch.float32})
    for path, part in clip.cond_stage_model.named_modules():
        if path in about.filled:
            randomise(part, 0)
    return clip


def loaded_again(name: str, state: dict[str, torch.Tensor]) -> ModelPatcher:
    """The kind with the weights of a file."""
    model = transformer(name, seed=1)
    missing, unexpected = model.model.diffusion_model.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    return model
