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

from ...pure_core.sketch import sketch
from .layers import PREFIX, Layer

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


def sketches(model: ModelPatcher, layers: list[Layer]) -> dict[str, float]:
    """Layer -> sketch of its value projection as loaded, without any patch."""
    found = {}
    for layer in layers:
        key = layer.key("to_v")
        (weight, _), *_ = model.get_key_patches(key)[key]
        found[layer.name] = sketch(weight)
    return found


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
