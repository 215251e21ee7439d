"""The report's numbers mean what they say, its warnings come when due, its picture is drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.bases import fit_basis
from pure_core.eraser import Eraser
from pure_core.errors import PureError
from pure_core.fitting import TOGETHER, fit
from pure_core.report import FitReport, draw, panel
from pure_core.report.canvas import printable
from pure_core.report.picture import FORGET, RETAIN, short_name

LAYER = "middle_block.1.transformer_blocks.0.attn2"


def apart(activations: Activations, seed: int) -> Activations:
    """The same activations with the concept's own direction added to every row."""
    random = torch.Generator().manual_seed(seed)
    rows = {
        layer: each + torch.randn(each.shape[1], generator=random) / each.shape[1] ** 0.5
        for layer, each in activations.rows.items()
    }
    return replace(activations, rows=rows)


def scaled(eraser: Eraser, strength: float) -> Eraser:
    """Whose layers go less far: the report itself is at strength 1 whatever is chosen."""
    layers = {name: layer.scaled(strength) for name, layer in eraser.layers.items()}
    return replace(eraser, layers=layers)


def test_an_identity_eraser_removes_nothing_and_keeps_everything(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    report = FitReport.of(scaled(fit("pure", forget, retain), 0), forget, retain)
    for layer in report.layers:
        assert layer.forget_removed == layer.mean_removed == layer.shift == layer.gap_closed == 0
        assert layer.retain_kept == 1
        assert layer.rank == 0


def test_the_shares_are_those_of_the_dense_matrices(make_activations):
    forget, retain = make_activations(seed=1), make_activations(prompts=6, seed=2)
    eraser = fit("pure", forget, retain, forget_energy=0.95, retain_energy=0.8)
    layer = next(each for each in FitReport.of(eraser, forget, retain).layers if each.name == LAYER)
    e, h_f, h_r = eraser.layers[LAYER].P, forget.rows[LAYER], retain.rows[LAYER]
    means = retain.grid(LAYER).mean(0).flatten(0, 1).repeat(len(forget.prompts), 1)
    mean = h_f.mean(0)
    v_f, v_r = fit_basis(h_f, 0.95).vectors, fit_basis(h_r, 0.8).vectors
    protected = v_f @ v_f.T @ v_r @ v_r.T @ mean.double()

    def energy(x: torch.Tensor) -> float:
        return float(x.square().sum())

    assert layer.forget_removed == pytest.approx(1 - energy(h_f @ e.T) / energy(h_f), abs=1e-5)
    assert layer.mean_removed == pytest.approx(1 - energy(e @ mean) / energy(mean), abs=1e-5)
    gap = (h_f - means).double()
    shift = float(((h_f - h_f @ e.T).double() * gap).sum()) / energy(gap)
    assert layer.shift == pytest.approx(shift, abs=1e-5)
    assert layer.gap_closed == pytest.approx(
        1 - energy(h_f @ e.T - means) / energy(h_f - means), abs=1e-5
    )
    assert layer.retain_kept == pytest.approx(1 - energy(h_r @ e.T - h_r) / energy(h_r), abs=1e-5)
    assert layer.mean_protected == pytest.approx(energy(protected) / energy(mean), abs=1e-5)
    assert (layer.forget_rank, layer.retain_rank) == (v_f.shape[1], v_r.shape[1])
    assert layer.rank == v_f.shape[1]


def test_spectra_rise_to_the_energy_asked_for(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    eraser = fit("pure", forget, retain, forget_energy=0.999, retain_energy=0.5)
    for layer in FitReport.of(eraser, forget, retain).layers:
        for spectrum, shown in ((layer.forget_spectrum, 0.999), (layer.retain_spectrum, 0.99)):
            assert list(spectrum.cumulative) == sorted(spectrum.cumulative)
            assert spectrum.cumulative[-1] >= shown
            assert spectrum.cumulative[spectrum.rank - 1] >= spectrum.energy
            assert all(
                share < spectrum.energy for share in spectrum.cumulative[: spectrum.rank - 1]
            )


def test_missing_neighbours_are_warned_of(make_activations):
    forget = make_activations(seed=1)
    report = FitReport.of(fit("pure", forget, None), forget, None)
    assert "without neighbours" in report.summary()
    assert report.mean(lambda layer: layer.retain_kept) is None
    assert report.layers[0].retain_rank is None


def test_little_erasing_is_warned_of_with_what_to_change(make_activations):
    forget, retain = apart(make_activations(seed=1), 5), make_activations(prompts=8, seed=2)
    protected = FitReport.of(fit("pure", forget, retain, retain_energy=1.0), forget, retain)
    assert "lower retain_energy (now 1.0)" in protected.summary()
    weak = FitReport.of(
        fit("ridge", forget, retain, keep=1.0, damping=10.0, overshoot=0.5), forget, retain
    )
    assert "Raise overshoot (now 0.5), or lower keep (now 1.0) or damping" in weak.summary()
    erased = FitReport.of(fit("ridge", forget, retain, heads=TOGETHER, keep=0.1), forget, retain)
    assert erased.warnings == ()
    assert "Warning" not in erased.summary()


def test_lost_neighbours_are_warned_of(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    alone = fit("pure", forget, None)
    assert "they will change" in FitReport.of(alone, forget, retain).summary()


def test_rows_that_do_not_belong_together_are_refused(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    eraser = fit("pure", forget, retain)
    with pytest.raises(PureError, match="cfg"):
        FitReport.of(eraser, forget, make_activations(cfg=1.0))
    with pytest.raises(PureError, match="layer"):
        FitReport.of(eraser, make_activations(widths={"layer": 24}), None)


@pytest.mark.parametrize("layers", [1, 7, 70])
@pytest.mark.parametrize("method", ["pure", "ridge", "pure alone"])
def test_the_picture_is_drawn_for_any_number_of_layers(make_activations, layers, method):
    widths = {f"input_blocks.4.1.transformer_blocks.{index}.attn2": 8 for index in range(layers)}
    forget = make_activations(seed=1, widths=widths)
    retain = None if method == "pure alone" else make_activations(seed=2, widths=widths)
    report = FitReport.of(fit(method.split()[0], forget, retain), forget, retain)
    picture = draw(report)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (1024, 3)
    assert picture.shape[0] >= 24 * layers
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert FORGET in colours
    assert (RETAIN in colours) == (retain is not None)


def test_bars_grow_with_what_they_show(make_activations):
    forget, retain = apart(make_activations(seed=1), 5), make_activations(seed=2)

    def red(strength: float) -> int:
        report = FitReport.of(scaled(fit("pure", forget, None), strength), forget, retain)
        table = draw(report)[:, 300:420]
        return int((table == np.array(FORGET)).all(-1).sum())

    assert red(0) < red(0.3) < red(1)


def test_layers_of_zeros_and_strange_prompts_are_drawn(make_activations):
    forget = make_activations(seed=1)
    silent = {layer: torch.zeros_like(rows) for layer, rows in forget.rows.items()}
    anchors = AnchorSet.written([["皮卡丘 " * 60] * len(forget.prompts)])
    forget = replace(forget, rows=silent, anchors=anchors)
    report = FitReport.of(fit("pure", forget, None), forget, None)
    assert draw(report).shape[1] == 1024
    assert report.layers[0].forget_rank == 0


def test_names_are_short_and_printable():
    assert short_name("input_blocks.4.1.transformer_blocks.0.attn2", "unet") == "input 4.1 / 0"
    assert short_name("middle_block.1.transformer_blocks.9.attn2", "unet") == "middle 1 / 9"
    for family in ("unet", "a later one"):
        assert len(short_name("some.other.model.with.long.names.attn2", family)) <= 18
    assert printable("Pokémon – 皮") == "Pokemon ? ?"


def test_an_overshoot_of_the_ridge_goes_further_in_the_same_direction(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    once, twice = (
        FitReport.of(fit("ridge", forget, retain, overshoot=o), forget, retain) for o in (1.0, 2.0)
    )
    for one, two in zip(once.layers, twice.layers, strict=True):
        assert 0.5 < one.shift < 1.0 < two.shift == pytest.approx(2 * one.shift, rel=1e-4)
    assert not any("shift towards" in warning for warning in twice.warnings)


@pytest.mark.parametrize("with_neighbours", [True, False])
def test_the_panel_gets_the_report_as_json(make_activations, with_neighbours):
    forget = make_activations(seed=1)
    retain = make_activations(prompts=6, seed=2) if with_neighbours else None
    report = FitReport.of(fit("pure", forget, retain), forget, retain)
    data = json.loads(json.dumps(panel(report), allow_nan=False))
    assert data["warnings"] == list(report.warnings)
    assert len(data["layers"]) == len(report.layers)
    for shown, layer in zip(data["layers"], report.layers, strict=True):
        assert shown["removed"] == pytest.approx(layer.forget_removed, abs=1e-4)
        kept = None if retain is None else pytest.approx(layer.retain_kept, abs=1e-4)
        assert shown["kept"] == kept
        counts = [count for count, _ in shown["forget_curve"]]
        assert counts == sorted(set(counts)) and len(counts) <= 32
        assert counts[0] == 1 and counts[-1] == len(layer.forget_spectrum.cumulative)
        for count, share in shown["forget_curve"]:
            expected = layer.forget_spectrum.cumulative[count - 1]
            assert share == pytest.approx(expected, abs=1e-4)
        assert (shown["retain_curve"] is None) == (not with_neighbours)


def test_the_panel_has_no_number_where_there_is_none(make_activations):
    forget = make_activations(seed=1)
    report = FitReport.of(fit("pure", forget, None), forget, None)
    broken = replace(report.layers[0], forget_removed=float("nan"))
    data = panel(replace(report, layers=(broken,)))
    assert data["layers"][0]["removed"] is None
