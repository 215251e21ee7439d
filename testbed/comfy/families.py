"""Every U-Net family of ComfyUI that reads text in cross-attention layers, without trained weights.

`FAMILIES` is the full size, as ComfyUI detects it in a checkpoint (comfy/model_detection.py); with
`small` the same structure gets few channels. All is built by ComfyUI's own classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from torch import Tensor

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer

CPU = torch.device("cpu")

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
SD1 = {**SD_LIKE, "num_heads": 8, "context_dim": 768}
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
SDXL = {
    **SDXL_LIKE,
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}
KOALA = {**SDXL_LIKE, "num_res_blocks": [1, 1, 1]}
XS = {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth_middle": -2,
}


def labelled(unet: dict[str, Any], channels: int) -> dict[str, Any]:
    """The U-Net with a vector of so many numbers beside the text."""
    return {**unet, "num_classes": "sequential", "adm_in_channels": channels}


def marks(**numbers: list[float]) -> dict[str, Tensor]:
    """Tensors beside the U-Net that tell ComfyUI how the model predicts."""
    return {name.replace("__", "."): torch.tensor(each) for name, each in numbers.items()}


class Family(NamedTuple):
    """A kind of checkpoint."""

    detected: str
    """The class of comfy.supported_models that ComfyUI detects."""

    unet: dict[str, Any]
    """What `UNetModel` is built with."""

    layers: int
    """In which text is read."""

    text: str
    """Key of `TEXT`."""

    prediction: str = "EPS"
    """ComfyUI's ModelType."""

    marks: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    """Tensors beside the U-Net in the file."""

    node: dict[str, Any] = {}  # noqa: RUF012
    """Inputs of the stock node ModelSamplingDiscrete, where people need it for this kind."""

    cfg: float = 4.0


FAMILIES = {
    "SD 1.5": Family("SD15", SD1, 16, "CLIP-L"),
    "SD 1.5 inpainting": Family("SD15", {**SD1, "in_channels": 9}, 16, "CLIP-L"),
    "SD 1.5 instruct-pix2pix": Family(
        "SD15_instructpix2pix", {**SD1, "in_channels": 8}, 16, "CLIP-L"
    ),
    "SD 1.5 v-prediction": Family(
        "SD15", SD1, 16, "CLIP-L", node={"sampling": "v_prediction", "zsnr": True}
    ),
    "SD 1.5 LCM": Family("SD15", SD1, 16, "CLIP-L", node={"sampling": "lcm", "zsnr": False}, cfg=1),
    "BK-SDM Small": Family(
        "SD15",
        {
            **SD1,
            "num_res_blocks": [1, 1, 1, 1],
            "transformer_depth": [1, 1, 1, 0],
            "transformer_depth_middle": -2,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
        },
        9,
        "CLIP-L",
    ),
    "SDXS": Family(
        "SD15",
        {
            **SD1,
            **XS,
            "transformer_depth": [0, 1, 1],
            "transformer_depth_output": [0, 0, 1, 1, 1, 1],
        },
        6,
        "CLIP-L",
        cfg=1,
    ),
    "SD 2.1": Family("SD20", SD2, 16, "CLIP-H"),
    "SD 2.1 v-prediction": Family("SD20", SD2, 16, "CLIP-H", "V_PREDICTION"),
    "SD 2 inpainting": Family("SD20", {**SD2, "in_channels": 9}, 16, "CLIP-H"),
    "SD 2.1 unCLIP L": Family("SD21UnclipL", labelled(SD2, 1536), 16, "CLIP-H"),
    "SD 2.1 unCLIP H": Family("SD21UnclipH", labelled(SD2, 2048), 16, "CLIP-H", "V_PREDICTION"),
    "SD x4 upscaler": Family(
        "SD_X4Upscaler",
        {
            **SD2,
            "model_channels": 256,
            "in_channels": 7,
            "channel_mult": [1, 2, 2, 4],
            "transformer_depth": [0, 0, 1, 1, 1, 1, 1, 1],
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            "disable_self_attentions": [True, True, True, False],
            "num_classes": 1000,
            "num_heads": 8,
            "num_head_channels": -1,
        },
        26,  # in ten blocks the first attention reads text as well
        "CLIP-H",
        "V_PREDICTION",
    ),
    "Lotus D": Family("LotusD", labelled(SD2, 4), 16, "CLIP-H", "IMG_TO_IMG"),
    "SDXL": Family("SDXL", SDXL, 70, "CLIP-L and bigG"),
    "SDXL inpainting": Family("SDXL", {**SDXL, "in_channels": 9}, 70, "CLIP-L and bigG"),
    "SDXL instruct-pix2pix": Family(
        "SDXL_instructpix2pix", {**SDXL, "in_channels": 8}, 70, "CLIP-L and bigG"
    ),
    "SDXL v-prediction": Family(
        "SDXL", SDXL, 70, "CLIP-L and bigG", "V_PREDICTION", marks(v_pred=[], ztsnr=[])
    ),
    "CosXL": Family(
        "SDXL",
        SDXL,
        70,
        "CLIP-L and bigG",
        "V_PREDICTION_EDM",
        marks(edm_vpred__sigma_max=[120.0], edm_vpred__sigma_min=[0.002]),
    ),
    "Playground v2.5": Family(
        "SDXL", SDXL, 70, "CLIP-L and bigG", "EDM", marks(edm_mean=[0.0] * 4, edm_std=[1.0] * 4)
    ),
    "SDXL Turbo": Family("SDXL", SDXL, 70, "CLIP-L and bigG", cfg=1),
    "SDXL refiner": Family(
        "SDXLRefiner",
        {
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
        44,
        "bigG",
    ),
    "SSD-1B": Family(
        "SSD1B",
        {
            **SDXL_LIKE,
            "transformer_depth": [0, 0, 2, 2, 4, 4],
            "transformer_depth_middle": -1,
            "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        },
        34,
        "CLIP-L and bigG",
    ),
    "Vega": Family(
        "Segmind_Vega",
        {
            **SDXL_LIKE,
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_middle": -1,
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        },
        15,
        "CLIP-L and bigG",
    ),
    "KOALA 700M": Family(
        "KOALA_700M",
        {
            **KOALA,
            "transformer_depth": [0, 2, 5],
            "transformer_depth_middle": -2,
            "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        },
        21,
        "CLIP-L and bigG",
    ),
    "KOALA 1B": Family(
        "KOALA_1B",
        {
            **KOALA,
            "transformer_depth": [0, 2, 6],
            "transformer_depth_middle": 6,
            "transformer_depth_output": [0, 0, 2, 2, 6, 6],
        },
        30,
        "CLIP-L and bigG",
    ),
}
"""As people name them -> what they are."""

V_PREDICTION_MARK = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""SD 2.1 tells its prediction by this tensor alone: v if its numbers spread more than .09."""

SMALL_CHANNELS = 64
"""Of the first level, one head of 64."""

TEXT: dict[str, tuple[type, type, tuple[str, ...]]] = {
    "CLIP-L": (SD1Tokenizer, SD1ClipModel, ("clip_l",)),
    "CLIP-H": (SD2Tokenizer, SD2ClipModel, ("clip_h",)),
    "bigG": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLRefinerClipModel, ("clip_g",)),
    "CLIP-L and bigG": (
        comfy.sdxl_clip.SDXLTokenizer,
        comfy.sdxl_clip.SDXLClipModel,
        ("clip_l", "clip_g"),
    ),
}
"""Text encoders: tokenizer, model, and ComfyUI's names of the parts."""


def build(family: str, device: torch.device, dtype: torch.dtype = torch.float32) -> UNetModel:
    """An architecture's U-Net. On the device `meta` it has shapes and no weights."""
    config = copy.deepcopy(FAMILIES[family].unet)  # the class empties its lists
    return UNetModel(**config, device=device, dtype=dtype)


def small(family: str, seed: int = 1) -> ModelPatcher:
    """A MODEL of the family with its own blocks and few channels.

    Its depths are the family's own; but the first family with them is enough, for time's sake
    the others get one transformer block where there are several.
    """
    unet = FAMILIES[family].unet
    change: dict[str, Any] = {"model_channels": SMALL_CHANNELS}
    if family != next(name for name, each in FAMILIES.items() if depths(each.unet) == depths(unet)):
        change |= {key: _shallow(value) for key, value in depths(unet).items()}
    return as_model(family, change, CPU, lambda module: randomise(module, seed))


def depths(unet: dict[str, Any]) -> dict[str, Any]:
    """Where there are transformer blocks, and how many."""
    return {key: value for key, value in unet.items() if key.startswith("transformer_depth")}


def _shallow(depth: int | list[int]) -> int | list[int]:
    return [min(1, each) for each in depth] if isinstance(depth, list) else min(1, depth)


def as_model(
    family: str,
    change: dict[str, Any],
    device: torch.device,
    fill: Callable[[torch.nn.Module], None] = lambda module: None,
) -> ModelPatcher:
    """A MODEL as ComfyUI makes it of a checkpoint once it has detected the family."""
    kind = FAMILIES[family]
    config = getattr(comfy.supported_models, kind.detected)({**copy.deepcopy(kind.unet), **change})
    config.set_inference_dtype(torch.float32, None)
    beside = dict(kind.marks)
    if kind.prediction == "V_PREDICTION":
        beside[V_PREDICTION_MARK] = torch.tensor([-1.0, 1.0])
    made = config.get_model(beside, "", device=device)
    fill(made.diffusion_model)
    return with_sampling(family, ModelPatcher(made, CPU, CPU))


def with_sampling(family: str, model: ModelPatcher) -> ModelPatcher:
    """The model behind ModelSamplingDiscrete, if people need that node for the family."""
    inputs = FAMILIES[family].node
    return ModelSamplingDiscrete().patch(model, **inputs)[0] if inputs else model


def text_encoder(kind: str) -> comfy.sd.CLIP:
    """A CLIP of the genuine widths and three layers in each part, with random weights."""
    tokenizer, model, parts = TEXT[kind]
    options = {f"{part}_model_config": {"num_hidden_layers": 3} for part in parts}
    made = comfy.sd.CLIP(
        ClipTarget(tokenizer, model), model_options={**options, "dtype": torch.float32}
    )
    randomise(made.cond_stage_model, 0)
    return made


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations near 1; ComfyUI leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(1.0)
