"""Bases: the leading directions of a set of activation rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FitError


@dataclass(frozen=True, eq=False)
class Basis:
    """Leading right-singular directions of a row matrix H of shape (n, d)."""

    vectors: Tensor
    """V of shape (d, r), orthonormal columns, float64."""

    singular_values: Tensor
    """The r singular values that belong to them, descending, float64."""

    total_energy: float
    """Sum of all squared singular values, |H|^2."""

    energy: float
    """The share of the total energy that was asked for, in (0, 1]."""

    @property
    def rank(self) -> int:
        return self.vectors.shape[1]

    @property
    def cumulative(self) -> Tensor:
        """(r,) share of the total energy in the first 1, 2, .. r directions."""
        return self.singular_values.square().cumsum(0) / max(self.total_energy, 1e-300)


@torch.no_grad()
def fit_basis(rows: Tensor, energy: float) -> Basis:
    """The fewest leading directions that hold a share of the rows' energy.

    PURE, arXiv 2605.25765, step 2: SVD of the rows, not centred, top right-singular vectors up
    to a cumulative-variance threshold. Energy 1 keeps the numerical rank. Rows that are all
    zero give a basis of rank 0.

    Args:
        rows: (n, d), any floating type.
        energy: Share of the squared singular values to keep, in (0, 1].

    Raises:
        FitError: energy outside (0, 1].
    """
    check_energy("energy", energy)
    matrix = rows.to("cpu", torch.float64)
    _, singular_values, vectors_t = torch.linalg.svd(matrix, full_matrices=False)
    total = float(singular_values.square().sum())
    rank = rank_for_energy(singular_values, total, energy, max(matrix.shape))
    return Basis(vectors_t[:rank].T.contiguous(), singular_values[:rank], total, energy)


def rank_for_energy(singular_values: Tensor, total: float, energy: float, size: int) -> int:
    """The fewest leading values whose squares sum to `energy` x `total`.

    Never more than the numerical rank: values below `size` x float64 rounding x the largest are
    noise of the decomposition.
    """
    if total == 0:
        return 0
    noise = size * torch.finfo(torch.float64).eps * float(singular_values[0])
    numerical_rank = int((singular_values > noise).sum())
    reached = singular_values.square().cumsum(0) >= energy * total
    enough = int((~reached).sum()) + 1
    return min(enough, numerical_rank)


def check_energy(name: str, energy: float) -> None:
    """Raise FitError unless 0 < energy <= 1; `name` is the input as the person knows it."""
    if not 0 < energy <= 1:
        raise FitError(
            f"{name} has to be above 0 and at most 1 (a share of the activation energy, for "
            f"example 0.99), got {energy}."
        )
