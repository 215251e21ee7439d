"""What a person would do with ComfyUI's own nodes: load, sample, add a LoRA, wrap the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from comfyui_pure.nodes.host.sites import PREFIX, Sites
from comfyui_pure.pure_core.families import ROLES, Role, Site
from comfyui_pure.pure_core.trajectory import Trajectory
from torch import Tensor

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.supported_models
import nodes
from comfy.model_patcher import ModelPatcher

PIXELS = 64
QUICK = Trajectory(steps=4, run_steps=2, latents=2, width=PIXELS, height=PIXELS)
"""A capture that takes seconds on a CPU."""

QUICK_ERASING = {name: value for name, value in QUICK._asdict().items() if name != "cells"}
"""The same for PURE Erase Concept, where the method chooses the cells."""

NOTICEABLE = 0.01
"""Difference of latents, whose values go up to some tens, that is no rounding."""


class Loaded(NamedTuple):
    """A checkpoint as its loader gives it."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE


def load(checkpoint: Path) -> Loaded:
    """By the functions behind CheckpointLoaderSimple, from any folder."""
    return Loaded(*comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3])


Conditioning = list[list[Any]]


class Prompts(NamedTuple):
    """What several tests ask for, encoded."""

    positive: Conditioning
    other: Conditioning
    negative: Conditioning


def text(clip: comfy.sd.CLIP, prompt: str) -> Conditioning:
    """A prompt through CLIPTextEncode."""
    return execute(nodes.CLIPTextEncode, clip=clip, text=prompt)[0]


def sample(
    model: ModelPatcher, clip: comfy.sd.CLIP, prompt: str = "a ball", steps: int = 2
) -> Tensor:
    """Latents from CLIPTextEncode, EmptyLatentImage and KSampler."""
    return ksampler(model, text(clip, prompt), text(clip, ""), steps)


def ksampler(
    model: ModelPatcher, positive: Conditioning, negative: Conditioning, steps: int = 2
) -> Tensor:
    """Latents from EmptyLatentImage and KSampler."""
    latent = {"samples": torch.zeros(1, 4, PIXELS // 8, PIXELS // 8)}
    (sampled,) = nodes.common_ksampler(
        model, 7, steps, 4.0, "euler", "normal", positive, negative, latent
    )
    return sampled["samples"]


def lora(model: ModelPatcher, seed: int = 0) -> dict[str, Tensor]:
    """A random LoRA file of rank 4 for every cross-attention key and value."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    sites = Sites.of(model)
    for site in sites.sites:
        for role in ROLES:
            module = site.rows(role).module
            rows, columns = sites.net.get_submodule(module).weight.shape
            name = f"lora_unet_{module.replace('.', '_')}"
            state[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
            state[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            state[f"{name}.alpha"] = torch.tensor(4.0)
    return state


def with_lora(model: ModelPatcher, strength: float = 1.0, seed: int = 0) -> ModelPatcher:
    """The model under a random LoRA, as LoraLoader puts it in."""
    return comfy.sd.load_lora_for_models(model, None, lora(model, seed), strength, 0.0)[0]


def in_scaled_fp8(model: ModelPatcher) -> None:
    """Hold keys and values as ComfyUI 0.30 loads them from quantised files; 0.3.75 cannot."""
    from comfy.quant_ops import QuantizedTensor

    sites = Sites.of(model)
    made = comfy.ops.mixed_precision_ops({}, torch.float32)
    for module in {rows.module for site in sites.sites for rows in (site.keys, site.values)}:
        old = sites.net.get_submodule(module)
        new = made.Linear(old.in_features, old.out_features, old.bias is not None)
        new.quant_format, new.layout_type = "float8_e4m3fn", "TensorCoreFP8E4M3Layout"
        held = QuantizedTensor.from_float(old.weight.detach(), new.layout_type, scale="recalculate")
        new.weight = torch.nn.Parameter(held, requires_grad=False)
        if old.bias is not None:
            new.bias = old.bias
        parent, _, name = module.rpartition(".")
        setattr(sites.net.get_submodule(parent), name, new)


def with_wrapper(model: ModelPatcher, before: Callable[[dict[str, Any]], None]) -> ModelPatcher:
    """The model with a model function wrapper that sees every call before it is made."""

    def wrapper(apply_model: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        before(call)
        return apply_model(call["input"], call["timestep"], **call["c"])

    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    return wrapped


@torch.no_grad()
def effective_weight(model: ModelPatcher, key: str) -> Tensor:
    """A weight with all its patches, float32, by ComfyUI's own arithmetic."""
    (weight, convert), *patches = model.get_key_patches(key)[key]
    return comfy.lora.calculate_weight(patches, convert(weight.float().clone()), key)


def weight_key(site: Site, role: Role) -> str:
    """The name of keys or values in the model's state, where they are the whole weight."""
    return f"{PREFIX}{site.rows(role).module}.weight"


def projection(model: ModelPatcher, site: Site, role: Role) -> torch.nn.Module:
    """The linear module that makes keys or values."""
    return Sites.of(model).net.get_submodule(site.rows(role).module)


def base_weight(model: ModelPatcher, site: Site, role: Role) -> Tensor:
    """A weight of the checkpoint, without any patch, float64."""
    key = weight_key(site, role)
    return model.get_key_patches(key)[key][0][0].detach().double()


def pre_hooks(model: ModelPatcher) -> int:
    """How many forward pre-hooks hang on the model's modules."""
    return sum(len(module._forward_pre_hooks) for module in model.model.modules())


def difference(one: Tensor, other: Tensor) -> float:
    """The largest."""
    return float((one - other).abs().max())


class State(NamedTuple):
    """Everything about a model that a node downstream could notice."""

    weights: dict[str, Tensor]
    """As they are in the modules when the model is loaded."""

    patches: dict[str, list[int]]
    options: str
    hooks: int

    @classmethod
    def of(cls, model: ModelPatcher) -> State:
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        weights = {name: each.clone() for name, each in model.model.state_dict().items()}
        patches = {key: [id(each) for each in values] for key, values in model.patches.items()}
        return cls(weights, patches, repr(model.model_options), pre_hooks(model))

    def require(self, other: State) -> None:
        """Nothing differs, not by a bit."""
        assert self[1:] == other[1:]
        for name, each in self.weights.items():
            assert torch.equal(each, other.weights[name]), name


def execute(node: type, **inputs: Any) -> tuple[Any, ...]:
    """A node's outputs, as ComfyUI's executor gets them, whichever way the node is written."""
    if issubclass(node, io.ComfyNode):
        return node.EXECUTE_NORMALIZED(**inputs).result
    return getattr(node(), node.FUNCTION)(**inputs)


UNSERVED: dict[str, dict[str, Any]] = {
    "Stable_Cascade_B": {"stable_cascade_stage": "b"},
    "HiDreamO1": {"image_model": "hidream_o1"},
}
"""What models of no family that is known are built with."""


def unserved(name: str = "Stable_Cascade_B") -> ModelPatcher:
    """One of `UNSERVED`, without weights."""
    config = getattr(comfy.supported_models, name)(dict(UNSERVED[name]))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("meta"))
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
