"""The sizes that are called released are those that ComfyUI finds in files of such shapes."""

from __future__ import annotations

import comfy.model_detection
import pytest
import torch
from comfyui_pure.pure_core.families import family_of

from testbed.comfy.full_size import MODELS, RELEASES, fill, weighs
from testbed.comfy.transformers import ALL, built, missing

PUBLISHED = {
    "Wan 2.2 TI2V 5B": 5.0,
    "Wan 2.1 T2V 14B": 14.3,
    "Cosmos-Predict2 2B": 2.0,
    "PixArt sigma 0.6B": 0.61,
    "HunyuanDiT 1.2 1.5B": 1.5,
    "LTX-Video 13B": 13.0,
    "Kandinsky 5 Lite image 6B": 6.0,
    "Kandinsky 5 Pro video 19B": 19.3,
}
"""Billions of parameters."""


def test_small_and_full_size_models_have_names_of_their_own() -> None:
    assert not ALL.keys() & MODELS.keys()


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_what_comfyui_detects_in_its_tensors(name: str) -> None:
    kind = RELEASES[name]
    if missing(kind):
        pytest.skip(missing(kind))
    net = built(kind, torch.bfloat16, device=torch.device("meta")).diffusion_model
    found = comfy.model_detection.detect_unet_config(
        {f"model.{key}": each for key, each in net.state_dict().items()}, "model."
    )
    assert found == {key: kind.net[key] for key in found}
    detected = comfy.model_detection.model_config_from_unet_config(found)
    assert type(detected).__name__ == kind.config
    family = family_of(net)
    assert family is not None and family.name == kind.family
    assert len(family.sites(net)) == kind.sites and family.text_width(net) == kind.width


def test_a_cut_model_has_the_blocks_that_its_name_says() -> None:
    cut = MODELS.keys() - RELEASES.keys()
    assert cut
    for name in cut:
        whole, _, blocks = name.rpartition(", ")
        number, total = (int(word) for word in blocks.split() if word.isdigit())
        assert RELEASES[whole].sites == total
        if missing(MODELS[name]):
            continue
        net = built(MODELS[name], torch.bfloat16, device=torch.device("meta")).diffusion_model
        family = family_of(net)
        assert family is not None
        assert len(family.sites(net)) == MODELS[name].sites == number


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_published(name: str) -> None:
    if missing(RELEASES[name]):
        pytest.skip(missing(RELEASES[name]))
    parameters, size = weighs(name, torch.bfloat16)
    assert parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.03)
    assert size == pytest.approx(2 * parameters, rel=0.01)


@torch.no_grad()
def test_a_filled_model_has_no_two_equal_weights_and_norms_near_one() -> None:
    net = torch.nn.ModuleDict(
        {"one": torch.nn.Linear(64, 64), "other": torch.nn.Linear(64, 64)}
        | {"norm": torch.nn.LayerNorm(64)}
    ).to(torch.bfloat16)
    fill(net)
    one, other = net["one"].weight.float(), net["other"].weight.float()
    assert not torch.equal(one, other) and float(one.std()) == pytest.approx(1 / 8, rel=0.1)
    assert float(net["norm"].weight.float().mean()) == pytest.approx(1, abs=0.05)
