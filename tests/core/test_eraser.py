"""The algebra of E = I - L R."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pure_core.anchors import AnchorSet
from pure_core.eraser import EDITS, SPACES, Eraser, LayerEraser, Provenance, Space
from pure_core.errors import EraserError
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.model_identity import ModelIdentity


def layer_eraser(d: int, r: int, seed: int = 0, space: Space = "activations") -> LayerEraser:
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(d, r, dtype=torch.float64, generator=random)
    right = torch.randn(r, d, dtype=torch.float64, generator=random) / d
    return LayerEraser(left, right, space=space)


def provenance(edit: str = "values", method: str = "ridge") -> Provenance:
    return Provenance(
        method=method,
        settings={"keep": 1.0},
        forget=AnchorSet.written([["a cat"]]),
        retain=AnchorSet.written([["a dog", "a fox"]]),
        edit=edit,  # type: ignore[arg-type]
        model=ModelIdentity("model.safetensors", "unet", "abc"),
        created="2026-01-31",
        plugin_version="0.1.0",
    )


def eraser(seed: int = 0, d: int = 12, edit: str = "values") -> Eraser:
    layers = {"a": layer_eraser(d, 3, seed), "b": layer_eraser(8, 2, seed + 1)}
    return Eraser(layers, provenance(edit))


def weight(d: int, inputs: int = 5) -> Tensor:
    return torch.randn(d, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def test_applying_is_multiplying_by_the_dense_matrix():
    layer, x = layer_eraser(12, 3), torch.randn(2, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), x @ layer.P.T)
    assert torch.allclose(layer.edit_weight(weight(12)), layer.P @ weight(12))


@pytest.mark.parametrize("strength", [1.0, 0.3, 2.0, -1.0])
def test_the_edit_is_a_lora_linear_in_strength(strength):
    layer, w = layer_eraser(12, 3), weight(12)
    change = layer.edit_weight(w, strength) - w
    up, down = -strength * layer.proj_left, layer.proj_right @ w
    assert torch.allclose(change, up @ down)
    assert torch.linalg.matrix_rank(change) <= layer.rank
    assert torch.allclose(change, strength * (layer.edit_weight(w) - w))
    assert torch.allclose(layer.scaled(strength).edit_weight(w), layer.edit_weight(w, strength))


def test_strength_zero_is_the_identity_bit_for_bit():
    layer = layer_eraser(12, 3)
    w = weight(12)
    w[0, 0], w[1, 1] = -0.0, float("inf")
    assert layer.edit_weight(w, 0.0) is w
    for edited in (layer.edit_weight(w, 0.0), layer.scaled(0.0).edit_weight(w)):
        assert torch.equal(edited.view(torch.int64), w.view(torch.int64))
    x = torch.randn(4, 12, dtype=torch.float64)
    x[0, 0] = -0.0
    assert torch.equal(layer.scaled(0.0)(x).view(torch.int64), x.view(torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_their_type_and_are_edited_in_float32(dtype):
    layer, w = layer_eraser(12, 3), weight(12).to(dtype)
    edited = layer.to(torch.float32).edit_weight(w)
    assert edited.dtype == dtype
    assert torch.equal(edited, layer.to(torch.float32).edit_weight(w.float()).to(dtype))


def attention(v_weight: Tensor, heads: int) -> Tensor:
    """h of a cross-attention with random images, texts, queries and keys: (2, 6, d)."""
    d, context = v_weight.shape
    random = torch.Generator().manual_seed(3)
    image = torch.randn(2, 6, d, dtype=torch.float64, generator=random)
    text = torch.randn(2, 4, context, dtype=torch.float64, generator=random)
    q, k, v = (
        (x @ w.T).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, w in ((image, weight(d, d)), (text, weight(d, context)), (text, v_weight))
    )
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_editing_the_values_of_one_head_erases_its_activation():
    layer, w = layer_eraser(12, 3), weight(12)
    assert torch.allclose(attention(layer.edit_weight(w), 1), layer(attention(w, 1)))


def test_editing_the_values_is_exact_where_channels_mix_within_their_head_only():
    """Each head mixes values with weights of its own, so E must not carry values across."""
    w, head = weight(12), layer_eraser(4, 2)
    left = torch.block_diag(head.proj_left, head.proj_left, head.proj_left)
    right = torch.block_diag(head.proj_right, head.proj_right, head.proj_right)
    within = LayerEraser(left, right)
    assert torch.allclose(attention(within.edit_weight(w), 3), within(attention(w, 3)))
    across = layer_eraser(12, 3)
    assert not torch.allclose(attention(across.edit_weight(w), 3), across(attention(w, 3)))


def test_strength_and_edit_are_the_eraser_s_own():
    """The layers and the record stay as they were fitted."""
    whole = eraser()
    assert (whole.strength, whole.edit, whole.edited, whole.roles) == (
        1.0,
        None,
        "values",
        ("values",),
    )
    half = whole.applied(0.5, "keys")
    assert half.layers is whole.layers and half.provenance is whole.provenance
    assert (half.strength, half.edited, half.roles) == (0.5, "keys", ("keys",))
    again = half.applied(0.5)
    assert (again.strength, again.edit) == (0.25, "keys")
    assert half.applied(-1, "keys and values").roles == ("keys", "values")
    assert whole.applied(0).applied(5).strength == 0


@pytest.mark.parametrize("strength", [0.25, -1.0, 0.0, 1.7])
@pytest.mark.parametrize("edit", [None, *EDITS])
def test_strength_and_edit_come_back_from_a_file(tmp_path, strength, edit):
    chosen = eraser().applied(strength, edit)
    save_eraser(chosen, tmp_path / "eraser.safetensors")
    loaded = load_eraser(tmp_path / "eraser.safetensors")
    assert (loaded.strength, loaded.edit, loaded.edited) == (strength, edit, edit or "values")
    assert loaded.provenance == chosen.provenance and loaded.fingerprint == chosen.fingerprint


def test_what_changes_an_eraser_keeps_its_strength_and_edit():
    chosen = eraser().applied(0.5, "keys")
    for each in (chosen.limited(1), chosen.without_rows(), chosen.to(torch.half)):
        assert (each.strength, each.edited) == (0.5, "keys")


@pytest.mark.parametrize("strength", [1.0, 0.3, -1.0])
def test_a_bias_is_edited_as_its_outputs_are(strength):
    """E (W c + b) = (E W) c + E b."""
    layer, w = layer_eraser(12, 3), weight(12)
    bias, text = weight(12, 1)[:, 0] + 1, torch.randn(4, 5, dtype=torch.float64)
    edited = layer.edit_weight(bias, strength)
    assert edited.shape == (12,)
    assert torch.allclose(edited, layer.scaled(strength).P @ bias)
    outputs = layer.scaled(strength)(text @ w.T + bias)
    assert torch.allclose(text @ layer.edit_weight(w, strength).T + edited, outputs)
    assert layer.edit_weight(bias, 0.0) is bias


def test_in_text_space_a_bias_stays():
    """W (E c) + b: the bias does not read the text, whatever its size."""
    layer = layer_eraser(12, 3, space="text")
    for bias in (weight(12, 1)[:, 0], weight(7, 1)[:, 0]):
        assert layer.edit_weight(bias) is bias


def test_a_bias_of_another_width_is_refused():
    with pytest.raises(EraserError, match="width 12, the weight has shape"):
        layer_eraser(12, 3).edit_weight(torch.zeros(11))


def test_the_fingerprint_knows_the_factors_and_nothing_else():
    assert eraser().fingerprint == Eraser(eraser().layers, provenance("keys")).fingerprint
    assert eraser().fingerprint == eraser().to(torch.float32).fingerprint
    assert eraser().fingerprint == eraser().applied(0.5, "keys").fingerprint
    changed = [
        eraser(seed=5),
        Eraser({n: each.scaled(0.5) for n, each in eraser().layers.items()}, provenance()),
        Eraser({"c": eraser().layers["a"], "b": eraser().layers["b"]}, provenance()),
    ]
    assert len({eraser().fingerprint, *(each.fingerprint for each in changed)}) == 4


def test_the_fingerprint_does_not_depend_on_the_order_of_layers():
    layers = eraser().layers
    turned = Eraser(dict(reversed(layers.items())), provenance())
    assert turned.fingerprint == eraser().fingerprint


def test_moving_changes_the_type_of_every_factor():
    for layer in eraser().to(torch.float32).layers.values():
        assert layer.proj_left.dtype == layer.proj_right.dtype == torch.float32


def test_in_text_space_keys_and_values_read_erased_vectors():
    layer, w = layer_eraser(12, 3, space="text"), weight(5, 12)
    text = torch.randn(2, 4, 12, dtype=torch.float64)
    assert torch.allclose(layer.edit_weight(w), w @ layer.P)
    assert torch.allclose(text @ layer.edit_weight(w).T, layer(text) @ w.T)


@pytest.mark.parametrize("strength", [1.0, 0.3, -1.0])
def test_the_text_s_edit_is_a_lora_linear_in_strength(strength):
    layer, w = layer_eraser(12, 3, space="text"), weight(5, 12)
    change = layer.edit_weight(w, strength) - w
    up, down = layer.change(w)
    assert up.shape == (5, 3) and down.shape == (3, 12)
    assert torch.allclose(change, strength * up @ down)
    assert torch.allclose(layer.scaled(strength).edit_weight(w), w + change)
    assert layer.edit_weight(w, 0.0) is w
    assert torch.equal(layer.scaled(0.0).edit_weight(w), w)


@pytest.mark.parametrize("ranks", [(2, 3), (8, 7)], ids=["thin", "more than the width"])
@pytest.mark.parametrize("space", SPACES)
def test_then_edits_the_weight_once_more(space, ranks):
    first, second = (layer_eraser(12, r, seed=r, space=space) for r in ranks)
    w = weight(5, 12) if space == "text" else weight(12)
    both = first.then(second)
    assert torch.allclose(both.edit_weight(w), second.edit_weight(first.edit_weight(w)))
    assert not torch.allclose(both.edit_weight(w), first.edit_weight(second.edit_weight(w)))
    assert both.rank <= 12 and both.space == space


@pytest.mark.parametrize("space", SPACES)
def test_a_limited_eraser_keeps_its_space_and_the_strongest_changes_of_its_rows(space):
    layer = layer_eraser(12, 5, space=space)
    rows = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = LayerEraser(layer.proj_left, layer.proj_right, rows, space)
    limited = layer.limited(2)
    assert (limited.space, limited.rank) == (space, 2)
    missing = (layer(rows) - limited(rows)).norm()
    best = torch.linalg.svdvals(rows - layer(rows))[2:].norm()  # Eckart and Young
    assert missing == pytest.approx(float(best))


def test_scaling_moving_and_dropping_rows_keep_the_space():
    layer = layer_eraser(12, 3, space="text")
    parts = [layer.scaled(0.5), layer.scaled(0), layer.to(torch.float32)]
    assert {each.space for each in parts} == {"text"}
    text = Eraser({"a": layer, "b": layer}, provenance())
    wholes = [text, text.applied(0.5), text.limited(1), text.without_rows(), text.to(torch.half)]
    assert {each.space for each in wholes} == {"text"}
    assert eraser().space == "activations"


def test_a_layer_that_is_held_once_stays_so():
    layer = layer_eraser(12, 3, space="text")
    text = Eraser({"a": layer, "b": layer, "c": layer_eraser(12, 3, 1, "text")}, provenance())
    for each in (text.applied(0.5), text.limited(1), text.without_rows(), text.to(torch.half)):
        assert each.layers["a"] is each.layers["b"] is not each.layers["c"]


def test_the_fingerprint_knows_the_space():
    spaces = [
        Eraser({"a": layer_eraser(12, 3, space=space)}, provenance()).fingerprint
        for space in SPACES
    ]
    assert spaces[0] != spaces[1]


def test_spaces_do_not_mix():
    text = layer_eraser(12, 3, space="text")
    with pytest.raises(EraserError, match="spaces differ"):
        text.then(layer_eraser(12, 3))
    with pytest.raises(EraserError, match="Widths or spaces differ: 12 and 11"):
        text.then(layer_eraser(11, 3, space="text"))
    with pytest.raises(EraserError, match="meant for text and others are not"):
        Eraser({"a": text, "b": layer_eraser(12, 3)}, provenance())
    with pytest.raises(EraserError, match=r"width 12, the weight has shape \(12, 5\)"):
        text.edit_weight(weight(12))


def test_what_does_not_fit_is_refused():
    with pytest.raises(EraserError, match=r"\(4, 2\) and \(3, 4\)"):
        LayerEraser(torch.zeros(4, 2), torch.zeros(3, 4))
    with pytest.raises(EraserError, match="width 12"):
        layer_eraser(12, 3).edit_weight(weight(11))
    with pytest.raises(EraserError, match="at least one layer"):
        Eraser({}, provenance())
    with pytest.raises(EraserError, match="edit: expected one of"):
        provenance(edit="queries")
    with pytest.raises(EraserError, match="edit: expected one of"):
        eraser().applied(edit="queries")  # type: ignore[arg-type]
    for strength in (float("nan"), float("inf")):
        with pytest.raises(EraserError, match="strength: expected a number"):
            eraser().applied(strength)
