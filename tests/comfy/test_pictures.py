"""The models of real pictures in stock ComfyUI: the same functions as their narrow forms."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfyui_pure.nodes import SaveCheckpoint, SaveLoRA
from comfyui_pure.nodes.host.capture.sampling import noise_levels
from comfyui_pure.nodes.host.patch import AS_FITTED, patch
from comfyui_pure.nodes.host.sites import EffectiveWeights, Sites
from torch import Tensor

import nodes
from testbed.comfy.erasable import TRAJECTORY
from testbed.comfy.pictures import HunyuanPictures, SD3Pictures, Sd15, WanPictures
from testbed.comfy.stock import execute
from testbed.pictures import expand, narrow
from testbed.pictures.measure import PICTURES, any_concept
from testbed.world import narrow as world
from testbed.world.expand import TEXT

TEXTS = [
    "a fox on a meadow in the style of Noto",
    "a robot at night",
    "slice with tomato and salami, over blue water, as a smooth shiny toy",
    "please draw a castle by Twemoji.",
]


@pytest.fixture(scope="module")
def sd15() -> Sd15:
    return Sd15()


@pytest.fixture(scope="module")
def wan() -> WanPictures:
    return WanPictures()


def close(wide: Tensor, own: Tensor) -> None:
    """Equal but for rounding that twenty steps add up."""
    assert own.std() > 0.1
    assert (wide - own).abs().max() < 0.02 * own.abs().max()


def test_sd15_text_encoder(sd15: Sd15) -> None:
    small = narrow.load_unet()
    for text in TEXTS:
        wide = sd15.encode(text).tokens[0].float().cpu()
        assert torch.allclose(wide[:, TEXT], small.encode([text])[0], atol=5e-3)
        assert wide.abs().sum().item() == pytest.approx(wide[:, TEXT].abs().sum().item())


def test_sd15_draws_as_its_narrow_form(sd15: Sd15) -> None:
    small = narrow.load_unet()
    noise = torch.randn(len(TEXTS), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = world.sample(small, TEXTS, noise, steps=narrow.STEPS, cfg=narrow.CFG)
    close(sd15.latents(TEXTS, seed=0).cpu() * 0.18215, own)
    close(sd15.pictures(TEXTS), small.decoder(own).clamp(0, 1))


def test_wan_text_encoder_gives_the_raw_state(wan: WanPictures) -> None:
    small = narrow.load_wan()
    for text in TEXTS:
        wide = wan.encode(text).tokens[0].float().cpu()
        own = small.encode([text])[0]
        assert wide.shape == (77, expand.TEXT_WIDE)
        assert (wide[:, : own.shape[1]] - own).abs().max() < 0.01 * own.abs().max()
        assert not wide[:, own.shape[1] :].any()


def test_wan_autoencoder(wan: WanPictures) -> None:
    small = narrow.load_wan()
    latents = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    host = latents.double() * torch.tensor(expand.LATENT_DEVIATION).view(-1, 1, 1)
    host = (host + torch.tensor(expand.LATENT_MEAN).view(-1, 1, 1)).float()[:, :, None]
    wide = wan.vae.decode(host).reshape(3, 64, 64, 3).permute(0, 3, 1, 2).cpu()
    close(wide, small.decode(latents))


def test_wan_draws_as_its_narrow_form(wan: WanPictures) -> None:
    small = narrow.load_wan()
    noise = torch.randn(len(TEXTS), 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own = small.decode(narrow.sample_wan(small, TEXTS, noise[:, :, 0]))
    close(wan.pictures(TEXTS, seed=0), own)


@pytest.mark.parametrize("name", ["sd3", "hunyuan"])
def test_joint_models_draw_as_their_narrow_form(name: str) -> None:
    model = SD3Pictures() if name == "sd3" else HunyuanPictures()
    small = narrow.FLOWS[name](narrow.WEIGHTS)
    noise = torch.randn(len(TEXTS), *model.shape, generator=torch.Generator().manual_seed(0))
    own = small.decode(narrow.sample_flow(small, TEXTS, noise.view(-1, 16, 8, 8)))
    close(model.pictures(TEXTS, seed=0), own)


def test_wan_is_captured_at_its_narrow_form_s_noise_levels(wan: WanPictures) -> None:
    own = narrow.flow_sigmas(TRAJECTORY.steps, scheduler=TRAJECTORY.scheduler)
    host = noise_levels(wan.model, TRAJECTORY)
    assert (host - own[: len(host)]).abs().max() < 1e-6


def test_wan_s_exports_draw_what_the_patched_model_draws(
    wan: WanPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PURE Save Checkpoint, then UNETLoader; PURE Save LoRA, then the stock LoRA loader."""
    fox = PICTURES.trial("object", "fox", 1)
    patched, eraser = wan.erase(fox, TRAJECTORY._replace(run_steps=1, latents=1))
    assert eraser.heads and eraser.provenance.model.family == "wan"
    texts = TEXTS[:2]
    before, erased = wan.pictures(texts), wan.pictures(texts, patched)
    assert (before[0] - erased[0]).abs().max() > 0.2

    for kind in ("diffusion_models", "loras"):
        paths, endings = folder_paths.folder_names_and_paths[kind]
        own = ([*paths, str(tmp_path / kind)], endings)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, own)
    output = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        given = {"eraser": [eraser], "strength": [1.0], "edit": [AS_FITTED]}
        name = f"diffusion_models/{expand.NAMES['diffusion model']}"
        prefix = ["diffusion_models/erased"]
        (file,) = execute(SaveCheckpoint, **given, ckpt_name=[name], filename_prefix=prefix)
        given |= {"dtype": ["float32"], "filename_prefix": ["loras/erased"]}
        (lora,) = execute(SaveLoRA, **given, model=[wan.model])
    finally:
        folder_paths.set_output_directory(output)

    (loaded,) = nodes.UNETLoader().load_unet(Path(file).name, "default")
    (loaded,) = ModelSamplingSD3().patch(loaded, narrow.SHIFT)
    sites = Sites.of(loaded)
    wanted, found = (EffectiveWeights(each, sites) for each in (patched, loaded))
    for site in sites.sites:  # rounded once, to the file's type
        weight = wanted.weight(site.name, "values").half().float()
        assert torch.equal(found.weight(site.name, "values").float(), weight)
    assert (wan.pictures(texts, loaded) - erased).abs().max() <= 1 / 255
    halved = wan.pictures(texts, patch(wan.model, eraser.applied(0.5)).model)
    for strength, expected in ((1.0, erased), (0.5, halved)):
        loader = nodes.LoraLoaderModelOnly()
        (changed,) = loader.load_lora_model_only(wan.model, Path(lora).name, strength)
        assert (wan.pictures(texts, changed) - expected).abs().max() <= 1 / 255


@pytest.mark.parametrize("name", ["unet", "wan"])
def test_it_draws_what_is_asked(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("sd15" if name == "unet" else "wan")
    rates = PICTURES.rates(model.pictures, 16, by_name=True)
    assert any_concept(rates).value >= 0.9, rates
    # 0.80 of 300 prompts (testbed/pictures/README.md); these are about 20
    assert rates["style"].value >= 0.6, rates
