"""k-means against the best of all partitions, and where there is little to part."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pure_core.methods.clusters import centres
from tests.core.texts import random


def scatter(points: Tensor, found: Tensor) -> float:
    """The squared distances to the nearest centre, summed."""
    return float(torch.cdist(points, found).min(dim=1).values.square().sum())


def least_scatter(points: Tensor, count: int) -> float:
    """Over all ways to part the points."""
    best = float("inf")
    for owners in itertools.product(range(count), repeat=len(points)):
        parts = [points[torch.tensor(owners) == number] for number in range(count)]
        inside = sum(float((p - p.mean(dim=0)).square().sum()) for p in parts if len(p))
        best = min(best, inside)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_groups_that_lie_apart_are_found_as_by_trying_all_partitions(count, seed):
    middles = 20 * random(count, 5, seed=seed)
    points = torch.cat([each + 0.3 * random(8 // count, 5, seed=9) for each in middles])
    found = centres(points, count, seed)
    assert scatter(points, found) == pytest.approx(least_scatter(points, count), rel=1e-9)


def test_without_groups_the_best_of_a_few_seeds_is_the_optimum_and_all_are_stable():
    points = random(8, 3, seed=3)
    best = least_scatter(points, 3)
    reached = []
    for seed in range(12):
        found = centres(points, 3, seed)
        owner = torch.cdist(points, found).argmin(dim=1)
        for number, centre in enumerate(found):
            assert torch.allclose(points[owner == number].mean(dim=0), centre)
        reached.append(scatter(points, found))
        assert reached[-1] >= best - 1e-9
    assert min(reached) == pytest.approx(best)


@pytest.mark.parametrize("different", [1, 2])
def test_fewer_different_points_than_centres_are_centres_themselves(different):
    points = random(different, 4, seed=1).repeat(3, 1)
    found = centres(points, 3)
    assert found.shape == (3, 4) and bool(torch.isfinite(found).all())
    assert scatter(points, found) == pytest.approx(0, abs=1e-20)
    for each in found:
        assert float((points - each).norm(dim=1).min()) < 1e-10


def test_a_seed_gives_the_same_centres():
    points = random(30, 4, seed=2)
    assert torch.equal(centres(points, 3, 5), centres(points, 3, 5))
