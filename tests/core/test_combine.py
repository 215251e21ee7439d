"""Several concepts: joint in any order, in sequence as the product, limited to the strongest."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import permutations

import pytest
import torch
from torch import Tensor

from pure_core.activations import Activations
from pure_core.anchors import AnchorSet
from pure_core.bases import fit_basis
from pure_core.combine import combine
from pure_core.eraser import Eraser, LayerEraser, product
from pure_core.errors import ActivationError, EraserError
from pure_core.files.eraser import load_eraser, save_eraser
from pure_core.fitting import TOGETHER, fit, fit_text
from pure_core.selection import select
from tests.core.texts import LAYERS, WIDTH, text_model, text_task

MIDDLE = "middle_block.1.transformer_blocks.0.attn2"
SETTINGS = {
    "pure": {"forget_energy": 0.99, "retain_energy": 0.7},
    "ridge": {"keep": 2.0, "heads": TOGETHER},
}
METHODS = list(SETTINGS)


@pytest.fixture
def concepts(make_activations) -> list[Activations]:
    return [make_activations(prompts=3, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def retain(make_activations) -> Activations:
    return make_activations(prompts=6, seed=9)


def fit_each(method: str, concepts: list[Activations], retain: Activations) -> list[Eraser]:
    return [fit(method, each, retain, **SETTINGS[method]) for each in concepts]


def together(concepts: list[Activations]) -> Activations:
    return reduce(Activations.concatenate, concepts)


def assert_same(one: Eraser, other: Eraser, tolerance: float = 2e-6) -> None:
    for name, layer in one.layers.items():
        assert torch.allclose(layer.P, other.layers[name].P, atol=tolerance), name


@pytest.mark.parametrize("method", METHODS)
def test_joining_is_fitting_all_concepts_at_once(method, concepts, retain):
    joined = combine(fit_each(method, concepts, retain), "joint", retain)
    at_once = fit(method, together(concepts), retain, **SETTINGS[method])
    assert_same(joined, at_once)
    made = joined.provenance
    assert (made.method, made.retain) == (method, retain.anchors)
    assert made.settings == at_once.provenance.settings
    assert sorted(made.concepts) == sorted(each.prompts[0] for each in concepts)
    for name, share in at_once.provenance.contribution.items():
        assert made.contribution[name] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_joint_does_not_depend_on_the_order_by_a_single_bit(method, concepts, retain):
    erasers = fit_each(method, concepts, retain)
    prints = {combine(order, "joint", retain).fingerprint for order in permutations(erasers)}
    assert len(prints) == 1
    at_once = [fit(method, together(list(order)), retain) for order in permutations(concepts)]
    for other in at_once[1:]:
        assert_same(at_once[0], other)


@pytest.mark.parametrize("method", METHODS)
def test_joint_in_steps_is_joint_at_once(method, concepts, retain, tmp_path):
    first, second, third = fit_each(method, concepts, retain)
    save_eraser(combine([first, third], "joint", retain), tmp_path / "two.safetensors")
    steps = combine([load_eraser(tmp_path / "two.safetensors"), second], "joint", retain)
    assert_same(steps, combine([first, second, third], "joint", retain))
    assert sorted(steps.provenance.forget.owners) == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("method", METHODS)
def test_a_concept_joined_with_itself_is_itself(method, concepts, retain):
    (eraser,) = fit_each(method, concepts[:1], retain)
    assert_same(combine([eraser, eraser], "joint", retain), eraser)


@pytest.mark.parametrize("method", METHODS)
def test_more_prompts_weigh_more(method, concepts, retain, make_activations):
    uneven = [concepts[0], make_activations(prompts=7, seed=2)]
    joined = combine(fit_each(method, uneven, retain), "joint", retain)
    assert_same(joined, fit(method, together(uneven), retain, **SETTINGS[method]))


def dense_pure(concepts: list[Activations], retain: Activations) -> Tensor:
    """I - P_F (I - P_R) with one P_F over all rows, from dense matrices."""
    _, values, vectors = torch.linalg.svd(together(concepts).rows[MIDDLE].double())
    shares = values.square().cumsum(0) / values.square().sum()
    span = vectors[: int((shares < 0.99).sum()) + 1].T
    kept = fit_basis(retain.rows[MIDDLE], 0.7).vectors
    eye = torch.eye(len(span), dtype=torch.float64)
    return eye - span @ span.T @ (eye - kept @ kept.T)


def test_joint_pure_is_the_published_matrix_over_one_basis(concepts, retain):
    layer = combine(fit_each("pure", concepts, retain), "joint", retain).layers[MIDDLE]
    assert torch.allclose(layer.P.double(), dense_pure(concepts, retain), atol=1e-5)
    left = layer.proj_left
    assert torch.allclose(left.T @ left, torch.eye(layer.rank), atol=1e-5)
    kept = fit_basis(retain.rows[MIDDLE], 0.7).vectors.float()
    assert torch.allclose(layer(kept.T), kept.T, atol=1e-5)


def test_pure_can_be_joined_against_new_neighbours(concepts, retain, make_activations):
    own = [make_activations(prompts=4, seed=20 + index) for index in range(3)]
    erasers = [
        fit("pure", each, neighbours, **SETTINGS["pure"])
        for each, neighbours in zip(concepts, own, strict=True)
    ]
    joined = combine(erasers, "joint", retain)
    expected = dense_pure(concepts, retain)
    assert torch.allclose(joined.layers[MIDDLE].P.double(), expected, atol=1e-5)
    assert joined.provenance.retain == retain.anchors
    with pytest.raises(EraserError, match="neighbours that they were fitted with: connect them"):
        combine(erasers, "joint")


@pytest.mark.parametrize("method", METHODS)
def test_erasers_do_not_hold_their_neighbours_fresh_or_from_a_file(
    method, concepts, retain, tmp_path
):
    erasers = fit_each(method, concepts, retain)
    joined = combine(erasers, "joint", retain)
    assert combine([joined, *erasers[:1]], "joint", retain).provenance.retain == retain.anchors
    for number, each in enumerate(erasers):
        save_eraser(each, tmp_path / f"{number}.safetensors")
    loaded = [load_eraser(path) for path in sorted(tmp_path.iterdir())]
    assert combine(loaded, "joint", retain).fingerprint == joined.fingerprint
    for every in (erasers, loaded):
        with pytest.raises(EraserError, match="were fitted with: connect them to 'retain'"):
            combine(every, "joint")


def test_more_concepts_than_channels_stay_within_the_width(make_activations, retain):
    concepts = [make_activations(prompts=3, seed=seed) for seed in range(30, 40)]
    for method in METHODS:
        joined = combine(fit_each(method, concepts, retain), "joint", retain)
        assert_same(joined, fit(method, together(concepts), retain, **SETTINGS[method]))
        for layer in joined.layers.values():
            assert layer.rank <= layer.width >= len(layer.rows)
        product = combine(fit_each(method, concepts, retain), "in sequence")
        assert all(layer.rank <= layer.width for layer in product.layers.values())


def test_in_sequence_is_the_product_in_order(concepts, retain):
    erasers = fit_each("ridge", concepts, retain)
    product = combine(erasers, "in sequence")
    for name, layer in product.layers.items():
        first, second, third = (each.layers[name].P.double() for each in erasers)
        assert torch.allclose(layer.P.double(), third @ second @ first, atol=2e-6)
        assert not torch.allclose(layer.P.double(), first @ second @ third, atol=1e-5)
    made = product.provenance
    assert made.method == "ridge, in sequence"
    assert made.settings == erasers[0].provenance.settings
    assert made.retain == retain.anchors
    assert made.forget.owners == (0, 0, 0, 1, 1, 1, 2, 2, 2)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
def test_a_product_of_many_is_theirs_in_order(count):
    random = torch.Generator().manual_seed(0)
    layers = [
        LayerEraser(
            *(torch.randn(size, generator=random).double() / 9 for size in ((20, 4), (4, 20)))
        )
        for _ in range(count)
    ]
    dense = reduce(lambda done, layer: layer.P @ done, layers, torch.eye(20).double())
    whole = product(layers)
    assert torch.allclose(whole.P, dense)
    assert whole.rank <= 20


def test_in_sequence_says_what_was_different(concepts, retain):
    one, two = fit("pure", concepts[0], retain, retain_energy=0.7), fit("pure", concepts[1], None)
    made = combine([one, two], "in sequence").provenance
    assert made.settings == {
        "forget_energy 1": 0.9999,
        "retain_energy 1": 0.7,
        "forget_energy 2": 0.9999,
        "retain_energy 2": 0.3,
    }
    assert combine([one, two], "in sequence").provenance.trajectory == concepts[0].trajectory
    longer = concepts[0].trajectory._replace(steps=30)
    other = replace(two, provenance=replace(two.provenance, trajectory=longer))
    assert combine([one, other], "in sequence").provenance.trajectory is None


def test_in_sequence_is_the_product_of_each_at_its_own_strength(concepts, retain):
    one, two = fit_each("ridge", concepts[:2], retain)
    product = combine([one.applied(0.5), two], "in sequence")
    eye = torch.eye(60, dtype=torch.float64)
    first = (eye + one.layers[MIDDLE].P.double()) / 2
    expected = two.layers[MIDDLE].P.double() @ first
    assert torch.allclose(product.layers[MIDDLE].P.double(), expected, atol=2e-6)
    assert (product.strength, product.edited) == (1.0, "values")
    made = product.provenance.settings
    assert made["strength 1"] == 0.5 and "strength 2" not in made
    chosen = combine([one.applied(edit="keys"), two.applied(edit="keys")], "in sequence")
    assert chosen.edited == "keys"
    with pytest.raises(EraserError, match="keys and others values: they are not one"):
        combine([one.applied(edit="keys"), two], "in sequence")


def test_a_joint_eraser_keeps_the_strength_and_the_edit_that_all_have(concepts, retain):
    erasers = fit_each("ridge", concepts[:2], retain)
    half = combine([each.applied(0.5, "keys") for each in erasers], "joint", retain)
    assert (half.strength, half.edited) == (0.5, "keys")
    assert half.fingerprint == combine(erasers, "joint", retain).fingerprint


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["joint", "in sequence"])
def test_a_budget_keeps_the_directions_in_which_the_forget_rows_change_most(
    method, mode, concepts, retain
):
    erasers = fit_each(method, concepts, retain)
    whole = combine(erasers, mode, retain)
    limited = combine(erasers, mode, retain, max_rank=4)
    assert limited.provenance.settings["max_rank"] == 4
    rows = together(concepts).rows[MIDDLE].double()
    change = rows - whole.layers[MIDDLE](rows.float()).double()
    layer = limited.layers[MIDDLE]
    assert layer.rank == 4
    missing = (change - (rows - layer(rows.float()).double())).norm()
    heads = change.unflatten(1, (layer.heads, -1)).transpose(0, 1)
    best = torch.linalg.svdvals(heads)[:, 4:].norm()  # Eckart and Young, in each head
    assert missing == pytest.approx(float(best), rel=1e-3)


def test_a_budget_keeps_what_was_kept_exactly(concepts, retain):
    limited = combine(fit_each("pure", concepts, retain), "joint", retain, max_rank=3)
    kept = fit_basis(retain.rows[MIDDLE], 0.7).vectors.float()
    assert torch.allclose(limited.layers[MIDDLE](kept.T), kept.T, atol=1e-5)


def test_a_budget_between_the_ranks_of_two_layers_can_be_saved(concepts, retain, tmp_path):
    eraser = fit("pure", concepts[0], retain, forget_energy=0.999)
    low, high = sorted(eraser.ranks.values())
    assert low < high
    limited = eraser.limited(low)
    save_eraser(limited, tmp_path / "limited.safetensors")
    assert load_eraser(tmp_path / "limited.safetensors").fingerprint == limited.fingerprint
    for name, layer in limited.layers.items():
        rows = concepts[0].rows[name]
        share = (rows - layer(rows)).square().sum() / rows.square().sum()
        assert limited.provenance.contribution[name] == pytest.approx(float(share), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_layers_without_any_change_are_combined_too(method, concepts, retain):
    one, other = (select(each, "middle") for each in fit_each(method, concepts[:2], retain))
    product = combine([one, other], "in sequence")
    ranks = dict(product.ranks)
    assert ranks.pop(MIDDLE) > 0 and set(ranks.values()) == {0}
    still = combine([one.applied(0), other.applied(0)], "in sequence")
    assert set(still.ranks.values()) == {0}


def test_settings_that_were_applied_do_not_pass_for_the_product_s(concepts, retain):
    limited = [each.limited(2) for each in fit_each("ridge", concepts[:2], retain)]
    made = combine(limited, "in sequence").provenance
    assert (made.settings["max_rank 1"], made.settings["max_rank 2"]) == (2, 2)
    assert "max_rank" not in made.settings


def test_the_order_of_the_neighbours_does_not_matter(concepts, retain):
    grids = {name: retain.grid(name).flip(0).flatten(0, 2) for name in retain.rows}
    anchors = AnchorSet(retain.anchors.anchors[::-1])
    turned = replace(retain, rows=grids, anchors=anchors)
    erasers = fit_each("ridge", concepts, retain)
    assert_same(combine(erasers, "joint", turned), combine(erasers, "joint", retain))


def test_a_budget_that_is_not_reached_changes_nothing(concepts, retain):
    (eraser,) = fit_each("ridge", concepts[:1], retain)
    assert eraser.limited(1000) is eraser
    with pytest.raises(EraserError, match="max_rank: expected 1 or more, got 0"):
        eraser.limited(0)


def test_concatenated_captures_are_several_concepts(concepts, make_activations):
    both = concepts[0].concatenate(concepts[1])
    assert both.anchors.owners == (0, 0, 0, 1, 1, 1)
    assert both.prompts == concepts[0].prompts + concepts[1].prompts
    assert together(concepts).anchors.owners == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    with pytest.raises(ActivationError, match="differ in: steps 20 / 30"):
        both.concatenate(concepts[2], make_activations(steps=30))


def test_what_cannot_be_joined_is_refused_with_what_to_do(concepts, retain, make_activations):
    pure, ridge = (fit_each(method, concepts, retain) for method in METHODS)
    bare = pure[1].without_rows()
    patched = replace(pure[1].provenance.model, fingerprint="other")
    moved = replace(pure[1], provenance=replace(pure[1].provenance, model=patched))
    refused = [
        ([pure[0]], retain, "two or more erasers to combine, got 1"),
        ([pure[0], ridge[1]], retain, "method pure / ridge"),
        ([ridge[0], ridge[1].limited(1)], retain, "because max_rank was applied"),
        ([ridge[0], ridge[1].applied(0.5)], retain, r"strength 1\.0 / 0\.5"),
        ([ridge[0], ridge[1].applied(edit="keys")], retain, "edit values / keys"),
        ([ridge[0], select(ridge[1], "middle")], retain, "because layers was applied"),
        (
            [combine(ridge[:2], "in sequence"), ridge[2]],
            retain,
            "the method ridge, in sequence has no joint",
        ),
        ([pure[0], moved], retain, r"what was patched into model\.safetensors"),
        ([pure[0], bare], retain, "because it does not hold the rows .*saved with 'joinable' on"),
        ([bare, bare], None, "because it does not hold the rows"),
        (ridge[:2], make_activations(prompts=6, seed=8), "fitted with other neighbours"),
        (pure[:2], make_activations(prompts=6, seed=8, steps=30), "steps 20 / 30"),
        ([pure[0], fit("pure", concepts[1], None)], retain, "retain_energy 0.7 / 0.3"),
        ([fit("pure", each, None) for each in concepts], retain, "fitted without neighbours"),
    ]
    for erasers, kept, message in refused:
        with pytest.raises(EraserError, match=message):
            combine(erasers, "joint", kept)
    with pytest.raises(EraserError, match="values: they are not one eraser"):
        combine([pure[0], ridge[0]], "in sequence")
    with pytest.raises(EraserError, match="mode: expected one of joint, in sequence, got 'sum'"):
        combine(pure, "sum")


@pytest.fixture
def text_erasers() -> list[Eraser]:
    """Two that edit all layers alike and one of more concepts."""
    tasks = [text_task(), text_task(("one tall tower",)), text_task(("blue birds", "a lake"))]
    methods = ("uce", "cure", "double projections")
    return [fit_text(method, task) for method, task in zip(methods, tasks, strict=True)]


def test_in_text_space_in_sequence_is_the_product_in_order(text_erasers):
    whole = combine(text_erasers, "in sequence")
    weight = text_task().model.weight_of(MIDDLE, "values")
    one_by_one = weight
    for each in text_erasers:
        one_by_one = each.layers[MIDDLE].edit_weight(one_by_one)
    assert torch.allclose(whole.layers[MIDDLE].edit_weight(weight), one_by_one, atol=2e-6)
    turned = combine(text_erasers[::-1], "in sequence")
    assert not torch.allclose(turned.layers[MIDDLE].edit_weight(weight), one_by_one, atol=1e-3)
    made = whole.provenance
    assert whole.space == "text" and made.forget.owners == (0, 0, 0, 1, 2, 2)
    assert made.method == "uce then cure then double projections, in sequence"
    assert (made.settings["ridge 1"], made.settings["alpha 2"]) == (0.5, 2.0)


def test_a_product_of_layers_that_are_held_once_is_held_once(text_erasers, tmp_path):
    whole = combine(text_erasers, "in sequence")
    assert len({id(layer) for layer in whole.layers.values()}) == 1
    path = tmp_path / "whole.safetensors"
    save_eraser(whole, path)
    assert load_eraser(path).fingerprint == whole.fingerprint


def test_the_rows_of_a_product_of_text_erasers_are_all_their_forget_tokens(text_erasers):
    rows = combine(text_erasers, "in sequence").layers[MIDDLE].rows
    moments = [each.layers[MIDDLE].rows.T @ each.layers[MIDDLE].rows for each in text_erasers]
    expected = (3 * moments[0] + 1 * moments[1] + 2 * moments[2]) / 6
    assert torch.allclose(rows.T @ rows, expected, atol=1e-5)


def test_a_product_of_different_layers_is_another_for_each():
    speed = [fit_text("speed", text_task(prompts)) for prompts in (("a cat",), ("a lake",))]
    whole = combine(speed, "in sequence")
    for name, layer in whole.layers.items():
        first, second = (each.layers[name].P for each in speed)
        assert torch.allclose(layer.P, first @ second, atol=2e-6)
    prints = {layer.P.numpy().tobytes() for layer in whole.layers.values()}
    assert len(prints) == len(whole.layers)


def test_what_the_methods_of_the_text_cannot_do_is_refused(text_erasers, concepts, retain):
    leace = [fit("leace", each, retain) for each in concepts[:2]]
    turned = fit_text("oce", text_task())
    same_widths = text_task(model=text_model(dict.fromkeys(LAYERS, WIDTH)))
    speed, oce = (fit_text(method, same_widths) for method in ("speed", "oce"))
    with pytest.raises(EraserError, match="method leace has no joint form"):
        combine(leace, "joint", retain)
    for method, erasers in {"uce": text_erasers[:2], "oce": [turned, turned]}.items():
        with pytest.raises(EraserError, match=f"method {method} has no joint form.*in sequence"):
            combine(erasers, "joint")
    with pytest.raises(EraserError, match="keys and values and others values: they are not one"):
        combine([speed, text_erasers[0]], "in sequence")
    with pytest.raises(EraserError, match="activations and others text: they are not one"):
        combine([speed, oce], "in sequence")


def test_spaces_of_different_width_are_refused_for_their_width():
    """In every real model the widths of activations and text differ."""
    speed, oce = (fit_text(method, text_task()) for method in ("speed", "oce"))
    with pytest.raises(EraserError, match="activations and others text: they are not one"):
        combine([speed, oce], "in sequence")


def test_without_neighbours_pure_joins_what_it_has(concepts):
    joined = combine([fit("pure", each, None) for each in concepts], "joint")
    assert_same(joined, fit("pure", together(concepts), None))


def test_progress_is_told_of_every_layer_and_may_stop(concepts, retain):
    erasers, seen = fit_each("pure", concepts, retain), []
    combine(erasers, "joint", retain, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine(erasers, "in sequence", progress=stop)
