"""The layers that are chosen are those asked for, and the rest is the identity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pure_core.eraser import Eraser
from pure_core.errors import EraserError
from pure_core.fitting import fit
from pure_core.selection import select

NAMES = (
    "input_blocks.1.1.transformer_blocks.0.attn2",
    "input_blocks.4.1.transformer_blocks.0.attn2",
    "middle_block.1.transformer_blocks.0.attn2",
    "output_blocks.3.1.transformer_blocks.0.attn2",
    "output_blocks.3.1.transformer_blocks.1.attn2",
)


@pytest.fixture
def eraser(make_activations) -> Eraser:
    widths = dict.fromkeys(NAMES, 16)
    forget, retain = (make_activations(seed=seed, widths=widths) for seed in (1, 2))
    return fit("ridge", forget, retain)


def chosen(eraser: Eraser) -> list[int]:
    return [NAMES.index(name) for name, rank in eraser.ranks.items() if rank]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("input", [0, 1]),
        ("middle", [2]),
        ("middle,output", [2, 3, 4]),
        (" output\n input ", [0, 1, 3, 4]),
        ("*.transformer_blocks.1.*", [4]),
        ("input_blocks.?.1.*, middle", [0, 1, 2]),
        ("*", [0, 1, 2, 3, 4]),
    ],
)
def test_words_choose_layers(eraser, words, expected):
    selected = select(eraser, words)
    assert chosen(selected) == expected
    for index in expected:
        assert selected.layers[NAMES[index]] is eraser.layers[NAMES[index]]
    assert selected.widths == eraser.widths
    assert "layers" in selected.provenance.settings


def test_nothing_asked_is_nothing_changed(eraser):
    assert select(eraser) is eraser
    assert select(eraser, "  ") is eraser


def test_the_fewest_layers_that_do_the_share_asked_for(eraser):
    shares = dict(zip(NAMES, (0.1, 0.4, 0.05, 0.25, 0.2), strict=True))
    known = replace(eraser, provenance=replace(eraser.provenance, contribution=shares))
    for wanted, expected in ((0.01, [1]), (0.4, [1]), (0.6, [1, 3]), (0.9, [0, 1, 3, 4])):
        assert chosen(select(known, contribution=wanted)) == expected
    assert chosen(select(known, "input middle", 0.8)) == [0, 1]
    assert chosen(select(known, "middle", 0.01)) == [2]
    assert select(known, "middle").provenance.contribution[NAMES[1]] == 0


def test_the_measured_share_is_what_changes_in_the_forget_rows(make_activations):
    forget, retain = make_activations(seed=1), make_activations(seed=2)
    eraser = fit("pure", forget, retain)
    for name, layer in eraser.layers.items():
        rows = forget.rows[name]
        share = (rows - layer(rows)).square().sum() / rows.square().sum()
        assert eraser.provenance.contribution[name] == pytest.approx(float(share), rel=1e-4)
        half = layer.scaled(0.5).share_changed()
        assert half == pytest.approx(float(share) / 4, rel=1e-4)


def test_what_fits_nothing_is_refused(eraser):
    with pytest.raises(EraserError, match="layers: 'inputs' fits none of the 5 layers"):
        select(eraser, "middle inputs")
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(EraserError, match="contribution: expected a share"):
            select(eraser, contribution=share)
    old = replace(eraser, provenance=replace(eraser.provenance, contribution={}))
    with pytest.raises(EraserError, match="does not say how much each of its layers does"):
        select(old, contribution=0.5)
    assert chosen(select(old, "middle")) == [2]
