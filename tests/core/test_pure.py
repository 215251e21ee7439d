"""PURE as published: what its algebra promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.bases import Basis, fit_basis
from pure_core.errors import FitError
from pure_core.fitting import TOGETHER, fit
from pure_core.methods import METHODS
from pure_core.methods.pure import pure_factors
from pure_core.model_identity import ModelIdentity

ENERGIES = [(0.99, 0.7), (0.9, 0.9), (0.999, 0.999), (1.0, 1.0)]


def bases(make_activations, energies: tuple[float, float]) -> tuple[Basis, Basis]:
    forget, retain = make_activations(seed=1), make_activations(prompts=6, seed=2)
    layer = "middle_block.1.transformer_blocks.0.attn2"
    return fit_basis(forget.rows[layer], energies[0]), fit_basis(retain.rows[layer], energies[1])


def dense(forget: Basis, retain: Basis | None) -> Tensor:
    left, right = pure_factors(forget.vectors, None if retain is None else retain.vectors)
    return torch.eye(len(left), dtype=torch.float64) - left @ right


@pytest.mark.parametrize("energies", ENERGIES)
def test_it_is_the_published_matrix(make_activations, energies):
    forget, retain = bases(make_activations, energies)
    p_f, p_r = forget.vectors @ forget.vectors.T, retain.vectors @ retain.vectors.T
    eye = torch.eye(len(p_f), dtype=torch.float64)
    published = p_f @ (eye - p_r)
    assert torch.allclose(dense(forget, retain) + published, eye, atol=1e-12)
    assert torch.allclose(p_f @ p_f, p_f, atol=1e-12)


@pytest.mark.parametrize("energies", ENERGIES)
def test_retain_directions_are_fixed(make_activations, energies):
    forget, retain = bases(make_activations, energies)
    kept = dense(forget, retain) @ retain.vectors
    assert torch.allclose(kept, retain.vectors, rtol=0, atol=1e-12)


def test_of_a_forget_row_only_its_retained_part_is_left(make_activations):
    forget, retain = bases(make_activations, (0.99, 0.7))
    inside = forget.vectors @ torch.randn(forget.rank, dtype=torch.float64)
    p_f, p_r = forget.vectors @ forget.vectors.T, retain.vectors @ retain.vectors.T
    assert torch.allclose(dense(forget, retain) @ inside, p_f @ p_r @ inside, atol=1e-12)


def test_without_neighbours_the_forget_subspace_is_projected_out(make_activations):
    forget, _ = bases(make_activations, (0.99, 0.7))
    e = dense(forget, None)
    assert torch.allclose(e @ e, e, atol=1e-12)
    assert (e @ forget.vectors).abs().max() < 1e-12
    eraser = fit("pure", make_activations(seed=1), None)
    assert len(eraser.provenance.retain) == 0


def changed(activations: Activations, change) -> Activations:
    """The same activations with every layer's rows changed; twice the prompts for twice n."""
    rows = {layer: change(each) for layer, each in activations.rows.items()}
    times = len(next(iter(rows.values()))) // len(next(iter(activations.rows.values())))
    anchors = AnchorSet(activations.anchors.anchors * times)
    return replace(activations, rows=rows, anchors=anchors)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[torch.randperm(len(rows))],
        lambda rows: torch.cat([rows, rows]),
        lambda rows: 8 * rows,
        lambda rows: -rows,
    ],
    ids=["order", "duplicates", "scale", "sign"],
)
def test_only_the_directions_of_the_rows_matter(make_activations, change):
    forget, retain = make_activations(seed=1), make_activations(prompts=6, seed=2)
    plain = fit("pure", forget, retain)
    other = fit("pure", changed(forget, change), changed(retain, change))
    for layer in plain.layers:
        assert torch.allclose(plain.layers[layer].P, other.layers[layer].P, atol=1e-5)


def test_the_fitted_eraser_is_made_of_both_bases(make_activations):
    forget, retain = make_activations(seed=1), make_activations(prompts=6, seed=2)
    eraser = fit("pure", forget, retain, forget_energy=0.99, retain_energy=0.7)
    for layer, fitted in eraser.layers.items():
        expected = dense(fit_basis(forget.rows[layer], 0.99), fit_basis(retain.rows[layer], 0.7))
        assert fitted.proj_left.dtype == torch.float32
        assert torch.allclose(fitted.P.double(), expected, atol=1e-6)
    assert eraser.widths == forget.widths
    assert eraser.provenance.edit == "keys and values"
    assert eraser.provenance.settings == {"forget_energy": 0.99, "retain_energy": 0.7}
    assert eraser.provenance.forget == forget.anchors
    assert eraser.provenance.retain == retain.anchors


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5])
def test_energies_outside_their_range_name_the_input(make_activations, energy):
    with pytest.raises(FitError, match="forget_energy: expected above 0, up to 1"):
        fit("pure", make_activations(), make_activations(seed=2), forget_energy=energy)
    with pytest.raises(FitError, match="retain_energy: expected above 0, up to 1"):
        fit("pure", make_activations(), make_activations(seed=2), retain_energy=energy)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    "other", [{"seed": 7}, {"cfg": 1.0}, {"height": 768}, {"scheduler": "karras"}]
)
def test_differently_captured_rows_are_refused_with_the_difference(make_activations, method, other):
    retain = make_activations(seed=2)
    name, value = next(iter(other.items()))
    altered = replace(retain, trajectory=retain.trajectory._replace(**other))
    with pytest.raises(FitError, match=f"{name} .* / {value}"):
        fit(method, make_activations(seed=1), altered)


@pytest.mark.parametrize("method", list(METHODS))
def test_rows_of_another_model_are_refused(make_activations, method):
    patched = ModelIdentity("model.safetensors", "unet", "xyz", "float16")
    with pytest.raises(FitError, match=r"patched into model\.safetensors"):
        fit(method, make_activations(seed=1), make_activations(seed=2, model=patched))


@pytest.mark.parametrize("method", list(METHODS))
def test_rows_of_other_layers_are_refused(make_activations, method):
    with pytest.raises(FitError, match="layers"):
        fit(method, make_activations(), make_activations(widths={"layer": 24}))


def test_with_all_energy_the_rounding_of_the_rows_does_not_matter(make_activations):
    """Batches of another size round differently: of rank-deficient rows that was all PURE saw."""
    exact = {}
    for number, name in enumerate(("forget", "retain")):
        random = torch.Generator().manual_seed(number)
        thin = torch.randn(120, 31, generator=random), torch.randn(31, 90, generator=random)
        exact[name] = thin[0].double() @ thin[1].double()
    widths = {"layer": 90}

    def captured(name: str, seed: int) -> Activations:
        noise = torch.rand(exact[name].shape, generator=torch.Generator().manual_seed(seed)) - 0.5
        rows = (exact[name] * (1 + 2**-23 * noise)).float()
        return replace(make_activations(prompts=20, widths=widths), rows={"layer": rows})

    one, other = (
        fit("pure", captured("forget", seed), captured("retain", seed + 1), forget_energy=1.0)
        for seed in (5, 7)
    )
    assert one.ranks == other.ranks == {"layer": 31}
    assert torch.allclose(one.layers["layer"].P, other.layers["layer"].P, atol=1e-5)


def test_fit_goes_by_name_and_takes_the_settings_of_all_methods(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    everything = dict(
        **dict(forget_energy=0.9, retain_energy=0.5, keep=3.0, damping=0.1, overshoot=1.2),
        **dict(reach=1.1, shrinkage=0.2),
    )
    for method in METHODS:
        eraser = fit(method, forget, retain, heads=TOGETHER, **everything)
        names = [each.name for each in METHODS[method].settings]
        assert eraser.provenance.settings == {name: everything[name] for name in names}
        assert eraser.provenance.edit == METHODS[method].edit
        assert eraser.provenance.method == method
    with pytest.raises(FitError, match=r"method: expected one of pure, ridge, .*, got 'magic'"):
        fit("magic", forget, retain)
    with pytest.raises(FitError, match="forget_enrgy"):
        fit("pure", forget, retain, forget_enrgy=0.9)
