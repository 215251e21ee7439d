"""The SDXL way: two text encoders, a pooled prompt in every row, wider text.

ComfyUI's own SDXL classes with few layers and random weights; the shipped model is SD 1.5.
"""

from __future__ import annotations

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from comfyui_pure.nodes import EraseConcept
from comfyui_pure.nodes.host import capture as host
from comfyui_pure.nodes.host.capture import capture
from comfyui_pure.nodes.host.conditioning import encode
from comfyui_pure.nodes.host.layers import cross_attention_layers, family, widths

from tests.comfy.families import randomise
from tests.comfy.stock import QUICK, base_weight, effective_weight, execute

CPU = torch.device("cpu")
PROMPTS = ("a dog", "a red cat on a mat")

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": -1,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": [0, 2],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "legacy": False,
}


@pytest.fixture(scope="module")
def clip() -> comfy.sd.CLIP:
    """CLIP-L and CLIP-G of three layers each."""
    short = {"num_hidden_layers": 3}
    target = ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    made = comfy.sd.CLIP(
        target,
        model_options={
            "clip_l_model_config": short,
            "clip_g_model_config": short,
            "dtype": torch.float32,
        },
    )
    randomise(made.cond_stage_model, 0)
    return made


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    config = comfy.supported_models.SDXL(UNET)
    config.set_inference_dtype(torch.float32, None)
    made = config.get_model({}, "", device=CPU)
    randomise(made.diffusion_model, 1)
    return ModelPatcher(made, CPU, CPU)


def test_the_model_is_what_it_stands_for(model: ModelPatcher, clip: comfy.sd.CLIP) -> None:
    assert family(model) == "SDXL"
    layers = cross_attention_layers(model)
    assert len(layers) == 5 and set(widths(layers).values()) == {64}
    assert layers[0].module.to_v.weight.shape == (64, 2048)
    first, second = (encode(clip, prompt) for prompt in PROMPTS)
    assert first.tokens.shape == (1, 77, 2048)
    assert first.options["pooled_output"].shape == (1, 1280)
    assert not torch.allclose(first.options["pooled_output"], second.options["pooled_output"])


def test_rows_do_not_depend_on_the_batch(
    model: ModelPatcher, clip: comfy.sd.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = capture(model, clip, PROMPTS, QUICK)
    monkeypatch.setattr(host, "MAX_ROWS", 1)
    alone = capture(model, clip, PROMPTS, QUICK)
    for name, rows in together.rows.items():
        assert torch.allclose(rows, alone.rows[name], atol=1e-5), name
        grid = together.grid(name)
        assert not torch.allclose(grid[0], grid[1], atol=1e-3)


def test_a_concept_is_erased_from_keys_and_values(model: ModelPatcher, clip: comfy.sd.CLIP) -> None:
    patched, eraser, *_ = execute(
        EraseConcept,
        model=model,
        clip=clip,
        concept="dog",
        neighbours="cat\nhorse",
        kind="object",
        method="pure",
        strength=1.0,
        **QUICK._asdict(),
    )
    for layer in cross_attention_layers(model):
        factors = eraser.layers[layer.name]
        e = torch.eye(64).double() - factors.proj_left.double() @ factors.proj_right.double()
        for projection in ("to_k", "to_v"):
            expected = e @ base_weight(model, layer, projection)
            actual = effective_weight(patched, layer.key(projection)).double()
            assert torch.allclose(actual, expected, atol=1e-6)
