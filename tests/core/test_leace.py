"""LEACE leaves no linear trace of the labels and changes the rows least."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.activations import Activations
from pure_core.errors import FitError
from pure_core.fitting import TOGETHER, fit
from pure_core.methods.leace import leace_factors

SIZES = {"one concept": [9], "two concepts": [9, 6], "three concepts": [5, 9, 7]}


def random_rows(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated channels of falling size around a mean."""
    random = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, d + 1, dtype=torch.float64) ** -0.7
    mixing = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    rows = torch.randn(n, d, dtype=torch.float64, generator=random)
    own = torch.randn(d, dtype=torch.float64, generator=random)
    return (rows * decay) @ mixing / d**0.5 + 0.3 + shift * own


def concepts(sizes: list[int], d: int) -> Tensor:
    return torch.cat([random_rows(n, d, seed, 0.5) for seed, n in enumerate(sizes, start=1)])


def one_hot(sizes: list[int], others: int) -> Tensor:
    """(n, k): to which concept a row belongs, the others' to none."""
    blocks = [torch.ones(n, 1, dtype=torch.float64) for n in sizes]
    nothing = torch.zeros(others, len(sizes), dtype=torch.float64)
    return torch.cat([torch.block_diag(*blocks), nothing])


def covariance(x: Tensor, z: Tensor) -> Tensor:
    return (x - x.mean(0)).T @ (z - z.mean(0)) / (len(x) - 1)


def owners(sizes: list[int]) -> Tensor:
    """(n,): for every row the number of its concept."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def eraser_of(forget: Tensor, sizes: list[int], retain: Tensor, shrinkage: float) -> Tensor:
    left, right = leace_factors(forget, owners(sizes), retain, shrinkage)
    return torch.eye(forget.shape[1], dtype=torch.float64) - left @ right


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("d", [8, 60])
@pytest.mark.parametrize("shrinkage", [1e-3, 0.01, 0.5, 1.0])
def test_no_label_is_correlated_with_the_rows_any_more(sizes, d, shrinkage):
    forget, retain = concepts(sizes, d), random_rows(14, d, 0)
    rows, labels = torch.cat([forget, retain]), one_hot(sizes, 14)
    e = eraser_of(forget, sizes, retain, shrinkage)
    assert covariance(rows, labels).norm() > 1e-2
    assert covariance(rows @ e.T, labels).norm() < 1e-10


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_linear_classifier_learns_nothing(sizes):
    forget, retain = concepts(sizes, 12), random_rows(20, 12, 0)
    rows, labels = torch.cat([forget, retain]), one_hot(sizes, 20)
    e = eraser_of(forget, sizes, retain, 0.01)

    def explained(x: Tensor) -> float:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        guess = x @ torch.linalg.lstsq(x, labels, driver="gelsd").solution
        spread = (labels - labels.mean(0)).square().sum()
        return 1 - float((guess - labels).square().sum() / spread)

    assert explained(rows) > 0.3
    assert abs(explained(rows @ e.T)) < 1e-8


def dense_leace(rows: Tensor, labels: Tensor) -> Tensor:
    """I - W^+ P W, with the whitening W = (V^1/2)^+ and P onto the span of W Cov(x, z)."""
    values, vectors = torch.linalg.eigh(covariance(rows, rows))
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    colour = vectors @ torch.diag(values**0.5) @ vectors.T
    frame, _ = torch.linalg.qr(whiten @ covariance(rows, labels))
    return torch.eye(rows.shape[1], dtype=torch.float64) - colour @ frame @ frame.T @ whiten


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_with_little_shrinkage_it_is_the_whitened_projection_of_the_paper(sizes):
    forget, retain = concepts(sizes, 8), random_rows(20, 8, 0)
    expected = dense_leace(torch.cat([forget, retain]), one_hot(sizes, 20))
    assert torch.allclose(eraser_of(forget, sizes, retain, 1e-12), expected, atol=1e-8)
    assert not torch.allclose(eraser_of(forget, sizes, retain, 0.1), expected, atol=1e-2)


@pytest.mark.parametrize("shrinkage", [0.02, 0.4])
def test_shrinkage_mixes_the_covariance_with_its_mean(shrinkage):
    forget, retain = concepts([9, 6], 30), random_rows(20, 30, 0)
    rows = torch.cat([forget, retain])
    spread, together = covariance(rows, rows), covariance(rows, one_hot([9, 6], 20))
    level = torch.trace(spread) / 30 * torch.eye(30, dtype=torch.float64)
    inverse = torch.linalg.inv((1 - shrinkage) * spread + shrinkage * level)
    middle = torch.linalg.inv(together.T @ inverse @ together)
    expected = torch.eye(30, dtype=torch.float64) - together @ middle @ together.T @ inverse
    assert torch.allclose(eraser_of(forget, [9, 6], retain, shrinkage), expected, atol=1e-8)


def test_with_full_shrinkage_it_is_the_orthogonal_projection():
    forget, retain = concepts([9, 6], 20), random_rows(20, 20, 0)
    together = covariance(torch.cat([forget, retain]), one_hot([9, 6], 20))
    frame, _ = torch.linalg.qr(together)
    expected = torch.eye(20, dtype=torch.float64) - frame @ frame.T
    assert torch.allclose(eraser_of(forget, [9, 6], retain, 1.0), expected, atol=1e-10)


def test_no_other_map_without_correlation_changes_the_rows_less():
    """Every E + G with G Cov(x, z) = 0 leaves no correlation either."""
    sizes, d = [9, 6], 8
    forget, retain = concepts(sizes, d), random_rows(20, d, 0)
    rows, labels = torch.cat([forget, retain]), one_hot(sizes, 20)
    centred = rows - rows.mean(0)
    frame, _ = torch.linalg.qr(covariance(rows, labels))
    e = eraser_of(forget, sizes, retain, 1e-12)
    best = (centred @ e.T - centred).square().sum()
    for seed in range(8):
        random = torch.randn(
            d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        other = e + 0.05 * (random - random @ frame @ frame.T)
        assert covariance(rows @ other.T, labels).norm() < 1e-10
        assert (centred @ other.T - centred).square().sum() > best


def test_neither_the_mean_nor_the_size_of_the_rows_matters():
    forget, retain = concepts([9, 6], 20), random_rows(20, 20, 0)
    e = eraser_of(forget, [9, 6], retain, 0.05)
    moved = eraser_of(100 * forget + 7, [9, 6], 100 * retain + 7, 0.05)
    assert torch.allclose(e, moved, atol=1e-8)


def test_a_concept_twice_is_that_concept():
    forget, retain = concepts([9], 20), random_rows(20, 20, 0)
    twice = eraser_of(torch.cat([forget, forget]), [9, 9], retain, 0.05)
    once = eraser_of(torch.cat([forget, forget]), [18], retain, 0.05)
    assert torch.allclose(twice, once, atol=1e-6)


def test_a_concept_that_is_its_neighbours_is_left_alone():
    rows = random_rows(15, 20, 0)
    assert torch.allclose(eraser_of(rows, [15], rows, 0.01), torch.eye(20).double(), atol=1e-6)


def test_the_fitted_eraser_is_the_solution(make_activations):
    parts = [make_activations(prompts=3, seed=1), make_activations(prompts=2, seed=2)]
    forget, retain = parts[0].concatenate(parts[1]), make_activations(prompts=5, seed=3)
    eraser = fit("leace", forget, retain, heads=TOGETHER, shrinkage=0.05, keep=3.0)
    each = forget.trajectory.rows_per_anchor
    for name, layer in eraser.layers.items():
        rows, others = forget.rows[name].double(), retain.rows[name].double()
        expected = eraser_of(rows, [3 * each, 2 * each], others, 0.05)
        assert torch.allclose(layer.P.double(), expected, atol=1e-5)
        assert layer.proj_left.dtype == torch.float32 and layer.space == "activations"
        assert layer.rank == 2
        labels = one_hot([3 * each, 2 * each], len(others))
        erased = layer(torch.cat([rows, others]).float()).double()
        assert covariance(erased, labels).norm() < 1e-6
    made = eraser.provenance
    assert (made.method, made.edit, made.settings) == ("leace", "values", {"shrinkage": 0.05})
    assert made.forget.owners == (0, 0, 0, 1, 1) and made.retain == retain.anchors
    assert all(0 < share < 1 for share in made.contribution.values())


def test_progress_is_told_in_layers(make_activations):
    told: list[tuple[int, int]] = []
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    fit("leace", forget, retain, progress=lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("shrinkage", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_a_shrinkage_outside_its_range_is_refused(make_activations, shrinkage):
    with pytest.raises(FitError, match="shrinkage: expected above 0, up to 1"):
        fit("leace", make_activations(seed=1), make_activations(seed=2), shrinkage=shrinkage)


def test_neighbours_are_required_and_captured_alike(make_activations):
    with pytest.raises(FitError, match=r"retain: the method leace needs .* neighbours"):
        fit("leace", make_activations(), None)
    with pytest.raises(FitError, match="steps 20 / 30"):
        fit("leace", make_activations(seed=1), make_activations(seed=2, steps=30))


def test_rows_that_never_vary_do_not_stop_it(make_activations):
    """A layer that gives the same for all prompts tells nothing, so nothing is erased."""
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    name = next(iter(forget.rows))

    def still(each: Activations) -> Activations:
        return replace(each, rows=each.rows | {name: torch.zeros_like(each.rows[name])})

    eraser = fit("leace", still(forget), still(retain))
    assert eraser.ranks[name] == 0
    assert all(rank for layer, rank in eraser.ranks.items() if layer != name)
