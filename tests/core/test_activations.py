"""Rows end up where they belong, whatever the order they come in, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pure_core.activations import ActivationCollector, Activations
from pure_core.errors import ActivationError, PureError


def test_every_order_and_batching_gives_the_same_activations(make_activations, settings):
    expected = make_activations(prompts=4)
    collector = ActivationCollector(expected.widths, expected.prompts, settings)
    shuffled = torch.randperm(4 * settings.latents)
    for layer in reversed(list(expected.widths)):
        grid = expected.grid(layer)
        for step in (2, 0, 1):
            for places in shuffled.split(3):
                prompt, latent = places // settings.latents, places % settings.latents
                rows = grid[prompt, latent, step]
                collector.add_rows(layer, step, prompt, latent, rows.double())
    collected = collector.finish()
    assert collected.prompts == expected.prompts
    for layer, rows in expected.rows.items():
        assert torch.equal(collected.rows[layer], rows)


def test_rows_are_ordered_by_prompt_then_latent_then_step(settings):
    collector = ActivationCollector({"layer": 3}, ["a", "b"], settings)
    for prompt in range(2):
        for latent in range(settings.latents):
            for step in range(settings.run_steps):
                row = torch.tensor([prompt, latent, step])
                collector.add("layer", prompt, latent, step, row)
    activations = collector.finish()
    assert activations.rows["layer"][settings.run_steps].tolist() == [0, 1, 0]
    assert activations.grid("layer")[1, 0, 2].tolist() == [1, 0, 2]


def test_missing_rows_are_named(settings):
    collector = ActivationCollector({"first": 3, "second": 3}, ["a"], settings)
    for latent in range(settings.latents):
        for step in range(settings.run_steps):
            collector.add("first", 0, latent, step, torch.zeros(3))
    with pytest.raises(ActivationError, match=r"second step 0 \(2 of 2 rows\)") as error:
        collector.finish()
    assert "first" not in str(error.value)


def test_a_row_cannot_be_captured_twice(settings):
    collector = ActivationCollector({"layer": 3}, ["a"], settings)
    collector.add("layer", 0, 1, 2, torch.zeros(3))
    with pytest.raises(ActivationError, match="twice"):
        collector.add("layer", 0, 1, 2, torch.zeros(3))
    same = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ActivationError, match="twice"):
        collector.add_rows("layer", 0, same, same, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "other"}, "not one of"),
        ({"step": 3}, "outside"),
        ({"step": -1}, "outside"),
        ({"prompt": 1}, "outside"),
        ({"row": torch.zeros(4)}, "expected rows of shape"),
    ],
)
def test_rows_that_do_not_fit_are_refused(settings, change, message):
    collector = ActivationCollector({"layer": 3}, ["a"], settings)
    good = {"layer": "layer", "prompt": 0, "latent": 0, "step": 0, "row": torch.zeros(3)}
    with pytest.raises(ActivationError, match=message):
        collector.add(**(good | change))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_invalid_numbers_name_the_layer(make_activations, bad):
    good = make_activations()
    layer = list(good.rows)[1]
    rows = {name: each.clone() for name, each in good.rows.items()}
    rows[layer][5, 2] = bad
    with pytest.raises(ActivationError, match=layer):
        Activations(rows, good.prompts, good.settings)


def test_wrong_number_of_rows_is_refused(make_activations):
    good = make_activations()
    with pytest.raises(ActivationError, match="expected 30 rows"):
        Activations(good.rows, (*good.prompts, "one more"), good.settings)


def test_nothing_is_refused(make_activations):
    good = make_activations()
    with pytest.raises(PureError, match="prompt"):
        Activations(good.rows, (), good.settings)
    with pytest.raises(PureError, match="layer"):
        Activations({}, good.prompts, good.settings)


def test_concatenation_is_capturing_all_prompts_at_once(make_activations):
    first, second = make_activations(prompts=2, seed=1), make_activations(prompts=3, seed=2)
    both = first.concatenate(second)
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


def test_only_the_name_of_the_source_may_differ(settings):
    assert settings.differences(replace(settings, source_name="copy.safetensors")) == []
    other = replace(settings, seed=2, source_fingerprint="def")
    assert settings.differences(other) == ["seed 1 / 2", "source_fingerprint abc / def"]
