"""The U-Net architectures in full size, in ComfyUI's own class, without trained weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD_LIKE = {
    **SHARED,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
SD2 = {
    **SD_LIKE,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}
SDXL_LIKE = {
    **SHARED,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD 1.5": {**SD_LIKE, "num_heads": 8, "context_dim": 768},
    "SD 2.1": SD2,
    "SD 2.1 unCLIP": {**SD2, "num_classes": "sequential", "adm_in_channels": 2048},
    "SDXL": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
    "SDXL refiner": {
        **SDXL_LIKE,
        "model_channels": 384,
        "adm_in_channels": 2560,
        "context_dim": 1280,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
        "transformer_depth_middle": 4,
        "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
    },
    "SSD-1B": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "transformer_depth_middle": -1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
    },
    "Vega": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": -1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    },
    "KOALA 700M": {
        **SDXL_LIKE,
        "num_res_blocks": [1, 1, 1],
        "transformer_depth": [0, 2, 5],
        "transformer_depth_middle": -2,
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
    },
}
"""As ComfyUI configures them (comfy/model_detection.py)."""


def build(family: str, device: torch.device, dtype: torch.dtype = torch.float32) -> UNetModel:
    """An architecture's U-Net. On the device `meta` it has shapes and no weights."""
    config = copy.deepcopy(FAMILIES[family])  # the class empties its lists
    return UNetModel(**config, device=device, dtype=dtype)


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations near 1; ComfyUI leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(1.0)
