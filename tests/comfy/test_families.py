"""Every U-Net family of ComfyUI: what is detected, which layers are found, and the whole way.

Detection and layers are those of the full size, on the device `meta`; the way from prompts to an
erased picture is gone with the same blocks and depths and few channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_detection
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from comfyui_pure.nodes.host.capture import CaptureError, capture
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import ModelError, Sites, architecture
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.fitting import fit, fit_text
from comfyui_pure.pure_core.methods import TEXT_METHODS
from comfyui_pure.pure_core.trajectory import Trajectory

from testbed.comfy.families import (
    CPU,
    FAMILIES,
    SMALL_CHANNELS,
    as_model,
    build,
    randomise,
    small,
    text_encoder,
)
from testbed.comfy.stock import PIXELS, base_weight, effective_weight, sample, weight_key

NOT_TOLD_OF_LOTUS = {"num_heads": -1, "num_head_channels": 64}
"""The U-Net class has the first by itself; 0.3.75 knows the second from diffusers files alone."""

META = torch.device("meta")
PREFIX = "model.diffusion_model."
FORGET = AnchorSet.written([["a fox", "a photo of a fox"]])
RETAIN = AnchorSet.written([["a cat", "a horse", "a photo of a mill"]])

TRAJECTORY = Trajectory(steps=4, run_steps=2, latents=1, width=PIXELS, height=PIXELS)

encoder = cache(text_encoder)


def text_keys(state: dict[str, torch.Tensor], prefix: str = "") -> set[str]:
    """Value projections that read text, told by the state dict alone."""
    found = set()
    for key, weight in state.items():
        if key.startswith(prefix) and key.endswith(".to_v.weight"):
            queries = state[key.replace("to_v", "to_q")]
            if ".attn2." in key or weight.shape[1] != queries.shape[1]:
                found.add(key.removeprefix(prefix))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_comfyui_detects_the_full_size_and_every_layer_is_found(name: str) -> None:
    kind = FAMILIES[name]
    state = {PREFIX + key: each for key, each in build(name, META).state_dict().items()}
    config = comfy.model_detection.model_config_from_unet({**state, **kind.marks}, PREFIX)
    assert type(config).__name__ == kind.detected
    found = {**NOT_TOLD_OF_LOTUS, **config.unet_config}
    assert {key: found[key] for key in kind.unet} == kind.unet
    model = as_model(name, {}, META)
    assert model.model.model_type.name == kind.prediction
    sites = Sites.of(model)
    assert {f"{site.values.module}.weight" for site in sites.sites} == text_keys(state, PREFIX)
    assert len(sites.sites) == kind.layers
    channels = kind.unet["model_channels"]
    assert set(sites.widths().values()) <= {channels * by for by in kind.unet["channel_mult"]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_few_channels_goes_the_whole_way(name: str) -> None:
    kind = FAMILIES[name]
    model, clip = small(name), encoder(kind.text)
    sites = Sites.of(model)
    assert architecture(model) == kind.detected
    trajectory = TRAJECTORY._replace(cfg=kind.cfg, cells=2)
    forget, retain = (capture(model, clip, each, trajectory) for each in (FORGET, RETAIN))
    plain = sample(model, clip, "a fox", steps=1)
    task = text_task(model, clip, FORGET, RETAIN, ["a thing"])
    for method in ("uce", "pure", "mosaic"):
        on_text = method in TEXT_METHODS
        eraser = fit_text(method, task) if on_text else fit(method, forget, retain)
        assert eraser.widths == sites.widths(text=eraser.space == "text")
        assert min(eraser.ranks.values()) > 0
        patched = patch(model, eraser).model
        site = sites.sites[-1]
        for role in eraser.roles:
            before = base_weight(model, site, role)
            expected = eraser.layers[site.name].to(torch.float64).edit_weight(before)
            actual = effective_weight(patched, weight_key(site, role)).double()
            assert torch.allclose(actual, expected, atol=1e-5)
    erased = sample(patched, clip, "a fox", steps=1)
    assert bool(torch.isfinite(erased).all())
    assert not torch.allclose(erased, plain, atol=1e-4)


@pytest.fixture(scope="module")
def video() -> ModelPatcher:
    """Stable Video Diffusion: pictures are read where other families read text."""
    unet = {
        **FAMILIES["SD 2.1 unCLIP L"].unet,
        "model_channels": SMALL_CHANNELS,
        "in_channels": 8,
        "adm_in_channels": 768,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
        "use_temporal_resblock": True,
        "use_temporal_attention": True,
        "disable_temporal_crossattention": False,
    }
    return made_by(comfy.supported_models.SVD_img2vid, unet)


@pytest.fixture(scope="module")
def zero123() -> ModelPatcher:
    """Stable Zero123: a picture and a camera are read instead of text."""
    unet = {**FAMILIES["SD 1.5"].unet, "model_channels": SMALL_CHANNELS, "in_channels": 8}
    beside = {"cc_projection.weight": torch.eye(768, 772), "cc_projection.bias": torch.zeros(768)}
    return made_by(comfy.supported_models.Stable_Zero123, unet, beside)


@torch.no_grad()
def made_by(
    kind: type[BASE], unet: dict[str, Any], beside: dict[str, torch.Tensor] | None = None
) -> ModelPatcher:
    config = kind(unet)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(beside or {}, "", device=CPU)
    randomise(model.diffusion_model, 1)
    return ModelPatcher(model, CPU, CPU)


def test_models_that_read_pictures_say_that_they_have_no_text_encoder(
    video: ModelPatcher, zero123: ModelPatcher
) -> None:
    for model in (video, zero123):
        with pytest.raises(ModelError, match="clip: expected a text encoder, got none"):
            capture(model, None, FORGET, TRAJECTORY)


def test_frames_cannot_be_captured_as_if_they_were_prompts(video: ModelPatcher) -> None:
    with pytest.raises(CaptureError, match=r"model: layer .* or the model makes videos"):
        capture(video, encoder("CLIP-H"), FORGET, TRAJECTORY)
