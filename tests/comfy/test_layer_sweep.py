"""PURE_LayerSweep: what it measures is what PURE_Patch does, and the model stays as it was."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfyui_pure.nodes import LayerSweep, Patch
from comfyui_pure.nodes.host.capture import some, sweep_layers
from comfyui_pure.nodes.host.capture.layer_sweep import sweep_encoded
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.pictures import NO_PICTURE
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import Eraser, LayerEraser
from comfyui_pure.pure_core.errors import EraserError, PureError
from comfyui_pure.pure_core.layer_sweep import BY
from comfyui_pure.pure_core.trajectory import Trajectory
from PIL import Image

from testbed.comfy.erasers import random_eraser
from testbed.comfy.server import ComfyServer
from testbed.comfy.stock import NOTICEABLE, PIXELS, Loaded, State, difference, execute
from testbed.comfy.transformers import encoded, transformer
from tests.comfy.test_queue import Graph, base, erase, node

SHORT = {"steps": 2, "cfg": 1.0, "width": PIXELS, "height": PIXELS}
CONCEPT = AnchorSet.written([["a ball", "a red ball"]])
NEIGHBOURS = AnchorSet.written([["a star"], ["a heart"], ["a blue heart"]])


@pytest.fixture(scope="module")
def eraser(loaded: Loaded) -> Eraser:
    """One that changes every layer, and knows its prompts."""
    made = random_eraser(loaded.model)
    known = replace(made.provenance, forget=CONCEPT, retain=NEIGHBOURS)
    return replace(made, provenance=known)


def run(loaded: Loaded, eraser: Eraser, **change: Any) -> tuple[Any, ...]:
    given = {"model": loaded.model, "clip": loaded.clip, "eraser": eraser, "share": 0.9}
    return execute(LayerSweep, **{**given, "by": "part", "prompts": 1, **SHORT, **change})


def test_what_it_measures_is_what_patching_does(loaded: Loaded, eraser: Eraser) -> None:
    """The numbers of the choice, from PURE_Patch with the words that came out."""
    wanted = Trajectory(**SHORT)
    given = (loaded.model, loaded.clip, eraser, CONCEPT, NEIGHBOURS, wanted)
    swept = sweep_layers(*given, "block", 0.6)
    found = swept.found
    assert 0 < len(found.chosen) < len(found.swept) == len(eraser.layers)
    assert found.found.share >= 0.6
    patched, *_ = execute(
        Patch,
        model=loaded.model,
        eraser=eraser,
        strength=1.0,
        edit="as fitted",
        layers=found.layers,
    )
    again = sweep_layers(patched, *given[1:], "part", 1.0)  # the same batch: equal to the last bit
    assert torch.equal(again.pairs[None].concept, swept.pairs[found.layers].concept)


def test_every_prompt_starts_from_its_own_noise(loaded: Loaded, eraser: Eraser) -> None:
    """And from the same one whatever the batch: the second prompt, the same words, differs."""
    same = AnchorSet.written([["a ball", "a ball"]])
    given = (loaded.model, loaded.clip, eraser, same, AnchorSet(), Trajectory(**SHORT))
    once = sweep_layers(*given, "part", 0.9)
    alone = sweep_layers(*given[:3], same[:1], AnchorSet(), given[-1], "part", 0.9)
    assert difference(once.pairs[None].concept, alone.pairs[None].concept) < NOTICEABLE
    other = once.found.swept[0].alone.share
    assert other != pytest.approx(alone.found.swept[0].alone.share, rel=1e-3)
    assert once.found.whole.moved is None


@pytest.mark.parametrize("by", BY)
def test_the_model_stays_as_it_was(loaded: Loaded, eraser: Eraser, by: str) -> None:
    before = State.of(loaded.model)
    layers, picture, pictures, summary = run(loaded, eraser, by=by)
    State.of(loaded.model).require(before)
    assert isinstance(layers, str) and pictures is NO_PICTURE
    assert picture.shape[0] == 1 and picture.shape[-1] == 3
    assert f" {by}s" in summary and "Measured on prompts: 1 of the concept, 1 of its" in summary


def test_with_a_vae_there_is_a_contact_sheet(loaded: Loaded, eraser: Eraser) -> None:
    alone = run(loaded, eraser, vae=loaded.vae, neighbour_prompts="a star")[2]
    # unedited, all, perhaps the choice, three parts: six columns of two pictures
    assert alone.shape[0] == 1 and alone.shape[1] > 2 * 160 and 5 * 160 < alone.shape[2] < 7 * 172
    assert float(alone.min()) >= 0 and float(alone.max()) <= 1


def test_the_bar_covers_every_step(
    loaded: Loaded,
    eraser: Eraser,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: told.append((done, total))
    )
    with caplog.at_level(logging.INFO):
        run(loaded, eraser)
    ours = [pair for pair in told if pair[1] >= 2 * 9]
    done = [done for done, _ in ours]
    assert done == list(range(1, len(done) + 1)) and done[-1] >= 2 * 8
    assert "samples 2 pictures 9 times or a little more, 18 pictures of 2 steps" in caplog.text


def test_cancelling_leaves_nothing_behind(loaded: Loaded, eraser: Eraser) -> None:
    before = State.of(loaded.model)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(loaded, eraser)
    State.of(loaded.model).require(before)


def test_layers_that_the_eraser_leaves_alone_are_not_swept(loaded: Loaded, eraser: Eraser) -> None:
    names = list(eraser.layers)
    some_layers = {
        name: layer.scaled(name in (names[0], names[3], names[-1]))
        for name, layer in eraser.layers.items()
    }
    wanted = Trajectory(**SHORT)
    less = replace(eraser, layers=some_layers)
    swept = sweep_layers(loaded.model, loaded.clip, less, CONCEPT, NEIGHBOURS, wanted, "layer", 0.5)
    assert [each.unit.layers for each in swept.found.swept] == [
        (name,) for name in (names[0], names[3], names[-1])
    ]


def in_text(loaded: Loaded) -> Eraser:
    """An eraser of the text that every layer reads for itself."""
    made = random_eraser(loaded.model)
    random = torch.Generator().manual_seed(1)
    width = Sites.of(loaded.model).sites[0].text_width
    factors = [torch.randn(size, generator=random) / 10 for size in ((width, 2), (2, width))]
    layer = LayerEraser(*factors, space="text")
    known = replace(made.provenance, forget=CONCEPT, retain=NEIGHBOURS)
    return replace(made, layers=dict.fromkeys(made.layers, layer), provenance=known)


def test_erasers_of_the_text_have_layers_too(loaded: Loaded) -> None:
    layers, *_, summary = run(loaded, in_text(loaded), share=0.3)
    assert layers in ("input", "middle", "output", "") or "," in layers
    assert "of what the whole eraser does" in summary or "all 3 parts" in summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, "share: expected a share above 0"),
        ({"by": "head"}, "by: expected one of part, block, layer"),
        ({"width": PIXELS + 1}, "width: expected a multiple"),
        ({"sampler_name": "dpm_fast"}, "sampler_name: expected a sampler"),
    ],
)
def test_a_bad_input_is_named(
    loaded: Loaded, eraser: Eraser, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PureError, match=message):
        run(loaded, eraser, **change)


def test_an_eraser_that_does_nothing_is_refused(loaded: Loaded, eraser: Eraser) -> None:
    with pytest.raises(EraserError, match="does not change the pictures"):
        run(loaded, eraser.applied(0.0))


def test_an_eraser_of_another_model_is_refused(loaded: Loaded, eraser: Eraser) -> None:
    fewer = {name: eraser.layers[name] for name in list(eraser.layers)[1:]}
    with pytest.raises(ModelError, match="fitted on another architecture"):
        run(loaded, replace(eraser, layers=fewer))


def test_an_eraser_without_prompts_asks_for_some(loaded: Loaded, eraser: Eraser) -> None:
    bare = replace(eraser, provenance=replace(eraser.provenance, forget=AnchorSet()))
    with pytest.raises(PureError, match="concept_prompts: expected at least one line"):
        run(loaded, bare)
    assert run(loaded, bare, concept_prompts="a ball")[3]


def test_prompts_are_spread_over_the_list() -> None:
    anchors = AnchorSet.written([[str(number)] for number in range(10)])
    assert some(anchors, 4).prompts == ("0", "2", "5", "7")
    assert some(anchors, 10) == some(anchors, 64) == anchors


@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "Flux.1", "Z-Image"])
def test_transformers(name: str) -> None:
    """Their blocks are swept, also where text is erased while sampling."""
    model = transformer(name)
    eraser = random_eraser(model, "values")
    prompts = encoded(name, 4)
    wanted = Trajectory(steps=2, width=64, height=64, cfg=1.0)
    before = State.of(model)
    given = (prompts[:2], prompts[2:3], prompts[3], eraser, wanted)
    swept = sweep_encoded(model, *given, "block", 0.3)
    State.of(model).require(before)
    assert sum(len(each.unit.layers) for each in swept.found.swept) == len(eraser.layers)
    patched = patch(model, eraser).model
    erased = sweep_encoded(patched, *given, "layer", 0.3)
    assert torch.equal(erased.pairs[None].concept, swept.pairs[""].concept)


def test_where_text_enters_there_is_nothing_to_choose() -> None:
    name = "Wan 2.1 T2V"
    model = transformer(name)
    sites = Sites.of(model)
    assert sites.entry is not None
    width = sites.widths(text=True)[sites.entry.module]
    layer = LayerEraser(torch.ones(width, 1) / width, torch.ones(1, width), space="text")
    eraser = replace(random_eraser(model), layers={sites.entry.module: layer})
    prompts = encoded(name, 2)
    wanted = Trajectory(steps=1, width=64, height=64)
    with pytest.raises(EraserError, match="where it enters the model"):
        sweep_encoded(model, prompts[:1], [], prompts[1], eraser, wanted, "block", 0.9)


def graph(checkpoint: Path, **change: Any) -> Graph:
    """An eraser, swept, and patched where the sweep says."""
    given = {"model": ["loader", 0], "clip": ["loader", 1], "eraser": ["erase", 1], "share": 0.5}
    more = {"seed": 0, "sampler_name": "euler", "scheduler": "normal", **SHORT}
    return {
        **base(checkpoint),
        "erase": erase(),
        "sweep": node("PURE_LayerSweep", **{**given, "by": "part", "prompts": 1, **more, **change}),
        "chart": node("PreviewImage", images=["sweep", 1]),
        "sheet": node("PreviewImage", images=["sweep", 2]),
        "patch": node(
            "PURE_Patch",
            model=["loader", 0],
            eraser=["erase", 1],
            strength=1.0,
            edit="as fitted",
            layers=["sweep", 0],
        ),
        "words": node("PreviewAny", source=["patch", 2]),
    }


def test_queued(comfy_server: ComfyServer, checkpoint: Path) -> None:
    """Without a vae the chart is shown and the sheet's branch is left out; with one both are."""
    bare = comfy_server.run(graph(checkpoint))
    assert bare.error is None, bare.error
    assert bare.images("chart") and "sheet" not in bare.outputs
    whole = comfy_server.run(graph(checkpoint, vae=["loader", 2], prompts=2))
    assert whole.error is None, whole.error
    for name in ("chart", "sheet"):
        picture = Image.open(io.BytesIO(comfy_server.image(whole.images(name)[0])))
        assert min(picture.size) > 100
    assert "layers" in json.dumps(whole.outputs["words"])
