"""LoRAs, merges and several erasers: which weight results, by the formula.

What comes before the eraser is erased, what comes after is added to an erased weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_attention_multiply import UNetCrossAttentionMultiply
from comfy_extras.nodes_model_merging import (
    ModelAdd,
    ModelMergeBlocks,
    ModelMergeSimple,
    ModelSubtract,
)
from comfy_extras.nodes_model_merging_model_specific import ModelMergeSD1
from comfyui_pure.nodes.host.export import save_lora
from comfyui_pure.nodes.host.identity import fingerprint
from comfyui_pure.nodes.host.patch import BYPASS, patch
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.pure_core.families import ROLES, Role, Site
from torch import Tensor

from testbed.comfy.erasers import ROUNDING, Pair, dense, random_eraser, relative_error
from testbed.comfy.stock import (
    NOTICEABLE,
    Prompts,
    base_weight,
    difference,
    effective_weight,
    execute,
    ksampler,
    lora,
    projection,
    weight_key,
    with_lora,
    with_wrapper,
)

Weight = Callable[[Site, Role], Tensor]


@pytest.fixture(scope="module")
def second(pair: Pair) -> ModelPatcher:
    """Another model of the architecture."""
    model = comfy.sd.load_diffusion_model(str(pair.path))
    generator = torch.Generator().manual_seed(5)
    for site in Sites.of(model).sites:
        for role in ROLES:
            weight = projection(model, site, role).weight
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += noise * weight.std()
    return model


def require_weights(model: ModelPatcher, expected: Weight) -> None:
    """Every cross-attention key and value projection is what the formula says, in float64."""
    for site in Sites.of(model).sites:
        for role in ROLES:
            actual = effective_weight(model, weight_key(site, role))
            assert relative_error(actual, expected(site, role)) < ROUNDING, site.name


def weight_of(model: ModelPatcher) -> Weight:
    """Of a model without patches."""
    return lambda site, role: base_weight(model, site, role)


def erasing(pair: Pair) -> Callable[[Site], Tensor]:
    return lambda site: dense(pair.eraser.layers[site.name])


def change_of_lora(pair: Pair, **which: Any) -> Weight:
    """What `with_lora` adds to a weight."""
    changed = with_lora(pair.model, **which)

    def change(site: Site, role: Role) -> Tensor:
        key = weight_key(site, role)
        return effective_weight(changed, key).double() - base_weight(pair.model, site, role)

    return change


def test_two_loras_before_the_eraser_are_both_erased(pair: Pair) -> None:
    e, w = erasing(pair), weight_of(pair.model)
    first, later = change_of_lora(pair, seed=0), change_of_lora(pair, seed=1, strength=0.6)
    model = pair.patched(with_lora(with_lora(pair.model), seed=1, strength=0.6))
    require_weights(model, lambda *at: e(at[0]) @ (w(*at) + first(*at) + later(*at)))


def test_of_two_loras_only_the_one_before_the_eraser_is_erased(pair: Pair) -> None:
    e, w = erasing(pair), weight_of(pair.model)
    first, later = change_of_lora(pair, seed=0), change_of_lora(pair, seed=1, strength=0.6)
    model = with_lora(pair.patched(with_lora(pair.model)), seed=1, strength=0.6)
    require_weights(model, lambda *at: e(at[0]) @ (w(*at) + first(*at)) + later(*at))


@pytest.mark.parametrize("first", ["lora", "eraser"])
def test_a_bypass_lora_is_erased_in_no_order(pair: Pair, prompts: Prompts, first: str) -> None:
    """0.30 can add a LoRA to what a layer puts out and leave its weight alone."""
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no LoraLoaderBypass")

    def bypassing(model: ModelPatcher) -> ModelPatcher:
        return comfy.sd.load_bypass_lora_for_models(model, None, lora(pair.model), 1.0, 0.0)[0]

    site = Sites.of(pair.model).sites[3]
    model = pair.patched(bypassing(pair.model)) if first == "lora" else bypassing(pair.patched())
    at = (site, "values")
    expected = erasing(pair)(site) @ weight_of(pair.model)(*at) + change_of_lora(pair)(*at)
    seen: list[tuple[Tensor, Tensor]] = []
    with projection(pair.model, site, "values").register_forward_hook(
        lambda _module, inputs, output: seen.append((inputs[0].clone(), output.clone()))
    ):
        ksampler(model, prompts.positive, prompts.negative)
    assert seen
    for text, values in seen:
        assert relative_error(values, text.double() @ expected.T) < 10 * ROUNDING


def test_a_lora_between_two_erasers_is_erased_by_the_second_alone(pair: Pair) -> None:
    e, w, change = erasing(pair), weight_of(pair.model), change_of_lora(pair)
    other = random_eraser(pair.model, seed=1)
    model = patch(with_lora(pair.patched()), other).model
    second = {name: dense(layer) for name, layer in other.layers.items()}
    require_weights(model, lambda *at: second[at[0].name] @ (e(at[0]) @ w(*at) + change(*at)))


def test_two_erasers_of_different_strength_and_edit(pair: Pair) -> None:
    """E_b E_a W with every strength, below 0 too; what one of them does not edit it leaves."""
    first, later = random_eraser(pair.model, seed=1), random_eraser(pair.model, seed=2)
    model = patch(
        patch(pair.model, first.applied(-0.5, "values")).model,
        later.applied(1.5, "keys and values"),
    ).model

    def expected(site: Site, role: Role) -> Tensor:
        weight = base_weight(pair.model, site, role)
        if role == "values":
            weight = dense(first.layers[site.name], -0.5) @ weight
        return dense(later.layers[site.name], 1.5) @ weight

    require_weights(model, expected)


def test_the_order_of_two_erasers_matters(pair: Pair) -> None:
    other = random_eraser(pair.model, seed=1)
    one = patch(pair.patched(), other).model
    another = pair.patched(patch(pair.model, other).model)
    site = Sites.of(pair.model).sites[0]
    key = weight_key(site, "values")
    weights = effective_weight(one, key), effective_weight(another, key).double()
    assert relative_error(*weights) > 1e-3


def test_a_bypassed_eraser_among_others_changes_no_bit(pair: Pair, prompts: Prompts) -> None:
    other = random_eraser(pair.model, seed=1)
    bypassed = patch(pair.patched(), other.applied(0.0)).model
    around = pair.patched(patch(pair.model, other.applied(0.0)).model)
    expected = ksampler(pair.erased, prompts.positive, prompts.negative)
    for model in (bypassed, around):
        assert difference(ksampler(model, prompts.positive, prompts.negative), expected) == 0


def test_an_eraser_and_its_opposite_amplify_and_erase(pair: Pair, prompts: Prompts) -> None:
    """Strength -1 does not undo strength 1: (I + L R)(I - L R) = I - (L R)^2."""
    model = patch(pair.patched(), pair.eraser.applied(-1.0)).model

    def expected(site: Site, role: Role) -> Tensor:
        factors = pair.eraser.layers[site.name]
        product = factors.proj_left.double() @ factors.proj_right.double()
        weight = base_weight(pair.model, site, role)
        return weight - product @ product @ weight

    require_weights(model, expected)


def merge(node: type, **inputs: Any) -> Callable[[ModelPatcher, ModelPatcher], ModelPatcher]:
    return lambda one, other: execute(node, model1=one, model2=other, **inputs)[0]


def by_block(site: Site) -> tuple[float, float]:
    ratio = {"input": 0.2, "middle": 0.5, "output": 0.9}[site.name.partition("_")[0]]
    return ratio, 1 - ratio


SD1_BLOCKS = {
    name: index / 100 for index, name in enumerate(ModelMergeSD1.INPUT_TYPES()["required"], -2)
}
"""A ratio of its own for every block."""
del SD1_BLOCKS["model1"], SD1_BLOCKS["model2"]


def by_sd1_block(site: Site) -> tuple[float, float]:
    (ratio,) = (ratio for block, ratio in SD1_BLOCKS.items() if site.name.startswith(block))
    return ratio, 1 - ratio


Shares = Callable[[Site], tuple[float, float]]

MERGES: dict[str, tuple[Callable[..., ModelPatcher], Shares]] = {
    "ModelMergeSimple": (merge(ModelMergeSimple, ratio=0.3), lambda _: (0.3, 0.7)),
    "ModelMergeBlocks": (merge(ModelMergeBlocks, input=0.2, middle=0.5, out=0.9), by_block),
    "ModelMergeSD1": (merge(ModelMergeSD1, **SD1_BLOCKS), by_sd1_block),
    "ModelAdd": (merge(ModelAdd), lambda _: (1.0, 1.0)),
    "ModelSubtract": (merge(ModelSubtract, multiplier=0.4), lambda _: (0.4, -0.4)),
}
"""Node -> itself, and how much of each model's weight it takes in a layer."""


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_before_the_eraser_is_erased(pair: Pair, second: ModelPatcher, name: str) -> None:
    merged, share = MERGES[name]
    e, one, other = erasing(pair), weight_of(pair.model), weight_of(second)

    def mixed(site: Site, role: Role) -> Tensor:
        a, b = share(site)
        return a * one(site, role) + b * other(site, role)

    model = merged(pair.model, second)
    require_weights(model, mixed)
    require_weights(pair.patched(model), lambda *at: e(at[0]) @ mixed(*at))
    both = merged(pair.patched(), pair.patched(second))
    require_weights(both, lambda *at: e(at[0]) @ mixed(*at))


@pytest.mark.parametrize("name", MERGES)
def test_of_a_merge_only_the_erased_model_s_share_is_erased(
    pair: Pair, second: ModelPatcher, name: str
) -> None:
    merged, share = MERGES[name]
    e, one, other = erasing(pair), weight_of(pair.model), weight_of(second)

    def first_erased(site: Site, role: Role) -> Tensor:
        a, b = share(site)
        return a * e(site) @ one(site, role) + b * other(site, role)

    def second_erased(site: Site, role: Role) -> Tensor:
        a, b = share(site)
        return a * one(site, role) + b * e(site) @ other(site, role)

    require_weights(merged(pair.patched(), second), first_erased)
    require_weights(merged(pair.model, pair.patched(second)), second_erased)


def test_sampling_uses_the_merged_weights(
    pair: Pair, second: ModelPatcher, prompts: Prompts
) -> None:
    merged, share = MERGES["ModelMergeSimple"]
    site = Sites.of(pair.model).sites[3]
    one, other = (weight_of(each)(site, "values") for each in (pair.model, second))
    (a, b), e = share(site), erasing(pair)(site)
    for model, expected in (
        (pair.patched(merged(pair.model, second)), e @ (a * one + b * other)),
        (merged(pair.patched(), second), a * e @ one + b * other),
    ):
        seen: list[Tensor] = []
        note = partial(note_weight, projection(pair.model, site, "values"), seen)
        ksampler(with_wrapper(model, note), prompts.positive, prompts.negative)
        assert seen and all(relative_error(each, expected) < ROUNDING for each in seen)


def note_weight(values: torch.nn.Module, seen: list[Tensor], _call: dict[str, Any]) -> None:
    seen.append(values.weight.clone())


def test_a_merge_of_the_patched_model_is_one_of_the_erased_checkpoint(
    pair: Pair, second: ModelPatcher, prompts: Prompts
) -> None:
    merged, _ = MERGES["ModelMergeBlocks"]
    positive, _, negative = prompts
    for one, other in (
        (merged(pair.patched(), second), merged(pair.erased, second)),
        (merged(second, pair.patched()), merged(second, pair.erased)),
    ):
        expected = ksampler(other, positive, negative)
        assert difference(ksampler(one, positive, negative), expected) == 0
        assert difference(ksampler(second, positive, negative), expected) > NOTICEABLE


def test_the_eraser_s_change_can_be_added_to_another_model(
    pair: Pair, second: ModelPatcher
) -> None:
    """W2 + (E W1 - W1): the concept of the first model is taken out of the second."""
    change = execute(ModelSubtract, model1=pair.patched(), model2=pair.model, multiplier=1.0)[0]
    model = execute(ModelAdd, model1=second, model2=change)[0]
    e, one, other = erasing(pair), weight_of(pair.model), weight_of(second)
    require_weights(model, lambda *at: other(*at) + e(at[0]) @ one(*at) - one(*at))


def test_scaled_cross_attention_commutes_with_the_eraser(pair: Pair) -> None:
    scale = {"q": 1.0, "k": 0.7, "v": 1.4, "out": 1.0}
    e, w = erasing(pair), weight_of(pair.model)

    def expected(site: Site, role: Role) -> Tensor:
        return scale[role[0]] * e(site) @ w(site, role)

    (after,) = execute(UNetCrossAttentionMultiply, model=pair.patched(), **scale)
    (before,) = execute(UNetCrossAttentionMultiply, model=pair.model, **scale)
    for model in (after, pair.patched(before)):
        require_weights(model, expected)


def test_a_bypass_lora_is_told_apart_and_pointed_out(pair: Pair) -> None:
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no LoraLoaderBypass")
    state = lora(pair.model)
    (bypassing, _) = comfy.sd.load_bypass_lora_for_models(pair.model, None, state, 1.0, 0.0)
    assert fingerprint(bypassing) != fingerprint(pair.model)
    assert BYPASS in patch(bypassing, pair.eraser).summary
    assert BYPASS not in patch(pair.model, pair.eraser).summary


def test_a_lora_of_a_merge_with_an_erased_model_is_refused(
    pair: Pair, second: ModelPatcher, tmp_path: Path
) -> None:
    """It would erase a second time what is erased in part."""
    erasers, target = [pair.eraser], tmp_path / "lora.safetensors"
    for merged in (
        merge(ModelMergeSimple, ratio=0.3)(pair.patched(), second),
        merge(ModelMergeSimple, ratio=0.3)(second, pair.patched()),
    ):
        with pytest.raises(ModelError, match="or a merge with one"):
            save_lora(merged, erasers, torch.float32, target)
    assert not target.exists()
    save_lora(
        merge(ModelMergeSimple, ratio=0.3)(pair.model, second), erasers, torch.float32, target
    )


def test_the_fingerprint_tells_merges_apart(pair: Pair, second: ModelPatcher) -> None:
    models = [
        pair.model,
        second,
        merge(ModelMergeSimple, ratio=0.3)(pair.model, second),
        merge(ModelMergeSimple, ratio=0.4)(pair.model, second),
        merge(ModelMergeSimple, ratio=0.3)(second, pair.model),
        merge(ModelMergeSimple, ratio=0.3)(pair.patched(), second),
        merge(ModelMergeSimple, ratio=0.3)(pair.model, pair.patched(second)),
    ]
    assert len({fingerprint(model) for model in models}) == len(models)
