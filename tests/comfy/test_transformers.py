"""Transformers with a cross-attention of their own, from capture to exports, small and random."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfyui_pure.nodes import EraseConcept
from comfyui_pure.nodes.host.capture import CaptureError
from comfyui_pure.nodes.host.capture.arrival import arriving_encoded
from comfyui_pure.nodes.host.capture.batches import batches
from comfyui_pure.nodes.host.conditioning import Encoded, stack
from comfyui_pure.nodes.host.export import save_lora
from comfyui_pure.nodes.host.identity import fingerprint
from comfyui_pure.nodes.host.identity import patched as is_patched
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.sites import EffectiveWeights, ModelError, Sites
from comfyui_pure.nodes.host.text import text_task
from comfyui_pure.nodes.types import PIXEL_STEP
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.eraser import AtShared, LayerEraser
from comfyui_pure.pure_core.export import export_checkpoint
from comfyui_pure.pure_core.families import model_in_file
from comfyui_pure.pure_core.families.joint import same_but_moved
from comfyui_pure.pure_core.families.transformer_file import PREFIXES
from comfyui_pure.pure_core.fitting import BY_HEAD, fit, fit_text
from safetensors.torch import load_file, save_file
from torch import Tensor

from testbed.comfy.erasers import random_eraser
from testbed.comfy.families import text_encoder
from testbed.comfy.stock import execute, in_scaled_fp8
from testbed.comfy.transformer_measures import (
    ANCHORS,
    PREFIX,
    batch_sizes,
    captured,
    exported,
    in_float64,
    lora_error,
    relative,
    runs,
    sampled,
    trajectory,
    untouched,
    weights,
)
from testbed.comfy.transformers import ALL, JOINT, KINDS, encoded, no_such, transformer

PROMPTS = 3
SHORTER = 4
"""Tokens."""
ALIGNMENT = {"Cosmos 1": 1e-4}
"""Kinds whose output depends on where weights lie in memory, in ComfyUI 0.3.75, and by how much."""


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each of these kinds, skipped where this ComfyUI has none."""
    skip = {name: pytest.mark.skipif(bool(no_such(name)), reason=no_such(name)) for name in names}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in skip.items()])


each_cross, each_kind, each_variant = each(KINDS), each(KINDS | JOINT), each(ALL)
each_joint = each(JOINT)


model_of = cache(transformer)


@each_variant
def test_the_recorded_rows_are_attention_s_output(name: str) -> None:
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    with untouched(model):
        with in_float64(model) as expected:
            rows = captured(name, model, prompts).rows
        sites = Sites.of(model)
        assert rows.keys() == set(sites.widths()) and len(sites.sites) == ALL[name].sites
        assert sites.family.name == ALL[name].family
        positions = 0 if sites.family.name == "cosmos1" else 1
        for site in sites.sites:
            once = expected[site.name][:: runs(site)]
            means = torch.cat([h.mean(positions) for h in once])
            assert relative(rows[site.name], means) <= 2e-6, site.name


@each_variant
def test_it_is_known_in_a_file_under_every_prefix(name: str) -> None:
    model = model_of(name)
    sites, net = Sites.of(model), model.model.diffusion_model
    for prefix in PREFIXES:
        shapes = {f"{prefix}{key}": tuple(each.shape) for key, each in net.state_dict().items()}
        found = model_in_file(shapes, "it")
        assert (found.family, found.widths()) == (ALL[name].family, sites.widths())
        for site in sites.sites:
            for role, rows in (("keys", site.keys), ("values", site.values)):
                place, bias = found.weight(site.name, role), found.bias(site.name, role)
                assert place.tensor == f"{prefix}{rows.module}.weight"
                assert (bias is not None) == rows.bias


WAYS: tuple[AtShared, ...] = ("in the weights", "while sampling")


@pytest.mark.parametrize("way", WAYS)
@each_variant
def test_after_an_eraser_by_head_h_is_e_h(name: str, way: AtShared) -> None:
    """Of the last site both ways, if text and picture share its weights."""
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    first, *_, last = Sites.of(model).sites
    sites = [first, last] if way == WAYS[0] else [last]
    if way != WAYS[0] and last.part != "all":
        pytest.skip("text and picture share no weights")
    with untouched(model):
        before = captured(name, model, prompts)
        eraser = random_eraser(model, "values", rank=2, by_head=True).applied(at_shared=way)
        for site in sites:
            alone = {each: layer.scaled(each == site.name) for each, layer in eraser.layers.items()}
            patched = patch(model, replace(eraser, layers=alone)).model
            assert bool(patched.patches) == (way == WAYS[0])
            after = captured(name, patched, prompts).rows[site.name]
            wanted = eraser.layers[site.name](before.rows[site.name])
            assert relative(wanted, before.rows[site.name].double()) > 0.05
            assert relative(after, wanted.double()) <= 1e-5, site.name


def test_what_is_erased_while_sampling_is_said_and_not_erased_again(tmp_path: Path) -> None:
    model = model_of("Z-Image")
    eraser = random_eraser(model, "values", rank=2, by_head=True)
    patched = patch(model, eraser)
    assert patched.summary.startswith("Erases at strength 1, ranks 2 to 2; no weight is changed.")
    assert is_patched(patched.model) and not is_patched(model)
    with pytest.raises(ModelError, match="before it is erased"):
        save_lora(patched.model, [eraser], torch.float32, tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())
    save_lora(model, [eraser], torch.float32, tmp_path / "lora.safetensors")


def test_a_compiled_model_is_erased_while_sampling() -> None:
    """Compiled code calls no hooks, not even after it was compiled for another clone."""
    model = model_of("Z-Image")
    eraser = random_eraser(model, "values", rank=2, by_head=True)
    plain, wanted = sampled("Z-Image", model), sampled("Z-Image", patch(model, eraser).model)
    assert relative(wanted, plain.double()) > 0.01
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    try:
        for _ in range(2):
            assert relative(sampled("Z-Image", compiled), plain.double()) <= 1e-5
            erased = sampled("Z-Image", patch(compiled, eraser).model)
            assert relative(erased, wanted.double()) <= 1e-5
    finally:
        torch.compiler.reset()


def test_a_text_that_is_not_found_while_sampling_is_said() -> None:
    model = model_of("Z-Image")
    patched = patch(model, random_eraser(model, "values", rank=2, by_head=True)).model
    first = model.model.diffusion_model.layers[0]
    other = first.register_forward_pre_hook(lambda _, given: (given[0] + 1, *given[1:]))
    try:
        with pytest.raises(ModelError, match="in the weights"):
            sampled("Z-Image", patched)
    finally:
        other.remove()
    with untouched(model):
        sampled("Z-Image", patched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_text_is_found_to_which_a_small_vector_was_added(dtype: torch.dtype) -> None:
    text = (100 * torch.randn(2, 7, 64)).to(dtype)
    moved = text + torch.randn(64).to(dtype)
    assert same_but_moved(moved, text)
    assert not same_but_moved(moved.flip(1), text)
    assert not same_but_moved(text + torch.randn(2, 7, 64).to(dtype) * 10, text)


def test_what_is_one_for_a_batch_is_the_same_for_all_its_prompts() -> None:
    """Options without a row for each prompt, and masks that are there for some prompts only."""
    rows, ids = torch.zeros(1, 7, 4), torch.arange(3)
    options: list[dict[str, Any]] = [
        {"ids": ids},
        {"ids": ids.clone()},
        {"ids": ids + 1},
        {"ids": ids, "mask": torch.ones(1, 7)},
        {"ids": ids, "other": torch.ones(1, 7)},
        {"guidance": 3.5},
        {"guidance": 6.0},
    ]
    prompts = [Encoded(rows, each) for each in options]
    together = [sorted({row.anchor for row in batch}) for batch in batches(prompts, 2, 64)]
    assert sorted(together) == [[0, 1], [2], [3], [4], [5], [6]]
    assert torch.equal(stack(prompts[:2])[0][1]["ids"], ids)


@each_kind
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    change = {"run_steps": 2, "cells": 2, "cfg": 4.0}
    with batch_sizes(model) as sizes:
        together = captured(name, model, prompts, **change)
    *given, empty = prompts
    guided = 1 if Sites.of(model).family.guides_itself(model.model.diffusion_model) else 2
    assert set(sizes) == {guided * 2 * len(given)}  # of two latents
    for number, prompt in enumerate(given):
        alone = captured(name, model, [prompt, empty], **change)
        for site, rows in alone.rows.items():
            part = together.grid(site)[number].flatten(0, 1)
            assert relative(part, rows.double()) <= 2e-5, (number, site)


@each_joint
def test_a_shorter_prompt_is_captured_as_it_is_alone(name: str) -> None:
    """Where text and picture are read together, the picture's place depends on the text's length;
    and some models take a mask's sum over the batch for the length."""
    model, (long, other, empty) = model_of(name), encoded(name, 3)
    mask = long.options.get("attention_mask")
    cut = {} if mask is None else {"attention_mask": mask[:, :SHORTER]}
    short = Encoded(other.tokens[:, :SHORTER], {**other.options, **cut})
    with batch_sizes(model) as sizes:
        together = captured(name, model, [long, short, other, empty])
    assert sum(sizes) == 3 * 2  # of two latents
    assert len(sizes) >= 2
    alone = captured(name, model, [short, empty])
    for site, rows in alone.rows.items():
        assert relative(together.grid(site)[1].flatten(0, 1), rows.double()) <= 2e-5, site
        assert relative(together.grid(site)[2].flatten(0, 1), rows.double()) > 1e-3, site


def test_a_capture_sees_the_shift_of_the_noise_levels_before_it() -> None:
    """So ModelSamplingSD3 belongs before the capture; sampling takes it on either side."""
    name = "Wan 2.1 T2V"
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)

    def shifted(model: ModelPatcher, shift: float = 3.0) -> ModelPatcher:
        return execute(ModelSamplingSD3, model=model, shift=shift)[0]

    with untouched(model):
        rows, other, again, plain = (
            captured(name, each, prompts, run_steps=2).rows
            for each in (shifted(model), shifted(model, 12.0), shifted(model), model)
        )
        for site in rows:
            second = rows[site][1::2].double()  # all begin with the same noise
            assert relative(other[site][1::2], second) > 1e-3
            assert relative(plain[site][1::2], second) > 1e-3
            assert torch.equal(again[site], rows[site])
        assert fingerprint(shifted(model)) == fingerprint(shifted(model))
        assert (
            len({fingerprint(each) for each in (model, shifted(model), shifted(model, 4.0))}) == 3
        )
        eraser = random_eraser(model, "values", rank=2, by_head=True)
        before, after = patch(shifted(model), eraser).model, shifted(patch(model, eraser).model)
        drawn = sampled(name, before)
        assert torch.equal(sampled(name, after), drawn)
        assert not torch.equal(sampled(name, patch(model, eraser).model), drawn)
        assert not torch.equal(sampled(name, shifted(model)), drawn)


@each_kind
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    """Fit, patch, sample, checkpoint, LoRA; and what is said of it."""
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    sites = Sites.of(model)
    with untouched(model):
        every = captured(name, model, prompts, run_steps=2, latents=3)
        forget, retain = every.split(1)
        plain = sampled(name, model)
        pure = fit("pure", forget, retain, forget_energy=0.9, retain_energy=0.5)
        assert (pure.edited == "keys and values") == sites.family.keys_are_linear
        eraser = fit("ridge", forget, retain, heads=BY_HEAD).applied(at_shared="in the weights")
        patched = patch(model, eraser)
        biased = any(site.values.bias for site in sites.sites)
        assert f"Patched {len(sites.sites) * (1 + biased)} weights" in patched.summary
        erased = sampled(name, patched.model)
        assert bool(torch.isfinite(erased).all()) and not torch.equal(erased, plain)
        off = patch(model, eraser.applied(0)).model
        assert off.patches == model.patches
        assert relative(sampled(name, off), plain.double()) <= ALIGNMENT.get(name, 0.0)
        file = exported(name, model, eraser, tmp_path)
        values = [site.values for site in sites.sites]
        expected = {f"{PREFIX}{each.module}.weight" for each in values}
        expected |= {f"{PREFIX}{each.module}.bias" for each in values if each.bias}
        assert file.changed == expected
        assert relative(sampled(name, file.model), erased.double()) <= ALIGNMENT.get(name, 0.0)
        assert lora_error(model, eraser, tmp_path) <= 1e-6


BY_CLIP = ("Wan 2.1 T2V", "Cosmos-Predict2", "PixArt sigma", "LTX-Video")
"""Kinds of every way in which text enters, which work with the vectors of any text encoder."""


@pytest.mark.parametrize("method", ["uce", "rece", "oce"])
@pytest.mark.parametrize("name", BY_CLIP)
def test_methods_by_text_edit_where_text_enters(name: str, method: str, tmp_path: Path) -> None:
    if no_such(name):
        pytest.skip(no_such(name))
    clip = text_encoder("CLIP-L")
    model = transformer(name, text=768)
    sites = Sites.of(model)
    forget, retain = (AnchorSet.written([each]) for each in (["a fox"], ["a cat", "a horse"]))
    task = text_task(model, clip, forget, retain, ["a thing"])
    eraser = fit_text(method, task)
    entry = sites.entry
    assert set(eraser.layers) == ({entry.module} if entry else set(sites.widths()))
    with untouched(model):
        patched = patch(model, eraser).model
        one, other = (EffectiveWeights(each, sites) for each in (model, patched))
        for layer, factors in eraser.layers.items():
            wanted = factors.edit_weight(one.weight(layer, "values"))
            assert relative(other.weight(layer, "values"), wanted.double()) < 1e-6
            assert relative(wanted, one.weight(layer, "values").double()) > 1e-4
    source, target = tmp_path / "source.safetensors", tmp_path / "erased.safetensors"
    save_file(weights(model), source)
    export_checkpoint(source, target, [eraser], any_source=True)
    before, after = load_file(source), load_file(target)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    modules = [rows.module for each in eraser.layers for rows in sites.rows(each, eraser.roles)]
    assert changed == {f"{module}.weight" for module in modules}
    save_lora(model, [eraser], torch.float32, tmp_path / "lora.safetensors")
    state = load_file(tmp_path / "lora.safetensors")
    lora = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)[0]
    for layer in eraser.layers:
        found = EffectiveWeights(lora, sites).weight(layer, "values")
        assert (
            relative(found, EffectiveWeights(patched, sites).weight(layer, "values").double())
            < 1e-6
        )


@each_kind
def test_an_error_or_a_cancel_leaves_the_model_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    before = captured(name, model, prompts)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def cancel(*_: object, **__: object) -> None:
        comfy.model_management.interrupt_current_processing()

    with untouched(model):
        with monkeypatch.context() as context:  # as the editor's button does, after one step of two
            context.setattr("comfy.utils.ProgressBar.update", cancel)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                captured(name, model, prompts, run_steps=2)
        with monkeypatch.context() as context:
            net = Sites.of(model).net
            last = net.get_submodule(Sites.of(model).sites[-1].out)
            context.setattr(last, "forward", stop)
            with pytest.raises(KeyboardInterrupt):
                captured(name, model, prompts)
        after = captured(name, model, prompts)
        for site, rows in before.rows.items():
            assert relative(after.rows[site], rows.double()) < 1e-6


@each_kind
def test_bad_input_is_told(name: str) -> None:
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    sites = Sites.of(model)
    geometry = sites.family.latent(sites.net)
    if geometry.multiple > PIXEL_STEP:
        odd = ALL[name].size + PIXEL_STEP
        with pytest.raises(CaptureError, match=f"expected a multiple of {geometry.multiple}"):
            captured(name, model, prompts, width=odd)
    if geometry.least_pixels:
        with pytest.raises(CaptureError, match=f"from {geometry.least_pixels} on"):
            captured(name, model, prompts, height=geometry.multiple)
    with pytest.raises(ModelError, match=r"clip: its vectors have 33 numbers"):
        sites.require_text_width(33)
    others = [each for each in KINDS if ALL[each].family != ALL[name].family]
    other = next(each for each in others if not no_such(each))
    with pytest.raises(ModelError, match="eraser: it was fitted on another architecture"):
        patch(model, random_eraser(model_of(other), by_head=True))
    eraser = random_eraser(model, rank=2, by_head=True)
    split = {
        site: LayerEraser(
            layer.proj_left.reshape(2 * layer.heads, -1, 2),
            layer.proj_right.reshape(2 * layer.heads, 2, -1),
        )
        for site, layer in eraser.layers.items()
    }
    with pytest.raises(ModelError, match=r"made for \d+ heads .* the model has \d"):
        patch(model, replace(eraser, layers=split))
    values = sites.net.get_submodule(sites.sites[0].values.module)
    plain = values.weight
    values.weight = torch.nn.Parameter(plain.detach().to(torch.int8), requires_grad=False)
    try:
        with pytest.raises(ModelError, match="the weights are quantised"):
            patch(model, eraser)
    finally:
        values.weight = plain


@each_kind
def test_scaled_fp8_is_captured_and_not_erased(name: str, comfy_version: tuple[int, ...]) -> None:
    if comfy_version < (0, 30):
        pytest.skip("this ComfyUI has no such tensors")
    plain = captured(name, model_of(name), encoded(name, PROMPTS + 1)).rows
    model = transformer(name)
    eraser = random_eraser(model, by_head=True)
    in_scaled_fp8(model)
    rows = captured(name, model, encoded(name, PROMPTS + 1)).rows
    for site, expected in plain.items():
        assert 0 < relative(rows[site], expected.double()) < 0.2
    with pytest.raises(ModelError, match="the weights are quantised"):
        patch(model, eraser)


@each_cross
def test_what_arrives_of_a_dense_eraser_is_measured(name: str) -> None:
    """Against patching one layer alone. Where a picture is read beside, it is not measured."""
    model, prompts = model_of(name), encoded(name, PROMPTS + 1)
    site = Sites.of(model).sites[0]
    eraser = random_eraser(model, "values", rank=2)
    made = replace(eraser.provenance, trajectory=trajectory(name, latents=1), forget=ANCHORS)
    eraser = replace(eraser, provenance=made)
    with untouched(model):
        shares = arriving_encoded(model, prompts[:-1], prompts[-1], eraser)
        if site.part != "cross":
            assert site.name not in shares
            return
        alone = {each: layer.scaled(each == site.name) for each, layer in eraser.layers.items()}
        found = []
        for each in (model, patch(model, replace(eraser, layers=alone)).model):
            out = Sites.of(model).net.get_submodule(site.out)
            own: list[Tensor] = []
            handle = out.register_forward_pre_hook(lambda _, inputs, own=own: own.append(inputs[0]))
            captured(name, each, prompts, latents=1)
            handle.remove()
            found.append(torch.cat([h.movedim(site.rows_axis, 0) for h in own]))
    h, arrived = found
    wanted = eraser.layers[site.name](h)
    missed = float((arrived - wanted).norm() / (wanted - h).norm())
    assert shares[site.name] == pytest.approx(1 - missed, abs=1e-3)


@pytest.mark.parametrize("method", ["ridge", "pure", "mosaic"])
def test_one_node_erases_from_a_transformer(method: str) -> None:
    """PURE Erase Concept with a text encoder of ComfyUI's own; names of the model in its report."""
    model, clip = transformer("Wan 2.1 T2V", text=768), text_encoder("CLIP-L")
    with untouched(model):
        erased, eraser, _, summary = EraseConcept.execute(
            model,
            clip,
            concept="a fox",
            neighbours="a cat\na horse",
            kind="object",
            method=method,
            strength=1.0,
            templates="{}\na photo of {}",
            steps=4,
            run_steps=2,
            latents=1,
            cfg=4.0,
        ).result
        assert eraser.edited == "values" and eraser.provenance.model.family == "wan"
        assert bool(eraser.heads) == (method != "pure")
        assert f"Patched {2 * 2} weights in 2 of 2 layers" in summary
        assert "arrives in the model, of the change: " in summary
        assert "not measured" not in summary
        assert set(erased.patches) == {
            f"diffusion_model.blocks.{block}.cross_attn.v.{part}"
            for block in (0, 1)
            for part in ("weight", "bias")
        }
