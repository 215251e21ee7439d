"""Several prompts in one picture, and ControlNets: they read the erased weights as well.

As in `test_composition.py`, the reference is a file with the eraser multiplied into its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import comfy.cldm.cldm
import comfy.controlnet
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfyui_pure.nodes.host.sites import Sites
from torch import Tensor

from nodes import (
    ConditioningAverage,
    ConditioningCombine,
    ConditioningConcat,
    ConditioningSetArea,
    ConditioningSetMask,
    ConditioningSetTimestepRange,
    ControlNetApplyAdvanced,
)
from testbed.comfy.erasers import Pair
from testbed.comfy.families import randomise
from testbed.comfy.stock import (
    NOTICEABLE,
    PIXELS,
    Conditioning,
    Prompts,
    difference,
    execute,
    ksampler,
    with_wrapper,
)


def combined(one: Conditioning, other: Conditioning) -> Conditioning:
    return execute(ConditioningCombine, conditioning_1=one, conditioning_2=other)[0]


def left_half(prompt: Conditioning) -> Conditioning:
    area = {"width": PIXELS // 2, "height": PIXELS, "x": 0, "y": 0}
    return execute(ConditioningSetArea, conditioning=prompt, strength=1.2, **area)[0]


def masked(prompt: Conditioning, set_cond_area: str = "default") -> Conditioning:
    mask = torch.zeros(1, PIXELS, PIXELS)
    mask[:, : PIXELS // 2] = 1.0
    return execute(
        ConditioningSetMask,
        conditioning=prompt,
        mask=mask,
        strength=1.0,
        set_cond_area=set_cond_area,
    )[0]


def between(prompt: Conditioning, start: float, end: float) -> Conditioning:
    return execute(ConditioningSetTimestepRange, conditioning=prompt, start=start, end=end)[0]


SEVERAL: dict[str, Callable[[Conditioning, Conditioning], Conditioning]] = {
    "combine": combined,
    "area": lambda one, other: combined(one, left_half(other)),
    "mask": lambda one, other: combined(one, masked(other)),
    "mask bounds": lambda one, other: combined(one, masked(other, "mask bounds")),
    "timestep range": lambda one, other: combined(between(one, 0, 0.4), between(other, 0.4, 1)),
    "average": lambda one, other: execute(
        ConditioningAverage,
        conditioning_to=one,
        conditioning_from=other,
        conditioning_to_strength=0.6,
    )[0],
    "concat": lambda one, other: execute(
        ConditioningConcat, conditioning_to=one, conditioning_from=other
    )[0],
    "all at once": lambda one, other: combined(
        between(left_half(one), 0, 0.6), combined(masked(other), one)
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_every_prompt_of_several_reads_the_erased_weights(
    pair: Pair, prompts: Prompts, plain: Tensor, name: str
) -> None:
    several = SEVERAL[name](prompts.positive, prompts.other)
    expected = ksampler(pair.erased, several, prompts.negative)
    assert difference(expected, plain) > NOTICEABLE
    assert difference(ksampler(pair.patched(), several, prompts.negative), expected) == 0


@pytest.fixture(scope="module")
def control_net(pair: Pair) -> comfy.controlnet.ControlNet:
    """A ControlNet of the shipped model's shape with random weights."""
    config = {**copy.deepcopy(pair.model.model.model_config.unet_config), "hint_channels": 3}
    del config["out_channels"]
    made = comfy.cldm.cldm.ControlNet(**config)
    randomise(made, 0)
    return comfy.controlnet.ControlNet(made, load_device=pair.model.load_device)


@pytest.fixture(scope="module")
def control_lora(control_net: comfy.controlnet.ControlNet) -> comfy.controlnet.ControlLora:
    """A ControlNet that takes what it does not bring along from the model it is used with."""
    own = ("input_hint_block.", "zero_convs.", "middle_block_out.")
    state = control_net.control_model.state_dict()
    brought = {name: each for name, each in state.items() if name.startswith(own)}
    return comfy.controlnet.ControlLora({"lora_controlnet": torch.tensor([]), **brought})


def controlled(prompts: Prompts, control: ControlBase) -> tuple[Conditioning, Conditioning]:
    generator = torch.Generator().manual_seed(0)
    return execute(
        ControlNetApplyAdvanced,
        positive=prompts.positive,
        negative=prompts.negative,
        control_net=control,
        image=torch.rand(1, PIXELS, PIXELS, 3, generator=generator),
        strength=0.5,
        start_percent=0.0,
        end_percent=1.0,
    )


@pytest.mark.parametrize("kind", ["control_net", "control_lora"])
def test_with_a_controlnet_the_model_is_the_erased_checkpoint(
    pair: Pair, prompts: Prompts, plain: Tensor, kind: str, request: pytest.FixtureRequest
) -> None:
    conditions = controlled(prompts, request.getfixturevalue(kind))
    expected = ksampler(pair.erased, *conditions)
    assert difference(expected, plain) > NOTICEABLE
    assert difference(ksampler(pair.patched(), *conditions), expected) == 0


def first_control(model: ModelPatcher, conditions: tuple[Conditioning, Conditioning]) -> Tensor:
    """What a ControlNet adds in the middle of the U-Net in the first model call of a sampling."""
    seen: list[Tensor] = []
    watched = with_wrapper(model, lambda call: seen.append(call["c"]["control"]["middle"][0]))
    ksampler(watched, *conditions, steps=1)
    return seen[0].clone()


def test_a_controlnet_reads_the_prompt_with_its_own_weights(
    pair: Pair, prompts: Prompts, control_net: comfy.controlnet.ControlNet
) -> None:
    """It has a cross-attention of its own, which is not edited."""
    before = {name: each.clone() for name, each in control_net.control_model.state_dict().items()}
    conditions = controlled(prompts, control_net)
    erased = first_control(pair.patched(), conditions)
    assert difference(erased, first_control(pair.model, conditions)) == 0
    another = controlled(prompts._replace(positive=prompts.other), control_net)
    assert difference(erased, first_control(pair.patched(), another)) > 1e-4
    for name, each in control_net.control_model.state_dict().items():
        assert torch.equal(each, before[name]), name
    own = {id(each) for each in control_net.control_model.modules()}
    assert own.isdisjoint(
        id(Sites.of(pair.model).net.get_submodule(site.name))
        for site in Sites.of(pair.patched()).sites
    )


def test_a_control_lora_takes_the_erased_weights(
    pair: Pair, prompts: Prompts, control_lora: comfy.controlnet.ControlLora
) -> None:
    conditions = controlled(prompts, control_lora)
    assert (
        difference(
            first_control(pair.patched(), conditions), first_control(pair.erased, conditions)
        )
        == 0
    )
    assert (
        difference(first_control(pair.patched(), conditions), first_control(pair.model, conditions))
        > 1e-4
    )
