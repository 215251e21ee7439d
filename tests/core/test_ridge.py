"""The ridge eraser against a dense float64 solve, and at its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.activations import Activations, neighbour_means
from pure_core.anchors import AnchorSet
from pure_core.eraser import LayerEraser
from pure_core.errors import FitError
from pure_core.fitting import BY_HEAD, TOGETHER, fit
from pure_core.low_rank import thin_product
from pure_core.methods import METHODS
from pure_core.methods.least_squares import least_squares_factors, solve_rows
from pure_core.methods.method import LayerRows


def random_rows(n: int, d: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, d + 1, dtype=torch.float64) ** -0.7
    return torch.randn(n, d, dtype=torch.float64, generator=random) * decay + 0.3


def dense_ridge(h_f: Tensor, t_f: Tensor, h_r: Tensor, keep: float, damping: float) -> Tensor:
    """The formula as it stands, with d x d matrices."""
    n_f, d = h_f.shape
    tau = torch.trace(h_r.T @ h_r / len(h_r)) / d
    common = keep * h_r.T @ h_r / len(h_r) + damping * tau * torch.eye(d, dtype=h_f.dtype)
    return (t_f.T @ h_f / n_f + common) @ torch.linalg.inv(h_f.T @ h_f / n_f + common)


@pytest.mark.parametrize(("n_f", "n_r", "d"), [(6, 20, 60), (40, 50, 30), (6, 90, 30), (50, 8, 60)])
@pytest.mark.parametrize(("keep", "damping"), [(1.0, 0.01), (0.1, 0.5), (0.0, 0.1), (100.0, 1e-3)])
def test_it_equals_the_dense_solve(n_f, n_r, d, keep, damping):
    h_f, t_f, h_r = random_rows(n_f, d, 0), random_rows(n_f, d, 1), random_rows(n_r, d, 2)
    left, right = least_squares_factors(h_f, t_f, h_r, keep, damping, 1)
    e = torch.eye(d, dtype=torch.float64) - left @ right
    expected = dense_ridge(h_f, t_f, h_r, keep, damping)
    assert left.shape[1] <= min(n_f, d)
    assert (e - expected).norm() < 1e-6 * expected.norm()


def test_it_minimises_its_objective():
    h_f, t_f, h_r = random_rows(9, 20, 0), random_rows(9, 20, 1), random_rows(30, 20, 2)
    keep, damping = 0.5, 0.02
    eye = torch.eye(20, dtype=torch.float64)

    def objective(e: Tensor) -> Tensor:
        erased = (h_f @ e.T - t_f).square().sum() / 9
        kept = keep * (h_r @ e.T - h_r).square().sum() / 30
        return erased + kept + damping * h_r.square().mean() * (e - eye).square().sum()

    left, right = least_squares_factors(h_f, t_f, h_r, keep, damping, 1)
    best = (eye - left @ right).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(best), best)
    (at_identity,) = torch.autograd.grad(objective(eye.requires_grad_()), eye)
    assert gradient.norm() < 1e-6 * at_identity.norm()


def test_the_target_is_the_neighbours_mean_at_the_same_latent_and_step(make_activations):
    forget, retain = make_activations(prompts=3, seed=1), make_activations(prompts=5, seed=2)
    layer = next(iter(forget.rows))
    target = neighbour_means(forget, retain, layer)
    assert target.shape == forget.rows[layer].shape
    grid = target.view_as(forget.grid(layer))
    for prompt, latent, step in [(0, 0, 0), (2, 1, 2), (1, 0, 1)]:
        rows = [retain.grid(layer)[each, latent, step].double() for each in range(5)]
        assert torch.allclose(grid[prompt, latent, step], torch.stack(rows).mean(0))


def test_the_fitted_eraser_is_the_solution(make_activations):
    forget, retain = make_activations(prompts=3, seed=1), make_activations(prompts=5, seed=2)
    eraser = fit("ridge", forget, retain, heads=TOGETHER, keep=0.3, damping=0.05, overshoot=1.0)
    for layer, fitted in eraser.layers.items():
        expected = dense_ridge(
            forget.rows[layer].double(),
            neighbour_means(forget, retain, layer),
            retain.rows[layer].double(),
            0.3,
            0.05,
        )
        assert fitted.proj_left.dtype == torch.float32
        assert torch.allclose(fitted.P.double(), expected, atol=1e-5)
    assert eraser.provenance.edit == "values"
    assert eraser.provenance.settings == {"keep": 0.3, "damping": 0.05, "overshoot": 1.0}


MIDDLE = "middle_block.1.transformer_blocks.0.attn2"


def solved(forget: Activations, retain: Activations, keep: float, damping: float) -> LayerEraser:
    """The middle layer's eraser, also beyond the limits that a person can set."""
    rows = LayerRows(MIDDLE, forget, retain)
    left, right = METHODS["ridge"].solve(rows, keep=keep, damping=damping, overshoot=1.0)
    return LayerEraser(left.float(), right.float())


def change_of(rows: Tensor, eraser: LayerEraser) -> float:
    return float((eraser(rows) - rows).norm() / rows.norm())


def test_keep_holds_the_neighbours_and_damping_holds_everything(make_activations):
    forget, retain = make_activations(prompts=2, seed=1), make_activations(prompts=3, seed=2)
    weak = solved(forget, retain, keep=0.01, damping=1e-4)
    strong = solved(forget, retain, keep=1e6, damping=1e-4)
    assert change_of(retain.rows[MIDDLE], weak) > 1e-2
    assert change_of(retain.rows[MIDDLE], strong) < 1e-4
    assert change_of(forget.rows[MIDDLE], strong) > 1e-2
    still = solved(forget, retain, keep=10.0, damping=1e6)
    assert change_of(forget.rows[MIDDLE], still) < 1e-4


def test_in_a_head_each_of_several_concepts_weighs_as_much_as_alone(make_activations):
    forget, retain = make_activations(prompts=4, seed=1), make_activations(prompts=3, seed=2)
    names = AnchorSet.phrased(["a", "b"], ["{}", "a {}"])
    assert len(names.concepts) == 2 and len(forget.anchors.concepts) == 1
    for heads, least in ((BY_HEAD, 0.5), (TOGETHER, 1.0)):  # a whole layer has room for both
        weights = {"keep": 2.0, "damping": 0.1}
        less = {name: least * each for name, each in weights.items()}
        both = fit("ridge", replace(forget, anchors=names), retain, heads=heads, **weights)
        same = fit("ridge", forget, retain, heads=heads, **less)
        for name, layer in both.layers.items():
            assert torch.allclose(layer.P, same.layers[name].P, atol=1e-5)


def test_overshoot_goes_as_much_further_along_the_same_way(make_activations):
    forget, retain = make_activations(4, seed=1), make_activations(5, seed=2)
    once, more = (fit("ridge", forget, retain, overshoot=o) for o in (1.0, 1.5))
    for name, layer in once.layers.items():
        eye = torch.eye(layer.width)
        assert not torch.allclose(layer.P, eye, atol=1e-2)
        assert torch.allclose(more.layers[name].P - eye, 1.5 * (layer.P - eye), atol=1e-5)


def test_with_little_damping_and_no_keep_the_forget_rows_reach_their_target(make_activations):
    forget, retain = make_activations(prompts=2, seed=1), make_activations(prompts=3, seed=2)
    eraser = solved(forget, retain, keep=0.0, damping=1e-6)
    target = neighbour_means(forget, retain, MIDDLE).float()
    assert (eraser(forget.rows[MIDDLE]) - target).norm() < 1e-2 * target.norm()


def test_a_concept_that_is_its_neighbours_mean_is_left_alone(make_activations):
    retain = make_activations(prompts=1, seed=2)
    forget = replace(
        retain,
        rows={layer: rows.repeat(3, 1) for layer, rows in retain.rows.items()},
        anchors=AnchorSet.written([["a", "b", "c"]]),
    )
    assert set(fit("ridge", forget, retain).ranks.values()) == {0}


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_both_ways_to_solve_agree_with_the_inverse(n, d):
    rows, damping = random_rows(n, d, 0), torch.tensor(0.3, dtype=torch.float64)
    gram = rows.T @ rows + damping * torch.eye(d, dtype=torch.float64)
    assert torch.allclose(solve_rows(rows, damping, 3), rows[:3] @ torch.linalg.inv(gram))


def test_a_thin_product_keeps_only_the_numerical_rank():
    left, right = random_rows(20, 3, 0), random_rows(3, 15, 1)
    doubled = thin_product(torch.cat([left, left], 1), torch.cat([right, right], 0))
    assert doubled[0].shape == (20, 3)
    assert torch.allclose(doubled[0] @ doubled[1], 2 * left @ right)
    assert torch.allclose(doubled[0].norm(), doubled[1].norm())
    invisible_beside_identity = thin_product(1e-6 * left, 1e-6 * right)
    assert invisible_beside_identity[0].shape == (20, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": -0.1}, "keep: expected from 0 to 1000"),
        ({"keep": float("nan")}, "keep: expected from 0 to 1000"),
        ({"damping": 0.0}, "damping: expected above 0, up to 10"),
        ({"overshoot": 0.0}, "overshoot: expected from 0.1 to 5"),
        ({"damping": float("inf")}, "damping: expected above 0, up to 10"),
    ],
)
def test_settings_outside_their_range_are_refused(make_activations, settings, message):
    with pytest.raises(FitError, match=message):
        fit("ridge", make_activations(seed=1), make_activations(seed=2), **settings)


def test_neighbours_are_required(make_activations):
    with pytest.raises(FitError, match=r"retain: the method ridge needs .* neighbours"):
        fit("ridge", make_activations(), None)


def test_neighbours_that_are_all_zero_are_refused(make_activations):
    retain = make_activations(seed=2)
    layer = next(iter(retain.rows))
    rows = retain.rows | {layer: torch.zeros_like(retain.rows[layer])}
    with pytest.raises(FitError, match=layer):
        fit("ridge", make_activations(seed=1), replace(retain, rows=rows))
