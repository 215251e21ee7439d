"""The world of real pictures: every concept can be asked for in two ways, captions tell the truth,
the shipped weights draw and the judge reads them.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed.pictures import narrow, vae
from testbed.pictures.captions import caption
from testbed.pictures.expand import vae_tensors
from testbed.pictures.judge import CLASSES, read
from testbed.pictures.measure import PICTURES
from testbed.pictures.prompts import (
    KINDS,
    concept_prompts,
    everything_prompts,
    name_of,
    names_of,
    neighbour_prompts,
    others,
    unrelated_prompts,
)
from testbed.pictures.scene import random_scene
from testbed.pictures.vocabulary import BACKGROUNDS, CONCEPTS, HANDS, of_kind
from testbed.pictures.wan import Wan, rotate, rotations
from testbed.pictures.words import known_tokens, rows, tokens
from testbed.world.run import Run

needs_models = pytest.mark.skipif(
    not all((narrow.WEIGHTS / f"{n}.safetensors").exists() for n in ("judge", *narrow.MODELS)),
    reason="testbed/pictures/weights/ holds no trained models yet: see its README",
)

ALL = [(kind, concept) for kind in KINDS for concept in of_kind(kind)]


def padded(text: str) -> str:
    """The text's words between blanks, so that whole words can be found."""
    for mark in ",.'-":
        text = text.replace(mark, " ")
    return f" {' '.join(text.split())} "


def test_the_world_is_rich() -> None:
    assert len(CONCEPTS) >= 120
    assert len(HANDS) >= 4
    assert len({concept.icon for concept in CONCEPTS.values()}) == len(CONCEPTS)


def test_split_is_of_known_concepts_and_never_overlaps() -> None:
    for kind in KINDS:
        development, held_out = (split[kind] for split in PICTURES.splits.values())
        assert len(development) >= 2 and len(held_out) >= 2
        assert not set(development) & set(held_out)
        assert set(development) | set(held_out) <= set(of_kind(kind))


def test_no_two_concepts_share_a_name_or_description() -> None:
    said = [each for _, c in CONCEPTS.items() for each in (*c.names, *c.descriptions)]
    assert len(said) == len(set(said))


@pytest.mark.parametrize(("kind", "concept"), ALL)
def test_descriptions_avoid_the_names(kind: str, concept: str) -> None:
    prompts = concept_prompts(kind, concept, 12, by_name=False)
    for name in names_of(kind, concept):
        for prompt in prompts:
            assert padded(name) not in padded(prompt.text), prompt.text
    for prompt in concept_prompts(kind, concept, 12, by_name=True):
        assert any(padded(name) in padded(prompt.text) for name in names_of(kind, concept))


@pytest.mark.parametrize(("kind", "concept"), ALL)
def test_neighbours_are_the_others_of_the_kind(kind: str, concept: str) -> None:
    rest = others(kind, concept)
    assert set(rest) == set(of_kind(kind)) - {concept}
    if kind != "style":
        group = CONCEPTS[concept].group
        near = [CONCEPTS[name].group == group for name in rest]
        assert near == sorted(near, reverse=True)
    for prompt in neighbour_prompts(kind, rest, 6):
        assert prompt.asks[kind] in rest


def test_unrelated_prompts_ask_for_nothing_of_the_kind() -> None:
    for kind in KINDS:
        for prompt in unrelated_prompts(kind, 40):
            assert kind not in prompt.asks
            assert prompt.asks


def test_every_word_is_known() -> None:
    rng = Random(5)
    texts = [caption(random_scene(rng), rng).text for _ in range(400)]
    assert rows(texts, known_tokens()).shape == (400, 77)
    assert all(set(tokens(name_of(*each))) <= set(known_tokens()) for each in ALL)


@needs_models
def test_the_weights_know_the_words() -> None:
    assert narrow.load_wan().tokens == narrow.load_unet().tokens == known_tokens()


@pytest.mark.parametrize(
    "fields", [(), ("concept",), ("style", "background"), ("concept", "style")]
)
def test_captions_say_what_they_claim(fields: tuple[str, ...]) -> None:
    rng = Random(6)
    for _ in range(100):
        scene = random_scene(rng)
        text = caption(scene, rng, True, frozenset(fields)).text
        places = BACKGROUNDS[scene.background]
        said = {
            "concept": any(padded(n) in padded(text) for n in CONCEPTS[scene.concept].names),
            "style": any(padded(n) in padded(text) for n in HANDS[scene.style].names),
            "background": any(place in text for place in places),
        }
        assert {field for field, found in said.items() if found} == set(fields), text


def test_a_rotation_keeps_lengths_and_depends_on_distance() -> None:
    turns = rotations(4)
    q, k = torch.randn(2, 1, 1, 1, 128).expand(2, 1, 1, 16, 128)
    scores = (rotate(q, turns) @ rotate(k, turns).transpose(-1, -2))[0, 0]
    assert rotate(q, turns).norm(dim=-1).allclose(q.norm(dim=-1), rtol=1e-5)
    # cell (0, 0) sees (1, 1) as (1, 1) sees (2, 2)
    assert scores[0, 5] == pytest.approx(scores[5, 10].item(), rel=1e-4)
    assert scores[0, 5] != pytest.approx(scores[0, 1].item(), rel=1e-3)


def test_a_shared_caption_is_a_repeated_one() -> None:
    torch.manual_seed(0)
    model = Wan()
    nn.init.normal_(model.head.weight, std=0.1)
    x, t, context = torch.randn(4, 16, 8, 8), torch.rand(4) * 1000, torch.randn(2, 77, 192)
    shared = model(x, t, context)
    repeated = model(x, t, context.repeat_interleave(2, 0))
    assert shared.std() > 0.05
    assert torch.allclose(shared, repeated, atol=1e-4)


def test_a_frame_meets_only_the_last_tap() -> None:
    """The layout's kernels in time, on one frame behind two of zeros."""
    small = vae.Autoencoder()
    narrow_tensors = {k: torch.randn_like(v) for k, v in small.state_dict().items()}
    scale = {"mean": torch.zeros(16), "deviation": torch.ones(16)}
    wide = vae_tensors(narrow_tensors | scale)
    x = torch.randn(1, 16, 8, 8)
    frames = F.pad(x[:, :, None], (1, 1, 1, 1, 2, 0))
    key = "decoder.conv1"
    out = F.conv3d(frames, wide[f"{key}.weight"], wide[f"{key}.bias"])
    stem = narrow_tensors["decoder.stem.weight"], narrow_tensors["decoder.stem.bias"]
    assert torch.allclose(out[:, :, 0], F.conv2d(x, *stem, padding=1), atol=1e-4)


@needs_models
@pytest.mark.parametrize("name", narrow.MODELS)
def test_the_judge_reads_what_the_models_draw(name: str) -> None:
    prompts = everything_prompts(24, by_name=True, seed=7)
    pictures = narrow.sampler(name)([prompt.text for prompt in prompts])
    assert pictures.shape == (24, 3, 64, 64)
    hits = [
        prompt.met(reading, attribute)
        for prompt, reading in zip(prompts, read(pictures), strict=True)
        for attribute in prompt.asks
    ]
    assert sum(hits) >= 0.75 * len(hits)


@needs_models
def test_the_judge_may_see_nothing() -> None:
    assert CLASSES["concept"][-1] == CLASSES["style"][-1] == "other"
    plain = torch.full((1, 3, 64, 64), 0.98)
    (reading,) = read(plain)
    assert (reading.concept, reading.style, reading.background) == ("other", "other", "white")


@needs_models
def test_recording_collects_every_layer_and_step() -> None:
    model = narrow.load_wan()
    noise = torch.randn(2, 16, 8, 8)
    with narrow.recording(model, cells=2) as found:
        narrow.sample_wan(model, ["a fox", "a bomb"], noise, steps=4, run_steps=3)
    assert set(found.means) == {f"blocks.{i}.cross_attn" for i in range(4)}
    for layer, means in found.means.items():
        assert [m.shape for m in means] == [(4, 256)] * 3
        assert torch.allclose(found.cells[layer][0].mean(1), means[0], atol=1e-5)


def test_a_run_taken_up_again_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    def run_in(folder: Path, stop: int | None) -> Run:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(1)
        run = Run("small", folder, nn.Linear(3, 2), 8, 0.05)

        def loss_of(rng: np.random.Generator) -> Tensor:
            if run.step == stop:
                raise KeyboardInterrupt
            given = torch.from_numpy(rng.standard_normal((4, 3))).float()
            return (run.module(given) - torch.randn(4, 2)).square().mean()

        run.train(loss_of)
        return run

    whole = run_in(tmp_path / "whole", None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("testbed.world.run.SAVE_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "parts", 5)
    again = run_in(tmp_path / "parts", None)
    assert again.step == 8
    for key, value in whole.average.items():
        assert torch.equal(again.average[key], value)
        assert torch.equal(again.module.state_dict()[key], whole.module.state_dict()[key])
