"""Erasers with a block for each head: what is fitted is what arrives in attention."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pure_core.activations import Activations
from pure_core.combine import combine
from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import ActivationError, EraserError, EraserFileError, FitError
from pure_core.files.activations import load_activations, save_activations
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.fitting import AS_METHOD, BY_HEAD, TOGETHER, fit
from pure_core.methods import METHODS
from pure_core.report import FitReport
from pure_core.report.numbers import summary

HEADS, SIZE = 3, 4
D = HEADS * SIZE
LAYER = "middle_block.1.transformer_blocks.0.attn2"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_head(rank: int = 2, seed: int = 0, rows: int = 0) -> LayerEraser:
    left, right = random(HEADS, SIZE, rank, seed=seed), random(HEADS, rank, SIZE, seed=seed + 1)
    return LayerEraser(left, right / SIZE, random(rows, D, seed=seed + 2) if rows else None)


def attention(values: LayerEraser | None, bias: Tensor | None = None) -> Tensor:
    """h of a layer whose values are edited, (batch, positions, d)."""
    text, image, w = random(2, 7, 5), random(2, 9, D, seed=1), random(D, 5, seed=2)
    if values is not None:
        w = values.edit_weight(w)
        bias = None if bias is None else values.edit_weight(bias)
    v = text @ w.T + (0 if bias is None else bias)
    q, k, v = (
        x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for x in (image, text @ random(D, 5, seed=3).T, v)
    )
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_it_is_the_dense_matrix_of_its_blocks():
    layer, x, w = by_head(), random(2, 5, D, seed=4), random(D, 6, seed=5)
    assert (layer.heads, layer.width, layer.rank, layer.total_rank) == (HEADS, D, 2, 6)
    blocks = [torch.eye(SIZE) - layer.proj_left[k] @ layer.proj_right[k] for k in range(HEADS)]
    assert torch.allclose(layer.P, torch.block_diag(*blocks))
    assert torch.allclose(layer.dense().P, layer.P) and not layer.dense().by_head
    assert torch.allclose(layer(x), x @ layer.P.T)
    assert torch.allclose(layer(x[0, 0]), layer.P @ x[0, 0])
    assert torch.allclose(layer.edit_weight(w), layer.P @ w)
    assert torch.allclose(layer.edit_weight(w, 0.3), w + 0.3 * (layer.P @ w - w))
    up, down = layer.change(w)
    assert up.shape == (D, 6) and torch.allclose(w + up @ down, layer.P @ w)


@pytest.mark.parametrize("bias", [None, random(D, seed=8)], ids=["no bias", "bias"])
def test_all_of_it_arrives_in_attention(bias):
    plain = attention(None, bias)
    layer = by_head()
    assert torch.allclose(attention(layer, bias), layer(plain), atol=1e-12)
    mixing = LayerEraser(random(D, 2, seed=6), random(2, D, seed=7) / D)
    assert not torch.allclose(attention(mixing, bias), mixing(plain), atol=1e-3)


def test_strength_products_and_limits_are_by_head():
    one, two, w = by_head(seed=1), by_head(rank=3, seed=5), random(D, 6)
    both = one.then(two)
    assert both.by_head and both.rank == SIZE  # 5 would be more than a head has
    assert torch.allclose(both.P, two.P @ one.P)
    mixing = LayerEraser(random(D, 2, seed=6), random(2, D, seed=7) / D)
    for first, second in ((one, mixing), (mixing, one)):
        product = first.then(second)
        assert not product.by_head and torch.allclose(product.P, second.P @ first.P)
    assert torch.equal(one.scaled(0).edit_weight(w), w) and one.scaled(0).by_head
    assert torch.allclose(one.scaled(-0.5).P, 1.5 * torch.eye(D).double() - 0.5 * one.P)


@pytest.mark.parametrize("rows", [0, 20], ids=["alone", "on rows"])
def test_a_limit_keeps_the_best_of_every_head(rows):
    layer = by_head(rank=3, rows=rows)
    limited = layer.limited(1)
    assert (limited.rank, limited.heads) == (1, HEADS)
    for k in range(HEADS):
        head = layer.head(k)
        assert torch.allclose(limited.head(k).P, head.limited(1).P)
    assert layer.limited(3) is layer


def test_what_does_not_fit_is_refused():
    with pytest.raises(EraserError, match=r"got \(3, 4, 2\) and \(3, 4, 2\)"):
        LayerEraser(random(3, 4, 2), random(3, 4, 2))
    with pytest.raises(EraserError, match="The text has no heads"):
        LayerEraser(random(3, 4, 2), random(3, 2, 4), space="text")
    with pytest.raises(EraserError, match=r"rows of shape \(m, 12\)"):
        LayerEraser(random(3, 4, 2), random(3, 2, 4), rows=random(5, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cells", [1, 2])
def test_every_method_fits_each_head_as_if_it_were_a_layer(make_activations, method, cells):
    forget, retain = make_activations(seed=1, cells=cells), make_activations(seed=2, cells=cells)
    whole = fit(method, forget, retain, heads=BY_HEAD)
    assert whole.heads == forget.heads == dict.fromkeys(whole.layers, 4)
    assert whole.provenance.settings["heads"] == BY_HEAD
    for name, layer in whole.layers.items():
        for k in range(4):
            alone = fit(method, forget.head(name, k), retain.head(name, k), heads=TOGETHER)
            assert torch.allclose(layer.head(k).P, alone.layers[name].P, atol=1e-6)
        moment = forget.pooled() if METHODS[method].cells == 1 else forget
        rows = moment.rows[name]
        expected = rows.T @ rows / len(rows)
        assert torch.allclose(layer.rows.T @ layer.rows, expected, atol=1e-4)
    together = fit(method, forget, retain, heads=TOGETHER)
    assert not together.heads and "heads" not in together.provenance.settings


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.join])
def test_joining_gives_what_fitting_all_at_once_gives(make_activations, method):
    concepts = [make_activations(prompts=3, seed=seed) for seed in (1, 2)]
    retain = make_activations(prompts=6, seed=9)
    each = [fit(method, concept, retain, heads=BY_HEAD) for concept in concepts]
    joined = combine(each, "joint", retain)
    at_once = fit(method, concepts[0].concatenate(concepts[1]), retain, heads=BY_HEAD)
    for name, layer in joined.layers.items():
        assert layer.heads == 4
        assert torch.allclose(layer.P, at_once.layers[name].P, atol=1e-4)
    dense = fit(method, concepts[1], retain, heads=TOGETHER)
    with pytest.raises(EraserError, match=f"differ in: heads {BY_HEAD} / None"):
        combine([each[0], dense], "joint", retain)
    product = combine([each[0], dense], "in sequence")
    for name, layer in product.layers.items():
        expected = dense.layers[name].P @ each[0].layers[name].P
        assert torch.allclose(layer.P, expected, atol=1e-5)
    in_sequence = combine(each, "in sequence")
    assert in_sequence.heads and in_sequence.joinable


def test_by_default_heads_are_by_themselves_for_one_concept(make_activations):
    one, other, retain = (make_activations(seed=seed) for seed in (1, 3, 2))
    both = one.concatenate(other)
    assert len(both.anchors.concepts) == 2
    for method, (alone, many) in {
        "pure": (False, False),
        "ridge": (True, False),
        "mosaic": (True, False),
        "leace": (True, True),
    }.items():
        assert bool(fit(method, one, retain).heads) == alone, method
        assert bool(fit(method, both, retain).heads) == many, method


@pytest.fixture
def eraser(make_activations) -> Eraser:
    return fit("ridge", make_activations(seed=1), make_activations(seed=2), heads=BY_HEAD)


def test_files_hold_the_blocks(eraser, tmp_path):
    path = tmp_path / "eraser.safetensors"
    save_eraser(eraser, path)
    assert load_file(path)[f"{LAYER}.proj_left"].shape == (4, 15, eraser.ranks[LAYER])
    loaded = load_eraser(path)
    assert loaded.fingerprint == eraser.fingerprint and loaded.heads == eraser.heads
    assert loaded.provenance == eraser.provenance
    # the same numbers as one dense block are another eraser
    assert eraser.fingerprint != fingerprint_of_dense(eraser)
    dense = sum(layer.dense().proj_left.numel() for layer in eraser.layers.values())
    assert sum(layer.proj_left.numel() for layer in eraser.layers.values()) * 4 == dense


def fingerprint_of_dense(eraser: Eraser) -> str:
    layers = {name: layer.dense() for name, layer in eraser.layers.items()}
    return Eraser(layers, eraser.provenance).fingerprint


def test_a_damaged_block_is_refused(eraser, tmp_path):
    path, bad = tmp_path / "eraser.safetensors", tmp_path / "bad.safetensors"
    save_eraser(eraser, path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[f"{LAYER}.proj_right"] = tensors[f"{LAYER}.proj_right"][:2].contiguous()
    save_file(tensors, bad, metadata=metadata)
    with pytest.raises(EraserFileError, match="Expected proj_left of shape"):
        load_eraser(bad)


def test_activations_keep_their_heads(make_activations, tmp_path):
    captured = make_activations(cells=2)
    save_activations(captured, tmp_path / "new.safetensors")
    assert load_activations(tmp_path / "new.safetensors").heads == captured.heads
    head = captured.head(LAYER, 3)
    assert torch.equal(head.rows[LAYER], captured.rows[LAYER][:, 45:])
    assert torch.equal(head.means[LAYER], captured.means[LAYER][:, 45:])
    assert captured.pooled().heads == captured.split(1)[0].heads == captured.heads


def test_activations_of_unknown_heads_are_fitted_together_or_refused(make_activations, tmp_path):
    from dataclasses import replace

    forget, retain = (replace(make_activations(seed=seed), heads={}) for seed in (1, 2))
    for heads in (TOGETHER, AS_METHOD):
        assert not fit("ridge", forget, retain, heads=heads).heads
    with pytest.raises(FitError, match=f"Capture them again, or choose '{TOGETHER}'"):
        fit("ridge", forget, retain, heads=BY_HEAD)
    with pytest.raises(FitError, match="heads: expected one of"):
        fit("ridge", forget, retain, heads="some")
    for heads in (7, 0):
        with pytest.raises(ActivationError, match=f"heads: {heads} for layer"):
            replace(forget, heads={LAYER: heads})
    with pytest.raises(FitError, match="widths or heads differ"):
        fit("ridge", make_activations(seed=1), retain, heads=TOGETHER)


def test_the_report_counts_ranks_in_every_head(eraser, make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    report = FitReport.of(eraser, forget, retain)
    words = report.summary()
    assert "of 15 in each of 4 heads" in words and "of 6 in each of 4 heads" in words
    assert "in each of 4 heads" in summary(eraser)
    dense = Eraser(
        {name: layer.dense() for name, layer in eraser.layers.items()}, eraser.provenance
    )
    for one, other in zip(report.layers, FitReport.of(dense, forget, retain).layers, strict=True):
        assert one.shift == pytest.approx(other.shift, rel=1e-4)
        assert one.retain_kept == pytest.approx(other.retain_kept, rel=1e-4)


def zero_head(activations: Activations) -> Activations:
    from dataclasses import replace

    rows = {name: each.clone() for name, each in activations.rows.items()}
    rows[LAYER][:, :15] = 0
    return replace(activations, rows=rows)


def test_a_head_that_does_nothing_stays_as_it_is(make_activations):
    forget, retain = (zero_head(make_activations(seed=seed)) for seed in (1, 2))
    for method in METHODS:
        layer = fit(method, forget, retain, heads=BY_HEAD).layers[LAYER]
        assert torch.equal(layer.head(0).P, torch.eye(15))
        assert layer.rank > 0
