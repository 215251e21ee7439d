"""The shipped model in stock ComfyUI: the same function as its narrow form, and it draws."""

from __future__ import annotations

import functools

import pytest
import torch

from testbed.comfy.erasable import STEPS
from testbed.comfy.shipped import Shipped
from testbed.world import narrow
from testbed.world.expand import TEXT, WEIGHTS
from testbed.world.measure import DRAWN, Rate

TEXTS = [
    "a red striped ball on a meadow",
    "Zephyra at night",
    "a portrait of a round blue plain creature with horns and two eyes, in the desert",
    "a house in the style of Okimura",
]


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped()


@pytest.fixture(scope="module")
def small() -> narrow.NarrowModel:
    return narrow.load(WEIGHTS)


def test_text_encoder_equals_the_narrow_one(shipped: Shipped, small: narrow.NarrowModel) -> None:
    for text in TEXTS:
        wide = shipped.encode(text).tokens[0].float().cpu()
        own = small.encode([text])[0]
        assert wide.shape == (77, 768)
        assert torch.allclose(wide[:, TEXT], own, atol=2e-3)
        assert wide.abs().sum().item() == pytest.approx(wide[:, TEXT].abs().sum().item())


def test_latents_equal_the_narrow_ones(shipped: Shipped, small: narrow.NarrowModel) -> None:
    noise = torch.randn(len(TEXTS), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own = narrow.sample(small, TEXTS, noise, steps=STEPS, cfg=shipped.cfg)
    wide = shipped.latents(TEXTS, seed=0).cpu() * 0.18215
    assert own.std() > 0.5
    assert (wide - own).abs().max() < 0.02 * own.abs().max()


def test_it_draws_what_is_asked(shipped: Shipped) -> None:
    rates = DRAWN.rates(shipped.pictures, 16, by_name=True)
    total = functools.reduce(Rate.__add__, rates.values())
    assert total.value >= 0.9, rates


def test_the_default_erases_and_keeps(shipped: Shipped, comfy_version: tuple[int, ...]) -> None:
    """One kind in each version, to save minutes; the examples erase a character in both.

    Not every concept goes as far: some of the object house stays (docs/results.md).
    """
    kind, concept = ("style", "blueprint") if comfy_version < (0, 30) else ("object", "heart")
    trial = DRAWN.trial(kind, concept, 6)._replace(
        by_description=[], unlisted_neighbours=[], everything_else=[]
    )
    before = trial.score(shipped.pictures)
    model, _ = shipped.erase(trial)
    after = trial.score(functools.partial(shipped.pictures, model=model))
    assert before.by_name.value >= 0.75
    assert after.by_name.value <= 0.25
    assert after.neighbours.value >= 0.7 * before.neighbours.value
