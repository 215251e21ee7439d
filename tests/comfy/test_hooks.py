"""ComfyUI's hooks: weights that change while a picture is sampled, on top of the eraser.

A hook is applied to the loaded weight, so it comes after PURE Patch wherever its node stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import comfy.hooks
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_hooks import (
    ConditioningSetProperties,
    ConditioningTimestepsRange,
    CreateHookKeyframe,
    CreateHookLora,
    CreateHookModelAsLora,
    PairConditioningSetPropertiesAndCombine,
    SetClipHooks,
    SetHookKeyframes,
)
from comfyui_pure.nodes.host.capture import capture
from comfyui_pure.nodes.host.export import save_lora
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.pure_core.anchors import AnchorSet
from safetensors.torch import save_file
from torch import Tensor

from testbed.comfy.erasers import ROUNDING, Pair, dense, relative_error
from testbed.comfy.stock import (
    NOTICEABLE,
    PIXELS,
    QUICK,
    Conditioning,
    Loaded,
    Prompts,
    State,
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

Hooks = comfy.hooks.HookGroup
LAYER = 3
BALL = AnchorSet.written([["a ball"]])


class Weights(NamedTuple):
    """Of one value projection, float64."""

    plain: Tensor
    erased: Tensor
    change: Tensor
    """What the LoRA adds."""


@pytest.fixture(scope="module")
def weights(pair: Pair) -> Weights:
    site = Sites.of(pair.model).sites[LAYER]
    plain = base_weight(pair.model, site, "values")
    under_lora = effective_weight(with_lora(pair.model), weight_key(site, "values"))
    erased = dense(pair.eraser.layers[site.name]) @ plain
    return Weights(plain, erased, under_lora.double() - plain)


@pytest.fixture(scope="module")
def files(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where ComfyUI finds LoRAs, and the pair's files as checkpoints."""
    folder = tmp_path_factory.mktemp("hooks")
    save_file(lora(pair.model), folder / "random.safetensors")
    save_lora(pair.model, [pair.eraser], torch.float32, folder / "eraser.safetensors")
    known = folder_paths.folder_names_and_paths
    with pytest.MonkeyPatch.context() as change:
        change.setitem(known, "loras", ([str(folder)], {".safetensors"}))
        change.setitem(known, "checkpoints", ([str(pair.path.parent)], {".safetensors"}))
        yield folder


def lora_hook(name: str = "random", **strengths: float) -> Hooks:
    given = {"strength_model": 1.0, "strength_clip": 0.0, **strengths}
    return execute(CreateHookLora, lora_name=f"{name}.safetensors", **given)[0]


def model_hook(path: Path, strength: float = 1.0) -> Hooks:
    return execute(
        CreateHookModelAsLora, ckpt_name=path.name, strength_model=strength, strength_clip=0.0
    )[0]


def first_half_only(hooks: Hooks) -> Hooks:
    keyframes = None
    for strength, start in ((1.0, 0.0), (0.0, 0.5)):
        (keyframes,) = execute(
            CreateHookKeyframe,
            strength_mult=strength,
            start_percent=start,
            prev_hook_kf=keyframes,
        )
    return execute(SetHookKeyframes, hooks=hooks, hook_kf=keyframes)[0]


def under(hooks: Hooks, prompt: Conditioning) -> Conditioning:
    given = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    return execute(ConditioningSetProperties, cond_NEW=prompt, **given)[0]


class Call(NamedTuple):
    """One call of the model while sampling."""

    branches: list[int]
    """0 is the conditional, 1 the unconditional one."""

    weight: Tensor


def calls(
    model: ModelPatcher, positive: Conditioning, negative: Conditioning, steps: int = 2
) -> list[Call]:
    """The value projection that is in the module at every model call of a sampling."""
    seen = []
    values = projection(model, Sites.of(model).sites[LAYER], "values")

    def note(call: dict[str, Any]) -> None:
        seen.append(Call(call["cond_or_uncond"], values.weight.clone()))

    ksampler(with_wrapper(model, note), positive, negative, steps)
    return seen


def conditional(seen: list[Call], steps: int) -> list[Tensor]:
    """The weight with which the conditional branch was computed, of every step."""
    found = [call.weight for call in seen if 0 in call.branches]
    assert len(found) == steps
    return found


def test_a_lora_as_a_hook_is_added_to_the_erased_weight(
    pair: Pair, prompts: Prompts, weights: Weights, files: Path
) -> None:
    seen = calls(pair.patched(), under(lora_hook(), prompts.positive), prompts.negative)
    assert [call.branches for call in seen].count([0]) == 2
    for call in seen:
        hooked = weights.erased + weights.change
        expected = hooked if call.branches == [0] else weights.erased
        assert relative_error(call.weight, expected) < ROUNDING


def test_after_a_hook_the_weights_are_back(
    pair: Pair, prompts: Prompts, plain: Tensor, files: Path
) -> None:
    patched, state = pair.patched(), State.of(pair.model)
    before = State.of(patched)
    hooked = ksampler(patched, under(lora_hook(), prompts.positive), prompts.negative)
    assert difference(hooked, plain) > NOTICEABLE
    State.of(patched).require(before)
    assert difference(ksampler(patched, prompts.positive, prompts.negative), plain) == 0
    State.of(pair.model).require(state)


def test_a_hook_follows_its_keyframes(
    pair: Pair, prompts: Prompts, weights: Weights, files: Path
) -> None:
    hooks = first_half_only(lora_hook())
    both = (under(hooks, each) for each in (prompts.positive, prompts.negative))
    seen = calls(pair.patched(), *both, steps=4)
    assert all(len(call.branches) == 2 for call in seen)
    hooked = weights.erased + weights.change
    for call, expected in zip(seen, [hooked] * 2 + [weights.erased] * 2, strict=True):
        assert relative_error(call.weight, expected) < ROUNDING


def test_hooks_masks_and_ranges_together_are_the_erased_checkpoint(
    pair: Pair, prompts: Prompts, files: Path
) -> None:
    mask = torch.zeros(1, PIXELS, PIXELS)
    mask[:, :, PIXELS // 2 :] = 1.0
    timesteps, _, _ = execute(ConditioningTimestepsRange, start_percent=0.0, end_percent=0.7)
    conditions = execute(
        PairConditioningSetPropertiesAndCombine,
        positive=prompts.positive,
        negative=prompts.negative,
        positive_NEW=prompts.other,
        negative_NEW=prompts.negative,
        strength=1.0,
        set_cond_area="default",
        mask=mask,
        hooks=lora_hook(),
        timesteps=timesteps,
    )
    expected = ksampler(pair.erased, *conditions, steps=3)
    assert difference(ksampler(pair.patched(), *conditions, steps=3), expected) == 0
    assert difference(ksampler(pair.model, *conditions, steps=3), expected) > NOTICEABLE


def test_an_erasure_can_be_a_hook(
    pair: Pair, prompts: Prompts, weights: Weights, files: Path
) -> None:
    """PURE Save LoRA, or an exported checkpoint, erase for a part of the steps or prompts."""
    for hooks in (lora_hook("eraser"), model_hook(pair.erased_path)):
        hooked = under(first_half_only(hooks), prompts.positive)
        seen = conditional(calls(pair.model, hooked, prompts.negative, steps=4), steps=4)
        for weight, expected in zip(seen, [weights.erased] * 2 + [weights.plain] * 2, strict=True):
            assert relative_error(weight, expected) < ROUNDING


def test_a_model_as_a_hook_adds_its_difference_from_the_unerased_model(
    pair: Pair, prompts: Prompts, weights: Weights, files: Path
) -> None:
    """So the source itself as a hook changes nothing on PURE Patch, and undoes an erased file."""
    for model, path, expected in (
        (pair.patched(), pair.path, weights.erased),
        (pair.patched(), pair.erased_path, 2 * weights.erased - weights.plain),
        (pair.erased, pair.path, weights.plain),
    ):
        hooked = under(model_hook(path), prompts.positive)
        for weight in conditional(calls(model, hooked, prompts.negative), steps=2):
            assert relative_error(weight, expected) < ROUNDING


def clip_lora(clip: comfy.sd.CLIP) -> dict[str, Tensor]:
    """A random LoRA on two layers of the text encoder."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for number in (0, 1):
        name = f"lora_te_text_model_encoder_layers_{number}_mlp_fc1"
        state[f"{name}.lora_up.weight"] = torch.randn(3072, 4, generator=generator) / 10
        state[f"{name}.lora_down.weight"] = torch.randn(4, 768, generator=generator) / 10
    return state


def with_hooks(clip: comfy.sd.CLIP, hooks: Hooks, **how: bool) -> comfy.sd.CLIP:
    given = {"apply_to_conds": True, "schedule_clip": False, **how}
    return execute(SetClipHooks, clip=clip, hooks=hooks, **given)[0]


def test_a_capture_with_hooks_on_the_text_encoder_is_one_with_their_loras(
    pair: Pair, loaded: Loaded, files: Path
) -> None:
    """Set CLIP Hooks hangs the model's part on every prompt, so both parts are captured."""
    state = {**lora(pair.model), **clip_lora(loaded.clip)}
    save_file(state, files / "both.safetensors")
    words, patched = AnchorSet.written([["a ball", "a red star"]]), pair.patched()
    expected = capture(
        *comfy.sd.load_lora_for_models(patched, loaded.clip, state, 1, 1), words, QUICK
    )
    plain = capture(patched, loaded.clip, words, QUICK)
    before = State.of(patched)

    clip = with_hooks(loaded.clip, lora_hook("both", strength_clip=1.0))
    captured = capture(patched, clip, words, QUICK)

    State.of(patched).require(before)
    again = capture(patched, loaded.clip, words, QUICK)
    for layer, rows in captured.rows.items():
        assert torch.allclose(rows, expected.rows[layer], atol=1e-5), layer
        assert difference(rows, plain.rows[layer]) > 1e-3
        assert torch.equal(again.rows[layer], plain.rows[layer])


def test_a_capture_with_a_schedule_for_the_model_alone_follows_it(
    pair: Pair, loaded: Loaded, weights: Weights, files: Path
) -> None:
    seen = []
    values = projection(pair.model, Sites.of(pair.model).sites[LAYER], "values")
    watched = with_wrapper(pair.patched(), lambda _: seen.append(values.weight.clone()))
    clip = with_hooks(loaded.clip, first_half_only(lora_hook()))
    capture(watched, clip, BALL, QUICK._replace(run_steps=4))
    hooked = weights.erased + weights.change
    for weight, expected in zip(seen, [hooked] * 2 + [weights.erased] * 2, strict=True):
        assert relative_error(weight, expected) < ROUNDING


def test_a_capture_with_a_scheduled_text_encoder_is_refused(
    pair: Pair, loaded: Loaded, files: Path
) -> None:
    state = State.of(pair.model)
    clip = with_hooks(loaded.clip, first_half_only(lora_hook()), schedule_clip=True)
    with pytest.raises(ModelError, match="clip: expected one encoding of a prompt, got 2"):
        capture(pair.model, clip, BALL, QUICK)
    State.of(pair.model).require(state)
