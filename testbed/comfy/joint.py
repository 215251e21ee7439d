"""Kinds of transformers whose text and picture share one attention, for `transformers.py`."""

from __future__ import annotations

from typing import Any

import torch

from testbed.comfy.kind import TEXT, TOKENS, Kind

POOLED = 32
"""Width of the vector of a whole prompt."""


def _pooled(random: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": torch.randn(1, POOLED, generator=random)}


def _no_pooled(_: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": None}


def _one_mask(_: torch.Generator) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}


def _padded(random: torch.Generator) -> dict[str, Any]:
    used = int(torch.randint(4, TOKENS + 1, (), generator=random))
    return {"attention_mask": (torch.arange(TOKENS) < used).long()[None]}


def _llama(random: torch.Generator) -> dict[str, Any]:
    layers = torch.randn(1, 3, 6, 40, generator=random)
    return {**_pooled(random), "conditioning_llama3": layers}


def sd3_net(depth: int, **net: Any) -> dict[str, Any]:
    """What SD3's network of so many blocks is built with."""
    entry = {"in_features": TEXT, "out_features": 64 * depth}
    return {
        "in_channels": 16,
        "patch_size": 2,
        "out_channels": 16,
        "depth": depth,
        "input_size": None,
        "adm_in_channels": 32,
        "num_patches": 64,
        "pos_embed_max_size": 8,
        "pos_embed_scaling_factor": None,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": entry},
        "x_block_self_attn_layers": [],
        **net,
    }


FLUX = {
    "image_model": "flux",
    "axes_dim": [8, 12, 12],
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "theta": 10000,
    "out_channels": 16,
    "qkv_bias": True,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 64,
    "context_in_dim": TEXT,
    "vec_in_dim": 32,
    "depth": 2,
    "depth_single_blocks": 2,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX_2 = {
    **FLUX,
    "image_model": "flux2",
    "axes_dim": [8, 8, 8, 8],
    "mlp_ratio": 3.0,
    "theta": 2000,
    "out_channels": 128,
    "in_channels": 128,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "patch_size": 1,
    "vec_in_dim": None,
    "txt_ids_dims": [3],
}
CHROMA = {
    **{name: each for name, each in FLUX.items() if name != "guidance_embed"},
    "image_model": "chroma",
    "vec_in_dim": None,
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 64,
    "n_layers": 2,
}
LONGCAT = {**FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
OVIS = {**LONGCAT, "yak_mlp": True, "txt_norm": True}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "patch_size": [1, 2, 2],
    "out_channels": 16,
    "vec_in_dim": 32,
    "axes_dim": [8, 12, 12],
    "meanflow": False,
    "meanflow_sum": False,
    "context_in_dim": TEXT,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
HUNYUAN_IMAGE = {
    **HUNYUAN,
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [16, 16],
    "vec_in_dim": None,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 12, 12),
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 96,
    "cap_feat_dim": TEXT,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 4,
    "n_kv_heads": 2,
    "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
    "multiple_of": 32,
}
Z_IMAGE = {
    **LUMINA,
    "dim": 256,
    "n_heads": 8,
    "n_kv_heads": 8,
    "axes_dims": [8, 12, 12],
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "rope_theta": 256.0,
}
OMNIGEN = {
    "image_model": "omnigen2",
    "axes_dim_rope": [8, 8, 8],
    "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": None,
    "hidden_size": 96,
    "in_channels": 16,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "out_channels": None,
    "patch_size": 2,
    "text_feat_dim": TEXT,
    "timestep_scale": 1000.0,
}
MOCHI = {
    "image_model": "mochi_preview",
    "depth": 2,
    "patch_size": 2,
    "num_heads": 2,
    "hidden_size_x": 256,
    "hidden_size_y": 64,
    "mlp_ratio_x": 48.0,
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": TEXT,
    "t5_token_length": TOKENS,
    "rope_theta": 10000.0,
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 32,
    "axes_dims_rope": [16, 8, 8],
    "caption_channels": [TEXT, 40],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [0, 1, 2, 2],
    "num_attention_heads": 2,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 32,
}
AURA = {
    "max_seq": 64,
    "cond_seq_dim": TEXT,
    "n_double_layers": 2,
    "n_layers": 4,
    "dim": 64,
    "n_heads": 2,
    "global_conddim": 64,
}
LENS = {
    "image_model": "lens",
    "in_channels": 128,
    "out_channels": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
    "enc_hidden_dim": TEXT // 2,
    "multi_layer_encoder_feature": True,
    "selected_layer_index": (0, 1),
}
JOYIMAGE = {
    "image_model": "joyimage",
    "theta": 10000,
    "rope_dim_list": [8, 12, 12],
    "in_channels": 16,
    "hidden_size": 64,
    "patch_size": [1, 2, 2],
    "num_layers": 2,
    "num_attention_heads": 2,
    "text_dim": TEXT,
}
BOOGU = {
    "image_model": "boogu",
    "hidden_size": 96,
    "num_layers": 2,
    "num_double_stream_layers": 2,
    "num_refiner_layers": 1,
    "instruction_feat_dim": TEXT,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 32,
    "axes_dim_rope": (8, 8, 8),
    "axes_lens": (64, 64, 64),
}
PIXELDIT = {
    "image_model": "pixeldit_t2i",
    "num_groups": 2,
    "hidden_size": 64,
    "pixel_hidden_size": 8,
    "pixel_attn_hidden_size": 64,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 1,
    "txt_embed_dim": TEXT,
    "txt_max_length": 300,
}
ERNIE = {
    "image_model": "ernie",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_layers": 2,
    "ffn_hidden_size": 96,
    "text_in_dim": TEXT,
    "rope_axes_dim": (8, 12, 12),
}
KREA_LAYERS, KREA_TEXT = 12, 16
"""Layers of the text encoder that are read, and the width of each."""

KREA = {
    "image_model": "krea2",
    "features": 64,
    "channels": 16,
    "patch": 2,
    "layers": 2,
    "heads": 4,
    "kvheads": 2,
    "txtlayers": KREA_LAYERS,
    "txtdim": KREA_TEXT,
    "txtheads": 2,
    "txtkvheads": 2,
    "multiplier": 2,
}
IDEOGRAM = {
    "image_model": "ideogram4",
    "in_channels": 128,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "intermediate_size": 96,
    "adaln_dim": 32,
    "llm_features_dim": TEXT,
    "rope_theta": 5000000,
    "mrope_section": [6, 5, 5],
    "norm_eps": 1e-5,
}
COGVIDEO = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "time_embed_dim": 32,
    "num_layers": 2,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": TEXT,
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
}

IDS = ("txt_ids_dims",)

JOINT = {
    "SD3": Kind("sd3", "SD3", sd3_net(2), 2, beside=_pooled),
    "SD3.5": Kind(
        "sd3",
        "SD3",
        sd3_net(3, qk_norm="rms", x_block_self_attn_layers=[0]),
        3,
        beside=_pooled,
    ),
    "Flux.1": Kind("flux", "Flux", FLUX, 4, newer=IDS, beside=_pooled),
    "Flux.2": Kind("flux", "Flux2", FLUX_2, 4, newer=IDS, beside=_no_pooled),
    "Chroma": Kind("flux", "Chroma", CHROMA, 4, newer=(*IDS, "vec_in_dim"), beside=_no_pooled),
    "Ovis-Image": Kind("flux", "FluxSchnell", OVIS, 4, new=True),
    "LongCat-Image": Kind("flux", "LongCatImage", LONGCAT, 4),
    "HunyuanVideo": Kind(
        "hunyuan_video", "HunyuanVideo", HUNYUAN, 4, newer=("meanflow_sum",), beside=_pooled
    ),
    "HunyuanImage 2.1": Kind(
        "hunyuan_video", "HunyuanImage21", HUNYUAN_IMAGE, 4, 256, newer=("meanflow_sum",)
    ),
    "Qwen-Image": Kind("qwen_image", "QwenImage", QWEN, 2),
    "Mage-Flow": Kind(
        "qwen_image", "MageFlow", {**QWEN, "image_model": "mage_flow", "in_channels": 128}, 2
    ),
    "HiDream": Kind("hidream", "HiDream", HIDREAM, 4, tokens=5, beside=_llama),
    "AuraFlow": Kind("auraflow", "AuraFlow", AURA, 4),
    "Lens": Kind("lens", "Lens", LENS, 2, beside=_padded),
    "JoyImage": Kind("joyimage", "JoyImage", JOYIMAGE, 2),
    "PixelDiT": Kind("pixeldit", "PixelDiTT2I", PIXELDIT, 2),
    "Mochi": Kind("mochi", "GenmoMochi", MOCHI, 2, beside=_one_mask),
    "Boogu": Kind("boogu", "Boogu", BOOGU, 4, beside=_one_mask),
    "Z-Image": Kind("lumina2", "ZImage", Z_IMAGE, 2),
    "Lumina 2": Kind("lumina2", "Lumina2", LUMINA, 2),
    "OmniGen 2": Kind("omnigen2", "Omnigen2", OMNIGEN, 2, beside=_one_mask),
    "Krea 2": Kind("krea2", "Krea2", KREA, 2, width=KREA_LAYERS * KREA_TEXT),
    "ERNIE-Image": Kind("ernie", "ErnieImage", ERNIE, 2),
    "Ideogram 4": Kind("ideogram4", "Ideogram4", IDEOGRAM, 2),
    "CogVideoX": Kind("cogvideox", "CogVideoX_T2V", COGVIDEO, 2),
    "CogVideoX 1.5": Kind("cogvideox", "CogVideoX_T2V", {**COGVIDEO, "patch_size_t": 2}, 2),
}
