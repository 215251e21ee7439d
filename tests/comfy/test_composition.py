"""What people put around PURE Patch: every patch works as it does on an erased checkpoint.

The reference is a file with the eraser multiplied into its weights, loaded by ComfyUI alone.
`docs/composition.md` says the same for users, every row with the test that it rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypernetwork import HypernetworkLoader
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from comfyui_pure.nodes.host.capture import CaptureError, capture
from comfyui_pure.pure_core.anchors import AnchorSet
from torch import Tensor

from testbed.comfy.erasers import Pair
from testbed.comfy.stock import (
    NOTICEABLE,
    PIXELS,
    QUICK,
    Loaded,
    Prompts,
    State,
    difference,
    execute,
    ksampler,
)

Around = Callable[[ModelPatcher], ModelPatcher]

BALL = AnchorSet.written([["a ball"]])


def around(node: type, **inputs: Any) -> Around:
    """What a node does to a model."""
    return lambda model: execute(node, model=model, **inputs)[0]


def free_u(node: type, **inputs: Any) -> Around:
    """FreeU acts on blocks twice as wide as the first, which the shipped model does not have."""

    def apply(model: ModelPatcher) -> ModelPatcher:
        config = model.model.model_config.unet_config
        with pytest.MonkeyPatch.context() as change:
            change.setitem(config, "model_channels", config["model_channels"] // 2)
            return execute(node, model=model, **inputs)[0]

    return apply


def perp_neg(model: ModelPatcher) -> ModelPatcher:
    """With an empty prompt that is not the negative one, so that it does something."""
    empty = [[torch.ones(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    return execute(PerpNeg, model=model, empty_conditioning=empty, neg_scale=1.0)[0]


class ImagePrompt:
    """Attends to an image as well as to the text, as IP-Adapters do.

    It sits in the `attn2_replace` slot, gets the text's keys and values already projected, and
    adds what its own keys and values give.
    """

    PLACES = (("input", 1), ("middle", 0), ("output", 2))

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        keys, values = torch.randn(2, 1, 4, 320, generator=generator)
        self.returned: list[tuple[list[int], Tensor]] = []
        """Of every call: which branches it held, and h."""

        def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
            heads, rows = extra["n_heads"], (len(q), -1, -1)
            image = optimized_attention(q, keys.expand(rows), values.expand(rows), heads)
            h = optimized_attention(q, k, v, heads) + image
            self.returned.append((extra["cond_or_uncond"], h))
            return h

        self.replace = replace  # a function: 0.3.75 copies objects with every clone of a model

    def apply(self, model: ModelPatcher) -> ModelPatcher:
        clone = model.clone()
        for block, number in self.PLACES:
            clone.set_model_attn2_replace(self.replace, block, number)
        return clone

    @property
    def slots(self) -> dict[Any, Any]:
        return dict.fromkeys(self.PLACES, self.replace)


def slots(model: ModelPatcher) -> dict[Any, Any]:
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


def scaled_text(model: ModelPatcher) -> ModelPatcher:
    """An `attn2_patch`: it sees the text before keys and values are made of it."""
    clone = model.clone()
    clone.set_model_attn2_patch(lambda q, k, v, _: (q, k * 0.7, v * 1.3))
    return clone


def shifted_self_attention(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_attn1_patch(lambda q, k, v, _: (q, k, v.roll(1, dims=1)))
    clone.set_model_attn2_output_patch(lambda h, _: h * 1.2)
    return clone


PATCHES: dict[str, Around] = {
    "FreeU": free_u(FreeU, b1=1.1, b2=1.4, s1=0.9, s2=0.2),
    "FreeU_V2": free_u(FreeU_V2, b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "RescaleCFG": around(RescaleCFG, multiplier=0.7),
    "PerturbedAttentionGuidance": around(PerturbedAttentionGuidance, scale=3.0),
    "SelfAttentionGuidance": around(SelfAttentionGuidance, scale=0.5, blur_sigma=2.0),
    "HyperTile": around(HyperTile, tile_size=32, swap_size=2, max_depth=1, scale_depth=False),
    "TomePatchModel": around(TomePatchModel, ratio=0.5),
    "PatchModelAddDownscale": around(
        PatchModelAddDownscale,
        block_number=2,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=1.0,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "PerpNeg": perp_neg,
    "v_prediction, zsnr": around(ModelSamplingDiscrete, sampling="v_prediction", zsnr=True),
    "eps, zsnr": around(ModelSamplingDiscrete, sampling="eps", zsnr=True),
    "attn2_replace": lambda model: ImagePrompt().apply(model),
    "attn2_patch": scaled_text,
    "attn1_patch": shifted_self_attention,
}


@pytest.mark.parametrize("name", PATCHES)
def test_the_eraser_and_another_patch_in_any_order_are_the_erased_checkpoint(
    pair: Pair, prompts: Prompts, plain: Tensor, name: str
) -> None:
    require_parity(pair, prompts, plain, PATCHES[name])


def require_parity(pair: Pair, prompts: Prompts, plain: Tensor, other: Around) -> None:
    """The other patch does something, and with the eraser what it does on the erased file."""
    positive, _, negative = prompts
    expected = ksampler(other(pair.erased), positive, negative)
    assert difference(expected, plain) > NOTICEABLE
    assert difference(ksampler(other(pair.patched()), positive, negative), expected) == 0
    assert difference(ksampler(pair.patched(other(pair.model)), positive, negative), expected) == 0


def test_the_eraser_reaches_the_picture(pair: Pair, prompts: Prompts, plain: Tensor) -> None:
    """Without this, the parities here would say nothing."""
    assert difference(ksampler(pair.patched(), prompts.positive, prompts.negative), plain) == 0
    unedited = ksampler(pair.model, prompts.positive, prompts.negative)
    assert difference(unedited, plain) > NOTICEABLE


def test_a_hypernetwork_is_erased_in_any_order(
    pair: Pair,
    prompts: Prompts,
    plain: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It changes the text before keys and values are made of it."""
    generator = torch.Generator().manual_seed(0)
    side = {
        "0.weight": torch.randn(768, 768, generator=generator) / 100,
        "0.bias": torch.randn(768, generator=generator) / 10,
    }
    torch.save({768: (side, side)}, tmp_path / "hyper.pt")
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "hypernetworks", ([str(tmp_path)], {".pt"}))
    other = around(HypernetworkLoader, hypernetwork_name="hyper.pt", strength=1.0)
    require_parity(pair, prompts, plain, other)


@pytest.fixture(scope="module")
def source(pair: Pair) -> State:
    """The model before any capture."""
    return State.of(pair.model)


@pytest.mark.parametrize("name", PATCHES)
def test_a_capture_sees_the_erased_checkpoint_and_leaves_the_model_as_it_was(
    pair: Pair, loaded: Loaded, source: State, name: str
) -> None:
    model, short = PATCHES[name](pair.patched()), QUICK._replace(latents=1)
    before = State.of(model)
    rows = capture(model, loaded.clip, BALL, short).rows
    expected = capture(PATCHES[name](pair.erased), loaded.clip, BALL, short).rows
    assert all(torch.equal(rows[layer], expected[layer]) for layer in expected)
    State.of(model).require(before)
    State.of(pair.model).require(source)


def test_a_replacer_keeps_its_slot_and_is_called_as_often(pair: Pair, prompts: Prompts) -> None:
    calls = []
    for model in (pair.model, pair.patched()):
        replacer = ImagePrompt()
        for replaced in (replacer.apply(model), pair.patched(replacer.apply(model))):
            assert slots(replaced) == replacer.slots
            ksampler(replaced, prompts.positive, prompts.negative)
            calls.append(len(replacer.returned))
            replacer.returned.clear()
    assert calls == [2 * len(ImagePrompt.PLACES)] * 4


def test_a_capture_sees_what_a_replacer_adds(pair: Pair, loaded: Loaded) -> None:
    replacer = ImagePrompt()
    model = replacer.apply(pair.patched())
    captured = capture(model, loaded.clip, BALL, QUICK)
    without = capture(pair.patched(), loaded.clip, BALL, QUICK)
    assert slots(model) == replacer.slots
    layer = "middle_block.1.transformer_blocks.0.attn2"
    places = len(ImagePrompt.PLACES)
    middle = replacer.returned[1::places]  # in the order of the blocks: input, middle, output
    assert len(middle) == QUICK.run_steps
    for step, (branches, h) in enumerate(middle):
        prompted = h.chunk(len(branches))[branches.index(0)].mean(dim=1)
        assert torch.allclose(captured.grid(layer)[0][:, step], prompted, atol=1e-6)
        assert difference(without.grid(layer)[0][:, step], prompted) > NOTICEABLE


def test_a_cache_that_skips_the_model_samples_the_erased_checkpoint_and_is_not_captured(
    pair: Pair, prompts: Prompts, loaded: Loaded
) -> None:
    cached = around(
        EasyCacheNode, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
    )

    def sampled(model: ModelPatcher) -> Tensor:
        return ksampler(model, prompts.positive, prompts.negative, steps=5)

    expected = sampled(cached(pair.erased))
    assert difference(expected, sampled(pair.erased)) > NOTICEABLE
    assert difference(sampled(cached(pair.patched())), expected) == 0
    assert difference(sampled(pair.patched(cached(pair.model))), expected) == 0

    model = cached(pair.patched())
    before = State.of(model)
    with pytest.raises(CaptureError, match=r"captures are missing.*skips layers upstream"):
        capture(model, loaded.clip, BALL, QUICK._replace(run_steps=4))
    State.of(model).require(before)


GUIDERS: dict[str, Callable[[ModelPatcher, Prompts], Any]] = {
    "CFGGuider": lambda model, prompts: execute(
        CFGGuider, model=model, positive=prompts.positive, negative=prompts.negative, cfg=3.0
    ),
    "BasicGuider": lambda model, prompts: execute(
        BasicGuider, model=model, conditioning=prompts.positive
    ),
    "DualCFGGuider": lambda model, prompts: execute(
        DualCFGGuider,
        model=model,
        cond1=prompts.positive,
        cond2=prompts.other,
        negative=prompts.negative,
        cfg_conds=3.0,
        cfg_cond2_negative=2.0,
        style="regular",
    ),
    "PerpNegGuider": lambda model, prompts: execute(
        PerpNegGuider,
        model=model,
        positive=prompts.positive,
        negative=prompts.other,
        empty_conditioning=prompts.negative,
        cfg=3.0,
        neg_scale=1.0,
    ),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_samples_the_erased_checkpoint(pair: Pair, prompts: Prompts, name: str) -> None:
    def guided(model: ModelPatcher) -> Tensor:
        (guider,) = GUIDERS[name](model, prompts)
        return execute(
            SamplerCustomAdvanced,
            noise=execute(RandomNoise, noise_seed=7)[0],
            guider=guider,
            sampler=execute(KSamplerSelect, sampler_name="euler")[0],
            sigmas=execute(BasicScheduler, model=model, scheduler="normal", steps=2, denoise=1.0)[
                0
            ],
            latent_image={"samples": torch.zeros(1, 4, PIXELS // 8, PIXELS // 8)},
        )[0]["samples"]

    assert difference(guided(pair.patched()), guided(pair.erased)) == 0
    assert difference(guided(pair.model), guided(pair.erased)) > NOTICEABLE
