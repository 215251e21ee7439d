"""PURE_FitText in ComfyUI: erasers in text space, and every node that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from comfyui_pure.nodes import Concept, FitText
from comfyui_pure.nodes.host.patch import AS_FITTED, patch
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.combine import combine
from comfyui_pure.pure_core.concepts import PromptError
from comfyui_pure.pure_core.eraser import ROLES, Eraser
from comfyui_pure.pure_core.errors import EraserError, FitError
from comfyui_pure.pure_core.export import export_checkpoint
from comfyui_pure.pure_core.families import ROLES as ALL_ROLES
from comfyui_pure.pure_core.files.eraser import load_eraser, save_eraser
from comfyui_pure.pure_core.fitting import fit_text
from comfyui_pure.pure_core.methods import TEXT_METHODS
from comfyui_pure.pure_core.selection import select
from safetensors.torch import save_file

import nodes
from testbed.comfy.erasers import ROUNDING, Pair, dense, random_eraser, relative_error
from testbed.comfy.families import text_encoder
from testbed.comfy.server import ComfyServer
from testbed.comfy.stock import (
    Loaded,
    base_weight,
    effective_weight,
    execute,
    sample,
    weight_key,
    with_lora,
)
from tests.comfy.test_queue import base, node, picture

PROMPTS = {
    "forget": "a ball\na photo of a ball",
    "retain": "a star\na photo of a star\na heart\na photo of a heart",
    "anchor": "an object",
}


def fit(loaded: Loaded, method: str, **change: Any) -> tuple[Eraser, str]:
    given = {"clip": loaded.clip, "model": loaded.model, "method": method, **PROMPTS, **change}
    return execute(FitText, **given)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def erasers(loaded: Loaded) -> dict[str, Eraser]:
    """One of every method, with the node's defaults."""
    return {method: fit(loaded, method)[0] for method in TEXT_METHODS}


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_the_patched_weights_are_the_eraser_s(
    loaded: Loaded, erasers: dict[str, Eraser], method: str
) -> None:
    eraser = erasers[method]
    sites = Sites.of(loaded.model)
    assert eraser.widths == sites.widths(text=eraser.space == "text")
    assert eraser.space == ("activations" if method == "oce" else "text")
    model = with_lora(loaded.model)
    patched = patch(model, eraser.applied(0.7)).model
    roles = ROLES[TEXT_METHODS[method].edit]
    for site in sites.sites:
        e = dense(eraser.layers[site.name], 0.7)
        for role in ALL_ROLES:
            key = weight_key(site, role)
            before = effective_weight(model, key).double()
            expected = before
            if role in roles:
                expected = before @ e if eraser.space == "text" else e @ before
            assert relative_error(effective_weight(patched, key), expected) < ROUNDING
    plain, erased = sample(loaded.model, loaded.clip), sample(patched, loaded.clip)
    assert not torch.equal(plain, erased)
    assert torch.equal(sample(patch(loaded.model, eraser.applied(0)).model, loaded.clip), plain)


@pytest.mark.parametrize("method", ["uce", "cure", "speed"])
def test_a_file_brings_the_same_eraser_back(
    erasers: dict[str, Eraser], method: str, tmp_path: Path
) -> None:
    path = tmp_path / "eraser.safetensors"
    save_eraser(erasers[method], path)
    loaded = load_eraser(path)
    assert loaded.fingerprint == erasers[method].fingerprint
    assert loaded.provenance == erasers[method].provenance
    assert loaded.space == "text"
    shared = len({id(layer) for layer in loaded.layers.values()})
    assert shared == (len(loaded.layers) if method == "speed" else 1)


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_an_exported_checkpoint_is_the_patched_model(
    pair: Pair, loaded: Loaded, method: str, tmp_path: Path
) -> None:
    here = Loaded(pair.model, loaded.clip, *loaded[2:])
    eraser, _ = fit(here, method)
    target = tmp_path / "erased.safetensors"
    export_checkpoint(pair.path, target, [eraser.applied(0.8)])
    again = comfy.sd.load_diffusion_model(str(target))
    patched = patch(pair.model, eraser.applied(0.8)).model
    assert torch.equal(sample(again, loaded.clip), sample(patched, loaded.clip))


def test_it_erases_only_in_the_layers_chosen(loaded: Loaded, erasers: dict[str, Eraser]) -> None:
    chosen = select(erasers["uce"], "middle")
    patched = patch(loaded.model, chosen).model
    assert {"middle_block" in key for key in patched.patches} == {True}
    with pytest.raises(EraserError, match="it works on the text"):
        select(erasers["speed"], contribution=0.5)


def test_in_sequence_is_one_patch_after_the_other(
    loaded: Loaded, erasers: dict[str, Eraser]
) -> None:
    first, second = erasers["uce"], erasers["cure"]
    both = patch(loaded.model, combine([first, second], "in sequence")).model
    chain = patch(patch(loaded.model, first).model, second).model
    for site in Sites.of(loaded.model).sites:
        for role in ALL_ROLES:
            expected = effective_weight(chain, weight_key(site, role)).double()
            actual = effective_weight(both, weight_key(site, role))
            assert relative_error(actual, expected) < 10 * ROUNDING
    with pytest.raises(EraserError, match="Fit all concepts at once"):
        combine([first, first], "joint")


def test_text_and_activation_erasers_patch_one_model(loaded: Loaded, erasers: dict[str, Eraser]):
    left = random_eraser(loaded.model)
    patched = patch(patch(loaded.model, erasers["uce"]).model, left).model
    site = Sites.of(loaded.model).sites[0]
    weight = base_weight(loaded.model, site, "keys")
    expected = dense(left.layers[site.name]) @ weight @ dense(erasers["uce"].layers[site.name])
    assert relative_error(effective_weight(patched, weight_key(site, "keys")), expected) < ROUNDING
    with pytest.raises(EraserError, match="Patch the model with one after the other"):
        combine([left, erasers["uce"]], "in sequence")


def test_the_anchor_decides_what_the_concept_becomes(loaded: Loaded) -> None:
    to_object, to_nothing = fit(loaded, "uce")[0], fit(loaded, "uce", anchor="")[0]
    assert to_object.fingerprint != to_nothing.fingerprint
    assert to_nothing.provenance.settings["anchor"] == ""
    same = fit(loaded, "uce", anchor=PROMPTS["forget"])[0]
    assert set(same.ranks.values()) == {0}


def test_token_ridge_takes_one_name_in_every_phrasing(loaded: Loaded) -> None:
    given = {"concept": "a ball", "kind": "object", "neighbours": "a star\na heart"}
    forget, retain, *_, becomes = execute(Concept, **given, replacement="a mug")
    sides = {"forget": forget, "retain": retain}
    named = fit(loaded, "token ridge", **sides, anchor="a mug")[0]
    lines = fit(loaded, "token ridge", **sides, anchor="\n".join(becomes.prompts))[0]
    assert named.fingerprint == lines.fingerprint
    assert named.provenance.settings["anchor"] == ", ".join(becomes.prompts)
    plain = fit(loaded, "token ridge", **sides, anchor="")[0]
    assert plain.provenance.settings["anchor"] == ""
    assert plain.fingerprint != named.fingerprint
    uce = fit(loaded, "uce", **sides, anchor="a mug")[0]
    assert uce.provenance.settings["anchor"] == "a mug"


def test_trce_keeps_the_captions_that_come_with_it(loaded: Loaded) -> None:
    """The node encodes them; without retain prompts they are all that is kept."""
    method = TEXT_METHODS["trce"]
    forget = AnchorSet.written([PROMPTS["forget"].split("\n")])
    for retain in (PROMPTS["retain"], ""):
        kept = AnchorSet.written([retain.split("\n")]) if retain else AnchorSet()
        given = (loaded.model, loaded.clip, forget, kept, [PROMPTS["anchor"]])
        task = text_task(*given, method.captions)
        assert task.ordinary is not None and task.ordinary.prompts == method.captions
        eraser = fit(loaded, "trce", retain=retain)[0]
        assert eraser.fingerprint == fit_text("trce", task).fingerprint
    assert text_task(*given).ordinary is None


def test_the_end_of_a_prompt_is_found(loaded: Loaded) -> None:
    task = text_task(
        loaded.model,
        loaded.clip,
        AnchorSet.written([["ball", "a photo of a ball"]]),
        AnchorSet(),
        [],
    )
    assert task.forget.ends == (2, 6)
    assert task.empty.ends == (1,)
    assert task.retain is None
    assert task.anchor.prompts == ("", "")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"forget": " \n"}, PromptError, "forget: expected at least one prompt"),
        ({"anchor": "a\nb\nc"}, FitError, "anchor: expected one prompt, or as many"),
        ({"retain": "", "method": "speed"}, FitError, "retain"),
        ({"retain": "", "method": "oce"}, FitError, "retain"),
        ({"clip": text_encoder("CLIP-H")}, ModelError, "clip: its vectors have 1024"),
        ({"forget": "a ball " * 60}, FitError, "longer than the text encoder reads at once"),
        ({"clip": None}, ModelError, "clip: expected a text encoder"),
    ],
)
def test_what_cannot_be_fitted_is_said(
    loaded: Loaded, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(loaded, **{"method": "uce", **change})


def test_a_concept_may_be_a_textual_inversion(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"emb_params": torch.randn(2, 768) / 4}, tmp_path / "zef.safetensors")
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "embeddings", ([str(tmp_path)], known["embeddings"][1]))
    model, clip, *_ = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)
    task = text_task(
        model, clip, AnchorSet.written([["a photo of embedding:zef"]]), AnchorSet(), []
    )
    assert task.forget.ends == (6,)


def test_the_summary_says_what_was_fitted(loaded: Loaded) -> None:
    eraser, words = fit(loaded, "uce", forget="a ball\n\na mug", max_rank=1)
    assert eraser.provenance.concepts == ("a ball", "a mug")
    assert set(eraser.ranks.values()) == {1}
    assert "Method uce" in words
    assert "2 concepts" in words


def test_queued_it_erases_and_is_remembered(comfy_server: ComfyServer, checkpoint: Path) -> None:
    prompt = {
        **base(checkpoint),
        "fit": node(
            "PURE_FitText", clip=["loader", 1], model=["loader", 0], method="uce", **PROMPTS
        ),
        "patch": node(
            "PURE_Patch", model=["loader", 0], eraser=["fit", 0], strength=1.0, edit=AS_FITTED
        ),
        **picture("before", ["loader", 0]),
        **picture("after", ["patch", 0]),
    }
    run = comfy_server.run(prompt)
    assert run.error is None, run.error
    assert {"before", "after"} <= run.outputs.keys()
