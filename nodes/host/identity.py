"""A cheap fingerprint of a model with everything that was patched into it.

It tells whether two captures came from the same model. A LoRA, a merge or an attention patch
upstream makes another model. Only a few values of every tensor are read, so it takes
milliseconds and never loads a weight that ComfyUI keeps on disk.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase

from ...pure_core.model_identity import ModelIdentity
from ...pure_core.sketch import sketch
from .sites import PREFIX, Sites, display_name

SAMPLES = 16
"""Values read from each tensor."""


def fingerprint(model: ModelPatcher) -> str:
    """Hex digest, equal for clones and reloads of one model in one precision, on any device."""
    digest = hashlib.sha256()
    for key, (weight, *patches) in sorted(model.get_key_patches(PREFIX).items()):
        _feed(digest, (key, weight[0], patches))
    _feed(digest, model.object_patches)
    _feed(digest, model.model_options)
    if model.injections:  # a bypass LoRA: that it is there can be read, its weights cannot
        _feed(digest, model.injections)
    return digest.hexdigest()[:32]


def identity(model: ModelPatcher, sites: Sites) -> ModelIdentity:
    """Which model this is, with everything that was patched into it."""
    return ModelIdentity(
        name=display_name(model),
        family=sites.family.name,
        fingerprint=fingerprint(model),
        precision=precision(model, sites),
        sketch=sketches(model, sites),
        patched=patched(model),
    )


def patched(model: ModelPatcher) -> bool:
    """Whether anything was patched into the diffusion model's weights or into what they give."""
    return bool(model.injections) or any(key.startswith(PREFIX) for key in model.patches)


def precision(model: ModelPatcher, sites: Sites) -> str:
    """The types of the sites' values, as the model was loaded."""
    dtypes = {str(_loaded(model, sites, site.name).dtype) for site in sites.sites}
    return " and ".join(sorted(each.removeprefix("torch.") for each in dtypes))


def sketches(model: ModelPatcher, sites: Sites) -> dict[str, float]:
    """Site -> sketch of its value projection as loaded, without any patch."""
    return {
        site.name: sketch(site.values.of(_loaded(model, sites, site.name))) for site in sites.sites
    }


def _loaded(model: ModelPatcher, sites: Sites, site: str) -> torch.Tensor:
    """The weight that holds a site's values, without any patch."""
    key = f"{PREFIX}{sites[site].values.module}.weight"
    weight: torch.Tensor = model.get_key_patches(key)[key][0][0]
    return weight


def _feed(digest: Any, value: Any) -> None:
    """Add a value: tensors by shape and samples, code by its name, containers by what they hold."""
    if isinstance(value, torch.Tensor):
        digest.update(f"tensor {tuple(value.shape)}".encode())
        digest.update(_samples(value))
    elif isinstance(value, WeightAdapterBase):
        _feed(digest, (type(value), value.weights))
    elif isinstance(value, torch.nn.Module):
        # Its parameters may hold patches just now. Buffers and bases tell noise schedules apart.
        _feed(digest, (type(value).__mro__, dict(value.named_buffers())))
    elif isinstance(value, dict):
        digest.update(b"{")
        for key in sorted(value, key=str):
            _feed(digest, (str(key), value[key]))
        digest.update(b"}")
    elif isinstance(value, (list, tuple)):
        digest.update(b"(")
        for each in value:
            _feed(digest, each)
        digest.update(b")")
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode() + b";")
    else:
        named = value if hasattr(value, "__qualname__") else type(value)
        digest.update(f"{named.__module__}.{named.__qualname__};".encode())


def _samples(tensor: torch.Tensor) -> bytes:
    """A few evenly spaced values as float32."""
    if tensor.numel() == 0:
        return b""
    step = max(1, tensor.numel() // SAMPLES)
    values = tensor.detach().reshape(-1)[::step][:SAMPLES]
    return values.to("cpu", torch.float32).numpy().tobytes()
