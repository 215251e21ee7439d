"""The small world: unambiguous concepts, honest captions, a judge that can read."""

from __future__ import annotations

from itertools import combinations
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from testbed.world.captions import caption
from testbed.world.expand import WEIGHTS
from testbed.world.judge import CLASSES, read, truth
from testbed.world.networks import Decoder, Encoder
from testbed.world.prompts import KINDS, concept_prompts, concept_scene, names_of, others
from testbed.world.render import render
from testbed.world.scene import Scene, random_scene
from testbed.world.vocabulary import (
    CHARACTERS,
    COVERS,
    DEVELOPMENT,
    HELD_OUT,
    OBJECTS,
    STYLES,
    Traits,
    recognise,
)

RENDERS = 1500


@pytest.fixture(scope="module")
def renders() -> tuple[torch.Tensor, list[Scene]]:
    """Scenes drawn with a seed that training never used, pictures (b, 3, 64, 64) in [0, 1]."""
    rng = Random("held-out renders")
    scenes = [random_scene(rng) for _ in range(RENDERS)]
    pictures = np.stack([render(scene, rng) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, scenes


def accuracy(pictures: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures read rightly, by attribute, where the picture shows it."""
    readings = read(pictures)
    rates = {}
    for attribute in CLASSES:
        answers = [
            getattr(reading, attribute) == truth(scene, attribute)
            for reading, scene in zip(readings, scenes, strict=True)
            if truth(scene, attribute) is not None
        ]
        assert len(answers) > 100
        rates[attribute] = sum(answers) / len(answers)
    return rates


def test_split_covers_every_concept_once() -> None:
    everything = {
        "object": set(OBJECTS),
        "character": set(CHARACTERS),
        "style": set(STYLES),
        "unsafe content": set(COVERS) - {"clean"},
    }
    for kind, concepts in everything.items():
        assert set(DEVELOPMENT[kind]) | set(HELD_OUT[kind]) == concepts
        assert not set(DEVELOPMENT[kind]) & set(HELD_OUT[kind])


def test_world_is_rich() -> None:
    assert len(CHARACTERS) >= 40
    assert len(STYLES) >= 10
    assert len(OBJECTS) >= 12


def test_characters_are_never_confused() -> None:
    for (_, one), (_, other) in combinations(CHARACTERS.items(), 2):
        assert one.agreement(other) <= 2
    for name, own in CHARACTERS.items():
        assert recognise(own) == name
        four = Traits(own.body, own.colour, own.pattern, own.top, "one")
        assert recognise(four) == name


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions_avoid_every_name(kind: str) -> None:
    for concept in (*DEVELOPMENT[kind], *HELD_OUT[kind]):
        names = {name.lower() for name in names_of(kind, concept)}
        for prompt in concept_prompts(kind, concept, 30, by_name=False):
            words = prompt.text.lower().replace(",", " ").replace(".", " ").split()
            assert not names & set(words), prompt.text
            assert kind not in prompt.asks or prompt.asks[kind] == concept


@pytest.mark.parametrize("kind", KINDS)
def test_named_prompts_name_the_concept(kind: str) -> None:
    for concept in (*DEVELOPMENT[kind], *HELD_OUT[kind]):
        for prompt in concept_prompts(kind, concept, 30, by_name=True):
            text = prompt.text.lower()
            said = any(name.lower() in text for name in names_of(kind, concept))
            assert said or prompt.text.startswith("something"), prompt.text
        assert concept not in others(kind, concept)


def test_captions_are_reproducible() -> None:
    rng = Random(1)
    scene = concept_scene("character", "Zorbo", rng)
    assert caption(scene, Random(2), True) == caption(scene, Random(2), True)
    assert np.array_equal(render(scene, Random(3)), render(scene, Random(3)))


def test_judge_reads_renders(renders: tuple[torch.Tensor, list[Scene]]) -> None:
    for attribute, rate in accuracy(*renders).items():
        assert rate >= 0.98, f"{attribute} {rate:.3f}"


def test_judge_reads_reconstructions(renders: tuple[torch.Tensor, list[Scene]]) -> None:
    pictures, scenes = renders
    tensors = {k: v.float() for k, v in load_file(WEIGHTS / "autoencoder.safetensors").items()}
    encoder, decoder = Encoder(), Decoder()
    for module, prefix in ((encoder, "encoder."), (decoder, "decoder.")):
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    with torch.no_grad():
        seen = torch.cat([decoder(encoder(part)).clamp(0, 1) for part in pictures.split(100)])
    for attribute, rate in accuracy(seen, scenes).items():
        assert rate >= 0.96, f"{attribute} {rate:.3f}"
