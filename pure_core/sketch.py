"""A sketch of a weight: one number that tells whether two files hold the same model.

Unlike a hash it survives a change of precision: it moves by about as large a share of itself as
the weight does, some thousandths from float32 to bfloat16, some hundredths for a fine-tune.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 4096
"""Values read from a weight, evenly spaced."""

SAME = 0.01
"""Relative difference up to which two models are taken for the same."""


def sketch(weight: Tensor) -> float:
    """The sum of sampled values with alternating signs."""
    values = weight.detach().reshape(-1)
    step = values.numel() // SAMPLES | 1  # odd: it visits every row and column of a weight
    picked = values[::step].to("cpu", torch.float32)
    return float(picked[::2].sum() - picked[1::2].sum())


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How far two models' sketches are apart, relative to the first; 1 for unrelated ones."""
    apart = sum((value - other.get(name, 0.0)) ** 2 for name, value in one.items())
    size = sum(value**2 for value in one.values())
    return float((apart / size) ** 0.5) if size else float(apart > 0)
