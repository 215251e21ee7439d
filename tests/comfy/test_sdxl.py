"""The SDXL way: two text encoders, a pooled prompt in every row, wider text.

ComfyUI's own SDXL classes with few layers and random weights; the shipped model is SD 1.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes import EraseConcept
from comfyui_pure.nodes.host.capture import batches, capture
from comfyui_pure.nodes.host.conditioning import encode
from comfyui_pure.nodes.host.sites import Sites, architecture
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.families import ROLES
from comfyui_pure.pure_core.trajectory import Trajectory

import nodes
from testbed.comfy.families import FAMILIES, randomise, small, text_encoder
from testbed.comfy.stock import (
    QUICK,
    QUICK_ERASING,
    base_weight,
    effective_weight,
    execute,
    projection,
    weight_key,
    with_wrapper,
)

CPU = torch.device("cpu")
PROMPTS = ("a dog", "a red cat on a mat")
LONG = ("a dog " * 60, PROMPTS[0], "a cat on a mat " * 40, PROMPTS[1])
"""154, 77, 231 and 77 tokens for each of the two text encoders."""

TALL = Trajectory(steps=4, run_steps=1, latents=2, width=64, height=128)
"""Not square, so that width and height cannot be mistaken for each other."""

SIZES = {
    "SDXL": ([128, 64, 0, 0, 128, 64], [128, 64, 0, 0, 128, 64]),
    "SDXL refiner": ([128, 64, 0, 0, 6], [128, 64, 0, 0, 2.5]),
}
"""Height, width, crop and then the target or the aesthetic score, of a prompt and of the empty one:
what ComfyUI gives every U-Net call unless the person says otherwise."""

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
    return text_encoder("CLIP-L and bigG")


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    config = comfy.supported_models.SDXL(UNET)
    config.set_inference_dtype(torch.float32, None)
    made = config.get_model({}, "", device=CPU)
    randomise(made.diffusion_model, 1)
    return ModelPatcher(made, CPU, CPU)


def test_the_model_is_what_it_stands_for(model: ModelPatcher, clip: comfy.sd.CLIP) -> None:
    assert architecture(model) == "SDXL"
    sites = Sites.of(model)
    assert len(sites.sites) == 5 and set(sites.widths().values()) == {64}
    assert projection(model, sites.sites[0], "values").weight.shape == (64, 2048)
    first, second = (encode(clip, prompt) for prompt in PROMPTS)
    assert first.tokens.shape == (1, 77, 2048)
    assert first.options["pooled_output"].shape == (1, 1280)
    assert not torch.allclose(first.options["pooled_output"], second.options["pooled_output"])


def test_rows_do_not_depend_on_the_batch(
    model: ModelPatcher, clip: comfy.sd.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = capture(model, clip, AnchorSet.written([LONG]), QUICK)
    monkeypatch.setattr(batches, "MAX_ROWS", 1)
    alone = capture(model, clip, AnchorSet.written([LONG]), QUICK)
    for name, rows in together.rows.items():
        assert torch.allclose(rows, alone.rows[name], atol=1e-5), name
        grid = together.grid(name)
        assert not torch.allclose(grid[0], grid[1], atol=1e-3)


class Rows(NamedTuple):
    """What reaches the U-Net beside the latents in one branch of a call."""

    prompted: bool
    y: torch.Tensor
    text: torch.Tensor


def listen(model: ModelPatcher) -> tuple[ModelPatcher, list[Rows]]:
    """The model, and a list that grows with every call."""
    seen: list[Rows] = []

    def before(call: dict[str, Any]) -> None:
        branches = call["cond_or_uncond"]
        parts = (call["c"][name].chunk(len(branches)) for name in ("y", "c_crossattn"))
        seen.extend(Rows(mark == 0, *each) for mark, *each in zip(branches, *parts, strict=True))

    return with_wrapper(model, before), seen


def given_alone(
    model: ModelPatcher, clip: comfy.sd.CLIP, prompt: str, cfg: float
) -> dict[bool, Rows]:
    """What the stock sampler gives the U-Net for one prompt and for the empty one."""
    listening, seen = listen(model)
    text, empty = (nodes.CLIPTextEncode().encode(clip, each)[0] for each in (prompt, ""))
    latent = {"samples": torch.zeros(1, 4, TALL.height // 8, TALL.width // 8)}
    nodes.common_ksampler(listening, 7, 1, cfg, "euler", "normal", text, empty, latent)
    return {rows.prompted: rows for rows in seen}


@pytest.mark.parametrize(("name", "cfg"), [("SDXL", 1.0), ("SDXL", 4.0), ("SDXL refiner", 4.0)])
def test_every_row_gets_the_size_and_the_pooled_prompt_that_it_gets_alone(
    name: str, cfg: float, model: ModelPatcher, clip: comfy.sd.CLIP
) -> None:
    if name != "SDXL":
        model, clip = small(name), text_encoder(FAMILIES[name].text)
    listening, seen = listen(model)
    capture(listening, clip, AnchorSet.written([LONG]), TALL._replace(cfg=cfg))
    lengths = [encode(clip, prompt).tokens.shape[1] for prompt in LONG]
    assert lengths == [154, 77, 231, 77]
    order = sorted(range(len(LONG)), key=lengths.__getitem__)
    prompted = [
        (y, text) for rows in seen if rows.prompted for y, text in zip(*rows[1:], strict=True)
    ]
    assert len(prompted) == len(LONG) * TALL.latents
    alone = [given_alone(model, clip, prompt, cfg) for prompt in LONG]
    for (y, text), index in zip(prompted, [i for i in order for _ in range(2)], strict=True):
        assert torch.equal(y, alone[index][True].y[0])
        assert torch.equal(text[: lengths[index]], alone[index][True].text[0, : lengths[index]])
        assert torch.equal(y[:1280], encode(clip, LONG[index]).options["pooled_output"][0])
        assert torch.equal(
            y[1280:], timestep_embedding(torch.tensor(SIZES[name][0]), 256).flatten()
        )
    assert len({tuple(y.tolist()) for y, _ in prompted}) == len(LONG)
    empty = [y for rows in seen if not rows.prompted for y in rows.y]
    assert len(empty) == (0 if cfg == 1 else len(prompted))
    for y in empty:
        assert torch.equal(y, alone[0][False].y[0])
        assert torch.equal(
            y[1280:], timestep_embedding(torch.tensor(SIZES[name][1]), 256).flatten()
        )


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
        **QUICK_ERASING,
    )
    for site in Sites.of(model).sites:
        factors = eraser.layers[site.name]
        e = torch.eye(64).double() - factors.proj_left.double() @ factors.proj_right.double()
        for role in ROLES:
            expected = e @ base_weight(model, site, role)
            actual = effective_weight(patched, weight_key(site, role)).double()
            assert torch.allclose(actual, expected, atol=1e-6)
