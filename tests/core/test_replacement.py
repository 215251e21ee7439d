"""A concept that becomes something: the target, what is kept, the record, joining, the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.cli import main
from pure_core.combine import combine
from pure_core.errors import EraserError, FitError
from pure_core.export.provenance import applied_record, without_words
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.fitting import BY_HEAD, TOGETHER, fit
from pure_core.hidden import HIDDEN
from pure_core.methods import METHODS
from pure_core.report import FitReport, draw, panel

LAYER = "middle_block.1.transformer_blocks.0.attn2"
TEMPLATES = ("{}", "a photo of {}")
WITH_TARGET = [name for name, method in METHODS.items() if method.has_target]
WITHOUT_TARGET = [name for name in METHODS if name not in WITH_TARGET]
AIM = {"ridge": "overshoot", "mosaic": "reach"}
"""Method -> its setting of how far the concept is sent."""

with_target = pytest.mark.parametrize("method", WITH_TARGET)


@pytest.fixture
def named(make_activations):
    """Activations of names in two phrasings, of 2 x 2 cells."""

    def make(seed: int, *names: str, **changes: object) -> Activations:
        captured = make_activations(2 * len(names), seed, **{"cells": 2, **changes})
        return replace(captured, anchors=AnchorSet.phrased(names, TEMPLATES))

    return make


def as_fitted(method: str, captured: Activations) -> Activations:
    """The rows that a method works on."""
    return captured if METHODS[method].cells > 1 else captured.pooled()


def dense(
    forget: Activations, targets: Tensor, kept: list[Activations], keep: float, damping: float
) -> Tensor:
    """E of one layer as the formula stands, with d x d matrices."""
    h_f = forget.rows[LAYER].double()
    h_r = torch.cat([each.rows[LAYER] for each in kept]).double()
    common = keep * h_r.T @ h_r / len(h_r)
    common += damping * h_r.square().mean() * torch.eye(h_r.shape[1]).double()
    moment = h_f.T @ h_f / len(h_f)
    return (targets.T @ h_f / len(h_f) + common) @ torch.linalg.inv(moment + common)


@with_target
@pytest.mark.parametrize("neighbours", [("cat", "bird"), ()])
def test_each_row_goes_to_the_replacement_s_in_its_phrasing(method, named, neighbours):
    """And the replacement is kept, beside the neighbours or alone. Two concepts become one."""
    forget, becomes = named(1, "dog", "wolf"), named(3, "horse")
    retain = named(2, *neighbours) if neighbours else None
    weights = {"keep": 0.7, "damping": 0.05, AIM[method]: 1.0}
    eraser = fit(method, forget, retain, heads=TOGETHER, replacement=becomes, **weights)
    sides = [as_fitted(method, each) for each in (forget, becomes, retain) if each]
    targets = sides[1].rows[LAYER].double().repeat(2, 1)  # of both concepts, in order
    expected = dense(sides[0], targets, sides[1:], 0.7, 0.05)
    assert torch.allclose(eraser.layers[LAYER].P.double(), expected, atol=1e-5)
    assert eraser.provenance.replacement == becomes.anchors
    assert eraser.provenance.retain.concepts == neighbours


@with_target
def test_prompts_written_by_hand_go_to_the_mean_over_the_replacement_s(method, make_activations):
    forget, becomes = make_activations(2, seed=1, cells=2), make_activations(3, seed=3, cells=2)
    retain = make_activations(2, seed=2, cells=2)
    weights = {"keep": 0.7, "damping": 0.05, AIM[method]: 1.0}
    eraser = fit(method, forget, retain, heads=TOGETHER, replacement=becomes, **weights)
    sides = [as_fitted(method, each) for each in (forget, becomes, retain)]
    mean = torch.stack(sides[1].rows[LAYER].double().chunk(3)).mean(0)
    expected = dense(sides[0], mean.repeat(2, 1), sides[1:], 0.7, 0.05)
    assert torch.allclose(eraser.layers[LAYER].P.double(), expected, atol=1e-5)


@with_target
@pytest.mark.parametrize("heads", [BY_HEAD, TOGETHER])
def test_where_nothing_holds_it_back_the_concept_becomes_the_replacement(method, named, heads):
    forget, becomes = (
        named(1, "dog", latents=1, run_steps=1),
        named(3, "horse", latents=1, run_steps=1),
    )
    weights = {"keep": 0.0, "damping": 1e-4, AIM[method]: 1.0}
    eraser = fit(method, forget, None, heads=heads, replacement=becomes, **weights)
    one, other = (as_fitted(method, each).rows[LAYER] for each in (forget, becomes))
    left = (eraser.layers[LAYER](one) - other).norm() / (one - other).norm()
    assert left < (0.1 if heads == TOGETHER else 0.5)  # a head has less room than rows
    kept = fit(method, forget, None, heads=heads, replacement=becomes, keep=1000.0, damping=1e-4)
    assert (kept.layers[LAYER](other) - other).norm() < 0.02 * other.norm()


@with_target
def test_a_replacement_that_is_the_concept_itself_changes_nothing(method, named):
    forget = named(1, "dog")
    itself = fit(method, forget, named(2, "cat"), replacement=forget)
    assert set(itself.ranks.values()) == {0}


@with_target
def test_strength_is_as_with_neighbours(method, named):
    eraser = fit(method, named(1, "dog"), None, replacement=named(3, "horse"))
    weight = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    layer = eraser.layers[LAYER]
    assert torch.equal(layer.edit_weight(weight, 0.0), weight)
    towards, away = (layer.edit_weight(weight, sign) - weight for sign in (1.0, -1.0))
    assert towards.norm() > 1e-2 and torch.allclose(away, -towards, atol=1e-5)


@pytest.mark.parametrize("method", WITHOUT_TARGET)
def test_a_method_without_a_target_says_which_have_one(method, named):
    able = " or ".join(WITH_TARGET)
    with pytest.raises(
        FitError, match=f"replacement: the method {method} .* Use the method {able}"
    ):
        fit(method, named(1, "dog"), named(2, "cat"), replacement=named(3, "horse"))


def test_without_neighbours_the_message_offers_a_replacement(named):
    with pytest.raises(FitError, match=r"retain: the method ridge .* or a replacement, or use"):
        fit("ridge", named(1, "dog"), None)


def test_a_replacement_of_another_capture_is_refused(named):
    other = named(3, "horse", cfg=5.0)
    with pytest.raises(FitError, match=r"forget and replacement .* cfg 7.0 / 5.0"):
        fit("ridge", named(1, "dog"), named(2, "cat"), replacement=other)


# The record


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_file_holds_the_replacement_only_where_there_is_one(named, tmp_path):
    forget, retain, becomes = named(1, "dog"), named(2, "cat"), named(3, "horse")
    for name, given in (("with", becomes), ("without", None)):
        eraser = fit("ridge", forget, retain, replacement=given)
        save_eraser(eraser, tmp_path / f"{name}.safetensors")
        loaded = load_eraser(tmp_path / f"{name}.safetensors")
        assert loaded.provenance == eraser.provenance
        assert loaded.fingerprint == eraser.fingerprint
        assert ("replacement" in applied_record(eraser)) == (given is not None)
        assert "replacement" not in without_words(applied_record(eraser))
    assert metadata_of(tmp_path / "with.safetensors").keys() - {"replacement"} == (
        metadata_of(tmp_path / "without.safetensors").keys()
    )
    record = json.loads(metadata_of(tmp_path / "with.safetensors")["replacement"])
    assert [each["concept"] for each in record] == ["horse", "horse"]


def test_a_hidden_replacement_cannot_be_read(named, tmp_path):
    eraser = fit("ridge", named(1, "dog"), None, replacement=named(3, "horse"))
    path = tmp_path / "hidden.safetensors"
    save_eraser(eraser, path, prompts=False)
    assert b"horse" not in path.read_bytes()
    assert all(each.startswith(HIDDEN) for each in load_eraser(path).provenance.replacement.prompts)


def test_inspect_shows_it(named, tmp_path, capsys):
    path = tmp_path / "eraser.safetensors"
    for becomes, shown in ((named(3, "horse"), True), (None, False)):
        eraser = fit("ridge", named(1, "dog"), named(2, "cat"), replacement=becomes)
        save_eraser(eraser, path, overwrite=True)
        assert main(["inspect", str(path)]) == 0
        said = capsys.readouterr().out
        assert ("replacement: 2 prompts" in said and "a photo of horse" in said) == shown


# Joining


@with_target
@pytest.mark.parametrize("heads", [BY_HEAD, TOGETHER])
@pytest.mark.parametrize("neighbours", [("cat", "bird"), ()])
def test_joining_is_fitting_at_once(method, named, heads, neighbours, tmp_path):
    """Against the neighbours' and the replacement's activations together, also in steps."""
    concepts = [named(seed, name) for seed, name in ((1, "dog"), (4, "wolf"), (5, "fox"))]
    becomes, retain = named(3, "horse"), named(2, *neighbours) if neighbours else None
    each = [fit(method, one, retain, heads=heads, replacement=becomes) for one in concepts]
    for number, eraser in enumerate(each):
        save_eraser(eraser, tmp_path / f"{number}.safetensors", prompts=number > 0)
    each = [load_eraser(tmp_path / f"{number}.safetensors") for number in range(3)]
    kept = retain.concatenate(becomes) if retain else becomes
    joined = combine([combine(each[:2], "joint", kept), each[2]], "joint", kept)
    every = concepts[0].concatenate(*concepts[1:])
    at_once = fit(method, every, retain, heads=heads, replacement=becomes)
    for name, layer in at_once.layers.items():
        assert torch.allclose(joined.layers[name].P, layer.P, atol=1e-4)
    assert len(joined.provenance.retain) == 2 * len(neighbours)


def test_a_joint_eraser_knows_neighbours_and_replacement_apart(named):
    becomes, retain = named(3, "horse"), named(2, "cat", "horse")
    each = [fit("ridge", named(s, n), retain, replacement=becomes) for s, n in ((1, "a"), (4, "b"))]
    made = combine(each, "joint", retain.concatenate(becomes)).provenance
    assert made.replacement == becomes.anchors
    assert sorted(made.retain.prompts) == sorted(retain.anchors.prompts)


def test_concepts_with_replacements_of_their_own_are_joined_if_all_keep_the_same(named):
    """Each goes where it went alone: the minimiser with both targets."""
    first, second, cat = named(1, "dog"), named(4, "wolf"), named(2, "cat")
    horse, cow = named(3, "horse"), named(6, "cow")
    weights = {"keep": 0.7, "damping": 0.05, "overshoot": 1.0, "heads": TOGETHER}
    one = fit("ridge", first, cat.concatenate(cow), replacement=horse, **weights)
    two = fit("ridge", second, cat.concatenate(horse), replacement=cow, **weights)
    joined = combine([one, two], "joint", cat.concatenate(horse, cow))
    rows = [each.pooled() for each in (first.concatenate(second), horse.concatenate(cow), cat)]
    expected = dense(rows[0], rows[1].rows[LAYER].double(), rows[1:], 0.7, 0.05)
    assert torch.allclose(joined.layers[LAYER].P.double(), expected, atol=1e-4)
    assert set(joined.provenance.replacement.concepts) == {"horse", "cow"}


def test_joining_without_the_replacement_s_rows_says_what_to_do(named):
    retain, becomes = named(2, "cat"), named(3, "horse")
    each = [fit("ridge", named(s, n), retain, replacement=becomes) for s, n in ((1, "a"), (4, "b"))]
    for given in (retain, becomes):
        with pytest.raises(EraserError, match=r"kept like a neighbour.*PURE Concatenate"):
            combine(each, "joint", given)
    with pytest.raises(EraserError, match=r"becomes* .*PURE Concatenate Activations.*'retain'"):
        combine(each, "joint")
    plain = fit("ridge", named(5, "c"), retain)
    with pytest.raises(EraserError, match="fitted with other neighbours"):
        combine([each[0], plain], "joint", retain.concatenate(becomes))
    product = combine([each[0], plain], "in sequence").provenance
    assert product.replacement == becomes.anchors


# The report


def test_the_report_is_about_the_replacement(named):
    forget, retain, becomes = named(1, "dog", "wolf"), named(2, "cat"), named(3, "horse")
    eraser = fit("ridge", forget, retain, replacement=becomes, overshoot=1.0, heads=TOGETHER)
    report = FitReport.of(eraser, forget, retain, replacement=becomes)
    said = report.summary()
    assert said.startswith("Erases 2 concepts: dog, wolf, which become horse.")
    assert "shift towards the replacement" in said and "2 replacement prompts." in said
    assert "of the neighbours' and the replacement's energy" in said
    assert panel(report)["concept"] == "dog, wolf, which become horse"
    assert draw(report).shape[2] == 3

    rows, others = forget.pooled().rows[LAYER], becomes.pooled().rows[LAYER].repeat(2, 1)
    moved = rows - eraser.layers[LAYER](rows)
    gap = rows - others
    (found,) = (layer for layer in report.layers if layer.name == LAYER)
    assert found.shift == pytest.approx(float((moved * gap).sum() / gap.square().sum()), rel=1e-4)
    keep = torch.cat([each.pooled().rows[LAYER] for each in (retain, becomes)])
    lost = (eraser.layers[LAYER](keep) - keep).square().sum() / keep.square().sum()
    assert found.retain_kept == pytest.approx(1 - float(lost), rel=1e-4)


def test_with_a_replacement_alone_it_says_what_is_missing(named):
    forget, becomes = named(1, "dog"), named(3, "horse")
    eraser = fit("mosaic", forget, None, replacement=becomes)
    report = FitReport.of(eraser, forget, None, replacement=becomes)
    assert report.summary().startswith("Erases dog, which becomes horse.")
    assert "of the replacement's energy" in report.summary()
    (warning,) = (each for each in report.warnings if "neighbours" in each)
    assert warning.startswith("Fitted without neighbours: beside the replacement")
