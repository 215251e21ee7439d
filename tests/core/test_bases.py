"""The leading directions are the SVD's, found by search or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pure_core.bases import decompose, fit_basis, search_leading
from pure_core.errors import FitError


def rows_with(values: Tensor, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (n, d) with given singular values, and their right-singular vectors (d, k)."""
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(n, len(values), dtype=torch.float64, generator=random)
    right = torch.randn(d, len(values), dtype=torch.float64, generator=random)
    left, right = torch.linalg.qr(left)[0], torch.linalg.qr(right)[0]
    return left * values @ right.T, right


def projector(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


SHAPES = [(300, 90), (90, 300), (150, 150), (7, 40)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_the_subspace_is_that_of_the_svd(n, d, energy):
    values = torch.arange(1, min(n, d) + 1, dtype=torch.float64) ** -1.5
    rows, _ = rows_with(values, n, d)
    basis = fit_basis(rows, energy)
    _, exact, vectors_t = torch.linalg.svd(rows, full_matrices=False)
    shares = exact.square().cumsum(0) / exact.square().sum()
    rank = int((shares < energy).sum()) + 1
    assert basis.rank == rank
    assert (projector(basis.vectors) - projector(vectors_t[:rank].T)).norm() < 1e-6
    assert torch.allclose(basis.singular_values, exact[:rank], rtol=1e-9)
    assert torch.allclose(basis.cumulative, shares[:rank])


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_projectors_are_idempotent(n, d):
    rows, _ = rows_with(torch.logspace(0, -3, min(n, d), dtype=torch.float64), n, d)
    basis = fit_basis(rows, 0.99)
    eye = torch.eye(basis.rank, dtype=torch.float64)
    assert (basis.vectors.T @ basis.vectors - eye).abs().max() < 1e-12
    p = projector(basis.vectors)
    assert (p @ p - p).abs().max() < 1e-12


def test_the_search_finds_what_it_should_and_says_when_it_cannot():
    decaying, _ = rows_with(torch.arange(1, 121, dtype=torch.float64) ** -1.5, 400, 120)
    wanted = 0.9 * float(decaying.square().sum())
    found = search_leading(decaying, wanted)
    assert found is not None
    expected_values, expected = decompose(decaying, wanted, 1e-16)
    assert torch.allclose(found[0], expected_values)
    assert (projector(found[1]) - projector(expected)).norm() < 1e-6
    flat, _ = rows_with(torch.ones(120, dtype=torch.float64), 400, 120)
    assert search_leading(flat, 0.5 * float(flat.square().sum())) is None


@pytest.mark.parametrize("rank", [3, 12, 15, 40])
def test_rows_of_few_directions_do_not_upset_the_search(rank):
    """The search runs out of directions inside a block, and must not invent others."""
    rows, vectors = rows_with(torch.linspace(2, 1, rank, dtype=torch.float64), 200, 150)
    found = search_leading(rows, 0.9999999 * float(rows.square().sum()))
    assert found is not None
    assert found[1].shape == (150, rank)
    assert (projector(found[1]) - projector(vectors)).norm() < 1e-6


def test_energy_one_keeps_the_numerical_rank():
    values = torch.tensor([1.0, 1e-3, 1e-9], dtype=torch.float64)
    rows, vectors = rows_with(values, 50, 40)
    basis = fit_basis(rows, 1.0)
    assert basis.rank == 3
    assert (projector(basis.vectors) - projector(vectors)).norm() < 1e-4
    assert fit_basis(rows, 0.9999).rank == 1


@pytest.mark.parametrize("rank", [31, 49])
def test_the_rounding_of_float32_rows_has_no_direction(rank):
    """As captured rows are: of few directions, computed in float32."""
    exact, vectors = rows_with(torch.logspace(2, 0, rank, dtype=torch.float64), 400, 90)
    rounded = exact.float()
    assert torch.linalg.matrix_rank(rounded.double()) == 90
    basis = fit_basis(rounded, 1.0)
    assert basis.rank == rank
    assert (projector(basis.vectors) - projector(vectors)).norm() < 1e-4
    assert fit_basis(rounded.double(), 1.0).rank == 90  # all that float64 can tell apart


@pytest.mark.parametrize(("n", "d"), [(5, 8), (200, 150)])
@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_zero_rows_have_no_direction(n, d, energy):
    basis = fit_basis(torch.zeros(n, d), energy)
    assert basis.vectors.shape == (d, 0)
    assert basis.cumulative.shape == (0,)


@pytest.mark.parametrize("energy", [0.5, 0.99, 1.0])
def test_zero_rows_among_others_change_nothing(energy):
    rows, _ = rows_with(torch.arange(1, 41, dtype=torch.float64) ** -1.0, 80, 60)
    padded = torch.cat([torch.zeros(30, 60, dtype=torch.float64), rows])
    difference = projector(fit_basis(rows, energy).vectors) - projector(
        fit_basis(padded, energy).vectors
    )
    assert difference.norm() < 1e-6


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.0001, float("nan")])
def test_energy_outside_its_range_is_refused(energy):
    with pytest.raises(FitError, match="above 0 and at most 1"):
        fit_basis(torch.ones(3, 3), energy)
