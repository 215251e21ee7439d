"""How much of an eraser's change arrives: measured against patching one layer and looking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_pure.nodes import Fit
from comfyui_pure.nodes.host.capture import arriving_shares, capture
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import Sites
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser
from comfyui_pure.pure_core.fitting import BY_HEAD, TOGETHER, fit

from testbed.comfy.erasers import random_eraser
from testbed.comfy.stock import QUICK, Loaded, sample

FORGET = AnchorSet.written([["a ball", "a photo of a ball"]])
RETAIN = AnchorSet.written([["a star"], ["a heart"]])


@pytest.fixture(scope="module")
def captured(loaded: Loaded) -> tuple[Activations, Activations]:
    one = QUICK._replace(cfg=1.0, latents=1)
    forget, retain = (capture(loaded.model, loaded.clip, each, one) for each in (FORGET, RETAIN))
    return forget, retain


def only(eraser: Eraser, name: str) -> Eraser:
    """The same in one layer."""
    layers = {each: layer.scaled(each == name) for each, layer in eraser.layers.items()}
    return replace(eraser, layers=layers)


def hooks(loaded: Loaded) -> int:
    modules = loaded.model.model.diffusion_model.modules()
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


def patched_h(loaded: Loaded, eraser: Eraser | None, name: str, site_out: str) -> torch.Tensor:
    """h of one layer at every position and step, the model patched in that layer alone."""
    found = []
    model = loaded.model if eraser is None else patch(loaded.model, only(eraser, name)).model
    out = model.model.diffusion_model.get_submodule(site_out)
    handle = out.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone()))
    try:
        capture(model, loaded.clip, FORGET, QUICK._replace(cfg=1.0, latents=1, run_steps=1))
    finally:
        handle.remove()
    return torch.cat(found)


def test_it_is_what_patching_one_layer_gives(
    loaded: Loaded, captured: tuple[Activations, Activations]
) -> None:
    eraser = fit("ridge", *captured, heads=TOGETHER)
    one_step = eraser.provenance.trajectory
    assert one_step is not None
    made = replace(eraser.provenance, trajectory=one_step._replace(run_steps=1))
    shares = arriving_shares(loaded.model, loaded.clip, replace(eraser, provenance=made))
    assert shares.keys() == eraser.layers.keys()
    for site in (Sites.of(loaded.model).sites[0], Sites.of(loaded.model).sites[-1]):
        h = patched_h(loaded, None, site.name, site.out)
        arrived = patched_h(loaded, eraser, site.name, site.out)
        wanted = eraser.layers[site.name](h)
        missed = (arrived - wanted).norm() / (wanted - h).norm()
        assert missed > 0.02
        assert shares[site.name] == pytest.approx(1 - float(missed), abs=2e-3)


def test_blocks_arrive_whole_and_are_not_measured(
    loaded: Loaded, captured: tuple[Activations, Activations]
) -> None:
    by_head = fit("ridge", *captured, heads=BY_HEAD)
    assert arriving_shares(loaded.model, loaded.clip, by_head) == {}
    dense = {name: layer.dense() for name, layer in by_head.layers.items()}
    shares = arriving_shares(loaded.model, loaded.clip, replace(by_head, layers=dense))
    assert min(shares.values()) > 1 - 1e-3


def test_nothing_is_left_behind(
    loaded: Loaded,
    captured: tuple[Activations, Activations],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eraser = fit("pure", *captured, heads=TOGETHER)
    before, picture = hooks(loaded), sample(loaded.model, loaded.clip)

    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("cancelled")

    with monkeypatch.context() as context:
        context.setattr("comfy.utils.ProgressBar.update", stop)
        with pytest.raises(RuntimeError, match="cancelled"):
            arriving_shares(loaded.model, loaded.clip, eraser)
    assert hooks(loaded) == before
    assert torch.equal(sample(loaded.model, loaded.clip), picture)


def test_an_eraser_that_was_not_captured_is_not_measured(loaded: Loaded) -> None:
    assert arriving_shares(loaded.model, loaded.clip, random_eraser(loaded.model)) == {}


def test_the_fit_says_it(loaded: Loaded, captured: tuple[Activations, Activations]) -> None:
    forget, retain = captured
    given = {"forget": forget, "retain": retain, "method": "ridge"}
    summary = Fit.execute(**given, heads=TOGETHER)[2]
    assert "arrives in the model, of the change: not measured" in summary
    connected = {"model": loaded.model, "clip": loaded.clip}
    summary = Fit.execute(**given, **connected, heads=TOGETHER)[2]
    assert "arrives in the model, of the change: " in summary and "by layer" in summary
    summary = Fit.execute(**given, **connected, heads=BY_HEAD)[2]
    assert "of the change: all of it, as each head is changed by itself" in summary
