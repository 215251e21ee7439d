"""Models and text encoders that a capture has to tell apart, or to refuse before it samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfyui_pure.nodes import EraseConcept, FitText
from comfyui_pure.nodes.host.capture import CaptureError, capture
from comfyui_pure.nodes.host.identity import fingerprint
from comfyui_pure.nodes.host.patch import patch
from comfyui_pure.nodes.host.served import warn_if_not_served
from comfyui_pure.nodes.host.sites import ModelError, Sites
from comfyui_pure.pure_core.activations import Activations
from comfyui_pure.pure_core.anchors import AnchorSet
from comfyui_pure.pure_core.concepts import PromptError, anchors_for
from comfyui_pure.pure_core.fitting import require_comparable
from comfyui_pure.pure_core.report import summary
from torch import Tensor

import nodes
from testbed.comfy import families
from testbed.comfy.stock import QUICK, Loaded, execute, in_scaled_fp8, load, sample, with_wrapper

BALL = AnchorSet.phrased(["ball"], ["{}", "a photo of {}"])
SHORT = QUICK._replace(latents=1, run_steps=1)


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


# Cells


def test_cells_pooled_are_the_whole_picture_where_they_do_not_divide_it(loaded: Loaded) -> None:
    shape = SHORT._replace(width=104, height=152)
    whole = capture(loaded.model, loaded.clip, BALL, shape)
    cells = capture(loaded.model, loaded.clip, BALL, shape._replace(cells=4))
    assert furthest(cells.pooled().rows, whole.rows) <= 1e-6
    grid = {key: rows.unflatten(0, (-1, 16)).mean(dim=1) for key, rows in cells.rows.items()}
    assert furthest(grid, whole.rows) > 1e-4  # overlapping cells count positions twice


# Which model it is


def scaled(factor: float, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A wrapper of the diffusion model."""
    return executor(*args, **kwargs) * factor


def closed_over(factor: float) -> Callable[..., Tensor]:
    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        return executor(*args, **kwargs) * factor

    return wrapper


class Scale:
    """A wrapper that is an object, and counts its calls."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.calls = 0

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return executor(*args, **kwargs) * self.factor


class Held:
    """A wrapper that is a method of an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def wrapper(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        return executor(*args, **kwargs) * self.factor


KINDS: dict[str, Callable[[float], Callable[..., Tensor]]] = {
    "partial": lambda factor: partial(scaled, factor),
    "closure": closed_over,
    "object": Scale,
    "method": lambda factor: Held(factor).wrapper,
}


def wrapped(model: ModelPatcher, wrapper: Callable[..., Any], key: str = "test") -> ModelPatcher:
    changed = model.clone()
    changed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, wrapper)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_wrappers_and_what_they_hold_are_seen(loaded: Loaded, kind: str) -> None:
    make = KINDS[kind]
    one = wrapped(loaded.model, make(0.5))
    digest = fingerprint(one, loaded.clip)
    assert digest not in (
        fingerprint(loaded.model, loaded.clip),
        fingerprint(wrapped(loaded.model, make(0.75)), loaded.clip),
    )
    assert digest == fingerprint(wrapped(loaded.model, make(0.5)), loaded.clip)
    assert digest == fingerprint(one.clone(), loaded.clip)
    sample(one, loaded.clip)
    assert digest == fingerprint(one, loaded.clip)


def test_callbacks_are_seen(loaded: Loaded) -> None:
    def called(model: ModelPatcher) -> None:
        pass

    changed = loaded.model.clone()
    changed.add_callback(CallbacksMP.ON_PRE_RUN, called)
    assert fingerprint(changed) != fingerprint(loaded.model)
    assert fingerprint(changed) == fingerprint(changed.clone())


def test_wrapped_and_plain_captures_are_not_fitted_together(loaded: Loaded) -> None:
    plain = capture(loaded.model, loaded.clip, BALL, SHORT)
    other = capture(wrapped(loaded.model, closed_over(0.5)), loaded.clip, BALL, SHORT)
    assert plain.differences(other) == [plain.model.difference(other.model)]
    assert "what was patched into" in plain.model.difference(other.model)


def test_weights_that_no_file_set_are_not_compared(loaded: Loaded) -> None:
    """An SD 1.x file has no projection: a fresh model's is whatever lay in that memory."""
    digest = fingerprint(loaded.model, loaded.clip)
    encoder = loaded.clip.cond_stage_model.clip_l.transformer
    unset = encoder.text_projection.weight
    before = unset.detach().clone()
    with torch.no_grad():
        unset.fill_(7.0)
    try:
        assert fingerprint(loaded.model, loaded.clip) == digest
    finally:
        with torch.no_grad():
            unset.copy_(before)


def test_the_text_encoder_is_seen(checkpoint: Path, loaded: Loaded) -> None:
    digest = fingerprint(loaded.model, loaded.clip)
    earlier = loaded.clip.clone()
    earlier.clip_layer(-2)
    patched = loaded.clip.clone()
    key = next(key for key in patched.patcher.model_state_dict() if key.endswith("q_proj.weight"))
    shape = patched.patcher.model_state_dict()[key].shape
    patched.add_patches({key: ("diff", (torch.ones(shape),))}, 0.5)
    stronger = loaded.clip.clone()
    stronger.add_patches({key: ("diff", (torch.ones(shape),))}, 1.0)
    found = [fingerprint(loaded.model, each) for each in (earlier, patched, stronger)]
    assert len({digest, *found}) == 4

    capture(loaded.model, patched, BALL, SHORT)  # its weights hold the patch now
    assert fingerprint(loaded.model, patched) == found[1]
    assert fingerprint(loaded.model, loaded.clip) == digest
    again = load(checkpoint)
    assert fingerprint(again.model, again.clip) == digest
    sample(again.model, again.clip)
    assert fingerprint(again.model, again.clip.clone()) == digest


def test_another_precision_is_said_in_words(checkpoint: Path, loaded: Loaded) -> None:
    half = {"dtype": torch.float16}
    low = comfy.sd.load_checkpoint_guess_config(
        str(checkpoint), output_vae=False, output_clip=False, model_options=half
    )[0]
    full = capture(loaded.model, loaded.clip, BALL, SHORT)
    fewer = capture(low, loaded.clip, BALL, SHORT)
    assert (full.model.precision, fewer.model.precision) == ("float32", "float16")
    with pytest.raises(ValueError, match="the model's precision: float32 / float16"):
        require_comparable(full, fewer)


# Quantised models


class StoredLinear(comfy.ops.manual_cast.Linear):
    """As loaders of quantised files make them: bytes, and a state dict of stand-ins."""

    def store(self) -> None:
        weight = self.weight.detach().float()
        self.scale = float(weight.abs().max()) / 127
        stored = (weight / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(stored, requires_grad=False)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return torch.nn.functional.linear(x, self.weight.to(x) * self.scale, bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.zeros_like(self.weight, device="meta")
        destination[f"{prefix}temp.weight"] = torch.zeros_like(self.weight, device="meta")


def stored(checkpoint: Path) -> Loaded:
    """The shipped model with its cross-attention in bytes."""
    made = load(checkpoint)
    sites = Sites.of(made.model)
    for site in sites.sites:
        for rows in (site.keys, site.values):
            module = sites.net.get_submodule(rows.module)
            module.__class__ = StoredLinear
            module.store()
    return made


def test_a_model_in_bytes_is_captured_and_not_erased(checkpoint: Path, loaded: Loaded) -> None:
    """Rows are rows, and an eraser fitted on them serves the model in full precision."""
    quantised = stored(checkpoint)
    rows = capture(quantised.model, quantised.clip, BALL, SHORT)
    plain = capture(loaded.model, loaded.clip, BALL, SHORT)
    assert furthest(rows.rows, plain.rows) < 0.05
    assert "quantised" in rows.model.precision and not rows.model.sketch
    assert rows.model.fingerprint != plain.model.fingerprint
    assert rows.model.fingerprint == fingerprint(quantised.model.clone(), quantised.clip)
    calls: list[Any] = []
    with pytest.raises(ModelError, match="the weights are quantised"):
        erase(with_wrapper(quantised.model, calls.append), quantised.clip)
    assert not calls


def test_scaled_fp8_is_captured_and_not_erased(
    checkpoint: Path, loaded: Loaded, comfy_version: tuple[int, ...]
) -> None:
    if comfy_version < (0, 30):
        pytest.skip("this ComfyUI has no such tensors")
    made = load(checkpoint)
    in_scaled_fp8(made.model)
    rows = capture(made.model, made.clip, BALL, SHORT)
    plain = capture(loaded.model, loaded.clip, BALL, SHORT)
    assert 0 < furthest(rows.rows, plain.rows) < 0.3
    assert "quantised" in rows.model.precision
    with pytest.raises(ModelError, match="the weights are quantised"):
        erase(made.model, made.clip)


# Text encoders


def erase(model: ModelPatcher, clip: comfy.sd.CLIP, concept: str = "ball") -> tuple[Any, ...]:
    trajectory = SHORT._asdict()
    del trajectory["cells"]
    given = {"concept": concept, "neighbours": "star", "kind": "object", "method": "pure"}
    return execute(EraseConcept, model=model, clip=clip, strength=1.0, **given, **trajectory)


def fit_text(model: ModelPatcher, clip: comfy.sd.CLIP, concept: str = "ball") -> tuple[Any, ...]:
    forget, retain, _ = anchors_for(concept, "object", "star")
    return execute(FitText, model=model, clip=clip, forget=forget, retain=retain, method="uce")


@pytest.mark.parametrize("node", [erase, fit_text])
def test_the_text_encoder_of_another_family_is_refused_before_sampling(
    loaded: Loaded, node: Callable[..., Any]
) -> None:
    calls: list[Any] = []
    model = with_wrapper(loaded.model, calls.append)
    with pytest.raises(ModelError, match=r"clip: its vectors have 1024 .* model reads 768"):
        node(model, families.text_encoder("CLIP-H"))
    assert not calls


@pytest.fixture
def inversions(checkpoint: Path, tmp_path: Path) -> Iterator[comfy.sd.CLIP]:
    """The text encoder, with one textual inversion of its own and one of another family."""
    generator = torch.Generator().manual_seed(0)
    for name, width in (("own", 768), ("foreign", 1024)):
        torch.save(
            {"string_to_param": {"*": torch.randn(2, width, generator=generator) / 4}},
            tmp_path / f"{name}.pt",
        )
    known = folder_paths.folder_names_and_paths
    with pytest.MonkeyPatch.context() as change:
        change.setitem(known, "embeddings", ([str(tmp_path)], known["embeddings"][1]))
        yield nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[1]


@pytest.mark.parametrize("node", [erase, fit_text])
@pytest.mark.parametrize("name", ["owm", "foreign"])
def test_a_textual_inversion_that_is_not_read_is_refused(
    loaded: Loaded, inversions: comfy.sd.CLIP, node: Callable[..., Any], name: str
) -> None:
    with pytest.raises(PromptError, match=f"'embedding:{name}' was not found"):
        node(loaded.model, inversions, f"embedding:{name}")
    assert node(loaded.model, inversions, "embedding:own")


@pytest.mark.parametrize(
    "prompt", ["a photo of embedding:owm", "(embedding:owm:0.6), painting", "ball embedding:owm"]
)
def test_it_is_refused_in_a_prompt_written_by_hand(
    loaded: Loaded, inversions: comfy.sd.CLIP, prompt: str
) -> None:
    with pytest.raises(PromptError, match="'embedding:owm' was not found"):
        capture(loaded.model, inversions, AnchorSet.written([[prompt]]), SHORT)
    good = AnchorSet.written([[prompt.replace("owm", "own")]])
    assert capture(loaded.model, inversions, good, SHORT)


@pytest.mark.parametrize("name", ["()", "(())"])
def test_a_concept_of_which_nothing_is_read_is_refused(loaded: Loaded, name: str) -> None:
    with pytest.raises(PromptError, match="reads nothing of it"):
        capture(loaded.model, loaded.clip, AnchorSet.phrased([name], ["a photo of {}"]), SHORT)


class Doubled:
    """A text encoder's patch that gives every token's vector twice, for keys and for values."""

    def __init__(self, clip: comfy.sd.CLIP, below_zero: bool) -> None:
        part = clip.cond_stage_model.clip_l
        self.encode = partial(type(part).encode_token_weights, part)  # without another patch
        self.below_zero = below_zero

    def __call__(self, tokens: Any) -> tuple[Any, ...]:
        vectors, *rest = self.encode(tokens)
        doubled = vectors.repeat_interleave(2, dim=1)
        if self.below_zero:
            doubled[:, 5] *= -1
        return (doubled, *rest)


def doubled(clip: comfy.sd.CLIP, below_zero: bool) -> comfy.sd.CLIP:
    made = clip.clone()
    patched = Doubled(clip, below_zero)
    made.patcher.add_object_patch("clip_l.encode_token_weights", patched)
    return made


def test_two_vectors_a_token_give_the_same_eraser(loaded: Loaded) -> None:
    eraser, words = fit_text(loaded.model, loaded.clip)[:2]
    other, said = fit_text(loaded.model, doubled(loaded.clip, below_zero=False))[:2]
    assert "Erases ball" in words and "Erases ball" in said
    for name, layer in eraser.layers.items():
        assert layer.rank == other.layers[name].rank > 0
        assert torch.equal(layer.proj_left, other.layers[name].proj_left)
    with pytest.raises(ValueError, match="154 vectors for the 77 tokens"):
        fit_text(loaded.model, doubled(loaded.clip, below_zero=True))


def test_an_eraser_of_rank_0_does_not_say_that_it_erases(loaded: Loaded) -> None:
    eraser, _ = fit_text(loaded.model, loaded.clip)[:2]
    none = replace(
        eraser,
        layers={
            name: replace(layer, proj_left=layer.proj_left[:, :0], proj_right=layer.proj_right[:0])
            for name, layer in eraser.layers.items()
        },
    )
    assert summary(none).startswith("Erases nothing")
    assert patch(loaded.model, none).summary.startswith("Nothing is changed")


# Models that are run in pieces


def in_halves(apply_model: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
    """One half of the picture after the other, the whole batch each time."""
    halves = call["input"].chunk(2, dim=-1)
    made = [apply_model(half, call["timestep"], **call["c"]) for half in halves]
    return torch.cat(made, dim=-1)


def test_tiles_inside_a_model_call_are_refused(loaded: Loaded) -> None:
    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(in_halves)
    with pytest.raises(CaptureError, match=r"ran twice in one model call. A patch upstream runs"):
        capture(model, loaded.clip, BALL, SHORT)


def test_tiles_as_model_calls_are_refused(loaded: Loaded) -> None:
    def tiled(args: dict[str, Any]) -> list[Tensor]:
        halves = args["input"].chunk(2, dim=-1)
        options = {
            key: value
            for key, value in args["model_options"].items()
            if key != "sampler_calc_cond_batch_function"
        }
        made = [
            comfy.samplers.calc_cond_batch(
                args["model"], args["conds"], half, args["sigma"], options
            )
            for half in halves
        ]
        return [torch.cat(each, dim=-1) for each in zip(*made, strict=True)]

    model = loaded.model.clone()
    model.set_model_sampler_calc_cond_batch_function(tiled)
    with pytest.raises(CaptureError, match=r"8 x 4 cells of the latent, expected all 8 x 8"):
        capture(model, loaded.clip, BALL, SHORT)


@pytest.mark.parametrize("sampler_name", ["heun", "dpm_2", "dpmpp_sde"])
def test_samplers_that_look_ahead_are_captured(loaded: Loaded, sampler_name: str) -> None:
    trajectory = QUICK._replace(sampler_name=sampler_name)
    assert isinstance(capture(loaded.model, loaded.clip, BALL, trajectory), Activations)


# The plugin's folder


@pytest.mark.parametrize(
    ("folder", "served"),
    [
        ("comfyui-pure", True),
        ("ComfyUI_PURE-0.2(1)", True),
        ("comfyui-pure (1)", False),
        ("comfyui pure", False),
        ("p\u00fcr", False),
        ("[pure]", False),
        ("pure#1", False),
    ],
)
def test_a_folder_whose_web_files_are_not_served_is_said_in_the_log(
    folder: str, served: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_not_served(folder)
    assert (not caplog.records) == served
    assert served or f"called '{folder}'" in caplog.text
