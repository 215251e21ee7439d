"""Clips: several frames are sampled, and rows are averages over all of them."""

from __future__ import annotations

import pytest
import torch
from comfyui_pure.nodes.host.capture import CaptureError
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.families import LatentGeometry
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from testbed.comfy.erasers import random_eraser
from testbed.comfy.transformer_measures import captured, in_float64, relative, runs, untouched
from testbed.comfy.transformers import encoded
from tests.comfy.test_transformers import each_kind, model_of

PROMPTS = 2


def geometry(name: str) -> LatentGeometry:
    sites = Sites.of(model_of(name))
    return sites.family.latent(sites.net)


@each_kind
def test_a_clip_s_rows_are_means_over_frames_and_cells(name: str) -> None:
    model, prompts, frames = model_of(name), encoded(name, PROMPTS + 1), geometry(name).frames
    if not frames:
        with pytest.raises(CaptureError, match="length: this model makes pictures"):
            captured(name, model, prompts, length=5)
        return
    with untouched(model):
        with in_float64(model) as expected:
            found = captured(name, model, prompts, length=1 + 2 * frames, cells=2)
        assert found.trajectory.length == 1 + 2 * frames
        for site in Sites.of(model).sites:
            once = expected[site.name][:: runs(site)]
            calls = torch.cat([h.movedim(site.rows_axis, 0) for h in once])
            rows = found.grid(site.name).flatten(0, 1)  # anchors and latents, cells, d
            assert relative(rows, by_cells(calls, -(-3 // geometry(name).patch_frames))) <= 2e-6, (
                site.name
            )


def by_cells(h: Tensor, frames: int) -> Tensor:
    """h (rows, frames x side x side, d) as (rows, 4, d)."""
    rows, positions, d = h.shape
    side = round((positions / frames) ** 0.5)
    picture = h.reshape(rows, frames, side, side, d).mean(1).permute(0, 3, 1, 2)
    return adaptive_avg_pool2d(picture, 2).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "Cosmos 1", "LTX-Video"])
def test_an_eraser_holds_for_every_frame(name: str) -> None:
    """h' = E h in a clip, whatever the eraser was fitted on."""
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    length = 1 + geometry(name).frames
    with untouched(model):
        eraser = random_eraser(model, "values", rank=2, by_head=True)
        before = captured(name, model, prompts, length=length)
        after = captured(name, patch(model, eraser).model, prompts, length=length)
        first = Sites.of(model).sites[0].name
        wanted = eraser.layers[first](before.rows[first])
        assert relative(after.rows[first], wanted.double()) <= 1e-5


@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "Cosmos 1", "LTX-Video"])
def test_a_length_that_no_clip_has_is_told(name: str) -> None:
    frames = geometry(name).frames
    with pytest.raises(CaptureError, match=f"more than a multiple of {frames}, such as 1 or"):
        captured(name, model_of(name), encoded(name, PROMPTS + 1), length=frames)


def test_a_picture_is_a_clip_of_one_frame() -> None:
    video, picture = LatentGeometry(16, 8, frames=4), LatentGeometry(4, 8)
    assert video.cells(64, 32) == (16, 1, 4, 8) and picture.cells(64, 32) == (4, 4, 8)
    assert video.cells(64, 32, 17) == (16, 5, 4, 8)
