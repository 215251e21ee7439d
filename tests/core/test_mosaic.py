"""The mosaic eraser against a dense float64 solve, and at its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.combine import combine
from pure_core.errors import FitError
from pure_core.fitting import BY_HEAD, TOGETHER, fit
from pure_core.methods import METHODS

LAYER = "middle_block.1.transformer_blocks.0.attn2"
TEMPLATES = ("{}", "a photo of {}")


def named(captured: Activations, *names: str) -> Activations:
    """The same rows as those of names in two phrasings."""
    return replace(captured, anchors=AnchorSet.phrased(names, TEMPLATES))


def dense(forget, retain, pairs, *, keep, damping, reach) -> torch.Tensor:
    """The formula as it stands, with every target looked up one by one."""
    h_f, h_r = forget.rows[LAYER].double(), retain.rows[LAYER].double()
    per = forget.trajectory.rows_per_anchor
    t_f = torch.stack(
        [
            torch.stack([h_r[j * per + row % per] for j in pairs[row // per]]).mean(0)
            for row in range(len(h_f))
        ]
    )
    d = h_f.shape[1]
    eye = torch.eye(d, dtype=torch.float64)
    a = h_f.T @ h_f / len(h_f) + keep * h_r.T @ h_r / len(h_r)
    a += damping * h_r.square().mean() * eye
    return eye + reach * (t_f - h_f).T @ h_f / len(h_f) @ torch.linalg.inv(a)


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_it_equals_the_dense_solve(make_activations, cells):
    forget = named(make_activations(prompts=2, seed=1, cells=cells), "dog")
    retain = named(make_activations(prompts=6, seed=2, cells=cells), "cat", "bird", "fox")
    eraser = fit("mosaic", forget, retain, heads=TOGETHER, keep=0.7, damping=0.05, reach=1.3)
    expected = dense(forget, retain, [[0, 2, 4], [1, 3, 5]], keep=0.7, damping=0.05, reach=1.3)
    assert torch.allclose(eraser.layers[LAYER].P.double(), expected, atol=1e-5)
    assert eraser.provenance.edit == "values"
    assert eraser.provenance.settings == {"keep": 0.7, "damping": 0.05, "reach": 1.3}


def test_with_one_cell_and_one_phrasing_it_is_the_ridge_eraser(make_activations):
    forget, retain = make_activations(prompts=1, seed=1), make_activations(prompts=4, seed=2)
    one = fit("mosaic", forget, retain, keep=2.0, damping=0.1, reach=1.5)
    other = fit("ridge", forget, retain, keep=2.0, damping=0.1, overshoot=1.5)
    assert one.fingerprint == other.fingerprint


def test_left_to_itself_it_reaches_as_far_as_it_says(make_activations):
    forget, retain = make_activations(prompts=2, seed=1), make_activations(prompts=4, seed=2)
    usual, said = fit("mosaic", forget, retain), fit("mosaic", forget, retain, reach=1.3)
    assert usual.provenance.settings["reach"] == 0
    for name, layer in usual.layers.items():
        assert torch.equal(layer.P, said.layers[name].P)


def test_a_phrasing_is_not_what_is_erased(make_activations):
    """Where concept and neighbours differ only between phrasings there is nothing to erase."""
    retain = named(make_activations(prompts=2, seed=2), "cat")
    forget = named(retain, "dog")
    assert set(fit("mosaic", forget, retain).ranks.values()) == {0}
    assert min(fit("ridge", forget, retain).ranks.values()) > 0


def test_other_methods_are_given_whole_pictures(make_activations):
    forget = make_activations(prompts=3, seed=1, cells=2)
    retain = make_activations(prompts=4, seed=2, cells=2)
    for method in METHODS:
        given = fit(method, forget, retain)
        pooled = fit(method, forget.pooled(), retain.pooled())
        assert (given.fingerprint == pooled.fingerprint) == (METHODS[method].cells == 1)


@pytest.mark.parametrize("heads", [BY_HEAD, TOGETHER])
@pytest.mark.parametrize("reach", [0.0, 1.2])
def test_joined_it_is_what_fitting_together_gives(make_activations, reach, heads):
    retain = named(make_activations(prompts=6, seed=2, cells=2), "cat", "bird", "fox")
    concepts = [
        named(make_activations(prompts=2, seed=seed, cells=2), name)
        for seed, name in ((1, "dog"), (3, "wolf"))
    ]
    each = [fit("mosaic", one, retain, heads=heads, reach=reach) for one in concepts]
    joined = combine(each, "joint", retain)
    both = concepts[0].concatenate(concepts[1])
    together = fit("mosaic", both, retain, heads=heads, reach=reach)
    for name, layer in together.layers.items():
        assert torch.allclose(joined.layers[name].P, layer.P, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": -1.0}, "keep: expected from 0 to 1000"),
        ({"damping": 0.0}, "damping: expected above 0, up to 10"),
        ({"reach": -0.1}, "reach: expected from 0 to 5"),
        ({"reach": float("nan")}, "reach: expected from 0 to 5"),
    ],
)
def test_settings_outside_their_range_are_refused(make_activations, settings, message):
    with pytest.raises(FitError, match=message):
        fit("mosaic", make_activations(seed=1), make_activations(seed=2), **settings)


def test_neighbours_are_required(make_activations):
    with pytest.raises(FitError, match="the method mosaic needs the activations"):
        fit("mosaic", make_activations(), None)
    with pytest.raises(FitError, match="cells 1 / 2"):
        fit("mosaic", make_activations(), make_activations(cells=2))
