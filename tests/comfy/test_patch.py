"""The patched weight is E (W + dW), and nobody else's weight changes."""

from __future__ import annotations

from dataclasses import replace

import comfy.lora
import comfy.model_management
import pytest
import torch
from comfyui_pure.nodes.host.patch import CHOICES, EraserAdapter, chosen_edit, patch
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.pure_core.eraser import EDITS, ROLES, Edit, Eraser, LayerEraser
from comfyui_pure.pure_core.families import ROLES as ALL_ROLES

from testbed.comfy.erasers import ROUNDING, dense, random_eraser, relative_error
from testbed.comfy.stock import (
    Loaded,
    base_weight,
    effective_weight,
    projection,
    sample,
    unserved,
    weight_key,
    with_lora,
)


@pytest.mark.parametrize("by_head", [False, True], ids=["together", "by head"])
@pytest.mark.parametrize("strength", [1.0, 0.4, -1.5])
def test_with_a_lora_upstream_the_weight_is_e_times_the_sum(
    loaded: Loaded, strength: float, by_head: bool
) -> None:
    eraser, lora = random_eraser(loaded.model, by_head=by_head), with_lora(loaded.model)
    patched = patch(lora, eraser.applied(strength)).model
    for site in Sites.of(loaded.model).sites:
        e = dense(eraser.layers[site.name], strength)
        for role in ALL_ROLES:
            key = weight_key(site, role)
            summed = effective_weight(lora, key).double()
            change = relative_error(summed, base_weight(loaded.model, site, role))
            assert change > 0.01  # the LoRA does something
            assert relative_error(effective_weight(patched, key), e @ summed) < ROUNDING


def test_the_loaded_weight_is_the_same_as_the_computed_one(loaded: Loaded) -> None:
    eraser = random_eraser(loaded.model)
    patched = patch(with_lora(loaded.model), eraser).model
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    for site in Sites.of(patched).sites:
        loaded_weight = projection(patched, site, "values").weight.detach().clone()
        expected = effective_weight(patched, weight_key(site, "values")).double()
        assert relative_error(loaded_weight, expected) < ROUNDING


def test_a_lora_after_the_patch_is_not_projected(loaded: Loaded) -> None:
    eraser = random_eraser(loaded.model)
    key = weight_key(Sites.of(loaded.model).sites[0], "values")
    change = effective_weight(with_lora(loaded.model), key) - effective_weight(loaded.model, key)
    late = with_lora(patch(loaded.model, eraser).model)
    erased = effective_weight(patch(loaded.model, eraser).model, key)
    assert relative_error(effective_weight(late, key), (erased + change).double()) < ROUNDING


@pytest.mark.parametrize("edit", CHOICES)
@pytest.mark.parametrize("fitted", EDITS)
def test_only_the_projections_asked_for_change(loaded: Loaded, edit: str, fitted: Edit) -> None:
    eraser = random_eraser(loaded.model, fitted).applied(edit=chosen_edit(edit))
    patched = patch(loaded.model, eraser).model
    roles = ROLES[fitted if edit == "as fitted" else edit]
    sites = Sites.of(loaded.model).sites
    expected = {weight_key(site, role) for site in sites for role in roles}
    assert set(patched.patches) == expected
    assert not loaded.model.patches


def test_strength_zero_changes_no_bit(loaded: Loaded) -> None:
    patched = patch(loaded.model, random_eraser(loaded.model).applied(0.0)).model
    assert torch.equal(sample(patched, loaded.clip), sample(loaded.model, loaded.clip))
    assert not patched.patches


def test_the_source_stays_as_it_was(loaded: Loaded) -> None:
    before = sample(loaded.model, loaded.clip)
    weights = {key: value.clone() for key, value in loaded.model.model.state_dict().items()}
    erased = sample(patch(loaded.model, random_eraser(loaded.model)).model, loaded.clip)
    assert not torch.equal(erased, before)
    assert torch.equal(sample(loaded.model, loaded.clip), before)
    for key, value in loaded.model.model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_two_erasers_one_after_the_other(loaded: Loaded) -> None:
    first, second = (random_eraser(loaded.model, "values", seed=seed) for seed in (0, 1))
    patched = patch(patch(loaded.model, first).model, second).model
    for site in Sites.of(loaded.model).sites:
        both = dense(second.layers[site.name]) @ dense(first.layers[site.name])
        expected = both @ base_weight(loaded.model, site, "values")
        assert (
            relative_error(effective_weight(patched, weight_key(site, "values")), expected)
            < ROUNDING
        )


def test_an_eraser_of_rank_zero_patches_nothing(loaded: Loaded) -> None:
    eraser = random_eraser(loaded.model, rank=0)
    assert not patch(loaded.model, eraser).model.patches


def adapter(width: int = 32) -> tuple[EraserAdapter, torch.Tensor]:
    """An adapter and its dense E."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) / 8 for size in ((width, 3), (3, width)))
    return EraserAdapter({"key"}, [left, right]), dense(LayerEraser(left, right))


def test_the_adapter_survives_being_rebuilt() -> None:
    """0.30 moves an adapter's weights and makes it anew from them."""
    made, e = adapter()
    again = type(made)(made.loaded_keys, [each.clone() for each in made.weights])
    weight = torch.randn(32, 7)
    patches = [(1.0, again, 1.0, None, None)]
    edited = comfy.lora.calculate_weight(patches, weight.clone(), "key")
    assert relative_error(edited, e @ weight.double()) < ROUNDING


def test_a_view_is_edited_in_place() -> None:
    made, e = adapter()
    weight = torch.randn(32, 12)
    edited = comfy.lora.calculate_weight([(1.0, made, 1.0, (1, 4, 5), None)], weight.clone(), "key")
    expected = weight.double()
    expected[:, 4:9] = e @ expected[:, 4:9]
    assert relative_error(edited, expected) < ROUNDING
    assert torch.equal(edited[:, :4], weight[:, :4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_edited_in_float32(dtype: torch.dtype) -> None:
    made, e = adapter()
    weight = torch.randn(32, 7).to(dtype)
    patches = [(1.0, made, 1.0, None, None)]
    edited = comfy.lora.calculate_weight(patches, weight.clone(), "key", intermediate_dtype=dtype)
    assert edited.dtype == dtype
    exact = (e @ weight.double()).float()
    assert relative_error(edited, exact.double()) < torch.finfo(dtype).eps


def test_an_eraser_of_another_architecture_is_refused(loaded: Loaded) -> None:
    eraser = random_eraser(loaded.model)
    wider = {name: LayerEraser(torch.zeros(640, 1), torch.zeros(1, 640)) for name in eraser.layers}
    fewer = dict(list(eraser.layers.items())[1:])
    for layers, words in ((wider, "7 layers of widths 640"), (fewer, "6 layers of widths 320")):
        other = Eraser(layers, eraser.provenance)
        with pytest.raises(
            ModelError, match=f"eraser: .*{words}.*SD15 with 7 layers of widths 320"
        ):
            patch(loaded.model, other)
        with pytest.raises(ModelError, match="eraser: "):
            patch(loaded.model, other.applied(0.0))


def test_an_eraser_of_another_family_is_pointed_out(
    loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    eraser = random_eraser(loaded.model)
    patch(loaded.model, eraser)
    assert "of type" not in caplog.text
    made = eraser.provenance
    made = replace(made, model=replace(made.model, name="test (SD20)"))
    patch(loaded.model, replace(eraser, provenance=made))
    assert "test (SD20)" in caplog.text and "of type SD15" in caplog.text


def test_an_eraser_of_another_number_of_heads_is_refused(loaded: Loaded) -> None:
    eraser = random_eraser(loaded.model, by_head=True)
    layers = {
        name: LayerEraser(layer.proj_left.reshape(4, -1, 5), layer.proj_right.reshape(4, 5, -1))
        for name, layer in eraser.layers.items()
    }
    with pytest.raises(ModelError, match=r"made for 4 heads .* the model has 8"):
        patch(loaded.model, replace(eraser, layers=layers))


def test_a_model_of_no_known_family_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ModelError, match="model: Stable_Cascade_B"):
        patch(unserved(), random_eraser(loaded.model))


def test_quantised_weights_are_refused(loaded: Loaded) -> None:
    values = projection(loaded.model, Sites.of(loaded.model).sites[3], "values")
    plain = values.weight
    values.weight = torch.nn.Parameter(
        torch.zeros(plain.shape, dtype=torch.int8), requires_grad=False
    )
    try:
        with pytest.raises(ModelError, match=r"model: the weights are quantised .*int8"):
            patch(loaded.model, random_eraser(loaded.model))
    finally:
        values.weight = plain
