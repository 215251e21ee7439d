"""What a kind of transformer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

TOKENS, TEXT = 7, 48


class Kind(NamedTuple):
    """A kind of transformer."""

    family: str
    """As the plugin calls it."""

    config: str
    """The class of comfy.supported_models, which 0.3.75 may not have."""

    net: dict[str, Any]
    """What the diffusion model is built with."""

    sites: int

    size: int = 64
    """Pixels."""

    width: int = TEXT
    """Of text vectors."""

    tokens: int = TOKENS
    """Of a prompt."""

    new: bool = False
    """Whether 0.3.75 does not have it, though it has the class."""

    newer: tuple[str, ...] = ()
    """What of `net` 0.3.75 does not know."""

    beside: Callable[[torch.Generator], dict[str, Any]] = lambda _: {}
    """What the text encoder gives beside the vectors."""
