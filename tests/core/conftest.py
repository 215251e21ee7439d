"""Small activations to fit on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dev.launch import declare_missing_operators
from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.model_identity import ModelIdentity
from pure_core.trajectory import Trajectory

if os.environ.get("PURE_DECLARE_OPERATORS") == "1":  # for diffusers, which imports torchvision
    declare_missing_operators()

from diffusers import UNet2DConditionModel

TRAJECTORY = Trajectory(
    steps=20,
    run_steps=3,
    latents=2,
    cfg=7.0,
    seed=1,
    width=512,
    height=512,
    sampler_name="euler",
    scheduler="normal",
)
MODEL = ModelIdentity("model.safetensors", "unet", "abc", "float16")
WIDTHS = {
    "input_blocks.1.1.transformer_blocks.0.attn2": 24,
    "middle_block.1.transformer_blocks.0.attn2": 60,
}

HEADS = 4
"""Of every layer."""

MakeActivations = Callable[..., Activations]


@pytest.fixture
def trajectory() -> Trajectory:
    return TRAJECTORY


@pytest.fixture
def model() -> ModelIdentity:
    return MODEL


@pytest.fixture
def make_activations() -> MakeActivations:
    """Rows with a shared mean, a part of their own and decaying directions, as layers have."""

    def make(
        prompts: int = 4,
        seed: int = 0,
        widths: Mapping[str, int] = WIDTHS,
        model: ModelIdentity = MODEL,
        **changes: object,
    ) -> Activations:
        trajectory = TRAJECTORY._replace(**changes)  # type: ignore[arg-type]
        random = torch.Generator().manual_seed(seed)
        shared = torch.Generator().manual_seed(99)
        rows = {}
        for layer, d in widths.items():
            count = prompts * trajectory.rows_per_anchor
            decay = torch.arange(1, d + 1) ** -1.0
            mixing = torch.linalg.qr(torch.randn(d, d, generator=shared))[0]
            mean = torch.randn(d, generator=shared) / d**0.5
            own = torch.randn(d, generator=random) / d**0.5
            scattered = (torch.randn(count, d, generator=random) * decay) @ mixing
            rows[layer] = 2 * mean + own + 0.5 * scattered
        names = [f"prompt {seed} {index}" for index in range(prompts)]
        means = None
        if (cells := trajectory.cells**2) > 1:  # as where cells overlap: not their mean
            weights = torch.arange(1, cells + 1) / sum(range(1, cells + 1))
            means = {
                layer: (each.unflatten(0, (-1, cells)) * weights[:, None]).sum(1)
                for layer, each in rows.items()
            }
        heads = {layer: HEADS for layer, d in widths.items() if d % HEADS == 0}
        return Activations(rows, AnchorSet.written([names]), trajectory, model, means, heads)

    return make


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    """A small U-Net with random weights, of the library's own class."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(1, 2),
    )


@pytest.fixture
def source(unet, tmp_path: Path) -> Path:
    path = tmp_path / "unet.safetensors"
    save_file(unet.state_dict(), path, metadata={"format": "pt", "title": "small"})
    return path
