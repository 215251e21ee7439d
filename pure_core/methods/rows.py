"""Rows of activations or text vectors, as erasers keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..eraser import LayerEraser, compressed
from ..errors import EraserError


def scaled_rows(rows: Tensor) -> Tensor:
    """X = H / sqrt(n), at most d rows, with X^T X = H^T H / n: what an eraser keeps of its rows.

    Args:
        rows: H of shape (n, d).
    """
    return compressed(rows / len(rows) ** 0.5)


def mixed_rows(layers: Sequence[LayerEraser], shares: Sequence[float]) -> Tensor:
    """The same for the rows of several erasers together, float64.

    Args:
        shares: Each one's share of all rows.

    Raises:
        EraserError: an eraser without the rows it was fitted on.
    """
    parts = []
    for layer, share in zip(layers, shares, strict=True):
        if layer.rows is None:
            raise EraserError("An eraser without the rows it was fitted on cannot be joined.")
        parts.append(layer.rows.double() * share**0.5)
    return compressed(torch.cat(parts))
