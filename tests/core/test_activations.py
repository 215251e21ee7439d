"""Rows end up where they belong, whatever the order they come in, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.activations import ActivationCollector
from pure_core.anchors import AnchorSet
from pure_core.errors import ActivationError, PureError

ONE = AnchorSet.written([["a"]])


@pytest.mark.parametrize("cells", [1, 2])
def test_every_order_and_batching_gives_the_same_activations(make_activations, cells):
    expected = make_activations(prompts=4, cells=cells)
    trajectory, parts = expected.trajectory, cells**2
    collector = ActivationCollector(expected.widths, expected.anchors, trajectory, expected.model)
    shuffled = torch.randperm(4 * trajectory.latents)
    for layer in reversed(list(expected.widths)):
        grid = expected.grid(layer).unflatten(2, (-1, parts))
        means = (expected.means or {}).get(layer, expected.rows[layer]).view_as(grid[..., 0, :])
        for step in (2, 0, 1):
            for places in shuffled.split(3):
                prompt, latent = places // trajectory.latents, places % trajectory.latents
                at = (prompt, latent, step)
                collector.add_rows(
                    layer, step, prompt, latent, grid[at].double(), means[at].double()
                )
    collected = collector.finish()
    assert collected.anchors == expected.anchors
    for layer, rows in expected.rows.items():
        assert torch.equal(collected.rows[layer], rows)
        assert torch.equal(collected.pooled().rows[layer], expected.pooled().rows[layer])


def test_rows_are_ordered_by_prompt_then_latent_then_step_then_cell(trajectory, model):
    trajectory = trajectory._replace(cells=2)
    collector = ActivationCollector({"layer": 4}, ONE + ONE, trajectory, model)
    for prompt in range(2):
        for latent in range(trajectory.latents):
            for step in range(trajectory.run_steps):
                rows = torch.tensor([[prompt, latent, step, cell] for cell in range(4)])
                add(collector, "layer", prompt, latent, step, rows)
    activations = collector.finish()
    rows = activations.rows["layer"]
    assert rows[1].tolist() == [0, 0, 0, 1] and rows[4].tolist() == [0, 0, 1, 0]
    assert rows[4 * trajectory.run_steps].tolist() == [0, 1, 0, 0]
    assert activations.grid("layer")[1, 0, 2 * 4 + 3].tolist() == [1, 0, 2, 3]
    assert activations.pooled().grid("layer")[1, 0, 2].tolist() == [1, 0, 2, 1.5]


def add(
    collector: ActivationCollector, layer: str, prompt: int, latent: int, step: int, rows: Tensor
) -> None:
    """The rows (cells^2, d) of one place."""
    one = rows.float()[None]
    place = (torch.tensor([prompt]), torch.tensor([latent]))
    collector.add_rows(layer, step, *place, one, one.mean(1))


def test_missing_rows_are_named(trajectory, model):
    collector = ActivationCollector({"first": 3, "second": 3}, ONE, trajectory, model)
    for latent in range(trajectory.latents):
        for step in range(trajectory.run_steps):
            add(collector, "first", 0, latent, step, torch.zeros(1, 3))
    with pytest.raises(ActivationError, match=r"second step 0 \(2 of 2 rows\)") as error:
        collector.finish()
    assert "first" not in str(error.value)


def test_a_row_cannot_be_captured_twice(trajectory, model):
    collector = ActivationCollector({"layer": 3}, ONE, trajectory, model)
    add(collector, "layer", 0, 1, 2, torch.zeros(1, 3))
    with pytest.raises(ActivationError, match="twice"):
        add(collector, "layer", 0, 1, 2, torch.zeros(1, 3))
    same = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ActivationError, match="twice"):
        collector.add_rows("layer", 0, same, same, torch.zeros(2, 1, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "other"}, "not one of"),
        ({"step": 3}, "outside"),
        ({"step": -1}, "outside"),
        ({"prompt": 1}, "outside"),
        ({"rows": torch.zeros(1, 4)}, "expected rows of shape"),
        ({"rows": torch.zeros(4, 3)}, "expected rows of shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(trajectory, model, change, message):
    collector = ActivationCollector({"layer": 3}, ONE, trajectory, model)
    good = {"layer": "layer", "prompt": 0, "latent": 0, "step": 0, "rows": torch.zeros(1, 3)}
    with pytest.raises(ActivationError, match=message):
        add(collector, **(good | change))
    add(collector, **good)


@pytest.mark.parametrize("means", [None, torch.zeros(1, 4)])
def test_cells_come_with_the_means_over_the_picture(trajectory, model, means):
    collector = ActivationCollector({"layer": 3}, ONE, trajectory._replace(cells=2), model)
    place = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ActivationError, match=r"beside the 4 cells, of shape \(1, 3\)"):
        collector.add_rows("layer", 0, place, place, torch.zeros(1, 4, 3), means)


def test_pooled_rows_are_the_mean_of_a_picture_that_the_cells_do_not_divide(trajectory, model):
    """Cells of a 5 x 7 picture in a grid of 3 x 3 overlap: the positions in two count twice."""
    trajectory = trajectory._replace(cells=3)
    count = trajectory.latents * trajectory.run_steps
    h = torch.randn(count, 35, 6, generator=torch.Generator().manual_seed(0))
    picture = h.unflatten(1, (5, 7)).movedim(3, 1)
    cells = torch.nn.functional.adaptive_avg_pool2d(picture, 3).flatten(2).movedim(2, 1)
    collector = ActivationCollector({"layer": 6}, ONE, trajectory, model)
    latent = torch.arange(trajectory.latents)
    for step in range(trajectory.run_steps):
        of_step = slice(step, None, trajectory.run_steps)
        collector.add_rows("layer", step, 0 * latent, latent, cells[of_step], h[of_step].mean(1))
    captured = collector.finish()
    pooled = captured.pooled()
    assert pooled.trajectory == trajectory._replace(cells=1) and pooled.means is None
    assert torch.allclose(pooled.rows["layer"], h.mean(1), atol=1e-6)
    assert not torch.allclose(captured.rows["layer"].unflatten(0, (-1, 9)).mean(1), h.mean(1))
    assert pooled.pooled() is pooled


def test_means_are_there_for_every_layer_if_there_are_cells_and_only_then(make_activations):
    whole, parts = make_activations(), make_activations(cells=2)
    first = next(iter(parts.rows))
    for bad in (
        lambda: replace(whole, means=parts.means),
        lambda: replace(parts, means=None),
        lambda: replace(parts, means={first: parts.means[first]}),
    ):
        with pytest.raises(ActivationError, match="need the means over the whole picture"):
            bad()
    with pytest.raises(ActivationError, match="expected 24 rows"):
        replace(parts, means=parts.rows)


@pytest.mark.parametrize("cells", [1, 2])
def test_splitting_undoes_concatenation(make_activations, cells):
    one, other = (make_activations(prompts=n, seed=n, cells=cells) for n in (2, 3))
    first, rest = one.concatenate(other).split(2)
    for part, before in ((first, one), (rest, other)):
        assert part.anchors == before.anchors
        for layer, rows in before.rows.items():
            assert torch.equal(part.rows[layer], rows)
            assert torch.equal(part.pooled().rows[layer], before.pooled().rows[layer])
    assert one.split(2)[1] is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_invalid_numbers_name_the_layer(make_activations, bad):
    good = make_activations()
    layer = list(good.rows)[1]
    rows = {name: each.clone() for name, each in good.rows.items()}
    rows[layer][5, 2] = bad
    with pytest.raises(ActivationError, match=layer):
        replace(good, rows=rows)


def test_wrong_number_of_rows_is_refused(make_activations):
    good = make_activations()
    with pytest.raises(ActivationError, match="expected 30 rows"):
        replace(good, anchors=good.anchors + ONE)


def test_nothing_is_refused(make_activations):
    good = make_activations()
    with pytest.raises(PureError, match="prompt"):
        replace(good, anchors=AnchorSet())
    with pytest.raises(PureError, match="layer"):
        replace(good, rows={})


def test_concatenation_is_capturing_all_prompts_at_once(make_activations):
    first, second = make_activations(prompts=2, seed=1), make_activations(prompts=3, seed=2)
    both = first.concatenate(second)
    assert both.anchors == first.anchors + second.anchors
    assert both.prompts == first.prompts + second.prompts
    for layer in both.rows:
        assert torch.equal(both.grid(layer)[:2], first.grid(layer))
        assert torch.equal(both.grid(layer)[2:], second.grid(layer))


def test_differently_captured_activations_do_not_join(make_activations):
    first = make_activations()
    with pytest.raises(ActivationError, match=r"cfg 7\.0 / 3\.0"):
        first.concatenate(make_activations(cfg=3.0))
    with pytest.raises(ActivationError, match="layers"):
        first.concatenate(make_activations(widths={"layer": 24}))


def test_only_the_name_of_the_model_may_differ(make_activations):
    captured = make_activations()
    copy = replace(captured.model, name="copy.safetensors")
    assert captured.differences(replace(captured, model=copy)) == []
    other = make_activations(seed=2, model=replace(copy, fingerprint="def", precision="float32"))
    other = replace(other, trajectory=other.trajectory._replace(steps=30))
    assert captured.differences(other) == [
        "steps 20 / 30",
        "the model's precision: float16 / float32",
    ]
