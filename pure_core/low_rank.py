"""Products of thin matrices, truncated at their numerical rank."""

from __future__ import annotations

import torch
from torch import Tensor


def thin_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """L R with the fewest columns: the same product truncated at its numerical rank.

    Singular values below float32 rounding, against the identity or the largest, cannot be seen
    in E = I - L R once the factors are stored in float32. They are found as the roots of the
    eigenvalues of the smaller Gram matrix, several times faster than by an SVD: its float64
    rounding lies two digits below the square of what is dropped, and U (U^T M) with orthonormal
    U loses nothing that U holds. Each factor gets the square root of the values, so both are
    equally well scaled.

    Args:
        left: (d, n).
        right: (n, d).
    """
    d, n = left.shape
    if n == 0:
        return left, right
    if n < d:
        frame, inner = torch.linalg.qr(left)
        core = inner @ right
    else:
        frame, core = torch.eye(d, dtype=left.dtype), left @ right
    squares, vectors = torch.linalg.eigh(core @ core.T)
    keep = squares > torch.finfo(torch.float32).eps ** 2 * squares[-1].clamp(min=1)
    root, vectors = squares[keep].flip(0) ** 0.25, vectors[:, keep].flip(1)
    return frame @ vectors * root, vectors.T @ core / root[:, None]
