"""Bases: the leading directions of a set of activation rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FitError

BLOCK = 12
"""Directions added to the search space at a time. Measured fastest at widths 320 to 1280."""

TOLERANCE = 1e-7
"""Largest angle, in radians, allowed between a searched subspace and the exact one."""


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
        if self.total_energy == 0:
            return self.singular_values
        return self.singular_values.square().cumsum(0) / self.total_energy


@torch.no_grad()
def fit_basis(rows: Tensor, energy: float) -> Basis:
    """The fewest leading directions that hold a share of the rows' energy.

    PURE, arXiv 2605.25765, step 2: SVD of the rows, not centred, top right-singular vectors up
    to a cumulative-variance threshold. Energy 1 keeps the numerical rank. Rows that are all
    zero give a basis of rank 0.

    Args:
        rows: (n, d), in the floating type in which they were computed: directions within its
            rounding are noise and are left out.
        energy: Share of the squared singular values to keep, in (0, 1].

    Raises:
        FitError: energy outside (0, 1].
    """
    check_energy("energy", energy)
    rounding = torch.finfo(rows.dtype).eps
    matrix = rows.to("cpu", torch.float64)
    if not len(matrix):
        return Basis(matrix.T, matrix.new_zeros(0), 0.0, energy)
    total = float(torch.linalg.vector_norm(matrix)) ** 2  # without a second matrix
    found = search_leading(matrix, energy * total) if energy < 1 else None
    values, vectors = found or decompose(matrix, energy * total if energy < 1 else None, rounding)
    return Basis(vectors.contiguous(), values, total, energy)


def search_leading(matrix: Tensor, wanted: float) -> tuple[Tensor, Tensor] | None:
    """The leading directions of H that hold a given energy, without decomposing all of H.

    Activations have few strong directions, and a full SVD spends its time on the weak ones.
    Block Krylov search on H^T H (Golub & Van Loan, Matrix Computations, 10.3.6) in float64: the
    space spanned by G, H^T H G, (H^T H)^2 G, .. for a random G is grown by a block, kept
    orthonormal, and H^T H restricted to it is diagonalised exactly. It stops when the residual
    over the gap to the next value, which bounds the angle to the exact subspace (Davis-Kahan),
    is below `TOLERANCE`.

    Args:
        matrix: H of shape (n, d), float64.
        wanted: Energy to hold, at most |H|^2.

    Returns:
        Singular values (r,) and vectors (d, r), or None if the space has grown to a third of
        the whole first: then there is no small leading subspace, or no gap behind it.
    """
    n, d = matrix.shape
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, BLOCK, dtype=matrix.dtype, generator=generator)
    space, image = torch.empty(d, 0, dtype=matrix.dtype), torch.empty(n, 0, dtype=matrix.dtype)
    block, _ = _extend(space, matrix.T @ start)
    while space.shape[1] + BLOCK <= min(n, d) // 3:
        space = torch.cat([space, block], dim=1)
        image = torch.cat([image, matrix @ block], dim=1)
        block, residual = _extend(space, matrix.T @ image[:, -BLOCK:])
        energies, rotation = torch.linalg.eigh(image.T @ image)
        energies, rotation = energies.flip(0), rotation.flip(1)
        rank = _count_for(energies, wanted)
        if rank < len(energies):
            error = torch.linalg.norm(residual @ rotation[-BLOCK:, :rank])
            if error < TOLERANCE * (energies[rank - 1] - energies[rank]):
                return energies[:rank].sqrt(), space @ rotation[:, :rank]
    return None


def decompose(matrix: Tensor, wanted: float | None, rounding: float) -> tuple[Tensor, Tensor]:
    """The leading directions of H that hold a given energy, from its full thin SVD.

    Args:
        matrix: H of shape (n, d), float64.
        wanted: Energy to hold; None for all directions above rounding.
        rounding: Machine epsilon of the type in which the rows were computed.

    Returns:
        Singular values (r,) and vectors (d, r).
    """
    _, values, vectors_t = torch.linalg.svd(matrix, full_matrices=False)
    noise = max(matrix.shape) * rounding * values[0]
    rank = int((values > noise).sum())
    if wanted is not None:
        rank = min(rank, _count_for(values.square(), wanted))
    return values[:rank], vectors_t[:rank].T


def _extend(space: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal block Q orthogonal to a space, and B with images = Q B up to the space.

    Done twice, because what is left of an image inside the space is all rounding.
    """
    first, inner = torch.linalg.qr(images - space @ (space.T @ images))
    block, outer = torch.linalg.qr(first - space @ (space.T @ first))
    return block, outer @ inner


def _count_for(energies: Tensor, wanted: float) -> int:
    """How many leading energies it takes to sum to `wanted`; one more than all if they do not."""
    return int((energies.cumsum(0) < wanted).sum()) + 1


def check_energy(name: str, energy: float) -> None:
    """Raise FitError unless 0 < energy <= 1; `name` is the input as the person knows it."""
    if not 0 < energy <= 1:
        raise FitError(
            f"{name} has to be above 0 and at most 1 (a share of the activation energy, for "
            f"example 0.99), got {energy}."
        )
