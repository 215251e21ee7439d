"""Encoded prompts, and many of them as one conditioning with a prompt in every batch row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from comfy.sd import CLIP
from torch import Tensor

from .sites import ModelError


class Encoded(NamedTuple):
    """One prompt as the model reads it."""

    tokens: Tensor
    """(1, T, D)."""

    options: dict[str, Any]
    """What ComfyUI keeps beside the tokens, 'pooled_output' of shape (1, P) among them."""

    @property
    def length(self) -> int:
        """T. Only prompts of one length fit into one batch."""
        return self.tokens.shape[1]


def encode(clip: CLIP, prompt: str) -> Encoded:
    """Encode as ComfyUI's own text encode node does.

    Raises:
        ModelError: no text encoder, or one whose weights change along the schedule.
    """
    if clip is None:
        raise ModelError(
            "clip: expected a text encoder, got none. The checkpoint does not contain one: "
            "load it separately."
        )
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if len(conditioning) != 1:
        raise ModelError(
            f"clip: expected one encoding of a prompt, got {len(conditioning)}, because hooks "
            "schedule the text encoder. Connect it without hooks."
        )
    return Encoded(*conditioning[0])


def stack(prompts: Sequence[Encoded]) -> list[list[Any]]:
    """A conditioning of one entry whose batch rows are the prompts, tokens (B, T, D).

    All prompts need the same token length T.
    """
    options = {name: _join([each.options[name] for each in prompts]) for name in prompts[0].options}
    return [[torch.cat([each.tokens for each in prompts]), options]]


def _join(values: list[Any]) -> Any:
    """Tensors along the batch; anything else is the same for every prompt."""
    first = values[0]
    return torch.cat(values) if isinstance(first, Tensor) and first.ndim else first
