"""Which prompts and latents are sampled together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..conditioning import Encoded

MAX_ROWS = 64
"""Rows in one model call at most. More are not faster and make cancelling slow."""

MEMORY_MARGIN = 1.5
"""ComfyUI's own safety factor on its memory estimate."""


class Row(NamedTuple):
    """What one batch row samples."""

    anchor: int
    latent: int


def batches(encoded: Sequence[Encoded], latents: int, size: int) -> list[list[Row]]:
    """Rows grouped by the prompts' shapes, short ones first, at most `size` in a batch."""
    found = []
    tokens = {each.shape: each.tokens.shape[1] for each in encoded}
    for shape in sorted(tokens, key=lambda shape: (tokens[shape], shape)):
        anchors = [index for index, each in enumerate(encoded) if each.shape == shape]
        rows = [Row(anchor, latent) for anchor in anchors for latent in range(latents)]
        count = math.ceil(len(rows) / (1 if encoded[anchors[0]].alone else size))
        even = math.ceil(len(rows) / count)
        found += [rows[start : start + even] for start in range(0, len(rows), even)]
    return found


def rows_per_call(model: ModelPatcher, noise: Tensor, cfg: float) -> int:
    """As many rows as fit beside the whole model, by ComfyUI's own estimate."""
    device = model.load_device
    loaded = comfy.model_management.current_loaded_models
    alive = [each for each in loaded if each.device == device and each.model is not None]
    evictable = sum(each.model_loaded_memory() for each in alive)
    room = comfy.model_management.get_free_memory(device) + evictable - model.model_size()
    branches = 1 if math.isclose(cfg, 1.0) else 2
    a_row = model.model.memory_required([branches, *noise.shape[1:]]) * MEMORY_MARGIN
    return max(1, min(MAX_ROWS, int(room / a_row)))
